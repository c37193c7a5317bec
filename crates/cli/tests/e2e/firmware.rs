//! Virtual PCs, from their firmware's first packet to systemd's last unit and back.

use std::time::Duration;

use lab::{Console, Firmware, Hardware, MacAddress, Machine, Qemu, Tool, kvm_usable};

use crate::harness::{PATIENCE, Site, assert_root, assert_running, guest, impossible};

const TOOLS: [Tool; 4] = [Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap];
const MEMORY_MIB: u32 = 1024;

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn debian_12_boots_and_a_reboot_undoes_everything() {
    boots_and_forgets("debian12", "6.1.");
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn debian_13_boots_and_a_reboot_undoes_everything() {
    boots_and_forgets("debian13", "6.12.");
}

fn boots_and_forgets(image: &str, kernel: &str) {
    if impossible(&TOOLS) {
        return;
    }
    let kernel_args = "console=tty0 console=ttyS0,115200";
    let site = Site::new(image, &["--kernel-args", kernel_args]);
    let sums = site.stored_sums();
    let mac = MacAddress::nth(1);
    let mut machine = power_on(&site, mac);
    let console = machine.console().clone();

    arrives(&site, &console, mac, 1);
    let release = guest(&console, "uname -r");
    assert!(release.starts_with(kernel), "{release}");
    let identity = guest(&console, IDENTITY);
    change(&console);

    console.send_line("systemctl reboot").expect("typing");
    arrives(&site, &console, mac, 2);
    assert_unchanged(&console);
    assert_eq!(
        guest(&console, IDENTITY),
        identity,
        "a node stays who it is"
    );
    assert_eq!(site.stored_sums(), sums, "the stored image changed");

    console.send_line("systemctl poweroff").expect("typing");
    let off = machine.wait_off(Duration::from_secs(90)).expect("waiting");
    assert!(off.is_some(), "no power-off: {}", console.last_lines(20));
    let lines = console.lines();
    let stuck = lines.iter().find(|line| line.text.contains("stop job"));
    assert!(stuck.is_none(), "{stuck:?}");
}

/// What makes a node itself.
const IDENTITY: &str = "hostname; cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub";

fn power_on(site: &Site, mac: MacAddress) -> Machine {
    let firmware = Firmware::find(false).expect("firmware is installed");
    let mut hardware = Qemu::new(firmware, MEMORY_MIB).expect("a copy of its variables");
    if kvm_usable() {
        hardware = hardware.with_kvm();
    }
    let capture = site.path("console.log");
    Machine::power_on(
        &site.network,
        "pc",
        mac,
        Hardware::Qemu(hardware),
        Some(capture),
    )
    .expect("a virtual machine")
}

/// The node comes up, all of it, on the root that it should have.
fn arrives(site: &Site, console: &Console, mac: MacAddress, boot: usize) {
    console
        .login(PATIENCE)
        .unwrap_or_else(|error| panic!("{error}\n{}", site.said()));
    assert_running(console);
    assert_root(console, site);
    let up = site.wait_up(mac, boot);
    println!("boot {boot}: {}", up["text"].as_str().unwrap_or_default());
}

/// Writes files, deletes one of the system's, installs a package.
fn change(console: &Console) {
    guest(
        console,
        "echo mine > /root/mine && echo other > /etc/issue && rm /usr/lib/os-release",
    );
    guest(
        console,
        "mkdir -p /tmp/p/DEBIAN /tmp/p/opt && echo it > /tmp/p/opt/probe && \
         printf 'Package: probe\\nVersion: 1\\nArchitecture: all\\nMaintainer: nobody <n@example.org>\\n\
         Description: probe\\n' > /tmp/p/DEBIAN/control && dpkg-deb --build /tmp/p /tmp/p.deb && \
         dpkg --install /tmp/p.deb && cat /opt/probe",
    );
    let written = guest(
        console,
        "cat /root/mine /etc/issue; dpkg -s probe | grep Status; ls /usr/lib/os-release || :",
    );
    assert!(
        written.starts_with("mine\nother\nStatus: install ok installed"),
        "{written}"
    );
    assert!(written.ends_with("No such file or directory"), "{written}");
}

/// Nothing of [`change`] is left.
fn assert_unchanged(console: &Console) {
    let found = guest(console, "ls /root/mine /opt/probe; dpkg -s probe; true");
    assert_eq!(found.matches("No such file").count(), 2, "{found}");
    assert!(found.contains("is not installed"), "{found}");
    assert!(
        guest(console, "cat /etc/issue /usr/lib/os-release")
            .matches("Debian")
            .count()
            > 1
    );
}
