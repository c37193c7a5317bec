//! Every decision of Cleanslate: who is a node, what it boots, which address it has, what is
//! served to whom, how far each boot is.
//!
//! The engine is a state machine without clock, sockets, files or randomness of its own:
//! [`Engine::handle`] takes the time and one [`Input`] and answers with [`Output`]s.

mod command;
mod config;
mod event;
mod image;
mod io;
mod plan;
mod record;
pub mod text;
pub mod tftp;
mod time;
mod view;

pub use command::{Command, CommandError, CommandReply, NodeChange, Setting};
pub use config::{Config, Interface, InterfaceId};
pub use event::{Event, EventKind, Service, Severity};
pub use image::{BootFile, ImageInfo, ImageRef, ParseImageRefError};
pub use io::{
    Content, DhcpDestination, HttpAnswer, HttpBody, HttpRequest, IdentityGrant, Input,
    MAX_HTTP_BODY_BYTES, NfsActivity, NfsCounters, Output, TftpAnswer, TransferOutcome,
};
pub use plan::BootPlan;
pub use record::{Boot, Failure, Lease, Node, Record, Settings, StageAt};
pub use time::Timestamp;
pub use view::{BootView, NodeView};
pub use wire::digest::Digest;
pub use wire::mac::Mac;
pub use wire::stage::Stage;

/// The one place that decides.
#[derive(Debug)]
pub struct Engine {
    config: Config,
}

impl Engine {
    /// An engine with its settings, 32 random bytes, and the records that survived.
    pub fn new(config: Config, seed: [u8; 32], restored: Vec<Record>) -> Engine {
        let _ = (seed, restored);
        Engine { config }
    }

    /// Takes in one thing that happened and says what to do. Never panics, whatever the input.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Vec<Output> {
        let _ = (now, input);
        Vec::new()
    }

    /// When the engine wants an [`Input::Tick`].
    pub fn next_deadline(&self) -> Option<Timestamp> {
        None
    }

    /// Every node, sorted by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        Vec::new()
    }

    /// One node.
    pub fn node(&self, mac: &Mac) -> Option<NodeView> {
        let _ = mac;
        None
    }

    /// The settings it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
