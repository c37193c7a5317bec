//! `cargo xtask bench chain`: one virtual machine, from its first DHCP packet to its kernel's first
//! line, by dnsmasq with shim and GRUB, by our shim and GRUB, and by our iPXE over HTTP, in turn. All
//! of them serve the same kernel, initramfs and loaders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use lab::{Firmware, Hardware, MacAddress, Machine, Network, Process, Qemu, Tool};

use super::Options;
use super::boot::{IMAGE, KERNEL_ARGS, cache};
use super::capture::{Capture, TCPDUMP, TSHARK};
use super::ours::Ours;
use super::row::{Better, Report, Row, median};
use crate::dist;
use crate::install::{self, Extra};
use crate::workspace::{is_root, target_directory};

/// Emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(300);
const MEMORY_MIB: u32 = 1024;
const IPXE: &str = "/usr/lib/ipxe/snponly.efi";
const PEER: &str = "dnsmasq + shim + GRUB";
const TOOLS: [Tool; 4] = [Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Mmdebstrap];
const PROGRAMS: [Extra; 4] = [
    Extra {
        path: "/usr/sbin/dnsmasq",
        package: "dnsmasq-base",
        purpose: "be the peer's DHCP and TFTP server",
    },
    Extra {
        path: IPXE,
        package: "ipxe",
        purpose: "boot over HTTP",
    },
    TCPDUMP,
    TSHARK,
];

/// A way to boot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chain {
    Peer,
    Grub,
    Ipxe,
}

impl Chain {
    fn name(self) -> &'static str {
        match self {
            Chain::Peer => PEER,
            Chain::Grub => "Cleanslate, shim and GRUB",
            Chain::Ipxe => "Cleanslate, iPXE",
        }
    }
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    if !is_root() {
        bail!("the benchmark makes networks and serves on low ports: run it as root");
    }
    install::ensure(&TOOLS, &PROGRAMS)?;
    let wanted = options.loads(&["grub", "ipxe"])?;
    let bench = Bench::prepare()?;
    let mut chains = Vec::new();
    if !options.ours {
        chains.push((Chain::Peer, Vec::new()));
    }
    for (load, chain) in [("grub", Chain::Grub), ("ipxe", Chain::Ipxe)] {
        if wanted.contains(&load) {
            chains.push((chain, Vec::new()));
        }
    }
    for round in 1..=options.rounds {
        for (chain, seconds) in &mut chains {
            let took = bench.boot(*chain).with_context(|| chain.name())?;
            let (rounds, name) = (options.rounds, chain.name());
            eprintln!("round {round}/{rounds}: {name} {took:.1} s");
            seconds.push(took);
        }
    }
    Ok(Report {
        name: "chain",
        conditions: bench.conditions(options.rounds)?,
        rows: rows(&chains),
    })
}

fn rows(chains: &[(Chain, Vec<f64>)]) -> Vec<Row> {
    let middle = |chain| {
        let found = chains.iter().find(|it| it.0 == chain)?;
        Some(median(found.1.clone()))
    };
    let row = |name, chain| {
        Some(Row {
            name,
            unit: "s",
            better: Better::Lower,
            ours: middle(chain)?,
            peer: middle(Chain::Peer).map(|it| (PEER, it)),
        })
    };
    let rows = [
        row("dhcp-to-kernel", Chain::Grub),
        row("dhcp-to-kernel-ipxe", Chain::Ipxe),
    ];
    rows.into_iter().flatten().collect()
}

struct Bench {
    ours: Ours,
    scratch: PathBuf,
}

/// Servers that run for one boot.
struct Servers {
    _process: Process,
}

impl Bench {
    fn prepare() -> anyhow::Result<Self> {
        let folder = target_directory()?.join("bench");
        let ours = Ours::prepare(dist::build()?, folder.join("ours"), IMAGE, &cache(&folder))?;
        ours.add_loader(Path::new(IPXE))?;
        let bench = Self {
            ours,
            scratch: folder.join("chain"),
        };
        let tftp = bench.tftp();
        fs::create_dir_all(tftp.join("grub"))
            .with_context(|| format!("making {}", tftp.display()))?;
        bench
            .ours
            .write_boot_files(&tftp, &["vmlinuz", "initrd", "shimx64.efi", "grubx64.efi"])?;
        let config = format!("linux /vmlinuz {KERNEL_ARGS}\ninitrd /initrd\nboot\n");
        fs::write(tftp.join("grub/grub.cfg"), config).context("writing GRUB's configuration")?;
        Ok(bench)
    }

    /// What dnsmasq serves.
    fn tftp(&self) -> PathBuf {
        self.scratch.join("tftp")
    }

    /// Seconds from the first DHCP packet to the kernel's first line.
    fn boot(&self, chain: Chain) -> anyhow::Result<f64> {
        let network = Network::new()?;
        let _servers = self.serve(chain, &network)?;
        let capture = Capture::start(&network, self.scratch.join("dhcp.pcap"))?;
        let firmware = Firmware::find(false).context("OVMF is installed, but not found")?;
        let hardware = Hardware::Qemu(Qemu::new(firmware, MEMORY_MIB)?.without_reboot());
        let mac = MacAddress::nth(1);
        let machine = Machine::power_on(&network, "bench", mac, hardware, None)?;
        let line = machine
            .console()
            .wait_line("Linux version", PATIENCE, |line| {
                line.contains("Linux version") || line.contains("Kernel panic")
            })?;
        ensure!(line.text.contains("Linux version"), "{}", line.text);
        let powered_on = machine.powered_on().duration_since(UNIX_EPOCH)?;
        let kernel_s = (powered_on + line.at).as_secs_f64();
        drop(machine);
        let discover_s = capture.finish(kernel_s)?.discover_s;
        Ok(kernel_s - discover_s.context("no DISCOVER was captured")?)
    }

    fn serve(&self, chain: Chain, network: &Network) -> anyhow::Result<Servers> {
        let options: &[&str] = match chain {
            Chain::Peer => {
                let _process = self.start_peer(network)?;
                return Ok(Servers { _process });
            }
            Chain::Grub => &["--kernel-args", KERNEL_ARGS],
            Chain::Ipxe => &["--kernel-args", KERNEL_ARGS, "--loader", "ipxe"],
        };
        let _process = self.ours.start(network, options)?;
        Ok(Servers { _process })
    }

    fn start_peer(&self, network: &Network) -> anyhow::Result<Process> {
        let leases = self.scratch.join("leases");
        let _ = fs::remove_file(&leases);
        let mut command = Command::new("/usr/sbin/dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]);
        command.args(["--pid-file=", "--user=root", "--bind-interfaces"]);
        command.args(["--no-ping", "--dhcp-authoritative", "--enable-tftp"]);
        command.arg("--dhcp-range=10.77.0.100,10.77.0.200,1h");
        command.args(["--dhcp-match=set:efi64,option:client-arch,7"]);
        command.arg("--dhcp-boot=tag:efi64,shimx64.efi");
        command.arg(format!("--interface={}", network.interface()));
        command.arg(format!("--tftp-root={}", self.tftp().display()));
        command.arg(format!("--dhcp-leasefile={}", leases.display()));
        command.stdin(Stdio::null()).stderr(Stdio::null());
        network.spawn(command).context("starting dnsmasq")
    }

    fn conditions(&self, rounds: usize) -> anyhow::Result<Vec<(&'static str, String)>> {
        let cores = std::thread::available_parallelism()?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let load = fs::read_to_string("/proc/loadavg")?;
        let megabytes = |file| {
            let about = fs::metadata(self.tftp().join(file))?;
            anyhow::Ok(about.len() as f64 / 1e6)
        };
        Ok(vec![
            ("rounds", format!("{rounds} of each in turn, medians")),
            (
                "machine",
                format!(
                    "{cores} cores, Linux {}, load {}",
                    kernel.trim(),
                    load.trim()
                ),
            ),
            (
                "node",
                format!("QEMU (TCG) with OVMF, 1 CPU, {MEMORY_MIB} MiB, PXE; {IMAGE}"),
            ),
            (
                "files",
                format!(
                    "kernel {:.1} MB, initramfs {:.1} MB, the same for all",
                    megabytes("vmlinuz")?,
                    megabytes("initrd")?
                ),
            ),
        ])
    }
}
