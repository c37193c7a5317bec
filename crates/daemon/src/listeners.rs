//! Listeners that systemd keeps for us while the daemon is restarted (`FileDescriptorStoreMax=` in
//! systemd.service(5), `sd_listen_fds(3)`): nodes wait in their queue instead of being refused.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sd_notify::NotifyState;
use socket2::SockRef;

/// Number of the first descriptor that is handed over.
const FIRST: RawFd = 3;
/// What the NFS listeners are called there.
const NFS: &str = "nfs";

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

/// Gives the NFS listeners to the service manager, if there is one: the next daemon finds them.
pub fn keep_nfs(listeners: &[TcpListener]) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let manager = UnixDatagram::unbound()?;
    manager.connect(path)?;
    let message = format!("FDSTORE=1\nFDNAME={NFS}");
    // The kernel takes so many at a time (SCM_MAX_FD).
    for some in listeners.chunks(253) {
        let descriptors: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
        let rights = SendAncillaryMessage::ScmRights(&descriptors);
        let mut space = vec![MaybeUninit::uninit(); rights.size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(rights);
        let text = [IoSlice::new(message.as_bytes())];
        sendmsg(&manager, &text, &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Takes the NFS listeners of earlier daemons away from the service manager.
pub fn forget_nfs() -> io::Result<()> {
    let name = format!("FDNAME={NFS}");
    sd_notify::notify(&[
        NotifyState::Custom("FDSTOREREMOVE=1"),
        NotifyState::Custom(&name),
    ])
}

/// The NFS listeners that an earlier daemon left; none where there are none, or where they were
/// taken before.
pub fn nfs() -> io::Result<Vec<TcpListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let Some(handed) = Handed::from_environment() else {
        return Ok(Vec::new());
    };
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let descriptors = handed.under(NFS, std::process::id());
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
