//! Devices that appear later than the first look: the kernel's uevents.

use std::thread;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::modules::Modules;

/// Loads drivers for late devices, in a thread that never ends.
pub fn watch(modules: &'static Modules<'static>) {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        flags,
        Some(KOBJECT_UEVENT),
    );
    let Ok(socket) = socket else {
        return;
    };
    if bind(&socket, &SocketAddrNetlink::new(0, 1)).is_err() {
        return;
    }
    thread::spawn(move || {
        let mut buffer = vec![0; 16384];
        loop {
            match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    if let Some(modalias) = added(&buffer[..length]) {
                        modules.load_for(modalias);
                    }
                }
                // Events were lost: look at everything again.
                Err(rustix::io::Errno::NOBUFS) => modules.coldplug(),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    });
}

/// The modalias of a device that was added.
fn added(event: &[u8]) -> Option<&str> {
    let mut fields = event.split(|byte| *byte == 0);
    if !fields.next()?.starts_with(b"add@") {
        return None;
    }
    let modalias = fields.find_map(|field| field.strip_prefix(b"MODALIAS="))?;
    str::from_utf8(modalias).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_added_devices_have_a_modalias() {
        let event = b"add@/devices/x\0ACTION=add\0MODALIAS=pci:v1\0SEQNUM=1\0";
        assert_eq!(added(event), Some("pci:v1"));
        assert_eq!(added(b"remove@/devices/x\0MODALIAS=pci:v1\0"), None);
        assert_eq!(added(b"add@/devices/x\0ACTION=add\0"), None);
    }
}
