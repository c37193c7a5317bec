//! The content of a boot file as the pages of a sealed file without a name: whoever sends it from
//! memory and whoever has the kernel send it (sendfile(2)) use the same ones.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Deref;
use std::ptr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use engine::Digest;
use memmap2::{Mmap, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use sha2::{Digest as _, Sha256};

/// A huge page of 64-bit x86, and of 64-bit ARM with pages of 4 kB.
const HUGE_BYTES: usize = 2 << 20;
/// Of Linux's `asm-generic/mman-common.h`; `libc` has it for some C libraries only.
const MADV_COLLAPSE: libc::c_int = 25;

/// Content that never changes; a clone shares it.
#[derive(Clone, Debug)]
pub struct Blob {
    bytes: Bytes,
    /// Where the same bytes are; `None` = in memory only.
    file: Option<Arc<File>>,
    digest: Arc<OnceLock<Digest>>,
}

impl Blob {
    /// Keeps content in a file of its own; in memory where the kernel makes none.
    pub fn new(content: Bytes) -> Blob {
        match sealed(&content) {
            Ok((file, map)) => Blob {
                bytes: Bytes::from_owner(map),
                file: Some(Arc::new(file)),
                digest: Arc::default(),
            },
            Err(error) => {
                tracing::debug!(%error, "a boot file is sent from memory");
                Blob::in_memory(content)
            }
        }
    }

    /// Keeps content where it is: for little, which is sent once.
    pub fn in_memory(bytes: Bytes) -> Blob {
        Blob {
            bytes,
            file: None,
            digest: Arc::default(),
        }
    }

    /// All of it.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The SHA-256 of all of it, made when it is first asked for: milliseconds for each megabyte.
    pub fn digest(&self) -> Digest {
        let made = || Digest(Sha256::digest(&self.bytes).into());
        *self.digest.get_or_init(made)
    }

    /// The file that holds `part` and where it begins there, if `part` is a piece of this very
    /// memory.
    pub fn place_of(&self, part: &[u8]) -> Option<(&File, u64)> {
        let offset = part
            .as_ptr()
            .addr()
            .checked_sub(self.bytes.as_ptr().addr())?;
        let is_inside = !part.is_empty() && offset.checked_add(part.len())? <= self.bytes.len();
        let file = self.file.as_deref()?;
        is_inside.then_some((file, offset as u64))
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

fn sealed(content: &[u8]) -> io::Result<(File, Mmap)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("boot-file", flags)?);
    file.write_all(content)?;
    if let Err(error) = in_huge_pages(&file, content.len()) {
        tracing::debug!(%error, "a boot file stays in small pages");
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals)?;
    // Not as shared pages: before 6.7, Linux takes that of a sealed file for the wish to write.
    // SAFETY: the seals keep everybody from changing or cutting the file, for ever.
    let map = unsafe { MmapOptions::new().map_copy_read_only(&file)? };
    Ok((file, map))
}

/// Has the kernel keep each [`HUGE_BYTES`] of a memory file in one page (`MADV_COLLAPSE` of madvise(2),
/// Linux 6.1), whatever `shmem_enabled` says of files that do not ask. The last page is whole, too: it
/// costs memory behind the file's end, which has no length there.
fn in_huge_pages(file: &File, bytes: usize) -> io::Result<()> {
    if bytes < HUGE_BYTES {
        return Ok(());
    }
    let bytes = bytes.next_multiple_of(HUGE_BYTES);
    let reserved = bytes + HUGE_BYTES;
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    // SAFETY: the file is mapped at a huge page's boundary within addresses that are reserved for it,
    // nobody reads it there, and nothing of either mapping is left.
    unsafe {
        let none = ProtFlags::empty();
        let start = mmap_anonymous(ptr::null_mut(), reserved, none, MapFlags::PRIVATE)?;
        let aligned = start.byte_add(start.align_offset(HUGE_BYTES));
        let result = match mmap(aligned, bytes, ProtFlags::READ, flags, file, 0) {
            Ok(mapped) if libc::madvise(mapped, bytes, MADV_COLLAPSE) == 0 => Ok(()),
            Ok(_) => Err(io::Error::last_os_error()),
            Err(error) => Err(error.into()),
        };
        munmap(start, reserved)?;
        result
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_piece_is_found_in_the_file_and_nothing_else_is() {
        // One that takes no huge page, and one that takes three, the last for its end.
        for size in [10_000, 2 * HUGE_BYTES + 10_000] {
            let content: Vec<u8> = (0..size).map(|it| (it % 251) as u8).collect();
            let blob = Blob::new(content.clone().into());
            assert!(blob[..] == content[..]);
            let part = 100..size - 1000;
            let (file, offset) = blob.place_of(&blob.bytes()[part.clone()]).unwrap();
            let mut read = vec![0; part.len()];
            file.read_exact_at(&mut read, offset).unwrap();
            assert!(read == content[part]);
            assert!(blob.place_of(&content[100..200]).is_none(), "a copy");
            assert!(blob.place_of(&[]).is_none());
            assert!(file.write_all_at(b"x", 0).is_err(), "it can be changed");
            assert!(file.set_len(0).is_err(), "it can be cut");
        }
    }

    #[test]
    fn nothing_and_what_stays_in_memory_have_no_place() {
        let blob = Blob::in_memory(Bytes::from_static(b"bytes"));
        assert!(blob.place_of(blob.bytes()).is_none());
        assert!(Blob::new(Bytes::new()).is_empty());
    }
}
