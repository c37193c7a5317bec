//! Names and directories (RFC 1813, sections 3.3.3, 3.3.5, 3.3.16 and 3.3.17).

use std::ops::ControlFlow;

use super::attr::write_after;
use super::{MAX_NAME, Procedure};
use crate::content::{self, MAX_READ};
use crate::exports::{Place, check_name};
use crate::page::Page;
use crate::status::{Result, Status};
use crate::tree::{DirEntry, FileKind, TreeError};
use crate::xdr::Writer;

/// `.` and `..` come first: the tree's cookies are moved up by them.
const DOTS: u64 = 2;
/// The end of a list and whether it was all.
const TAIL_LEN: usize = 8;

impl<'a> Procedure<'a> {
    fn directory(&mut self) -> Result<Place<'a>> {
        let here = self.handle()?;
        match here.attr()?.kind {
            FileKind::Directory => Ok(here),
            _ => Err(Status::NOTDIR),
        }
    }

    pub(super) fn lookup(&mut self) -> Result {
        let handle = self.handle()?;
        let name = self.args.opaque(MAX_NAME)?;
        let found = self.find(handle, name)?;
        self.connection.note_use(self.core, found.export);
        let handle = self.core.keys.handle(&found.export.id, found.ino);
        self.reply.opaque(&handle);
        self.attributes_after(Some(found));
        self.attributes_after(self.subject);
        Ok(())
    }

    fn find(&self, here: Place<'a>, name: &[u8]) -> Result<Place<'a>> {
        if name == b"." || name == b".." {
            if here.attr()?.kind != FileKind::Directory {
                return Err(Status::NOTDIR);
            }
            return Ok(if name == b"." {
                here
            } else {
                self.above(here)?
            });
        }
        match self.table.lookup(here, check_name(name)?) {
            Err(TreeError::WrongKind) => Err(Status::NOTDIR),
            found => Ok(found?),
        }
    }

    /// The directory above a directory. A mount ends at its tree's root, which is its own parent.
    fn above(&self, here: Place<'a>) -> Result<Place<'a>> {
        if here.ino == here.export.root {
            return Ok(here);
        }
        Ok(self.table.parent(here)?.unwrap_or(here))
    }

    pub(super) fn read_link(&mut self) -> Result {
        let here = self.handle()?;
        if here.attr()?.kind != FileKind::Symlink {
            return Err(Status::INVAL);
        }
        self.attributes_after(Some(here));
        content::append_target(here, &mut self.connection.scratch, self.reply)
    }

    pub(super) fn read_directory(&mut self) -> Result {
        let here = self.directory()?;
        let cookie = self.args.u64()?;
        let _verifier: [u8; 8] = self.args.array()?;
        let max = self.args.u32()?;
        self.list(here, cookie, max, |_, _| ())
    }

    pub(super) fn read_directory_plus(&mut self) -> Result {
        let here = self.directory()?;
        let cookie = self.args.u64()?;
        let _verifier: [u8; 8] = self.args.array()?;
        let _max_of_names = self.args.u32()?;
        let max = self.args.u32()?;
        let core = self.core;
        self.list(here, cookie, max, |place, reply| {
            write_after(Some(place), reply);
            reply.bool(true);
            reply.opaque(&core.keys.handle(&place.export.id, place.ino));
        })
    }

    /// Writes the entries after `cookie` in at most `max` bytes; `more` adds to each.
    fn list(
        &mut self,
        here: Place<'a>,
        cookie: u64,
        max: u32,
        more: impl Fn(Place<'a>, &mut Writer),
    ) -> Result {
        let (table, above) = (self.table, self.above(here)?);
        let start = self.reply.len();
        self.attributes_after(Some(here));
        self.reply.u64(0);
        let limit = start + (max.min(MAX_READ) as usize).saturating_sub(TAIL_LEN);
        let (mut page, first) = (Page::new(limit), self.reply.len());
        let reply = &mut *self.reply;
        let mut add = |name: &[u8], place: Place<'a>, number: u32, cookie: u64| {
            page.entry(reply, |reply| {
                reply.bool(true);
                reply.u64(number.into());
                reply.opaque(name);
                reply.u64(cookie);
                more(place, reply);
                Ok(())
            })
        };
        let mut flow = ControlFlow::Continue(());
        for (at, name, place) in [(0, &b"."[..], here), (1, b"..", above)] {
            if at >= cookie && flow.is_continue() {
                flow = add(name, place, place.ino, at + 1);
            }
        }
        if flow.is_continue() {
            let each = &mut |entry: DirEntry<'_>| -> ControlFlow<()> {
                let place = table.cross(Place {
                    export: here.export,
                    ino: entry.ino,
                });
                add(
                    entry.name,
                    place,
                    entry.ino,
                    entry.cookie.wrapping_add(DOTS),
                )
            };
            let after = cookie.saturating_sub(DOTS);
            here.export.tree.readdir(here.ino, after, each)?;
        }
        if page.full && self.reply.len() == first {
            return Err(Status::TOOSMALL);
        }
        self.reply.bool(false);
        self.reply.bool(!page.full);
        Ok(())
    }
}
