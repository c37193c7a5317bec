//! One way through a tree: each directory before what is in it, names in byte order.

use std::collections::{HashMap, HashSet};

use crate::error::{Result, shown};
use crate::import::Progress;
use crate::manifest::bad;
use crate::tree::{Attr, Kind, Nid, ReadDir, StoredTree};

/// What is made of a tree, one inode at a time. Paths are relative to the root, which is empty.
pub trait Visitor {
    /// A directory, before its entries.
    fn enter(&mut self, _path: &[u8], _attr: &Attr) -> Result<()> {
        Ok(())
    }
    /// The same directory, after them.
    fn leave(&mut self, _path: &[u8], _attr: &Attr) -> Result<()> {
        Ok(())
    }
    /// Anything else, at the first of its names.
    fn node(&mut self, path: &[u8], attr: &Attr) -> Result<()>;
    /// A further name of what was visited as `first`.
    fn link(&mut self, path: &[u8], attr: &Attr, first: &[u8]) -> Result<()>;
}

/// Visits the whole tree. Returns the entries visited and the bytes of all files.
pub fn walk(
    tree: &StoredTree,
    visitor: &mut dyn Visitor,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let mut walk = Walk {
        tree,
        visitor,
        progress,
        directories: HashSet::new(),
        firsts: HashMap::new(),
        done: Progress::default(),
    };
    let mut path = Vec::new();
    let mut open = vec![walk.enter(&path, tree.root())?];
    while let Some(inner) = open.last_mut() {
        let Some(entry) = inner.entries.next().transpose()? else {
            walk.visitor.leave(&path, &inner.attr)?;
            path.truncate(inner.parent_len);
            open.pop();
            continue;
        };
        let parent_len = path.len();
        if parent_len > 0 {
            path.push(b'/');
        }
        check_name(&path, entry.name)?;
        path.extend_from_slice(entry.name);
        if entry.kind == Kind::Directory {
            let mut inner = walk.enter(&path, entry.nid)?;
            inner.parent_len = parent_len;
            open.push(inner);
        } else {
            walk.other(&path, entry.nid)?;
            path.truncate(parent_len);
        }
    }
    Ok(walk.done)
}

struct Walk<'a, 'v> {
    tree: &'a StoredTree,
    visitor: &'v mut dyn Visitor,
    progress: &'v mut dyn FnMut(Progress),
    directories: HashSet<Nid>,
    /// The first names of inodes that have several.
    firsts: HashMap<Nid, Vec<u8>>,
    done: Progress,
}

/// A directory whose entries are being visited.
struct Open<'a> {
    attr: Attr,
    entries: ReadDir<'a>,
    /// The length of the path of the directory that holds it.
    parent_len: usize,
}

impl<'a> Walk<'a, '_> {
    fn enter(&mut self, path: &[u8], nid: Nid) -> Result<Open<'a>> {
        if !self.directories.insert(nid) {
            return Err(bad(path, "a directory that holds itself"));
        }
        let attr = self.tree.attr(nid)?;
        self.visitor.enter(path, &attr)?;
        self.count(0);
        Ok(Open {
            attr,
            entries: self.tree.readdir(nid, 0)?,
            parent_len: 0,
        })
    }

    fn other(&mut self, path: &[u8], nid: Nid) -> Result<()> {
        let attr = self.tree.attr(nid)?;
        if let Some(first) = self.firsts.get(&nid) {
            self.visitor.link(path, &attr, first)?;
            self.count(0);
            return Ok(());
        }
        self.visitor.node(path, &attr)?;
        if attr.nlink > 1 {
            self.firsts.insert(nid, path.to_vec());
        }
        self.count(if attr.kind == Kind::File {
            attr.size
        } else {
            0
        });
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.done.files += 1;
        self.done.bytes += bytes;
        (self.progress)(self.done);
    }
}

/// An image that someone else wrote may have names that lead elsewhere.
fn check_name(parent: &[u8], name: &[u8]) -> Result<()> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(bad(
            parent,
            format!("it holds {:?}, which is not a file name", shown(name)),
        ));
    }
    Ok(())
}
