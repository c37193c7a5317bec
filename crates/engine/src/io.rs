//! What goes into the engine and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wire::digest::Digest;
use wire::identity::{BootId, Request as IdentityRequest, Token};
use wire::mac::Mac;
use wire::order::ControlKey;

use crate::command::{Command, CommandError, CommandReply};
use crate::config::InterfaceId;
use crate::event::{Event, Service};
use crate::image::{BootFile, ImageInfo};
use crate::power::PowerTask;
use crate::record::Record;
use crate::tftp::Transfer;

/// Something that happened outside.
#[derive(Clone, Debug)]
pub enum Input {
    /// A datagram on the DHCP server port.
    Dhcp {
        /// Where it came in.
        interface: InterfaceId,
        /// Its sender.
        source: SocketAddrV4,
        /// Its payload.
        packet: Vec<u8>,
    },
    /// A datagram on port 4011, where firmware asks the boot server that an offer announced.
    BootServer {
        /// Where it came in.
        interface: InterfaceId,
        /// Its sender.
        source: SocketAddrV4,
        /// Its payload.
        packet: Vec<u8>,
    },
    /// A datagram from a DHCP server's port to the client port of anybody, heard on the wire.
    Overheard {
        /// Where.
        interface: InterfaceId,
        /// Its sender.
        source: Ipv4Addr,
        /// Its payload.
        packet: Vec<u8>,
    },
    /// A machine asks for IPv6 routers (RFC 4861, 4.1). May be answered by [`Output::NoRouter`].
    RouterSolicitation {
        /// Where it came in.
        interface: InterfaceId,
        /// Its sender, a link-local address.
        source: Ipv6Addr,
        /// Its Ethernet address, by its own word.
        mac: Mac,
    },
    /// A datagram on the TFTP port: the first of a transfer. Answered by [`Output::Tftp`].
    Tftp {
        /// Its sender.
        peer: SocketAddrV4,
        /// Its payload.
        packet: Vec<u8>,
    },
    /// An HTTP request. Answered by [`Output::Http`].
    Http {
        /// Its sender.
        peer: SocketAddrV4,
        /// The request.
        request: HttpRequest,
    },
    /// A datagram on the beacon port.
    Beacon {
        /// Its sender.
        peer: SocketAddrV4,
        /// Its payload.
        datagram: Vec<u8>,
    },
    /// What [`Output::Power`] asked for has ended.
    PowerEnded {
        /// The order.
        order: u64,
        /// An exit code, 128 and a signal's number, or -1 where it could not be started.
        status: i32,
        /// What it printed, or why it failed.
        output: Vec<u8>,
    },
    /// A TFTP transfer or HTTP response that the engine decided has ended.
    TransferEnded {
        /// The receiver's address.
        peer: Ipv4Addr,
        /// Over what.
        service: Service,
        /// The path, as the answer carried it.
        path: String,
        /// Bytes delivered.
        bytes: u64,
        /// How it ended.
        outcome: TransferOutcome,
    },
    /// Something happened to a node's NFS use.
    Nfs {
        /// The client's address.
        address: Ipv4Addr,
        /// What.
        activity: NfsActivity,
    },
    /// All images that exist now; replaces the former list.
    Images {
        /// One for each tag.
        images: Vec<ImageInfo>,
        /// Every version, with a tag or without.
        versions: BTreeSet<Digest>,
        /// Versions that cannot run with SELinux, and why (shown to users).
        no_selinux: BTreeMap<Digest, String>,
    },
    /// What [`Output::Prepare`] ordered is done.
    Prepared {
        /// The version.
        version: Digest,
        /// Why there is no initramfs, where there is none.
        result: Result<(), String>,
    },
    /// A user's command. Answered by [`Output::Reply`].
    Command(Command),
    /// [`crate::Engine::next_deadline`] has come.
    Tick,
}

/// An HTTP request, as far as the engine cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// The method, such as `GET`.
    pub method: String,
    /// The request target: path and query, percent-encoded as received.
    pub target: String,
    /// The body, which the daemon bounds to [`MAX_HTTP_BODY_BYTES`].
    pub body: Vec<u8>,
}

/// Longest request body that any route takes.
pub const MAX_HTTP_BODY_BYTES: usize = wire::order::MAX_POLL_BYTES;

/// How long an HTTP request may wait for its answer; then it is answered 204, without content.
pub const HOLD_SECONDS: u64 = 60;

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferOutcome {
    /// Everything was delivered (for TFTP: acknowledged).
    Done,
    /// The receiver only asked for the size.
    Probe,
    /// It broke off.
    Failed {
        /// Why, for people.
        cause: String,
    },
}

/// What a node does over NFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NfsActivity {
    /// The first operation on the export: the root is mounted.
    Mounted,
    /// Its last connection closed.
    Gone,
    /// It uses a tree that is not exported: the first half of the image version's digest.
    Stale([u8; 16]),
    /// It was told of an I/O error in a tree: the first half of the image version's digest.
    Damaged([u8; 16]),
    /// Several clients at the address have this name.
    Collision(String),
    /// Totals of this client since the daemon started.
    Counters(NfsCounters),
}

/// Totals of an NFS client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfsCounters {
    /// Compound calls.
    pub rpcs: u64,
    /// Bytes of READ data.
    pub bytes: u64,
    /// Operations by name.
    pub by_op: BTreeMap<String, u64>,
}

/// What the daemon is to do. Outputs are in order: a [`Output::Persist`] must be durable before
/// anything behind it in the same list is carried out, except that [`Output::Event`] may go
/// ahead.
#[derive(Clone, Debug)]
pub enum Output {
    /// Store a record under its key.
    Persist(Record),
    /// Send a DHCP reply.
    Dhcp {
        /// Where it goes out.
        interface: InterfaceId,
        /// To whom.
        destination: DhcpDestination,
        /// The payload.
        packet: Vec<u8>,
    },
    /// Send a machine, and nobody else, the router advertisement of a machine that is no router
    /// ([`wire::ndp::NO_ROUTER`]).
    NoRouter {
        /// Where it goes out.
        interface: InterfaceId,
        /// To whom.
        destination: Ipv6Addr,
    },
    /// The answer to [`Input::Tftp`]; none means silence.
    Tftp {
        /// The asker.
        peer: SocketAddrV4,
        /// The answer.
        answer: TftpAnswer,
    },
    /// The answer to [`Input::Http`]; there is always exactly one, or a hold.
    Http(HttpAnswer),
    /// No answer to [`Input::Http`] yet: whoever waits is kept under this boot, in the place of
    /// whoever waited there before, for [`HOLD_SECONDS`] at most.
    HoldHttp {
        /// The boot.
        boot: BootId,
    },
    /// The answer for whoever waits under a boot; nobody may.
    AnswerHeld {
        /// The boot.
        boot: BootId,
        /// The answer.
        answer: HttpAnswer,
    },
    /// Make a version's initramfs, which nodes are going to ask for. Answered by
    /// [`Input::Prepared`]; nothing waits for it.
    Prepare {
        /// The version.
        version: Digest,
        /// What people call it.
        image: String,
    },
    /// Switch a machine's power. Answered by [`Input::PowerEnded`].
    Power {
        /// The order that it is.
        order: u64,
        /// What to do.
        task: PowerTask,
    },
    /// Tell users.
    Event(Event),
    /// The answer to [`Input::Command`]; there is always exactly one.
    Reply(Result<CommandReply, CommandError>),
}

/// Where a DHCP reply goes (RFC 2131, 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DhcpDestination {
    /// To the relay's server port.
    Relay(Ipv4Addr),
    /// To the client port of a configured address, through the ordinary routing.
    Unicast(Ipv4Addr),
    /// To the client port of 255.255.255.255.
    Broadcast,
    /// To the client port of an address that its owner does not answer ARP for yet: needs a raw
    /// frame. Broadcasting instead is allowed.
    Hardware {
        /// Ethernet destination.
        mac: Mac,
        /// IP destination.
        address: Ipv4Addr,
    },
    /// Back to who asked on port 4011, from that port.
    Asker(SocketAddrV4),
}

/// The answer to the first datagram of a TFTP transfer.
#[derive(Clone, Debug)]
pub enum TftpAnswer {
    /// Send this file from a new port. The daemon finds the content, tells the transfer its size
    /// by [`Transfer::start`] and drives it.
    Transfer {
        /// The transfer.
        transfer: Box<Transfer>,
        /// What it sends.
        content: Content,
        /// The path, for [`Input::TransferEnded`].
        path: String,
    },
    /// Send this one datagram, an ERROR packet, and forget about it.
    Error(Vec<u8>),
}

/// The answer to an HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The body. For HEAD the daemon sends its headers only.
    pub body: HttpBody,
    /// The path, for [`Input::TransferEnded`], where the end is to be reported.
    pub path: Option<String>,
}

/// The body of an HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpBody {
    /// Bytes or a file.
    Content(Content),
    /// The sealed identity document that the daemon makes from this grant.
    Identity(Box<IdentityGrant>),
}

/// Something to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A boot file of an image version.
    File {
        /// The version.
        digest: Digest,
        /// The file.
        file: BootFile,
    },
}

/// The engine's word that a node may have its identity: what the daemon needs to make the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityGrant {
    /// The node.
    pub mac: Mac,
    /// Its name.
    pub hostname: String,
    /// Its boot.
    pub boot: BootId,
    /// The verified request, whose public key the document is sealed to.
    pub request: IdentityRequest,
    /// The boot's secret, which the seal mixes in.
    pub token: Token,
    /// OpenSSH public keys for root.
    pub authorized_keys: Vec<String>,
    /// Whether anybody may log in on the console.
    pub console_login: bool,
    /// Addresses and names of all nodes that have an address, in order of their names.
    pub hosts: Arc<[(Ipv4Addr, String)]>,
    /// Files for the node's own layer.
    pub files: Vec<wire::identity::File>,
    /// The secret of the boot's orders.
    pub control_key: Option<ControlKey>,
    /// The image version that it boots.
    pub image: Option<Digest>,
}
