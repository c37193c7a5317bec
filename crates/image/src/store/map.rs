//! The one place where a file is mapped into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a whole file, which must never change: an object of the store.
pub fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: objects are written under another name, made durable, and renamed; from then on
    // nothing writes to them or cuts them, and removing one leaves the mapping intact.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}
