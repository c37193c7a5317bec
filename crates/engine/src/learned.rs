//! Addresses of nodes where another server gives them: learned from what is said on the wire, one
//! for each node, forgotten when nothing is heard of it for long.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use wire::mac::Mac;

use crate::event::EventKind;
use crate::record::{Learned, Record};
use crate::time::Timestamp;
use crate::{Engine, Turn};

/// How long an address counts without a further sign of it. A node that uses NFS keeps its own.
const LEARNED_FOR: Duration = Duration::from_secs(24 * 3600);

/// How sure it is that a machine has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// It says so: enough where nobody else has it.
    Claim,
    /// Its server gave it, or the node proved itself by its boot's token.
    Proof,
}

/// What was learned: one address a node, one node an address.
#[derive(Clone, Debug, Default)]
pub(crate) struct LearnedAddresses {
    by_mac: BTreeMap<Mac, Learned>,
    by_address: BTreeMap<Ipv4Addr, Mac>,
    /// How often somebody came to another address, or lost one.
    moves: u64,
    /// Nothing ends before this.
    quiet_until: Timestamp,
}

impl LearnedAddresses {
    /// Stores an address; its former owner and the node's former address lose theirs.
    pub(crate) fn put(&mut self, learned: Learned) {
        self.quiet_until = self.quiet_until.min(learned.until);
        if self.owner(learned.address) == Some(learned.mac) {
            self.by_mac.insert(learned.mac, learned);
            return;
        }
        self.moves += 1;
        if let Some(owner) = self.owner(learned.address) {
            self.remove(owner);
        }
        self.remove(learned.mac);
        self.by_address.insert(learned.address, learned.mac);
        self.by_mac.insert(learned.mac, learned);
    }

    pub(crate) fn remove(&mut self, mac: Mac) -> Option<Learned> {
        let learned = self.by_mac.remove(&mac)?;
        self.moves += 1;
        self.by_address.remove(&learned.address);
        Some(learned)
    }

    /// As long as this stays, everybody has the address that they had.
    pub(crate) fn moves(&self) -> u64 {
        self.moves
    }

    pub(crate) fn owner(&self, address: Ipv4Addr) -> Option<Mac> {
        self.by_address.get(&address).copied()
    }

    pub(crate) fn get(&self, mac: Mac) -> Option<&Learned> {
        self.by_mac.get(&mac)
    }

    /// Those that have ended.
    fn ended(&mut self, now: Timestamp) -> Vec<Learned> {
        if now < self.quiet_until {
            return Vec::new();
        }
        let (ended, others): (Vec<_>, Vec<_>) =
            self.by_mac.values().partition(|it| it.until <= now);
        let next = others.iter().map(|it| it.until).min();
        self.quiet_until = next.unwrap_or(now + LEARNED_FOR);
        ended.into_iter().cloned().collect()
    }
}

impl Engine {
    /// A machine has an address that is not ours to give.
    pub(crate) fn learn(&mut self, turn: &mut Turn, mac: Mac, address: Ipv4Addr, by: Evidence) {
        if self.config.gives(address) || !self.is_host(address) {
            return;
        }
        let other = self.learned.owner(address).filter(|owner| *owner != mac);
        match other {
            Some(_) if by == Evidence::Claim => return,
            Some(other) => self.unlearn(turn, other),
            None => {}
        }
        // Of others it is enough to know that the address is no node's.
        if !self.nodes.contains_key(&mac) {
            return;
        }
        let known = self.learned.get(mac).filter(|it| it.address == address);
        let is_known = known.is_some();
        if known.is_some_and(|it| turn.now + LEARNED_FOR / 2 < it.until) {
            return;
        }
        self.note_address(turn, mac, address);
        if !is_known {
            self.tell(turn, Some(mac), EventKind::AddressSeen { address });
        }
    }

    fn note_address(&mut self, turn: &mut Turn, mac: Mac, address: Ipv4Addr) {
        let learned = Learned {
            mac,
            address,
            until: turn.now + LEARNED_FOR,
        };
        turn.persist(Record::Learned(learned.clone()));
        self.learned.put(learned);
    }

    /// A machine has no address that is known.
    pub(crate) fn unlearn(&mut self, turn: &mut Turn, mac: Mac) {
        if let Some(learned) = self.learned.remove(mac) {
            let key = Record::Learned(learned).key();
            turn.persist(Record::Removed { key });
        }
    }

    /// Forgets addresses of which nothing was heard for long.
    pub(crate) fn forget_silent(&mut self, turn: &mut Turn) {
        for learned in self.learned.ended(turn.now) {
            let (mac, address) = (learned.mac, learned.address);
            if self.nfs.get(&address).is_some_and(|client| client.alive) {
                self.note_address(turn, mac, address);
            } else {
                self.unlearn(turn, mac);
            }
        }
    }

    /// A node's address by another server's word.
    pub(crate) fn learned_address(&self, mac: Mac) -> Option<Ipv4Addr> {
        let address = self.learned.get(mac)?.address;
        (!self.config.gives(address)).then_some(address)
    }

    /// Whether a machine on a network may have the address.
    fn is_host(&self, address: Ipv4Addr) -> bool {
        let no_host = address.is_unspecified()
            || address.is_broadcast()
            || address.is_multicast()
            || address.is_loopback();
        !no_host && !self.is_own(address)
    }

    /// Whether it is an address of this server.
    pub(crate) fn is_own(&self, address: Ipv4Addr) -> bool {
        let interfaces = &self.config.interfaces;
        interfaces.iter().any(|it| it.address == address)
    }
}
