//! Objects opened and mapped on demand, a bounded number of them kept.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use wire::digest::Digest;

use super::map::map;
use crate::error::{Error, Result};

/// Locks that the kept objects are spread over, so that readers seldom meet.
const SHARDS: usize = 16;
/// Objects that one shard keeps open: 256 descriptors in all.
const OPEN_MAX: usize = 16;
/// Objects that one shard keeps mapped: 4096 in all, of the 65530 mappings that a process may have
/// (vm.max_map_count). A boot reads several hundred.
const MAPPED_MAX: usize = 256;

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
    open: [Mutex<Shard<Arc<File>>>; SHARDS],
    mapped: [Mutex<Shard<Bytes>>; SHARDS],
}

/// Some of the objects that are kept ready.
struct Shard<T> {
    kept: HashMap<Digest, (T, u64)>,
    /// Counts uses: the object with the smallest number was used longest ago.
    clock: u64,
}

impl<T> Default for Shard<T> {
    fn default() -> Shard<T> {
        Shard {
            kept: HashMap::new(),
            clock: 0,
        }
    }
}

impl Objects {
    /// The objects of the store in a directory.
    pub fn new(store: &Path) -> Objects {
        Objects {
            store: store.to_owned(),
            staged: None,
            open: Default::default(),
            mapped: Default::default(),
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
        let shard = &self.open[shard(digest)];
        if let Some(file) = lock(shard).get(digest) {
            return Ok(file);
        }
        let file = Arc::new(open_checked(&self.path_of(digest), digest, size)?);
        lock(shard).keep(digest, Arc::clone(&file), OPEN_MAX);
        Ok(file)
    }

    /// The content of an object, which has to be `size` bytes long, where it is mapped. Whoever
    /// touches it takes the disk's errors as signals: it is for the kernel, to send it.
    pub fn map(&self, digest: Digest, size: u64) -> Result<Bytes> {
        let shard = &self.mapped[shard(digest)];
        if let Some(bytes) = lock(shard).get(digest) {
            return Ok(bytes);
        }
        let file = open_checked(&self.path_of(digest), digest, size)?;
        let bytes = map(&file).map_err(|source| self.error("mapping", digest, source))?;
        lock(shard).keep(digest, bytes.clone(), MAPPED_MAX);
        Ok(bytes)
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
}

/// Opens the object at a path, which has to be `expected` bytes long.
pub(super) fn open_checked(path: &Path, digest: Digest, expected: u64) -> Result<File> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let opened = File::options()
        .read(true)
        .custom_flags(no_follow)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::DamagedObject {
                digest,
                expected,
                got: 0,
            });
        }
        opened => opened.map_err(Error::io("opening", path))?,
    };
    let got = file
        .metadata()
        .map_err(Error::io("reading the size of", path))?
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

fn shard(digest: Digest) -> usize {
    usize::from(digest.0[0]) % SHARDS
}

fn lock<T>(shard: &Mutex<Shard<T>>) -> MutexGuard<'_, Shard<T>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Clone> Shard<T> {
    fn get(&mut self, digest: Digest) -> Option<T> {
        self.clock += 1;
        let (object, used) = self.kept.get_mut(&digest)?;
        *used = self.clock;
        Some(object.clone())
    }

    fn keep(&mut self, digest: Digest, object: T, max: usize) {
        self.clock += 1;
        self.kept.insert(digest, (object, self.clock));
        if self.kept.len() > max {
            let oldest = self
                .kept
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(digest, _)| *digest);
            oldest.map(|digest| self.kept.remove(&digest));
        }
    }
}
