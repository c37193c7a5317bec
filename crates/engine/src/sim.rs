//! The engine in a simulated world: a virtual clock, a network that loses, repeats and reorders by
//! a seed, scripted machines, and a daemon that may be killed between any two of its outputs.
//!
//! After every step it is checked that no two machines use one address, that what a reply
//! promises was persisted before it was sent, that a boot's identity went to one key, and that
//! beside another DHCP server no reply gives or refuses an address.

mod beside;
mod chains;
mod groups;
mod leases;
mod machine;
mod orders;
mod power;
mod preview;
mod rollouts;
mod scenarios;
mod solicit;
mod unknown;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use wire::dhcp4::{Message, MessageType};
use wire::digest::Digest;
use wire::identity::BootId;
use wire::mac::Mac;

use crate::event::{Event, EventKind, Service};
use crate::image::{BootFile, ImageInfo};
use crate::io::{
    Content, HttpAnswer, HttpBody, HttpRequest, Input, NfsActivity, Output, TftpAnswer,
    TransferOutcome,
};
use crate::power::PowerTask;
use crate::record::Record;
use crate::tftp::Transfer;
use crate::time::Timestamp;
use crate::{Command, CommandReply, Config, DhcpMode, Engine, Interface, InterfaceId};
use beside::OtherServer;
use machine::{Machine, Step};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const INTERFACE: InterfaceId = InterfaceId(1);
const DIGEST: Digest = Digest([0xab; 32]);
/// A later version of the same image.
const NEXT: Digest = Digest([0xcd; 32]);
/// How long an initramfs takes.
const MAKING: Duration = Duration::from_secs(7);
/// A moment in 2026.
const START: Timestamp = Timestamp(1_790_000_000_000);
/// Steps after which a scenario counts as endless.
const MAX_STEPS: u64 = 3_000_000;

/// Something on its way over the network.
#[derive(Clone, Debug)]
pub(super) enum Packet {
    /// To the DHCP server port.
    Dhcp(Vec<u8>),
    /// To port 4011.
    BootServer {
        from: SocketAddrV4,
        bytes: Vec<u8>,
    },
    /// To a port of the server, 69 or a transfer's.
    Tftp {
        from: SocketAddrV4,
        to_port: u16,
        bytes: Vec<u8>,
    },
    /// `POST /identity`.
    Identity {
        machine: usize,
        from: SocketAddrV4,
        body: Vec<u8>,
    },
    Beacon {
        from: SocketAddrV4,
        datagram: Vec<u8>,
    },
    /// A DHCP reply; every machine sees it.
    DhcpReply(Vec<u8>),
    TftpReply {
        to: SocketAddrV4,
        from_port: u16,
        bytes: Vec<u8>,
    },
    IdentityReply {
        machine: usize,
        answer: HttpAnswer,
    },
    /// An initramfs has been made; not a packet at all.
    Made(Digest),
}

/// How bad the network is.
#[derive(Clone, Copy, Debug)]
struct Network {
    loss_percent: u32,
    repeat_percent: u32,
    delay_ms: (u32, u32),
}

const GOOD: Network = Network {
    loss_percent: 0,
    repeat_percent: 0,
    delay_ms: (1, 2),
};
/// Loses a fifth, repeats a tenth, and reorders.
const BAD: Network = Network {
    loss_percent: 20,
    repeat_percent: 10,
    delay_ms: (1, 300),
};

/// A transfer that the daemon drives.
struct Sending {
    transfer: Transfer,
    content: Vec<u8>,
    path: String,
}

struct World {
    engine: Engine,
    config: Config,
    images: Vec<ImageInfo>,
    no_selinux: BTreeMap<Digest, String>,
    /// What is on the daemon's disk.
    records: BTreeMap<String, Record>,
    now: Timestamp,
    rng: ChaCha20Rng,
    network: Network,
    queue: BTreeMap<(Timestamp, u64), Packet>,
    /// By the machine's end and the server's port.
    sendings: BTreeMap<(SocketAddrV4, u16), Sending>,
    next_port: u16,
    machines: Vec<Machine>,
    /// Another DHCP server on the same wire.
    other: Option<OtherServer>,
    /// Nothing that is said to DHCP servers reaches the daemon.
    deaf: bool,
    events: Vec<Event>,
    /// What was asked of machines' power.
    powers: Vec<(u64, PowerTask)>,
    identities: BTreeMap<BootId, [u8; 32]>,
    steps: u64,
    /// The versions whose initramfs is on the daemon's disk.
    made: BTreeSet<Digest>,
    /// Why no initramfs can be made.
    making_fails: Option<String>,
    /// Outputs carried out so far.
    outputs: u64,
    /// The daemon is killed before it carries out this output.
    killed_before: Option<u64>,
}

impl World {
    fn new(seed: u8, network: Network, config: Config) -> World {
        let mut world = World {
            engine: Engine::new(config.clone(), [seed; 32], Vec::new()),
            config,
            images: vec![image()],
            no_selinux: BTreeMap::new(),
            records: BTreeMap::new(),
            now: START,
            rng: ChaCha20Rng::from_seed([seed; 32]),
            network,
            queue: BTreeMap::new(),
            sendings: BTreeMap::new(),
            next_port: 50_000,
            machines: Vec::new(),
            other: None,
            deaf: false,
            events: Vec::new(),
            powers: Vec::new(),
            identities: BTreeMap::new(),
            steps: 0,
            made: BTreeSet::new(),
            making_fails: None,
            outputs: 0,
            killed_before: None,
        };
        world.show_images();
        world
    }

    /// One on a good network, whose store has the image `next` besides the default one.
    fn with_next(seed: u8) -> World {
        let mut world = World::new(seed, GOOD, config());
        world.add_next();
        world
    }

    /// The store gets the image `next`.
    fn add_next(&mut self) {
        self.images.push(ImageInfo {
            name: "next".into(),
            digest: NEXT,
            ..image()
        });
        self.show_images();
    }

    /// Tells the engine what the store has.
    fn show_images(&mut self) {
        self.input(Input::Images {
            images: self.images.clone(),
            versions: [DIGEST, NEXT].into(),
            no_selinux: self.no_selinux.clone(),
        });
    }

    /// Adds machines that are switched on now.
    fn power_on(&mut self, count: usize) {
        for _ in 0..count {
            let index = self.machines.len();
            let mut machine = Machine::new(index, mac(index));
            machine.beside = self.other.is_some();
            machine.deadline = Some(self.now);
            self.machines.push(machine);
        }
    }

    /// Runs until `done`, or until there is nothing left to happen before `limit` has passed.
    fn run_until(&mut self, limit: Duration, done: impl Fn(&World) -> bool) -> bool {
        let end = self.now + limit;
        while !done(self) {
            match self.next_moment().filter(|next| *next <= end) {
                Some(next) => self.now = self.now.max(next),
                None => {
                    self.now = end;
                    return done(self);
                }
            }
            self.step();
        }
        true
    }

    fn all_up(&self) -> bool {
        self.machines.iter().all(|it| it.step == Step::Up)
    }

    /// Everything up within `limit`.
    #[track_caller]
    fn boot_all(&mut self, limit: Duration) {
        let up = self.run_until(limit, World::all_up);
        let late: Vec<_> = self
            .machines
            .iter()
            .filter(|it| it.step != Step::Up)
            .collect();
        assert!(up, "not up: {late:?}\n{}", self.story());
    }

    fn next_moment(&self) -> Option<Timestamp> {
        let packet = self.queue.keys().next().map(|(at, _)| *at);
        let machines = self.machines.iter().filter_map(|it| it.deadline);
        let sendings = self
            .sendings
            .values()
            .filter_map(|it| it.transfer.deadline());
        let engine = self.engine.next_deadline();
        packet
            .into_iter()
            .chain(machines)
            .chain(sendings)
            .chain(engine)
            .min()
    }

    fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < MAX_STEPS, "no end\n{}", self.story());
        if self.engine.next_deadline().is_some_and(|it| it <= self.now) {
            self.input(Input::Tick);
            let again = self.engine.next_deadline();
            assert!(
                again.is_none_or(|it| it > self.now),
                "a deadline that stays"
            );
        }
        let due = |world: &World| {
            let (key, _) = world.queue.first_key_value()?;
            (key.0 <= world.now).then_some(*key)
        };
        while let Some(key) = due(self) {
            let packet = self.queue.remove(&key).expect("the first packet");
            self.arrive(packet);
            self.check();
        }
        self.wake_machines();
        self.time_out_sendings();
        self.check();
    }

    fn wake_machines(&mut self) {
        for index in 0..self.machines.len() {
            let machine = &mut self.machines[index];
            if machine.deadline.is_some_and(|it| it <= self.now) {
                let packets = machine.wake(self.now);
                self.send_all(packets);
            }
        }
    }

    fn time_out_sendings(&mut self) {
        let due = |it: &Sending| it.transfer.deadline().is_some_and(|at| at <= self.now);
        let keys: Vec<_> = self
            .sendings
            .iter()
            .filter(|(_, it)| due(it))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            let sending = self.sendings.get_mut(&key).expect("a transfer");
            sending.transfer.handle_timeout(self.now);
            self.drive(key);
        }
    }

    /// No two machines on one address.
    fn check(&self) {
        let mut users = BTreeMap::new();
        for machine in &self.machines {
            let Some(address) = machine.address(self.now) else {
                continue;
            };
            let other = users.insert(address, machine.mac);
            assert_eq!(other, None, "{address} has two users\n{}", self.story());
        }
    }

    fn send_all(&mut self, packets: Vec<Packet>) {
        packets.into_iter().for_each(|packet| self.send(&packet));
    }

    fn send(&mut self, packet: &Packet) {
        let copies = match self.rng.next_u32() % 100 {
            lost if lost < self.network.loss_percent => 0,
            it if it < self.network.loss_percent + self.network.repeat_percent => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let (from, to) = self.network.delay_ms;
            let delay = from + self.rng.next_u32() % (to - from + 1);
            let key = (
                self.now + Duration::from_millis(delay.into()),
                self.rng.next_u64(),
            );
            self.queue.insert(key, packet.clone());
        }
    }

    fn arrive(&mut self, packet: Packet) {
        let now = self.now;
        match packet {
            Packet::Dhcp(packet) => {
                if let Some(reply) = self.other.as_ref().and_then(|it| it.answer(&packet)) {
                    self.send(&Packet::DhcpReply(reply));
                }
                if !self.deaf {
                    self.input(dhcp(packet));
                }
            }
            Packet::BootServer { from, bytes } => self.input(Input::BootServer {
                interface: INTERFACE,
                source: from,
                packet: bytes,
            }),
            Packet::Tftp {
                from,
                to_port,
                bytes,
            } => self.arrive_tftp(from, to_port, bytes),
            Packet::Identity {
                machine,
                from,
                body,
            } => self.arrive_identity(machine, from, body),
            Packet::Beacon { from, datagram } => self.arrive_beacon(from, datagram),
            Packet::DhcpReply(bytes) => {
                let reply = Message::decode(&bytes).expect("a reply");
                for index in 0..self.machines.len() {
                    let packets = self.machines[index].take_dhcp(now, &reply);
                    self.send_all(packets);
                }
            }
            Packet::TftpReply {
                to,
                from_port,
                bytes,
            } => {
                let target = self
                    .machines
                    .iter_mut()
                    .find(|it| it.address(now) == Some(*to.ip()));
                let packets = target.map(|it| it.take_tftp(now, to.port(), from_port, &bytes));
                self.send_all(packets.unwrap_or_default());
            }
            Packet::Made(version) => {
                let result = self.making_fails.clone().map_or(Ok(()), Err);
                if result.is_ok() {
                    self.made.insert(version);
                }
                self.input(Input::Prepared { version, result });
            }
            Packet::IdentityReply { machine, answer } => {
                let packets = self.machines[machine].take_identity(now, &answer);
                self.send_all(packets);
            }
        }
    }

    fn arrive_tftp(&mut self, from: SocketAddrV4, to_port: u16, bytes: Vec<u8>) {
        if to_port == 69 {
            return self.input(Input::Tftp {
                peer: from,
                packet: bytes,
            });
        }
        if let Some(sending) = self.sendings.get_mut(&(from, to_port)) {
            sending.transfer.handle(self.now, &bytes);
            self.drive((from, to_port));
        }
    }

    fn arrive_identity(&mut self, machine: usize, peer: SocketAddrV4, body: Vec<u8>) {
        let request = HttpRequest {
            method: "POST".into(),
            target: "/identity".into(),
            body,
        };
        let answer = self.ask(Input::Http { peer, request });
        if let Some(answer) = answer {
            self.send(&Packet::IdentityReply { machine, answer });
        }
    }

    fn arrive_beacon(&mut self, peer: SocketAddrV4, datagram: Vec<u8>) {
        let address = *peer.ip();
        self.input(Input::Beacon { peer, datagram });
        self.input(Input::Nfs {
            address,
            activity: NfsActivity::Mounted,
        });
    }

    /// An HTTP request and its answer, unless the daemon dies of it.
    fn ask(&mut self, input: Input) -> Option<HttpAnswer> {
        let outputs = self.engine.handle(self.now, input);
        let mut answers = outputs.iter().filter_map(|output| match output {
            Output::Http(answer) => Some(answer.clone()),
            _ => None,
        });
        let answer = answers.next().expect("an answer");
        assert!(answers.next().is_none(), "two answers");
        if !self.carry_out(outputs) {
            return None;
        }
        if let HttpBody::Identity(grant) = &answer.body {
            let key = grant.request.public_key;
            let given = *self.identities.entry(grant.boot).or_insert(key);
            assert_eq!(given, key, "an identity for two keys");
        }
        Some(answer)
    }

    /// A user's command; the daemon lives through it.
    fn command(&mut self, command: Command) -> Result<CommandReply, crate::CommandError> {
        let mut outputs = self.engine.handle(self.now, Input::Command(command));
        let Some(Output::Reply(reply)) = outputs.pop() else {
            panic!("expected a reply at the end");
        };
        self.carry_out(outputs);
        reply
    }

    fn input(&mut self, input: Input) {
        let outputs = self.engine.handle(self.now, input);
        self.carry_out(outputs);
    }

    /// The daemon's part. False: it was killed on the way, and is back with what it had stored.
    fn carry_out(&mut self, outputs: Vec<Output>) -> bool {
        for output in outputs {
            if self.killed_before == Some(self.outputs) {
                self.killed_before = None;
                self.restart();
                return false;
            }
            self.outputs += 1;
            self.carry_out_one(output);
        }
        true
    }

    fn carry_out_one(&mut self, output: Output) {
        match output {
            Output::Persist(Record::Removed { key }) => drop(self.records.remove(&key)),
            Output::Persist(record) => drop(self.records.insert(record.key(), record)),
            Output::Event(event) => self.events.push(event),
            Output::Dhcp { packet, .. } => {
                self.check_promise(&packet);
                self.send(&Packet::DhcpReply(packet));
            }
            Output::Tftp { peer, answer } => self.answer_tftp(peer, answer),
            Output::Prepare { version, .. } => {
                let key = (self.now + MAKING, version.0[0].into());
                self.queue.insert(key, Packet::Made(version));
            }
            Output::Power { order, task } => self.powers.push((order, task)),
            Output::NoRouter { .. }
            | Output::Http(_)
            | Output::Reply(_)
            | Output::HoldHttp { .. }
            | Output::AnswerHeld { .. } => {}
        }
    }

    /// What a reply promises is on disk before it goes out; beside another server it promises and
    /// refuses nothing, and goes to nodes only.
    fn check_promise(&self, packet: &[u8]) {
        let reply = Message::decode(packet).expect("a reply");
        if self.config.interfaces[0].dhcp != DhcpMode::Authoritative {
            assert!(reply.yiaddr.is_unspecified(), "{reply:?}");
            assert_ne!(reply.message_type(), Some(MessageType::Nak));
            assert!(self.engine.node(&reply.mac).is_some(), "{reply:?}");
            return;
        }
        if reply.message_type() == Some(MessageType::Nak) || reply.yiaddr.is_unspecified() {
            return;
        }
        let is_offer = reply.message_type() == Some(MessageType::Offer);
        match self.records.get(&format!("lease/{}", reply.yiaddr)) {
            // A restart may forget an offer, but must not bring anybody else's claim back.
            None if is_offer => {}
            Some(Record::Lease(lease)) if is_offer => assert_eq!(lease.mac, Some(reply.mac)),
            Some(Record::Lease(lease)) => {
                assert_eq!(lease.mac, Some(reply.mac));
                let live = lease.expires.is_none_or(|expires| expires > self.now);
                assert!(live, "an expired promise");
            }
            other => panic!("{} was promised, but stored was {other:?}", reply.yiaddr),
        }
    }

    fn answer_tftp(&mut self, peer: SocketAddrV4, answer: TftpAnswer) {
        match answer {
            TftpAnswer::Error(bytes) => self.send(&Packet::TftpReply {
                to: peer,
                from_port: 69,
                bytes,
            }),
            TftpAnswer::Transfer {
                mut transfer,
                content,
                path,
            } => {
                if let Content::File {
                    digest,
                    file: BootFile::Initrd,
                } = content
                {
                    assert!(self.made.contains(&digest), "the loader does not wait");
                }
                let content = bytes_of(&content);
                transfer.start(self.now, content.len() as u64);
                self.next_port = self.next_port.checked_add(1).unwrap_or(50_000);
                let key = (peer, self.next_port);
                let transfer = *transfer;
                self.sendings.insert(
                    key,
                    Sending {
                        transfer,
                        content,
                        path,
                    },
                );
                self.drive(key);
            }
        }
    }

    /// Sends what a transfer has to send, and reports its end.
    fn drive(&mut self, key: (SocketAddrV4, u16)) {
        let Some(mut sending) = self.sendings.remove(&key) else {
            return;
        };
        let mut bytes = Vec::new();
        while sending
            .transfer
            .poll_transmit(self.now, &sending.content[..], &mut bytes)
        {
            let bytes = bytes.clone();
            self.send(&Packet::TftpReply {
                to: key.0,
                from_port: key.1,
                bytes,
            });
        }
        match sending.transfer.outcome().cloned() {
            None => drop(self.sendings.insert(key, sending)),
            Some(outcome) => self.sent(*key.0.ip(), &sending, outcome),
        }
    }

    fn sent(&mut self, peer: Ipv4Addr, sending: &Sending, outcome: TransferOutcome) {
        self.input(Input::TransferEnded {
            peer,
            service: Service::Tftp,
            path: sending.path.clone(),
            bytes: sending.transfer.bytes_acknowledged(),
            outcome,
        });
    }

    /// The daemon dies and comes back: what it stored is all that it knows.
    fn restart(&mut self) {
        self.check_leases();
        self.sendings.clear();
        self.queue.retain(|_, it| !matches!(it, Packet::Made(_)));
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        // In any order, so the last key comes first.
        let records = self.records.values().rev().cloned().collect();
        self.engine = Engine::new(self.config.clone(), seed, records);
        self.show_images();
    }

    /// No machine has two addresses by what is stored: which one counts would be chance.
    fn check_leases(&self) {
        let leases = self.records.values().filter_map(|record| match record {
            Record::Lease(lease) => lease.mac.map(|mac| (mac, lease.address)),
            _ => None,
        });
        let mut addresses = BTreeMap::new();
        for (mac, address) in leases {
            let other = addresses.insert(mac, address);
            assert_eq!(other, None, "{mac} is stored with {address} as well");
        }
    }

    /// Nothing is on its way over the network.
    fn is_silent(&self) -> bool {
        self.queue.values().all(|it| matches!(it, Packet::Made(_)))
    }

    fn count(&self, of: impl Fn(&EventKind) -> bool) -> usize {
        self.events.iter().filter(|event| of(&event.kind)).count()
    }

    /// The last events, for the messages of failed assertions.
    fn story(&self) -> String {
        let from = self.events.len().saturating_sub(80);
        let line = |event: &Event| {
            let after = event.at.millis_since(START);
            format!("{after} {:?} {}\n", event.node, event.kind)
        };
        self.events[from..].iter().map(line).collect()
    }
}

fn mac(index: usize) -> Mac {
    let [.., high, low] = (index as u32).to_be_bytes();
    Mac([0x52, 0x54, 0, 1, high, low])
}

fn dhcp(packet: Vec<u8>) -> Input {
    Input::Dhcp {
        interface: INTERFACE,
        source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        packet,
    }
}

fn image() -> ImageInfo {
    ImageInfo {
        name: "debian".into(),
        tag: "latest".into(),
        digest: DIGEST,
        files: BootFile::ALL.map(|file| (file, Ok(()))).into(),
        foreign_initrd: false,
        no_http: BTreeMap::new(),
        origins: BTreeMap::new(),
    }
}

/// A configuration with one /24 network and a default image.
fn config() -> Config {
    let mut config = Config::new(vec![Interface::new(INTERFACE, SERVER, 24)]);
    config.default_image = Some("debian".parse().expect("an image's name"));
    config
}

/// Boot files have some length each, so that windows and last blocks differ.
fn bytes_of(content: &Content) -> Vec<u8> {
    match content {
        Content::Bytes(bytes) => bytes.clone(),
        Content::File { digest, file } => {
            assert!([DIGEST, NEXT].contains(digest));
            let length = match file {
                BootFile::Shim => 3000,
                BootFile::Grub => 1468 * 4,
                BootFile::Kernel => 20_000,
                BootFile::Initrd => 30_001,
                _ => 2000,
            };
            vec![7; length]
        }
    }
}
