//! Removes what nothing needs any more.

use std::collections::HashSet;
use std::fs::File;

use rustix::fs::FlockOperation;
use wire::digest::Digest;

use super::objects::object_path;
use super::{Store, names_in};
use crate::error::{Error, Result};

/// What [`Store::gc`] removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Versions.
    pub versions: Vec<Digest>,
    /// Objects, images included.
    pub objects: u64,
    /// Their bytes, and those of the initramfs that versions had in the place of ours.
    pub bytes: u64,
    /// Kept versions that cannot be read. What they need is not known: no object was removed.
    pub unreadable: Vec<Digest>,
}

impl Store {
    /// Removes every version that nothing names (no tag, no pin, no layer, not what a tag named before), that
    /// nobody has open and that is not in `in_use`, then the objects that no version needs. Waits
    /// for imports that are under way. With `dry_run`, only says what it would remove.
    pub fn gc(&self, in_use: &[Digest], dry_run: bool) -> Result<Collected> {
        let _lock = self.lock("lock", FlockOperation::LockExclusive)?;
        let mut kept: HashSet<Digest> = self.tags()?.into_iter().map(|tag| tag.digest).collect();
        kept.extend(self.pins()?);
        kept.extend(self.previous()?);
        kept.extend(self.layer_versions()?);
        kept.extend(in_use);
        let mut collected = Collected::default();
        let mut needed = HashSet::new();
        for digest in self.versions()? {
            if !kept.contains(&digest) && self.retire(digest, dry_run)? {
                collected.versions.push(digest);
                continue;
            }
            needed.insert(digest);
            match self.open_tree(digest).and_then(|tree| tree.objects()) {
                Ok(objects) => needed.extend(objects.into_keys()),
                Err(_) => collected.unreadable.push(digest),
            }
        }
        collected.bytes += self.collect_initrds(dry_run, &collected.versions)?;
        if !dry_run {
            self.clean_tmp()?;
            self.disk.sync_dir(&self.images())?;
        }
        if collected.unreadable.is_empty() {
            self.remove_objects(&needed, dry_run, &mut collected)?;
        }
        Ok(collected)
    }

    /// Takes a version's name away, unless somebody has it open.
    fn retire(&self, digest: Digest, dry_run: bool) -> Result<bool> {
        let path = object_path(&self.dir, digest);
        // Held while the name goes: whoever opens the version at this moment finds out.
        let lock = File::open(&path).ok();
        if let Some(file) = &lock {
            match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
                Err(error) => return Err(Error::io("locking", &path)(error.into())),
            }
        }
        if !dry_run {
            self.disk.remove(&self.images().join(digest.to_string()))?;
        }
        Ok(true)
    }

    fn remove_objects(
        &self,
        needed: &HashSet<Digest>,
        dry_run: bool,
        collected: &mut Collected,
    ) -> Result<()> {
        let objects = self.dir.join("objects");
        for head in names_in(&objects)? {
            for rest in names_in(&objects.join(&head))? {
                let Ok(digest) = format!("{head}{rest}").parse() else {
                    continue;
                };
                if needed.contains(&digest) {
                    continue;
                }
                let path = objects.join(&head).join(&rest);
                collected.bytes += path.symlink_metadata().map_or(0, |meta| meta.len());
                collected.objects += 1;
                if !dry_run {
                    self.disk.remove(&path)?;
                }
            }
        }
        Ok(())
    }
}
