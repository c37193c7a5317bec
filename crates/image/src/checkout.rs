//! A version as a directory that may be changed, and the way back into the store.
//!
//! A checkout remembers of every file when its inode was last changed. Nothing can change a file's
//! content without changing that time, so what still has it is taken over from the version when the
//! directory is read in again, and not read: a commit costs what was changed, not what is there.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::export;
use crate::import::{self, Progress};
use crate::manifest::Content;
use crate::store::{Staged, Store};
use crate::tree::{Nid, StoredTree};

/// When an inode was last changed: seconds and nanoseconds since 1970.
type Changed = (i64, u32);

/// A version, written out.
pub struct Checkout {
    path: PathBuf,
    base: StoredTree,
    known: HashMap<u64, (Changed, Nid)>,
}

impl Checkout {
    /// Writes a version into the empty directory `path`, as root.
    pub fn new(
        base: StoredTree,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Checkout> {
        let mut inodes = Vec::new();
        let mut note = |nid: Nid, file: &File| {
            let meta = file
                .metadata()
                .map_err(Error::io("reading the attributes of", path))?;
            inodes.push((meta.ino(), nid));
            Ok(())
        };
        export::dir::write(&base, path, &mut note, progress)?;
        let mut checkout = Checkout {
            path: path.to_owned(),
            base,
            known: HashMap::new(),
        };
        checkout.remember(&inodes)?;
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

    /// The inode of the version that a file is, if it has not been touched since the checkout.
    pub(crate) fn untouched(&self, inode: u64, changed: Changed) -> Option<Nid> {
        let (then, nid) = self.known.get(&inode)?;
        (*then == changed).then_some(*nid)
    }

    /// The content of a file of the version.
    pub(crate) fn content(&self, nid: Nid) -> Result<Content> {
        Ok(match self.base.object_of(nid)? {
            Some(digest) => Content::Object {
                digest,
                size: self.base.attr(nid)?.size,
            },
            None => Content::Inline(self.base.read_inode(nid)?),
        })
    }

    /// Looks at all files once every name is made: a further name changes an inode too.
    fn remember(&mut self, inodes: &[(u64, Nid)]) -> Result<()> {
        let nids: HashMap<u64, Nid> = inodes.iter().copied().collect();
        let mut last = Changed::default();
        let mut ahead = vec![self.path.clone()];
        while let Some(directory) = ahead.pop() {
            let entries = fs::read_dir(&directory).map_err(Error::io("listing", &directory))?;
            for entry in entries {
                let path = entry.map_err(Error::io("listing", &directory))?.path();
                let meta = path
                    .symlink_metadata()
                    .map_err(Error::io("reading the attributes of", &path))?;
                if meta.is_dir() {
                    ahead.push(path);
                } else if let Some(nid) = nids.get(&meta.ino()) {
                    let changed = (meta.ctime(), meta.ctime_nsec() as u32);
                    last = last.max(changed);
                    self.known.insert(meta.ino(), (changed, *nid));
                }
            }
        }
        self.outwait(last)
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

impl Store {
    /// Reads a checkout into the store; what was not touched is not read.
    pub fn stage_checkout(
        &self,
        checkout: &Checkout,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Staged> {
        self.stage_with(|session| {
            import::dir::read(&checkout.path, Some(checkout), session, progress)
        })
    }
}

#[cfg(test)]
mod tests {
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
}
