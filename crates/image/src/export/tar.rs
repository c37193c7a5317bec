//! A version as a tar archive: ustar headers, and a pax header before each that cannot say all
//! (POSIX.1-2008, "pax Interchange Format"). The import's reader is the counterpart.

use std::io::{self, Write};
use std::path::Path;

use super::{BUFFER, base, copy, data_of};
use crate::error::{Error, Result};
use crate::import::Progress;
use crate::manifest::bad;
use crate::tree::{Attr, Kind, Mtime, StoredTree};
use crate::walk::{Visitor, walk};

const BLOCK: usize = 512;
/// Zeros count as a hole in units of this, aligned, wherever the store's file system has its holes:
/// one version has one archive.
const HOLE: u64 = 64 << 10;
/// Files with fewer bytes in holes are archived as they are, for readers that know no sparse files.
const HOLES_MIN: u64 = 1 << 20;
/// The most pieces of data that a sparse file is cut into; the last takes what is left.
const PIECES_MAX: usize = 1 << 16;
/// The largest numbers that the octal digits of a header can say.
const ID_MAX: u32 = 0o7_777_777;
const LONG_MAX: u64 = 0o77_777_777_777;

/// Writes a version as a tar archive (pax), not compressed: owners as numbers, times with
/// nanoseconds, extended attributes as `SCHILY.xattr.NAME`, hard links, and large holes as GNU tar's
/// sparse files (format 1.0). `path` is where `out` leads, for errors.
///
/// # Errors
/// [`Error::BadSource`] for a socket, which an archive cannot hold; [`Error::Io`] for what cannot be
/// read or written.
pub fn write(
    tree: &StoredTree,
    out: &mut dyn Write,
    path: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let mut writer = Writer {
        tree,
        out,
        path,
        buffer: vec![0; BUFFER],
    };
    let done = walk(tree, &mut writer, progress)?;
    put_end(writer.out)
        .and_then(|()| writer.out.flush())
        .map_err(Error::io("writing", path))?;
    Ok(done)
}

/// Writes the headers of a regular file that root owns.
pub fn put_file_head(out: &mut dyn Write, path: &[u8], size: u64) -> io::Result<()> {
    if size > LONG_MAX {
        let mut records = Vec::new();
        put_record(&mut records, b"size", size.to_string().as_bytes());
        put_pax(out, path, &records)?;
    }
    let mut header = Header::new(b'0', path);
    header.octal(100, 8, 0o644);
    header.octal(124, 12, if size > LONG_MAX { 0 } else { size });
    out.write_all(&header.finish())
}

/// Fills the last block of a content of this length.
pub fn put_padding(out: &mut dyn Write, len: u64) -> io::Result<()> {
    let padding = len.next_multiple_of(BLOCK as u64) - len;
    out.write_all(&[0; BLOCK][..padding as usize])
}

/// Ends an archive.
pub fn put_end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// Writes a header with records about the next one.
fn put_pax(out: &mut dyn Write, path: &[u8], records: &[u8]) -> io::Result<()> {
    let mut header = Header::new(b'x', &[b"PaxHeaders/", base(path)].concat());
    header.octal(100, 8, 0o644);
    header.octal(124, 12, records.len() as u64);
    out.write_all(&header.finish())?;
    out.write_all(records)?;
    put_padding(out, records.len() as u64)
}

struct Writer<'a> {
    tree: &'a StoredTree,
    out: &'a mut dyn Write,
    path: &'a Path,
    buffer: Vec<u8>,
}

/// What one entry's headers say.
struct Head<'a> {
    kind: u8,
    path: &'a [u8],
    attr: &'a Attr,
    target: &'a [u8],
    /// Bytes of data in the archive.
    archived: u64,
    /// The size of the whole file, where holes are left out.
    sparse_size: Option<u64>,
}

impl Visitor for Writer<'_> {
    fn enter(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let path = if path.is_empty() {
            b"./".to_vec()
        } else {
            [path, b"/"].concat()
        };
        self.head(&Head::new(b'5', &path, attr))
    }

    fn node(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        let kind = match attr.kind {
            Kind::File => return self.file(path, attr),
            Kind::Symlink => b'2',
            Kind::Character => b'3',
            Kind::Block => b'4',
            Kind::Fifo => b'6',
            Kind::Directory => b'5',
            Kind::Socket => return Err(bad(path, "a socket: a tar archive cannot hold one")),
        };
        let target = if kind == b'2' {
            self.tree.readlink(attr.nid)?
        } else {
            bytes::Bytes::new()
        };
        self.head(&Head {
            target: &target,
            ..Head::new(kind, path, attr)
        })
    }

    fn link(&mut self, path: &[u8], attr: &Attr, first: &[u8]) -> Result<()> {
        self.head(&Head {
            target: first,
            ..Head::new(b'1', path, attr)
        })
    }
}

impl Writer<'_> {
    fn file(&mut self, path: &[u8], attr: &Attr) -> Result<()> {
        if let Some(data) = self.sparse_map(path, attr)? {
            return self.sparse_file(path, attr, &data);
        }
        self.head(&Head {
            archived: attr.size,
            ..Head::new(b'0', path, attr)
        })?;
        self.content(path, attr, (0, attr.size))?;
        self.pad(attr.size)
    }

    fn sparse_file(&mut self, path: &[u8], attr: &Attr, data: &[(u64, u64)]) -> Result<()> {
        let mut map = format!("{}\n", data.len());
        for (offset, len) in data {
            map += &format!("{offset}\n{len}\n");
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let archived = map.len() as u64 + data.iter().map(|(_, len)| len).sum::<u64>();
        self.head(&Head {
            archived,
            sparse_size: Some(attr.size),
            ..Head::new(b'0', path, attr)
        })?;
        self.put(&map)?;
        for part in data {
            self.content(path, attr, *part)?;
        }
        self.pad(archived)
    }

    /// Where the data of a file with large holes lies; `None` for others.
    fn sparse_map(&mut self, path: &[u8], attr: &Attr) -> Result<Option<Vec<(u64, u64)>>> {
        if attr.size < HOLES_MIN {
            return Ok(None);
        }
        let mut map = Map::default();
        for (start, len) in data_of(self.tree, attr)? {
            // Whole units: what is read beyond the data are zeros, or was read before.
            let first = start - start % HOLE;
            let first = first.max(map.scanned);
            let end = (start + len).next_multiple_of(HOLE).min(attr.size);
            map.scanned = first;
            copy(
                self.tree,
                (path, attr.nid),
                (first, end.saturating_sub(first)),
                &mut self.buffer,
                &mut |piece| {
                    piece.chunks(HOLE as usize).for_each(|unit| map.add(unit));
                    Ok(())
                },
            )?;
        }
        let data: u64 = map.data.iter().map(|(_, len)| len).sum();
        if attr.size - data < HOLES_MIN {
            return Ok(None);
        }
        // The end is said by an empty piece, as GNU tar does it.
        if map.data.last().is_none_or(|(at, len)| at + len < attr.size) {
            map.data.push((attr.size, 0));
        }
        Ok(Some(map.data))
    }

    fn content(&mut self, path: &[u8], attr: &Attr, part: (u64, u64)) -> Result<()> {
        let (out, place) = (&mut self.out, self.path);
        let mut written = 0;
        copy(
            self.tree,
            (path, attr.nid),
            part,
            &mut self.buffer,
            &mut |piece| {
                written += piece.len() as u64;
                out.write_all(piece).map_err(Error::io("writing", place))
            },
        )?;
        if written == part.1 {
            Ok(())
        } else {
            Err(bad(path, format!("{written} bytes, expected {}", part.1)))
        }
    }

    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        let records = self.records(head)?;
        if !records.is_empty() {
            put_pax(self.out, head.path, &records).map_err(Error::io("writing", self.path))?;
        }
        self.put(&header_of(head).finish())
    }

    /// What the header cannot say, in an order that is always the same.
    fn records(&self, head: &Head<'_>) -> Result<Vec<u8>> {
        let mut records = Vec::new();
        let mut say = |key: &[u8], value: &[u8]| put_record(&mut records, key, value);
        let attr = head.attr;
        if let Some(size) = head.sparse_size {
            say(b"GNU.sparse.major", b"1");
            say(b"GNU.sparse.minor", b"0");
            say(b"GNU.sparse.name", head.path);
            say(b"GNU.sparse.realsize", size.to_string().as_bytes());
        } else if head.path.len() > 100 {
            say(b"path", head.path);
        }
        if head.target.len() > 100 {
            say(b"linkpath", head.target);
        }
        if head.archived > LONG_MAX {
            say(b"size", head.archived.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", attr.uid), (b"gid", attr.gid)] {
            if id > ID_MAX {
                say(key, id.to_string().as_bytes());
            }
        }
        if header_time(attr.mtime).is_none() {
            say(b"mtime", time_text(attr.mtime).as_bytes());
        }
        if head.kind != b'1' {
            for (name, value) in self.tree.xattrs(attr.nid)? {
                say(&xattr_key(&name), &value);
            }
        }
        Ok(records)
    }

    fn pad(&mut self, len: u64) -> Result<()> {
        put_padding(self.out, len).map_err(Error::io("writing", self.path))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(Error::io("writing", self.path))
    }
}

/// Where data was found so far.
#[derive(Default)]
struct Map {
    data: Vec<(u64, u64)>,
    scanned: u64,
}

impl Map {
    /// The next unit of a file, the last may be shorter.
    fn add(&mut self, unit: &[u8]) {
        let at = self.scanned;
        self.scanned += unit.len() as u64;
        if unit.iter().all(|byte| *byte == 0) {
            return;
        }
        let full = self.data.len() >= PIECES_MAX;
        match self.data.last_mut() {
            Some((start, len)) if full || *start + *len == at => *len = self.scanned - *start,
            _ => self.data.push((at, unit.len() as u64)),
        }
    }
}

impl<'a> Head<'a> {
    fn new(kind: u8, path: &'a [u8], attr: &'a Attr) -> Head<'a> {
        Head {
            kind,
            path,
            attr,
            target: b"",
            archived: 0,
            sparse_size: None,
        }
    }
}

fn header_of(head: &Head<'_>) -> Header {
    let attr = head.attr;
    let mut header = if head.sparse_size.is_some() {
        // What a reader without sparse files makes of it should not pass for the file itself.
        Header::new(head.kind, &[b"GNUSparseFile.0/", base(head.path)].concat())
    } else {
        Header::new(head.kind, head.path)
    };
    let id = |id: u32| u64::from(if id > ID_MAX { 0 } else { id });
    header.octal(100, 8, u64::from(attr.mode));
    header.octal(108, 8, id(attr.uid));
    header.octal(116, 8, id(attr.gid));
    let archived = Some(head.archived).filter(|size| *size <= LONG_MAX);
    header.octal(124, 12, archived.unwrap_or(0));
    let seconds = u64::try_from(attr.mtime.seconds).unwrap_or(0).min(LONG_MAX);
    header.octal(136, 12, seconds);
    header.text(157, 100, head.target);
    if matches!(head.kind, b'3' | b'4') {
        header.octal(329, 8, u64::from(attr.rdev.major));
        header.octal(337, 8, u64::from(attr.rdev.minor));
    }
    header
}

/// A block that describes an entry; offsets and lengths of fields are those of ustar.
struct Header([u8; BLOCK]);

impl Header {
    fn new(kind: u8, path: &[u8]) -> Header {
        let mut header = Header([0; BLOCK]);
        header.text(0, 100, path);
        header.octal(108, 8, 0);
        header.octal(116, 8, 0);
        header.octal(136, 12, 0);
        header.0[156] = kind;
        header.text(257, 8, b"ustar\x0000");
        header.octal(329, 8, 0);
        header.octal(337, 8, 0);
        header
    }

    /// As much of a text as fits.
    fn text(&mut self, at: usize, len: usize, text: &[u8]) {
        let len = text.len().min(len);
        self.0[at..at + len].copy_from_slice(&text[..len]);
    }

    /// A number that fits, in octal digits and a NUL.
    fn octal(&mut self, at: usize, len: usize, number: u64) {
        let digits = format!("{number:0width$o}\0", width = len - 1);
        self.text(at, len, digits.as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.text(148, 8, &[b' '; 8]);
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.octal(148, 7, sum);
        self.0
    }
}

/// `LENGTH KEY=VALUE\n`; the length counts its own digits.
fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() > len {
        len += 1;
    }
    out.extend(len.to_string().as_bytes());
    out.push(b' ');
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}

/// The key of an extended attribute; `%` and `=` in its name are written as GNU tar does it.
fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for byte in name {
        match byte {
            b'%' => key.extend(b"%25"),
            b'=' => key.extend(b"%3D"),
            byte => key.push(*byte),
        }
    }
    key
}

/// The seconds, where a header can say the whole time.
fn header_time(time: Mtime) -> Option<u64> {
    let seconds = u64::try_from(time.seconds).ok()?;
    (time.nanoseconds == 0 && seconds <= LONG_MAX).then_some(seconds)
}

/// Decimal seconds: one and a quarter before 1970 is `-1.25`.
fn time_text(time: Mtime) -> String {
    let (mut seconds, mut nanoseconds) = (i128::from(time.seconds), time.nanoseconds);
    let sign = if seconds < 0 { "-" } else { "" };
    if seconds < 0 {
        if nanoseconds > 0 {
            seconds += 1;
            nanoseconds = 1_000_000_000 - nanoseconds;
        }
        seconds = -seconds;
    }
    if nanoseconds == 0 {
        return format!("{sign}{seconds}");
    }
    let fraction = format!("{nanoseconds:09}");
    format!("{sign}{seconds}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::archive::Archive;

    #[test]
    fn times_before_1970() {
        let text = |seconds, nanoseconds| {
            time_text(Mtime {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(text(-2, 750_000_000), "-1.25");
        assert_eq!(text(-1, 750_000_000), "-0.25");
        assert_eq!(text(-3, 0), "-3");
        assert_eq!(text(5, 1), "5.000000001");
        assert_eq!(text(i64::MIN, 0), i64::MIN.to_string());
    }

    #[test]
    fn files_of_any_length_have_headers() -> io::Result<()> {
        for size in [0, 1, LONG_MAX, LONG_MAX + 1, 1 << 40] {
            let mut head = Vec::new();
            put_file_head(&mut head, b"blobs/x", size)?;
            let entry = Archive::new(&head[..]).next_entry()?.expect("an entry");
            assert_eq!((&entry.path[..], entry.size), (&b"blobs/x"[..], size));
        }
        Ok(())
    }

    #[test]
    fn records_count_their_own_digits() {
        for len in [1, 2, 5, 90, 91, 92, 93, 94, 95, 990, 991, 992, 9990] {
            let mut record = Vec::new();
            put_record(&mut record, b"k", &vec![b'v'; len]);
            let digits = record.split(|byte| *byte == b' ').next().expect("digits");
            let said: usize = std::str::from_utf8(digits).unwrap().parse().unwrap();
            assert_eq!(said, record.len());
        }
    }
}
