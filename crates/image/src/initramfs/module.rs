//! One module's file: taken out of its compression, and what it says about itself.
//!
//! Panic contract: nothing here panics on any input.

use std::io::{self, Read as _};
use std::path::Path;

/// Most bytes of a module or a firmware file, decompressed.
pub(super) const FILE_BYTES_MAX: u64 = 256 << 20;

/// Takes a file out of the compression that its name tells of. A signature after a module's end stays where it is.
pub(super) fn decompress(path: &Path, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => unxz(&bytes),
        Some("zst") => read_limited(zstd::stream::read::Decoder::with_buffer(bytes.as_slice())?),
        Some("gz") => read_limited(flate2::read::MultiGzDecoder::new(bytes.as_slice())),
        _ => Ok(bytes),
    }
}

/// Names of the firmware files that a module may ask for.
pub(super) fn firmware_of(module: &[u8]) -> Vec<String> {
    let fields = section(module, b".modinfo")
        .unwrap_or_default()
        .split(|&byte| byte == 0);
    fields
        .filter_map(|field| field.strip_prefix(b"firmware="))
        .filter_map(|name| std::str::from_utf8(name).ok())
        .map(str::to_owned)
        .collect()
}

/// Whether this is an ELF file for a 64-bit little-endian machine, as every module of a supported kernel is.
pub(super) fn is_module(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01")
}

fn unxz(mut bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Limited { bytes: Vec::new() };
    lzma_rs::xz_decompress(&mut bytes, &mut out).map_err(|error| match error {
        lzma_rs::error::Error::IoError(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, format!("{other:?}")),
    })?;
    Ok(out.bytes)
}

fn read_limited(reader: impl io::Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(FILE_BYTES_MAX + 1).read_to_end(&mut out)?;
    if out.len() as u64 > FILE_BYTES_MAX {
        Err(too_large())
    } else {
        Ok(out)
    }
}

struct Limited {
    bytes: Vec<u8>,
}

impl io::Write for Limited {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + part.len()) as u64 > FILE_BYTES_MAX {
            return Err(too_large());
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_large() -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("expected at most {FILE_BYTES_MAX} bytes decompressed"),
    )
}

/// The bytes of a section of a 64-bit little-endian ELF file (ELF-64 object file format, version 1.5).
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !is_module(elf) {
        return None;
    }
    let table = usize::try_from(number(elf, 0x28, 8)?).ok()?;
    let entry_bytes = number(elf, 0x3a, 2)? as usize;
    let count = number(elf, 0x3c, 2)? as usize;
    let names_index = number(elf, 0x3e, 2)? as usize;
    let header = |index: usize| elf.get(table.checked_add(index * entry_bytes)?..);
    let names = content(elf, header(names_index)?)?;
    (0..count).filter_map(header).find_map(|header| {
        let start = number(header, 0, 4)? as usize;
        let found = names.get(start..)?.split(|&byte| byte == 0).next()?;
        (found == name).then(|| content(elf, header)).flatten()
    })
}

fn content<'a>(elf: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let offset = usize::try_from(number(header, 0x18, 8)?).ok()?;
    let bytes = usize::try_from(number(header, 0x20, 8)?).ok()?;
    elf.get(offset..offset.checked_add(bytes)?)
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at + width)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use super::*;

    /// The smallest ELF file with a `.modinfo` section.
    pub(crate) fn elf_with(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (names_at, info_at) = (64, 64 + names.len());
        let table_at = info_at + modinfo.len();
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x12] = 62;
        elf[0x28..0x30].copy_from_slice(&(table_at as u64).to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[64, 0, 2, 0, 1, 0]);
        elf.extend_from_slice(names);
        elf.extend_from_slice(modinfo);
        for (name, at, bytes) in [(1u32, info_at, modinfo.len()), (10, names_at, names.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(bytes as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
    }

    #[test]
    fn firmware_is_read_from_modinfo() {
        let elf = elf_with(b"license=GPL\0firmware=tigon/tg3.bin\0firmware=tigon/tg3_tso.bin\0");
        assert_eq!(firmware_of(&elf), ["tigon/tg3.bin", "tigon/tg3_tso.bin"]);
    }

    #[test]
    fn no_truncation_panics() {
        let elf = elf_with(b"firmware=a\0");
        (0..elf.len()).for_each(|length| drop(firmware_of(&elf[..length])));
        let mut wild = elf;
        wild[0x28..0x30].fill(0xff);
        assert_eq!(firmware_of(&wild), [""; 0]);
    }

    #[test]
    fn every_compression_is_undone() {
        let plain = elf_with(b"license=GPL\0").repeat(10);
        let zst = zstd::bulk::compress(&plain, 3).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        let mut xz = Vec::new();
        lzma_rs::xz_compress(&mut plain.as_slice(), &mut xz).unwrap();
        for (name, bytes) in [
            ("a.ko", plain.clone()),
            ("a.ko.zst", zst),
            ("a.ko.gz", gz.finish().unwrap()),
            ("a.ko.xz", xz),
        ] {
            assert_eq!(decompress(Path::new(name), bytes).unwrap(), plain, "{name}");
        }
        for name in ["a.ko.zst", "a.ko.gz", "a.ko.xz"] {
            assert!(
                decompress(Path::new(name), b"nonsense".to_vec()).is_err(),
                "{name}"
            );
        }
    }
}
