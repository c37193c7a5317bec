//! The kernel command line of a set-up by hand, made for a dracut initramfs: an NFS root, and
//! nothing that our daemon would have written.

use std::time::Duration;

use lab::{Console, MacAddress};

use crate::harness::{PATIENCE, Site, address, assert_root, assert_running, guest, impossible, text};
use crate::native::{self, initrd, power_on_with};

/// What follows `root=`.
const REST: &str = ":ro,vers=4.2,sec=sys,nolock net.ifnames=0 selinux=0";

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn a_command_line_made_for_dracut_means_the_same() {
    if impossible(&native::TOOLS) {
        return;
    }
    let site = Site::new("debian12", &[]);
    let initrd = initrd(&site);
    let root = format!("root=nfs:{}:/images/{}", lab::GATEWAY, site.digest);
    let line = format!("{root}{REST}");
    let plain = power_on_with(&site, &initrd, 1, &line);
    let mut open = power_on_with(&site, &initrd, 2, &format!("{line} rd.break"));

    // No identity opens the other one to anybody: its user does, in the root before it starts.
    let console = open.console().clone();
    console.expect("rd.break: a shell", PATIENCE).expect("a shell");
    console.send_line("passwd --delete root; exit").expect("typing");

    let prompt = plain.console().wait_line("a login prompt", PATIENCE, |line| line.contains("GNU/Linux"));
    println!("{:?}", prompt);
    console.login(PATIENCE).expect("a shell");
    for command in ["cat /proc/cmdline", "cat /run/slate/layers", "systemctl is-system-running --wait; systemctl --failed --no-legend; hostname; cat /etc/hostname /etc/machine-id; ls /etc/ssh; ls -la /run/slate; cat /proc/mounts; systemctl --no-legend list-jobs"] {
        println!("{}", guest(&console, command));
    }
    console.send_line("systemctl poweroff").expect("typing");
    let off = open.wait_off(Duration::from_secs(60)).expect("waiting");
    assert!(off.is_some(), "no power-off: {}", console.last_lines(30));
    println!("{}", console.last_lines(30));
}
