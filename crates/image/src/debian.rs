//! Makes a Debian image by mmdebstrap.

use std::io;
use std::path::{Path, PathBuf};

/// A Debian release that images can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

/// What a build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The stage, for people.
    pub stage: String,
    /// How much of the whole build is done, 0 to 100.
    pub percent: u8,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// mmdebstrap is not installed.
    #[error("mmdebstrap: not found on PATH; install it: apt install mmdebstrap")]
    NoMmdebstrap,
    /// Something on this machine could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Makes a tar archive of a root file system that boots well without a disk.
///
/// Needs root, the network and about 1 GB in `out_tar`'s directory.
pub fn build(
    suite: Suite,
    extra_packages: &[String],
    out_tar: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let _ = (suite, extra_packages, out_tar, progress);
    unreachable!()
}

/// The name under which a built archive can be kept: it changes when the recipe does.
pub fn cache_key(suite: Suite, extra_packages: &[String]) -> String {
    let _ = (suite, extra_packages);
    unreachable!()
}
