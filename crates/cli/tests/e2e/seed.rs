//! The kernel command line of a set-up by hand, made for a dracut initramfs: an NFS root, and
//! nothing that our daemon would have written.

use lab::MacAddress;

use crate::harness::{
    PATIENCE, Site, assert_overlay, assert_running, guest, impossible, log_in, tells_of_a_stall,
};
use crate::native::{self, initrd, power_on_with};

/// What follows the path of `root=`.
const REST: &str = ":ro,vers=4.2,sec=sys,nolock net.ifnames=0 selinux=0";

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_command_line_made_for_dracut_means_the_same() {
    if impossible(&native::TOOLS) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let initrd = initrd(&site);
    let by_digest = format!("/images/{}", site.digest);
    let line = |path: &str| format!("root=nfs:{}:{path}{REST}", lab::GATEWAY);
    for (index, name) in [(1, "seed1"), (2, "seed2")] {
        let mac = MacAddress::nth(index).to_string();
        site.slate(&["node", "set", &mac, "--name", name]);
    }
    let plain = power_on_with(&site, &initrd, 1, &line(&by_digest));
    let broken = line("/images/debian12") + " rd.break";
    let mut open = power_on_with(&site, &initrd, 2, &broken);

    // Nobody can log in without an identity or a password: the second one's user lets himself in,
    // in the root before it starts.
    let console = open.console().clone();
    console
        .expect("rd.break: a shell", PATIENCE)
        .expect("a shell");
    console
        .send_line("passwd --delete root; exit")
        .expect("typing");
    plain
        .console()
        .expect("seed1 login: ", PATIENCE)
        .expect("a login prompt with the name that DHCP gave");
    log_in(&console);

    assert_running(&console);
    assert_overlay(&console, "/images/debian12");
    let lower = guest(&console, "grep ' /lower ' /run/slate/layers");
    for option in ["ro", "vers=4.2", "sec=sys"] {
        let listed = lower.split([' ', ',']).any(|word| word == option);
        assert!(listed, "{option} not in {lower}");
    }
    assert_eq!(
        guest(&console, "hostname; cat /etc/hostname"),
        "seed2\nseed2"
    );
    let keys = "ls /etc/ssh/ssh_host_ed25519_key.pub && systemctl is-active ssh";
    assert!(guest(&console, keys).ends_with("\nactive"), "no SSH server");
    assert_eq!(guest(&console, "wc -c < /etc/machine-id"), "33");
    let links = guest(&console, "ls /sys/class/net");
    assert!(!links.contains("enp") && !links.contains("ens"), "{links}");
    let agent = guest(&console, "systemctl is-active slate-agent || :");
    assert_eq!(
        agent, "inactive",
        "there is no daemon that it could talk to"
    );

    console.send_line("systemctl poweroff").expect("typing");
    let off = open.wait_off(native::SHUTDOWN).expect("waiting");
    assert!(off.is_some(), "no power-off: {}", console.last_lines(30));
    let lines = console.lines();
    let bad = |text: &str| text.contains("FAILED") || tells_of_a_stall(text);
    let bad = lines.iter().find(|line| bad(&line.text));
    assert!(bad.is_none(), "{bad:?}");
}
