//! The store on disk, in composefs's layout:
//!
//! ```text
//! meta.json               what composefs-rs wants to know about a repository
//! objects/4e/67ea…        contents and images, named by their fs-verity digest
//! images/4e67ea…          a version: a link to its image, ../objects/4e/67ea…
//! images/refs/NAME/TAG    a tag: a link to ../../4e67ea…
//! images/refs/@pins/4e67…  a version that is kept without a tag
//! history/NAME/TAG        what the tag named before
//! initrds/4e67ea…         an initramfs that a version boots with in the place of ours
//! layers/, compositions/  see [`crate::layer`]
//! tmp/PID.N/              an import that is under way
//! lock, tags.lock         held by flock: shared by imports, alone by gc; by whoever moves a tag
//! ```
//!
//! **Crashes.** An import writes its objects under `tmp/`, syncs the file system once, renames
//! them into `objects/`, syncs those directories, and only then links the version and moves the
//! tag, each by a rename. So every name leads to durable content, and what an interrupted import
//! leaves is garbage under `tmp/` (removed by the next import that runs alone) or objects and
//! versions without a name (removed by [`Store::gc`]).

mod collect;
mod disk;
#[cfg(test)]
mod faults;
mod history;
mod initrd;
mod map;
pub(crate) mod objects;
pub(crate) mod session;
#[cfg(test)]
pub(crate) mod tests;
mod verify;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use wire::digest::Digest;

pub use self::collect::Collected;
use self::disk::Disk;
pub use self::history::Move;
pub use self::initrd::InitrdStamp;
use self::objects::{Objects, object_path};
use self::session::Session;
pub use self::verify::{Damage, Verified};
use crate::error::{Error, Result};
use crate::import::tar::Intake;
use crate::import::{self, Progress, Skipped, container};
use crate::manifest::Manifest;
use crate::tree::StoredTree;

/// What `meta.json` says: composefs's format 1, SHA-256 with 4 KiB blocks, images of format V1.
const META: &str = concat!(
    r#"{"version":1,"algorithm":"fsverity-sha256-12","#,
    r#""features":{"compatible":[],"read-only-compatible":["v1_erofs"],"incompatible":[]}}"#,
    "\n"
);
/// The tag that a name without one means.
pub const TAG_DEFAULT: &str = "latest";
/// The tag that imports and commits move.
pub const TAG_NEXT: &str = "next";
/// The fewest digits of a digest that name a version.
pub const PREFIX_MIN: usize = 6;
/// The longest image name or tag, in bytes.
const NAME_MAX: usize = 128;

/// A directory that holds image versions.
pub struct Store {
    dir: PathBuf,
    disk: Disk,
    objects: Arc<Objects>,
}

/// A name of a version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// The image's name (`debian13`).
    pub name: String,
    /// The tag (`latest`, `next`).
    pub tag: String,
    /// The version that it names.
    pub digest: Digest,
}

/// A version in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its name.
    pub digest: Digest,
    /// The tags that name it, as `NAME:TAG`, sorted.
    pub tags: Vec<String>,
    /// The sizes of its files, in bytes.
    pub bytes: u64,
    /// Its inodes.
    pub files: u64,
    /// When it was published.
    pub created: SystemTime,
    /// The size of the initramfs that it boots with in the place of ours, in bytes.
    pub initrd_bytes: Option<u64>,
    /// Why it cannot be read, if so; its sizes are 0 then.
    pub damage: Option<String>,
}

/// Which tag a publication moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish<'a> {
    /// The rule for imports and commits: `NAME:latest` where the image has no tag yet,
    /// else `NAME:next`, never a tag that nodes follow.
    Import {
        /// The image's name.
        name: &'a str,
    },
    /// That tag and no other.
    Tag {
        /// The image's name.
        name: &'a str,
        /// The tag.
        tag: &'a str,
    },
    /// That tag, if it still names what it did when the work began.
    TagIf {
        /// The image's name.
        name: &'a str,
        /// The tag.
        tag: &'a str,
        /// What it has to name; `None`: there must be no such tag.
        was: Option<Digest>,
    },
    /// None: the version is found by its digest alone, and the next [`Store::gc`] removes it.
    Untagged,
}

impl Publish<'_> {
    /// Whether the image's name and the tag can be such.
    pub fn check_names(&self) -> Result<()> {
        match *self {
            Publish::Import { name } => check_name(name),
            Publish::Tag { name, tag } | Publish::TagIf { name, tag, .. } => {
                check_name(name)?;
                check_name(tag)
            }
            Publish::Untagged => Ok(()),
        }
    }
}

/// A version whose objects are written and that nothing names yet. Dropping it discards it.
pub struct Staged {
    tree: StoredTree,
    skipped: Vec<Skipped>,
    session: Session,
}

impl Staged {
    /// The name that the version will have.
    pub fn digest(&self) -> Digest {
        self.tree.digest()
    }

    /// The tree, readable before anything names it.
    pub fn tree(&self) -> &StoredTree {
        &self.tree
    }

    /// What the source had and the version has not.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

impl Store {
    /// Opens the store in a directory, and makes it first where there is none.
    pub fn open(dir: impl AsRef<Path>) -> Result<Store> {
        Store::open_on(dir.as_ref(), Disk::default())
    }

    fn open_on(dir: &Path, disk: Disk) -> Result<Store> {
        let objects = Arc::new(Objects::new(dir));
        let store = Store {
            dir: dir.to_owned(),
            disk,
            objects,
        };
        match fs::read_to_string(dir.join("meta.json")) {
            Ok(meta) => check_meta(dir, &meta)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => store.make()?,
            Err(error) => return Err(Error::io("reading", &dir.join("meta.json"))(error)),
        }
        Ok(store)
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Reads a directory into the store. As root: owners, devices and attributes are kept.
    pub fn stage_dir(&self, source: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Staged> {
        self.stage_with(|session| import::dir::read(source, None, session, progress))
    }

    /// Reads a tar archive, plain or compressed (gzip, zstd, xz), into the store: that of a root file
    /// system, or of a container image (an OCI image layout, or what `docker save` writes).
    pub fn stage_tar(
        &self,
        source: impl Read,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Staged> {
        self.stage_from(progress, |intake| import::tar::read(source, intake))
    }

    /// As [`Store::stage_tar`], from the start of a file: a container image is not copied first.
    pub fn stage_file(&self, source: File, progress: &mut dyn FnMut(Progress)) -> Result<Staged> {
        self.stage_from(progress, |intake| import::tar::read_file(source, intake))
    }

    /// Reads the container image of an OCI image layout, a directory, into the store.
    pub fn stage_layout(
        &self,
        source: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Staged> {
        let place = container::Place::Directory(source.to_owned());
        self.stage_from(progress, |intake| container::read(&place, intake))
    }

    /// Fetches a container image, beginning with this manifest or index, and reads it into the store.
    pub fn stage_fetched(
        &self,
        manifest: &[u8],
        origin: &dyn container::Origin,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Staged> {
        self.stage_from(progress, |intake| {
            let top = intake.session.place_for("fetched");
            let place = container::Place::fetched(top, manifest, origin)?;
            container::read(&place, intake)
        })
    }

    /// Has a source read into the store that is taken in by an [`Intake`].
    pub(crate) fn stage_from(
        &self,
        progress: &mut dyn FnMut(Progress),
        read: impl FnOnce(&mut Intake<'_>) -> Result<Manifest>,
    ) -> Result<Staged> {
        self.stage_with(|session| {
            let mut intake = Intake::new(session, progress);
            let tree = read(&mut intake)?;
            Ok((tree, intake.skipped))
        })
    }

    /// Has a source read into the store.
    pub(crate) fn stage_with(
        &self,
        read: impl FnOnce(&mut Session) -> Result<(Manifest, Vec<Skipped>)>,
    ) -> Result<Staged> {
        let mut session = self.begin()?;
        let (tree, skipped) = read(&mut session)?;
        self.stage(session, &tree, skipped)
    }

    /// Makes a staged version durable, then moves a tag to it, if `judge` lets it pass.
    ///
    /// `judge` sees the tree before anything names it, and refuses it by an error
    /// ([`Error::Refused`]). Returns the tag that was moved.
    pub fn publish(
        &self,
        mut staged: Staged,
        to: Publish<'_>,
        judge: impl FnOnce(&StoredTree) -> Result<()>,
    ) -> Result<Option<Tag>> {
        to.check_names()?;
        judge(&staged.tree)?;
        let digest = staged.digest();
        staged.session.commit()?;
        self.link_version(digest)?;
        let lock = self.lock_tags()?;
        let (name, tag) = match to {
            Publish::Untagged => return Ok(None),
            Publish::Tag { name, tag } => (name, tag),
            Publish::TagIf { name, tag, was } => {
                let now = self.read_tag(name, tag)?;
                if now != was {
                    let (name, tag) = (name.into(), tag.into());
                    return Err(Error::TagMoved { name, tag, now });
                }
                (name, tag)
            }
            Publish::Import { name } if self.has_tags(name) => (name, TAG_NEXT),
            Publish::Import { name } => (name, TAG_DEFAULT),
        };
        self.link_tag(name, tag, digest)?;
        drop(lock);
        Ok(Some(Tag {
            name: name.into(),
            tag: tag.into(),
            digest,
        }))
    }

    /// Moves (or makes) a tag, atomically.
    pub fn tag(&self, name: &str, tag: &str, digest: Digest) -> Result<()> {
        check_name(name)?;
        check_name(tag)?;
        let _versions = self.lock("lock", FlockOperation::LockShared)?;
        let _tags = self.lock_tags()?;
        self.check_version(digest)?;
        self.link_tag(name, tag, digest)
    }

    /// Removes a tag; the version stays until [`Store::gc`].
    pub fn remove_tag(&self, name: &str, tag: &str) -> Result<()> {
        check_name(name)?;
        check_name(tag)?;
        let _lock = self.lock_tags()?;
        self.tagged(name, tag)?;
        let directory = self.refs().join(name);
        self.disk.remove(&directory.join(tag))?;
        self.forget(name, tag)?;
        // Only an empty directory goes; one that still has tags stays.
        let _ = fs::remove_dir(&directory);
        self.moved_tags()
    }

    /// All tags, sorted by name and tag.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        let mut tags = Vec::new();
        let names = names_in(&self.refs())?;
        for name in names.into_iter().filter(|it| check_name(it).is_ok()) {
            for tag in names_in(&self.refs().join(&name))? {
                if let Some(digest) = self.read_tag(&name, &tag)? {
                    tags.push(Tag {
                        name: name.clone(),
                        tag,
                        digest,
                    });
                }
            }
        }
        tags.sort();
        Ok(tags)
    }

    /// All versions, by their first tag; those without a tag last.
    pub fn list(&self) -> Result<Vec<Version>> {
        let mut names: HashMap<Digest, Vec<String>> = HashMap::new();
        for Tag { name, tag, digest } in self.tags()? {
            names
                .entry(digest)
                .or_default()
                .push(format!("{name}:{tag}"));
        }
        let versions = self.versions()?.into_iter().map(|digest| {
            let totals = self.open_tree(digest).and_then(|tree| tree.totals());
            let damage = totals.as_ref().err().map(ToString::to_string);
            let totals = totals.unwrap_or_default();
            let link = self.images().join(digest.to_string());
            let created = link.symlink_metadata().and_then(|meta| meta.modified());
            Ok(Version {
                digest,
                initrd_bytes: self.initrd(digest)?.map(|it| it.bytes),
                tags: names.remove(&digest).unwrap_or_default(),
                bytes: totals.bytes,
                files: totals.files,
                damage,
                created: created.map_err(Error::io("reading the attributes of", &link))?,
            })
        });
        let mut versions = versions.collect::<Result<Vec<_>>>()?;
        versions.sort_by_cached_key(|version| {
            (
                version.tags.is_empty(),
                version.tags.clone(),
                version.digest,
            )
        });
        Ok(versions)
    }

    /// The version that `NAME`, `NAME:TAG`, a digest or the first digits of one, at least
    /// [`PREFIX_MIN`], name. The tag is `latest` by default.
    pub fn resolve(&self, reference: &str) -> Result<Digest> {
        if let Ok(digest) = reference.parse() {
            return self.check_version(digest).map(|()| digest);
        }
        let (name, tag) = split_reference(reference);
        check_name(name)?;
        check_name(tag)?;
        match self.tagged(name, tag) {
            Err(error @ Error::NoSuchTag { .. }) => self.by_prefix(reference)?.ok_or(error),
            found => found,
        }
    }

    /// The one version whose digest begins so; `None` where none does, or it may not be one.
    fn by_prefix(&self, text: &str) -> Result<Option<Digest>> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
        if text.len() < PREFIX_MIN || !text.bytes().all(is_digit) {
            return Ok(None);
        }
        let versions = self.versions()?.into_iter();
        let found: Vec<Digest> = versions
            .filter(|it| it.to_string().starts_with(text))
            .collect();
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(Error::BadName {
                text: text.into(),
                expected: "the beginning of one digest only: give more digits",
            }),
        }
    }

    /// Opens a version. While it is open, here or in another process, [`Store::gc`] keeps it.
    pub fn open_tree(&self, digest: Digest) -> Result<StoredTree> {
        self.check_version(digest)?;
        let objects = Arc::clone(&self.objects);
        let tree = open_image(digest, &object_path(&self.dir, digest), objects);
        // It may have been removed between the look and the lock.
        self.check_version(digest)?;
        tree
    }

    /// Opens a version without keeping it from [`Store::gc`]: whoever serves it to others says by
    /// other means which versions are in use.
    pub fn open_tree_unheld(&self, digest: Digest) -> Result<StoredTree> {
        self.check_version(digest)?;
        let path = object_path(&self.dir, digest);
        let file = File::open(&path).map_err(Error::io("opening", &path))?;
        map_image(digest, &path, file, Arc::clone(&self.objects))
    }

    /// A value that changes whenever a tag is moved, made or removed, or a version's initramfs
    /// replaced, by whichever process.
    /// Cheap: one system call.
    pub fn generation(&self) -> Result<u64> {
        let refs = self.refs();
        let meta = fs::metadata(&refs).map_err(Error::io("reading the attributes of", &refs))?;
        Ok((meta.ctime() as u64)
            .wrapping_mul(1_000_000_000)
            .wrapping_add(meta.ctime_nsec() as u64))
    }

    fn make(&self) -> Result<()> {
        let strange = fs::read_dir(&self.dir).ok().and_then(|mut entries| {
            entries.find_map(|entry| {
                let name = entry.ok()?.file_name();
                // An earlier start may have been cut short.
                let ours = [
                    "objects",
                    "images",
                    "tmp",
                    "lock",
                    "tags.lock",
                    "meta.json.tmp",
                ];
                (!ours.iter().any(|known| name == *known)).then_some(name)
            })
        });
        if let Some(name) = strange {
            let why = format!("it holds {} and no meta.json", name.display());
            return Err(Error::NotAStore {
                path: self.dir.clone(),
                why,
            });
        }
        [
            self.dir.clone(),
            self.dir.join("objects"),
            self.refs(),
            self.dir.join("tmp"),
        ]
        .iter()
        .try_for_each(|path| self.disk.create_dir(path))?;
        self.disk.sync_all(&self.dir)?;
        let (draft, path) = (self.dir.join("meta.json.tmp"), self.dir.join("meta.json"));
        self.disk.replace(&draft, &path, META.as_bytes())?;
        self.disk.sync_dir(&self.dir)
    }

    fn begin(&self) -> Result<Session> {
        if let Ok(alone) = self.lock("lock", FlockOperation::NonBlockingLockExclusive) {
            self.clean_tmp()?;
            drop(alone);
        }
        let lock = self.lock("lock", FlockOperation::LockShared)?;
        Session::begin(&self.dir, &self.disk, lock)
    }

    fn stage(
        &self,
        mut session: Session,
        tree: &Manifest,
        skipped: Vec<Skipped>,
    ) -> Result<Staged> {
        let digest = session.add_image(tree)?;
        session.settle()?;
        session.begin_sync()?;
        let objects = Arc::new(session.objects());
        let tree = open_image(digest, &session.path_of(digest), objects)?;
        Ok(Staged {
            tree,
            skipped,
            session,
        })
    }

    fn link_version(&self, digest: Digest) -> Result<()> {
        let path = self.images().join(digest.to_string());
        if path.symlink_metadata().is_err() {
            let name = digest.to_string();
            let target = Path::new("../objects").join(&name[..2]).join(&name[2..]);
            self.link_atomically(&target, &path)?;
        }
        self.disk.sync_dir(&self.images())
    }

    fn link_tag(&self, name: &str, tag: &str, digest: Digest) -> Result<()> {
        let directory = self.refs().join(name);
        if self.read_tag(name, tag)? == Some(digest) {
            return self.disk.sync_dir(&directory);
        }
        self.remember(name, tag)?;
        self.disk.create_dir(&directory)?;
        let target = Path::new("../..").join(digest.to_string());
        self.link_atomically(&target, &directory.join(tag))?;
        // Before the directory's sync, which then takes in both.
        self.touch_tags()?;
        self.disk.sync_dir(&directory)?;
        self.disk.sync_dir(&self.refs())
    }

    /// Gives a file of the store new content, durably.
    pub(crate) fn replace_durably(&self, path: &Path, content: &[u8]) -> Result<()> {
        let _tags = self.lock_tags()?;
        let directory = path.parent().unwrap_or(&self.dir);
        self.disk.create_dir(directory)?;
        let draft = self.dir.join("tmp").join("record");
        self.disk.replace(&draft, path, content)?;
        self.disk.sync_dir(directory)?;
        self.disk.sync_dir(&self.dir)
    }

    /// Removes a file of the store, durably.
    pub(crate) fn remove_durably(&self, path: &Path) -> Result<()> {
        self.disk.remove(path)?;
        let directory = path.parent().unwrap_or(&self.dir);
        if directory.is_dir() {
            self.disk.sync_dir(directory)?;
        }
        Ok(())
    }

    fn link_atomically(&self, target: &Path, path: &Path) -> Result<()> {
        // Also where two publish at once: the lock on tags is not held for versions.
        let unique = format!(
            "link.{}.{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let draft = self.dir.join("tmp").join(unique);
        self.disk.remove(&draft)?;
        self.disk.symlink(target, &draft)?;
        self.disk.rename(&draft, path)
    }

    /// Makes [`Store::generation`] change, and the change of `refs` durable.
    fn moved_tags(&self) -> Result<()> {
        self.touch_tags()?;
        self.disk.sync_dir(&self.refs())
    }

    /// Makes [`Store::generation`] change.
    fn touch_tags(&self) -> Result<()> {
        let refs = self.refs();
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        rustix::fs::utimensat(rustix::fs::CWD, &refs, &times, rustix::fs::AtFlags::empty())
            .map_err(|error| Error::io("touching", &refs)(error.into()))
    }

    fn tagged(&self, name: &str, tag: &str) -> Result<Digest> {
        self.read_tag(name, tag)?.ok_or_else(|| Error::NoSuchTag {
            name: name.into(),
            tag: tag.into(),
        })
    }

    /// The version that a tag names; `None` if there is no such tag, or it is not one of ours.
    pub fn read_tag(&self, name: &str, tag: &str) -> Result<Option<Digest>> {
        let path = self.refs().join(name).join(tag);
        match fs::read_link(&path) {
            Ok(target) => {
                let digest = target
                    .file_name()
                    .and_then(|name| name.to_str())
                    .and_then(|name| name.parse().ok());
                Ok(digest)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::io("reading", &path)(error)),
        }
    }

    fn has_tags(&self, name: &str) -> bool {
        names_in(&self.refs().join(name)).is_ok_and(|tags| !tags.is_empty())
    }

    /// Whether a version is published; its image may be missing nevertheless.
    fn has_version(&self, digest: Digest) -> bool {
        let link = self.images().join(digest.to_string());
        link.symlink_metadata().is_ok()
    }

    fn check_version(&self, digest: Digest) -> Result<()> {
        if self.has_version(digest) {
            Ok(())
        } else {
            Err(Error::NoSuchVersion { digest })
        }
    }

    /// The names of all versions, sorted; none is opened.
    pub fn versions(&self) -> Result<Vec<Digest>> {
        let mut versions: Vec<Digest> = names_in(&self.images())?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        versions.sort();
        Ok(versions)
    }

    /// Removes what interrupted imports left. Only for who holds the lock alone.
    fn clean_tmp(&self) -> Result<()> {
        let tmp = self.dir.join("tmp");
        for name in names_in(&tmp)? {
            let path = tmp.join(name);
            if path.is_dir() {
                self.disk.remove_all(&path)?;
            } else {
                self.disk.remove(&path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn lock_tags(&self) -> Result<File> {
        self.lock("tags.lock", FlockOperation::LockExclusive)
    }

    fn lock(&self, name: &str, how: FlockOperation) -> Result<File> {
        let path = self.dir.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.map_err(Error::io("opening", &path))?;
        rustix::fs::flock(&file, how).map_err(|error| Error::io("locking", &path)(error.into()))?;
        Ok(file)
    }

    fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn refs(&self) -> PathBuf {
        self.dir.join("images/refs")
    }
}

/// Opens an image, under a shared lock that keeps it from [`Store::gc`].
fn open_image(digest: Digest, path: &Path, objects: Arc<Objects>) -> Result<StoredTree> {
    let file = File::open(path).map_err(Error::io("opening", path))?;
    rustix::fs::flock(&file, FlockOperation::LockShared)
        .map_err(|error| Error::io("locking", path)(error.into()))?;
    map_image(digest, path, file, objects)
}

fn map_image(digest: Digest, path: &Path, file: File, objects: Arc<Objects>) -> Result<StoredTree> {
    let image = map::map(&file).map_err(Error::io("mapping", path))?;
    StoredTree::new(digest, image, objects, file)
}

fn check_meta(dir: &Path, meta: &str) -> Result<()> {
    let wrong = |why: &str| Error::NotAStore {
        path: dir.to_owned(),
        why: why.into(),
    };
    let meta: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(meta).map_err(|error| wrong(&format!("meta.json: {error}")))?;
    if meta.get("version").and_then(serde_json::Value::as_u64) != Some(1) {
        return Err(wrong("expected version 1 in meta.json"));
    }
    let algorithm = meta.get("algorithm").and_then(serde_json::Value::as_str);
    if algorithm != Some("fsverity-sha256-12") {
        return Err(wrong("expected algorithm fsverity-sha256-12 in meta.json"));
    }
    Ok(())
}

/// The image's name and the tag that `NAME[:TAG]` means.
pub fn split_reference(reference: &str) -> (&str, &str) {
    reference
        .split_once(':')
        .unwrap_or((reference, TAG_DEFAULT))
}

/// Image names and tags go into paths, URLs and command lines: letters, digits, `.`, `_`, `-`.
pub fn check_name(text: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fine = text.bytes().all(plain)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.len() <= NAME_MAX
        && text.parse::<Digest>().is_err();
    if fine {
        return Ok(());
    }
    Err(Error::BadName {
        text: text.into(),
        expected: "a name of letters, digits, '.', '_' and '-' that starts with a letter or digit",
    })
}

/// The names in a directory; none where there is none. Those that are not UTF-8 are not ours.
pub(crate) fn names_in(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.map_err(Error::io("listing", path))?,
    };
    entries
        .map(|entry| {
            entry
                .map(|entry| entry.file_name().into_string().ok())
                .map_err(Error::io("listing", path))
        })
        .filter_map(Result::transpose)
        .collect()
}
