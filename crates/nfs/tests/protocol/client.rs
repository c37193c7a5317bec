//! A small client that speaks the protocol by hand, so that it shares no code with the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};

use crate::codes::*;

/// XDR that is being written.
#[derive(Clone, Debug, Default)]
pub struct Xdr(pub Vec<u8>);

impl Xdr {
    pub fn u32(&mut self, value: u32) -> &mut Xdr {
        self.fixed(&value.to_be_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Xdr {
        self.fixed(&value.to_be_bytes())
    }

    pub fn words(&mut self, words: &[u32]) -> &mut Xdr {
        for word in words {
            self.u32(*word);
        }
        self
    }

    pub fn fixed(&mut self, bytes: &[u8]) -> &mut Xdr {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn opaque(&mut self, bytes: &[u8]) -> &mut Xdr {
        self.u32(bytes.len() as u32).fixed(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A bitmap of attribute numbers.
    pub fn bits(&mut self, bits: &[u32]) -> &mut Xdr {
        let mut words = vec![0; bits.iter().max().map_or(0, |bit| bit / 32 + 1) as usize];
        for bit in bits {
            words[*bit as usize / 32] |= 1 << (bit % 32);
        }
        self.u32(words.len() as u32).words(&words)
    }
}

/// XDR that is being read. Panics where the input ends early: a server's reply never does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Results(Vec<u8>);

impl Results {
    pub fn new(bytes: &[u8]) -> Results {
        Results(bytes.to_vec())
    }

    pub fn fixed(&mut self, len: usize) -> Vec<u8> {
        assert!(len <= self.0.len(), "the reply ends early");
        self.0.drain(..len).collect()
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        self.fixed(N).try_into().expect("N bytes")
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    pub fn bool(&mut self) -> bool {
        let value = self.u32();
        assert!(value < 2, "{value} is no boolean");
        value == 1
    }

    pub fn opaque(&mut self) -> Vec<u8> {
        let len = self.u32() as usize;
        let value = self.fixed(len);
        let padding = self.fixed(len.next_multiple_of(4) - len);
        assert!(padding.iter().all(|byte| *byte == 0), "padding is zero");
        value
    }

    pub fn bits(&mut self) -> Vec<u32> {
        let words = self.u32();
        assert!(words < 9, "a bitmap of {words} words");
        let word = |index| (index, self.u32());
        let words: Vec<(u32, u32)> = (0..words).map(word).collect();
        let bits = words.into_iter().flat_map(|(index, word)| {
            (0..32)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| index * 32 + bit)
        });
        bits.collect()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The next result: its operation has to be `operation`; its status.
    pub fn status(&mut self, operation: u32) -> u32 {
        assert_eq!(self.u32(), operation, "the operation of the result");
        self.u32()
    }

    /// The next result, which has to be a success.
    pub fn ok(&mut self, operation: u32) -> &mut Results {
        let status = self.status(operation);
        assert_eq!(status, OK, "the status of operation {operation}");
        self
    }
}

/// Operations of a compound.
#[derive(Clone, Debug, Default)]
pub struct Ops {
    pub count: u32,
    pub bytes: Xdr,
}

impl Ops {
    pub fn new() -> Ops {
        Ops::default()
    }

    /// One more operation with the arguments that `write` writes.
    pub fn op(mut self, number: u32, write: impl FnOnce(&mut Xdr)) -> Ops {
        self.count += 1;
        self.bytes.u32(number);
        write(&mut self.bytes);
        self
    }

    /// One more operation whose arguments are words, or which has none.
    pub fn plain(self, number: u32, words: &[u32]) -> Ops {
        self.op(number, |args| {
            args.words(words);
        })
    }

    /// These operations and then others.
    pub fn then(mut self, ops: Ops) -> Ops {
        self.count += ops.count;
        self.bytes.0.extend(ops.bytes.0);
        self
    }

    pub fn sequence(self, session: &[u8; 16], sequence: u32, slot: u32) -> Ops {
        self.op(SEQUENCE, |args| {
            args.fixed(session).words(&[sequence, slot, slot, 0]);
        })
    }

    pub fn put_root(self) -> Ops {
        self.plain(PUTROOTFH, &[])
    }

    pub fn put(self, handle: &[u8]) -> Ops {
        self.op(PUTFH, |args| {
            args.opaque(handle);
        })
    }

    pub fn lookup(self, name: &[u8]) -> Ops {
        self.op(LOOKUP, |args| {
            args.opaque(name);
        })
    }

    pub fn get_handle(self) -> Ops {
        self.plain(GETFH, &[])
    }

    pub fn attributes(self, bits: &[u32]) -> Ops {
        self.op(GETATTR, |args| {
            args.bits(bits);
        })
    }

    pub fn access(self, mask: u32) -> Ops {
        self.plain(ACCESS, &[mask])
    }

    pub fn read(self, state: &State, offset: u64, count: u32) -> Ops {
        self.read_by(READ, state, offset, count)
    }

    pub fn read_by(self, operation: u32, state: &State, offset: u64, count: u32) -> Ops {
        self.op(operation, |args| {
            args.fixed(state).u64(offset).u32(count);
        })
    }

    pub fn seek(self, offset: u64, what: u32) -> Ops {
        self.op(SEEK, |args| {
            args.fixed(&ANONYMOUS).u64(offset).u32(what);
        })
    }

    pub fn read_directory(self, cookie: u64, max: u32, bits: &[u32]) -> Ops {
        self.op(READDIR, |args| {
            args.u64(cookie).u64(0).words(&[max, max]).bits(bits);
        })
    }

    /// OPEN for reading, of a file that exists; `claim` writes the claim.
    pub fn open(self, share: u32, claim: impl FnOnce(&mut Xdr)) -> Ops {
        self.op(OPEN, |args| {
            args.words(&[0, share, 0]).u64(1).opaque(b"owner").u32(0);
            claim(args);
        })
    }

    pub fn open_here(self, share: u32) -> Ops {
        self.open(share, |args| {
            args.u32(CLAIM_FH);
        })
    }

    pub fn exchange_id(self, owner: &[u8], verifier: u64, flags: u32) -> Ops {
        self.op(EXCHANGE_ID, |args| {
            args.u64(verifier).opaque(owner).words(&[flags, 0, 0]);
        })
    }

    pub fn create_session(self, client: u64, sequence: u32, shape: Shape) -> Ops {
        self.op(CREATE_SESSION, |args| {
            args.u64(client)
                .words(&[sequence, if shape.back { 2 } else { 0 }])
                .words(&[0, shape.request, shape.reply, 4096, shape.operations])
                .words(&[shape.slots, 0])
                .words(&[0, 4096, 4096, 0, 2, 16, 0])
                .words(&[0x4000_0000, 1, 0]);
        })
    }
}

/// A state id as it is on the wire.
pub type State = [u8; 16];

/// What a session is asked to be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub back: bool,
    pub request: u32,
    pub reply: u32,
    pub operations: u32,
    pub slots: u32,
}

/// What Linux asks for.
pub const LINUX: Shape = Shape {
    back: true,
    request: 1_049_620,
    reply: 1_049_480,
    operations: 8,
    slots: 64,
};

/// The body of a call record: everything after the record mark.
pub fn call_body(xid: u32, target: [u32; 3], credential: Credential, args: &[u8]) -> Vec<u8> {
    let mut body = Xdr::default();
    body.words(&[xid, 0, 2]).words(&target);
    match credential {
        Credential::None => body.words(&[0, 0]),
        Credential::Gss => body.words(&[6, 0]),
        Credential::Sys { uid, gid } => {
            let mut sys = Xdr::default();
            sys.u32(0).opaque(b"client").words(&[uid, gid, 0]);
            body.u32(1).opaque(&sys.0)
        }
    };
    body.words(&[0, 0]).fixed(args);
    body.0
}

/// The arguments of COMPOUND.
pub fn compound_args(minor: u32, ops: &Ops) -> Vec<u8> {
    let mut args = Xdr::default();
    args.opaque(b"tag").words(&[minor, ops.count]);
    args.fixed(&ops.bytes.0);
    args.0
}

/// A record of one fragment.
pub fn record(body: &[u8]) -> Vec<u8> {
    let mut record = Xdr::default();
    record.u32(body.len() as u32 | 1 << 31).fixed(body);
    record.0
}

#[derive(Clone, Copy, Debug)]
pub enum Credential {
    None,
    Sys { uid: u32, gid: u32 },
    Gss,
}

pub const ROOT: Credential = Credential::Sys { uid: 0, gid: 0 };

/// A TCP connection to the server.
pub struct Peer {
    pub stream: TcpStream,
    pub credential: Credential,
    pub minor: u32,
    xid: u32,
}

impl Peer {
    pub fn connect(server: SocketAddr) -> Peer {
        Peer::connect_from(Ipv4Addr::LOCALHOST, server)
    }

    /// A connection from a source address of one's choice.
    pub fn connect_from(source: Ipv4Addr, server: SocketAddr) -> Peer {
        let socket =
            rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&socket, &SocketAddr::from((source, 0))).expect("a source address");
        rustix::net::connect(&socket, &server).expect("a connection");
        let stream = TcpStream::from(socket);
        // A server that does not answer fails the test instead of stopping it.
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).expect("a timeout");
        stream.set_write_timeout(patience).expect("a timeout");
        Peer {
            stream,
            credential: ROOT,
            minor: 2,
            xid: 100,
        }
    }

    /// The next record; `None` when the server has hung up.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut mark = [0; 4];
        self.fill(&mut mark)?;
        let mark = u32::from_be_bytes(mark);
        assert!(mark & 1 << 31 != 0, "the server sends whole records");
        let mut body = vec![0; (mark & !(1 << 31)) as usize];
        self.fill(&mut body)?;
        Some(body)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Option<()> {
        use ErrorKind::{ConnectionReset, UnexpectedEof};
        match self.stream.read_exact(buffer) {
            Ok(()) => Some(()),
            Err(error) if matches!(error.kind(), UnexpectedEof | ConnectionReset) => None,
            Err(error) => panic!("receiving: {error}"),
        }
    }

    /// Sends a call and returns what follows the xid of its reply.
    pub fn call(&mut self, target: [u32; 3], args: &[u8]) -> Results {
        self.xid += 1;
        let body = call_body(self.xid, target, self.credential, args);
        self.stream.write_all(&record(&body)).expect("sending");
        self.reply()
    }

    fn reply(&mut self) -> Results {
        let mut reply = Results(self.receive().expect("a reply"));
        assert_eq!(reply.u32(), self.xid);
        assert_eq!(reply.u32(), 1, "a reply");
        reply
    }

    /// Runs a compound that RPC accepts: its status and results.
    pub fn compound(&mut self, ops: &Ops) -> (u32, Results) {
        let args = compound_args(self.minor, ops);
        let mut reply = self.call([NFS, 4, 1], &args);
        assert_eq!(reply.fixed(16), [0; 16], "accepted, without a verifier");
        let status = reply.u32();
        assert_eq!(reply.opaque(), b"tag");
        let count = reply.u32();
        assert!(count <= ops.count);
        (status, reply)
    }

    /// Makes a client id: the id and the sequence number for CREATE_SESSION.
    pub fn exchange_id(&mut self, owner: &[u8], verifier: u64) -> (u64, u32) {
        let (_, mut results) = self.compound(&Ops::new().exchange_id(owner, verifier, 0));
        let body = results.ok(EXCHANGE_ID);
        (body.u64(), body.u32())
    }

    pub fn create_session(&mut self, client: u64, sequence: u32, shape: Shape) -> [u8; 16] {
        let (_, mut results) = self.compound(&Ops::new().create_session(client, sequence, shape));
        results.ok(CREATE_SESSION).array()
    }

    /// A client of this name with a session on this connection.
    pub fn mount(mut self, owner: &[u8], verifier: u64, shape: Shape) -> Client {
        let (client, sequence) = self.exchange_id(owner, verifier);
        let session = self.create_session(client, sequence, shape);
        Client {
            peer: self,
            client,
            session,
            sequence: 0,
        }
    }
}

/// A client with a session, of which it uses slot 0.
pub struct Client {
    pub peer: Peer,
    pub client: u64,
    pub session: [u8; 16],
    pub sequence: u32,
}

impl Client {
    /// Runs the operations behind a SEQUENCE, which has to succeed: status and the other results.
    pub fn run(&mut self, ops: Ops) -> (u32, Results) {
        let (status, mut results) = self.send(ops);
        results.ok(SEQUENCE).fixed(36);
        (status, results)
    }

    /// Runs the operations behind a SEQUENCE: status and all results.
    pub fn try_run(&mut self, ops: &Ops) -> (u32, Results) {
        self.send(ops.clone())
    }

    fn send(&mut self, ops: Ops) -> (u32, Results) {
        self.sequence += 1;
        let sequence = Ops::new().sequence(&self.session, self.sequence, 0);
        self.peer.compound(&sequence.then(ops))
    }

    /// The status of the first operation that fails, or success.
    pub fn status(&mut self, ops: Ops) -> u32 {
        self.run(ops).0
    }

    /// The handle of a path below the export.
    pub fn handle(&mut self, path: &str) -> Vec<u8> {
        let (status, mut results) = self.run(walk(path).get_handle());
        assert_eq!(status, OK, "{path}");
        results.ok(PUTROOTFH);
        for _ in names(path) {
            results.ok(LOOKUP);
        }
        results.ok(GETFH).opaque()
    }

    /// Runs operations on the file with this handle: the status and results after PUTFH.
    pub fn on(&mut self, handle: &[u8], ops: Ops) -> (u32, Results) {
        let (status, mut results) = self.run(Ops::new().put(handle).then(ops));
        results.ok(PUTFH);
        (status, results)
    }
}

/// Operations that lead to a path below the export at `/image`.
pub fn walk(path: &str) -> Ops {
    names(path).fold(Ops::new().put_root(), |ops, name| {
        ops.lookup(name.as_bytes())
    })
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    std::iter::once("image").chain(path.split('/').filter(|name| !name.is_empty()))
}
