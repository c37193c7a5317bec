//! Virtual PCs, from their firmware's first packet to systemd's last unit and back.

use std::time::Duration;

use lab::{Console, Firmware, Hardware, MacAddress, Machine, Network, Qemu, Tool, kvm_usable};

use crate::harness::{
    PATIENCE, Site, assert_different, assert_root, assert_running, guest, impossible, script,
    tells_of_a_stall, text,
};

const TOOLS: [Tool; 4] = [Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap];
pub(crate) const MEMORY_MIB: u32 = 1024;
/// How long a whole boot may take, on an emulated processor of a machine that has other work as well.
pub(crate) const ARRIVAL: Duration = Duration::from_secs(900);
/// For `slate up`: their consoles are serial lines.
pub(crate) const KERNEL_ARGS: [&str; 2] = ["--kernel-args", "console=tty0 console=ttyS0,115200"];

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn two_of_debian_12_boot_and_a_reboot_undoes_everything() {
    boot_and_forget("debian12", "6.1.", 2, false);
}

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn debian_13_boots_by_secure_boot_and_a_reboot_undoes_everything() {
    boot_and_forget("debian13", "6.12.", 1, true);
}

/// Makes of the Debian image in `$1` what Enterprise Linux 9 looks like to us: its name, its
/// compressed modules, its kernel beside them, its loaders on the EFI partition. Drivers that the
/// virtual machine has no use for are left out, for time.
const SHAPE_EL9: &str = r#"
cd "$1"
release=$(ls usr/lib/modules)
modules=usr/lib/modules/$release
mv "$(readlink -f boot/vmlinuz-"$release")" "$modules/vmlinuz"
rm -rf boot/* vmlinuz* initrd.img*
rocky=boot/efi/EFI/rocky
mkdir -p $rocky
mv usr/lib/shim/shimx64.efi.signed $rocky/shimx64.efi
mv usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed $rocky/grubx64.efi
rm -rf usr/lib/shim usr/lib/grub usr/lib/slate
kernel=$modules/kernel
rm -rf "$kernel"/sound "$kernel"/drivers/gpu "$kernel"/drivers/media "$kernel"/drivers/staging \
    "$kernel"/drivers/infiniband "$kernel"/drivers/scsi "$kernel"/drivers/usb \
    "$kernel"/drivers/iio "$kernel"/drivers/input "$kernel"/drivers/hid "$kernel"/drivers/mtd \
    "$kernel"/drivers/net/wireless "$kernel"/drivers/net/usb
find "$modules" -name '*.ko' -print0 | xargs -0 -n 50 -P 2 xz --check=crc32 -0
chroot . depmod "$release"
printf 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.5"\n\
PLATFORM_ID="platform:el9"\nPRETTY_NAME="Rocky Linux 9.5 (Blue Onyx)"\n' > usr/lib/os-release
printf 'options virtio_net napi_tx=0\nblacklist virtio_rng\n' > etc/modprobe.d/site.conf
rm -f etc/os-release
ln -s ../usr/lib/os-release etc/os-release
"#;

#[test]
#[ignore = "boots machines: cargo xtask test"]
fn full_an_image_in_the_shape_of_enterprise_linux_9_boots() {
    if impossible(&TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &KERNEL_ARGS);
    site.give_own_store();
    let source = site.path("el9");
    let directory = source.to_str().expect("a path in UTF-8");
    site.slate(&["image", "export", "debian12", directory]);
    script(SHAPE_EL9, &source);
    site.slate(&["image", "import", "rocky9", directory]);
    let mac = MacAddress::nth(1).to_string();
    site.slate(&["node", "set", &mac, "--image", "rocky9"]);
    let shown = site.slate_json(&["image", "show", "rocky9", "--json"]);
    site.digest = text(&shown, "digest");
    let machine = power_on(&site, 1, false);
    arrives(&site, &machine, 1);
    let console = machine.console();
    let name = guest(console, ". /etc/os-release && echo $ID");
    assert_eq!(name, "rocky");
    // Its modprobe.d counts from the first driver on.
    let option = guest(console, "cat /sys/module/virtio_net/parameters/napi_tx");
    assert_eq!(option, "N");
    guest(console, "! test -d /sys/module/virtio_rng");
    // Modules that /init had no use for load from the image, compressed as they are.
    guest(console, "modprobe dummy && test -d /sys/module/dummy");
}

/// So many machines do everything at once, with Microsoft's keys and no others where `secure`.
fn boot_and_forget(image: &str, kernel: &str, count: u16, secure: bool) {
    if impossible(&TOOLS) {
        return;
    }
    let site = Site::new(image, &KERNEL_ARGS);
    let sums = site.stored_sums();
    let mut machines: Vec<Machine> = (1..=count).map(|it| power_on(&site, it, secure)).collect();
    for machine in &machines {
        arrives(&site, machine, 1);
        let release = guest(machine.console(), "uname -r");
        assert!(release.starts_with(kernel), "{release}");
        assert_eq!(enforces(machine.console()), secure);
    }
    let identities = assert_different(&machines);
    inventory(&site, image);
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
        let off = machine.wait_off(PATIENCE).expect("waiting");
        let console = machine.console();
        assert!(off.is_some(), "no power-off: {}", console.last_lines(20));
        let lines = console.lines();
        let stuck = lines.iter().find(|line| tells_of_a_stall(&line.text));
        assert!(stuck.is_none(), "{stuck:?}");
    }
}

/// What the nodes told of their drivers is enough for an initramfs.
fn inventory(site: &Site, image: &str) {
    let output = site.path("inventory.img");
    let output = output.to_str().expect("a path in UTF-8");
    let build = ["initrd", "build", image, "--profile", "inventory", "--json"];
    let built = site.slate_json(&[&build[..], &["--output", output]].concat());
    let modules = built["modules"].as_array().expect("a list");
    assert!(modules.contains(&"virtio_net".into()), "{modules:?}");
    assert!(!modules.contains(&"e1000".into()), "{modules:?}");
}

/// Whether the firmware let only signed loaders run, and the kernel holds on to that.
pub(crate) fn enforces(console: &Console) -> bool {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let last_byte = guest(console, &format!("tail --bytes=1 {variable} | od -An -tu1"));
    let lockdown = guest(console, "cat /sys/kernel/security/lockdown");
    let enforced = last_byte.trim() == "1";
    assert_eq!(lockdown.contains("[integrity]"), enforced, "{lockdown}");
    enforced
}

pub(crate) fn power_on(site: &Site, index: u16, secure: bool) -> Machine {
    power_on_hardware(site, index, uefi(secure))
}

/// A machine with UEFI firmware.
pub(crate) fn uefi(secure: bool) -> Qemu {
    let firmware = Firmware::find(secure).expect("firmware is installed");
    Qemu::new(firmware, MEMORY_MIB).expect("a copy of its variables")
}

pub(crate) fn power_on_hardware(site: &Site, index: u16, hardware: Qemu) -> Machine {
    power_on_on(site, &site.network, index, hardware)
}

/// On another network than the site's own.
pub(crate) fn power_on_on(
    site: &Site,
    network: &Network,
    index: u16,
    mut hardware: Qemu,
) -> Machine {
    if kvm_usable() {
        hardware = hardware.with_kvm();
    }
    let name = format!("pc{index}");
    let capture = site.path(&format!("console{index}.log"));
    Machine::power_on(
        network,
        &name,
        MacAddress::nth(index),
        Hardware::Qemu(hardware),
        Some(capture),
    )
    .expect("a virtual machine")
}

/// The node comes up, all of it, on the root that it should have.
pub(crate) fn arrives(site: &Site, machine: &Machine, boot: usize) {
    let console = machine.console();
    console
        .login(ARRIVAL)
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
