//! Sources of images: a directory, a tar archive or a container image becomes a canonical tree.

pub(crate) mod archive;
pub mod container;
pub(crate) mod dir;
pub(crate) mod tar;

/// How far an import has come. Handed to the caller after every file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries read so far.
    pub files: u64,
    /// Bytes of file content read so far.
    pub bytes: u64,
}

/// Something in a source that is not in the image, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The path from the source's root, without a leading `/`.
    pub path: Vec<u8>,
    /// Why it was left out.
    pub why: SkipReason,
}

/// Why a source's entry is not in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// A socket: only the program that made it can serve it.
    Socket,
    /// Another file system is mounted there; the directory itself is kept, empty.
    Submount,
    /// An extended attribute that images do not keep (its name).
    Attribute(String),
}
