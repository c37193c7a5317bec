//! Networks that are not one cable: VLANs, bonds, several interfaces of which one has a network, and
//! networks that come late.

use std::process::Command;
use std::time::Duration;

use lab::{MacAddress, Machine};

use crate::harness::{PATIENCE, Site, assert_root, assert_running, guest, impossible, text};
use crate::native::{self, initrd_with, power_on_with};

/// The kernel command line of a node's next boot.
fn line(site: &Site, index: u16) -> String {
    let mac = MacAddress::nth(index).to_string();
    let plan = site.slate_json(&["node", "plan", &mac, "--json"]);
    text(&plan, "cmdline")
}

/// Another network card, on a tap that is there already.
fn card(number: u16, tap: &str, mac: MacAddress) -> String {
    format!("vec{number}:transport=tap,ifname={tap},depth=128,gro=1,mac={mac}")
}

/// Runs `ip` or `bridge` on the network.
fn on_network(site: &Site, program: &str, arguments: &str) {
    let mut command = Command::new(program);
    command.args(arguments.split(' '));
    let output = site.network.run(command).expect(program);
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
}

/// The node is up, as this one, and its root is the image.
fn arrives(site: &Site, machine: &Machine, mac: MacAddress) {
    site.wait_up(mac, 1);
    let console = machine.console();
    console.login(PATIENCE).expect("a shell");
    assert_running(console);
    assert_root(console, site);
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_node_boots_over_a_vlan_that_comes_late() {
    if impossible(&native::TOOLS) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let initrd = initrd_with(&site, &["--module", "8021q"]);
    // The daemon's packets have tag 5 between the bridge and the node.
    let bridge = site.network.interface();
    on_network(
        &site,
        "ip",
        &format!("link set {bridge} type bridge vlan_filtering 1"),
    );
    on_network(
        &site,
        "bridge",
        &format!("vlan add dev {bridge} vid 5 pvid untagged self"),
    );
    let words = line(&site, 1) + " vlan=vlan0005:vec0";
    let machine = power_on_with(&site, &initrd, 1, &words);
    let console = machine.console();
    let begun = console.wait_line("init", PATIENCE, |line| line.contains("slate: init:"));
    begun.expect("/init starts");
    std::thread::sleep(Duration::from_secs(3));
    on_network(&site, "bridge", "vlan add dev tap0 vid 5");
    arrives(&site, &machine, MacAddress::nth(1));
    let shown = guest(console, "ip -d -4 address show dev vlan0005");
    assert!(shown.contains("vlan protocol 802.1Q id 5"), "{shown}");
    assert!(shown.contains("inet 10.77.0."), "{shown}");
    let below = guest(console, "ip -4 -o address show dev vec0 | wc -l");
    assert_eq!(below, "0", "what is below has no address of its own");
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_node_boots_over_a_bond() {
    if impossible(&native::TOOLS) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let initrd = initrd_with(&site, &["--module", "bonding"]);
    let second = site.network.add_tap().expect("a tap");
    let words = format!(
        "{} {} bond=bond0:vec0,vec1:mode=active-backup,miimon=100",
        line(&site, 1),
        card(1, second.name(), MacAddress::nth(77)),
    );
    let machine = power_on_with(&site, &initrd, 1, &words);
    arrives(&site, &machine, MacAddress::nth(1));
    let console = machine.console();
    let bond = guest(console, "cat /proc/net/bonding/bond0");
    for expected in [
        "Bonding Mode: fault-tolerance (active-backup)",
        "MII Polling Interval (ms): 100",
        "Slave Interface: vec0",
        "Slave Interface: vec1",
    ] {
        assert!(bond.contains(expected), "{expected} not in {bond}");
    }
    let shown = guest(console, "ip -4 -o address show scope global");
    assert!(
        shown.contains("bond0") && shown.lines().count() == 1,
        "{shown}"
    );
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_of_two_cards_the_one_with_a_network_counts() {
    if impossible(&native::TOOLS) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let initrd = initrd_with(&site, &[]);
    let live = site.network.add_tap().expect("a tap");
    let node = MacAddress::nth(2);
    // Nobody says which one: all that have a carrier are asked.
    let line = line(&site, 2);
    let words = line.split(' ').filter(|word| !word.starts_with("BOOTIF="));
    let words: Vec<&str> = words.collect();
    let words = format!("{} {}", words.join(" "), card(1, live.name(), node));
    let machine = power_on_with(&site, &initrd, 1, &words);
    on_network(&site, "ip", "link set tap1 nomaster");
    arrives(&site, &machine, node);
    let console = machine.console();
    let shown = guest(console, "ip -4 -o address show scope global");
    assert!(
        shown.contains("vec1") && shown.lines().count() == 1,
        "{shown}"
    );
    let dead = guest(console, "ip -o link show dev vec0");
    assert!(
        !dead.contains(",UP"),
        "what has no network is left down: {dead}"
    );
}
