//! The canonical tree in memory: what a version's digest is made of, between source and image.
//!
//! Names are byte strings in byte order, owners are numbers, times have nanoseconds, and of
//! the extended attributes only those that a node can use are kept ([`is_kept_xattr`]).
//! Everything else that a source tells (order, access times, inode numbers, block sizes, where
//! exactly its holes were) is forgotten here, so that one tree has one digest.

use std::collections::BTreeMap;

use bytes::Bytes;
use wire::digest::Digest;

use crate::error::{Error, Result, shown};
use crate::tree::{Device, LINKS_MAX, Mtime};

/// The largest content that is held in the metadata image itself, in bytes.
pub const INLINE_MAX: usize = 4096;
/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes.
pub const TARGET_MAX: usize = 4095;
/// The largest file, in bytes: what one absent chunk can span.
pub const SIZE_MAX: u64 = 1 << 43;
/// The most bytes of names and values of one inode's attributes.
const XATTRS_MAX: usize = 128 << 10;

/// The number of a node in its [`Manifest`].
pub type Id = usize;

/// Names of attributes and their values.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What every kind of node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permissions with the set-id and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Mtime,
    /// Kept attributes.
    pub xattrs: Xattrs,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory: names and nodes.
    Directory(BTreeMap<Vec<u8>, Id>),
    /// A regular file of at most [`INLINE_MAX`] bytes.
    Inline(Bytes),
    /// A larger regular file.
    Object {
        /// Its object.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
    /// A symbolic link's target.
    Symlink(Vec<u8>),
    /// A character device.
    Character(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
}

/// A node and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Owner, permissions, time, attributes.
    pub meta: Meta,
    /// Kind and content.
    pub content: Content,
}

/// A tree under construction. Node 0 is its root.
pub struct Manifest {
    nodes: Vec<Node>,
}

impl Manifest {
    /// The root's node.
    pub const ROOT: Id = 0;

    /// An empty tree; its root is `0755 root:root` of 1970 until [`Manifest::set_root`].
    pub fn new() -> Manifest {
        Manifest {
            nodes: vec![empty_directory(plain_meta())],
        }
    }

    /// Sets the root's owner, permissions, time and attributes.
    pub fn set_root(&mut self, meta: Meta) {
        self.nodes[Self::ROOT].meta = meta;
    }

    /// One more than the largest number of a node.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// A node.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// Puts a new node into a directory, in the place of what had that name. A directory that
    /// meets a directory keeps what is in it.
    pub fn add(&mut self, parent: Id, name: &[u8], node: Node) -> Result<Id> {
        check_node(name, &node)?;
        if let (Content::Directory(_), Some(old)) = (&node.content, self.child(parent, name))
            && self.is_directory(old)
        {
            self.nodes[old].meta = node.meta;
            return Ok(old);
        }
        let id = self.nodes.len();
        self.nodes.push(node);
        self.entries(parent, name)?.insert(name.to_vec(), id);
        Ok(id)
    }

    /// Gives a node that is no directory another name.
    pub fn link(&mut self, parent: Id, name: &[u8], target: Id) -> Result<()> {
        check_name(name)?;
        if self.is_directory(target) {
            return Err(bad(name, "a hard link to a directory"));
        }
        self.entries(parent, name)?.insert(name.to_vec(), target);
        Ok(())
    }

    /// Takes the name at a path away, and with it all that is below. No symbolic link is followed; a
    /// path that leads nowhere is fine.
    pub fn remove(&mut self, path: &[u8]) {
        let names: Vec<_> = components(path).collect();
        if let Some((name, parents)) = names.split_last()
            && let Some(entries) = self.entries_at(parents)
        {
            entries.remove(*name);
        }
    }

    /// Takes everything out of the directory at a path, as [`Manifest::remove`] does it.
    pub fn clear(&mut self, path: &[u8]) {
        let names: Vec<_> = components(path).collect();
        if let Some(entries) = self.entries_at(&names) {
            entries.clear();
        }
    }

    fn entries_at(&mut self, names: &[&[u8]]) -> Option<&mut BTreeMap<Vec<u8>, Id>> {
        let start = Some(Self::ROOT);
        let found = names.iter().fold(start, |at, name| self.child(at?, name));
        self.entries(found?, b"").ok()
    }

    /// The node at a path from the root, no link being followed.
    pub fn at(&self, path: &[u8]) -> Option<Id> {
        components(path).try_fold(Self::ROOT, |at, name| self.child(at, name))
    }

    /// The node at a path from the root. Symbolic links on the way (not at its end) are
    /// followed inside the tree.
    pub fn find(&self, path: &[u8]) -> Result<Option<Id>> {
        let Some((parents, name)) = split_last(path)? else {
            return Ok(Some(Self::ROOT));
        };
        Ok(self
            .walk(&parents, &mut 0)?
            .and_then(|parent| self.child(parent, name)))
    }

    /// The directory that is to hold `path`, and the last name, directories that are missing on
    /// the way being made. `None` is the root itself.
    pub fn make_parents<'p>(&mut self, path: &'p [u8]) -> Result<Option<(Id, &'p [u8])>> {
        let Some((parents, name)) = split_last(path)? else {
            return Ok(None);
        };
        let mut at = Self::ROOT;
        for (depth, part) in parents.iter().enumerate() {
            at = match self.child(at, part) {
                None => self.add(at, part, empty_directory(plain_meta()))?,
                Some(id) if self.is_directory(id) => id,
                Some(_) => self
                    .walk(&parents[..=depth], &mut 0)?
                    .ok_or_else(|| bad(path, "a parent of it is no directory"))?,
            };
        }
        Ok(Some((at, name)))
    }

    fn walk(&self, parts: &[&[u8]], links: &mut u32) -> Result<Option<Id>> {
        let mut trail = vec![Self::ROOT];
        if !self.walk_on(&mut trail, parts, links)? {
            return Ok(None);
        }
        Ok(trail.last().copied())
    }

    /// Walks `parts` from the end of `trail`, which it keeps as the way from the root.
    fn walk_on(&self, trail: &mut Vec<Id>, parts: &[&[u8]], links: &mut u32) -> Result<bool> {
        for part in parts {
            if *part == b".." {
                trail.truncate((trail.len() - 1).max(1));
                continue;
            }
            let Some(id) = self.child(trail[trail.len() - 1], part) else {
                return Ok(false);
            };
            match &self.nodes[id].content {
                Content::Directory(_) => trail.push(id),
                Content::Symlink(target) => {
                    *links += 1;
                    if *links > LINKS_MAX {
                        return Err(bad(part, "too many symbolic links"));
                    }
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    let parts: Vec<_> = components(target).collect();
                    if !self.walk_on(trail, &parts, links)? {
                        return Ok(false);
                    }
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        match &self.nodes[parent].content {
            Content::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, id: Id) -> bool {
        matches!(self.nodes[id].content, Content::Directory(_))
    }

    fn entries(&mut self, parent: Id, name: &[u8]) -> Result<&mut BTreeMap<Vec<u8>, Id>> {
        match &mut self.nodes[parent].content {
            Content::Directory(entries) => Ok(entries),
            _ => Err(bad(name, "its parent is no directory")),
        }
    }
}

/// Whether images keep an extended attribute. The marks of an overlay (`user.overlay.*`) are
/// not content: they would change what the image shows where it is mounted.
pub fn is_kept_xattr(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 4] = [
        b"security.capability",
        b"security.selinux",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    let user = name.len() > 5 && name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    user || NAMES.contains(&name)
}

/// The names that a path is made of, without empty ones and `.`.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

/// An error about an entry of a source.
pub fn bad(path: &[u8], why: impl Into<String>) -> Error {
    Error::BadSource {
        path: shown(path),
        why: why.into(),
    }
}

/// An empty directory.
pub fn empty_directory(meta: Meta) -> Node {
    Node {
        meta,
        content: Content::Directory(BTreeMap::new()),
    }
}

fn plain_meta() -> Meta {
    Meta {
        mode: 0o755,
        ..Meta::default()
    }
}

/// The directories on a path, and its last name.
type Split<'p> = (Vec<&'p [u8]>, &'p [u8]);

/// The components before the last and the last; `..` is refused, nothing leaves the root.
fn split_last(path: &[u8]) -> Result<Option<Split<'_>>> {
    let mut parts: Vec<_> = components(path).collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(bad(path, "a path with `..`"));
    }
    Ok(parts.pop().map(|name| (parts, name)))
}

fn check_node(name: &[u8], node: &Node) -> Result<()> {
    check_name(name)?;
    check_xattrs(name, &node.meta.xattrs)?;
    match &node.content {
        Content::Object { size, .. } if *size > SIZE_MAX => Err(bad(
            name,
            format!("{size} bytes, expected at most {SIZE_MAX}"),
        )),
        Content::Symlink(target)
            if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) =>
        {
            Err(bad(
                name,
                "a symbolic link's target of no or too many bytes",
            ))
        }
        Content::Character(device) | Content::Block(device)
            if device.major >= 1 << 12 || device.minor >= 1 << 20 =>
        {
            Err(bad(
                name,
                format!(
                    "device {}:{} does not exist on Linux",
                    device.major, device.minor
                ),
            ))
        }
        _ => Ok(()),
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    let wrong = name.is_empty()
        || name.len() > NAME_MAX
        || name == b"."
        || name == b".."
        || name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if wrong {
        Err(bad(name, "not a file name of 1 to 255 bytes"))
    } else {
        Ok(())
    }
}

fn check_xattrs(path: &[u8], xattrs: &Xattrs) -> Result<()> {
    let long = |(name, value): (&Vec<u8>, &Vec<u8>)| {
        name.len() > 255 || value.len() > usize::from(u16::MAX)
    };
    let total: usize = xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if xattrs.iter().any(long) || total > XATTRS_MAX {
        return Err(bad(path, "its extended attributes are too long"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Node {
        Node {
            meta: Meta::default(),
            content: Content::Inline(text.to_owned().into()),
        }
    }

    fn link(target: &str) -> Node {
        Node {
            meta: Meta::default(),
            content: Content::Symlink(target.into()),
        }
    }

    fn put(tree: &mut Manifest, path: &str, node: Node) -> Result<Id> {
        let (parent, name) = tree.make_parents(path.as_bytes())?.expect("not the root");
        tree.add(parent, name, node)
    }

    #[test]
    fn parents_are_made_and_links_followed_inside() -> Result<()> {
        let mut tree = Manifest::new();
        put(&mut tree, "usr/lib/a", file("a"))?;
        put(&mut tree, "lib", link("/usr/../../usr/lib"))?;
        let b = put(&mut tree, "./lib//b", file("b"))?;
        assert_eq!(tree.find(b"usr/lib/b")?, Some(b));
        assert_eq!(tree.find(b"/lib/b")?, Some(b));
        assert_eq!(tree.find(b"lib/c")?, None);
        assert_eq!(tree.find(b"")?, Some(Manifest::ROOT));
        Ok(())
    }

    #[test]
    fn nothing_leaves_the_root() {
        let mut tree = Manifest::new();
        assert!(put(&mut tree, "../etc/passwd", file("")).is_err());
        assert!(put(&mut tree, "a/../../b", file("")).is_err());
        put(&mut tree, "loop", link("loop")).expect("a link");
        assert!(put(&mut tree, "loop/x", file("")).is_err());
        put(&mut tree, "file", file("")).expect("a file");
        assert!(put(&mut tree, "file/x", file("")).is_err());
    }

    #[test]
    fn later_entries_win_and_directories_merge() -> Result<()> {
        let mut tree = Manifest::new();
        let old = put(&mut tree, "d/f", file("old"))?;
        tree.link(Manifest::ROOT, b"other", old)?;
        let meta = Meta {
            mode: 0o700,
            ..Meta::default()
        };
        put(&mut tree, "d", empty_directory(meta.clone()))?;
        let new = put(&mut tree, "d/f", file("new"))?;
        assert_eq!(tree.find(b"d/f")?, Some(new));
        assert_eq!(tree.find(b"other")?, Some(old));
        let d = tree.find(b"d")?.expect("d");
        assert_eq!(tree.node(d).meta, meta);
        assert!(tree.link(d, b"x", d).is_err());
        Ok(())
    }

    #[test]
    fn attributes_are_chosen() {
        for kept in [
            "user.a",
            "security.capability",
            "security.selinux",
            "system.posix_acl_access",
        ] {
            assert!(is_kept_xattr(kept.as_bytes()), "{kept}");
        }
        for dropped in [
            "user.",
            "user.overlay.opaque",
            "trusted.x",
            "security.ima",
            "system.nfs4_acl",
        ] {
            assert!(!is_kept_xattr(dropped.as_bytes()), "{dropped}");
        }
    }
}
