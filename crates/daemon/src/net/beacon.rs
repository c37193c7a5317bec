//! Boot beacons: UDP to the HTTP port's number.

use std::net::{SocketAddr, UdpSocket};

use engine::Input;
use wire::beacon::MAX_DATAGRAM_BYTES;

use crate::hub::{Inbox, offer};

/// Hands every datagram to the hub until that is gone.
pub fn receive(socket: &UdpSocket, hub: &Inbox) {
    // One byte more, so that a datagram which is too long shows itself.
    let mut buffer = [0; MAX_DATAGRAM_BYTES + 1];
    while let Ok((length, SocketAddr::V4(peer))) = socket.recv_from(&mut buffer) {
        let datagram = buffer[..length].to_vec();
        if !offer(hub, Input::Beacon { peer, datagram }) {
            return;
        }
    }
}
