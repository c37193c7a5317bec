//! A stored version, read in place: attributes, names and content by inode number.
//!
//! Nothing is built at open: every answer is read from the memory map of the version's
//! metadata, and the content of larger files from its object, opened on demand. All
//! methods take `&self`, and a tree may be used from any number of threads at once.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use wire::digest::Digest;

use crate::error::Result;

/// Symbolic links that one path may run through before [`StoredTree::walk_path`] gives up.
pub const LINKS_MAX: u32 = 40;

/// The largest file that [`StoredTree::read_file`] holds in memory, in bytes.
pub const READ_FILE_MAX: u64 = 1 << 30;

/// The number of an inode: stable for ever within one version (its EROFS node id).
pub type Nid = u32;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket. Imports skip these, other writers of the format may not.
    Socket,
}

/// A modification time: seconds since 1970, which may be negative, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    /// Whole seconds since 1970-01-01 UTC, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// A device's number; 0, 0 for what is no device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// 12 bits.
    pub major: u32,
    /// 20 bits.
    pub minor: u32,
}

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode's number.
    pub nid: Nid,
    /// What it is.
    pub kind: Kind,
    /// Permissions with set-user-id, set-group-id and sticky bits (`0o7777`), no type bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of a file; 2 and one for each sub-directory of a directory.
    pub nlink: u32,
    /// Bytes of a file or of a link's target; for a directory, of its entries in the image.
    pub size: u64,
    /// Last modification.
    pub mtime: Mtime,
    /// The device that a device node stands for.
    pub rdev: Device,
}

/// One name in a directory. `.` and `..` are not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name: any bytes but `/` and NUL, 1 to 255 of them.
    pub name: &'a [u8],
    /// The inode that it names.
    pub nid: Nid,
    /// What that inode is.
    pub kind: Kind,
    /// Where [`StoredTree::readdir`] resumes after this entry. At least 3 and stable for ever.
    pub cookie: u64,
}

/// A part of a file's content.
#[derive(Clone, Debug)]
pub enum Extent {
    /// Content held in the metadata: a slice of the memory map, not a copy.
    Bytes(Bytes),
    /// Content held in an object.
    File {
        /// The object, open for reading. Use positional reads: others share the descriptor.
        file: Arc<File>,
        /// First byte, from the start of the object.
        offset: u64,
        /// Length in bytes; the object is at least that long.
        len: u64,
    },
    /// That many zero bytes.
    Zero(u64),
}

/// What [`StoredTree::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

/// What a whole version holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Inodes of every kind.
    pub files: u64,
    /// The sizes of all regular files, each inode counted once, in bytes.
    pub bytes: u64,
}

/// An open version.
pub struct StoredTree {
    digest: Digest,
}

/// The entries of a directory, in byte order of their names.
pub struct ReadDir<'a> {
    _tree: &'a StoredTree,
}

impl<'a> Iterator for ReadDir<'a> {
    type Item = Result<Entry<'a>>;
    fn next(&mut self) -> Option<Self::Item> {
        None
    }
}

impl StoredTree {
    /// The version's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }
    /// The root directory.
    pub fn root(&self) -> Nid {
        unreachable!()
    }
    /// The attributes of an inode.
    pub fn attr(&self, _nid: Nid) -> Result<Attr> {
        unreachable!()
    }
    /// The inode of that name in a directory, if there is one. `.` and `..` work.
    pub fn lookup(&self, _dir: Nid, _name: &[u8]) -> Result<Option<Nid>> {
        unreachable!()
    }
    /// The directory that holds a directory; the root holds itself.
    pub fn parent(&self, _dir: Nid) -> Result<Nid> {
        unreachable!()
    }
    /// The entries of a directory after `cookie` (0: from the first).
    pub fn readdir(&self, _dir: Nid, _cookie: u64) -> Result<ReadDir<'_>> {
        unreachable!()
    }
    /// The target of a symbolic link.
    pub fn readlink(&self, _nid: Nid) -> Result<Bytes> {
        unreachable!()
    }
    /// Up to `len` bytes of a regular file from `offset`, in order; empty at or after its end.
    pub fn read(&self, _nid: Nid, _offset: u64, _len: u64) -> Result<Vec<Extent>> {
        unreachable!()
    }
    /// The kept extended attributes of an inode: full name and value, sorted by name.
    pub fn xattrs(&self, _nid: Nid) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        unreachable!()
    }
    /// The next data or hole at or after `offset` in a regular file; `None` at or after its end,
    /// and where no data follows.
    pub fn seek(&self, _nid: Nid, _offset: u64, _what: Seek) -> Result<Option<u64>> {
        unreachable!()
    }
    /// What the version holds; counted at the first call, then remembered.
    pub fn totals(&self) -> Result<Totals> {
        unreachable!()
    }
    /// The inode at a path from the root, all symbolic links followed inside the tree
    /// (absolute targets start at its root, `..` never leaves it).
    ///
    /// Fails with [`Error::NoSuchFile`], [`Error::NotADirectory`] or [`Error::TooManyLinks`].
    pub fn walk_path(&self, _path: impl AsRef<[u8]>) -> Result<Nid> {
        unreachable!()
    }
    /// The whole content of the regular file at a path (see [`StoredTree::walk_path`]).
    ///
    /// Files over [`READ_FILE_MAX`] bytes are refused.
    pub fn read_file(&self, _path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        unreachable!()
    }
    /// The whole content of a regular file, as [`StoredTree::read_file`].
    pub fn read_inode(&self, _nid: Nid) -> Result<Vec<u8>> {
        unreachable!()
    }
}
