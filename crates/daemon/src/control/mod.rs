//! The control protocol: JSON lines over a unix socket, versioned.
//!
//! The server speaks first with [`Hello`]; then each line from the client is a [`Request`] and
//! is answered by one line [`Response`], except [`Request::Events`], which is answered by one
//! [`Response::Event`] per event and, unless it follows, a final [`Response::Done`].

mod client;
mod peer;
pub(crate) mod server;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use client::{Client, ClientError, Events};
pub use engine::{
    Batch, Change, Changes, FileEntry, Group, Inventory, NetworkSettings, NodeEntry, OrderState,
    OrderView, PowerAction, RolloutPlan, RolloutState, RolloutView, Secret, SecretView, UefiLoader,
    UnknownPolicy,
};

/// Version of the protocol; it rises when an old client would misread a new server.
pub const VERSION: u32 = 1;

/// Longest line that either side accepts, in bytes.
pub const MAX_LINE_BYTES: usize = 4 << 20;

/// Name of the socket in the run directory.
pub const SOCKET_NAME: &str = "control";

/// First line, from the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the server.
    pub slate_control: u32,
    /// Version of the server's binary.
    pub server: String,
}

/// What a client asks. Nodes are named by name, MAC or address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// How the daemon is: answered by [`Response::Status`].
    Status,
    /// All nodes: answered by [`Response::Nodes`].
    Nodes,
    /// One node: answered by [`Response::Node`].
    Node {
        /// Name, MAC or address.
        node: String,
    },
    /// Change a node, or make one when `node` is an unknown MAC: answered by [`Response::Node`].
    SetNode {
        /// Name, MAC or address.
        node: String,
        /// What to change.
        change: NodeChange,
    },
    /// Forget a node and its lease: answered by [`Response::Done`].
    ForgetNode {
        /// Name, MAC or address.
        node: String,
    },
    /// The boots of one node that are kept: answered by [`Response::Boots`].
    Boots {
        /// Name, MAC or address.
        node: String,
    },
    /// What a node would boot now: answered by [`Response::Plan`].
    Plan {
        /// Name, MAC or address.
        node: String,
    },
    /// What a machine would get if it booted now, without any trace: answered by
    /// [`Response::Preview`].
    Preview {
        /// Name, MAC or address; also the MAC of a machine that is no node.
        node: String,
        /// As what it asks, by [`FirmwareView::name`]; `None` = as it did last.
        firmware: Option<String>,
    },
    /// What firmware is to be told to boot: answered by [`Response::BootService`].
    BootService {
        /// On which network: by this server's address there; `None` = on the first one.
        server: Option<Ipv4Addr>,
    },
    /// Events after `since`, oldest first.
    Events {
        /// Only events with a greater id; 0 = all that are kept.
        since: u64,
        /// Stay and send new events as they happen.
        follow: bool,
    },
    /// Make the inventory what this one says, or nothing: answered by [`Response::Applied`].
    Apply {
        /// Nodes, groups and networks.
        inventory: Inventory,
        /// Whether what it does not name is forgotten.
        prune: bool,
        /// Only say what would change.
        dry_run: bool,
    },
    /// The inventory as a file describes it: answered by [`Response::Inventory`].
    Inventory,
    /// The nodes that are meant by a list such as `n[1-3],@gpu`: answered by [`Response::Nodes`].
    Select {
        /// The list.
        nodes: String,
    },
    /// Have running nodes run a command: answered by [`Response::Orders`], one for each node.
    Order {
        /// A list of nodes.
        nodes: String,
        /// A command line for `sh -c`.
        script: String,
        /// Ends it after so many seconds.
        seconds: u32,
        /// How many bytes it may upload, by `agent send`, into `uploads/ID` below the state directory.
        #[serde(default)]
        upload_bytes: u64,
    },
    /// Switch machines on or off: answered by [`Response::Orders`], one for each node.
    Power {
        /// A list of nodes.
        nodes: String,
        /// What becomes of them.
        action: PowerAction,
    },
    /// How far an order is, with its output: answered by [`Response::Orders`].
    OrderNow {
        /// Its id.
        id: u64,
    },
    /// Bring a version to nodes a few at a time: answered by [`Response::Rollouts`], with this one.
    RollOut {
        /// What it is to do.
        plan: RolloutPlan,
    },
    /// Stop a rollout and take its version back: answered by [`Response::Rollouts`], with this one.
    StopRollout {
        /// Its number.
        id: u64,
    },
    /// All rollouts that are kept: answered by [`Response::Rollouts`].
    Rollouts,
    /// Keep a secret for files that name it: answered by [`Response::Done`].
    SetSecret {
        /// Its name.
        name: String,
        /// Its content; `None` removes it.
        content: Option<Secret>,
    },
    /// All secrets, without what they say: answered by [`Response::Secrets`].
    Secrets,
    /// Look at the image store now: answered by [`Response::Done`] once plans go by what it has.
    Refresh,
    /// Which image versions are in use: answered by [`Response::VersionsInUse`].
    VersionsInUse,
    /// Stop the daemon in order: answered by [`Response::Done`].
    Shutdown,
}

/// Changes to a node; `None` leaves a setting as it is, an empty string takes it away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeChange {
    /// Host name.
    pub name: Option<String>,
    /// Fixed IPv4 address.
    pub address: Option<String>,
    /// Image, `NAME[:TAG]`.
    pub image: Option<String>,
    /// Arguments added to the kernel command line.
    pub kernel_args: Option<String>,
    /// What it loads first where it is UEFI: `shim` or `ipxe`.
    pub loader: Option<String>,
    /// Its consoles, separated by blanks.
    pub console: Option<String>,
    /// Groups, separated by commas.
    pub groups: Option<String>,
    /// Image of its next boot only, `NAME[:TAG]`.
    pub once: Option<String>,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Nodes`] and [`Request::Select`].
    Nodes {
        /// Sorted by name.
        nodes: Vec<NodeView>,
        /// Machines that asked to boot and are no nodes, sorted by MAC.
        #[serde(default)]
        seen: Vec<SeenView>,
    },
    /// To [`Request::Node`] and [`Request::SetNode`].
    Node(Box<NodeView>),
    /// To [`Request::Boots`].
    Boots {
        /// The node's name.
        node: String,
        /// Newest first.
        boots: Vec<BootView>,
    },
    /// To [`Request::Plan`].
    Plan(PlanView),
    /// To [`Request::Preview`].
    Preview(Box<PreviewView>),
    /// To [`Request::BootService`].
    BootService(BootServiceView),
    /// To [`Request::Apply`].
    Applied(Changes),
    /// To [`Request::Inventory`].
    Inventory(Inventory),
    /// To [`Request::Order`] and [`Request::OrderNow`].
    Orders {
        /// In order of the nodes' names.
        orders: Vec<OrderView>,
    },
    /// To [`Request::RollOut`], [`Request::StopRollout`] and [`Request::Rollouts`].
    Rollouts {
        /// In the order in which they began.
        rollouts: Vec<RolloutView>,
    },
    /// To [`Request::Secrets`].
    Secrets {
        /// In order of names.
        secrets: Vec<SecretView>,
    },
    /// To [`Request::Events`].
    Event(EventRecord),
    /// To [`Request::VersionsInUse`].
    VersionsInUse {
        /// The first half of the digest of each version that a node runs, or may run, or that an
        /// NFS client has used since it connected, in hexadecimal.
        versions: Vec<String>,
    },
    /// Done; nothing more to say.
    Done,
    /// Refused.
    Error {
        /// What went wrong.
        message: String,
        /// What to do next; may be empty.
        hint: String,
    },
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the binary.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started, Unix milliseconds.
    pub started_ms: u64,
    /// Served interfaces with their addresses.
    pub interfaces: Vec<(String, Ipv4Addr)>,
    /// TFTP port.
    pub tftp_port: u16,
    /// HTTP and beacon port.
    pub http_port: u16,
    /// NFS port.
    pub nfs_port: u16,
    /// Default image, `NAME:TAG`.
    pub image: Option<String>,
    /// Number of known nodes.
    pub nodes: usize,
    /// Names of the nodes whose root is mounted from this daemon now.
    pub live: Vec<String>,
    /// Images and whether they can boot.
    pub images: Vec<ImageView>,
}

/// One image version as the daemon sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// `NAME:TAG`.
    pub name: String,
    /// Digest, 64 hex digits.
    pub digest: String,
    /// `ready`, `building`, `idle` (nobody asked yet) or the cause why it cannot boot.
    pub boot: String,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Host name.
    pub name: String,
    /// MAC, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Its lease or fixed address.
    pub address: Option<Ipv4Addr>,
    /// Whether the address was set by hand.
    pub fixed: bool,
    /// `uefi-x64`, `bios`, … as its firmware said.
    pub firmware: Option<String>,
    /// Image it follows, `NAME:TAG`; `None` = the default.
    pub image: Option<String>,
    /// Digest that its last boot was given.
    pub digest: Option<String>,
    /// Digest that its next boot would be given, if its image exists.
    pub next_digest: Option<String>,
    /// Digest that its image names but that failed on it, so that it boots another one.
    pub failed_digest: Option<String>,
    /// Arguments added to its kernel command line.
    pub kernel_args: String,
    /// What it loads first where it is UEFI, by its own setting: `shim` or `ipxe`.
    #[serde(default)]
    pub loader: Option<String>,
    /// Its consoles, by its own setting.
    #[serde(default)]
    pub console: Vec<String>,
    /// Its groups, those that count first first.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Image of its next boot only, `NAME:TAG`.
    #[serde(default)]
    pub once: Option<String>,
    /// Digest that a rollout has brought it to, until its image names that.
    #[serde(default)]
    pub pinned_digest: Option<String>,
    /// When its agent last asked for orders, Unix milliseconds; `None` = not since the daemon started.
    #[serde(default)]
    pub polled_ms: Option<u64>,
    /// Furthest stage of the current boot.
    pub reached: Option<String>,
    /// Stage and cause where it failed, if it did.
    pub failure: Option<FailureView>,
    /// When it was last heard of, Unix milliseconds.
    pub seen_ms: Option<u64>,
    /// Stages of the current boot, in order of arrival.
    pub timeline: Vec<StageAt>,
    /// Bytes of boot files sent in the current boot, shim, GRUB, their configs and kernel.
    pub loader_bytes: u64,
    /// Bytes of initramfs sent in the current boot.
    pub initrd_bytes: u64,
    /// NFS traffic of the current boot.
    pub nfs: NfsView,
    /// Modules that its initramfs loaded for its devices when it last told, sorted.
    #[serde(default)]
    pub drivers: Vec<String>,
    /// Whether it has an NFS connection now.
    pub mounted: bool,
    /// Its SSH host key, `ssh-ed25519 AAAA…`.
    pub ssh_host_key: String,
}

/// One boot of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootView {
    /// Its id.
    pub id: String,
    /// When it began, Unix milliseconds.
    pub started_ms: u64,
    /// Digest of the version that it was given; `None` = it came not so far.
    pub digest: Option<String>,
    /// Furthest stage.
    pub reached: Option<String>,
    /// Stage and cause where it failed, if it did.
    pub failure: Option<FailureView>,
    /// What its kernel said when it was in trouble.
    pub kernel: Vec<String>,
    /// Its stages, in order of arrival.
    pub timeline: Vec<StageAt>,
    /// Bytes of boot files sent: shim, GRUB, their configurations and the kernel.
    pub loader_bytes: u64,
    /// Bytes of initramfs sent.
    pub initrd_bytes: u64,
}

/// A machine that asked to boot and is no node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenView {
    /// MAC, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// `uefi-x64`, `bios`, … as its firmware said.
    pub firmware: String,
    /// When it asked last, Unix milliseconds.
    pub seen_ms: u64,
}

/// A failed stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureView {
    /// Stage, kebab-case.
    pub stage: String,
    /// What went wrong.
    pub cause: String,
}

/// A stage and when it was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageAt {
    /// Stage, kebab-case.
    pub stage: String,
    /// Unix milliseconds.
    pub at_ms: u64,
}

/// NFS traffic of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfsView {
    /// Calls.
    pub rpcs: u64,
    /// Bytes of file content read.
    pub bytes: u64,
    /// Operations by name.
    pub by_op: BTreeMap<String, u64>,
}

/// What a node would boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanView {
    /// MAC.
    pub mac: String,
    /// Host name.
    pub node: String,
    /// The image version's digest, 64 hex digits.
    pub digest: String,
    /// URL of the kernel.
    pub kernel: String,
    /// URL of the initramfs.
    pub initrd: String,
    /// Kernel command line. It holds the secret token of the boot that this plan starts, so that
    /// a machine without network firmware can be started with it.
    pub cmdline: String,
}

/// What a machine would get if it booted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewView {
    /// MAC.
    pub mac: String,
    /// Host name of the node that it is, or would become.
    pub node: Option<String>,
    /// Whether it is a node.
    pub is_node: bool,
    /// As what it asks.
    pub firmware: String,
    /// What DHCP is spoken to it: `authoritative`, `proxy` or `off`.
    pub dhcp: String,
    /// DHCP, in order.
    pub exchanges: Vec<ExchangeView>,
    /// The files that it would ask for, in order.
    pub files: Vec<PlannedFileView>,
    /// What is to be known besides.
    pub notes: Vec<String>,
}

/// A DHCP message and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeView {
    /// The message, in hexadecimal.
    pub request: String,
    /// The answer; `None` = silence.
    pub reply: Option<ReplyView>,
}

/// A DHCP reply, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyView {
    /// Every byte, in hexadecimal.
    pub bytes: String,
    /// `yiaddr`: the address given.
    pub address: Option<Ipv4Addr>,
    /// `siaddr`: where the boot file is.
    pub next_server: Option<Ipv4Addr>,
    /// `file` of the header.
    pub file: String,
    /// The options in their order.
    pub options: Vec<OptionView>,
}

/// A DHCP option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionView {
    /// Its code.
    pub code: u8,
    /// Its name, empty where it has none here.
    pub name: String,
    /// Its value, for people.
    pub value: String,
}

/// A file that a machine would ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFileView {
    /// Its path, without a leading slash.
    pub path: String,
    /// The digest of the image version that it is from, if it is from one.
    pub digest: Option<String>,
    /// Its name among the boot files of that version.
    pub file: Option<String>,
    /// What it is of, where it is not of the image's own packages.
    pub origin: Option<String>,
    /// Its text, if it is made for the machine. `BOOT` and `TOKEN` stand for the boot's id and secret.
    pub text: Option<String>,
    /// Why there is none.
    pub error: Option<String>,
}

/// What another DHCP server has to tell machines, so that they boot from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootServiceView {
    /// This server on the machines' network.
    pub server: Ipv4Addr,
    /// That network's own address.
    pub network: Ipv4Addr,
    /// The length of its prefix in bits.
    pub prefix: u8,
    /// What DHCP is spoken here: `authoritative`, `proxy` or `off`.
    pub dhcp: String,
    /// What becomes of machines that are no nodes: `auto`, `approve` or `ignore`.
    pub unknown: String,
    /// The firmware that something is served for, those with a user class first.
    pub firmware: Vec<FirmwareView>,
}

/// What one kind of firmware is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareView {
    /// Its name here.
    pub name: String,
    /// Values of its DHCP option 93 (RFC 4578, 2.1).
    pub architectures: Vec<u16>,
    /// Its DHCP option 77, where only that tells it from others.
    pub user_class: Option<String>,
    /// Whether it boots over HTTP: the file is a URL, and option 60 of the reply `HTTPClient`.
    pub http: bool,
    /// The file.
    pub file: String,
}

/// One event with its place in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Rises by one per event, never given to another event.
    pub id: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// MAC of the node that it is about.
    pub mac: Option<String>,
    /// Name of that node.
    pub node: Option<String>,
    /// What happened, kebab-case.
    pub kind: String,
    /// `trace`, `info`, `warn` or `error`.
    pub level: String,
    /// One line for people.
    pub text: String,
    /// Every field of the event.
    pub detail: serde_json::Value,
}
