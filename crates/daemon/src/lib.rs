//! The I/O shell of Cleanslate: one loop over the engine, thin socket loops around it.
//!
//! One task owns the [`engine::Engine`]; everything that comes in (packets, requests, ticks,
//! commands) becomes an input, and the outputs are carried out in order: what must be kept is
//! durable before the reply that promises it leaves. The daemon moves bytes and decides nothing.

mod blob;
mod content;
pub mod control;
pub mod doctor;
mod error;
mod exports;
mod hub;
mod identity;
mod journal;
mod keys;
mod listeners;
mod net;
mod notice;
mod options;
mod power;
pub mod preflight;
mod prepare;
mod run;
mod state;
mod trace;
mod tree;
mod unwritten;
mod uploads;
mod views;

pub use error::Error;
pub use journal::JournalEntry;
pub use notice::{ContentProgress, Listening, Notice};
pub use options::{
    CertificateFiles, DEFAULT_LEASE_SECONDS, DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, DhcpMode, Drivers,
    Options, Ports, UefiLoader, UnknownPolicy,
};

pub use run::run;
pub use state::versions_in_use;
pub use uploads::UPLOADS;
