//! The exported trees and the directories above them.
//!
//! The directories above the exports (`/`, `/images`) are a tree of their own, the pseudo file
//! system, under the all-zero id. Its inode numbers come from the paths, so that they are the same
//! after a restart. Readers take a snapshot of all exports and keep it while nothing changes.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use siphasher::sip::SipHasher24;

use crate::status::{Result as Outcome, Status};
use crate::tree::{Attr, DirEntry, Extent, FileKind, Time, Tree, TreeError, Usage};

/// The id of the pseudo file system.
pub(crate) const PSEUDO_ID: [u8; 16] = [0; 16];
/// Inode number of the pseudo file system's root.
const PSEUDO_ROOT: u32 = 1;

/// The exported trees of a running server. A handle: clones mean the same exports.
#[derive(Clone)]
pub struct Exports {
    shared: Arc<Shared>,
}

struct Shared {
    table: Mutex<Arc<Table>>,
    generation: AtomicU64,
}

/// Why an export was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Paths start with a slash and have no empty, `.` or `..` parts.
    #[error("expected an absolute path of plain names, got {0:?}")]
    BadPath(String),
    /// An export cannot lie within another, or above it.
    #[error("expected a path outside of other exports, got {path:?} with {other:?} exported")]
    Nested {
        /// The refused path.
        path: String,
        /// The export that is in its way.
        other: String,
    },
    /// The all-zero id is the server's own.
    #[error("expected an id of the tree, got zeros")]
    ZeroId,
}

impl Exports {
    pub(crate) fn new() -> Exports {
        Exports {
            shared: Arc::new(Shared {
                table: Mutex::new(Arc::new(Table::build(BTreeMap::new()))),
                generation: AtomicU64::new(0),
            }),
        }
    }

    /// Exports `tree` at `path` (`/images/0123…`, or `/` as the only export); what was exported
    /// there before is not any more. `id` names the tree for ever: it is in the file handles that
    /// clients keep. The same tree may be exported at several paths.
    pub fn add(&self, path: &str, id: [u8; 16], tree: Arc<dyn Tree>) -> Result<(), ExportError> {
        if id == PSEUDO_ID {
            return Err(ExportError::ZeroId);
        }
        if path != "/" && !is_plain_path(path) {
            return Err(ExportError::BadPath(path.to_owned()));
        }
        self.change(|paths| {
            if let Some(other) = paths.keys().find(|other| is_nested(path, other)) {
                return Err(ExportError::Nested {
                    path: path.to_owned(),
                    other: other.clone(),
                });
            }
            paths.insert(path.to_owned(), (id, tree));
            Ok(())
        })
    }

    /// Ends the export at `path`; false if there is none. Handles of its tree go stale if it was
    /// the last path of it.
    pub fn remove(&self, path: &str) -> bool {
        self.change(|paths| paths.remove(path).is_some())
    }

    /// The exports: path and id, in order of path.
    pub fn list(&self) -> Vec<(String, [u8; 16])> {
        let table = self.snapshot().table;
        let paths = table.paths();
        paths.map(|(path, id)| (path.to_owned(), id)).collect()
    }

    /// The exports as they are now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let table = self
            .shared
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Snapshot {
            generation: self.shared.generation.load(Ordering::Acquire),
            table: Arc::clone(&table),
        }
    }

    /// Brings a snapshot up to date; cheap when nothing has changed.
    pub(crate) fn refresh(&self, snapshot: &mut Snapshot) {
        if self.shared.generation.load(Ordering::Acquire) != snapshot.generation {
            *snapshot = self.snapshot();
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Paths) -> R) -> R {
        let mut table = self
            .shared
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut paths = table.paths.clone();
        let result = change(&mut paths);
        *table = Arc::new(Table::build(paths));
        self.shared.generation.fetch_add(1, Ordering::Release);
        result
    }
}

fn is_plain_path(path: &str) -> bool {
    let plain = |name: &str| {
        !name.is_empty() && name != "." && name != ".." && name.len() <= 255 && !name.contains('\0')
    };
    path.len() <= 1024
        && path
            .strip_prefix('/')
            .is_some_and(|names| names.split('/').all(plain))
}

fn is_nested(path: &str, other: &str) -> bool {
    let below = |inner: &str, outer: &str| {
        inner != outer
            && inner
                .strip_prefix(outer.trim_end_matches('/'))
                .is_some_and(|rest| rest.starts_with('/'))
    };
    below(path, other) || below(other, path)
}

type Paths = BTreeMap<String, ([u8; 16], Arc<dyn Tree>)>;

/// The exports at one moment.
#[derive(Clone)]
pub(crate) struct Snapshot {
    generation: u64,
    pub(crate) table: Arc<Table>,
}

/// All exports, by id and by path.
pub(crate) struct Table {
    paths: Paths,
    exports: HashMap<[u8; 16], Export>,
    pseudo: Arc<Pseudo>,
}

/// A tree that handles may name.
pub(crate) struct Export {
    pub(crate) id: [u8; 16],
    pub(crate) tree: Arc<dyn Tree>,
    pub(crate) root: u32,
    /// The first path at which it is exported.
    pub(crate) path: String,
    /// The inode of the pseudo file system on which it is mounted, and the directory of that.
    pub(crate) mounted_on: u32,
    parent: u32,
}

impl Table {
    fn build(paths: Paths) -> Table {
        let mut pseudo = Pseudo::new();
        let mut exports = HashMap::new();
        for (path, (id, tree)) in &paths {
            let mounted_on = pseudo.insert(path, *id);
            exports.entry(*id).or_insert_with(|| Export {
                id: *id,
                root: tree.root(),
                tree: Arc::clone(tree),
                path: path.clone(),
                mounted_on,
                parent: pseudo
                    .nodes
                    .get(&mounted_on)
                    .map_or(PSEUDO_ROOT, |node| node.parent),
            });
        }
        let pseudo = Arc::new(pseudo);
        exports.insert(
            PSEUDO_ID,
            Export {
                id: PSEUDO_ID,
                tree: Arc::clone(&pseudo) as Arc<dyn Tree>,
                root: PSEUDO_ROOT,
                path: "/".to_owned(),
                mounted_on: PSEUDO_ROOT,
                parent: PSEUDO_ROOT,
            },
        );
        Table {
            paths,
            exports,
            pseudo,
        }
    }

    /// Paths and ids, in order of path.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&str, [u8; 16])> {
        self.paths
            .iter()
            .map(|(path, (id, _))| (path.as_str(), *id))
    }

    /// The export with this id.
    pub(crate) fn export(&self, id: &[u8; 16]) -> Option<&Export> {
        self.exports.get(id)
    }

    /// Where PUTROOTFH leads.
    pub(crate) fn root(&self) -> Option<Place<'_>> {
        Some(self.cross(Place {
            export: self.export(&PSEUDO_ID)?,
            ino: PSEUDO_ROOT,
        }))
    }

    /// `place`, or the root of what is mounted on it.
    pub(crate) fn cross<'t>(&'t self, place: Place<'t>) -> Place<'t> {
        if place.export.id != PSEUDO_ID {
            return place;
        }
        let mounted = self
            .pseudo
            .nodes
            .get(&place.ino)
            .and_then(|node| self.export(&node.mounted?));
        mounted.map_or(place, |export| Place {
            export,
            ino: export.root,
        })
    }

    /// The entry `name` of a directory, over mounts.
    pub(crate) fn lookup<'t>(
        &'t self,
        dir: Place<'t>,
        name: &[u8],
    ) -> Result<Place<'t>, TreeError> {
        let ino = dir.export.tree.lookup(dir.ino, name)?;
        Ok(self.cross(Place {
            export: dir.export,
            ino,
        }))
    }

    /// The directory above a directory, over mounts; `None` above the root of everything.
    pub(crate) fn parent<'t>(&'t self, dir: Place<'t>) -> Result<Option<Place<'t>>, TreeError> {
        let export = dir.export;
        if dir.ino != export.root {
            return Ok(Some(Place {
                export,
                ino: export.tree.parent(dir.ino)?,
            }));
        }
        if export.mounted_on == PSEUDO_ROOT {
            return Ok(None);
        }
        Ok(self.export(&PSEUDO_ID).map(|pseudo| Place {
            export: pseudo,
            ino: export.parent,
        }))
    }
}

/// An inode of an export.
#[derive(Clone, Copy)]
pub(crate) struct Place<'t> {
    pub(crate) export: &'t Export,
    pub(crate) ino: u32,
}

impl Place<'_> {
    #[inline]
    pub(crate) fn attr(&self) -> Result<Attr, TreeError> {
        self.export.tree.attr(self.ino)
    }
}

/// A name that may be looked up (RFC 8881, section 14.5 and 18.13; RFC 1813, section 3.2).
pub(crate) fn check_name(name: &[u8]) -> Outcome<&[u8]> {
    match name {
        b"" => Err(Status::INVAL),
        b"." | b".." => Err(Status::BADNAME),
        _ if name.len() > 255 => Err(Status::NAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Status::BADCHAR),
        _ => Ok(name),
    }
}

/// The directories above the exports.
struct Pseudo {
    nodes: HashMap<u32, Node>,
}

struct Node {
    parent: u32,
    /// By name; the position + 1 is the cookie after the child.
    children: Vec<(Vec<u8>, u32)>,
    mounted: Option<[u8; 16]>,
}

impl Pseudo {
    fn new() -> Pseudo {
        let root = Node {
            parent: PSEUDO_ROOT,
            children: Vec::new(),
            mounted: None,
        };
        Pseudo {
            nodes: HashMap::from([(PSEUDO_ROOT, root)]),
        }
    }

    /// Makes the directories of `path` and mounts `id` on the last; returns that.
    fn insert(&mut self, path: &str, id: [u8; 16]) -> u32 {
        let mut at = PSEUDO_ROOT;
        let mut end = 0;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            end += 1 + name.len();
            at = self.child(at, name, &path[..end]);
        }
        if let Some(node) = self.nodes.get_mut(&at) {
            node.mounted = Some(id);
        }
        at
    }

    fn child(&mut self, dir: u32, name: &str, path: &str) -> u32 {
        if let Ok(ino) = self.lookup(dir, name.as_bytes()) {
            return ino;
        }
        let mut ino = SipHasher24::new().hash(path.as_bytes()) as u32 | 2;
        while self.nodes.contains_key(&ino) {
            ino = ino.wrapping_add(1).max(2);
        }
        self.nodes.insert(
            ino,
            Node {
                parent: dir,
                children: Vec::new(),
                mounted: None,
            },
        );
        if let Some(parent) = self.nodes.get_mut(&dir) {
            parent.children.push((name.as_bytes().to_vec(), ino));
            parent.children.sort();
        }
        ino
    }

    fn node(&self, ino: u32) -> Result<&Node, TreeError> {
        self.nodes.get(&ino).ok_or(TreeError::Stale)
    }
}

impl Tree for Pseudo {
    fn root(&self) -> u32 {
        PSEUDO_ROOT
    }

    fn attr(&self, ino: u32) -> Result<Attr, TreeError> {
        let children = self.node(ino)?.children.len();
        let entries: u64 = self
            .node(ino)?
            .children
            .iter()
            .map(|(_, ino)| u64::from(*ino))
            .sum();
        // The entries change while the server runs: let the change attribute follow them.
        let time = Time {
            seconds: (entries & 0xffff_ffff) as i64,
            nanos: 0,
        };
        Ok(Attr {
            kind: FileKind::Directory,
            mode: 0o555,
            nlink: 2 + children as u32,
            uid: 0,
            gid: 0,
            size: 4096,
            used: 4096,
            rdev: (0, 0),
            mtime: time,
            ctime: time,
        })
    }

    fn lookup(&self, dir: u32, name: &[u8]) -> Result<u32, TreeError> {
        let children = &self.node(dir)?.children;
        let found = children.binary_search_by(|(other, _)| other.as_slice().cmp(name));
        found
            .ok()
            .and_then(|at| children.get(at))
            .map(|(_, ino)| *ino)
            .ok_or(TreeError::NotFound)
    }

    fn parent(&self, dir: u32) -> Result<u32, TreeError> {
        self.node(dir).map(|node| node.parent)
    }

    fn readdir(
        &self,
        dir: u32,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let skip = usize::try_from(cookie).unwrap_or(usize::MAX);
        for (at, (name, ino)) in self.node(dir)?.children.iter().enumerate().skip(skip) {
            if each(DirEntry {
                name,
                ino: *ino,
                cookie: at as u64 + 1,
            })
            .is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn readlink(&self, _ino: u32, _target: &mut Vec<u8>) -> Result<(), TreeError> {
        Err(TreeError::WrongKind)
    }

    fn read(&self, _: u32, _: u64, _: u32, _: &mut dyn FnMut(Extent<'_>)) -> Result<(), TreeError> {
        Err(TreeError::WrongKind)
    }

    fn usage(&self) -> Usage {
        Usage {
            bytes: 0,
            inodes: self.nodes.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Arc<dyn Tree> {
        Arc::new(Pseudo::new())
    }

    #[test]
    fn exports_lie_side_by_side() {
        let exports = Exports::new();
        assert_eq!(exports.add("/images/a", [1; 16], empty()), Ok(()));
        assert_eq!(exports.add("/tags/x/latest", [1; 16], empty()), Ok(()));
        assert!(matches!(
            exports.add("/images/a/b", [2; 16], empty()),
            Err(ExportError::Nested { .. })
        ));
        assert!(matches!(
            exports.add("/images", [2; 16], empty()),
            Err(ExportError::Nested { .. })
        ));
        assert!(matches!(
            exports.add("/", [2; 16], empty()),
            Err(ExportError::Nested { .. })
        ));
        assert_eq!(exports.add("/images/ab", [2; 16], empty()), Ok(()));
        assert_eq!(
            exports.add("/x", [0; 16], empty()),
            Err(ExportError::ZeroId)
        );
        for path in ["", "x", "/x/", "//x", "/x/../y", "/./x"] {
            assert_eq!(
                exports.add(path, [3; 16], empty()),
                Err(ExportError::BadPath(path.into()))
            );
        }
        assert_eq!(exports.list().len(), 3);
        assert!(exports.remove("/images/ab") && !exports.remove("/images/ab"));
    }

    #[test]
    fn paths_lead_over_the_mount_and_back() {
        let exports = Exports::new();
        exports.add("/images/a", [1; 16], empty()).unwrap();
        let table = exports.snapshot().table;
        let root = table.root().unwrap();
        let images = table.lookup(root, b"images").unwrap();
        let mounted = table.lookup(images, b"a").unwrap();
        assert_eq!((mounted.export.id, mounted.ino), ([1; 16], PSEUDO_ROOT));
        let back = table.parent(mounted).unwrap().unwrap();
        assert_eq!((back.export.id, back.ino), (PSEUDO_ID, images.ino));
        assert!(table.parent(root).unwrap().is_none());
        assert_eq!(
            table.lookup(root, b"nothing").err(),
            Some(TreeError::NotFound)
        );
    }

    #[test]
    fn inode_numbers_do_not_depend_on_other_exports() {
        let (one, two) = (Exports::new(), Exports::new());
        one.add("/images/b", [1; 16], empty()).unwrap();
        two.add("/images/a", [2; 16], empty()).unwrap();
        two.add("/images/b", [1; 16], empty()).unwrap();
        let ino = |exports: &Exports| {
            exports
                .snapshot()
                .table
                .export(&[1; 16])
                .unwrap()
                .mounted_on
        };
        assert_eq!(ino(&one), ino(&two));
    }
}
