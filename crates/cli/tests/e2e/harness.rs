//! What the tests share: images that are built once, a network with a daemon on it, its command.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use image::build::Recipe;
use lab::{Console, MacAddress, Machine, Network, Process, Tool, Uml};
use serde_json::Value;

use crate::keeper::Keeper;

/// How long anything may take that a machine does by itself.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Says why a test cannot run here, in the words that the test runner counts.
pub fn impossible(tools: &[Tool]) -> bool {
    let missing: Vec<_> = tools.iter().filter(|tool| !tool.is_installed()).collect();
    let reason = if !is_root() {
        "only root can make a network".to_owned()
    } else if let Some(tool) = missing.first() {
        format!("{} is not installed", tool.name())
    } else {
        return false;
    };
    println!("skipped: {reason}");
    true
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// A private network with `slate up` on it, serving one image. All of it goes when it is dropped.
pub struct Site {
    pub network: Network,
    /// The digest of the image that is served.
    pub digest: String,
    store: PathBuf,
    options: Vec<String>,
    daemon: Process,
    output: Receiver<String>,
    keeper: Option<Keeper>,
    /// Holds the state and the control socket of the daemon that runs.
    home: PathBuf,
    directory: tempfile::TempDir,
}

impl Site {
    /// Serves `image` (`debian12` or `debian13`), which is built if that was not done yet.
    /// `options` are added to `slate up`.
    pub fn new(image: &str, options: &[&str]) -> Self {
        let network = Network::new().expect("a network namespace");
        Self::on(network, image, options)
    }

    /// The same on a network that is there already. Without `--dhcp` among the options it is the
    /// network's only DHCP server.
    pub fn on(network: Network, image: &str, options: &[&str]) -> Self {
        let store = built(image).join("store");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let state = directory.path().join("state");
        std::fs::create_dir(&state).expect("a state directory");
        std::os::unix::fs::symlink(&store, state.join("store")).expect("a link to the images");
        let options: Vec<String> = ["--image", image]
            .iter()
            .chain(options)
            .map(|&option| option.to_owned())
            .collect();
        let (daemon, output) = up(&network, directory.path(), &options, None);
        let mut site = Self {
            network,
            digest: String::new(),
            store,
            options,
            daemon,
            output,
            keeper: None,
            home: directory.path().to_path_buf(),
            directory,
        };
        let shown = site.slate_json(&["image", "show", image, "--json"]);
        site.digest = text(&shown, "digest");
        site
    }

    /// Ends the daemon without notice.
    pub fn kill_daemon(&mut self) {
        self.daemon.kill().expect("the daemon can be killed");
    }

    /// Ends the daemon in order.
    pub fn stop_daemon(&mut self) {
        self.daemon.terminate().expect("the daemon can be ended");
        let status = self.daemon.wait_timeout(PATIENCE).expect("waiting");
        assert!(status.is_some_and(|it| it.success()), "{status:?}");
    }

    /// Starts the daemon again after it ended; returns when it serves.
    pub fn start_daemon(&mut self) {
        let keeper = self.keeper.as_ref();
        (self.daemon, self.output) = up(&self.network, &self.home, &self.options, keeper);
    }

    /// Daemons that are started from now on leave their NFS socket to the next one.
    pub fn keep_socket(&mut self) {
        self.keeper = Some(Keeper::new(&self.path("notify")));
    }

    /// Makes the state of another server `name`, which has copies of the key and of the images and
    /// nothing else: [`Site::start_daemon`] starts that one from now on.
    pub fn prepare_other_server(&mut self, name: &str) {
        let home = self.path(name);
        let state = home.join("state");
        std::fs::create_dir_all(&state).expect("a state directory");
        for part in ["keys", "store"] {
            let from = std::fs::canonicalize(self.home.join("state").join(part));
            copy(&from.expect("a part of the state"), &state.join(part));
        }
        self.home = home;
        self.keeper = None;
    }

    /// Imports as NAME:latest what `make` puts into a new directory; that directory.
    pub fn import_made(&mut self, name: &str, make: impl FnOnce(&Path)) -> PathBuf {
        self.give_own_store();
        let source = self.path("source");
        std::fs::create_dir(&source).expect("a directory");
        make(&source);
        let image = source.to_str().expect("a path in UTF-8");
        self.slate(&["image", "import", &format!("{name}:latest"), image]);
        source
    }

    /// Replaces the store that all tests share by a copy, so that an image may be added.
    pub fn give_own_store(&mut self) {
        self.kill_daemon();
        let place = self.path("state/store");
        std::fs::remove_file(&place).expect("it is a link");
        copy(&self.store, &place);
        self.start_daemon();
    }

    /// From now on nothing gets through between the nodes and the daemon, which lives on.
    pub fn isolate_nodes(&mut self) {
        let mut command = Command::new("ip");
        command.args(["link", "set", self.network.interface(), "down"]);
        let output = self.network.run(command).expect("ip starts");
        assert!(output.status.success(), "{output:?}");
    }

    /// `slate` beside the daemon.
    pub fn slate_command(&self) -> Command {
        slate(&self.home)
    }

    /// Runs `slate` beside the daemon; its standard output.
    pub fn slate(&self, arguments: &[&str]) -> String {
        let output = slate(&self.home)
            .args(arguments)
            .output()
            .expect("slate starts");
        let (out, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "slate {arguments:?}: {errors}");
        out.into_owned()
    }

    /// Changes an image by a shell command; the new version is its `:next`.
    pub fn change(&self, image: &str, command: &str) {
        self.slate(&["image", "run", image, "--", "sh", "-c", command]);
    }

    /// Changes an image by a shell command; nodes boot the new version from now on.
    pub fn update(&self, image: &str, command: &str) {
        self.change(image, command);
        self.slate(&["image", "tag", &format!("{image}:next"), image]);
    }

    /// The one JSON document that a command prints.
    pub fn slate_json(&self, arguments: &[&str]) -> Value {
        let printed = self.slate(arguments);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// The events of one kind about a machine, oldest first.
    pub fn events(&self, mac: MacAddress, kind: &str) -> Vec<Value> {
        let printed = self.slate(&["events", "--json"]);
        let events = printed
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("a JSON object on each line"));
        events
            .filter(|event| event["mac"] == mac.to_string().as_str() && event["kind"] == kind)
            .collect()
    }

    /// Waits until a machine's boot is `up` for the `count`th time; the event that says so.
    pub fn wait_up(&self, mac: MacAddress, count: usize) -> Value {
        self.wait_up_within(mac, count, PATIENCE)
    }

    /// The same with another patience.
    pub fn wait_up_within(&self, mac: MacAddress, count: usize, patience: Duration) -> Value {
        let end = Instant::now() + patience;
        loop {
            if let Some(event) = self.events(mac, "up").into_iter().nth(count - 1) {
                return event;
            }
            assert!(
                Instant::now() < end,
                "{mac} did not come up; the daemon said:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// What the daemon printed since it was last asked.
    pub fn said(&self) -> String {
        self.output.try_iter().collect::<Vec<_>>().join("\n")
    }

    /// What the daemon wrote to its log, warnings and worse, since the site was made.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("up.log")).unwrap_or_default()
    }

    /// The SHA-256 of every file that the served version consists of, by the host's own program.
    pub fn stored_sums(&self) -> String {
        let script = "find images objects -type f | sort | xargs sha256sum | sha256sum";
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(&self.store)
            .output()
            .expect("sh starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A scratch file's path.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Copies a directory of files that are never written to: links do, where they can be made.
fn copy(from: &Path, to: &Path) {
    let copy = |option: &str| {
        let mut command = Command::new("cp");
        command.args(["--archive", option]).arg(from).arg(to);
        command.output().expect("cp starts").status.success()
    };
    if !copy("--link") {
        let _ = std::fs::remove_dir_all(to);
        assert!(
            copy("--reflink=auto"),
            "{} cannot be copied",
            from.display()
        );
    }
}

/// The state directory with an image, made by `slate image build` if there is none of that recipe. It
/// outlives the tests.
fn built(image: &str) -> PathBuf {
    let cache = std::env::var_os("SLATE_CACHE_DIR").map_or_else(default_cache, PathBuf::from);
    let release = image.parse().expect("a release");
    let state = cache.join("e2e").join(Recipe::of(release).cache_key());
    std::fs::create_dir_all(&state).expect("a folder for images");
    if !state.join("built").exists() {
        println!("building {image}, this takes minutes once");
        let begun = Instant::now();
        let status = slate_at(&state, &state)
            .env("SLATE_CACHE_DIR", &cache)
            .args(["image", "build", image, "--name"])
            .arg(format!("{image}:latest"))
            .status()
            .expect("slate starts");
        assert!(status.success(), "slate image build {image}: {status}");
        std::fs::write(state.join("built"), "").expect("a mark");
        println!("built {image} in {:.0?}", begun.elapsed());
    }
    state
}

/// In the target directory, beside the binary under test.
fn default_cache() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_slate")).ancestors().nth(2);
    target.expect("a target directory").join("e2e-cache")
}

fn slate(directory: &Path) -> Command {
    slate_at(&directory.join("state"), &directory.join("run"))
}

fn slate_at(state: &Path, run: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slate"));
    command
        .env("SLATE_STATE_DIR", state)
        .env("SLATE_RUN_DIR", run)
        .stdin(Stdio::null());
    command
}

/// Starts the daemon and waits until it serves.
fn up(
    network: &Network,
    home: &Path,
    options: &[String],
    keeper: Option<&Keeper>,
) -> (Process, Receiver<String>) {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(home.join("up.log"))
        .expect("a log");
    let mut command = slate(home);
    command
        .args(["up", "--interface", network.interface()])
        .args(["--drivers", "virtual", "--console-login"])
        .args(options);
    if !options.iter().any(|option| option == "--dhcp") {
        command.args(["--dhcp", "authoritative"]);
    }
    if let Some(keeper) = keeper {
        command = keeper.as_service(&command);
    }
    command.stdout(Stdio::piped()).stderr(log);
    let mut daemon = network.spawn(command).expect("slate starts");
    let printed = daemon.take_stdout().expect("its output is a pipe");
    let (sender, output) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(printed).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let end = Instant::now() + PATIENCE;
    while let Ok(line) = output.recv_timeout(end.saturating_duration_since(Instant::now())) {
        if line.contains("Power the machines on") {
            return (daemon, output);
        }
    }
    let errors = std::fs::read_to_string(home.join("up.log")).unwrap_or_default();
    panic!("slate up does not serve: {errors}");
}

/// Runs a command that must succeed in the guest; what it printed, trimmed.
pub fn guest(console: &Console, command: &str) -> String {
    let output = console
        .run(command, PATIENCE)
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    assert_eq!(output.status, 0, "{command}: {}", output.text);
    output.text.trim().to_owned()
}

/// Runs a shell script on a directory of this machine; what it printed.
pub fn script(script: &str, directory: &Path) -> String {
    let output = Command::new("sh")
        .args(["-ec", script, "sh"])
        .arg(directory)
        .output()
        .expect("sh starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The modules of NFS 3, in the order in which they can be loaded. User-Mode Linux nodes have only
/// the modules of their initramfs.
const VERSION_3: [&str; 2] = ["fs/nfs_common/nfs_acl.ko", "fs/nfs/nfsv3.ko"];

/// Copies the modules of NFS 3 for User-Mode Linux into a directory.
pub fn copy_version_3(directory: &Path) {
    let modules = Uml::modules().expect("its modules are installed");
    for module in VERSION_3 {
        let from = modules.join("kernel").join(module);
        let name = from.file_name().expect("a file's name");
        std::fs::copy(&from, directory.join(name)).expect("a module can be copied");
    }
}

/// Loads them in a node, from a directory there.
pub fn load_version_3(console: &Console, directory: &str) {
    for module in VERSION_3 {
        let name = module.rsplit('/').next().unwrap_or_default();
        guest(console, &format!("insmod {directory}/{name}"));
    }
}

/// Mounts an image by its digest over one version of NFS, on a node with the address `own`.
pub fn mount(console: &Console, own: &str, version: &str, digest: &str, place: &str) {
    let server = lab::GATEWAY;
    // The kernel is told everything: neither side has a portmapper.
    let (kind, options) = if version == "3" {
        (
            "nfs",
            "nolock,port=2049,mountport=2049,proto=tcp,mountproto=tcp".to_owned(),
        )
    } else {
        ("nfs4", format!("clientaddr={own}"))
    };
    let command = format!(
        "mkdir -p {place} && mount -i -t {kind} -o ro,vers={version},addr={server},{options} \
         {server}:/images/{digest} {place}"
    );
    guest(console, &command);
    let of_place = format!("awk '$2 == \"{place}\" {{ print $4 }}' /proc/mounts");
    let mounted = guest(console, &of_place);
    assert!(mounted.contains(&format!("vers={version},")), "{mounted}");
}

/// Asserts that the root is the served image, by its digest.
pub fn assert_root(console: &Console, site: &Site) {
    assert_overlay(console, &format!("/images/{}", site.digest));
}

/// Asserts that the root is what it should be over this export, as the guest's kernel lists it.
pub fn assert_overlay(console: &Console, export: &str) {
    let root = guest(console, "awk '$2 == \"/\" { print $3 }' /proc/mounts");
    assert_eq!(root, "overlay");
    let layers = guest(console, "cat /run/slate/layers");
    let layer = |place: &str| {
        let line = layers
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(place));
        line.unwrap_or_else(|| panic!("no {place} in {layers}"))
            .to_owned()
    };
    let (lower, upper) = (layer("/lower"), layer("/upper"));
    let source = format!(" - nfs4 {}:{export} ro,", lab::GATEWAY);
    assert!(lower.contains(&source), "{source} not in {lower}");
    assert!(lower.contains("vers=4.2"), "{lower}");
    assert!(upper.contains(" - tmpfs "), "{upper}");
    let write_to_lower = guest(
        console,
        "grep -c 'lowerdir=/lower,upperdir=/upper/data' /proc/mounts",
    );
    assert_eq!(write_to_lower, "1");
}

/// Gets a root shell whose answers nothing gets into.
pub fn log_in(console: &Console) {
    console.login(PATIENCE).expect("a shell");
    wait_started(console);
}

/// Until systemd has started everything, it prints lines of its own.
fn wait_started(console: &Console) {
    let wait = "systemctl is-system-running --wait";
    console.run(wait, PATIENCE).expect("an answer");
}

/// Whether a line of systemd's says that it has waited for a unit's end for long. That it waits at all
/// is said after seconds, which a busy machine takes.
pub fn tells_of_a_stall(line: &str) -> bool {
    const LONG_S: u64 = 30;
    let is_stop = line.contains("stop job") || line.contains("/stop running");
    is_stop && elapsed_s(line).is_none_or(|it| it >= LONG_S)
}

/// Of `A stop job is running for NAME (1min 2s / LIMIT)`, the seconds.
fn elapsed_s(line: &str) -> Option<u64> {
    let (_, times) = line.rsplit_once('(')?;
    let (elapsed, _) = times.split_once(" / ")?;
    let parts = elapsed.split(' ').map(|part| {
        let minutes = part.strip_suffix("min").map(|it| (it, 60));
        let (count, seconds) = minutes.or(part.strip_suffix('s').map(|it| (it, 1)))?;
        Some(count.parse::<u64>().ok()? * seconds)
    });
    parts.sum()
}

#[test]
fn a_stall_is_told_by_its_time() {
    let line = |times| format!("[***   ] (1 of 2) A stop job is running for x (y) ({times})");
    assert!(!tells_of_a_stall(&line("9s / 1min 30s")));
    assert!(!tells_of_a_stall(
        "Job x.service/stop running (29s / no limit)"
    ));
    assert!(tells_of_a_stall(&line("30s / 1min 30s")));
    assert!(tells_of_a_stall(&line("1min 5s / no limit")));
    assert!(!tells_of_a_stall(
        "A start job is running for x (50s / 1min 30s)"
    ));
    assert!(tells_of_a_stall("stop job"), "one that cannot be read");
}

/// Asserts that every unit started.
pub fn assert_running(console: &Console) {
    wait_started(console);
    let command = "systemctl is-system-running; systemctl --failed --no-legend";
    assert_eq!(guest(console, command), "running");
}

/// Asserts that no machine is another one; who each of them is.
pub fn assert_different(machines: &[Machine]) -> Vec<Vec<String>> {
    let who = |machine: &Machine| {
        IDENTITIES
            .map(|what| guest(machine.console(), what))
            .to_vec()
    };
    let all: Vec<Vec<String>> = machines.iter().map(who).collect();
    for (index, what) in IDENTITIES.into_iter().enumerate() {
        let answers: HashSet<&String> = all.iter().map(|one| &one[index]).collect();
        assert_eq!(answers.len(), machines.len(), "{what}: {answers:?}");
    }
    all
}

/// What no two nodes may share.
const IDENTITIES: [&str; 5] = [
    "hostname",
    "ip -4 -o address show scope global | awk '{ print $4 }' | grep .",
    "cat /etc/machine-id",
    "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub",
    "cat /sys/module/nfs/parameters/nfs4_unique_id",
];

/// A text field of a JSON object.
pub fn text(object: &Value, field: &str) -> String {
    let value = object[field].as_str();
    value
        .unwrap_or_else(|| panic!("no text {field} in {object}"))
        .to_owned()
}

/// The address that the daemon gave a node.
pub fn address(site: &Site, mac: MacAddress) -> Ipv4Addr {
    let node = site.slate_json(&["node", "show", &mac.to_string(), "--json"]);
    text(&node, "address").parse().expect("an address")
}
