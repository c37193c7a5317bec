//! Capabilities of an image's files (capabilities(7)). NFS carries none of `security.*`, so nodes are
//! told of them.

use crate::error::Result;
use crate::tree::{Attr, Kind, StoredTree};
use crate::walk::{Visitor, walk};

/// Most files that are listed; distributions have a dozen.
const FILES_MAX: usize = 1024;
/// The longest value, in bytes: version 3 of it has 24.
const VALUE_MAX: usize = 64;
const NAME: &[u8] = b"security.capability";

/// A file and what its extended attribute `security.capability` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capable {
    /// Absolute path.
    pub path: String,
    /// The attribute.
    pub value: Vec<u8>,
}

/// All files with capabilities, each under each of its names, of those whose names are UTF-8.
pub fn capabilities(tree: &StoredTree) -> Result<Vec<Capable>> {
    let mut found = Found {
        tree,
        files: Vec::new(),
    };
    walk(tree, &mut found, &mut |_| ())?;
    Ok(found.files)
}

struct Found<'a> {
    tree: &'a StoredTree,
    files: Vec<Capable>,
}

impl Visitor for Found<'_> {
    fn node(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        // Nothing else is executed.
        if attr.kind != Kind::File || self.files.len() >= FILES_MAX {
            return Ok(());
        }
        let xattrs = self.tree.xattrs(attr.nid)?;
        let mut values = xattrs.into_iter().filter(|(name, _)| name == NAME);
        if let Some((_, value)) = values.next().filter(|(_, value)| value.len() <= VALUE_MAX)
            && let Ok(path) = str::from_utf8(path)
        {
            self.files.push(Capable {
                path: format!("/{path}"),
                value,
            });
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], attr: &Attr, _first: &[u8]) -> Result<()> {
        self.node(path, attr)
    }
}
