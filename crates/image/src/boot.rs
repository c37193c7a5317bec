//! What a node's firmware and loaders fetch out of an image: shim, GRUB and the kernel.

use std::io;
use std::path::PathBuf;

use crate::files::Files;

/// Where an image's boot files lie. An image without loaders still boots where a loader comes from elsewhere, so
/// each of those is an answer of its own.
#[derive(Debug)]
pub struct BootFiles {
    /// The newest kernel that has both modules and an executable.
    pub kernel: Kernel,
    /// Path of the signed shim for x86-64 UEFI.
    pub shim: Result<PathBuf, Missing>,
    /// Path of the signed GRUB for x86-64 UEFI that boots over the network.
    pub grub: Result<PathBuf, Missing>,
}

/// A kernel in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` says it.
    pub version: String,
    /// Path of its executable.
    pub vmlinuz: PathBuf,
}

/// What an image lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {what} in the image: looked for {}; {hint}", looked_for.join(", "))]
pub struct Missing {
    /// What is missing.
    pub what: &'static str,
    /// Where it could have been.
    pub looked_for: Vec<String>,
    /// What to do about it.
    pub hint: &'static str,
}

/// Why an image cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no kernel.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The image could not be read.
    #[error("reading the image: {0}")]
    Read(#[from] io::Error),
}

impl BootFiles {
    /// Finds the boot files of an image.
    pub fn of(files: &dyn Files) -> Result<Self, Error> {
        let _ = files;
        unreachable!()
    }
}
