//! Reads the tar formats: v7, ustar, GNU (long names, sparse, base 256) and pax (POSIX.1-2008,
//! "pax Interchange Format"), with the sparse files of GNU's three pax forms.
//!
//! Panic contract: no archive makes this panic, or hold more than [`HEADER_MAX`] bytes of one
//! header in memory.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};

use crate::manifest::SIZE_MAX;
use crate::store::session::{Piece, Source};
use crate::tree::{Device, Mtime};

const BLOCK: usize = 512;
/// The most that a long name or a pax header may have, in bytes.
pub const HEADER_MAX: u64 = 8 << 20;
/// The most pieces of data that one sparse file may have.
const SEGMENTS_MAX: usize = 1 << 20;

/// An entry: all of its headers together.
#[derive(Debug)]
pub struct Entry {
    /// The path as it was archived.
    pub path: Vec<u8>,
    /// The type's letter; `0` for every kind of regular file.
    pub kind: u8,
    /// Permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Mtime,
    /// The target of a link.
    pub target: Vec<u8>,
    /// The device of a device node.
    pub device: Device,
    /// Bytes of content, holes included.
    pub size: u64,
    /// Names and values of extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive. Reads one entry after the other.
pub struct Archive<R> {
    source: R,
    /// Bytes of the current entry's data that were not read, and of the padding after them.
    left: u64,
    padding: u64,
    /// Where the current entry's data lies in its file: offset and length.
    segments: std::vec::IntoIter<(u64, u64)>,
    segment: (u64, u64),
    position: u64,
    size: u64,
    global: Pax,
}

/// Where a sparse file's data lies (offset, length), and the size of the whole file.
type SparseMap = (Vec<(u64, u64)>, u64);

/// Records of a pax header.
type Pax = BTreeMap<Vec<u8>, Vec<u8>>;

/// Headers that come before the one they are about.
#[derive(Default)]
struct Ahead {
    pax: Pax,
    sparse: Vec<(u64, u64)>,
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    /// The archive in a stream.
    pub fn new(source: R) -> Archive<R> {
        Archive {
            source,
            left: 0,
            padding: 0,
            segments: Vec::new().into_iter(),
            segment: (0, 0),
            position: 0,
            size: 0,
            global: Pax::new(),
        }
    }

    /// The next entry; its content is then read through [`Source`]. `None` at the end.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        self.skip_rest()?;
        let mut ahead = Ahead {
            pax: self.global.clone(),
            ..Ahead::default()
        };
        while let Some(header) = self.header()? {
            let archived = header
                .number(124, 12)
                .and_then(|size| u64::try_from(size).ok());
            let archived = archived.ok_or_else(|| wrong("a header with a wrong size"))?;
            match header.0[156] {
                b'x' => parse_pax(&self.long(archived)?, &mut ahead.pax, &mut ahead.sparse)?,
                b'g' => {
                    let text = self.long(archived)?;
                    parse_pax(&text, &mut self.global, &mut Vec::new())?;
                    parse_pax(&text, &mut ahead.pax, &mut Vec::new())?;
                }
                b'L' => ahead.path = Some(until_nul(&self.long(archived)?)),
                b'K' => ahead.target = Some(until_nul(&self.long(archived)?)),
                _ => return self.entry(&header, archived, ahead).map(Some),
            }
        }
        Ok(None)
    }

    fn entry(&mut self, header: &Header, archived: u64, mut ahead: Ahead) -> io::Result<Entry> {
        let pax = &ahead.pax;
        let path = pax
            .get(b"path".as_slice())
            .cloned()
            .or(ahead.path)
            .unwrap_or_else(|| header.path());
        let path = pax
            .get(b"GNU.sparse.name".as_slice())
            .cloned()
            .unwrap_or(path);
        let kind = match header.0[156] {
            0 | b'0' | b'7' if path.ends_with(b"/") => b'5',
            0 | b'0' | b'7' | b'S' => b'0',
            kind => kind,
        };
        let archived = pax_number(pax, "size")?.unwrap_or(archived);
        let id = |key, at| match pax_number(pax, key)? {
            Some(id) => u32::try_from(id).map_err(|_| wrong("an owner's number that is too large")),
            None => header
                .number(at, 8)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| wrong("a wrong owner")),
        };
        let mtime = match pax.get(b"mtime".as_slice()) {
            Some(text) => {
                decimal_time(text).ok_or_else(|| wrong("a pax header with a wrong time"))?
            }
            None => {
                let seconds = header
                    .number(136, 12)
                    .ok_or_else(|| wrong("a header with a wrong time"))?;
                Mtime {
                    seconds,
                    nanoseconds: 0,
                }
            }
        };
        let mut entry = Entry {
            path,
            kind,
            mode: header
                .number(100, 8)
                .ok_or_else(|| wrong("a header with a wrong mode"))? as u16
                & 0o7777,
            uid: id("uid", 108)?,
            gid: id("gid", 116)?,
            mtime,
            target: pax
                .get(b"linkpath".as_slice())
                .cloned()
                .or(ahead.target)
                .unwrap_or_else(|| header.text(157, 100)),
            device: header.device(kind)?,
            size: 0,
            xattrs: xattrs_of(pax),
        };
        if kind != b'0' {
            // Other kinds have no data, whatever size they claim, as in GNU tar and Python.
            return Ok(entry);
        }
        if archived > SIZE_MAX {
            return Err(wrong("a file that is too large"));
        }
        self.left = archived;
        self.padding = archived.next_multiple_of(BLOCK as u64) - archived;
        let sparse = self.sparse_map(header, &ahead.pax, std::mem::take(&mut ahead.sparse))?;
        let (segments, size) = sparse.unwrap_or_else(|| (vec![(0, archived)], archived));
        check_segments(&segments, size, self.left)?;
        entry.size = size;
        self.size = size;
        self.position = 0;
        self.segments = segments.into_iter();
        self.segment = (0, 0);
        Ok(entry)
    }

    /// Where a sparse file's data lies, and the file's size; `None` for other files.
    fn sparse_map(
        &mut self,
        header: &Header,
        pax: &Pax,
        listed: Vec<(u64, u64)>,
    ) -> io::Result<Option<SparseMap>> {
        if header.0[156] == b'S' {
            return self.gnu_sparse_map(header).map(Some);
        }
        let real = match pax_number(pax, "GNU.sparse.realsize")? {
            None => pax_number(pax, "GNU.sparse.size")?,
            real => real,
        };
        let Some(real) = real else { return Ok(None) };
        if pax
            .get(b"GNU.sparse.major".as_slice())
            .is_some_and(|major| major == b"1")
        {
            return Ok(Some((self.map_in_data()?, real)));
        }
        let Some(map) = pax.get(b"GNU.sparse.map".as_slice()) else {
            return Ok(Some((listed, real)));
        };
        let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(decimal).collect();
        let numbers = numbers.ok_or_else(|| wrong("a wrong map of a sparse file"))?;
        Ok(Some((
            numbers
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect(),
            real,
        )))
    }

    /// The old GNU form: four segments in the header, more in blocks that follow it.
    fn gnu_sparse_map(&mut self, header: &Header) -> io::Result<SparseMap> {
        let mut segments = Vec::new();
        let mut block = Header(header.0);
        let (mut at, mut count, mut more) = (386, 4, 482);
        loop {
            for place in (at..).step_by(24).take(count) {
                let number = |at| {
                    block
                        .number(at, 12)
                        .and_then(|number| u64::try_from(number).ok())
                };
                let (Some(offset), Some(len)) = (number(place), number(place + 12)) else {
                    return Err(wrong("a wrong map of a sparse file"));
                };
                if len > 0 {
                    segments.push((offset, len));
                }
            }
            if block.0[more] == 0 {
                break;
            }
            if segments.len() > SEGMENTS_MAX {
                return Err(wrong("a sparse file of too many pieces"));
            }
            self.source.read_exact(&mut block.0)?;
            (at, count, more) = (0, 21, 504);
        }
        let real = header
            .number(483, 12)
            .and_then(|size| u64::try_from(size).ok());
        Ok((
            segments,
            real.ok_or_else(|| wrong("a sparse file with a wrong size"))?,
        ))
    }

    /// The form of pax 1.0: decimal lines at the start of the data, padded to a block.
    fn map_in_data(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let mut lines = Lines {
            archive: self,
            block: [0; BLOCK],
            at: BLOCK,
        };
        let count = lines.number()?;
        if count > SEGMENTS_MAX as u64 {
            return Err(wrong("a sparse file of too many pieces"));
        }
        (0..count)
            .map(|_| Ok((lines.number()?, lines.number()?)))
            .collect()
    }

    /// The next header; `None` at the end of the archive, which may lack its zero blocks.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header([0; BLOCK]);
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut header.0[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if header.0 == [0; BLOCK] {
            return Ok(None);
        }
        if header.checksum_is_right() {
            Ok(Some(header))
        } else {
            Err(wrong("not a tar header, or a damaged one"))
        }
    }

    /// The data of a header that is about the next one.
    fn long(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > HEADER_MAX {
            return Err(wrong("a header that is too long"));
        }
        let mut text = vec![0; size.next_multiple_of(BLOCK as u64) as usize];
        self.source.read_exact(&mut text)?;
        text.truncate(size as usize);
        Ok(text)
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.source.by_ref().take(rest), &mut io::sink())?;
        if skipped == rest {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl<R: Read + Seek> Archive<R> {
    /// Steps over the data of the regular file that was read last. Where it lies in the archive:
    /// offset and length; `None` for a sparse file.
    pub fn step_over(&mut self) -> io::Result<Option<(u64, u64)>> {
        let at = self.source.stream_position()?;
        let (len, rest) = (self.left, self.left + self.padding);
        let is_plain = self.segments.as_slice() == [(0, len)];
        (self.left, self.padding) = (0, 0);
        let rest = i64::try_from(rest).map_err(|_| wrong("a file that is too large"))?;
        self.source.seek_relative(rest)?;
        Ok(is_plain.then_some((at, len)))
    }
}

impl<R: Read> Source for Archive<R> {
    fn next(&mut self, buffer: &mut [u8]) -> io::Result<Piece> {
        if self.segment.1 == 0 {
            self.segment = self.segments.next().unwrap_or((self.size, 0));
        }
        let (offset, len) = self.segment;
        if offset > self.position {
            let hole = offset - self.position;
            self.position = offset;
            return Ok(Piece::Hole(hole));
        }
        if len == 0 {
            return if self.position >= self.size {
                Ok(Piece::End)
            } else {
                self.next(buffer)
            };
        }
        let wanted = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        let read = self.source.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = read as u64;
        self.position += count;
        self.left -= count;
        self.segment = (offset + count, len - count);
        Ok(Piece::Data(read))
    }
}

/// Numbers in lines at the start of an entry's data.
struct Lines<'a, R> {
    archive: &'a mut Archive<R>,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => {
                    return decimal(&digits).ok_or_else(|| wrong("a wrong map of a sparse file"));
                }
                byte if digits.len() < 20 => digits.push(byte),
                _ => return Err(wrong("a wrong map of a sparse file")),
            }
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        if self.at == BLOCK {
            self.archive.left = self
                .archive
                .left
                .checked_sub(BLOCK as u64)
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            self.archive.source.read_exact(&mut self.block)?;
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}

/// A block that describes an entry.
struct Header([u8; BLOCK]);

impl Header {
    /// A text field, without what follows a NUL.
    fn text(&self, at: usize, len: usize) -> Vec<u8> {
        until_nul(&self.0[at..at + len])
    }

    /// Octal digits, or GNU's base 256, which may be negative.
    fn number(&self, at: usize, len: usize) -> Option<i64> {
        let field = &self.0[at..at + len];
        if field[0] & 0x80 != 0 {
            let sign = if field[0] & 0x40 != 0 { -1 } else { 0 };
            let low = &field[len.saturating_sub(8).max(1)..];
            return Some(
                low.iter()
                    .fold(sign, |value, byte| value << 8 | i64::from(*byte)),
            );
        }
        let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
        let text = text.split(['\0', ' ']).next().unwrap_or_default();
        if text.is_empty() {
            Some(0)
        } else {
            i64::from_str_radix(text, 8).ok()
        }
    }

    /// The path; ustar, unlike GNU, has more of it in a prefix.
    fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = self.text(345, 155);
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [prefix, name].join(&b'/');
        }
        name
    }

    fn device(&self, kind: u8) -> io::Result<Device> {
        if !matches!(kind, b'3' | b'4') {
            return Ok(Device::default());
        }
        let part = |at| self.number(at, 8).and_then(|part| u32::try_from(part).ok());
        match (part(329), part(337)) {
            (Some(major), Some(minor)) => Ok(Device { major, minor }),
            _ => Err(wrong("a wrong device number")),
        }
    }

    /// The sum of all bytes, its own field counted as spaces; old writers took bytes as signed.
    fn checksum_is_right(&self) -> bool {
        let counted = |index: usize| {
            if (148..156).contains(&index) {
                b' '
            } else {
                self.0[index]
            }
        };
        let unsigned: i64 = (0..BLOCK).map(|index| i64::from(counted(index))).sum();
        let signed: i64 = (0..BLOCK)
            .map(|index| i64::from(counted(index) as i8))
            .sum();
        self.number(148, 8)
            .is_some_and(|sum| sum == unsigned || sum == signed)
    }
}

/// Records `LENGTH KEY=VALUE\n`; values may hold any bytes, newlines too. An empty value takes
/// back what was said before.
fn parse_pax(mut text: &[u8], pax: &mut Pax, sparse: &mut Vec<(u64, u64)>) -> io::Result<()> {
    let malformed = || wrong("a malformed pax header");
    while text.first().is_some_and(|byte| *byte != 0) {
        let space = text
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or_else(malformed)?;
        let len = decimal(&text[..space])
            .and_then(|len| usize::try_from(len).ok())
            .ok_or_else(malformed)?;
        let record = text
            .get(space + 1..len)
            .and_then(|record| record.strip_suffix(b"\n"))
            .ok_or_else(malformed)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            // GNU's form 0.0 says these over and over, in pairs.
            b"GNU.sparse.offset" if sparse.len() < SEGMENTS_MAX => {
                sparse.push((decimal(value).ok_or_else(malformed)?, 0));
            }
            b"GNU.sparse.numbytes" => {
                let last = sparse.last_mut().ok_or_else(malformed)?;
                last.1 = decimal(value).ok_or_else(malformed)?;
            }
            _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => _ = pax.remove(key),
            _ => _ = pax.insert(key.to_vec(), value.to_vec()),
        }
        text = &text[len..];
    }
    Ok(())
}

/// Extended attributes; also the text form of access control lists, under its pax name.
fn xattrs_of(pax: &Pax) -> Vec<(Vec<u8>, Vec<u8>)> {
    pax.iter()
        .filter_map(|(key, value)| {
            let acl = key.starts_with(b"SCHILY.acl.").then_some(key.as_slice());
            let name = key.strip_prefix(b"SCHILY.xattr.".as_slice()).or(acl)?;
            Some((unescaped(name), value.clone()))
        })
        .collect()
}

/// GNU tar writes `=` in an attribute's name as `%3D`, since it would end the key, and `%` as `%25`.
fn unescaped(mut name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    while let [first, rest @ ..] = name {
        let (byte, rest) = match name {
            [b'%', b'3', b'D', rest @ ..] => (b'=', rest),
            [b'%', b'2', b'5', rest @ ..] => (b'%', rest),
            _ => (*first, rest),
        };
        plain.push(byte);
        name = rest;
    }
    plain
}

fn pax_number(pax: &Pax, key: &str) -> io::Result<Option<u64>> {
    match pax.get(key.as_bytes()) {
        None => Ok(None),
        Some(text) => decimal(text)
            .map(Some)
            .ok_or_else(|| wrong("a pax header with a wrong number")),
    }
}

/// Segments lie in order within the file, and their data is as long as what is archived.
fn check_segments(segments: &[(u64, u64)], size: u64, archived: u64) -> io::Result<()> {
    if size > SIZE_MAX {
        return Err(wrong("a file that is too large"));
    }
    let mut end = 0;
    let mut data: u64 = 0;
    for (offset, len) in segments {
        let next = offset
            .checked_add(*len)
            .filter(|next| *offset >= end && *next <= size);
        end = next.ok_or_else(|| wrong("a wrong map of a sparse file"))?;
        data += len;
    }
    if data <= archived {
        Ok(())
    } else {
        Err(wrong("a sparse file with less data than its map says"))
    }
}

/// A time as pax writes it: seconds, perhaps negative, with a fraction of any length.
fn decimal_time(text: &[u8]) -> Option<Mtime> {
    let text = std::str::from_utf8(text).ok()?;
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

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn until_nul(text: &[u8]) -> Vec<u8> {
    text.split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .to_vec()
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
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
            decimal_time(b"1700000000.123456789"),
            time(1_700_000_000, 123_456_789)
        );
        assert_eq!(decimal_time(b"5"), time(5, 0));
        assert_eq!(decimal_time(b"5.5"), time(5, 500_000_000));
        assert_eq!(decimal_time(b"-1.25"), time(-2, 750_000_000));
        assert_eq!(decimal_time(b"-0.25"), time(-1, 750_000_000));
        assert_eq!(decimal_time(b"x"), None);
        assert_eq!(decimal_time(b"1.-5"), None);
    }

    #[test]
    fn numbers_of_headers() {
        let number = |field: &[u8; 12]| {
            let mut header = Header([0; BLOCK]);
            header.0[..12].copy_from_slice(field);
            header.number(0, 12)
        };
        assert_eq!(number(b"00000000012\0"), Some(10));
        assert_eq!(number(b"   12 \0     "), Some(10));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(b"junk\0\0\0\0\0\0\0\0"), None);
    }

    #[test]
    fn pax_values_hold_any_bytes() -> io::Result<()> {
        let mut pax = Pax::new();
        parse_pax(
            b"20 path=a\n9 uid=4\nb\n9 uid=77\n",
            &mut pax,
            &mut Vec::new(),
        )?;
        assert_eq!(pax[b"path".as_slice()], b"a\n9 uid=4\nb");
        assert_eq!(pax[b"uid".as_slice()], b"77");
        parse_pax(b"7 uid=\n", &mut pax, &mut Vec::new())?;
        assert!(!pax.contains_key(b"uid".as_slice()));
        for wrong in ["5 a=b", "99 a=b\n", "x a=b\n", "4 ab\n", "0 a=b\n", "3 \n"] {
            assert!(
                parse_pax(wrong.as_bytes(), &mut Pax::new(), &mut Vec::new()).is_err(),
                "{wrong}"
            );
        }
        Ok(())
    }
}
