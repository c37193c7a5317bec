//! File attributes (RFC 8881, section 5; RFC 7862, section 12; RFC 8276; RFC 9754).

use super::LEASE_SECONDS;
use crate::content::MAX_READ;
use crate::exports::Place;
use crate::ident::Keys;
use crate::status::{Result, Status};
use crate::tree::{Attr, Time};
use crate::xdr::{Bitmap, Writer, length};

const SUPPORTED_ATTRS: u32 = 0;
const TYPE: u32 = 1;
const FH_EXPIRE_TYPE: u32 = 2;
const CHANGE: u32 = 3;
const SIZE: u32 = 4;
const LINK_SUPPORT: u32 = 5;
const SYMLINK_SUPPORT: u32 = 6;
const NAMED_ATTR: u32 = 7;
const FSID: u32 = 8;
const UNIQUE_HANDLES: u32 = 9;
const LEASE_TIME: u32 = 10;
pub(super) const RDATTR_ERROR: u32 = 11;
const CANSETTIME: u32 = 15;
const CASE_INSENSITIVE: u32 = 16;
const CASE_PRESERVING: u32 = 17;
const CHOWN_RESTRICTED: u32 = 18;
const FILEHANDLE: u32 = 19;
const FILEID: u32 = 20;
const FILES_AVAIL: u32 = 21;
const FILES_FREE: u32 = 22;
const FILES_TOTAL: u32 = 23;
const HOMOGENEOUS: u32 = 26;
const MAXFILESIZE: u32 = 27;
const MAXLINK: u32 = 28;
const MAXNAME: u32 = 29;
const MAXREAD: u32 = 30;
const MAXWRITE: u32 = 31;
const MODE: u32 = 33;
const NO_TRUNC: u32 = 34;
const NUMLINKS: u32 = 35;
const OWNER: u32 = 36;
const OWNER_GROUP: u32 = 37;
const RAWDEV: u32 = 41;
const SPACE_AVAIL: u32 = 42;
const SPACE_FREE: u32 = 43;
const SPACE_TOTAL: u32 = 44;
const SPACE_USED: u32 = 45;
const TIME_ACCESS: u32 = 47;
const TIME_DELTA: u32 = 51;
const TIME_METADATA: u32 = 52;
const TIME_MODIFY: u32 = 53;
const MOUNTED_ON_FILEID: u32 = 55;
const SUPPATTR_EXCLCREAT: u32 = 75;
const SEC_LABEL: u32 = 80;
const XATTR_SUPPORT: u32 = 82;
const OPEN_ARGUMENTS: u32 = 86;

/// Attributes of minor version 1. No ACLs: a Linux client would copy them up and fail.
const MINOR_1: Bitmap = Bitmap::of(&[
    SUPPORTED_ATTRS,
    TYPE,
    FH_EXPIRE_TYPE,
    CHANGE,
    SIZE,
    LINK_SUPPORT,
    SYMLINK_SUPPORT,
    NAMED_ATTR,
    FSID,
    UNIQUE_HANDLES,
    LEASE_TIME,
    RDATTR_ERROR,
    CANSETTIME,
    CASE_INSENSITIVE,
    CASE_PRESERVING,
    CHOWN_RESTRICTED,
    FILEHANDLE,
    FILEID,
    FILES_AVAIL,
    FILES_FREE,
    FILES_TOTAL,
    HOMOGENEOUS,
    MAXFILESIZE,
    MAXLINK,
    MAXNAME,
    MAXREAD,
    MAXWRITE,
    MODE,
    NO_TRUNC,
    NUMLINKS,
    OWNER,
    OWNER_GROUP,
    RAWDEV,
    SPACE_AVAIL,
    SPACE_FREE,
    SPACE_TOTAL,
    SPACE_USED,
    TIME_ACCESS,
    TIME_DELTA,
    TIME_METADATA,
    TIME_MODIFY,
    MOUNTED_ON_FILEID,
    SUPPATTR_EXCLCREAT,
]);
const MINOR_2: Bitmap = MINOR_1.or(Bitmap::of(&[XATTR_SUPPORT, OPEN_ARGUMENTS]));
const LABELS: Bitmap = Bitmap::of(&[SEC_LABEL]);
/// The extended attribute that is served as a security label.
const LABEL_XATTR: &[u8] = b"security.selinux";

/// The attributes that are served for an inode.
#[inline]
pub(super) fn supported(place: Place<'_>, minor: u32) -> Bitmap {
    match minor {
        0 | 1 => MINOR_1,
        _ if place.export.tree.has_labels() => MINOR_2.or(LABELS),
        _ => MINOR_2,
    }
}

/// What is known of the inode whose attributes are written.
pub(super) struct Subject<'a> {
    pub(super) place: Place<'a>,
    pub(super) keys: &'a Keys,
    pub(super) minor: u32,
}

impl Subject<'_> {
    /// Writes those of the wanted attributes that are served, as a fattr4.
    pub(super) fn write(&self, wanted: Bitmap, reply: &mut Writer) -> Result {
        let attr = self.place.attr()?;
        let mut given = wanted.and(supported(self.place, self.minor));
        let mut label = Vec::new();
        if given.has(SEC_LABEL) && self.label(&mut label).is_none() {
            given.0[2] &= !(1 << (SEC_LABEL - 64));
        }
        reply.bitmap(given);
        let at = reply.len();
        reply.u32(0);
        for bit in given.bits() {
            self.write_one(bit, &attr, &label, reply);
        }
        let len = reply.len() - at - 4;
        reply.set_u32(at, length(len));
        Ok(())
    }

    fn label(&self, label: &mut Vec<u8>) -> Option<()> {
        let tree = &self.place.export.tree;
        tree.xattr(self.place.ino, LABEL_XATTR, label).ok()?;
        while label.last() == Some(&0) {
            label.pop();
        }
        Some(())
    }

    fn write_one(&self, bit: u32, attr: &Attr, label: &[u8], reply: &mut Writer) {
        match bit {
            SUPPORTED_ATTRS => reply.bitmap(supported(self.place, self.minor)),
            SUPPATTR_EXCLCREAT => reply.bitmap(Bitmap::default()),
            TYPE => reply.u32(attr.kind.number()),
            FH_EXPIRE_TYPE | RDATTR_ERROR => reply.u32(0),
            CHANGE => reply.u64(change(attr)),
            SIZE => reply.u64(attr.size),
            LINK_SUPPORT | SYMLINK_SUPPORT | UNIQUE_HANDLES | CANSETTIME | CASE_PRESERVING
            | CHOWN_RESTRICTED | HOMOGENEOUS | NO_TRUNC => reply.bool(true),
            NAMED_ATTR | CASE_INSENSITIVE => reply.bool(false),
            XATTR_SUPPORT => reply.bool(true),
            FSID => reply.fixed(&self.place.export.id),
            LEASE_TIME => reply.u32(LEASE_SECONDS),
            FILEHANDLE => reply.opaque(&self.keys.handle(&self.place.export.id, self.place.ino)),
            FILEID => reply.u64(self.place.ino.into()),
            MOUNTED_ON_FILEID => reply.u64(self.mounted_on().into()),
            FILES_AVAIL | FILES_FREE | SPACE_AVAIL | SPACE_FREE => reply.u64(0),
            FILES_TOTAL => reply.u64(self.place.export.tree.usage().inodes),
            SPACE_TOTAL => reply.u64(self.place.export.tree.usage().bytes),
            SPACE_USED => reply.u64(attr.used),
            MAXFILESIZE => reply.u64(i64::MAX as u64),
            MAXLINK => reply.u32(u32::MAX),
            MAXNAME => reply.u32(255),
            MAXREAD | MAXWRITE => reply.u64(MAX_READ.into()),
            MODE => reply.u32(attr.mode & 0o7777),
            NUMLINKS => reply.u32(attr.nlink),
            OWNER => decimal(attr.uid, reply),
            OWNER_GROUP => decimal(attr.gid, reply),
            RAWDEV => {
                reply.u32(attr.rdev.0);
                reply.u32(attr.rdev.1);
            }
            TIME_ACCESS | TIME_MODIFY => time(attr.mtime, reply),
            TIME_METADATA => time(attr.ctime, reply),
            TIME_DELTA => time(
                Time {
                    seconds: 0,
                    nanos: 1,
                },
                reply,
            ),
            SEC_LABEL => {
                // No label format is registered for what the image holds: lfs and pi are zero.
                reply.u64(0);
                reply.opaque(label);
            }
            OPEN_ARGUMENTS => open_arguments(reply),
            _ => {}
        }
    }

    fn mounted_on(&self) -> u32 {
        let export = self.place.export;
        if self.place.ino == export.root {
            export.mounted_on
        } else {
            self.place.ino
        }
    }

    /// Whether the attributes equal a client's; `wanted` says which it sent.
    pub(super) fn equal(&self, wanted: Bitmap, values: &[u8]) -> Result<bool> {
        if wanted.1 || wanted.and(supported(self.place, self.minor)).0 != wanted.0 {
            return Err(Status::ATTRNOTSUPP);
        }
        if wanted.has(RDATTR_ERROR) {
            return Err(Status::INVAL);
        }
        let mut ours = Writer::default();
        ours.bitmap(wanted);
        let values_at = ours.len() + 4;
        ours.truncate(0);
        self.write(wanted, &mut ours)?;
        Ok(ours.bytes_from(values_at) == Some(values))
    }
}

/// Changes whenever the inode does; it never does within a tree.
pub(super) fn change(attr: &Attr) -> u64 {
    (attr.ctime.seconds as u64).wrapping_shl(30) ^ u64::from(attr.ctime.nanos)
}

fn time(time: Time, reply: &mut Writer) {
    reply.u64(time.seconds as u64);
    reply.u32(time.nanos);
}

/// An id as a decimal string. Clients take it without asking a name service; with names they would
/// revalidate attributes all the time.
fn decimal(id: u32, reply: &mut Writer) {
    let mut digits = [0; 10];
    let (mut at, mut left) = (digits.len(), id);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    reply.opaque(&digits[at..]);
}

/// What OPEN understands (RFC 9754, section 3): reading, every claim, OPEN_XOR_DELEGATION.
fn open_arguments(reply: &mut Writer) {
    const SHARE_ACCESS_READ: Bitmap = Bitmap::of(&[1]);
    const SHARE_DENY_NONE: Bitmap = Bitmap::of(&[0]);
    const WANT_ANY_NO_CANCEL_XOR: Bitmap = Bitmap::of(&[3, 4, 5, 21]);
    const CLAIM_NULL_PREVIOUS_CUR_FH_CUR_FH: Bitmap = Bitmap::of(&[0, 1, 2, 4, 5]);
    const CREATE_UNCHECKED: Bitmap = Bitmap::of(&[0]);
    for bitmap in [
        SHARE_ACCESS_READ,
        SHARE_DENY_NONE,
        WANT_ANY_NO_CANCEL_XOR,
        CLAIM_NULL_PREVIOUS_CUR_FH_CUR_FH,
        CREATE_UNCHECKED,
    ] {
        reply.bitmap(bitmap);
    }
}
