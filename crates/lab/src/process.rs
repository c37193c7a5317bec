//! Child processes that never outlive this one, optionally inside a network namespace.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// A directory that every private sysfs offers as a mount point; scratch tmpfs goes there.
pub(crate) const SCRATCH: &str = "/sys/fs/cgroup";

/// What the kernel arranges around a child before it runs its program.
#[derive(Default)]
pub(crate) struct Confinement {
    /// Network namespace to enter; a private `/sys` that shows its interfaces comes with it.
    pub network: Option<Arc<File>>,
    /// A private, executable tmpfs at [`SCRATCH`].
    pub scratch: bool,
    /// Descriptors that stay open in the child, under the same numbers.
    pub inherit: Vec<Arc<OwnedFd>>,
}

/// A running child; killed and reaped when dropped, killed by the kernel when this process dies.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`; does nothing if the process has been reaped.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        rustix::process::kill_process(Pid::from_child(&self.child), signal)?;
        Ok(())
    }

    /// Asks the process to end (SIGTERM).
    pub fn terminate(&mut self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Kills the process (SIGKILL) and reaps it.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.child.wait()
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// The exit status if the process has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The exit status, or `None` if the process still runs after `timeout`.
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether somebody in the process's network namespace has bound a UDP port of IPv4: what is sent
    /// to a server before that is lost.
    pub fn has_udp_port(&self, port: u16) -> bool {
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/udp", self.id()));
        sockets.is_ok_and(|it| it.lines().any(|line| is_bound(line, port)))
    }

    /// The pipe to standard input, if one was asked for and not yet taken.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The pipe from standard output, if one was asked for and not yet taken.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The pipe from standard error, if one was asked for and not yet taken.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Whether a line of `/proc/net/udp` (proc_net(5)) is about a local port.
fn is_bound(line: &str, port: u16) -> bool {
    let local = line.split_whitespace().nth(1);
    let found = local.and_then(|it| it.split_once(':'));
    found.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port))
}

/// Starts `command`, tied to the life of this process, in its own process group so that a
/// Ctrl-C on the terminal reaches only this process.
pub(crate) fn spawn(mut command: Command, confinement: Confinement) -> io::Result<Process> {
    command.process_group(0);
    let parent = rustix::process::getpid();
    // SAFETY: the hook runs between fork and exec and makes system calls only: it neither
    // allocates nor takes locks (the vector it iterates was built before the fork).
    unsafe {
        command.pre_exec(move || prepare(parent, &confinement));
    }
    spawner().spawn(command).map(|child| Process { child })
}

/// Runs `command` to its end with captured output.
pub(crate) fn output(mut command: Command, confinement: Confinement) -> io::Result<Output> {
    use std::process::Stdio;
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let parent = rustix::process::getpid();
    // SAFETY: as in `spawn`: system calls only.
    unsafe {
        command.pre_exec(move || prepare(parent, &confinement));
    }
    spawner().spawn(command)?.wait_with_output()
}

/// Makes an unnamed network namespace; it lives as long as a descriptor or a process holds it.
pub(crate) fn new_network_namespace() -> io::Result<File> {
    let thread = std::thread::Builder::new()
        .name("lab-namespace".into())
        .spawn(|| {
            // SAFETY: the namespace of this short-lived thread changes, no other thread's, and no
            // descriptor table or file-system state is unshared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
            File::open("/proc/thread-self/ns/net")
        })?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
}

/// Runs in the child: dies with the parent, enters the namespaces.
fn prepare(parent: Pid, confinement: &Confinement) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    for descriptor in &confinement.inherit {
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
    }
    let Some(network) = &confinement.network else {
        return Ok(());
    };
    rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    // SAFETY: this is the only thread of a fresh child; its mount table becomes a copy.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS)? };
    rustix::mount::mount_change(
        c"/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    rustix::mount::mount(c"sysfs", c"/sys", c"sysfs", MountFlags::empty(), None)?;
    if confinement.scratch {
        rustix::mount::mount(
            c"scratch",
            c"/sys/fs/cgroup",
            c"tmpfs",
            MountFlags::empty(),
            c"mode=0700",
        )?;
    }
    Ok(())
}

/// The kernel's parent-death signal follows the *thread* that forked, so one thread that lives as
/// long as the process does all forking.
struct Spawner {
    requests: mpsc::Sender<(Command, mpsc::Sender<io::Result<Child>>)>,
}

impl Spawner {
    fn spawn(&self, command: Command) -> io::Result<Child> {
        let gone = || io::Error::other("the spawner thread is gone");
        let (reply, answer) = mpsc::channel();
        self.requests.send((command, reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

fn spawner() -> &'static Spawner {
    static SPAWNER: OnceLock<Spawner> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (requests, queue) = mpsc::channel::<(Command, mpsc::Sender<io::Result<Child>>)>();
        std::thread::Builder::new()
            .name("lab-spawner".into())
            .spawn(move || {
                for (mut command, reply) in queue {
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("a thread can be started");
        Spawner { requests }
    })
}

/// The path under which any process finds a descriptor of this one.
pub(crate) fn path_of(descriptor: &impl AsRawFd) -> PathBuf {
    let (process, number) = (std::process::id(), descriptor.as_raw_fd());
    format!("/proc/{process}/fd/{number}").into()
}

/// The path under which a child finds an inherited descriptor.
pub(crate) fn inherited_path(descriptor: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_port_is_the_local_one() {
        let head = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";
        let line = "  123: 00000000:0043 00000000:0044 07 00000000:00000000 00:00000000 00000000";
        assert!(is_bound(line, 67));
        assert!(!is_bound(line, 68) && !is_bound(head, 67) && !is_bound("", 0));
    }
}
