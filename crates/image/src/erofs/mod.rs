//! EROFS as composefs uses it: the layout on disk, our writer and our reader.

pub(crate) mod format;
mod reader;
mod writer;

pub use reader::{DirectoryBlock, Dirent, Held, Image, Inode, XattrName};
pub(crate) use writer::write;

/// A place where an image's metadata breaks its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset}")]
pub struct Corrupt {
    /// What is wrong.
    pub what: &'static str,
    /// Where, from the start of the image.
    pub offset: u64,
}
