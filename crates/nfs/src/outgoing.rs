//! Replies on their way to a peer.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;

use bytes::{Buf, Bytes};

use crate::xdr::Writer;

/// Replies that a peer does not take yet.
#[derive(Default)]
pub(crate) struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// Bytes of them that were copied to be kept.
    copied: usize,
}

impl Outgoing {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of memory that are taken for it.
    pub(crate) fn kept(&self) -> usize {
        self.copied
    }

    /// Sends what the peer takes of the replies, and keeps the rest.
    pub(crate) fn send(&mut self, stream: &TcpStream, reply: &Writer) -> io::Result<()> {
        let pieces = reply
            .pieces()
            .flat_map(|(stored, attached)| [stored, attached.map_or(&[][..], |bytes| &bytes[..])]);
        let mut sent = write(stream, pieces)?;
        // What was sent is left out of the pieces; what is left of them is kept.
        let mut left = |len: usize| {
            let out = len.min(sent);
            sent -= out;
            (out < len).then_some(out)
        };
        for (stored, attached) in reply.pieces() {
            if let Some(start) = left(stored.len()) {
                self.copied += stored.len() - start;
                self.pieces
                    .push_back(Bytes::copy_from_slice(&stored[start..]));
            }
            if let Some(bytes) = attached
                && let Some(start) = left(bytes.len())
            {
                self.pieces.push_back(bytes.slice(start..));
            }
        }
        Ok(())
    }

    /// Sends what the peer takes of what was kept; whether it took anything.
    pub(crate) fn resume(&mut self, stream: &TcpStream) -> io::Result<bool> {
        let mut sent = write(stream, self.pieces.iter().map(|piece| &piece[..]))?;
        let moved = sent > 0;
        while let Some(first) = self.pieces.front_mut() {
            if sent < first.len() {
                first.advance(sent);
                break;
            }
            sent -= first.len();
            self.pieces.pop_front();
        }
        if self.pieces.is_empty() {
            *self = Outgoing::default();
        }
        Ok(moved)
    }
}

/// Writes until the socket is full; how much it took.
fn write<'a>(mut stream: &TcpStream, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
    let pieces = pieces.filter(|piece| !piece.is_empty());
    let mut slices: Vec<IoSlice<'_>> = pieces.map(IoSlice::new).collect();
    let (mut rest, mut sent) = (&mut slices[..], 0);
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(count) => {
                sent += count;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_a_slow_peer_leaves_arrives_later_as_it_was() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let large = Bytes::from(
            (0..9_000_000_u32)
                .map(|at| (at % 251) as u8)
                .collect::<Vec<_>>(),
        );
        let mut reply = Writer::default();
        reply.fixed(b"head");
        reply.attach(large.clone());
        reply.fixed(b"between");
        reply.attach(large.clone());
        reply.fixed(b"end");
        let mut outgoing = Outgoing::default();
        outgoing.send(&stream, &reply).unwrap();
        assert!(!outgoing.is_empty() && outgoing.kept() < 20);
        let expected = [b"head", &large[..], b"between", &large[..], b"end"].concat();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            peer.read_exact(&mut got).unwrap();
            assert!(got == expected);
        });
        while !outgoing.is_empty() {
            outgoing.resume(&stream).unwrap();
            std::thread::yield_now();
        }
        reader.join().unwrap();
        assert_eq!(outgoing.kept(), 0);
    }
}
