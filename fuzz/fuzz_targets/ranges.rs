//! Fields of HTTP requests: whatever they say, a part lies in the file, and what is said of it asks
//! for the same part again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::ranges::{ContentRange, PartRequest, Selection};

const TAG: &str = "\"0f\"";

/// Any text, or with `true` one that begins as a field does whose rest matters.
type Field<'a> = Option<(bool, &'a str)>;

fuzz_target!(|input: (u64, Field, Field, Field, Field)| {
    let (size, range, if_range, if_match, if_none_match) = input;
    let text = |field: Field, start: &str| {
        field.map(|(is_usual, text)| [if is_usual { start } else { "" }, text].concat())
    };
    let (range, if_range) = (text(range, "bytes="), text(if_range, TAG));
    let (if_match, if_none_match) = (text(if_match, TAG), text(if_none_match, TAG));
    let request = PartRequest {
        range: range.as_deref(),
        if_range: if_range.as_deref(),
        if_match: if_match.as_deref(),
        if_none_match: if_none_match.as_deref(),
    };
    let selected = request.select(size, TAG);
    let names = |field: &Option<String>| {
        let text = field.as_deref().unwrap_or_default();
        text.contains(TAG) || text.contains('*')
    };
    if selected == Selection::Unchanged {
        assert!(names(&if_none_match) && (if_match.is_none() || names(&if_match)));
    }
    let Selection::Part(part) = selected else {
        return;
    };
    assert!(part.start < part.end && part.end <= size);
    assert!(range.is_some() && if_range.as_deref().is_none_or(|it| it.contains(TAG)));
    let said = ContentRange {
        part: Some(part.clone()),
        size,
    };
    let said = said.to_string();
    let (said, total) = said.split_once('/').expect("a size");
    assert_eq!(total, size.to_string());
    let again = PartRequest {
        range: Some(&said.replacen(' ', "=", 1)),
        ..request
    };
    assert_eq!(again.select(size, TAG), Selection::Part(part));
});
