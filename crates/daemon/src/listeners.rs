//! Listeners handed over by systemd (`sd_listen_fds(3)`): they stay open while the daemon is
//! restarted, so that nodes wait in the queue instead of being refused.
#![allow(unsafe_code)]

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::SockRef;

/// Number of the first descriptor that is handed over.
const FIRST: RawFd = 3;

/// What the environment says.
struct Handed {
    pid: String,
    count: String,
    names: String,
}

impl Handed {
    fn from_environment() -> Option<Handed> {
        Some(Handed {
            pid: std::env::var("LISTEN_PID").ok()?,
            count: std::env::var("LISTEN_FDS").ok()?,
            names: std::env::var("LISTEN_FDNAMES").ok()?,
        })
    }

    /// The descriptors under a name, if they are meant for this process.
    fn under(&self, name: &str, own_pid: u32) -> Vec<RawFd> {
        if self.pid.parse() != Ok(own_pid) {
            return Vec::new();
        }
        let count: usize = self.count.parse().unwrap_or(0);
        let numbered = (FIRST..).zip(self.names.split(':')).take(count);
        numbered
            .filter(|(_, other)| *other == name)
            .map(|(fd, _)| fd)
            .collect()
    }
}

/// The TCP listeners under the name `nfs` (`FileDescriptorName=nfs`); none where there are none,
/// or where they were taken before.
pub fn nfs() -> io::Result<Vec<TcpListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let Some(handed) = Handed::from_environment() else {
        return Ok(Vec::new());
    };
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let descriptors = handed.under("nfs", std::process::id());
    descriptors.into_iter().map(adopt).collect()
}

fn adopt(fd: RawFd) -> io::Result<TcpListener> {
    // SAFETY: the service manager opened this descriptor for this very process (LISTEN_PID) and
    // gave it away; `nfs` hands each one out once, so nothing else owns or closes it.
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    let socket = SockRef::from(&listener);
    socket.set_cloexec(true)?;
    if !socket.is_listener()? {
        let got = format!("descriptor {fd} (nfs): expected a listening TCP socket");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, got));
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::Handed;

    fn handed(pid: &str, count: &str, names: &str) -> Handed {
        Handed {
            pid: pid.into(),
            count: count.into(),
            names: names.into(),
        }
    }

    #[test]
    fn only_descriptors_of_the_name_and_for_this_process() {
        let three = handed("7", "3", "nfs:control:nfs");
        assert_eq!(three.under("nfs", 7), [3, 5]);
        assert!(three.under("http", 7).is_empty());
        assert!(three.under("nfs", 8).is_empty());
        assert_eq!(handed("7", "1", "nfs:nfs").under("nfs", 7), [3]);
        assert!(handed("7", "none", "nfs").under("nfs", 7).is_empty());
    }
}
