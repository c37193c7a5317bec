//! Writes a version out as a directory, exactly: everything that its digest is made of.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};

use crate::error::{Error, Result};
use crate::import::Progress;
use crate::tree::{Attr, Extent, Kind, Nid, StoredTree};

/// Directories within each other, at most: each takes a descriptor while it is written.
const DEPTH_MAX: usize = 512;

/// What is done with each file once it is there: its number in the tree, and the file.
pub type Written<'a> = dyn FnMut(Nid, &File) -> Result<()> + 'a;

/// Fills the empty directory `top`, as root. No name of the tree can lead out of it: every one is
/// made anew in a directory that was made before, and links are never followed.
pub fn write(
    tree: &StoredTree,
    top: &Path,
    written: &mut Written<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let directory = open_directory(rustix::fs::CWD, top.as_os_str().as_bytes())
        .map_err(Error::io("opening", top))?;
    let mut writer = Writer {
        tree,
        top: directory.try_clone().map_err(Error::io("opening", top))?,
        path: PathBuf::new(),
        shown: top.to_owned(),
        names: HashMap::new(),
        done: Progress::default(),
        written,
        progress,
    };
    writer.directory(&directory, &tree.attr(tree.root())?, 0)
}

struct Writer<'a> {
    tree: &'a StoredTree,
    top: OwnedFd,
    /// Where the writer is, from the top, and with it.
    path: PathBuf,
    shown: PathBuf,
    /// The first name of files that have several.
    names: HashMap<Nid, PathBuf>,
    done: Progress,
    written: &'a mut Written<'a>,
    progress: &'a mut dyn FnMut(Progress),
}

impl Writer<'_> {
    /// Fills a directory that was just made, then gives it its attributes: its time last.
    fn directory(&mut self, directory: &OwnedFd, attr: &Attr, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Error::BadSource {
                path: self.path.display().to_string(),
                why: format!("more than {DEPTH_MAX} directories in each other"),
            });
        }
        for entry in self.tree.readdir(attr.nid, 0)? {
            let entry = entry?;
            let name = std::ffi::OsStr::from_bytes(entry.name);
            self.path.push(name);
            self.shown.push(name);
            self.entry(directory, entry.name, entry.nid, depth)?;
            self.path.pop();
            self.shown.pop();
        }
        self.attributes(directory.as_fd(), attr)
    }

    fn entry(&mut self, parent: &OwnedFd, name: &[u8], nid: Nid, depth: usize) -> Result<()> {
        let attr = self.tree.attr(nid)?;
        let private = Mode::RUSR | Mode::WUSR | Mode::XUSR;
        if attr.kind == Kind::Directory {
            self.made(rustix::fs::mkdirat(parent, name, private))?;
            let directory = open_directory(parent, name).map_err(self.failed("opening"))?;
            return self.directory(&directory, &attr, depth + 1);
        }
        if let Some(first) = self.names.get(&nid) {
            let linked = rustix::fs::linkat(&self.top, first, parent, name, AtFlags::empty());
            return self.made(linked);
        }
        if attr.nlink > 1 {
            self.names.insert(nid, self.path.clone());
        }
        match attr.kind {
            Kind::File => self.file(parent, name, &attr)?,
            Kind::Symlink => {
                let target = self.tree.readlink(nid)?;
                self.made(rustix::fs::symlinkat(&target[..], parent, name))?;
                self.attributes_by_name(parent, name, &attr)?;
            }
            _ => {
                let kind = match attr.kind {
                    Kind::Character => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    Kind::Socket => FileType::Socket,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(attr.rdev.major, attr.rdev.minor);
                self.made(rustix::fs::mknodat(parent, name, kind, private, device))?;
                self.attributes_by_name(parent, name, &attr)?;
            }
        }
        self.done.files += 1;
        (self.progress)(self.done);
        Ok(())
    }

    fn file(&mut self, parent: &OwnedFd, name: &[u8], attr: &Attr) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(made.map_err(|it| self.failed("making")(it.into()))?);
        let mut at = 0;
        for extent in self.tree.read(attr.nid, 0, attr.size)? {
            at += self.extent(&file, at, extent)?;
        }
        file.set_len(attr.size).map_err(self.failed("writing"))?;
        self.attributes(file.as_fd(), attr)?;
        self.done.bytes += attr.size;
        (self.written)(attr.nid, &file)
    }

    /// Writes a part of a file; zeros become holes. Returns the part's length.
    fn extent(&self, file: &File, at: u64, extent: Extent) -> Result<u64> {
        match extent {
            Extent::Zero(len) => Ok(len),
            Extent::Bytes(bytes) => {
                file.write_all_at(&bytes, at)
                    .map_err(self.failed("writing"))?;
                Ok(bytes.len() as u64)
            }
            Extent::File {
                file: object,
                offset,
                len,
            } => {
                // Where the file systems can share the blocks, nothing is copied.
                if at == 0 && offset == 0 && rustix::fs::ioctl_ficlone(file, &*object).is_ok() {
                    return Ok(len);
                }
                copy_data(&object, offset..offset + len, file, at)
                    .map_err(self.failed("writing"))?;
                Ok(len)
            }
        }
    }

    /// Owner first: changing it takes set-id bits and capabilities away. The time last.
    fn attributes(&self, file: std::os::fd::BorrowedFd<'_>, attr: &Attr) -> Result<()> {
        let failed = |error: rustix::io::Errno| self.failed("setting attributes of")(error.into());
        rustix::fs::fchown(
            file,
            Some(Uid::from_raw(attr.uid)),
            Some(Gid::from_raw(attr.gid)),
        )
        .map_err(failed)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(attr.mode.into())).map_err(failed)?;
        for (name, value) in self.tree.xattrs(attr.nid)? {
            let name = CString::new(name).map_err(|it| self.failed("setting")(it.into()))?;
            rustix::fs::fsetxattr(file, &name, &value, XattrFlags::empty()).map_err(failed)?;
        }
        rustix::fs::futimens(file, &times(attr)).map_err(failed)
    }

    /// As [`Writer::attributes`], for what cannot be opened.
    fn attributes_by_name(&self, parent: &OwnedFd, name: &[u8], attr: &Attr) -> Result<()> {
        let failed = |error: rustix::io::Errno| self.failed("setting attributes of")(error.into());
        let (uid, gid) = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
        let here = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), here).map_err(failed)?;
        if attr.kind != Kind::Symlink {
            let mode = Mode::from_raw_mode(attr.mode.into());
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(failed)?;
        }
        let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        for (name, value) in self.tree.xattrs(attr.nid)? {
            let name = CString::new(name).map_err(|it| self.failed("setting")(it.into()))?;
            let set = rustix::fs::lsetxattr(&path[..], &name, &value, XattrFlags::empty());
            set.map_err(failed)?;
        }
        rustix::fs::utimensat(parent, name, &times(attr), here).map_err(failed)
    }

    fn made(&self, result: rustix::io::Result<()>) -> Result<()> {
        result.map_err(|error| self.failed("making")(error.into()))
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::io(doing, &self.shown)
    }
}

fn open_directory(parent: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn times(attr: &Attr) -> Timestamps {
    let time = Timespec {
        tv_sec: attr.mtime.seconds,
        tv_nsec: attr.mtime.nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Copies what is not a hole.
fn copy_data(from: &File, range: std::ops::Range<u64>, to: &File, to_start: u64) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data.min(range.end),
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(_) => at,
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(range.end);
        copy_run(
            from,
            data..hole.clamp(data, range.end),
            to,
            to_start + data - range.start,
        )?;
        at = hole.max(data + 1);
    }
    Ok(())
}

fn copy_run(from: &File, run: std::ops::Range<u64>, to: &File, mut to_at: u64) -> io::Result<()> {
    let mut at = run.start;
    while at < run.end {
        let len = usize::try_from(run.end - at).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), len) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            // Between some file systems it does not work.
            Err(_) => return copy_through_memory(from, at..run.end, to, to_at),
        }
    }
    Ok(())
}

fn copy_through_memory(
    from: &File,
    run: std::ops::Range<u64>,
    to: &File,
    to_start: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    let mut at = run.start;
    while at < run.end {
        let len = buffer.len().min((run.end - at) as usize);
        from.read_exact_at(&mut buffer[..len], at)?;
        to.write_all_at(&buffer[..len], to_start + at - run.start)?;
        at += len as u64;
    }
    Ok(())
}
