//! Which part of a file an HTTP request asks for, and of which version of it (RFC 9110, 13 and 14).
//!
//! One range of bytes is understood. What RFC 9110 (14.2) lets a server ignore is ignored, and means
//! the whole file: other units, several ranges, and what is no range at all. Nothing here panics.

use std::fmt;
use std::ops::Range;

/// The fields of a GET or HEAD request that are about parts and versions, as they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartRequest<'a> {
    /// `Range`.
    pub range: Option<&'a str>,
    /// `If-Range`.
    pub if_range: Option<&'a str>,
    /// `If-Match`.
    pub if_match: Option<&'a str>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a str>,
}

/// What is to be sent of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it: 200.
    Whole,
    /// These bytes, at least one: 206.
    Part(Range<u64>),
    /// Nothing, since all that was asked for lies behind its end: 416.
    Unsatisfiable,
    /// Nothing, since it is another version than the one that was asked for: 412.
    Changed,
    /// Nothing, since the client has this version: 304.
    Unchanged,
}

impl PartRequest<'_> {
    /// What to send of a file of `size` bytes with the strong entity tag `tag`, quotes included.
    /// The order is that of RFC 9110, 13.2.2.
    pub fn select(&self, size: u64, tag: &str) -> Selection {
        if self.if_match.is_some_and(|tags| !lists(tags, tag)) {
            return Selection::Changed;
        }
        if self.if_none_match.is_some_and(|tags| knows(tags, tag)) {
            return Selection::Unchanged;
        }
        let Some(range) = self.range.and_then(ByteRange::parse) else {
            return Selection::Whole;
        };
        // A date or a weak tag is never the strong one that we sent (13.1.5).
        if self.if_range.is_some_and(|it| trim(it) != tag) {
            return Selection::Whole;
        }
        range.of(size)
    }
}

/// `Content-Range` (RFC 9110, 14.4) of a part, or where no part can be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The part, at least one byte; `None` = unsatisfiable.
    pub part: Option<Range<u64>>,
    /// The whole file's size in bytes.
    pub size: u64,
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size;
        match &self.part {
            Some(part) => write!(f, "bytes {}-{}/{size}", part.start, part.end - 1),
            None => write!(f, "bytes */{size}"),
        }
    }
}

/// One range as it was asked for (RFC 9110, 14.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteRange {
    /// From one byte to another, that one included, or to the end.
    From(u64, Option<u64>),
    /// So many at the end.
    Last(u64),
}

impl ByteRange {
    /// `None`: it is to be ignored.
    fn parse(field: &str) -> Option<ByteRange> {
        let (unit, set) = field.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        // A list may have empty elements (5.6.1.2).
        let mut ranges = set.split(',').map(trim).filter(|it| !it.is_empty());
        let (range, None) = (ranges.next()?, ranges.next()) else {
            return None;
        };
        match range.split_once('-')? {
            ("", count) => Some(ByteRange::Last(position(count)?)),
            (first, "") => Some(ByteRange::From(position(first)?, None)),
            (first, last) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(ByteRange::From(first, Some(last)))
            }
        }
    }

    fn of(self, size: u64) -> Selection {
        let part = match self {
            ByteRange::From(first, last) => {
                let end = last.map_or(size, |last| last.saturating_add(1).min(size));
                first..end
            }
            ByteRange::Last(0) => return Selection::Unsatisfiable,
            // The end of nothing is nothing, which no part can be.
            ByteRange::Last(_) if size == 0 => return Selection::Whole,
            ByteRange::Last(count) => size.saturating_sub(count)..size,
        };
        match part.start < size {
            true => Selection::Part(part),
            false => Selection::Unsatisfiable,
        }
    }
}

/// A decimal number of any length: one that is too large is behind the end of every file.
fn position(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Whether a list of entity tags has this strong one (RFC 9110, 13.1.1). No tag that we send has a
/// comma, so that those of others may be cut at theirs.
fn lists(tags: &str, tag: &str) -> bool {
    trim(tags) == "*" || tags.split(',').any(|it| trim(it) == tag)
}

/// Whether a list of entity tags has this one, be it as a weak one (RFC 9110, 13.1.2).
fn knows(tags: &str, tag: &str) -> bool {
    let strong = |it| trim(it).strip_prefix("W/").unwrap_or(trim(it));
    trim(tags) == "*" || tags.split(',').any(|it| strong(it) == tag)
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"0f\"";

    fn selected(range: &str, size: u64) -> Selection {
        let request = PartRequest {
            range: Some(range),
            ..PartRequest::default()
        };
        request.select(size, TAG)
    }

    /// The examples of RFC 9110, 14.1.2, of a file of 10,000 bytes, and the edges of them.
    #[test]
    fn a_range_is_a_part_of_the_file() {
        for (range, part) in [
            ("bytes=0-499", 0..500),
            ("bytes=500-999", 500..1000),
            ("bytes=-500", 9500..10_000),
            ("bytes=9500-", 9500..10_000),
            ("bytes=0-0", 0..1),
            ("bytes=-1", 9999..10_000),
            ("bytes=9999-9999", 9999..10_000),
            ("bytes=9000-10000", 9000..10_000),
            ("bytes=0-99999999999999999999999", 0..10_000),
            ("bytes=-99999999999999999999999", 0..10_000),
            ("BYTES= 1-2 ,,", 1..3),
        ] {
            assert_eq!(selected(range, 10_000), Selection::Part(part), "{range}");
        }
    }

    #[test]
    fn what_lies_behind_the_end_is_told_of() {
        for (range, size) in [
            ("bytes=10000-", 10_000),
            ("bytes=10000-10001", 10_000),
            ("bytes=99999999999999999999999-", 10_000),
            ("bytes=18446744073709551615-", u64::MAX),
            ("bytes=-0", 10_000),
            ("bytes=0-", 0),
        ] {
            let got = selected(range, size);
            assert_eq!(got, Selection::Unsatisfiable, "{range} of {size}");
        }
    }

    #[test]
    fn what_is_no_single_range_means_all_of_it() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=,",
            "bytes=2-1",
            "bytes=1-2,4-5",
            "bytes=1-2, -1",
            "bytes=1 - 2",
            "bytes=+1-2",
            "bytes=1-2-3",
            "bytes=--1",
            "bytes=0x1-",
            "bytes 1-2",
            "bytes =1-2",
            "lines=1-2",
        ] {
            assert_eq!(selected(range, 10), Selection::Whole, "{range}");
        }
        assert_eq!(selected("bytes=-5", 0), Selection::Whole);
    }

    #[test]
    fn a_part_of_another_version_is_never_sent() {
        let part = Selection::Part(1..3);
        for (if_range, if_match, expected) in [
            (Some("\"0f\""), None, part.clone()),
            (Some("\"10\""), None, Selection::Whole),
            (Some("W/\"0f\""), None, Selection::Whole),
            (
                Some("Sun, 06 Nov 1994 08:49:37 GMT"),
                None,
                Selection::Whole,
            ),
            (None, Some("\"0f\""), part.clone()),
            (None, Some("\"10\", \"0f\""), part.clone()),
            (None, Some("*"), part.clone()),
            (None, Some("\"10\""), Selection::Changed),
            (None, Some("W/\"0f\""), Selection::Changed),
            (None, Some(""), Selection::Changed),
            (Some("\"0f\""), Some("\"10\""), Selection::Changed),
        ] {
            let request = PartRequest {
                range: Some("bytes=1-2"),
                if_range,
                if_match,
                ..PartRequest::default()
            };
            assert_eq!(request.select(10, TAG), expected, "{request:?}");
        }
        let nothing_asked = PartRequest::default();
        assert_eq!(nothing_asked.select(10, TAG), Selection::Whole);
    }

    /// RFC 9110, 13.1.2 and 13.2.2: after `If-Match`, before `Range`.
    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let part = Selection::Part(1..3);
        for (if_none_match, if_match, expected) in [
            ("\"0f\"", None, Selection::Unchanged),
            ("W/\"0f\"", None, Selection::Unchanged),
            ("\"10\", W/\"11\" ,\t\"0f\"", None, Selection::Unchanged),
            (" * ", None, Selection::Unchanged),
            ("\"0f\"", Some("\"0f\""), Selection::Unchanged),
            ("\"0f\"", Some("\"10\""), Selection::Changed),
            ("\"10\"", Some("*"), part.clone()),
            ("\"10\"", None, part.clone()),
            ("0f", None, part.clone()),
            ("w/\"0f\"", None, part.clone()),
            ("W/W/\"0f\"", None, part.clone()),
            ("", None, part.clone()),
        ] {
            let request = PartRequest {
                range: Some("bytes=1-2"),
                if_range: Some("\"0f\""),
                if_match,
                if_none_match: Some(if_none_match),
            };
            assert_eq!(request.select(10, TAG), expected, "{request:?}");
        }
    }

    #[test]
    fn a_part_is_said_by_its_first_and_last_byte() {
        let part = ContentRange {
            part: Some(42..1234),
            size: 1234,
        };
        assert_eq!(part.to_string(), "bytes 42-1233/1234");
        let none = ContentRange {
            part: None,
            size: 47_022,
        };
        assert_eq!(none.to_string(), "bytes */47022");
    }
}
