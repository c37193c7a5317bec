//! The machine itself: room on its disk, and its clock.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Report;

/// Less room than this, and a lease may soon find none.
const LITTLE_BYTES: u64 = 64 << 20;
/// Less room than this, and the next image finds none.
const SOME_BYTES: u64 = 2 << 30;
/// A clock that shows an earlier time was never set: 1 January 2026.
const NEVER_SET_SECONDS: u64 = 1_767_225_600;

/// Room for images, leases and events.
pub fn disk(state_dir: &Path, report: &mut Report) {
    let shown = state_dir.display();
    match rustix::fs::statvfs(state_dir) {
        Ok(disk) => judge_disk(&shown.to_string(), disk.f_bavail * disk.f_frsize, report),
        Err(error) => report.skip("disk", format!("{shown}: {error}")),
    }
}

fn judge_disk(shown: &str, free: u64, report: &mut Report) {
    let found = format!("{} MB free in {shown}", free / 1_000_000);
    let hint = "make room: slate image gc --dry-run says what can go";
    match free {
        0..LITTLE_BYTES => report.error("disk", found, hint),
        LITTLE_BYTES..SOME_BYTES => report.warn("disk", found, hint),
        _ => report.ok("disk", found),
    }
}

/// Nodes get their time of day from elsewhere, but leases and certificates hang on this clock.
pub fn clock(report: &mut Report) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    judge_clock(now.as_secs(), report);
}

fn judge_clock(seconds: u64, report: &mut Report) {
    if seconds < NEVER_SET_SECONDS {
        let hint = "set it: timedatectl set-ntp true";
        report.error(
            "clock",
            format!("it shows {seconds} s after 1970: never set"),
            hint,
        );
    } else {
        report.ok("clock", "it shows a time of these years");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Outcome;

    fn outcome(judge: impl FnOnce(&mut Report)) -> Outcome {
        let mut report = Report::default();
        judge(&mut report);
        let check = &report.checks[0];
        assert_eq!(check.hint.is_empty(), check.outcome == Outcome::Ok);
        check.outcome
    }

    #[test]
    fn a_full_disk_is_worse_than_a_small_one() {
        for (free, expected) in [
            (0, Outcome::Error),
            (63 << 20, Outcome::Error),
            (1 << 30, Outcome::Warning),
            (20 << 30, Outcome::Ok),
        ] {
            assert_eq!(outcome(|it| judge_disk("/x", free, it)), expected, "{free}");
        }
    }

    #[test]
    fn a_clock_without_battery_is_told_of() {
        assert_eq!(outcome(|it| judge_clock(86_400, it)), Outcome::Error);
        assert_eq!(outcome(clock), Outcome::Ok);
    }
}
