//! A DHCP client for one interface (RFC 2131 section 4.4), as a state machine without I/O.
//!
//! The client names itself by its MAC only, as the firmware before it and the running system after
//! it do: all share one lease.

use std::net::Ipv4Addr;
use std::time::Duration;

use wire::dhcp4::{DhcpOption, Message, MessageType, Op, decode_search, option};
use wire::mac::Mac;

use crate::backoff::Backoff;

/// How long a message may be that any server must take, in bytes.
pub(crate) const MESSAGE_BYTES: usize = 548;
/// REQUESTs for one offer before asking everybody again.
const REQUESTS_MAX: u32 = 4;

/// What a server granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The node's address.
    pub address: Ipv4Addr,
    /// Length of the network prefix.
    pub prefix: u8,
    /// The first router.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// The node's name.
    pub hostname: Option<String>,
    /// The domains to search.
    pub domains: Vec<String>,
    /// The header's next server, else the DHCP server itself.
    pub next_server: Option<Ipv4Addr>,
    /// Maximum transmission unit in bytes.
    pub mtu: Option<u16>,
    /// The DHCP server, which renews it.
    pub server: Option<Ipv4Addr>,
    /// How long it lasts, in seconds; `None` is for ever.
    pub seconds: Option<u32>,
}

/// Asking for a lease.
pub struct Client {
    mac: Mac,
    xid: u32,
    state: State,
    backoff: Backoff,
}

enum State {
    Selecting,
    Requesting {
        address: Ipv4Addr,
        server: Ipv4Addr,
        tries: u32,
    },
}

impl Client {
    /// A client that has asked nothing yet. `random` chooses the transaction and the jitter.
    pub fn new(mac: Mac, random: u64) -> Client {
        Client {
            mac,
            xid: (random >> 32) as u32 ^ random as u32,
            state: State::Selecting,
            backoff: waits(random),
        }
    }

    /// The next message to send, and how long to wait for an answer to it.
    pub fn poll(&mut self) -> (Vec<u8>, Duration) {
        let asks_everybody = match &mut self.state {
            State::Selecting => false,
            State::Requesting { tries, .. } => {
                *tries += 1;
                *tries > REQUESTS_MAX
            }
        };
        if asks_everybody {
            self.state = State::Selecting;
        }
        (self.message().encode(MESSAGE_BYTES), self.backoff.wait())
    }

    /// Takes a datagram. Answers whether the next message is due at once, or the lease.
    pub fn receive(&mut self, datagram: &[u8]) -> Answer {
        let Ok(message) = Message::decode(datagram) else {
            return Answer::None;
        };
        if message.op != Op::Reply || message.xid != self.xid || message.mac != self.mac {
            return Answer::None;
        }
        match (&self.state, message.message_type()) {
            (State::Selecting, Some(MessageType::Offer)) => self.offered(&message),
            (State::Requesting { address, .. }, Some(MessageType::Ack))
                if *address == message.yiaddr =>
            {
                Answer::Lease(lease(&message))
            }
            (State::Requesting { .. }, Some(MessageType::Nak)) => {
                self.state = State::Selecting;
                Answer::None
            }
            _ => Answer::None,
        }
    }

    fn offered(&mut self, message: &Message) -> Answer {
        let Some(server) = address(message, SERVER_ID) else {
            return Answer::None;
        };
        if message.yiaddr.is_unspecified() {
            return Answer::None;
        }
        self.state = State::Requesting {
            address: message.yiaddr,
            server,
            tries: 0,
        };
        self.backoff = waits(u64::from(self.xid));
        Answer::SendNow
    }

    fn message(&self) -> Message {
        let mut message = Message::request(self.mac, self.xid);
        let mut put = |code, value: &[u8]| {
            message.options.push(DhcpOption {
                code,
                value: value.to_vec(),
            });
        };
        match &self.state {
            State::Selecting => put(MESSAGE_TYPE, &[1]),
            State::Requesting {
                address, server, ..
            } => {
                put(MESSAGE_TYPE, &[3]);
                put(REQUESTED, &address.octets());
                put(SERVER_ID, &server.octets());
            }
        }
        put(CLIENT_ID, &[&[1][..], &self.mac.0].concat());
        put(
            PARAMETERS,
            &[
                SUBNET,
                ROUTER,
                DNS,
                HOSTNAME,
                DOMAIN,
                MTU,
                LEASE_TIME,
                option::DOMAIN_SEARCH,
            ],
        );
        message
    }
}

/// What a datagram meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: keep waiting.
    None,
    /// The next message is due.
    SendNow,
    /// Done.
    Lease(Lease),
}

pub(crate) const SUBNET: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const HOSTNAME: u8 = 12;
const DOMAIN: u8 = 15;
const MTU: u8 = 26;
const REQUESTED: u8 = 50;
pub(crate) const LEASE_TIME: u8 = 51;
pub(crate) const MESSAGE_TYPE: u8 = 53;
const SERVER_ID: u8 = 54;
pub(crate) const PARAMETERS: u8 = 55;
pub(crate) const CLIENT_ID: u8 = 61;

/// RFC 2131 section 4.1 starts at 4 s; switches and servers nowadays deserve an earlier second try.
fn waits(random: u64) -> Backoff {
    Backoff::new(Duration::from_millis(1000), Duration::from_secs(32), random)
}

fn lease(message: &Message) -> Lease {
    let mask = address(message, SUBNET).map_or(u32::MAX, u32::from);
    let siaddr = Some(message.siaddr).filter(|it| !it.is_unspecified());
    Lease {
        address: message.yiaddr,
        prefix: mask.leading_ones() as u8,
        gateway: address(message, ROUTER),
        dns: addresses(message, DNS),
        hostname: name(message, HOSTNAME),
        domains: domains(message),
        next_server: siaddr.or(address(message, SERVER_ID)),
        mtu: message
            .option(MTU)
            .and_then(|value| Some(u16::from_be_bytes(value.try_into().ok()?)))
            .filter(|mtu| *mtu >= 576),
        server: address(message, SERVER_ID),
        seconds: lease_seconds(message),
    }
}

/// How long a lease lasts (RFC 2132 section 9.2; RFC 2131 section 3.3 on what is for ever).
pub fn lease_seconds(message: &Message) -> Option<u32> {
    let seconds = message.number_option(LEASE_TIME);
    seconds.filter(|it| *it != u32::MAX)
}

/// RFC 3397, else option 15.
fn domains(message: &Message) -> Vec<String> {
    let domains = decode_search(message.option(option::DOMAIN_SEARCH).unwrap_or(&[]));
    if domains.is_empty() {
        return name(message, DOMAIN).into_iter().collect();
    }
    domains
}

fn addresses(message: &Message, code: u8) -> Vec<Ipv4Addr> {
    let value = message.option(code).unwrap_or(&[]);
    let chunks = value.chunks_exact(4);
    chunks
        .map(|it| Ipv4Addr::new(it[0], it[1], it[2], it[3]))
        .collect()
}

fn address(message: &Message, code: u8) -> Option<Ipv4Addr> {
    addresses(message, code).first().copied()
}

/// A name that can stand in a file: anything else from the network is dropped.
fn name(message: &Message, code: u8) -> Option<String> {
    let text = str::from_utf8(message.option(code)?).ok()?;
    let text = text.trim_end_matches('\0');
    is_name(text).then(|| text.to_owned())
}

/// Whether this is a host or domain name (RFC 1123 section 2.1).
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const SERVER: [u8; 4] = [10, 0, 0, 1];

    fn reply(client: &Client, kind: u8, more: &[(u8, &[u8])]) -> Vec<u8> {
        let mut message = Message::request(MAC, client.xid);
        message.op = Op::Reply;
        message.yiaddr = Ipv4Addr::new(10, 0, 0, 9);
        for (code, value) in [(MESSAGE_TYPE, &[kind][..]), (SERVER_ID, &SERVER)]
            .iter()
            .chain(more)
        {
            message.options.push(DhcpOption {
                code: *code,
                value: value.to_vec(),
            });
        }
        message.encode(MESSAGE_BYTES)
    }

    fn kind(datagram: &[u8]) -> Option<MessageType> {
        Message::decode(datagram).unwrap().message_type()
    }

    #[test]
    fn discover_offer_request_ack() {
        let mut client = Client::new(MAC, 0x1234_5678_9abc_def0);
        let discover = Message::decode(&client.poll().0).unwrap();
        assert!(discover.broadcast && discover.message_type() == Some(MessageType::Discover));
        assert_eq!(discover.option(CLIENT_ID), Some(&[1, 2, 0, 0, 0, 0, 1][..]));
        let offer = reply(&client, 2, &[]);
        assert_eq!(client.receive(&offer), Answer::SendNow);
        let request = Message::decode(&client.poll().0).unwrap();
        assert_eq!(request.option(REQUESTED), Some(&[10, 0, 0, 9][..]));
        let more = [
            (SUBNET, &[255, 255, 255, 0][..]),
            (ROUTER, &SERVER),
            (HOSTNAME, b"a b"),
        ];
        let ack = reply(&client, 5, &more);
        let Answer::Lease(lease) = client.receive(&ack) else {
            panic!("no lease");
        };
        assert_eq!((lease.prefix, lease.gateway), (24, Some(SERVER.into())));
        assert_eq!(
            (lease.hostname, lease.next_server),
            (None, Some(SERVER.into()))
        );
    }

    #[test]
    fn a_nak_or_silence_starts_again() {
        let mut client = Client::new(MAC, 1);
        client.poll();
        let offer = reply(&client, 2, &[]);
        client.receive(&offer);
        for _ in 0..REQUESTS_MAX {
            assert_eq!(kind(&client.poll().0), Some(MessageType::Request));
        }
        assert_eq!(kind(&client.poll().0), Some(MessageType::Discover));
        client.receive(&offer);
        let nak = reply(&client, 6, &[]);
        assert_eq!(client.receive(&nak), Answer::None);
        assert_eq!(kind(&client.poll().0), Some(MessageType::Discover));
    }

    #[test]
    fn foreign_messages_are_ignored() {
        let mut client = Client::new(MAC, 1);
        let other = Client::new(MAC, 2);
        assert_eq!(client.receive(&reply(&other, 2, &[])), Answer::None);
        assert_eq!(client.receive(b"noise"), Answer::None);
        let ack = reply(&client, 5, &[]);
        assert_eq!(client.receive(&ack), Answer::None);
    }
}
