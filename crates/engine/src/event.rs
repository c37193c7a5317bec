//! Everything a node does, as one closed enum: what users see, follow and search.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use wire::digest::Digest;
use wire::identity::BootId;
use wire::mac::Mac;
use wire::stage::Stage;

use crate::time::Timestamp;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// The machine, where it is known.
    #[serde(with = "crate::text::option")]
    pub mac: Option<Mac>,
    /// The node's name, where the machine is a node.
    pub node: Option<String>,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Routine: a packet, a file.
    Debug,
    /// A change that users notice.
    Info,
    /// Something is wrong.
    Warning,
}

/// The service that a file was asked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// TFTP, UDP 69.
    Tftp,
    /// HTTP.
    Http,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// A machine became a node of the inventory.
    NodeAdded,
    /// A node's settings changed by command.
    NodeChanged,
    /// A node left the inventory by command.
    NodeForgotten,
    /// DISCOVER received.
    Discover {
        /// The client: firmware and architecture, or an operating system.
        client: String,
    },
    /// OFFER sent.
    Offer {
        /// The address offered.
        address: Ipv4Addr,
    },
    /// ACK sent.
    Ack {
        /// The address confirmed.
        address: Ipv4Addr,
        /// Seconds; `None` = infinite.
        lease_seconds: Option<u32>,
    },
    /// NAK sent.
    Nak {
        /// The address asked for.
        address: Ipv4Addr,
        /// Why not.
        cause: String,
    },
    /// A machine found its address in use.
    Decline {
        /// The address, now set aside.
        address: Ipv4Addr,
    },
    /// A machine gave its address back.
    Release {
        /// The address.
        address: Ipv4Addr,
    },
    /// A DHCP message was not answered.
    DhcpIgnored {
        /// Why not.
        cause: String,
    },
    /// A machine that is no node asked to boot, beside another DHCP server.
    MachineSeen {
        /// Its firmware.
        client: String,
    },
    /// A node's firmware was told what to boot, and no address.
    BootOffered {
        /// Whether it is to ask once more, on port 4011.
        again_on_4011: bool,
    },
    /// A node's firmware asked on port 4011, and was told what to boot.
    BootServerAsked,
    /// A node's iPXE asked for IPv6 routers, and was told that there is none here.
    RoutersDenied,
    /// A node has an address from another DHCP server.
    AddressSeen {
        /// The address.
        address: Ipv4Addr,
    },
    /// No address is left in a pool.
    PoolExhausted {
        /// The network's first address.
        network: Ipv4Addr,
        /// Addresses in its pool.
        size: u32,
    },
    /// Machines that nobody knows ask faster than they are answered.
    RateLimited {
        /// Messages dropped since the last such event.
        dropped: u64,
    },
    /// Another DHCP server answers on our network.
    RogueServer {
        /// Its address.
        server: Ipv4Addr,
    },
    /// A version did not come up on the node, so its next boots take the last one that did.
    FellBack {
        /// The version that failed.
        #[serde(with = "crate::text")]
        failed: Digest,
        /// The one that it boots now.
        #[serde(with = "crate::text")]
        instead: Digest,
    },
    /// A boot began.
    BootStarted {
        /// Its id.
        #[serde(with = "crate::text")]
        boot: BootId,
    },
    /// A file was asked for and exists.
    Requested {
        /// Over what.
        service: Service,
        /// The path as asked.
        path: String,
    },
    /// A file was sent whole.
    Sent {
        /// Over what.
        service: Service,
        /// The path as asked.
        path: String,
        /// Bytes sent.
        bytes: u64,
    },
    /// A file was asked for and is not served.
    NotFound {
        /// Over what.
        service: Service,
        /// The path as asked, made printable.
        path: String,
        /// Why not.
        cause: String,
    },
    /// A transfer broke off.
    TransferFailed {
        /// Over what.
        service: Service,
        /// The path as asked.
        path: String,
        /// Bytes sent.
        bytes: u64,
        /// Why.
        cause: String,
    },
    /// A node's boot configuration was rendered.
    ConfigServed {
        /// The path as asked.
        path: String,
        /// The image version that it boots.
        #[serde(with = "crate::text")]
        image: Digest,
    },
    /// The node's loader waits for the initramfs of its version, which is being made.
    Waits {
        /// The version.
        #[serde(with = "crate::text")]
        image: Digest,
    },
    /// A stage was reached for the first time in this boot.
    Stage {
        /// The stage.
        #[serde(with = "crate::text")]
        stage: Stage,
        /// What the node said about it; may be empty.
        text: String,
    },
    /// A node said something worth knowing.
    Info {
        /// The stage it belongs to.
        #[serde(with = "crate::text")]
        stage: Stage,
        /// What.
        text: String,
    },
    /// A node is up: it reached multi-user.
    Up {
        /// Its address.
        address: Option<Ipv4Addr>,
        /// The image version that it runs, where its plan came from here.
        #[serde(default, with = "crate::text::option")]
        image: Option<Digest>,
        /// Milliseconds since the boot began.
        after_ms: u64,
    },
    /// A stage failed.
    Failed {
        /// The stage.
        #[serde(with = "crate::text")]
        stage: Stage,
        /// Why.
        cause: String,
    },
    /// A boot has not moved for longer than its stage should take.
    Stuck {
        /// The last stage reached.
        #[serde(with = "crate::text")]
        stage: Stage,
        /// Milliseconds since then.
        for_ms: u64,
        /// What was expected next, and what to look at.
        cause: String,
    },
    /// A node's kernel stopped for ever; from an address that anybody can forge.
    Panicked {
        /// Why, in its words.
        cause: String,
    },
    /// A node's kernel found itself broken, and may go on; alike.
    KernelTrouble {
        /// Its words.
        text: String,
    },
    /// The node mounted its root.
    NfsMounted {
        /// Its address.
        address: Ipv4Addr,
    },
    /// The node's NFS connections ended.
    NfsGone {
        /// Its address.
        address: Ipv4Addr,
    },
    /// The node uses an image version that is not served any more, and gets errors for it.
    NfsStale {
        /// Its address.
        address: Ipv4Addr,
        /// The first half of the version's digest, in hexadecimal.
        version: String,
    },
    /// The node got an I/O error: the store has not what the image version should hold.
    NfsDamaged {
        /// Its address.
        address: Ipv4Addr,
        /// The first half of the version's digest, in hexadecimal.
        version: String,
    },
    /// Several NFS clients at one node's address call themselves the same.
    NfsCollision {
        /// Their address.
        address: Ipv4Addr,
        /// The name, made printable.
        owner: String,
    },
    /// A version is brought to nodes a few at a time.
    RolloutStarted {
        /// The image.
        image: String,
        /// Its version.
        #[serde(with = "crate::text")]
        version: Digest,
    },
    /// A rollout's version is up on a node, and passed the gate there.
    VersionProved,
    /// A rollout's version holds on all its nodes.
    RolloutDone {
        /// The image.
        image: String,
    },
    /// A rollout was stopped and taken back.
    RolloutFailed {
        /// The image.
        image: String,
        /// Why.
        cause: String,
    },
    /// A node was told to run a command.
    Ordered {
        /// Names it.
        order: u64,
        /// The command, cut.
        command: String,
    },
    /// A command that a node was told to run has ended.
    OrderEnded {
        /// Names it.
        order: u64,
        /// Its exit code, 128 and the number of a signal, or -1.
        status: i32,
    },
    /// Nobody knows what became of a command that a node was told to run.
    OrderLost {
        /// Names it.
        order: u64,
        /// Why.
        cause: String,
    },
    /// Somebody who is no node asked for orders.
    PollRefused {
        /// The asker's address.
        address: Ipv4Addr,
        /// Why.
        cause: String,
    },
    /// A file that the node's groups name was not delivered to it.
    FileOmitted {
        /// Its path.
        path: String,
        /// Why.
        cause: String,
    },
    /// A group of nodes, or what is told of a network, changed by command.
    GroupChanged {
        /// The group's name, or the network.
        name: String,
    },
    /// A secret was set by command.
    SecretSet {
        /// Its name.
        name: String,
    },
    /// A secret was removed by command.
    SecretRemoved {
        /// Its name.
        name: String,
    },
    /// The identity document was given out.
    IdentityGiven,
    /// The identity document was refused.
    IdentityRefused {
        /// Why.
        cause: String,
    },
    /// A beacon was refused.
    BeaconRefused {
        /// The sender's address.
        address: Ipv4Addr,
        /// Why.
        cause: String,
    },
}

impl EventKind {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            EventKind::Discover { .. }
            | EventKind::Offer { .. }
            | EventKind::BootOffered { .. }
            | EventKind::BootServerAsked
            | EventKind::RoutersDenied
            | EventKind::Release { .. }
            | EventKind::Requested { .. }
            | EventKind::Sent { .. }
            | EventKind::DhcpIgnored { .. } => Severity::Debug,
            EventKind::Nak { .. }
            | EventKind::Decline { .. }
            | EventKind::PoolExhausted { .. }
            | EventKind::RateLimited { .. }
            | EventKind::RogueServer { .. }
            | EventKind::NotFound { .. }
            | EventKind::TransferFailed { .. }
            | EventKind::Failed { .. }
            | EventKind::Stuck { .. }
            | EventKind::Panicked { .. }
            | EventKind::KernelTrouble { .. }
            | EventKind::FileOmitted { .. }
            | EventKind::OrderLost { .. }
            | EventKind::PollRefused { .. }
            | EventKind::RolloutFailed { .. }
            | EventKind::FellBack { .. }
            | EventKind::NfsStale { .. }
            | EventKind::NfsDamaged { .. }
            | EventKind::NfsCollision { .. }
            | EventKind::IdentityRefused { .. }
            | EventKind::BeaconRefused { .. } => Severity::Warning,
            _ => Severity::Info,
        }
    }
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::Tftp => "TFTP",
            Service::Http => "HTTP",
        }
    }
}

/// One line for people, without time and node.
impl fmt::Display for EventKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::NodeAdded
            | EventKind::NodeChanged
            | EventKind::NodeForgotten
            | EventKind::FellBack { .. }
            | EventKind::BootStarted { .. }
            | EventKind::Stage { .. }
            | EventKind::Info { .. }
            | EventKind::Up { .. }
            | EventKind::Failed { .. }
            | EventKind::FileOmitted { .. }
            | EventKind::VersionProved
            | EventKind::Ordered { .. }
            | EventKind::OrderEnded { .. }
            | EventKind::OrderLost { .. }
            | EventKind::Panicked { .. }
            | EventKind::KernelTrouble { .. }
            | EventKind::Stuck { .. } => self.fmt_node(out),
            EventKind::Discover { .. }
            | EventKind::Offer { .. }
            | EventKind::Ack { .. }
            | EventKind::Nak { .. }
            | EventKind::Decline { .. }
            | EventKind::Release { .. }
            | EventKind::DhcpIgnored { .. }
            | EventKind::PoolExhausted { .. }
            | EventKind::RoutersDenied
            | EventKind::RateLimited { .. } => self.fmt_dhcp(out),
            EventKind::MachineSeen { .. }
            | EventKind::BootOffered { .. }
            | EventKind::BootServerAsked
            | EventKind::AddressSeen { .. }
            | EventKind::RogueServer { .. } => self.fmt_beside(out),
            _ => self.fmt_service(out),
        }
    }
}

impl EventKind {
    fn fmt_node(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::NodeAdded => write!(out, "is a new node"),
            EventKind::NodeChanged => write!(out, "settings changed"),
            EventKind::NodeForgotten => write!(out, "forgotten"),
            EventKind::FellBack { failed, instead } => write!(
                out,
                "falls back to image version {}, the last that came up on it: {} failed twice; to \
                 try that again, set its image with slate node set",
                short(instead),
                short(failed)
            ),
            EventKind::BootStarted { boot } => write!(out, "began boot {boot}"),
            EventKind::Stage { stage, text } if text.is_empty() => write!(out, "reached {stage}"),
            EventKind::Stage { stage, text } => write!(out, "reached {stage}: {text}"),
            EventKind::Info { stage, text } => write!(out, "says in {stage}: {text}"),
            EventKind::Up {
                address, after_ms, ..
            } => {
                let at = address.map(|it| format!(" at {it}")).unwrap_or_default();
                write!(out, "is up{at}, {} after its start", Seconds(*after_ms))
            }
            EventKind::Failed { stage, cause } => write!(out, "failed in {stage}: {cause}"),
            EventKind::Stuck {
                stage,
                for_ms,
                cause,
            } => write!(out, "stuck in {stage} for {}: {cause}", Seconds(*for_ms)),
            EventKind::Panicked { cause } => write!(out, "panicked: {cause}"),
            EventKind::KernelTrouble { text } => write!(out, "kernel trouble: {text}"),
            EventKind::VersionProved => write!(out, "has proved the rollout's version"),
            EventKind::Ordered { command, .. } => write!(out, "is told to run: {command}"),
            EventKind::OrderEnded { status: 0, .. } => write!(out, "has done as told"),
            EventKind::OrderEnded { status, .. } => {
                write!(out, "did as told, which ended with status {status}")
            }
            EventKind::OrderLost { cause, .. } => {
                write!(out, "was told to run something, and {cause}")
            }
            EventKind::FileOmitted { path, cause } => {
                write!(out, "does not get {path}, which its groups name: {cause}")
            }
            _ => Ok(()),
        }
    }

    fn fmt_dhcp(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::Discover { client } => write!(out, "asked for an address ({client})"),
            EventKind::Offer { address } => write!(out, "offered {address}"),
            EventKind::Ack {
                address,
                lease_seconds,
            } => match lease_seconds {
                Some(seconds) => write!(out, "has {address} for {seconds} s"),
                None => write!(out, "has {address} for ever"),
            },
            EventKind::Nak { address, cause } => write!(out, "refused {address}: {cause}"),
            EventKind::Decline { address } => {
                write!(out, "found {address} in use by another machine; set aside")
            }
            EventKind::Release { address } => write!(out, "gave {address} back"),
            EventKind::DhcpIgnored { cause } => write!(out, "DHCP message ignored: {cause}"),
            EventKind::PoolExhausted { network, size } => {
                write!(out, "no address is left in {network}: all {size} are taken")
            }
            EventKind::RoutersDenied => {
                write!(out, "asked for IPv6 routers, and need not wait for one")
            }
            EventKind::RateLimited { dropped } => {
                write!(out, "{dropped} messages of unknown machines dropped")
            }
            _ => Ok(()),
        }
    }

    /// What has to do with another DHCP server.
    fn fmt_beside(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::MachineSeen { client } => write!(
                out,
                "asks to boot ({client}) but is no node; to let it: slate node approve MAC"
            ),
            EventKind::BootOffered {
                again_on_4011: false,
            } => write!(out, "was told what to boot"),
            EventKind::BootOffered { .. } => write!(out, "was told to ask again on port 4011"),
            EventKind::BootServerAsked => {
                write!(out, "asked on port 4011 and was told what to boot")
            }
            EventKind::AddressSeen { address } => {
                write!(out, "has {address} from another DHCP server")
            }
            EventKind::RogueServer { server } => write!(
                out,
                "another DHCP server answers: {server}; switch one of the two off, or start this \
                 one with --dhcp proxy"
            ),
            _ => Ok(()),
        }
    }

    fn fmt_service(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::Requested { service, path } => {
                write!(out, "asked for {path} over {}", service.name())
            }
            EventKind::Sent {
                service,
                path,
                bytes,
            } => write!(out, "got {path} over {}: {bytes} bytes", service.name()),
            EventKind::NotFound {
                service,
                path,
                cause,
            } => {
                let service = service.name();
                write!(out, "asked for {path} over {service}: not found: {cause}")
            }
            EventKind::TransferFailed {
                service,
                path,
                bytes,
                cause,
            } => {
                let service = service.name();
                write!(
                    out,
                    "{path} over {service} broke off after {bytes} bytes: {cause}"
                )
            }
            EventKind::ConfigServed { path, image } => {
                write!(out, "got its boot configuration {path} for image {image}")
            }
            EventKind::Waits { image } => write!(
                out,
                "waits for the initramfs of image version {}, which is being made",
                short(image)
            ),
            EventKind::NfsMounted { address } => write!(out, "mounted its root from {address}"),
            EventKind::NfsGone { address } => {
                write!(out, "closed its NFS connections from {address}")
            }
            EventKind::NfsStale { address, version } => write!(
                out,
                "uses image version {version}… from {address}, which is not served any more: \
                 reboot it"
            ),
            EventKind::NfsDamaged { address, version } => write!(
                out,
                "got an I/O error at {address}: the store lacks content of image version \
                 {version}…: slate image verify"
            ),
            EventKind::NfsCollision { address, owner } => write!(
                out,
                "several NFS clients at {address} call themselves {owner:?}: give each a \
                 nfs.nfs4_unique_id of its own"
            ),
            EventKind::RolloutStarted { image, version } => {
                write!(out, "rollout of {image}, version {}, began", short(version))
            }
            EventKind::RolloutDone { image } => write!(out, "rollout of {image} is done"),
            EventKind::RolloutFailed { image, cause } => {
                write!(out, "rollout of {image} was taken back: {cause}")
            }
            EventKind::PollRefused { address, cause } => {
                write!(out, "{address} asked for orders and was refused: {cause}")
            }
            EventKind::GroupChanged { name } => write!(out, "settings of {name} changed"),
            EventKind::SecretSet { name } => write!(out, "secret {name} set"),
            EventKind::SecretRemoved { name } => write!(out, "secret {name} removed"),
            EventKind::IdentityGiven => write!(out, "got its identity"),
            EventKind::IdentityRefused { cause } => write!(out, "was refused an identity: {cause}"),
            EventKind::BeaconRefused { address, cause } => {
                write!(out, "beacon from {address} refused: {cause}")
            }
            _ => Ok(()),
        }
    }
}

/// The beginning of a digest, as lists show it.
fn short(digest: &Digest) -> String {
    digest.to_string()[..12].to_owned()
}

/// Milliseconds, shown as seconds with one digit.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{} s", self.0 / 1000, self.0 % 1000 / 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plain_line_each() {
        let address = Ipv4Addr::new(10, 77, 0, 5);
        let path = || "grubx64.efi".to_owned();
        let cases = [
            (EventKind::Offer { address }, "offered 10.77.0.5"),
            (
                EventKind::Ack {
                    address,
                    lease_seconds: None,
                },
                "has 10.77.0.5 for ever",
            ),
            (
                EventKind::NotFound {
                    service: Service::Tftp,
                    path: path(),
                    cause: "the image has no GRUB".into(),
                },
                "asked for grubx64.efi over TFTP: not found: the image has no GRUB",
            ),
            (
                EventKind::Sent {
                    service: Service::Http,
                    path: path(),
                    bytes: 9,
                },
                "got grubx64.efi over HTTP: 9 bytes",
            ),
            (
                EventKind::Stage {
                    stage: Stage::SwitchRoot,
                    text: String::new(),
                },
                "reached switch-root",
            ),
            (
                EventKind::Up {
                    address: Some(address),
                    image: None,
                    after_ms: 18_349,
                },
                "is up at 10.77.0.5, 18.3 s after its start",
            ),
            (
                EventKind::Stuck {
                    stage: Stage::Grub,
                    for_ms: 180_000,
                    cause: "look at its screen".into(),
                },
                "stuck in grub for 180.0 s: look at its screen",
            ),
        ];
        for (event, line) in cases {
            assert_eq!(event.to_string(), line);
        }
    }
}
