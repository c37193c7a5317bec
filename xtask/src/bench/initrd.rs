//! `cargo xtask bench initrd`: the initramfs of one kernel, built by dracut and by us.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use lab::Tool;
use serde_json::Value;

use super::boot::{IMAGE, archive, cache};
use super::ours::Ours;
use super::peer::{UNSHARE, in_namespace};
use super::row::{Better, Report, Row, median};
use super::{Options, seconds, start};
use crate::workspace::{is_root, must_succeed, target_directory};
use crate::{dist, install};

/// The peer's name in the results.
pub const NAME: &str = "dracut";
/// The compression that sizes are compared in, on both sides.
const SMALL: &str = "19";

/// Unpacks the archive `$1` into the folder `$2` and installs dracut there, with what its modules ask for.
const PREPARE: &str = r#"
set -e
rm -rf "$2"
mkdir -p "$2"
tar --extract --file="$1" --directory="$2" --numeric-owner
cp /etc/resolv.conf "$2/etc/resolv.conf"
mount --bind /proc "$2/proc"
export DEBIAN_FRONTEND=noninteractive
chroot "$2" apt-get update
chroot "$2" apt-get install --yes --no-install-recommends dracut-core dracut-network nfs-common rpcbind \
    kbd iputils-arping isc-dhcp-client zstd binutils
touch "$2/.prepared"
"#;

/// Runs dracut in the folder `$1`, as the usual recipe for an NFS root has it; `$2…` are added. Debian's
/// would take networkd by itself, which leaves an NFS root waiting for ever.
const DRACUT: &str = r#"
set -e
root=$1
shift
for folder in proc sys dev; do mount --bind "/$folder" "$root/$folder"; done
exec chroot "$root" dracut --quiet --no-hostonly --no-hostonly-cmdline --nofscks \
    --add-drivers "virtio_net overlay nfs nfsv4" --install more \
    -m "bash systemd systemd-initrd i18n network network-legacy ifcfg dm kernel-modules kernel-modules-extra kernel-network-modules rootfs-block terminfo udev-rules dracut-systemd usrmount base fs-lib nfs" \
    --kver "$(ls "$root/lib/modules")" "$@" --force /boot/initrd.bench
"#;

/// What `--only` chooses from: `start` are the times of boots, `memory` is what they take.
const PARTS: [&str; 4] = ["sizes", "build", "start", "memory"];

/// Builds on each side, in turn.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    options.loads(&PARTS)?;
    if !is_root() {
        bail!("the benchmark unpacks an image and runs dracut in it: run it as root");
    }
    let tools = [&[Tool::Mmdebstrap][..], &start::TOOLS].concat();
    install::ensure(&tools, &[UNSHARE])?;
    let folder = target_directory()?.join("bench");
    let cache = cache(&folder);
    let program = dist::build()?;
    // Its archive is what both sides build from.
    let ours = Ours::prepare(program.clone(), folder.join("ours"), IMAGE, &cache)?;
    let site = Site::prepare(&archive(&cache)?, &folder.join("initrd"), program)?;
    let mut rows = Vec::new();
    if options.wants("sizes") {
        rows.extend(sizes(&site, options)?);
    }
    if options.wants("build") {
        rows.push(build(&site, options)?);
    }
    if options.wants("start") || options.wants("memory") {
        let theirs = site.folder.join("theirs.img");
        if !options.ours && !theirs.exists() {
            site.theirs(&[])?;
        }
        let dracut = (!options.ours).then_some(theirs.as_path());
        rows.extend(start::rows(&ours, &site.folder, dracut, options)?);
    }
    Ok(Report {
        name: "initrd",
        conditions: conditions(options.rounds)?,
        rows,
    })
}

/// One unpacked image with dracut in it, and our program.
struct Site {
    root: PathBuf,
    folder: PathBuf,
    program: PathBuf,
}

impl Site {
    fn prepare(archive: &Path, folder: &Path, program: PathBuf) -> anyhow::Result<Self> {
        let name = archive.file_stem().context("an archive without a name")?;
        let site = Self {
            root: folder.join(name),
            folder: folder.to_owned(),
            program,
        };
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        if !site.root.join(".prepared").exists() {
            eprintln!("unpacking {IMAGE} and installing dracut in it, once");
            must_succeed(in_namespace(PREPARE).arg(archive).arg(&site.root))
                .context("installing dracut in the image")?;
        }
        Ok(site)
    }

    /// Builds ours; what it says of itself.
    fn ours(&self, profile: &str, more: &[&str]) -> anyhow::Result<Value> {
        let output = Command::new(&self.program)
            .args(["initrd", "build"])
            .arg(&self.root)
            .args(["--profile", profile, "--json", "--output"])
            .arg(self.folder.join("ours.img"))
            .args(more)
            .stderr(Stdio::inherit())
            .output()
            .context("starting slate initrd build")?;
        ensure!(output.status.success(), "slate initrd build failed");
        serde_json::from_slice(&output.stdout).context("reading what slate initrd build says")
    }

    /// Builds dracut's, and leaves it in the folder; its size in bytes.
    fn theirs(&self, more: &[&str]) -> anyhow::Result<u64> {
        must_succeed(in_namespace(DRACUT).arg(&self.root).args(more)).context("running dracut")?;
        let built = self.root.join("boot/initrd.bench");
        let bytes = std::fs::copy(&built, self.folder.join("theirs.img"))
            .with_context(|| format!("copying {}", built.display()))?;
        std::fs::remove_file(&built).with_context(|| format!("removing {}", built.display()))?;
        Ok(bytes)
    }
}

/// Sizes do not vary: one build of each.
fn sizes(site: &Site, options: &Options) -> anyhow::Result<Vec<Row>> {
    let compress = format!("zstd -{SMALL} -T0");
    let theirs = (!options.ours)
        .then(|| site.theirs(&["--compress", &compress]))
        .transpose()?;
    let peer = theirs.map(|bytes| (NAME, bytes as f64));
    let (mut rows, mut init) = (Vec::new(), None);
    for (name, profile) in [
        ("initrd-virtual", "virtual"),
        ("initrd-server", "server"),
        ("initrd-all-nic", "all-nic"),
    ] {
        let built = site.ours(profile, &["--compression", "zstd", "--level", SMALL])?;
        rows.push(Row {
            better: Better::Lower,
            name,
            unit: "B",
            ours: number(&built, "bytes")?,
            peer,
        });
        init = Some(number(&built, "init_bytes")?);
    }
    rows.push(Row {
        better: Better::Lower,
        name: "init-bytes",
        unit: "B",
        ours: init.context("no initramfs was built")?,
        peer: None,
    });
    Ok(rows)
}

fn number(built: &Value, name: &str) -> anyhow::Result<f64> {
    let number = built[name].as_f64();
    number.with_context(|| format!("slate initrd build --json names no {name}"))
}

/// How long a build takes with each side's own compression.
fn build(site: &Site, options: &Options) -> anyhow::Result<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        if !options.ours {
            theirs.push(seconds(|| site.theirs(&[]).map(drop))?);
        }
        ours.push(seconds(|| site.ours("server", &[]).map(drop))?);
        eprintln!(
            "round {round}/{}: {theirs:.1?} {ours:.1?} s",
            options.rounds
        );
    }
    Ok(Row {
        better: Better::Lower,
        name: "build",
        unit: "s",
        ours: median(ours),
        peer: (!theirs.is_empty()).then(|| (NAME, median(theirs))),
    })
}

fn conditions(rounds: usize) -> anyhow::Result<Vec<(&'static str, String)>> {
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(vec![
        (
            "rounds",
            format!("sizes once; build {rounds} times on each side in turn, medians"),
        ),
        ("machine", format!("{cores} cores, load {}", load.trim())),
        (
            "input",
            format!(
                "one unpacked {IMAGE}, its kernel, its firmware; nothing is kept between builds"
            ),
        ),
        (
            "compression",
            format!(
                "sizes: zstd -{SMALL} on both sides; build: each side's default, profile server"
            ),
        ),
        (
            "boots",
            "QEMU (TCG) with OVMF, 1 CPU, 2048 MiB, virtio; our servers, the recipe's command line; \
             ours: profile virtual; dracut's as the last build left it; memory once"
                .to_owned(),
        ),
    ])
}
