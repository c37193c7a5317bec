//! The peer: dnsmasq, NFS-Ganesha and dracut, put together as one would by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use lab::{GATEWAY, Network, Process};

use super::boot::KERNEL_ARGS;
use super::capture::{TCPDUMP, TSHARK};
use super::ganesha::{self, Ganesha};
use crate::install::Extra;
use crate::workspace::must_succeed;

/// What [`in_namespace`] needs.
pub const UNSHARE: Extra = Extra {
    path: "/usr/bin/unshare",
    package: "util-linux",
    purpose: "run dracut in the image",
};

/// What the peer is made of.
pub const PROGRAMS: [Extra; 6] = [
    Extra {
        path: "/usr/sbin/dnsmasq",
        package: "dnsmasq-base",
        purpose: "be the peer's DHCP and TFTP server",
    },
    ganesha::PROGRAM,
    TCPDUMP,
    TSHARK,
    UNSHARE,
    Extra {
        path: "/usr/bin/ssh-keygen",
        package: "openssh-client",
        purpose: "give the peer's image host keys",
    },
];

/// Its name in the results.
pub const NAME: &str = "dnsmasq + NFS-Ganesha + dracut";

/// The boot files, and the tree that is exported.
pub struct Peer {
    /// The unpacked image.
    root: PathBuf,
    tftp: PathBuf,
    scratch: PathBuf,
}

/// The running servers.
pub struct Servers {
    _dnsmasq: Process,
    _ganesha: Process,
}

/// Unpacks the image's archive into the folder that is exported, with what a node needs to keep
/// running: host keys, the same on every node (without any, its SSH server would fail and be tried
/// again), and a network configuration that leaves the address alone which the root depends on.
const UNPACK: &str = r#"
set -e
rm -rf "$2"
mkdir -p "$2"
tar --extract --file="$1" --directory="$2" --numeric-owner --xattrs --xattrs-include='*'
ssh-keygen -A -f "$2" > /dev/null
printf '[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\nKeepConfiguration=yes\n\n[DHCPv4]\nClientIdentifier=mac\n' \
    > "$2/etc/systemd/network/10-root.network"
"#;

/// Runs in a private mount namespace: a copy of the image gets dracut, which makes its initramfs;
/// the image itself stays as it is.
const PREPARE: &str = r#"
set -e
rm -rf "$2"
cp -a --reflink=auto "$1" "$2"
cp /etc/resolv.conf "$2/etc/resolv.conf"
mount --bind /proc "$2/proc"
export DEBIAN_FRONTEND=noninteractive
chroot "$2" apt-get update
chroot "$2" apt-get install --yes --no-install-recommends dracut-core dracut-network nfs-common iputils-arping isc-dhcp-client
chroot "$2" dracut --force --no-hostonly --kver "$(ls "$2/lib/modules")" --add "nfs overlay-root network-legacy" /boot/initrd.peer
# dnsmasq as root serves only what everybody may read.
chmod 0644 "$2/boot/initrd.peer"
"#;

impl Peer {
    /// Unpacks the image's `archive` and makes boot files for it; both are kept in `folder`.
    pub fn prepare(archive: &Path, folder: &Path) -> anyhow::Result<Self> {
        let name = archive.file_stem().context("an archive without a name")?;
        let folder = folder.join(name);
        let peer = Self {
            root: folder.join("root"),
            tftp: folder.join("tftp"),
            scratch: folder.join("scratch"),
        };
        std::fs::create_dir_all(&peer.scratch)
            .with_context(|| format!("making {}", folder.display()))?;
        if !peer.initrd().exists() {
            eprintln!("making the peer's root and initramfs, once");
            must_succeed(in_namespace(UNPACK).arg(archive).arg(&peer.root))
                .context("unpacking the image")?;
            peer.build(&folder.join("dracut"))?;
        }
        Ok(peer)
    }

    /// The size of its initramfs.
    pub fn initrd_bytes(&self) -> anyhow::Result<u64> {
        Ok(std::fs::metadata(self.initrd())
            .context("reading the peer's initramfs")?
            .len())
    }

    fn initrd(&self) -> PathBuf {
        self.tftp.join("initrd")
    }

    fn build(&self, copy: &Path) -> anyhow::Result<()> {
        must_succeed(in_namespace(PREPARE).arg(&self.root).arg(copy))
            .context("running dracut in a copy of the image")?;
        std::fs::create_dir_all(self.tftp.join("grub"))?;
        let boot =
            std::fs::read_dir(self.root.join("boot")).context("listing the image's /boot")?;
        let kernel = boot
            .flatten()
            .map(|entry| entry.path())
            .find(|path| is_kernel(path))
            .context("the image has no kernel")?;
        for (from, to) in [
            (kernel, "vmlinuz"),
            (
                self.root.join("usr/lib/shim/shimx64.efi.signed"),
                "shimx64.efi",
            ),
            (
                self.root
                    .join("usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"),
                "grubx64.efi",
            ),
        ] {
            std::fs::copy(&from, self.tftp.join(to))
                .with_context(|| format!("copying {}", from.display()))?;
        }
        let config = format!(
            "linux /vmlinuz {KERNEL_ARGS} root=nfs4:{GATEWAY}:/export/root:ro,vers=4.2 rootovl ip=dhcp rd.neednet=1\ninitrd /initrd\nboot\n"
        );
        std::fs::write(self.tftp.join("grub/grub.cfg"), config)?;
        // Last, because its presence says that the rest is there.
        std::fs::copy(copy.join("boot/initrd.peer"), self.initrd())
            .context("copying the peer's initramfs")?;
        std::fs::remove_dir_all(copy).context("removing the copy of the image")
    }

    /// Starts its servers on `network`.
    pub fn start(&self, network: &Network) -> anyhow::Result<Servers> {
        let dnsmasq = self.write("dnsmasq.conf", &self.dnsmasq_config(network))?;
        let mut command = Command::new("dnsmasq");
        command
            .arg("--keep-in-foreground")
            .arg(format!("--conf-file={}", dnsmasq.display()));
        let dnsmasq = {
            command.stdin(Stdio::null()).stderr(Stdio::null());
            network.spawn(command).context("starting dnsmasq")?
        };
        let ganesha = Ganesha {
            root: &self.root,
            export: "/export/root",
            numeric_owners: true,
            processor: None,
        };
        let ganesha = ganesha.start(network, &self.scratch)?;
        Ok(Servers {
            _dnsmasq: dnsmasq,
            _ganesha: ganesha,
        })
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.scratch.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn dnsmasq_config(&self, network: &Network) -> String {
        format!(
            "port=0\ninterface={}\nbind-interfaces\nno-ping\ndhcp-authoritative\ndhcp-range=10.77.0.100,10.77.0.200,1h\n\
             dhcp-match=set:efi64,option:client-arch,7\ndhcp-boot=tag:efi64,shimx64.efi\nenable-tftp\ntftp-root={}\n\
             dhcp-leasefile={}\nuser=root\n",
            network.interface(),
            self.tftp.display(),
            self.scratch.join("leases").display(),
        )
    }
}

/// A script in a mount namespace of its own: what it mounts goes with it. It keeps only its errors.
pub fn in_namespace(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn is_kernel(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
}
