//! Debian, by mmdebstrap.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use super::{Error, Progress, Recipe, Stage, run};

/// Makes the archive.
pub fn build(
    suite: &str,
    recipe: &Recipe,
    out_tar: &Path,
    log: &File,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let mut command = Command::new("mmdebstrap");
    command.args(arguments(suite, recipe, out_tar));
    run("mmdebstrap", &mut command, &STAGES, is_error, log, progress)
}

/// Whether a line says why mmdebstrap fails.
pub fn is_error(line: &str) -> bool {
    line.starts_with("E: ") || line.contains("No space left") || line.contains("Could not resolve")
}

/// What every image has: systemd, a network manager, a kernel with its signed loaders, SSH.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,libpam-systemd,systemd-timesyncd,iproute2,\
    iputils-ping,kmod,login,passwd,procps,less,ca-certificates,openssh-server,linux-image-amd64,\
    shim-signed,grub-efi-amd64-signed";

/// Left out of what packages bring: half the inodes of an image, and of no use on a node. The
/// initramfs that the kernel's package makes would be the largest file of all.
const EXCLUDED: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
];

/// What is done to the tree before it is packed. Nodes bring their own identity and network.
const CUSTOMIZE: [&str; 7] = [
    "rm -f \"$1\"/etc/ssh/ssh_host_* \"$1\"/var/lib/dbus/machine-id \"$1\"/boot/initrd.img-* \"$1\"/var/log/*.log",
    ": > \"$1\"/etc/machine-id",
    ": > \"$1\"/etc/fstab",
    "rm -f \"$1\"/etc/hostname \"$1\"/etc/resolv.conf",
    "chroot \"$1\" systemctl enable systemd-networkd.service serial-getty@ttyS0.service",
    // Jobs of a machine with a disk.
    "chroot \"$1\" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
     e2scrub_all.timer e2scrub_reap.service fstrim.timer man-db.timer",
    "rm -rf \"$1\"/var/cache/apt/archives/*.deb \"$1\"/var/lib/apt/lists/*",
];

/// What mmdebstrap is told.
pub fn arguments(suite: &str, recipe: &Recipe, out_tar: &Path) -> Vec<OsString> {
    let mut packages = PACKAGES.replace(' ', "");
    for package in &recipe.packages {
        packages = packages + "," + package;
    }
    let mut words: Vec<OsString> = vec![
        "--variant=minbase".into(),
        "--format=tar".into(),
        format!("--include={packages}").into(),
        "--aptopt=Acquire::Retries \"5\"".into(),
        "--aptopt=APT::Install-Recommends \"false\"".into(),
        // The kernel's package would make an initramfs that nobody uses: 30 s and 30 MB.
        "--essential-hook=mkdir -p \"$1\"/etc/initramfs-tools && echo update_initramfs=no > \"$1\"/etc/initramfs-tools/update-initramfs.conf".into(),
    ];
    // That file is a conffile of initramfs-tools, which would ask whether to keep it.
    words.push("--dpkgopt=force-confold".into());
    words.extend(
        EXCLUDED
            .iter()
            .map(|path| format!("--dpkgopt=path-exclude={path}").into()),
    );
    words.extend(
        CUSTOMIZE
            .iter()
            .map(|hook| format!("--customize-hook={hook}").into()),
    );
    words.push(suite.into());
    words.push(out_tar.into());
    words.extend(recipe.mirrors.iter().map(OsString::from));
    words
}

/// What mmdebstrap says it is doing, how far that is through a build, and the words for it.
pub const STAGES: [Stage; 6] = [
    ("running apt-get update", 2, "fetching the package index"),
    ("downloading packages", 8, "downloading base packages"),
    ("extracting archives", 15, "unpacking base packages"),
    (
        "installing essential packages",
        20,
        "installing base packages",
    ),
    (
        "installing remaining packages",
        35,
        "downloading and installing packages",
    ),
    ("cleaning package lists", 85, "packing"),
];
