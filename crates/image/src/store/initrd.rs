//! Initramfs that somebody made for a version, in the place of ours: `initrds/DIGEST`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use wire::digest::Digest;

use super::{Store, names_in};
use crate::error::{Error, Result};

/// An initramfs of a version that is not ours. Other content has another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InitrdStamp {
    /// Its size.
    pub bytes: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Store {
    /// Gives a version this initramfs in the place of ours; an earlier one goes.
    pub fn use_initrd(&self, digest: Digest, content: &[u8]) -> Result<()> {
        let _versions = self.lock("lock", FlockOperation::LockShared)?;
        let _tags = self.lock_tags()?;
        self.check_version(digest)?;
        self.disk.create_dir(&self.initrds())?;
        let draft = self.dir.join("tmp").join(format!("initrd.{digest}"));
        self.disk
            .replace(&draft, &self.initrd_path(digest), content)?;
        self.disk.sync_dir(&self.initrds())?;
        self.disk.sync_dir(&self.dir)?;
        self.moved_tags()
    }

    /// Takes that back. Whether there was one.
    pub fn reset_initrd(&self, digest: Digest) -> Result<bool> {
        let _tags = self.lock_tags()?;
        self.check_version(digest)?;
        let known = self.initrd(digest)?.is_some();
        if known {
            self.disk.remove(&self.initrd_path(digest))?;
            self.disk.sync_dir(&self.initrds())?;
            self.moved_tags()?;
        }
        Ok(known)
    }

    /// Which initramfs a version has in the place of ours, if any.
    pub fn initrd(&self, digest: Digest) -> Result<Option<InitrdStamp>> {
        let path = self.initrd_path(digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok(Some(stamp_of(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("reading the attributes of", &path)(error)),
        }
    }

    /// Its content.
    pub fn read_initrd(&self, digest: Digest) -> Result<Vec<u8>> {
        let path = self.initrd_path(digest);
        fs::read(&path).map_err(Error::io("reading", &path))
    }

    /// Removes those whose version is gone. Only for who holds the lock alone; their bytes.
    pub(super) fn collect_initrds(&self, dry_run: bool, going: &[Digest]) -> Result<u64> {
        let mut bytes = 0;
        for name in names_in(&self.initrds())? {
            let Ok(digest) = name.parse() else {
                continue;
            };
            if self.has_version(digest) && !going.contains(&digest) {
                continue;
            }
            bytes += self.initrd(digest)?.map_or(0, |it| it.bytes);
            if !dry_run {
                self.disk.remove(&self.initrd_path(digest))?;
            }
        }
        Ok(bytes)
    }

    fn initrd_path(&self, digest: Digest) -> PathBuf {
        self.initrds().join(digest.to_string())
    }

    fn initrds(&self) -> PathBuf {
        self.dir.join("initrds")
    }
}

fn stamp_of(meta: &fs::Metadata) -> InitrdStamp {
    InitrdStamp {
        bytes: meta.len(),
        inode: meta.ino(),
        changed: (meta.ctime(), meta.ctime_nsec()),
    }
}
