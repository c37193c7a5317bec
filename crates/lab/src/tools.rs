//! The programs that the lab needs, and how to get those that are missing.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::qemu::Firmware;
use crate::uml::Uml;

/// Something that has to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    /// The virtual machine, `qemu-system-x86_64`.
    Qemu,
    /// UEFI firmware for it.
    Firmware,
    /// The User-Mode Linux kernel, `linux.uml`, and its modules.
    UserModeLinux,
    /// iPXE as the ROMs of virtual network cards.
    IpxeRoms,
    /// `ip`, which makes bridges and taps.
    Iproute,
    /// The `ssh` client.
    SshClient,
    /// `mmdebstrap`, which makes Debian images.
    Mmdebstrap,
    /// A C compiler for the static musl target.
    MuslCompiler,
    /// `tcpdump`, which shows what was really sent.
    Tcpdump,
    /// The commands of libnfs, `nfs-ls` among them.
    Libnfs,
    /// `dnsmasq`, a DHCP server.
    Dnsmasq,
    /// `busybox` as one program without libraries.
    Busybox,
}

/// Of QEMU's network cards, the ROM of the one that the lab's machines have.
const IPXE_ROM: &str = "/usr/lib/ipxe/qemu/efi-virtio.rom";

impl Tool {
    /// The program or file that is looked for.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64",
            Self::Firmware => "OVMF firmware",
            Self::UserModeLinux => "linux.uml",
            Self::IpxeRoms => "iPXE's ROMs",
            Self::Iproute => "ip",
            Self::SshClient => "ssh",
            Self::Mmdebstrap => "mmdebstrap",
            Self::MuslCompiler => "musl-gcc",
            Self::Tcpdump => "tcpdump",
            Self::Libnfs => "nfs-ls",
            Self::Dnsmasq => "dnsmasq",
            Self::Busybox => "busybox",
        }
    }

    /// What it is needed for, as the end of "… is needed to".
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Qemu => "run virtual nodes",
            Self::Firmware => "give virtual nodes UEFI firmware",
            Self::UserModeLinux => "boot nodes quickly, without firmware",
            Self::IpxeRoms => "give virtual nodes network cards with iPXE",
            Self::Iproute => "make the private network",
            Self::SshClient => "log in to nodes",
            Self::Mmdebstrap => "make the Debian image",
            Self::MuslCompiler => "compile static programs",
            Self::Tcpdump => "look at packets",
            Self::Libnfs => "read over NFS with another client than the kernel's",
            Self::Dnsmasq => "be another DHCP server",
            Self::Busybox => "have a shell in the initramfs",
        }
    }

    /// Whether it is installed.
    pub fn is_installed(self) -> bool {
        match self {
            Self::Firmware => Firmware::find(false).is_some(),
            Self::IpxeRoms => Path::new(IPXE_ROM).exists(),
            Self::UserModeLinux => find_program(self.name()).is_some() && Uml::modules().is_some(),
            Self::Busybox => find_program(self.name()).is_some_and(|path| is_static(&path)),
            _ => find_program(self.name()).is_some(),
        }
    }

    /// The package that holds it; `None` where the distribution has none.
    pub fn package(self, distribution: Distribution) -> Option<&'static str> {
        use Distribution::{Arch, Debian, Fedora, Suse};
        Some(match (self, distribution) {
            (Self::Qemu, Debian) => "qemu-system-x86",
            (Self::Qemu, Fedora) => "qemu-system-x86-core",
            (Self::Qemu, Suse) => "qemu-x86",
            (Self::Qemu, Arch) => "qemu-system-x86",
            (Self::Firmware, Debian) => "ovmf",
            (Self::Firmware, Suse) => "qemu-ovmf-x86_64",
            (Self::Firmware, Fedora | Arch) => "edk2-ovmf",
            (Self::UserModeLinux, Debian) => "user-mode-linux",
            (Self::UserModeLinux, _) => return None,
            (Self::IpxeRoms, Debian) => "ipxe-qemu",
            (Self::IpxeRoms, Fedora) => "ipxe-roms-qemu",
            (Self::IpxeRoms, Suse) => "qemu-ipxe",
            (Self::IpxeRoms, Arch) => "qemu-system-x86-firmware",
            (Self::Iproute, Fedora) => "iproute",
            (Self::Iproute, _) => "iproute2",
            (Self::SshClient, Debian) => "openssh-client",
            (Self::SshClient, Fedora | Suse) => "openssh-clients",
            (Self::SshClient, Arch) => "openssh",
            (Self::Mmdebstrap, Debian | Fedora) => "mmdebstrap",
            (Self::Mmdebstrap, _) => return None,
            (Self::MuslCompiler, Debian) => "musl-tools",
            (Self::MuslCompiler, Fedora) => "musl-gcc",
            (Self::MuslCompiler, Suse | Arch) => "musl",
            (Self::Tcpdump, _) => "tcpdump",
            (Self::Libnfs, Debian | Fedora) => "libnfs-utils",
            (Self::Libnfs, Arch) => "libnfs",
            (Self::Libnfs, Suse) => return None,
            (Self::Dnsmasq, Debian) => "dnsmasq-base",
            (Self::Dnsmasq, _) => "dnsmasq",
            (Self::Busybox, Debian | Suse) => "busybox-static",
            (Self::Busybox, _) => "busybox",
        })
    }
}

/// A family of distributions, known by its package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// apt: Debian, Ubuntu and what derives from them.
    Debian,
    /// dnf: Fedora, Rocky, Alma, RHEL.
    Fedora,
    /// zypper: openSUSE, SLES.
    Suse,
    /// pacman: Arch and what derives from it.
    Arch,
}

impl Distribution {
    /// The distribution that `/etc/os-release` names; `None` if it is not a known one.
    pub fn detect() -> Option<Self> {
        Self::from_os_release(&std::fs::read_to_string("/etc/os-release").ok()?)
    }

    /// The first of `ID` and `ID_LIKE` that is known.
    fn from_os_release(text: &str) -> Option<Self> {
        let field = |key: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
            Some(line.trim_matches(['"', '\'']).to_owned())
        };
        let names = [field("ID"), field("ID_LIKE")]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ");
        names.split_whitespace().find_map(|name| match name {
            "debian" | "ubuntu" => Some(Self::Debian),
            "fedora" | "rhel" | "centos" => Some(Self::Fedora),
            "suse" | "opensuse" | "sles" => Some(Self::Suse),
            "arch" => Some(Self::Arch),
            _ => None,
        })
    }

    /// The command that installs packages, without their names.
    pub fn install_command(self) -> &'static [&'static str] {
        match self {
            Self::Debian => &["apt-get", "install", "--yes", "--no-install-recommends"],
            Self::Fedora => &["dnf", "install", "--assumeyes"],
            Self::Suse => &["zypper", "--non-interactive", "install"],
            Self::Arch => &["pacman", "--sync", "--noconfirm", "--needed"],
        }
    }
}

/// Tools that are not installed, with the command that installs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTools {
    /// The missing tools.
    pub tools: Vec<Tool>,
    /// The distribution found here.
    pub distribution: Option<Distribution>,
}

impl MissingTools {
    /// The packages that hold the missing tools.
    pub fn packages(&self) -> Vec<&'static str> {
        let Some(distribution) = self.distribution else {
            return Vec::new();
        };
        self.tools
            .iter()
            .filter_map(|tool| tool.package(distribution))
            .collect()
    }
}

impl MissingTools {
    /// How to get them.
    pub fn hint(&self) -> String {
        match self.distribution {
            Some(distribution) if !self.packages().is_empty() => {
                let manager = distribution.install_command();
                let verb: Vec<_> = manager
                    .iter()
                    .filter(|word| !word.starts_with("--") || **word == "--sync")
                    .copied()
                    .collect();
                format!(
                    "install with: {} {}",
                    verb.join(" "),
                    self.packages().join(" ")
                )
            }
            _ => "install with your distribution's package manager".to_owned(),
        }
    }
}

impl fmt::Display for MissingTools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.tools.iter().map(|tool| tool.name()).collect();
        write!(f, "missing: {}", names.join(", "))
    }
}

impl std::error::Error for MissingTools {}

/// Checks that every tool of `wanted` is installed.
pub fn find_tools(wanted: &[Tool]) -> Result<(), MissingTools> {
    let tools: Vec<Tool> = wanted
        .iter()
        .copied()
        .filter(|tool| !tool.is_installed())
        .collect();
    if tools.is_empty() {
        return Ok(());
    }
    Err(MissingTools {
        tools,
        distribution: Distribution::detect(),
    })
}

/// The program's path, by `PATH` and the system folders that an ordinary user's `PATH` lacks.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// Whether a program names no dynamic loader, as its first page would.
fn is_static(program: &Path) -> bool {
    let mut head = [0; 4096];
    let read = File::open(program).and_then(|mut file| file.read(&mut head));
    let loader = b"ld-linux";
    read.is_ok() && !head.windows(loader.len()).any(|part| part == loader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_known_by_id_then_by_likeness() {
        let detect = Distribution::from_os_release;
        assert_eq!(detect("NAME=x\nID=debian\n"), Some(Distribution::Debian));
        assert_eq!(
            detect("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"),
            Some(Distribution::Fedora)
        );
        assert_eq!(
            detect("ID=opensuse-leap\nID_LIKE='suse opensuse'\n"),
            Some(Distribution::Suse)
        );
        assert_eq!(
            detect("ID=manjaro\nID_LIKE=arch\n"),
            Some(Distribution::Arch)
        );
        assert_eq!(detect("ID=plan9\n"), None);
    }

    #[test]
    fn the_message_says_what_is_missing_and_how_to_get_it() {
        let missing = MissingTools {
            tools: vec![Tool::Qemu, Tool::Firmware],
            distribution: Some(Distribution::Debian),
        };
        assert_eq!(
            missing.to_string(),
            "missing: qemu-system-x86_64, OVMF firmware"
        );
        assert_eq!(
            missing.hint(),
            "install with: apt-get install qemu-system-x86 ovmf"
        );
    }
}
