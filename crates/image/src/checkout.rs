//! A version as a directory that may be changed, and the way back into the store.
//!
//! A checkout remembers of every name which inode it is and when that was last changed. Nothing can
//! change what an inode holds or is without changing that time, so what still has it is taken over from
//! the version when the directory is read in again, and neither opened nor listed: a commit costs what
//! was changed, and one look at everything.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::export;
use crate::import::{self, Progress};
use crate::layer::node_of;
use crate::manifest::Node;
use crate::store::{Staged, Store};
use crate::survey::{Changed, Directories, Survey};
use crate::tree::{Entry, Kind, Nid, StoredTree};

/// A version, written out.
pub struct Checkout {
    path: PathBuf,
    base: StoredTree,
    directories: Directories,
    then: Survey,
    /// What is no directory, by its number on this machine: it may have got another name.
    known: HashMap<u64, (Changed, Nid)>,
}

impl Checkout {
    /// Writes a version into the empty directory `path`, as root.
    pub fn new(
        base: StoredTree,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Checkout> {
        export::dir::write(&base, path, progress)?;
        // Once every name is made: a further name changes an inode too.
        let directories = Directories::of(&base)?;
        let then = Survey::of(&base, &directories, path)?;
        let mut known = HashMap::new();
        let mut last = then.root.changed;
        for directory in directories.nids() {
            for (place, entry) in base.readdir(directory, 0)?.enumerate() {
                let (entry, stamp) = (entry?, then.entry(directory, place));
                last = last.max(stamp.changed);
                if is_remembered(&entry) && stamp.is_known() {
                    known.insert(stamp.inode, (stamp.changed, entry.nid));
                }
            }
        }
        let checkout = Checkout {
            path: path.to_owned(),
            base,
            directories,
            then,
            known,
        };
        checkout.outwait(last)?;
        Ok(checkout)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version that it began as.
    pub fn base(&self) -> &StoredTree {
        &self.base
    }

    /// Looks at all that there was.
    pub(crate) fn look(&self) -> Result<Look<'_>> {
        let now = Survey::of(&self.base, &self.directories, &self.path)?;
        Ok(Look {
            checkout: self,
            now,
        })
    }

    /// File systems keep time in steps of some milliseconds. Waits until one has passed since
    /// `last`, so that whatever happens from now on has another time.
    fn outwait(&self, last: Changed) -> Result<()> {
        let failed = || Error::io("writing beside", &self.path);
        let beside = self.path.parent().unwrap_or(&self.path);
        loop {
            let probe = tempfile_in(beside).map_err(failed())?;
            let meta = probe.metadata().map_err(failed())?;
            if (meta.ctime(), meta.ctime_nsec() as u32) > last {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// A file without a name.
fn tempfile_in(directory: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(File::from(file))
}

/// Imports leave sockets out, and say so.
fn is_remembered(entry: &Entry<'_>) -> bool {
    !matches!(entry.kind, Kind::Directory | Kind::Socket)
}

/// What a checkout was, beside what it is now.
pub(crate) struct Look<'c> {
    checkout: &'c Checkout,
    now: Survey,
}

/// An entry of a directory of the version that is what it was.
#[derive(Clone, Copy)]
pub(crate) struct Untouched {
    /// In the version.
    pub nid: Nid,
    /// Its number on this machine.
    pub inode: u64,
}

impl<'c> Look<'c> {
    /// The version.
    pub fn base(&self) -> &'c StoredTree {
        &self.checkout.base
    }

    /// Whether the root is untouched, what is in it aside.
    pub fn has_root(&self) -> bool {
        self.now.root.is_still(&self.checkout.then.root)
    }

    /// What the entry at a place in a directory of the version still is, if it is untouched; of a
    /// directory, what is in it aside.
    pub fn entry(&self, directory: Nid, place: usize, entry: &Entry<'_>) -> Option<Untouched> {
        let stamp = |survey: &Survey| survey.entry(directory, place);
        let (then, now) = (stamp(&self.checkout.then), stamp(&self.now));
        let is_still = now.is_still(&then) && entry.kind != Kind::Socket;
        is_still.then_some(Untouched {
            nid: entry.nid,
            inode: now.inode,
        })
    }

    /// The inode of the version that one which is no directory still is, whatever its name, if it has
    /// not been touched.
    pub fn inode(&self, inode: u64, changed: Changed) -> Option<Nid> {
        let (then, nid) = *self.checkout.known.get(&inode)?;
        (then == changed).then_some(nid)
    }

    /// What the version says of an inode; of a directory, what is in it aside.
    pub fn node(&self, nid: Nid) -> Result<Node> {
        node_of(self.base(), nid)
    }
}

impl Store {
    /// Reads a checkout into the store; what was not touched is not read.
    pub fn stage_checkout(
        &self,
        checkout: &Checkout,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Staged> {
        self.stage_with(|session| {
            let look = checkout.look()?;
            import::dir::read(&checkout.path, Some(look), session, progress)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::store::Publish;
    use crate::store::tests::{everything_for, import, is_root};

    /// A store and a checkout of a version with everything; `None`, and why, where that cannot be.
    fn checked_out() -> Option<(TempDir, Store, Checkout)> {
        if !is_root() {
            eprintln!("skipped: owners and devices need root");
            return None;
        }
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let digest = import(&store, &everything_for(dir.path()), Publish::Untagged).unwrap();
        let top = dir.path().join("checkout");
        fs::create_dir(&top).unwrap();
        let tree = store.open_tree(digest).unwrap();
        let checkout = Checkout::new(tree, &top, &mut |_| ()).unwrap();
        Some((dir, store, checkout))
    }

    #[test]
    fn what_is_checked_out_goes_back_as_the_same_version_without_being_read() {
        let Some((_dir, store, checkout)) = checked_out() else {
            return;
        };
        let (top, digest) = (checkout.path().to_owned(), checkout.base().digest());
        // Read anew, nothing being known of it.
        let staged = store.stage_dir(&top, &mut |_| ()).unwrap();
        assert_eq!(staged.digest(), digest);
        assert!(staged.skipped().is_empty(), "{:?}", staged.skipped());
        drop(staged);
        let mut read = Progress::default();
        let staged = store
            .stage_checkout(&checkout, &mut |it| read = it)
            .unwrap();
        assert_eq!(staged.digest(), digest);
        assert_eq!(read.bytes, 0);
    }

    #[test]
    fn every_change_to_a_checkout_is_seen() {
        let Some((_dir, store, checkout)) = checked_out() else {
            return;
        };
        let (top, digest) = (checkout.path().to_owned(), checkout.base().digest());
        // In place and of the same length, with the time put back afterwards.
        let file = top.join("sizes/8192");
        let times = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, [b'x'; 8192]).unwrap();
        File::options()
            .write(true)
            .open(&file)
            .and_then(|file| file.set_modified(times))
            .unwrap();
        fs::rename(top.join("sizes/4097"), top.join("sizes/moved")).unwrap();
        fs::remove_file(top.join("sizes/2048")).unwrap();
        fs::set_permissions(top.join("sizes/4096"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("moved", top.join("sizes/new")).unwrap();
        let committed = store.stage_checkout(&checkout, &mut |_| ()).unwrap();
        let anew = store.stage_dir(&top, &mut |_| ()).unwrap();
        assert_eq!(committed.digest(), anew.digest());
        assert_ne!(committed.digest(), digest);
        let tree = committed.tree();
        assert_eq!(tree.read_file("sizes/8192").unwrap(), [b'x'; 8192]);
        assert!(tree.read_file("sizes/2048").is_err());
        assert_eq!(tree.read_file("sizes/moved").unwrap().len(), 4097);
    }

    /// What is in them is the same inode with the same time, at another path or through a link.
    #[test]
    fn directories_that_moved_are_seen() {
        let Some((_dir, store, checkout)) = checked_out() else {
            return;
        };
        let top = checkout.path().to_owned();
        let names = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            entries.count()
        };
        let count = names(&top.join("sizes"));
        fs::rename(top.join("sizes"), top.join("moved")).unwrap();
        symlink("moved", top.join("sizes")).unwrap();
        fs::hard_link(top.join("moved/8192"), top.join("second")).unwrap();
        let mut read = Progress::default();
        let committed = store
            .stage_checkout(&checkout, &mut |it| read = it)
            .unwrap();
        // Of the files that moved none is read but the one whose inode has a name more.
        assert_eq!(read.bytes, 8192);
        let anew = store.stage_dir(&top, &mut |_| ()).unwrap();
        assert_eq!(committed.digest(), anew.digest());
        let tree = committed.tree();
        let link = tree.lookup(tree.root(), b"sizes").unwrap().unwrap();
        assert_eq!(tree.attr(link).unwrap().kind, Kind::Symlink);
        let moved = tree.lookup(tree.root(), b"moved").unwrap().unwrap();
        assert_eq!(tree.readdir(moved, 0).unwrap().count(), count);
        let second = tree.lookup(tree.root(), b"second").unwrap().unwrap();
        assert_eq!(tree.attr(second).unwrap().nlink, 2);

        // Another directory in its place, with the names that it had.
        drop((committed, anew));
        fs::remove_file(top.join("sizes")).unwrap();
        fs::create_dir(top.join("sizes")).unwrap();
        fs::write(top.join("sizes/8192"), "another").unwrap();
        let committed = store.stage_checkout(&checkout, &mut |_| ()).unwrap();
        let anew = store.stage_dir(&top, &mut |_| ()).unwrap();
        assert_eq!(committed.digest(), anew.digest());
        let tree = committed.tree();
        assert_eq!(tree.read_file("sizes/8192").unwrap(), b"another");
        assert!(tree.read_file("sizes/4096").is_err());
    }
}
