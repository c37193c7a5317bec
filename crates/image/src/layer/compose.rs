//! Lays layers over a base: metadata only, what files hold stays where it is.

use std::collections::{BTreeSet, HashMap};

use wire::digest::Digest;

use super::merge::{is_renewable, merge, style_of};
use super::{Layer, depmod};
use crate::boot::BootFiles;
use crate::diff::{Change, What, diff};
use crate::error::{Error, Result, shown};
use crate::import::Progress;
use crate::manifest::{Content, Id, Manifest, Meta, Node, bad, empty_directory};
use crate::store::objects::object_path;
use crate::store::session::Session;
use crate::store::{Staged, Store};
use crate::tree::{Attr, Kind, Nid, StoredTree};
use crate::walk::{Visitor, walk};

/// Where kernels have their modules.
const MODULES: [&[u8]; 2] = [b"usr/lib/modules/", b"lib/modules/"];

impl Store {
    /// Makes a version of a base and layers, the lowest first. A layer with modules of another kernel
    /// than the base's is refused, and one that changed what the base, since, or a lower layer changed
    /// as well.
    pub fn compose(&self, base: &StoredTree, layers: &[Layer]) -> Result<Staged> {
        let kernel = BootFiles::of(base).ok().map(|it| it.kernel.version);
        self.stage_with(|session| {
            let mut composing = Composing {
                store: self,
                tree: manifest_of(base)?,
                session,
                touched: BTreeSet::new(),
                indexes: BTreeSet::new(),
            };
            for layer in layers {
                composing.lay(base, layer, kernel.as_deref())?;
            }
            composing.index_modules()?;
            Ok((composing.tree, Vec::new()))
        })
    }
}

struct Composing<'a> {
    store: &'a Store,
    tree: Manifest,
    session: &'a mut Session,
    /// Paths that lower layers changed.
    touched: BTreeSet<Vec<u8>>,
    /// Directories of modules that need a new index.
    indexes: BTreeSet<Vec<u8>>,
}

impl Composing<'_> {
    fn lay(&mut self, base: &StoredTree, layer: &Layer, kernel: Option<&str>) -> Result<()> {
        let before = self.store.open_tree(layer.base)?;
        let after = self.store.open_tree(layer.version)?;
        let changes = real(diff(&before, &after)?);
        check_kernel(layer, &changes, kernel)?;
        let since = real(diff(&before, base)?).into_iter().map(|it| it.path);
        let others: BTreeSet<Vec<u8>> = since.chain(self.touched.iter().cloned()).collect();
        let mut laying = Laying {
            composing: self,
            before: &before,
            after: &after,
            links: HashMap::new(),
            conflicts: Vec::new(),
        };
        for change in &changes {
            laying.apply(change, &others)?;
        }
        let conflicts = laying.conflicts;
        if !conflicts.is_empty() {
            return Err(Error::LayerConflict {
                layer: layer.name.clone(),
                paths: conflicts,
            });
        }
        self.touched.extend(changes.into_iter().map(|it| it.path));
        Ok(())
    }

    /// Has modules of all sources found.
    fn index_modules(&mut self) -> Result<()> {
        for directory in std::mem::take(&mut self.indexes) {
            let Some(id) = self.tree.at(&directory) else {
                continue;
            };
            let store = self.store.path().to_owned();
            let object = |content: &Content| match content {
                Content::Object { digest, .. } => Some(object_path(&store, *digest)),
                _ => None,
            };
            let scratch = self.session.place_for("depmod");
            let made = depmod::index(&self.tree, &directory, &object, &scratch)?;
            let _ = std::fs::remove_dir_all(&scratch);
            // As old as the modules, not as this moment: composing twice makes one version.
            let meta = Meta {
                mode: 0o644,
                mtime: self.tree.node(id).meta.mtime,
                ..Meta::default()
            };
            for (name, content) in made {
                let content = self.session.add_bytes(content)?;
                let meta = meta.clone();
                self.tree.add(id, &name, Node { meta, content })?;
            }
        }
        Ok(())
    }
}

/// One layer that is being laid.
struct Laying<'c, 'a> {
    composing: &'c mut Composing<'a>,
    before: &'c StoredTree,
    after: &'c StoredTree,
    /// Where inodes with several names are in the new tree.
    links: HashMap<Nid, Id>,
    conflicts: Vec<String>,
}

impl Laying<'_, '_> {
    fn apply(&mut self, change: &Change, others: &BTreeSet<Vec<u8>>) -> Result<()> {
        let path = &change.path[..];
        if path.is_empty() {
            return Ok(());
        }
        let theirs = match change.what {
            What::Removed => None,
            What::Added | What::Changed(_) => Some(find(self.after, path)?),
        };
        let now = self.composing.tree.at(path);
        if others.contains(path) && !self.settled(path, theirs, now)? {
            return Ok(());
        }
        match theirs {
            None => self.composing.tree.remove(path),
            Some(nid) => self.put(path, nid)?,
        }
        Ok(())
    }

    /// Whether the layer's change of what others changed, too, may be made; if not, it is done already,
    /// or noted as a conflict.
    fn settled(&mut self, path: &[u8], theirs: Option<Nid>, now: Option<Id>) -> Result<bool> {
        if is_renewable(path) {
            return Ok(true);
        }
        if let Some(directory) = index_of(path) {
            self.composing.indexes.insert(directory.to_vec());
            return Ok(false);
        }
        let (Some(theirs), Some(now)) = (theirs, now) else {
            // Both removed it; or one did, and the other changed it.
            if theirs.is_some() || now.is_some() {
                self.conflict(path, "");
            }
            return Ok(false);
        };
        let node = node_of(self.after, theirs)?;
        let there = self.composing.tree.node(now).clone();
        if same(&node, &there) {
            return Ok(false);
        }
        if let (Some(style), Ok(old)) = (style_of(path), find(self.before, path)) {
            let ours = self.content(&there.content)?;
            let (old, new) = (self.before.read_inode(old)?, self.after.read_inode(theirs)?);
            match merge(style, &old, &ours, &new) {
                Ok(merged) => {
                    let content = self.composing.session.add_bytes(merged)?;
                    let meta = node.meta;
                    let (parent, name) = self.parent(path)?;
                    self.composing
                        .tree
                        .add(parent, name, Node { meta, content })?;
                }
                Err(record) => self.conflict(path, &format!(": {record}")),
            }
            return Ok(false);
        }
        self.conflict(path, "");
        Ok(false)
    }

    fn conflict(&mut self, path: &[u8], what: &str) {
        self.conflicts.push(format!("/{}{what}", shown(path)));
    }

    fn content(&mut self, content: &Content) -> Result<Vec<u8>> {
        match content {
            Content::Inline(bytes) => Ok(bytes.to_vec()),
            Content::Object { digest, .. } => {
                self.composing.session.settle()?;
                let path = self.composing.session.path_of(*digest);
                std::fs::read(&path).map_err(Error::io("reading", &path))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn put(&mut self, path: &[u8], nid: Nid) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let known = self.links.get(&nid).copied();
        if let Some(first) = known {
            return self.composing.tree.link(parent, name, first);
        }
        let id = self
            .composing
            .tree
            .add(parent, name, node_of(self.after, nid)?)?;
        let attr = self.after.attr(nid)?;
        if attr.kind != Kind::Directory && attr.nlink > 1 {
            self.links.insert(nid, id);
        }
        Ok(())
    }

    /// The directory that is to hold a path, which must be one, and the last name.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(Id, &'p [u8])> {
        let at = path.iter().rposition(|it| *it == b'/');
        let (parent, name) = at.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        let id = self.composing.tree.at(parent).filter(|id| {
            let node = self.composing.tree.node(*id);
            matches!(node.content, Content::Directory(_))
        });
        let id = id.ok_or_else(|| bad(path, "the base has no such directory any more"))?;
        Ok((id, name))
    }
}

/// Changes but those of a time alone.
fn real(changes: Vec<Change>) -> Vec<Change> {
    let changes = changes.into_iter();
    changes.filter(|it| !it.is_time_only()).collect()
}

/// Modules are good for one kernel.
fn check_kernel(layer: &Layer, changes: &[Change], kernel: Option<&str>) -> Result<()> {
    let is_module = |it: &Change| MODULES.iter().any(|at| it.path.starts_with(at));
    if layer.kernel.as_deref() == kernel || !changes.iter().any(is_module) {
        return Ok(());
    }
    let said = |kernel: Option<&str>| kernel.unwrap_or("none").to_owned();
    Err(Error::LayerKernel {
        layer: layer.name.clone(),
        expected: said(layer.kernel.as_deref()),
        got: said(kernel),
    })
}

/// The directory that a file of depmod's is an index of.
fn index_of(path: &[u8]) -> Option<&[u8]> {
    let top = MODULES.iter().find(|it| path.starts_with(it))?;
    let release = path[top.len()..].iter().position(|it| *it == b'/')?;
    let (directory, name) = path.split_at(top.len() + release);
    let name = &name[1..];
    (name.starts_with(b"modules.") && !name.contains(&b'/')).then_some(directory)
}

/// The inode at a path, no link being followed.
fn find(tree: &StoredTree, path: &[u8]) -> Result<Nid> {
    let mut at = tree.root();
    for name in path.split(|it| *it == b'/') {
        let found = tree.lookup(at, name)?;
        at = found.ok_or_else(|| Error::NoSuchFile { path: shown(path) })?;
    }
    Ok(at)
}

fn same(one: &Node, other: &Node) -> bool {
    let meta = |it: &Node| {
        (
            it.meta.mode,
            it.meta.uid,
            it.meta.gid,
            it.meta.xattrs.clone(),
        )
    };
    let content = match (&one.content, &other.content) {
        (Content::Directory(_), Content::Directory(_)) => true,
        (one, other) => one == other,
    };
    content && meta(one) == meta(other)
}

/// An inode of a stored tree; a directory without what is in it.
pub(crate) fn node_of(tree: &StoredTree, nid: Nid) -> Result<Node> {
    let attr = tree.attr(nid)?;
    let meta = Meta {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        mtime: attr.mtime,
        xattrs: tree.xattrs(nid)?.into_iter().collect(),
    };
    let content = match attr.kind {
        Kind::Directory => return Ok(empty_directory(meta)),
        Kind::File => file_content(tree, &attr, tree.object_of(nid)?)?,
        Kind::Symlink => Content::Symlink(tree.readlink(nid)?.to_vec()),
        Kind::Character => Content::Character(attr.rdev),
        Kind::Block => Content::Block(attr.rdev),
        Kind::Fifo | Kind::Socket => Content::Fifo,
    };
    Ok(Node { meta, content })
}

fn file_content(tree: &StoredTree, attr: &Attr, object: Option<Digest>) -> Result<Content> {
    Ok(match object {
        Some(digest) => Content::Object {
            digest,
            size: attr.size,
        },
        None => Content::Inline(tree.held(attr.nid)?),
    })
}

/// A stored tree, to be changed.
pub(crate) fn manifest_of(tree: &StoredTree) -> Result<Manifest> {
    let mut copy = Copy {
        tree,
        manifest: Manifest::new(),
        links: HashMap::new(),
    };
    walk(tree, &mut copy, &mut |_: Progress| ())?;
    Ok(copy.manifest)
}

struct Copy<'t> {
    tree: &'t StoredTree,
    manifest: Manifest,
    links: HashMap<Nid, Id>,
}

impl Copy<'_> {
    fn place<'p>(&mut self, path: &'p [u8]) -> Result<(Id, &'p [u8])> {
        let place = self.manifest.make_parents(path)?;
        place.ok_or_else(|| bad(path, "a root that is in the root"))
    }
}

impl Visitor for Copy<'_> {
    fn enter(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let node = node_of(self.tree, attr.nid)?;
        if path.is_empty() {
            self.manifest.set_root(node.meta);
            return Ok(());
        }
        let (parent, name) = self.place(path)?;
        self.manifest.add(parent, name, node).map(|_| ())
    }

    fn node(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let node = node_of(self.tree, attr.nid)?;
        let (parent, name) = self.place(path)?;
        let id = self.manifest.add(parent, name, node)?;
        if attr.nlink > 1 {
            self.links.insert(attr.nid, id);
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], attr: &Attr, first: &[u8]) -> Result<()> {
        let known = self.links.get(&attr.nid).copied();
        let id = known.ok_or_else(|| bad(first, "a link to what was not there"))?;
        let (parent, name) = self.place(path)?;
        self.manifest.link(parent, name, id)
    }
}
