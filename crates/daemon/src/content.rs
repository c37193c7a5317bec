//! The bytes of boot files: taken out of stored images, the initramfs built once and kept.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use engine::{BootFile, Content, Digest};
use image::boot::{BOOT_FILE_MAX, BootFiles, Loader, Origin, grub_speaks_http};
use image::capabilities::capabilities;
use image::files::Root;
use image::initramfs::{self, ExtraFile, Inits, ModuleSource, Profile, Wanted};
use image::store::InitrdStamp;
use image::{Store, StoredTree};
use wire::identity::Capable;

use crate::blob::Blob;
use crate::trace::Traces;

/// Most boot files held in memory.
const HELD_MAX: usize = 32;

type Slot = Arc<OnceLock<Result<Blob, String>>>;
/// A file of a version; the stamp is that of an initramfs which is not ours.
type Key = (Digest, BootFile, Option<InitrdStamp>);

/// Finds and builds boot files; shared by every thread that sends them.
pub struct Contents {
    store: Store,
    cache: PathBuf,
    /// Loaders for images that have none of their own.
    loaders: PathBuf,
    inits: Inits,
    profile: Profile,
    shell: bool,
    traces: Traces,
    held: Mutex<HashMap<Key, Slot>>,
    capable: Mutex<HashMap<Digest, Arc<[Capable]>>>,
}

impl Contents {
    /// Contents of the images in `store`; initramfs are kept in the folder `cache`, and loaders of
    /// images that have none are those in the folder `loaders`.
    pub fn new(
        store: Store,
        cache: PathBuf,
        loaders: PathBuf,
        inits: impl Into<Inits>,
        profile: Profile,
    ) -> Contents {
        Contents {
            store,
            traces: Traces::new(cache.clone()),
            cache,
            loaders,
            inits: inits.into(),
            profile,
            shell: false,
            held: Mutex::default(),
            capable: Mutex::default(),
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

    /// The files of a version that have capabilities, looked for once. None where that fails, which is
    /// logged.
    pub fn capable(&self, digest: Digest) -> Arc<[Capable]> {
        let lock = || self.capable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&digest) {
            return Arc::clone(known);
        }
        let tree = self.store.open_tree(digest);
        let found = tree.and_then(|tree| capabilities(&tree)).map(|files| {
            let files = files.into_iter().map(|it| Capable {
                path: it.path,
                value: it.value,
            });
            files.collect::<Arc<[Capable]>>()
        });
        match found {
            Ok(found) => {
                let mut known = lock();
                if known.len() >= HELD_MAX {
                    known.clear();
                }
                known.insert(digest, Arc::clone(&found));
                found
            }
            Err(error) => {
                tracing::warn!(%error, %digest, "its files' capabilities are not known");
                [].into()
            }
        }
    }

    /// What to send; waits while it is being made.
    pub fn get(&self, content: &Content) -> Result<Blob, String> {
        match content {
            Content::Bytes(bytes) => Ok(Blob::in_memory(Bytes::copy_from_slice(bytes))),
            Content::File { digest, file } => self.file(*digest, *file),
        }
    }

    /// A boot file of a version.
    pub fn file(&self, digest: Digest, file: BootFile) -> Result<Blob, String> {
        let key = self.key(digest, file);
        let slot = self.slot(key);
        let result = slot.get_or_init(|| self.make_aside(digest, file).map(Blob::new));
        let result = result.clone();
        if result.is_err() {
            // What failed may succeed once its cause (a full disk) is gone.
            self.lock().remove(&key);
        }
        result
    }

    /// The loaders that images may do without, as they lie in the folder for them: each name with
    /// its size and time. What is held of them is forgotten where they have changed.
    pub fn look_at_loaders(&self, known: &LocalLoaders) -> LocalLoaders {
        let found: LocalLoaders = BootFile::ALL
            .into_iter()
            .filter(|file| may_be_local(*file))
            .filter_map(|file| {
                let about = fs::metadata(self.loaders.join(file.name())).ok()?;
                let is_file = about.is_file() && about.len() <= BOOT_FILE_MAX;
                is_file.then_some((file, (about.len(), about.modified().ok())))
            })
            .collect();
        if found != *known {
            self.lock().retain(|(_, file, _), _| !may_be_local(*file));
        }
        found
    }

    /// Why a version lacks a loader, if it does.
    pub fn lacks(
        &self,
        tree: &StoredTree,
        file: BootFile,
        local: &LocalLoaders,
    ) -> Result<(), String> {
        let Some(loader) = loader(file) else {
            return Ok(());
        };
        let missing = match loader.find(tree).map_err(|error| error.to_string())? {
            Ok(_) => return Ok(()),
            Err(missing) => missing,
        };
        if local.contains_key(&file) {
            return Ok(());
        }
        Err(self.with_local(file, &missing.to_string()))
    }

    /// Why a version's loader cannot go on over HTTP, if it is there and cannot.
    pub fn lacks_http(&self, tree: &StoredTree, file: BootFile) -> Option<String> {
        if !matches!(file, BootFile::Grub | BootFile::GrubArm64) {
            return None;
        }
        let path = loader(file)?.find(tree).ok()?.ok()?;
        let bytes = read(tree, &path).ok()?;
        (!grub_speaks_http(&bytes)).then(|| {
            "the image's GRUB has no HTTP (Debian 12's has none, Debian 13's has, and slate image build adds that one to Debian 12): boot the machine by PXE, which is TFTP, or take an image with a newer GRUB, or install ipxe in the image where Secure Boot is off".to_owned()
        })
    }

    fn with_local(&self, file: BootFile, cause: &str) -> String {
        if !may_be_local(file) {
            return cause.to_owned();
        }
        let place = self.loaders.join(file.name());
        format!("{cause}, or copy it to {}", place.display())
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
            file => self.loader(&tree, file),
        }
    }

    fn loader(&self, tree: &StoredTree, file: BootFile) -> Result<Bytes, String> {
        let loader = loader(file).ok_or("no loader")?;
        let missing = match loader.find(tree).map_err(|error| error.to_string())? {
            Ok(path) => return read(tree, &path),
            Err(missing) => missing.to_string(),
        };
        if !may_be_local(file) {
            return Err(missing);
        }
        let path = self.loaders.join(file.name());
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(self.with_local(file, &missing))
            }
            Err(error) => Err(format!("reading {}: {error}", path.display())),
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
        let key = initramfs::cache_key(&digest, kernel, &wanted, &self.inits);
        let path = self.cache.join(format!("initrd-{key}"));
        if let Ok(bytes) = fs::read(&path) {
            return Ok(bytes.into());
        }
        let started = Instant::now();
        let source = ModuleSource::in_image(tree, kernel);
        let built =
            initramfs::build(&source, &wanted, &self.inits).map_err(|error| error.to_string())?;
        let seconds = started.elapsed().as_secs_f32();
        tracing::info!(%digest, bytes = built.bytes.len(), seconds, "initramfs built");
        if let Err(error) = keep(&path, &built.bytes) {
            tracing::warn!(%error, path = %path.display(), "the initramfs could not be kept on disk");
        }
        Ok(built.bytes.into())
    }
}

/// The loaders of images that have none of their own, with their sizes and times.
pub type LocalLoaders = BTreeMap<BootFile, (u64, Option<SystemTime>)>;

/// What a loader of a version is of, where it is not of the image's own packages. One that cannot be told
/// is served all the same.
pub fn origin(tree: &StoredTree, file: BootFile) -> Option<String> {
    let path = loader(file)?.find(tree).ok()?.ok()?;
    let origin = Origin::of(tree, &path).ok()??;
    Some(origin.to_string())
}

fn loader(file: BootFile) -> Option<Loader> {
    Some(match file {
        BootFile::Shim => Loader::Shim,
        BootFile::Grub => Loader::Grub,
        BootFile::ShimArm64 => Loader::ShimArm64,
        BootFile::GrubArm64 => Loader::GrubArm64,
        BootFile::IpxeUefi => Loader::IpxeUefi,
        BootFile::IpxeBios => Loader::IpxeBios,
        BootFile::Pxelinux => Loader::Pxelinux,
        BootFile::Ldlinux => Loader::Ldlinux,
        BootFile::Kernel | BootFile::Initrd => return None,
    })
}

/// Loaders that no vendor signs together with its kernel may come from elsewhere than the image.
fn may_be_local(file: BootFile) -> bool {
    matches!(
        file,
        BootFile::IpxeUefi | BootFile::IpxeBios | BootFile::Pxelinux | BootFile::Ldlinux
    )
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
