//! What is served to whom: names over TFTP and HTTP, and the exchange of identities.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use wire::digest::Digest;
use wire::identity::Request as IdentityRequest;
use wire::mac::Mac;
use wire::order::ControlKey;
use wire::stage::Stage;
use wire::tftp::{Mode, Packet, Request, error};

use crate::boots::{is_loading, reached};
use crate::config::{DhcpMode, UnknownPolicy};
use crate::event::{EventKind, Service};
use crate::firmware::IPXE_SCRIPT;
use crate::image::BootFile;
use crate::io::{
    Content, HttpAnswer, HttpBody, HttpRequest, IdentityGrant, Output, TftpAnswer, TransferOutcome,
};
use crate::learned::Evidence;
use crate::record::Record;
use crate::script::Language;
use crate::tftp::Transfer;
use crate::{Engine, Turn};

/// Most nodes in the hosts file of one: with the longest names they take two thirds of a document.
const HOSTS_MAX: usize = 10_000;
/// Longest path in events.
const SHOWN_PATH_CHARS: usize = 120;

/// A name that something is served under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// A loader of the asking node's image.
    Loader(BootFile),
    /// The configuration of the asking node.
    Config(Language),
    /// The configuration of the node that the asking machine says it is.
    ConfigOf(Mac, Language),
    /// A boot file of one version.
    Boot(Digest, BootFile),
}

/// A node's address and its name.
type Host = (Ipv4Addr, String);

/// What every node is told of all, and what it was made of.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    of: [u64; 3],
    hosts: Arc<[Host]>,
}

/// Why a path is not served.
struct NotServed {
    cause: String,
    /// Loaders ask for this as a matter of course, and do without.
    expected: bool,
}

impl NotServed {
    fn because(cause: impl Into<String>) -> NotServed {
        NotServed {
            cause: cause.into(),
            expected: false,
        }
    }
}

impl Name {
    /// The name behind a path: slashes are collapsed, and a leading one does not count.
    fn parse(path: &str) -> Result<Name, NotServed> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.contains(&"..") || path.contains(['\\', '\0']) {
            return Err(NotServed::because(
                "expected a plain path without \"..\" and backslashes",
            ));
        }
        if let Some(config) = Name::of_config(&parts) {
            return Ok(config);
        }
        match parts[..] {
            [name] if loader(name).is_some() => {
                let file = loader(name).expect("it was just found");
                Ok(Name::Loader(file))
            }
            ["boot", digest, file] => match (digest.parse(), BootFile::from_name(file)) {
                (Ok(digest), Some(file)) => Ok(Name::Boot(digest, file)),
                _ => Err(NotServed::because(
                    "no such boot file: expected boot/DIGEST/vmlinuz, initrd or a loader's name",
                )),
            },
            _ => Err(NotServed {
                cause: "no such file".into(),
                expected: is_optional(&parts),
            }),
        }
    }

    /// Where each loader looks for its configuration.
    fn of_config(parts: &[&str]) -> Option<Name> {
        let of = |mac: &str, language| Some(Name::ConfigOf(mac.parse().ok()?, language));
        match parts {
            ["grub", "grub.cfg"]
            | ["grub", "x86_64-efi" | "arm64-efi", "grub.cfg"]
            | ["grub.cfg"] => Some(Name::Config(Language::Grub)),
            [name] if name.starts_with("grub.cfg-") => Some(Name::Config(Language::Grub)),
            // As GRUB writes its card's address.
            ["grub", name] => of(name.strip_suffix(".cfg")?, Language::Grub),
            [name] if *name == IPXE_SCRIPT => Some(Name::Config(Language::Ipxe)),
            ["ipxe", name] => of(name.strip_suffix(".ipxe")?, Language::Ipxe),
            ["pxelinux.cfg", "default"] => Some(Name::Config(Language::Pxelinux)),
            // By its hardware type and address, by its IPv4 address; by its system's id before.
            ["pxelinux.cfg", name] if name.starts_with("01-") => of(&name[3..], Language::Pxelinux),
            ["pxelinux.cfg", name] if is_hexadecimal_address(name) => {
                Some(Name::Config(Language::Pxelinux))
            }
            _ => None,
        }
    }

    fn stage(self) -> Stage {
        match self {
            Name::Config(_) | Name::ConfigOf(..) => Stage::Config,
            Name::Loader(file) | Name::Boot(_, file) => match file {
                BootFile::Grub | BootFile::GrubArm64 => Stage::Grub,
                BootFile::Kernel => Stage::Kernel,
                BootFile::Initrd => Stage::Initrd,
                _ => Stage::Loader,
            },
        }
    }
}

fn loader(name: &str) -> Option<BootFile> {
    BootFile::from_name(name).filter(|file| file.is_loader())
}

/// As PXELINUX writes an IPv4 address.
fn is_hexadecimal_address(name: &str) -> bool {
    name.len() == 8 && name.bytes().all(|it| it.is_ascii_hexdigit())
}

/// What loaders look for and do without.
fn is_optional(parts: &[&str]) -> bool {
    let of_shim_or_grub = |name: &&str| {
        name.ends_with(".lst")
            || name.starts_with("revocations")
            || name.starts_with("shim_certificate")
    };
    parts.first() == Some(&"pxelinux.cfg") || parts.last().is_some_and(of_shim_or_grub)
}

impl Engine {
    /// The first datagram of a transfer.
    pub(crate) fn tftp(&mut self, turn: &mut Turn, peer: SocketAddrV4, packet: &[u8]) {
        let answer = match Packet::decode(packet) {
            Ok(Packet::Read(request)) => self.read_request(turn, *peer.ip(), &request),
            Ok(Packet::Write(_)) => Err((error::ACCESS, "nothing can be written here".to_owned())),
            // An ACK or an ERROR of a transfer that has ended: answering could go on for ever.
            _ => return,
        };
        let answer =
            answer.unwrap_or_else(|(code, text)| TftpAnswer::Error(Packet::error(code, &text)));
        turn.out.push(Output::Tftp { peer, answer });
    }

    fn read_request(
        &mut self,
        turn: &mut Turn,
        peer: Ipv4Addr,
        request: &Request,
    ) -> Result<TftpAnswer, (u16, String)> {
        let path = String::from_utf8_lossy(&request.filename).into_owned();
        if request.mode != Mode::Octet {
            return Err((error::ILLEGAL, "expected the mode octet".into()));
        }
        match self.serve(turn, peer, Service::Tftp, &path) {
            Ok(content) => Ok(TftpAnswer::Transfer {
                transfer: Box::new(Transfer::new(request.options)),
                content,
                path,
            }),
            Err(cause) => Err((error::NOT_FOUND, cause)),
        }
    }

    /// The content under a path, for the machine that asks; the cause where there is none.
    fn serve(
        &mut self,
        turn: &mut Turn,
        peer: Ipv4Addr,
        service: Service,
        path: &str,
    ) -> Result<Content, String> {
        let mac = self.node_at(peer).map(|node| node.mac);
        let shown = printable(path);
        let name = Name::parse(path);
        let stage = name.as_ref().ok().map(|name| name.stage());
        let result = name.and_then(|name| {
            self.content(turn, peer, mac, name, &shown)
                .map_err(NotServed::because)
        });
        let path = shown;
        // The question may have told who asks.
        let mac = self.node_at(peer).map(|node| node.mac);
        match result {
            Ok(content) => {
                self.tell(turn, mac, EventKind::Requested { service, path });
                if let (Some(mac), Some(stage)) = (mac, stage) {
                    self.led_on(mac);
                    self.reach(turn, mac, stage, "");
                }
                Ok(content)
            }
            Err(NotServed { cause, expected }) => {
                // A system that runs may ask for what it likes.
                let loads = |mac: &Mac| self.boots.current(*mac).is_some_and(is_loading);
                if let (Some(mac), Some(stage)) = (mac.filter(loads), stage) {
                    let cause = format!("asked for {path}: {cause}");
                    self.note_failure(turn, mac, stage, &cause);
                }
                if !expected {
                    let cause = cause.clone();
                    let not_found = EventKind::NotFound {
                        service,
                        path,
                        cause,
                    };
                    self.tell(turn, mac, not_found);
                }
                Err(cause)
            }
        }
    }

    fn content(
        &mut self,
        turn: &mut Turn,
        peer: Ipv4Addr,
        mac: Option<Mac>,
        name: Name,
        path: &str,
    ) -> Result<Content, String> {
        match name {
            Name::Boot(digest, file) => Ok(Content::File { digest, file }),
            Name::Loader(file) => {
                let node = mac.and_then(|mac| self.nodes.get(&mac));
                // Loaders are no secret, and GRUB will say which machine it runs on.
                if node.is_none() && self.config.gives(peer) {
                    return Err(format!("{peer} is no node's address"));
                }
                let digest = self.version_of(node)?;
                self.has_file(digest, file)?;
                Ok(Content::File { digest, file })
            }
            Name::Config(language) => Ok(Content::Bytes(
                self.config_for(turn, peer, mac, language, path)
                    .into_bytes(),
            )),
            Name::ConfigOf(named, language) => {
                let config = self.config_of(turn, peer, mac, named, language, path)?;
                Ok(Content::Bytes(config.into_bytes()))
            }
        }
    }

    /// The configuration of the machine that says it is `named`. That is believed only where
    /// addresses are not ours to give, of an address that is no other node's, and while the node
    /// seems to boot: the configuration holds its boot's token.
    fn config_of(
        &mut self,
        turn: &mut Turn,
        peer: Ipv4Addr,
        mac: Option<Mac>,
        named: Mac,
        language: Language,
        path: &str,
    ) -> Result<String, String> {
        if self.config.gives(peer) {
            return match mac == Some(named) {
                true => Ok(self.config_for(turn, peer, mac, language, path)),
                false => Err(format!("{peer} is not the address of {named}")),
            };
        }
        if mac.is_some_and(|mac| mac != named) {
            return Err(format!("{peer} is the address of another node"));
        }
        if !self.nodes.contains_key(&named) {
            let policy = self.policy_at(peer);
            self.see(turn, named, language.reader(), policy);
            return Ok(language.message(&format!(
                "it is no node; to let it boot: slate node approve {named}"
            )));
        }
        if mac.is_none() && !self.may_boot(named) {
            return Err(format!("{named} runs already, at another address"));
        }
        self.learn(turn, named, peer, Evidence::Claim);
        Ok(self.config_for(turn, peer, Some(named), language, path))
    }

    /// What becomes of machines that are no nodes at an address.
    fn policy_at(&self, address: Ipv4Addr) -> UnknownPolicy {
        let mut interfaces = self.config.interfaces.iter();
        let network = interfaces.find(|it| it.contains(address));
        let mode = network.or(self.config.interfaces.first());
        self.unknown_policy(mode.map_or(DhcpMode::Off, |it| it.dhcp))
    }

    /// Whether a machine at an address that nobody knows may be this node: its firmware was heard
    /// before, or, where firmware is not heard, the node does not use its root elsewhere.
    fn may_boot(&self, mac: Mac) -> bool {
        if self.boots.current(mac).is_some_and(is_loading) {
            return true;
        }
        let interfaces = &self.config.interfaces;
        let hears_firmware = interfaces.iter().any(|it| it.dhcp == DhcpMode::Proxy);
        let address = self.learned_address(mac);
        let nfs = address.and_then(|address| self.nfs.get(&address));
        !hears_firmware && nfs.is_none_or(|client| !client.alive)
    }

    /// A loader's configuration: the node's boot, or a message that says why there is none.
    fn config_for(
        &mut self,
        turn: &mut Turn,
        peer: Ipv4Addr,
        mac: Option<Mac>,
        language: Language,
        path: &str,
    ) -> String {
        let Some(mac) = mac else {
            if !self.config.gives(peer) {
                return language.by_mac();
            }
            return language.message(&format!("{peer} is no node's address"));
        };
        let boot = self.boot_to_render(turn, mac);
        let asks_again = self.boots.get(boot).and_then(reached) >= Some(Stage::Config);
        // Before what may fail: progress clears a failure.
        self.reach(turn, mac, Stage::Config, "");
        let plan = self.plan(turn, mac, boot);
        let ready = plan.and_then(|plan| {
            let config = language.boot(&plan)?;
            Ok((plan.digest, self.is_ready(turn, plan.digest)?, config))
        });
        match ready {
            Ok((image, false, _)) => {
                if !asks_again {
                    self.tell(turn, Some(mac), EventKind::Waits { image });
                }
                language.wait()
            }
            Ok((image, true, config)) => {
                let path = path.to_owned();
                self.tell(turn, Some(mac), EventKind::ConfigServed { path, image });
                config
            }
            Err(cause) => {
                self.fail(turn, mac, Stage::Config, cause.clone());
                language.message(&cause)
            }
        }
    }

    /// An HTTP request.
    pub(crate) fn http(&mut self, turn: &mut Turn, peer: SocketAddrV4, request: &HttpRequest) {
        let path = request.target.split(['?', '#']).next().unwrap_or_default();
        if (request.method.as_str(), path) == ("POST", "/control") {
            return self.poll(turn, *peer.ip(), &request.body);
        }
        let answer = match (request.method.as_str(), path) {
            ("POST", "/identity") => self.identity(turn, *peer.ip(), &request.body),
            ("GET" | "HEAD", _) => match self.serve(turn, *peer.ip(), Service::Http, path) {
                Ok(content) => HttpAnswer {
                    status: 200,
                    content_type: "application/octet-stream",
                    body: HttpBody::Content(content),
                    path: (request.method == "GET").then(|| path.to_owned()),
                },
                Err(cause) => text(404, &cause),
            },
            _ => text(405, "expected GET, HEAD, or POST /identity or /control"),
        };
        turn.out.push(Output::Http(answer));
    }

    /// Gives a node its identity: once for each boot, to one key.
    fn identity(&mut self, turn: &mut Turn, peer: Ipv4Addr, body: &[u8]) -> HttpAnswer {
        match self.grant(turn, peer, body) {
            Ok(grant) => {
                self.tell(turn, Some(grant.mac), EventKind::IdentityGiven);
                let body = HttpBody::Identity(Box::new(grant));
                HttpAnswer {
                    status: 200,
                    content_type: "application/octet-stream",
                    body,
                    path: None,
                }
            }
            Err((mac, cause)) => {
                if self.strangers.take(turn.now) {
                    self.tell(
                        turn,
                        mac,
                        EventKind::IdentityRefused {
                            cause: cause.clone(),
                        },
                    );
                }
                text(403, &cause)
            }
        }
    }

    fn grant(
        &mut self,
        turn: &mut Turn,
        peer: Ipv4Addr,
        body: &[u8],
    ) -> Result<IdentityGrant, (Option<Mac>, String)> {
        let claim = IdentityRequest::peek(body).map_err(|error| (None, error.to_string()))?;
        let refuse = |cause: &str| (Some(claim.mac), cause.to_owned());
        let boot = self
            .boots
            .get_mut(claim.boot)
            .filter(|boot| boot.mac == claim.mac);
        let boot = boot.ok_or_else(|| refuse("no such boot of this machine"))?;
        let request = IdentityRequest::decode(body, &boot.token)
            .map_err(|error| refuse(&error.to_string()))?;
        if boot
            .identity_key
            .is_some_and(|key| key != request.public_key)
        {
            return Err(refuse(
                "this boot's identity was already given to another key: somebody else asked with its token",
            ));
        }
        let (token, control_key, image) = (boot.token, boot.control_key, boot.image);
        if boot.identity_key.is_none() {
            boot.identity_key = Some(request.public_key);
            turn.out.push(Output::Persist(Record::Boot(boot.clone())));
            self.learn(turn, claim.mac, peer, Evidence::Proof);
        }
        let node = self.nodes.get(&claim.mac).cloned();
        let node = node.ok_or_else(|| refuse("no such node"))?;
        let (files, omitted) = self.files_for(&node);
        for (path, cause) in omitted {
            self.tell(turn, Some(node.mac), EventKind::FileOmitted { path, cause });
        }
        let keys = [
            &self.config.authorized_keys[..],
            &self.settings.authorized_keys,
        ]
        .concat();
        Ok(IdentityGrant {
            mac: node.mac,
            hostname: node.name,
            boot: claim.boot,
            token,
            request,
            authorized_keys: keys,
            console_login: self.config.console_login,
            hosts: self.hosts(),
            files,
            control_key: control_key.map(ControlKey),
            image,
        })
    }

    /// Every node that has an address, as far as a document can hold them. Made anew only where one
    /// has another name or address: a thousand that boot at once ask a thousand times.
    pub(crate) fn hosts(&mut self) -> Arc<[Host]> {
        let of = [self.renames, self.leases.moves(), self.learned.moves()];
        if let Some(known) = self.hosts.as_ref().filter(|known| known.of == of) {
            return Arc::clone(&known.hosts);
        }
        let nodes = self.nodes_by_name().into_iter();
        let hosts = nodes.filter_map(|node| Some((self.address_of(node)?, node.name.clone())));
        let hosts: Arc<[Host]> = hosts.take(HOSTS_MAX).collect();
        self.hosts = Some(Hosts {
            of,
            hosts: Arc::clone(&hosts),
        });
        hosts
    }

    /// A transfer that we decided on is over.
    pub(crate) fn transfer_ended(
        &mut self,
        turn: &mut Turn,
        peer: Ipv4Addr,
        service: Service,
        path: &str,
        bytes: u64,
        outcome: TransferOutcome,
    ) {
        let mac = self.node_at(peer).map(|node| node.mac);
        let shown = printable(path);
        match outcome {
            TransferOutcome::Probe => {}
            TransferOutcome::Failed { cause } => {
                self.tell(
                    turn,
                    mac,
                    EventKind::TransferFailed {
                        service,
                        path: shown,
                        bytes,
                        cause,
                    },
                );
            }
            TransferOutcome::Done => {
                if let (Some(boot), Ok(name)) = (
                    mac.and_then(|mac| self.boots.current_mut(mac)),
                    Name::parse(path),
                ) {
                    match name {
                        Name::Boot(_, BootFile::Initrd) => boot.initrd_bytes += bytes,
                        _ => boot.loader_bytes += bytes,
                    }
                }
                self.tell(
                    turn,
                    mac,
                    EventKind::Sent {
                        service,
                        path: shown,
                        bytes,
                    },
                );
            }
        }
    }
}

pub(crate) fn text(status: u16, text: &str) -> HttpAnswer {
    let body = HttpBody::Content(Content::Bytes(format!("{text}\n").into_bytes()));
    HttpAnswer {
        status,
        content_type: "text/plain; charset=utf-8",
        body,
        path: None,
    }
}

/// A path, or another text from a packet, as events may show it.
pub(crate) fn printable(path: &str) -> String {
    let shown = |it: char| {
        if it.is_ascii_graphic() || it == ' ' {
            it
        } else {
            '?'
        }
    };
    path.chars().take(SHOWN_PATH_CHARS).map(shown).collect()
}
