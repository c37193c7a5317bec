//! DHCP's sockets: one for each interface and port, bound to the interface, so that a broadcast
//! comes in and goes out where it should.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;

use engine::{DhcpDestination, DhcpMode, Input, InterfaceId};
use socket2::{Domain, Protocol, Socket, Type};
use wire::dhcp4::{BOOT_SERVER_PORT, CLIENT_PORT, SERVER_PORT};

use crate::Error;
use crate::hub::{Inbox, offer};
use crate::net::bind_failed;

/// Largest datagram taken in; clients' messages are far smaller.
const DATAGRAM_BYTES: usize = 4096;

/// The sockets of one interface.
#[derive(Clone)]
pub struct Port {
    server: Arc<UdpSocket>,
    /// Beside another server, firmware may ask on a port of its own.
    boot_server: Option<Arc<UdpSocket>>,
}

impl Port {
    /// Opens what the mode needs on an interface.
    pub fn open(interface: &str, mode: DhcpMode) -> Result<Option<Port>, Error> {
        let open = |port, purpose| match open(interface, port) {
            Ok(socket) => Ok(Arc::new(socket)),
            Err(error) => Err(bind_failed(error, port, "udp", purpose)),
        };
        let with_boot_server = match mode {
            DhcpMode::Authoritative => false,
            DhcpMode::Proxy => true,
            DhcpMode::Off => return Ok(None),
        };
        Ok(Some(Port {
            server: open(SERVER_PORT, "DHCP")?,
            boot_server: with_boot_server
                .then(|| open(BOOT_SERVER_PORT, "proxyDHCP"))
                .transpose()?,
        }))
    }

    /// Hands every datagram to the hub, by threads that end with it.
    pub fn receive(&self, interface: InterfaceId, hub: &Inbox) {
        let spawn = |socket: &Arc<UdpSocket>, input: fn(_, _, _) -> Input| {
            let (socket, hub) = (Arc::clone(socket), hub.clone());
            std::thread::spawn(move || {
                receive(&socket, &hub, |source, packet| {
                    input(interface, source, packet)
                });
            });
        };
        spawn(&self.server, |interface, source, packet| Input::Dhcp {
            interface,
            source,
            packet,
        });
        if let Some(socket) = &self.boot_server {
            spawn(socket, |interface, source, packet| Input::BootServer {
                interface,
                source,
                packet,
            });
        }
    }

    /// Sends a reply. A client without an address yet gets a broadcast: its own frame address is
    /// in the message, and no ARP entry need be forged for it.
    pub fn send(&self, destination: DhcpDestination, packet: &[u8]) {
        let mut socket = &self.server;
        let to = match destination {
            DhcpDestination::Relay(relay) => SocketAddrV4::new(relay, SERVER_PORT),
            DhcpDestination::Unicast(client) => SocketAddrV4::new(client, CLIENT_PORT),
            DhcpDestination::Broadcast | DhcpDestination::Hardware { .. } => {
                SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
            }
            DhcpDestination::Asker(client) => {
                socket = self.boot_server.as_ref().unwrap_or(socket);
                client
            }
        };
        if let Err(error) = socket.send_to(packet, to) {
            tracing::warn!(%error, %to, "a DHCP reply could not be sent");
        }
    }
}

fn receive(socket: &UdpSocket, hub: &Inbox, input: impl Fn(SocketAddrV4, Vec<u8>) -> Input) {
    let mut buffer = [0; DATAGRAM_BYTES];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, SocketAddr::V4(source))) => {
                if !offer(hub, input(source, buffer[..length].to_vec())) {
                    return;
                }
            }
            Ok(_) => {}
            // An ICMP error for an earlier reply, or an interface that is down for a while.
            Err(error) => {
                tracing::debug!(%error, "receiving DHCP");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

fn open(interface: &str, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket.into())
}
