//! A directory of this machine as a source.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags};

use super::{Progress, SkipReason, Skipped};
use crate::checkout::Checkout;
use crate::error::{Error, Result};
use crate::manifest::{Content, Id, Manifest, Meta, Node, Xattrs, empty_directory, is_kept_xattr};
use crate::store::session::{Session, Sparse};
use crate::tree::{Device, Mtime, Nid};

/// Reads the tree below `top` into a manifest, contents into the session. What a `checkout` knows to
/// be untouched is not read.
pub fn read(
    top: &Path,
    checkout: Option<&Checkout>,
    session: &mut Session,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Manifest, Vec<Skipped>)> {
    let stat = stat(top, AtFlags::empty())?;
    let mut walk = Walk {
        top: top.to_owned(),
        mount: stat.stx_mnt_id,
        tree: Manifest::new(),
        links: HashMap::new(),
        checkout,
        skipped: Vec::new(),
        done: Progress::default(),
        session,
        progress,
    };
    // A link to the directory is fine: from here on its real path is walked.
    walk.top = top.canonicalize().map_err(Error::io("opening", top))?;
    let top = walk.top.clone();
    let meta = walk.meta(&top, &stat, None)?;
    walk.tree.set_root(meta);
    walk.directory(&top, Manifest::ROOT)?;
    Ok((walk.tree, walk.skipped))
}

struct Walk<'a> {
    top: PathBuf,
    mount: u64,
    tree: Manifest,
    /// Nodes that have further names somewhere, by device and inode.
    links: HashMap<(u32, u32, u64), Id>,
    checkout: Option<&'a Checkout>,
    skipped: Vec<Skipped>,
    done: Progress,
    session: &'a mut Session,
    progress: &'a mut dyn FnMut(Progress),
}

impl Walk<'_> {
    fn directory(&mut self, path: &Path, id: Id) -> Result<()> {
        let mut names = Vec::new();
        for entry in path.read_dir().map_err(Error::io("listing", path))? {
            names.push(entry.map_err(Error::io("listing", path))?.file_name());
        }
        names.sort();
        names
            .iter()
            .try_for_each(|name| self.entry(&path.join(name), name.as_bytes(), id))
    }

    fn entry(&mut self, path: &Path, name: &[u8], parent: Id) -> Result<()> {
        let stat = stat(path, AtFlags::SYMLINK_NOFOLLOW)?;
        let key = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        let meta_kind = u32::from(stat.stx_mode) & libc_type::MASK;
        if meta_kind == libc_type::SOCKET {
            self.skip(path, SkipReason::Socket);
            return Ok(());
        }
        if let Some(first) = self.links.get(&key) {
            return self.tree.link(parent, name, *first);
        }
        let mounted = stat.stx_mnt_id != self.mount;
        if mounted {
            self.skip(path, SkipReason::Submount);
        }
        let untouched = self.untouched(&stat);
        let meta = self.meta(path, &stat, untouched)?;
        if meta_kind == libc_type::DIRECTORY {
            let id = self.tree.add(parent, name, empty_directory(meta))?;
            self.count(0);
            return if mounted {
                Ok(())
            } else {
                self.directory(path, id)
            };
        }
        let content = match (untouched, self.checkout) {
            (Some(nid), Some(checkout)) => {
                self.count(0);
                checkout.content(nid)?
            }
            _ => self.content(path, &stat, meta_kind, mounted)?,
        };
        let id = self.tree.add(parent, name, Node { meta, content })?;
        if stat.stx_nlink > 1 {
            self.links.insert(key, id);
        }
        Ok(())
    }

    fn content(&mut self, path: &Path, stat: &Statx, kind: u32, mounted: bool) -> Result<Content> {
        let device = Device {
            major: stat.stx_rdev_major,
            minor: stat.stx_rdev_minor,
        };
        let content = match kind {
            libc_type::FILE if mounted => Content::Inline(Vec::new()),
            libc_type::FILE => {
                let file = open(path)?;
                let content = self
                    .session
                    .add(path, &mut Sparse::new(&file, stat.stx_size))?;
                self.count(stat.stx_size);
                return Ok(content);
            }
            libc_type::SYMLINK => {
                let target = path
                    .read_link()
                    .map_err(Error::io("reading the link", path))?;
                Content::Symlink(target.into_os_string().as_bytes().to_vec())
            }
            libc_type::CHARACTER => Content::Character(device),
            libc_type::BLOCK => Content::Block(device),
            _ => Content::Fifo,
        };
        self.count(0);
        Ok(content)
    }

    /// The inode of the checkout's version that this still is.
    fn untouched(&self, stat: &Statx) -> Option<Nid> {
        let changed = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec);
        self.checkout?.untouched(stat.stx_ino, changed)
    }

    fn meta(&mut self, path: &Path, stat: &Statx, untouched: Option<Nid>) -> Result<Meta> {
        let mode = if u32::from(stat.stx_mode) & libc_type::MASK == libc_type::SYMLINK {
            0o777
        } else {
            stat.stx_mode & 0o7777
        };
        let mtime = Mtime {
            seconds: stat.stx_mtime.tv_sec,
            nanoseconds: stat.stx_mtime.tv_nsec,
        };
        Ok(Meta {
            mode,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mtime,
            xattrs: match (untouched, self.checkout) {
                // Setting an attribute is a change of the inode, too.
                (Some(nid), Some(checkout)) => checkout.base().xattrs(nid)?.into_iter().collect(),
                _ => self.xattrs(path)?,
            },
        })
    }

    fn xattrs(&mut self, path: &Path) -> Result<Xattrs> {
        let mut kept = Xattrs::new();
        for name in xattr_names(path)? {
            if !is_kept_xattr(&name) {
                self.skip(
                    path,
                    SkipReason::Attribute(String::from_utf8_lossy(&name).into_owned()),
                );
            } else if let Some(value) = xattr_value(path, &name)? {
                kept.insert(name, value);
            }
        }
        Ok(kept)
    }

    fn skip(&mut self, path: &Path, why: SkipReason) {
        let path = path
            .strip_prefix(&self.top)
            .unwrap_or(path)
            .as_os_str()
            .as_bytes()
            .to_vec();
        self.skipped.push(Skipped { path, why });
    }

    fn count(&mut self, bytes: u64) {
        self.done.files += 1;
        self.done.bytes += bytes;
        (self.progress)(self.done);
    }
}

/// Type bits of a mode, as stat(2) has them.
mod libc_type {
    use crate::erofs::format as f;
    pub const MASK: u32 = f::TYPE_MASK as u32;
    pub const FILE: u32 = f::TYPE_FILE as u32;
    pub const DIRECTORY: u32 = f::TYPE_DIRECTORY as u32;
    pub const SYMLINK: u32 = f::TYPE_SYMLINK as u32;
    pub const CHARACTER: u32 = f::TYPE_CHARACTER as u32;
    pub const BLOCK: u32 = f::TYPE_BLOCK as u32;
    pub const SOCKET: u32 = f::TYPE_SOCKET as u32;
}

fn stat(path: &Path, flags: AtFlags) -> Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    rustix::fs::statx(CWD, path, flags | AtFlags::NO_AUTOMOUNT, wanted)
        .map_err(|error| Error::io("reading the attributes of", path)(error.into()))
}

fn open(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|error| Error::io("opening", path)(error.into()))
}

/// The names of all attributes; none where the file system knows none.
fn xattr_names(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0; 1024];
    loop {
        match rustix::fs::llistxattr(path, &mut buffer[..]) {
            Ok(len) => {
                let names = buffer[..len]
                    .split(|byte| *byte == 0)
                    .filter(|name| !name.is_empty());
                return Ok(names.map(<[u8]>::to_vec).collect());
            }
            Err(rustix::io::Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(1 << 16, 0),
            Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("listing the attributes of", path)(error.into())),
        }
    }
}

/// An attribute's value; `None` if it has gone since it was listed.
fn xattr_value(path: &Path, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let failed = |error: io::Error| Error::io("reading an attribute of", path)(error);
    let name = CString::new(name).map_err(|error| failed(error.into()))?;
    let mut value = vec![0; 1 << 16];
    match rustix::fs::lgetxattr(path, &name, &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}
