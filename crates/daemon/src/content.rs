//! The bytes of boot files: taken out of stored images, the initramfs built once and kept.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use engine::{BootFile, Content, Digest};
use image::boot::{BOOT_FILE_MAX, BootFiles};
use image::files::Root;
use image::initramfs::{self, ExtraFile, ModuleSource, Profile, Wanted};
use image::store::InitrdStamp;
use image::{Store, StoredTree};

use crate::trace::Traces;

/// Most boot files held in memory.
const HELD_MAX: usize = 32;

type Slot = Arc<OnceLock<Result<Bytes, String>>>;
/// A file of a version; the stamp is that of an initramfs which is not ours.
type Key = (Digest, BootFile, Option<InitrdStamp>);

/// Finds and builds boot files; shared by every thread that sends them.
pub struct Contents {
    store: Store,
    cache: PathBuf,
    init: Arc<[u8]>,
    profile: Profile,
    shell: bool,
    traces: Traces,
    held: Mutex<HashMap<Key, Slot>>,
}

impl Contents {
    /// Contents of the images in `store`; initramfs are kept in the folder `cache`.
    pub fn new(store: Store, cache: PathBuf, init: Arc<[u8]>, profile: Profile) -> Contents {
        Contents {
            store,
            traces: Traces::new(cache.clone()),
            cache,
            init,
            profile,
            shell: false,
            held: Mutex::default(),
        }
    }

    /// Puts a shell into every initramfs, for `rd.break`.
    pub fn with_shell(self, shell: bool) -> Contents {
        Contents { shell, ..self }
    }

    /// What boots read, learned and kept beside the initramfs.
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// A node that runs the version is up. The first one leaves a trace for those after it, which
    /// from now on is in their initramfs.
    pub fn learn(&self, digest: Digest) {
        match self.traces.finish(digest, || self.store.open_tree(digest)) {
            Ok(true) => drop(self.lock().remove(&self.key(digest, BootFile::Initrd))),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, %digest, "what its boot reads is not kept"),
        }
    }

    /// The bytes to send; waits while they are being made.
    pub fn get(&self, content: &Content) -> Result<Bytes, String> {
        match content {
            Content::Bytes(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            Content::File { digest, file } => self.file(*digest, *file),
        }
    }

    /// A boot file of a version.
    pub fn file(&self, digest: Digest, file: BootFile) -> Result<Bytes, String> {
        let key = self.key(digest, file);
        let slot = self.slot(key);
        let result = slot.get_or_init(|| self.make_aside(digest, file)).clone();
        if result.is_err() {
            // What failed may succeed once its cause (a full disk) is gone.
            self.lock().remove(&key);
        }
        result
    }

    /// How far a version's initramfs is: `ready`, `building` or `idle`.
    pub fn progress(&self, digest: Digest) -> &'static str {
        match self.lock().get(&self.key(digest, BootFile::Initrd)) {
            None => "idle",
            Some(slot) if slot.get().is_none() => "building",
            Some(_) => "ready",
        }
    }

    fn key(&self, digest: Digest, file: BootFile) -> Key {
        let foreign = match file {
            // What cannot be told now is told by whoever reads it.
            BootFile::Initrd => self.store.initrd(digest).unwrap_or_default(),
            _ => None,
        };
        (digest, file, foreign)
    }

    fn slot(&self, key: Key) -> Slot {
        let mut held = self.lock();
        if !held.contains_key(&key) {
            let (digest, file, _) = key;
            held.retain(|it, _| (it.0, it.1) != (digest, file));
            if held.len() >= HELD_MAX {
                held.retain(|it, _| it.0 == digest);
            }
        }
        Arc::clone(held.entry(key).or_default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Slot>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On a thread of its own: those that send files have no stack to compress with.
    fn make_aside(&self, digest: Digest, file: BootFile) -> Result<Bytes, String> {
        std::thread::scope(|scope| {
            let made = std::thread::Builder::new()
                .name("content".into())
                .spawn_scoped(scope, || self.make(digest, file))
                .map_err(|error| format!("starting a thread: {error}"))?;
            made.join()
                .unwrap_or_else(|_| Err("making the file failed".into()))
        })
    }

    fn make(&self, digest: Digest, file: BootFile) -> Result<Bytes, String> {
        let tree = self
            .store
            .open_tree(digest)
            .map_err(|error| error.to_string())?;
        let boot = BootFiles::of(&tree).map_err(|error| error.to_string())?;
        match file {
            BootFile::Kernel => read(&tree, &boot.kernel.vmlinuz),
            BootFile::Shim => read(&tree, &boot.shim.map_err(|error| error.to_string())?),
            BootFile::Grub => read(&tree, &boot.grub.map_err(|error| error.to_string())?),
            BootFile::Initrd if self.is_foreign(digest)? => {
                let read = self.store.read_initrd(digest);
                read.map(Bytes::from).map_err(|error| error.to_string())
            }
            BootFile::Initrd => {
                let initrd = self.initrd(digest, &tree, &boot.kernel.version)?;
                Ok(match self.traces.get(digest) {
                    Some(trace) => initramfs::with_trace(&initrd, &trace).into(),
                    None => initrd,
                })
            }
        }
    }

    /// Whether somebody's own initramfs takes the place of ours.
    fn is_foreign(&self, digest: Digest) -> Result<bool, String> {
        let foreign = self.store.initrd(digest);
        foreign
            .map(|it| it.is_some())
            .map_err(|error| error.to_string())
    }

    fn initrd(&self, digest: Digest, tree: &StoredTree, kernel: &str) -> Result<Bytes, String> {
        let shell = self.shell.then(|| initramfs::shell(tree)).transpose();
        let shell: Vec<ExtraFile> = shell
            .map_err(|error| error.to_string())?
            .into_iter()
            .collect();
        let wanted = Wanted {
            files: &shell,
            ..Wanted::by(&self.profile)
        };
        let key = initramfs::cache_key(&digest, kernel, &wanted, &self.init);
        let path = self.cache.join(format!("initrd-{key}"));
        if let Ok(bytes) = fs::read(&path) {
            return Ok(bytes.into());
        }
        let started = Instant::now();
        let source = ModuleSource::in_image(tree, kernel);
        let built =
            initramfs::build(&source, &wanted, &self.init).map_err(|error| error.to_string())?;
        let seconds = started.elapsed().as_secs_f32();
        tracing::info!(%digest, bytes = built.bytes.len(), seconds, "initramfs built");
        if let Err(error) = keep(&path, &built.bytes) {
            tracing::warn!(%error, path = %path.display(), "the initramfs could not be kept on disk");
        }
        Ok(built.bytes.into())
    }
}

fn read(tree: &StoredTree, path: &Path) -> Result<Bytes, String> {
    let bytes = Root::new(tree).read(path, BOOT_FILE_MAX);
    let bytes =
        bytes.map_err(|error| format!("reading {} from the image: {error}", path.display()))?;
    bytes
        .map(Bytes::from)
        .ok_or_else(|| format!("the image has no {}", path.display()))
}

/// Written aside and renamed: a half-written initramfs must never boot a node.
fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let aside = path.with_extension("new");
    let mut file = fs::File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(aside, path)
}
