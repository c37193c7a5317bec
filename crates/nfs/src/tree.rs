//! What the server serves: an immutable tree of inodes.
//!
//! The server calls a [`Tree`] from several threads at once and takes no lock around it. A tree
//! never changes while it is exported: the server promises its clients so, by handing out read
//! delegations that it will not recall.

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

/// An immutable file tree, addressed by inode number.
///
/// Inode numbers are below 2^32 and must be the same every time that the same tree is exported:
/// they are in the file handles which clients keep over a restart of the server. A number that
/// comes from a client may be anything; answer [`TreeError::Stale`] for one that does not exist.
pub trait Tree: Send + Sync {
    /// Inode number of the root directory.
    fn root(&self) -> u32;

    /// Attributes of an inode.
    fn attr(&self, ino: u32) -> Result<Attr, TreeError>;

    /// Inode number of `name` in the directory `dir`. The name is never empty, `.` or `..`, and
    /// holds neither a slash nor a NUL.
    fn lookup(&self, dir: u32, name: &[u8]) -> Result<u32, TreeError>;

    /// Inode number of the directory that holds the directory `dir`; the root is its own parent.
    fn parent(&self, dir: u32) -> Result<u32, TreeError>;

    /// Hands the entries of `dir` after `cookie` (0: from the start) to `each`, in a stable order
    /// and without `.` and `..`, until it breaks.
    fn readdir(
        &self,
        dir: u32,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), TreeError>;

    /// Appends the target of the symbolic link `ino` to `target`.
    fn readlink(&self, ino: u32, target: &mut Vec<u8>) -> Result<(), TreeError>;

    /// Hands what makes up the bytes `offset..offset + len` of the regular file `ino` to `each`, in
    /// order. The extents together hold exactly the part of that range which lies within the file;
    /// the caller has already limited `len` to what it can take.
    fn read(
        &self,
        ino: u32,
        offset: u64,
        len: u32,
        each: &mut dyn FnMut(Extent<'_>),
    ) -> Result<(), TreeError>;

    /// Appends the value of the extended attribute with the full name `name` (`user.mime_type`,
    /// `security.selinux`) to `value`; [`TreeError::NotFound`] where there is none.
    fn xattr(&self, _ino: u32, _name: &[u8], _value: &mut Vec<u8>) -> Result<(), TreeError> {
        Err(TreeError::NotFound)
    }

    /// Hands the full names of the extended attributes of `ino` to `each`, in a stable order.
    fn xattr_names(&self, _ino: u32, _each: &mut dyn FnMut(&[u8])) -> Result<(), TreeError> {
        Ok(())
    }

    /// The first byte at or after `offset` of the regular file `ino` that is data, or that is in a
    /// hole. The end of a file counts as a hole; `Ok(None)`: there is no such byte. `offset` is
    /// below the file's size. The default is a file without holes.
    fn seek(&self, ino: u32, offset: u64, whence: Whence) -> Result<Option<u64>, TreeError> {
        Ok(match whence {
            Whence::Data => Some(offset),
            Whence::Hole => Some(self.attr(ino)?.size),
        })
    }

    /// Whether inodes carry a `security.selinux` label that clients should see (NFS 4.2).
    fn has_labels(&self) -> bool {
        false
    }

    /// Sizes for `df`.
    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// What is in a directory under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Name, without a slash.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: u32,
    /// Passing this to [`Tree::readdir`] goes on after this entry. At least 1, at most 2^63.
    pub cookie: u64,
}

/// A piece of a file's content.
#[derive(Clone, Debug)]
pub enum Extent<'a> {
    /// Bytes that the tree holds in memory.
    Bytes(&'a [u8]),
    /// Bytes that the tree has anyway, such as a part of a mapped file, and that stay for as long as
    /// somebody has this: keeping them for a slow peer counts as nothing. They are sent from where
    /// they are, and nothing but the kernel reads them: so they may be the mapping of a file. Should
    /// the file lose them nevertheless, the connection ends, and the client gets an I/O error when it
    /// asks again.
    Held(Bytes),
    /// Bytes that another file holds.
    File {
        /// The file, open for reading.
        file: &'a Arc<File>,
        /// Where they start in it.
        offset: u64,
        /// Their count.
        len: u32,
    },
    /// So many zero bytes.
    Zero(u32),
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Type.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (0o7777).
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content.
    pub size: u64,
    /// Bytes on disk.
    pub used: u64,
    /// Major and minor number of a device node.
    pub rdev: (u32, u32),
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
}

/// A moment since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

/// Type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharDevice,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

impl FileKind {
    /// What version 3 (ftype3, RFC 1813) and version 4 (nfs_ftype4, RFC 8881) call it.
    pub(crate) fn number(self) -> u32 {
        match self {
            FileKind::Regular => 1,
            FileKind::Directory => 2,
            FileKind::BlockDevice => 3,
            FileKind::CharDevice => 4,
            FileKind::Symlink => 5,
            FileKind::Socket => 6,
            FileKind::Fifo => 7,
        }
    }
}

/// What [`Tree::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// Data.
    Data,
    /// A hole.
    Hole,
}

/// Sizes of a whole tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of content.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Why a tree has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// No such inode.
    #[error("no such inode")]
    Stale,
    /// No such name or attribute.
    #[error("no such name")]
    NotFound,
    /// The inode is not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// The inode is of another type than the call needs.
    #[error("wrong type of inode")]
    WrongKind,
    /// The tree's storage failed or is damaged.
    #[error("reading the tree failed")]
    Io,
}
