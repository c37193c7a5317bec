//! `slate events`: the daemon's journal, as lines or as JSON.

use daemon::control::{Client, EventRecord};
use owo_colors::OwoColorize as _;

use crate::args::{DirArgs, EventsArgs};
use crate::failure::{Failure, Outcome};
use crate::render;

/// Prints what is kept and, with `--follow`, what comes.
pub fn run(dirs: &DirArgs, args: &EventsArgs) -> Outcome {
    let client = Client::connect(&dirs.run_dir)?;
    for event in client.events(0, args.follow)? {
        print(&event?, args.output.json)?;
    }
    Ok(())
}

/// Prints one event: a JSON object on one line, or a line for people.
pub fn print(event: &EventRecord, json: bool) -> Outcome {
    if json {
        let line = serde_json::to_string(event)
            .map_err(|error| Failure::because("writing JSON", &error))?;
        anstream::println!("{line}");
    } else {
        anstream::println!("{}", text(event));
    }
    Ok(())
}

/// One event as a line.
pub fn text(event: &EventRecord) -> String {
    let clock = render::clock(event.at_ms);
    let node = event.node.as_deref().or(event.mac.as_deref());
    let who = node.unwrap_or("-");
    let words = match event.level.as_str() {
        "error" => event.text.red().to_string(),
        "warn" => event.text.yellow().to_string(),
        _ => event.text.clone(),
    };
    format!("{}  {who:<17}  {words}", clock.dimmed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_who_and_what() {
        let event = EventRecord {
            id: 7,
            at_ms: 61_000,
            mac: Some("52:54:00:00:00:01".into()),
            node: Some("node1".into()),
            kind: "file-not-found".into(),
            level: "warn".into(),
            text: "asked for grubx64.efi: not found".into(),
            detail: serde_json::Value::Null,
        };
        assert_eq!(
            anstream::adapter::strip_str(&text(&event)).to_string(),
            "00:01:01.000  node1              asked for grubx64.efi: not found"
        );
    }
}
