//! The agent on the running node: reports multi-user and failed units, then prepares for a shutdown
//! without a server, and tells the guard when a shutdown begins.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use wire::beacon::Beacon;
use wire::cmdline::BootArgs;
use wire::stage::Stage;

use crate::guard::Guard;
use crate::last;
use crate::report::{BEACON_PATH, Reporter};
use crate::sys::{self, Pages};

/// When the report is repeated, in seconds after it: datagrams get lost.
const REPEAT_AFTER_S: [u64; 3] = [1, 4, 15];

/// Reports, prepares, stays.
pub fn main() -> ! {
    let report = Reporter::new();
    let _ = sys::hold_sigterm();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let (args, _) = BootArgs::parse(line.trim_end());
    report.set_slate(args.slate);
    let last = fs::read(BEACON_PATH).unwrap_or_default();
    if let Some(beacon) = args
        .slate
        .and_then(|it| Beacon::decode(&last, &it.token).ok())
    {
        report.resume(beacon);
    }
    let failed = failed_units();
    report.progress(Stage::MultiUser, &format!("{} failed units", failed.len()));
    for unit in failed {
        report.failure(Stage::MultiUser, &unit);
    }
    keep(&report);
    let mut guard = Guard::start();
    let ready = match &guard {
        Ok(_) => last::install(),
        Err(error) => Err(io::Error::other(error.to_string())),
    };
    if let Err(error) = ready {
        let text = format!("no shutdown without the server: {error}");
        report.failure(Stage::MultiUser, &text);
    }
    let mut pauses = REPEAT_AFTER_S.map(Duration::from_secs).into_iter();
    loop {
        let pause = pauses.next();
        // Only process 1 ends an agent.
        if sys::sigterm_within(pause.unwrap_or(Duration::MAX)) == Some(1) {
            break;
        }
        if pause.is_some() {
            report.repeat();
        }
    }
    if let Ok(guard) = &mut guard {
        let _ = guard.shutting_down();
    }
    std::process::exit(0)
}

fn failed_units() -> Vec<String> {
    let text = systemctl(&["list-units", "--failed", "--plain"]);
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl")
        .args(arguments)
        .args(["--no-legend", "--no-pager"])
        .output();
    output.map_or(String::new(), |it| {
        String::from_utf8_lossy(&it.stdout).into_owned()
    })
}

/// Keeps in memory what nobody can do without: process 1's own code, for which a page that cannot
/// be read is the end of the system, and the command that asks it for a shutdown.
fn keep(report: &Reporter) {
    let maps = fs::read_to_string("/proc/1/maps").unwrap_or_default();
    let mut files = mapped(&maps);
    files.insert(PathBuf::from("/usr/bin/systemctl"));
    let sizes = files.iter().filter_map(|path| {
        let file = File::open(path).ok()?;
        sys::lock_file(&file, pages(path)).ok()
    });
    let (count, bytes) = sizes.fold((0, 0), |(count, sum), size| (count + 1, sum + size));
    let text = format!("{count} files, {} KiB kept for shutdown", bytes / 1024);
    report.info(Stage::MultiUser, &text);
}

/// A shutdown runs code of systemd that never ran before; of the libraries it uses what it has.
fn pages(path: &Path) -> Pages {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name == "systemd" || name.starts_with("libsystemd-") {
        Pages::All
    } else {
        Pages::Present
    }
}

/// The files in a `/proc/PID/maps`.
fn mapped(maps: &str) -> BTreeSet<PathBuf> {
    let paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths
        .filter(|it| !it.ends_with(" (deleted)"))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_files_are_found_once() {
        let maps = "1-2 r-xp 0 0:1 5 /usr/bin/a b\n2-3 r--p 0 0:1 5 /usr/bin/a b\n\
                    3-4 r-xp 0 0:0 0 [vdso]\n4-5 r-xp 0 0:1 6 /usr/bin/d (deleted)\n";
        assert_eq!(
            mapped(maps),
            BTreeSet::from([PathBuf::from("/usr/bin/a b")])
        );
    }
}
