//! Images: where root file systems come from and how they are kept.
//!
//! A [`Store`] holds immutable versions, each named by a [`Digest`] and found by tags
//! (`NAME:TAG`). A version is imported from a directory ([`Store::stage_dir`]), a tar archive
//! ([`Store::stage_tar`]) or a container image (the same, or [`Store::stage_layout`]), judged
//! while nothing names it yet, then published ([`Store::publish`]). A [`StoredTree`] reads a
//! version: it is one memory map and a bounded set of open objects, needs no rebuild at open, and
//! is shared between threads.
//!
//! The layout on disk is that of composefs: see [`store`].

pub mod boot;
pub mod build;
pub mod capabilities;
pub mod check;
pub mod checkout;
pub mod diff;
pub mod error;
pub mod export;
pub mod files;
pub mod import;
pub mod initramfs;
pub mod layer;
pub mod packages;
pub mod selinux;
pub mod store;
pub mod tree;
pub mod written;

pub mod erofs;
mod manifest;
mod survey;
mod verity;
mod walk;

pub use error::{Error, Result};
pub use import::{Progress, SkipReason, Skipped};
pub use store::{Collected, Damage, Move, Publish, Staged, Store, Tag, Verified, Version};
pub use tree::{Attr, Device, Entry, Extent, Kind, Mtime, Nid, Seek, StoredTree, Totals};
pub use wire::digest::Digest;
