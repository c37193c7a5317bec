//! What goes wrong, provoked for real: every message says what to do next.
//!
//! Those that need a network of their own, and root for it, are run by `cargo xtask test`; they say
//! `skipped: reason` where they cannot run.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use lab::{Host, Network, Process};
use wire::dhcp4::{MAX_BUDGET_BYTES, Message, MessageType, option};

const SLATE: &str = env!("CARGO_BIN_EXE_slate");
/// The daemon's address on [`Site`]'s network.
const SERVER: &str = "10.77.0.1";
/// How long anything may take that the command does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_READY: i32 = 3;
const NO_DAEMON: i32 = 4;

/// A machine's directories.
struct Place {
    directory: tempfile::TempDir,
}

/// Where Debian's packages have them.
const LOADERS: [&str; 2] = [
    "shim/shimx64.efi.signed",
    "grub/x86_64-efi-signed/grubnetx64.efi.signed",
];

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of this text, and the folders above it.
    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    fn slate(&self, words: &[&str]) -> Command {
        let mut command = Command::new(SLATE);
        command.args(words);
        self.dress(&mut command);
        command
    }

    /// Another program that runs `slate` in the end.
    fn dress(&self, command: &mut Command) {
        command
            .env("SLATE_STATE_DIR", self.path("state"))
            .env("SLATE_RUN_DIR", self.path("run"))
            .env("SLATE_CACHE_DIR", self.path("cache"))
            .env("SLATE", SLATE)
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
    }

    /// A root with as much of a kernel as a boot plan wants.
    fn root(&self, name: &str, modules: &[&str]) {
        self.write(&format!("{name}/boot/vmlinuz-1.0"), "kernel");
        self.write(&format!("{name}/sbin/init"), "init");
        let modules: String = modules
            .iter()
            .map(|it| format!("kernel/{it}.ko:\n"))
            .collect();
        self.write(&format!("{name}/lib/modules/1.0/modules.dep"), &modules);
    }

    /// An image that is enough for the daemon to serve to UEFI machines.
    fn image(&self) {
        self.root("root", &["nfsv4", "overlay"]);
        for loader in LOADERS {
            self.write(&format!("root/usr/lib/{loader}"), "loader");
        }
        succeeds(run(self.slate(&["image", "import", "tiny", "root"])));
    }
}

/// Runs a command to its end: exit code, and what it wrote to both of its outputs.
fn run(mut command: Command) -> (i32, String) {
    said(&command.output().expect("the command starts"))
}

fn said(output: &Output) -> (i32, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = text + &String::from_utf8_lossy(&output.stderr);
    println!("--- exit code {:?}\n{text}", output.status.code());
    (output.status.code().unwrap_or(-1), text)
}

fn succeeds((code, text): (i32, String)) -> String {
    assert_eq!(code, 0, "{text}");
    text
}

/// Asserts that a command failed in this way and said all of this, of it what to do next.
#[track_caller]
fn fails((code, text): (i32, String), expected: i32, parts: &[&str]) {
    assert_eq!(code, expected, "{text}");
    says(&text, parts);
    assert!(text.contains("hint: "), "nothing to do next in: {text}");
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} not in: {text}");
    }
}

#[test]
fn without_a_daemon_there_is_nobody_to_ask() {
    let place = Place::new();
    for words in [&["node", "list"][..], &["events"], &["node", "plan", "x"]] {
        let parts = ["no daemon answers on", "slate up --interface"];
        fails(run(place.slate(words)), NO_DAEMON, &parts);
    }
}

#[test]
fn what_is_no_image_is_not_imported() {
    let place = Place::new();
    let nothing = run(place.slate(&["image", "import", "x", "nothing"]));
    fails(
        nothing,
        FAILED,
        &["nothing", "a directory with a root file system"],
    );
    place.write("text", "no archive\n");
    let text = run(place.slate(&["image", "import", "x", "text"]));
    fails(text, FAILED, &["text", "tar archive"]);
    place.root("secret", &["nfsv4", "overlay"]);
    place.write(
        "secret/etc/ssh/ssh_host_rsa_key",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n",
    );
    let secret = run(place.slate(&["image", "import", "x", "secret"]));
    fails(
        secret,
        FAILED,
        &[
            "a private key",
            "/etc/ssh/ssh_host_rsa_key",
            "remove it from the image",
        ],
    );
    let show = run(place.slate(&["image", "show", "x"]));
    fails(show, FAILED, &["x:latest", "slate image build"]);
}

#[test]
fn a_version_boots_with_an_initramfs_of_somebody_elses() {
    let place = Place::new();
    place.write("root/boot/config-1.0", "CONFIG_RD_GZIP=y\n");
    place.image();
    let slate = |words: &[&str]| run(place.slate(words));
    place.write("text", "no initramfs\n");
    let refused = slate(&["initrd", "use", "tiny", "text"]);
    fails(refused, USAGE, &["expected a cpio archive", "dracut"]);
    let missing = slate(&["initrd", "use", "tiny", "nothing"]);
    fails(missing, FAILED, &["reading nothing"]);
    let archive = archive("init");
    fs::write(place.path("plain"), &archive).expect("a file");
    fs::write(place.path("cut"), &archive[..archive.len() - 100]).expect("a file");
    let cut = slate(&["initrd", "use", "tiny", "cut"]);
    fails(cut, USAGE, &["is damaged"]);
    let unknown = slate(&["initrd", "use", "none", "plain"]);
    fails(unknown, FAILED, &["none:latest"]);
    // Nothing but its beginning tells, and this kernel knows gzip only.
    fs::write(place.path("lz4"), b"\x02\x21\x4c\x18").expect("a file");
    let lz4 = slate(&["initrd", "use", "tiny", "lz4"]);
    fails(lz4, USAGE, &["CONFIG_RD_LZ4", "dracut --gzip"]);

    let own = || -> serde_json::Value {
        let list = succeeds(slate(&["initrd", "list", "--json"]));
        serde_json::from_str(&list).expect("JSON")
    };
    assert_eq!(own(), serde_json::json!([]));
    let used = succeeds(slate(&["initrd", "use", "tiny", "plain"]));
    says(&used, &["--reset"]);
    assert_eq!(own()[0]["bytes"], archive.len());
    assert_eq!(own()[0]["tags"][0], "tiny:latest");
    says(
        &succeeds(slate(&["image", "show", "tiny"])),
        &["Initrd  your own"],
    );
    succeeds(slate(&["initrd", "use", "tiny", "--reset"]));
    assert_eq!(own(), serde_json::json!([]));
    succeeds(slate(&["initrd", "use", "tiny", "plain"]));
    succeeds(slate(&["image", "rm", "tiny", "--force"]));
    succeeds(slate(&["image", "gc"]));
    let left = fs::read_dir(place.path("state/store/initrds")).expect("a folder");
    assert_eq!(left.count(), 0, "it goes with its version");
}

/// An uncompressed initramfs with one file.
fn archive(name: &str) -> Vec<u8> {
    let mut writer = wire::cpio::Writer::new();
    let member = wire::cpio::Member {
        name: name.as_bytes(),
        ino: 1,
        mode: wire::cpio::S_IFREG | 0o755,
        uid: 0,
        gid: 0,
        nlink: 1,
        mtime: 0,
        rdev: (0, 0),
        data: b"#!/bin/sh\n",
    };
    writer.push(&member).expect("a member");
    writer.finish()
}

#[test]
fn a_container_image_that_is_damaged_or_one_of_many_says_so() {
    let place = Place::new();
    place.image();
    let slate = |words: &[&str]| run(place.slate(words));
    let digest = |tag: &str| {
        let list = succeeds(slate(&["image", "list", "--json"]));
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        let tagged = |it: &&serde_json::Value| it["tags"].to_string().contains(tag);
        let versions = list.as_array().expect("a list");
        versions.iter().find(tagged).expect(tag)["digest"].clone()
    };
    succeeds(slate(&[
        "image", "export", "tiny", "layout", "--format", "oci",
    ]));
    succeeds(slate(&["image", "import", "again", "layout"]));
    assert_eq!(digest("again:latest"), digest("tiny:latest"));

    let index = fs::read_to_string(place.path("layout/index.json")).expect("an index");
    let mut two: serde_json::Value = serde_json::from_str(&index).expect("JSON");
    let mut other = two["manifests"][0].clone();
    other["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    other["annotations"]["org.opencontainers.image.ref.name"] = "other".into();
    two["manifests"].as_array_mut().expect("a list").push(other);
    place.write("layout/index.json", &two.to_string());
    let import = slate(&["image", "import", "x", "layout"]);
    let parts = ["linux/amd64 latest ", "linux/amd64 other ", "skopeo copy"];
    fails(import, FAILED, &parts);
    place.write("layout/index.json", &index);

    let blobs = fs::read_dir(place.path("layout/blobs/sha256")).expect("blobs");
    let path = blobs
        .flatten()
        .max_by_key(|blob| blob.metadata().map_or(0, |it| it.len()));
    let path = path.expect("a layer").path();
    let mut layer = fs::read(&path).expect("a layer");
    *layer.last_mut().expect("bytes") ^= 1;
    fs::write(&path, layer).expect("a layer");
    let name = path.file_name().expect("a name").to_string_lossy();
    let import = slate(&["image", "import", "x", "layout"]);
    let parts = [
        &format!("blobs/sha256/{name} is damaged"),
        &format!("expected sha256:{name}"),
        "got sha256:",
        "copy or save the container image again",
    ];
    fails(import, FAILED, &parts);
}

#[test]
fn an_image_that_cannot_boot_says_what_it_lacks() {
    let place = Place::new();
    let import = |name: &str| succeeds(run(place.slate(&["image", "import", name, name])));
    place.write("bare/etc/fstab", "");
    says(
        &import("bare"),
        &[
            "no kernel with its modules",
            "install linux-image-amd64",
            "most container images lack a kernel",
        ],
    );
    for (name, modules, lacks) in [
        ("nfs", ["overlay", "x"], "nfsv4"),
        ("overlay", ["nfsv4", "x"], "overlay"),
    ] {
        place.root(name, &modules);
        let lacks = format!("has no {lacks} module");
        says(
            &import(name),
            &[
                &lacks,
                "install the kernel's full set of modules",
                "no signed shim",
                "install shim-signed",
                "no signed network GRUB",
                "install grub-efi-amd64-signed",
            ],
        );
    }
}

#[test]
fn a_configuration_that_cannot_be_imported_says_why() {
    let place = Place::new();
    let import = |words: &[&str]| run(place.slate(&[&["config", "import"], words].concat()));
    place.write("prose", "Dear reader, this is no configuration.\n");
    fails(
        import(&["prose"]),
        USAGE,
        &["by its content", "--from dhcpd"],
    );
    fails(import(&["nothing"]), FAILED, &["reading nothing"]);
    place.write("parts.conf", "\ninclude \"hosts.conf\";\n");
    let parts = [
        "line 2",
        "names another file",
        "Put the other file in the place",
    ];
    fails(import(&["parts.conf"]), FAILED, &parts);
    place.write("broken.conf", "host a {\n  hardware ethernet x\n}\n");
    let parts = ["ISC dhcpd", "line 2", "expected a semicolon"];
    fails(import(&["broken.conf"]), FAILED, &parts);

    place.write(
        "good.conf",
        "host a { hardware ethernet 52:54:00:00:00:01; }\n",
    );
    let said = succeeds(import(&["good.conf", "-o", "slate.toml"]));
    says(
        &said,
        &["node a", "1 node from ISC dhcpd", "slate apply slate.toml"],
    );
    let again = import(&["good.conf", "-o", "slate.toml"]);
    fails(
        again,
        FAILED,
        &["writing slate.toml", "that does not exist"],
    );
    fails(import(&["good.conf", "--apply"]), NO_DAEMON, &["slate up"]);
}

#[test]
fn programs_that_are_missing_are_named_with_their_packages() {
    let place = Place::new();
    let mut build = place.slate(&["image", "build", "debian12"]);
    build.env("PATH", "/nonexistent");
    fails(run(build), NOT_READY, &["mmdebstrap", "install it: "]);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn virtual_nodes_need_their_programs() {
    if impossible() {
        return;
    }
    let place = Place::new();
    let mut lab = place.slate(&["try", "--image", "x"]);
    lab.env("PATH", "/nonexistent");
    fails(run(lab), NOT_READY, &["qemu-system-x86_64", "install with"]);
}

/// A network of its own for [`Place`]'s daemon.
struct Site {
    place: Place,
    network: Network,
}

/// What every start has in common.
const UP: [&str; 5] = ["up", "--interface", "br0", "--dhcp", "authoritative"];

impl Site {
    /// With an image, so that nothing but what the test is about stands in the way.
    fn new() -> Self {
        let place = Place::new();
        place.image();
        let network = Network::new().expect("a network namespace");
        Self { place, network }
    }

    fn run(&self, command: Command) -> (i32, String) {
        said(&self.network.run(command).expect("the command starts"))
    }

    fn slate(&self, words: &[&str]) -> (i32, String) {
        self.run(self.place.slate(words))
    }

    /// `slate up` where it must not come to serve.
    fn up(&self, more: &[&str]) -> (i32, String) {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "60", SLATE]);
        command.args(UP).args(more);
        self.place.dress(&mut command);
        self.run(command)
    }

    /// A daemon that serves.
    fn serve(&self, more: &[&str]) -> Daemon {
        let mut command = self.place.slate(&UP);
        command.args(more);
        Daemon::start(&self.network, command)
    }

    /// Another host on the network.
    fn host(&self, address: [u8; 4]) -> Host {
        let host = self.network.add_host(address.into());
        host.expect("another host")
    }

    /// Another DHCP server, at 10.77.0.2.
    fn dnsmasq(&self, more: &[&str]) -> Process {
        let host = self.host([10, 77, 0, 2]);
        let leases = self.place.path("leases");
        let mut dnsmasq = Command::new("dnsmasq");
        dnsmasq
            .args(["--keep-in-foreground", "--conf-file=/dev/null"])
            .args(["--pid-file=", "--user=root", "--port=0", "--no-ping"])
            .args(["--interface=eth0", "--bind-interfaces"])
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .args(more)
            .stdin(Stdio::null());
        let process = host.spawn(dnsmasq).expect("dnsmasq starts");
        let end = Instant::now() + PATIENCE;
        while !process.has_udp_port(67) {
            assert!(Instant::now() < end, "dnsmasq does not serve");
            std::thread::sleep(Duration::from_millis(50));
        }
        process
    }

    fn shell(&self, script: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-ec", script]);
        self.place.dress(&mut command);
        succeeds(self.run(command))
    }

    /// A process of this program that holds a port in the network, until it is dropped.
    fn hold(&self, port: &str) -> Daemon {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command
            .args(["--ignored", "--exact", "holder", "--nocapture"])
            .env(HOLD, port)
            .stdin(Stdio::null());
        Daemon::start_until(&self.network, command, HOLDS)
    }
}

/// The variable that makes [`holder`] hold a port.
const HOLD: &str = "SLATE_TEST_HOLD";
const HOLDS: &str = "the port is held";

/// No test: the other end of [`Site::hold`].
#[test]
#[ignore = "a helper of other tests"]
fn holder() {
    let Ok(port) = std::env::var(HOLD) else {
        return;
    };
    let (protocol, address) = port.split_once(' ').expect("a protocol and an address");
    let _udp = (protocol == "udp").then(|| UdpSocket::bind(address).expect("a free port"));
    let _tcp = (protocol == "tcp").then(|| TcpListener::bind(address).expect("a free port"));
    println!("{HOLDS}");
    // Whoever started it ends it.
    loop {
        std::thread::park();
    }
}

/// Something that runs until it is dropped, and what it has said.
struct Daemon {
    _process: Process,
    said: String,
    lines: Receiver<String>,
}

impl Daemon {
    fn start(network: &Network, command: Command) -> Self {
        Self::start_until(network, command, "Power the machines on")
    }

    fn start_until(network: &Network, mut command: Command, ready: &str) -> Self {
        let (sender, lines) = channel();
        // By one pipe: of two, what was said first may be read last.
        let (output, said) = std::io::pipe().expect("a pipe");
        command.stdout(said.try_clone().expect("its other end"));
        command.stderr(said);
        let process = network.spawn(command).expect("the command starts");
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut daemon = Self {
            _process: process,
            said: String::new(),
            lines,
        };
        daemon.wait_for(ready);
        daemon
    }

    /// Waits for a line that has this in it; all that was said until then.
    fn wait_for(&mut self, text: &str) -> &str {
        let end = Instant::now() + PATIENCE;
        let from = self.said.len();
        while !self.said[from..].contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.said += &(line + "\n"),
                Err(_) => panic!("{text:?} not in: {}", self.said),
            }
        }
        println!("--- goes on\n{}", &self.said[from..]);
        &self.said
    }
}

/// Says why a test cannot run here, in the words that the test runner counts.
fn impossible() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root = status.lines().any(|line| line.starts_with("Uid:\t0\t0\t"));
    if !root {
        println!("skipped: only root can make a network");
    }
    !root
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn who_is_not_root_is_told() {
    if impossible() {
        return;
    }
    let site = Site::new();
    let nobody = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", SLATE])
            .args(words)
            .stdin(Stdio::null())
            .current_dir("/");
        site.run(command)
    };
    fails(nobody(&UP), NOT_READY, &["needs root", "sudo"]);
    let import = nobody(&["image", "import", "x", "/etc"]);
    fails(import, NOT_READY, &["/var/lib/slate", "as root"]);
    fails(
        nobody(&["try"]),
        NOT_READY,
        &["need root", "sudo slate try"],
    );
    let install = [
        "service",
        "install",
        "--interface",
        "br0",
        "--dhcp",
        "authoritative",
    ];
    fails(nobody(&install), NOT_READY, &[""]);
    let daemon = site.serve(&[]);
    let run_dir = site.place.path("run").display().to_string();
    fs::set_permissions(
        site.place.directory.path(),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let list = nobody(&["--run-dir", &run_dir, "node", "list"]);
    fails(
        list,
        NOT_READY,
        &["control: Permission denied", "sudo", "group slate"],
    );
    drop(daemon);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_port_that_is_taken_has_an_owner() {
    if impossible() {
        return;
    }
    let site = Site::new();
    for (port, number) in [
        ("udp 0.0.0.0:67", 67),
        ("udp 10.77.0.1:69", 69),
        ("udp 0.0.0.0:80", 80),
        ("tcp 0.0.0.0:80", 80),
    ] {
        let holder = site.hold(port);
        let name = format!("port {number}/{}", &port[..3]);
        fails(
            site.up(&[]),
            NOT_READY,
            &[&name, " is taken by errors-", "kill "],
        );
        drop(holder);
    }
    let holder = site.hold("tcp 0.0.0.0:2049");
    fails(
        site.up(&["--nfs-port", "2049"]),
        NOT_READY,
        &["port 2049/tcp (NFS) is taken by errors-"],
    );
    let daemon = site.serve(&[]);
    says(
        &daemon.said,
        &["port 2049/tcp (NFS) is taken by errors-", "NFS 2050"],
    );
    let plan = succeeds(site.slate(&["node", "plan", "52:77:00:00:00:01"]));
    says(&plan, &["root=nfs:10.77.0.1:/images/", "port=2050"]);
    drop(holder);
    fails(
        site.up(&[]),
        NOT_READY,
        &["is taken by slate", "port 67/udp (DHCP)"],
    );
}

/// An authority, and certificates of its for the daemon's address: good, expired, and of another one.
const CERTIFICATES: &str = r#"
new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
echo "subjectAltName=IP:10.77.0.1" > san
authority() { openssl req -x509 $new -days 30 -keyout "$1.key" -out "$1.pem" -subj "/CN=$1"; }
certificate() {
    openssl req $new -keyout "$1.key" -out request -subj /CN=slate
    openssl x509 -req -in request -CA "$2.pem" -CAkey "$2.key" -days "$3" -extfile san -out "$1.pem" \
        -set_serial "$4"
    chmod 600 "$1.key"
}
exec 2>&1
authority ca; authority ca2
certificate good ca 10 1; certificate expired ca -1 2; certificate renewed ca2 10 3
echo nonsense > nonsense.pem
"#;

fn has_openssl_and_curl() -> bool {
    for program in ["openssl", "curl"] {
        if !PathBuf::from("/usr/bin").join(program).exists() {
            println!("skipped: no {program} (package {program})");
            return false;
        }
    }
    true
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_certificate_that_cannot_be_served_with_says_why() {
    if impossible() || !has_openssl_and_curl() {
        return;
    }
    let site = Site::new();
    site.shell(CERTIFICATES);
    let (code, said) = site.up(&["--tls-cert", "good.pem"]);
    assert_eq!(code, USAGE);
    says(&said, &["--tls-key"]);
    let up = |certificate: &str, key: &str| site.up(&["--tls-cert", certificate, "--tls-key", key]);
    for (certificate, key, parts) in [
        (
            "good.pem",
            "renewed.key",
            &["renewed.key: expected the key of good.pem", "of another"][..],
        ),
        (
            "good.pem",
            "none.key",
            &["reading none.key", "No such file"],
        ),
        (
            "nonsense.pem",
            "good.key",
            &["nonsense.pem: expected a certificate in PEM"],
        ),
        (
            "good.pem",
            "good.pem",
            &["good.pem: expected a private key in PEM"],
        ),
        (".", "good.key", &["expected a file"]),
    ] {
        fails(up(certificate, key), FAILED, parts);
    }
    let daemon = site.serve(&["--tls-cert", "expired.pem", "--tls-key", "expired.key"]);
    says(
        &daemon.said,
        &["the certificate expired.pem expired at 20", "renewed"],
    );
    drop(daemon);
    site.shell("chmod 644 good.key");
    let daemon = site.serve(&["--tls-cert", "good.pem", "--tls-key", "good.key"]);
    says(
        &daemon.said,
        &["every user", "chmod o-r good.key", "HTTPS 443"],
    );
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn https_serves_what_http_does() {
    if impossible() || !has_openssl_and_curl() {
        return;
    }
    let site = Site::new();
    site.shell(CERTIFICATES);
    site.shell("cp good.pem now.pem; cp good.key now.key");
    let _daemon = site.serve(&["--tls-cert", "now.pem", "--tls-key", "now.key"]);
    let plan = succeeds(site.slate(&["node", "plan", "52:77:00:00:00:01"]));
    let digest = plan.split("/images/").nth(1).and_then(|it| it.get(..64));
    let kernel = format!("10.77.0.1/boot/{}/vmlinuz", digest.expect("a digest"));

    // Byte for byte but for the date, for who is no node as well.
    let missing = "10.77.0.1/boot/nothing".to_owned();
    let config = "10.77.0.1/autoexec.ipxe".to_owned();
    for path in [&kernel, &missing, &config] {
        for options in ["", "--head", "--range 2-4"] {
            site.shell(&format!(
                "get() {{ curl -sS -i --max-time 60 --cacert ca.pem {options} \"$1\" | grep -v ^Date; }}\n\
                 get http://{path} > plain; get https://{path} > tls; cmp plain tls; test -s tls"
            ));
        }
    }
    let said = site.shell(&format!("curl -sS --cacert ca.pem https://{kernel}"));
    assert_eq!(said, "kernel");
    // One connection for several files.
    let connects = site.shell(&format!(
        "curl -sS --cacert ca.pem -w '%{{num_connects}} ' -o /dev/null https://{kernel} -o /dev/null https://{kernel}"
    ));
    assert_eq!(connects, "1 0 ");
    site.shell(&format!(
        "if curl -sS https://{kernel}; then exit 1; else test $? = 60; fi 2>&1"
    ));
    // Who says nothing is hung up on, in its time.
    site.shell("timeout 60 bash -c 'exec 3<>/dev/tcp/10.77.0.1/443; read -r -u 3 line || exit 0'");

    // A new certificate counts without a restart; one that is damaged changes nothing.
    let fetch = |authority: &str| {
        site.shell(&format!(
            "for i in $(seq 60); do\n\
             if curl -sS --cacert {authority} https://{kernel}; then exit 0; fi; sleep 0.5\n\
             done 2>/dev/null; exit 1"
        ))
    };
    site.shell("mv renewed.key now.key; mv renewed.pem now.pem");
    assert_eq!(fetch("ca2.pem"), "kernel");
    site.shell("cp nonsense.pem now.pem; sleep 1.2");
    assert_eq!(fetch("ca2.pem"), "kernel");
    site.shell("sleep 1.2");
    assert_eq!(fetch("ca2.pem"), "kernel");
}

/// Fetches parts of `$1`, whose content is the file `whole`, as curl does.
const PARTS: &str = r#"
url=$1
get() { curl -sS --max-time 60 --cacert ca.pem "$@"; }
is() { test "$1" = "$2" || { echo "expected $2, got $1"; exit 1; }; }
size=$(stat -c %s whole)
tag="\"$(sha256sum whole | cut -d ' ' -f 1)\""
get --head -o head "$url"
grep -q '^Accept-Ranges: bytes' head
is "$(tr -d '\r' < head | sed -n 's/^Etag: //p')" "$tag"
# A transfer that is cut off goes on where it was, unless it is another file by now.
get "$url" 2> /dev/null | head -c 1234567 > resumed
for tag in "$tag" '"other"'; do
    cp resumed again
    code=$(get -C - -o again -w '%{http_code}' -H "If-Match: $tag" "$url" 2> /dev/null) || true
    echo "$code $(cmp whole again > /dev/null 2>&1 && echo whole || echo not)"
done
part() { # RANGE FIRST-BYTE-FROM-1 COUNT
    is "$(get --range "$1" -o part -w '%{http_code}' "$url")" 206
    tail -c "+$2" whole | head -c "$3" | cmp - part
}
part 0-0 1 1
part 4095-1000000 4096 995906
part $((size - 1))- $size 1
part -70000 $((size - 69999)) 70000
part 4999990-99999999 4999991 $((size - 4999990))
# Not the beginning of a connection, and several on one.
is "$(get -w '%{http_code} %{num_connects},' -o a "$url" --range 5-9 -o b "$url")" '206 1,206 0,'
is "$(get --range $size- -D head -o /dev/null -w '%{http_code}' "$url")" 416
is "$(tr -d '\r' < head | sed -n 's/^Content-Range: //p')" "bytes */$size"
for fields in 'Range: bytes=0-1,4-5' 'Range: bytes=5-1' 'Range: pages=1-2'; do
    is "$(get -H "$fields" -o all -w '%{http_code}' "$url")" 200
    cmp whole all
done
is "$(get --range 1-2 -H 'If-Range: "other"' -o all -w '%{http_code}' "$url")" 200
cmp whole all
# Who has it already is told so.
fetch() { get --etag-compare saved --etag-save saved -o all -w '%{http_code} %{size_download}' "$url"; }
rm -f saved
is "$(fetch)" "200 $size"
is "$(cat saved)" "\"$(sha256sum whole | cut -d ' ' -f 1)\""
is "$(fetch)" "304 0"
echo '"other"' > saved
is "$(fetch)" "200 $size"
cmp whole all
# One connection goes on after it.
known="If-None-Match: $(cat saved)"
is "$(get -w '%{http_code} %{num_connects},' -H "$known" -o a "$url" -o b "$url")" '304 1,304 0,'
"#;

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_part_of_a_file_can_be_fetched_and_a_transfer_goes_on() {
    if impossible() || !has_openssl_and_curl() {
        return;
    }
    let site = Site::new();
    site.shell(CERTIFICATES);
    site.place.write("parts", PARTS);
    site.shell(
        "head -c 5000000 /dev/urandom > whole; cp whole root/boot/vmlinuz-1.0\n\
         \"$SLATE\" image import big root",
    );
    let tls = ["--tls-cert", "good.pem", "--tls-key", "good.key"];
    let _daemon = site.serve(&[&["--image", "big"], &tls[..]].concat());
    let plan = succeeds(site.slate(&["node", "plan", "52:77:00:00:00:01"]));
    let digest = plan.split("/images/").nth(1).and_then(|it| it.get(..64));
    let path = format!("10.77.0.1/boot/{}/vmlinuz", digest.expect("a digest"));
    for scheme in ["http", "https"] {
        let said = site.shell(&format!("sh -eu parts {scheme}://{path}"));
        assert_eq!(said, "206 whole\n412 not\n", "{scheme}");
    }
    // Of what was sent, events tell each part by its own size.
    let events = succeeds(site.slate(&["events"]));
    says(&events, &["995906", "70000"]);
}

/// Two networks of the daemon's, a third behind a relay on the second, and a machine on each that has
/// no address: `machine NAME`, and `asks NAME MAC COMMAND…`, which ends with what it was told.
const NETWORKS: &str = r#"
machine() { # NAME BRIDGE
    unshare --net sleep 600 & eval "$1=$!"; started="$started $!"
    until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
    ip link add "$1" type veth peer name eth0 netns $!
    ip link set "$1" master "$2" up
}
within() { # NAME COMMAND…
    eval "pid=\$$1"; shift
    nsenter --net="/proc/$pid/ns/net" "$@"
}
trap 'kill $started 2> /dev/null || true' EXIT
ip link add br1 type bridge
ip address add 10.78.0.1/24 dev br1
ip link set br1 up
machine first br0; machine second br1; machine router br1; machine third br1
# The third one moves behind the router, which relays.
within router ip address add 10.78.0.2/24 dev eth0
within router ip link set eth0 up
within router ip link set lo up
ip link delete third
within router ip link add inside type veth peer name eth0 netns $third
within router ip address add 10.88.0.1/24 dev inside
within router ip link set inside up
within router sysctl -qw net.ipv4.ip_forward=1
ip route add 10.88.0.0/24 via 10.78.0.2
within first ip link set eth0 address 52:77:00:00:00:01 up
within second ip link set eth0 address 52:77:00:00:00:02 up
within third ip link set eth0 address 52:77:00:00:00:03 up
"#;

/// What a DHCP client is told, in one line.
const CLIENT: &str = r#"#!/bin/sh
case "$1$reason" in
bound | BOUND)
    echo "address ${ip:-$new_ip_address} from ${serverid:-$new_dhcp_server_identifier} file $boot_file$new_filename next $siaddr$new_next_server." ;;
esac
"#;

#[test]
#[ignore = "needs root: cargo xtask test"]
fn each_network_is_served_by_the_address_that_it_sees() {
    const TOOLS: [[&str; 2]; 4] = [
        ["/usr/sbin/dhclient", "isc-dhcp-client"],
        ["/usr/sbin/udhcpc", "udhcpc"],
        ["/usr/sbin/dhcrelay", "isc-dhcp-relay"],
        ["/usr/sbin/bootpc", "bootpc"],
    ];
    if impossible() {
        return;
    }
    if let Some([path, package]) = TOOLS.iter().find(|[path, _]| !PathBuf::from(path).exists()) {
        println!("skipped: no {path} (package {package})");
        return;
    }
    let site = Site::new();
    site.place.write("client", CLIENT);
    site.place.write("state/loaders/undionly.kpxe", "loader");
    let script = r#"
chmod +x client
twice=$("$SLATE" up --interface br0,br0 --dhcp authoritative 2>&1) && exit 1
echo "$twice"
elsewhere=$("$SLATE" up --interface br0 --dhcp authoritative --range 10.79.0.1-10.79.0.9 2>&1) && exit 1
echo "$elsewhere"
"$SLATE" up --interface br0 --interface br1 --dhcp authoritative --relayed 10.88.0.1/24 \
    --range 10.77.0.50-10.77.0.60 --range 10.88.0.70-10.88.0.75 > said 2>&1 &
started="$started $!"
until grep -q Ctrl-C said; do sleep 0.1; kill -0 $!; done
nsenter --net="/proc/$router/ns/net" dhcrelay -4 -d -a -i inside -i eth0 10.78.0.1 2> /dev/null &
started="$started $!"
cat said
echo "first: $(within first udhcpc -f -q -n -t 10 -i eth0 -s ./client 2>/dev/null)"
echo "second: $(within second dhclient -4 -1 -sf "$PWD/client" -lf "$PWD/leases" -pf "$PWD/pid" eth0 2>/dev/null)"
until [ -s pid ]; do sleep 0.1; done; started="$started $(cat pid)"
echo "third: $(within third udhcpc -f -q -n -t 10 -i eth0 -s ./client 2>/dev/null)"
# BOOTP, which only nodes are answered. Its client has no address, and needs a way to everybody.
bootp() {
    within "$1" bootpc --dev eth0 --serverbcast --timeoutwait "$2" --returniffail --verbose 2>&1 |
        grep -E '^(SERVER|IPADDR|BOOTFILE)=' | tr '\n' ' ' || true
}
within first ip route add 255.255.255.255 dev eth0
within third ip route add 255.255.255.255 dev eth0
echo "stranger: $(bootp first 4)"
"$SLATE" node approve 52:77:00:00:00:01 52:77:00:00:00:03 > /dev/null
for name in first third; do echo "bootp $name: $(bootp $name 20)"; done
"#;
    let said = site.shell(&format!("{NETWORKS}{script}"));
    says(
        &said,
        &[
            "br0 and br0 are both in the network 10.77.0.0/24",
            "expected one range of addresses in each of 10.77.0.0/24, got 10.79.0.1-10.79.0.9",
            "serving on br0 (10.77.0.1)",
            "serving on br1 (10.78.0.1)",
            "first: address 10.77.0.5",
            " from 10.77.0.1 file",
            "second: address 10.78.0.",
            " from 10.78.0.1 file",
            "third: address 10.88.0.7",
            "stranger: \n",
            "bootp first: SERVER='10.77.0.1' IPADDR='10.77.0.5",
            "bootp third: SERVER='10.78.0.1' IPADDR='10.88.0.7",
            "BOOTFILE='undionly.kpxe'",
        ],
    );
}

/// Where a test's other DHCP server is.
const OTHER: [u8; 4] = [10, 77, 0, 2];

/// A DHCP server that is told what `slate plan --as` prints, and how it is started.
struct Told {
    name: &'static str,
    program: &'static str,
    /// In the test's directory, with the configuration in `other`.
    start: &'static str,
    /// The whole configuration, by what was printed.
    whole: fn(&str) -> String,
}

const TOLD: [Told; 3] = [
    Told {
        name: "dhcpd",
        program: "/usr/sbin/dhcpd",
        start: "touch dhcpd.leases; exec dhcpd -4 -f -q --no-pid -cf other -lf dhcpd.leases eth0",
        whole: |lines| {
            let subnet =
                "subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.100 10.77.0.150; }";
            format!("authoritative;\n{subnet}\n{lines}")
        },
    },
    Told {
        name: "dnsmasq",
        program: "/usr/sbin/dnsmasq",
        start: "exec dnsmasq --keep-in-foreground --conf-file=other --pid-file= --user=root --port=0 \
                --no-ping --interface=eth0 --bind-interfaces --dhcp-leasefile=dnsmasq.leases",
        whole: |lines| format!("dhcp-range=10.77.0.100,10.77.0.150\n{lines}"),
    },
    Told {
        name: "kea",
        program: "/usr/sbin/kea-dhcp4",
        start: "export KEA_LOCKFILE_DIR=none KEA_PIDFILE_DIR=.; exec kea-dhcp4 -c other",
        whole: |document| {
            let mut whole: serde_json::Value = serde_json::from_str(document).expect("JSON");
            let dhcp = &mut whole["Dhcp4"];
            dhcp["interfaces-config"] = serde_json::json!({ "interfaces": ["eth0"] });
            dhcp["lease-database"] = serde_json::json!({ "type": "memfile", "persist": false });
            dhcp["subnet4"][0]["pools"] =
                serde_json::json!([{ "pool": "10.77.0.100 - 10.77.0.150" }]);
            whole.to_string()
        },
    },
];

#[test]
#[ignore = "needs root: cargo xtask test"]
fn other_servers_do_what_a_plan_tells_them() {
    if impossible() {
        return;
    }
    let programs = TOLD.iter().map(|it| it.program).chain(["/usr/sbin/udhcpc"]);
    for program in programs {
        if !PathBuf::from(program).exists() {
            return println!("skipped: no {program}");
        }
    }
    let site = Site::new();
    site.place.write("client", CLIENT);
    site.place.write("state/loaders/undionly.kpxe", "loader");
    site.shell("chmod +x client");
    let mut up = site
        .place
        .slate(&["up", "--interface", "br0", "--dhcp", "off"]);
    up.args(["--image", "tiny"]);
    let _daemon = Daemon::start(&site.network, up);
    let node = [
        "node",
        "set",
        "52:77:00:00:00:01",
        "--name",
        "known",
        "--address",
        "10.77.0.201",
    ];
    succeeds(site.slate(&node));

    let (server, client) = (site.host(OTHER), site.host([10, 77, 0, 9]));
    let shell = |host: &Host, script: &str| {
        let mut command = Command::new("sh");
        command.args(["-ec", script]);
        site.place.dress(&mut command);
        said(&host.run(command).expect("a shell")).1
    };
    let asks = |last: u8, architecture: u16| {
        let client_options =
            format!("-x 0x5d:{architecture:04x} -V PXEClient:Arch:{architecture:05}:UNDI:003001");
        shell(
            &client,
            &format!(
                "ip link set eth0 address 52:77:00:00:00:0{last}\n\
                 udhcpc -f -q -n -t 30 -T 2 -i eth0 -s ./client {client_options} 2>/dev/null"
            ),
        )
    };
    for told in &TOLD {
        let lines = succeeds(site.slate(&["plan", "--as", told.name]));
        site.place.write("other", &(told.whole)(&lines));
        let mut command = Command::new("sh");
        command.args(["-ec", told.start]);
        site.place.dress(&mut command);
        let running = server.spawn(command).expect("a DHCP server");
        for (architecture, file) in [(7, "shimx64.efi"), (9, "shimx64.efi"), (0, "undionly.kpxe")] {
            let expected =
                format!("address 10.77.0.201 from 10.77.0.2 file {file} next 10.77.0.1.");
            let got = asks(1, architecture);
            assert!(
                got.contains(&expected),
                "{}, {architecture}: {got}",
                told.name
            );
        }
        // It gets an address, and nothing of ours.
        let stranger = asks(2, 7);
        assert!(
            stranger.contains("address 10.77.0.1"),
            "{}: {stranger}",
            told.name
        );
        assert!(!stranger.contains("shimx64"), "{}: {stranger}", told.name);
        drop(running);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_interface_must_be_there_up_and_have_an_address() {
    if impossible() {
        return;
    }
    let site = Site::new();
    site.shell("ip link add bare type bridge; ip link set bare up; ip link add idle type bridge");
    let up = |name: &str| site.slate(&["up", "--interface", name, "--dhcp", "authoritative"]);
    fails(
        up("eth9"),
        NOT_READY,
        &[
            "no network interface eth9",
            "choose one of: bare, br0, idle",
        ],
    );
    fails(
        up("bare"),
        NOT_READY,
        &[
            "interface bare has no IPv4 address",
            "ip address add 192.168.2.2/24 dev bare",
        ],
    );
    fails(
        up("idle"),
        NOT_READY,
        &["interface idle is down", "ip link set idle up"],
    );
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn who_gives_addresses_must_be_clear() {
    if impossible() {
        return;
    }
    let site = Site::new();
    let auto = ["up", "--interface", "br0"];
    // Nobody else there: it is the only one.
    let daemon = Daemon::start(&site.network, site.place.slate(&auto));
    says(
        &daemon.said,
        &["none answers: --dhcp authoritative", ": DHCP, TFTP"],
    );
    drop(daemon);
    let fails_because = |why: &str| {
        let hints = ["add: --dhcp proxy", "add: --dhcp authoritative"];
        let parts = [&["no DHCP server answers on br0", why][..], &hints].concat();
        fails(site.slate(&auto), NOT_READY, &parts);
    };
    // A host that answers nobody may be a server that knows its machines.
    let host = site.host([10, 77, 0, 9]);
    fails_because("addresses that are not from here (10.77.0.9)");
    drop(host);
    site.shell("ip route add default via 10.77.0.254 dev br0; ip neigh flush dev br0");
    fails_because("this machine's default route leads there");
    // Where it is said, nobody is asked.
    drop(site.serve(&[]));
    let range = [&auto[..], &["--dhcp", "proxy", "--lease", "600"]].concat();
    fails(
        site.slate(&range),
        USAGE,
        &["--range and --lease", "leave them out"],
    );
}

/// The variable that makes [`asker`] ask.
const ASK: &str = "SLATE_TEST_ASK";

/// No test: firmware of one machine after the other that asks what to boot, on another host. It
/// prints who is answered until this server has answered the last one.
#[test]
#[ignore = "a helper of other tests"]
fn asker() {
    let Ok(machines) = std::env::var(ASK) else {
        return;
    };
    let socket = UdpSocket::bind("0.0.0.0:68").expect("the client port");
    socket.set_broadcast(true).expect("broadcasts");
    let again = Some(Duration::from_secs(3));
    socket.set_read_timeout(again).expect("a timeout");
    let last = machines.split(' ').next_back().unwrap_or_default();
    let mut buffer = [0; 2048];
    let end = Instant::now() + PATIENCE;
    discover(&socket, &machines);
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            // As firmware does: a port of a bridge carries nothing until the kernel has seen it come up.
            assert!(Instant::now() < end, "no answer");
            discover(&socket, &machines);
            continue;
        };
        let reply = Message::decode(&buffer[..length]).expect("a DHCP message");
        let file = String::from_utf8_lossy(&reply.file).into_owned();
        println!("{} {} {} {file}", reply.mac, from.ip(), reply.yiaddr);
        if reply.mac.to_string() == last && from.ip().to_string() == SERVER {
            return;
        }
    }
}

/// Asks what to boot as each machine's firmware, in turn.
fn discover(socket: &UdpSocket, machines: &str) {
    for machine in machines.split(' ') {
        let mut message = Message::request(machine.parse().expect("an address"), 7);
        message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
        message.push(option::CLASS, *b"PXEClient:Arch:00007:UNDI:003001");
        message.push(option::ARCHITECTURE, [0, 7]);
        message.push(option::MACHINE_UUID, [0; 17]);
        let asked = message.encode(MAX_BUDGET_BYTES);
        socket
            .send_to(&asked, "255.255.255.255:67")
            .expect("sending");
    }
}

/// Who is answered what on `host`.
fn ask(host: &Host, machines: &str) -> String {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command
        .args(["--ignored", "--exact", "asker", "--nocapture"])
        .env(ASK, machines)
        .stdin(Stdio::null());
    let text = succeeds(said(&host.run(command).expect("the command starts")));
    let is_answer = |line: &&str| line.starts_with("52:77:");
    let answers: Vec<&str> = text.lines().filter(is_answer).collect();
    answers.join("\n")
}

/// Says why not, in the words that the test runner counts.
fn has_dnsmasq() -> bool {
    let missing = lab::find_tools(&[lab::Tool::Dnsmasq]).err();
    if let Some(missing) = &missing {
        println!("skipped: {missing}");
    }
    missing.is_none()
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_only_server_tells_of_another_one_and_goes_on() {
    if impossible() || !has_dnsmasq() {
        return;
    }
    let site = Site::new();
    let mut daemon = site.serve(&[]);
    let _dnsmasq = site.dnsmasq(&["--dhcp-range=10.77.0.100,10.77.0.150"]);
    let node = "52:77:00:00:00:01";
    let answers = ask(&site.host([10, 77, 0, 3]), node);
    assert!(
        answers.contains(&format!("{node} {SERVER} 10.77.0.")),
        "{answers}"
    );
    daemon.wait_for("another DHCP server answers: 10.77.0.2; switch one of the two off");
    // Who asks before it starts is told as well.
    drop(daemon);
    let daemon = Daemon::start(
        &site.network,
        site.place.slate(&["up", "--interface", "br0"]),
    );
    let said = [
        "10.77.0.2 answers there: --dhcp proxy",
        "proxyDHCP, TFTP 69",
    ];
    says(&daemon.said, &said);
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn beside_a_server_that_knows_its_hosts_a_stranger_hears_nothing() {
    if impossible() {
        return;
    }
    if !has_dnsmasq() {
        return;
    }
    let site = Site::new();
    let hosts = [
        "--dhcp-range=10.77.0.0,static",
        "--dhcp-host=52:77:00:00:00:01,10.77.0.101",
    ];
    let _dnsmasq = site.dnsmasq(&hosts);
    // It is silent to us, but it is there.
    let auto = ["up", "--interface", "br0"];
    let why = "addresses that are not from here (10.77.0.2)";
    fails(site.slate(&auto), NOT_READY, &[why, "add: --dhcp proxy"]);

    let words = [&auto[..], &["--dhcp", "proxy"]].concat();
    let mut daemon = Daemon::start(&site.network, site.place.slate(&words));
    says(&daemon.said, &["proxyDHCP, TFTP 69", "Only nodes boot"]);
    let (node, other) = ("52:77:00:00:00:01", "52:77:00:00:00:02");
    succeeds(site.slate(&["node", "set", node, "--name", "pc1"]));
    let client = site.host([10, 77, 0, 3]);
    let ask = |machines: String| ask(&client, &machines);
    // Messages are answered in their order: who was passed over is not answered.
    let ours = |mac: &str| format!("{mac} {SERVER} 0.0.0.0 shimx64.efi");
    let answers = ask(format!("{other} {node}"));
    assert!(answers.contains(&ours(node)), "{answers}");
    assert!(!answers.contains(other), "{answers}");
    daemon.wait_for("asks to boot (uefi-x64) but is no node");
    let list = succeeds(site.slate(&["node", "list"]));
    says(&list, &["asked to boot and are no nodes", other]);
    succeeds(site.slate(&["node", "set", other, "--name", "pc2"]));
    assert!(ask(other.to_owned()).contains(&ours(other)));
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn an_image_must_be_there_and_be_the_one() {
    if impossible() {
        return;
    }
    let site = Site::new();
    fails(
        site.up(&["--image", "other"]),
        NOT_READY,
        &["there is no image other", "Choose one of: tiny:latest"],
    );
    succeeds(run(site
        .place
        .slate(&["image", "import", "second", "root"])));
    fails(
        site.up(&[]),
        NOT_READY,
        &["several images: second, tiny", "--image NAME"],
    );
    fs::remove_dir_all(site.place.path("state")).unwrap();
    fails(
        site.up(&[]),
        NOT_READY,
        &["no image to boot", "slate image build"],
    );
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_firewall_in_the_way_is_opened() {
    if impossible() {
        return;
    }
    let site = Site::new();
    site.shell(RULES);
    let daemon = site.serve(&[]);
    let drops = "an nftables ruleset drops 67/udp on br0";
    says(&daemon.said, &[drops, "--open-firewall", "nft insert rule"]);
    drop(daemon);
    let daemon = site.serve(&["--open-firewall"]);
    says(&daemon.said, &["opened the firewall: nft insert rule"]);
    drop(daemon);
    let daemon = site.serve(&[]);
    assert!(!daemon.said.contains("nftables"), "{}", daemon.said);
    drop(daemon);
    // What matters is the port that is served in the end.
    site.shell("nft add rule inet filter input tcp dport 2050 drop");
    let _holder = site.hold("tcp 0.0.0.0:2049");
    let daemon = site.serve(&[]);
    says(&daemon.said, &["an nftables ruleset drops 2050/tcp on br0"]);
}

const RULES: &str = "nft add table inet filter
    nft 'add chain inet filter input { type filter hook input priority 0; policy accept; }'
    nft add rule inet filter input udp dport 67 drop";

/// A state directory on a disk of its own.
struct TinyDisk {
    path: PathBuf,
}

impl TinyDisk {
    const SIZE: &str = "size=4m";

    /// Where [`Place`]'s state is.
    fn under(place: &Place) -> Self {
        let path = place.path("state");
        fs::create_dir_all(&path).expect("a folder");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", Self::SIZE, "tiny"])
            .arg(&path)
            .status();
        assert!(mount.expect("mount starts").success());
        Self { path }
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.path.join("filler")).expect("a file");
        let block = [0; 4096];
        while file.write_all(&block).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path.join("filler")).expect("a file to remove");
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .status();
    }
}

/// ufw with copies of its files.
const UFW: &str = r#"
for path in /etc/ufw /etc/default/ufw; do
    copy="copy$(echo $path | tr / -)"
    cp -a $path "$copy"
    mount --bind "$copy" $path
done
ufw --force enable > /dev/null
again() { ufw reload > /dev/null; }
"#;

/// firewalld with copies of its files, and a bus of its own.
const FIREWALLD: &str = r#"
cp -a /etc/firewalld copy
mount --bind copy /etc/firewalld
for path in /run /var/log; do mount -t tmpfs none $path; done
mkdir /run/dbus
dbus-daemon --system --nopidfile --fork
firewalld --nofork --nopid > firewalld.log 2>&1 &
for i in $(seq 300); do
    if firewall-cmd --state > /dev/null 2>&1; then break; fi
    kill -0 $! || { cat firewalld.log; exit 1; }
    sleep 0.2
done
again() { firewall-cmd --reload > /dev/null; }
"#;

/// The daemon behind a firewall: what each says, and what a client is told before and after it is
/// opened.
const BEHIND: &str = r#"
chmod +x client
serve() {
    : > said # The former daemon's words are not this one's.
    "$SLATE" up --interface br0 --dhcp authoritative "$@" > said 2>&1 & daemon=$!
    until grep -q Ctrl-C said; do sleep 0.1; kill -0 $daemon; done
    cat said
    echo "client: $(nsenter --net="/proc/$CLIENT/ns/net" udhcpc -f -q -n -t 3 -T 1 -i eth0 -s ./client 2> /dev/null)."
    kill $daemon
    wait $daemon || true
}
unshare --net sleep 600 & CLIENT=$!
trap 'kill $CLIENT' EXIT
until [ "$(readlink /proc/$CLIENT/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add client type veth peer name eth0 netns $CLIENT
ip link set client master br0 up
nsenter --net="/proc/$CLIENT/ns/net" ip link set eth0 up
serve
echo opening
serve --open-firewall
again
echo opened
serve
"#;

/// What is said before a firewall is opened, while it is, and once it is. Where a program is missing,
/// `None`, and why is said.
fn behind(firewall: &str, programs: &[&str]) -> Option<[String; 3]> {
    if impossible() {
        return None;
    }
    for program in [programs, &["/usr/sbin/udhcpc"]].concat() {
        if !PathBuf::from(program).exists() {
            println!("skipped: no {program}");
            return None;
        }
    }
    let site = Site::new();
    site.place.write("client", CLIENT);
    let mut command = Command::new("unshare");
    // What it starts ends with it.
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-ec", &format!("{firewall}{BEHIND}")]);
    site.place.dress(&mut command);
    let said = succeeds(site.run(command));
    let (before, rest) = said.split_once("opening\n").expect("a first part");
    let (opening, opened) = rest.split_once("opened\n").expect("two more");
    Some([before, opening, opened].map(str::to_owned))
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn full_ufw_in_the_way_is_found_and_opened() {
    let Some([before, opening, opened]) = behind(UFW, &["/usr/sbin/ufw"]) else {
        return;
    };
    let rule = "ufw allow in on br0 to any port 2049 proto tcp";
    says(&before, &["ufw drops 67/udp, ", rule, "client: .\n"]);
    says(
        &opening,
        &[
            "opened the firewall: ufw allow",
            rule,
            "client: address 10.77.0.",
        ],
    );
    says(&opened, &["client: address 10.77.0."]);
    assert!(!opened.contains("ufw drops"), "{opened}");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn full_firewalld_in_the_way_is_found_and_opened() {
    let programs = [
        "/usr/sbin/firewalld",
        "/usr/bin/firewall-cmd",
        "/usr/bin/dbus-daemon",
    ];
    let Some([before, opening, opened]) = behind(FIREWALLD, &programs) else {
        return;
    };
    let now = "firewall-cmd --zone=public --add-port=67/udp";
    let later = "firewall-cmd --permanent --zone=public --add-port=67/udp";
    let drops = "firewalld (zone public) drops 67/udp, ";
    says(&before, &[drops, now, later, "client: .\n"]);
    let parts = [
        &format!("opened the firewall: {now}"),
        later,
        "client: address 10.77.0.",
    ];
    says(&opening, &parts);
    says(&opened, &["client: address 10.77.0."]);
    assert!(!opened.contains("firewalld (zone"), "{opened}");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn a_full_disk_loses_nothing() {
    if impossible() {
        return;
    }
    let place = Place::new();
    let disk = TinyDisk::under(&place);
    place.image();
    let network = Network::new().expect("a network namespace");
    let site = Site { place, network };
    let list = || succeeds(site.slate(&["image", "list", "--json"]));
    let before = list();

    site.place.root("big", &["nfsv4", "overlay"]);
    site.shell("head -c 8000000 /dev/urandom > big/content");
    let import = site.slate(&["image", "import", "big", "big"]);
    fails(
        import,
        FAILED,
        &["No space left on device", "free some disk space"],
    );
    assert_eq!(list(), before, "the store changed");
    assert_eq!(
        site.shell("ls -A state/store/tmp"),
        "",
        "rests of the import"
    );

    disk.fill();
    fails(
        site.up(&[]),
        FAILED,
        &["No space left on device", "Free some disk space"],
    );
    disk.free();
    drop(site.serve(&[]));
    disk.fill();
    fails(site.up(&[]), FAILED, &["state.db", "free space"]);
    disk.free();
    let mut daemon = site.serve(&[]);
    disk.fill();
    let set = |name: &str| site.slate(&["node", "set", "52:77:00:00:00:01", "--name", name]);
    // A first change may fit into what the database has already.
    let refused = (0..100).map(|it| set(&format!("node{it}")));
    let refused = refused.into_iter().find(|(code, _)| *code != 0);
    let parts = ["could not be written to disk", "Free some disk space"];
    fails(refused.expect("a refusal"), FAILED, &parts);
    daemon.wait_for("no node is answered until the state can be written");
    disk.free();
    succeeds(set("other"));
}

/// What the doctor found: its exit code, and the outcome of each check, with its interface where that
/// is another one than br0.
fn doctor(site: &Site) -> (i32, std::collections::BTreeMap<String, String>) {
    let (code, text) = site.slate(&["doctor", "--json"]);
    // What it writes to standard error stands behind.
    let line = text.lines().next().expect("a line");
    let report: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let checks = report["checks"].as_array().expect("a list").iter();
    let text = |check: &serde_json::Value, field: &str| {
        let text = check[field].as_str().expect("a text");
        text.to_owned()
    };
    let checks = checks.map(|check| {
        let outcome = text(check, "outcome");
        let has_hint = !text(check, "hint").is_empty();
        assert_eq!(
            has_hint,
            matches!(outcome.as_str(), "error" | "warning"),
            "{check}"
        );
        let name = match check["interface"].as_str() {
            None | Some("br0") => text(check, "check"),
            Some(other) => format!("{} on {other}", text(check, "check")),
        };
        (name, outcome)
    });
    (code, checks.collect())
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_doctor_finds_what_is_broken() {
    if impossible() || !has_dnsmasq() {
        return;
    }
    let site = Site::new();
    let (code, checks) = doctor(&site);
    assert_eq!((code, checks["daemon"].as_str()), (NO_DAEMON, "error"));
    assert_eq!(checks["clock"], "ok");

    let daemon = site.serve(&[]);
    let (code, checks) = doctor(&site);
    // The image's kernel has no NFS.
    assert_eq!(code, FAILED);
    for well in [
        "daemon",
        "interface",
        "mtu",
        "port 67/udp",
        "port 2049/tcp",
        "firewall",
        "other dhcp servers",
        "dhcp uefi-x64",
        "image tiny:latest",
        "tftp vmlinuz of tiny:latest",
        "http vmlinuz of tiny:latest",
        "nfs tiny:latest",
    ] {
        assert_eq!(checks[well], "ok", "{well}");
    }
    for ill in [
        "tftp initrd of tiny:latest",
        "http initrd of tiny:latest",
        "config uefi-x64",
        "config ipxe",
    ] {
        assert_eq!(checks[ill], "error", "{ill}");
    }
    // Nothing stays behind.
    let nodes = succeeds(site.slate(&["node", "list", "--json"]));
    assert_eq!(nodes.trim(), "[]");
    let events = succeeds(site.slate(&["events"]));
    says(&events, &["(probe)", "offered", "back"]);

    site.shell(RULES);
    site.shell("nft add rule inet filter input tcp dport 2049 drop");
    let (code, checks) = doctor(&site);
    assert_eq!(code, FAILED);
    for ill in ["firewall", "dhcp uefi-x64", "nfs tiny:latest"] {
        assert_eq!(checks[ill], "error", "{ill}");
    }
    site.shell("nft delete table inet filter");

    let rogue = site.dnsmasq(&["--dhcp-range=10.77.0.100,10.77.0.150"]);
    let (_, checks) = doctor(&site);
    assert_eq!(checks["other dhcp servers"], "error");
    assert_eq!(checks["firewall"], "ok");
    drop(rogue);
    drop(daemon);

    // An image without a kernel.
    site.place.root("empty", &["nfsv4", "overlay"]);
    fs::remove_dir_all(site.place.path("empty/boot")).unwrap();
    let imported = run(site.place.slate(&["image", "import", "empty", "empty"]));
    assert!(imported.1.contains("kernel"), "{}", imported.1);
    let _daemon = site.serve(&["--image", "empty"]);
    let (code, checks) = doctor(&site);
    assert_eq!(
        (code, checks["image empty:latest"].as_str()),
        (FAILED, "error")
    );
    assert!(!checks.contains_key("image tiny:latest"), "{checks:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_doctor_looks_at_each_interface() {
    if impossible() {
        return;
    }
    let site = Site::new();
    // Its initramfs needs no module.
    let built_in = ["nfs", "nfsv4", "overlay"].map(|it| format!("kernel/fs/{it}.ko\n"));
    let modules = "root/lib/modules/1.0/modules";
    let write = |name: &str, text: &str| site.place.write(&format!("{modules}.{name}"), text);
    write("builtin", &built_in.concat());
    write("dep", "");
    succeeds(site.slate(&["image", "import", "whole", "root"]));
    site.shell(
        "ip link add br1 type bridge; ip address add 10.78.0.1/24 dev br1; ip link set br1 up\n\
         ip link add port1 type veth peer name port2\n\
         ip link set port2 up; ip link set port1 master br1 up",
    );
    // What is wrong with one of them is said of that one.
    site.shell(
        "ip link set port1 mtu 1400; ip link set br1 mtu 1400\n\
         nft add table inet filter\n\
         nft 'add chain inet filter input { type filter hook input priority 0; policy accept; }'\n\
         nft add rule inet filter input iifname br1 udp dport 69 drop",
    );
    let _daemon = site.serve(&["--interface", "br1", "--image", "whole"]);
    let (code, checks) = doctor(&site);
    assert_eq!(code, FAILED);
    for name in [
        "interface",
        "port 67/udp",
        "port 69/udp",
        "other dhcp servers",
        "dhcp uefi-x64",
        "dhcp ipxe",
        "tftp vmlinuz of whole:latest",
        "http vmlinuz of whole:latest",
        "nfs whole:latest",
    ] {
        assert_eq!(checks[name], "ok", "{name}");
        let other = format!("{name} on br1");
        assert_eq!(checks[&other], "ok", "{other}");
    }
    for name in ["mtu", "firewall"] {
        assert_eq!(checks[name], "ok", "{name}");
        let other = format!("{name} on br1");
        assert_eq!(checks[&other], "error", "{other}");
    }
    assert_eq!(checks["config uefi-x64"], "ok");
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_doctor_finds_a_full_disk() {
    if impossible() {
        return;
    }
    let place = Place::new();
    let disk = TinyDisk::under(&place);
    place.image();
    let network = Network::new().expect("a network namespace");
    let site = Site { place, network };
    let _daemon = site.serve(&[]);
    disk.fill();
    let (code, checks) = doctor(&site);
    assert_eq!((code, checks["disk"].as_str()), (FAILED, "error"));
}
