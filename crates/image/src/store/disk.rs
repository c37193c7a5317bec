//! Every change that the store makes to its directory. In tests, the place where power fails.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::Path;

use crate::error::{Error, Result};

/// The store's hands on the disk.
#[derive(Clone, Default)]
pub struct Disk {
    #[cfg(test)]
    pub faults: super::faults::Faults,
}

impl Disk {
    /// Makes a directory and its parents; one that is there is fine.
    pub fn create_dir(&self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.step(path)?;
        fs::create_dir_all(path).map_err(Error::io("making", path))
    }

    /// Makes a file that is not there yet, for writing.
    pub fn create(&self, path: &Path) -> Result<File> {
        self.step(path)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path);
        let file = file.map_err(Error::io("making", path))?;
        #[cfg(test)]
        self.faults.wrote(path);
        Ok(file)
    }

    /// Gives a file new content: written to `draft`, made durable, and renamed to `path`. The name is
    /// durable after [`Disk::sync_dir`].
    pub fn replace(&self, draft: &Path, path: &Path, content: &[u8]) -> Result<()> {
        self.remove(draft)?;
        let mut file = self.create(draft)?;
        file.write_all(content)
            .map_err(Error::io("writing", draft))?;
        self.sync_file(&file, draft)?;
        self.rename(draft, path)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, target: &Path, path: &Path) -> Result<()> {
        self.step(path)?;
        symlink(target, path).map_err(Error::io("making", path))
    }

    /// Renames a file, over what has the new name.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.step(to)?;
        fs::rename(from, to).map_err(Error::io("making", to))?;
        #[cfg(test)]
        self.faults.renamed(from, to);
        Ok(())
    }

    /// Removes a file; one that is gone is fine.
    pub fn remove(&self, path: &Path) -> Result<()> {
        self.step(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("removing", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes a directory and all in it; one that is gone is fine.
    pub fn remove_all(&self, path: &Path) -> Result<()> {
        self.step(path)?;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("removing", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Makes everything durable that was written to the file system of a directory.
    pub fn sync_all(&self, path: &Path) -> Result<()> {
        self.step(path)?;
        let directory = File::open(path).map_err(Error::io("opening", path))?;
        rustix::fs::syncfs(&directory).map_err(|error| Error::io("syncing", path)(error.into()))?;
        #[cfg(test)]
        self.faults.synced();
        Ok(())
    }

    /// As [`Disk::sync_all`], to begin with what has to be done anyway: nothing rests on it.
    pub fn sync_early(path: &Path) -> Result<()> {
        let synced = File::open(path).and_then(|directory| Ok(rustix::fs::syncfs(&directory)?));
        synced.map_err(Error::io("syncing", path))
    }

    /// Makes a file's content durable.
    pub fn sync_file(&self, file: &File, path: &Path) -> Result<()> {
        self.step(path)?;
        file.sync_all().map_err(Error::io("syncing", path))?;
        #[cfg(test)]
        self.faults.synced_file(path);
        Ok(())
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&self, path: &Path) -> Result<()> {
        self.step(path)?;
        File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(Error::io("syncing", path))
    }

    #[cfg_attr(
        not(test),
        expect(
            clippy::unused_self,
            clippy::unnecessary_wraps,
            reason = "tests fail here"
        )
    )]
    fn step(&self, _path: &Path) -> Result<()> {
        #[cfg(test)]
        self.faults.step(_path)?;
        Ok(())
    }
}
