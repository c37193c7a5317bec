//! A stored image version as the NFS server sees it.

use std::ops::ControlFlow;
use std::sync::Arc;

use image::{Extent, Kind, Seek, StoredTree};
use nfs::{Attr, DirEntry, FileKind, Time, Tree, TreeError, Usage, Whence};

use crate::trace::Recorder;

/// Serves a stored version over NFS; inode numbers are the store's own. The recorder, where there
/// is one, is told of every read.
pub struct Served {
    tree: StoredTree,
    recorder: Option<Arc<Recorder>>,
    has_labels: bool,
}

impl Tree for Served {
    fn root(&self) -> u32 {
        self.tree.root()
    }

    fn attr(&self, ino: u32) -> Result<Attr, TreeError> {
        let attr = self.tree.attr(ino).map_err(stale)?;
        let mtime = Time {
            seconds: attr.mtime.seconds,
            nanos: attr.mtime.nanoseconds,
        };
        Ok(Attr {
            kind: kind(attr.kind),
            mode: attr.mode.into(),
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            used: attr.size,
            rdev: (attr.rdev.major, attr.rdev.minor),
            mtime,
            ctime: mtime,
        })
    }

    fn lookup(&self, dir: u32, name: &[u8]) -> Result<u32, TreeError> {
        self.directory(dir)?;
        self.tree
            .lookup(dir, name)
            .map_err(failed)?
            .ok_or(TreeError::NotFound)
    }

    fn parent(&self, dir: u32) -> Result<u32, TreeError> {
        self.directory(dir)?;
        self.tree.parent(dir).map_err(failed)
    }

    fn readdir(
        &self,
        dir: u32,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        self.directory(dir)?;
        for entry in self.tree.readdir(dir, cookie).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let entry = DirEntry {
                name: entry.name,
                ino: entry.nid,
                cookie: entry.cookie,
            };
            if each(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn readlink(&self, ino: u32, target: &mut Vec<u8>) -> Result<(), TreeError> {
        if self.tree.attr(ino).map_err(stale)?.kind != Kind::Symlink {
            return Err(TreeError::WrongKind);
        }
        target.extend_from_slice(&self.tree.readlink(ino).map_err(failed)?);
        Ok(())
    }

    fn read(
        &self,
        ino: u32,
        offset: u64,
        len: u32,
        each: &mut dyn FnMut(nfs::Extent<'_>),
    ) -> Result<(), TreeError> {
        if self.tree.attr(ino).map_err(stale)?.kind != Kind::File {
            return Err(TreeError::WrongKind);
        }
        if let Some(recorder) = &self.recorder {
            recorder.note(ino, offset, len.into());
        }
        // Where mapping fails, reading says why, if it fails as well.
        if let Ok(Some(content)) = self.tree.map(ino) {
            let start = content
                .len()
                .min(usize::try_from(offset).unwrap_or(usize::MAX));
            let end = content.len().min(start.saturating_add(len as usize));
            each(nfs::Extent::Held(content.slice(start..end)));
            return Ok(());
        }
        for extent in self.tree.read(ino, offset, len.into()).map_err(failed)? {
            match &extent {
                Extent::Bytes(bytes) => each(nfs::Extent::Bytes(bytes)),
                // No extent is longer than what was asked for, which fits 32 bits.
                Extent::Zero(len) => each(nfs::Extent::Zero(*len as u32)),
                Extent::File { file, offset, len } => {
                    each(nfs::Extent::File {
                        file,
                        offset: *offset,
                        len: *len as u32,
                    });
                }
            }
        }
        Ok(())
    }

    fn xattr(&self, ino: u32, name: &[u8], value: &mut Vec<u8>) -> Result<(), TreeError> {
        let xattrs = self.tree.xattrs(ino).map_err(stale)?;
        let (_, found) = xattrs
            .iter()
            .find(|(other, _)| other == name)
            .ok_or(TreeError::NotFound)?;
        value.extend_from_slice(found);
        Ok(())
    }

    fn xattr_names(&self, ino: u32, each: &mut dyn FnMut(&[u8])) -> Result<(), TreeError> {
        let xattrs = self.tree.xattrs(ino).map_err(stale)?;
        xattrs.iter().for_each(|(name, _)| each(name));
        Ok(())
    }

    fn seek(&self, ino: u32, offset: u64, whence: Whence) -> Result<Option<u64>, TreeError> {
        let what = match whence {
            Whence::Data => Seek::Data,
            Whence::Hole => Seek::Hole,
        };
        self.tree.seek(ino, offset, what).map_err(failed)
    }

    fn has_labels(&self) -> bool {
        self.has_labels
    }

    fn usage(&self) -> Usage {
        let totals = self.tree.totals().unwrap_or_default();
        Usage {
            bytes: totals.bytes,
            inodes: totals.files,
        }
    }
}

impl Served {
    /// Serves a version, with labels if its files have any.
    pub fn new(tree: StoredTree, recorder: Option<Arc<Recorder>>) -> std::io::Result<Served> {
        let has_labels = image::selinux::is_labelled(&tree)?;
        Ok(Served {
            tree,
            recorder,
            has_labels,
        })
    }

    fn directory(&self, dir: u32) -> Result<(), TreeError> {
        match self.tree.attr(dir).map_err(stale)?.kind {
            Kind::Directory => Ok(()),
            _ => Err(TreeError::NotDirectory),
        }
    }
}

/// An inode number from a client that the image cannot follow.
fn stale(_: image::Error) -> TreeError {
    TreeError::Stale
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn failed(error: image::Error) -> TreeError {
    tracing::error!(%error, "reading an image failed");
    TreeError::Io
}

fn kind(kind: Kind) -> FileKind {
    match kind {
        Kind::File => FileKind::Regular,
        Kind::Directory => FileKind::Directory,
        Kind::Symlink => FileKind::Symlink,
        Kind::Character => FileKind::CharDevice,
        Kind::Block => FileKind::BlockDevice,
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_version_is_served_as_it_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir_all(source.join("etc")).unwrap();
        let long: Vec<u8> = (0..200_000_u32).map(|count| (count % 251) as u8).collect();
        std::fs::write(source.join("long"), &long).unwrap();
        std::fs::write(source.join("etc/hostname"), "node\n").unwrap();
        std::os::unix::fs::symlink("etc/hostname", source.join("link")).unwrap();
        let store = image::Store::open(dir.path().join("store")).unwrap();
        let staged = store.stage_dir(&source, &mut |_| ()).unwrap();
        let digest = staged.digest();
        store
            .publish(staged, image::Publish::Untagged, |_| Ok(()))
            .unwrap();
        assert_eq!(store.versions().unwrap(), [digest]);
        let tree = Served::new(store.open_tree(digest).unwrap(), None).unwrap();
        let root = tree.root();

        let etc = tree.lookup(root, b"etc").unwrap();
        assert_eq!(tree.parent(etc).unwrap(), root);
        assert_eq!(tree.attr(etc).unwrap().kind, FileKind::Directory);
        assert_eq!(tree.lookup(root, b"none"), Err(TreeError::NotFound));
        let hostname = tree.lookup(etc, b"hostname").unwrap();
        assert_eq!(tree.lookup(hostname, b"x"), Err(TreeError::NotDirectory));
        assert_eq!(bytes(&tree, hostname, 1, 100), b"ode\n");
        let file = tree.lookup(root, b"long").unwrap();
        assert_eq!(tree.attr(file).unwrap().size, 200_000);
        assert_eq!(bytes(&tree, file, 4000, 150_000), long[4000..154_000]);
        let link = tree.lookup(root, b"link").unwrap();
        let mut target = Vec::new();
        tree.readlink(link, &mut target).unwrap();
        assert_eq!(target, b"etc/hostname");
        assert_eq!(tree.readlink(etc, &mut target), Err(TreeError::WrongKind));

        // Entry by entry, each from the cookie of the one before.
        let (mut names, mut cookie) = (Vec::new(), 0);
        loop {
            let before = names.len();
            tree.readdir(root, cookie, &mut |entry| {
                names.push(entry.name.to_vec());
                cookie = entry.cookie;
                ControlFlow::Break(())
            })
            .unwrap();
            if names.len() == before {
                break;
            }
        }
        names.sort();
        assert_eq!(names, [&b"etc"[..], b"link", b"long"]);
    }

    fn bytes(tree: &Served, ino: u32, offset: u64, len: u32) -> Vec<u8> {
        use std::os::unix::fs::FileExt as _;
        let mut out = Vec::new();
        tree.read(ino, offset, len, &mut |extent| match extent {
            nfs::Extent::Bytes(bytes) => out.extend_from_slice(bytes),
            nfs::Extent::Held(bytes) => out.extend_from_slice(&bytes),
            nfs::Extent::Zero(len) => out.resize(out.len() + len as usize, 0),
            nfs::Extent::File { file, offset, len } => {
                let start = out.len();
                out.resize(start + len as usize, 0);
                file.read_exact_at(&mut out[start..], offset).unwrap();
            }
        })
        .unwrap();
        out
    }
}
