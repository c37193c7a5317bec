//! The store on disk.

use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use wire::digest::Digest;

use crate::error::Result;
use crate::import::{Progress, Skipped};
use crate::tree::StoredTree;

/// A directory that holds image versions.
pub struct Store {}

/// A name of a version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// The image's name (`debian13`).
    pub name: String,
    /// The tag (`latest`, `next`).
    pub tag: String,
    /// The version that it names.
    pub digest: Digest,
}

/// A version in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its name.
    pub digest: Digest,
    /// The tags that name it, as `NAME:TAG`, sorted.
    pub tags: Vec<String>,
    /// The sizes of its files, in bytes.
    pub bytes: u64,
    /// Its inodes.
    pub files: u64,
    /// When it was published.
    pub created: SystemTime,
}

/// Which tag a publication moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish<'a> {
    /// The rule for imports and commits: `NAME:latest` where the image has no tag yet,
    /// else `NAME:next`, never a tag that nodes follow.
    Import {
        /// The image's name.
        name: &'a str,
    },
    /// That tag and no other.
    Tag {
        /// The image's name.
        name: &'a str,
        /// The tag.
        tag: &'a str,
    },
    /// None: the version is found by its digest alone, and the next [`Store::gc`] removes it.
    Untagged,
}

/// A version whose objects are written and that nothing names yet. Dropping it discards it.
pub struct Staged {}

impl Staged {
    /// The name that the version will have.
    pub fn digest(&self) -> Digest {
        unreachable!()
    }
    /// The tree, to be judged before it is published.
    pub fn tree(&self) -> &StoredTree {
        unreachable!()
    }
    /// What the source had and the version has not.
    pub fn skipped(&self) -> &[Skipped] {
        unreachable!()
    }
}

impl Store {
    /// Opens the store in a directory, and makes it first where there is none.
    pub fn open(_dir: impl AsRef<Path>) -> Result<Store> {
        unreachable!()
    }
    /// The store's directory.
    pub fn path(&self) -> &Path {
        unreachable!()
    }
    /// Reads a directory into the store. As root: owners, devices and attributes are kept.
    pub fn stage_dir(
        &self,
        _source: &Path,
        _progress: &mut dyn FnMut(Progress),
    ) -> Result<Staged> {
        unreachable!()
    }
    /// Reads a tar archive, plain or compressed (gzip, zstd, xz), into the store.
    pub fn stage_tar(
        &self,
        _source: impl Read,
        _progress: &mut dyn FnMut(Progress),
    ) -> Result<Staged> {
        unreachable!()
    }
    /// Makes a staged version durable, then moves a tag to it, if `judge` lets it pass.
    ///
    /// `judge` sees the tree before anything names it, and refuses it by an error
    /// ([`crate::Error::Refused`]). Returns the tag that was moved.
    pub fn publish(
        &self,
        _staged: Staged,
        _to: Publish<'_>,
        _judge: impl FnOnce(&StoredTree) -> Result<()>,
    ) -> Result<Option<Tag>> {
        unreachable!()
    }
    /// Moves (or makes) a tag, atomically.
    pub fn tag(&self, _name: &str, _tag: &str, _digest: Digest) -> Result<()> {
        unreachable!()
    }
    /// Removes a tag; the version stays until [`Store::gc`].
    pub fn remove_tag(&self, _name: &str, _tag: &str) -> Result<()> {
        unreachable!()
    }
    /// All tags, sorted by name and tag.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        unreachable!()
    }
    /// All versions, by their first tag; those without a tag last.
    pub fn list(&self) -> Result<Vec<Version>> {
        unreachable!()
    }
    /// The version that `NAME`, `NAME:TAG` or a digest names. The tag is `latest` by default.
    pub fn resolve(&self, _reference: &str) -> Result<Digest> {
        unreachable!()
    }
    /// Opens a version. While it is open, here or in another process, [`Store::gc`] keeps it.
    pub fn open_tree(&self, _digest: Digest) -> Result<StoredTree> {
        unreachable!()
    }
    /// A value that changes whenever a tag is moved, made or removed, by whichever process.
    /// Cheap: one system call.
    pub fn generation(&self) -> Result<u64> {
        unreachable!()
    }
    /// Reads a version and all its objects again and compares every digest.
    /// Returns what is damaged, empty where all is well.
    pub fn verify(
        &self,
        _digest: Digest,
        _progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<crate::Error>> {
        unreachable!()
    }
    /// Removes every version that no tag names, that nobody has open and that is not in
    /// `keep`, then the objects that no version needs.
    pub fn gc(&self, _keep: &[Digest]) -> Result<Collected> {
        unreachable!()
    }
}

/// What [`Store::gc`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Versions.
    pub versions: Vec<Digest>,
    /// Objects, images included.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}
