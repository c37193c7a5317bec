//! The ports that nodes use, and whether they are free here.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Socket, Type};

use super::finding::Finding;
use super::owner::Owner;
use crate::options::{DhcpMode, Ports};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Streams.
    Tcp,
}

impl Protocol {
    /// `udp` or `tcp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// A port and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
    /// What it is for: `DHCP`, `NFS`.
    pub purpose: &'static str,
}

impl Port {
    /// A UDP port.
    pub fn udp(number: u16, purpose: &'static str) -> Self {
        Self {
            protocol: Protocol::Udp,
            number,
            purpose,
        }
    }

    /// A TCP port.
    pub fn tcp(number: u16, purpose: &'static str) -> Self {
        Self {
            protocol: Protocol::Tcp,
            number,
            purpose,
        }
    }

    /// The option of the command that chooses another number.
    pub fn option(&self) -> Option<&'static str> {
        match self.purpose {
            "HTTP" | "boot events" => Some("--http-port"),
            "HTTPS" => Some("--https-port"),
            "NFS" => Some("--nfs-port"),
            _ => None,
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name();
        write!(f, "port {}/{protocol} ({})", self.number, self.purpose)
    }
}

/// Findings for the ports that cannot be bound, with their owners.
pub fn check(interface: &str, address: Ipv4Addr, ports: &Ports, mode: DhcpMode) -> Vec<Finding> {
    let mut findings: Vec<Finding> = super::needed(ports, mode)
        .into_iter()
        .filter_map(|port| Some((port, other_owner(port, interface, address)?)))
        .map(|(port, owner)| match port.purpose {
            "NFS" if ports.nfs_fallback => Finding::OtherNfsPort { port, owner },
            _ => Finding::PortTaken { port, owner },
        })
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity()));
    findings
}

/// The ports as they will be: NFS has the first of its ports that is free.
pub fn as_served(interface: &str, address: Ipv4Addr, ports: &Ports) -> Ports {
    let free = |number: &u16| other_owner(Port::tcp(*number, "NFS"), interface, address).is_none();
    let nfs = ports.nfs_candidates().find(free).unwrap_or(ports.nfs);
    Ports { nfs, ..*ports }
}

/// Who has the port, unless it is free for us.
fn other_owner(port: Port, interface: &str, address: Ipv4Addr) -> Option<Owner> {
    let owner = is_taken(port, interface, address).then(|| super::owner_of(port));
    // A socket that an earlier run left with the service manager for us.
    owner.filter(|owner| !owner.is_this_process())
}

/// Whether binding the port as the daemon does says "address in use". Other refusals are not this
/// check's matter.
pub(super) fn is_taken(port: Port, interface: &str, address: Ipv4Addr) -> bool {
    try_bind(port, interface, address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn try_bind(port: Port, interface: &str, address: Ipv4Addr) -> io::Result<()> {
    let kind = match port.protocol {
        Protocol::Udp => Type::DGRAM,
        Protocol::Tcp => Type::STREAM,
    };
    let socket = Socket::new(Domain::IPV4, kind, None)?;
    // DHCP is broadcast: its sockets belong to the interface, not to the address.
    let address = if matches!(port.purpose, super::DHCP | super::PROXY_DHCP) {
        socket.bind_device(Some(interface.as_bytes()))?;
        Ipv4Addr::UNSPECIFIED
    } else {
        address
    };
    if port.protocol == Protocol::Tcp {
        // Connections of an earlier run that are being closed do not hold a listener off.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SocketAddrV4::new(address, port.number).into())?;
    match port.protocol {
        Protocol::Tcp => socket.listen(1),
        Protocol::Udp => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_listener_takes_its_port() {
        // Where no other test listens, which could be given the port that gets free.
        let address = Ipv4Addr::new(127, 0, 0, 77);
        let listener = TcpListener::bind((address, 0)).unwrap();
        let number = listener.local_addr().unwrap().port();
        let port = Port::tcp(number, "NFS");
        assert!(is_taken(port, "lo", address));
        drop(listener);
        // A child that another test starts has the socket too, until it runs its program.
        let end = Instant::now() + Duration::from_secs(60);
        while is_taken(port, "lo", address) {
            assert!(Instant::now() < end, "it is never free");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_port_says_what_it_is_for() {
        assert_eq!(Port::udp(69, "TFTP").to_string(), "port 69/udp (TFTP)");
    }
}
