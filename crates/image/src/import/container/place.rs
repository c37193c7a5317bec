//! Where the files of a container image lie: in a directory, in a tar archive that stays packed, or
//! elsewhere, from where they are fetched.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;

use super::digest::{BlobDigest, Hashed};
use super::documents::{self as doc, DOCUMENT_MAX, Descriptor};
use crate::error::{Error, Result};
use crate::import::archive::Archive;
use crate::manifest::{bad, components};

/// The most files that an archive of a container image has: an archive of a root file system that
/// begins like one is not held in memory.
const FILES_MAX: usize = 1 << 16;
/// The most links from one file of an archive to the next.
const LINKS_MAX: usize = 8;

/// Where the files of an image lie.
pub enum Place<'a> {
    /// In a directory of this machine.
    Directory(PathBuf),
    /// In an archive.
    Archive(Packed),
    /// Elsewhere; what was fetched is in this directory.
    Fetched(PathBuf, &'a dyn Origin),
}

/// A part of a container image: a blob, a manifest or an index.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Its digest, as text.
    pub digest: &'a str,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it is a manifest or an index, which registries keep apart from blobs.
    pub is_manifest: bool,
}

/// Where the parts of an image are fetched from, when they are needed.
pub trait Origin {
    /// Writes a part to `out`, which takes no more than the part's size. Its digest is checked later.
    fn fetch(&self, part: Part<'_>, out: &mut dyn Write) -> io::Result<()>;
}

impl<'a> Place<'a> {
    /// An image that is fetched into a directory, beginning with this manifest or index.
    pub fn fetched(top: PathBuf, manifest: &[u8], origin: &'a dyn Origin) -> Result<Place<'a>> {
        let failed = |error| Error::io("writing", &top)(error);
        let (digest, size) = (BlobDigest::of(manifest), manifest.len() as u64);
        let root = Descriptor::new(doc::kind_of(manifest), digest, size);
        let layout = doc::Layout {
            image_layout_version: doc::LAYOUT_VERSION.into(),
        };
        let put = |path: &str, text: &[u8]| {
            let path = top.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(&top))?;
            std::fs::write(&path, text)
        };
        put(&root.digest.path(), manifest).map_err(failed)?;
        put("oci-layout", &doc::json(&layout)?).map_err(failed)?;
        put("index.json", &doc::json(&doc::Index::of(root))?).map_err(failed)?;
        Ok(Place::Fetched(top, origin))
    }

    /// The content of a regular file, by its path from the top; `None` where there is none.
    pub fn open(&self, path: &str) -> Result<Option<Window>> {
        let inside = normal(&[], path.as_bytes()).ok_or_else(|| {
            bad(
                path.as_bytes(),
                "a path that leads out of the container image",
            )
        })?;
        match self {
            Place::Archive(packed) => packed.open(inside),
            Place::Directory(top) | Place::Fetched(top, _) => {
                let path = top.join(OsStr::from_bytes(&inside));
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = match rustix::fs::open(&path, flags, Mode::empty()) {
                    Ok(file) => File::from(file),
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                    Err(error) => return Err(Error::io("opening", &path)(error.into())),
                };
                Window::whole(&file).map_err(Error::io("opening", &path))
            }
        }
    }

    /// Whether there is a regular file.
    pub fn has(&self, path: &str) -> Result<bool> {
        Ok(self.open(path)?.is_some())
    }

    /// A document that nothing vouches for.
    pub fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let file = self.required(path)?;
        parse(path, &read_document(path, file)?)
    }

    /// A document that has to have a digest, if there is one.
    pub fn checked_document<T: DeserializeOwned>(
        &self,
        path: &str,
        expected: Option<&BlobDigest>,
    ) -> Result<T> {
        let text = read_document(path, self.required(path)?)?;
        if let Some(expected) = expected {
            let mut hashed = Hashed::like(expected, &text[..]);
            io::copy(&mut hashed, &mut io::sink()).map_err(Error::io("reading", path.as_ref()))?;
            check_digest(path, expected, &hashed.finish().0)?;
        }
        parse(path, &text)
    }

    /// The document that a descriptor is about.
    pub fn described<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T> {
        self.blob(descriptor)?;
        self.checked_document(&descriptor.digest.path(), Some(&descriptor.digest))
    }

    /// The blob that a descriptor is about, as long as it says; its digest is not checked yet.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Window> {
        let path = descriptor.digest.path();
        if let Place::Fetched(top, origin) = self
            && !self.has(&path)?
        {
            fetch(*origin, descriptor, &top.join(&path))?;
        }
        let blob = self.required(&path)?;
        if blob.len() == descriptor.size {
            return Ok(blob);
        }
        Err(Error::WrongBlob {
            what: path,
            expected: format!("{} bytes", descriptor.size),
            got: format!("{} bytes", blob.len()),
        })
    }

    /// The content of a file that has to be there.
    pub fn required(&self, path: &str) -> Result<Window> {
        let missing = || bad(path.as_bytes(), "the container image lacks this file");
        self.open(path)?.ok_or_else(missing)
    }
}

fn fetch(origin: &dyn Origin, descriptor: &Descriptor, path: &Path) -> Result<()> {
    let name = descriptor.digest.to_string();
    let failed = |error| Error::io("fetching", name.as_ref())(error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let part = Part {
        digest: &name,
        size: descriptor.size,
        is_manifest: descriptor.is_index() || descriptor.is_manifest(),
    };
    let mut out = Bounded {
        file: File::create(path).map_err(failed)?,
        left: part.size,
    };
    origin.fetch(part, &mut out).map_err(failed)
}

/// Takes no more bytes than were promised.
struct Bounded {
    file: File,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            let why = "more bytes than the image says that there are";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let written = self.file.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error where digests differ.
pub fn check_digest(what: &str, expected: &BlobDigest, got: &BlobDigest) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::WrongBlob {
        what: what.to_owned(),
        expected: expected.to_string(),
        got: got.to_string(),
    })
}

fn read_document(path: &str, file: Window) -> Result<Vec<u8>> {
    if file.len() > DOCUMENT_MAX {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            size: file.len(),
            limit: DOCUMENT_MAX,
        });
    }
    let mut text = Vec::new();
    let mut file = file;
    file.read_to_end(&mut text)
        .map_err(Error::io("reading", path.as_ref()))?;
    Ok(text)
}

fn parse<T: DeserializeOwned>(path: &str, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| {
        bad(
            path.as_bytes(),
            format!("not what a container image has there: {error}"),
        )
    })
}

/// Part of a file, read without moving the file's own position.
#[derive(Debug)]
pub struct Window {
    file: File,
    start: u64,
    at: u64,
    end: u64,
}

impl Window {
    /// All of a regular file; `None` for anything else.
    pub fn whole(file: &File) -> io::Result<Option<Window>> {
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(None);
        }
        Ok(Some(Window {
            file: file.try_clone()?,
            start: 0,
            at: 0,
            end: meta.len(),
        }))
    }

    fn part(file: &File, (start, len): (u64, u64)) -> io::Result<Window> {
        Ok(Window {
            file: file.try_clone()?,
            start,
            at: start,
            end: start + len,
        })
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => (self.start, i64::try_from(at).ok()),
            SeekFrom::Current(offset) => (self.at, Some(offset)),
            SeekFrom::End(offset) => (self.end, Some(offset)),
        };
        let at = offset.and_then(|offset| base.checked_add_signed(offset));
        self.at = at
            .filter(|at| *at >= self.start)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at - self.start)
    }
}

/// An archive with a container image in it.
pub struct Packed {
    file: File,
    files: HashMap<Vec<u8>, Packing>,
}

/// How a file lies in an archive.
enum Packing {
    /// Its content: offset and length.
    Content(u64, u64),
    /// It is another name of this path.
    Link(Vec<u8>),
}

impl Packed {
    /// The archive in a file, not compressed; `None` where it is not one of a container image.
    pub fn index(file: &File) -> io::Result<Option<Packed>> {
        let Some(whole) = Window::whole(file)? else {
            return Ok(None);
        };
        let end = whole.len();
        let mut archive = Archive::new(BufReader::new(whole));
        let mut files = HashMap::new();
        while let Some(entry) = archive.next_entry()? {
            let Some(path) = normal(&[], &entry.path) else {
                continue;
            };
            let folder = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            let packing = match entry.kind {
                b'0' => archive
                    .step_over()?
                    .map(|(at, len)| Packing::Content(at, len)),
                b'1' => normal(&[], &entry.target).map(Packing::Link),
                b'2' if !entry.target.starts_with(b"/") => {
                    normal(&path[..folder], &entry.target).map(Packing::Link)
                }
                _ => None,
            };
            if let Some(Packing::Content(at, len)) = packing
                && at.checked_add(len).is_none_or(|last| last > end)
            {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if files.len() == FILES_MAX {
                return Ok(None);
            }
            match packing {
                Some(packing) => files.insert(path, packing),
                None => files.remove(&path),
            };
        }
        let has = |path: &[u8]| files.contains_key(path);
        let is_image = (has(b"oci-layout") && has(b"index.json")) || has(b"manifest.json");
        let file = file.try_clone()?;
        Ok(is_image.then_some(Packed { file, files }))
    }

    fn open(&self, mut path: Vec<u8>) -> Result<Option<Window>> {
        for _ in 0..LINKS_MAX {
            match self.files.get(&path) {
                None => return Ok(None),
                Some(Packing::Link(target)) => path.clone_from(target),
                Some(Packing::Content(at, len)) => {
                    let window = Window::part(&self.file, (*at, *len));
                    return window
                        .map(Some)
                        .map_err(Error::io("reading", "the archive".as_ref()));
                }
            }
        }
        Err(bad(&path, "a link to a link, and so on"))
    }
}

/// A path from a folder as the names from the top with a slash between them; `None` where it leads
/// out of the top.
fn normal(folder: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = components(folder).collect();
    for name in components(path) {
        if name == b".." {
            names.pop()?;
        } else {
            names.push(name);
        }
    }
    Some(names.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        let normal = |folder: &str, path: &str| {
            normal(folder.as_bytes(), path.as_bytes())
                .map(|path| String::from_utf8(path).expect("text"))
        };
        assert_eq!(normal("", "./a//b").as_deref(), Some("a/b"));
        assert_eq!(
            normal("a", "../b/layer.tar").as_deref(),
            Some("b/layer.tar")
        );
        assert_eq!(normal("a", "../../b"), None);
        assert_eq!(normal("", "/a/../.."), None);
    }
}
