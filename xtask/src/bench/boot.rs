//! `cargo xtask bench boot`: one virtual machine and one image, booted by the peer and by us.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use lab::{Firmware, Hardware, MacAddress, Machine, Network, Qemu, Tool};

use super::Options;
use super::capture::{Capture, Traffic};
use super::ours::Ours;
use super::peer::{self, Peer};
use super::row::{Better, Report, Row, median};
use crate::workspace::{is_root, target_directory};
use crate::{dist, install};

/// What both sides add to the kernel's command line: the console that is watched.
pub const KERNEL_ARGS: &str = "console=ttyS0,115200n8";
/// The image.
pub const IMAGE: &str = "debian12";
const PATIENCE: Duration = Duration::from_secs(600);
/// Dracut's initramfs does not fit into less.
const MEMORY_MIB: u32 = 2048;
const TOOLS: [Tool; 5] = [
    Tool::Qemu,
    Tool::Firmware,
    Tool::Iproute,
    Tool::UserModeLinux,
    Tool::Mmdebstrap,
];

/// Runs it: boots of each side, in turn.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let rounds = options.rounds;
    if !is_root() {
        bail!("the benchmark makes networks and exports files: run it as root");
    }
    install::ensure(&TOOLS, &peer::PROGRAMS)?;
    let folder = target_directory()?.join("bench");
    let cache = cache(&folder);
    let ours = Ours::prepare(dist::build()?, folder.join("ours"), IMAGE, &cache)?;
    let peer = (!options.ours)
        .then(|| Peer::prepare(&archive(&cache)?, &folder))
        .transpose()?;
    let (mut our_boots, mut their_boots) = (Vec::new(), Vec::new());
    let (mut identical, mut named) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        if let Some(peer) = &peer {
            their_boots.push(boot_peer(peer, &folder).context(peer::NAME)?);
            say(round, rounds, "peer", their_boots.last());
        }
        our_boots.push(boot_ours(&ours, &folder).context("Cleanslate")?);
        say(round, rounds, "ours", our_boots.last());
        named.push(ours.four_at_once(&[])?);
        identical.push(ours.four_at_once(&IDENTICAL)?);
        eprintln!(
            "round {round}/{rounds}: four nodes {:.1} s, four that call themselves localhost {:.1} s",
            named[round - 1],
            identical[round - 1]
        );
    }
    let mut rows = rows(&our_boots, &their_boots);
    rows.push(Row {
        better: Better::Lower,
        name: "identical-clients",
        unit: "slowest of four `localhost` / slowest of four named",
        ours: median(identical) / median(named),
        peer: None,
    });
    Ok(Report {
        name: "boot",
        conditions: conditions(rounds)?,
        rows,
    })
}

/// Makes all nodes introduce themselves to the NFS server in the same words.
const IDENTICAL: [&str; 2] = ["--kernel-args", "hostname=localhost nfs.nfs4_unique_id="];

fn say(round: usize, rounds: usize, side: &str, boot: Option<&Boot>) {
    if let Some(boot) = boot {
        let total_s = boot.multi_user_s - boot.power_on_s;
        eprintln!("round {round}/{rounds}: {side} multi-user {total_s:.1} s after power-on");
    }
}

/// Where archives of images are kept: `folder`, unless the environment names another.
pub fn cache(folder: &Path) -> PathBuf {
    std::env::var_os("SLATE_CACHE_DIR").map_or_else(|| folder.to_owned(), PathBuf::from)
}

/// The image's archive, which building our image left in the cache.
pub fn archive(cache: &Path) -> anyhow::Result<PathBuf> {
    let entries = std::fs::read_dir(cache).context("listing the cache of images")?;
    let archives = entries.flatten().map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("bookworm-") && name.ends_with(".tar") && !name.contains(".partial")
    });
    archives
        .max_by_key(|path| path.metadata().and_then(|it| it.modified()).ok())
        .with_context(|| format!("no archive of {IMAGE} in {}", cache.display()))
}

fn boot_peer(peer: &Peer, folder: &Path) -> anyhow::Result<Boot> {
    let network = Network::new()?;
    let _servers = peer.start(&network)?;
    let initrd_bytes = peer.initrd_bytes()?;
    measure(&network, &folder.join("peer.pcap"), |_| Ok(initrd_bytes))
}

fn boot_ours(ours: &Ours, folder: &Path) -> anyhow::Result<Boot> {
    let network = Network::new()?;
    let _daemon = ours.start(&network, &["--kernel-args", KERNEL_ARGS])?;
    let initrd_bytes = |machine: &Machine| {
        // The first boot of a version teaches the later ones; it has to be told that this one is up.
        ours.wait_up(machine)?;
        ours.initrd_bytes(machine.mac())
    };
    measure(&network, &folder.join("ours.pcap"), initrd_bytes)
}

/// One boot; times in seconds since the epoch.
struct Boot {
    power_on_s: f64,
    discover_s: f64,
    kernel_s: f64,
    root_s: f64,
    multi_user_s: f64,
    initrd_bytes: u64,
    traffic: Traffic,
}

/// Powers a machine on and watches it until multi-user.
fn measure(
    network: &Network,
    capture_file: &Path,
    initrd_bytes: impl FnOnce(&Machine) -> anyhow::Result<u64>,
) -> anyhow::Result<Boot> {
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
        ensure!(
            line.text.contains(text),
            "the machine stopped before {text:?}: {}",
            line.text
        );
        anyhow::Ok(power_on_s + line.at.as_secs_f64())
    };
    let kernel_s = line("Linux version")?;
    let multi_user_s = line("Reached target multi-user.target")?;
    let initrd_bytes = initrd_bytes(&machine)?;
    let traffic = capture.finish(multi_user_s)?;
    Ok(Boot {
        power_on_s,
        discover_s: traffic.discover_s.context("no DISCOVER was captured")?,
        kernel_s,
        root_s: traffic.root_mounted_s.context("no mount was captured")?,
        multi_user_s,
        initrd_bytes,
        traffic,
    })
}

/// A row's name, its unit, and how it is read off a boot.
type Figure = (&'static str, &'static str, fn(&Boot) -> f64);

const FIGURES: [Figure; 7] = [
    ("dhcp-to-kernel", "s", |it| it.kernel_s - it.discover_s),
    ("kernel-to-root", "s", |it| it.root_s - it.kernel_s),
    ("root-to-multi-user", "s", |it| it.multi_user_s - it.root_s),
    ("total", "s", |it| it.multi_user_s - it.power_on_s),
    ("initrd-bytes", "B", |it| it.initrd_bytes as f64),
    ("boot-rpcs", "calls", |it| it.traffic.calls as f64),
    ("boot-read-bytes", "B", |it| it.traffic.read_bytes as f64),
];

fn rows(ours: &[Boot], theirs: &[Boot]) -> Vec<Row> {
    let middle = |boots: &[Boot], read: fn(&Boot) -> f64| median(boots.iter().map(read).collect());
    FIGURES
        .into_iter()
        .map(|(name, unit, read)| Row {
            better: Better::Lower,
            name,
            unit,
            ours: middle(ours, read),
            peer: (!theirs.is_empty()).then(|| (peer::NAME, middle(theirs, read))),
        })
        .collect()
}

fn conditions(rounds: usize) -> anyhow::Result<Vec<(&'static str, String)>> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(vec![
        ("rounds", format!("{rounds} of each side in turn, medians")),
        (
            "machine",
            format!("{cores} cores, Linux {}, load {}", kernel.trim(), load.trim()),
        ),
        (
            "node",
            format!("QEMU (TCG) with OVMF, 1 CPU, {MEMORY_MIB} MiB, PXE; {IMAGE}, its own kernel"),
        ),
        (
            "initramfs",
            "ours: --drivers virtual; theirs: dracut --no-hostonly with nfs, overlay-root, network-legacy"
                .to_owned(),
        ),
        (
            "identical-clients",
            "User-Mode Linux, four nodes at once, power-on to multi-user as the server hears of it"
                .to_owned(),
        ),
    ])
}
