//! The last stage of a shutdown, where systemd executes systemd-shutdown as process 1.
//!
//! The node has this program in its place. With a server that answers it only hands on to the
//! distribution's own; without one that program's libraries cannot be had, and this one ends
//! the node: by then systemd has stopped every unit.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};

use crate::boot::AGENT_PATH;
use crate::guard::ask;
use crate::report::Reporter;

/// What systemd executes.
const NAME: &str = "/usr/lib/systemd/systemd-shutdown";
/// The distribution's own, moved.
const DISTRIBUTIONS: &str = "/run/slate/systemd-shutdown";
/// A file that lies on the server as long as nobody changes it.
const ON_SERVER: &str = "/usr/lib/systemd/systemd";
/// How long the server may take to answer, processes to end, disks to be written.
const ANSWER: Duration = Duration::from_secs(2);
const END: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_secs(60);

/// Takes the place of systemd-shutdown, in the overlay's upper layer. Answers its path.
pub fn install() -> io::Result<String> {
    if !fs::symlink_metadata(NAME)?.is_symlink() {
        fs::copy(NAME, DISTRIBUTIONS)?;
        let fresh = format!("{NAME}.slate");
        symlink(AGENT_PATH, &fresh)?;
        fs::rename(fresh, NAME)?;
    }
    Ok(NAME.to_owned())
}

/// Whether the server answers soon.
pub fn server_answers() -> bool {
    within(ANSWER, || ask(ON_SERVER).is_ok()).unwrap_or(false)
}

/// Whether this program runs in that place.
pub fn is_called() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name() == Path::new(NAME).file_name()
}

/// Ends the node, by the distribution's own program if it can be had.
pub fn main() -> ! {
    let report = Reporter::new();
    let first = std::process::id() == 1;
    if !first || server_answers() {
        let arguments = std::env::args_os().skip(1);
        let error = Command::new(DISTRIBUTIONS)
            .arg0(NAME)
            .args(arguments)
            .exec();
        report.log(&format!("{DISTRIBUTIONS}: {error}"));
    }
    if !first {
        std::process::exit(1);
    }
    let verb = std::env::args().nth(1).unwrap_or_default();
    report.log(&format!("{verb} without the server"));
    end_processes();
    if within(WRITE, write_disks).is_none() {
        report.log("not everything could be written");
    }
    let result = reboot(command(&verb));
    report.log(&format!("{verb}: {result:?}"));
    // Process 1 must not end, or the kernel panics.
    loop {
        thread::park();
    }
}

/// What the kernel is asked for. systemd knows further verbs, none of which a node survives.
fn command(verb: &str) -> RebootCommand {
    match verb {
        "reboot" => RebootCommand::Restart,
        "halt" => RebootCommand::Halt,
        "kexec" => RebootCommand::Kexec,
        _ => RebootCommand::PowerOff,
    }
}

/// The result of `work`, unless it takes too long.
fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(patience).ok()
}

/// Ends what systemd left: asks first, then insists.
fn end_processes() {
    for signal in [Signal::TERM, Signal::KILL] {
        let begun = Instant::now();
        for pid in processes() {
            let _ = kill_process(pid, signal);
        }
        while !processes().is_empty() && begun.elapsed() < END {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// All processes but this one, those of the kernel, and those that must see the end.
fn processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| pid != 1 && may_end(pid))
        .filter_map(Pid::from_raw)
        .collect()
}

/// An empty command line is the kernel's or a dead process's; an `@` marks daemons of root that
/// file systems depend on.
fn may_end(pid: i32) -> bool {
    let path = format!("/proc/{pid}");
    let arguments = fs::read(format!("{path}/cmdline")).unwrap_or_default();
    let is_root = || fs::metadata(&path).is_ok_and(|it| it.uid() == 0);
    match arguments.first() {
        None => false,
        Some(b'@') => !is_root(),
        Some(_) => true,
    }
}

/// Writes what local disks still lack and makes them read-only, without a walk over any path.
fn write_disks() {
    rustix::fs::sync();
    let _ = fs::write("/proc/sysrq-trigger", "u");
    let disks = || fs::read_to_string("/proc/self/mountinfo").is_ok_and(|it| has_disk(&it));
    let begun = Instant::now();
    while disks() && begun.elapsed() < END {
        thread::sleep(Duration::from_millis(50));
    }
}

/// Whether a file system on a block device may still be written to.
fn has_disk(mountinfo: &str) -> bool {
    let ends = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    ends.filter_map(|(_, end)| end.split_once(" /dev/"))
        .filter_map(|(_, device)| device.split_once(' '))
        .any(|(_, options)| options.starts_with("rw"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_of_systemd() {
        assert!(matches!(command("reboot"), RebootCommand::Restart));
        assert!(matches!(command("poweroff"), RebootCommand::PowerOff));
        assert!(matches!(command("exit"), RebootCommand::PowerOff));
    }

    #[test]
    fn disks_that_are_written_to_are_seen() {
        let read_only = "21 1 8:1 / /a rw,relatime - ext4 /dev/sda1 ro\n\
                         22 1 0:4 / /run rw - tmpfs tmpfs rw\n";
        let written = "23 1 8:2 / /b rw shared:1 - xfs /dev/sda2 rw,attr2\n";
        assert!(!has_disk(read_only));
        assert!(has_disk(&format!("{read_only}{written}")));
    }
}
