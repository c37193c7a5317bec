//! The server: its threads, its listeners, its face to the program that runs it.
//!
//! Each thread runs an epoll loop over its own connections. Input is read into the thread's buffer
//! and replies are collected in the thread's writer, so an idle connection holds no buffer; only
//! what a slow peer leaves over is kept with its connection.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::net::sockopt;

use crate::activity::Observer;
use crate::connection::{Connection, Core, NotRpc};
use crate::exports::{ExportError, Exports, Snapshot};
use crate::outgoing::Outgoing;
use crate::rpc::MAX_RECORD;
use crate::stats::Stats;
use crate::tree::Tree;
use crate::xdr::Writer;

/// Bytes that are read at once; a record of full length fits.
const INPUT_LEN: usize = 2 * MAX_RECORD;
/// Replies are sent when so much has come together.
const FLUSH_LEN: usize = 256 << 10;
/// A connection that has been sent so much in one visit is visited again when the others have been.
const VISIT_LEN: usize = 1 << 20;
/// What a thread's writer may keep between events.
const WRITER_KEEP_LEN: usize = 2 << 20;
/// Accepted connections that may wait for their thread.
const MAX_WAITING: usize = 1024;
const WAKE: u64 = u64::MAX;
const LISTENERS: u64 = 1 << 63;

/// What a server needs to know.
#[derive(Clone)]
pub struct Config {
    /// Seals file handles, session, client and state ids. A server that is started again with the
    /// same key and exports goes on where the old one was.
    pub key: [u8; 32],
    /// Threads that serve connections, at least 1.
    pub threads: usize,
    /// Most connections at once. More close the oldest ones that have neither a session nor used an
    /// exported tree; where there are none, those of the address that has most; and where no address
    /// has more than the new one's, the new one.
    pub max_connections: usize,
    /// Most connections at once of one address; more are closed at once.
    pub max_connections_per_address: usize,
    /// Most bytes that are kept for peers that do not take their replies. More cut off those that
    /// have taken nothing for longest.
    pub max_kept_bytes: usize,
    /// Is told what happens.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Config {
    /// The usual limits, with `key`: a thread for each processor, 16384 connections, 4096 of one
    /// address, 512 MiB for slow peers.
    pub fn new(key: [u8; 32]) -> Config {
        Config {
            key,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            max_connections: 16384,
            max_connections_per_address: 4096,
            max_kept_bytes: 512 << 20,
            observer: None,
        }
    }
}

/// A running server. Dropping it ends it.
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
struct Shared {
    core: Core,
    exports: Exports,
    stop: AtomicBool,
    max_connections: usize,
    max_connections_per_address: usize,
    /// Bytes that a thread may keep for slow peers.
    max_kept: usize,
    inboxes: Vec<Inbox>,
}

/// What is handed to a thread.
struct Inbox {
    wake: OwnedFd,
    listeners: Mutex<Vec<TcpListener>>,
    streams: Mutex<Vec<(TcpStream, IpAddr)>>,
}

impl Server {
    /// Starts the threads of a server without exports and listeners.
    pub fn new(config: Config) -> io::Result<Server> {
        let inboxes: Vec<Inbox> = (0..config.threads.max(1))
            .map(|_| Inbox::new())
            .collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared {
            core: Core::new(&config.key, config.observer),
            exports: Exports::new(),
            stop: AtomicBool::new(false),
            max_connections: config.max_connections,
            max_connections_per_address: config.max_connections_per_address,
            max_kept: config.max_kept_bytes / inboxes.len(),
            inboxes,
        });
        let mut server = Server {
            shared,
            threads: Vec::new(),
        };
        for index in 0..config.threads.max(1) {
            let mut worker = Worker::new(Arc::clone(&server.shared), index)?;
            let thread = std::thread::Builder::new().name(format!("nfs-{index}"));
            server.threads.push(thread.spawn(move || worker.run())?);
        }
        Ok(server)
    }

    /// Adds an export: see [`Exports::add`].
    pub fn export(
        self,
        path: &str,
        id: [u8; 16],
        tree: Arc<dyn Tree>,
    ) -> Result<Server, ExportError> {
        self.exports().add(path, id, tree)?;
        Ok(self)
    }

    /// The exports, to change while the server runs.
    pub fn exports(&self) -> &Exports {
        &self.shared.exports
    }

    /// Serves what connects to `listener` from now on; returns at once. Several listeners are fine.
    pub fn serve(&self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let Some(inbox) = self.shared.inboxes.first() else {
            return Ok(());
        };
        lock(&inbox.listeners).push(listener);
        inbox.wake()
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.shared.core.clients.snapshot()
    }

    /// A connection of `address` without a socket, for tests and fuzzing.
    #[doc(hidden)]
    pub fn direct(&self, address: IpAddr) -> Direct {
        Direct {
            connection: Connection::open(&self.shared.core, address),
            shared: Arc::clone(&self.shared),
            reply: Writer::default(),
            bytes: Vec::new(),
        }
    }

    /// Ends all threads and connections. Clients wait for a successor.
    pub fn shutdown(self) {}
}

/// A connection whose bytes its owner carries: what a socket's thread does, without the socket.
#[doc(hidden)]
pub struct Direct {
    shared: Arc<Shared>,
    connection: Connection,
    reply: Writer,
    bytes: Vec<u8>,
}

impl Direct {
    /// Answers the whole fragments in `bytes`. The replies with their record marks, or `None` where
    /// a peer would be hung up on.
    pub fn exchange(&mut self, mut bytes: &[u8]) -> Option<&[u8]> {
        let exports = self.shared.exports.snapshot();
        let core = &self.shared.core;
        self.reply.truncate(0);
        while let Some(rest) = self
            .connection
            .advance(core, &exports.table, bytes, &mut self.reply)
            .ok()?
        {
            bytes = rest;
        }
        self.bytes.clear();
        for (stored, attached) in self.reply.pieces() {
            self.bytes.extend_from_slice(stored);
            self.bytes
                .extend_from_slice(attached.map_or(&[], |bytes| &bytes[..]));
        }
        Some(&self.bytes)
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.connection.close(&self.shared.core);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for inbox in &self.shared.inboxes {
            // A thread that cannot be woken is busy, and looks at the flag when it is done.
            let _ = inbox.wake();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Inbox {
    fn new() -> io::Result<Inbox> {
        Ok(Inbox {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            listeners: Mutex::default(),
            streams: Mutex::default(),
        })
    }

    fn hand_over(&self, stream: TcpStream, address: IpAddr) {
        let mut streams = lock(&self.streams);
        if streams.len() < MAX_WAITING {
            streams.push((stream, address));
            // A thread that cannot be woken is awake.
            let _ = self.wake();
        }
    }

    fn wake(&self) -> io::Result<()> {
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes())?;
        Ok(())
    }
}

/// One thread.
struct Worker {
    shared: Arc<Shared>,
    index: usize,
    epoll: OwnedFd,
    exports: Snapshot,
    listeners: Vec<TcpListener>,
    peers: HashMap<u64, Peer>,
    /// Those who have had enough for one visit, but have more to be answered.
    waiting: VecDeque<u64>,
    /// Bytes kept for slow peers.
    kept: usize,
    /// Visits to peers.
    visits: u64,
    next_token: u64,
    next_inbox: usize,
    input: Vec<u8>,
    reply: Writer,
}

/// A connection and what is left over of it.
struct Peer {
    stream: TcpStream,
    connection: Connection,
    /// Received bytes that are no whole record yet, or cannot be answered yet.
    unread: Vec<u8>,
    /// Replies that the peer does not take.
    unsent: Outgoing,
    /// It waits for its next visit.
    waits: bool,
    /// The last visit on which it took or sent something.
    moved: u64,
}

/// The connection is over.
struct Hangup;

impl From<NotRpc> for Hangup {
    fn from(_: NotRpc) -> Hangup {
        Hangup
    }
}

impl From<io::Error> for Hangup {
    fn from(_: io::Error) -> Hangup {
        Hangup
    }
}

impl Worker {
    fn new(shared: Arc<Shared>, index: usize) -> io::Result<Worker> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(inbox) = shared.inboxes.get(index) {
            watch(&epoll, &inbox.wake, WAKE, epoll::EventFlags::IN)?;
        }
        Ok(Worker {
            exports: shared.exports.snapshot(),
            shared,
            index,
            epoll,
            listeners: Vec::new(),
            peers: HashMap::new(),
            waiting: VecDeque::new(),
            kept: 0,
            visits: 0,
            next_token: 0,
            next_inbox: 0,
            input: vec![0; INPUT_LEN],
            reply: Writer::default(),
        })
    }

    fn run(&mut self) {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 256];
        const AT_ONCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        while !self.shared.stop.load(Ordering::Relaxed) {
            let patience = (!self.waiting.is_empty()).then_some(&AT_ONCE);
            let count = match epoll::wait(&self.epoll, &mut events, patience) {
                Ok(count) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => break,
            };
            self.shared.exports.refresh(&mut self.exports);
            for event in events.iter().take(count) {
                match event.data.u64() {
                    WAKE => self.take_inbox(),
                    token if token & LISTENERS != 0 => self.accept(token & !LISTENERS),
                    token => self.serve(token, event.flags),
                }
            }
            for _ in 0..self.waiting.len() {
                if let Some(token) = self.waiting.pop_front() {
                    self.visit(token);
                }
            }
        }
        for (_, mut peer) in self.peers.drain() {
            peer.connection.close(&self.shared.core);
        }
    }

    fn take_inbox(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(inbox) = shared.inboxes.get(self.index) else {
            return;
        };
        let mut count = [0; 8];
        let _ = rustix::io::read(&inbox.wake, &mut count);
        for listener in lock(&inbox.listeners).drain(..) {
            let token = LISTENERS | self.listeners.len() as u64;
            if watch(&self.epoll, &listener, token, epoll::EventFlags::IN).is_ok() {
                self.listeners.push(listener);
            }
        }
        let streams = std::mem::take(&mut *lock(&inbox.streams));
        for (stream, address) in streams {
            // The peer sees a connection that could not be set up as closed.
            let _ = self.add(stream, address);
        }
    }

    /// Takes new connections and deals them out to the threads.
    fn accept(&mut self, listener: u64) {
        for _ in 0..64 {
            let Some(listener) = self.listeners.get(listener as usize) else {
                return;
            };
            match listener.accept() {
                Ok((stream, address)) => {
                    self.next_inbox = (self.next_inbox + 1) % self.shared.inboxes.len();
                    if let Some(inbox) = self.shared.inboxes.get(self.next_inbox) {
                        inbox.hand_over(stream, address.ip().to_canonical());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors.
                Err(error) if error.kind() != io::ErrorKind::ConnectionAborted => {
                    if !self.end_oldest_unused() {
                        // Do not spin until some are free again.
                        return std::thread::sleep(Duration::from_millis(10));
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// Ends a connection that matters less than one more of `address`; false if there is none.
    fn make_room(&mut self, address: IpAddr) -> bool {
        if self.end_oldest_unused() {
            return true;
        }
        let crowd = |peer: &Peer| peer.connection.client.connections.load(Ordering::Relaxed);
        let most = self
            .peers
            .iter()
            .max_by_key(|(token, peer)| (crowd(peer), Reverse(**token)));
        match most.map(|(token, peer)| (*token, crowd(peer))) {
            Some((token, crowd)) if crowd > self.shared.core.clients.of(address) + 1 => {
                self.end(token);
                true
            }
            _ => false,
        }
    }

    fn end_oldest_unused(&mut self) -> bool {
        let idle = self
            .peers
            .iter()
            .filter(|(_, peer)| !peer.connection.is_used());
        let oldest = idle.map(|(token, _)| *token).min();
        oldest.map(|token| self.end(token)).is_some()
    }

    fn end(&mut self, token: u64) {
        if let Some(mut peer) = self.peers.remove(&token) {
            self.kept -= peer.kept();
            peer.connection.close(&self.shared.core);
        }
    }

    fn add(&mut self, stream: TcpStream, address: IpAddr) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let total = shared.core.clients.connections.load(Ordering::Relaxed);
        if total >= shared.max_connections && !self.make_room(address) {
            return Ok(());
        }
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        keep_alive(&stream)?;
        let token = self.next_token;
        watch(&self.epoll, &stream, token, epoll::EventFlags::IN)?;
        let mut connection = Connection::open(&shared.core, address);
        if connection.client.connections.load(Ordering::Relaxed)
            > shared.max_connections_per_address
        {
            connection.close(&shared.core);
            return Ok(());
        }
        self.next_token += 1;
        let peer = Peer {
            stream,
            connection,
            unread: Vec::new(),
            unsent: Outgoing::default(),
            waits: false,
            moved: self.visits,
        };
        self.peers.insert(token, peer);
        Ok(())
    }

    fn serve(&mut self, token: u64, flags: epoll::EventFlags) {
        if flags.intersects(epoll::EventFlags::ERR) {
            self.end(token);
        } else if self.peers.get(&token).is_some_and(|peer| !peer.waits) {
            self.visit(token);
        }
    }

    fn visit(&mut self, token: u64) {
        let Some(peer) = self.peers.get_mut(&token) else {
            return;
        };
        let was_blocked = !peer.unsent.is_empty();
        let before = peer.kept();
        self.visits += 1;
        let mut turn = Turn {
            shared: &self.shared,
            exports: &self.exports,
            input: &mut self.input,
            reply: &mut self.reply,
            visit: self.visits,
        };
        let result = if was_blocked {
            turn.resume(peer)
        } else if peer.waits {
            turn.go_on(peer)
        } else {
            turn.receive(peer)
        };
        self.reply.truncate(0);
        self.reply.shrink(WRITER_KEEP_LEN);
        self.kept = self.kept + peer.kept() - before;
        let is_blocked = !peer.unsent.is_empty();
        let failed = is_blocked != was_blocked
            && rewatch(&self.epoll, &peer.stream, token, is_blocked).is_err();
        if result.is_err() || failed {
            self.end(token);
        } else if peer.waits {
            self.waiting.push_back(token);
        }
        self.keep_within_limit();
    }

    /// Cuts off those who have taken nothing for longest while too much is kept for slow peers.
    fn keep_within_limit(&mut self) {
        while self.kept > self.shared.max_kept {
            let slow = self.peers.iter().filter(|(_, peer)| peer.kept() > 0);
            let Some((token, _)) = slow.min_by_key(|(_, peer)| peer.moved) else {
                return;
            };
            self.end(*token);
        }
    }
}

impl Peer {
    fn kept(&self) -> usize {
        self.unread.len() + self.connection.kept() + self.unsent.kept()
    }
}

/// One visit to a connection.
struct Turn<'w> {
    shared: &'w Shared,
    exports: &'w Snapshot,
    input: &'w mut Vec<u8>,
    reply: &'w mut Writer,
    visit: u64,
}

impl Turn<'_> {
    /// Reads what has come and answers what is whole.
    fn receive(&mut self, peer: &mut Peer) -> Result<(), Hangup> {
        let start = peer.unread.len();
        self.input[..start].copy_from_slice(&peer.unread);
        peer.unread.clear();
        let count = match peer.stream.read(&mut self.input[start..]) {
            Ok(0) => return Err(Hangup),
            Ok(count) => count,
            Err(error) if is_transient(&error) => 0,
            Err(_) => return Err(Hangup),
        };
        peer.moved = self.visit;
        self.answer(peer, start + count)
    }

    /// Sends what was left over; once it is gone, answers what had to wait for it.
    fn resume(&mut self, peer: &mut Peer) -> Result<(), Hangup> {
        let resumed = peer.unsent.resume(&peer.stream);
        if resumed.inspect_err(|error| self.shared.core.note_send_error(error))? {
            peer.moved = self.visit;
        }
        if peer.unsent.is_empty() {
            self.go_on(peer)?;
        }
        Ok(())
    }

    /// Answers what was received before and had to wait.
    fn go_on(&mut self, peer: &mut Peer) -> Result<(), Hangup> {
        let len = peer.unread.len();
        self.input[..len].copy_from_slice(&peer.unread);
        peer.unread.clear();
        self.answer(peer, len)
    }

    /// Answers the records in the first `len` bytes of the input, as long as the peer takes the
    /// replies and has not had enough for one visit.
    fn answer(&mut self, peer: &mut Peer, len: usize) -> Result<(), Hangup> {
        let mut rest = &self.input[..len];
        let mut answered = 0;
        peer.waits = false;
        while peer.unsent.is_empty() && !peer.waits {
            let (core, table) = (&self.shared.core, &self.exports.table);
            let next = peer.connection.advance(core, table, rest, self.reply)?;
            match next {
                Some(next) => rest = next,
                None => break,
            }
            if self.reply.len() >= FLUSH_LEN {
                answered += self.reply.len();
                peer.waits = answered >= VISIT_LEN;
                flush(core, peer, self.reply)?;
            }
        }
        peer.unread.extend_from_slice(rest);
        if peer.unread.is_empty() {
            peer.unread = Vec::new();
        }
        flush(&self.shared.core, peer, self.reply)?;
        // Where the peer does not take its replies, that is what it waits for.
        peer.waits &= peer.unsent.is_empty();
        Ok(())
    }
}

/// Sends the replies; what the peer does not take stays with it.
fn flush(core: &Core, peer: &mut Peer, reply: &mut Writer) -> Result<(), Hangup> {
    if peer.unsent.is_empty() && reply.len() > 0 {
        let sent = peer.unsent.send(&peer.stream, reply);
        sent.inspect_err(|error| core.note_send_error(error))?;
        reply.truncate(0);
    }
    Ok(())
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Has the kernel find out about peers that vanished without a word.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(stream, 4)?;
    Ok(())
}

fn watch(
    epoll: &OwnedFd,
    source: impl AsFd,
    token: u64,
    flags: epoll::EventFlags,
) -> io::Result<()> {
    Ok(epoll::add(
        epoll,
        source,
        epoll::EventData::new_u64(token),
        flags,
    )?)
}

/// Waits for a peer to take more while it is blocked, and for its calls otherwise.
fn rewatch(epoll: &OwnedFd, stream: &TcpStream, token: u64, blocked: bool) -> io::Result<()> {
    let flags = if blocked {
        epoll::EventFlags::OUT
    } else {
        epoll::EventFlags::IN
    };
    Ok(epoll::modify(
        epoll,
        stream,
        epoll::EventData::new_u64(token),
        flags,
    )?)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
