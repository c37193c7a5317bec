//! What survives a restart. Every record has a key; the newest record under a key counts, and a
//! [`Record::Removed`] deletes it. Handing the surviving records to [`crate::Engine::new`], in any
//! order, restores the engine.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize, Serializer};
use wire::digest::Digest;
use wire::identity::{BootId, Token};
use wire::mac::Mac;
use wire::stage::Stage;

use crate::config::{UefiLoader, UnknownPolicy};
use crate::group::{Group, NetworkSettings};
use crate::image::ImageRef;
use crate::rollout::{Rollout, Trial};
use crate::time::Timestamp;

/// A durable fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// An address and who has it. Keyed by address.
    Lease(Lease),
    /// A node of the inventory. Keyed by MAC.
    Node(Box<Node>),
    /// A boot and its secret token. Keyed by boot id.
    Boot(Boot),
    /// The address of a node by another server's word. Keyed by MAC.
    Learned(Learned),
    /// Settings changed by commands.
    Settings(Settings),
    /// A group of nodes. Keyed by name.
    Group {
        /// Its name.
        name: String,
        /// What its nodes are given.
        group: Box<Group>,
    },
    /// What is told of a network. Keyed by network.
    Network {
        /// The network, `ADDRESS/PREFIX`.
        network: String,
        /// What is told.
        settings: NetworkSettings,
    },
    /// A rollout. Keyed by id.
    Rollout(Box<Rollout>),
    /// A secret. Keyed by name.
    Secret {
        /// Its name.
        name: String,
        /// Its content.
        content: Secret,
    },
    /// The record under this key is gone. Never kept, never restored.
    Removed {
        /// The key, as [`Record::key`] gave it.
        key: String,
    },
}

impl Record {
    /// The key under which the newest record counts: `lease/ADDRESS`, `node/MAC`, `boot/ID`,
    /// `learned/MAC`, `settings`, `group/NAME`, `network/ADDRESS/PREFIX`, `secret/NAME`,
    /// `rollout/ID`.
    pub fn key(&self) -> String {
        match self {
            Record::Lease(lease) => format!("lease/{}", lease.address),
            Record::Node(node) => format!("node/{}", node.mac),
            Record::Boot(boot) => format!("boot/{}", boot.id),
            Record::Learned(learned) => format!("learned/{}", learned.mac),
            Record::Settings(_) => "settings".into(),
            Record::Group { name, .. } => format!("group/{name}"),
            Record::Rollout(rollout) => format!("rollout/{}", rollout.id),
            Record::Network { network, .. } => format!("network/{network}"),
            Record::Secret { name, .. } => format!("secret/{name}"),
            Record::Removed { key } => key.clone(),
        }
    }
}

/// An address promised to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// The machine; `None` = nobody: a machine declined it because somebody else answers there.
    #[serde(with = "crate::text::option")]
    pub mac: Option<Mac>,
    /// When the promise ends; `None` = never.
    pub expires: Option<Timestamp>,
}

/// An address that a node has by another server's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// The node.
    #[serde(with = "crate::text")]
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// When it no longer counts, unless something is heard of it.
    pub until: Timestamp,
}

/// A node of the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The node's Ethernet address.
    #[serde(with = "crate::text")]
    pub mac: Mac,
    /// Its host name: distinct, a valid DNS label.
    pub name: String,
    /// Its fixed address; `None` = from the pool.
    pub address: Option<Ipv4Addr>,
    /// Its image; `None` = the default.
    #[serde(with = "crate::text::option")]
    pub image: Option<ImageRef>,
    /// Arguments added to its kernel command line.
    pub kernel_args: String,
    /// What it loads first where it is UEFI; `None` = as its groups say.
    #[serde(default)]
    pub loader: Option<UefiLoader>,
    /// Its consoles, as the kernel names them; none = as its groups say.
    #[serde(default)]
    pub console: Vec<String>,
    /// Its groups, those that count first first.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What drives its power; `None` = what its groups say.
    #[serde(default)]
    pub power: Option<String>,
    /// The image of its next boot only.
    #[serde(default, with = "crate::text::option")]
    pub once: Option<ImageRef>,
    /// The version that it boots whatever its image names: a rollout's word.
    #[serde(default, with = "crate::text::option")]
    pub pinned: Option<Digest>,
    /// Its part in a rollout.
    #[serde(default)]
    pub trial: Option<Box<Trial>>,
    /// The version that it boots instead of one that failed.
    #[serde(default)]
    pub fallback: Option<Fallback>,
    /// When its image was set last; boots that failed before do not speak against a version.
    #[serde(default)]
    pub image_set: Option<Timestamp>,
}

/// A version that does not come up on a node, and the one that it boots instead. Counts as long as
/// the node's image names the version that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The version that failed.
    #[serde(with = "crate::text")]
    pub failed: Digest,
    /// The last version that came up on the node.
    #[serde(with = "crate::text")]
    pub instead: Digest,
}

/// One boot of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The boot's id, on the kernel command line and in beacons.
    #[serde(with = "crate::text")]
    pub id: BootId,
    /// The node.
    #[serde(with = "crate::text")]
    pub mac: Mac,
    /// The secret that authenticates beacons and the identity exchange.
    #[serde(
        serialize_with = "token_hex",
        deserialize_with = "crate::text::deserialize"
    )]
    pub token: Token,
    /// The secret of the orders that it may be given; boots of an earlier version have none.
    #[serde(default, with = "crate::text::key")]
    pub control_key: Option<[u8; 32]>,
    /// The image that it takes whatever its node's is.
    #[serde(default, with = "crate::text::option")]
    pub once: Option<ImageRef>,
    /// When it was minted.
    pub started: Timestamp,
    /// The image version of its plan, once a plan was made.
    #[serde(with = "crate::text::option")]
    pub image: Option<Digest>,
    /// The X25519 key to which the identity was given; another one is refused.
    pub identity_key: Option<[u8; 32]>,
    /// When each stage was first reached, in order of arrival.
    pub timeline: Vec<StageAt>,
    /// Where and why it failed last, cleared by progress.
    pub failure: Option<Failure>,
    /// Highest beacon sequence number seen.
    pub last_seq: u32,
    /// Bytes of loaders (shim, GRUB, its configuration, kernel) sent.
    pub loader_bytes: u64,
    /// Bytes of initramfs sent.
    pub initrd_bytes: u64,
    /// Modules that its initramfs loaded for its devices, by its own word.
    #[serde(default)]
    pub drivers: BTreeSet<String>,
    /// What its kernel said when it was in trouble, by netconsole. Nobody knows who really sent that.
    #[serde(default)]
    pub kernel: Box<[String]>,
}

/// Tokens are secrets and do not print themselves; the state database is their one home.
fn token_hex<S: Serializer>(token: &Token, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&token.to_hex())
}

/// A stage and when it was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageAt {
    /// The stage.
    #[serde(with = "crate::text")]
    pub stage: Stage,
    /// When.
    pub at: Timestamp,
}

/// Where and why a boot failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The stage that failed.
    #[serde(with = "crate::text")]
    pub stage: Stage,
    /// Why, for people.
    pub cause: String,
    /// When.
    pub at: Timestamp,
}

/// What only nodes may know. It does not print itself; the state database is its one home.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(#[serde(with = "crate::text::bytes")] pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret")
    }
}

/// Settings changed by commands while running.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// OpenSSH public keys for root, besides those of the configuration.
    pub authorized_keys: Vec<String>,
    /// What becomes of machines that are no nodes; `None` = as the configuration says.
    #[serde(default)]
    pub unknown: Option<UnknownPolicy>,
}
