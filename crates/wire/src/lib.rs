//! Bytes to types and back: every format that crosses the network between a node and its server,
//! and every file format that both sides know. No I/O, no clock, no randomness.

pub mod beacon;
pub mod cmdline;
pub mod cpio;
pub mod dhcp4;
pub mod dhcp_text;
pub mod digest;
pub mod fold;
pub mod hex;
pub mod identity;
pub mod mac;
pub mod modtable;
pub mod ndp;
pub mod netconsole;
pub mod order;
pub mod ranges;
pub mod reader;
pub mod stage;
pub mod tftp;
pub mod trace;
pub mod upload;
