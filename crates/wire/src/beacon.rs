//! The boot beacon: one UDP datagram by which a node tells the daemon what happened so far.
//!
//! Each datagram repeats the last events, so a lost one costs nothing; the sequence number lets
//! the daemon drop what it has seen. Layout (big endian): magic `SLB1`, boot id (8), MAC (6), then
//! per event `seq u32, monotonic_us u64, kind u8, stage u8, text length u8, text`, and last the
//! first 16 bytes of HMAC-SHA256 over everything before, keyed by the boot's token.
//!
//! Decoding never panics. Events of a kind or stage that this version does not know are skipped.

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::Sha256;
use thiserror::Error;

use crate::identity::{BootId, Token};
use crate::mac::Mac;
use crate::reader::Reader;
use crate::stage::Stage;

/// The first bytes of every beacon.
pub const MAGIC: [u8; 4] = *b"SLB1";
/// The longest datagram, in bytes: fits any Ethernet without fragments.
pub const MAX_DATAGRAM_BYTES: usize = 1200;
/// The longest text of one event, in bytes of UTF-8.
pub const MAX_TEXT_BYTES: usize = 200;

const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = 4 + 8 + 6;
const EVENT_HEAD_BYTES: usize = 4 + 8 + 1 + 1 + 1;

/// What sort of event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The stage was reached.
    Progress = 1,
    /// The stage failed or is being retried; the text says why.
    Failure = 2,
    /// Worth knowing, no change of stage.
    Info = 3,
    /// The text names kernel modules that drive devices of the node, apart by spaces.
    Drivers = 4,
}

impl Kind {
    fn from_code(code: u8) -> Option<Kind> {
        [Kind::Progress, Kind::Failure, Kind::Info, Kind::Drivers]
            .into_iter()
            .find(|kind| *kind as u8 == code)
    }
}

/// One thing that happened on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BeaconEvent {
    /// Number of this event within the boot, from 1, without gaps.
    pub seq: u32,
    /// Microseconds since the kernel started.
    pub monotonic_us: u64,
    /// What sort of event it is.
    pub kind: Kind,
    /// The stage it belongs to.
    pub stage: Stage,
    /// Cause or detail; at most [`MAX_TEXT_BYTES`], encoding cuts it there.
    pub text: String,
}

/// A decoded beacon: who speaks, in which boot, and the last events, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// The boot that the daemon's plan named.
    pub boot: BootId,
    /// The node.
    pub mac: Mac,
    /// The last events, oldest first.
    pub events: Vec<BeaconEvent>,
}

/// Why a datagram is no beacon of ours.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BeaconError {
    /// Too short, or an event runs past the end.
    #[error("beacon of {0} bytes ends within a field")]
    Truncated(usize),
    /// Longer than any sender makes them.
    #[error("beacon of {0} bytes, expected at most {MAX_DATAGRAM_BYTES}")]
    TooLong(usize),
    /// Not a beacon.
    #[error("expected the magic SLB1, got {0:02x?}")]
    BadMagic([u8; 4]),
    /// The tag does not fit the token.
    #[error("the beacon's authentication tag does not match its boot's token")]
    Forged,
    /// An event's text is not UTF-8.
    #[error("expected UTF-8 text in event {0}")]
    BadText(u32),
    /// An event's text is longer than senders may make it.
    #[error("expected a text of at most {MAX_TEXT_BYTES} bytes, got {0}")]
    LongText(usize),
}

impl Beacon {
    /// The datagram, with as many of the newest events as fit.
    pub fn encode(&self, token: &Token) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_DATAGRAM_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.boot.0);
        out.extend_from_slice(&self.mac.0);
        for event in &self.events[self.first_that_fits()..] {
            event.encode(&mut out);
        }
        let tag = tag(token, &out).finalize().into_bytes();
        out.extend_from_slice(&tag[..TAG_BYTES]);
        out
    }

    fn first_that_fits(&self) -> usize {
        let mut room = MAX_DATAGRAM_BYTES - HEADER_BYTES - TAG_BYTES;
        let mut first = self.events.len();
        for event in self.events.iter().rev() {
            let Some(left) = room.checked_sub(event.encoded_bytes()) else {
                break;
            };
            room = left;
            first -= 1;
        }
        first
    }

    /// Who claims to have sent this datagram: enough to look up the token, proven by nothing yet.
    pub fn peek(datagram: &[u8]) -> Result<(BootId, Mac), BeaconError> {
        if datagram.len() > MAX_DATAGRAM_BYTES {
            return Err(BeaconError::TooLong(datagram.len()));
        }
        let short = || BeaconError::Truncated(datagram.len());
        let mut reader = Reader::new(datagram);
        let magic = reader.array().ok_or_else(short)?;
        if magic != MAGIC {
            return Err(BeaconError::BadMagic(magic));
        }
        let boot = reader.array().ok_or_else(short)?;
        let mac = reader.array().ok_or_else(short)?;
        Ok((BootId(boot), Mac(mac)))
    }

    /// Checks the tag and decodes the events.
    pub fn decode(datagram: &[u8], token: &Token) -> Result<Beacon, BeaconError> {
        let (boot, mac) = Beacon::peek(datagram)?;
        let short = BeaconError::Truncated(datagram.len());
        let body_end = datagram.len() - TAG_BYTES.min(datagram.len());
        let (signed, sent_tag) = datagram.split_at(body_end);
        if signed.len() < HEADER_BYTES {
            return Err(short);
        }
        let genuine = tag(token, signed).verify_truncated_left(sent_tag);
        genuine.map_err(|_| BeaconError::Forged)?;
        let mut reader = Reader::new(&signed[HEADER_BYTES..]);
        let mut events = Vec::new();
        while !reader.is_empty() {
            let event = RawEvent::read(&mut reader).ok_or_else(|| short.clone())?;
            events.extend(event.decode()?);
        }
        Ok(Beacon { boot, mac, events })
    }
}

impl BeaconEvent {
    fn wire_text(&self) -> &str {
        &self.text[..self.text.floor_char_boundary(MAX_TEXT_BYTES)]
    }

    fn encoded_bytes(&self) -> usize {
        EVENT_HEAD_BYTES + self.wire_text().len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let text = self.wire_text();
        out.extend_from_slice(&self.seq.to_be_bytes());
        out.extend_from_slice(&self.monotonic_us.to_be_bytes());
        out.push(self.kind as u8);
        out.push(self.stage.code());
        out.push(text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    }
}

/// An event's fields as they were sent.
struct RawEvent<'a> {
    seq: u32,
    monotonic_us: u64,
    kind: u8,
    stage: u8,
    text: &'a [u8],
}

impl<'a> RawEvent<'a> {
    fn read(reader: &mut Reader<'a>) -> Option<RawEvent<'a>> {
        Some(RawEvent {
            seq: reader.u32()?,
            monotonic_us: reader.u64()?,
            kind: reader.u8()?,
            stage: reader.u8()?,
            text: {
                let length = reader.u8()?;
                reader.take(length.into())?
            },
        })
    }

    /// The event, or nothing where its kind or stage is newer than we are.
    fn decode(&self) -> Result<Option<BeaconEvent>, BeaconError> {
        if self.text.len() > MAX_TEXT_BYTES {
            return Err(BeaconError::LongText(self.text.len()));
        }
        let text = str::from_utf8(self.text).map_err(|_| BeaconError::BadText(self.seq))?;
        let known = Kind::from_code(self.kind).zip(Stage::from_code(self.stage));
        Ok(known.map(|(kind, stage)| BeaconEvent {
            seq: self.seq,
            monotonic_us: self.monotonic_us,
            kind,
            stage,
            text: text.to_owned(),
        }))
    }
}

fn tag(token: &Token, bytes: &[u8]) -> Hmac<Sha256> {
    let mut hmac =
        Hmac::<Sha256>::new_from_slice(&token.0).expect("HMAC takes keys of every length");
    hmac.update(bytes);
    hmac
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token([7; 16]);

    fn event(seq: u32, text: &str) -> BeaconEvent {
        BeaconEvent {
            seq,
            monotonic_us: 1_000_000 + u64::from(seq),
            kind: Kind::Progress,
            stage: Stage::Network,
            text: text.to_owned(),
        }
    }

    fn beacon(events: Vec<BeaconEvent>) -> Beacon {
        Beacon {
            boot: BootId([1, 2, 3, 4, 5, 6, 7, 8]),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            events,
        }
    }

    #[test]
    fn round_trip() {
        let sent = beacon(vec![event(1, "eth0 192.0.2.5/24"), event(2, "")]);
        let datagram = sent.encode(&TOKEN);
        assert_eq!(Beacon::peek(&datagram), Ok((sent.boot, sent.mac)));
        assert_eq!(Beacon::decode(&datagram, &TOKEN), Ok(sent));
    }

    #[test]
    fn layout_is_fixed() {
        let datagram = beacon(vec![event(1, "x")]).encode(&TOKEN);
        assert_eq!(
            &datagram[..18],
            b"SLB1\x01\x02\x03\x04\x05\x06\x07\x08\x02\0\0\0\0\x09"
        );
        assert_eq!(
            &datagram[18..34],
            b"\0\0\0\x01\0\0\0\0\0\x0f\x42\x41\x01\x09\x01x"
        );
        assert_eq!(datagram.len(), 34 + 16);
    }

    #[test]
    fn another_token_or_a_flipped_bit_is_forged() {
        let mut datagram = beacon(vec![event(1, "hello")]).encode(&TOKEN);
        assert_eq!(
            Beacon::decode(&datagram, &Token([8; 16])),
            Err(BeaconError::Forged)
        );
        datagram[20] ^= 1;
        assert_eq!(Beacon::decode(&datagram, &TOKEN), Err(BeaconError::Forged));
    }

    #[test]
    fn oldest_events_give_way_and_texts_are_cut() {
        let long = "ü".repeat(150);
        let sent = beacon((1..=20).map(|seq| event(seq, &long)).collect());
        let datagram = sent.encode(&TOKEN);
        assert!(datagram.len() <= MAX_DATAGRAM_BYTES);
        let got = Beacon::decode(&datagram, &TOKEN).unwrap();
        assert_eq!(got.events.len(), 5);
        assert_eq!(got.events[4].seq, 20);
        assert_eq!(got.events[0].text.len(), 200);
    }

    #[test]
    fn unknown_kinds_are_skipped() {
        let mut signed = beacon(vec![event(1, "a"), event(2, "b")]).encode(&TOKEN);
        signed.truncate(signed.len() - TAG_BYTES);
        signed[HEADER_BYTES + 12] = 99;
        let tag = tag(&TOKEN, &signed).finalize().into_bytes();
        signed.extend_from_slice(&tag[..TAG_BYTES]);
        let got = Beacon::decode(&signed, &TOKEN).unwrap();
        assert_eq!(got.events, vec![event(2, "b")]);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let datagram = beacon(vec![event(1, "abc")]).encode(&TOKEN);
        for length in 0..datagram.len() {
            assert!(Beacon::decode(&datagram[..length], &TOKEN).is_err());
        }
        assert!(Beacon::decode(&[0; 1300], &TOKEN).is_err());
    }
}
