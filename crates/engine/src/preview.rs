//! What a machine would get, without its doing anything: a copy of the engine is asked what the
//! machine's firmware would ask, and thrown away. So a plan cannot differ from what is done.

use std::net::{Ipv4Addr, SocketAddrV4};

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng as _;
use wire::cmdline::BootArgs;
use wire::dhcp4::{CLIENT_PORT, MAX_BUDGET_BYTES, Message, MessageType, option};
use wire::digest::Digest;
use wire::mac::Mac;
use wire::tftp::{Mode, Options, Packet, Request as ReadRequest};

use crate::config::{DhcpMode, Interface, UnknownPolicy};
use crate::dhcp::{Dialect, reply_to};
use crate::event::{EventKind, Severity};
use crate::firmware::Client;
use crate::image::BootFile;
use crate::io::{Content, HttpBody, HttpRequest, Input, Output, TftpAnswer};
use crate::limit::TokenBucket;
use crate::ready::Readiness;
use crate::time::Timestamp;
use crate::{CommandError, Engine, Node};

/// A machine that does not exist.
const NOBODY: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// Firmware that a plan can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// UEFI on x86-64, over TFTP.
    UefiX64,
    /// UEFI on x86-64, over HTTP.
    UefiHttp,
    /// A legacy BIOS.
    Bios,
    /// iPXE, from a card's ROM or a chain.
    Ipxe,
    /// UEFI on 64-bit ARM, over TFTP.
    Arm64,
    /// UEFI on 64-bit ARM, over HTTP.
    Arm64Http,
}

/// How a kind of firmware shows itself.
struct Traits {
    firmware: Firmware,
    name: &'static str,
    /// Option 60.
    class: &'static [u8],
    /// Values of option 93 (RFC 4578, 2.1); the first is the usual one.
    architectures: &'static [u16],
    /// Option 77.
    user_class: Option<&'static [u8]>,
}

/// The one table of firmware kinds.
const KINDS: [Traits; 6] = [
    Traits {
        firmware: Firmware::UefiX64,
        name: "uefi-x64",
        class: b"PXEClient:Arch:00007:UNDI:003001",
        architectures: &[7, 9],
        user_class: None,
    },
    Traits {
        firmware: Firmware::UefiHttp,
        name: "uefi-http",
        class: b"HTTPClient:Arch:00016:UNDI:003001",
        architectures: &[16],
        user_class: None,
    },
    Traits {
        firmware: Firmware::Bios,
        name: "bios",
        class: b"PXEClient:Arch:00000:UNDI:002001",
        architectures: &[0],
        user_class: None,
    },
    Traits {
        firmware: Firmware::Ipxe,
        name: "ipxe",
        class: b"PXEClient:Arch:00000:UNDI:002001",
        // Of the firmware that it runs under.
        architectures: &[0, 7, 9, 11],
        user_class: Some(b"iPXE"),
    },
    Traits {
        firmware: Firmware::Arm64,
        name: "arm64",
        class: b"PXEClient:Arch:00011:UNDI:003000",
        architectures: &[11],
        user_class: None,
    },
    Traits {
        firmware: Firmware::Arm64Http,
        name: "arm64-http",
        class: b"HTTPClient:Arch:00019:UNDI:003001",
        architectures: &[19],
        user_class: None,
    },
];

/// What a loader asks for by itself, by the last part of its own path. `BOOTIF` stands for the
/// machine's address as PXELINUX writes it.
const THEN: [(&str, &str); 8] = [
    ("shimx64.efi", "grubx64.efi"),
    ("grubx64.efi", "grub/grub.cfg"),
    ("shimaa64.efi", "grubaa64.efi"),
    ("grubaa64.efi", "grub/grub.cfg"),
    ("snponly.efi", "autoexec.ipxe"),
    ("undionly.kpxe", "autoexec.ipxe"),
    ("pxelinux.0", "ldlinux.c32"),
    ("ldlinux.c32", "pxelinux.cfg/BOOTIF"),
];

impl Firmware {
    /// Every kind.
    pub fn all() -> impl Iterator<Item = Firmware> {
        KINDS.iter().map(|kind| kind.firmware)
    }

    /// Its name, as people type it.
    pub fn name(self) -> &'static str {
        self.traits().name
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Firmware> {
        let mut kinds = KINDS.iter();
        kinds.find(|it| it.name == name).map(|it| it.firmware)
    }

    /// Option 93 of its messages (RFC 4578, 2.1): the usual value, and others.
    pub fn architectures(self) -> &'static [u16] {
        self.traits().architectures
    }

    /// Option 77 of its messages, where that tells it from others of its architecture.
    pub fn user_class(self) -> Option<&'static [u8]> {
        self.traits().user_class
    }

    /// Whether it fetches over HTTP.
    pub fn is_http(self) -> bool {
        self.traits().class.starts_with(b"HTTPClient")
    }

    /// A message as it sends it.
    pub fn message(self, mac: Mac, xid: u32, kind: MessageType) -> Message {
        let traits = self.traits();
        let mut message = Message::request(mac, xid);
        message.push(option::MESSAGE_TYPE, [kind.code()]);
        message.push(option::PARAMETERS, [1, 3, 6, 12, 15, 43, 54, 60, 66, 67]);
        message.push(option::MAX_SIZE, (MAX_BUDGET_BYTES as u16).to_be_bytes());
        message.push(option::MACHINE_UUID, [0; 17]);
        message.push(option::ARCHITECTURE, traits.architectures[0].to_be_bytes());
        message.push(option::CLASS, traits.class);
        if let Some(class) = traits.user_class {
            message.push(option::USER_CLASS, class);
        }
        message
    }

    /// The kind that the DHCP server calls so.
    fn of_client(client: &str) -> Option<Firmware> {
        let calls = |it: &Firmware| {
            let message = it.message(NOBODY, 0, MessageType::Discover);
            Client::of(&message).name() == client
        };
        Firmware::all().find(calls)
    }

    fn traits(self) -> &'static Traits {
        let kind = KINDS.iter().find(|it| it.firmware == self);
        kind.expect("every kind is in the table")
    }
}

/// A DHCP message and its answer, both as they are on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What the firmware asks.
    pub request: Vec<u8>,
    /// What it is answered; `None` = nothing.
    pub reply: Option<Vec<u8>>,
}

/// A file that would be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its path, without a leading slash.
    pub path: String,
    /// What would be sent, or why nothing.
    pub content: Result<PlannedContent, String>,
}

/// What would be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlannedContent {
    /// This text. In the place of a boot's id and its secret token are `BOOT` and `TOKEN`.
    Text(String),
    /// A boot file of an image version.
    File {
        /// The version.
        digest: Digest,
        /// The file.
        file: BootFile,
        /// What it is of, where it is not of the image's own packages.
        origin: Option<String>,
    },
}

/// What a machine would get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The machine.
    pub mac: Mac,
    /// The node that it is, or would become.
    pub node: Option<String>,
    /// Whether it is a node.
    pub is_node: bool,
    /// As what it asks.
    pub firmware: Firmware,
    /// What DHCP is spoken on its network.
    pub dhcp: DhcpMode,
    /// DHCP, in order.
    pub exchanges: Vec<Exchange>,
    /// Files, in order.
    pub files: Vec<PlannedFile>,
    /// What is to be known besides, for people.
    pub notes: Vec<String>,
}

impl Engine {
    /// What the machine `node` (MAC, name or address) would get if it booted now. Takes a copy of
    /// the engine, which hears what the machine would ask: nothing of that is kept or told.
    ///
    /// `firmware`: as what it asks; `None` = as it did last, else UEFI on x86-64.
    pub fn preview(
        mut self,
        now: Timestamp,
        node: &str,
        firmware: Option<Firmware>,
    ) -> Result<Preview, CommandError> {
        let mac = self.find(node)?;
        if !mac.is_unicast() {
            return Err(CommandError::BadMac { got: mac });
        }
        let known = self.firmware.get(&mac);
        let known = known.and_then(|name| Firmware::of_client(name));
        let firmware = firmware.or(known).unwrap_or(Firmware::UefiX64);
        let Some(interface) = self.interface_for(mac).cloned() else {
            let cause = "no network is served".to_owned();
            let node = node.to_owned();
            return Err(CommandError::NoPlan { node, cause });
        };
        // Else the copy would draw the secrets that the next boots get.
        self.rng = ChaCha20Rng::from_seed([0; 32]);
        self.strangers = TokenBucket::new(self.config.unknown_per_second);
        let mut rehearsal = Rehearsal {
            now,
            mac,
            firmware,
            interface,
            notes: Vec::new(),
            engine: self,
        };
        Ok(rehearsal.play())
    }

    /// The file that firmware of a kind is told to boot on a network, as DHCP names it; `None` where
    /// nothing is served for it.
    pub fn boot_file_on(&self, interface: &Interface, firmware: Firmware) -> Option<String> {
        let asked = firmware.message(NOBODY, 0, MessageType::Discover);
        let request = self.accept(interface.id, &asked.encode(MAX_BUDGET_BYTES))?;
        let mut reply = reply_to(&request.message);
        self.push_boot(&mut reply, &request, Dialect::Whole);
        file_of(&reply)
    }

    /// The network that a machine boots from.
    fn interface_for(&self, mac: Mac) -> Option<&Interface> {
        let node = self.nodes.get(&mac);
        let address = node.and_then(|node| self.address_of(node));
        let interfaces = || self.config.interfaces.iter();
        let of_address = interfaces().find(|it| address.is_some_and(|at| it.contains(at)));
        of_address.or_else(|| interfaces().next())
    }
}

/// The header's boot file, or what stands for it.
fn file_of(reply: &Message) -> Option<String> {
    let file = match reply.option(option::BOOT_FILE) {
        Some(file) if reply.file.is_empty() => file,
        _ => &reply.file[..],
    };
    let file = String::from_utf8_lossy(file);
    let file = file.trim_end_matches('\0');
    (!file.is_empty()).then(|| file.to_owned())
}

/// A copy of the engine, and the machine that asks it.
struct Rehearsal {
    engine: Engine,
    now: Timestamp,
    mac: Mac,
    firmware: Firmware,
    interface: Interface,
    notes: Vec<String>,
}

impl Rehearsal {
    fn play(&mut self) -> Preview {
        let is_node = self.node().is_some();
        let (exchanges, address, file) = self.dhcp();
        let file = match self.interface.dhcp {
            // It is told by the other server, or not at all.
            DhcpMode::Off => self.engine.boot_file_on(&self.interface, self.firmware),
            _ => file,
        };
        self.note_stranger(is_node);
        let files = match file {
            Some(file) => self.files(address, &file),
            None => Vec::new(),
        };
        Preview {
            mac: self.mac,
            node: self.node().map(|node| node.name.clone()),
            is_node,
            firmware: self.firmware,
            dhcp: self.interface.dhcp,
            exchanges,
            files,
            notes: std::mem::take(&mut self.notes),
        }
    }

    fn node(&self) -> Option<&Node> {
        self.engine.nodes.get(&self.mac)
    }

    /// Asks for an address and takes it: what was said, the address, and the file to boot.
    fn dhcp(&mut self) -> (Vec<Exchange>, Option<Ipv4Addr>, Option<String>) {
        let discover = self.firmware.message(self.mac, 0, MessageType::Discover);
        let mut exchanges = vec![self.exchange(&discover)];
        let Some(offer) = answer_of(&exchanges[0]) else {
            return (exchanges, None, None);
        };
        if offer.yiaddr.is_unspecified() {
            return (exchanges, None, file_of(&offer));
        }
        let mut request = self.firmware.message(self.mac, 0, MessageType::Request);
        request.push(option::REQUESTED_ADDRESS, offer.yiaddr.octets());
        if let Some(server) = offer.address_option(option::SERVER_ID) {
            request.push(option::SERVER_ID, server.octets());
        }
        exchanges.push(self.exchange(&request));
        let file = answer_of(&exchanges[1]).and_then(|ack| file_of(&ack));
        (exchanges, Some(offer.yiaddr), file)
    }

    fn exchange(&mut self, message: &Message) -> Exchange {
        let request = message.encode(MAX_BUDGET_BYTES);
        let outputs = self.hear(Input::Dhcp {
            interface: self.interface.id,
            source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT),
            packet: request.clone(),
        });
        let mut replies = outputs.into_iter().filter_map(|output| match output {
            Output::Dhcp { packet, .. } => Some(packet),
            _ => None,
        });
        let reply = replies.next();
        Exchange { request, reply }
    }

    /// Gives the copy an input, and keeps what it warns of.
    fn hear(&mut self, input: Input) -> Vec<Output> {
        let outputs = self.engine.handle(self.now, input);
        for output in &outputs {
            if let Output::Event(event) = output
                && event.kind.severity() == Severity::Warning
                && !matches!(event.kind, EventKind::NotFound { .. })
            {
                self.note(event.kind.to_string());
            }
        }
        outputs
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn note_stranger(&mut self, is_node: bool) {
        let becomes = self.node().map(|node| node.name.clone());
        let note = match (is_node, becomes) {
            (true, _) => return,
            (false, Some(name)) => {
                format!("it is no node yet: it becomes {name} when it takes its address")
            }
            (false, None)
                if self.engine.unknown_policy(self.interface.dhcp) == UnknownPolicy::Auto =>
            {
                "it is no node, and does not become one".to_owned()
            }
            (false, None) => format!(
                "it is no node, and only nodes boot here (unknown = \"{}\"); to make it one: slate node approve {}",
                self.engine.unknown_policy(self.interface.dhcp).name(),
                self.mac
            ),
        };
        self.note(note);
    }

    /// What is fetched from the file that DHCP names on.
    fn files(&mut self, address: Option<Ipv4Addr>, first: &str) -> Vec<PlannedFile> {
        self.make_ready();
        self.note_selinux();
        let address = address.unwrap_or_else(|| self.some_address());
        let mut paths: Vec<String> = vec![path_of(first)];
        let mut files = Vec::new();
        let mut next = 0;
        while let Some(path) = paths.get(next).cloned() {
            let file = self.fetch(address, path);
            let named = match &file.content {
                Ok(PlannedContent::Text(text)) => named_in(text, self.mac),
                Ok(PlannedContent::File { .. }) => asked_by(&file.path, self.mac),
                // Without it the machine does not go on.
                Err(_) => Vec::new(),
            };
            let new = named.into_iter().filter(|path| !paths.contains(path));
            let new: Vec<String> = new.collect();
            paths.extend(new);
            files.push(file);
            next += 1;
        }
        files
    }

    /// GRUB would wait for the initramfs; what it gets then is what the plan is about.
    fn make_ready(&mut self) {
        let Ok(version) = self.engine.version_of(self.node()) else {
            return;
        };
        match self.engine.readiness.get(&version) {
            Some(Readiness::Failed(cause)) => {
                let note = format!("its initramfs could not be made: {cause}");
                return self.note(note);
            }
            Some(Readiness::Ready) => {}
            _ => self.note("its initramfs is not made yet; the loader waits for it".to_owned()),
        }
        self.engine.readiness.insert(version, Readiness::Ready);
    }

    fn note_selinux(&mut self) {
        let (Some(node), Ok(version)) = (self.node(), self.engine.version_of(self.node())) else {
            return;
        };
        let (users, _) = BootArgs::parse(&self.engine.kernel_args(node));
        let cause = self.engine.selinux_off(&users, version);
        if let Some(note) = cause.map(|cause| format!("{cause}: selinux=0 is added")) {
            self.note(note);
        }
    }

    /// The address that it has, else one that it might get from another server.
    fn some_address(&self) -> Ipv4Addr {
        let own = self.node().and_then(|node| self.engine.address_of(node));
        own.unwrap_or_else(|| {
            let (first, last) = crate::leases::pool(&self.interface);
            let mut all = (first..=last).map(Ipv4Addr::from);
            let free = |it: &Ipv4Addr| {
                self.interface.is_assignable(*it) && self.engine.node_at(*it).is_none()
            };
            all.find(free).unwrap_or(Ipv4Addr::UNSPECIFIED)
        })
    }

    fn fetch(&mut self, address: Ipv4Addr, path: String) -> PlannedFile {
        let answer = if self.firmware.is_http() {
            self.get(address, &path)
        } else {
            self.read(address, &path)
        };
        let content = answer.map(|content| match content {
            Content::File { digest, file } => {
                let image = self.engine.tagged(digest);
                PlannedContent::File {
                    digest,
                    file,
                    origin: image.and_then(|it| it.origins.get(&file).cloned()),
                }
            }
            Content::Bytes(bytes) => {
                PlannedContent::Text(self.without_secrets(&String::from_utf8_lossy(&bytes)))
            }
        });
        PlannedFile { path, content }
    }

    fn read(&mut self, address: Ipv4Addr, path: &str) -> Result<Content, String> {
        let request = Packet::Read(ReadRequest {
            filename: path.as_bytes().to_vec(),
            mode: Mode::Octet,
            options: Options::default(),
        });
        let outputs = self.hear(Input::Tftp {
            peer: SocketAddrV4::new(address, 1024),
            packet: request.encode(),
        });
        let mut answers = outputs.into_iter().filter_map(|output| match output {
            Output::Tftp { answer, .. } => Some(answer),
            _ => None,
        });
        match answers.next() {
            Some(TftpAnswer::Transfer { content, .. }) => Ok(content),
            Some(TftpAnswer::Error(packet)) => Err(match Packet::decode(&packet) {
                Ok(Packet::Error { message, .. }) => String::from_utf8_lossy(&message).into(),
                _ => "refused".to_owned(),
            }),
            None => Err("no answer".to_owned()),
        }
    }

    fn get(&mut self, address: Ipv4Addr, path: &str) -> Result<Content, String> {
        let outputs = self.hear(Input::Http {
            peer: SocketAddrV4::new(address, 1024),
            request: HttpRequest {
                method: "GET".to_owned(),
                target: format!("/{path}"),
                body: Vec::new(),
            },
        });
        let mut answers = outputs.into_iter().filter_map(|output| match output {
            Output::Http(answer) => Some(answer),
            _ => None,
        });
        let answer = answers.next().ok_or("no answer")?;
        match answer.body {
            HttpBody::Content(content) if answer.status == 200 => Ok(content),
            HttpBody::Content(Content::Bytes(cause)) => {
                Err(String::from_utf8_lossy(&cause).trim_end().to_owned())
            }
            _ => Err(format!("status {}", answer.status)),
        }
    }

    /// A text without the ids and tokens of this machine's boots.
    fn without_secrets(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for boot in self.engine.boots.of(self.mac) {
            text = text.replace(&boot.token.to_hex(), "TOKEN");
            text = text.replace(&boot.id.to_string(), "BOOT");
        }
        text
    }
}

fn answer_of(exchange: &Exchange) -> Option<Message> {
    Message::decode(exchange.reply.as_deref()?).ok()
}

/// The path behind a name that may be a URL.
fn path_of(name: &str) -> String {
    let path = match name.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => name,
    };
    path.trim_start_matches('/').to_owned()
}

/// What a loader of this path asks for.
fn asked_by(path: &str, mac: Mac) -> Vec<String> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let then = THEN.iter().filter(|(loader, _)| *loader == name);
    then.map(|(_, then)| then.replace("BOOTIF", &mac.bootif()))
        .collect()
}

/// The files that a configuration names: kernel and initramfs, or the configuration behind it.
fn named_in(config: &str, mac: Mac) -> Vec<String> {
    // Loaders fill in their own address.
    let hyphens = mac.to_string().replace(':', "-");
    for (template, path) in [
        ("/grub/${net_default_mac}.cfg", format!("grub/{mac}.cfg")),
        (
            "/ipxe/${netX/mac:hexhyp}.ipxe",
            format!("ipxe/{hyphens}.ipxe"),
        ),
    ] {
        if config.contains(template) {
            return vec![path];
        }
    }
    let words = config.split(|it: char| it.is_whitespace() || it == '\'' || it == '"');
    let boot_file = |word: &str| {
        let path = &word[word.find("boot/")?..];
        let mut parts = path.split('/').skip(1);
        let (digest, file) = (parts.next()?, parts.next()?);
        digest.parse::<Digest>().ok()?;
        BootFile::from_name(file)?;
        Some(path.to_owned())
    };
    words.filter_map(boot_file).collect()
}
