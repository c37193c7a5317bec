//! Makes a Debian image by mmdebstrap.

use std::ffi::OsString;
use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};
use wire::hex::hexadecimal;

/// A Debian release that images can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

/// What a build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The stage, for people.
    pub stage: String,
    /// How much of the whole build is done, 0 to 100.
    pub percent: u8,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// mmdebstrap is not installed.
    #[error("mmdebstrap: not found on PATH")]
    NoMmdebstrap,
    /// mmdebstrap gave up.
    #[error("mmdebstrap failed ({status}): {}", last_lines.join("; "))]
    Failed {
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last errors that it printed.
        last_lines: Vec<String>,
    },
    /// Something on this machine could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// What to do next; empty where its words do not tell.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoMmdebstrap => "install it: apt-get install mmdebstrap",
            Self::Failed { last_lines, .. } => hint(last_lines),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => DISK_SPACE,
                io::ErrorKind::PermissionDenied => "run it as root (sudo)",
                _ => "",
            },
        }
    }
}

const DISK_SPACE: &str =
    "free some disk space: a build needs about 2 GB in the temporary folder and the cache";

/// Makes a tar archive of a root file system that boots well without a disk.
///
/// Needs root, the network and about 1 GB in `out_tar`'s directory.
pub fn build(
    suite: Suite,
    extra_packages: &[String],
    out_tar: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let mut child =
        command(suite, extra_packages, out_tar)
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => Error::NoMmdebstrap,
                _ => io_error("starting", Path::new("mmdebstrap"))(source),
            })?;
    let stderr = child.stderr.take().expect("standard error is piped");
    let errors = follow(stderr, progress);
    let status = child
        .wait()
        .map_err(io_error("waiting for", Path::new("mmdebstrap")))?;
    if status.success() {
        return Ok(());
    }
    // What is there is not an archive.
    let _ = std::fs::remove_file(out_tar);
    Err(Error::Failed {
        status,
        last_lines: errors,
    })
}

/// The name under which a built archive can be kept: it changes when the recipe does.
pub fn cache_key(suite: Suite, extra_packages: &[String]) -> String {
    let mut hash = Sha256::new();
    for word in arguments(suite, extra_packages, Path::new("")) {
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word.as_encoded_bytes());
    }
    let digest = hash.finalize();
    let short = hexadecimal(&digest[..8]);
    format!("{}-{short}", suite.codename())
}

impl Suite {
    /// Its name in the archive.
    pub fn codename(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
        }
    }
}

impl std::str::FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(text: &str) -> Result<Self, UnknownSuite> {
        match text {
            "debian12" | "bookworm" => Ok(Suite::Bookworm),
            "debian13" | "trixie" => Ok(Suite::Trixie),
            _ => Err(UnknownSuite {
                got: text.to_owned(),
            }),
        }
    }
}

/// A word that names no release that images can be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected debian12 or debian13, got {got:?}")]
pub struct UnknownSuite {
    /// The word.
    pub got: String,
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

fn arguments(suite: Suite, extra_packages: &[String], out_tar: &Path) -> Vec<OsString> {
    let mut packages = PACKAGES.replace(' ', "");
    for package in extra_packages {
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
    words.push(suite.codename().into());
    words.push(out_tar.into());
    words
}

fn command(suite: Suite, extra_packages: &[String], out_tar: &Path) -> Command {
    let mut command = Command::new("mmdebstrap");
    command
        .args(arguments(suite, extra_packages, out_tar))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// What mmdebstrap says it is doing, how far that is through a build, and the words for it.
const STAGES: [(&str, u8, &str); 6] = [
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
/// Error lines kept for the message.
const ERRORS_KEPT: usize = 4;

/// Reports stages until the stream ends; returns the last error lines.
fn follow(stderr: impl io::Read, progress: &mut dyn FnMut(Progress)) -> Vec<String> {
    let mut errors = Vec::new();
    for line in io::BufReader::new(stderr)
        .split(b'\n')
        .map_while(Result::ok)
    {
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if let Some((_, percent, stage)) = STAGES.iter().find(|(mark, ..)| line.contains(mark)) {
            progress(Progress {
                stage: (*stage).to_owned(),
                percent: *percent,
            });
        }
        if line.starts_with("E: ")
            || line.contains("No space left")
            || line.contains("Could not resolve")
        {
            errors.push(line);
        }
        if errors.len() > ERRORS_KEPT {
            errors.remove(0);
        }
    }
    errors
}

/// What to do about a failure, as far as its words tell.
fn hint(lines: &[String]) -> &'static str {
    let says = |words: &[&str]| {
        lines
            .iter()
            .any(|line| words.iter().any(|word| line.contains(word)))
    };
    if says(&["No space left"]) {
        DISK_SPACE
    } else if says(&[
        "Could not resolve",
        "Failed to fetch",
        "Connection",
        "unable to download",
    ]) {
        "check that this machine reaches a Debian mirror (and http_proxy, if it needs one)"
    } else if says(&["must be root", "unshare", "newuidmap"]) {
        "run it as root (sudo)"
    } else {
        "try again later: a mirror that is being updated fails like this; if it stays so, report the lines above"
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_key_follows_the_recipe() {
        let key = cache_key(Suite::Bookworm, &[]);
        assert!(key.starts_with("bookworm-"));
        assert_ne!(key, cache_key(Suite::Bookworm, &["vim".into()]));
        assert_ne!(key, cache_key(Suite::Trixie, &[]));
    }

    #[test]
    fn progress_and_errors_are_read_from_what_it_prints() {
        let text = "I: automatically chosen mode: root\nI: running apt-get update...\ndone\n\
                    E: Failed to fetch http://x\nE: apt-get failed\n";
        let mut seen = Vec::new();
        let errors = follow(text.as_bytes(), &mut |progress| seen.push(progress.percent));
        assert_eq!(seen, [2]);
        assert_eq!(errors.len(), 2);
        assert!(hint(&errors).contains("mirror"));
        assert!(hint(&["E: No space left on device".into()]).contains("disk space"));
    }
}
