//! A read-only NFS server for immutable trees.
//!
//! The server speaks NFS 4.1 and 4.2 (RFC 8881, 7862, 8276, 9754) and NFS 3 with its MOUNT protocol
//! (RFC 1813), all over TCP and one port, and serves any [`Tree`]. Because a tree never changes,
//! state is nearly free: every session, client and state id describes itself under the server's
//! key, so that a restarted server goes on where the old one was killed, without a grace period.
//!
//! ```no_run
//! # fn tree() -> std::sync::Arc<dyn nfs::Tree> { panic!() }
//! let server = nfs::Server::new(nfs::Config::new([7; 32]))?
//!     .export("/images/debian", [1; 16], tree())?;
//! server.serve(std::net::TcpListener::bind("0.0.0.0:2049")?)?;
//! # server.shutdown();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access;
mod activity;
mod connection;
mod content;
mod exports;
mod ident;
mod outgoing;
mod page;
mod rpc;
mod server;
mod stats;
mod status;
mod tree;
mod v3;
mod v4;
mod xdr;

pub use activity::{Activity, Observer};
pub use exports::{ExportError, Exports};
pub use server::{Config, Direct, Server};
pub use stats::{ClientStats, Counters, Stats};
pub use tree::{Attr, DirEntry, Extent, FileKind, Time, Tree, TreeError, Usage, Whence};
