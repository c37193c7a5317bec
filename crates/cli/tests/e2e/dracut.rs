//! An initramfs of dracut's in the place of ours: the recipe by hand, served by our daemon.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lab::{MacAddress, Tool};

use crate::firmware::power_on;
use crate::harness::{PATIENCE, Site, guest, impossible, log_in};

const TOOLS: [Tool; 4] = [Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap];

/// The recipe's own words, and what Debian's module for an overlay over the root wants.
const COMMAND_LINE: &str = "splash=none net.ifnames=0 selinux=0 rootovl console=ttyS0,115200";
const ROOT_OPTIONS: &str = "ro,vers=4.2,sec=sys,nolock";

/// What our initramfs brings to each boot, the image must have itself: somebody who can log in, and a
/// network configuration that keeps the address which the root depends on. Its SSH server has no keys.
const PREPARE: &str = "passwd --delete root && systemctl disable ssh && \
    printf '[Match]\\nType=ether\\n\\n[Network]\\nDHCP=ipv4\\nKeepConfiguration=yes\\n\\n\
    [DHCPv4]\\nClientIdentifier=mac\\n' > /etc/systemd/network/10-root.network";

/// Dracut as the recipe calls it, with Debian's names for its modules.
const BUILD: &str = r#"
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --yes --no-install-recommends dracut-core dracut-network nfs-common rpcbind \
    kbd iputils-arping isc-dhcp-client zstd > /dev/null
# By its path: what is on the PATH while an image is changed makes none.
/usr/bin/dracut --quiet --no-hostonly --no-hostonly-cmdline --nofscks \
    --add-drivers "virtio_net overlay nfs nfsv4" --install more \
    -m "bash systemd systemd-initrd i18n network network-legacy dm kernel-modules kernel-modules-extra kernel-network-modules rootfs-block terminfo udev-rules dracut-systemd usrmount base fs-lib nfs overlay-root" \
    --force /boot/initrd.dracut "$(ls /lib/modules)"
"#;

#[test]
#[ignore = "boots machines: cargo xtask test --full"]
fn full_an_initramfs_of_dracut_boots_through_our_servers() {
    if impossible(&TOOLS) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    site.give_own_store();
    site.update("debian12", PREPARE);
    let initrd = made(&site);
    let file = initrd.to_str().expect("a path in UTF-8");
    let bytes = std::fs::metadata(&initrd).expect("it was made").len();
    site.slate(&["initrd", "use", "debian12", file]);
    let shown = site.slate_json(&["image", "show", "debian12", "--json"]);
    assert_eq!(shown["own_initrd_bytes"], bytes);
    let mac = MacAddress::nth(1);
    let root = format!("root=nfs:{}:/images/debian12:{ROOT_OPTIONS}", lab::GATEWAY);
    let arguments = format!("{root} {COMMAND_LINE}");
    let set = ["node", "set", &mac.to_string(), "--name", "seed1"];
    site.slate(&[&set[..], &["--kernel-args", &arguments]].concat());

    let machine = power_on(&site, 1, false);
    let console = machine.console();
    console
        .wait_line("multi-user", PATIENCE, |line| {
            line.contains("Reached target multi-user.target")
        })
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", console.last_lines(60), site.said()));
    log_in(console);
    let release = guest(console, "uname -r");
    assert!(release.starts_with("6.1."), "{release}");
    let root = guest(console, "awk '$2 == \"/\" { print $3, $4 }' /proc/mounts");
    assert!(root.starts_with("overlay "), "{root}");
    guest(console, "echo mine > /root/mine && cat /root/mine");
    assert_eq!(guest(console, "ls -d /run/initramfs"), "/run/initramfs");
    assert_eq!(guest(console, "test -e /run/slate || echo none"), "none");

    let node = site.slate_json(&["node", "show", "seed1", "--json"]);
    assert_eq!(node["reached"], "mount", "{node}");
    assert_eq!(node["failure"], serde_json::Value::Null, "{node}");
    assert_eq!(node["initrd_bytes"], bytes, "sent as it is");
    assert_eq!(node["mounted"], true);

    site.slate(&["initrd", "use", "debian12", "--reset"]);
    let shown = site.slate_json(&["image", "show", "debian12", "--json"]);
    assert_eq!(shown["own_initrd_bytes"], serde_json::Value::Null);
}

/// Has the image's own dracut make an initramfs, in a version that nodes do not boot.
fn made(site: &Site) -> PathBuf {
    site.slate(&["image", "run", "debian12", "--", "sh", "-c", BUILD]);
    let mut export = site
        .slate_command()
        .args(["image", "export", "debian12:next", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("slate starts");
    let initrd = site.path("initrd.dracut");
    let status = Command::new("tar")
        .args([
            "--extract",
            "--to-stdout",
            "--wildcards",
            "*boot/initrd.dracut",
        ])
        .stdin(export.stdout.take().expect("a pipe"))
        .stdout(File::create(&initrd).expect("a file"))
        .status();
    assert!(status.expect("tar starts").success());
    assert!(export.wait().expect("waiting").success());
    initrd
}
