//! Behind a DHCP relay, ISC's, which is the router between two networks.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use lab::{GATEWAY, Network, Process, Tool};

use crate::firmware::{KERNEL_ARGS, arrives, power_on_on, uefi};
use crate::harness::{Site, address, guest, impossible};

const TOOLS: [Tool; 4] = [Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap];
const RELAY: &str = "/usr/sbin/dhcrelay";
/// The router on the server's network, and on that of the nodes.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// It adds what option 82 says, and forwards only replies that have it back.
fn relay(network: &Network) -> Process {
    let mut command = Command::new(RELAY);
    command
        .args(["-d", "-4", "-a", "-iu", "eth0", "-id"])
        .arg(network.interface())
        .arg(GATEWAY.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    network.spawn(command).expect("the relay starts")
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_node_boots_behind_a_relay_that_marks_what_it_forwards() {
    if impossible(&TOOLS) {
        return;
    }
    if !Path::new(RELAY).exists() {
        println!("skipped: no {RELAY} (package isc-dhcp-relay)");
        return;
    }
    let network = Network::new().expect("a network namespace");
    let behind = network
        .add_network(OUTSIDE, INSIDE)
        .expect("another network");
    let _relay = relay(&behind);
    let relayed = format!("{INSIDE}/24");
    let options = [&["--relayed", &relayed], &KERNEL_ARGS[..]].concat();
    let site = Site::on(network, "debian13", &options);
    let machine = power_on_on(&site, &behind, 1, uefi(false));
    arrives(&site, &machine, 1);
    let held = address(&site, machine.mac());
    assert_eq!(held.octets()[..3], INSIDE.octets()[..3]);
    let route = guest(machine.console(), "ip route show default");
    assert!(route.contains(&format!("via {INSIDE} ")), "{route}");
}
