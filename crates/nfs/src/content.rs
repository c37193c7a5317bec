//! The content of files in replies.

use std::os::unix::fs::FileExt;

use crate::exports::Place;
use crate::status::{Result, Status};
use crate::tree::Extent;
use crate::xdr::Writer;

/// Largest READ.
pub(crate) const MAX_READ: u32 = 1 << 20;

/// Appends `len` bytes of a file, which has them, and padding.
pub(crate) fn append(here: Place<'_>, offset: u64, len: u32, reply: &mut Writer) -> Result {
    if len == 0 {
        return Ok(());
    }
    let size = len as usize;
    let mut filler = Filler {
        left: reply.space(size),
        failed: false,
    };
    here.export
        .tree
        .read(here.ino, offset, len, &mut |extent| filler.take(extent))?;
    if filler.failed || !filler.left.is_empty() {
        return Err(Status::IO);
    }
    reply.pad(size);
    Ok(())
}

/// Fills the space of a READ with extents.
struct Filler<'a> {
    left: &'a mut [u8],
    failed: bool,
}

impl Filler<'_> {
    fn take(&mut self, extent: Extent<'_>) {
        let len = match extent {
            Extent::Bytes(bytes) => bytes.len(),
            Extent::File { len, .. } | Extent::Zero(len) => len as usize,
        };
        let left = std::mem::take(&mut self.left);
        let Some((space, rest)) = left.split_at_mut_checked(len) else {
            self.failed = true;
            return;
        };
        self.left = rest;
        match extent {
            Extent::Bytes(bytes) => space.copy_from_slice(bytes),
            Extent::Zero(_) => space.fill(0),
            Extent::File { file, offset, .. } => {
                self.failed |= file.read_exact_at(space, offset).is_err();
            }
        }
    }
}
