//! The kernel's own NFS server, in a User-Mode Linux machine on the network of the node: fit to
//! compare how many calls a node makes, not how fast they are answered.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Hardware, MacAddress, Machine, Network, Uml};

use crate::bench::script;
use crate::install::Extra;
use crate::workspace::must_succeed;

/// Its name in the results.
pub const NAME: &str = "kernel nfsd";
/// What it needs of this machine.
pub const PROGRAMS: [Extra; 2] = [
    Extra {
        path: "/usr/sbin/modprobe",
        package: "kmod",
        purpose: "load the kernel's NFS server",
    },
    Extra {
        path: "/usr/sbin/mount.nfs",
        package: "nfs-common",
        purpose: "start the kernel's NFS server",
    },
];
/// Its address; the peer's DHCP server gives out addresses from .100 on.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The path that clients mount: the tree itself. The kernel would look for the folders above any
/// other one in the file system of the machine's root, which nfsd cannot export.
pub const EXPORT: &str = "/";

/// Where the machine has the tree.
const TREE: &str = "/mnt/root";

const PATIENCE: Duration = Duration::from_secs(120);
const MEMORY_MIB: u32 = 512;
const READY: &str = "kernel nfsd serves";

/// Unpacks the server's programs. Installing their package would start a server on this machine.
const FETCH: &str = r#"
set -e
rm -rf "$1"
mkdir -p "$1"
cd "$1"
apt-get -o APT::Sandbox::User=root download nfs-kernel-server
dpkg-deb --extract nfs-kernel-server_*.deb .
"#;

/// The tree as a file system that nfsd can export.
const PACK: &str = r#"
set -e
rm -f "$2.part"
truncate --size=$(($(du --summarize --block-size=1M "$1" | cut --fields=1) * 3 / 2 + 256))M "$2.part"
PATH="$PATH:/sbin:/usr/sbin" mke2fs -q -t ext4 -d "$1" "$2.part"
mv "$2.part" "$2"
"#;

/// The only program of the machine, whose root is this machine's, not writable.
fn init(tools: &Path) -> String {
    let tools = tools.join("usr/sbin");
    let tools = tools.display();
    format!(
        r#"#!/bin/sh
set -e
export PATH={tools}:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs mnt /mnt
mount -t tmpfs nfs /var/lib/nfs
mkdir -p {TREE} /mnt/lib/modules /var/lib/nfs/v4recovery
mount --bind /usr/lib/uml/modules /mnt/lib/modules
modprobe --dirname=/mnt nfsd
mount -t nfsd nfsd /proc/fs/nfsd
mount -t ext4 -o ro /dev/ubda {TREE}
ip link set lo up
ip address add {ADDRESS}/24 dev vec0
ip link set vec0 up
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
# It complains, and fails, where this machine has no /etc/exports.
exportfs -o ro,no_root_squash,no_subtree_check,insecure,fsid=0 '*:{TREE}' || test -s /var/lib/nfs/etab
rpc.mountd --no-nfs-version 3 --foreground &
rpc.nfsd --no-nfs-version 3 --nfs-version 4.1 --nfs-version 4.2 --no-udp 4
echo Y > /proc/fs/nfsd/v4_end_grace
echo '{READY}'
exec sleep infinity
"#
    )
}

/// Starts it on `network`, with `tree` to serve; what it is made of is kept in `folder`.
pub fn start(network: &Network, tree: &Path, folder: &Path) -> anyhow::Result<Machine> {
    let tools = folder.join("nfs-kernel-server");
    if !tools.join("usr/sbin/rpc.nfsd").exists() {
        must_succeed(script(FETCH).arg(&tools))
            .context("fetching the package nfs-kernel-server")?;
    }
    let disk = disk(tree)?;
    if !disk.exists() {
        must_succeed(script(PACK).arg(tree).arg(&disk)).context("packing the image for nfsd")?;
    }
    let path = folder.join("knfsd-init");
    std::fs::write(&path, init(&tools)).with_context(|| format!("writing {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    let hardware = Hardware::Uml(Uml {
        initrd: None,
        command_line: format!(
            "ubd0r={} root=/dev/root rootfstype=hostfs rootflags=/ ro init={}",
            disk.display(),
            path.display()
        ),
        memory_mib: MEMORY_MIB,
    });
    let console = folder.join("knfsd.console");
    let _ = std::fs::remove_file(&console);
    let mac = MacAddress::nth(200);
    let machine = Machine::power_on(network, "knfsd", mac, hardware, Some(console))?;
    let line = machine
        .console()
        .wait_line("nfsd", PATIENCE, |line| {
            line.contains(READY) || line.contains("Kernel panic")
        })
        .with_context(|| machine.console().last_lines(8))?;
    ensure!(
        line.text.contains(READY),
        "kernel nfsd does not start:\n{}",
        machine.console().last_lines(8)
    );
    Ok(machine)
}

/// Beside the tree, whose name says which image it is of.
fn disk(tree: &Path) -> anyhow::Result<PathBuf> {
    let mut name = tree
        .file_name()
        .context("a tree without a name")?
        .to_owned();
    name.push(".ext4");
    Ok(tree.with_file_name(name))
}
