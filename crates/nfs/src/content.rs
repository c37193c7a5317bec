//! The content of files and symbolic links in replies.

use std::os::unix::fs::FileExt;

use crate::exports::Place;
use crate::status::{Result, Status};
use crate::tree::Extent;
use crate::xdr::Writer;

/// Largest READ.
pub(crate) const MAX_READ: u32 = 1 << 20;

/// Appends the target of a symbolic link, which goes through `scratch`.
pub(crate) fn append_target(link: Place<'_>, scratch: &mut Vec<u8>, reply: &mut Writer) -> Result {
    scratch.clear();
    link.export.tree.readlink(link.ino, scratch)?;
    reply.opaque(scratch);
    Ok(())
}

/// Appends `len` bytes of a file, which has them, and padding.
pub(crate) fn append(here: Place<'_>, offset: u64, len: u32, reply: &mut Writer) -> Result {
    if len == 0 {
        return Ok(());
    }
    let size = len as usize;
    let end = reply.len() + size;
    let mut failed = false;
    here.export
        .tree
        .read(here.ino, offset, len, &mut |extent| match extent {
            Extent::Bytes(bytes) => reply.fixed(bytes),
            Extent::Held(bytes) => reply.attach(bytes),
            Extent::Zero(len) => reply.space(len as usize).fill(0),
            Extent::File { file, offset, len } => {
                let space = reply.space(len as usize);
                failed |= file.read_exact_at(space, offset).is_err();
            }
        })?;
    if failed || reply.len() != end {
        return Err(Status::IO);
    }
    reply.pad(size);
    Ok(())
}
