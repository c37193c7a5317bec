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

/// Port of DHCP servers and relays.
pub const SERVER_PORT: u16 = 67;
/// Port of DHCP clients.
pub const CLIENT_PORT: u16 = 68;

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

impl Message {
    /// Decodes one datagram.
    pub fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
        Err(DecodeError::Short { got: bytes.len() })
    }

    /// Encodes for a receiver that accepts DHCP messages of `budget` bytes (IP and UDP headers
    /// not counted).
    pub fn encode(&self, budget: usize) -> Vec<u8> {
        Vec::with_capacity(budget)
    }

    /// The value of an option.
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options
            .iter()
            .find(|option| option.code == code)
            .map(|option| &option.value[..])
    }
}
