//! Every decision of Cleanslate: who is a node, what it boots, which address it has, what is
//! served to whom, how far each boot is.
//!
//! The engine is a state machine without clock, sockets, files or randomness of its own:
//! [`Engine::handle`] takes the time and one [`Input`] and answers with [`Output`]s.

mod apply;
mod boots;
mod command;
mod commands;
mod config;
mod console;
mod deliver;
mod dhcp;
mod event;
mod fallback;
mod files;
mod firmware;
mod group;
mod image;
mod io;
mod kernel;
mod learned;
mod leases;
mod limit;
mod nodes;
mod orders;
mod plan;
mod power;
mod preview;
mod proxy;
mod ready;
mod record;
mod render;
mod rollout;
mod script;
mod select;
#[cfg(test)]
mod sim;
mod solicit;
mod template;
pub mod text;
pub mod tftp;
mod time;
mod unit;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng as _;

use crate::boots::Boots;
use crate::files::Hosts;
use crate::kernel::Kernels;
use crate::learned::LearnedAddresses;
use crate::leases::Leases;
use crate::limit::TokenBucket;
use crate::nodes::Nodes;
use crate::orders::Orders;
use crate::proxy::{LastOffer, SeenMachines};
use crate::ready::Readiness;
use crate::rollout::Rollouts;
use crate::solicit::Soliciting;

pub use apply::{Change, Changes, Inventory, NodeChanged, NodeEntry, SettingChanged};
pub use command::{Command, CommandError, CommandReply, NodeChange, Setting};
pub use config::{Config, DhcpMode, Interface, InterfaceId, UefiLoader, UnknownPolicy};
pub use event::{Event, EventKind, Service, Severity};
pub use group::{ALL, Disk, FileEntry, Group, Mount, NetworkSettings, Wipe};
pub use image::{BootFile, ImageInfo, ImageRef, ParseImageRefError};
pub use io::{
    Content, DhcpDestination, HOLD_SECONDS, HttpAnswer, HttpBody, HttpRequest, IdentityGrant,
    Input, MAX_HTTP_BODY_BYTES, NfsActivity, NfsCounters, Output, TftpAnswer, TransferOutcome,
};
pub use orders::{MAX_OUTPUT_BYTES, OrderState, OrderView, UploadLeave};
pub use plan::BootPlan;
pub use power::{POWER_TIME, PowerAction, PowerTask};
pub use preview::{Exchange, Firmware, PlannedContent, PlannedFile, Preview};
pub use record::{
    Boot, Failure, Fallback, Learned, Lease, Node, Record, Secret, Settings, StageAt,
};
pub use rollout::{Batch, RolloutPlan, RolloutState, RolloutView};
pub use time::Timestamp;
pub use view::{BootView, NodeView, SecretView, SeenView};
pub use wire::digest::Digest;
use wire::hex::hexadecimal;
pub use wire::identity::BootId;
pub use wire::mac::Mac;
pub use wire::stage::Stage;

/// What events call the machine that `slate doctor` pretends to be; no node can be called so.
const PROBE_NAME: &str = "(probe)";
/// Most nodes of the inventory.
const MAX_NODES: usize = 65_536;

/// The one place that decides. A copy decides the same, which is how plans are made.
#[derive(Clone, Debug)]
pub struct Engine {
    config: Config,
    rng: ChaCha20Rng,
    settings: Settings,
    images: Vec<ImageInfo>,
    /// Every version of the store, with a tag or without.
    versions: BTreeSet<Digest>,
    /// Those that cannot run with SELinux, and why.
    no_selinux: BTreeMap<Digest, String>,
    readiness: BTreeMap<Digest, Readiness>,
    nodes: Nodes,
    /// How often a node came, went, or got another name or fixed address.
    renames: u64,
    hosts: Option<Hosts>,
    groups: BTreeMap<String, Group>,
    networks: BTreeMap<String, NetworkSettings>,
    secrets: BTreeMap<String, Secret>,
    leases: Leases,
    learned: LearnedAddresses,
    boots: Boots,
    /// What each node's firmware called itself last.
    firmware: BTreeMap<Mac, String>,
    nfs: BTreeMap<Ipv4Addr, NfsClient>,
    strangers: TokenBucket,
    /// Networks without a free address, and until when that is taken for granted.
    full_until: BTreeMap<Ipv4Addr, Timestamp>,
    seen: SeenMachines,
    /// What the firmware of nodes was told last, beside another server.
    last_offers: BTreeMap<Mac, LastOffer>,
    /// Nodes that may wait for IPv6 routers.
    soliciting: Soliciting,
    kernels: Kernels,
    orders: Orders,
    rollouts: Rollouts,
    /// Other servers where there should be none, and when each was told of last.
    rogues: BTreeMap<Ipv4Addr, Timestamp>,
}

/// A node's use of NFS since the daemon started.
#[derive(Clone, Debug, Default)]
struct NfsClient {
    alive: bool,
    counters: NfsCounters,
    /// When an error of its own was told last.
    told: Option<Timestamp>,
}

/// A client's errors are told this often, however often it makes them.
const NFS_ERROR_EVERY: Duration = Duration::from_secs(60);

/// One call of [`Engine::handle`]: the time, and what came of it so far.
struct Turn {
    now: Timestamp,
    out: Vec<Output>,
}

impl Turn {
    fn persist(&mut self, record: Record) {
        self.out.push(Output::Persist(record));
    }
}

impl Engine {
    /// An engine with its settings, 32 random bytes, and the records that survived.
    pub fn new(config: Config, seed: [u8; 32], restored: Vec<Record>) -> Engine {
        let strangers = TokenBucket::new(config.unknown_per_second);
        let mut engine = Engine {
            config,
            rng: ChaCha20Rng::from_seed(seed),
            settings: Settings::default(),
            images: Vec::new(),
            versions: BTreeSet::new(),
            no_selinux: BTreeMap::new(),
            readiness: BTreeMap::new(),
            nodes: Nodes::default(),
            renames: 0,
            hosts: None,
            groups: BTreeMap::new(),
            networks: BTreeMap::new(),
            secrets: BTreeMap::new(),
            leases: Leases::default(),
            learned: LearnedAddresses::default(),
            boots: Boots::default(),
            firmware: BTreeMap::new(),
            nfs: BTreeMap::new(),
            strangers,
            full_until: BTreeMap::new(),
            seen: SeenMachines::default(),
            last_offers: BTreeMap::new(),
            soliciting: Soliciting::default(),
            kernels: Kernels::default(),
            orders: Orders::default(),
            rollouts: Rollouts::default(),
            rogues: BTreeMap::new(),
        };
        restored
            .into_iter()
            .for_each(|record| engine.restore(record));
        engine
    }

    fn restore(&mut self, record: Record) {
        match record {
            Record::Lease(lease) => self.leases.put(lease),
            Record::Node(node) => drop(self.nodes.insert(*node)),
            Record::Boot(boot) => self.boots.restore(boot),
            Record::Learned(learned) => self.learned.put(learned),
            Record::Settings(settings) => self.settings = settings,
            Record::Group { name, group } => drop(self.groups.insert(name, *group)),
            Record::Network { network, settings } => {
                self.networks.insert(network, settings);
            }
            Record::Rollout(rollout) => self.rollouts.restore(*rollout),
            Record::Secret { name, content } => drop(self.secrets.insert(name, content)),
            Record::Removed { .. } => {}
        }
    }

    /// Takes in one thing that happened and says what to do. Never panics, whatever the input.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Vec<Output> {
        let mut turn = Turn {
            now,
            out: Vec::new(),
        };
        self.orders.notice(now);
        self.forget_silent(&mut turn);
        // What a rollout waits for is told by agents and beacons, or is a command's or the time's.
        let may_advance = matches!(
            input,
            Input::Http { .. }
                | Input::Beacon { .. }
                | Input::Command(_)
                | Input::PowerEnded { .. }
                | Input::Images { .. }
                | Input::Tick
        );
        match input {
            Input::Dhcp {
                interface,
                source,
                packet,
            } => self.dhcp(&mut turn, interface, source, &packet),
            Input::BootServer {
                interface,
                source,
                packet,
            } => self.boot_server(&mut turn, interface, source, &packet),
            Input::Overheard {
                interface,
                source,
                packet,
            } => self.overheard(&mut turn, interface, source, &packet),
            Input::RouterSolicitation {
                interface,
                source,
                mac,
            } => self.solicited(&mut turn, interface, source, mac),
            Input::Tftp { peer, packet } => self.tftp(&mut turn, peer, &packet),
            Input::Http { peer, request } => self.http(&mut turn, peer, &request),
            Input::Beacon { peer, datagram } => self.beacon(&mut turn, *peer.ip(), &datagram),
            Input::TransferEnded {
                peer,
                service,
                path,
                bytes,
                outcome,
            } => {
                self.transfer_ended(&mut turn, peer, service, &path, bytes, outcome);
            }
            Input::Nfs { address, activity } => self.nfs(&mut turn, address, activity),
            Input::Images {
                images,
                versions,
                no_selinux,
            } => {
                self.forget_other_initrds(&images);
                self.images = images;
                self.versions = versions;
                self.no_selinux = no_selinux;
                self.unpin_followers(&mut turn);
                self.prepare_all(&mut turn);
            }
            Input::Prepared { version, result } => self.prepared(version, result),
            Input::PowerEnded {
                order,
                status,
                output,
            } => self.power_ended(&mut turn, order, status, &output),
            Input::Command(command) => self.command(&mut turn, command),
            Input::Tick => {
                self.report_stuck(&mut turn);
                self.expire_orders(&mut turn);
            }
        }
        if may_advance {
            self.advance_rollouts(&mut turn);
        }
        turn.out
    }

    /// When the engine wants an [`Input::Tick`].
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let others = [self.orders.next_deadline(), self.rollout_deadline()];
        let boots = self.boots.next_deadline();
        others.into_iter().flatten().chain(boots).min()
    }

    /// Every node, sorted by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        let nodes = self.nodes_by_name().into_iter();
        nodes.map(|node| self.view(node)).collect()
    }

    fn nodes_by_name(&self) -> Vec<&Node> {
        let mut nodes: Vec<&Node> = self.nodes.values().collect();
        nodes.sort_by_cached_key(|&node| natural(&node.name));
        nodes
    }

    /// The image versions that nodes run, or may run.
    pub fn versions_in_use(&self) -> BTreeSet<Digest> {
        let mut versions = self.boots.versions();
        let nodes = || self.nodes.values();
        versions.extend(nodes().filter_map(fallback_version));
        versions.extend(nodes().flat_map(Engine::rollout_versions));
        versions
    }

    /// One node.
    pub fn node(&self, mac: &Mac) -> Option<NodeView> {
        self.nodes.get(mac).map(|node| self.view(node))
    }

    /// The settings it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What becomes of machines that are no nodes, where DHCP is spoken so: as the inventory says,
    /// else the configuration. Where firmware is not heard at all none can become nodes by asking.
    pub fn unknown_policy(&self, mode: DhcpMode) -> UnknownPolicy {
        let said = self.settings.unknown.or(self.config.unknown);
        match said.unwrap_or(UnknownPolicy::of(mode)) {
            UnknownPolicy::Auto if mode == DhcpMode::Off => UnknownPolicy::Approve,
            policy => policy,
        }
    }

    fn view(&self, node: &Node) -> NodeView {
        let address = self.address_of(node);
        let nfs = address.and_then(|address| self.nfs.get(&address));
        let boots = self.boots.of(node.mac);
        let told = boots.iter().find(|boot| !boot.drivers.is_empty());
        let drivers = told.map(|boot| boot.drivers.clone()).unwrap_or_default();
        let mut boots = boots.into_iter().map(boots::view);
        NodeView {
            mac: node.mac,
            name: node.name.clone(),
            address,
            address_is_fixed: node.address.is_some() && node.address == address,
            image: node.image.clone(),
            once: node.once.clone(),
            pinned: node.pinned,
            groups: node.groups.clone(),
            next_image: self.version_of(Some(node)).ok(),
            failed_image: self.fallback_of(node).map(|it| it.failed),
            kernel_args: node.kernel_args.clone(),
            loader: node.loader,
            console: node.console.clone(),
            firmware: self.firmware.get(&node.mac).cloned(),
            boot: boots.next(),
            former_boots: boots.collect(),
            polled: self.orders.polled(node.mac),
            drivers,
            nfs: nfs.map(|client| client.counters.clone()),
            nfs_alive: nfs.is_some_and(|client| client.alive),
        }
    }

    fn interface(&self, id: InterfaceId) -> Option<&Interface> {
        self.config
            .interfaces
            .iter()
            .find(|interface| interface.id == id)
    }

    /// The address that a node has or will get.
    fn address_of(&self, node: &Node) -> Option<Ipv4Addr> {
        let leased = || self.leases.address_of(node.mac);
        self.learned_address(node.mac)
            .or(node.address)
            .or_else(|| leased().filter(|it| self.config.gives(*it)))
    }

    /// The node that holds an address: who asks. Where addresses are not ours to give, that is
    /// what was learned.
    fn node_at(&self, address: Ipv4Addr) -> Option<&Node> {
        let owner = if self.config.gives(address) {
            self.leases.owner(address)
        } else {
            self.learned.owner(address)
        };
        let mac = owner.or_else(|| self.nodes.fixed_at(address).next())?;
        self.nodes.get(&mac)
    }

    /// The node of a machine that is to be one: made where there is none yet.
    fn ensure_node(&mut self, turn: &mut Turn, mac: Mac) -> Option<&Node> {
        if !self.nodes.contains_key(&mac) {
            if self.nodes.len() >= MAX_NODES {
                return None;
            }
            let name = self.free_name();
            let node = Node {
                mac,
                name,
                address: None,
                image: None,
                kernel_args: String::new(),
                loader: None,
                console: Vec::new(),
                groups: Vec::new(),
                power: None,
                once: None,
                pinned: None,
                trial: None,
                fallback: None,
                image_set: None,
            };
            self.put_node(turn, node);
        }
        self.nodes.get(&mac)
    }

    /// Takes a node into the inventory, or changes it, and has made what it is going to boot.
    fn put_node(&mut self, turn: &mut Turn, node: Node) {
        let (mac, version) = (node.mac, self.version_of(Some(&node)));
        turn.persist(Record::Node(Box::new(node.clone())));
        let named = |it: &Node| (it.name.clone(), it.address);
        if self.nodes.get(&mac).map(named) != Some(named(&node)) {
            self.renames += 1;
        }
        let kind = match self.nodes.insert(node) {
            None => EventKind::NodeAdded,
            Some(_) => EventKind::NodeChanged,
        };
        self.seen.remove(mac);
        self.tell(turn, Some(mac), kind);
        if let Ok(version) = version {
            self.prepare(turn, version);
        }
    }

    /// `node1`, `node2`, …: the first that nobody has.
    fn free_name(&self) -> String {
        let names: BTreeSet<_> = self.nodes.values().map(|node| node.name.as_str()).collect();
        (1..)
            .map(|number: u32| format!("node{number}"))
            .find(|name| !names.contains(name.as_str()))
            .expect("there are more numbers than nodes")
    }

    fn tell(&self, turn: &mut Turn, mac: Option<Mac>, kind: EventKind) {
        let node = match mac {
            Some(Mac::PROBE) => Some(PROBE_NAME.to_owned()),
            Some(mac) => self.nodes.get(&mac).map(|node| node.name.clone()),
            None => None,
        };
        turn.out.push(Output::Event(Event {
            at: turn.now,
            mac,
            node,
            kind,
        }));
    }

    fn nfs(&mut self, turn: &mut Turn, address: Ipv4Addr, activity: NfsActivity) {
        // Only those with an address of ours are counted: the table stays as small as the network.
        let Some(mac) = self.node_at(address).map(|node| node.mac) else {
            if activity == NfsActivity::Gone {
                self.nfs.remove(&address);
            }
            return;
        };
        let client = self.nfs.entry(address).or_default();
        match activity {
            NfsActivity::Counters(counters) => client.counters = counters,
            NfsActivity::Mounted => {
                let known = std::mem::replace(&mut client.alive, true);
                if !known {
                    self.tell(turn, Some(mac), EventKind::NfsMounted { address });
                }
                self.mounted_in_silence(turn, mac);
            }
            NfsActivity::Gone => {
                // A machine that merely connects and hangs up, again and again, says nothing new.
                let known = std::mem::replace(&mut client.alive, false);
                if known {
                    self.tell(turn, Some(mac), EventKind::NfsGone { address });
                }
            }
            NfsActivity::Stale(id) => {
                let version = hexadecimal(&id);
                self.nfs_error(turn, mac, address, EventKind::NfsStale { address, version });
            }
            NfsActivity::Damaged(id) => {
                let version = hexadecimal(&id);
                self.nfs_error(
                    turn,
                    mac,
                    address,
                    EventKind::NfsDamaged { address, version },
                );
            }
            NfsActivity::Collision(owner) => {
                let owner = files::printable(&owner);
                self.nfs_error(
                    turn,
                    mac,
                    address,
                    EventKind::NfsCollision { address, owner },
                );
            }
        }
    }

    fn nfs_error(&mut self, turn: &mut Turn, mac: Mac, address: Ipv4Addr, kind: EventKind) {
        let client = self.nfs.entry(address).or_default();
        let due = client
            .told
            .is_none_or(|at| turn.now >= at + NFS_ERROR_EVERY);
        if due {
            client.told = Some(turn.now);
            self.tell(turn, Some(mac), kind);
        }
    }
}

/// As [`Engine::versions_in_use`], by what an engine has left.
pub fn versions_in_use(records: impl IntoIterator<Item = Record>) -> BTreeSet<Digest> {
    let mut boots = Boots::default();
    let mut others = BTreeSet::new();
    for record in records {
        match record {
            Record::Boot(boot) => boots.restore(boot),
            Record::Node(node) => {
                others.extend(fallback_version(&node));
                others.extend(Engine::rollout_versions(&node));
            }
            _ => {}
        }
    }
    let mut versions = boots.versions();
    versions.append(&mut others);
    versions
}

/// The version that a node falls back to, whether or not it does so now.
fn fallback_version(node: &Node) -> Option<Digest> {
    node.fallback.map(|it| it.instead)
}

/// Sorts `node2` before `node10`.
fn natural(name: &str) -> (&str, u64, &str) {
    let head = name.trim_end_matches(|it: char| it.is_ascii_digit());
    (head, name[head.len()..].parse().unwrap_or(0), name)
}
