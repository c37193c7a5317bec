//! Networks that are not one cable: VLANs, bonds, several interfaces of which one has a network, and
//! networks that come late.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::{MacAddress, Machine, Tool};

use crate::harness::{
    PATIENCE, Site, assert_root, assert_running, guest, impossible, log_in, text,
};
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

/// Runs a command on the network.
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
    log_in(console);
    assert_running(console);
    assert_root(console, site);
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_node_boots_over_a_vlan_that_comes_late() {
    if impossible(&[&native::TOOLS[..], &[Tool::Busybox]].concat()) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let modules = ["--debug-shell", "--module", "8021q", "--module", "bridge"];
    let initrd = initrd_with(&site, &modules);
    on_network(&site, "ip", "link add trunk type bridge");
    on_network(&site, "ip", "link set trunk up");
    let switch = switch(&site, &initrd);
    let words = line(&site, 1) + " vlan=vlan0005:vec0";
    let machine = power_on_with(&site, &initrd, 1, &words);
    let console = machine.console();
    let begun = console.wait_line("init", PATIENCE, |line| line.contains("slate: init:"));
    begun.expect("/init starts");
    std::thread::sleep(Duration::from_secs(3));
    // Up to now it was on the network without tags, where nobody understands it.
    on_network(&site, "ip", "link set tap2 master trunk");
    arrives(&site, &machine, MacAddress::nth(1));
    let shown = guest(console, "ip -d -4 address show dev vlan0005");
    assert!(shown.contains("vlan protocol 802.1Q id 5"), "{shown}");
    assert!(shown.contains("inet 10.77.0."), "{shown}");
    let below = guest(console, "ip -4 -o address show dev vec0 | wc -l");
    assert_eq!(below, "0", "what is below has no address of its own");
    drop(switch);
}

/// A machine that passes frames between the daemon's network and the trunk, where they have tag 5:
/// Linux's own bridge and VLANs, in the shell of an initramfs.
fn switch(site: &Site, initrd: &Path) -> Machine {
    let tap = site.network.add_tap().expect("a tap");
    on_network(site, "ip", &format!("link set {} master trunk", tap.name()));
    let words = format!(
        "{} rd.break=network {}",
        line(site, 9),
        card(1, tap.name(), MacAddress::nth(10))
    );
    let machine = power_on_with(site, initrd, 9, &words);
    let console = machine.console();
    let shell = console.expect("network: rd.break: a shell", PATIENCE);
    shell.unwrap_or_else(|error| panic!("{error}\n{}", console.last_lines(30)));
    for command in [
        // Modules that no device asks for are loaded beside what else happens.
        "until grep -q '^8021q ' /proc/modules && grep -q '^bridge ' /proc/modules; do sleep 1; done",
        "ip link set vec1 up",
        "ip link add link vec1 name vec1.5 type vlan id 5",
        "ip link set vec1.5 up",
        "brctl addbr switch",
        "brctl setfd switch 0",
        "brctl addif switch vec0",
        "brctl addif switch vec1.5",
        "ip link set switch up",
    ] {
        console.send_line(command).expect("typing");
    }
    console
        .send_line("echo ports: $(ls /sys/class/net/switch/brif | wc -l)")
        .expect("typing");
    let ports = console.expect("ports: 2", PATIENCE);
    ports.unwrap_or_else(|error| panic!("{error}\n{}", console.last_lines(30)));
    machine
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_node_boots_over_a_bond() {
    if impossible(&[&native::TOOLS[..], &[Tool::Busybox]].concat()) {
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
    if impossible(&[&native::TOOLS[..], &[Tool::Busybox]].concat()) {
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
}
