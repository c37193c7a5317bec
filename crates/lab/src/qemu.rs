//! QEMU with OVMF, or with SeaBIOS and an iPXE ROM, booting from the network.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::machine::MacAddress;
use crate::network::Tap;
use crate::process::inherited_path;

/// UEFI firmware files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The code, mapped read-only.
    pub code: PathBuf,
    /// The template of the variable store; every machine gets its own copy.
    pub variables: PathBuf,
    /// Whether these variables enforce Secure Boot with Microsoft's keys.
    pub secure_boot: bool,
}

impl Firmware {
    /// The firmware of the distribution's OVMF package; `None` if it is not installed.
    pub fn find(secure_boot: bool) -> Option<Self> {
        let pairs: &[(&str, &str)] = if secure_boot {
            &[
                (
                    "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
                    "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
                ),
                (
                    "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd",
                    "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd",
                ),
                (
                    "/usr/share/qemu/ovmf-x86_64-smm-ms-code.bin",
                    "/usr/share/qemu/ovmf-x86_64-smm-ms-vars.bin",
                ),
                (
                    "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd",
                    "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
                ),
            ]
        } else {
            &[
                (
                    "/usr/share/OVMF/OVMF_CODE_4M.fd",
                    "/usr/share/OVMF/OVMF_VARS_4M.fd",
                ),
                (
                    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
                    "/usr/share/edk2/ovmf/OVMF_VARS.fd",
                ),
                (
                    "/usr/share/qemu/ovmf-x86_64-code.bin",
                    "/usr/share/qemu/ovmf-x86_64-vars.bin",
                ),
                (
                    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
                    "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
                ),
            ]
        };
        pairs
            .iter()
            .find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists())
            .map(|(code, variables)| Self {
                code: code.into(),
                variables: variables.into(),
                secure_boot,
            })
    }
}

/// A virtual PC that boots from its one network card.
#[derive(Clone, Debug)]
pub struct Qemu {
    boot: Boot,
    memory_mib: u32,
    kvm: bool,
    reboots: bool,
}

/// What the machine starts with.
#[derive(Clone, Debug)]
enum Boot {
    Uefi {
        firmware: Firmware,
        variables: Arc<OwnedFd>,
        network: UefiNetwork,
    },
    /// SeaBIOS, and the network card's ROM, which is iPXE. Both speak on the serial line.
    Bios,
}

/// How UEFI firmware boots from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UefiNetwork {
    /// PXE, over TFTP.
    Pxe,
    /// HTTP boot.
    Http,
    /// The network card's ROM, which is iPXE, takes over from the firmware.
    IpxeRom,
}

impl Qemu {
    /// A machine with its own copy of the firmware's variables, kept in memory.
    pub fn new(firmware: Firmware, memory_mib: u32) -> io::Result<Self> {
        let template = std::fs::read(&firmware.variables)?;
        let mut copy = File::from(rustix::fs::memfd_create(
            c"firmware-variables",
            rustix::fs::MemfdFlags::CLOEXEC,
        )?);
        copy.write_all(&template)?;
        Ok(Self::starting(
            Boot::Uefi {
                firmware,
                variables: Arc::new(copy.into()),
                network: UefiNetwork::Pxe,
            },
            memory_mib,
        ))
    }

    /// A machine with a legacy BIOS, whose network card has iPXE as its ROM.
    pub fn bios(memory_mib: u32) -> Self {
        Self::starting(Boot::Bios, memory_mib)
    }

    fn starting(boot: Boot, memory_mib: u32) -> Self {
        Self {
            boot,
            memory_mib,
            kvm: false,
            reboots: true,
        }
    }

    /// UEFI firmware boots from the network in this way. A BIOS knows only its ROM.
    pub fn with_network(mut self, wanted: UefiNetwork) -> Self {
        if let Boot::Uefi { network, .. } = &mut self.boot {
            *network = wanted;
        }
        self
    }

    /// Uses hardware virtualisation; check [`kvm_usable`] first.
    pub fn with_kvm(mut self) -> Self {
        self.kvm = true;
        self
    }

    /// Ends the machine where the guest asks for a reboot.
    pub fn without_reboot(mut self) -> Self {
        self.reboots = false;
        self
    }

    /// Descriptors that QEMU needs.
    pub(crate) fn inherit(&self) -> Vec<Arc<OwnedFd>> {
        match &self.boot {
            Boot::Uefi { variables, .. } => vec![variables.clone()],
            Boot::Bios => Vec::new(),
        }
    }

    pub(crate) fn command(&self, tap: &Tap, mac: MacAddress) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        if self.kvm {
            command.args(["-accel", "kvm", "-cpu", "host"]);
        } else {
            command.args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"]);
        }
        command.args(["-smp", "1", "-m", &self.memory_mib.to_string()]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        if !self.reboots {
            command.arg("-no-reboot");
        }
        let rom = match &self.boot {
            Boot::Uefi {
                firmware,
                variables,
                network,
            } => add_uefi(&mut command, firmware, variables, *network),
            Boot::Bios => {
                command.args(["-M", "q35,graphics=off"]);
                CardRom::Ipxe
            }
        };
        command.arg("-netdev").arg(format!(
            "tap,id=n0,ifname={},script=no,downscript=no",
            tap.name
        ));
        // With the default ROM iPXE takes over from the firmware.
        let rom = match rom {
            CardRom::None => ",romfile=",
            CardRom::Ipxe => "",
        };
        command.arg("-device").arg(format!(
            "virtio-net-pci,netdev=n0,bootindex=1,mac={mac}{rom}"
        ));
        command.args(["-device", "virtio-rng-pci"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }
}

/// The network card's ROM.
enum CardRom {
    None,
    Ipxe,
}

fn add_uefi(
    command: &mut Command,
    firmware: &Firmware,
    variables: &Arc<OwnedFd>,
    network: UefiNetwork,
) -> CardRom {
    let secure = firmware.secure_boot;
    command.args(["-M", if secure { "q35,smm=on" } else { "q35" }]);
    if secure {
        command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
    }
    let code = firmware.code.display();
    let variables = inherited_path(&**variables);
    command
        .arg("-drive")
        .arg(format!("if=pflash,format=raw,readonly=on,file={code}"));
    command
        .arg("-drive")
        .arg(format!("if=pflash,format=raw,file={variables}"));
    if network == UefiNetwork::Http {
        for family in ["IPv4", "IPv6"] {
            command.arg("-fw_cfg").arg(format!(
                "name=opt/org.tianocore/{family}PXESupport,string=n"
            ));
        }
    }
    match network {
        UefiNetwork::IpxeRom => CardRom::Ipxe,
        UefiNetwork::Pxe | UefiNetwork::Http => CardRom::None,
    }
}

/// Whether hardware virtualisation is there and the processor really offers it (a `/dev/kvm`
/// without `vmx` or `svm` exists in some guests and hangs firmware).
pub fn kvm_usable() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualises = flags
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        });
    virtualises
        && File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}
