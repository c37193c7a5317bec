//! Virtual PCs, from their firmware's first packet to systemd's last unit and back.

use std::time::Duration;

use lab::{Console, Firmware, Hardware, MacAddress, Machine, Qemu, Tool, kvm_usable};

use crate::harness::{
    PATIENCE, Site, assert_different, assert_root, assert_running, guest, impossible,
};

const TOOLS: [Tool; 4] = [Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap];
const MEMORY_MIB: u32 = 1024;

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn two_of_debian_12_boot_and_a_reboot_undoes_everything() {
    boot_and_forget("debian12", "6.1.", 2);
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn debian_13_boots_and_a_reboot_undoes_everything() {
    boot_and_forget("debian13", "6.12.", 1);
}

/// So many machines do everything at once.
fn boot_and_forget(image: &str, kernel: &str, count: u16) {
    if impossible(&TOOLS) {
        return;
    }
    let kernel_args = "console=tty0 console=ttyS0,115200";
    let site = Site::new(image, &["--kernel-args", kernel_args]);
    let sums = site.stored_sums();
    let mut machines: Vec<Machine> = (1..=count).map(|it| power_on(&site, it)).collect();
    for machine in &machines {
        arrives(&site, machine, 1);
        let release = guest(machine.console(), "uname -r");
        assert!(release.starts_with(kernel), "{release}");
    }
    let identities = assert_different(&machines);
    let first = machines[0].console().clone();
    change(&first);

    for machine in &machines {
        let typed = machine.console().send_line("systemctl reboot");
        typed.expect("typing");
    }
    for machine in &machines {
        arrives(&site, machine, 2);
    }
    assert_unchanged(&first);
    let again = assert_different(&machines);
    assert_eq!(again, identities, "a node stays who it is");
    assert_eq!(site.stored_sums(), sums, "the stored image changed");

    for machine in &machines {
        let typed = machine.console().send_line("systemctl poweroff");
        typed.expect("typing");
    }
    for machine in &mut machines {
        let off = machine.wait_off(Duration::from_secs(90)).expect("waiting");
        let console = machine.console();
        assert!(off.is_some(), "no power-off: {}", console.last_lines(20));
        let lines = console.lines();
        let stuck = lines.iter().find(|line| line.text.contains("stop job"));
        assert!(stuck.is_none(), "{stuck:?}");
    }
}

pub(crate) fn power_on(site: &Site, index: u16) -> Machine {
    let firmware = Firmware::find(false).expect("firmware is installed");
    let mut hardware = Qemu::new(firmware, MEMORY_MIB).expect("a copy of its variables");
    if kvm_usable() {
        hardware = hardware.with_kvm();
    }
    let name = format!("pc{index}");
    let capture = site.path(&format!("console{index}.log"));
    Machine::power_on(
        &site.network,
        &name,
        MacAddress::nth(index),
        Hardware::Qemu(hardware),
        Some(capture),
    )
    .expect("a virtual machine")
}

/// The node comes up, all of it, on the root that it should have.
fn arrives(site: &Site, machine: &Machine, boot: usize) {
    let console = machine.console();
    console
        .login(PATIENCE)
        .unwrap_or_else(|error| panic!("{error}\n{}", site.said()));
    assert_running(console);
    assert_root(console, site);
    let up = site.wait_up(machine.mac(), boot);
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
