//! Boots of a node under User-Mode Linux whose calls are captured: from our server, and as
//! each peer has it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, ensure};
use lab::{GATEWAY, Hardware, MacAddress, Machine, Network, Uml};

use super::cpio::Archive;
use super::knfsd;
use super::load::Boot;
use super::pcap;
use crate::bench::capture::Capture;
use crate::bench::ours::Ours;
use crate::bench::peer::Peer;

const PATIENCE: Duration = Duration::from_secs(300);
const MEMORY_MIB: u32 = 384;

/// The boots that are compared.
pub struct Boots {
    /// From our server, with what an earlier boot of the image taught it.
    pub ours: Boot,
    /// From our server, the first of its image: what the node will read is not known yet.
    pub first: Boot,
}

/// Boots a node from our server twice: the first boot of the image, and one after it.
pub fn ours(ours: &Ours, folder: &Path) -> anyhow::Result<Boots> {
    ours.forget_traces()?;
    let first = boot_ours(ours, folder, "first").context("the first boot of the image")?;
    ensure!(
        ours.trace()?.is_some(),
        "the first boot of the image left no trace of what it read"
    );
    Ok(Boots {
        first,
        ours: boot_ours(ours, folder, "ours")?,
    })
}

fn boot_ours(ours: &Ours, folder: &Path, name: &str) -> anyhow::Result<Boot> {
    let network = Network::new()?;
    let _daemon = ours.start(&network, &[])?;
    let initrd = folder.join("initrd");
    ours.write_uml_initrd(&initrd)?;
    if let Some(trace) = ours.trace()? {
        let mut archive = Archive::default();
        archive.file("trace", &trace);
        let plain = std::fs::read(&initrd)?;
        std::fs::write(&initrd, [archive.finish(), plain].concat())?;
    }
    let mac = MacAddress::nth(1);
    let command_line = ours.command_line(mac)?;
    let export = command_line
        .split(['"', ' ', ':', ','])
        .find(|word| word.starts_with("/images/"))
        .context("the command line names no image")?
        .to_owned();
    let file = folder.join(format!("{name}.pcap"));
    let capture = Capture::start(&network, file.clone())?;
    let machine = power_on(
        &network,
        initrd,
        command_line,
        folder.join(format!("{name}.console")),
    )?;
    let up_s = ours.wait_up(&machine)?;
    capture.stop()?;
    Ok(Boot {
        capture: file,
        export,
        end_us: (up_s * 1e6) as u64,
    })
}

/// Boots a node from NFS-Ganesha.
pub fn ganesha(ours: &Ours, peer: &Peer, folder: &Path) -> anyhow::Result<Boot> {
    let network = Network::new()?;
    let _servers = peer.start(&network)?;
    boot_theirs(ours, &network, (GATEWAY, "/export/root"), folder, "ganesha")
}

/// Boots a node from the kernel's NFS server, with the DHCP server of the peer.
pub fn knfsd(ours: &Ours, peer: &Peer, tree: &Path, folder: &Path) -> anyhow::Result<Boot> {
    let network = Network::new()?;
    let _servers = peer.start(&network)?;
    let _nfsd = knfsd::start(&network, tree, folder)?;
    let source = (knfsd::ADDRESS, knfsd::EXPORT);
    boot_theirs(ours, &network, source, folder, "knfsd-node")
}

/// Boots a node from a peer's NFS server: by our `/init`, as User-Mode Linux has it, but mounted
/// as the recipe says, and without having learnt anything.
fn boot_theirs(
    ours: &Ours,
    network: &Network,
    (server, export): (Ipv4Addr, &str),
    folder: &Path,
    name: &str,
) -> anyhow::Result<Boot> {
    let initrd = folder.join("initrd");
    ours.write_uml_initrd(&initrd)?;
    // A login prompt would take the console before the line that is waited for.
    let command_line =
        format!("root=nfs4:{server}:{export}:ro,vers=4.2 systemd.mask=serial-getty@ttyS0.service");
    let file = folder.join(format!("{name}.pcap"));
    let capture = Capture::start(network, file.clone())?;
    let console = folder.join(format!("{name}.console"));
    let machine = power_on(network, initrd, command_line, console)?;
    let line = machine
        .console()
        .wait_line("multi-user", PATIENCE, |line| {
            line.contains("Reached target multi-user.target") || line.contains("Kernel panic")
        })
        .with_context(|| machine.console().last_lines(8))?;
    ensure!(
        !line.text.contains("panic"),
        "the node panics: {}",
        line.text
    );
    let powered_on = machine.powered_on().duration_since(UNIX_EPOCH)?;
    let end_us = (powered_on + line.at).as_micros() as u64;
    capture.stop()?;
    Ok(Boot {
        capture: file,
        export: export.to_owned(),
        end_us,
    })
}

fn power_on(
    network: &Network,
    initrd: PathBuf,
    command_line: String,
    console: PathBuf,
) -> anyhow::Result<Machine> {
    let hardware = Hardware::Uml(Uml {
        initrd: Some(initrd),
        command_line,
        memory_mib: MEMORY_MIB,
    });
    let _ = std::fs::remove_file(&console);
    let mac = MacAddress::nth(1);
    Ok(Machine::power_on(
        network,
        "bench",
        mac,
        hardware,
        Some(console),
    )?)
}

/// The NFS calls of a boot, from its first one until the node was up.
pub fn calls(boot: &Boot, port: u16) -> anyhow::Result<usize> {
    let capture = std::fs::read(&boot.capture)
        .with_context(|| format!("reading {}", boot.capture.display()))?;
    let records = pcap::records(&capture, port)?;
    let is_call = |it: &&pcap::Record| {
        it.to_server && it.at_us <= boot.end_us && it.body.get(4..8) == Some(&[0; 4])
    };
    Ok(records.iter().filter(is_call).count())
}
