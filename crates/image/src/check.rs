//! What is wrong with an image before a node finds out.

use std::io;
use std::path::PathBuf;

use crate::files::Files;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// It boots, but probably not as meant.
    Warn,
    /// The image must not be published as it is.
    Refuse,
}

/// One thing noticed about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was noticed, as a sentence without its full stop.
    pub what: String,
    /// The file that it is about; from the image's root, with a leading slash.
    pub path: Option<PathBuf>,
    /// What to do about it, if anything.
    pub hint: Option<String>,
}

/// Checks an image; findings come with the gravest first.
pub fn check(files: &dyn Files) -> io::Result<Vec<Finding>> {
    let _ = files;
    unreachable!()
}
