//! Is another DHCP server on the network? Asked as a client asks, and judged with what else speaks
//! for one: silence alone proves nothing, as servers may answer only those that they know.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use engine::{DhcpMode, Record};
use socket2::{Domain, Protocol, Socket, Type};
use wire::dhcp4::{CLIENT_PORT, MAX_BUDGET_BYTES, Message, MessageType, Op, SERVER_PORT, option};
use wire::mac::Mac;

use crate::net::interface;
use crate::net::watch::Watch;
use crate::state::State;

/// When each DISCOVER is sent. Servers try an address before they offer it: ISC's for one second,
/// dnsmasq for up to four.
const ASKED_AT: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(1000),
    Duration::from_millis(2500),
];
/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long further servers are waited for after the first answer.
const MORE: Duration = Duration::from_millis(300);
/// Most servers and neighbours that are named.
const SHOWN_MAX: usize = 8;

/// What was found on a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Servers that answered.
    pub servers: Vec<Ipv4Addr>,
    /// Whether this machine's way to other networks leads through this one.
    pub default_route: bool,
    /// Machines there whose addresses are not from here.
    pub neighbours: Vec<Ipv4Addr>,
}

/// What to do there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Serve beside these servers.
    Beside(Vec<Ipv4Addr>),
    /// Be the only server.
    Alone,
    /// Nobody answered, but somebody may have given addresses here.
    Unclear(Vec<Doubt>),
}

/// Why silence does not mean that there is no other server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// The default route leads there.
    DefaultRoute,
    /// Machines there have addresses that are not from here.
    Neighbours(Vec<Ipv4Addr>),
}

impl Choice {
    /// The mode that was chosen, if one was.
    pub fn mode(&self) -> Option<DhcpMode> {
        match self {
            Self::Beside(_) => Some(DhcpMode::Proxy),
            Self::Alone => Some(DhcpMode::Authoritative),
            Self::Unclear(_) => None,
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute => write!(f, "this machine's default route leads there"),
            Self::Neighbours(addresses) => write!(
                f,
                "machines there have addresses that are not from here ({})",
                listed(addresses)
            ),
        }
    }
}

/// Addresses in a line, the first of them where there are many.
pub fn listed(addresses: &[Ipv4Addr]) -> String {
    let shown = addresses.iter().take(SHOWN_MAX).map(Ipv4Addr::to_string);
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if addresses.len() > SHOWN_MAX {
        text += ", …";
    }
    text
}

/// Judges.
pub fn choose(found: Surroundings) -> Choice {
    if !found.servers.is_empty() {
        return Choice::Beside(found.servers);
    }
    let mut doubts = Vec::new();
    if found.default_route {
        doubts.push(Doubt::DefaultRoute);
    }
    if !found.neighbours.is_empty() {
        doubts.push(Doubt::Neighbours(found.neighbours));
    }
    match doubts.is_empty() {
        true => Choice::Alone,
        false => Choice::Unclear(doubts),
    }
}

/// Addresses that are asked for an answer at most: the kernel keeps track of so many neighbours.
const ASKED_MAX: u32 = 510;
/// A port where nobody listens (RFC 863): the question is whether the address is taken.
const DISCARD_PORT: u16 = 9;

/// Looks around on an interface, for a daemon with its state in `state_dir`. Takes seconds where
/// no server answers, and the neighbours have as long. Where something speaks for a server, it is asked
/// once more: one that is busy, or tries addresses for long, may answer late.
pub fn look(name: &str, state_dir: &Path) -> io::Result<Surroundings> {
    let found = look_once(name, state_dir)?;
    match choose(found.clone()) {
        Choice::Unclear(_) => look_once(name, state_dir),
        Choice::Beside(_) | Choice::Alone => Ok(found),
    }
}

fn look_once(name: &str, state_dir: &Path) -> io::Result<Surroundings> {
    let interface = interface::find(name).map_err(io::Error::other)?;
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    knock(name, &interface);
    let mac = fs::read_to_string(format!("/sys/class/net/{name}/address"))?;
    let mac: Mac = mac.trim().parse().map_err(io::Error::other)?;
    let servers = servers(name, &interface, mac)?;
    let table = fs::read_to_string("/proc/net/arp").unwrap_or_default();
    let ours = given(state_dir);
    let is_foreign = |it: &Ipv4Addr| interface.contains(*it) && !ours.contains(it);
    Ok(Surroundings {
        servers,
        default_route: has_default_route(&routes, name),
        neighbours: neighbours(&table, name)
            .into_iter()
            .filter(is_foreign)
            .collect(),
    })
}

/// Has the kernel ask by ARP who is there, in the network or, where that is large, around our own
/// address: it does so for whatever is to be sent to them.
fn knock(name: &str, interface: &engine::Interface) {
    let own = u32::from(interface.address);
    let first = u32::from(interface.network()).max(own & !(ASKED_MAX + 1));
    let last = u32::from(interface.broadcast()).min(own | (ASKED_MAX + 1));
    let hosts = (first..=last).map(Ipv4Addr::from);
    let hosts: Vec<Ipv4Addr> = hosts.filter(|it| interface.is_assignable(*it)).collect();
    // What waits for an answer to ARP fills its socket's buffer.
    for some in hosts.chunks(128) {
        let Ok(socket) = bound_to(name) else { return };
        let _ = socket.set_nonblocking(true);
        for host in some {
            let _ = socket.send_to(&[], &SocketAddrV4::new(*host, DISCARD_PORT).into());
        }
    }
}

/// Asks for an address as `mac`, a client that takes none: the servers that answer, but for this
/// machine itself.
pub(crate) fn servers(
    name: &str,
    interface: &engine::Interface,
    mac: Mac,
) -> io::Result<Vec<Ipv4Addr>> {
    let watch = Watch::open(interface.id)?;
    let socket = client(name)?;
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let xid = u32::from_ne_bytes(random);
    let started = Instant::now();
    let mut due = ASKED_AT.into_iter();
    let mut next = due.next();
    let mut servers = BTreeSet::new();
    let mut end = PATIENCE;
    while started.elapsed() < end {
        if next.is_some_and(|at| at <= started.elapsed()) {
            let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
            socket.send_to(&discover(mac, xid), to)?;
            next = due.next();
        }
        let until = next.map_or(end, |at| at.min(end));
        let wait = until.saturating_sub(started.elapsed());
        watch.set_patience(wait.max(Duration::from_millis(1)))?;
        match watch.next() {
            Ok(Some((source, packet))) => {
                let answer = answer(&packet, mac, xid, source);
                servers.extend(answer.filter(|it| *it != interface.address));
            }
            Ok(None) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        if !servers.is_empty() {
            end = end.min(started.elapsed() + MORE);
            next = None;
        }
        if servers.len() >= SHOWN_MAX {
            break;
        }
    }
    Ok(servers.into_iter().collect())
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// A socket to ask from: the client port where this machine's own client leaves it.
pub(crate) fn client(name: &str) -> io::Result<UdpSocket> {
    let socket = bound_to(name)?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    let port = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
    // Answers are heard without it.
    let _ = socket.bind(&port.into());
    Ok(socket.into())
}

fn bound_to(name: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(name.as_bytes()))?;
    Ok(socket)
}

fn discover(mac: Mac, xid: u32) -> Vec<u8> {
    let mut message = Message::request(mac, xid);
    message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
    let wanted = [option::SUBNET_MASK, option::ROUTER, option::DNS];
    message.push(option::PARAMETERS, wanted);
    message.encode(MAX_BUDGET_BYTES)
}

/// The server that offers an address, or refuses one.
fn answer(packet: &[u8], mac: Mac, xid: u32, source: Ipv4Addr) -> Option<Ipv4Addr> {
    let message = Message::decode(packet).ok()?;
    let is_answer = message.op == Op::Reply && message.xid == xid && message.mac == mac;
    let gives = !message.yiaddr.is_unspecified();
    let refuses = message.message_type() == Some(MessageType::Nak);
    let server = message.address_option(option::SERVER_ID).unwrap_or(source);
    (is_answer && (gives || refuses)).then_some(server)
}

/// Whether a route to everywhere goes out on `name`, by `/proc/net/route`.
fn has_default_route(table: &str, name: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&name)
            && fields.get(1) == Some(&"00000000")
            && fields.get(7) == Some(&"00000000")
    })
}

/// Machines that answered ARP on `name`, by `/proc/net/arp`.
fn neighbours(table: &str, name: &str) -> Vec<Ipv4Addr> {
    /// `ATF_COM` (linux/if_arp.h): the entry has an Ethernet address.
    const COMPLETE: u32 = 2;
    let entries = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let flags = fields.get(2)?.trim_start_matches("0x");
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_there = fields.get(5) == Some(&name) && flags & COMPLETE != 0;
        is_there.then(|| fields.first()?.parse().ok()).flatten()
    });
    let mut addresses: Vec<Ipv4Addr> = entries.collect();
    addresses.sort_unstable();
    addresses
}

/// Addresses that an earlier daemon gave, or was told to give.
fn given(state_dir: &Path) -> BTreeSet<Ipv4Addr> {
    if !state_dir.join("state.db").exists() {
        return BTreeSet::new();
    }
    let records = State::open(state_dir).and_then(|state| state.records());
    let addresses = records.unwrap_or_default().into_iter();
    addresses
        .filter_map(|record| match record {
            Record::Lease(lease) => lease.mac.map(|_| lease.address),
            Record::Node(node) => node.address,
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn silence_is_believed_only_where_nothing_speaks_against_it() {
        let found = Surroundings::default();
        assert_eq!(choose(found.clone()).mode(), Some(DhcpMode::Authoritative));
        let routed = Surroundings {
            default_route: true,
            neighbours: vec![SERVER],
            ..found
        };
        let unclear = choose(routed.clone());
        assert_eq!(unclear.mode(), None);
        let Choice::Unclear(doubts) = unclear else {
            panic!("{unclear:?}");
        };
        assert_eq!(
            doubts[0].to_string(),
            "this machine's default route leads there"
        );
        assert_eq!(
            doubts[1].to_string(),
            "machines there have addresses that are not from here (10.0.0.1)"
        );
        let answered = Surroundings {
            servers: vec![SERVER],
            ..routed
        };
        assert_eq!(choose(answered), Choice::Beside(vec![SERVER]));
    }

    #[test]
    fn routes_and_neighbours_as_the_kernel_lists_them() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert!(has_default_route(routes, "eth0") && !has_default_route(routes, "eth1"));
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.0.0.9         0x1         0x2         52:54:00:00:00:09     *        eth1\n\
                     10.0.0.3         0x1         0x6         52:54:00:00:00:03     *        eth1\n\
                     10.0.0.7         0x1         0x0         00:00:00:00:00:00     *        eth1\n\
                     10.0.1.1         0x1         0x2         52:54:00:00:00:01     *        eth0\n";
        let found = neighbours(table, "eth1");
        assert_eq!(
            found,
            [Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 9)]
        );
        assert!(neighbours("", "eth1").is_empty());
    }

    #[test]
    fn an_answer_is_ours_and_gives_or_refuses() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let mut offer = Message::request(mac, 7);
        (offer.op, offer.yiaddr) = (Op::Reply, [10, 0, 0, 9].into());
        offer.push(option::MESSAGE_TYPE, [MessageType::Offer.code()]);
        let source = Ipv4Addr::new(10, 0, 0, 2);
        let heard =
            |message: &Message, xid| answer(&message.encode(MAX_BUDGET_BYTES), mac, xid, source);
        assert_eq!(heard(&offer, 7), Some(source));
        assert_eq!(heard(&offer, 8), None);
        offer.push(option::SERVER_ID, SERVER.octets());
        assert_eq!(heard(&offer, 7), Some(SERVER));
        // A boot server's offer has no address.
        offer.yiaddr = Ipv4Addr::UNSPECIFIED;
        assert_eq!(heard(&offer, 7), None);
        offer.op = Op::Request;
        assert_eq!(heard(&offer, 7), None);
        assert_eq!(answer(b"noise", mac, 7, source), None);
    }
}
