//! Leases are renewed under a root that is read all the time, whatever manages the image's network.

use std::time::{Duration, Instant};

use lab::{MacAddress, Machine};

use crate::harness::{
    PATIENCE, Site, address, assert_overlay, assert_running, guest, impossible, log_in,
};
use crate::native::{self, LEASE_S, initrd, power_on};

/// How many times in a row a node must keep its address.
const RENEWALS: usize = 3;

/// An image's network manager, as its distribution's packages set it up.
struct Manager {
    name: &'static str,
    packages: &'static str,
    /// What is done after they are installed, and systemd-networkd is not started by itself.
    configure: &'static str,
    /// Shows in the node, by success, that it runs.
    runs: &'static str,
    /// The unit that it runs as, if it has any.
    unit: &'static str,
    /// Whether the agent renews, since it does not ask for the address of the root.
    by_agent: bool,
}

const MANAGERS: [Manager; 5] = [
    Manager {
        name: "nm",
        packages: "network-manager",
        configure: "systemctl enable NetworkManager",
        runs: "nmcli -t -f DEVICE,STATE,CONNECTION device | grep -x vec0:connected:slate",
        unit: "NetworkManager",
        by_agent: true,
    },
    Manager {
        name: "netplan",
        packages: "netplan.io",
        configure: "printf 'network:\\n  version: 2\\n  renderer: networkd\\n  ethernets:\\n    \
            all:\\n      match: {name: \"*\"}\\n      dhcp4: true\\n' > /etc/netplan/50-all.yaml; \
            chmod 600 /etc/netplan/50-all.yaml",
        runs: "ls /run/systemd/network/10-netplan-all.network && \
            networkctl status vec0 | grep 05-slate.network",
        unit: "systemd-networkd.socket systemd-networkd",
        by_agent: false,
    },
    Manager {
        name: "dhclient",
        packages: "ifupdown isc-dhcp-client",
        configure: "printf 'auto lo vec0\\niface lo inet loopback\\niface vec0 inet dhcp\\n' \
            > /etc/network/interfaces",
        runs: "systemctl is-active networking && ifquery --state lo",
        unit: "networking",
        by_agent: true,
    },
    Manager {
        name: "dhcpcd",
        packages: "ifupdown dhcpcd5",
        configure: "printf 'auto lo\\niface lo inet loopback\\nallow-hotplug vec0\\n\
            iface vec0 inet dhcp\\n' > /etc/network/interfaces",
        runs: "systemctl is-active networking dhcpcd && ifquery --state lo",
        unit: "networking dhcpcd",
        by_agent: true,
    },
    Manager {
        name: "unmanaged",
        packages: "",
        configure: "",
        runs: "true",
        unit: "",
        by_agent: true,
    },
];

/// Reads files that are not in memory, one after another, and writes down what cannot be read or
/// takes long, and what becomes of the interface.
const LOAD: &str = "ip monitor link address route > /run/monitor & \
    (while :; do find /usr/lib /usr/share -xdev -type f -size -200k | shuf -n 40 | while read -r file; do \
        echo 3 > /proc/sys/vm/drop_caches; \
        timeout 20 cat \"$file\" > /dev/null && echo >> /run/read || echo \"$file\" >> /run/unread; \
        sleep 0.1; done; done) > /dev/null 2>&1 &";

/// What a renewal must leave as it is, and so must a manager's end.
const STATE: &str = "ip -o link show vec0 | sed 's/qlen.*//'; ip -4 route show default; \
    ip -4 -o address show dev vec0 | grep -o ' inet [^ ]*\\| valid_lft [a-z0-9]*'; \
    cat /etc/resolv.conf 2> /dev/null; true";

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_every_network_manager_keeps_what_the_root_hangs_on() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &["--node-lease", &LEASE_S.to_string()]);
    site.give_own_store();
    for (index, manager) in (1..).zip(&MANAGERS) {
        prepare(&site, index, manager);
    }
    let initrd = initrd(&site);
    let machines: Vec<Machine> = (1..=MANAGERS.len() as u16)
        .map(|index| power_on(&site, &initrd, index))
        .collect();
    let before: Vec<(u64, String)> = machines
        .iter()
        .zip(&MANAGERS)
        .map(|(machine, manager)| begin(&site, machine, manager))
        .collect();
    for ((machine, manager), (up_ms, state)) in machines.iter().zip(&MANAGERS).zip(&before) {
        keeps(&site, machine, manager, *up_ms, state);
    }
    let managed = || {
        machines
            .iter()
            .zip(&MANAGERS)
            .filter(|it| !it.1.unit.is_empty())
    };
    for (machine, manager) in managed() {
        let unit = manager.unit;
        guest(
            machine.console(),
            &format!("systemctl stop {unit} && systemctl start {unit} && systemctl stop {unit}"),
        );
    }
    // Longer than any of them had it at its end.
    std::thread::sleep(Duration::from_secs(LEASE_S + 10));
    for ((machine, manager), (_, state)) in machines.iter().zip(&MANAGERS).zip(&before) {
        is_as_before(machine, manager, state);
        println!("{}: all there without {}", manager.name, manager.unit);
    }
    for (machine, manager) in managed() {
        guest(
            machine.console(),
            &format!("systemctl start {}", manager.unit),
        );
        assert_running(machine.console());
        guest(machine.console(), manager.runs);
    }
    for ((machine, manager), (_, state)) in machines.iter().zip(&MANAGERS).zip(&before) {
        is_as_before(machine, manager, state);
    }
}

/// Makes an image with that manager, for the node of that number.
fn prepare(site: &Site, index: u16, manager: &Manager) {
    let Manager {
        name,
        packages,
        configure,
        ..
    } = manager;
    let begun = Instant::now();
    site.slate(&["image", "tag", "debian12", &format!("{name}:latest")]);
    let install = if packages.is_empty() {
        String::new()
    } else {
        format!(
            "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; \
             apt-get -qq install --yes --no-install-recommends {packages} > /dev/null; \
             rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb;"
        )
    };
    let command = format!("set -e; {install} systemctl disable systemd-networkd; {configure}");
    site.update(name, &command);
    let mac = MacAddress::nth(index).to_string();
    site.slate(&["node", "set", &mac, "--name", name, "--image", name]);
    // The daemon notices a tag that moved, after a moment.
    let shown = site.slate_json(&["image", "show", name, "--json"]);
    let digest = shown["digest"].as_str().expect("a digest");
    let end = Instant::now() + PATIENCE;
    while !site
        .slate(&["node", "plan", &mac, "--json"])
        .contains(digest)
    {
        assert!(Instant::now() < end, "{name} would not boot {digest}");
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("image {name} made in {:.0?}", begun.elapsed());
}

/// Waits for a node, sets the load on it, and notes when it was up and what it was like.
fn begin(site: &Site, machine: &Machine, manager: &Manager) -> (u64, String) {
    let up = site.wait_up(machine.mac(), 1);
    let console = machine.console();
    log_in(console);
    assert_running(console);
    assert_root_of(site, machine, manager);
    guest(console, manager.runs);
    guest(console, LOAD);
    (up["at_ms"].as_u64().expect("a time"), guest(console, STATE))
}

fn assert_root_of(site: &Site, machine: &Machine, manager: &Manager) {
    let shown = site.slate_json(&["image", "show", manager.name, "--json"]);
    let digest = shown["digest"].as_str().expect("a digest");
    assert_overlay(machine.console(), &format!("/images/{digest}"));
}

/// The interface is as it was, and all of the root could be read since.
fn is_as_before(machine: &Machine, manager: &Manager, state: &str) {
    let name = manager.name;
    assert_eq!(guest(machine.console(), STATE), state, "{name}");
    let unread = guest(machine.console(), "cat /run/unread 2> /dev/null; true");
    assert_eq!(unread, "", "{name}: files could not be read");
}

/// Waits for the renewals and looks at what they left.
fn keeps(site: &Site, machine: &Machine, manager: &Manager, up_ms: u64, state: &str) {
    let name = manager.name;
    let console = machine.console();
    let end = Instant::now() + Duration::from_secs(LEASE_S) * (RENEWALS as u32 + 2);
    loop {
        let acks = site.events(machine.mac(), "ack");
        let times: Vec<u64> = acks.iter().filter_map(|it| it["at_ms"].as_u64()).collect();
        // Each of them well before the end of the one before, and not a start's repeated requests.
        let renewals: Vec<f64> = times
            .windows(2)
            .filter(|pair| pair[1] > up_ms && pair[1] - pair[0] > LEASE_S * 1000 / 3)
            .map(|pair| (pair[1] - pair[0]) as f64 / 1000.0)
            .collect();
        let late = renewals.iter().find(|it| **it >= LEASE_S as f64);
        assert_eq!(late, None, "{name}: a lease had ended");
        if renewals.len() >= RENEWALS {
            println!("{name}: renewed after {renewals:.1?} s");
            break;
        }
        let seen = || {
            guest(
                console,
                "ip address; ss -lunp; journalctl -b --no-pager | tail -n 40",
            )
        };
        assert!(
            Instant::now() < end,
            "{name} does not renew: {acks:?}\n{}",
            seen()
        );
        std::thread::sleep(Duration::from_secs(2));
    }
    let own = address(site, machine.mac());
    for part in [&format!(" inet {own}/"), " valid_lft forever"] {
        assert!(state.contains(part), "{name}: {part} not in {state}");
    }
    is_as_before(machine, manager, state);
    let read: usize = guest(console, "wc -l < /run/read")
        .parse()
        .expect("a number");
    assert!(read > 10, "{name}: only {read} files were read");
    let taken = format!("grep '^Deleted' /run/monitor | grep -e ' {own}/' -e default; true");
    assert_eq!(
        guest(console, &taken),
        "",
        "{name}: something was taken away"
    );
    let said = site.events(machine.mac(), "info");
    let by_agent = said.iter().any(|event| {
        event["text"]
            .as_str()
            .unwrap_or_default()
            .contains("the agent does")
    });
    assert_eq!(by_agent, manager.by_agent, "{name}: {said:?}");
    println!("{name}: {read} files were read meanwhile");
}
