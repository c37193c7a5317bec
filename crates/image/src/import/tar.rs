//! A tar archive as a source: ustar, GNU and pax, plain or compressed.
//!
//! Later entries replace earlier ones, as if the archive were unpacked. Nothing is unpacked:
//! names lead into the canonical tree and cannot leave it. Times have the precision that the
//! archive has: whole seconds unless it was written with `--format=pax`.

use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;

use tar::{Archive, Entry, EntryType};

use super::{Progress, SkipReason, Skipped};
use crate::error::{Error, Result, shown};
use crate::manifest::{Content, Manifest, Meta, Node, bad, empty_directory, is_kept_xattr};
use crate::store::session::{Plain, Session};
use crate::tree::{Device, Mtime};

/// Reads an archive into a manifest, contents into the session.
pub fn read(
    source: impl Read,
    session: &mut Session,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Manifest, Vec<Skipped>)> {
    let mut archive = Archive::new(decompressed(source).map_err(broken)?);
    let mut import = Import {
        tree: Manifest::new(),
        skipped: Vec::new(),
        done: Progress::default(),
        session,
    };
    for entry in archive.entries().map_err(broken)? {
        import.entry(entry.map_err(broken)?)?;
        progress(import.done);
    }
    if import.done.files == 0 {
        return Err(bad(b"tar archive", "it is empty"));
    }
    Ok((import.tree, import.skipped))
}

struct Import<'a> {
    tree: Manifest,
    skipped: Vec<Skipped>,
    done: Progress,
    session: &'a mut Session,
}

/// What a pax header says over the entry's own.
#[derive(Default)]
struct Pax {
    mtime: Option<Mtime>,
    uid: Option<u32>,
    gid: Option<u32>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Import<'_> {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<()> {
        let path = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        let pax = pax_of(&mut entry, &path)?;
        let meta = self.meta(&entry, &path, pax)?;
        let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        let link = |path: &[u8]| {
            target
                .clone()
                .ok_or_else(|| bad(path, "a link without a target"))
        };
        self.done.files += 1;
        let content = match kind {
            EntryType::Directory => return self.put(&path, empty_directory(meta)),
            EntryType::Link => return self.hard_link(&path, &link(&path)?),
            EntryType::Symlink => Content::Symlink(link(&path)?),
            EntryType::Char => Content::Character(device(&entry, &path)?),
            EntryType::Block => Content::Block(device(&entry, &path)?),
            EntryType::Fifo => Content::Fifo,
            kind if kind.is_file()
                || kind == EntryType::GNUSparse
                || kind == EntryType::Continuous =>
            {
                self.done.bytes += entry.size();
                let name = shown(&path);
                self.session.add(Path::new(&name), &mut Plain(&mut entry))?
            }
            EntryType::XGlobalHeader => return Ok(()),
            kind => {
                return Err(bad(
                    &path,
                    format!("an entry of the unknown type {:?}", kind.as_byte() as char),
                ));
            }
        };
        self.put(&path, Node { meta, content })
    }

    fn put(&mut self, path: &[u8], node: Node) -> Result<()> {
        match self.tree.make_parents(path)? {
            Some((parent, name)) => self.tree.add(parent, name, node).map(|_| ()),
            None if matches!(node.content, Content::Directory(_)) => {
                self.tree.set_root(node.meta);
                Ok(())
            }
            None => Err(bad(path, "the root is no directory")),
        }
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let missing = || {
            bad(
                path,
                format!("a hard link to {}, which is not there", shown(target)),
            )
        };
        let id = self.tree.find(target)?.ok_or_else(missing)?;
        let (parent, name) = self
            .tree
            .make_parents(path)?
            .ok_or_else(|| bad(path, "the root as a link"))?;
        self.tree.link(parent, name, id)
    }

    fn meta(&mut self, entry: &Entry<'_, impl Read>, path: &[u8], pax: Pax) -> Result<Meta> {
        let header = entry.header();
        let wrong = |what: &str| bad(path, format!("its {what} cannot be read"));
        let id = |own: io::Result<u64>, what| {
            own.ok()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| wrong(what))
        };
        let mode = match header.entry_type() {
            EntryType::Symlink => 0o777,
            _ => header.mode().map_err(|_| wrong("mode"))? as u16 & 0o7777,
        };
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Mtime {
                seconds: number(&header.as_old().mtime).ok_or_else(|| wrong("time"))?,
                nanoseconds: 0,
            },
        };
        let mut meta = Meta {
            mode,
            uid: pax.uid.map_or_else(|| id(header.uid(), "owner"), Ok)?,
            gid: pax.gid.map_or_else(|| id(header.gid(), "group"), Ok)?,
            mtime,
            ..Meta::default()
        };
        for (name, value) in pax.xattrs {
            if is_kept_xattr(&name) {
                meta.xattrs.insert(name, value);
            } else {
                let path = crate::manifest::components(path)
                    .collect::<Vec<_>>()
                    .join(&b'/');
                self.skipped.push(Skipped {
                    path,
                    why: SkipReason::Attribute(shown(&name)),
                });
            }
        }
        Ok(meta)
    }
}

fn pax_of(entry: &mut Entry<'_, impl Read>, path: &[u8]) -> Result<Pax> {
    let mut pax = Pax::default();
    let Some(extensions) = entry.pax_extensions().map_err(broken)? else {
        return Ok(pax);
    };
    for extension in extensions {
        let extension = extension.map_err(broken)?;
        let (key, value) = (extension.key_bytes(), extension.value_bytes());
        let text =
            || std::str::from_utf8(value).map_err(|_| bad(path, "a pax header that is no text"));
        let id = || {
            text()?
                .parse()
                .map_err(|_| bad(path, "a pax header with a wrong owner"))
        };
        match key {
            b"mtime" => {
                pax.mtime = Some(
                    decimal_time(text()?)
                        .ok_or_else(|| bad(path, "a pax header with a wrong time"))?,
                );
            }
            b"uid" => pax.uid = Some(id()?),
            b"gid" => pax.gid = Some(id()?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    pax.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(pax)
}

/// A time as pax writes it: seconds, perhaps negative, with a fraction of any length.
fn decimal_time(text: &str) -> Option<Mtime> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Mtime {
            seconds: seconds.checked_sub(1)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        });
    }
    Some(Mtime {
        seconds,
        nanoseconds,
    })
}

/// A number of a tar header: octal digits, or GNU's base 256, which may be negative.
fn number(field: &[u8; 12]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let sign = if field[0] == 0xff { -1 } else { 0 };
        return Some(
            field[4..]
                .iter()
                .fold(sign, |value, byte| value << 8 | i64::from(*byte)),
        );
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() {
        Some(0)
    } else {
        i64::from_str_radix(text, 8).ok()
    }
}

fn device(entry: &Entry<'_, impl Read>, path: &[u8]) -> Result<Device> {
    let part = |part: io::Result<Option<u32>>| {
        part.ok()
            .flatten()
            .ok_or_else(|| bad(path, "no device number"))
    };
    Ok(Device {
        major: part(entry.header().device_major())?,
        minor: part(entry.header().device_minor())?,
    })
}

/// The archive behind its compression, told by its first bytes.
fn decompressed<'r>(source: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut source = BufReader::with_capacity(1 << 18, source);
    let magic = source.fill_buf()?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(source)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(unxz(source)?),
        _ => Box::new(source),
    })
}

/// xz has no streaming decoder in pure Rust: the archive passes through an unnamed file.
fn unxz(mut source: impl io::BufRead) -> io::Result<impl Read> {
    let mut unpacked = tempfile::tempfile()?;
    let mut out = io::BufWriter::new(&mut unpacked);
    lzma_rs::xz_decompress(&mut source, &mut out)
        .map_err(|error| io::Error::other(format!("{error:?}")))?;
    io::Write::flush(&mut out)?;
    drop(out);
    io::Seek::rewind(&mut unpacked)?;
    Ok(BufReader::new(unpacked))
}

fn broken(error: io::Error) -> Error {
    Error::Io {
        doing: "reading",
        path: "tar archive".into(),
        source: error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_pax_headers() {
        let time = |seconds, nanoseconds| {
            Some(Mtime {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(
            decimal_time("1700000000.123456789"),
            time(1_700_000_000, 123_456_789)
        );
        assert_eq!(decimal_time("5"), time(5, 0));
        assert_eq!(decimal_time("5.5"), time(5, 500_000_000));
        assert_eq!(decimal_time("-1.25"), time(-2, 750_000_000));
        assert_eq!(decimal_time("-0.25"), time(-1, 750_000_000));
        assert_eq!(decimal_time("x"), None);
        assert_eq!(decimal_time("1.-5"), None);
    }

    #[test]
    fn numbers_of_headers() {
        assert_eq!(number(b"00000000012\0"), Some(10));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(b"junk\0\0\0\0\0\0\0\0"), None);
    }
}
