//! A shell for `rd.break`: busybox, which brings its own libraries.
//!
//! Panic contract: nothing here panics on any input.

use std::path::Path;

use wire::cmdline::SHELL_PATH;

use super::module::FILE_BYTES_MAX;
use super::{Error, ExtraFile};
use crate::files::{Files, HostDir, Root};

/// Where distributions put it.
const PLACES: [&str; 5] = [
    "bin/busybox",
    "usr/bin/busybox",
    "sbin/busybox",
    "usr/sbin/busybox",
    "bin/busybox.static",
];

/// The busybox of the image, else of this machine.
pub fn shell(image: &dyn Files) -> Result<ExtraFile, Error> {
    shell_of(&[image, &HostDir::new("/")])
}

fn shell_of(sources: &[&dyn Files]) -> Result<ExtraFile, Error> {
    for files in sources {
        for path in PLACES.map(Path::new) {
            let read = Root::new(*files).read(path, FILE_BYTES_MAX);
            let Some(bytes) = read.map_err(Error::reading(path))? else {
                continue;
            };
            if is_static(&bytes) {
                return Ok(ExtraFile {
                    path: SHELL_PATH.to_owned(),
                    mode: 0o755,
                    bytes,
                });
            }
        }
    }
    Err(Error::NoShell)
}

/// Whether this is a program for x86-64 that asks for no dynamic loader (ELF-64 object file format,
/// version 1.5: PT_INTERP).
fn is_static(elf: &[u8]) -> bool {
    const EM_X86_64: u64 = 62;
    const PT_INTERP: u64 = 3;
    let number = |at: usize, width: usize| {
        let field = elf.get(at..at.checked_add(width)?)?;
        let value = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Some(field.iter().rev().fold(0, value))
    };
    let headers = || {
        let (at, bytes, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
        (0..count)
            .map(|index| number(usize::try_from(at.checked_add(index * bytes)?).ok()?, 4))
            .collect::<Option<Vec<u64>>>()
    };
    elf.starts_with(b"\x7fELF\x02\x01")
        && number(0x12, 2) == Some(EM_X86_64)
        && headers().is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with program headers of these types.
    fn elf(machine: u8, kinds: &[u8]) -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x12] = machine;
        elf[0x20] = 64;
        elf[0x36] = 56;
        elf[0x38] = kinds.len() as u8;
        for kind in kinds {
            let mut header = [0; 56];
            header[0] = *kind;
            elf.extend_from_slice(&header);
        }
        elf
    }

    #[test]
    fn only_a_program_that_needs_nothing_else_is_a_shell() {
        assert!(is_static(&elf(62, &[1, 1])));
        assert!(!is_static(&elf(62, &[6, 3, 1])), "wants a dynamic loader");
        assert!(!is_static(&elf(183, &[1])), "for arm64");
        assert!(!is_static(b"#!/bin/sh\n"));
        let whole = elf(62, &[1, 1]);
        for length in 0..whole.len() {
            is_static(&whole[..length]);
        }
        let mut wild = whole;
        wild[0x20..0x28].fill(0xff);
        assert!(!is_static(&wild));
    }

    #[test]
    fn the_image_goes_before_this_machine() {
        let (image, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let put = |top: &Path, path: &str, bytes: &[u8]| {
            std::fs::create_dir_all(top.join(path).parent().unwrap()).unwrap();
            std::fs::write(top.join(path), bytes).unwrap();
        };
        let found = || {
            let (image, host) = (HostDir::new(image.path()), HostDir::new(host.path()));
            shell_of(&[&image, &host]).map(|it| (it.path, it.bytes))
        };
        let error = found().unwrap_err().to_string();
        assert!(error.contains("busybox-static"), "{error}");
        put(image.path(), "bin/busybox", &elf(62, &[3, 1]));
        put(host.path(), "usr/sbin/busybox", &elf(62, &[1]));
        let of = |kinds: &[u8]| (SHELL_PATH.to_owned(), elf(62, kinds));
        assert_eq!(found().unwrap(), of(&[1]));
        put(image.path(), "bin/busybox", &elf(62, &[1, 1]));
        assert_eq!(found().unwrap(), of(&[1, 1]));
    }
}
