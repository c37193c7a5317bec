//! Renews the lease that the root hangs on where nobody else does (RFC 2131 section 4.4.5).
//!
//! A distribution's network manager, once it has taken the interface over, has a socket on port 68 of
//! the address. While somebody has one the agent keeps out; where nobody does, as with ifupdown, or
//! without any manager, it asks the server itself. A socket on port 68 of no address is that of a
//! client for other interfaces, such as dhcpcd. The address stays whatever comes of it: without it
//! there is no root.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
use wire::dhcp4::{CLIENT_PORT, Message, MessageType, Op, SERVER_PORT};
use wire::mac::Mac;
use wire::stage::Stage;

use crate::boot::random;
use crate::dhcp;
use crate::network::Configured;
use crate::report::{Reporter, monotonic_us};
use crate::sys;

/// The sockets of the machine (proc_net(5)).
const SOCKETS_PATH: &str = "/proc/net/udp";
/// Where `/init` leaves the lease for the agent. A lease without an end leaves none.
pub const LEASE_PATH: &str = "/run/slate/lease";
/// How long one request is waited for.
const PATIENCE: Duration = Duration::from_secs(4);
/// The shortest and the longest time between two requests.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// A lease with an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    interface: String,
    mac: Mac,
    address: Ipv4Addr,
    /// Whom to ask before all others.
    server: Ipv4Addr,
    /// How long it lasts, in seconds.
    seconds: u32,
    /// When it began, in microseconds since the kernel's start.
    since_us: u64,
}

/// What came of a request.
enum Outcome {
    /// Another DHCP client holds the address.
    Taken,
    /// It lasts so many seconds from now on; `None` is for ever.
    Renewed(Option<u32>),
    /// The server says that it is not this node's.
    Refused,
    /// No answer.
    Silence,
}

impl Held {
    /// The lease of a network that was just configured, if it ends.
    pub fn of(network: &Configured) -> Option<Held> {
        let lease = &network.lease;
        Some(Held {
            interface: network.link.name.clone(),
            mac: network.link.mac,
            address: lease.address,
            server: lease.server?,
            seconds: lease.seconds.filter(|_| network.dhcp)?,
            since_us: network.since_us,
        })
    }

    /// As a line for the agent.
    pub fn line(&self) -> String {
        format!(
            "{} {} {} {} {} {}\n",
            self.interface, self.mac, self.address, self.server, self.seconds, self.since_us
        )
    }

    fn parse(line: &str) -> Option<Held> {
        let mut words = line.split_whitespace();
        Some(Held {
            interface: words.next()?.to_owned(),
            mac: words.next()?.parse().ok()?,
            address: words.next()?.parse().ok()?,
            server: words.next()?.parse().ok()?,
            seconds: words.next()?.parse().ok()?,
            since_us: words.next()?.parse().ok()?,
        })
    }

    /// How long after its begin something is due that is due after `eighths` of it.
    fn part(&self, eighths: u32) -> Duration {
        Duration::from_secs(self.seconds.into()) * eighths / 8
    }

    fn age(&self) -> Duration {
        Duration::from_micros(monotonic_us().saturating_sub(self.since_us))
    }

    /// How long to wait after a request in vain: half of what is left (RFC 2131 section 4.4.5).
    fn pause(&self) -> Duration {
        let left = self.part(7).saturating_sub(self.age());
        (left / 2).clamp(PAUSE.0, PAUSE.1)
    }

    fn request(&self, xid: u32) -> Message {
        let mut message = Message::request(self.mac, xid);
        message.ciaddr = self.address;
        message.broadcast = false;
        message.push(dhcp::MESSAGE_TYPE, [MessageType::Request.code()]);
        message.push(dhcp::CLIENT_ID, [&[1][..], &self.mac.0].concat());
        message.push(dhcp::PARAMETERS, [dhcp::SUBNET, dhcp::LEASE_TIME]);
        message
    }

    /// Asks the server, or everybody once it has been silent for long.
    fn ask(&self) -> io::Result<Outcome> {
        if is_client_at(self.address, &fs::read_to_string(SOCKETS_PATH)?) {
            return Ok(Outcome::Taken);
        }
        let socket = self.socket()?;
        let xid = random() as u32;
        let everybody = self.age() >= self.part(7);
        let server = if everybody {
            Ipv4Addr::BROADCAST
        } else {
            self.server
        };
        let datagram = self.request(xid).encode(dhcp::MESSAGE_BYTES);
        socket.send_to(&datagram, (server, SERVER_PORT))?;
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Outcome::Silence);
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(outcome) = self.read(&buffer[..length], xid) {
                        return Ok(outcome);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What a datagram says, if it is an answer to that request.
    fn read(&self, datagram: &[u8], xid: u32) -> Option<Outcome> {
        let message = Message::decode(datagram).ok()?;
        if message.op != Op::Reply || message.xid != xid || message.mac != self.mac {
            return None;
        }
        match message.message_type()? {
            MessageType::Ack if message.yiaddr == self.address => {
                Some(Outcome::Renewed(dhcp::lease_seconds(&message)))
            }
            MessageType::Nak => Some(Outcome::Refused),
            _ => None,
        }
    }

    /// Shares the port with clients for other interfaces, which all allow it; answers to this address
    /// come to the socket that names it.
    fn socket(&self) -> io::Result<UdpSocket> {
        let fd = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        sockopt::set_socket_broadcast(&fd, true)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        sys::bind_to_device(&fd, &self.interface)?;
        bind(&fd, &SocketAddrV4::new(self.address, CLIENT_PORT))?;
        Ok(UdpSocket::from(fd))
    }
}

/// Renews the lease that `/init` left for as long as the node runs, in a thread of its own.
pub fn keep(report: &'static Reporter) {
    let text = fs::read_to_string(LEASE_PATH).unwrap_or_default();
    if let Some(held) = Held::parse(&text) {
        thread::spawn(move || renew(held, report));
    }
}

/// Whether a socket has port 68 of that address, by the kernel's list of them.
fn is_client_at(address: Ipv4Addr, sockets: &str) -> bool {
    sockets.lines().skip(1).any(|line| {
        let local = line
            .split_whitespace()
            .nth(1)
            .and_then(|it| it.split_once(':'));
        local.is_some_and(|(its, port)| {
            // The address as a number of this machine's byte order, though it is in the network's.
            u32::from_str_radix(its, 16).is_ok_and(|it| it.to_ne_bytes() == address.octets())
                && u16::from_str_radix(port, 16) == Ok(CLIENT_PORT)
        })
    })
}

fn renew(mut held: Held, report: &Reporter) {
    let mut told = false;
    let mut wait = held.part(4).saturating_sub(held.age());
    loop {
        thread::sleep(wait);
        let asked_us = monotonic_us();
        let outcome = held.ask().unwrap_or_else(|error| {
            report.log(&format!("renewing {}: {error}", held.address));
            Outcome::Silence
        });
        let was_told = told;
        let text = match outcome {
            Outcome::Taken => {
                held.since_us = asked_us;
                wait = held.part(4).max(PAUSE.0);
                told = false;
                continue;
            }
            Outcome::Renewed(None) => return,
            Outcome::Renewed(Some(seconds)) => {
                held.seconds = seconds;
                held.since_us = asked_us;
                wait = held.part(4).max(PAUSE.0);
                format!(
                    "no network manager renews {}: the agent does",
                    held.interface
                )
            }
            Outcome::Refused => {
                wait = PAUSE.1;
                report.failure(Stage::MultiUser, &refused(&held));
                continue;
            }
            Outcome::Silence => {
                wait = held.pause();
                continue;
            }
        };
        told = true;
        if !was_told {
            report.info(Stage::MultiUser, &text);
        }
    }
}

fn refused(held: &Held) -> String {
    format!(
        "the DHCP server refuses {}, which the root hangs on and which therefore stays: \
         reboot the node, or give it this address again",
        held.address
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn held() -> Held {
        Held {
            interface: "eth0".into(),
            mac: MAC,
            address: [10, 0, 0, 9].into(),
            server: [10, 0, 0, 1].into(),
            seconds: 60,
            since_us: 1,
        }
    }

    fn answer(kind: MessageType, address: [u8; 4], seconds: u32) -> Vec<u8> {
        let mut message = Message::request(MAC, 7);
        message.op = Op::Reply;
        message.yiaddr = address.into();
        message.push(dhcp::MESSAGE_TYPE, [kind.code()]);
        message.push(dhcp::LEASE_TIME, seconds.to_be_bytes());
        message.encode(dhcp::MESSAGE_BYTES)
    }

    #[test]
    fn the_line_is_read_as_it_was_written() {
        assert_eq!(Held::parse(&held().line()), Some(held()));
        assert_eq!(Held::parse("eth0 02:00:00:00:00:01 10.0.0.9"), None);
        assert_eq!(Held::parse(""), None);
    }

    #[test]
    fn a_request_to_renew_names_the_address_as_its_own() {
        // RFC 2131 table 5: ciaddr is the address, and neither option 50 nor 54 is there.
        let message = held().request(7);
        assert_eq!(message.ciaddr, Ipv4Addr::new(10, 0, 0, 9));
        assert!(!message.broadcast);
        assert_eq!(message.option(50), None);
        assert_eq!(message.option(54), None);
    }

    #[test]
    fn only_a_client_at_the_address_keeps_the_agent_out() {
        // proc_net(5): the address as it lies in memory, read as a number.
        let [a, b] = [[10, 0, 0, 9], [0; 4]].map(u32::from_ne_bytes);
        let sockets = |address: u32, port: u16| {
            format!(
                "  sl  local_address rem_address   st\n  \
                 5: {address:08X}:{port:04X} 00000000:0000 07 00000000:00000000\n"
            )
        };
        let held = Ipv4Addr::new(10, 0, 0, 9);
        assert!(is_client_at(held, &sockets(a, 68)));
        assert!(!is_client_at(held, &sockets(a, 67)));
        // dhcpcd's, which has been told to leave the interface alone.
        assert!(!is_client_at(held, &sockets(b, 68)));
        assert!(!is_client_at(held, "noise\nnoise\n"));
    }

    #[test]
    fn only_answers_to_the_request_count() {
        let held = held();
        let own = [10, 0, 0, 9];
        let read = |datagram: &[u8], xid| held.read(datagram, xid);
        let ack = answer(MessageType::Ack, own, 90);
        assert!(matches!(read(&ack, 7), Some(Outcome::Renewed(Some(90)))));
        assert!(read(&ack, 8).is_none());
        let forever = answer(MessageType::Ack, own, u32::MAX);
        assert!(matches!(read(&forever, 7), Some(Outcome::Renewed(None))));
        let nak = answer(MessageType::Nak, [0; 4], 0);
        assert!(matches!(read(&nak, 7), Some(Outcome::Refused)));
        let other = answer(MessageType::Ack, [10, 0, 0, 8], 90);
        assert!(read(&other, 7).is_none());
        assert!(read(b"noise", 7).is_none());
    }
}
