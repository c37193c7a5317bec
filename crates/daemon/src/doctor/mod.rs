//! Is everything that nodes need served, and can it be reached? Asked of the running daemon as nodes
//! would ask: DHCP as firmware of each kind, files over TFTP and HTTP, a file over NFS.
//!
//! It changes nothing. The address that it is offered is given back and never used; what it is told
//! to boot comes from a plan (`engine::preview`), so that no boot begins; its machine is
//! [`Mac::PROBE`], which becomes no node and is called `(probe)` in events. What it asks comes from
//! this machine, so a firewall on the way is known by its rules, not by what it drops.

mod files;
mod lease;
mod machine;
mod network;
mod nfs3;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use engine::BootFile;
use serde::Serialize;
use wire::mac::Mac;

use crate::control::{
    BootServiceView, Client, ClientError, NodeView, PlannedFileView, PreviewView, Request,
    Response, Status,
};
use crate::options::{DhcpMode, Ports};

/// A machine that nobody has seen: what it would get is planned where there are no nodes yet.
const STRANGER: Mac = Mac([0x02, b's', b'l', b'a', b't', b'f']);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It could not be made, or there is nothing to check.
    Skipped,
    /// Nodes boot, but somebody should look at it.
    Warning,
    /// Nodes do not boot.
    Error,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Ok => "ok",
            Outcome::Skipped => "skipped",
            Outcome::Warning => "warning",
            Outcome::Error => "error",
        })
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked: `dhcp uefi-x64`, `disk`.
    pub check: String,
    /// On which interface, if on one.
    pub interface: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub hint: String,
}

impl Check {
    /// What was checked, and where.
    pub fn title(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{} on {interface}", self.check),
            None => self.check.clone(),
        }
    }
}

/// Where the daemon is, and what it is told.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory of the control socket.
    pub run_dir: PathBuf,
    /// The directory of images and leases.
    pub state_dir: PathBuf,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether a daemon answered.
    pub daemon: bool,
    /// In the order in which they should be dealt with.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst outcome.
    pub fn worst(&self) -> Outcome {
        let outcomes = self.checks.iter().map(|check| check.outcome);
        outcomes.max().unwrap_or(Outcome::Ok)
    }

    /// Adds checks of one interface.
    fn on(&mut self, interface: &str, examine: impl FnOnce(&mut Report)) {
        let mut found = Report::default();
        examine(&mut found);
        self.checks
            .extend(found.checks.into_iter().map(|check| Check {
                interface: Some(interface.to_owned()),
                ..check
            }));
    }

    fn push(&mut self, check: impl Into<String>, outcome: Outcome, found: impl Into<String>) {
        self.push_with(check, outcome, found, "");
    }

    fn push_with(
        &mut self,
        check: impl Into<String>,
        outcome: Outcome,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.checks.push(Check {
            check: check.into(),
            interface: None,
            outcome,
            found: found.into(),
            hint: hint.into(),
        });
    }

    fn ok(&mut self, check: impl Into<String>, found: impl Into<String>) {
        self.push(check, Outcome::Ok, found);
    }

    fn error(
        &mut self,
        check: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push_with(check, Outcome::Error, found, hint);
    }

    fn warn(
        &mut self,
        check: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push_with(check, Outcome::Warning, found, hint);
    }

    fn skip(&mut self, check: impl Into<String>, why: impl Into<String>) {
        self.push(check, Outcome::Skipped, why);
    }
}

/// What the daemon says of itself.
struct Daemon {
    client: Client,
    status: Status,
    /// At least one.
    networks: Vec<Served>,
    nodes: Vec<NodeView>,
    /// Boot files that plans name, and kernel and initramfs.
    files: BTreeSet<String>,
}

/// A network that the daemon serves.
struct Served {
    interface: String,
    service: BootServiceView,
}

/// Examines a daemon and its machine. Takes seconds for each interface, most of them to wait for
/// other DHCP servers.
pub fn examine(place: &Place) -> Report {
    let mut report = Report::default();
    let daemon = match Daemon::ask(&place.run_dir) {
        Ok(daemon) => Some(daemon),
        Err(error) => {
            report.error("daemon", error.to_string(), error.hint());
            None
        }
    };
    if let Some(mut daemon) = daemon {
        report.daemon = true;
        daemon.examine(&place.run_dir, &mut report);
    } else {
        let why = "only the daemon knows what is served";
        for check in [
            "interface",
            "ports",
            "firewall",
            "dhcp",
            "images",
            "files",
            "nfs",
        ] {
            report.skip(check, why);
        }
    }
    machine::disk(&place.state_dir, &mut report);
    machine::clock(&mut report);
    report
}

impl Served {
    fn mode(&self) -> DhcpMode {
        match self.service.dhcp.as_str() {
            "proxy" => DhcpMode::Proxy,
            "off" => DhcpMode::Off,
            _ => DhcpMode::Authoritative,
        }
    }
}

impl Daemon {
    fn ask(run_dir: &Path) -> Result<Daemon, ClientError> {
        let mut client = Client::connect(run_dir)?;
        let status = match client.request(&Request::Status)? {
            Response::Status(status) => status,
            other => return Err(unexpected(&other)),
        };
        let mut networks = Vec::new();
        for (interface, address) in status.interfaces.clone() {
            let server = Some(address);
            match client.request(&Request::BootService { server })? {
                Response::BootService(service) => networks.push(Served { interface, service }),
                other => return Err(unexpected(&other)),
            }
        }
        let nodes = match client.request(&Request::Nodes)? {
            Response::Nodes { nodes, .. } => nodes,
            other => return Err(unexpected(&other)),
        };
        Ok(Daemon {
            client,
            status,
            networks,
            nodes,
            files: [BootFile::Kernel, BootFile::Initrd]
                .map(|file| file.name().to_owned())
                .into(),
        })
    }

    fn examine(&mut self, run_dir: &Path, report: &mut Report) {
        let Status {
            pid, ref version, ..
        } = self.status;
        report.ok("daemon", format!("slate {version} answers, process {pid}"));
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            let hint = "run it with sudo: sudo slate doctor";
            report.warn("rights", "without root the network is not looked at", hint);
        }
        for served in &self.networks {
            let network = network::Network {
                name: &served.interface,
                address: served.service.server,
                ports: self.ports(),
                mode: served.mode(),
                pid,
            };
            report.on(&served.interface, |report| {
                network.examine(is_root, report);
                if is_root {
                    lease::examine(&served.interface, run_dir, &served.service, report);
                }
            });
        }
        self.nodes(report);
        // Until then a plan shows what is hoped for.
        self.wait_for_initramfs();
        self.plans(report);
        self.images(report);
    }

    fn ports(&self) -> Ports {
        Ports {
            tftp: self.status.tftp_port,
            http: self.status.http_port,
            nfs: self.status.nfs_port,
            ..Ports::default()
        }
    }

    /// Every node has something to boot.
    fn nodes(&self, report: &mut Report) {
        const SHOWN_MAX: usize = 8;
        let lost: Vec<&str> = self
            .nodes
            .iter()
            .filter(|node| node.next_digest.is_none())
            .map(|node| node.name.as_str())
            .collect();
        if lost.is_empty() {
            let count = self.nodes.len();
            return report.ok("nodes", format!("{count} known, each with an image"));
        }
        let shown = lost[..lost.len().min(SHOWN_MAX)].join(", ");
        report.error(
            "nodes",
            format!("{} without an image to boot: {shown}", lost.len()),
            "give it one that there is: slate node set NODE --image NAME (slate image list)",
        );
    }

    /// Each kind of firmware that is served is told of files that there are.
    fn plans(&mut self, report: &mut Report) {
        let node = self.nodes.first().map(|node| node.mac.clone());
        // Policy and kinds of firmware are the same on all of them.
        let Some(service) = self.networks.first().map(|it| it.service.clone()) else {
            return;
        };
        let boots_any = service.unknown == "auto";
        let Some(node) = node.or_else(|| boots_any.then(|| STRANGER.to_string())) else {
            let hint = "slate node approve MAC";
            return report.warn("config", "there is no node, so no machine boots", hint);
        };
        for firmware in service.firmware {
            let check = format!("config {}", firmware.name);
            let request = Request::Preview {
                node: node.clone(),
                firmware: Some(firmware.name),
            };
            match self.client.request(&request) {
                Ok(Response::Preview(preview)) => {
                    let files = preview.files.iter().filter_map(|it| it.file.clone());
                    self.files.extend(files);
                    plan(&check, &preview, report);
                }
                Ok(other) => report.error(check, format!("{other:?}"), "restart the daemon"),
                Err(error) => report.error(check, error.to_string(), error.hint()),
            }
        }
    }

    /// What nodes boot is there, over TFTP, HTTP and NFS.
    fn images(&mut self, report: &mut Report) {
        let used = self.used();
        if used.is_empty() {
            let hint = "build one: slate image build debian13, or bring one: slate image import NAME DIR|TAR";
            return report.error("images", "no image is booted by anybody", hint);
        }
        let known: BTreeMap<&str, (&str, &str)> = self
            .status
            .images
            .iter()
            .map(|image| {
                (
                    image.digest.as_str(),
                    (image.name.as_str(), image.boot.as_str()),
                )
            })
            .collect();
        for digest in used {
            // Of a version without a tag nothing is known but that it booted.
            let (name, boot) = known
                .get(digest.as_str())
                .copied()
                .unwrap_or((&digest, "ready"));
            let check = format!("image {name}");
            if !matches!(boot, "ready" | "building" | "idle") {
                let hint = format!(
                    "slate image show {name} says what it lacks; mend it: slate image edit {name}"
                );
                report.error(check, boot, hint);
                continue;
            }
            report.ok(
                check,
                format!("version {}, {boot}", &digest[..digest.len().min(12)]),
            );
            self.fetch(name, &digest, report);
        }
    }

    fn fetch(&self, name: &str, digest: &str, report: &mut Report) {
        for Served { interface, service } in &self.networks {
            let server = service.server;
            let target = files::Target {
                server,
                tftp_port: self.status.tftp_port,
                http_port: self.status.http_port,
                image: name,
                digest,
                files: &self.files,
            };
            report.on(interface, |report| {
                target.examine(report);
                nfs3::examine(server, self.status.nfs_port, name, digest, report);
            });
        }
    }

    /// The versions that nodes boot next: theirs, and that of machines that are none yet.
    fn used(&self) -> BTreeSet<String> {
        let of_nodes = self
            .nodes
            .iter()
            .filter_map(|node| node.next_digest.clone());
        let default = self.status.image.as_deref();
        let is_default = |name: &str| {
            default.is_some_and(|it| name == it || name.strip_suffix(":latest") == Some(it))
        };
        let images = self.status.images.iter();
        let of_default = images.filter(|image| is_default(&image.name));
        of_default
            .map(|image| image.digest.clone())
            .chain(of_nodes)
            .collect()
    }

    /// Making one takes seconds; until then it cannot be fetched.
    fn wait_for_initramfs(&mut self) {
        const TRIES: u32 = 120;
        for _ in 0..TRIES {
            // Anew at first as well: a daemon that had just started had not begun.
            match self.client.request(&Request::Status) {
                Ok(Response::Status(status)) => self.status = status,
                _ => return,
            }
            let mut images = self.status.images.iter();
            if !images.any(|image| image.boot == "building") {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }
}

fn plan(check: &str, preview: &PreviewView, report: &mut Report) {
    let broken = preview.files.iter().find_map(|file| {
        let cause = file.error.as_ref()?;
        Some(format!("{}: {cause}", file.path))
    });
    let hint = format!(
        "slate plan {} --firmware {} shows all of it",
        preview.mac, preview.firmware
    );
    match broken {
        Some(cause) => report.error(check, cause, hint),
        None if !preview.files.iter().any(is_initramfs) => {
            let cause = preview.notes.join("; ");
            report.error(check, format!("nothing to boot: {cause}"), hint);
        }
        None => report.ok(
            check,
            format!(
                "{} files, down to kernel and initramfs",
                preview.files.len()
            ),
        ),
    }
}

/// Whether it is what a loader fetches last. One without is a loader that shows why it stops.
fn is_initramfs(file: &PlannedFileView) -> bool {
    file.path.starts_with("boot/") && file.path.ends_with("/initrd")
}

fn unexpected(response: &Response) -> ClientError {
    ClientError::Malformed(format!("an answer to another question: {response:?}"))
}

/// An address that is not the unspecified one.
fn given(address: Ipv4Addr) -> Option<Ipv4Addr> {
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_of_an_interface_name_it() {
        let mut report = Report::default();
        report.ok("daemon", "answers");
        report.on("br1", |report| report.ok("mtu", "1500"));
        let titles: Vec<String> = report.checks.iter().map(Check::title).collect();
        assert_eq!(titles, ["daemon", "mtu on br1"]);
    }
}
