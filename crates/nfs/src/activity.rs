//! What the server tells its owner while it runs.

use std::net::IpAddr;

/// Receives what happens, on the server's own threads: it must return at once.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn observe(&self, activity: Activity);
}

/// Something that happened to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// The first connection of this address.
    Connected {
        /// The client.
        address: IpAddr,
    },
    /// The first use of an exported tree by an open connection of this address: it has mounted it, or
    /// goes on using it after a restart of the server.
    Mounted {
        /// The client.
        address: IpAddr,
        /// The tree.
        id: [u8; 16],
        /// A path under which the tree is exported.
        path: String,
    },
    /// The last connection of this address ended. A client that only reconnects is back at once.
    Gone {
        /// The client.
        address: IpAddr,
    },
    /// A handle of a tree that is not exported (any more): the client got ESTALE. Told once for
    /// each connection and tree.
    Stale {
        /// The client.
        address: IpAddr,
        /// The tree.
        id: [u8; 16],
    },
    /// A tree could not give the content of one of its files: the client got an I/O error. Told once
    /// for each connection and tree.
    Damaged {
        /// The client.
        address: IpAddr,
        /// The tree.
        id: [u8; 16],
    },
    /// Machines behind one address use the same client name. They are told apart no better than by
    /// that, but are not made to fight: the server keeps the sessions of all of them.
    Collision {
        /// The clients' common address.
        address: IpAddr,
        /// The name.
        owner: Vec<u8>,
    },
}
