//! The inventory: nodes by MAC, and whose for good an address is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Deref;

use wire::mac::Mac;

use crate::record::Node;

/// Every node. Reads as a map by MAC; changes go through it, so that addresses are found as well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    by_mac: BTreeMap<Mac, Node>,
    /// The fixed addresses with their nodes: asked for with every message of a machine.
    fixed: BTreeSet<(Ipv4Addr, Mac)>,
}

impl Nodes {
    /// Takes a node in; the one that had its MAC before.
    pub(crate) fn insert(&mut self, node: Node) -> Option<Node> {
        let former = self.remove(node.mac);
        self.fixed.extend(node.address.map(|it| (it, node.mac)));
        self.by_mac.insert(node.mac, node);
        former
    }

    pub(crate) fn remove(&mut self, mac: Mac) -> Option<Node> {
        let node = self.by_mac.remove(&mac)?;
        if let Some(address) = node.address {
            self.fixed.remove(&(address, mac));
        }
        Some(node)
    }

    /// Changes a node; what `change` says, and the node as it is now.
    pub(crate) fn change<T>(
        &mut self,
        mac: Mac,
        change: impl FnOnce(&mut Node) -> T,
    ) -> Option<(T, &Node)> {
        let mut node = self.remove(mac)?;
        let said = change(&mut node);
        self.insert(node);
        Some((said, &self.by_mac[&mac]))
    }

    /// The nodes that have an address for good; one, unless the inventory is at odds with itself.
    pub(crate) fn fixed_at(&self, address: Ipv4Addr) -> impl Iterator<Item = Mac> {
        let (first, last) = (Mac([0; 6]), Mac([u8::MAX; 6]));
        let found = self.fixed.range((address, first)..=(address, last));
        found.map(|(_, mac)| *mac)
    }
}

impl Deref for Nodes {
    type Target = BTreeMap<Mac, Node>;

    fn deref(&self) -> &Self::Target {
        &self.by_mac
    }
}
