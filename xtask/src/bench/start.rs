//! How an initramfs starts systemd: the same machine, kernel, servers and command line, once with
//! dracut's and once with ours, in turn.
//!
//! Times are the kernel's own, off its log on the serial console. Three moments are read, alike on
//! both sides: the kernel's start, which is 0; its line `Run … as init process`; and the first words
//! of the root's systemd. Memory is what is available (`MemAvailable`) at the worst moment before
//! those words, taken from what is available to the same kernel with next to nothing in its
//! initramfs. While an initramfs is unpacked its file is in memory too, before any process could
//! look; that moment counts by the file's size.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::{Console, Firmware, GATEWAY, Hardware, MacAddress, Machine, Network, Qemu, Tool};

use super::Options;
use super::boot::{IMAGE, KERNEL_ARGS};
use super::initrd::NAME;
use super::ours::Ours;
use super::row::{Better, Row, median};
use crate::install::MUSL;
use crate::workspace::must_succeed;

/// What booting takes, besides what building takes.
pub const TOOLS: [Tool; 4] = [Tool::Qemu, Tool::Firmware, Tool::Iproute, Tool::Busybox];

const PATIENCE: Duration = Duration::from_secs(900);
const MEMORY_MIB: u32 = 2048;
/// The recipe's own words behind the path of its root.
const RECIPE: &str = "ro,vers=4.2,sec=sys,nolock net.ifnames=0 selinux=0";
/// So that no line of the watcher is dropped.
const WATCHED: &str = "rdinit=/lowest printk.devkmsg=on";

/// Packs the folder `$1` into the file `$2`.
const PACK: &str = r#"
cd "$1"
mkdir -p dev proc
[ -e dev/console ] || mknod -m 600 dev/console c 5 1
find . | busybox cpio -o -H newc > "$2" 2> /dev/null
"#;

/// The /init of an initramfs with next to nothing in it.
const BARE: &str = "#!/busybox sh\n/busybox mount -t proc proc /proc\n\
    while read -r name number unit; do\n\
    [ \"$name\" = MemAvailable: ] && echo \"bare: $number kB\"\n\
    done < /proc/meminfo\n/busybox sleep 1000\n";

/// A side of the comparison.
struct Side<'a> {
    initrd: &'a Path,
    /// How many systemds say that they run: dracut has one in its initramfs.
    banners: usize,
}

/// Boots each side in turn; `dracut` is left out where it is `None`.
pub fn rows(
    ours: &Ours,
    folder: &Path,
    dracut: Option<&Path>,
    options: &Options,
) -> anyhow::Result<Vec<Row>> {
    let own = folder.join("start.img");
    ours.write_initrd(&own, "virtual")?;
    let place = Place::prepare(ours, folder)?;
    let mut sides = vec![Side {
        initrd: &own,
        banners: 1,
    }];
    sides.extend(dracut.map(|initrd| Side { initrd, banners: 2 }));
    let mut rows = Vec::new();
    if options.wants("start") {
        rows.extend(times(&place, &sides, options.rounds)?);
    }
    if options.wants("memory") {
        let bare = place.bare()?;
        let peaks = sides
            .iter()
            .map(|side| place.peak(side, bare).context("booting for memory"));
        rows.push(row(
            "peak-memory",
            "B",
            &peaks.collect::<anyhow::Result<Vec<f64>>>()?,
        ));
    }
    ours.use_initrd(None)?;
    Ok(rows)
}

/// Boots for times.
fn times(place: &Place<'_>, sides: &[Side<'_>], rounds: usize) -> anyhow::Result<Vec<Row>> {
    let mut times = vec![Vec::new(); sides.len()];
    for round in 1..=rounds {
        for (side, times) in sides.iter().zip(&mut times) {
            let time = place.boot(side).context("booting for times")?;
            eprintln!(
                "round {round}/{rounds}: {} {time:.1?} s",
                side.initrd.display()
            );
            times.push(time);
        }
    }
    let middle = |pick: fn(&(f64, f64)) -> f64| -> Vec<f64> {
        let of = |times: &Vec<(f64, f64)>| median(times.iter().map(pick).collect());
        times.iter().map(of).collect()
    };
    Ok(vec![
        row("kernel-to-systemd", "s", &middle(|(_, systemd)| *systemd)),
        row(
            "init-to-systemd",
            "s",
            &middle(|(init, systemd)| systemd - init),
        ),
    ])
}

/// A row of what each side has, ours first.
fn row(name: &'static str, unit: &'static str, values: &[f64]) -> Row {
    Row {
        name,
        unit,
        better: Better::Lower,
        ours: values[0],
        peer: values.get(1).map(|theirs| (NAME, *theirs)),
    }
}

struct Place<'a> {
    ours: &'a Ours,
    folder: &'a Path,
    /// An archive with the watcher.
    watcher: PathBuf,
}

impl<'a> Place<'a> {
    fn prepare(ours: &'a Ours, folder: &'a Path) -> anyhow::Result<Self> {
        let inside = folder.join("watcher");
        let _ = std::fs::remove_dir_all(&inside);
        std::fs::create_dir_all(&inside)?;
        let source = folder.join("lowest.rs");
        std::fs::write(&source, include_str!("lowest.rs"))?;
        let mut rustc = Command::new("rustc");
        rustc
            .args(["--edition", "2024", "--target", MUSL])
            .args([
                "-C",
                "opt-level=z",
                "-C",
                "panic=abort",
                "-C",
                "strip=symbols",
            ])
            .arg("-o")
            .arg(inside.join("lowest"))
            .arg(&source);
        must_succeed(&mut rustc).context("compiling the watcher")?;
        let watcher = folder.join("watcher.cpio");
        pack(&inside, &watcher)?;
        Ok(Self {
            ours,
            folder,
            watcher,
        })
    }

    /// When the kernel started /init and when systemd spoke, in seconds since the kernel's start.
    fn boot(&self, side: &Side<'_>) -> anyhow::Result<(f64, f64)> {
        self.ours.use_initrd(Some(side.initrd))?;
        let machine = self.power_on(&recipe())?;
        let systemd = wait_systemd(machine.console(), side.banners)?;
        let lines = machine.console().lines();
        let init = lines
            .iter()
            .find(|line| line.text.contains("Run /") && line.text.contains("as init process"));
        let init = init.context("the kernel does not say when it starts /init")?;
        Ok((printed_at(&init.text)?, systemd))
    }

    /// The most memory that an initramfs and its programs took, in bytes.
    fn peak(&self, side: &Side<'_>, bare_kb: u64) -> anyhow::Result<f64> {
        let bytes = std::fs::metadata(side.initrd)?.len();
        let initrd = self.with_watcher(side.initrd)?;
        self.ours.use_initrd(Some(&initrd))?;
        let machine = self.power_on(&format!("{} {WATCHED}", recipe()))?;
        wait_systemd(machine.console(), side.banners)?;
        let lines = machine.console().lines();
        let end = lines
            .iter()
            .enumerate()
            .filter(|(_, line)| is_banner(&line.text))
            .nth(side.banners - 1);
        let before = &lines[..end.map_or(lines.len(), |(at, _)| at)];
        let told: Vec<u64> = before
            .iter()
            .filter_map(|line| told_kb(&line.text, "lowest: "))
            .collect();
        let (Some(first), Some(last)) = (told.first(), told.last()) else {
            bail!("the watcher said nothing");
        };
        let used = |available: u64| bare_kb.saturating_sub(available) * 1024;
        let peak = used(*last).max(used(*first) + bytes);
        eprintln!(
            "{}: {} kB after it was unpacked, {} kB at its worst, {} kB with its file",
            side.initrd.display(),
            used(*first) / 1024,
            used(*last) / 1024,
            (used(*first) + bytes) / 1024
        );
        Ok(peak as f64)
    }

    /// What is available with an initramfs that has only a shell in it, in kB, the shell taken off.
    fn bare(&self) -> anyhow::Result<u64> {
        let inside = self.folder.join("bare");
        let _ = std::fs::remove_dir_all(&inside);
        std::fs::create_dir_all(&inside)?;
        let busybox = ["/bin/busybox", "/usr/bin/busybox", "/usr/sbin/busybox"];
        let busybox = busybox.into_iter().find(|path| Path::new(path).exists());
        let copied = std::fs::copy(busybox.context("no busybox")?, inside.join("busybox"))?;
        let init = inside.join("init");
        std::fs::write(&init, BARE)?;
        must_succeed(Command::new("chmod").arg("755").arg(&init))?;
        let initrd = self.folder.join("bare.cpio");
        pack(&inside, &initrd)?;
        self.ours.use_initrd(Some(&initrd))?;
        let machine = self.power_on(&recipe())?;
        let line = machine
            .console()
            .wait_line("bare", PATIENCE, |line| line.contains("bare: "))?;
        let available =
            told_kb(&line.text, "bare: ").context("no number from the bare initramfs")?;
        Ok(available + copied / 1024)
    }

    fn with_watcher(&self, initrd: &Path) -> anyhow::Result<PathBuf> {
        let whole = [std::fs::read(&self.watcher)?, std::fs::read(initrd)?].concat();
        let path = self.folder.join("watched.img");
        std::fs::write(&path, whole)?;
        Ok(path)
    }

    /// Powers the machine on, with these words among the kernel's.
    fn power_on(&self, words: &str) -> anyhow::Result<Running> {
        let network = Network::new()?;
        let arguments = format!("{KERNEL_ARGS} {words}");
        let daemon = self.ours.start(&network, &["--kernel-args", &arguments])?;
        let firmware = Firmware::find(false).context("OVMF is installed, but not found")?;
        let hardware = Hardware::Qemu(Qemu::new(firmware, MEMORY_MIB)?.without_reboot());
        let serial = self.folder.join("start.serial");
        let _ = std::fs::remove_file(&serial);
        let machine = Machine::power_on(
            &network,
            "start",
            MacAddress::nth(1),
            hardware,
            Some(serial),
        )?;
        Ok(Running {
            machine,
            _daemon: daemon,
        })
    }
}

/// A machine and the daemon that it boots from; both end with it, the machine first.
struct Running {
    machine: Machine,
    _daemon: lab::Process,
}

impl Running {
    fn console(&self) -> &Console {
        self.machine.console()
    }
}

fn recipe() -> String {
    format!("root=nfs:{GATEWAY}:/images/{IMAGE}:{RECIPE}")
}

/// Waits for the words of the systemd that runs the root; their time.
fn wait_systemd(console: &Console, banners: usize) -> anyhow::Result<f64> {
    let mut text = String::new();
    for count in 1..=banners {
        let seen = std::cell::Cell::new(0);
        let line = console.wait_line("systemd", PATIENCE, |line| {
            seen.set(seen.get() + usize::from(is_banner(line)));
            (is_banner(line) && seen.get() == count) || line.contains("Kernel panic")
        })?;
        ensure!(is_banner(&line.text), "the machine stopped: {}", line.text);
        text = line.text;
    }
    printed_at(&text)
}

fn is_banner(line: &str) -> bool {
    line.contains("systemd[1]: systemd ") && line.contains("running in system mode")
}

/// The kernel's time of a line of its log, in seconds: `[   12.345678] …`.
fn printed_at(line: &str) -> anyhow::Result<f64> {
    let stamp = line
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    let seconds = stamp.and_then(|(stamp, _)| stamp.trim().parse().ok());
    seconds
        .with_context(|| format!("expected a line of the kernel's log with its time, got {line:?}"))
}

fn told_kb(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(name)?;
    rest.split_whitespace().next()?.parse().ok()
}

fn pack(folder: &Path, to: &Path) -> anyhow::Result<()> {
    let mut pack = Command::new("sh");
    pack.args(["-ec", PACK, "sh"])
        .arg(folder)
        .arg(to)
        .stdin(Stdio::null());
    must_succeed(&mut pack).context("packing an archive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_log_are_read() {
        let line =
            "[   12.917521] systemd[1]: systemd 252.39-1~deb12u1 running in system mode (+PAM)";
        assert!(is_banner(line) && !is_banner("[    1.0] systemd[1]: Reached target x"));
        assert_eq!(printed_at(line).unwrap(), 12.917_521);
        assert!(printed_at("no time").is_err());
        assert_eq!(told_kb("[ 1.0] lowest: 1900 kB", "lowest: "), Some(1900));
        assert_eq!(told_kb("[ 1.0] lowest: ", "lowest: "), None);
    }
}
