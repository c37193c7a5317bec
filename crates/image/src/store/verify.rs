//! Reads what is kept again, and finds what a disk has lost or changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use rustix::fs::FlockOperation;
use wire::digest::Digest;

use super::Store;
use super::objects::{object_path, open_checked};
use crate::error::{Error, Result, shown};
use crate::import::Progress;
use crate::tree::{Attr, StoredTree};
use crate::verity::Hasher;
use crate::walk::{Visitor, walk};

/// Most paths that one damaged object is reported with.
const PATHS_MAX: usize = 10;

/// An object that is not what its name says.
#[derive(Debug)]
pub struct Damage {
    /// The object.
    pub object: Digest,
    /// What is wrong with it.
    pub error: Error,
    /// Files that hold it, at most 10; none where it is a version's metadata itself.
    pub paths: Vec<String>,
}

/// Objects that were found whole already: versions share most of theirs.
#[derive(Default)]
pub struct Verified(HashSet<Digest>);

impl Store {
    /// Reads a version and all its objects again and compares every digest. What `verified` knows
    /// is not read once more. Returns what is damaged, empty where all is well.
    pub fn verify(
        &self,
        digest: Digest,
        verified: &mut Verified,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Damage>> {
        self.check_version(digest)?;
        if let Some(error) = self.verify_object(digest, None)? {
            return Ok(vec![Damage {
                object: digest,
                error,
                paths: Vec::new(),
            }]);
        }
        let tree = self.open_tree(digest)?;
        let mut done = Progress::default();
        let mut damaged = BTreeMap::new();
        for (object, size) in tree.objects()? {
            if !verified.0.contains(&object) {
                match self.verify_object(object, Some(size))? {
                    None => drop(verified.0.insert(object)),
                    Some(error) => drop(damaged.insert(object, error)),
                }
            }
            done.files += 1;
            done.bytes += size;
            progress(done);
        }
        let mut paths = paths_of(&tree, &damaged.keys().copied().collect())?;
        let damaged = damaged.into_iter().map(|(object, error)| Damage {
            object,
            error,
            paths: paths.remove(&object).unwrap_or_default(),
        });
        Ok(damaged.collect())
    }

    /// Takes damaged objects out of the store: importing the same source again puts them back,
    /// where it would else take them for whole. Waits for imports that are under way.
    pub fn discard(&self, damaged: &[Digest]) -> Result<()> {
        let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
        damaged
            .iter()
            .try_for_each(|object| self.disk.remove(&object_path(&self.dir, *object)))
    }

    /// What is wrong with an object; `expected` is its length, where that is known.
    fn verify_object(&self, digest: Digest, expected: Option<u64>) -> Result<Option<Error>> {
        let path = object_path(&self.dir, digest);
        // Not one that is kept open: its name may lead elsewhere by now.
        let opened = match expected {
            Some(expected) => open_checked(&path, digest, expected),
            None => File::open(&path).map_err(Error::io("opening", &path)),
        };
        let file = match opened {
            Err(damage) if damage.is_damage() => return Ok(Some(damage)),
            file => file?,
        };
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = match file.read_at(&mut buffer, hasher.size()) {
                Ok(0) => break,
                Ok(read) => read,
                // A bad sector is damage like any other: the rest is read all the same.
                Err(error) => return Ok(Some(Error::io("reading", &path)(error))),
            };
            hasher.update(&buffer[..read]);
        }
        let got = hasher.finish();
        Ok((got != digest).then_some(Error::WrongContent {
            expected: digest,
            got,
        }))
    }
}

/// The files that hold some objects.
fn paths_of(tree: &StoredTree, wanted: &HashSet<Digest>) -> Result<HashMap<Digest, Vec<String>>> {
    let mut finder = Finder {
        tree,
        wanted,
        paths: HashMap::new(),
    };
    if !wanted.is_empty() {
        walk(tree, &mut finder, &mut |_| ())?;
    }
    Ok(finder.paths)
}

struct Finder<'a> {
    tree: &'a StoredTree,
    wanted: &'a HashSet<Digest>,
    paths: HashMap<Digest, Vec<String>>,
}

impl Visitor for Finder<'_> {
    fn node(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let object = self.tree.object_of(attr.nid)?;
        if let Some(object) = object.filter(|it| self.wanted.contains(it)) {
            let paths = self.paths.entry(object).or_default();
            if paths.len() < PATHS_MAX {
                paths.push(format!("/{}", shown(path)));
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], attr: &Attr, _first: &[u8]) -> Result<()> {
        self.node(path, attr)
    }
}
