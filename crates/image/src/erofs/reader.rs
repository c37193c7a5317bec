//! Reads an EROFS image of composefs's kind in place.
//!
//! Panic contract: no image, however damaged, makes any function here panic, read outside the
//! image or run for longer than the image is big. What breaks the format is a [`Corrupt`].

use std::ops::Range;

use wire::digest::Digest;

use super::Corrupt;
use super::format::*;

type Result<T> = std::result::Result<T, Corrupt>;

/// An image in memory.
pub struct Image<B> {
    bytes: B,
    root: u32,
    oldest: (i64, u32),
    meta: usize,
    shared_xattrs: usize,
}

/// An inode as it is on disk.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    /// Its number.
    pub nid: u32,
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names.
    pub nlink: u32,
    /// Bytes of content.
    pub size: u64,
    /// Seconds and nanoseconds of the last modification.
    pub mtime: (i64, u32),
    layout: u16,
    /// Block address, device or chunk format.
    word: u32,
    xattrs: usize,
    xattrs_len: usize,
}

impl Inode {
    /// The type bits of the mode.
    pub fn kind(&self) -> u16 {
        self.mode & TYPE_MASK
    }

    /// The device that a device node stands for: major and minor.
    pub fn device(&self) -> (u32, u32) {
        (
            self.word >> 8 & 0xfff,
            self.word & 0xff | self.word >> 12 & 0xf_ff00,
        )
    }

    /// Whether the content is in an object.
    pub fn is_external(&self) -> bool {
        self.layout == LAYOUT_CHUNKS
    }

    /// Whether this hides a name in an overlay and is no file of the tree.
    pub fn is_whiteout(&self) -> bool {
        self.kind() == TYPE_CHARACTER && self.device() == (0, 0)
    }

    fn end(&self) -> usize {
        self.xattrs + self.xattrs_len
    }
}

/// A name in a directory, as it is on disk: `.`, `..` and whiteouts included.
#[derive(Clone, Copy, Debug)]
pub struct Dirent<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The inode.
    pub nid: u32,
}

/// Content that lies in the image: whole blocks, then the rest. Both are within the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Bytes in blocks.
    pub blocks: Range<usize>,
    /// Bytes after the inode.
    pub tail: Range<usize>,
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Reads the headers.
    pub fn open(bytes: B) -> Result<Image<B>> {
        let mut image = Image {
            bytes,
            root: 0,
            oldest: (0, 0),
            meta: 0,
            shared_xattrs: 0,
        };
        image.expect_u32(0, COMPOSEFS_MAGIC, "not a composefs image")?;
        image.expect_u32(
            4,
            HEADER_VERSION,
            "an unknown version of the composefs header",
        )?;
        image.expect_u32(SUPERBLOCK, EROFS_MAGIC, "no EROFS superblock")?;
        if u32::from(image.u8(SUPERBLOCK + 12)?) != BLOCK_BITS {
            return corrupt("blocks are not of 4096 bytes", SUPERBLOCK + 12);
        }
        if image.u32(SUPERBLOCK + 80)? & !FEATURE_CHUNKED != 0 {
            return corrupt("unknown incompatible features", SUPERBLOCK + 80);
        }
        image.root = u32::from(image.u16(SUPERBLOCK + 14)?);
        image.oldest = (
            image.u64(SUPERBLOCK + 24)? as i64,
            image.u32(SUPERBLOCK + 32)?,
        );
        image.meta = image.block(image.u32(SUPERBLOCK + 40)?);
        image.shared_xattrs = image.block(image.u32(SUPERBLOCK + 44)?);
        Ok(image)
    }

    /// The whole image.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// What holds the image.
    pub fn source(&self) -> &B {
        &self.bytes
    }

    /// The root directory.
    pub fn root(&self) -> u32 {
        self.root
    }

    /// An inode.
    pub fn inode(&self, nid: u32) -> Result<Inode> {
        let at = self.meta + nid as usize * SLOT;
        let format = self.u16(at)?;
        let (layout, extended) = (format >> 1 & 7, format & 1 == 1);
        if !matches!(layout, LAYOUT_PLAIN | LAYOUT_INLINE | LAYOUT_CHUNKS) || format >> 4 != 0 {
            return corrupt("an inode of an unknown layout", at);
        }
        let header = if extended { EXTENDED } else { COMPACT };
        self.get(at..at + header)?;
        let xattrs_len = match self.u16(at + 2)? {
            0 => 0,
            count => XATTR_HEADER + (usize::from(count) - 1) * 4,
        };
        self.get(at + header..at + header + xattrs_len)?;
        let mut inode = Inode {
            nid,
            mode: self.u16(at + 4)?,
            layout,
            word: self.u32(at + 16)?,
            xattrs: at + header,
            xattrs_len,
            uid: u32::from(self.u16(at + 24)?),
            gid: u32::from(self.u16(at + 26)?),
            nlink: u32::from(self.u16(at + 6)?),
            size: u64::from(self.u32(at + 8)?),
            mtime: self.oldest,
        };
        if extended {
            inode.size = self.u64(at + 8)?;
            inode.uid = self.u32(at + 24)?;
            inode.gid = self.u32(at + 28)?;
            inode.mtime = (self.u64(at + 32)? as i64, self.u32(at + 40)?);
            inode.nlink = self.u32(at + 44)?;
        }
        if inode.mtime.1 >= 1_000_000_000 {
            return corrupt(
                "a modification time of more than a second of nanoseconds",
                at,
            );
        }
        Ok(inode)
    }

    /// The content of an inode that holds it in the image.
    pub fn held(&self, inode: &Inode) -> Result<Held> {
        let size = usize::try_from(inode.size)
            .or_else(|_| corrupt("content outside the image", inode.xattrs))?;
        let tail = match inode.layout {
            LAYOUT_PLAIN => 0,
            LAYOUT_INLINE => size % BLOCK,
            _ => return corrupt("content that is in no image", inode.xattrs),
        };
        let start = self.block(inode.word);
        let blocks = if size == tail {
            0..0
        } else {
            start..start.saturating_add(size - tail)
        };
        let held = Held {
            blocks,
            tail: inode.end()..inode.end() + tail,
        };
        self.get(held.blocks.clone())?;
        self.get(held.tail.clone())?;
        Ok(held)
    }

    /// The object of an inode whose content is external.
    pub fn object(&self, inode: &Inode) -> Result<Digest> {
        let mut found = None;
        self.each_xattr(inode, |name, value| {
            if name.is(REDIRECT) {
                found = object_of(value);
            }
        })?;
        found.map_or_else(
            || corrupt("a file without content or object", inode.xattrs),
            Ok,
        )
    }

    /// The number of blocks of a directory.
    pub fn directory_blocks(&self, inode: &Inode) -> Result<usize> {
        let held = self.held(inode)?;
        Ok(held.blocks.len().div_ceil(BLOCK) + usize::from(!held.tail.is_empty()))
    }

    /// One block of a directory.
    pub fn directory_block(&self, inode: &Inode, index: usize) -> Result<DirectoryBlock<'_>> {
        let held = self.held(inode)?;
        let start = held.blocks.start + index * BLOCK;
        let range = if start < held.blocks.end {
            start..held.blocks.end.min(start + BLOCK)
        } else {
            held.tail
        };
        let offset = range.start;
        let bytes = self.get(range)?;
        let names = bytes
            .get(8..10)
            .map_or(0, |raw| usize::from(u16::from_le_bytes([raw[0], raw[1]])));
        if names < DIRENT || names % DIRENT != 0 || names > bytes.len() {
            return corrupt("a directory block without entries", offset);
        }
        Ok(DirectoryBlock {
            bytes,
            offset,
            len: names / DIRENT,
        })
    }

    /// The inode of a name, `.` and `..` included, whiteouts too.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let (mut low, mut high) = (0, self.directory_blocks(directory)?);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.directory_block(directory, middle)?.entry(0)?.name <= name {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        match low.checked_sub(1) {
            Some(index) => self.directory_block(directory, index)?.find(name),
            None => Ok(None),
        }
    }

    /// Calls back for every attribute of an inode, the shared ones first.
    pub fn each_xattr(
        &self,
        inode: &Inode,
        mut each: impl FnMut(XattrName<'_>, &[u8]),
    ) -> Result<()> {
        if inode.xattrs_len == 0 {
            return Ok(());
        }
        let shared = usize::from(self.u8(inode.xattrs + 4)?);
        let own = inode.xattrs + XATTR_HEADER + shared * 4;
        if own > inode.end() {
            return corrupt("more shared attributes than fit", inode.xattrs);
        }
        for place in (inode.xattrs + XATTR_HEADER..own).step_by(4) {
            let at = self.shared_xattrs + self.u32(place)? as usize * 4;
            self.xattr(at, self.bytes().len(), &mut each)?;
        }
        let mut at = own;
        while at < inode.end() {
            at = self.xattr(at, inode.end(), &mut each)?;
        }
        Ok(())
    }

    /// One attribute; returns where the next starts.
    fn xattr(
        &self,
        at: usize,
        limit: usize,
        each: &mut impl FnMut(XattrName<'_>, &[u8]),
    ) -> Result<usize> {
        let (name_len, index, value_len) = (
            usize::from(self.u8(at)?),
            self.u8(at + 1)?,
            usize::from(self.u16(at + 2)?),
        );
        let (name, value) = (at + 4, at + 4 + name_len);
        let end = value + value_len;
        if end > limit {
            return corrupt("an attribute that is cut off", at);
        }
        let Some((_, prefix)) = XATTR_PREFIXES.iter().find(|(known, _)| *known == index) else {
            return corrupt("an attribute of an unknown kind", at);
        };
        each(
            XattrName {
                prefix,
                rest: self.get(name..value)?,
            },
            self.get(value..end)?,
        );
        Ok(end.next_multiple_of(4))
    }

    fn block(&self, address: u32) -> usize {
        address as usize * BLOCK
    }

    fn get(&self, range: Range<usize>) -> Result<&[u8]> {
        let offset = range.start;
        self.bytes()
            .get(range)
            .map_or_else(|| corrupt("outside the image", offset), Ok)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        self.get(at..at.saturating_add(N))?
            .try_into()
            .or_else(|_| corrupt("outside the image", at))
    }

    fn u8(&self, at: usize) -> Result<u8> {
        self.array::<1>(at).map(|[byte]| byte)
    }

    fn u16(&self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    fn expect_u32(&self, at: usize, expected: u32, what: &'static str) -> Result<()> {
        if self.u32(at)? == expected {
            Ok(())
        } else {
            corrupt(what, at)
        }
    }
}

/// An attribute's name, in the two parts that are on disk.
#[derive(Clone, Copy)]
pub struct XattrName<'a> {
    prefix: &'static str,
    rest: &'a [u8],
}

impl XattrName<'_> {
    /// Whether it is this name.
    pub fn is(&self, full: &str) -> bool {
        let rest = full.strip_prefix(self.prefix);
        rest.is_some_and(|rest| rest.as_bytes() == self.rest)
    }

    /// Whether it begins with this, one of [`XATTR_PREFIXES`].
    pub fn is_below(&self, prefix: &str) -> bool {
        self.prefix == prefix
    }

    /// The whole name.
    pub fn full(&self) -> Vec<u8> {
        [self.prefix.as_bytes(), self.rest].concat()
    }
}

/// Entries of a directory that lie together.
pub struct DirectoryBlock<'a> {
    bytes: &'a [u8],
    offset: usize,
    len: usize,
}

impl<'a> DirectoryBlock<'a> {
    /// The number of entries, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a block has entries")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// An entry.
    pub fn entry(&self, index: usize) -> Result<Dirent<'a>> {
        let raw = self.raw(index)?;
        let start = usize::from(u16::from_le_bytes([raw[8], raw[9]]));
        let end = if index + 1 < self.len {
            let next = self.raw(index + 1)?;
            usize::from(u16::from_le_bytes([next[8], next[9]]))
        } else {
            self.bytes.len()
        };
        let Some(name) = self.bytes.get(start..end) else {
            return corrupt("a name outside its directory", self.offset + index * DIRENT);
        };
        // Only the block's last name may be followed by padding.
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let nid = u64::from_le_bytes([
            raw[0], raw[1], raw[2], raw[3], raw[4], raw[5], raw[6], raw[7],
        ]);
        match u32::try_from(nid) {
            Ok(nid) if !name.is_empty() && name.len() <= 255 => Ok(Dirent { name, nid }),
            _ => corrupt(
                "a directory entry without name or inode",
                self.offset + index * DIRENT,
            ),
        }
    }

    fn raw(&self, index: usize) -> Result<&'a [u8; DIRENT]> {
        self.bytes
            .get(index * DIRENT..(index + 1) * DIRENT)
            .and_then(|raw| raw.try_into().ok())
            .map_or_else(|| corrupt("a directory that is cut off", self.offset), Ok)
    }

    fn find(&self, name: &[u8]) -> Result<Option<u32>> {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(middle)?;
            match entry.name.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(entry.nid)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

/// The object that a redirect (`/xx/…`) names.
fn object_of(redirect: &[u8]) -> Option<Digest> {
    let [b'/', high, low, b'/', rest @ ..] = redirect else {
        return None;
    };
    // Asked for at every READ: nothing is allocated.
    let mut name = [0; 64];
    let (head, tail) = name.split_at_mut(2);
    head.copy_from_slice(&[*high, *low]);
    tail.get_mut(..rest.len())?.copy_from_slice(rest);
    std::str::from_utf8(&name).ok()?.parse().ok()
}

fn corrupt<T>(what: &'static str, offset: usize) -> Result<T> {
    Err(Corrupt {
        what,
        offset: offset as u64,
    })
}
