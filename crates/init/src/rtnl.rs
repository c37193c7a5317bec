//! The route netlink messages that `/init` needs: links, one address, one route.
//!
//! Building and parsing are pure and never panic; [`Socket`] moves the bytes.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};
use wire::mac::Mac;

const RTMGRP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE_REPLACE: u16 = 0x500;
const NLM_F_CREATE_NEW: u16 = 0x600;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 0x80;
const IFF_LOWER_UP: u32 = 0x10000;
const ARPHRD_ETHER: u16 = 1;
const HEADER_BYTES: usize = 16;

/// What a link message says about an Ethernet interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of the interface.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address.
    pub mac: Mac,
    /// Whether somebody set it up.
    pub up: bool,
    /// Whether it is up and has a carrier.
    pub carrier: bool,
}

/// One received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// An Ethernet interface appeared or changed.
    Link(Link),
    /// An interface went away.
    Gone(u32),
    /// The answer to a request: 0 or an errno.
    Ack(i32),
    /// Anything else.
    Other,
}

/// A route netlink socket.
pub struct Socket(OwnedFd);

impl Socket {
    /// A socket for requests, and for link events where `events` is set.
    pub fn open(events: bool) -> io::Result<Socket> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        let groups = if events { RTMGRP_LINK } else { 0 };
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Socket(socket))
    }

    /// Asks for all links; they arrive as messages.
    pub fn request_links(&self) -> io::Result<()> {
        self.send(&message(
            RTM_GETLINK,
            NLM_F_REQUEST | NLM_F_DUMP,
            &[0; 16],
            &[],
        ))
    }

    /// Sends a message and waits for the kernel's answer.
    pub fn call(&self, message: &[u8]) -> io::Result<()> {
        self.send(message)?;
        loop {
            for answer in self.receive()? {
                match answer {
                    Message::Ack(0) => return Ok(()),
                    Message::Ack(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    _ => {}
                }
            }
        }
    }

    /// The next messages; waits for them. Events that did not fit into the socket's buffer are
    /// lost: then asks for all links again.
    pub fn receive(&self) -> io::Result<Vec<Message>> {
        let mut buffer = vec![0; 65536];
        match recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => Ok(parse(&buffer[..length])),
            Err(Errno::NOBUFS) => self.request_links().map(|()| Vec::new()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.0, message, SendFlags::empty(), &kernel)?;
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sets an interface up or down, and its MTU where one is given.
pub fn set_link(index: u32, up: bool, mtu: Option<u16>) -> Vec<u8> {
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&u32::from(up).to_ne_bytes());
    body[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    let mtu = mtu.map(|mtu| u32::from(mtu).to_ne_bytes());
    let attributes: Vec<(u16, &[u8])> = mtu.iter().map(|mtu| (IFLA_MTU, &mtu[..])).collect();
    message(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, &body, &attributes)
}

/// Makes an interface for one VLAN over another interface (linux/if_link.h, `IFLA_VLAN_ID`).
pub fn add_vlan(name: &str, id: u16, parent: u32) -> Vec<u8> {
    let name = [name.as_bytes(), &[0]].concat();
    let mut data = Vec::new();
    attribute(&mut data, IFLA_VLAN_ID, &id.to_ne_bytes());
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"vlan");
    attribute(&mut info, IFLA_INFO_DATA, &data);
    let parent = parent.to_ne_bytes();
    let attributes = [
        (IFLA_LINK, &parent[..]),
        (IFLA_IFNAME, &name[..]),
        (IFLA_LINKINFO, &info[..]),
    ];
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE_NEW;
    message(RTM_NEWLINK, flags, &[0; 16], &attributes)
}

/// Gives an interface an address for ever.
pub fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mut body = vec![libc::AF_INET as u8, prefix, 0, 0, 0, 0, 0, 0];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let mask = u32::from(wire::cmdline::netmask(prefix));
    let broadcast = Ipv4Addr::from(u32::from(address) | !mask).octets();
    let address = address.octets();
    let mut attributes = vec![(IFA_LOCAL, &address[..]), (IFA_ADDRESS, &address[..])];
    if prefix < 31 {
        attributes.push((IFA_BROADCAST, &broadcast[..]));
    }
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE_REPLACE;
    message(RTM_NEWADDR, flags, &body, &attributes)
}

/// The default route by `gateway`, on-link, so that it may lie outside the interface's network.
pub fn add_default_route(index: u32, gateway: Ipv4Addr) -> Vec<u8> {
    const RT_TABLE_MAIN: u8 = 254;
    const RTPROT_BOOT: u8 = 3;
    /// What systemd-networkd uses. Other network managers use less, so that their routes win over
    /// this one; one without a metric would win over all of theirs.
    const METRIC: u32 = 1024;
    const RTN_UNICAST: u8 = 1;
    const RTNH_F_ONLINK: u32 = 4;
    let mut body = vec![
        libc::AF_INET as u8,
        0,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        0,
        RTN_UNICAST,
    ];
    body.extend_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    let index = index.to_ne_bytes();
    let gateway = gateway.octets();
    let metric = METRIC.to_ne_bytes();
    let attributes = [
        (RTA_OIF, &index[..]),
        (RTA_GATEWAY, &gateway[..]),
        (RTA_PRIORITY, &metric[..]),
    ];
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE_REPLACE;
    message(RTM_NEWROUTE, flags, &body, &attributes)
}

fn message(kind: u16, flags: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    out[4..6].copy_from_slice(&kind.to_ne_bytes());
    out[6..8].copy_from_slice(&flags.to_ne_bytes());
    out[8..12].copy_from_slice(&1u32.to_ne_bytes());
    out.extend_from_slice(body);
    for (kind, value) in attributes {
        attribute(&mut out, *kind, value);
    }
    let length = out.len() as u32;
    out[..4].copy_from_slice(&length.to_ne_bytes());
    out
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The messages of one datagram.
pub fn parse(mut bytes: &[u8]) -> Vec<Message> {
    let mut out = Vec::new();
    while let Some(length) = u32_at(bytes, 0).map(|length| length as usize) {
        let Some(whole) = bytes.get(..length).filter(|_| length >= HEADER_BYTES) else {
            break;
        };
        out.push(parse_one(
            u16_at(whole, 4).unwrap_or(0),
            &whole[HEADER_BYTES..],
        ));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    out
}

fn parse_one(kind: u16, body: &[u8]) -> Message {
    let index = u32_at(body, 4);
    match (kind, index) {
        (NLMSG_DONE, _) => Message::Other,
        (NLMSG_ERROR, _) => u32_at(body, 0).map_or(Message::Other, |code| {
            Message::Ack((code as i32).wrapping_neg())
        }),
        (RTM_DELLINK, Some(index)) => Message::Gone(index),
        (RTM_NEWLINK, Some(index)) => link(index, body).map_or(Message::Other, Message::Link),
        _ => Message::Other,
    }
}

fn link(index: u32, body: &[u8]) -> Option<Link> {
    let flags = u32_at(body, 8)?;
    if u16_at(body, 2)? != ARPHRD_ETHER || flags & IFF_NOARP != 0 {
        return None;
    }
    let (mut name, mut mac) = (None, None);
    let mut rest = body.get(16..)?;
    while let Some(length) = u16_at(rest, 0).map(usize::from) {
        let Some(value) = rest.get(4..length) else {
            break;
        };
        match u16_at(rest, 2)? {
            IFLA_ADDRESS => mac = value.try_into().ok().map(Mac),
            IFLA_IFNAME => name = str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Some(Link {
        index,
        name: name?.to_owned(),
        mac: mac?,
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newlink(flags: u32, kind: u16) -> Vec<u8> {
        let mut body = vec![0; 16];
        body[2..4].copy_from_slice(&kind.to_ne_bytes());
        body[4..8].copy_from_slice(&7u32.to_ne_bytes());
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        let mac = [2, 0, 0, 0, 0, 1];
        message(
            RTM_NEWLINK,
            0,
            &body,
            &[(IFLA_IFNAME, b"eth0\0"), (IFLA_ADDRESS, &mac)],
        )
    }

    #[test]
    fn links_are_read() {
        let mut datagram = newlink(IFF_UP | IFF_LOWER_UP, ARPHRD_ETHER);
        datagram.extend(newlink(0, 772));
        let link = Link {
            index: 7,
            name: "eth0".into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            up: true,
            carrier: true,
        };
        assert_eq!(parse(&datagram), vec![Message::Link(link), Message::Other]);
    }

    #[test]
    fn answers_are_read() {
        let body = (-17i32).to_ne_bytes();
        assert_eq!(
            parse(&message(NLMSG_ERROR, 0, &body, &[])),
            vec![Message::Ack(17)]
        );
    }

    #[test]
    fn truncation_is_harmless() {
        let datagram = newlink(1, ARPHRD_ETHER);
        for length in 0..datagram.len() {
            parse(&datagram[..length]);
        }
    }

    #[test]
    fn an_address_carries_its_broadcast() {
        let bytes = add_address(7, Ipv4Addr::new(10, 1, 2, 3), 24);
        assert!(bytes.windows(4).any(|it| it == [10, 1, 2, 255]));
        assert_eq!(bytes.len() % 4, 0);
    }
}
