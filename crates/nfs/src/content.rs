//! The content of files and symbolic links in replies.

use std::io::{self, Read, Write};
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

/// Appends `len` bytes of a file, which has them, and padding. With `copied`, nothing is sent from
/// where it is mapped: what cannot be read is found out now, and not when the reply is under way.
pub(crate) fn append(
    here: Place<'_>,
    offset: u64,
    len: u32,
    copied: bool,
    reply: &mut Writer,
) -> Result {
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
            Extent::Held(bytes) if copied => {
                failed |= copy_held(&bytes, reply.space(bytes.len())).is_err();
            }
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

/// Copies what may be the mapping of a file that is not whole any more. Touching it would end the
/// process then; a pipe has the kernel read it, which answers with an error.
fn copy_held(held: &[u8], space: &mut [u8]) -> io::Result<()> {
    /// Fits the smallest pipe that Linux makes, at any alignment.
    const CHUNK_LEN: usize = 2048;
    let (mut reader, mut writer) = io::pipe()?;
    for (from, to) in held.chunks(CHUNK_LEN).zip(space.chunks_mut(CHUNK_LEN)) {
        writer.write_all(from)?;
        reader.read_exact(to)?;
    }
    Ok(())
}
