//! Versions leave the store: as a tar archive or a directory.
//!
//! All of them visit the tree in one order, each directory before what is in it and names in byte
//! order, so that one version always gives the same archive. Importing what was exported gives the
//! digest of the version again.

pub(crate) mod dir;
pub(crate) mod tar;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::{Error, Result, shown};
use crate::import::Progress;
use crate::manifest::bad;
use crate::tree::{Attr, Extent, Kind, Nid, ReadDir, Seek, StoredTree};

/// Content is copied in pieces of this many bytes.
const BUFFER: usize = 1 << 20;

/// Writes a version as a tar archive (pax), not compressed: owners as numbers, times with
/// nanoseconds, extended attributes as `SCHILY.xattr.NAME`, hard links, and large holes as GNU tar's
/// sparse files (format 1.0). `path` is where `out` leads, for errors.
///
/// # Errors
/// [`Error::BadSource`] for a socket, which an archive cannot hold; [`Error::Io`] for what cannot be
/// read or written.
pub fn write_tar(
    tree: &StoredTree,
    out: &mut dyn Write,
    path: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    tar::write(tree, out, path, progress)
}

/// Writes a version as a tar archive to a new file, compressed as its name says (`.tar`, `.tar.gz`,
/// `.tar.zst`). It is written beside its place and renamed to it when it is whole and on the disk.
///
/// # Errors
/// [`Error::BadTarget`] for another name; else as [`write_tar`].
pub fn write_archive(
    tree: &StoredTree,
    target: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let compression = Compression::of(target).ok_or_else(|| Error::BadTarget {
        path: target.to_owned(),
        why: "expected a name that ends with .tar, .tar.gz, .tgz or .tar.zst".into(),
    })?;
    let parent = target.parent().filter(|it| *it != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    let failed = |error| Error::io("writing", target)(error);
    let mut draft = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(parent)
        .map_err(failed)?;
    let done = {
        let mut out = BufWriter::with_capacity(BUFFER, draft.as_file_mut());
        let done = compression.write(tree, &mut out, target, progress)?;
        out.flush().map_err(failed)?;
        done
    };
    draft.as_file().sync_all().map_err(failed)?;
    draft.persist(target).map_err(|error| failed(error.error))?;
    Ok(done)
}

/// How an archive is compressed.
#[derive(Clone, Copy)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(path: &Path) -> Option<Compression> {
        let name = path.file_name()?.to_string_lossy();
        let ends = |ending: &str| name.len() > ending.len() && name.ends_with(ending);
        if ends(".tar") {
            Some(Compression::None)
        } else if ends(".tar.gz") || ends(".tgz") {
            Some(Compression::Gzip)
        } else {
            ends(".tar.zst").then_some(Compression::Zstd)
        }
    }

    fn write(
        self,
        tree: &StoredTree,
        out: &mut dyn Write,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Progress> {
        let failed = |error| Error::io("writing", path)(error);
        match self {
            Compression::None => write_tar(tree, out, path, progress),
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                let done = write_tar(tree, &mut gzip, path, progress)?;
                gzip.finish().map_err(failed)?;
                Ok(done)
            }
            Compression::Zstd => {
                let mut zstd =
                    zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(failed)?;
                let done = write_tar(tree, &mut zstd, path, progress)?;
                zstd.finish().map_err(failed)?;
                Ok(done)
            }
        }
    }
}

/// Fills a directory that is new, or empty, with a version. As root: owners, devices and attributes
/// are set. The tree is made beside its place and renamed to it when it is whole and on the disk.
///
/// # Errors
/// [`Error::BadTarget`] where the directory is not empty or another file system is mounted on it;
/// [`Error::Io`] for what cannot be read or written.
pub fn write_dir(
    tree: &StoredTree,
    target: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let draft = dir::Draft::beside(target)?;
    let done = dir::write(tree, draft.path(), &mut |_, _| Ok(()), progress)?;
    draft.keep()?;
    Ok(done)
}

/// What is made of a tree, one inode at a time. Paths are relative to the root, which is empty.
trait Visitor {
    /// A directory, before its entries.
    fn enter(&mut self, path: &[u8], attr: &Attr) -> Result<()>;
    /// The same directory, after them.
    fn leave(&mut self, path: &[u8], attr: &Attr) -> Result<()>;
    /// Anything else, at the first of its names.
    fn node(&mut self, path: &[u8], attr: &Attr) -> Result<()>;
    /// A further name of what was visited as `first`.
    fn link(&mut self, path: &[u8], attr: &Attr, first: &[u8]) -> Result<()>;
}

/// Visits the whole tree. Returns the entries visited and the bytes of all files.
fn walk(
    tree: &StoredTree,
    visitor: &mut dyn Visitor,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let mut walk = Walk {
        tree,
        visitor,
        progress,
        directories: HashSet::new(),
        firsts: HashMap::new(),
        done: Progress::default(),
    };
    let mut path = Vec::new();
    let mut open = vec![walk.enter(&path, tree.root())?];
    while let Some(inner) = open.last_mut() {
        let Some(entry) = inner.entries.next().transpose()? else {
            walk.visitor.leave(&path, &inner.attr)?;
            path.truncate(inner.parent_len);
            open.pop();
            continue;
        };
        let parent_len = path.len();
        if parent_len > 0 {
            path.push(b'/');
        }
        check_name(&path, entry.name)?;
        path.extend_from_slice(entry.name);
        if entry.kind == Kind::Directory {
            let mut inner = walk.enter(&path, entry.nid)?;
            inner.parent_len = parent_len;
            open.push(inner);
        } else {
            walk.other(&path, entry.nid)?;
            path.truncate(parent_len);
        }
    }
    Ok(walk.done)
}

struct Walk<'a, 'v> {
    tree: &'a StoredTree,
    visitor: &'v mut dyn Visitor,
    progress: &'v mut dyn FnMut(Progress),
    directories: HashSet<Nid>,
    /// The first names of inodes that have several.
    firsts: HashMap<Nid, Vec<u8>>,
    done: Progress,
}

/// A directory whose entries are being visited.
struct Open<'a> {
    attr: Attr,
    entries: ReadDir<'a>,
    /// The length of the path of the directory that holds it.
    parent_len: usize,
}

impl<'a> Walk<'a, '_> {
    fn enter(&mut self, path: &[u8], nid: Nid) -> Result<Open<'a>> {
        if !self.directories.insert(nid) {
            return Err(bad(path, "a directory that holds itself"));
        }
        let attr = self.tree.attr(nid)?;
        self.visitor.enter(path, &attr)?;
        self.count(0);
        Ok(Open {
            attr,
            entries: self.tree.readdir(nid, 0)?,
            parent_len: 0,
        })
    }

    fn other(&mut self, path: &[u8], nid: Nid) -> Result<()> {
        let attr = self.tree.attr(nid)?;
        if let Some(first) = self.firsts.get(&nid) {
            self.visitor.link(path, &attr, first)?;
            self.count(0);
            return Ok(());
        }
        self.visitor.node(path, &attr)?;
        if attr.nlink > 1 {
            self.firsts.insert(nid, path.to_vec());
        }
        self.count(if attr.kind == Kind::File {
            attr.size
        } else {
            0
        });
        Ok(())
    }

    fn count(&mut self, bytes: u64) {
        self.done.files += 1;
        self.done.bytes += bytes;
        (self.progress)(self.done);
    }
}

/// An image that someone else wrote may have names that lead elsewhere.
fn check_name(parent: &[u8], name: &[u8]) -> Result<()> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(bad(
            parent,
            format!("it holds {:?}, which is not a file name", shown(name)),
        ));
    }
    Ok(())
}

/// Hands on `len` bytes of a regular file from `offset`, in order, by way of `buffer`.
fn copy(
    tree: &StoredTree,
    file: (&[u8], Nid),
    (offset, len): (u64, u64),
    buffer: &mut [u8],
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (path, nid) = file;
    for extent in tree.read(nid, offset, len)? {
        match extent {
            Extent::Bytes(bytes) => write(&bytes)?,
            Extent::Zero(len) => {
                buffer.fill(0);
                pieces(0, len, buffer.len(), |_, len| write(&buffer[..len]))?;
            }
            Extent::File { file, offset, len } => pieces(offset, len, BUFFER, |at, len| {
                read(&file, &mut buffer[..len], at, path)?;
                write(&buffer[..len])
            })?,
        }
    }
    Ok(())
}

fn read(file: &File, buffer: &mut [u8], at: u64, path: &[u8]) -> Result<()> {
    file.read_exact_at(buffer, at)
        .map_err(Error::io("reading the content of", Path::new(&shown(path))))
}

/// Cuts a range into pieces of at most `max` bytes.
fn pieces(
    mut at: u64,
    mut left: u64,
    max: usize,
    mut each: impl FnMut(u64, usize) -> Result<()>,
) -> Result<()> {
    while left > 0 {
        let len = left.min(max as u64) as usize;
        each(at, len)?;
        at += len as u64;
        left -= len as u64;
    }
    Ok(())
}

/// The parts of a file that are not in holes of the store's file system: offset and length.
fn data_of(tree: &StoredTree, attr: &Attr) -> Result<Vec<(u64, u64)>> {
    let mut data = Vec::new();
    let mut at = 0;
    while let Some(start) = tree.seek(attr.nid, at, Seek::Data)? {
        at = tree.seek(attr.nid, start, Seek::Hole)?.unwrap_or(attr.size);
        data.push((start, at - start));
    }
    Ok(data)
}
