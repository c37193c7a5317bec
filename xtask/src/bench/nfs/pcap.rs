//! RPC records out of a packet capture (classic pcap, Ethernet, IPv4, TCP).
//!
//! Damaged packets are left out, and never make anything here panic. A stream that lacks a segment,
//! because the capture lost it, ends there.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use anyhow::{Context, bail, ensure};

use super::xdr::split_record;

/// A whole RPC record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When its last byte came, in microseconds since 1970.
    pub at_us: u64,
    /// The client's address and port.
    pub client: (Ipv4Addr, u16),
    /// It goes to the server.
    pub to_server: bool,
    /// Without its record mark.
    pub body: Vec<u8>,
}

/// The records to and from the servers' port, in the order in which they were complete.
pub fn records(capture: &[u8], port: u16) -> anyhow::Result<Vec<Record>> {
    let mut streams: HashMap<(End, End), Stream> = HashMap::new();
    let mut records = Vec::new();
    for packet in packets(capture)? {
        let Some(segment) = Segment::parse(packet.frame) else {
            continue;
        };
        let to_server = segment.to.1 == port;
        if !to_server && segment.from.1 != port {
            continue;
        }
        let stream = streams.entry((segment.from, segment.to)).or_default();
        stream.take(&segment);
        let client = if to_server { segment.from } else { segment.to };
        while let Some(body) = stream.next_record() {
            records.push(Record {
                at_us: packet.at_us,
                client,
                to_server,
                body,
            });
        }
    }
    Ok(records)
}

struct Packet<'a> {
    at_us: u64,
    frame: &'a [u8],
}

/// The packets of a capture; one that is cut off at its end, as of a program that still writes, is
/// left out.
fn packets(capture: &[u8]) -> anyhow::Result<Vec<Packet<'_>>> {
    let (header, mut rest) = capture
        .split_at_checked(24)
        .context("a capture without a header")?;
    let word = |bytes: &[u8], at: usize| {
        let raw = bytes.get(at..at + 4).and_then(|raw| raw.try_into().ok());
        raw.map_or(0, u32::from_le_bytes)
    };
    let ticks_per_us = match word(header, 0) {
        0xa1b2_c3d4 => 1,
        0xa1b2_3c4d => 1000,
        magic => bail!("expected a capture in the classic format, got {magic:#x}"),
    };
    let link = word(header, 20);
    ensure!(
        link == 1,
        "expected a capture of Ethernet, got link type {link}"
    );
    let mut packets = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(16) {
        let Some((frame, after)) = after.split_at_checked(word(header, 8) as usize) else {
            break;
        };
        let ticks = u64::from(word(header, 4));
        packets.push(Packet {
            at_us: u64::from(word(header, 0)) * 1_000_000 + ticks / ticks_per_us,
            frame,
        });
        rest = after;
    }
    Ok(packets)
}

type End = (Ipv4Addr, u16);

/// A TCP segment.
struct Segment<'a> {
    from: End,
    to: End,
    sequence: u32,
    is_first: bool,
    content: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        const TCP: u8 = 6;
        const SYN: u8 = 2;
        let packet = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
        let header_len = usize::from(packet.first()? & 15) * 4;
        let total_len = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        // The kernel leaves the length out of packets that are longer than it can say.
        let end = if total_len == 0 {
            packet.len()
        } else {
            total_len
        };
        if packet.get(9) != Some(&TCP) {
            return None;
        }
        let address = |at: usize| {
            let raw: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(raw))
        };
        let segment = packet.get(header_len..end)?;
        let port = |at: usize| {
            Some(u16::from_be_bytes([
                *segment.get(at)?,
                *segment.get(at + 1)?,
            ]))
        };
        let sequence: [u8; 4] = segment.get(4..8)?.try_into().ok()?;
        let data_at = usize::from(segment.get(12)? >> 4) * 4;
        Some(Self {
            from: (address(12)?, port(0)?),
            to: (address(16)?, port(2)?),
            sequence: u32::from_be_bytes(sequence),
            is_first: segment.get(13)? & SYN != 0,
            content: segment.get(data_at..)?,
        })
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Stream {
    /// The sequence number of the next byte; `None` before the first segment.
    next: Option<u32>,
    /// What came too early, by how far it is ahead of the first byte of all.
    early: BTreeMap<u64, Vec<u8>>,
    /// Bytes so far.
    len: u64,
    /// Bytes that are no whole record yet, and where they begin in this.
    pending: Vec<u8>,
    done: usize,
}

impl Stream {
    fn take(&mut self, segment: &Segment<'_>) {
        if segment.is_first {
            *self = Self {
                next: Some(segment.sequence.wrapping_add(1)),
                ..Self::default()
            };
            return;
        }
        let next = *self.next.get_or_insert(segment.sequence);
        // How far it is ahead, or behind as what is sent again.
        let ahead = i64::from(segment.sequence.wrapping_sub(next) as i32);
        let at = self.len as i64 + ahead;
        let (at, content) = match usize::try_from(-at) {
            Ok(before) if before > 0 => (0, segment.content.get(before..).unwrap_or_default()),
            _ => (at as u64, segment.content),
        };
        if !content.is_empty() {
            self.early.insert(at, content.to_vec());
        }
        while let Some(first) = self.early.first_entry().filter(|it| *it.key() <= self.len) {
            let (at, content) = first.remove_entry();
            let known = (self.len - at) as usize;
            let fresh = content.get(known..).unwrap_or_default();
            self.pending.extend_from_slice(fresh);
            self.len += fresh.len() as u64;
            self.next = Some(next_of(self.next, fresh.len()));
        }
    }

    fn next_record(&mut self) -> Option<Vec<u8>> {
        let Some((body, end)) = split_record(&self.pending[self.done..]) else {
            self.pending.drain(..self.done);
            self.done = 0;
            return None;
        };
        let body = body.to_vec();
        self.done += end;
        Some(body)
    }
}

fn next_of(next: Option<u32>, len: usize) -> u32 {
    next.unwrap_or_default().wrapping_add(len as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: End = (Ipv4Addr::new(10, 0, 0, 2), 700);
    const SERVER: End = (Ipv4Addr::new(10, 0, 0, 1), 2049);

    fn frame(from: End, to: End, sequence: u32, flags: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((40 + content.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend(from.0.octets());
        frame.extend(to.0.octets());
        frame.extend(from.1.to_be_bytes());
        frame.extend(to.1.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(content);
        // Short frames are padded on the wire.
        frame.extend([0; 6]);
        frame
    }

    fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut out = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        out.extend([0; 16]);
        out.extend(1_u32.to_le_bytes());
        for (at, frame) in (1_u32..).zip(frames) {
            let len = frame.len() as u32;
            for word in [at, 5, len, len] {
                out.extend(word.to_le_bytes());
            }
            out.extend(frame);
        }
        out
    }

    fn bodies(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let records = records(&capture(frames), 2049).unwrap();
        records.into_iter().map(|record| record.body).collect()
    }

    const MARK: [u8; 4] = [0x80, 0, 0, 4];

    #[test]
    fn segments_are_put_in_order_and_repetitions_left_out() {
        let first = u32::MAX - 2;
        let call = [MARK, *b"abcd", MARK, *b"efgh"].concat();
        let at = |from: usize, to: usize| {
            let sequence = first.wrapping_add(1 + from as u32);
            frame(CLIENT, SERVER, sequence, 16, &call[from..to])
        };
        let syn = frame(CLIENT, SERVER, first, 2, &[]);
        let frames = [syn, at(0, 6), at(10, 16), at(2, 8), at(0, 16), at(6, 12)];
        assert_eq!(bodies(&frames), [b"abcd", b"efgh"]);
    }

    #[test]
    fn both_directions_and_the_time_of_the_last_byte() {
        let frames = [
            frame(CLIENT, SERVER, 7, 16, &[&MARK[..], b"ab"].concat()),
            frame(CLIENT, SERVER, 13, 16, b"cd"),
            frame(SERVER, CLIENT, 9, 16, &[MARK, *b"efgh"].concat()),
            frame((SERVER.0, 53), CLIENT, 9, 16, &[MARK, *b"efgh"].concat()),
        ];
        let record = |at_us, to_server, body: &[u8]| Record {
            at_us,
            client: CLIENT,
            to_server,
            body: body.to_vec(),
        };
        let expected = [
            record(2_000_005, true, b"abcd"),
            record(3_000_005, false, b"efgh"),
        ];
        assert_eq!(records(&capture(&frames), 2049).unwrap(), expected);
    }

    #[test]
    fn a_gap_ends_a_stream_and_garbage_is_left_out() {
        let frames = [
            frame(CLIENT, SERVER, 7, 16, &[MARK, *b"abcd"].concat()),
            frame(CLIENT, SERVER, 16, 16, &[MARK, *b"efgh"].concat()),
            vec![0; 3],
            vec![8; 20],
        ];
        assert_eq!(bodies(&frames), [b"abcd"]);
        let mut cut = capture(&frames[..2]);
        cut.truncate(cut.len() - 1);
        assert_eq!(records(&cut, 2049).unwrap().len(), 1);
        assert!(records(&[0; 24], 2049).is_err());
        assert!(records(&[0; 3], 2049).is_err());
    }
}
