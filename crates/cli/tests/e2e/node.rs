//! What a node offers to those who work on it.

use std::time::{Duration, Instant};

use lab::{Console, Machine};

use crate::harness::{PATIENCE, Site, address, guest, impossible, log_in};
use crate::native::{self, initrd, power_on};

/// Stands for a container engine; what matters is where it stores.
const INSTALL_ENGINE: &str = "printf '#!/bin/sh\n' > /usr/bin/podman; chmod 755 /usr/bin/podman; \
    printf '#!/bin/sh\n' > /usr/bin/containerd; chmod 755 /usr/bin/containerd; \
    mkdir -p /var/lib/containerd; echo kept > /var/lib/containerd/of-the-image";

/// An overlay in a container engine's store, as engines make them.
const CONTAINER: &str = "cd /var/lib/containers && mkdir -p lower upper work merged && \
    echo below > lower/file && \
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged && \
    echo above > merged/file && cat lower/file upper/file && umount merged";

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn nodes_know_each_other_hold_containers_and_tell_when_they_are_full() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    site.update("debian12", INSTALL_ENGINE);
    let initrd = initrd(&site);
    let first = power_on(&site, &initrd, 1);
    site.wait_up(first.mac(), 1);
    let second = power_on(&site, &initrd, 2);
    site.wait_up(second.mac(), 1);
    let console = second.console();
    log_in(console);

    for (name, machine) in [("node1", &first), ("node2", &second)] {
        let known = guest(console, &format!("getent ahostsv4 {name} | tail -n 1"));
        let expected = address(&site, machine.mac()).to_string();
        assert!(known.starts_with(&expected), "{known}");
    }

    as_nobody(console);

    assert_eq!(guest(console, CONTAINER), "below\nabove");
    let kept = guest(console, "cat /var/lib/containerd/of-the-image");
    assert_eq!(kept, "kept");
    let said = said(&site, &second);
    assert!(
        said.iter().any(|text| text.contains("/var/lib/containerd")),
        "{said:?}"
    );

    // Of what it may take, so much that 80 % are passed.
    let fill = "free=$(df --output=avail -k / | tail -n 1); \
        dd if=/dev/zero of=/root/fill bs=1024 count=$((free * 83 / 100)) status=none";
    guest(console, fill);
    wait_said(&site, &second, "fills 8");
}

/// A user who is not root can do what set-user-id bits and file capabilities are for.
fn as_nobody(console: &Console) {
    const NOBODY: &str = "setpriv --reuid=nobody --regid=nogroup --clear-groups";
    let status = guest(console, &format!("{NOBODY} passwd --status"));
    assert!(status.starts_with("nobody L "), "{status}");
    let capable = guest(console, "getcap /usr/bin/ping");
    assert_eq!(capable, "/usr/bin/ping cap_net_raw=ep");
    // Without the capability there is no socket for it.
    let allowed = guest(console, "cat /proc/sys/net/ipv4/ping_group_range");
    assert_eq!(allowed.split_whitespace().collect::<Vec<_>>(), ["1", "0"]);
    let ping = format!("{NOBODY} ping -c 1 -W 60 {}", lab::GATEWAY);
    assert!(guest(console, &ping).contains("1 received"));
}

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_a_user_becomes_root_by_sudo() {
    if impossible(&native::TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    let install = "set -e; export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; \
        apt-get -qq install --yes --no-install-recommends sudo > /dev/null; \
        rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb; useradd --create-home alice; \
        echo 'alice ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/alice";
    site.update("debian12", install);
    let machine = power_on(&site, &initrd(&site), 1);
    site.wait_up(machine.mac(), 1);
    let console = machine.console();
    log_in(console);
    let who = guest(console, "su alice -c 'id -un; sudo id -un'");
    assert_eq!(who, "alice\nroot");
    as_nobody(console);
}

/// What a node told besides its stages.
fn said(site: &Site, machine: &Machine) -> Vec<String> {
    let events = site.events(machine.mac(), "info");
    let texts = events.iter().filter_map(|event| event["text"].as_str());
    texts.map(str::to_owned).collect()
}

fn wait_said(site: &Site, machine: &Machine, wanted: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let said = said(site, machine);
        if said.iter().any(|text| text.contains(wanted)) {
            return;
        }
        assert!(Instant::now() < end, "{wanted} not in {said:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
