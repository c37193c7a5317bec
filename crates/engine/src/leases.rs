//! Addresses and who has them. One address has one machine, one machine one address a network.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use wire::mac::Mac;

use crate::config::Interface;
use crate::record::Lease;
use crate::time::Timestamp;

/// Most addresses looked at in search of a free one.
const SEARCH_MAX: u32 = 1 << 17;

/// Every lease, expired ones included: a machine that comes back gets its address again while
/// nobody else needed it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases {
    by_address: BTreeMap<Ipv4Addr, Lease>,
    by_mac: BTreeMap<Mac, Ipv4Addr>,
    /// How often somebody came to another address, or lost one.
    moves: u64,
}

impl Leases {
    /// Stores a lease; the address's former owner and the machine's former address lose theirs.
    pub(crate) fn put(&mut self, lease: Lease) {
        if lease.mac.is_some() && self.owner(lease.address) == lease.mac {
            self.by_address.insert(lease.address, lease);
            return;
        }
        self.moves += 1;
        self.remove(lease.address);
        if let Some(mac) = lease.mac
            && let Some(former) = self.by_mac.insert(mac, lease.address)
        {
            self.by_address.remove(&former);
        }
        self.by_address.insert(lease.address, lease);
    }

    pub(crate) fn remove(&mut self, address: Ipv4Addr) -> Option<Lease> {
        let lease = self.by_address.remove(&address)?;
        self.moves += 1;
        if let Some(mac) = lease.mac {
            self.by_mac.remove(&mac);
        }
        Some(lease)
    }

    /// As long as this stays, everybody has the address that they had.
    pub(crate) fn moves(&self) -> u64 {
        self.moves
    }

    pub(crate) fn get(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.by_address.get(&address)
    }

    pub(crate) fn owner(&self, address: Ipv4Addr) -> Option<Mac> {
        self.by_address.get(&address)?.mac
    }

    pub(crate) fn address_of(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).copied()
    }

    pub(crate) fn lease_of(&self, mac: Mac) -> Option<&Lease> {
        self.get(self.address_of(mac)?)
    }

    /// Whether the address is promised to somebody else than `mac`.
    pub(crate) fn is_taken(&self, address: Ipv4Addr, mac: Mac, now: Timestamp) -> bool {
        let held = |lease: &Lease| lease.mac != Some(mac) && is_live(lease, now);
        self.get(address).is_some_and(held)
    }

    /// A free address of the pool for `mac`: the same one each time as long as it is free, so
    /// that machines keep theirs even where the leases are lost. Never used addresses go first.
    pub(crate) fn find_free(
        &self,
        interface: &Interface,
        mac: Mac,
        now: Timestamp,
        reserved: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let (first, last) = pool(interface);
        let size = last.checked_sub(first)?.checked_add(1)?;
        let start = spread(mac) % size;
        let candidates = || {
            (0..size.min(SEARCH_MAX))
                .map(move |step| Ipv4Addr::from(first + (start + step) % size))
                .filter(|address| interface.is_assignable(*address))
        };
        // Whether it is reserved takes longest to find out, so comes last.
        candidates()
            .find(|it| self.get(*it).is_none() && !reserved(*it))
            .or_else(|| candidates().find(|it| !self.is_taken(*it, mac, now) && !reserved(*it)))
    }
}

/// First and last address of the pool.
pub(crate) fn pool(interface: &Interface) -> (u32, u32) {
    match interface.pool {
        Some((first, last)) => (first.into(), last.into()),
        None => (
            u32::from(interface.network()) + 1,
            u32::from(interface.broadcast()).saturating_sub(1),
        ),
    }
}

/// Whether the promise still holds.
pub(crate) fn is_live(lease: &Lease, now: Timestamp) -> bool {
    lease.expires.is_none_or(|expires| expires > now)
}

/// FNV-1a: spreads neighbouring MACs over the pool.
fn spread(mac: Mac) -> u32 {
    mac.0.iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}
