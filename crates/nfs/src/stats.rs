//! Counters: calls by operation, in total and for each client address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::v4::ops::{OPERATIONS, operation_name};

/// Addresses whose counters are kept apart; those of the rest are in the total only.
const MAX_CLIENTS: usize = 16384;

/// A snapshot of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Of all clients since the server started.
    pub total: Counters,
    /// Of each client address that is connected or was not long ago.
    pub clients: Vec<ClientStats>,
    /// Open connections.
    pub connections: usize,
}

/// The counters of one client address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStats {
    /// The address.
    pub address: IpAddr,
    /// Its open connections.
    pub connections: usize,
    /// The trees that its open connections have used, at most 256 of each.
    pub trees: Vec<[u8; 16]>,
    /// Its counters.
    pub counters: Counters,
}

/// Counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// RPC calls.
    pub rpcs: u64,
    /// Bytes of file content sent.
    pub read_bytes: u64,
    /// Handles that were answered with ESTALE.
    pub stale: u64,
    /// Operations by name (`GETATTR`, `READ`), those that occurred only.
    pub operations: Vec<(&'static str, u64)>,
}

/// The live counters of one client address. Every thread that serves it counts here.
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    pub(crate) connections: AtomicUsize,
    pub(crate) tally: Tally,
    /// The trees that its open connections have used, and how many of them have.
    trees: Mutex<Vec<([u8; 16], usize)>>,
}

impl Client {
    /// A connection uses a tree for the first time; whether it is the only one that does.
    pub(crate) fn begin_use(&self, tree: [u8; 16]) -> bool {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        match trees.iter_mut().find(|(id, _)| *id == tree) {
            Some((_, connections)) => {
                *connections += 1;
                false
            }
            None => {
                trees.push((tree, 1));
                true
            }
        }
    }

    /// A connection that has used a tree ends.
    pub(crate) fn end_use(&self, tree: [u8; 16]) {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = trees.iter().position(|(id, _)| *id == tree) {
            trees[at].1 -= 1;
            if trees[at].1 == 0 {
                trees.swap_remove(at);
            }
        }
    }

    fn trees(&self) -> Vec<[u8; 16]> {
        let trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        trees.iter().map(|(id, _)| *id).collect()
    }
}

/// Live counters.
pub(crate) struct Tally {
    pub(crate) rpcs: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) stale: AtomicU64,
    operations: [AtomicU64; OPERATIONS],
}

impl Tally {
    fn new() -> Tally {
        Tally {
            rpcs: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            operations: [const { AtomicU64::new(0) }; OPERATIONS],
        }
    }

    #[inline]
    pub(crate) fn operation(&self, operation: u32) {
        if let Some(counter) = self.operations.get(operation as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts bytes of file content that were sent.
    #[inline]
    pub(crate) fn read(&self, bytes: u32) {
        self.read_bytes.fetch_add(bytes.into(), Ordering::Relaxed);
    }

    fn add(&self, other: &Tally) {
        let pairs = self.operations.iter().zip(&other.operations);
        let pairs = pairs.chain([
            (&self.rpcs, &other.rpcs),
            (&self.read_bytes, &other.read_bytes),
            (&self.stale, &other.stale),
        ]);
        for (sum, part) in pairs {
            sum.fetch_add(part.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn counters(&self) -> Counters {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let operations = (0..)
            .zip(&self.operations)
            .map(|(number, counter)| (operation_name(number), count(counter)));
        Counters {
            rpcs: count(&self.rpcs),
            read_bytes: count(&self.read_bytes),
            stale: count(&self.stale),
            operations: operations.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// The counters of all clients.
pub(crate) struct Registry {
    clients: Mutex<HashMap<IpAddr, Arc<Client>>>,
    /// What clients counted that are forgotten.
    past: Tally,
    pub(crate) connections: AtomicUsize,
}

impl Registry {
    pub(crate) fn new() -> Registry {
        Registry {
            clients: Mutex::new(HashMap::new()),
            past: Tally::new(),
            connections: AtomicUsize::new(0),
        }
    }

    /// The counters of `address`, for one more connection of it.
    pub(crate) fn connect(&self, address: IpAddr) -> Arc<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&address) {
            self.forget(&mut clients);
        }
        let client = clients.entry(address).or_insert_with(|| {
            Arc::new(Client {
                address,
                connections: AtomicUsize::new(0),
                tally: Tally::new(),
                trees: Mutex::new(Vec::new()),
            })
        });
        client.connections.fetch_add(1, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        Arc::clone(client)
    }

    /// Connections of `address`.
    pub(crate) fn of(&self, address: IpAddr) -> usize {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients
            .get(&address)
            .map_or(0, |client| client.connections.load(Ordering::Relaxed))
    }

    /// Ends a connection; true if it was the client's last.
    pub(crate) fn disconnect(&self, client: &Client) -> bool {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        client.connections.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// Forgets clients that are not connected, but keeps what they counted.
    fn forget(&self, clients: &mut HashMap<IpAddr, Arc<Client>>) {
        clients.retain(|_, client| {
            let keep = client.connections.load(Ordering::Relaxed) > 0;
            if !keep {
                self.past.add(&client.tally);
            }
            keep
        });
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let total = Tally::new();
        total.add(&self.past);
        for client in clients.values() {
            total.add(&client.tally);
        }
        let mut rows: Vec<ClientStats> = clients
            .values()
            .map(|client| ClientStats {
                address: client.address,
                connections: client.connections.load(Ordering::Relaxed),
                trees: client.trees(),
                counters: client.tally.counters(),
            })
            .collect();
        rows.sort_by_key(|row| row.address);
        Stats {
            total: total.counters(),
            clients: rows,
            connections: self.connections.load(Ordering::Relaxed),
        }
    }
}
