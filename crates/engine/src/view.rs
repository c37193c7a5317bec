//! Nodes as users see them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use wire::digest::Digest;
use wire::identity::BootId;
use wire::mac::Mac;
use wire::stage::Stage;

use crate::config::UefiLoader;
use crate::image::ImageRef;
use crate::io::NfsCounters;
use crate::record::{Failure, StageAt};
use crate::time::Timestamp;

/// A node, its settings and its last boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its Ethernet address.
    #[serde(with = "crate::text")]
    pub mac: Mac,
    /// Its name.
    pub name: String,
    /// The address that it has or will get: as another server gave it, else fixed, else leased.
    pub address: Option<Ipv4Addr>,
    /// Whether the address is the one fixed for it.
    pub address_is_fixed: bool,
    /// The image set for it; `None` = the default.
    #[serde(with = "crate::text::option")]
    pub image: Option<ImageRef>,
    /// The image of its next boot only.
    #[serde(with = "crate::text::option")]
    pub once: Option<ImageRef>,
    /// The version that a rollout has brought it to, until its image names that.
    #[serde(with = "crate::text::option")]
    pub pinned: Option<Digest>,
    /// Its groups, those that count first first.
    pub groups: Vec<String>,
    /// The version that its next boot takes, if its image exists.
    #[serde(with = "crate::text::option")]
    pub next_image: Option<Digest>,
    /// The version of its image that failed here, so that the next boot takes another one.
    #[serde(with = "crate::text::option")]
    pub failed_image: Option<Digest>,
    /// Arguments added to its kernel command line.
    pub kernel_args: String,
    /// What it loads first where it is UEFI, by its own setting.
    pub loader: Option<UefiLoader>,
    /// Its consoles, by its own setting.
    pub console: Vec<String>,
    /// Its firmware, as it named itself last; `None` = not seen yet.
    pub firmware: Option<String>,
    /// Its newest boot that got anywhere.
    pub boot: Option<BootView>,
    /// Boots before that, newest first.
    pub former_boots: Vec<BootView>,
    /// When its agent last asked for orders.
    pub polled: Option<Timestamp>,
    /// Modules that its initramfs loaded for its devices when it last told.
    pub drivers: BTreeSet<String>,
    /// What it did over NFS since the daemon started.
    pub nfs: Option<NfsCounters>,
    /// Whether it uses NFS now.
    pub nfs_alive: bool,
}

/// One boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootView {
    /// Its id.
    #[serde(with = "crate::text")]
    pub id: BootId,
    /// When it began.
    pub started: Timestamp,
    /// The version that it boots, once its configuration was asked for.
    #[serde(with = "crate::text::option")]
    pub image: Option<Digest>,
    /// The furthest stage reached.
    #[serde(with = "crate::text::option")]
    pub stage: Option<Stage>,
    /// When each stage was first reached, in order of arrival.
    pub timeline: Vec<StageAt>,
    /// Where and why it failed, until it moves on.
    pub failure: Option<Failure>,
    /// What its kernel said when it was in trouble.
    pub kernel: Vec<String>,
    /// Bytes of loaders and kernel sent to it.
    pub loader_bytes: u64,
    /// Bytes of initramfs sent to it.
    pub initrd_bytes: u64,
}

/// A secret, without what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretView {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: usize,
    /// The groups whose nodes are given it.
    pub groups: Vec<String>,
}

/// A machine that asked to boot and is no node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenView {
    /// Its Ethernet address.
    #[serde(with = "crate::text")]
    pub mac: Mac,
    /// Its firmware, as it named itself.
    pub client: String,
    /// When it asked first.
    pub first: Timestamp,
    /// When it asked last.
    pub last: Timestamp,
}
