//! `cargo xtask bench boot`: how the peer boots a virtual machine, stage by stage.

mod capture;
mod peer;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use lab::{Firmware, Hardware, MacAddress, Machine, Network, Qemu, Tool};
use serde_json::{Value, json};

use crate::install;
use crate::workspace::{is_root, target_directory};
use capture::{Capture, Traffic};

const PATIENCE: Duration = Duration::from_secs(600);
/// Dracut's initramfs does not fit into less.
const MEMORY_MIB: u32 = 2048;

/// Runs the benchmark that `arguments` name.
pub fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    match arguments {
        ["boot", "--peer", root] => boot_peer(Path::new(root)),
        _ => bail!(
            "unknown benchmark: {}; known: boot --peer DIR (an unpacked Debian root)",
            arguments.join(" ")
        ),
    }
}

fn boot_peer(root: &Path) -> anyhow::Result<ExitCode> {
    if !is_root() {
        bail!("the benchmark makes networks and exports files: run it as root");
    }
    install::ensure(
        &[Tool::Qemu, Tool::Firmware, Tool::Iproute],
        &peer::PROGRAMS,
    )?;
    let folder = target_directory()?.join("bench");
    let peer = peer::Peer::prepare(root, &folder)?;
    let network = Network::new()?;
    let _servers = peer.start(&network)?;
    let boot = measure(&network, &folder.join("peer.pcap"))?;
    println!("{:#}", boot.as_json(peer.initrd_bytes()?));
    Ok(ExitCode::SUCCESS)
}

/// One boot; times in seconds since the epoch.
struct Boot {
    power_on_s: f64,
    kernel_s: f64,
    multi_user_s: f64,
    traffic: Traffic,
}

/// Powers a machine on and watches it until multi-user.
fn measure(network: &Network, capture_file: &Path) -> anyhow::Result<Boot> {
    let capture = Capture::start(network, capture_file.to_owned())?;
    let firmware = Firmware::find(false).context("OVMF is installed, but not found")?;
    let hardware = Hardware::Qemu(Qemu::new(firmware, MEMORY_MIB)?.without_reboot());
    let serial = capture_file.with_extension("serial");
    let _ = std::fs::remove_file(&serial);
    let machine = Machine::power_on(network, "bench", MacAddress::nth(1), hardware, Some(serial))?;
    let power_on_s = machine
        .powered_on()
        .duration_since(UNIX_EPOCH)?
        .as_secs_f64();
    let line = |text: &'static str| {
        let line = machine.console().wait_line(text, PATIENCE, |line| {
            line.contains(text) || line.contains("Kernel panic")
        })?;
        if !line.text.contains(text) {
            bail!("the machine stopped before {text:?}: {}", line.text);
        }
        anyhow::Ok(power_on_s + line.at.as_secs_f64())
    };
    let kernel_s = line("Linux version")?;
    let multi_user_s = line("Reached target multi-user.target")?;
    let traffic = capture.finish(multi_user_s)?;
    Ok(Boot {
        power_on_s,
        kernel_s,
        multi_user_s,
        traffic,
    })
}

impl Boot {
    fn as_json(&self, initrd_bytes: u64) -> Value {
        let mounted = self.traffic.root_mounted_s;
        json!({
            "dhcp-to-kernel": self.traffic.discover_s.map(|at| self.kernel_s - at),
            "kernel-to-root": mounted.map(|at| at - self.kernel_s),
            "root-to-multi-user": mounted.map(|at| self.multi_user_s - at),
            "total": self.multi_user_s - self.power_on_s,
            "initrd-bytes": initrd_bytes,
            "boot-rpcs": self.traffic.calls,
            "boot-read-bytes": self.traffic.read_bytes,
        })
    }
}
