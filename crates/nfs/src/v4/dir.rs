//! The operations on names and attributes.

use std::ops::ControlFlow;

use super::attr::Subject;
use super::compound::Compound;
use crate::access;
use crate::content;
use crate::exports::{Place, check_name};
use crate::page::Page;
use crate::status::{Result, Status};
use crate::tree::{FileKind, TreeError};

/// Extended attributes that clients may see; the protocol leaves the prefix out.
const XATTR_PREFIX: &[u8] = b"user.";

impl<'a> Compound<'a> {
    /// The current file handle, which has to be a directory.
    fn directory(&self) -> Result<Place<'a>> {
        self.here().and_then(directory)
    }

    pub(super) fn find(&self, name: &[u8]) -> Result<Place<'a>> {
        let here = self.here()?;
        match self.table.lookup(here, check_name(name)?) {
            Err(TreeError::NotDirectory | TreeError::WrongKind) => {
                self.directory().and(Err(Status::NOTDIR))
            }
            found => Ok(found?),
        }
    }

    pub(super) fn lookup(&mut self) -> Result {
        let name = self.args.opaque(4096)?;
        let found = self.find(name)?;
        self.connection.note_use(self.core, found.export);
        self.go(found);
        Ok(())
    }

    pub(super) fn lookup_parent(&mut self) -> Result {
        let parent = self.table.parent(self.directory()?)?.ok_or(Status::NOENT)?;
        self.go(parent);
        Ok(())
    }

    /// RENAME: what is wrong with the call itself comes before what would be wrong with any.
    pub(super) fn rename(&mut self) -> Result {
        let (old, new) = (self.args.opaque(4096)?, self.args.opaque(4096)?);
        directory(self.saved.ok_or(Status::NOFILEHANDLE)?)?;
        self.directory()?;
        check_name(old)?;
        check_name(new)?;
        Err(Status::ROFS)
    }

    fn subject(&self, place: Place<'a>) -> Subject<'a> {
        Subject {
            place,
            keys: &self.core.keys,
            minor: self.minor,
        }
    }

    pub(super) fn get_attributes(&mut self) -> Result {
        let wanted = self.args.bitmap()?;
        let here = self.here()?;
        self.subject(here).write(wanted, self.reply)
    }

    pub(super) fn verify(&mut self, want_same: bool) -> Result {
        let wanted = self.args.bitmap()?;
        let values = self.args.opaque(64 << 10)?;
        let here = self.here()?;
        match (self.subject(here).equal(wanted, values)?, want_same) {
            (true, true) | (false, false) => Ok(()),
            (true, false) => Err(Status::SAME),
            (false, true) => Err(Status::NOT_SAME),
        }
    }

    pub(super) fn access(&mut self) -> Result {
        let asked = self.args.u32()?;
        let attr = self.here()?.attr()?;
        let known = if self.minor >= 2 {
            access::KNOWN | access::KNOWN_XATTR
        } else {
            access::KNOWN
        };
        self.reply.u32(asked & known);
        self.reply
            .u32(asked & known & access::granted(&self.credential, &attr));
        Ok(())
    }

    pub(super) fn read_link(&mut self) -> Result {
        let here = self.here()?;
        if here.attr()?.kind != FileKind::Symlink {
            return Err(Status::WRONG_TYPE);
        }
        content::append_target(here, &mut self.connection.scratch, self.reply)
    }

    pub(super) fn read_directory(&mut self) -> Result {
        let cookie = self.args.u64()?;
        let _verifier: [u8; 8] = self.args.array()?;
        let _names_only = self.args.u32()?;
        let max = self.args.u32()? as usize;
        let wanted = self.args.bitmap()?;
        let here = self.directory()?;
        // Cookies 1 and 2 are reserved (RFC 8881, section 18.23.3): the tree's are moved up by 2.
        let cookie = match cookie {
            0 => 0,
            1 | 2 => return Err(Status::BAD_COOKIE),
            _ => cookie - 2,
        };
        let start = self.reply.len();
        let limit = start + max.min(self.room()).saturating_sub(8);
        if limit < start + 8 {
            return Err(Status::TOOSMALL);
        }
        self.reply.u64(0);
        let first = self.reply.len();
        let mut page = Page::new(limit);
        let (table, minor, keys) = (self.table, self.minor, &self.core.keys);
        let reply = &mut *self.reply;
        here.export.tree.readdir(here.ino, cookie, &mut |entry| {
            let place = table.cross(Place {
                export: here.export,
                ino: entry.ino,
            });
            page.entry(reply, |reply| {
                reply.u32(1);
                reply.u64(entry.cookie.wrapping_add(2));
                reply.opaque(entry.name);
                Subject { place, keys, minor }.write(wanted, reply)
            })
        })?;
        if let Some(status) = page.failed {
            return Err(status);
        }
        if page.full && self.reply.len() == first {
            return Err(Status::TOOSMALL);
        }
        self.reply.u32(0);
        self.reply.bool(!page.full);
        Ok(())
    }

    pub(super) fn security(&mut self) -> Result {
        let name = self.args.opaque(4096)?;
        self.find(name)?;
        self.flavors();
        Ok(())
    }

    pub(super) fn security_no_name(&mut self) -> Result {
        match self.args.u32()? {
            0 => {
                self.here()?;
            }
            1 => {
                self.table.parent(self.directory()?)?.ok_or(Status::NOENT)?;
            }
            _ => return Err(Status::BADXDR),
        }
        self.flavors();
        Ok(())
    }

    /// Writes AUTH_SYS and AUTH_NONE; SECINFO consumes the file handle (RFC 8881, 2.6.3.1.1.8).
    fn flavors(&mut self) {
        for word in [2, 1, 0] {
            self.reply.u32(word);
        }
        self.current = None;
    }

    pub(super) fn get_xattr(&mut self) -> Result {
        let name = self.args.opaque(4096)?;
        let here = self.here()?;
        if name.len() > 255 - XATTR_PREFIX.len() {
            return Err(Status::NAMETOOLONG);
        }
        let full = [XATTR_PREFIX, name].concat();
        let mut value = Vec::new();
        match here.export.tree.xattr(here.ino, &full, &mut value) {
            Err(TreeError::NotFound) => return Err(Status::NOXATTR),
            result => result?,
        }
        self.reply.opaque(&value);
        Ok(())
    }

    pub(super) fn list_xattrs(&mut self) -> Result {
        let cookie = self.args.u64()?;
        let max = self.args.u32()? as usize;
        let here = self.here()?;
        let start = self.reply.len();
        self.reply.u64(0);
        self.reply.u32(0);
        // The limit covers the cookie, the names with their count, and the end flag.
        let limit = start + max.min(self.room()).saturating_sub(4);
        let mut page = Page::new(limit);
        let (mut at, mut count) = (0_u64, 0);
        let reply = &mut *self.reply;
        here.export.tree.xattr_names(here.ino, &mut |name| {
            let Some(name) = name.strip_prefix(XATTR_PREFIX) else {
                return;
            };
            at += 1;
            let flow = (at > cookie && !page.full).then(|| {
                page.entry(reply, |reply| {
                    reply.opaque(name);
                    Ok(())
                })
            });
            count += u32::from(flow == Some(ControlFlow::Continue(())));
        })?;
        if page.full && count == 0 {
            return Err(Status::TOOSMALL);
        }
        let next = cookie.saturating_add(u64::from(count));
        self.reply.set_u32(start, (next >> 32) as u32);
        self.reply.set_u32(start + 4, next as u32);
        self.reply.set_u32(start + 8, count);
        self.reply.bool(!page.full);
        Ok(())
    }
}

/// The place, which has to be a directory.
fn directory(place: Place<'_>) -> Result<Place<'_>> {
    match place.attr()?.kind {
        FileKind::Directory => Ok(place),
        FileKind::Symlink => Err(Status::SYMLINK),
        _ => Err(Status::NOTDIR),
    }
}
