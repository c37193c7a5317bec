//! Several datagrams of one size by one system call: UDP segmentation (udp(7), `UDP_SEGMENT`).
#![allow(unsafe_code)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

/// Has every later `send` on the socket cut into datagrams of `bytes`, the last one shorter; 0 ends
/// that. The kernel refuses where it knows no segmentation (before Linux 4.18).
pub fn cut_into(socket: &UdpSocket, bytes: u16) -> io::Result<()> {
    let value = libc::c_int::from(bytes);
    // SAFETY: the option's value is one int, which outlives the call, and its length is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_send_is_several_datagrams() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        if let Err(error) = cut_into(&sender, 100) {
            println!("skipped: this kernel cuts no datagrams: {error}");
            return;
        }
        assert_eq!(sender.send(&[7; 250]).unwrap(), 250);
        let mut buffer = [0; 512];
        let mut lengths = [0; 3];
        lengths.fill_with(|| receiver.recv(&mut buffer).unwrap());
        assert_eq!(lengths, [100, 100, 50]);
        cut_into(&sender, 0).unwrap();
        sender.send(&[7; 250]).unwrap();
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 250);
    }
}
