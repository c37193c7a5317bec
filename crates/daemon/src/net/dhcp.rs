//! DHCP's sockets: one for each interface and port, bound to the interface, so that a broadcast
//! comes in and goes out where it should.
//!
//! The hub reads them itself: a thread for each only tells it that something has come, once for all
//! that waits. Were each datagram handed over, most of the time would go into changing threads.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use engine::{DhcpDestination, DhcpMode, Input, InterfaceId};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Protocol, Socket, Type};
use wire::dhcp4::{BOOT_SERVER_PORT, CLIENT_PORT, SERVER_PORT};

use crate::Error;
use crate::hub::{Inbox, Message};
use crate::net::bind_failed;

/// Largest datagram taken in; clients' messages are far smaller.
const DATAGRAM_BYTES: usize = 4096;
/// What may wait while a batch is written: some thousand messages, as when all machines of a site
/// are switched on.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// How long a socket with an error is left alone.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

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

    /// What comes in on the interface, for the hub to read.
    pub fn receivers(&self, interface: InterfaceId) -> Vec<Receiver> {
        let receiver = |socket: &Arc<UdpSocket>, input| Receiver {
            interface,
            socket: Arc::clone(socket),
            input,
            resume: None,
            buffer: Box::new([0; DATAGRAM_BYTES]),
        };
        let server = receiver(&self.server, |interface, source, packet| Input::Dhcp {
            interface,
            source,
            packet,
        });
        let boot_server = self.boot_server.as_ref().map(|socket| {
            receiver(socket, |interface, source, packet| Input::BootServer {
                interface,
                source,
                packet,
            })
        });
        std::iter::once(server).chain(boot_server).collect()
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

/// A socket that the hub reads.
pub struct Receiver {
    interface: InterfaceId,
    socket: Arc<UdpSocket>,
    input: fn(InterfaceId, SocketAddrV4, Vec<u8>) -> Input,
    /// Has the thread look again.
    resume: Option<Sender<()>>,
    /// Where a datagram comes in.
    buffer: Box<[u8; DATAGRAM_BYTES]>,
}

impl Receiver {
    /// Has the hub told whenever something waits, as the receiver `index`: once, until
    /// [`Receiver::resume`]. The thread ends with the hub.
    pub fn watch(&mut self, index: usize, hub: &Inbox) {
        let (resume, resumed) = channel();
        self.resume = Some(resume);
        let (socket, hub) = (Arc::clone(&self.socket), hub.clone());
        std::thread::spawn(move || {
            while wait_readable(&socket) {
                let told = hub.send(Message::Readable(index));
                if told.is_err() || resumed.recv().is_err() {
                    return;
                }
            }
        });
    }

    /// All has been read.
    pub fn resume(&self) {
        if let Some(resume) = &self.resume {
            let _ = resume.send(());
        }
    }

    /// The next datagram that waits.
    pub fn next(&mut self) -> Option<Input> {
        loop {
            match self.socket.recv_from(&mut self.buffer[..]) {
                Ok((length, SocketAddr::V4(source))) => {
                    let packet = self.buffer[..length].to_vec();
                    return Some((self.input)(self.interface, source, packet));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                // An ICMP error for an earlier reply, or an interface that is down for a while.
                Err(error) => {
                    tracing::debug!(%error, "receiving DHCP");
                    return None;
                }
            }
        }
    }
}

/// False: it cannot be waited for.
fn wait_readable(socket: &UdpSocket) -> bool {
    let mut asked = [PollFd::new(socket, PollFlags::IN)];
    loop {
        match poll(&mut asked, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "waiting for DHCP");
                return false;
            }
        }
    }
    if asked[0].revents().contains(PollFlags::ERR) {
        std::thread::sleep(ERROR_PAUSE);
    }
    true
}

fn open(interface: &str, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    // Where more than the system's limit is not allowed, that much has to do.
    if set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    }
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn the_hub_is_told_once_for_all_that_waits() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let to = socket.local_addr().unwrap();
        let port = Port {
            server: Arc::new(socket),
            boot_server: None,
        };
        let mut receiver = port.receivers(InterfaceId(3)).remove(0);
        let (hub, messages) = sync_channel(16);
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let packet_of = |input| match input {
            Some(Input::Dhcp {
                interface: InterfaceId(3),
                packet,
                ..
            }) => packet,
            other => panic!("{other:?}"),
        };
        let patience = Duration::from_secs(60);
        sender.send_to(b"one", to).unwrap();
        sender.send_to(b"two", to).unwrap();
        receiver.watch(7, &hub);
        for round in 0..2 {
            let told = messages.recv_timeout(patience);
            assert!(matches!(told, Ok(Message::Readable(7))), "{round}");
            assert_eq!(packet_of(receiver.next()), b"one");
            assert_eq!(packet_of(receiver.next()), b"two");
            assert!(receiver.next().is_none());
            // Nobody is told before all that came has been read.
            sender.send_to(b"one", to).unwrap();
            sender.send_to(b"two", to).unwrap();
            assert!(messages.try_recv().is_err());
            receiver.resume();
        }
    }
}
