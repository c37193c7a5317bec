//! Versions leave the store: as a tar archive, a directory or a container image.
//!
//! All of them visit the tree in one order, each directory before what is in it and names in byte
//! order, so that one version always gives the same archive. Importing what was exported gives the
//! digest of the version again.

pub(crate) mod dir;
mod oci;
mod tar;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::{Error, Result, shown};
use crate::import::Progress;
use crate::tree::{Attr, Extent, Nid, Seek, StoredTree};

/// Content is copied in pieces of this many bytes.
const BUFFER: usize = 1 << 20;

/// What a version becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The root file system.
    Root,
    /// An OCI image layout: a container image with one layer.
    Oci,
}

/// Writes a version as a tar archive, not compressed. `path` is where `out` leads, for errors.
///
/// # Errors
/// [`Error::BadSource`] for what the archive cannot hold; [`Error::Io`] for what cannot be read or
/// written.
pub fn write_tar(
    tree: &StoredTree,
    form: Form,
    out: &mut dyn Write,
    path: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    match form {
        Form::Root => tar::write(tree, out, path, progress),
        Form::Oci => oci::write_tar(tree, out, path, progress),
    }
}

/// Writes a version as a tar archive to a new file, compressed as its name says (`.tar`, `.tar.gz`,
/// `.tar.zst`). It is written beside its place and renamed to it when it is whole and on the disk.
///
/// # Errors
/// [`Error::BadTarget`] for another name; else as [`write_tar`].
pub fn write_archive(
    tree: &StoredTree,
    form: Form,
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
        let done = compression.write(&mut out, target, &mut |out| {
            write_tar(tree, form, out, target, progress)
        })?;
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

    /// Has an archive written, and compresses it.
    fn write(
        self,
        out: &mut dyn Write,
        path: &Path,
        write: &mut dyn FnMut(&mut dyn Write) -> Result<Progress>,
    ) -> Result<Progress> {
        let failed = |error| Error::io("writing", path)(error);
        match self {
            Compression::None => write(out),
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                let done = write(&mut gzip)?;
                gzip.finish().map_err(failed)?;
                Ok(done)
            }
            Compression::Zstd => {
                let mut zstd =
                    zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(failed)?;
                let done = write(&mut zstd)?;
                zstd.finish().map_err(failed)?;
                Ok(done)
            }
        }
    }
}

/// Fills a directory that is new, or empty, with a version. As root, for a root file system: owners,
/// devices and attributes are set. All is made beside its place and renamed to it when it is whole and
/// on the disk.
///
/// # Errors
/// [`Error::BadTarget`] where the directory is not empty or another file system is mounted on it;
/// [`Error::Io`] for what cannot be read or written.
pub fn write_dir(
    tree: &StoredTree,
    form: Form,
    target: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    if form == Form::Oci {
        return oci::write_dir(tree, target, progress);
    }
    let draft = dir::Draft::beside(target)?;
    let done = dir::write(tree, draft.path(), progress)?;
    draft.keep()?;
    Ok(done)
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

/// The last name of a path, which may end with a slash.
fn base(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}
