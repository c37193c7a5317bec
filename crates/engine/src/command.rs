//! What users may ask of the engine, and why it may refuse.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use wire::mac::Mac;

use crate::apply::{Changes, Inventory};
use crate::config::UefiLoader;
use crate::image::ImageRef;
use crate::orders::OrderView;
use crate::plan::BootPlan;
use crate::power::PowerAction;
use crate::record::Secret;
use crate::rollout::{RolloutPlan, RolloutView};
use crate::view::{NodeView, SecretView};

/// A user's command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Change a node, or make one where `node` is a MAC that has none.
    NodeSet {
        /// MAC, name or address.
        node: String,
        /// What changes.
        change: NodeChange,
    },
    /// Take a node and its leases out of the inventory.
    NodeForget {
        /// MAC, name or address.
        node: String,
    },
    /// What a node boots now. Makes a boot id and a token as rendering its configuration would,
    /// and makes a node where `node` is a MAC that has none.
    Plan {
        /// MAC, name or address.
        node: String,
    },
    /// Make the inventory what this one says, or nothing.
    Apply {
        /// Nodes, groups and networks.
        inventory: Inventory,
        /// Whether what it does not name is forgotten.
        prune: bool,
        /// Only say what would change.
        dry_run: bool,
        /// Whether it may have the daemon run commands that it does not know yet: root's word only.
        may_run: bool,
    },
    /// The inventory as a file describes it.
    Inventory,
    /// The nodes that are meant by a list such as `n[1-3],@gpu`.
    Select {
        /// The list.
        nodes: String,
    },
    /// Have nodes run a command.
    Order {
        /// A list of nodes.
        nodes: String,
        /// A command line for `sh -c`.
        script: String,
        /// Ends it after so many seconds.
        seconds: u32,
        /// How many bytes it may upload besides what it prints.
        upload_bytes: u64,
    },
    /// Switch machines on or off.
    Power {
        /// A list of nodes.
        nodes: String,
        /// What becomes of them.
        action: PowerAction,
    },
    /// Bring a version to nodes a few at a time.
    RollOut(RolloutPlan),
    /// Stop a rollout and take its version back.
    StopRollout {
        /// Its number.
        id: u64,
    },
    /// All rollouts that are kept.
    Rollouts,
    /// How far orders are.
    Orders {
        /// Their ids.
        ids: Vec<u64>,
    },
    /// Keep a secret, or remove it.
    SetSecret {
        /// Its name.
        name: String,
        /// Its content; `None` removes it.
        content: Option<Secret>,
    },
    /// All secrets, without what they say.
    Secrets,
    /// Replace the authorized keys that were added to those of the configuration.
    SetAuthorizedKeys {
        /// OpenSSH public key lines.
        keys: Vec<String>,
    },
}

/// What changes in a node; `None` leaves a setting as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeChange {
    /// Its host name.
    pub name: Option<String>,
    /// Its fixed address.
    pub address: Option<Setting<Ipv4Addr>>,
    /// Its image.
    pub image: Option<Setting<String>>,
    /// Arguments added to its kernel command line; replaces the former ones.
    pub kernel_args: Option<String>,
    /// What it loads first where it is UEFI.
    pub loader: Option<Setting<UefiLoader>>,
    /// Its consoles; replaces the former ones.
    pub console: Option<Vec<String>>,
    /// Its groups; replaces the former ones.
    pub groups: Option<Vec<String>>,
    /// The image of its next boot only.
    pub once: Option<Setting<String>>,
}

/// A value, or back to the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting<T> {
    /// This value.
    To(T),
    /// Back to the default.
    Default,
}

/// What a command brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum CommandReply {
    /// Done, nothing to show.
    Done,
    /// The node as it is now.
    Node(Box<NodeView>),
    /// The plan.
    Plan(Box<BootPlan>),
    /// What changed, or would.
    Applied(Changes),
    /// The inventory.
    Inventory(Inventory),
    /// The nodes that are meant, in order of their names.
    Selected(Vec<NodeView>),
    /// Rollouts, as they are now.
    Rollouts(Vec<RolloutView>),
    /// Orders, as they are now.
    Orders(Vec<OrderView>),
    /// All secrets.
    Secrets(Vec<SecretView>),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", rename_all = "kebab-case")]
pub enum CommandError {
    /// No such node.
    #[error("no node is called {got:?}")]
    UnknownNode {
        /// What was asked for.
        got: String,
    },
    /// Not a MAC that a machine can have.
    #[error("expected a machine's own Ethernet address, got {got}")]
    BadMac {
        /// The address.
        #[serde(with = "crate::text")]
        got: Mac,
    },
    /// Not a host name.
    #[error("expected a host name of at most 63 letters, digits and inner hyphens, got {got:?}")]
    BadName {
        /// The name.
        got: String,
    },
    /// Another node has the name.
    #[error("the name {name} belongs to {owner}")]
    NameTaken {
        /// The name.
        name: String,
        /// Its owner.
        #[serde(with = "crate::text")]
        owner: Mac,
    },
    /// The address is in no network that is served, or cannot belong to a node.
    #[error("expected a host address in {expected}, got {got}")]
    AddressOutside {
        /// The networks served.
        expected: String,
        /// The address.
        got: Ipv4Addr,
    },
    /// Another machine has the address.
    #[error("the address {address} is in use by {owner}")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Its owner.
        owner: String,
    },
    /// Not an image reference.
    #[error("expected NAME or NAME:TAG, got {got:?}")]
    BadImage {
        /// The text.
        got: String,
    },
    /// The store has no such image.
    #[error("no image is called {image}; there are: {known}")]
    UnknownImage {
        /// The image asked for.
        #[serde(with = "crate::text")]
        image: ImageRef,
        /// Those that exist.
        known: String,
    },
    /// A kernel argument that cannot be written into every boot configuration.
    #[error(
        "expected kernel arguments of at most {max} bytes in printable ASCII, without backslashes and without quotes within a word, got {got:?}"
    )]
    BadKernelArgs {
        /// The longest text accepted.
        max: usize,
        /// The text.
        got: String,
    },
    /// Not an OpenSSH public key line.
    #[error("expected an OpenSSH public key such as \"ssh-ed25519 AAAA… name\", got {got:?}")]
    BadKey {
        /// The line, cut.
        got: String,
    },
    /// The node has no boot plan.
    #[error("{node} has no boot plan: {cause}")]
    NoPlan {
        /// The node.
        node: String,
        /// Why.
        cause: String,
    },
    /// A setting of a group, or a secret, that cannot be.
    #[error("expected {expected}, got {got:?}")]
    BadSetting {
        /// What can be.
        expected: String,
        /// What came.
        got: String,
    },
    /// Not a template.
    #[error("the template is not well-formed: {cause}")]
    BadTemplate {
        /// What is wrong with it.
        cause: String,
    },
    /// Not a list of nodes.
    #[error("expected nodes such as node1, n[001-600], @group or a MAC, got {got:?}: {cause}")]
    BadNodes {
        /// The list, cut.
        got: String,
        /// What is wrong with it.
        cause: String,
    },
    /// No such group.
    #[error("no group is called {got:?}")]
    UnknownGroup {
        /// What was asked for.
        got: String,
    },
    /// No such secret.
    #[error("no secret is called {got:?}")]
    UnknownSecret {
        /// What was asked for.
        got: String,
    },
    /// Nodes are given the secret.
    #[error("the secret {name} is given to nodes of {groups}")]
    SecretInUse {
        /// Its name.
        name: String,
        /// The groups.
        groups: String,
    },
    /// Entries that cannot be.
    #[error("{}", lines(problems))]
    Invalid {
        /// The nodes and what is wrong with each.
        problems: Vec<(String, String)>,
    },
    /// The inventory is full.
    #[error("the inventory is full: {max} nodes")]
    Full {
        /// Its limit.
        max: usize,
    },
}

fn lines(problems: &[(String, String)]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|(node, problem)| format!("{node}: {problem}"))
        .collect();
    lines.join("\n")
}

impl CommandError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            CommandError::UnknownNode { .. } => {
                "List the nodes with `slate node list`, or give the machine's MAC to make one."
            }
            CommandError::BadMac { .. } => {
                "Give the address of the machine's network card, such as 68:05:ca:93:95:a5."
            }
            CommandError::BadName { .. } => "Choose a name such as node1.",
            CommandError::NameTaken { .. } => {
                "Choose another name, or rename the owner first with `slate node set`."
            }
            CommandError::AddressOutside { .. } => {
                "Choose an address in a served network that is neither its first, its last, \
                 the server's nor a router's."
            }
            CommandError::AddressTaken { .. } => {
                "Choose another address, or forget its owner with `slate node forget`."
            }
            CommandError::BadImage { .. } | CommandError::UnknownImage { .. } => {
                "List the images with `slate image list`."
            }
            CommandError::BadKernelArgs { .. } => {
                "Quote only whole values, such as name=\"two words\", and leave out control \
                 characters, backslashes and everything beyond ASCII."
            }
            CommandError::BadKey { .. } => "Give the content of a .pub file.",
            CommandError::NoPlan { .. } => {
                "Set an image with `slate node set NODE --image NAME`, or import one with \
                 `slate image import`."
            }
            CommandError::BadSetting { .. } | CommandError::BadTemplate { .. } => {
                "The settings of groups are described in docs/nodes.md."
            }
            CommandError::BadNodes { .. } => "List the nodes with `slate node list`.",
            CommandError::UnknownGroup { .. } => {
                "Groups are made by `slate apply`; see them with `slate export`."
            }
            CommandError::UnknownSecret { .. } => "List them with `slate secret list`.",
            CommandError::SecretInUse { .. } => {
                "Take it out of those groups' files first, with `slate apply`."
            }
            CommandError::Invalid { .. } => "Nothing was changed. Correct these and try again.",
            CommandError::Full { .. } => "Forget nodes that are gone with `slate node forget`.",
        }
    }
}
