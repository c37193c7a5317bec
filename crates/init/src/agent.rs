//! The agent on the running node: reports multi-user and failed units, then keeps what shutdown
//! needs in memory, so that a node can be powered off while its server is away.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use wire::beacon::Beacon;
use wire::cmdline::BootArgs;
use wire::stage::Stage;

use crate::report::{BEACON_PATH, Reporter};
use crate::sys;

/// When the report is repeated, in seconds after it: datagrams get lost.
const REPEAT_AFTER_S: [u64; 3] = [1, 4, 15];

/// Reports, warms, stays.
pub fn main() -> ! {
    let report = Reporter::new();
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
    let mut needed = opened_at_shutdown();
    let opened = needed.clone();
    needed.extend(mapped_files());
    // In this order, since the processes that run have the server's files mapped.
    let (files, bytes) = lock_all(&needed);
    copy_up(&opened);
    report.info(
        Stage::MultiUser,
        &format!("{files} files, {} KiB kept for shutdown", bytes / 1024),
    );
    for seconds in REPEAT_AFTER_S {
        thread::sleep(Duration::from_secs(seconds));
        report.repeat();
    }
    loop {
        thread::park();
    }
}

fn failed_units() -> Vec<String> {
    let text = systemctl(&["list-units", "--failed", "--plain"]);
    let names = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names.map(str::to_owned).collect()
}

/// What a shutdown opens anew: its units, the programs that it starts, and what these read.
fn opened_at_shutdown() -> BTreeSet<PathBuf> {
    const PROGRAMS: [&str; 6] = [
        "/usr/bin/systemctl",
        "/usr/bin/umount",
        "/usr/sbin/swapoff",
        "/usr/lib/systemd/systemd-shutdown",
        "/usr/lib/systemd/systemd-executor",
        "/usr/lib/systemd/systemd-update-utmp",
    ];
    const FILES: [&str; 13] = [
        "/etc/environment",
        "/etc/fstab",
        "/etc/group",
        "/etc/gshadow",
        "/etc/ld.so.cache",
        "/etc/localtime",
        "/etc/login.defs",
        "/etc/nsswitch.conf",
        "/etc/passwd",
        "/etc/shadow",
        // Of the managers of logged-in users.
        "/usr/lib/systemd/user/exit.target",
        "/usr/lib/systemd/user/shutdown.target",
        "/usr/lib/systemd/user/systemd-exit.service",
    ];
    const DIRECTORIES: [&str; 2] = ["/etc/pam.d", "/etc/security"];
    let stops = systemctl(&["show", "--property=ExecStop,ExecStopPost", "*"]);
    let programs = PROGRAMS.into_iter().chain(programs(&stops));
    let libraries = programs.flat_map(|it| closure(Path::new(it)));
    let files = FILES.into_iter().map(PathBuf::from);
    let entries = DIRECTORIES
        .into_iter()
        .filter_map(|it| fs::read_dir(it).ok());
    let entries = entries.flatten().flatten().map(|it| it.path());
    let found = libraries
        .chain(files)
        .chain(entries)
        .chain(shutdown_units());
    found.filter(|it| it.is_file()).collect()
}

/// The programs in `systemctl show --property=ExecStop`.
fn programs(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
        .filter_map(|word| word.strip_prefix("path="))
}

/// The files of all units that a shutdown starts. Process 1 reads them no sooner than it has to.
fn shutdown_units() -> Vec<PathBuf> {
    let mut list = vec!["list-dependencies", "--plain"];
    let targets = ["poweroff.target", "reboot.target", "halt.target"];
    list.extend(targets);
    let units = systemctl(&list);
    let mut show = vec!["show", "--value", "--property=FragmentPath,DropInPaths"];
    show.extend(units.split_whitespace());
    let paths = systemctl(&show);
    paths.split_whitespace().map(PathBuf::from).collect()
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

/// Copies files from the server into the overlay's upper layer, where opening them asks nobody. Any
/// change of attributes does that, even of a program that runs.
fn copy_up(files: &BTreeSet<PathBuf>) {
    for path in files {
        if let Ok(metadata) = fs::metadata(path) {
            let _ = fs::set_permissions(path, metadata.permissions());
        }
    }
}

/// A program and its libraries, as its own dynamic loader finds them.
fn closure(program: &Path) -> Vec<PathBuf> {
    let Ok(program) = fs::canonicalize(program) else {
        return Vec::new();
    };
    let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let loader = loaders.iter().find(|it| Path::new(it).exists());
    let listed = loader.and_then(|it| Command::new(it).arg("--list").arg(&program).output().ok());
    let text = listed.map_or(String::new(), |it| {
        String::from_utf8_lossy(&it.stdout).into_owned()
    });
    let libraries = libraries(&text).filter_map(|it| fs::canonicalize(it).ok());
    libraries.chain([program.clone()]).collect()
}

/// The paths in the output of `ld.so --list`.
fn libraries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let path = line.split_once("=>").map_or(line, |(_, path)| path);
        path.split_whitespace()
            .next()
            .filter(|it| it.starts_with('/'))
    })
}

/// The programs and libraries of all processes: a daemon must not wait for its server while it ends.
fn mapped_files() -> BTreeSet<PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let maps = processes.filter_map(|it| fs::read_to_string(it.path().join("maps")).ok());
    maps.flat_map(|text| executables(&text)).collect()
}

/// The files of the executable mappings in a `/proc/PID/maps`.
fn executables(maps: &str) -> Vec<PathBuf> {
    let lines = maps
        .lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|it| it.contains('x')));
    let paths = lines.filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths
        .filter(|it| !it.ends_with(" (deleted)"))
        .map(PathBuf::from)
        .collect()
}

/// Locks files into memory and holds them open: how many, and how many bytes.
fn lock_all(files: &BTreeSet<PathBuf>) -> (usize, usize) {
    let sizes = files.iter().filter_map(|path| {
        let file = File::open(path).ok()?;
        sys::lock_file(&file).ok()
    });
    sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_output_is_read() {
        let text =
            "\tlinux-vdso.so.1 (0x7)\n\tlibc.so.6 => /lib/libc.so.6 (0x7)\n\t/lib64/ld.so (0x7)\n";
        let paths: Vec<&str> = libraries(text).collect();
        assert_eq!(paths, ["/lib/libc.so.6", "/lib64/ld.so"]);
    }

    #[test]
    fn programs_of_units() {
        let text =
            "ExecStop={ path=/bin/a ; argv[]=/bin/a x ; }\n\nExecStopPost={ path=/bin/b ; }\n";
        assert_eq!(programs(text).collect::<Vec<_>>(), ["/bin/a", "/bin/b"]);
    }

    #[test]
    fn only_executable_mappings_of_files_count() {
        let maps = "1-2 r-xp 0 0:1 5 /usr/bin/a b\n2-3 r--p 0 0:1 5 /usr/share/c\n\
                    3-4 r-xp 0 0:0 0 [vdso]\n4-5 r-xp 0 0:1 6 /usr/bin/d (deleted)\n";
        assert_eq!(executables(maps), [PathBuf::from("/usr/bin/a b")]);
    }
}
