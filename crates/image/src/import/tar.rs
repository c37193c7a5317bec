//! A tar archive as a source, plain or compressed.
//!
//! Later entries replace earlier ones, as if the archive were unpacked. Nothing is unpacked:
//! names lead into the canonical tree and cannot leave it. Times have the precision that the
//! archive has: whole seconds unless it was written with `--format=pax`.
//!
//! An archive whose first entries are those of a container image is one, if it has all that such an
//! image needs: see [`container`].

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Cursor, Read};
use std::path::Path;

use super::archive::{Archive, Entry};
use super::container::{self, Packed, Place, Window};
use super::{Progress, SkipReason, Skipped};
use crate::error::{Error, Result, shown};
use crate::manifest::{
    Content, INLINE_MAX, Manifest, Meta, Node, bad, components, empty_directory, is_kept_xattr,
};
use crate::store::session::Session;

/// What an import reads goes through this.
pub struct Intake<'a> {
    /// Takes the content of files.
    pub session: &'a mut Session,
    /// What is told of how far the import has come.
    pub progress: &'a mut dyn FnMut(Progress),
    /// What was read so far.
    pub done: Progress,
    /// What was left out so far.
    pub skipped: Vec<Skipped>,
    /// Bytes of memory that the entries so far take, about.
    held: u64,
}

/// The most memory for the names, attributes and small files of one import, in bytes.
const HELD_MAX: u64 = if cfg!(test) { 32 << 20 } else { 16 << 30 };
/// What an entry takes besides these, about.
const HELD_ENTRY: u64 = 256;

/// What an entry of an archive puts at its path.
pub enum Item {
    /// A file, a directory, a symbolic link or a special file.
    Node(Node),
    /// A further name of what is at another path.
    Link(Vec<u8>),
}

/// Reads a stream into a manifest, contents into the session. A container image, whose parts are
/// needed in another order, passes through an unnamed file of the session.
pub fn read(source: impl Read, intake: &mut Intake<'_>) -> Result<Manifest> {
    let plain = decompressed(source).map_err(broken)?;
    let (first, plain) = peek(plain);
    if !first.is_some_and(|path| container::may_begin_with(&path)) {
        return read_root(plain, intake);
    }
    let file = intake.session.spool(plain)?;
    read_plain_file(&file, intake)
}

/// As [`read`], from a file, which is not copied where it is not compressed.
pub fn read_file(file: File, intake: &mut Intake<'_>) -> Result<Manifest> {
    let start = Window::whole(&file).map_err(broken)?;
    // The bytes of a compressed archive are no header: they have no path.
    let first = start.and_then(|start| first_path(BufReader::new(start)));
    if first.is_some_and(|path| container::may_begin_with(&path)) {
        return read_plain_file(&file, intake);
    }
    read(file, intake)
}

/// An archive that begins as that of a container image does.
fn read_plain_file(file: &File, intake: &mut Intake<'_>) -> Result<Manifest> {
    match Packed::index(file).map_err(broken)? {
        Some(packed) => container::read(&Place::Archive(packed), intake),
        None => {
            let whole = Window::whole(file).map_err(broken)?;
            let whole = whole.ok_or_else(|| bad(b"tar archive", "it is no file"))?;
            read_root(BufReader::with_capacity(BUFFER, whole), intake)
        }
    }
}

/// Reads an archive of a root file system.
fn read_root(source: impl Read, intake: &mut Intake<'_>) -> Result<Manifest> {
    let mut archive = Archive::new(source);
    let mut tree = Manifest::new();
    while let Some(entry) = archive.next_entry().map_err(broken)? {
        let (path, item) = intake.take(&mut archive, entry)?;
        put(&mut tree, &path, item)?;
    }
    if intake.done.files == 0 {
        return Err(bad(b"tar archive", "it is empty"));
    }
    Ok(tree)
}

impl<'a> Intake<'a> {
    /// Nothing was read yet.
    pub fn new(session: &'a mut Session, progress: &'a mut dyn FnMut(Progress)) -> Intake<'a> {
        Intake {
            session,
            progress,
            done: Progress::default(),
            skipped: Vec::new(),
            held: 0,
        }
    }

    /// Takes in the entry that the archive is at.
    pub fn take(
        &mut self,
        archive: &mut Archive<impl Read>,
        mut entry: Entry,
    ) -> Result<(Vec<u8>, Item)> {
        self.done.files += 1;
        self.done.bytes += entry.size;
        self.hold(&entry)?;
        let content = match entry.kind {
            b'0' => self.session.add(Path::new(&shown(&entry.path)), archive)?,
            b'1' => {
                (self.progress)(self.done);
                return Ok((entry.path, Item::Link(entry.target)));
            }
            _ => special(&mut entry)?,
        };
        let meta = meta_of(&mut entry, &mut self.skipped);
        (self.progress)(self.done);
        Ok((entry.path, Item::Node(Node { meta, content })))
    }

    /// Counts an entry that is kept in memory: an archive that is small and compressed can have more
    /// of them than any memory holds.
    pub fn hold(&mut self, entry: &Entry) -> Result<()> {
        let attributes = entry
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let texts = entry.path.len() + entry.target.len() + attributes.sum::<usize>();
        self.held += HELD_ENTRY + texts as u64 + entry.size.min(INLINE_MAX as u64);
        if self.held <= HELD_MAX {
            return Ok(());
        }
        let why = format!(
            "up to here names, attributes and small files take {HELD_MAX} bytes, the most for one image"
        );
        Err(bad(&entry.path, why))
    }
}

/// What an entry without content is.
fn special(entry: &mut Entry) -> Result<Content> {
    Ok(match entry.kind {
        b'5' => empty_directory(Meta::default()).content,
        b'2' => Content::Symlink(std::mem::take(&mut entry.target)),
        b'3' => Content::Character(entry.device),
        b'4' => Content::Block(entry.device),
        b'6' => Content::Fifo,
        kind => {
            return Err(bad(
                &entry.path,
                format!("an entry of the unknown type {:?}", char::from(kind)),
            ));
        }
    })
}

/// Puts an entry where its path leads, in the place of what is there.
pub fn put(tree: &mut Manifest, path: &[u8], item: Item) -> Result<()> {
    let node = match item {
        Item::Node(node) => node,
        Item::Link(target) => return hard_link(tree, path, &target),
    };
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

/// How an archive is compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// xz's container of LZMA2.
    Xz,
}

const BUFFER: usize = 1 << 18;

impl Compression {
    /// The one that content which starts so has.
    pub fn of(start: &[u8]) -> Option<Compression> {
        match start {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
            _ => None,
        }
    }
}

/// The archive behind its compression.
pub fn decompressed<'r>(source: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut source = BufReader::with_capacity(BUFFER, source);
    Ok(match Compression::of(source.fill_buf()?) {
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Some(Compression::Zstd) => Box::new(zstd::Decoder::with_buffer(source)?),
        Some(Compression::Xz) => Box::new(unxz(source)?),
        None => Box::new(source),
    })
}

/// The path of the first entry that is not the root itself, and the archive from its start. No path
/// where there is no such entry or the archive cannot be read: who reads on is told why.
fn peek<R: Read>(source: R) -> (Option<Vec<u8>>, impl Read) {
    let mut recorder = Recorder {
        source,
        seen: Vec::new(),
    };
    let path = first_path(&mut recorder);
    (path, Cursor::new(recorder.seen).chain(recorder.source))
}

/// Keeps what is read through it.
struct Recorder<R> {
    source: R,
    seen: Vec<u8>,
}

impl<R: Read> Read for Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.seen.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

/// As for [`peek`]: only headers are read, for the root's entry has no content.
fn first_path(source: impl Read) -> Option<Vec<u8>> {
    let mut archive = Archive::new(source);
    let first = archive.next_entry().ok()??;
    if first.kind != b'5' || components(&first.path).next().is_some() {
        return Some(first.path);
    }
    archive.next_entry().ok()?.map(|second| second.path)
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
