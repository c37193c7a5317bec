//! What a caller may do with an inode (RFC 1813, section 3.3.4; RFC 8881, section 18.1; RFC 8276,
//! section 8.5).

use crate::rpc::Credential;
use crate::tree::{Attr, FileKind};

const READ: u32 = 0x01;
const LOOKUP: u32 = 0x02;
const EXECUTE: u32 = 0x20;
const XATTR_READ: u32 = 0x40;
const XATTR_LIST: u32 = 0x100;
/// The bits that version 3 and minor version 1 define.
pub(crate) const KNOWN: u32 = 0x3f;
/// Those that minor version 2 adds.
pub(crate) const KNOWN_XATTR: u32 = 0x1c0;

/// The access that the caller has, as bits of ACCESS. Writing is never among them.
pub(crate) fn granted(caller: &Credential, attr: &Attr) -> u32 {
    let granted = permission_bits(caller, attr);
    let mut access = 0;
    if granted & 4 != 0 {
        access |= READ | XATTR_READ | XATTR_LIST;
    }
    if granted & 1 != 0 {
        access |= if attr.kind == FileKind::Directory {
            LOOKUP
        } else {
            EXECUTE
        };
    }
    access
}

/// Whether the caller may have a file's content. What may be executed may be read for that, and an
/// owner may always read (RFC 1813, section 4.4).
pub(crate) fn may_read(caller: &Credential, attr: &Attr) -> bool {
    granted(caller, attr) & (READ | EXECUTE) != 0 || caller.uid == attr.uid
}

/// The caller's rwx bits for an inode.
fn permission_bits(caller: &Credential, attr: &Attr) -> u32 {
    if caller.uid == 0 {
        let runs = attr.kind == FileKind::Directory || attr.mode & 0o111 != 0;
        return if runs { 7 } else { 6 };
    }
    if caller.uid == attr.uid {
        attr.mode >> 6 & 7
    } else if caller.in_group(attr.gid) {
        attr.mode >> 3 & 7
    } else {
        attr.mode & 7
    }
}
