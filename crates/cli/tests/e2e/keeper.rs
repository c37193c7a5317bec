//! The part of a service manager that keeps a daemon's sockets while the daemon is restarted
//! (`FDSTORE=1` in sd_notify(3), sd_listen_fds(3)), for daemons in a network of their own.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Keeps the one socket that a daemon hands it.
pub struct Keeper {
    path: PathBuf,
    kept: Arc<Mutex<Option<OwnedFd>>>,
}

impl Keeper {
    /// Listens at `path`, which must not exist.
    pub fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket for notifications");
        let kept = Arc::default();
        let keeper = Self {
            path: path.to_path_buf(),
            kept: Arc::clone(&kept),
        };
        std::thread::spawn(move || {
            while let Some(received) = receive(&socket) {
                if let Some(descriptor) = received {
                    *kept.lock().expect("no panic") = Some(descriptor);
                }
            }
        });
        keeper
    }

    /// The same command with the sockets that its predecessor left. Its standard input is empty.
    pub fn as_service(&self, command: &Command) -> Command {
        let mut service = Command::new("sh");
        let kept = self.kept.lock().expect("no panic");
        match kept.as_ref() {
            Some(descriptor) => {
                let handed = descriptor.try_clone().expect("a second descriptor");
                service.args(["-c", HAND_OVER]).stdin(Stdio::from(handed));
            }
            None => {
                service.args(["-c", "exec \"$@\""]).stdin(Stdio::null());
            }
        }
        service.arg("sh").arg(command.get_program());
        service.args(command.get_args());
        for (name, value) in command.get_envs() {
            service.env(name, value.unwrap_or_default());
        }
        service.env("NOTIFY_SOCKET", &self.path);
        service
    }
}

impl Drop for Keeper {
    /// Lets the socket go.
    fn drop(&mut self) {
        if let Ok(mut kept) = self.kept.lock() {
            *kept = None;
        }
    }
}

/// Moves the socket from standard input to where a service looks for it.
const HAND_OVER: &str = "exec 3<&0 < /dev/null; \
    export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=nfs; exec \"$@\"";

/// The descriptor that comes with the next notification, if one does; `None` when there are no more
/// notifications.
fn receive(socket: &UnixDatagram) -> Option<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut text)];
    recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Some(descriptor)
}
