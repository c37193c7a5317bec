//! Our side: the release binary, serving the image that the peer exports.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, bail};
use lab::{Hardware, MacAddress, Machine, Network, Process, Uml};
use serde_json::Value;

use super::on_processor;
use crate::workspace::{must_succeed, output_of};

/// How long a daemon may take until it serves, and a node until it is up.
const PATIENCE: Duration = Duration::from_secs(300);
/// Enough for a Debian under User-Mode Linux.
const UML_MEMORY_MIB: u32 = 384;

/// `slate`, with a store that holds the image.
pub struct Ours {
    program: PathBuf,
    folder: PathBuf,
    image: String,
}

impl Ours {
    /// Makes sure that the store in `folder` has `image`, one that `slate image build` knows; its
    /// archive stays in `cache`.
    pub fn prepare(
        program: PathBuf,
        folder: PathBuf,
        image: &str,
        cache: &Path,
    ) -> anyhow::Result<Self> {
        let ours = Self {
            program,
            folder,
            image: image.to_owned(),
        };
        std::fs::create_dir_all(ours.folder.join("state"))
            .with_context(|| format!("making {}", ours.folder.display()))?;
        let tag = format!("{image}:latest");
        let mut build = ours.slate(&["image", "build", image, "--name", &tag]);
        must_succeed(build.env("SLATE_CACHE_DIR", cache).stdout(Stdio::null()))?;
        Ok(ours)
    }

    /// Starts `slate up` on `network`, with no node known yet; `options` are added to its own.
    pub fn start(&self, network: &Network, options: &[&str]) -> anyhow::Result<Process> {
        let mut up = self.slate(&["up", "--dhcp", "authoritative"]);
        up.args(options);
        self.spawn(network, up)
    }

    /// The same on one processor.
    pub fn start_on(&self, processor: &str, network: &Network) -> anyhow::Result<Process> {
        let up = self.slate(&["up", "--dhcp", "authoritative"]);
        self.spawn(network, on_processor(processor, &up))
    }

    fn spawn(&self, network: &Network, mut up: Command) -> anyhow::Result<Process> {
        for file in ["state.db", "state.db-wal", "state.db-shm"] {
            let _ = std::fs::remove_file(self.folder.join("state").join(file));
        }
        up.args(["--interface", network.interface()])
            .args(["--image", &self.image, "--drivers", "virtual"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut daemon = network.spawn(up).context("starting slate up")?;
        let printed = daemon.take_stdout().context("a pipe was asked for")?;
        wait_ready(printed)?;
        Ok(daemon)
    }

    /// The size of the initramfs that the node `mac` last fetched.
    pub fn initrd_bytes(&self, mac: MacAddress) -> anyhow::Result<u64> {
        let node = self.ask(&["node", "show", &mac.to_string(), "--json"])?;
        node["initrd_bytes"]
            .as_u64()
            .filter(|bytes| *bytes > 0)
            .context("slate node show names no initrd_bytes")
    }

    /// Powers four User-Mode Linux nodes on at once, with `options` for the daemon: how long the
    /// slowest takes until it is up, in seconds.
    pub fn four_at_once(&self, options: &[&str]) -> anyhow::Result<f64> {
        let network = Network::new()?;
        let _daemon = self.start(&network, options)?;
        let initrd = self.folder.join("uml-initrd");
        self.write_uml_initrd(&initrd)?;
        let machines: Vec<Machine> = (1..=4)
            .map(|index| self.power_on(&network, &initrd, index))
            .collect::<anyhow::Result<_>>()?;
        let mut slowest: f64 = 0.0;
        for machine in &machines {
            let powered_on = machine.powered_on().duration_since(UNIX_EPOCH)?;
            let up_s = self.wait_up(machine)? - powered_on.as_secs_f64();
            slowest = slowest.max(up_s);
        }
        Ok(slowest)
    }

    /// Writes an initramfs for User-Mode Linux nodes.
    pub fn write_uml_initrd(&self, initrd: &Path) -> anyhow::Result<()> {
        let modules = Uml::modules().context("the modules of User-Mode Linux are not installed")?;
        let mut build = self.slate(&["initrd", "build", "--profile", "virtual"]);
        build.arg(modules).arg("--output").arg(initrd);
        must_succeed(build.stdout(Stdio::null()))
    }

    /// Writes the initramfs of the image, as small as nodes get it.
    pub fn write_initrd(&self, initrd: &Path, profile: &str) -> anyhow::Result<()> {
        let mut build = self.slate(&["initrd", "build", &self.image, "--profile", profile]);
        build.args(["--level", "19", "--output"]).arg(initrd);
        must_succeed(build.stdout(Stdio::null()))
    }

    /// Has the image boot with this initramfs, or with our own again.
    pub fn use_initrd(&self, initrd: Option<&Path>) -> anyhow::Result<()> {
        let mut command = self.slate(&["initrd", "use", &self.image]);
        match initrd {
            Some(initrd) => command.arg(initrd),
            None => command.arg("--reset"),
        };
        must_succeed(command.stdout(Stdio::null()))
    }

    /// The path of the image's kernel over TFTP and HTTP.
    pub fn kernel_path(&self) -> anyhow::Result<String> {
        let image = self.ask(&["image", "show", &self.image, "--json"])?;
        let digest = image["digest"].as_str();
        let digest = digest.context("slate image show names no digest")?;
        Ok(format!("boot/{digest}/vmlinuz"))
    }

    /// Writes the image's kernel into a file.
    pub fn write_kernel(&self, file: &Path) -> anyhow::Result<()> {
        let network = Network::new()?;
        let _daemon = self.start(&network, &[])?;
        fetch(&network, &self.kernel_path()?, file)
    }

    /// Writes boot files of the image into a folder, under the names that they have over HTTP.
    pub fn write_boot_files(&self, folder: &Path, names: &[&str]) -> anyhow::Result<()> {
        let network = Network::new()?;
        let _daemon = self.start(&network, &[])?;
        let kernel = self.kernel_path()?;
        let (place, _) = kernel.rsplit_once('/').context("a path without a folder")?;
        names
            .iter()
            .try_for_each(|name| fetch(&network, &format!("{place}/{name}"), &folder.join(name)))
    }

    /// Gives the daemon a loader that the image lacks.
    pub fn add_loader(&self, loader: &Path) -> anyhow::Result<()> {
        let folder = self.folder.join("state/loaders");
        let name = loader.file_name().context("a loader without a name")?;
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::copy(loader, folder.join(name)))
            .with_context(|| format!("copying {}", loader.display()))?;
        Ok(())
    }

    /// What an earlier boot of the image read, if one has been seen.
    pub fn trace(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let traces = self.traces().into_iter();
        let newest = traces.max_by_key(|path| path.metadata().and_then(|it| it.modified()).ok());
        let read = |path: PathBuf| {
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        newest.map(read).transpose()
    }

    /// Makes the next boot the first one of the image.
    pub fn forget_traces(&self) -> anyhow::Result<()> {
        for path in self.traces() {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }

    fn traces(&self) -> Vec<PathBuf> {
        let cache = self.folder.join("state/cache");
        let kept = std::fs::read_dir(&cache).into_iter().flatten().flatten();
        let is_trace = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("trace-") && path.extension().is_none()
        };
        kept.map(|entry| entry.path()).filter(is_trace).collect()
    }

    /// Plans a boot of a node; its kernel command line.
    pub fn command_line(&self, mac: MacAddress) -> anyhow::Result<String> {
        let plan = self.ask(&["node", "plan", &mac.to_string(), "--json"])?;
        let command_line = plan["cmdline"].as_str();
        Ok(command_line
            .context("slate node plan names no cmdline")?
            .to_owned())
    }

    fn power_on(&self, network: &Network, initrd: &Path, index: u16) -> anyhow::Result<Machine> {
        let mac = MacAddress::nth(index);
        let hardware = Hardware::Uml(Uml {
            initrd: Some(initrd.to_owned()),
            command_line: self.command_line(mac)?,
            memory_mib: UML_MEMORY_MIB,
        });
        Ok(Machine::power_on(
            network,
            &format!("node{index}"),
            mac,
            hardware,
            None,
        )?)
    }

    /// Waits for the event that a node is up; its time, in seconds since the epoch.
    pub fn wait_up(&self, machine: &Machine) -> anyhow::Result<f64> {
        let mac = machine.mac().to_string();
        let end = Instant::now() + PATIENCE;
        loop {
            let printed = output_of(&mut self.slate(&["events", "--json"]))?;
            let events = printed
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let up = events
                .filter(|event| event["mac"] == mac.as_str() && event["kind"] == "up")
                .find_map(|event| event["at_ms"].as_f64());
            if let Some(at_ms) = up {
                return Ok(at_ms / 1000.0);
            }
            if Instant::now() > end {
                let last = machine.console().last_lines(8);
                bail!(
                    "{} does not come up; its last lines:\n{last}",
                    machine.name()
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn ask(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let printed = output_of(&mut self.slate(arguments))?;
        serde_json::from_str(&printed).with_context(|| format!("slate {}", arguments.join(" ")))
    }

    fn slate(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("SLATE_STATE_DIR", self.folder.join("state"))
            .env("SLATE_RUN_DIR", self.folder.join("run"))
            .stdin(Stdio::null());
        command
    }
}

fn fetch(network: &Network, path: &str, file: &Path) -> anyhow::Result<()> {
    let url = format!("http://{}/{path}", lab::GATEWAY);
    let file = file.display().to_string();
    let arguments = [
        "--fail",
        "--silent",
        "--show-error",
        "--output",
        &file,
        &url,
    ];
    super::run_there(network, "curl", &arguments)?;
    Ok(())
}

/// Waits until the daemon says that nodes can boot; what it prints after that is read and dropped.
fn wait_ready(printed: ChildStdout) -> anyhow::Result<()> {
    let (sender, ready) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(printed).lines().map_while(Result::ok) {
            if line.contains(": ready, initramfs") {
                let _ = sender.send(());
            }
        }
    });
    ready
        .recv_timeout(PATIENCE)
        .context("slate up does not say that its image is ready")
}
