//! Thin socket loops: they move bytes between the network and the hub.

pub mod beacon;
pub mod dhcp;
pub mod http;
pub mod interface;
pub mod ndp;
mod stream;
mod sys;
pub mod tftp;
pub mod tls;
pub mod watch;

use std::net::{SocketAddrV4, UdpSocket};

use crate::Error;

/// Binds a UDP socket; a taken port says for what it was meant.
pub fn bind_udp(address: SocketAddrV4, purpose: &'static str) -> Result<UdpSocket, Error> {
    UdpSocket::bind(address).map_err(|error| bind_failed(error, address.port(), "udp", purpose))
}

/// The error of a failed bind.
pub fn bind_failed(
    source: std::io::Error,
    port: u16,
    protocol: &'static str,
    purpose: &'static str,
) -> Error {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => Error::PortTaken {
            port,
            protocol,
            purpose,
        },
        std::io::ErrorKind::PermissionDenied => {
            let step = format!("listening on {protocol} port {port} ({purpose})");
            Error::Privilege { step, source }
        }
        _ => Error::io(
            format!("listening on {protocol} port {port} ({purpose})"),
            source,
        ),
    }
}
