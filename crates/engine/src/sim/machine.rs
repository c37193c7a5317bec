//! A scripted machine: firmware, its chain of loaders and /init, as the server sees them.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

use wire::beacon::{Beacon, BeaconEvent, Kind};
use wire::cmdline::{BootArgs, SlateArgs};
use wire::dhcp4::{MAX_BUDGET_BYTES, Message, MessageType, option};
use wire::digest::Digest;
use wire::identity::Request as IdentityRequest;
use wire::mac::Mac;
use wire::stage::Stage;
use wire::tftp::{Mode, Options, Packet as Tftp, Request};

use super::Packet;
use crate::io::{HttpAnswer, HttpBody};
use crate::time::Timestamp;

/// EDK2's waits between DHCP messages, in milliseconds; then it begins anew.
const DHCP_WAITS_MS: [u64; 4] = [4000, 8000, 16_000, 32_000];
const TFTP_WAIT_MS: u64 = 2000;
const TFTP_TRIES: u32 = 6;
const TFTP_OPTIONS: Options = Options {
    blksize: Some(1468),
    timeout: None,
    tsize: Some(0),
    windowsize: Some(4),
};
/// From a failure to the next attempt.
const POWER_CYCLE_MS: u64 = 10_000;
/// `panic=30` of the kernel's command line.
const PANIC_MS: u64 = 30_000;
const REPORTS: [Stage; 5] = [
    Stage::Init,
    Stage::Network,
    Stage::Mount,
    Stage::SwitchRoot,
    Stage::MultiUser,
];
/// How often the last beacon is sent again.
const REPEATS: u32 = 12;

/// What the machine is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Off,
    Discover {
        firmware: bool,
    },
    Request {
        firmware: bool,
    },
    /// Asks on port 4011 what to boot.
    BootServer,
    Load,
    Identity,
    Report,
    Up,
}

/// What the machine starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// EDK2, which loads shim and GRUB.
    Uefi,
    /// A BIOS, which loads PXELINUX.
    BiosPxelinux,
    /// A BIOS, which loads iPXE, here one that has no HTTP.
    BiosIpxe,
}

/// An address as the machine sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) address: Ipv4Addr,
    pub(super) server: Ipv4Addr,
    /// `None` = for ever.
    pub(super) until: Option<Timestamp>,
}

/// A file on its way.
#[derive(Debug)]
struct Fetch {
    path: String,
    port: u16,
    /// The server's port, once it answered.
    from: Option<u16>,
    blocks: u16,
    in_window: u16,
    content: Vec<u8>,
}

/// One machine on the network.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) chain: Chain,
    /// iPXE runs: it asks for an address as itself.
    pub(super) is_ipxe: bool,
    pub(super) index: usize,
    pub(super) mac: Mac,
    pub(super) step: Step,
    /// When it does something by itself.
    pub(super) deadline: Option<Timestamp>,
    pub(super) held: Option<Held>,
    /// The name that came with its identity.
    pub(super) hostname: Option<String>,
    /// A file that it never asks for: it hangs there.
    pub(super) hangs_before: Option<&'static str>,
    pub(super) boot: Option<SlateArgs>,
    /// Versions on which it dies before its root is mounted.
    pub(super) broken: Vec<Digest>,
    /// How often it did.
    pub(super) died: u32,
    /// Its initramfs tells nobody anything.
    pub(super) silent: bool,
    /// The path of its kernel.
    kernel: String,
    /// Its firmware waits for a second server that says what to boot.
    pub(super) beside: bool,
    /// The only kind of offer that its firmware understands: with option 43, or without.
    pub(super) understands: Option<bool>,
    /// Whether the offer of what to boot had option 43.
    told: Option<bool>,
    offered: Option<Held>,
    tries: u32,
    xid: u32,
    next_port: u16,
    files: VecDeque<String>,
    fetch: Option<Fetch>,
    events: Vec<BeaconEvent>,
    repeats: u32,
}

impl Machine {
    pub(super) fn new(index: usize, mac: Mac) -> Machine {
        Machine {
            chain: Chain::Uefi,
            is_ipxe: false,
            index,
            mac,
            step: Step::Off,
            deadline: None,
            held: None,
            hostname: None,
            hangs_before: None,
            boot: None,
            broken: Vec::new(),
            died: 0,
            silent: false,
            kernel: String::new(),
            beside: false,
            understands: None,
            told: None,
            offered: None,
            tries: 0,
            xid: index as u32 * 100_000,
            next_port: 1024,
            files: VecDeque::new(),
            fetch: None,
            events: Vec::new(),
            repeats: 0,
        }
    }

    /// Pulls the plug, and puts it back at `at`.
    /// Without power it does nothing until [`Machine::power_cycle`].
    pub(super) fn power_off(&mut self) {
        self.power_cycle(Timestamp(0));
        self.deadline = None;
    }

    pub(super) fn power_cycle(&mut self, at: Timestamp) {
        *self = Machine {
            xid: self.xid + 1,
            next_port: self.next_port,
            hangs_before: self.hangs_before,
            broken: std::mem::take(&mut self.broken),
            died: self.died,
            silent: self.silent,
            beside: self.beside,
            chain: self.chain,
            understands: self.understands,
            deadline: Some(at),
            ..Machine::new(self.index, self.mac)
        };
    }

    /// The address that the machine uses now.
    pub(super) fn address(&self, now: Timestamp) -> Option<Ipv4Addr> {
        let held = self.held?;
        held.until
            .is_none_or(|until| now < until)
            .then_some(held.address)
    }

    fn wait(&mut self, now: Timestamp, millis: u64) {
        self.deadline = Some(Timestamp(now.0 + millis));
    }

    /// Its deadline has come.
    pub(super) fn wake(&mut self, now: Timestamp) -> Vec<Packet> {
        self.tries += 1;
        match self.step {
            Step::Off => self.discover(now, true),
            Step::Discover { firmware } if self.offered.is_some() => {
                self.step = Step::Request { firmware };
                self.tries = 0;
                self.ask(now, firmware)
            }
            Step::Discover { firmware } | Step::Request { firmware } => self.ask(now, firmware),
            Step::Load if self.fetch.is_none() && !self.files.is_empty() => self.next_file(now),
            Step::BootServer => self.ask_boot_server(now),
            Step::Load if self.fetch.is_none() => self.discover(now, false),
            Step::Load => self.ask_again(now),
            Step::Identity => self.identify(now),
            Step::Report => self.report(now),
            Step::Up => self.renew(now),
        }
    }

    fn discover(&mut self, now: Timestamp, firmware: bool) -> Vec<Packet> {
        self.step = Step::Discover { firmware };
        (self.held, self.offered, self.told, self.tries) = (None, None, None, 0);
        self.xid += 1;
        self.ask(now, firmware)
    }

    /// A DISCOVER or a REQUEST, until nobody has answered for too long.
    fn ask(&mut self, now: Timestamp, firmware: bool) -> Vec<Packet> {
        let Some(wait) = DHCP_WAITS_MS.get(self.tries as usize) else {
            return self.discover(now, firmware);
        };
        self.wait(now, *wait);
        let mut message = match self.offered {
            Some(offer) if matches!(self.step, Step::Request { .. }) => {
                let mut message = self.message(MessageType::Request);
                message.push(option::REQUESTED_ADDRESS, offer.address.octets());
                message.push(option::SERVER_ID, offer.server.octets());
                message
            }
            _ => self.message(MessageType::Discover),
        };
        if firmware {
            self.push_firmware(&mut message);
        }
        vec![Packet::Dhcp(message.encode(MAX_BUDGET_BYTES))]
    }

    fn message(&self, kind: MessageType) -> Message {
        let mut message = Message::request(self.mac, self.xid);
        message.push(option::MESSAGE_TYPE, [kind.code()]);
        message.push(option::PARAMETERS, [1, 2, 3, 4, 5, 6, 12, 13, 15, 66, 67]);
        message.push(option::MAX_SIZE, [0x05, 0xb8]);
        message
    }

    /// A reply on the client port.
    pub(super) fn take_dhcp(&mut self, now: Timestamp, reply: &Message) -> Vec<Packet> {
        if (reply.mac, reply.xid) != (self.mac, self.xid) {
            return Vec::new();
        }
        match (self.step, reply.message_type()) {
            (Step::Discover { firmware }, Some(MessageType::Offer))
                if reply.yiaddr.is_unspecified() =>
            {
                assert!(firmware && reply.file == self.first_file().as_bytes());
                assert_eq!(reply.option(option::CLASS), Some(&b"PXEClient"[..]));
                assert_eq!(
                    reply.option(option::MACHINE_UUID).map(<[u8]>::len),
                    Some(17)
                );
                self.told = Some(reply.option(option::VENDOR).is_some());
                Vec::new()
            }
            (Step::Discover { firmware: true }, Some(MessageType::Offer)) if self.beside => {
                // It listens until its time is over.
                self.offered = held(now, reply);
                Vec::new()
            }
            (Step::Discover { firmware }, Some(MessageType::Offer)) => {
                self.offered = held(now, reply);
                self.step = Step::Request { firmware };
                self.tries = 0;
                self.ask(now, firmware)
            }
            (Step::Request { firmware }, Some(MessageType::Ack)) => {
                self.held = held(now, reply);
                self.tries = 0;
                if firmware && self.beside && reply.file.is_empty() {
                    self.obey(now)
                } else if firmware {
                    if reply.file.is_empty() {
                        self.power_cycle(Timestamp(now.0 + POWER_CYCLE_MS));
                        return Vec::new();
                    }
                    assert_eq!(reply.file, self.first_file().as_bytes());
                    self.load(now)
                } else if self.silent {
                    self.step = Step::Up;
                    self.plan_renewal(now);
                    Vec::new()
                } else {
                    self.step = Step::Identity;
                    self.identify(now)
                }
            }
            (Step::BootServer, Some(MessageType::Ack)) if reply.yiaddr.is_unspecified() => {
                assert_eq!(reply.file, self.first_file().as_bytes());
                self.load(now)
            }
            (Step::Up, Some(MessageType::Ack)) => {
                self.held = held(now, reply);
                self.plan_renewal(now);
                Vec::new()
            }
            (Step::Request { firmware }, Some(MessageType::Nak)) => self.discover(now, firmware),
            (Step::Up, Some(MessageType::Nak)) => panic!("a running node was refused its address"),
            _ => Vec::new(),
        }
    }

    /// It has its address from one server; what another told it to boot, it does.
    fn obey(&mut self, now: Timestamp) -> Vec<Packet> {
        match self.told {
            Some(whole) if self.understands.is_some_and(|it| it != whole) => {}
            Some(true) => return self.load(now),
            Some(false) => {
                self.step = Step::BootServer;
                return self.ask_boot_server(now);
            }
            None => {}
        }
        self.power_cycle(Timestamp(now.0 + POWER_CYCLE_MS));
        Vec::new()
    }

    fn ask_boot_server(&mut self, now: Timestamp) -> Vec<Packet> {
        let Some(held) = self.held.filter(|_| self.tries < TFTP_TRIES) else {
            self.power_cycle(Timestamp(now.0 + POWER_CYCLE_MS));
            return Vec::new();
        };
        self.wait(now, 1000);
        let mut message = self.message(MessageType::Request);
        message.ciaddr = held.address;
        self.push_firmware(&mut message);
        vec![Packet::BootServer {
            from: SocketAddrV4::new(held.address, 4011),
            bytes: message.encode(MAX_BUDGET_BYTES),
        }]
    }

    fn load(&mut self, now: Timestamp) -> Vec<Packet> {
        self.step = Step::Load;
        let files: &[&str] = match (self.chain, self.is_ipxe) {
            (Chain::Uefi, _) => &[
                "shimx64.efi",
                "revocations.efi",
                "grubx64.efi",
                "grub/x86_64-efi/command.lst",
                "grub/grub.cfg",
            ],
            (Chain::BiosPxelinux, _) => &[
                "pxelinux.0",
                "ldlinux.c32",
                "pxelinux.cfg/00000000-0000-0000-0000-525400010000",
                "MAC",
            ],
            (Chain::BiosIpxe, false) => &["undionly.kpxe", "IPXE"],
            (Chain::BiosIpxe, true) => &["autoexec.ipxe"],
        };
        let named = |path: &&str| match *path {
            "MAC" => format!("pxelinux.cfg/{}", self.mac.bootif()),
            path => path.to_owned(),
        };
        self.files = files.iter().map(named).collect();
        self.next_file(now)
    }

    fn next_file(&mut self, now: Timestamp) -> Vec<Packet> {
        self.tries = 0;
        if self.files.front().is_some_and(|path| path == "IPXE") {
            self.files.clear();
            self.is_ipxe = true;
            return self.discover(now, true);
        }
        let Some(path) = self.files.pop_front() else {
            // The kernel starts.
            self.fetch = None;
            self.wait(now, 3000);
            return Vec::new();
        };
        if self.hangs_before == Some(path.as_str()) {
            self.deadline = None;
            return Vec::new();
        }
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        self.fetch = Some(Fetch {
            path,
            port: self.next_port,
            from: None,
            blocks: 0,
            in_window: 0,
            content: Vec::new(),
        });
        self.ask_again(now)
    }

    /// The request, or the last acknowledgement.
    fn ask_again(&mut self, now: Timestamp) -> Vec<Packet> {
        let (Some(fetch), Some(held)) = (&self.fetch, self.held) else {
            return Vec::new();
        };
        if self.tries >= TFTP_TRIES {
            self.power_cycle(Timestamp(now.0 + POWER_CYCLE_MS));
            return Vec::new();
        }
        let request = || {
            Tftp::Read(Request {
                filename: fetch.path.clone().into_bytes(),
                mode: Mode::Octet,
                options: TFTP_OPTIONS,
            })
        };
        let (to_port, packet) = match fetch.from {
            None => (69, request()),
            Some(port) => {
                let block = fetch.blocks;
                (port, Tftp::Ack { block })
            }
        };
        let from = SocketAddrV4::new(held.address, fetch.port);
        let bytes = packet.encode();
        self.wait(now, TFTP_WAIT_MS);
        vec![Packet::Tftp {
            from,
            to_port,
            bytes,
        }]
    }

    /// A datagram of a transfer, from the server's port `from`.
    pub(super) fn take_tftp(
        &mut self,
        now: Timestamp,
        port: u16,
        from: u16,
        bytes: &[u8],
    ) -> Vec<Packet> {
        let Some(fetch) = self.fetch.as_mut().filter(|it| it.port == port) else {
            return Vec::new();
        };
        if from != 69 && *fetch.from.get_or_insert(from) != from {
            return Vec::new();
        }
        match Tftp::decode(bytes).expect("a TFTP packet") {
            Tftp::OptionAck(_) if fetch.blocks == 0 => self.ask_again(now),
            Tftp::Data { block, data } => self.take_block(now, block, &data),
            Tftp::Error { .. } if is_optional(&fetch.path) => self.next_file(now),
            Tftp::Error { .. } => {
                self.power_cycle(Timestamp(now.0 + POWER_CYCLE_MS));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn take_block(&mut self, now: Timestamp, block: u16, data: &[u8]) -> Vec<Packet> {
        let Some(fetch) = &mut self.fetch else {
            return Vec::new();
        };
        if block == fetch.blocks + 1 {
            fetch.blocks = block;
            fetch.in_window += 1;
            fetch.content.extend_from_slice(data);
            self.tries = 0;
            if data.len() < 1468 {
                return self.file_done(now);
            }
            if fetch.in_window < 4 {
                self.wait(now, TFTP_WAIT_MS);
                return Vec::new();
            }
        }
        fetch.in_window = 0;
        self.ask_again(now)
    }

    fn file_done(&mut self, now: Timestamp) -> Vec<Packet> {
        let mut out = self.ask_again(now);
        let fetch = self.fetch.take().expect("a file is on its way");
        let is_config = fetch.path.starts_with("pxelinux.cfg/")
            || [".cfg", ".ipxe"]
                .iter()
                .any(|end| fetch.path.ends_with(end));
        if is_config {
            let config = String::from_utf8(fetch.content).expect("a configuration is text");
            if let Some(seconds) = self.read_config(&config) {
                self.wait(now, seconds * 1000);
                return out;
            }
        }
        out.extend(self.next_file(now));
        out
    }

    /// How many seconds it sleeps before it goes on.
    fn read_config(&mut self, config: &str) -> Option<u64> {
        let mut sleep = None;
        for line in config.lines() {
            let words: Vec<String> = line
                .trim_start()
                .split(' ')
                .map(|word| word.replace('\'', ""))
                .collect();
            match words[0].as_str() {
                "linux" | "kernel" => {
                    self.kernel.clone_from(&words[1]);
                    self.files.push_back(words[1].clone());
                    self.read_command_line(&words[2..].join(" "));
                }
                "KERNEL" => {
                    self.kernel.clone_from(&words[1]);
                    self.files.push_back(words[1].clone());
                }
                "APPEND" => self.read_command_line(&words[1..].join(" ")),
                "initrd" | "INITRD" => self.files.extend(words.last().cloned()),
                "sleep" => sleep = words[1].parse().ok(),
                "TIMEOUT" => sleep = words[1].parse().ok().map(|tenths: u64| tenths / 10),
                "chain" | "CONFIG" => self.files.extend(words.last().cloned()),
                "configfile" if !words[1].contains("net_default_mac") => {
                    self.files.push_back(words[1].replace("$prefix", "grub"));
                }
                // The configuration that lets GRUB say who it is.
                "configfile" => {
                    assert!(line.ends_with("\"/grub/${net_default_mac}.cfg\""), "{line}");
                    self.files.push_back(format!("/grub/{}.cfg", self.mac));
                }
                _ => {}
            }
        }
        sleep
    }

    fn read_command_line(&mut self, line: &str) {
        let (args, errors) = BootArgs::parse(line);
        assert_eq!(errors, []);
        assert_eq!(args.bootif, Some(self.mac));
        self.boot = args.slate;
    }

    fn identify(&mut self, now: Timestamp) -> Vec<Packet> {
        let (Some(boot), Some(held)) = (&self.boot, self.held) else {
            self.power_cycle(Timestamp(now.0 + POWER_CYCLE_MS));
            return Vec::new();
        };
        let request = IdentityRequest::new(boot.boot, self.mac, &self.secret());
        let body = request.encode(&boot.token);
        let from = SocketAddrV4::new(held.address, 40_000);
        self.wait(now, 1000);
        vec![Packet::Identity {
            machine: self.index,
            from,
            body,
        }]
    }

    /// The same for the whole boot, another one for each.
    fn secret(&self) -> [u8; 32] {
        let mut secret = [self.mac.0[5]; 32];
        secret[..8].copy_from_slice(&self.boot.as_ref().map_or([0; 8], |it| it.boot.0));
        secret
    }

    pub(super) fn take_identity(&mut self, now: Timestamp, answer: &HttpAnswer) -> Vec<Packet> {
        let HttpBody::Identity(grant) = &answer.body else {
            panic!("refused an identity: {answer:?}");
        };
        if self.step != Step::Identity || Some(grant.boot) != self.boot.as_ref().map(|it| it.boot) {
            return Vec::new();
        }
        assert_eq!(grant.mac, self.mac);
        self.hostname = Some(grant.hostname.clone());
        self.step = Step::Report;
        self.report(now)
    }

    /// One stage a second, then the last beacon again and again.
    fn report(&mut self, now: Timestamp) -> Vec<Packet> {
        let next = REPORTS.get(self.events.len());
        if next == Some(&Stage::Mount) && self.broken.iter().any(|it| self.runs(it)) {
            self.died += 1;
            self.power_cycle(Timestamp(now.0 + PANIC_MS));
            return Vec::new();
        }
        match REPORTS.get(self.events.len()) {
            Some(stage) => self.events.push(BeaconEvent {
                seq: self.events.len() as u32 + 1,
                monotonic_us: 0,
                kind: Kind::Progress,
                stage: *stage,
                text: String::new(),
            }),
            None => self.repeats += 1,
        }
        let (Some(boot), Some(held)) = (&self.boot, self.held) else {
            return Vec::new();
        };
        let beacon = Beacon {
            boot: boot.boot,
            mac: self.mac,
            events: self.events.clone(),
        };
        let datagram = beacon.encode(&boot.token);
        let from = SocketAddrV4::new(held.address, 40_001);
        self.wait(now, 1000);
        if self.repeats == REPEATS {
            self.step = Step::Up;
            self.plan_renewal(now);
        }
        vec![Packet::Beacon { from, datagram }]
    }

    fn runs(&self, version: &Digest) -> bool {
        self.kernel.contains(&version.to_string())
    }

    /// RFC 2131, 4.4.5: half of what is left.
    fn plan_renewal(&mut self, now: Timestamp) {
        let until = self.held.and_then(|held| held.until);
        self.deadline = until.map(|until| Timestamp(now.0 + until.millis_since(now) / 2 + 1));
    }

    fn renew(&mut self, now: Timestamp) -> Vec<Packet> {
        let Some(address) = self.address(now) else {
            panic!("a running node's lease ended");
        };
        self.plan_renewal(now);
        self.xid += 1;
        let mut message = self.message(MessageType::Request);
        message.ciaddr = address;
        message.broadcast = false;
        vec![Packet::Dhcp(message.encode(MAX_BUDGET_BYTES))]
    }
}

fn is_optional(path: &str) -> bool {
    path.starts_with("revocations")
        || path.ends_with(".lst")
        || path.starts_with("pxelinux.cfg/00000000-")
}

impl Machine {
    /// What its firmware must be told to load.
    fn first_file(&self) -> &'static str {
        match (self.chain, self.is_ipxe) {
            (Chain::Uefi, _) => "shimx64.efi",
            (Chain::BiosPxelinux, _) => "pxelinux.0",
            (Chain::BiosIpxe, false) => "undionly.kpxe",
            (Chain::BiosIpxe, true) => "autoexec.ipxe",
        }
    }

    /// What PXE drivers, and iPXE, say of themselves.
    fn push_firmware(&self, message: &mut Message) {
        let (class, architecture) = match self.chain {
            Chain::Uefi => (&b"PXEClient:Arch:00007:UNDI:003001"[..], 7),
            _ => (&b"PXEClient:Arch:00000:UNDI:002001"[..], 0),
        };
        message.push(option::CLASS, class);
        message.push(option::ARCHITECTURE, [0, architecture]);
        message.push(94, [1, 3, 0]);
        let mut uuid = vec![0; 17];
        uuid[16] = message.mac.0[5];
        message.push(option::MACHINE_UUID, uuid);
        if self.is_ipxe {
            message.push(option::USER_CLASS, *b"iPXE");
            message.push(175, [0x18, 1, 1]);
        }
    }
}

fn held(now: Timestamp, reply: &Message) -> Option<Held> {
    let seconds = reply.number_option(option::LEASE_TIME)?;
    let until = (seconds != u32::MAX).then(|| Timestamp(now.0 + u64::from(seconds) * 1000));
    Some(Held {
        address: reply.yiaddr,
        server: reply.address_option(option::SERVER_ID)?,
        until,
    })
}
