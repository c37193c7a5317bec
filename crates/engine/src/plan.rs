//! The one question that joins the network to policy: for this MAC, what is the boot plan?

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use wire::digest::Digest;
use wire::identity::BootId;
use wire::mac::Mac;

/// What a node boots, and how. The command line holds the boot's token: not for logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPlan {
    /// The node.
    #[serde(with = "crate::text")]
    pub mac: Mac,
    /// Its name.
    pub node: String,
    /// The server's address on the node's network.
    pub server: Ipv4Addr,
    /// The image version.
    #[serde(with = "crate::text")]
    pub digest: Digest,
    /// The boot that this plan starts.
    #[serde(with = "crate::text")]
    pub boot: BootId,
    /// Path of the kernel over TFTP and HTTP, without a leading slash: `boot/<digest>/vmlinuz`.
    pub kernel: String,
    /// Path of the initramfs, alike.
    pub initrd: String,
    /// The kernel command line.
    pub command_line: String,
    /// The node's consoles, for loaders that can use the same.
    #[serde(default)]
    pub consoles: Vec<String>,
}
