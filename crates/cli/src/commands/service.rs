//! `slate service`: `slate up` at every boot, under systemd.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use super::image::path_failure;
use super::up;
use crate::args::{DhcpMode, DirArgs, Drivers, ServiceCommand, UefiLoader, Unknown, UpArgs};
use crate::failure::{Code, Failure, Outcome};

/// Runs one `slate service` command.
pub fn run(dirs: &DirArgs, command: ServiceCommand) -> Outcome {
    require_systemd()?;
    let host = Host {
        root: PathBuf::from("/"),
        systemctl: &systemctl,
    };
    let dirs = absolute(dirs)?;
    match command {
        ServiceCommand::Install(args) => {
            let exe = std::env::current_exe()
                .map_err(|error| Failure::because("finding this command's own file", &error))?;
            let (args, keys) = settle(&dirs, *args)?;
            host.install(&dirs, &args, &keys, &exe)
        }
        ServiceCommand::Uninstall { purge } => host.uninstall(&dirs, purge),
    }
}

/// Where the command is copied to.
const BINARY: &str = "/usr/local/bin/slate";
/// The unit.
const UNIT: &str = "/etc/systemd/system/slate.service";
/// The public keys that may log in to nodes, copied from where `install` was told to find them.
const KEYS: &str = "/etc/slate/authorized_keys";
/// The unit's name for systemctl.
const SERVICE: &str = "slate.service";
/// The first line of a unit that we may change and remove.
const MARK: &str = "# Written by slate service install; changes are lost when it runs again.\n";

fn require_systemd() -> Outcome {
    if Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    Err(Failure::new("systemd does not run this machine")
        .hint("start slate up by this machine's own means, for example from its init's scripts")
        .code(Code::NotReady))
}

fn systemctl(words: &[&str]) -> Outcome {
    let output = Command::new("systemctl")
        .args(words)
        .output()
        .map_err(|error| Failure::because("starting systemctl", &error).code(Code::NotReady))?;
    if output.status.success() {
        return Ok(());
    }
    let mut failure = Failure::new(format!("systemctl {} failed", words.join(" ")));
    let said = String::from_utf8_lossy(&output.stderr);
    failure.causes = said.lines().map(str::to_owned).collect();
    Err(failure.hint("see why: journalctl --unit slate --lines 20"))
}

fn absolute(dirs: &DirArgs) -> Outcome<DirArgs> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| path_failure("finding", path, &error))
    };
    Ok(DirArgs {
        state_dir: absolute(&dirs.state_dir)?,
        run_dir: absolute(&dirs.run_dir)?,
    })
}

/// Decides now what `slate up` decides at its start by what it finds: a boot has nobody to ask, no
/// user who called sudo, and perhaps one more image. Returns the public keys beside the options.
fn settle(dirs: &DirArgs, mut args: UpArgs) -> Outcome<(UpArgs, Vec<String>)> {
    args.dhcp = match up::dhcp_mode(dirs, &args)? {
        daemon::DhcpMode::Authoritative => DhcpMode::Authoritative,
        daemon::DhcpMode::Proxy => DhcpMode::Proxy,
        daemon::DhcpMode::Off => DhcpMode::Off,
    };
    args.image = up::default_image(dirs, &args)?;
    up::certificate(&args)?;
    for file in [&mut args.tls_cert, &mut args.tls_key]
        .into_iter()
        .flatten()
    {
        *file =
            std::path::absolute(&*file).map_err(|error| path_failure("finding", file, &error))?;
    }
    let keys = up::authorized_keys(&args.ssh_keys)?;
    args.ssh_keys = if keys.is_empty() {
        anstream::eprintln!("warning: nobody could log in to nodes by SSH; add --ssh-key FILE");
        Vec::new()
    } else {
        vec![PathBuf::from(KEYS)]
    };
    Ok((args, keys))
}

/// The machine that the service is on.
struct Host<'a> {
    /// `/`, or another directory for tests.
    root: PathBuf,
    systemctl: &'a dyn Fn(&[&str]) -> Outcome,
}

impl Host<'_> {
    fn install(&self, dirs: &DirArgs, args: &UpArgs, keys: &[String], exe: &Path) -> Outcome {
        let known = self.known_unit()?;
        self.make_dir(&dirs.state_dir)?;
        let copied = self.copy_binary(exe)?;
        let ours = copied
            || known
                .as_deref()
                .is_some_and(|unit| field(unit, BINARY_FIELD).is_some());
        let mut changed = copied;
        if !keys.is_empty() {
            changed |= self.write(KEYS, &(keys.join("\n") + "\n"))?;
        }
        changed |= self.write(UNIT, &unit_text(dirs, args, ours))?;
        (self.systemctl)(&["daemon-reload"])?;
        (self.systemctl)(&["enable", "--quiet", SERVICE])?;
        // A restart makes nodes wait for a moment: only where there is a reason for it.
        let start = if changed { "restart" } else { "start" };
        (self.systemctl)(&[start, SERVICE])?;
        say(
            if changed {
                "started"
            } else {
                "runs already as asked:"
            },
            SERVICE,
        );
        anstream::println!("Follow it: slate events --follow");
        Ok(())
    }

    fn uninstall(&self, dirs: &DirArgs, purge: bool) -> Outcome {
        let known = self.known_unit()?;
        let unit = known.as_deref().unwrap_or_default();
        if known.is_some() {
            (self.systemctl)(&["disable", "--quiet", "--now", SERVICE])?;
            say("stopped", SERVICE);
        }
        if field(unit, BINARY_FIELD).is_some() {
            self.remove(BINARY)?;
        }
        self.remove(KEYS)?;
        // Empty unless somebody keeps something else there.
        let _ = fs::remove_dir(self.path("/etc/slate"));
        // Last of these: a second run finds what the first one could not do.
        if self.remove(UNIT)? {
            (self.systemctl)(&["daemon-reload"])?;
        } else {
            anstream::println!("no service is installed");
        }
        if purge {
            let state_dir =
                field(unit, STATE_FIELD).map_or_else(|| dirs.state_dir.clone(), PathBuf::from);
            return self.purge(&state_dir);
        }
        Ok(())
    }

    /// Removes what the daemon and the store keep, and nothing else that may lie beside it.
    fn purge(&self, state_dir: &Path) -> Outcome {
        for folder in ["store", "keys", "cache", daemon::UPLOADS] {
            let path = state_dir.join(folder);
            if self.path(&path).is_dir() {
                fs::remove_dir_all(self.path(&path))
                    .map_err(|error| path_failure("removing", &path, &error))?;
                say("removed", path.display());
            }
        }
        for file in ["state.db", "state.db-wal", "state.db-shm"] {
            self.remove(state_dir.join(file))?;
        }
        let _ = fs::remove_dir(self.path(state_dir));
        Ok(())
    }

    /// The unit that an earlier install wrote; somebody else's is left alone.
    fn known_unit(&self) -> Outcome<Option<String>> {
        match fs::read_to_string(self.path(UNIT)) {
            Ok(unit) if unit.starts_with(MARK) => Ok(Some(unit)),
            Ok(_) => Err(
                Failure::new(format!("{UNIT} was not written by this command")).hint(format!(
                    "move it away, then run this again: mv {UNIT} {UNIT}.old"
                )),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(path_failure("reading", Path::new(UNIT), &error)),
        }
    }

    /// Copies the running command to its place; false where it is there already.
    fn copy_binary(&self, exe: &Path) -> Outcome<bool> {
        let there = self.path(BINARY);
        if same_content(exe, &there) {
            say("up to date:", BINARY);
            return Ok(false);
        }
        let mut source = File::open(exe).map_err(|error| path_failure("opening", exe, &error))?;
        self.replace(Path::new(BINARY), 0o755, &mut source)?;
        Ok(true)
    }

    /// Writes a small file; false where it says that already.
    fn write(&self, path: &str, text: &str) -> Outcome<bool> {
        if fs::read(self.path(path)).is_ok_and(|there| there == text.as_bytes()) {
            say("up to date:", path);
            return Ok(false);
        }
        self.replace(Path::new(path), 0o644, &mut text.as_bytes())?;
        Ok(true)
    }

    /// Puts a file in place in one step: who looks finds the old one or the new one, whole.
    fn replace(&self, path: &Path, mode: u32, content: &mut dyn Read) -> Outcome {
        if let Some(folder) = path.parent() {
            self.make_dir(folder)?;
        }
        let target = self.path(path);
        let draft = target.with_added_extension("new");
        write_draft(&draft, mode, content)
            .and_then(|()| fs::rename(&draft, &target))
            .map_err(|error| path_failure("writing", path, &error))?;
        say("wrote", path.display());
        Ok(())
    }

    fn make_dir(&self, path: &Path) -> Outcome {
        fs::create_dir_all(self.path(path)).map_err(|error| path_failure("making", path, &error))
    }

    /// Whether there was something to remove.
    fn remove(&self, path: impl AsRef<Path>) -> Outcome<bool> {
        let path = path.as_ref();
        match fs::remove_file(self.path(path)) {
            Ok(()) => say("removed", path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(path_failure("removing", path, &error)),
        }
        Ok(true)
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn say(what: &str, whom: impl std::fmt::Display) {
    anstream::println!("{what} {whom}");
}

fn same_content(a: &Path, b: &Path) -> bool {
    let length = |path| fs::metadata(path).map(|meta| meta.len()).ok();
    length(a).is_some()
        && length(a) == length(b)
        && matches!((fs::read(a), fs::read(b)), (Ok(a), Ok(b)) if a == b)
}

fn write_draft(path: &Path, mode: u32, content: &mut dyn Read) -> io::Result<()> {
    // What an interrupted run left may have another mode.
    let _ = fs::remove_file(path);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    io::copy(content, &mut file)?;
    file.sync_all()
}

/// Says in the unit that the command was copied, so that uninstall removes the copy.
const BINARY_FIELD: &str = "Binary";
/// Says in the unit what a purge removes.
const STATE_FIELD: &str = "StateDirectory";

/// What our own section of a unit says; systemd skips sections that begin with `X-`.
fn field<'a>(unit: &'a str, name: &str) -> Option<&'a str> {
    let (_, section) = unit.split_once("\n[X-Slate]\n")?;
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix('=');
    section.lines().find_map(value)
}

fn unit_text(dirs: &DirArgs, args: &UpArgs, copied: bool) -> String {
    let words = up_words(dirs, args);
    // Variables are expanded in commands alone.
    let words: Vec<String> = words
        .iter()
        .map(|word| quoted(word).replace('$', "$$"))
        .collect();
    let binary = if copied {
        format!("{BINARY_FIELD}={BINARY}\n")
    } else {
        String::new()
    };
    format!(
        "{MARK}\
[Unit]
Description=Cleanslate: boots diskless nodes
Wants=network-online.target
After=network-online.target
# Nodes depend on it: no number of failures is enough to give up.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={BINARY} {command}
Restart=always
RestartSec=2
# The NFS socket stays open meanwhile: nodes wait.
FileDescriptorStoreMax=64
TimeoutStopSec=15
LimitNOFILE=65536
OOMScoreAdjust=-900
{SANDBOX}{paths}
[Install]
WantedBy=multi-user.target

[X-Slate]
{STATE_FIELD}={state}
{binary}",
        command = words.join(" "),
        paths = writable_paths(dirs),
        state = dirs.state_dir.display(),
    )
}

/// What the daemon does without. It keeps root's rights on networks: raw sockets, low ports, the firewall.
const SANDBOX: &str = "\
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=read-only
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
SystemCallArchitectures=native
";

/// Wherever the state lies, it is written; and so are the firewalls' own files, by their commands.
fn writable_paths(dirs: &DirArgs) -> String {
    let paths = [
        dirs.state_dir.as_path(),
        dirs.run_dir.as_path(),
        Path::new("/etc/ufw"),
        Path::new("/etc/firewalld"),
    ];
    let lines = paths.map(|path| {
        let path = quoted(&format!("-{}", path.display()));
        format!("ReadWritePaths={path}\n")
    });
    lines.concat()
}

/// The words after the command's name that start the daemon with these options.
fn up_words(dirs: &DirArgs, args: &UpArgs) -> Vec<String> {
    // Names every option, so that a new one cannot be forgotten here.
    let UpArgs {
        interfaces,
        dhcp,
        unknown,
        image,
        ssh_keys,
        ranges,
        relayed,
        lease,
        node_lease,
        kernel_args,
        console_login,
        debug_shell,
        drivers,
        loader,
        http_port,
        tls_cert,
        tls_key,
        https_port,
        https_boot,
        nfs_port,
        open_firewall,
        json,
    } = args;
    let mut words = vec!["up".to_owned()];
    words.extend(interfaces.iter().map(|it| format!("--interface={it}")));
    let mut option = |name: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("--{name}={value}")));
    };
    option("dhcp", Some(value_name::<DhcpMode>(dhcp)));
    option("unknown", unknown.as_ref().map(value_name::<Unknown>));
    option("image", image.clone());
    for key in ssh_keys {
        option("ssh-key", Some(key.display().to_string()));
    }
    for range in ranges {
        option("range", Some(range.to_string()));
    }
    for network in relayed {
        option("relayed", Some(network.to_string()));
    }
    option("lease", lease.map(|seconds| seconds.to_string()));
    option("node-lease", node_lease.map(|seconds| seconds.to_string()));
    option("kernel-args", kernel_args.clone());
    option("drivers", Some(value_name::<Drivers>(drivers)));
    option("loader", Some(value_name::<UefiLoader>(loader)));
    option("http-port", Some(http_port.to_string()));
    let path = |file: &Option<PathBuf>| file.as_ref().map(|it| it.display().to_string());
    option("tls-cert", path(tls_cert));
    option("tls-key", path(tls_key));
    option("https-port", https_port.map(|port| port.to_string()));
    option("nfs-port", nfs_port.map(|port| port.to_string()));
    option("state-dir", Some(dirs.state_dir.display().to_string()));
    option("run-dir", Some(dirs.run_dir.display().to_string()));
    let flags = [
        ("--console-login", *console_login),
        ("--debug-shell", *debug_shell),
        ("--https-boot", *https_boot),
        ("--open-firewall", *open_firewall),
        ("--json", *json),
    ];
    words.extend(flags.iter().filter(|it| it.1).map(|it| it.0.to_owned()));
    words
}

fn value_name<T: ValueEnum>(value: &T) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// A word as systemd.service(5) reads it: specifiers taken literally, the rest in C's escapes.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '%' => text += "%%",
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_ascii_control() => text += &format!("\\x{:02x}", c as u32),
            c => text.push(c),
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use clap::Parser as _;

    use super::*;
    use crate::args;

    fn parse(words: &[&str]) -> (DirArgs, UpArgs) {
        let cli = args::Cli::try_parse_from(words).unwrap();
        match cli.command {
            args::Command::Up(up) => (cli.dirs, up),
            args::Command::Service(ServiceCommand::Install(up)) => (cli.dirs, *up),
            other => panic!("{other:?}"),
        }
    }

    const PLAIN: [&str; 6] = [
        "slate",
        "service",
        "install",
        "-i",
        "eth1",
        "--dhcp=authoritative",
    ];

    #[test]
    fn the_unit_starts_what_was_asked_for() {
        let (dirs, up) = parse(&PLAIN);
        let unit = unit_text(&dirs, &up, true);
        let start = "ExecStart=/usr/local/bin/slate up --interface=eth1 --dhcp=authoritative --drivers=all \
                     --loader=shim --http-port=80 --state-dir=/var/lib/slate --run-dir=/run/slate\n";
        assert!(unit.contains(start), "{unit}");
        assert!(unit.starts_with(MARK) && unit.contains("\nType=notify\n"));
        assert!(
            unit.contains("\nRestart=always\n")
                && unit.contains("\nReadWritePaths=-/var/lib/slate\n")
        );
        assert_eq!(field(&unit, STATE_FIELD), Some("/var/lib/slate"));
        assert_eq!(field(&unit, BINARY_FIELD), Some(BINARY));
        assert_eq!(field(&unit_text(&dirs, &up, false), BINARY_FIELD), None);
    }

    #[test]
    fn every_option_survives_the_unit() {
        let all = [
            "slate",
            "service",
            "install",
            "--interface=eth1",
            "--interface=eth2",
            "--dhcp=authoritative",
            "--image=rocky9:next",
            "--ssh-key=/a",
            "--ssh-key=/b",
            "--range=10.0.0.9-10.0.0.12",
            "--range=10.1.0.9-10.1.0.12",
            "--relayed=10.88.0.1/24",
            "--lease=600",
            "--node-lease=7200",
            "--kernel-args=console=ttyS0 a=\"b\"",
            "--drivers=virtual",
            "--loader=ipxe",
            "--http-port=8080",
            "--unknown=ignore",
            "--tls-cert=/etc/a.pem",
            "--tls-key=/etc/b.pem",
            "--https-port=8443",
            "--https-boot",
            "--nfs-port=2050",
            "--console-login",
            "--debug-shell",
            "--open-firewall",
            "--json",
            "--state-dir=/srv/x",
            "--run-dir=/run/x",
        ];
        let (dirs, up) = parse(&all);
        let words = up_words(&dirs, &up);
        let words: Vec<&str> = ["slate"]
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect();
        let (dirs_again, up_again) = parse(&words);
        assert_eq!(
            format!("{up:?}{dirs:?}"),
            format!("{up_again:?}{dirs_again:?}")
        );
    }

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        assert_eq!(quoted("--image=a:b"), "--image=a:b");
        assert_eq!(quoted(r#"a b%"c\"#), r#""a b%%\"c\\""#);
        assert_eq!(quoted("a\nb"), r#""a\x0ab""#);
        let (dirs, mut up) = parse(&PLAIN);
        up.kernel_args = Some("a=$HOME".to_owned());
        assert!(unit_text(&dirs, &up, true).contains("\"--kernel-args=a=$$HOME\""));
    }

    /// A machine in a directory, whose systemctl takes notes.
    struct Machine {
        root: tempfile::TempDir,
        calls: RefCell<Vec<String>>,
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("exe"), "the command").unwrap();
            Self {
                root,
                calls: RefCell::default(),
            }
        }

        /// What systemctl was told meanwhile.
        fn on<T>(&self, run: impl FnOnce(&Host<'_>, &Path) -> T) -> (T, String) {
            let systemctl = |words: &[&str]| {
                self.calls.borrow_mut().push(words.join(" "));
                Ok(())
            };
            let host = Host {
                root: self.root.path().to_owned(),
                systemctl: &systemctl,
            };
            let result = run(&host, &self.root.path().join("exe"));
            (result, self.calls.take().join("; "))
        }

        fn has(&self, path: &str) -> bool {
            self.root.path().join(&path[1..]).exists()
        }
    }

    #[test]
    fn installs_once_restarts_on_change_and_leaves_nothing() {
        let machine = Machine::new();
        let (dirs, mut up) = parse(&PLAIN);
        let keys = ["ssh-ed25519 AAAA me".to_owned()];
        let enabled = "daemon-reload; enable --quiet slate.service; ";
        for start in ["restart", "start"] {
            let (done, calls) = machine.on(|host, exe| host.install(&dirs, &up, &keys, exe));
            done.unwrap();
            assert_eq!(calls, format!("{enabled}{start} slate.service"));
        }
        up.lease = Some(600);
        let (done, calls) = machine.on(|host, exe| host.install(&dirs, &up, &keys, exe));
        done.unwrap();
        assert!(calls.ends_with("; restart slate.service"), "{calls}");
        assert!(machine.has(BINARY) && machine.has(UNIT) && machine.has(KEYS));
        fs::create_dir(machine.root.path().join("var/lib/slate/store")).unwrap();

        let (done, calls) = machine.on(|host, _| host.uninstall(&dirs, false));
        done.unwrap();
        assert_eq!(calls, "disable --quiet --now slate.service; daemon-reload");
        assert!(!machine.has(BINARY) && !machine.has(UNIT) && !machine.has("/etc/slate"));
        assert!(machine.has("/var/lib/slate/store"));
        let (done, calls) = machine.on(|host, _| host.uninstall(&dirs, true));
        done.unwrap();
        assert!(calls.is_empty() && !machine.has("/var/lib/slate"));
    }

    #[test]
    fn a_command_that_was_there_before_stays() {
        let machine = Machine::new();
        let (dirs, up) = parse(&PLAIN);
        let binary = machine.root.path().join(&BINARY[1..]);
        fs::create_dir_all(binary.parent().unwrap()).unwrap();
        fs::write(&binary, "the command").unwrap();
        machine
            .on(|host, _| host.install(&dirs, &up, &[], &binary))
            .0
            .unwrap();
        machine
            .on(|host, _| host.uninstall(&dirs, false))
            .0
            .unwrap();
        assert!(machine.has(BINARY) && !machine.has(UNIT));
    }

    #[test]
    fn somebody_elses_unit_is_left_alone() {
        let machine = Machine::new();
        let (dirs, up) = parse(&PLAIN);
        let unit = machine.root.path().join(&UNIT[1..]);
        fs::create_dir_all(unit.parent().unwrap()).unwrap();
        fs::write(&unit, "[Service]\n").unwrap();
        let (refused, calls) = machine.on(|host, exe| host.install(&dirs, &up, &[], exe));
        assert!(refused.unwrap_err().hint.is_some() && calls.is_empty());
        assert!(machine.on(|host, _| host.uninstall(&dirs, true)).0.is_err());
    }
}
