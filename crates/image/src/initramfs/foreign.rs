//! Initramfs that others made, dracut's for example: whether a kernel could unpack them.
//!
//! Panic contract: nothing here panics on any input.

use std::fmt;
use std::io::{self, Read, Write};

use wire::cpio;

/// Most bytes that one may unpack to.
const UNPACKED_BYTES_MAX: u64 = 4 << 30;

/// How an initramfs, or the last part of it, is compressed. In front of it may be archives that
/// are not, such as one with CPU microcode (initramfs-buffer-format.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Plain,
    /// `CONFIG_RD_GZIP`.
    Gzip,
    /// `CONFIG_RD_ZSTD`.
    Zstd,
    /// `CONFIG_RD_XZ`.
    Xz,
    /// `CONFIG_RD_LZ4`, the legacy frames of `lz4 -l`.
    Lz4,
    /// `CONFIG_RD_LZMA`.
    Lzma,
    /// `CONFIG_RD_LZO`.
    Lzo,
    /// `CONFIG_RD_BZIP2`.
    Bzip2,
}

/// What each begins with (lib/decompress.c of the kernel).
const MAGICS: [(&[u8], Encoding); 8] = [
    (b"\x1f\x8b", Encoding::Gzip),
    (b"\x1f\x9e", Encoding::Gzip),
    (b"\x28\xb5\x2f\xfd", Encoding::Zstd),
    (b"\xfd7zXZ\0", Encoding::Xz),
    (b"\x02\x21\x4c\x18", Encoding::Lz4),
    (b"\x5d\x00\x00", Encoding::Lzma),
    (b"\x89LZO", Encoding::Lzo),
    (b"BZh", Encoding::Bzip2),
];

impl Encoding {
    /// The kernel's option that must be `y` for it; `None` where all kernels unpack it.
    pub fn option(self) -> Option<&'static str> {
        Some(match self {
            Self::Plain => return None,
            Self::Gzip => "CONFIG_RD_GZIP",
            Self::Zstd => "CONFIG_RD_ZSTD",
            Self::Xz => "CONFIG_RD_XZ",
            Self::Lz4 => "CONFIG_RD_LZ4",
            Self::Lzma => "CONFIG_RD_LZMA",
            Self::Lzo => "CONFIG_RD_LZO",
            Self::Bzip2 => "CONFIG_RD_BZIP2",
        })
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// Why a file is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum NotInitramfs {
    /// It begins with neither an archive nor a compression that kernels know.
    #[error(
        "expected a cpio archive, plain or compressed with gzip, zstd, xz, lz4, lzma, lzo or bzip2, got bytes {got:02x?}"
    )]
    Unknown {
        /// The first bytes.
        got: Vec<u8>,
    },
    /// An archive in it is cut or damaged.
    #[error("its archive is damaged: {0}")]
    Archive(#[from] cpio::Error),
    /// Its compression is cut or damaged.
    #[error("its {encoding} data is damaged: {source}")]
    Damaged {
        /// The compression.
        encoding: Encoding,
        /// What the decompressor says.
        source: io::Error,
    },
    /// What is compressed is no archive.
    #[error("expected a cpio archive in its {encoding} data, got bytes {got:02x?}")]
    NoArchive {
        /// The compression.
        encoding: Encoding,
        /// The first bytes.
        got: Vec<u8>,
    },
    /// There is no archive with any file in it.
    #[error("expected a cpio archive with files in it, got none")]
    Empty,
}

/// Tells how an initramfs is compressed, after reading all of it; what is compressed with lz4,
/// lzma, lzo or bzip2 is believed to be an archive.
pub fn inspect(bytes: &[u8]) -> Result<Encoding, NotInitramfs> {
    let mut rest = bytes;
    let mut members = 0_usize;
    loop {
        let zeros = rest.iter().take_while(|byte| **byte == 0).count();
        rest = rest.get(zeros..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        if !rest.starts_with(b"0707") {
            return compressed(rest);
        }
        let mut archive = cpio::Reader::new(rest);
        for member in archive.by_ref() {
            member?;
            members += 1;
        }
        rest = archive.rest();
    }
    if members == 0 {
        return Err(NotInitramfs::Empty);
    }
    Ok(Encoding::Plain)
}

fn compressed(bytes: &[u8]) -> Result<Encoding, NotInitramfs> {
    let known = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic));
    let Some(&(_, encoding)) = known else {
        let got = bytes.iter().take(8).copied().collect();
        return Err(NotInitramfs::Unknown { got });
    };
    let mut head = Head::default();
    match unpack(encoding, bytes, &mut head) {
        None => return Ok(encoding),
        Some(Ok(())) => {}
        Some(Err(source)) => return Err(NotInitramfs::Damaged { encoding, source }),
    }
    if head.first.starts_with(b"07070") {
        return Ok(encoding);
    }
    let got = head.first;
    Err(NotInitramfs::NoArchive { encoding, got })
}

/// `None`: it takes a decompressor that we have not.
fn unpack(encoding: Encoding, mut bytes: &[u8], head: &mut Head) -> Option<io::Result<()>> {
    match encoding {
        Encoding::Gzip => Some(drain(flate2::read::GzDecoder::new(bytes), head)),
        Encoding::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(bytes);
            Some(decoder.and_then(|decoder| drain(decoder, head)))
        }
        Encoding::Xz => {
            let done = lzma_rs::xz_decompress(&mut bytes, head);
            Some(done.map_err(|error| match error {
                lzma_rs::error::Error::IoError(error) => error,
                other => io::Error::new(io::ErrorKind::InvalidData, format!("{other:?}")),
            }))
        }
        _ => None,
    }
}

fn drain(mut from: impl Read, to: &mut Head) -> io::Result<()> {
    io::copy(&mut from, to).map(drop)
}

/// Keeps the first bytes of what is written and bounds the rest.
#[derive(Default)]
struct Head {
    first: Vec<u8>,
    written: u64,
}

impl Write for Head {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let missing = 8_usize.saturating_sub(self.first.len());
        self.first.extend(part.iter().take(missing));
        self.written += part.len() as u64;
        if self.written > UNPACKED_BYTES_MAX {
            let expected = format!("expected at most {UNPACKED_BYTES_MAX} bytes unpacked");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, expected));
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(name: &str) -> Vec<u8> {
        let mut writer = cpio::Writer::new();
        let member = cpio::Member {
            name: name.as_bytes(),
            ino: 1,
            mode: cpio::S_IFREG | 0o755,
            uid: 0,
            gid: 0,
            nlink: 1,
            mtime: 0,
            rdev: (0, 0),
            data: &[7; 5000],
        };
        writer.push(&member).unwrap();
        writer.finish()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        lzma_rs::xz_compress(&mut &*bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn archives_are_known_plain_compressed_and_behind_microcode() {
        let plain = archive("init");
        let zstd = zstd::bulk::compress(&plain, 3).unwrap();
        for (bytes, expected) in [
            (plain.clone(), Encoding::Plain),
            (gzip(&plain), Encoding::Gzip),
            (zstd.clone(), Encoding::Zstd),
            (xz(&plain), Encoding::Xz),
        ] {
            assert_eq!(inspect(&bytes).unwrap(), expected);
            let microcode = archive("kernel/x86/microcode/GenuineIntel.bin");
            let behind = [&microcode[..], &[0; 512], &bytes].concat();
            assert_eq!(inspect(&behind).unwrap(), expected);
            // What the disk or a network left out is noticed.
            for cut in [bytes.len() / 2, bytes.len() - 5] {
                assert!(inspect(&bytes[..cut]).is_err(), "{expected}: {cut}");
            }
        }
        assert_eq!(
            inspect(b"\x02\x21\x4c\x18rest").unwrap(),
            Encoding::Lz4,
            "believed"
        );
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        let error = |bytes: &[u8]| inspect(bytes).unwrap_err().to_string();
        assert!(error(b"\x7fELF....").contains("got bytes [7f, 45, 4c, 46"));
        assert!(error(&gzip(b"just some text")).contains("in its gzip data"));
        assert!(error(b"").contains("got none"));
        assert!(error(&[0; 4096]).contains("got none"));
        assert!(error(&cpio::Writer::new().finish()).contains("got none"));
        let mut wild = archive("init");
        wild[10] = b'x';
        assert!(error(&wild).starts_with("its archive is damaged"));
    }
}
