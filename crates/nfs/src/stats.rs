//! Counters: calls by operation, in total and for each client address.

use std::net::IpAddr;

/// A snapshot of the counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Of all clients since the server started.
    pub total: Counters,
    /// Of each client address that is connected or was not long ago.
    pub clients: Vec<ClientStats>,
    /// Open connections.
    pub connections: usize,
    /// Calls of exports' handles that were answered with ESTALE.
    pub stale: u64,
}

/// The counters of one client address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStats {
    /// The address.
    pub address: IpAddr,
    /// Its open connections.
    pub connections: usize,
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
    /// Operations by name (`GETATTR`, `READ`), those that occurred only.
    pub operations: Vec<(&'static str, u64)>,
}
