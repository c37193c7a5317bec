//! The kernel's messages go to the server as well, so that a panic is not the end of what is known.
//!
//! netconsole sends them without any help, by polling the network driver. What is missing for it, the
//! module or the driver's support, is a line in the log: nothing depends on it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use wire::cmdline::BootArgs;
use wire::mac::Mac;

use crate::modules::Modules;
use crate::network::Configured;
use crate::report::Reporter;

/// Where messages come from; netconsole's own default.
const SOURCE_PORT: u16 = 6665;
const MODULE: &str = "netconsole";

/// Begins to send, where the command line names our server and no other target.
pub fn start(args: &BootArgs, network: &Configured, modules: &Modules<'_>, report: &Reporter) {
    let Some(slate) = args.slate else {
        return;
    };
    if !args.module_params(MODULE).is_empty() || Path::new("/sys/module").join(MODULE).exists() {
        return;
    }
    let lease = &network.lease;
    let is_near = same_network(lease.address, *slate.server.ip(), lease.prefix);
    let next = if is_near {
        Some(*slate.server.ip())
    } else {
        lease.gateway
    };
    let table = fs::read_to_string("/proc/net/arp").unwrap_or_default();
    let neighbour = next.and_then(|it| neighbour(&table, it, &network.link.name));
    // Without it messages go to everybody, which does for a server on the same network.
    let neighbour = match neighbour {
        Some(mac) => mac.to_string(),
        None if is_near => String::new(),
        None => return,
    };
    let params = format!(
        "netconsole=+{SOURCE_PORT}@{}/{},{}@{}/{neighbour}",
        lease.address,
        network.link.name,
        slate.server.port(),
        slate.server.ip(),
    );
    if let Some(Err(error)) = modules.load_with(MODULE, &params) {
        report.log(&format!("{MODULE}: {error}"));
    }
}

fn same_network(one: Ipv4Addr, other: Ipv4Addr, prefix: u8) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    (u32::from(one) ^ u32::from(other)) & mask == 0
}

/// The Ethernet address of a neighbour that was resolved, by `/proc/net/arp` (proc_net(5)).
fn neighbour(table: &str, address: Ipv4Addr, interface: &str) -> Option<Mac> {
    const COMPLETE: u32 = 2;
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_it = words.next()?.parse() == Ok(address);
        let flags = u32::from_str_radix(words.nth(1)?.strip_prefix("0x")?, 16).ok()?;
        let mac = words.next()?.parse().ok()?;
        let here = words.nth(1)? == interface;
        (is_it && here && flags & COMPLETE != 0).then_some(mac)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_found() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
            10.77.0.1        0x1         0x2         02:00:00:00:00:01     *        eth0\n\
            10.77.0.2        0x1         0x0         00:00:00:00:00:00     *        eth0\n";
        let find = |address: [u8; 4], interface| neighbour(table, address.into(), interface);
        assert_eq!(find([10, 77, 0, 1], "eth0"), Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(find([10, 77, 0, 1], "eth1"), None);
        assert_eq!(find([10, 77, 0, 2], "eth0"), None);
    }

    #[test]
    fn networks_are_compared_by_their_prefix() {
        let one = [10, 0, 0, 5].into();
        assert!(same_network(one, [10, 0, 0, 200].into(), 24));
        assert!(!same_network(one, [10, 0, 1, 5].into(), 24));
        assert!(!same_network(one, [10, 0, 0, 4].into(), 32));
        assert!(same_network(one, [192, 168, 0, 1].into(), 0));
    }
}
