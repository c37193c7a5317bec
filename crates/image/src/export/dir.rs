//! A version as a directory of this machine.
//!
//! Every entry is made by its name in a directory that is held open, names are checked before, and
//! what is there already is never followed: nothing outside the target is touched.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use tempfile::TempDir;

use super::{BUFFER, base, copy, data_of};
use crate::error::{Error, Result, shown};
use crate::import::Progress;
use crate::manifest::bad;
use crate::tree::{Attr, Extent, Kind, Mtime, StoredTree};
use crate::walk::{Visitor, walk};

/// A directory that is made beside its place. Dropped before it is kept, it is removed.
pub struct Draft {
    directory: TempDir,
    target: PathBuf,
}

impl Draft {
    /// A new directory beside `target`, which has to be new or an empty directory.
    pub fn beside(target: &Path) -> Result<Draft> {
        let target = place_of(target)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let parent = target.parent().unwrap_or(Path::new("/"));
        let directory = tempfile::Builder::new()
            .prefix(&format!(".{name}.partial-"))
            .tempdir_in(parent)
            .map_err(Error::io("making a directory in", parent))?;
        Ok(Draft { directory, target })
    }

    /// Where the content goes.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes the content durable and gives the directory its name.
    pub fn keep(self) -> Result<()> {
        let path = self.path();
        let failed = |error: rustix::io::Errno| Error::io("syncing", path)(error.into());
        let open = File::open(path).map_err(Error::io("opening", path))?;
        rustix::fs::syncfs(&open).map_err(failed)?;
        fs::rename(path, &self.target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => not_empty(&self.target),
            _ => Error::io("making", &self.target)(error),
        })?;
        // It has another name now: nothing is left to remove.
        let _ = self.directory.keep();
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(Error::io("syncing", parent))
    }
}

/// The real path of a target that can be filled.
fn place_of(target: &Path) -> Result<PathBuf> {
    let real = match target.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return new_place(target),
        Err(error) => return Err(Error::io("opening", target)(error)),
    };
    let Some(parent) = real.parent() else {
        return Err(bad_target(&real, "the root directory of this machine"));
    };
    if !real.is_dir() {
        return Err(bad_target(&real, "it is there and no directory"));
    }
    let mut entries = real.read_dir().map_err(Error::io("listing", &real))?;
    if entries.next().is_some() {
        return Err(not_empty(&real));
    }
    if mount_of(&real)? != mount_of(parent)? {
        let why = "another file system is mounted there: name a new directory below it";
        return Err(bad_target(&real, why));
    }
    Ok(real)
}

/// A path that is not there yet, in a directory that is.
fn new_place(target: &Path) -> Result<PathBuf> {
    let Some(name) = target.file_name() else {
        return Err(bad_target(target, "expected the path of a directory"));
    };
    let parent = target.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    let parent = parent
        .canonicalize()
        .map_err(Error::io("opening", parent))?;
    let place = parent.join(name);
    if place.symlink_metadata().is_ok() {
        return Err(bad_target(&place, "a link that leads nowhere"));
    }
    Ok(place)
}

fn mount_of(path: &Path) -> Result<u64> {
    rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)
        .map(|stat| stat.stx_mnt_id)
        .map_err(|error| Error::io("reading the attributes of", path)(error.into()))
}

fn not_empty(target: &Path) -> Error {
    bad_target(target, "it is not empty: name a new or an empty directory")
}

fn bad_target(path: &Path, why: &str) -> Error {
    Error::BadTarget {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

/// Fills an empty directory.
pub fn write(
    tree: &StoredTree,
    top: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let mut writer = Writer {
        tree,
        top,
        open: Vec::new(),
        buffer: vec![0; BUFFER],
    };
    walk(tree, &mut writer, progress)
}

struct Writer<'a> {
    tree: &'a StoredTree,
    top: &'a Path,
    /// The directories from the top to the one that is being filled.
    open: Vec<OwnedFd>,
    buffer: Vec<u8>,
}

impl Visitor for Writer<'_> {
    fn enter(&mut self, path: &[u8], _: &Attr) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match self.open.last() {
            None => rustix::fs::open(self.top, flags, Mode::empty()),
            Some(parent) => rustix::fs::mkdirat(parent, base(path), Mode::RWXU)
                .and_then(|()| rustix::fs::openat(parent, base(path), flags, Mode::empty())),
        };
        self.open.push(fd.map_err(self.failed("making", path))?);
        Ok(())
    }

    fn leave(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let Some(fd) = self.open.pop() else {
            return Err(bad(path, "a directory that was left twice"));
        };
        self.dress(&fd, path, attr)
    }

    fn node(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        match attr.kind {
            Kind::File => self.file(path, attr),
            Kind::Symlink => {
                let target = self.tree.readlink(attr.nid)?;
                rustix::fs::symlinkat(&target[..], self.parent(path)?, base(path))
                    .map_err(self.failed("making the link", path))?;
                self.dress_by_name(path, attr)
            }
            kind => {
                let kind = match kind {
                    Kind::Character => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    Kind::Socket => FileType::Socket,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(attr.rdev.major, attr.rdev.minor);
                let parent = self.parent(path)?;
                rustix::fs::mknodat(parent, base(path), kind, Mode::RUSR, device)
                    .map_err(self.failed("making", path))?;
                self.dress_by_name(path, attr)
            }
        }
    }

    fn link(&mut self, path: &[u8], _: &Attr, first: &[u8]) -> Result<()> {
        let failed = self.failed("linking", path);
        let (parents, name) = match first.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&first[..slash], &first[slash + 1..]),
            None => (b".".as_slice(), first),
        };
        let top = self.open.first().map_or(self.parent(path)?, |top| top);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(top, parents, flags, Mode::empty(), inside)
            .and_then(|from| {
                let to = self.open.last().unwrap_or(&from);
                rustix::fs::linkat(&from, name, to, base(path), AtFlags::empty())
            })
            .map_err(failed)
    }
}

impl Writer<'_> {
    fn file(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(self.parent(path)?, base(path), flags, mode)
            .map(File::from)
            .map_err(self.failed("making", path))?;
        let place = self.place(path);
        self.content(&file, (path, attr), &place)?;
        self.dress(&file, path, attr)
    }

    /// Where the file systems can share blocks, nothing is copied.
    fn content(&mut self, file: &File, (path, attr): (&[u8], &Attr), place: &Path) -> Result<()> {
        if let [Extent::File { file: object, .. }] = &self.tree.read(attr.nid, 0, attr.size)?[..]
            && rustix::fs::ioctl_ficlone(file, &**object).is_ok()
        {
            return Ok(());
        }
        for (start, len) in data_of(self.tree, attr)? {
            let mut at = start;
            let (from, range) = ((path, attr.nid), (start, len));
            copy(self.tree, from, range, &mut self.buffer, &mut |piece| {
                let offset = at;
                at += piece.len() as u64;
                file.write_all_at(piece, offset)
                    .map_err(Error::io("writing", place))
            })?;
        }
        file.set_len(attr.size).map_err(Error::io("writing", place))
    }

    /// Gives what is open its owner, permissions, attributes and time, in this order: a change of
    /// owner takes set-id bits and capabilities away, every change is a later time.
    fn dress(&self, fd: impl AsFd, path: &[u8], attr: &Attr) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
        rustix::fs::fchown(&fd, Some(uid), Some(gid))
            .map_err(self.failed("setting the owner of", path))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(attr.mode.into()))
            .map_err(self.failed("setting the mode of", path))?;
        for (name, value) in self.tree.xattrs(attr.nid)? {
            let name = self.xattr_name(path, name)?;
            rustix::fs::fsetxattr(&fd, &name, &value, XattrFlags::empty())
                .map_err(self.failed("setting an attribute of", path))?;
        }
        rustix::fs::futimens(&fd, &times(attr.mtime))
            .map_err(self.failed("setting the time of", path))
    }

    /// The same for what cannot be opened.
    fn dress_by_name(&self, path: &[u8], attr: &Attr) -> Result<()> {
        let (parent, name) = (self.parent(path)?, base(path));
        let (uid, gid) = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), no_follow)
            .map_err(self.failed("setting the owner of", path))?;
        if attr.kind != Kind::Symlink {
            let mode = Mode::from_raw_mode(attr.mode.into());
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
                .map_err(self.failed("setting the mode of", path))?;
        }
        // No system call sets an attribute by descriptor and name; the last name is not followed.
        let open = format!("/proc/self/fd/{}/", parent.as_fd().as_raw_fd());
        let place = [open.as_bytes(), name].concat();
        for (attribute, value) in self.tree.xattrs(attr.nid)? {
            let attribute = self.xattr_name(path, attribute)?;
            rustix::fs::lsetxattr(&place[..], &attribute, &value, XattrFlags::empty())
                .map_err(self.failed("setting an attribute of", path))?;
        }
        rustix::fs::utimensat(parent, name, &times(attr.mtime), no_follow)
            .map_err(self.failed("setting the time of", path))
    }

    fn xattr_name(&self, path: &[u8], name: Vec<u8>) -> Result<CString> {
        CString::new(name).map_err(|_| bad(path, "an attribute whose name has a NUL"))
    }

    fn parent(&self, path: &[u8]) -> Result<&OwnedFd> {
        self.open
            .last()
            .ok_or_else(|| bad(path, "an entry outside every directory"))
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.top.join(std::ffi::OsStr::from_bytes(path))
    }

    fn failed(&self, doing: &'static str, path: &[u8]) -> impl FnOnce(rustix::io::Errno) -> Error {
        let place = PathBuf::from(shown(path));
        move |error| Error::io(doing, &place)(error.into())
    }
}

fn times(mtime: Mtime) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.seconds,
        tv_nsec: mtime.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
