//! A stored version, read in place: attributes, names and content by inode number.
//!
//! Nothing is built at open: every answer is read from the memory map of the version's
//! metadata, and the content of larger files from its object, opened on demand. All
//! methods take `&self`, and a tree may be used from any number of threads at once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::fs::SeekFrom;
use wire::digest::Digest;

use crate::erofs::format::*;
use crate::erofs::{Image, Inode};
use crate::error::{Error, Result, shown};
use crate::manifest::{components, is_kept_xattr};
use crate::store::objects::Objects;

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
    image: Image<Bytes>,
    objects: Arc<Objects>,
    totals: OnceLock<Totals>,
    /// Holds the shared lock that keeps the version in the store while it is open.
    _lock: File,
}

/// Bits of a cookie that count entries within a block of a directory.
const COOKIE_ENTRY_BITS: u32 = 9;
/// Cookies start above 2: NFS gives 0, 1 and 2 meanings of their own.
const COOKIE_FIRST: u64 = 2;

impl StoredTree {
    /// A tree over the bytes of an image; `lock` is kept for as long as the tree.
    pub(crate) fn new(
        digest: Digest,
        image: Bytes,
        objects: Arc<Objects>,
        lock: File,
    ) -> Result<StoredTree> {
        let image = Image::open(image)?;
        Ok(StoredTree {
            digest,
            image,
            objects,
            totals: OnceLock::new(),
            _lock: lock,
        })
    }

    /// The version's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        self.image.root()
    }

    /// The attributes of an inode.
    pub fn attr(&self, nid: Nid) -> Result<Attr> {
        let inode = self.image.inode(nid)?;
        let kind = self.kind(&inode)?;
        let (major, minor) = match kind {
            Kind::Character | Kind::Block if inode.kind() != TYPE_FILE => inode.device(),
            _ => (0, 0),
        };
        Ok(Attr {
            nid,
            kind,
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            nlink: inode.nlink,
            size: inode.size,
            mtime: Mtime {
                seconds: inode.mtime.0,
                nanoseconds: inode.mtime.1,
            },
            rdev: Device { major, minor },
        })
    }

    /// The inode of that name in a directory, if there is one. `.` and `..` work.
    pub fn lookup(&self, dir: Nid, name: &[u8]) -> Result<Option<Nid>> {
        let Some(nid) = self.image.lookup(&self.directory(dir)?, name)? else {
            return Ok(None);
        };
        let hidden = self.image.inode(nid)?.is_whiteout();
        Ok((!hidden).then_some(nid))
    }

    /// The directory that holds a directory; the root holds itself.
    pub fn parent(&self, dir: Nid) -> Result<Nid> {
        self.lookup(dir, b"..")?
            .ok_or_else(|| Error::NoSuchFile { path: "..".into() })
    }

    /// The entries of a directory after `cookie` (0: from the first).
    pub fn readdir(&self, dir: Nid, cookie: u64) -> Result<ReadDir<'_>> {
        let directory = self.directory(dir)?;
        let blocks = self.image.directory_blocks(&directory)?;
        let position = cookie.saturating_sub(COOKIE_FIRST);
        let entry = position & ((1 << COOKIE_ENTRY_BITS) - 1);
        let block = usize::try_from(position >> COOKIE_ENTRY_BITS).unwrap_or(usize::MAX);
        Ok(ReadDir {
            tree: self,
            directory,
            blocks,
            block,
            entry: entry as usize,
        })
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, nid: Nid) -> Result<Bytes> {
        let inode = self.image.inode(nid)?;
        if inode.kind() != TYPE_SYMLINK {
            return Err(Error::NotALink { nid });
        }
        let held = self.image.held(&inode)?;
        let range = if held.tail.is_empty() {
            held.blocks
        } else {
            held.tail
        };
        Ok(self.image.source().slice(range))
    }

    /// Up to `len` bytes of a regular file from `offset`, in order; empty at or after its end.
    pub fn read(&self, nid: Nid, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let inode = self.file(nid)?;
        let len = len.min(inode.size.saturating_sub(offset));
        if len == 0 {
            return Ok(Vec::new());
        }
        if inode.is_external() {
            let file = self.object(&inode)?;
            return Ok(vec![Extent::File { file, offset, len }]);
        }
        let held = self.image.held(&inode)?;
        // Both fit a usize: they are within what the image holds.
        let (mut start, mut left) = (offset as usize, len as usize);
        let mut extents = Vec::with_capacity(1);
        for range in [held.blocks, held.tail] {
            let part = (range.start + start.min(range.len())..range.end).take_first(left);
            start = start.saturating_sub(range.len());
            left -= part.len();
            if !part.is_empty() {
                extents.push(Extent::Bytes(self.image.source().slice(part)));
            }
        }
        Ok(extents)
    }

    /// The whole content of a regular file that is in an object, where that is mapped; `None` for
    /// content that is held in the metadata. Only the kernel should read it, to send it: a disk that
    /// fails would end the process.
    pub fn map(&self, nid: Nid) -> Result<Option<Bytes>> {
        let inode = self.file(nid)?;
        if inode.is_external() && inode.size > 0 {
            let digest = self.image.object(&inode)?;
            return self.objects.map(digest, inode.size).map(Some);
        }
        Ok(None)
    }

    /// The kept extended attributes of an inode: full name and value, sorted by name.
    pub fn xattrs(&self, nid: Nid) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut kept = Vec::new();
        self.image
            .each_xattr(&self.image.inode(nid)?, |name, value| {
                // Of most files these are all: where their objects lie.
                if name.is_below("trusted.") {
                    return;
                }
                let name = name.full();
                if is_kept_xattr(&name) {
                    kept.push((name, value.to_vec()));
                }
            })?;
        kept.sort();
        Ok(kept)
    }

    /// The next data or hole at or after `offset` in a regular file; `None` at or after its end,
    /// and where no data follows.
    pub fn seek(&self, nid: Nid, offset: u64, what: Seek) -> Result<Option<u64>> {
        let inode = self.file(nid)?;
        if offset >= inode.size {
            return Ok(None);
        }
        if !inode.is_external() {
            return Ok(Some(if what == Seek::Data {
                offset
            } else {
                inode.size
            }));
        }
        let file = self.object(&inode)?;
        let from = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        match rustix::fs::seek(&*file, from) {
            Ok(found) => Ok(Some(found.min(inode.size))),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => {
                Err(self
                    .objects
                    .error("seeking in", self.image.object(&inode)?, error.into()))
            }
        }
    }

    /// What the version holds; counted at the first call, then remembered.
    pub fn totals(&self) -> Result<Totals> {
        if let Some(totals) = self.totals.get() {
            return Ok(*totals);
        }
        let mut totals = Totals::default();
        self.each_inode(|inode| {
            totals.files += 1;
            totals.bytes += if inode.kind() == TYPE_FILE {
                inode.size
            } else {
                0
            };
            Ok(())
        })?;
        Ok(*self.totals.get_or_init(|| totals))
    }

    /// The inode at a path from the root, all symbolic links followed inside the tree
    /// (absolute targets start at its root, `..` never leaves it).
    ///
    /// Fails with [`Error::NoSuchFile`], [`Error::NotADirectory`] or [`Error::TooManyLinks`].
    pub fn walk_path(&self, path: impl AsRef<[u8]>) -> Result<Nid> {
        let path = path.as_ref();
        let mut links = 0;
        let mut at = self.root();
        let mut ahead: Vec<Vec<u8>> = reversed(path);
        while let Some(name) = ahead.pop() {
            let next = self
                .lookup(at, &name)?
                .ok_or_else(|| Error::NoSuchFile { path: shown(path) })?;
            if self.image.inode(next)?.kind() != TYPE_SYMLINK {
                at = next;
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Error::TooManyLinks { path: shown(path) });
            }
            let target = self.readlink(next)?;
            at = if target.starts_with(b"/") {
                self.root()
            } else {
                at
            };
            ahead.extend(reversed(&target));
        }
        Ok(at)
    }

    /// The whole content of the regular file at a path (see [`StoredTree::walk_path`]).
    ///
    /// Files over [`READ_FILE_MAX`] bytes are refused.
    pub fn read_file(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        self.read_inode(self.walk_path(path)?)
    }

    /// The whole content of a regular file, as [`StoredTree::read_file`].
    pub fn read_inode(&self, nid: Nid) -> Result<Vec<u8>> {
        let inode = self.file(nid)?;
        if inode.size > READ_FILE_MAX {
            let path = format!("inode {nid}");
            return Err(Error::TooLarge {
                path,
                size: inode.size,
                limit: READ_FILE_MAX,
            });
        }
        let mut content = Vec::with_capacity(inode.size as usize);
        for extent in self.read(nid, 0, inode.size)? {
            match extent {
                Extent::Bytes(bytes) => content.extend_from_slice(&bytes),
                Extent::Zero(len) => content.resize(content.len() + len as usize, 0),
                Extent::File { file, offset, len } => {
                    let start = content.len();
                    content.resize(start + len as usize, 0);
                    let read = file.read_exact_at(&mut content[start..], offset);
                    read.map_err(|error| self.unreadable(&inode, error))?;
                }
            }
        }
        Ok(content)
    }

    /// The whole content of a file, a slice of the memory map where it lies there in one piece.
    pub(crate) fn held(&self, nid: Nid) -> Result<Bytes> {
        let size = self.file(nid)?.size;
        Ok(match &self.read(nid, 0, size)?[..] {
            [] => Bytes::new(),
            [Extent::Bytes(bytes)] => bytes.clone(),
            _ => self.read_inode(nid)?.into(),
        })
    }

    /// The objects that the version needs, each once, and their lengths.
    pub(crate) fn objects(&self) -> Result<std::collections::HashMap<Digest, u64>> {
        let mut objects = std::collections::HashMap::new();
        self.each_inode(|inode| {
            if inode.kind() == TYPE_FILE && inode.is_external() {
                objects.insert(self.image.object(inode)?, inode.size);
            }
            Ok(())
        })?;
        Ok(objects)
    }

    /// The object that holds an inode's content, if one does.
    pub(crate) fn object_of(&self, nid: Nid) -> Result<Option<Digest>> {
        let inode = self.image.inode(nid)?;
        let external = inode.kind() == TYPE_FILE && inode.is_external();
        let object = external.then(|| self.image.object(&inode));
        Ok(object.transpose()?)
    }

    /// Visits every inode of the tree once.
    fn each_inode(&self, mut visit: impl FnMut(&Inode) -> Result<()>) -> Result<()> {
        let mut seen = vec![0u64; self.image.bytes().len() / SLOT / 64 + 1];
        let mut ahead = vec![self.root()];
        while let Some(nid) = ahead.pop() {
            let inode = self.image.inode(nid)?;
            let (word, bit) = (nid as usize / 64, 1 << (nid % 64));
            if seen.get(word).is_none_or(|word| word & bit != 0) {
                continue;
            }
            seen[word] |= bit;
            visit(&inode)?;
            if inode.kind() == TYPE_DIRECTORY {
                for entry in self.readdir(nid, 0)? {
                    ahead.push(entry?.nid);
                }
            }
        }
        Ok(())
    }

    fn kind(&self, inode: &Inode) -> Result<Kind> {
        Ok(match inode.kind() {
            TYPE_FILE if inode.size == 0 && self.is_escaped_whiteout(inode)? => Kind::Character,
            TYPE_FILE => Kind::File,
            TYPE_DIRECTORY => Kind::Directory,
            TYPE_SYMLINK => Kind::Symlink,
            TYPE_CHARACTER => Kind::Character,
            TYPE_BLOCK => Kind::Block,
            TYPE_FIFO => Kind::Fifo,
            TYPE_SOCKET => Kind::Socket,
            _ => return Err(self.corrupt("an inode of no known type", inode.nid)),
        })
    }

    fn is_escaped_whiteout(&self, inode: &Inode) -> Result<bool> {
        let mut escaped = false;
        self.image.each_xattr(inode, |name, _| {
            escaped |= name.is(ESCAPED_WHITEOUT);
        })?;
        Ok(escaped)
    }

    fn directory(&self, nid: Nid) -> Result<Inode> {
        let inode = self.image.inode(nid)?;
        if inode.kind() == TYPE_DIRECTORY {
            Ok(inode)
        } else {
            Err(Error::NotADirectory { nid })
        }
    }

    fn file(&self, nid: Nid) -> Result<Inode> {
        let inode = self.image.inode(nid)?;
        if inode.kind() == TYPE_FILE {
            Ok(inode)
        } else {
            Err(Error::NotAFile { nid })
        }
    }

    fn object(&self, inode: &Inode) -> Result<Arc<File>> {
        self.objects.open(self.image.object(inode)?, inode.size)
    }

    fn unreadable(&self, inode: &Inode, error: io::Error) -> Error {
        match self.image.object(inode) {
            Ok(digest) => self.objects.error("reading", digest, error),
            Err(corrupt) => corrupt.into(),
        }
    }

    fn corrupt(&self, what: &'static str, nid: Nid) -> Error {
        crate::erofs::Corrupt {
            what,
            offset: u64::from(nid) * SLOT as u64,
        }
        .into()
    }
}

/// The entries of a directory, in byte order of their names.
pub struct ReadDir<'a> {
    tree: &'a StoredTree,
    directory: Inode,
    blocks: usize,
    block: usize,
    entry: usize,
}

impl<'a> ReadDir<'a> {
    /// The entry at the position, which then moves on; `None` where it shows nothing.
    fn step(&mut self) -> Result<Option<Entry<'a>>> {
        let block = self
            .tree
            .image
            .directory_block(&self.directory, self.block)?;
        if self.entry >= block.len() {
            self.block += 1;
            self.entry = 0;
            return Ok(None);
        }
        let entry = block.entry(self.entry)?;
        self.entry += 1;
        if matches!(entry.name, b"." | b"..") {
            return Ok(None);
        }
        let inode = self.tree.image.inode(entry.nid)?;
        if inode.is_whiteout() {
            return Ok(None);
        }
        let position = (self.block as u64) << COOKIE_ENTRY_BITS | self.entry as u64;
        Ok(Some(Entry {
            name: entry.name,
            nid: entry.nid,
            kind: self.tree.kind(&inode)?,
            cookie: COOKIE_FIRST + position,
        }))
    }
}

impl<'a> Iterator for ReadDir<'a> {
    type Item = Result<Entry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.block < self.blocks {
            match self.step() {
                Ok(None) => {}
                Ok(Some(entry)) => return Some(Ok(entry)),
                Err(error) => {
                    self.block = self.blocks;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

trait TakeFirst {
    /// The first `count` of a range, or all of it.
    fn take_first(self, count: usize) -> Self;
}

impl TakeFirst for std::ops::Range<usize> {
    fn take_first(self, count: usize) -> Self {
        self.start..self.end.min(self.start.saturating_add(count))
    }
}

fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<_> = components(path).map(<[u8]>::to_vec).collect();
    parts.reverse();
    parts
}
