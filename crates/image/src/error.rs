//! What can go wrong with images, each error naming what it met and where.

use std::io;
use std::path::{Path, PathBuf};

use wire::digest::Digest;

use crate::erofs::Corrupt;

/// The result of an image operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the image store, of an import or of a stored tree.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a gerund ("opening").
        doing: &'static str,
        /// The file it was done to.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The metadata of a stored image breaks its format.
    #[error("image metadata is damaged: {0}")]
    Corrupt(#[from] Corrupt),
    /// An object is missing, or not as long as the files that it holds.
    #[error("object {digest} is damaged: expected {expected} bytes, got {got}")]
    DamagedObject {
        /// The object's name.
        digest: Digest,
        /// Its length by the image that uses it.
        expected: u64,
        /// Its length on disk (0 where it is missing).
        got: u64,
    },
    /// The content of an object is not what its name says.
    #[error("object {expected} is damaged: its content hashes to {got}")]
    WrongContent {
        /// The object's name.
        expected: Digest,
        /// The digest of what it holds.
        got: Digest,
    },
    /// A path that leads nowhere in a stored tree.
    #[error("{path}: no such file in the image")]
    NoSuchFile {
        /// The path or name that was looked up.
        path: String,
    },
    /// A directory was needed and something else was there.
    #[error("inode {nid}: expected a directory")]
    NotADirectory {
        /// The inode's number.
        nid: u32,
    },
    /// A regular file was needed and something else was there.
    #[error("inode {nid}: expected a regular file")]
    NotAFile {
        /// The inode's number.
        nid: u32,
    },
    /// A symbolic link was needed and something else was there.
    #[error("inode {nid}: expected a symbolic link")]
    NotALink {
        /// The inode's number.
        nid: u32,
    },
    /// A path that runs through more symbolic links than [`crate::tree::LINKS_MAX`].
    #[error("{path}: too many symbolic links")]
    TooManyLinks {
        /// The path that was looked up.
        path: String,
    },
    /// A file larger than the caller is ready to hold in memory.
    #[error("{path}: {size} bytes, expected at most {limit}")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The most that is read at once, in bytes.
        limit: u64,
    },
    /// An image of that name and tag is not in the store.
    #[error("no image is tagged {name}:{tag}")]
    NoSuchTag {
        /// The image's name.
        name: String,
        /// The tag.
        tag: String,
    },
    /// A tag that never named another version, or none that the store still has.
    #[error("{name}:{tag} named no other version before that the store still has")]
    NoEarlierVersion {
        /// The image's name.
        name: String,
        /// The tag.
        tag: String,
    },
    /// A tag that was moved by somebody else since the work on it began.
    #[error("{name}:{tag} was moved meanwhile")]
    TagMoved {
        /// The image's name.
        name: String,
        /// The tag.
        tag: String,
        /// What it names now.
        now: Option<Digest>,
    },
    /// A version that is not in the store.
    #[error("no image version {digest}")]
    NoSuchVersion {
        /// The version's name.
        digest: Digest,
    },
    /// An image name, a tag or a reference that cannot be one.
    #[error("{text:?} is not {expected}")]
    BadName {
        /// What was given.
        text: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A directory that another program uses, or an unfinished store of a newer format.
    #[error("{}: not an image store: {why}", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A source whose tree cannot be stored.
    #[error("{path}: {why}")]
    BadSource {
        /// The entry of the source.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A part of a container image that is not what the image says of it.
    #[error("{what} is damaged or was changed: expected {expected}, got {got}")]
    WrongBlob {
        /// The part, by its path in the image.
        what: String,
        /// The digest or the length that the image gives.
        expected: String,
        /// Those of what is there.
        got: String,
    },
    /// Container images, none or several of which could be meant.
    #[error("{path}: expected one image for linux/amd64, found: {}", found.join("; "))]
    NoSuchPlatform {
        /// The list of images.
        path: String,
        /// The platform and the name of each.
        found: Vec<String>,
    },
    /// A directory that an export cannot fill.
    #[error("{}: {why}", path.display())]
    BadTarget {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A layer that is not in the store.
    #[error("no layer {name}")]
    NoSuchLayer {
        /// Its name.
        name: String,
    },
    /// A layer that an image is composed of.
    #[error("the image {image} is composed of the layer {name}")]
    LayerInUse {
        /// The layer.
        name: String,
        /// The image.
        image: String,
    },
    /// A layer with modules of another kernel than the base's.
    #[error("the layer {layer} has modules for Linux {expected}, the base boots {got}")]
    LayerKernel {
        /// The layer.
        layer: String,
        /// The release that it was made for.
        expected: String,
        /// The base's.
        got: String,
    },
    /// A layer that changed what the base, since, or a lower layer changed as well.
    #[error("the layer {layer} and what is below it both changed {}", some(paths))]
    LayerConflict {
        /// The layer.
        layer: String,
        /// The paths, and what in them where that can be told.
        paths: Vec<String>,
    },
    /// The checks before publishing found what must never be in an image.
    #[error("the image is refused: {}", reasons.join("; "))]
    Refused {
        /// Each finding.
        reasons: Vec<String>,
    },
}

impl Error {
    /// Adds what was being done, and to which file, to an operating system's error.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Io {
            doing,
            path,
            source,
        }
    }

    /// Whether it says that an object is not what it should be: cut, or not there.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Error::DamagedObject { .. } => true,
            Error::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether this is an [`Error::Io`] because of a full disk or quota.
    pub fn is_disk_full(&self) -> bool {
        let Error::Io { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// The first of many.
fn some(paths: &[String]) -> String {
    let shown = &paths[..paths.len().min(5)];
    match paths.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Shows a path of an image, which may hold any bytes, in an error.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
