//! What lies at each name of a version in a directory that it was written to, and when that was last
//! changed: two surveys say what was touched between them.
//!
//! One system call for each name, spread over all processors, and nothing is listed: a name more in a
//! directory is a change of that directory.

use std::collections::HashMap;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};

use crate::error::{Error, Result};
use crate::tree::{Attr, Nid, StoredTree};
use crate::walk::{Visitor, walk};

/// Most threads that look at once.
const THREADS_MAX: usize = 8;

/// When an inode was last changed: seconds and nanoseconds since 1970.
pub type Changed = (i64, u32);

/// What lies at a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The mount that it is on; 0: nothing is there, or nothing is known of it.
    mount: u64,
    /// Its number on this machine.
    pub inode: u64,
    /// When it was last changed.
    pub changed: Changed,
}

impl Stamp {
    /// Of a name in an open directory; of an empty name, of the directory.
    fn of(directory: impl AsFd, name: &[u8], flags: AtFlags) -> Stamp {
        let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let wanted = StatxFlags::INO | StatxFlags::CTIME | StatxFlags::MNT_ID;
        // What cannot be looked at is not known.
        let found = rustix::fs::statx(directory, name, flags, wanted).ok();
        let known = found.filter(|it| it.stx_mask & wanted.bits() == wanted.bits());
        known.map_or_else(Stamp::default, |it| Stamp {
            mount: it.stx_mnt_id,
            inode: it.stx_ino,
            changed: (it.stx_ctime.tv_sec, it.stx_ctime.tv_nsec),
        })
    }

    /// Whether anything is known to be there.
    pub fn is_known(&self) -> bool {
        *self != Stamp::default()
    }

    /// Whether it is known to be what another one was of, untouched since.
    pub fn is_still(&self, other: &Stamp) -> bool {
        self == other && self.is_known()
    }
}

/// The directories of a version, by their paths from its root.
pub struct Directories(Vec<(Vec<u8>, Nid)>);

impl Directories {
    /// Those of a version.
    pub fn of(tree: &StoredTree) -> Result<Directories> {
        let mut directories = Directories(Vec::new());
        walk(tree, &mut directories, &mut |_| ())?;
        Ok(directories)
    }

    /// Their numbers.
    pub fn nids(&self) -> impl Iterator<Item = Nid> {
        self.0.iter().map(|(_, nid)| *nid)
    }
}

impl Visitor for Directories {
    fn enter(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        self.0.push((path.to_vec(), attr.nid));
        Ok(())
    }

    fn node(&mut self, _: &[u8], _: &Attr) -> Result<()> {
        Ok(())
    }

    fn link(&mut self, _: &[u8], _: &Attr, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// The stamps of all names.
pub struct Survey {
    /// Of the directory itself.
    pub root: Stamp,
    /// For each directory of the version those of its entries, in the version's order.
    entries: HashMap<Nid, Vec<Stamp>>,
}

impl Survey {
    /// Looks at all names that a version has, in `top`.
    pub fn of(tree: &StoredTree, directories: &Directories, top: &Path) -> Result<Survey> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(CWD, top, flags, Mode::empty())
            .map_err(|error| Error::io("opening", top)(error.into()))?;
        let next = AtomicUsize::new(0);
        let look = || {
            let mut looked_at = Vec::new();
            while let Some((path, nid)) = directories.0.get(next.fetch_add(1, Ordering::Relaxed)) {
                looked_at.push((*nid, stamps_in(tree, *nid, &top, path)?));
            }
            Ok::<_, Error>(looked_at)
        };
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let mut entries = HashMap::with_capacity(directories.0.len());
        thread::scope(|scope| {
            let others = 1..processors.min(THREADS_MAX);
            let others: Vec<_> = others.map(|_| scope.spawn(look)).collect();
            entries.extend(look()?);
            for other in others {
                let looked_at = other.join();
                entries.extend(looked_at.unwrap_or_else(|it| std::panic::resume_unwind(it))?);
            }
            Ok::<_, Error>(())
        })?;
        let root = Stamp::of(&top, b"", AtFlags::EMPTY_PATH);
        Ok(Survey { root, entries })
    }

    /// Of the entry at a place in a directory of the version.
    pub fn entry(&self, directory: Nid, place: usize) -> Stamp {
        let entries = self.entries.get(&directory);
        let stamp = entries.and_then(|entries| entries.get(place));
        stamp.copied().unwrap_or_default()
    }
}

/// Of the entries of a directory; of none where it is not what it was.
fn stamps_in(tree: &StoredTree, nid: Nid, top: &OwnedFd, path: &[u8]) -> Result<Vec<Stamp>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { b"." } else { path };
    let Ok(directory) = rustix::fs::openat2(top, path, flags, Mode::empty(), inside) else {
        return Ok(Vec::new());
    };
    let stamp = |name| Stamp::of(&directory, name, AtFlags::empty());
    tree.readdir(nid, 0)?
        .map(|entry| Ok(stamp(entry?.name)))
        .collect()
}
