//! Makes the inventory what a file says, all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use wire::mac::Mac;

use crate::command::{CommandError, CommandReply};
use crate::commands::check_kernel_args;
use crate::image::ImageRef;
use crate::record::Node;
use crate::{Engine, MAX_NODES, Turn};

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
}

/// What becomes of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The node as it was; `None` = it is new.
    pub before: Option<NodeEntry>,
    /// The node as it is then; `None` = it is forgotten.
    pub after: Option<NodeEntry>,
}

impl NodeEntry {
    fn of(node: &Node) -> NodeEntry {
        NodeEntry {
            name: node.name.clone(),
            mac: node.mac,
            address: node.address,
            image: node.image.as_ref().map(ToString::to_string),
            kernel_args: node.kernel_args.clone(),
        }
    }
}

impl Engine {
    /// The inventory as entries, in order of their names.
    pub fn entries(&self) -> Vec<NodeEntry> {
        self.nodes_by_name()
            .into_iter()
            .map(NodeEntry::of)
            .collect()
    }

    /// Checks all entries, then makes the inventory what they say. Nodes that no entry names stay
    /// as they are, or go where `prune` says so. With `dry_run` nothing changes.
    pub(crate) fn apply_entries(
        &mut self,
        turn: &mut Turn,
        entries: &[NodeEntry],
        prune: bool,
        dry_run: bool,
    ) -> Result<CommandReply, CommandError> {
        let mut wanted = self.wanted(turn, entries, prune)?;
        let macs: BTreeSet<Mac> = self.nodes.keys().chain(wanted.keys()).copied().collect();
        let entry = |nodes: &BTreeMap<Mac, Node>, mac| nodes.get(mac).map(NodeEntry::of);
        let changes: Vec<Change> = macs
            .iter()
            .map(|mac| Change {
                before: entry(&self.nodes, mac),
                after: entry(&wanted, mac),
            })
            .filter(|change| change.before != change.after)
            .collect();
        if !dry_run {
            for Change { before, after } in &changes {
                match after.as_ref().and_then(|it| wanted.remove(&it.mac)) {
                    Some(node) => self.put_node(turn, node),
                    None => before.iter().for_each(|it| self.forget(turn, it.mac)),
                }
            }
        }
        Ok(CommandReply::Applied { changes })
    }

    /// The inventory to be, or everything that is wrong with it.
    fn wanted(
        &self,
        turn: &Turn,
        entries: &[NodeEntry],
        prune: bool,
    ) -> Result<BTreeMap<Mac, Node>, CommandError> {
        let mut problems = Vec::new();
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
            for (mac, node) in &self.nodes {
                wanted.entry(*mac).or_insert_with(|| node.clone());
            }
        }
        problems.extend(collisions(&wanted));
        if wanted.len() > MAX_NODES {
            return Err(CommandError::Full { max: MAX_NODES });
        }
        if problems.is_empty() {
            Ok(wanted)
        } else {
            Err(CommandError::Invalid { problems })
        }
    }

    /// The node that an entry describes, with what no entry says of it as it is.
    fn node_of(&self, turn: &Turn, entry: &NodeEntry) -> Result<Node, CommandError> {
        if !entry.mac.is_unicast() {
            return Err(CommandError::BadMac { got: entry.mac });
        }
        self.check_name(&entry.name)?;
        check_kernel_args(&entry.kernel_args)?;
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
        })
    }
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
