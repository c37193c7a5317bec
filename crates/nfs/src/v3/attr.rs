//! Attributes and what a file system says of itself (RFC 1813, sections 2.5 and 3.3.18 to 3.3.20).

use super::Procedure;
use crate::access;
use crate::content::MAX_READ;
use crate::exports::{Export, Place};
use crate::status::Result;
use crate::tree::{Attr, Time};
use crate::xdr::Writer;

/// Links and symbolic links exist, PATHCONF is the same everywhere, times are kept exactly.
const PROPERTIES: u32 = 0x01 | 0x02 | 0x08 | 0x10;
/// What READDIR is best asked for at once.
const DIRECTORY_LEN: u32 = 64 << 10;
/// How long FSSTAT stays right, s: for ever.
const INVARIANT: u32 = u32::MAX;

impl Procedure<'_> {
    pub(super) fn get_attributes(&mut self) -> Result {
        let here = self.handle()?;
        let attr = here.attr()?;
        write(here, &attr, self.reply);
        Ok(())
    }

    pub(super) fn access(&mut self) -> Result {
        let here = self.handle()?;
        let asked = self.args.u32()?;
        let attr = here.attr()?;
        self.attributes_after(Some(here));
        let granted = access::granted(&self.credential, &attr) & access::KNOWN;
        self.reply.u32(asked & granted);
        Ok(())
    }

    /// FSSTAT.
    pub(super) fn usage(&mut self) -> Result {
        let here = self.handle()?;
        here.attr()?;
        let usage = here.export.tree.usage();
        self.attributes_after(Some(here));
        for value in [usage.bytes, 0, 0, usage.inodes, 0, 0] {
            self.reply.u64(value);
        }
        self.reply.u32(INVARIANT);
        Ok(())
    }

    /// FSINFO.
    pub(super) fn limits(&mut self) -> Result {
        let here = self.handle()?;
        here.attr()?;
        self.attributes_after(Some(here));
        let read = [MAX_READ, MAX_READ, 4096];
        let write = read;
        for word in read.into_iter().chain(write).chain([DIRECTORY_LEN]) {
            self.reply.u32(word);
        }
        self.reply.u64(i64::MAX as u64);
        for word in [0, 1, PROPERTIES] {
            self.reply.u32(word);
        }
        Ok(())
    }

    /// PATHCONF.
    pub(super) fn path_limits(&mut self) -> Result {
        let here = self.handle()?;
        here.attr()?;
        self.attributes_after(Some(here));
        let (links, name) = (u32::MAX, 255);
        let (no_trunc, chown_restricted, case_insensitive, case_preserving) = (1, 1, 0, 1);
        for word in [
            links,
            name,
            no_trunc,
            chown_restricted,
            case_insensitive,
            case_preserving,
        ] {
            self.reply.u32(word);
        }
        Ok(())
    }
}

/// Writes a post_op_attr.
pub(super) fn write_after(place: Option<Place<'_>>, reply: &mut Writer) {
    match place.and_then(|place| Some((place, place.attr().ok()?))) {
        Some((place, attr)) => {
            reply.bool(true);
            write(place, &attr, reply);
        }
        None => reply.bool(false),
    }
}

/// Writes an fattr3.
fn write(place: Place<'_>, attr: &Attr, reply: &mut Writer) {
    for word in [
        attr.kind.number(),
        attr.mode & 0o7777,
        attr.nlink,
        attr.uid,
        attr.gid,
    ] {
        reply.u32(word);
    }
    reply.u64(attr.size);
    reply.u64(attr.used);
    reply.u32(attr.rdev.0);
    reply.u32(attr.rdev.1);
    reply.u64(fsid(place.export));
    reply.u64(place.ino.into());
    for moment in [attr.mtime, attr.mtime, attr.ctime] {
        time(moment, reply);
    }
}

/// The first half of the tree's id.
fn fsid(export: &Export) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = export.id;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Version 3 has unsigned seconds in 32 bits: moments outside of them become the nearest.
fn time(time: Time, reply: &mut Writer) {
    let seconds = time.seconds.clamp(0, u32::MAX.into());
    reply.u32(seconds as u32);
    reply.u32(if seconds == time.seconds {
        time.nanos
    } else {
        0
    });
}
