//! `slate up`: checks this machine, then serves nodes until it is told to stop.

use std::fmt::{Display, Write as _};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use daemon::control::EventRecord;
use daemon::preflight::dhcp::{self, Choice, Doubt};
use daemon::preflight::{self, Finding, Severity};
use daemon::{ContentProgress, JournalEntry, Listening, Notice, Options, Ports};
use image::Store;
use owo_colors::OwoColorize as _;

use crate::args::{DhcpMode, DirArgs, Drivers, UefiLoader, Unknown, UpArgs};
use crate::embedded;
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// Runs it.
pub fn run(dirs: &DirArgs, args: &UpArgs) -> Outcome {
    log_to_stderr();
    let ports = ports(args);
    let mode = dhcp_mode(dirs, args)?;
    check_machine(args, &ports, mode)?;
    let (notices, received) = channel();
    let options = Options {
        state_dir: dirs.state_dir.clone(),
        run_dir: dirs.run_dir.clone(),
        image: default_image(dirs, args)?,
        dhcp: mode,
        ports,
        lease_seconds: args.lease.unwrap_or(daemon::DEFAULT_LEASE_SECONDS),
        node_lease_seconds: args.node_lease,
        relayed: args
            .relayed
            .iter()
            .map(|it| (it.router, it.prefix))
            .collect(),
        ranges: args.ranges.iter().map(|it| (it.first, it.last)).collect(),
        authorized_keys: authorized_keys(&args.ssh_keys)?,
        extra_kernel_args: args.kernel_args.clone().unwrap_or_default(),
        console_login: args.console_login,
        drivers: match args.drivers {
            Drivers::All => daemon::Drivers::AllNetwork,
            Drivers::Virtual => daemon::Drivers::Virtual,
        },
        debug_shell: args.debug_shell,
        unknown: unknown(args, mode)?,
        uefi_loader: match args.loader {
            UefiLoader::Shim => daemon::UefiLoader::Shim,
            UefiLoader::Ipxe => daemon::UefiLoader::Ipxe,
        },
        certificate: certificate(args)?,
        https_boot: args.https_boot,
        notices: Some(notices),
        ..Options::new(&args.interfaces, embedded::inits())
    };
    let json = args.json;
    let shown = std::thread::spawn(move || show(&received, json));
    let result = daemon::run(options);
    result?;
    // Everything up to the last word is printed.
    let _ = shown.join();
    Ok(())
}

/// What DHCP to speak; said with its reason where it was chosen here.
pub(super) fn dhcp_mode(dirs: &DirArgs, args: &UpArgs) -> Outcome<daemon::DhcpMode> {
    let mode = match args.dhcp {
        DhcpMode::Authoritative => daemon::DhcpMode::Authoritative,
        DhcpMode::Proxy => daemon::DhcpMode::Proxy,
        DhcpMode::Off => daemon::DhcpMode::Off,
        DhcpMode::Auto => choose_for_all(dirs, &args.interfaces)?,
    };
    let gives = mode == daemon::DhcpMode::Authoritative;
    if !gives && (!args.ranges.is_empty() || args.lease.is_some()) {
        return Err(Failure::new(
            "--range and --lease are about addresses that are given here, but another DHCP server gives them",
        )
        .hint("leave them out, or add --dhcp authoritative where there is no other server")
        .code(Code::Usage));
    }
    Ok(mode)
}

/// What was said of machines that are no nodes.
fn unknown(args: &UpArgs, mode: daemon::DhcpMode) -> Outcome<Option<daemon::UnknownPolicy>> {
    if args.unknown == Some(Unknown::Auto) && mode == daemon::DhcpMode::Off {
        return Err(Failure::new(
            "--unknown auto needs the firmware to be heard, and with --dhcp off it is not",
        )
        .hint("take --unknown approve or ignore, or --dhcp proxy")
        .code(Code::Usage));
    }
    Ok(args.unknown.map(|policy| match policy {
        Unknown::Auto => daemon::UnknownPolicy::Auto,
        Unknown::Approve => daemon::UnknownPolicy::Approve,
        Unknown::Ignore => daemon::UnknownPolicy::Ignore,
    }))
}

/// One mode for all interfaces, or none where they differ.
fn choose_for_all(dirs: &DirArgs, interfaces: &[String]) -> Outcome<daemon::DhcpMode> {
    let mut chosen = Vec::new();
    for interface in interfaces {
        chosen.push((interface, choose_dhcp(dirs, interface)?));
    }
    let (_, mode) = chosen[0];
    let other = chosen.iter().find(|(_, it)| *it != mode);
    let Some((other, _)) = other else {
        return Ok(mode);
    };
    Err(Failure::new(format!(
        "{} and {other} need different kinds of DHCP, and one daemon speaks one",
        chosen[0].0
    ))
    .hint(
        "say which one it is for all of them, with --dhcp, or serve the others by another machine",
    )
    .code(Code::NotReady))
}

fn choose_dhcp(dirs: &DirArgs, interface: &str) -> Outcome<daemon::DhcpMode> {
    refuse_if_any(&preflight::check_interface(interface))?;
    anstream::eprintln!("looking for a DHCP server on {interface} (--dhcp MODE skips this)");
    let found = dhcp::look(interface, &dirs.state_dir).map_err(|error| {
        let what = format!("looking for a DHCP server on {interface}");
        Failure::because(what, &error)
            .hint("say it: --dhcp authoritative where there is none, else --dhcp proxy")
            .code(Code::NotReady)
    })?;
    let choice = dhcp::choose(found);
    match &choice {
        Choice::Beside(servers) => {
            let servers = dhcp::listed(servers);
            anstream::eprintln!(
                "{servers} answers there: --dhcp proxy, beside it; only nodes are told what to boot"
            );
        }
        Choice::Alone => anstream::eprintln!("none answers: --dhcp authoritative"),
        Choice::Unclear(doubts) => return Err(unclear(interface, doubts)),
    }
    choice.mode().ok_or_else(|| unclear(interface, &[]))
}

/// Silence is no proof: a server may answer only the machines that it knows.
fn unclear(interface: &str, doubts: &[Doubt]) -> Failure {
    let doubts: Vec<String> = doubts.iter().map(ToString::to_string).collect();
    Failure::new(format!(
        "no DHCP server answers on {interface}, but there may be one: {}",
        doubts.join("; ")
    ))
    .hint(
        "If another server gives the addresses there, add: --dhcp proxy\n\
         If this is to be the network's only one, add: --dhcp authoritative\n\
         A second one would give machines wrong addresses, so it is not guessed.",
    )
    .code(Code::NotReady)
}

/// Where HTTPS is expected.
const HTTPS_PORT: u16 = 443;

/// The certificate, if one was given and can be served with.
pub(super) fn certificate(args: &UpArgs) -> Outcome<Option<daemon::CertificateFiles>> {
    let (Some(certificate), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) else {
        return Ok(None);
    };
    let files = daemon::CertificateFiles { certificate, key };
    for warning in files.check()? {
        anstream::eprintln!("{} {warning}", "warning:".yellow().bold());
    }
    Ok(Some(files))
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SLATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second call, in tests, changes nothing.
    let _ = logs.try_init();
}

fn ports(args: &UpArgs) -> Ports {
    Ports {
        http: args.http_port,
        https: args
            .tls_cert
            .as_ref()
            .map(|_| args.https_port.unwrap_or(HTTPS_PORT)),
        nfs: args.nfs_port.unwrap_or(Ports::default().nfs),
        nfs_fallback: args.nfs_port.is_none(),
        ..Ports::default()
    }
}

/// What is in the way is an error, what may be is said.
fn check_machine(args: &UpArgs, ports: &Ports, mode: daemon::DhcpMode) -> Outcome {
    let mut errors = Vec::new();
    let of = |interface: &String| preflight::check(interface, ports, mode);
    for finding in args.interfaces.iter().flat_map(of) {
        if let (Finding::Firewall(firewall), true) = (&finding, args.open_firewall) {
            let done = preflight::open_firewall(firewall).map_err(|error| {
                Failure::of(&error)
                    .hint("open it by hand, and start without --open-firewall")
                    .code(Code::NotReady)
            })?;
            done.iter()
                .for_each(|command| anstream::eprintln!("opened the firewall: {command}"));
            continue;
        }
        match finding.severity() {
            Severity::Error => errors.push(finding),
            Severity::Warning => warn("warning:", &finding),
            Severity::Note => warn("note:", &finding),
        }
    }
    refuse_if_any(&errors)
}

fn refuse_if_any(errors: &[Finding]) -> Outcome {
    let Some(first) = errors.first() else {
        return Ok(());
    };
    let what: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let mut hints: Vec<String> = errors.iter().map(Finding::hint).collect();
    hints.dedup();
    let what = if errors.len() == 1 {
        first.to_string()
    } else {
        what.join("; ")
    };
    Err(Failure::new(what)
        .hint(hints.join("\n"))
        .code(Code::NotReady))
}

fn warn(label: &str, finding: &Finding) {
    anstream::eprintln!("{} {finding}", label.yellow().bold());
    for line in finding.hint().lines() {
        anstream::eprintln!("  {line}");
    }
}

/// The image asked for, or the only one that there is.
pub(super) fn default_image(dirs: &DirArgs, args: &UpArgs) -> Outcome<Option<String>> {
    if args.image.is_some() {
        return Ok(args.image.clone());
    }
    let tags = Store::open(dirs.state_dir.join("store"))?.tags()?;
    let mut names: Vec<String> = tags
        .into_iter()
        .filter(|it| it.tag == "latest")
        .map(|it| it.name)
        .collect();
    match names.len() {
        1 => Ok(names.pop()),
        0 => Err(Failure::new("there is no image to boot")
            .hint("Build one: slate image build debian13, or bring one: slate image import NAME DIR|TAR")
            .code(Code::NotReady)),
        _ => Err(Failure::new(format!("there are several images: {}", names.join(", ")))
            .hint("Say which one nodes boot unless told otherwise: --image NAME")
            .code(Code::NotReady)),
    }
}

/// Lines for nodes' authorized_keys: the files named, else those of whoever called sudo.
pub(super) fn authorized_keys(files: &[PathBuf]) -> Outcome<Vec<String>> {
    if files.is_empty() {
        return Ok(own_keys());
    }
    let mut keys = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Failure::because(format!("reading the SSH key {}", file.display()), &error)
        })?;
        if text.contains("PRIVATE KEY") {
            return Err(Failure::new(format!("{} is a private key", file.display()))
                .hint("Give the public one, which ends in .pub.")
                .code(Code::Usage));
        }
        keys.extend(lines(&text));
    }
    Ok(keys)
}

fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn own_keys() -> Vec<String> {
    let Some(home) = invoking_home() else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(home.join(".ssh")).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.retain(|file| is_public_key_file(file));
    files.sort();
    files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|text| lines(&text))
        .collect()
}

fn is_public_key_file(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.starts_with("id_") && name.ends_with(".pub")
}

/// The home of whoever called sudo, else our own.
fn invoking_home() -> Option<PathBuf> {
    let own = || std::env::var_os("HOME").map(PathBuf::from);
    let Ok(user) = std::env::var("SUDO_USER") else {
        return own();
    };
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(user.as_str()))?;
    line.split(':').nth(5).map(PathBuf::from)
}

fn show(notices: &Receiver<Notice>, json: bool) {
    for notice in notices {
        match notice {
            Notice::Events(events) => show_events(&events, json),
            Notice::Ready(_) | Notice::Content { .. } if json => {}
            Notice::Ready(listening) => show_ready(&listening),
            Notice::Content { image, what } => show_content(&image, &what),
            Notice::Stopping { live } => return show_stopping(&live),
        }
    }
}

/// By one write for all: a site that is switched on has thousands at once.
fn show_events(events: &[Arc<JournalEntry>], json: bool) {
    let mut lines = String::new();
    for entry in events {
        match json {
            true => {
                lines += &serde_json::to_string(&entry.record()).unwrap_or_default();
                lines.push('\n');
            }
            false => push_lines(&mut lines, entry),
        }
    }
    anstream::print!("{lines}");
}

fn show_ready(listening: &Listening) {
    for (name, address) in &listening.interfaces {
        anstream::println!(
            "{} on {name} ({address}): {}TFTP {}, HTTP {}, {}NFS {}",
            "serving".green().bold(),
            dhcp_text(listening.dhcp),
            listening.tftp_port,
            listening.http_port,
            listening
                .https_port
                .map_or_else(String::new, |port| format!("HTTPS {port}, ")),
            listening.nfs_port
        );
    }
    if let Some(taken) = listening.nfs_port_taken {
        anstream::println!(
            "port {taken} was taken; nodes are told to use {}",
            listening.nfs_port
        );
    }
    match listening.unknown {
        daemon::UnknownPolicy::Auto => {}
        daemon::UnknownPolicy::Approve => anstream::println!(
            "Only nodes boot; to make one of a machine: slate node approve MAC (slate node list has those that asked)"
        ),
        daemon::UnknownPolicy::Ignore => anstream::println!(
            "Only nodes are answered; to make one of a machine: slate node approve MAC"
        ),
    }
    anstream::println!("Power the machines on. Ctrl-C stops.");
}

fn dhcp_text(mode: daemon::DhcpMode) -> &'static str {
    match mode {
        daemon::DhcpMode::Authoritative => "DHCP, ",
        daemon::DhcpMode::Proxy => "proxyDHCP, ",
        daemon::DhcpMode::Off => "",
    }
}

fn show_content(image: &str, what: &ContentProgress) {
    match what {
        ContentProgress::Building => anstream::println!("{image}: making the initramfs"),
        ContentProgress::Ready {
            initrd_bytes,
            took_ms,
        } => {
            let (size, time) = (render::bytes(*initrd_bytes), render::seconds(*took_ms));
            anstream::println!("{image}: ready, initramfs {size} in {time}");
        }
        ContentProgress::Failed { cause } => {
            anstream::eprintln!("{} {image} cannot boot: {cause}", "error:".red().bold());
        }
    }
}

/// Prints what users notice.
pub(crate) fn show_event(event: &EventRecord) {
    let address = match event.kind.as_str() {
        "up" => event.detail["address"].as_str(),
        _ => None,
    };
    let mut lines = String::new();
    let line = Line {
        at_ms: event.at_ms,
        who: event.node.as_deref().or(event.mac.as_deref()),
        level: &event.level,
        text: &event.text,
        reached_at: address,
    };
    line.push_to(&mut lines);
    anstream::print!("{lines}");
}

/// The same of an event that this process's daemon has, without making all that is told of it.
fn push_lines(lines: &mut String, entry: &JournalEntry) {
    let event = &entry.event;
    let mac;
    let who = match &event.node {
        Some(node) => Some(node.as_str()),
        None => {
            mac = event.mac.map(|mac| mac.to_string());
            mac.as_deref()
        }
    };
    let address = entry.address_that_is_up().map(|it| it.to_string());
    let line = Line {
        at_ms: event.at.0,
        who,
        level: entry.level(),
        text: &event.kind,
        reached_at: address.as_deref(),
    };
    line.push_to(lines);
}

/// What is printed of an event.
struct Line<'a, T: Display> {
    at_ms: u64,
    who: Option<&'a str>,
    level: &'a str,
    text: T,
    /// Of a node that is up.
    reached_at: Option<&'a str>,
}

impl<T: Display> Line<'_, T> {
    /// One line for what users notice; packets are in `slate events`.
    fn push_to(&self, lines: &mut String) {
        if self.level == "trace" {
            return;
        }
        let (time, who, text) = (
            render::clock(self.at_ms),
            self.who.unwrap_or("-"),
            &self.text,
        );
        // Writing into a string does not fail.
        let _ = match self.level {
            "warn" => writeln!(lines, "{time}  {who:<10} {}", text.yellow()),
            _ => writeln!(lines, "{time}  {who:<10} {text}"),
        };
        if let Some(address) = self.reached_at {
            let command = format!("ssh root@{address}");
            let _ = writeln!(lines, "{time}  {who:<10} {}", command.green().bold());
        }
    }
}

fn show_stopping(live: &[String]) {
    if live.is_empty() {
        return;
    }
    let names = live.join(", ");
    anstream::eprintln!(
        "{} these nodes run on this server and wait until it is back: {names}",
        "stopping:".yellow().bold()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines_without_comments() {
        assert_eq!(
            lines("# mine\nssh-ed25519 AAAA me\n\n"),
            ["ssh-ed25519 AAAA me"]
        );
    }

    #[test]
    fn a_private_key_is_refused_with_advice() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "-----BEGIN OPENSSH PRIVATE KEY-----").unwrap();
        let failure = authorized_keys(&[file.path().to_owned()]).unwrap_err();
        assert!(failure.hint.unwrap().contains(".pub"));
    }
}
