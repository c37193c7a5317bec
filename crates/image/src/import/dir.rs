//! A directory of this machine as a source.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags};

use super::{Progress, SkipReason, Skipped};
use crate::checkout::{Look, Untouched};
use crate::error::{Error, Result};
use crate::manifest::{Content, Id, Manifest, Meta, Node, Xattrs, empty_directory, is_kept_xattr};
use crate::store::session::{Session, Sparse};
use crate::tree::{Device, Entry, Kind, Mtime, Nid};

/// Reads the tree below `top` into a manifest, contents into the session. What a look at a checkout
/// says to be untouched is neither opened nor listed.
pub fn read(
    top: &Path,
    look: Option<Look<'_>>,
    session: &mut Session,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Manifest, Vec<Skipped>)> {
    let stat = stat(top, AtFlags::empty())?;
    let mut walk = Walk {
        top: top.to_owned(),
        mount: stat.stx_mnt_id,
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        tree: Manifest::new(),
        links: HashMap::new(),
        look: None,
        skipped: Vec::new(),
        done: Progress::default(),
        session,
        progress,
    };
    // A link to the directory is fine: from here on its real path is walked.
    walk.top = top.canonicalize().map_err(Error::io("opening", top))?;
    let top = walk.top.clone();
    let Some(look) = look else {
        let meta = walk.meta(&top, &stat)?;
        walk.tree.set_root(meta);
        walk.directory(&top, Manifest::ROOT, None)?;
        return Ok((walk.tree, walk.skipped));
    };
    let (base, has_root) = (look.base().root(), look.has_root());
    let meta = if has_root {
        look.node(base)?.meta
    } else {
        walk.meta(&top, &stat)?
    };
    walk.tree.set_root(meta);
    walk.look = Some(&look);
    if has_root {
        walk.unlisted_directory(&top, Manifest::ROOT, base)?;
    } else {
        walk.directory(&top, Manifest::ROOT, Some(base))?;
    }
    Ok((walk.tree, walk.skipped))
}

struct Walk<'a> {
    top: PathBuf,
    mount: u64,
    device: (u32, u32),
    tree: Manifest,
    /// Nodes that have further names somewhere, by device and inode.
    links: HashMap<(u32, u32, u64), Id>,
    look: Option<&'a Look<'a>>,
    skipped: Vec<Skipped>,
    done: Progress,
    session: &'a mut Session,
    progress: &'a mut dyn FnMut(Progress),
}

/// An entry of a directory of a version, and what it still is, if it is untouched.
type Known<'a> = (Entry<'a>, Option<Untouched>);

impl<'a> Walk<'a> {
    /// What is in a directory. `base` is the directory that it was in the version, if it was one.
    fn directory(&mut self, path: &Path, id: Id, base: Option<Nid>) -> Result<()> {
        let known: Vec<Known<'_>> = match (self.look, base) {
            (Some(look), Some(base)) => known_entries(look, base)?.collect::<Result<_>>()?,
            _ => Vec::new(),
        };
        let mut names = Vec::new();
        for entry in path.read_dir().map_err(Error::io("listing", path))? {
            names.push(entry.map_err(Error::io("listing", path))?.file_name());
        }
        names.sort();
        names
            .iter()
            .map(|name| name.as_bytes())
            .try_for_each(|name| {
                let found = known.binary_search_by(|(entry, _)| entry.name.cmp(name));
                self.child(path, name, id, found.ok().map(|place| known[place]))
            })
    }

    /// The same of a directory that has the names which it had in the version.
    fn unlisted_directory(&mut self, path: &Path, id: Id, base: Nid) -> Result<()> {
        let Some(look) = self.look else {
            return Ok(());
        };
        for known in known_entries(look, base)? {
            let known = known?;
            self.child(path, known.0.name, id, Some(known))?;
        }
        Ok(())
    }

    fn child(
        &mut self,
        directory: &Path,
        name: &[u8],
        parent: Id,
        known: Option<Known<'_>>,
    ) -> Result<()> {
        let path = || directory.join(OsStr::from_bytes(name));
        match (known, self.look) {
            (Some((entry, Some(untouched))), Some(look)) => {
                let node = look.node(untouched.nid)?;
                if entry.kind == Kind::Directory {
                    let id = self.tree.add(parent, name, node)?;
                    self.count();
                    return self.unlisted_directory(&path(), id, untouched.nid);
                }
                let key = (self.device.0, self.device.1, untouched.inode);
                let names = look.base().attr(untouched.nid)?.nlink;
                self.leaf(parent, name, (key, names), |_| Ok(node))
            }
            (known, _) => {
                let was_directory = known.filter(|(entry, _)| entry.kind == Kind::Directory);
                self.entry(
                    &path(),
                    name,
                    parent,
                    was_directory.map(|(entry, _)| entry.nid),
                )
            }
        }
    }

    /// What is no directory: a node, or a further name of one.
    fn leaf(
        &mut self,
        parent: Id,
        name: &[u8],
        (key, names): ((u32, u32, u64), u32),
        node: impl FnOnce(&mut Self) -> Result<Node>,
    ) -> Result<()> {
        if let Some(first) = self.links.get(&key) {
            return self.tree.link(parent, name, *first);
        }
        let node = node(self)?;
        self.count();
        let id = self.tree.add(parent, name, node)?;
        if names > 1 {
            self.links.insert(key, id);
        }
        Ok(())
    }

    /// Looks at a name. `base` is the directory that had it in the version, if one had.
    fn entry(&mut self, path: &Path, name: &[u8], parent: Id, base: Option<Nid>) -> Result<()> {
        let stat = stat(path, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = u32::from(stat.stx_mode) & libc_type::MASK;
        if kind == libc_type::SOCKET {
            self.skip(path, SkipReason::Socket);
            return Ok(());
        }
        let mounted = stat.stx_mnt_id != self.mount;
        if kind != libc_type::DIRECTORY {
            let key = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
            return self.leaf(parent, name, (key, stat.stx_nlink), |walk| {
                walk.node(path, &stat, kind, mounted)
            });
        }
        if mounted {
            self.skip(path, SkipReason::Submount);
        }
        let meta = self.meta(path, &stat)?;
        let id = self.tree.add(parent, name, empty_directory(meta))?;
        self.count();
        if mounted {
            return Ok(());
        }
        self.directory(path, id, base)
    }

    fn node(&mut self, path: &Path, stat: &Statx, kind: u32, mounted: bool) -> Result<Node> {
        if mounted {
            self.skip(path, SkipReason::Submount);
        }
        let changed = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec);
        if let Some(look) = self.look.filter(|_| !mounted)
            && let Some(nid) = look.inode(stat.stx_ino, changed)
        {
            return look.node(nid);
        }
        let meta = self.meta(path, stat)?;
        let content = self.content(path, stat, kind, mounted)?;
        Ok(Node { meta, content })
    }

    fn content(&mut self, path: &Path, stat: &Statx, kind: u32, mounted: bool) -> Result<Content> {
        let device = Device {
            major: stat.stx_rdev_major,
            minor: stat.stx_rdev_minor,
        };
        Ok(match kind {
            libc_type::FILE if mounted => Content::Inline(Bytes::new()),
            libc_type::FILE => {
                let file = open(path)?;
                self.done.bytes += stat.stx_size;
                let mut content = Sparse::new(&file, stat.stx_size);
                return self.session.add(path, &mut content);
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
        })
    }

    fn meta(&mut self, path: &Path, stat: &Statx) -> Result<Meta> {
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
            xattrs: self.xattrs(path)?,
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

    fn count(&mut self) {
        self.done.files += 1;
        (self.progress)(self.done);
    }
}

/// The entries of a directory of the version, in the order of their names.
fn known_entries<'a>(
    look: &'a Look<'a>,
    directory: Nid,
) -> Result<impl Iterator<Item = Result<Known<'a>>>> {
    let entries = look.base().readdir(directory, 0)?.enumerate();
    Ok(entries.map(move |(place, entry)| {
        let entry = entry?;
        Ok((entry, look.entry(directory, place, &entry)))
    }))
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
