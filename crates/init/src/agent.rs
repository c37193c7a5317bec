//! The agent on the running node: reports multi-user and failed units, then prepares for a shutdown
//! without a server, and tells the guard when a shutdown begins.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::param::page_size;
use wire::beacon::{Beacon, Kind};
use wire::cmdline::BootArgs;
use wire::order::ControlKey;
use wire::stage::Stage;

use crate::fill::Fill;
use crate::guard::Guard;
use crate::orders::KEY_PATH;
use crate::report::{BEACON_PATH, Reporter};
use crate::sys;
use crate::{command, last, orders, renew, units};

/// When the report is repeated, in seconds after it: datagrams get lost.
const REPEAT_AFTER_S: [u64; 3] = [1, 4, 15];
/// How often it is looked at how full the upper layer is, in seconds.
const LOOK_EVERY_S: u64 = 20;

/// Reports, prepares, stays.
pub fn main() -> ! {
    let report: &Reporter = Box::leak(Box::new(Reporter::new()));
    let _ = sys::hold_sigterm();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let (args, _) = BootArgs::parse(line.trim_end());
    report.set_slate(args.slate);
    let last = fs::read(BEACON_PATH).unwrap_or_default();
    let last = args
        .slate
        .and_then(|it| Beacon::decode(&last, &it.token).ok());
    let mut begun = last.as_ref().and_then(begun);
    if let Some(beacon) = last {
        report.resume(beacon);
    }
    let failed = units::failed();
    report.progress(Stage::MultiUser, &format!("{} failed units", failed.len()));
    for unit in failed {
        report.failure(Stage::MultiUser, &unit);
    }
    let kept = keep();
    let mut held = Vec::new();
    // The guard inherits what is held.
    let mut guard = stand_in(&mut held).and_then(|()| Guard::start());
    match &guard {
        Ok(_) => report.info(Stage::MultiUser, &kept),
        Err(error) => {
            let text = format!("no shutdown without the server: {error}");
            report.failure(Stage::MultiUser, &text);
        }
    }
    // Not before: whoever starts a guard has one thread.
    let key = fs::read(KEY_PATH).ok().and_then(|it| it.try_into().ok());
    if let (Some(slate), Some(key)) = (args.slate, key) {
        orders::serve(slate, ControlKey(key));
    }
    renew::keep(report);
    let mut fill = Fill::default();
    let mut pauses = REPEAT_AFTER_S.into_iter();
    loop {
        let pause = pauses.next();
        let wait = Duration::from_secs(pause.unwrap_or(LOOK_EVERY_S));
        // Only process 1 ends an agent.
        if sys::sigterm_within(wait) == Some(1) {
            break;
        }
        if let Some((init_us, switch_us)) = begun
            && let Some(finished_us) = units::finished_us()
        {
            begun = None;
            let times = units::times(init_us, switch_us, finished_us);
            report.info(Stage::MultiUser, &times);
        }
        if pause.is_some() {
            report.repeat();
        } else if let Some(text) = fill.look() {
            report.info(Stage::MultiUser, &text);
            pauses = REPEAT_AFTER_S.into_iter();
        }
    }
    if let Ok(guard) = &mut guard {
        let _ = guard.shutting_down();
    }
    std::process::exit(0)
}

/// Takes the places that a shutdown starts from. To hold them open keeps the directories on the way
/// known to the kernel, which otherwise asks the server for them again when memory is short.
fn stand_in(held: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut paths = command::install()?;
    paths.push(last::install()?);
    paths.extend(["/run", "/proc", "/sys", "/dev"].map(str::to_owned));
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for path in paths {
        held.push(open(path, flags, Mode::empty())?);
    }
    Ok(())
}

/// When `/init` began and when it handed over, in microseconds since the kernel's start.
fn begun(beacon: &Beacon) -> Option<(u64, u64)> {
    let at = |stage| {
        let mut events = beacon.events.iter();
        let event = events.find(|it| it.kind == Kind::Progress && it.stage == stage);
        event.map(|it| it.monotonic_us)
    };
    Some((at(Stage::Init)?, at(Stage::SwitchRoot)?))
}

/// Keeps in memory what nobody can do without: the code of process 1, for which a page that cannot
/// be read is the end of the system, and programs whose failure a shutdown would report. Answers how
/// much that is.
fn keep() -> String {
    const PROGRAMS: [&str; 2] = ["/usr/bin/umount", "/usr/lib/systemd/systemd-executor"];
    let maps = fs::read_to_string("/proc/1/maps").unwrap_or_default();
    let mut files = mapped(&maps);
    for program in PROGRAMS {
        files.entry(PathBuf::from(program)).or_default();
    }
    let locked = files.iter().filter_map(|(path, mappings)| {
        let file = File::open(path).ok()?;
        let pages = usize::try_from(file.metadata().ok()?.len())
            .ok()?
            .div_ceil(page_size());
        // A shutdown runs code of systemd that never ran before; of libraries it uses what it has.
        let wanted = if mappings.is_empty() || is_systemd(path) {
            vec![true; pages]
        } else {
            used(mappings, pages).ok()?
        };
        sys::lock_file(&file, &wanted).ok()
    });
    let (count, pages) = locked.fold((0, 0), |(count, sum), pages| (count + 1, sum + pages));
    let kib = pages * page_size() / 1024;
    format!("{count} files, {kib} KiB kept for shutdown")
}

fn is_systemd(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "systemd" || name.starts_with("libsystemd-")
}

/// A part of a file in a process's memory: address of its begin and end, offset in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    begin: u64,
    end: u64,
    offset: u64,
}

/// The files in a `/proc/PID/maps` and where they are mapped.
fn mapped(maps: &str) -> BTreeMap<PathBuf, Vec<Mapping>> {
    let mut files: BTreeMap<PathBuf, Vec<Mapping>> = BTreeMap::new();
    for line in maps.lines() {
        if let Some((path, mapping)) = mapping(line) {
            files.entry(path).or_default().push(mapping);
        }
    }
    files
}

/// Reads a line of proc_pid_maps(5), if it is about a file.
fn mapping(line: &str) -> Option<(PathBuf, Mapping)> {
    let path = &line[line.find('/')?..];
    let mut fields = line.split(' ');
    let (begin, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mapping = Mapping {
        begin: hex(begin)?,
        end: hex(end)?,
        offset: hex(fields.nth(1)?)?,
    };
    (!path.ends_with(" (deleted)")).then(|| (PathBuf::from(path), mapping))
}

/// Which of a file's pages process 1 has in its memory (proc_pid_pagemap(5)).
fn used(mappings: &[Mapping], pages: usize) -> io::Result<Vec<bool>> {
    /// In memory, and a page of a file rather than a copy that process 1 has written to.
    const PRESENT: u64 = 1 << 63 | 1 << 61;
    let size = page_size() as u64;
    let map = File::open("/proc/1/pagemap")?;
    let mut used = vec![false; pages];
    for mapping in mappings {
        let count = (mapping.end - mapping.begin) / size;
        let mut entries = vec![0; usize::try_from(count).map_err(io::Error::other)? * 8];
        map.read_exact_at(&mut entries, mapping.begin / size * 8)?;
        let first = usize::try_from(mapping.offset / size).map_err(io::Error::other)?;
        for (page, entry) in used.iter_mut().skip(first).zip(entries.as_chunks().0) {
            *page |= u64::from_ne_bytes(*entry) & PRESENT == PRESENT;
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_files_are_found() {
        let maps = "1000-2000 r-xp 00001000 0:1 5 /usr/bin/a b\n\
                    2000-4000 r--p 00002000 0:1 5 /usr/bin/a b\n\
                    3-4 r-xp 0 0:0 0 [vdso]\n4-5 r-xp 0 0:1 6 /usr/bin/d (deleted)\n";
        let mapping = |begin, end, offset| Mapping { begin, end, offset };
        let expected = vec![
            mapping(0x1000, 0x2000, 0x1000),
            mapping(0x2000, 0x4000, 0x2000),
        ];
        let files = mapped(maps);
        assert_eq!(files.len(), 1);
        assert_eq!(files[Path::new("/usr/bin/a b")], expected);
    }
}
