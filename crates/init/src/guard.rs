//! The guard: ends the waiting for a dead server while its node shuts down.
//!
//! A hard NFS mount waits for its server for ever, and so does everything that a shutdown stops or
//! starts. The way out that the kernel offers is umount2(2) with `MNT_FORCE`: before it looks
//! whether the file system is in use, it fails every request that is under way. It needs a mount of
//! the root's lower layer in the caller's namespace, so the guard has a namespace of its own in
//! which that layer is all there is, as `/`. The kernel never unmounts a caller's `/`.
//!
//! While the node is up the guard lets everybody wait.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, open, statx};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Pid, Signal, fchdir, kill_process, pivot_root};

use crate::report::monotonic_us;
use crate::{mount, sys};

/// How long a server may be silent during a shutdown. One that is started again is back sooner.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a request then lives: a shutdown makes hundreds, one after the other.
const ROUND: Duration = Duration::from_millis(100);
/// How often the attributes of [`PATHS`] are asked for anew.
const REFRESH_EVERY: Duration = Duration::from_secs(3600);
/// The directories that lead to the mounts of a running system and to the last stage. Nothing
/// reaches them once their cached attributes have aged, which they do after a day.
const PATHS: [&str; 8] = [
    "/",
    "/dev",
    "/proc",
    "/run",
    "/sys",
    "/usr",
    "/usr/lib",
    "/usr/lib/systemd",
];
/// Where the lower layer is mounted before it becomes the guard's `/`.
const PLACE: &str = "/run/slate/root";

/// The agent's end of the guard.
pub struct Guard {
    stream: UnixStream,
}

impl Guard {
    /// Starts the guard as a process of its own. The caller must have one thread.
    pub fn start() -> io::Result<Guard> {
        let (mut stream, child) = UnixStream::pair()?;
        if sys::fork()? {
            drop(stream);
            run(child);
        }
        drop(child);
        let mut answer = [0; 256];
        let length = stream.read(&mut answer)?;
        match &answer[..length] {
            b"ready" => Ok(Guard { stream }),
            b"" => Err(io::Error::other("it ended")),
            error => Err(io::Error::other(
                String::from_utf8_lossy(error).into_owned(),
            )),
        }
    }

    /// The node is shutting down from now on.
    pub fn shutting_down(&mut self) -> io::Result<()> {
        self.stream.write_all(b"!")
    }
}

fn run(mut agent: UnixStream) -> ! {
    let server = match enter() {
        Ok(server) => server,
        Err(error) => {
            let _ = agent.write_all(error.to_string().as_bytes());
            std::process::exit(1);
        }
    };
    let _ = agent.write_all(b"ready");
    if wait(agent) {
        end_waiting(&server);
    }
    std::process::exit(0)
}

/// Enters a namespace with one mount; answers the server's address. The working directory stays
/// `/proc`, beyond that namespace's root.
fn enter() -> io::Result<String> {
    let proc = open(
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    sys::own_mounts()?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    fs::create_dir_all(PLACE)?;
    let server = mount::lower_again(PLACE)?;
    rustix::process::chdir(PLACE)?;
    pivot_root(".", ".")?;
    // Copies of other mounts would keep what they hold in use.
    unmount(".", UnmountFlags::DETACH)?;
    fchdir(proc)?;
    Ok(server)
}

/// Waits for the agent's word that the node shuts down; false if the agent ended without it.
fn wait(mut agent: UnixStream) -> bool {
    let _ = agent.set_read_timeout(Some(REFRESH_EVERY));
    let idle = Arc::new(AtomicBool::new(true));
    loop {
        match agent.read(&mut [0]) {
            Ok(length) => return length == 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        // Another thread waits if the server is dead.
        if idle.swap(false, Ordering::AcqRel) {
            let idle = idle.clone();
            thread::spawn(move || {
                for path in PATHS {
                    let _ = ask(path);
                }
                idle.store(true, Ordering::Release);
            });
        }
    }
}

/// Asks the server for a file's attributes, whatever the node has cached.
pub fn ask(path: &str) -> io::Result<()> {
    statx(
        CWD,
        path,
        AtFlags::STATX_FORCE_SYNC,
        StatxFlags::BASIC_STATS,
    )?;
    Ok(())
}

/// Asks the server again and again, and fails all requests while it is silent for too long.
fn end_waiting(server: &str) -> ! {
    let answered = Arc::new(AtomicU64::new(monotonic_us()));
    let heard = answered.clone();
    thread::spawn(move || {
        loop {
            if ask("/").is_ok() {
                heard.store(monotonic_us(), Ordering::Release);
                thread::sleep(PATIENCE / 5);
            } else {
                thread::sleep(ROUND);
            }
        }
    });
    let silent = || monotonic_us().saturating_sub(answered.load(Ordering::Acquire));
    loop {
        thread::sleep(ROUND);
        if Duration::from_micros(silent()) >= PATIENCE {
            let _ = unmount("/", UnmountFlags::FORCE);
            end_recovery(server);
        }
    }
}

/// Ends the kernel thread that tries to recover the NFS client's state: its requests are not among
/// those that a forced unmount fails, and every open waits for it, ten times over once the lease is in
/// doubt.
fn end_recovery(server: &str) {
    for entry in fs::read_dir(".").into_iter().flatten().flatten() {
        let path = entry.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if !is_manager(name.trim_end(), server) {
            continue;
        }
        let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
        let pid = entry.file_name().to_str().and_then(|it| it.parse().ok());
        if let (true, Some(pid)) = (arguments.is_empty(), pid.and_then(Pid::from_raw)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Whether a thread's name is that of the server's state manager; kernels before 5.17 cut names.
fn is_manager(name: &str, server: &str) -> bool {
    let full = format!("{server}-manager");
    name == full || name.len() == 15 && full.starts_with(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_merely_ends_says_nothing_of_a_shutdown() {
        let (agent, guard) = UnixStream::pair().unwrap();
        drop(agent);
        assert!(!wait(guard));
        let (stream, guard) = UnixStream::pair().unwrap();
        Guard { stream }.shutting_down().unwrap();
        assert!(wait(guard));
    }

    #[test]
    fn managers_are_known_by_their_server() {
        assert!(is_manager("10.77.0.1-manager", "10.77.0.1"));
        assert!(is_manager("10.77.0.1-manag", "10.77.0.1"));
        assert!(!is_manager("10.77.0.11-mana", "10.77.0.1"));
        assert!(!is_manager("10.77.0.1", "10.77.0.1"));
    }
}
