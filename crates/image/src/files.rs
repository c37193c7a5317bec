//! Reading by path out of an image, whether stored or still a directory.
//!
//! [`Files`] answers for one path without following anything; [`Root`] walks paths as a node would that has the
//! image as its root: symbolic links, absolute ones too, resolve inside the image and never leave it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use crate::tree::{Extent, Kind, Nid, StoredTree};

/// Most symbolic links that one path may go through, as in the kernel.
const LINKS_MAX: usize = 40;

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// What [`Files`] tells about a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// What lies there.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Bytes of a regular file.
    pub bytes: u64,
}

/// A tree of files. Paths are relative to its top, without `.` and `..`, and no symbolic link is followed: where one
/// stands in the middle of a path, the answer is that nothing is there. The empty path is the top.
pub trait Files {
    /// What lies at `path`; `None` if nothing does.
    fn info(&self, path: &Path) -> io::Result<Option<FileInfo>>;
    /// At most the first `limit` bytes of a regular file.
    fn read_up_to(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// Target of a symbolic link.
    fn read_link(&self, path: &Path) -> io::Result<PathBuf>;
    /// Names in a directory, in any order, without `.` and `..`.
    fn names(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// An extended attribute; `None` if the file has none of that name.
    fn xattr(&self, path: &Path, name: &str) -> io::Result<Option<Vec<u8>>>;
}

/// Paths as a node sees them whose root is the image.
#[derive(Clone, Copy)]
pub struct Root<'a> {
    files: &'a dyn Files,
}

impl<'a> Root<'a> {
    /// The whole tree as a root.
    pub fn new(files: &'a dyn Files) -> Self {
        Self { files }
    }

    /// The real path of `path`, relative to the top, and what lies there; `None` if nothing does, a link dangles, or
    /// links go round in circles.
    pub fn resolve(&self, path: impl AsRef<Path>) -> io::Result<Option<(PathBuf, FileInfo)>> {
        let mut rest: VecDeque<OsString> = names_of(path.as_ref());
        let mut real = PathBuf::new();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                real.pop();
                continue;
            }
            real.push(&name);
            match self.files.info(&real)? {
                None => return Ok(None),
                Some(FileInfo {
                    kind: FileKind::Symlink,
                    ..
                }) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Ok(None);
                    }
                    let target = self.files.read_link(&real)?;
                    real.pop();
                    if target.is_absolute() {
                        real.clear();
                    }
                    names_of(&target)
                        .into_iter()
                        .rev()
                        .for_each(|name| rest.push_front(name));
                }
                Some(_) => {}
            }
        }
        Ok(self.files.info(&real)?.map(|info| (real, info)))
    }

    /// Whether a regular file lies there, through links.
    pub fn is_file(&self, path: impl AsRef<Path>) -> io::Result<bool> {
        Ok(matches!(
            self.resolve(path)?,
            Some((
                _,
                FileInfo {
                    kind: FileKind::File,
                    ..
                }
            ))
        ))
    }

    /// Content of a regular file, through links; `None` if there is none. A file of more than `limit` bytes is an
    /// error of kind `FileTooLarge`.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match self.resolve(path.as_ref())? {
            Some((_, info)) if info.kind == FileKind::File && info.bytes > limit => {
                Err(too_large(path.as_ref(), limit))
            }
            Some((real, info)) if info.kind == FileKind::File => {
                self.files.read_up_to(&real, info.bytes).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Content of a text file, what is not UTF-8 in it replaced; `None` if there is no such file.
    pub fn text(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Option<String>> {
        Ok(self
            .read(path, limit)?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Names in a directory, sorted, through links; none if there is no such directory.
    pub fn names(&self, path: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        match self.resolve(path)? {
            Some((
                real,
                FileInfo {
                    kind: FileKind::Directory,
                    ..
                },
            )) => {
                let mut names = self.files.names(&real)?;
                names.sort();
                Ok(names)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The tree behind it, for walks that follow no links.
    pub fn files(&self) -> &'a dyn Files {
        self.files
    }
}

/// A directory of this machine as a tree.
#[derive(Debug, Clone)]
pub struct HostDir {
    top: PathBuf,
}

impl HostDir {
    /// The tree below `top`.
    pub fn new(top: impl Into<PathBuf>) -> Self {
        Self { top: top.into() }
    }

    /// The path on this machine, if no link stands in the middle of `path`.
    fn at(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut full = self.top.clone();
        let parents = path.parent().unwrap_or(Path::new(""));
        for name in parents {
            full.push(name);
            match full.symlink_metadata() {
                Ok(meta) if meta.is_dir() => {}
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(
            path.file_name()
                .map_or(full.clone(), |name| full.join(name)),
        ))
    }

    fn existing(&self, path: &Path) -> io::Result<PathBuf> {
        self.at(path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for HostDir {
    fn info(&self, path: &Path) -> io::Result<Option<FileInfo>> {
        let Some(full) = self.at(path)? else {
            return Ok(None);
        };
        match full.symlink_metadata() {
            Ok(meta) => Ok(Some(FileInfo {
                kind: kind_of(&meta),
                mode: meta.mode() & 0o7777,
                bytes: meta.len(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_up_to(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let file = std::fs::File::open(self.existing(path)?)?;
        let mut bytes = vec![0; file.metadata()?.len().min(limit) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::read_link(self.existing(path)?)
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        std::fs::read_dir(self.existing(path)?)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    fn xattr(&self, path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; 65_536];
        match rustix::fs::lgetxattr(self.existing(path)?, name, value.as_mut_slice()) {
            Ok(bytes) => {
                value.truncate(bytes);
                Ok(Some(value))
            }
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl StoredTree {
    /// The inode at a path through which no link leads; `None` if there is none.
    fn inode_at(&self, path: &Path) -> io::Result<Option<Nid>> {
        let mut nid = self.root();
        for name in path {
            if self.attr(nid).map_err(io::Error::other)?.kind != Kind::Directory {
                return Ok(None);
            }
            match self
                .lookup(nid, name.as_bytes())
                .map_err(io::Error::other)?
            {
                Some(next) => nid = next,
                None => return Ok(None),
            }
        }
        Ok(Some(nid))
    }

    fn existing_inode_at(&self, path: &Path) -> io::Result<Nid> {
        self.inode_at(path)?
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for StoredTree {
    fn info(&self, path: &Path) -> io::Result<Option<FileInfo>> {
        let Some(nid) = self.inode_at(path)? else {
            return Ok(None);
        };
        let attr = self.attr(nid).map_err(io::Error::other)?;
        let kind = match attr.kind {
            Kind::File => FileKind::File,
            Kind::Directory => FileKind::Directory,
            Kind::Symlink => FileKind::Symlink,
            Kind::Character | Kind::Block | Kind::Fifo | Kind::Socket => FileKind::Other,
        };
        Ok(Some(FileInfo {
            kind,
            mode: attr.mode.into(),
            bytes: attr.size,
        }))
    }

    fn read_up_to(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let nid = self.existing_inode_at(path)?;
        let mut bytes = Vec::new();
        for extent in self.read(nid, 0, limit).map_err(io::Error::other)? {
            let start = bytes.len();
            match extent {
                Extent::Bytes(part) => bytes.extend_from_slice(&part),
                Extent::Zero(len) => bytes.resize(start + len as usize, 0),
                Extent::File { file, offset, len } => {
                    bytes.resize(start + len as usize, 0);
                    file.read_exact_at(&mut bytes[start..], offset)?;
                }
            }
        }
        Ok(bytes)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let target = self
            .readlink(self.existing_inode_at(path)?)
            .map_err(io::Error::other)?;
        Ok(OsString::from_vec(target.to_vec()).into())
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let entries = self
            .readdir(self.existing_inode_at(path)?, 0)
            .map_err(io::Error::other)?;
        entries
            .map(|entry| {
                Ok(OsString::from_vec(
                    entry.map_err(io::Error::other)?.name.to_vec(),
                ))
            })
            .collect()
    }

    fn xattr(&self, path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
        let all = self
            .xattrs(self.existing_inode_at(path)?)
            .map_err(io::Error::other)?;
        Ok(all
            .into_iter()
            .find(|(key, _)| key == name.as_bytes())
            .map(|(_, value)| value))
    }
}

fn kind_of(meta: &std::fs::Metadata) -> FileKind {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() => FileKind::File,
        () if kind.is_dir() => FileKind::Directory,
        () if kind.is_symlink() => FileKind::Symlink,
        () => FileKind::Other,
    }
}

fn names_of(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsStr::new("..").to_owned()),
            _ => None,
        })
        .collect()
}

fn too_large(path: &Path, limit: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("{}: expected at most {limit} bytes", path.display()),
    )
}
