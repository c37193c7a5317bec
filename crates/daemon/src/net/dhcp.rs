//! DHCP's sockets: one for each interface, bound to it, so that a broadcast comes in and goes out
//! where it should.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;

use engine::{DhcpDestination, Input, InterfaceId};
use socket2::{Domain, Protocol, Socket, Type};
use wire::dhcp4::{CLIENT_PORT, SERVER_PORT};

use crate::Error;
use crate::hub::{Inbox, offer};
use crate::net::bind_failed;

/// Largest datagram taken in; clients' messages are far smaller.
const DATAGRAM_BYTES: usize = 4096;

/// The socket of one interface.
#[derive(Clone)]
pub struct Port {
    socket: Arc<UdpSocket>,
}

impl Port {
    /// Opens port 67 on an interface.
    pub fn open(interface: &str) -> Result<Port, Error> {
        let socket =
            open(interface).map_err(|error| bind_failed(error, SERVER_PORT, "udp", "DHCP"))?;
        Ok(Port {
            socket: Arc::new(socket),
        })
    }

    /// Hands every datagram to the hub until that is gone.
    pub fn receive(&self, interface: InterfaceId, hub: &Inbox) {
        let mut buffer = [0; DATAGRAM_BYTES];
        loop {
            let (length, source) = match self.socket.recv_from(&mut buffer) {
                Ok((length, SocketAddr::V4(source))) => (length, source),
                Ok(_) => continue,
                // An ICMP error for an earlier reply, or an interface that is down for a while.
                Err(error) => {
                    tracing::debug!(%error, "receiving DHCP");
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    continue;
                }
            };
            let packet = buffer[..length].to_vec();
            if !offer(
                hub,
                Input::Dhcp {
                    interface,
                    source,
                    packet,
                },
            ) {
                return;
            }
        }
    }

    /// Sends a reply. A client without an address yet gets a broadcast: its own frame address is
    /// in the message, and no ARP entry need be forged for it.
    pub fn send(&self, destination: DhcpDestination, packet: &[u8]) {
        let to = match destination {
            DhcpDestination::Relay(relay) => SocketAddrV4::new(relay, SERVER_PORT),
            DhcpDestination::Unicast(client) => SocketAddrV4::new(client, CLIENT_PORT),
            DhcpDestination::Broadcast | DhcpDestination::Hardware { .. } => {
                SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
            }
        };
        if let Err(error) = self.socket.send_to(packet, to) {
            tracing::warn!(%error, %to, "a DHCP reply could not be sent");
        }
    }
}

fn open(interface: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT).into())?;
    Ok(socket.into())
}
