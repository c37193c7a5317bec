//! Makes the inventory what a file says, all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use wire::mac::Mac;

use crate::command::{CommandError, CommandReply};
use crate::commands::check_kernel_args;
use crate::config::{DhcpMode, UefiLoader, UnknownPolicy};
use crate::console;
use crate::event::EventKind;
use crate::group::{Group, MAX_GROUPS, NetworkSettings, check_group_name};
use crate::image::ImageRef;
use crate::proxy::SeenMachines;
use crate::record::{Node, Record};
use crate::{Engine, MAX_NODES, Turn, power};

/// An inventory as a file describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The nodes, in order of their names.
    #[serde(default)]
    pub nodes: Vec<NodeEntry>,
    /// Groups of nodes, by name.
    #[serde(default)]
    pub groups: BTreeMap<String, Group>,
    /// What is told of networks, by `ADDRESS/PREFIX`.
    #[serde(default)]
    pub networks: BTreeMap<String, NetworkSettings>,
    /// What becomes of machines that are no nodes; `None` = as the daemon was started.
    #[serde(default)]
    pub unknown: Option<UnknownPolicy>,
}

/// A node as a file describes it; what is left out is the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its host name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(with = "crate::text")]
    pub mac: Mac,
    /// Its fixed address; `None` = from the pool.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Its image, `NAME[:TAG]`; `None` = the default.
    #[serde(default)]
    pub image: Option<String>,
    /// Arguments added to its kernel command line.
    #[serde(default)]
    pub kernel_args: String,
    /// What it loads first where it is UEFI; `None` = as its groups say.
    #[serde(default)]
    pub loader: Option<UefiLoader>,
    /// Its consoles, the one of the system last; none = as its groups say.
    #[serde(default)]
    pub console: Vec<String>,
    /// Its groups, those that count first first.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What drives its power; `None` = what its groups say.
    #[serde(default)]
    pub power: Option<String>,
}

/// What becomes of one node, one group or one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change<T> {
    /// As it was; `None` = it is new.
    pub before: Option<T>,
    /// As it is then; `None` = it is forgotten.
    pub after: Option<T>,
}

/// What becomes of a node.
pub type NodeChanged = Change<NodeEntry>;
/// What becomes of something that has a name of its own.
pub type SettingChanged<T> = (String, Change<T>);

/// What becomes of an inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Nodes that change.
    pub nodes: Vec<NodeChanged>,
    /// Groups that change, by name.
    pub groups: Vec<SettingChanged<Group>>,
    /// Networks of which something else is told, by `ADDRESS/PREFIX`.
    pub networks: Vec<SettingChanged<NetworkSettings>>,
    /// What else becomes of machines that are no nodes.
    #[serde(default)]
    pub unknown: Option<Change<UnknownPolicy>>,
    /// What is said and has no effect here, for people.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.groups.is_empty()
            && self.networks.is_empty()
            && self.unknown.is_none()
    }
}

/// An inventory that may be.
struct Wanted {
    nodes: BTreeMap<Mac, Node>,
    groups: BTreeMap<String, Group>,
    networks: BTreeMap<String, NetworkSettings>,
    unknown: Option<UnknownPolicy>,
}

impl NodeEntry {
    /// A node of which nothing else is said.
    pub fn new(mac: Mac, name: impl Into<String>) -> NodeEntry {
        NodeEntry {
            name: name.into(),
            mac,
            address: None,
            image: None,
            kernel_args: String::new(),
            loader: None,
            console: Vec::new(),
            groups: Vec::new(),
            power: None,
        }
    }

    fn of(node: &Node) -> NodeEntry {
        NodeEntry {
            name: node.name.clone(),
            mac: node.mac,
            address: node.address,
            image: node.image.as_ref().map(ToString::to_string),
            kernel_args: node.kernel_args.clone(),
            loader: node.loader,
            console: node.console.clone(),
            groups: node.groups.clone(),
            power: node.power.clone(),
        }
    }
}

impl Engine {
    /// The inventory as a file describes it.
    pub fn inventory(&self) -> Inventory {
        let nodes = self.nodes_by_name().into_iter();
        Inventory {
            nodes: nodes.map(NodeEntry::of).collect(),
            groups: self.groups.clone(),
            networks: self.networks.clone(),
            unknown: self.settings.unknown,
        }
    }

    /// Checks all of an inventory, then makes ours what it says. What it does not name stays as it
    /// is, or goes where `prune` says so. With `dry_run` nothing changes.
    pub(crate) fn apply_inventory(
        &mut self,
        turn: &mut Turn,
        inventory: Inventory,
        prune: bool,
        dry_run: bool,
        may_run: bool,
    ) -> Result<CommandReply, CommandError> {
        let notes = self.idle_addresses(&inventory);
        let wanted = self.wanted(turn, inventory, prune)?;
        if !may_run {
            self.check_powers(&wanted)?;
        }
        let changes = Changes {
            notes: notes.into_iter().collect(),
            ..self.changes(&wanted)
        };
        if !dry_run {
            self.carry_out(turn, wanted, &changes);
        }
        Ok(CommandReply::Applied(changes))
    }

    /// Nodes with a fixed address where another server gives them.
    fn idle_addresses(&self, inventory: &Inventory) -> Option<String> {
        const SHOWN_MAX: usize = 8;
        let given = |address: &Ipv4Addr| self.config.gives(*address);
        let idle = |node: &&NodeEntry| node.address.is_some_and(|it| !given(&it));
        let names = inventory
            .nodes
            .iter()
            .filter(idle)
            .map(|it| it.name.as_str());
        let names: Vec<&str> = names.collect();
        let shown = names[..names.len().min(SHOWN_MAX)].join(", ");
        let more = match names.len().saturating_sub(SHOWN_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!names.is_empty()).then(|| {
            format!(
                "address of {shown}{more}: another DHCP server gives the addresses here (--dhcp proxy or off), so that this one gives none; have that server give it (slate plan --as dhcpd|dnsmasq|kea prints the lines)"
            )
        })
    }

    /// What the daemon runs as root, root has said.
    fn check_powers(&self, wanted: &Wanted) -> Result<(), CommandError> {
        let known: BTreeSet<&String> = powers(&self.nodes, &self.groups).map(|it| it.1).collect();
        let new = powers(&wanted.nodes, &wanted.groups);
        let new = new.filter(|(_, power)| power::runs(power) && !known.contains(power));
        let problem = "only root may say by which command power is switched: sudo slate apply";
        let problems: Vec<_> = new.map(|(whose, _)| (whose, problem.to_owned())).collect();
        match problems.is_empty() {
            true => Ok(()),
            false => Err(CommandError::Invalid { problems }),
        }
    }

    fn changes(&self, wanted: &Wanted) -> Changes {
        let macs: BTreeSet<&Mac> = self.nodes.keys().chain(wanted.nodes.keys()).collect();
        let nodes = macs.into_iter().map(|mac| Change {
            before: self.nodes.get(mac).map(NodeEntry::of),
            after: wanted.nodes.get(mac).map(NodeEntry::of),
        });
        let unknown = Change {
            before: self.settings.unknown,
            after: wanted.unknown,
        };
        Changes {
            notes: Vec::new(),
            unknown: Some(unknown).filter(|it| it.before != it.after),
            nodes: nodes.filter(|it| it.before != it.after).collect(),
            groups: differences(&self.groups, &wanted.groups),
            networks: differences(&self.networks, &wanted.networks),
        }
    }

    fn carry_out(&mut self, turn: &mut Turn, mut wanted: Wanted, changes: &Changes) {
        // Groups first: what nodes boot hangs on them.
        for (name, change) in &changes.groups {
            turn.persist(match &change.after {
                Some(group) => Record::Group {
                    name: name.clone(),
                    group: Box::new(group.clone()),
                },
                None => Record::Removed {
                    key: format!("group/{name}"),
                },
            });
        }
        for (network, change) in &changes.networks {
            turn.persist(match &change.after {
                Some(settings) => Record::Network {
                    network: network.clone(),
                    settings: settings.clone(),
                },
                None => Record::Removed {
                    key: format!("network/{network}"),
                },
            });
        }
        if changes.unknown.is_some() {
            self.settings.unknown = wanted.unknown;
            turn.persist(Record::Settings(self.settings.clone()));
            // Whoever was seen under the former word asks again under this one.
            self.seen = SeenMachines::default();
        }
        self.groups = wanted.groups;
        self.networks = wanted.networks;
        let groups = changes.groups.iter().map(|(name, _)| name);
        let networks = changes.networks.iter().map(|(name, _)| name);
        for name in groups.chain(networks) {
            let name = name.clone();
            self.tell(turn, None, EventKind::GroupChanged { name });
        }
        for Change { before, after } in &changes.nodes {
            match after.as_ref().and_then(|it| wanted.nodes.remove(&it.mac)) {
                Some(node) => self.put_node(turn, node),
                None => before.iter().for_each(|it| self.forget(turn, it.mac)),
            }
        }
        if !changes.groups.is_empty() {
            self.prepare_all(turn);
        }
    }

    /// The inventory to be, or everything that is wrong with it.
    fn wanted(
        &self,
        turn: &Turn,
        inventory: Inventory,
        prune: bool,
    ) -> Result<Wanted, CommandError> {
        let mut problems = Vec::new();
        let groups = self.wanted_groups(inventory.groups, prune, &mut problems);
        let networks = self.wanted_networks(inventory.networks, prune, &mut problems);
        let nodes = self.wanted_nodes(turn, &inventory.nodes, prune, &groups, &mut problems);
        let unknown = match inventory.unknown {
            None if !prune => self.settings.unknown,
            said => said,
        };
        problems.extend(
            self.check_unknown(inventory.unknown)
                .map(|it| ("unknown".into(), it)),
        );
        if nodes.len() > MAX_NODES {
            return Err(CommandError::Full { max: MAX_NODES });
        }
        if problems.is_empty() {
            Ok(Wanted {
                nodes,
                groups,
                networks,
                unknown,
            })
        } else {
            Err(CommandError::Invalid { problems })
        }
    }

    /// Firmware that nobody here hears makes no node of its machine.
    fn check_unknown(&self, wanted: Option<UnknownPolicy>) -> Option<String> {
        let mut interfaces = self.config.interfaces.iter();
        let deaf = interfaces.all(|it| it.dhcp == DhcpMode::Off);
        (deaf && wanted == Some(UnknownPolicy::Auto)).then(|| {
            "expected \"approve\" or \"ignore\", got \"auto\": with --dhcp off the firmware of machines is not heard, so that none becomes a node by asking"
                .into()
        })
    }

    fn wanted_groups(
        &self,
        mut wanted: BTreeMap<String, Group>,
        prune: bool,
        problems: &mut Vec<(String, String)>,
    ) -> BTreeMap<String, Group> {
        for (name, group) in &wanted {
            let checked = check_group_name(name)
                .and_then(|()| group.check())
                .and_then(|()| self.check_references(group));
            problems.extend(
                checked
                    .err()
                    .map(|it| (format!("group {name}"), it.to_string())),
            );
        }
        if !prune {
            for (name, group) in &self.groups {
                wanted.entry(name.clone()).or_insert_with(|| group.clone());
            }
        }
        if wanted.len() > MAX_GROUPS {
            let problem = format!("expected at most {MAX_GROUPS} groups, got {}", wanted.len());
            problems.push(("groups".into(), problem));
        }
        wanted
    }

    /// What a group names must be there.
    fn check_references(&self, group: &Group) -> Result<(), CommandError> {
        if let Some(image) = &group.image {
            self.parse_image(&image.to_string())?;
        }
        let secrets = group.files.values().filter_map(|file| file.secret.as_ref());
        for name in secrets {
            if !self.secrets.contains_key(name) {
                return Err(CommandError::UnknownSecret { got: name.clone() });
            }
        }
        Ok(())
    }

    fn wanted_networks(
        &self,
        mut wanted: BTreeMap<String, NetworkSettings>,
        prune: bool,
        problems: &mut Vec<(String, String)>,
    ) -> BTreeMap<String, NetworkSettings> {
        let served: Vec<String> = self.config.interfaces.iter().map(|it| it.cidr()).collect();
        for (network, settings) in &wanted {
            let place = || format!("network {network}");
            if !served.contains(network) {
                let problem = format!("expected a network that is served, {}", served.join(" or "));
                problems.push((place(), problem));
            }
            problems.extend(settings.check().err().map(|it| (place(), it.to_string())));
        }
        if !prune {
            for (network, settings) in &self.networks {
                wanted
                    .entry(network.clone())
                    .or_insert_with(|| settings.clone());
            }
        }
        wanted
    }

    fn wanted_nodes(
        &self,
        turn: &Turn,
        entries: &[NodeEntry],
        prune: bool,
        groups: &BTreeMap<String, Group>,
        problems: &mut Vec<(String, String)>,
    ) -> BTreeMap<Mac, Node> {
        let mut wanted = BTreeMap::new();
        for entry in entries {
            let problem = match self.node_of(turn, entry) {
                Ok(node) => wanted
                    .insert(entry.mac, node)
                    .map(|other: Node| format!("{} has the same MAC, {}", other.name, entry.mac)),
                Err(error) => Some(error.to_string()),
            };
            problems.extend(problem.map(|problem| (entry.name.clone(), problem)));
        }
        if !prune {
            for (mac, node) in self.nodes.iter() {
                wanted.entry(*mac).or_insert_with(|| node.clone());
            }
        }
        for node in wanted.values() {
            let checked = Engine::check_groups(&node.groups, |name| groups.contains_key(name));
            problems.extend(checked.err().map(|it| (node.name.clone(), it.to_string())));
        }
        problems.extend(collisions(&wanted));
        wanted
    }

    /// The node that an entry describes, with what no entry says of it as it is.
    fn node_of(&self, turn: &Turn, entry: &NodeEntry) -> Result<Node, CommandError> {
        if !entry.mac.is_unicast() {
            return Err(CommandError::BadMac { got: entry.mac });
        }
        self.check_name(&entry.name)?;
        check_kernel_args(&entry.kernel_args)?;
        console::check(&entry.console)?;
        entry.power.as_deref().map_or(Ok(()), power::check)?;
        if let Some(address) = entry.address {
            self.check_address(turn, entry.mac, address)?;
        }
        let image: Option<ImageRef> = match &entry.image {
            Some(image) => Some(self.parse_image(image)?),
            None => None,
        };
        let known = self.nodes.get(&entry.mac);
        let same_image = known.is_some_and(|node| node.image == image);
        Ok(Node {
            mac: entry.mac,
            name: entry.name.clone(),
            address: entry.address,
            fallback: known.filter(|_| same_image).and_then(|it| it.fallback),
            image_set: match known {
                Some(node) if same_image => node.image_set,
                Some(_) => Some(turn.now),
                None => None,
            },
            image,
            kernel_args: entry.kernel_args.clone(),
            loader: entry.loader,
            console: entry.console.clone(),
            groups: entry.groups.clone(),
            power: entry.power.clone(),
            // Whoever says that it boots another image means that.
            pinned: known.filter(|_| same_image).and_then(|it| it.pinned),
            trial: known.filter(|_| same_image).and_then(|it| it.trial.clone()),
            once: known.and_then(|node| node.once.clone()),
        })
    }
}

/// What drives the power of nodes and groups, and whose word it is.
fn powers<'a>(
    nodes: &'a BTreeMap<Mac, Node>,
    groups: &'a BTreeMap<String, Group>,
) -> impl Iterator<Item = (String, &'a String)> {
    let of_nodes = nodes
        .values()
        .filter_map(|node| Some((node.name.clone(), node.power.as_ref()?)));
    let of_groups = groups
        .iter()
        .filter_map(|(name, group)| Some((format!("group {name}"), group.power.as_ref()?)));
    of_groups.chain(of_nodes)
}

/// What differs between two tables.
fn differences<T: Clone + PartialEq>(
    before: &BTreeMap<String, T>,
    after: &BTreeMap<String, T>,
) -> Vec<SettingChanged<T>> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let change = |name: &&String| Change {
        before: before.get(*name).cloned(),
        after: after.get(*name).cloned(),
    };
    names
        .into_iter()
        .map(|name| (name.clone(), change(&name)))
        .filter(|(_, change)| change.before != change.after)
        .collect()
}

/// Names and addresses that several nodes would have.
fn collisions(nodes: &BTreeMap<Mac, Node>) -> Vec<(String, String)> {
    let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    let mut found = Vec::new();
    for node in nodes.values() {
        if let Some(other) = names.insert(node.name.to_ascii_lowercase(), node.mac) {
            let problem = format!("{other} and {} would both have the name", node.mac);
            found.push((node.name.clone(), problem));
        }
        if let Some(address) = node.address
            && let Some(other) = addresses.insert(address, &node.name)
        {
            found.push((
                node.name.clone(),
                format!("{other} would also have {address}"),
            ));
        }
    }
    found
}
