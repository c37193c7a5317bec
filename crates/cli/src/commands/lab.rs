//! `slate try`: virtual nodes on a private network, served by the real daemon.

use std::collections::HashSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, UNIX_EPOCH};

use daemon::control::{Client, EventRecord, NodeChange, NodeView, Request};
use image::{Store, initramfs};
use lab::{
    Firmware, Hardware, MacAddress, Machine, Network, Process, Qemu, Tool, find_tools, kvm_usable,
};
use owo_colors::OwoColorize as _;
use wire::cmdline::Break;

use crate::args::{TryArgs, TryCommand};
use crate::commands::report::{Document, Node, Root, SHOW_ROOT, parse_root};
use crate::commands::{build, console, image as images, node, up};
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// Where a run keeps what must go with it: memory, not disk.
const SCRATCH: &str = "/run";
/// Begins the name of each run's folder.
const PREFIX: &str = "slate-try-";
/// Memory of a virtual node: the image's own programs and what it writes.
const MEMORY_MIB: u32 = 1024;
/// How long all nodes together may take with `--once`, for each node.
const PATIENCE_PER_NODE: Duration = Duration::from_secs(300);
/// The same where processors are emulated, on a machine that has other work as well.
const EMULATED_PATIENCE_PER_NODE: Duration = Duration::from_secs(900);
/// How long the daemon may take to answer.
const DAEMON_PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest may take for one command on its console.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// Runs it.
pub fn run(args: &TryArgs) -> Outcome {
    if let Some(TryCommand::Console { node }) = &args.command {
        return console::attach(node);
    }
    check_machine()?;
    let interrupted = on_interrupt()?;
    remove_stale();
    let cache = cache_dir();
    let store = prepare_image(args, &cache)?;
    if wants_shell(args) {
        find_shell(&store, &args.image)?;
    }
    let scratch = Scratch::new(&store, &cache)?;
    let mut lab = Lab::start(args, scratch)?;
    lab.serve(args, &interrupted)
}

/// Boots an image of a store in a virtual machine, which is switched off again; the digest of the
/// version that came up.
pub fn boot_once(store: &Path, image: &str) -> Outcome<String> {
    check_machine()?;
    let interrupted = on_interrupt()?;
    remove_stale();
    let args = TryArgs::once(image);
    let mut lab = Lab::start(&args, Scratch::new(store, &cache_dir())?)?;
    lab.serve(&args, &interrupted)?;
    let digest = lab.nodes()?.into_iter().find_map(|node| node.digest);
    digest.ok_or_else(|| Failure::new("the virtual machine ran no version"))
}

fn check_machine() -> Outcome {
    Failure::unless_root("virtual nodes need root, for their private network")
        .map_err(|failure| failure.hint("Run it with sudo: sudo slate try"))?;
    let tools = [Tool::Qemu, Tool::Firmware, Tool::Iproute];
    find_tools(&tools).map_err(|missing| {
        Failure::new(missing.to_string())
            .hint(missing.hint())
            .code(Code::NotReady)
    })
}

/// Set by the first Ctrl-C; a second one ends this process, and with it everything it started.
fn on_interrupt() -> Outcome<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .map_err(|error| Failure::because("catching Ctrl-C", &error))?;
    }
    Ok(flag)
}

/// Images and archives outlive a run.
fn cache_dir() -> PathBuf {
    std::env::var_os("SLATE_CACHE_DIR").map_or_else(|| "/var/cache/slate".into(), PathBuf::from)
}

/// The store that has the image: this machine's own, else the cache's, where a Debian is built
/// when it is not there yet.
fn prepare_image(args: &TryArgs, cache: &Path) -> Outcome<PathBuf> {
    let own = Path::new(daemon::DEFAULT_STATE_DIR).join("store");
    if own.is_dir() && Store::open(&own).is_ok_and(|store| store.resolve(&args.image).is_ok()) {
        return Ok(own);
    }
    let path = cache.join("store");
    let store = Store::open(&path)?;
    if store.resolve(&args.image).is_ok() {
        return Ok(path);
    }
    let Ok(release) = args.image.parse() else {
        let hint = "Import it first (slate image import NAME DIR|TAR), or name debian12 or debian13, which are built when needed.";
        return Err(Failure::new(format!("there is no image {}", args.image)).hint(hint));
    };
    anstream::eprintln!(
        "{} is built once and kept in {}",
        args.image,
        cache.display()
    );
    let mut meter = images::Meter::new();
    let built = build::build_plain(&store, release, &args.image, cache, &mut |step| {
        meter.show(&step);
    });
    meter.done();
    built.map(|_| path)
}

/// The folders of all runs on this machine.
pub fn scratch_folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(SCRATCH)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    ours.map(|entry| entry.path()).collect()
}

/// Removes what a run left that was killed: its folder names its process.
fn remove_stale() {
    for folder in scratch_folders() {
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let process = name.trim_start_matches(PREFIX);
        if !Path::new("/proc").join(process).exists() {
            // Somebody else may be doing the same.
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

/// Whether the initramfs must bring a shell: before the root's own can run.
fn wants_shell(args: &TryArgs) -> bool {
    args.break_at.is_some_and(|it| it != Break::SwitchRoot)
}

/// Says what is missing before machines are powered on.
fn find_shell(store: &Path, image: &str) -> Outcome {
    let store = Store::open(store)?;
    let tree = store.open_tree(images::resolve(&store, image)?)?;
    match initramfs::shell(&tree) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::because("looking for a shell", &error)
            .hint("install it here: apt-get install busybox-static")
            .code(Code::NotReady)),
    }
}

/// A run's own state; the store and the initramfs in it are the cache's.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(store: &Path, cache: &Path) -> Outcome<Scratch> {
        let path = Path::new(SCRATCH).join(format!("{PREFIX}{}", std::process::id()));
        let scratch = Scratch { path };
        scratch.fill(store, &cache.join("boot")).map_err(|error| {
            Failure::because(format!("preparing {}", scratch.path.display()), &error)
        })?;
        Ok(scratch)
    }

    fn fill(&self, store: &Path, boot: &Path) -> std::io::Result<()> {
        fs::create_dir_all(boot)?;
        fs::create_dir_all(self.state())?;
        std::os::unix::fs::symlink(fs::canonicalize(store)?, self.state().join("store"))?;
        std::os::unix::fs::symlink(fs::canonicalize(boot)?, self.state().join("cache"))
    }

    fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    fn run(&self) -> PathBuf {
        self.path.join("run")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next run removes what could not be removed now.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Everything that runs. Dropped in this order: nodes, daemon, network, folder.
struct Lab {
    machines: Vec<Machine>,
    daemon: Process,
    _network: Network,
    scratch: Scratch,
}

impl Lab {
    fn start(args: &TryArgs, scratch: Scratch) -> Outcome<Lab> {
        let network = Network::new().map_err(|error| {
            Failure::of(&error).hint("a container may forbid it: run this on the machine itself")
        })?;
        let mut daemon = start_daemon(args, &network, &scratch)?;
        wait_for_daemon(&scratch, &mut daemon)?;
        let mut lab = Lab {
            machines: Vec::new(),
            daemon,
            _network: network.clone(),
            scratch,
        };
        for index in 1..=u16::from(args.nodes) {
            let name = format!("node{index}");
            name_node(&lab.scratch, MacAddress::nth(index), &name)?;
            let machine = power_on(&network, index, &name)?;
            console::offer(&lab.scratch.path, &name, machine.console()).map_err(|error| {
                Failure::because(format!("offering the console of {name}"), &error)
            })?;
            lab.machines.push(machine);
        }
        if let Some(place) = args.break_at.filter(|_| !args.json) {
            anstream::println!(
                "At {} a shell opens on the console, and the boot goes on after exit:",
                place.stage()
            );
            for machine in &lab.machines {
                anstream::println!("  sudo slate try console {}", machine.name());
            }
        }
        Ok(lab)
    }

    fn serve(&mut self, args: &TryArgs, interrupted: &AtomicBool) -> Outcome {
        let events = self.follow()?;
        let per_node = if kvm_usable() {
            PATIENCE_PER_NODE
        } else {
            EMULATED_PATIENCE_PER_NODE
        };
        let patience = per_node * u32::from(args.nodes);
        let started = Instant::now();
        let mut up = HashSet::new();
        let mut panicked = HashSet::new();
        let mut told = false;
        while !interrupted.load(Ordering::Relaxed) {
            match events.recv_timeout(Duration::from_millis(200)) {
                Ok(event) => {
                    match event.kind.as_str() {
                        "up" => up.extend(event.mac.clone()),
                        "panicked" => panicked.extend(event.mac.clone()),
                        _ => {}
                    }
                    if !args.json {
                        up::show_event(&event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new("the daemon ended").hint("Its messages are above."));
                }
            }
            let all = up.len() == self.machines.len();
            if all && !args.once && !args.json && !told {
                self.tell_how_to_log_in()?;
                told = true;
            }
            let settled = up.union(&panicked).count() == self.machines.len();
            if args.once && (settled || started.elapsed() > patience || self.all_off()) {
                break;
            }
        }
        let failed = self.machines.len() - up.len();
        if args.json {
            render::json(&self.document()?)?;
        }
        if args.once && failed > 0 {
            return Err(self.not_up(failed));
        }
        Ok(())
    }

    /// The daemon's events, as they come.
    fn follow(&self) -> Outcome<Receiver<EventRecord>> {
        let events = Client::connect(&self.scratch.run())?.events(0, true)?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for event in events.map_while(Result::ok) {
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    fn all_off(&mut self) -> bool {
        self.machines
            .iter_mut()
            .all(|machine| matches!(machine.exited(), Ok(Some(_))))
    }

    fn nodes(&self) -> Outcome<Vec<NodeView>> {
        node::list(&mut Client::connect(&self.scratch.run())?)
    }

    fn tell_how_to_log_in(&self) -> Outcome {
        for node in self.nodes()? {
            let address = node.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
            anstream::println!("{} is up. Log in:", node.name.bold());
            anstream::println!("  sudo slate try console {}", node.name);
            anstream::println!(
                "  sudo nsenter --net=/proc/{}/ns/net ssh root@{address}",
                self.daemon.id()
            );
        }
        anstream::println!("Ctrl-C ends everything.");
        Ok(())
    }

    fn document(&self) -> Outcome<Document> {
        let views = self.nodes()?;
        let mut nodes = Vec::new();
        for machine in &self.machines {
            let mac = machine.mac().to_string();
            let Some(view) = views.iter().find(|view| view.mac == mac) else {
                continue;
            };
            let since = machine
                .powered_on()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let is_up = view.reached.as_deref() == Some("multi-user");
            let root = if is_up { root_of(machine) } else { None };
            nodes.push(Node::new(view.clone(), since.as_millis() as u64, root));
        }
        Ok(Document { nodes })
    }

    /// Names the nodes that did not come up, where they stopped and why.
    fn not_up(&self, failed: usize) -> Failure {
        let views = self.nodes().unwrap_or_default();
        let stopped = views
            .iter()
            .filter(|view| view.reached.as_deref() != Some("multi-user"));
        let causes: Vec<String> = stopped
            .map(|view| {
                let stage = view.reached.as_deref().unwrap_or("power-on");
                let cause = view
                    .failure
                    .as_ref()
                    .map_or("no cause was reported", |it| it.cause.as_str());
                format!("{} stopped at {stage}: {cause}", view.name)
            })
            .collect();
        let mut failure = Failure::new(format!(
            "{failed} of {} nodes did not come up",
            self.machines.len()
        ));
        failure.causes = causes;
        let lines: Vec<String> = self
            .machines
            .iter()
            .map(|machine| {
                format!(
                    "last lines of {}:\n{}",
                    machine.name(),
                    machine.console().last_lines(8)
                )
            })
            .collect();
        failure.hint(lines.join("\n"))
    }
}

fn start_daemon(args: &TryArgs, network: &Network, scratch: &Scratch) -> Outcome<Process> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::because("finding this program", &error))?;
    let mut kernel_args = "console=tty0 console=ttyS0,115200n8".to_owned();
    if let Some(place) = args.break_at {
        kernel_args += &format!(" rd.break={}", place.stage());
    }
    let mut command = Command::new(program);
    command
        .args([
            "up",
            "--interface",
            network.interface(),
            "--dhcp",
            "authoritative",
        ])
        .args([
            "--drivers",
            "virtual",
            "--console-login",
            "--image",
            &args.image,
        ])
        .arg("--json")
        .arg(format!("--kernel-args={kernel_args}"))
        .args(wants_shell(args).then_some("--debug-shell"))
        .arg("--state-dir")
        .arg(scratch.state())
        .arg("--run-dir")
        .arg(scratch.run())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    network.spawn(command).map_err(|error| Failure::of(&error))
}

fn wait_for_daemon(scratch: &Scratch, daemon: &mut Process) -> Outcome {
    let started = Instant::now();
    while started.elapsed() < DAEMON_PATIENCE {
        if Client::connect(&scratch.run()).is_ok() {
            return Ok(());
        }
        if !Path::new("/proc").join(daemon.id().to_string()).exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Failure::new("the daemon did not start").hint("Its messages are above."))
}

/// Names a node before it comes, so that it has the name of its console.
fn name_node(scratch: &Scratch, mac: MacAddress, name: &str) -> Outcome {
    let change = NodeChange {
        name: Some(name.to_owned()),
        ..NodeChange::default()
    };
    let request = Request::SetNode {
        node: mac.to_string(),
        change,
    };
    Client::connect(&scratch.run())?.request(&request)?;
    Ok(())
}

fn power_on(network: &Network, index: u16, name: &str) -> Outcome<Machine> {
    let firmware = Firmware::find(false).ok_or_else(|| {
        Failure::new("the UEFI firmware is not where its package puts it").code(Code::NotReady)
    })?;
    let mut qemu = Qemu::new(firmware, MEMORY_MIB)
        .map_err(|error| Failure::because("making a virtual machine", &error))?;
    if kvm_usable() {
        qemu = qemu.with_kvm();
    }
    Machine::power_on(
        network,
        name,
        MacAddress::nth(index),
        Hardware::Qemu(qemu),
        None,
    )
    .map_err(|error| Failure::of(&error))
}

/// What a node's root is, by the node's own word.
fn root_of(machine: &Machine) -> Option<Root> {
    let console = machine.console();
    console.login(COMMAND_PATIENCE).ok()?;
    let output = console.run(SHOW_ROOT, COMMAND_PATIENCE).ok()?;
    parse_root(&output.text)
}
