//! TFTP: one listening socket for each interface, and a thread with a socket of its own for each
//! transfer under way. The engine decided what is sent; [`engine::tftp::Transfer`] decides when.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::tftp::Transfer;
use engine::{Content, Input, Service, TftpAnswer, TransferOutcome};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use wire::tftp::{Packet, error};

use crate::content::Contents;
use crate::hub::{Inbox, Message, now, offer};
use crate::net::sys::cut_into;

/// Most transfers at once.
const TRANSFERS_MAX: usize = 2048;
/// Most transfers of one address at once: GRUB has one, firmware two.
const TRANSFERS_OF_ONE_MAX: usize = 8;
/// Stack of a transfer's thread, in bytes.
const STACK_BYTES: usize = 128 << 10;
/// Largest datagram from a receiver.
const DATAGRAM_BYTES: usize = 2048;

/// Starts transfers.
pub struct Starter {
    /// The files.
    pub contents: Arc<Contents>,
    /// Is told how they end.
    pub hub: Inbox,
    /// The server's addresses with their prefix lengths, to answer from the right one.
    pub addresses: Vec<(Ipv4Addr, u8)>,
    /// Transfers under way by receiver.
    pub running: Arc<Mutex<HashMap<Ipv4Addr, usize>>>,
}

/// One transfer.
struct Job {
    peer: SocketAddrV4,
    local: Ipv4Addr,
    transfer: Box<Transfer>,
    content: Content,
    path: String,
    running: Arc<Mutex<HashMap<Ipv4Addr, usize>>>,
}

/// Hands every first datagram to the hub until that is gone.
pub fn receive(socket: &UdpSocket, hub: &Inbox) {
    let mut buffer = [0; DATAGRAM_BYTES];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, SocketAddr::V4(peer))) => {
                let packet = buffer[..length].to_vec();
                if !offer(hub, Input::Tftp { peer, packet }) {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "receiving TFTP");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

impl Starter {
    /// Begins a transfer, or sends the error that the engine decided on.
    pub fn start(&self, peer: SocketAddrV4, answer: TftpAnswer) {
        let local = self.local_for(*peer.ip());
        let (transfer, content, path) = match answer {
            TftpAnswer::Transfer {
                transfer,
                content,
                path,
            } => (transfer, content, path),
            TftpAnswer::Error(packet) => return refuse(local, peer, &packet),
        };
        if !self.admit(*peer.ip()) {
            return refuse(
                local,
                peer,
                &Packet::error(error::UNDEFINED, "too many transfers at once"),
            );
        }
        let job = Job {
            peer,
            local,
            transfer,
            content,
            path,
            running: Arc::clone(&self.running),
        };
        let (contents, hub) = (Arc::clone(&self.contents), self.hub.clone());
        let running = Arc::clone(&self.running);
        let thread = std::thread::Builder::new()
            .name("tftp".into())
            .stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            let ended = job.run(&contents);
            leave(&running, *peer.ip());
            // The hub may be gone.
            let _ = hub.send(Message::Input(ended));
        });
        if let Err(error) = spawned {
            leave(&self.running, *peer.ip());
            tracing::error!(%error, "starting a TFTP transfer");
        }
    }

    fn local_for(&self, peer: Ipv4Addr) -> Ipv4Addr {
        let same = |(address, prefix): &&(Ipv4Addr, u8)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
            (u32::from(*address) ^ u32::from(peer)) & mask == 0
        };
        let found = self.addresses.iter().find(same).or(self.addresses.first());
        found.map_or(Ipv4Addr::UNSPECIFIED, |(address, _)| *address)
    }

    fn admit(&self, peer: Ipv4Addr) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.values().sum::<usize>() >= TRANSFERS_MAX {
            return false;
        }
        let count = running.entry(peer).or_default();
        let admitted = *count < TRANSFERS_OF_ONE_MAX;
        *count += usize::from(admitted);
        admitted
    }
}

fn leave(running: &Mutex<HashMap<Ipv4Addr, usize>>, peer: Ipv4Addr) {
    let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(count) = running.get_mut(&peer) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            running.remove(&peer);
        }
    }
}

fn is_only_one(running: &Mutex<HashMap<Ipv4Addr, usize>>) -> bool {
    let running = running.lock().unwrap_or_else(PoisonError::into_inner);
    running.len() == 1 && running.values().sum::<usize>() == 1
}

/// A datagram from a port of its own, as every first answer is (RFC 1350, 4).
fn refuse(local: Ipv4Addr, peer: SocketAddrV4, packet: &[u8]) {
    let sent = UdpSocket::bind((local, 0)).and_then(|socket| socket.send_to(packet, peer));
    if let Err(error) = sent {
        tracing::debug!(%error, %peer, "refusing a TFTP request");
    }
}

impl Job {
    /// Sends the file; what to tell the engine at the end.
    fn run(mut self, contents: &Contents) -> Input {
        let failed = |cause: String| TransferOutcome::Failed { cause };
        let outcome = match contents.get(&self.content) {
            Err(cause) => {
                refuse(
                    self.local,
                    self.peer,
                    &Packet::error(error::UNDEFINED, &cause),
                );
                failed(cause)
            }
            Ok(bytes) => match self.send(&bytes) {
                Ok(outcome) => outcome,
                Err(error) => failed(format!("sending: {error}")),
            },
        };
        Input::TransferEnded {
            peer: *self.peer.ip(),
            service: Service::Tftp,
            bytes: self.transfer.bytes_acknowledged(),
            path: self.path,
            outcome,
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<TransferOutcome> {
        let socket = UdpSocket::bind((self.local, 0))?;
        socket.connect(self.peer)?;
        let mut burst = Burst::new(&socket, &self.transfer);
        let mut buffer = [0; DATAGRAM_BYTES];
        let mut patience = Duration::ZERO;
        let mut answers = Answers::default();
        self.transfer.start(now(), bytes.len() as u64);
        loop {
            while self.transfer.poll_transmit(now(), bytes, &mut burst.next) {
                burst.add()?;
            }
            burst.flush()?;
            if let Some(outcome) = self.transfer.outcome() {
                return Ok(outcome.clone());
            }
            let deadline = self.transfer.deadline().unwrap_or_default();
            let wait = Duration::from_millis(deadline.millis_since(now()).max(1));
            // Waking up a little early costs nothing; a system call for each datagram does.
            if patience > wait || patience + PATIENCE_SLACK < wait {
                socket.set_read_timeout(Some(wait))?;
                patience = wait;
            }
            let alone = || is_only_one(&self.running);
            match answers.next(&socket, &mut buffer, alone) {
                Ok(length) => self.transfer.handle(now(), &buffer[..length]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    self.transfer.handle_timeout(now());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// How much earlier than at its deadline a transfer may wake up.
const PATIENCE_SLACK: Duration = Duration::from_millis(50);
/// How long an answer is looked for before the thread sleeps: to be put to sleep and woken costs
/// more than the rest of a block where the receiver answers at once.
const AWAKE: Duration = Duration::from_micros(50);
/// How many answers are slept for after one did not come so soon.
const SLEEPS: u32 = 64;

/// How the next answer is waited for.
#[derive(Default)]
struct Answers {
    /// So many are still slept for.
    sleeps: u32,
}

impl Answers {
    /// The next datagram. It is only stayed awake for where no other transfer needs a processor.
    fn next(
        &mut self,
        socket: &UdpSocket,
        buffer: &mut [u8],
        alone: impl Fn() -> bool,
    ) -> io::Result<usize> {
        self.sleeps = self.sleeps.saturating_sub(1);
        if self.sleeps == 0 && alone() {
            let begun = Instant::now();
            while begun.elapsed() < AWAKE {
                match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
                    Ok((length, _)) => return Ok(length),
                    Err(Errno::AGAIN) => std::thread::yield_now(),
                    Err(error) => return Err(error.into()),
                }
            }
            self.sleeps = SLEEPS;
        }
        socket.recv(buffer)
    }
}

/// Only datagrams longer than this are sent together.
const CUT_ABOVE_BYTES: u16 = 512;
/// Datagrams that one system call sends at most (the kernel's `UDP_MAX_SEGMENTS`), and bytes (an
/// IPv4 packet's, less headers).
const BURST_DATAGRAMS: usize = 64;
const BURST_BYTES: usize = 65_507;

/// Datagrams that go out together: all as long as the first, but for the last.
struct Burst<'a> {
    socket: &'a UdpSocket,
    datagram_bytes: usize,
    /// The next datagram, to be filled in.
    next: Vec<u8>,
    /// Those that wait.
    waiting: Vec<u8>,
    /// Whether the kernel cuts them apart.
    cuts: bool,
}

impl<'a> Burst<'a> {
    fn new(socket: &'a UdpSocket, transfer: &Transfer) -> Self {
        let datagram_bytes = transfer.datagram_bytes();
        // Shorter ones could be shorter than an answer to options, which must stay whole.
        let bytes = u16::try_from(datagram_bytes).unwrap_or(0);
        let may_cut = transfer.window() > 1 && bytes > CUT_ABOVE_BYTES;
        let cuts = may_cut && cut_into(socket, bytes).is_ok();
        Self {
            socket,
            datagram_bytes,
            next: Vec::new(),
            waiting: Vec::new(),
            cuts,
        }
    }

    /// Takes in the next datagram.
    fn add(&mut self) -> io::Result<()> {
        if !self.cuts {
            return self.socket.send(&self.next).map(drop);
        }
        let full = BURST_BYTES.min(self.datagram_bytes * BURST_DATAGRAMS);
        if self.waiting.len() + self.next.len() > full {
            self.flush()?;
        }
        self.waiting.extend_from_slice(&self.next);
        // What follows a short one would be taken for its end.
        if self.next.len() != self.datagram_bytes {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut result = self.socket.send(&self.waiting);
        if result.is_err() && self.cuts {
            // An interface without checksums of its own, or with a smaller MTU.
            cut_into(self.socket, 0)?;
            self.cuts = false;
            let mut datagrams = self.waiting.chunks(self.datagram_bytes);
            result = datagrams.try_fold(0, |_, it| self.socket.send(it));
        }
        self.waiting.clear();
        result.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn starter(dir: &std::path::Path, hub: Inbox) -> Starter {
        let store = image::Store::open(dir.join("store")).unwrap();
        let profile = image::initramfs::Profile::Virtual;
        let contents = Contents::new(
            store,
            dir.to_owned(),
            dir.to_owned(),
            Arc::<[u8]>::default(),
            profile,
        );
        Starter {
            contents: Arc::new(contents),
            hub,
            addresses: vec![(Ipv4Addr::LOCALHOST, 8)],
            running: Arc::default(),
        }
    }

    /// Answers one request with `bytes`; how the transfer ended.
    fn serve_one(bytes: Vec<u8>, dir: &std::path::Path, client: &mut Command) -> Input {
        let (hub, messages) = sync_channel(16);
        let starter = starter(dir, hub.clone());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || receive(&socket, &hub));
        let mut child = client
            .arg(format!("tftp://127.0.0.1:{port}/file"))
            .spawn()
            .unwrap();
        let mut bytes = Some(bytes);
        let ended = loop {
            let message = messages.recv_timeout(Duration::from_secs(20)).unwrap();
            let Message::Input(input) = message else {
                panic!("something else than an input");
            };
            let Input::Tftp { peer, packet } = input else {
                break input;
            };
            let Ok(Packet::Read(request)) = Packet::decode(&packet) else {
                panic!("not a read request: {packet:?}");
            };
            // A repeated request is the same one.
            let Some(bytes) = bytes.take() else { continue };
            let answer = TftpAnswer::Transfer {
                transfer: Box::new(Transfer::new(request.options)),
                content: Content::Bytes(bytes),
                path: "file".into(),
            };
            starter.start(peer, answer);
        };
        assert!(child.wait().unwrap().success());
        assert!(starter.running.lock().unwrap().is_empty());
        ended
    }

    #[test]
    fn a_real_client_gets_every_byte() {
        if Command::new("curl").arg("--version").output().is_err() {
            println!("skipped: no curl");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for (length, block) in [(1024, "512"), (300_001, "1400")] {
            let bytes: Vec<u8> = (0..length).map(|count: u32| (count % 251) as u8).collect();
            let got = dir.path().join("got");
            let mut client = Command::new("curl");
            client.args(["--silent", "--show-error", "--max-time", "15"]);
            client.args(["--tftp-blksize", block, "--output"]).arg(&got);
            let ended = serve_one(bytes.clone(), dir.path(), &mut client);
            let Input::TransferEnded {
                bytes: sent,
                outcome,
                ..
            } = ended
            else {
                panic!("expected the end of a transfer, got {ended:?}");
            };
            assert_eq!(outcome, TransferOutcome::Done);
            assert_eq!(sent, u64::from(length));
            assert_eq!(std::fs::read(&got).unwrap_or_default(), bytes);
        }
    }

    #[test]
    fn one_address_has_few_transfers_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let starter = starter(dir.path(), sync_channel(1).0);
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        for _ in 0..TRANSFERS_OF_ONE_MAX {
            assert!(starter.admit(one));
        }
        assert!(!starter.admit(one));
        assert!(starter.admit(other));
        leave(&starter.running, one);
        assert!(starter.admit(one));
    }
}
