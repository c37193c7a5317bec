//! Listens to what DHCP servers say to anybody on a wire. No port is taken: this machine may be a
//! DHCP client itself, and its firewall does not matter.

use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::time::Duration;

use engine::{Input, InterfaceId};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use wire::dhcp4::{CLIENT_PORT, server_payload};

use crate::hub::{Inbox, offer};

/// IPv4 as Ethernet numbers it (linux/if_ether.h, `ETH_P_IP`).
const IPV4: u16 = 0x0800;
/// Largest packet taken in.
const PACKET_BYTES: usize = 4096;

/// A tap on one interface.
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Opens a tap. Needs CAP_NET_RAW.
    pub fn open(interface: InterfaceId) -> io::Result<Watch> {
        let protocol = Protocol::from(i32::from(IPV4.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.attach_filter(&to_clients_on(interface))?;
        let watch = Watch { socket };
        watch.forget_unfiltered()?;
        Ok(watch)
    }

    /// Drops what came in before the filter was there.
    fn forget_unfiltered(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)?;
        while (&self.socket).read(&mut [0; 1]).is_ok() {}
        self.socket.set_nonblocking(false)
    }

    /// How long [`Watch::next`] waits at most.
    pub fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))
    }

    /// The next message to a DHCP client, with its sender; `None` where a packet was none.
    pub fn next(&self) -> io::Result<Option<(Ipv4Addr, Vec<u8>)>> {
        let mut buffer = [0; PACKET_BYTES];
        let length = (&self.socket).read(&mut buffer)?;
        let found = server_payload(&buffer[..length]);
        Ok(found.map(|(source, payload)| (source, payload.to_vec())))
    }

    /// Hands every message to the hub until that is gone.
    pub fn receive(&self, interface: InterfaceId, hub: &Inbox) {
        loop {
            match self.next() {
                Ok(Some((source, packet))) => {
                    let heard = Input::Overheard {
                        interface,
                        source,
                        packet,
                    };
                    if !offer(hub, heard) {
                        return;
                    }
                }
                Ok(None) => {}
                // An interface that is down for a while.
                Err(error) => {
                    tracing::debug!(%error, "listening to DHCP servers");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

/// A filter for UDP to the client port that came in on an interface, in the kernel's language
/// (linux/filter.h); offset 0 is the IP header.
fn to_clients_on(interface: InterfaceId) -> [SockFilter; 11] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF_BEHIND_HEADER: u16 = 0x48;
    const SKIP_HEADER: u16 = 0xb1;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const INTERFACE_INDEX: u32 = 0xffff_f008;
    const UDP: u32 = 17;
    let load = |code, at| SockFilter::new(code, 0, 0, at);
    [
        load(LOAD_WORD, INTERFACE_INDEX),
        SockFilter::new(JUMP_IF_EQUAL, 0, 8, interface.0),
        load(LOAD_BYTE, 9),
        SockFilter::new(JUMP_IF_EQUAL, 0, 6, UDP),
        load(LOAD_HALF, 6),
        SockFilter::new(JUMP_IF_SET, 4, 0, 0x1fff),
        load(SKIP_HEADER, 0),
        load(LOAD_HALF_BEHIND_HEADER, 2),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, CLIENT_PORT.into()),
        SockFilter::new(RETURN, 0, 0, PACKET_BYTES as u32),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
