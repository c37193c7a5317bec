//! The exported trees and the directories above them.

use std::sync::Arc;

use crate::tree::Tree;

/// The exported trees of a running server. A handle: clones mean the same exports.
#[derive(Clone)]
pub struct Exports {}

/// Why an export was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Paths start with a slash and have no empty, `.` or `..` parts.
    #[error("expected an absolute path of plain names, got {0:?}")]
    BadPath(String),
    /// An export cannot lie within another, or above it.
    #[error("expected a path outside of other exports, got {path:?} with {other:?} exported")]
    Nested {
        /// The refused path.
        path: String,
        /// The export that is in its way.
        other: String,
    },
    /// The all-zero id is the server's own.
    #[error("expected an id of the tree, got zeros")]
    ZeroId,
}

impl Exports {
    /// Exports `tree` at `path` (`/images/0123…`); what was exported there before is not any more.
    /// `id` names the tree for ever: it is in the file handles that clients keep. The same tree may
    /// be exported at several paths.
    pub fn add(&self, _path: &str, _id: [u8; 16], _tree: Arc<dyn Tree>) -> Result<(), ExportError> {
        Ok(())
    }

    /// Ends the export at `path`; false if there is none. Handles of its tree go stale if it was
    /// the last path of it.
    pub fn remove(&self, _path: &str) -> bool {
        false
    }

    /// The exports: path and id, in order of path.
    pub fn list(&self) -> Vec<(String, [u8; 16])> {
        Vec::new()
    }
}
