//! DHCP for IPv4 (RFC 2131, RFC 2132): one decoder and one encoder for the server and for /init.
//!
//! The codec is our own because the encoder must keep the order, the NULs and the padding that
//! firmware wants, and because a general DHCP crate would bring a DNS library into /init. The
//! `dhcproto` crate is the oracle of the tests.
//!
//! Panic contract: decoding and encoding never panic, whatever the bytes. The decoder is tolerant
//! where firmware needs it (a missing end option, options cut short at the end) and strict where
//! identity depends on it (hardware type and length, magic cookie).

use std::net::Ipv4Addr;

use crate::mac::Mac;
use crate::reader::Reader;

/// Port of DHCP servers and relays.
pub const SERVER_PORT: u16 = 67;
/// Port of DHCP clients.
pub const CLIENT_PORT: u16 = 68;
/// Port of boot servers (PXE 2.1, 2.2.5).
pub const BOOT_SERVER_PORT: u16 = 4011;

/// Whether a message comes from a client or from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// BOOTREQUEST, client to server.
    Request,
    /// BOOTREPLY, server to client.
    Reply,
}

/// Option 53 (RFC 2132, 9.6). Unknown values survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// 1
    Discover,
    /// 2
    Offer,
    /// 3
    Request,
    /// 4
    Decline,
    /// 5
    Ack,
    /// 6
    Nak,
    /// 7
    Release,
    /// 8
    Inform,
    /// Anything else.
    Other(u8),
}

/// A DHCP option: its code and its whole value, split parts joined (RFC 3396).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpOption {
    /// The option's code, never 0 (pad) or 255 (end).
    pub code: u8,
    /// The value, at most what one datagram carries.
    pub value: Vec<u8>,
}

/// A DHCP or BOOTP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Direction.
    pub op: Op,
    /// Number of relays passed.
    pub hops: u8,
    /// Transaction id, chosen by the client.
    pub xid: u32,
    /// Seconds since the client started asking.
    pub secs: u16,
    /// Whether the client wants a broadcast reply.
    pub broadcast: bool,
    /// The address the client says it has.
    pub ciaddr: Ipv4Addr,
    /// The address given to the client.
    pub yiaddr: Ipv4Addr,
    /// The server that has the boot file.
    pub siaddr: Ipv4Addr,
    /// The relay, zero without one.
    pub giaddr: Ipv4Addr,
    /// The client's Ethernet address.
    pub mac: Mac,
    /// The header's server name, without NULs.
    pub sname: Vec<u8>,
    /// The header's boot file, without NULs.
    pub file: Vec<u8>,
    /// The options, in order of first appearance.
    pub options: Vec<DhcpOption>,
}

/// Why bytes are no DHCP message that we handle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the fixed header.
    #[error("expected at least 236 bytes, got {got}")]
    Short {
        /// Bytes received.
        got: usize,
    },
    /// `op` is neither 1 nor 2.
    #[error("expected op 1 or 2, got {got}")]
    Op {
        /// The byte received.
        got: u8,
    },
    /// Not Ethernet.
    #[error("expected hardware type 1 of length 6, got type {htype} of length {hlen}")]
    Hardware {
        /// The hardware type received.
        htype: u8,
        /// The hardware address length received.
        hlen: u8,
    },
    /// The magic cookie is missing.
    #[error("expected the cookie 63825363, got {got:02x?}")]
    Cookie {
        /// The bytes in its place.
        got: Vec<u8>,
    },
}

/// Bytes of the fixed header (RFC 2131, 2), before the cookie.
const HEADER_BYTES: usize = 236;
/// Opens the options (RFC 2131, 3).
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// A BOOTP message (RFC 951, 3), and the least DHCP message: some ROMs drop shorter ones.
pub const BOOTP_BYTES: usize = 300;
/// What a client must accept where it says nothing (RFC 2131, 2).
pub const DEFAULT_BUDGET_BYTES: usize = 548;
/// The largest reply: an Ethernet frame without fragments.
pub const MAX_BUDGET_BYTES: usize = 1472;
/// Most options of one message that are kept.
const MAX_OPTIONS: usize = 128;

const SNAME_BYTES: usize = 64;
const FILE_BYTES: usize = 128;
const FLAG_BROADCAST: u16 = 0x8000;
const OPTION_PAD: u8 = 0;
const OPTION_OVERLOAD: u8 = 52;
const OPTION_END: u8 = 255;

/// Codes of the options that we handle (RFC 2132 unless noted).
pub mod option {
    #![allow(missing_docs)]
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN: u8 = 15;
    pub const BROADCAST: u8 = 28;
    pub const TIME_SERVERS: u8 = 42;
    pub const VENDOR: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    /// RFC 3004.
    pub const USER_CLASS: u8 = 77;
    /// RFC 3046.
    pub const RELAY: u8 = 82;
    /// RFC 4578.
    pub const ARCHITECTURE: u8 = 93;
    /// RFC 4578.
    pub const MACHINE_UUID: u8 = 97;
    /// RFC 3397.
    pub const DOMAIN_SEARCH: u8 = 119;
}

/// Longest encoded list of domains (RFC 3397) that is written or read, in bytes.
const MAX_SEARCH_BYTES: usize = 1024;

/// The value of [`option::DOMAIN_SEARCH`] for these domains (RFC 1035, 3.1), without compression.
/// Domains that have no encoding are left out.
pub fn encode_search<'a>(domains: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut out = Vec::new();
    for domain in domains {
        let labels = domain.trim_end_matches('.').split('.');
        let mut name = Vec::new();
        let mut fits = true;
        for label in labels {
            fits &= (1..64).contains(&label.len());
            name.push(label.len() as u8);
            name.extend_from_slice(label.as_bytes());
        }
        name.push(0);
        if fits && name.len() <= 255 && out.len() + name.len() <= MAX_SEARCH_BYTES {
            out.append(&mut name);
        }
    }
    out
}

/// The domains in the value of [`option::DOMAIN_SEARCH`]; what is not well-formed ends the list.
pub fn decode_search(value: &[u8]) -> Vec<String> {
    let value = &value[..value.len().min(MAX_SEARCH_BYTES)];
    let mut domains = Vec::new();
    let mut at = 0;
    while at < value.len() {
        let Some((domain, next)) = decode_domain(value, at) else {
            break;
        };
        domains.push(domain);
        at = next;
    }
    domains
}

/// The domain at `start`, and where the next one is. Pointers go backwards only (RFC 1035, 4.1.4),
/// so that no name is endless.
fn decode_domain(value: &[u8], start: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let (mut at, mut limit, mut next) = (start, start, None);
    loop {
        let length = usize::from(*value.get(at)?);
        match length {
            0 => break,
            0xc0.. => {
                next = next.or(Some(at + 2));
                let target = (length & 0x3f) << 8 | usize::from(*value.get(at + 1)?);
                if target >= limit {
                    return None;
                }
                (at, limit) = (target, target);
            }
            1..64 => {
                let label = value.get(at + 1..at + 1 + length)?;
                let is_plain = |it: &u8| it.is_ascii_alphanumeric() || b"-_".contains(it);
                if !label.iter().all(is_plain) || name.len() + length > 254 {
                    return None;
                }
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(str::from_utf8(label).ok()?);
                at += 1 + length;
            }
            _ => return None,
        }
    }
    (!name.is_empty()).then(|| (name, next.unwrap_or(at + 1)))
}

impl Message {
    /// A client's message without options. The reply is to be broadcast, as the client has no
    /// address yet.
    pub fn request(mac: Mac, xid: u32) -> Message {
        Message {
            op: Op::Request,
            hops: 0,
            xid,
            secs: 0,
            broadcast: true,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            mac,
            sname: Vec::new(),
            file: Vec::new(),
            options: Vec::new(),
        }
    }

    /// Decodes one datagram.
    pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
        let mut reader = Reader::new(bytes);
        let mut message =
            Message::read_header(&mut reader).ok_or(DecodeError::Short { got: bytes.len() })??;
        let vendor = reader.rest();
        match reader.array() {
            Some(COOKIE) => {
                message.read_options(reader.rest());
                message.read_overload();
            }
            // A BOOTP client that knows of no options leaves the area zero (RFC 951, 3).
            Some([0, 0, 0, 0]) => {}
            _ => {
                let got = vendor[..vendor.len().min(4)].to_vec();
                return Err(DecodeError::Cookie { got });
            }
        }
        trim_at_nul(&mut message.sname);
        trim_at_nul(&mut message.file);
        Ok(message)
    }

    fn read_header(reader: &mut Reader<'_>) -> Option<Result<Message, DecodeError>> {
        // Checked first, so that a short packet is called short whatever it holds.
        let mut header = reader.sub(HEADER_BYTES)?;
        let (op, htype, hlen, hops) = (header.u8()?, header.u8()?, header.u8()?, header.u8()?);
        let op = match op {
            1 => Op::Request,
            2 => Op::Reply,
            got => return Some(Err(DecodeError::Op { got })),
        };
        if (htype, hlen) != (1, 6) {
            return Some(Err(DecodeError::Hardware { htype, hlen }));
        }
        let address = |header: &mut Reader<'_>| header.array::<4>().map(Ipv4Addr::from);
        let (xid, secs, flags) = (header.u32()?, header.u16()?, header.u16()?);
        Some(Ok(Message {
            op,
            hops,
            xid,
            secs,
            broadcast: flags & FLAG_BROADCAST != 0,
            ciaddr: address(&mut header)?,
            yiaddr: address(&mut header)?,
            siaddr: address(&mut header)?,
            giaddr: address(&mut header)?,
            mac: {
                let mac = Mac(header.array()?);
                header.take(10)?;
                mac
            },
            sname: header.take(SNAME_BYTES)?.to_vec(),
            file: header.take(FILE_BYTES)?.to_vec(),
            options: Vec::new(),
        }))
    }

    /// Adds the options in `field`, which may end early or without its end mark.
    fn read_options(&mut self, field: &[u8]) {
        let mut reader = Reader::new(field);
        while let Some(code) = reader.u8() {
            match code {
                OPTION_PAD => continue,
                OPTION_END => break,
                _ => {}
            }
            let Some(length) = reader.u8() else { break };
            let Some(value) = reader.take(length.into()) else {
                break;
            };
            self.add_part(code, value);
        }
    }

    /// Long values come in parts under one code (RFC 3396, 5).
    fn add_part(&mut self, code: u8, value: &[u8]) {
        let count = self.options.len();
        match self.options.iter_mut().find(|it| it.code == code) {
            Some(option) => option.value.extend_from_slice(value),
            None if count < MAX_OPTIONS => self.push(code, value),
            None => {}
        }
    }

    /// Options that spilled into `file` (1), `sname` (2) or both (3): option 52, RFC 2132, 9.3.
    /// The option itself speaks of the bytes that came in, not of the message, and goes.
    fn read_overload(&mut self) {
        let overload = match self.option(OPTION_OVERLOAD) {
            Some(&[overload @ 1..=3]) => overload,
            _ => 0,
        };
        if overload & 1 != 0 {
            let file = std::mem::take(&mut self.file);
            self.read_options(&file);
        }
        if overload & 2 != 0 {
            let sname = std::mem::take(&mut self.sname);
            self.read_options(&sname);
        }
        self.options.retain(|it| it.code != OPTION_OVERLOAD);
    }

    /// Encodes for a receiver that accepts DHCP messages of `budget` bytes (IP and UDP headers
    /// not counted). Options go out in their order; one that no longer fits is left out, and so
    /// is what follows it, but for option 82, which a relay must get back (RFC 3046, 2.2) unless
    /// it does not fit by itself.
    pub fn encode(&self, budget: usize) -> Vec<u8> {
        let budget = budget.clamp(BOOTP_BYTES, MAX_BUDGET_BYTES);
        let mut out = Vec::with_capacity(budget);
        self.write_header(&mut out);
        out.extend_from_slice(&COOKIE);
        let (mut relay, others): (Vec<_>, Vec<_>) =
            self.options.iter().partition(|it| it.code == option::RELAY);
        relay.retain(|it| out.len() + encoded_bytes(&it.value) < budget);
        let reserved: usize = relay.iter().map(|it| encoded_bytes(&it.value)).sum();
        for option in others {
            if out.len() + encoded_bytes(&option.value) + reserved + 1 > budget {
                break;
            }
            write_option(option, &mut out);
        }
        for option in relay {
            write_option(option, &mut out);
        }
        out.push(OPTION_END);
        out.resize(out.len().max(BOOTP_BYTES), OPTION_PAD);
        out
    }

    fn write_header(&self, out: &mut Vec<u8>) {
        let op = match self.op {
            Op::Request => 1,
            Op::Reply => 2,
        };
        let flags = if self.broadcast { FLAG_BROADCAST } else { 0 };
        out.extend_from_slice(&[op, 1, 6, self.hops]);
        out.extend_from_slice(&self.xid.to_be_bytes());
        out.extend_from_slice(&self.secs.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            out.extend_from_slice(&address.octets());
        }
        out.extend_from_slice(&self.mac.0);
        out.extend_from_slice(&[0; 10]);
        write_padded(&self.sname, SNAME_BYTES, out);
        write_padded(&self.file, FILE_BYTES, out);
    }

    /// The value of an option.
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options
            .iter()
            .find(|option| option.code == code)
            .map(|option| &option.value[..])
    }

    /// Adds an option behind the others.
    pub fn push(&mut self, code: u8, value: impl Into<Vec<u8>>) {
        let value = value.into();
        self.options.push(DhcpOption { code, value });
    }

    /// Option 53; `None` where there is none that is one byte long.
    pub fn message_type(&self) -> Option<MessageType> {
        match self.option(option::MESSAGE_TYPE)? {
            [code] => Some(MessageType::from_code(*code)),
            _ => None,
        }
    }

    /// The option's value where it is one IPv4 address.
    pub fn address_option(&self, code: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.option(code)?.try_into().ok()?;
        Some(octets.into())
    }

    /// The option's value where it is a 32-bit number.
    pub fn number_option(&self, code: u8) -> Option<u32> {
        let bytes: [u8; 4] = self.option(code)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    /// Whether it is BOOTP and not DHCP (RFC 1534, 2).
    pub fn is_bootp(&self) -> bool {
        self.option(option::MESSAGE_TYPE).is_none()
    }

    /// The size of reply that the sender takes, without IP and UDP headers: option 57 within
    /// sane bounds.
    pub fn budget(&self) -> usize {
        let headers = 28;
        let asked = match self.option(option::MAX_SIZE) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => DEFAULT_BUDGET_BYTES + headers,
        };
        asked
            .saturating_sub(headers)
            .clamp(DEFAULT_BUDGET_BYTES, MAX_BUDGET_BYTES)
    }
}

impl MessageType {
    /// The value of option 53.
    pub fn code(self) -> u8 {
        match self {
            MessageType::Discover => 1,
            MessageType::Offer => 2,
            MessageType::Request => 3,
            MessageType::Decline => 4,
            MessageType::Ack => 5,
            MessageType::Nak => 6,
            MessageType::Release => 7,
            MessageType::Inform => 8,
            MessageType::Other(code) => code,
        }
    }

    /// The type with this value.
    pub fn from_code(code: u8) -> MessageType {
        match code {
            1 => MessageType::Discover,
            2 => MessageType::Offer,
            3 => MessageType::Request,
            4 => MessageType::Decline,
            5 => MessageType::Ack,
            6 => MessageType::Nak,
            7 => MessageType::Release,
            8 => MessageType::Inform,
            other => MessageType::Other(other),
        }
    }
}

/// What a DHCP server says to a client: the payload of a UDP datagram between their ports in an
/// IPv4 packet, and its sender; `None` where it is anything else, or a fragment. Checksums are not
/// looked at: among virtual machines they are not filled in.
pub fn server_payload(packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    const UDP: u8 = 17;
    let words = usize::from(packet.first()? & 15);
    let mut packet = Reader::new(packet);
    let mut header = packet.sub(words * 4)?;
    let version = header.u8()? >> 4;
    header.take(1)?;
    let length = usize::from(header.u16()?);
    header.take(2)?;
    let fragment = header.u16()? & 0x3fff;
    header.take(1)?;
    let protocol = header.u8()?;
    header.take(2)?;
    let source = Ipv4Addr::from(header.array::<4>()?);
    header.take(4)?;
    // The frame may be longer than the packet in it.
    let mut datagram = packet.sub(length.checked_sub(words * 4)?)?;
    let (from, to) = (datagram.u16()?, datagram.u16()?);
    let length = usize::from(datagram.u16()?);
    datagram.take(2)?;
    let payload = datagram.take(length.checked_sub(8)?)?;
    let is_meant = version == 4 && fragment == 0 && protocol == UDP;
    let ports = (from, to) == (SERVER_PORT, CLIENT_PORT);
    (is_meant && ports).then_some((source, payload))
}

fn trim_at_nul(text: &mut Vec<u8>) {
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
}

/// A NUL-terminated field: at least one NUL stays.
fn write_padded(text: &[u8], width: usize, out: &mut Vec<u8>) {
    let end = out.len() + width;
    out.extend_from_slice(&text[..text.len().min(width - 1)]);
    out.resize(end, 0);
}

/// Bytes of a value with the headers of its parts.
fn encoded_bytes(value: &[u8]) -> usize {
    value.len() + 2 * value.len().div_ceil(255).max(1)
}

fn write_option(option: &DhcpOption, out: &mut Vec<u8>) {
    if option.value.is_empty() {
        out.extend_from_slice(&[option.code, 0]);
    }
    for part in option.value.chunks(255) {
        out.extend_from_slice(&[option.code, part.len() as u8]);
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discover() -> Message {
        let mut message = Message::request(Mac([0x52, 0x54, 0, 1, 2, 3]), 0x1234_5678);
        message.secs = 4;
        message.push(option::MESSAGE_TYPE, [1]);
        message.push(option::MAX_SIZE, [0x05, 0xc0]);
        message.push(option::PARAMETERS, [1, 2, 3, 54, 66, 67]);
        message.push(option::ARCHITECTURE, [0, 7]);
        message.push(option::CLASS, *b"PXEClient:Arch:00007:UNDI:003001");
        message
    }

    #[test]
    fn round_trip() {
        let sent = discover();
        let got = Message::decode(&sent.encode(MAX_BUDGET_BYTES)).unwrap();
        assert_eq!(got, sent);
        assert_eq!(got.message_type(), Some(MessageType::Discover));
        assert_eq!(got.budget(), 0x5c0 - 28);
    }

    #[test]
    fn the_oracle_reads_what_we_write() {
        use dhcproto::{Decodable as _, Decoder};
        let bytes = discover().encode(MAX_BUDGET_BYTES);
        let theirs = dhcproto::v4::Message::decode(&mut Decoder::new(&bytes)).unwrap();
        assert_eq!(theirs.xid(), 0x1234_5678);
        assert_eq!(theirs.chaddr(), &[0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(
            theirs.opts().msg_type(),
            Some(dhcproto::v4::MessageType::Discover)
        );
        assert!(theirs.flags().broadcast());
    }

    #[test]
    fn replies_are_300_bytes_at_least() {
        assert_eq!(discover().encode(0).len(), BOOTP_BYTES);
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_message() {
        let bytes = discover().encode(MAX_BUDGET_BYTES);
        for length in 0..bytes.len() {
            match Message::decode(&bytes[..length]) {
                Err(DecodeError::Short { got }) => assert!(got == length && length < HEADER_BYTES),
                Err(DecodeError::Cookie { .. }) => assert!(length < HEADER_BYTES + 4),
                Err(other) => panic!("{other} at {length}"),
                Ok(message) => assert!(message.options.len() <= 5),
            }
        }
    }

    #[test]
    fn hostile_headers() {
        let good = discover().encode(MAX_BUDGET_BYTES);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Message::decode(&bytes)
        };
        assert_eq!(with(0, 3), Err(DecodeError::Op { got: 3 }));
        assert_eq!(with(1, 6), Err(DecodeError::Hardware { htype: 6, hlen: 6 }));
        for hlen in [0, 17, 255] {
            assert_eq!(with(2, hlen), Err(DecodeError::Hardware { htype: 1, hlen }));
        }
        assert!(matches!(with(236, 0), Err(DecodeError::Cookie { .. })));
    }

    #[test]
    fn hostile_options() {
        let options = |field: &[u8]| {
            let mut bytes = discover().encode(0)[..HEADER_BYTES + 4].to_vec();
            bytes.extend_from_slice(field);
            Message::decode(&bytes).unwrap()
        };
        assert_eq!(
            options(&[53, 1, 3]).message_type(),
            Some(MessageType::Request)
        );
        assert_eq!(options(&[53, 200, 3]).message_type(), None);
        assert_eq!(options(&[53, 0, 255]).message_type(), None);
        assert_eq!(
            options(&[53, 1, 0, 255]).message_type(),
            Some(MessageType::Other(0))
        );
        assert_eq!(options(&[0, 0, 255, 53, 1, 3]).message_type(), None);
        assert_eq!(
            options(&[12, 2, b'a', b'b', 12, 1, b'c', 255]).option(12),
            Some(&b"abc"[..])
        );
        let many: Vec<u8> = (0..200).flat_map(|_| [200, 1, 0]).collect();
        assert_eq!(options(&many).options.len(), 1);
        for size in [0_u16, 575, 65535] {
            let [high, low] = size.to_be_bytes();
            let budget = options(&[57, 2, high, low, 255]).budget();
            assert!((DEFAULT_BUDGET_BYTES..=MAX_BUDGET_BYTES).contains(&budget));
        }
    }

    #[test]
    fn overload_spills_into_file_and_sname_once() {
        let mut message = discover();
        message.file = vec![12, 3, b'a', b'b', b'c', 52, 1, 3, 255];
        message.sname = vec![15, 1, b'd', 255];
        message.push(OPTION_OVERLOAD, [3]);
        let got = Message::decode(&message.encode(MAX_BUDGET_BYTES)).unwrap();
        assert_eq!(got.option(12), Some(&b"abc"[..]));
        assert_eq!(got.option(15), Some(&b"d"[..]));
        assert!(got.file.is_empty());
        assert_eq!(got.option(OPTION_OVERLOAD), None);
    }

    #[test]
    fn an_overload_of_no_known_value_moves_nothing() {
        for value in [vec![], vec![0], vec![4], vec![255], vec![1, 0]] {
            let mut message = discover();
            message.file = vec![12, 1, b'a', 255];
            message.push(OPTION_OVERLOAD, value);
            let got = Message::decode(&message.encode(MAX_BUDGET_BYTES)).unwrap();
            assert_eq!((got.option(12), &got.file), (None, &message.file));
            assert_eq!(got.option(OPTION_OVERLOAD), None);
        }
    }

    #[test]
    fn a_relay_s_option_that_cannot_fit_is_left_out() {
        let mut message = discover();
        message.push(option::RELAY, vec![1; 1000]);
        let bytes = message.encode(DEFAULT_BUDGET_BYTES);
        assert!(bytes.len() <= DEFAULT_BUDGET_BYTES, "{}", bytes.len());
        assert_eq!(Message::decode(&bytes).unwrap().option(option::RELAY), None);
        let largest = DEFAULT_BUDGET_BYTES - HEADER_BYTES - COOKIE.len() - 1 - 2 * 2;
        message.options.last_mut().unwrap().value.truncate(largest);
        assert_eq!(
            message.encode(DEFAULT_BUDGET_BYTES).len(),
            DEFAULT_BUDGET_BYTES
        );
    }

    #[test]
    fn what_does_not_fit_is_left_out_but_the_relay_s_option_stays_last() {
        let mut message = discover();
        message.push(option::RELAY, vec![1; 40]);
        message.push(43, vec![7; 600]);
        let bytes = message.encode(DEFAULT_BUDGET_BYTES);
        assert!(bytes.len() <= DEFAULT_BUDGET_BYTES);
        let got = Message::decode(&bytes).unwrap();
        assert_eq!(got.option(43), None);
        assert_eq!(got.options.last().unwrap().code, option::RELAY);
    }

    #[test]
    fn long_values_are_split() {
        let mut message = discover();
        message.push(43, vec![7; 300]);
        let got = Message::decode(&message.encode(MAX_BUDGET_BYTES)).unwrap();
        assert_eq!(got.option(43).unwrap().len(), 300);
    }

    #[test]
    fn the_datagram_in_a_packet() {
        let mut packet = vec![0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0];
        packet.extend([10, 77, 0, 2, 255, 255, 255, 255]);
        packet.extend([0, 67, 0, 68, 0, 11, 0, 0, b'a', b'b', b'c']);
        let padded = [&packet[..], &[0; 15]].concat();
        let found = Some((Ipv4Addr::new(10, 77, 0, 2), &b"abc"[..]));
        assert_eq!(server_payload(&packet), found);
        assert_eq!(server_payload(&padded), found);
        for length in 0..packet.len() {
            assert_eq!(server_payload(&packet[..length]), None);
        }
        // Another version, a short header, a length that is none, a fragment, TCP, other ports.
        for (at, byte) in [
            (0, 0x65),
            (0, 0x44),
            (3, 8),
            (6, 0x20),
            (7, 1),
            (9, 6),
            (21, 66),
            (23, 67),
            (25, 7),
        ] {
            let mut packet = packet.clone();
            packet[at] = byte;
            assert_eq!(server_payload(&packet), None, "{at}");
        }
    }

    #[test]
    fn header_fields_end_with_a_nul() {
        let mut message = discover();
        message.file = vec![b'x'; 200];
        let bytes = message.encode(MAX_BUDGET_BYTES);
        assert_eq!(bytes[235], 0);
        assert_eq!(Message::decode(&bytes).unwrap().file.len(), 127);
    }

    #[test]
    fn domains_to_search() {
        let domains = ["eng.apple.com", "marketing.apple.com"];
        // RFC 3397, 2: compressed.
        let compressed = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04";
        assert_eq!(decode_search(compressed), domains);
        assert_eq!(decode_search(&encode_search(domains)), domains);
        let long = "x".repeat(64);
        assert_eq!(encode_search([long.as_str(), "a..b", ""]), b"");
        assert_eq!(encode_search(["lab."]), b"\x03lab\x00");
        let many = vec!["a.example"; 1000];
        assert_eq!(encode_search(many).len(), 1023);
        // Itself, forwards, another's middle that leads back, cut short, no host name.
        for broken in [
            &b"\xc0\x00"[..],
            b"\x01a\xc0\x04\x01b\x00",
            b"\x01a\xc0\x00",
            b"\x05ab",
            b"\x01a",
            b"\x03a;b\x00",
            b"\x00",
        ] {
            assert_eq!(decode_search(broken), [""; 0], "{broken:?}");
        }
    }
}
