//! What the daemon tells whoever started it, in the order it happens.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::journal::JournalEntry;
use crate::options::{DhcpMode, UnknownPolicy};

/// One thing to show.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Every socket is open and NFS answers.
    Ready(Listening),
    /// Work on an image's boot files.
    Content {
        /// `NAME:TAG` or a digest.
        image: String,
        /// What is being done, or what went wrong.
        what: ContentProgress,
    },
    /// What happened on nodes or on the network, in order.
    Events(Vec<Arc<JournalEntry>>),
    /// The daemon stops; these nodes still have their root mounted from it.
    Stopping {
        /// Names of the live nodes.
        live: Vec<String>,
    },
}

/// Where the daemon listens.
#[derive(Debug, Clone)]
pub struct Listening {
    /// Served interfaces with their addresses.
    pub interfaces: Vec<(String, Ipv4Addr)>,
    /// What DHCP is spoken there.
    pub dhcp: DhcpMode,
    /// What becomes of machines that are no nodes.
    pub unknown: UnknownPolicy,
    /// TFTP port, UDP.
    pub tftp_port: u16,
    /// HTTP port, TCP; beacons over UDP.
    pub http_port: u16,
    /// HTTPS port, TCP; `None` = not served.
    pub https_port: Option<u16>,
    /// NFS port, TCP; may differ from the one asked for.
    pub nfs_port: u16,
    /// The NFS port asked for, where that one was taken.
    pub nfs_port_taken: Option<u16>,
}

/// A step in making an image's boot files ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentProgress {
    /// The initramfs is being built.
    Building,
    /// Kernel, initramfs and loaders are ready to be sent.
    Ready {
        /// Size of the initramfs.
        initrd_bytes: u64,
        /// How long it took.
        took_ms: u64,
    },
    /// The image cannot boot as it is.
    Failed {
        /// Why, with what to do next.
        cause: String,
    },
}
