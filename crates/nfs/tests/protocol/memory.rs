//! A tree in memory with one of everything. The fuzz target `nfs_rpc` serves it too.

use std::ops::ControlFlow;

use bytes::Bytes;
use nfs::{Attr, DirEntry, Extent, FileKind, Time, Tree, TreeError, Usage, Whence};

/// Entries of the directory `many`.
pub const MANY: usize = 100;
/// Bytes of the files `big` and `loose`.
pub const BIG_LEN: usize = 3 << 20;
/// The data of the file `sparse`, with holes between and after it.
pub const SPARSE_DATA: [(u64, u64); 2] = [(0, 4096), (65536, 4096)];
/// Bytes of the file `sparse`.
pub const SPARSE_LEN: u64 = 131_072;

/// A tree in memory. Inode `n` is `nodes[n - 1]`.
pub struct Memory {
    nodes: Vec<Node>,
}

struct Node {
    attr: Attr,
    parent: u32,
    /// Sorted by name.
    children: Vec<(Vec<u8>, u32)>,
    /// A file's bytes or a link's target.
    content: Bytes,
    /// The content is sent from where it is.
    in_place: bool,
    xattrs: Vec<(&'static [u8], Vec<u8>)>,
}

/// The byte at an offset of the files `big`, which is sent from where it is, and `loose`, which is
/// copied.
pub fn big_byte(offset: usize) -> u8 {
    (offset.wrapping_mul(0x9e37_79b1) >> 13) as u8
}

impl Memory {
    /// `/many/*`, `/empty.d`, `/hello`, `/big`, `/loose`, `/sparse`, `/none` (no bytes), `/link`, `/tty`,
    /// `/pipe`, `/private` (owner only), `/program` (may be run, not read), `/noted` (attributes).
    pub fn sample() -> Memory {
        let mut tree = Memory { nodes: Vec::new() };
        let root = tree.add(1, "", FileKind::Directory, 0o755, b"");
        let many = tree.add(root, "many", FileKind::Directory, 0o755, b"");
        for index in 0..MANY {
            let content = index.to_string();
            tree.add(
                many,
                &format!("entry-{index:03}"),
                FileKind::Regular,
                0o644,
                content.as_bytes(),
            );
        }
        tree.add(root, "empty.d", FileKind::Directory, 0o755, b"");
        tree.add(root, "hello", FileKind::Regular, 0o644, b"hello, world\n");
        let big: Vec<u8> = (0..BIG_LEN).map(big_byte).collect();
        let held = tree.add(root, "big", FileKind::Regular, 0o644, &big);
        tree.node_mut(held).in_place = true;
        let mut sparse = vec![0; SPARSE_LEN as usize];
        for (start, len) in SPARSE_DATA {
            sparse[start as usize..(start + len) as usize].fill(b's');
        }
        tree.add(root, "sparse", FileKind::Regular, 0o644, &sparse);
        tree.add(root, "none", FileKind::Regular, 0o644, b"");
        tree.add(root, "link", FileKind::Symlink, 0o777, b"many/entry-007");
        let tty = tree.add(root, "tty", FileKind::CharDevice, 0o666, b"");
        tree.node_mut(tty).attr.rdev = (5, 1);
        tree.add(root, "pipe", FileKind::Fifo, 0o600, b"");
        let private = tree.add(root, "private", FileKind::Regular, 0o4600, b"mine");
        let attr = &mut tree.node_mut(private).attr;
        (attr.uid, attr.gid) = (1000, 100);
        tree.add(root, "program", FileKind::Regular, 0o711, b"#!");
        let noted = tree.add(root, "noted", FileKind::Regular, 0o644, b"");
        tree.node_mut(noted).xattrs = vec![
            (b"security.capability", b"hidden".to_vec()),
            (b"user.mime_type", b"text/plain".to_vec()),
            (b"user.note", vec![0, 1, 255]),
        ];
        // Last: recordings of clients know the inode numbers of the others.
        tree.add(root, "loose", FileKind::Regular, 0o644, &big);
        tree
    }

    fn add(&mut self, parent: u32, name: &str, kind: FileKind, mode: u32, content: &[u8]) -> u32 {
        let ino = self.nodes.len() as u32 + 1;
        let time = |seconds| Time {
            seconds,
            nanos: ino,
        };
        self.nodes.push(Node {
            attr: Attr {
                kind,
                mode,
                nlink: 1,
                uid: 0,
                gid: 0,
                size: content.len() as u64,
                used: content.len().next_multiple_of(512) as u64,
                rdev: (0, 0),
                mtime: time(1_700_000_000),
                ctime: time(1_700_000_001),
            },
            parent,
            children: Vec::new(),
            content: Bytes::copy_from_slice(content),
            in_place: false,
            xattrs: Vec::new(),
        });
        if ino != parent {
            let children = &mut self.node_mut(parent).children;
            children.push((name.as_bytes().to_vec(), ino));
            children.sort();
        }
        ino
    }

    fn node_mut(&mut self, ino: u32) -> &mut Node {
        &mut self.nodes[ino as usize - 1]
    }

    fn node(&self, ino: u32) -> Result<&Node, TreeError> {
        self.nodes
            .get((ino as usize).wrapping_sub(1))
            .ok_or(TreeError::Stale)
    }

    fn node_of(&self, ino: u32, kind: FileKind, error: TreeError) -> Result<&Node, TreeError> {
        let node = self.node(ino)?;
        if node.attr.kind == kind {
            Ok(node)
        } else {
            Err(error)
        }
    }

    fn directory(&self, ino: u32) -> Result<&Node, TreeError> {
        self.node_of(ino, FileKind::Directory, TreeError::NotDirectory)
    }
}

impl Tree for Memory {
    fn root(&self) -> u32 {
        1
    }

    fn attr(&self, ino: u32) -> Result<Attr, TreeError> {
        Ok(self.node(ino)?.attr)
    }

    fn lookup(&self, dir: u32, name: &[u8]) -> Result<u32, TreeError> {
        let children = &self.directory(dir)?.children;
        children
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, ino)| *ino)
            .ok_or(TreeError::NotFound)
    }

    fn parent(&self, dir: u32) -> Result<u32, TreeError> {
        Ok(self.directory(dir)?.parent)
    }

    fn readdir(
        &self,
        dir: u32,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let skip = usize::try_from(cookie).unwrap_or(usize::MAX);
        let children = self.directory(dir)?.children.iter().zip(1..);
        for ((name, ino), cookie) in children.skip(skip) {
            let entry = DirEntry {
                name,
                ino: *ino,
                cookie,
            };
            if each(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn readlink(&self, ino: u32, target: &mut Vec<u8>) -> Result<(), TreeError> {
        let node = self.node_of(ino, FileKind::Symlink, TreeError::WrongKind)?;
        target.extend_from_slice(&node.content);
        Ok(())
    }

    fn read(
        &self,
        ino: u32,
        offset: u64,
        len: u32,
        each: &mut dyn FnMut(Extent<'_>),
    ) -> Result<(), TreeError> {
        let node = self.node_of(ino, FileKind::Regular, TreeError::WrongKind)?;
        let range = offset as usize..offset as usize + len as usize;
        let bytes = node.content.get(range.clone()).ok_or(TreeError::Io)?;
        // In two pieces, as stored trees do.
        let middle = range.start + bytes.len() / 3;
        if node.in_place {
            each(Extent::Held(node.content.slice(range.start..middle)));
            each(Extent::Held(node.content.slice(middle..range.end)));
            return Ok(());
        }
        let (head, tail) = bytes.split_at(bytes.len() / 3);
        each(Extent::Bytes(head));
        if tail.iter().all(|byte| *byte == 0) {
            each(Extent::Zero(tail.len() as u32));
        } else {
            each(Extent::Bytes(tail));
        }
        Ok(())
    }

    fn xattr(&self, ino: u32, name: &[u8], value: &mut Vec<u8>) -> Result<(), TreeError> {
        let xattrs = &self.node(ino)?.xattrs;
        let found = xattrs.iter().find(|(other, _)| *other == name);
        value.extend_from_slice(&found.ok_or(TreeError::NotFound)?.1);
        Ok(())
    }

    fn xattr_names(&self, ino: u32, each: &mut dyn FnMut(&[u8])) -> Result<(), TreeError> {
        self.node(ino)?
            .xattrs
            .iter()
            .for_each(|(name, _)| each(name));
        Ok(())
    }

    fn seek(&self, ino: u32, offset: u64, whence: Whence) -> Result<Option<u64>, TreeError> {
        let content = &self.node(ino)?.content;
        let found = content
            .iter()
            .skip(offset as usize)
            .position(|byte| (*byte == 0) == (whence == Whence::Hole));
        Ok(match (found, whence) {
            (Some(found), _) => Some(offset + found as u64),
            (None, Whence::Hole) => Some(content.len() as u64),
            (None, Whence::Data) => None,
        })
    }

    fn usage(&self) -> Usage {
        Usage {
            bytes: self.nodes.iter().map(|node| node.attr.used).sum(),
            inodes: self.nodes.len() as u64,
        }
    }
}
