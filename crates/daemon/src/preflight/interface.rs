//! The interface that nodes are on: present, up, with an address.

use std::fs;
use std::net::Ipv4Addr;

use super::finding::Finding;
use crate::net::interface;

/// The interface's first IPv4 address, or what is wrong with the interface.
pub fn check(name: &str) -> Result<Ipv4Addr, Finding> {
    let owned = || name.to_owned();
    let present = interface::names();
    if name != "lo" && !present.iter().any(|other| other == name) {
        return Err(Finding::InterfaceMissing {
            name: owned(),
            present,
        });
    }
    if !is_up(name) {
        return Err(Finding::InterfaceDown { name: owned() });
    }
    match interface::address(name) {
        Ok(Some((address, _))) => Ok(address),
        Ok(None) => Err(Finding::InterfaceWithoutAddress { name: owned() }),
        Err(cause) => Err(Finding::InterfaceUnknown {
            name: owned(),
            cause,
        }),
    }
}

/// Whether `IFF_UP` is set; a cable may still be missing, which nodes will show soon enough.
fn is_up(name: &str) -> bool {
    let flags = fs::read_to_string(format!("/sys/class/net/{name}/flags")).unwrap_or_default();
    let flags = flags.trim().trim_start_matches("0x");
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_not_offered() {
        let Err(Finding::InterfaceMissing { present, .. }) = check("no-such-interface") else {
            panic!("expected a missing interface");
        };
        assert!(!present.contains(&"lo".to_owned()));
    }
}
