//! Tables, times and sizes as people read them; JSON as programs do.

use std::io::IsTerminal as _;
use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// Prints `value` as JSON on standard output, indented on a terminal.
pub fn json<T: Serialize>(value: &T) -> Outcome {
    let text = if std::io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    let text = text.map_err(|error| Failure::because("writing JSON", &error))?;
    anstream::println!("{text}");
    Ok(())
}

/// A table without lines: columns in the given order, as wide as the terminal allows.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// `1.2 GB`, `830 kB`: three digits at most, powers of ten.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = usize::from(value < 9.95);
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// `3 s`, `5 min`, `2 h`, `4 d`: how long ago or how long it took.
pub fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `5.0 s`: stages lie close together.
pub fn seconds(milliseconds: u64) -> String {
    format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// How long ago `unix_ms` was.
pub fn ago(unix_ms: u64) -> String {
    format!("{} ago", duration(now_ms().saturating_sub(unix_ms)))
}

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// `HH:MM:SS.mmm`, UTC, as log lines begin.
pub fn clock(unix_ms: u64) -> String {
    let day_ms = unix_ms % 86_400_000;
    let (hours, minutes) = (day_ms / 3_600_000, day_ms / 60_000 % 60);
    let (seconds, millis) = (day_ms / 1000 % 60, day_ms % 1000);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{millis:03}")
}

/// The first 12 digits of a digest: enough to tell versions apart.
pub fn short_digest(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_lines() {
        let rows = [
            vec!["node1".into(), "10.77.0.101".into()],
            vec!["a".into(), "-".into()],
        ];
        assert_eq!(
            table(&["NODE", "ADDRESS"], rows),
            "NODE   ADDRESS\nnode1  10.77.0.101\na      -"
        );
    }

    #[test]
    fn sizes_have_three_digits_at_most() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (8_234_000, "8.2 MB"),
            (54_700_000, "55 MB"),
            (999_600, "1.0 MB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn durations_choose_their_unit() {
        assert_eq!(duration(3_900), "3 s");
        assert_eq!(duration(300_000), "5 min");
        assert_eq!(duration(3 * 86_400_000), "3 d");
        assert_eq!(seconds(8_660), "8.6 s");
    }

    #[test]
    fn clock_is_the_time_of_day() {
        assert_eq!(clock(86_400_000 * 3 + 3_661_007), "01:01:01.007");
    }
}
