//! The content of a boot file as the pages of a sealed file without a name: whoever sends it from
//! memory and whoever has the kernel send it (sendfile(2)) use the same ones.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use engine::Digest;
use memmap2::Mmap;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use sha2::{Digest as _, Sha256};

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
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals)?;
    // SAFETY: the seals keep everybody from changing or cutting the file, for ever.
    let map = unsafe { Mmap::map(&file)? };
    Ok((file, map))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_piece_is_found_in_the_file_and_nothing_else_is() {
        let content: Vec<u8> = (0..10_000_u32).map(|it| (it % 251) as u8).collect();
        let blob = Blob::new(content.clone().into());
        assert_eq!(blob[..], content[..]);
        let (file, offset) = blob.place_of(&blob.bytes()[100..9000]).unwrap();
        let mut read = vec![0; 8900];
        file.read_exact_at(&mut read, offset).unwrap();
        assert_eq!(read, content[100..9000]);
        assert!(blob.place_of(&content[100..200]).is_none(), "a copy");
        assert!(blob.place_of(&[]).is_none());
        assert!(file.write_all_at(b"x", 0).is_err(), "it can be changed");
    }

    #[test]
    fn nothing_and_what_stays_in_memory_have_no_place() {
        let blob = Blob::in_memory(Bytes::from_static(b"bytes"));
        assert!(blob.place_of(blob.bytes()).is_none());
        assert!(Blob::new(Bytes::new()).is_empty());
    }
}
