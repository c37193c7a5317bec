//! A tar archive as a source, plain or compressed.
//!
//! Later entries replace earlier ones, as if the archive were unpacked. Nothing is unpacked:
//! names lead into the canonical tree and cannot leave it. Times have the precision that the
//! archive has: whole seconds unless it was written with `--format=pax`.

use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

use super::archive::{Archive, Entry};
use super::{Progress, SkipReason, Skipped};
use crate::error::{Error, Result, shown};
use crate::manifest::{
    Content, Manifest, Meta, Node, bad, components, empty_directory, is_kept_xattr,
};
use crate::store::session::Session;

/// Reads an archive into a manifest, contents into the session.
pub fn read(
    source: impl Read,
    session: &mut Session,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Manifest, Vec<Skipped>)> {
    let mut archive = Archive::new(decompressed(source).map_err(broken)?);
    let mut tree = Manifest::new();
    let mut skipped = Vec::new();
    let mut done = Progress::default();
    while let Some(mut entry) = archive.next_entry().map_err(broken)? {
        done.files += 1;
        done.bytes += entry.size;
        if entry.kind == b'0' {
            let content = session.add(Path::new(&shown(&entry.path)), &mut archive)?;
            let meta = meta_of(&mut entry, &mut skipped);
            put(&mut tree, &entry.path, Node { meta, content })?;
        } else {
            add_special(&mut tree, entry, &mut skipped)?;
        }
        progress(done);
    }
    if done.files == 0 {
        return Err(bad(b"tar archive", "it is empty"));
    }
    Ok((tree, skipped))
}

/// Adds an entry that has no content.
fn add_special(tree: &mut Manifest, mut entry: Entry, skipped: &mut Vec<Skipped>) -> Result<()> {
    let meta = meta_of(&mut entry, skipped);
    let content = match entry.kind {
        b'5' => return put(tree, &entry.path, empty_directory(meta)),
        b'1' => return hard_link(tree, &entry.path, &entry.target),
        b'2' => Content::Symlink(entry.target),
        b'3' => Content::Character(entry.device),
        b'4' => Content::Block(entry.device),
        b'6' => Content::Fifo,
        kind => {
            return Err(bad(
                &entry.path,
                format!("an entry of the unknown type {:?}", char::from(kind)),
            ));
        }
    };
    put(tree, &entry.path, Node { meta, content })
}

fn put(tree: &mut Manifest, path: &[u8], node: Node) -> Result<()> {
    match tree.make_parents(path)? {
        Some((parent, name)) => tree.add(parent, name, node).map(|_| ()),
        None if matches!(node.content, Content::Directory(_)) => {
            tree.set_root(node.meta);
            Ok(())
        }
        None => Err(bad(path, "the root is no directory")),
    }
}

fn hard_link(tree: &mut Manifest, path: &[u8], target: &[u8]) -> Result<()> {
    let missing = || {
        bad(
            path,
            format!("a hard link to {}, which is not there", shown(target)),
        )
    };
    let id = tree.find(target)?.ok_or_else(missing)?;
    let (parent, name) = tree
        .make_parents(path)?
        .ok_or_else(|| bad(path, "the root as a link"))?;
    tree.link(parent, name, id)
}

fn meta_of(entry: &mut Entry, skipped: &mut Vec<Skipped>) -> Meta {
    let mode = if entry.kind == b'2' {
        0o777
    } else {
        entry.mode
    };
    let mut meta = Meta {
        mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        ..Meta::default()
    };
    for (name, value) in std::mem::take(&mut entry.xattrs) {
        if is_kept_xattr(&name) {
            meta.xattrs.insert(name, value);
        } else {
            let path = components(&entry.path).collect::<Vec<_>>().join(&b'/');
            skipped.push(Skipped {
                path,
                why: SkipReason::Attribute(shown(&name)),
            });
        }
    }
    meta
}

/// The archive behind its compression, told by its first bytes.
fn decompressed<'r>(source: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut source = BufReader::with_capacity(1 << 18, source);
    let magic = source.fill_buf()?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(source)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(unxz(source)?),
        _ => Box::new(source),
    })
}

/// xz has no streaming decoder in pure Rust: the archive passes through an unnamed file.
fn unxz(mut source: impl io::BufRead) -> io::Result<impl Read> {
    let mut unpacked = tempfile::tempfile()?;
    let mut out = io::BufWriter::new(&mut unpacked);
    lzma_rs::xz_decompress(&mut source, &mut out)
        .map_err(|error| io::Error::other(format!("{error:?}")))?;
    io::Write::flush(&mut out)?;
    drop(out);
    io::Seek::rewind(&mut unpacked)?;
    Ok(BufReader::new(unpacked))
}

fn broken(error: io::Error) -> Error {
    Error::Io {
        doing: "reading",
        path: "tar archive".into(),
        source: error,
    }
}
