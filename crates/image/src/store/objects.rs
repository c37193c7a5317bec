//! Objects opened on demand, a bounded number of them kept open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::digest::Digest;

use crate::error::{Error, Result};

/// Locks that the kept objects are spread over, so that readers seldom meet.
const SHARDS: usize = 16;
/// Objects that one shard keeps open: 256 descriptors in all.
const SHARD_MAX: usize = 16;

/// The path of an object in a store.
pub fn object_path(store: &Path, digest: Digest) -> PathBuf {
    let name = digest.to_string();
    store.join("objects").join(&name[..2]).join(&name[2..])
}

/// The objects of a store, for reading.
pub struct Objects {
    store: PathBuf,
    /// Where an import under way keeps those that the store lacks.
    staged: Option<PathBuf>,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    open: HashMap<Digest, (Arc<File>, u64)>,
    /// Counts uses: the object with the smallest number was used longest ago.
    clock: u64,
}

impl Objects {
    /// The objects of the store in a directory.
    pub fn new(store: &Path) -> Objects {
        Objects {
            store: store.to_owned(),
            staged: None,
            shards: Default::default(),
        }
    }

    /// Those and the objects of an import under way, which lie in `directory` under their names.
    pub fn with_staged(store: &Path, directory: &Path) -> Objects {
        Objects {
            staged: Some(directory.to_owned()),
            ..Objects::new(store)
        }
    }

    /// An object, which has to be `size` bytes long.
    pub fn open(&self, digest: Digest, size: u64) -> Result<Arc<File>> {
        if let Some(file) = self.shard(digest).get(digest) {
            return Ok(file);
        }
        let file = Arc::new(self.open_checked(digest, size)?);
        self.shard(digest).keep(digest, Arc::clone(&file));
        Ok(file)
    }

    /// An error of the system about an object.
    pub fn error(&self, doing: &'static str, digest: Digest, source: io::Error) -> Error {
        Error::Io {
            doing,
            path: object_path(&self.store, digest),
            source,
        }
    }

    fn path_of(&self, digest: Digest) -> PathBuf {
        let staged = self.staged.as_ref();
        staged
            .map(|directory| directory.join(digest.to_string()))
            .filter(|path| path.symlink_metadata().is_ok())
            .unwrap_or_else(|| object_path(&self.store, digest))
    }

    fn open_checked(&self, digest: Digest, expected: u64) -> Result<File> {
        let path = self.path_of(digest);
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let opened = File::options()
            .read(true)
            .custom_flags(no_follow)
            .open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::DamagedObject {
                    digest,
                    expected,
                    got: 0,
                });
            }
            opened => opened.map_err(Error::io("opening", &path))?,
        };
        let got = file
            .metadata()
            .map_err(Error::io("reading the size of", &path))?
            .len();
        if got == expected {
            Ok(file)
        } else {
            Err(Error::DamagedObject {
                digest,
                expected,
                got,
            })
        }
    }

    fn shard(&self, digest: Digest) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[usize::from(digest.0[0]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn get(&mut self, digest: Digest) -> Option<Arc<File>> {
        self.clock += 1;
        let (file, used) = self.open.get_mut(&digest)?;
        *used = self.clock;
        Some(Arc::clone(file))
    }

    fn keep(&mut self, digest: Digest, file: Arc<File>) {
        self.clock += 1;
        self.open.insert(digest, (file, self.clock));
        if self.open.len() > SHARD_MAX {
            let oldest = self
                .open
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(digest, _)| *digest);
            oldest.map(|digest| self.open.remove(&digest));
        }
    }
}
