//! A client of NFS 4.1 with a session, made for load: it writes calls by hand and hands replies out
//! as they are.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use anyhow::{Context, bail, ensure};
use rustix::net::{AddressFamily, SocketType};

use super::xdr::{Reader, Writer, record_len, split_record};

const MINOR_VERSION: u32 = 1;
/// Slots that a session is asked for, as Linux does.
pub const SLOTS: usize = 64;
/// What the Linux client asks of every inode.
pub const LINUX_ATTRIBUTES: [u32; 2] = [0x0010_011a, 0x00b0_a23a];
/// Where the results of a compound's own operations begin in a reply: after the RPC header, status,
/// empty tag, count and the result of SEQUENCE.
const TAIL: usize = 80;
/// At most so much is read beyond the record that is being received.
const READ_LEN: usize = 256 << 10;

/// Operations, by their numbers in RFC 8881.
pub mod op {
    pub const ACCESS: u32 = 3;
    pub const CLOSE: u32 = 4;
    pub const DELEGRETURN: u32 = 8;
    pub const GETATTR: u32 = 9;
    pub const GETFH: u32 = 10;
    pub const LOOKUP: u32 = 15;
    pub const LOOKUPP: u32 = 16;
    pub const OPEN: u32 = 18;
    pub const PUTFH: u32 = 22;
    pub const PUTROOTFH: u32 = 24;
    pub const READ: u32 = 25;
    pub const READDIR: u32 = 26;
    pub const READLINK: u32 = 27;
    pub const RESTOREFH: u32 = 31;
    pub const SAVEFH: u32 = 32;
    pub const EXCHANGE_ID: u32 = 42;
    pub const CREATE_SESSION: u32 = 43;
    pub const SEQUENCE: u32 = 53;
    pub const RECLAIM_COMPLETE: u32 = 58;
}

/// An open file's state id.
pub type State = [u8; 16];
/// The state id of whoever has not opened the file.
pub const ANONYMOUS: State = [0; 16];

/// Operations of a compound, without SEQUENCE.
#[derive(Clone, Default)]
pub struct Operations {
    /// How many.
    pub count: u32,
    /// Their numbers and arguments.
    pub body: Writer,
}

impl Operations {
    /// Those on the file of a handle.
    pub fn on(handle: &[u8]) -> Self {
        let mut operations = Self::default();
        operations.begin(op::PUTFH).opaque(handle);
        operations
    }

    /// Adds an operation; its arguments are to be written into what this returns.
    pub fn begin(&mut self, number: u32) -> &mut Writer {
        self.count += 1;
        self.body.u32(number);
        &mut self.body
    }

    /// Adds an operation without arguments.
    pub fn plain(mut self, number: u32) -> Self {
        self.begin(number);
        self
    }

    /// LOOKUP.
    pub fn look_up(mut self, name: &[u8]) -> Self {
        self.begin(op::LOOKUP).opaque(name);
        self
    }

    /// GETATTR.
    pub fn attributes(mut self, wanted: &[u32]) -> Self {
        self.begin(op::GETATTR).bitmap(wanted);
        self
    }

    /// ACCESS.
    pub fn access(mut self, asked: u32) -> Self {
        self.begin(op::ACCESS).u32(asked);
        self
    }

    /// OPEN for reading, of the current file or of a name in the current directory.
    pub fn open(mut self, client: u64, name: Option<&[u8]>) -> Self {
        const CLAIM_NULL: u32 = 0;
        const CLAIM_FH: u32 = 4;
        let arguments = self.begin(op::OPEN);
        // Sequence, access READ, deny nothing, the owner, no creation.
        [0, 1, 0].into_iter().for_each(|word| arguments.u32(word));
        arguments.u64(client);
        arguments.opaque(b"bench");
        arguments.u32(0);
        match name {
            Some(name) => {
                arguments.u32(CLAIM_NULL);
                arguments.opaque(name);
            }
            None => arguments.u32(CLAIM_FH),
        }
        self
    }

    /// READ.
    pub fn read(mut self, state: &State, offset: u64, count: u32) -> Self {
        let arguments = self.begin(op::READ);
        arguments.fixed(state);
        arguments.u64(offset);
        arguments.u32(count);
        self
    }

    /// CLOSE.
    pub fn close(mut self, state: &State) -> Self {
        let arguments = self.begin(op::CLOSE);
        arguments.u32(0);
        arguments.fixed(state);
        self
    }

    /// READDIR after a cookie, with its verifier; `limits` are those of the names and of the page.
    pub fn read_directory(
        mut self,
        (cookie, verifier): (u64, [u8; 8]),
        limits: [u32; 2],
        wanted: &[u32],
    ) -> Self {
        let arguments = self.begin(op::READDIR);
        arguments.u64(cookie);
        arguments.fixed(&verifier);
        limits.into_iter().for_each(|limit| arguments.u32(limit));
        arguments.bitmap(wanted);
        self
    }
}

/// What a call came to.
#[derive(Clone, Copy)]
pub struct Reply<'a> {
    /// The slot that it was called in.
    pub slot: usize,
    /// The status of the last operation.
    pub status: u32,
    /// The results of the operations after SEQUENCE.
    pub tail: &'a [u8],
}

impl<'a> Reply<'a> {
    /// The results, all of which have to be there.
    pub fn results(&self) -> anyhow::Result<Results<'a>> {
        ensure!(
            self.status == 0,
            "expected success, got status {}",
            self.status
        );
        Ok(Results(Reader::new(self.tail)))
    }
}

/// Results of operations, in order.
pub struct Results<'a>(pub Reader<'a>);

impl<'a> Results<'a> {
    /// Goes to the body of the next result, which has to be one of `number` and a success.
    pub fn expect(&mut self, number: u32) -> anyhow::Result<&mut Reader<'a>> {
        let got = (self.0.u32()?, self.0.u32()?);
        ensure!(
            got == (number, 0),
            "expected operation {number} with status 0, got {} with status {}",
            got.0,
            got.1
        );
        Ok(&mut self.0)
    }
}

/// A session over one connection.
pub struct Client {
    stream: TcpStream,
    /// Its id, as the server named it.
    pub id: u64,
    session: [u8; 16],
    /// The last sequence id of each slot.
    sequences: [u32; SLOTS],
    calls: u32,
    output: Vec<u8>,
    input: Vec<u8>,
    filled: usize,
}

impl Client {
    /// Connects from `source` and begins a session; `name` is what the client calls itself.
    pub fn connect(server: SocketAddr, source: Ipv4Addr, name: &str) -> anyhow::Result<Self> {
        let stream = connect(server, source).with_context(|| format!("connecting to {server}"))?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            id: 0,
            session: [0; 16],
            sequences: [0; SLOTS],
            calls: 0,
            output: Vec::new(),
            input: Vec::new(),
            filled: 0,
        };
        client.begin(name).context("beginning a session")?;
        Ok(client)
    }

    fn begin(&mut self, name: &str) -> anyhow::Result<()> {
        let mut exchange = Operations::default();
        let arguments = exchange.begin(op::EXCHANGE_ID);
        arguments.fixed(&[7; 8]);
        arguments.opaque(name.as_bytes());
        // No flags, no protection, no name of the implementation.
        [0, 0, 0].into_iter().for_each(|word| arguments.u32(word));
        let record = self.call_alone(&exchange)?;
        let mut reader = Reader::new(&record);
        self.id = reader.u64()?;
        let sequence = reader.u32()?;

        let mut create = Operations::default();
        let arguments = create.begin(op::CREATE_SESSION);
        arguments.u64(self.id);
        // The sequence and no flags; then what Linux asks for, forth and back.
        let forth = [0, 1_049_620, 1_049_480, 3428, 8, SLOTS as u32, 0];
        let back = [0, 4096, 4096, 0, 2, 16, 0];
        let words = [sequence, 0].into_iter().chain(forth).chain(back);
        // Callbacks: a program number and AUTH_NONE.
        let words = words.chain([0x4000_0000, 1, 0]);
        words.for_each(|word| arguments.u32(word));
        let record = self.call_alone(&create)?;
        self.session = Reader::new(&record).array()?;

        let mut reclaim = Operations::default();
        reclaim.begin(op::RECLAIM_COMPLETE).u32(0);
        self.call(&reclaim)?.results()?;
        Ok(())
    }

    /// Makes a call outside of a session; the body of its only result.
    fn call_alone(&mut self, operations: &Operations) -> anyhow::Result<Vec<u8>> {
        self.write_call(0, operations, None);
        self.flush()?;
        let record = self.wait_record()?;
        let mut reader = Reader::new(&record);
        expect_accepted(&mut reader)?;
        let status = reader.u32()?;
        ensure!(status == 0, "expected success, got status {status}");
        let _ = (reader.opaque()?, reader.take(12)?);
        Ok(reader.rest().to_vec())
    }

    fn wait_record(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            if let Some((record, end)) = split_record(&self.input[..self.filled]) {
                let record = record.to_vec();
                self.discard(end);
                return Ok(record);
            }
            self.fill()?;
        }
    }

    /// Makes a call in the first slot and waits for its reply.
    pub fn call(&mut self, operations: &Operations) -> anyhow::Result<OwnReply> {
        self.send(0, operations);
        self.flush()?;
        let record = self.wait_record()?;
        let reply = reply(&record)?;
        let (status, tail) = (reply.status, reply.tail.to_vec());
        Ok(OwnReply { status, tail })
    }

    /// Adds a call in a slot, which must be free, to what is sent next.
    pub fn send(&mut self, slot: usize, operations: &Operations) {
        let sequence = &mut self.sequences[slot];
        *sequence = sequence.wrapping_add(1);
        let sequence = *sequence;
        self.write_call(slot, operations, Some(sequence));
    }

    fn write_call(&mut self, slot: usize, operations: &Operations, sequence: Option<u32>) {
        self.calls = self.calls.wrapping_add(1);
        let start = self.output.len();
        let mut out = Writer(std::mem::take(&mut self.output));
        out.u32(0);
        // Which slot it was comes back in the transaction id.
        let xid = self.calls << 8 | slot as u32;
        // A call of RPC 2: NFS 4, COMPOUND.
        [xid, 0, 2, 100_003, 4, 1]
            .into_iter()
            .for_each(|word| out.u32(word));
        // AUTH_SYS: 28 bytes, of a machine with a name of 5 letters, root, no further groups.
        [1, 28, 0].into_iter().for_each(|word| out.u32(word));
        out.opaque(b"bench");
        // Root, no further groups; no verifier; no tag; the minor version.
        let words = [0, 0, 0, 0, 0, 0, MINOR_VERSION];
        words.into_iter().for_each(|word| out.u32(word));
        out.u32(operations.count + u32::from(sequence.is_some()));
        if let Some(sequence) = sequence {
            out.u32(op::SEQUENCE);
            out.fixed(&self.session);
            let words = [sequence, slot as u32, SLOTS as u32 - 1, 0];
            words.into_iter().for_each(|word| out.u32(word));
        }
        out.fixed(&operations.body.0);
        let len = (out.0.len() - start - 4) as u32;
        out.0[start..start + 4].copy_from_slice(&(len | 1 << 31).to_be_bytes());
        self.output = out.0;
    }

    /// Sends the calls that were added.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.stream
            .write_all(&self.output)
            .context("sending calls")?;
        self.output.clear();
        Ok(())
    }

    /// Waits for more bytes of replies.
    pub fn fill(&mut self) -> anyhow::Result<()> {
        // No more of the next record than its mark where this one is long: it would be moved.
        let missing = record_len(&self.input[..self.filled])
            .map_or(0, |len| (len + 8).saturating_sub(self.filled));
        let wanted = if missing > READ_LEN {
            missing
        } else {
            READ_LEN
        };
        if self.input.len() < self.filled + wanted {
            self.input.resize(self.filled + wanted, 0);
        }
        let space = &mut self.input[self.filled..self.filled + wanted];
        let count = self.stream.read(space).context("receiving replies")?;
        ensure!(count > 0, "the server hung up");
        self.filled += count;
        Ok(())
    }

    /// Hands every whole reply to `each`.
    pub fn replies(
        &mut self,
        mut each: impl FnMut(Reply<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut done = 0;
        while let Some((record, end)) = split_record(&self.input[done..self.filled]) {
            each(reply(record)?)?;
            done += end;
        }
        self.discard(done);
        Ok(())
    }

    fn discard(&mut self, done: usize) {
        self.input.copy_within(done..self.filled, 0);
        self.filled -= done;
    }

    /// The connection.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// A reply that is kept.
pub struct OwnReply {
    /// The status of the last operation.
    pub status: u32,
    /// The results of the operations after SEQUENCE.
    pub tail: Vec<u8>,
}

impl OwnReply {
    /// The results, all of which have to be there.
    pub fn results(&self) -> anyhow::Result<Results<'_>> {
        let reply = Reply {
            slot: 0,
            status: self.status,
            tail: &self.tail,
        };
        reply.results()
    }
}

/// Reads the record of a reply in a session.
fn reply(record: &[u8]) -> anyhow::Result<Reply<'_>> {
    let mut reader = Reader::new(record);
    let xid = expect_accepted(&mut reader)?;
    let status = reader.u32()?;
    let Some(tail) = record.get(TAIL..) else {
        bail!("expected a result of SEQUENCE, got status {status}");
    };
    let _ = (reader.opaque()?, reader.u32()?);
    let sequence = (reader.u32()?, reader.u32()?);
    ensure!(
        sequence == (op::SEQUENCE, 0),
        "expected SEQUENCE with status 0, got {sequence:?}"
    );
    Ok(Reply {
        slot: xid as usize & 0xff,
        status,
        tail,
    })
}

/// Reads the header of a reply, which has to say that the call was run; its transaction id.
fn expect_accepted(reader: &mut Reader<'_>) -> anyhow::Result<u32> {
    let xid = reader.u32()?;
    let (kind, verdict, _verifier) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let _ = reader.opaque()?;
    let accepted = reader.u32()?;
    ensure!(
        (kind, verdict, accepted) == (1, 0, 0),
        "expected an accepted reply, got {kind}, {verdict}, {accepted}"
    );
    Ok(xid)
}

fn connect(server: SocketAddr, source: Ipv4Addr) -> anyhow::Result<TcpStream> {
    let socket: OwnedFd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::from((source, 0)))?;
    rustix::net::connect(&socket, &server)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(words: &[u32]) -> Vec<u8> {
        let mut writer = Writer::default();
        // Transaction 0x0503, accepted, without a verifier.
        let head = [0x0503, 1, 0, 0, 0, 0];
        head.iter().chain(words).for_each(|word| writer.u32(*word));
        writer.0
    }

    #[test]
    fn a_reply_is_what_follows_sequence() {
        // Status 2, no tag, two results; SEQUENCE; LOOKUP that found nothing.
        let mut words = vec![2, 0, 2, op::SEQUENCE, 0];
        words.extend([9; 9]);
        words.extend([op::LOOKUP, 2]);
        let record = accepted(&words);
        let reply = reply(&record).unwrap();
        assert_eq!((reply.slot, reply.status), (3, 2));
        assert_eq!(reply.tail, [0, 0, 0, 15, 0, 0, 0, 2]);
        assert!(reply.results().is_err());
    }

    #[test]
    fn a_failed_sequence_and_a_refused_call_are_errors() {
        assert!(reply(&accepted(&[10052, 0, 1, op::SEQUENCE, 10052])).is_err());
        let mut refused = accepted(&[]);
        refused[11] = 1;
        assert!(reply(&refused).is_err());
    }

    #[test]
    fn results_come_in_order() {
        let mut writer = Writer::default();
        for word in [op::PUTFH, 0, op::ACCESS, 0, 1, 1] {
            writer.u32(word);
        }
        let mut results = Results(Reader::new(&writer.0));
        results.expect(op::PUTFH).unwrap();
        assert_eq!(results.expect(op::ACCESS).unwrap().u32().unwrap(), 1);
        assert!(Results(Reader::new(&writer.0)).expect(op::READ).is_err());
    }
}
