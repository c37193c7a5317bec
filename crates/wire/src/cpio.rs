//! cpio archives in the "new ASCII" format, as the kernel unpacks them.
//!
//! An archive is a run of members, each a 110-byte header of hexadecimal fields, a NUL-terminated name padded to 4
//! bytes and data padded to 4 bytes; the member `TRAILER!!!` ends it
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel).
//!
//! Panic contract: nothing here panics on any input. [`Reader`] borrows from the archive and allocates nothing.

use thiserror::Error;

/// The format bits of a mode.
pub const S_IFMT: u32 = 0o170_000;
/// A regular file.
pub const S_IFREG: u32 = 0o100_000;
/// A directory.
pub const S_IFDIR: u32 = 0o040_000;
/// A symbolic link; its data is the target.
pub const S_IFLNK: u32 = 0o120_000;
/// A character device.
pub const S_IFCHR: u32 = 0o020_000;

/// Longest name, its NUL included: the kernel's PATH_MAX.
pub const NAME_BYTES_MAX: usize = 4096;

const MAGIC: &[u8] = b"070701";
const MAGIC_CRC: &[u8] = b"070702";
const TRAILER: &[u8] = b"TRAILER!!!";
const HEADER_BYTES: usize = 110;
const ALIGN: usize = 4;

/// What is wrong with an archive or with a member that was to be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// The archive ends inside a member, or before its trailer.
    #[error("cpio archive ends at byte {at}: expected {expected} more bytes, got {got}")]
    Truncated {
        /// Offset of what was being read.
        at: usize,
        /// Bytes that it takes.
        expected: usize,
        /// Bytes that were left.
        got: usize,
    },
    /// Neither of the two magic numbers of the format.
    #[error("cpio member at byte {at}: expected magic 070701 or 070702, got {got:?}")]
    Magic {
        /// Offset of the member.
        at: usize,
        /// The six bytes found.
        got: [u8; 6],
    },
    /// A header field that is not eight hexadecimal digits.
    #[error("cpio header at byte {at}: expected 8 hexadecimal digits")]
    Field {
        /// Offset of the field.
        at: usize,
    },
    /// A name of no bytes, of too many, without its NUL, or with a NUL inside.
    #[error(
        "cpio member at byte {at}: expected a NUL-terminated name of 1..={NAME_BYTES_MAX} bytes, got {got} bytes"
    )]
    Name {
        /// Offset of the member.
        at: usize,
        /// Bytes of the name, its NUL included.
        got: usize,
    },
    /// More data than the header's 32-bit size can say.
    #[error("cpio member has {got} bytes of data: expected at most 4294967295")]
    TooLarge {
        /// Bytes of data.
        got: usize,
    },
}

/// One member of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// Path, without its NUL; by custom without a leading slash.
    pub name: &'a [u8],
    /// Inode number; members with the same number and `nlink` > 1 are one file.
    pub ino: u32,
    /// File type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of links.
    pub nlink: u32,
    /// Modification time, Unix seconds.
    pub mtime: u32,
    /// Device number (major, minor) of a device node.
    pub rdev: (u32, u32),
    /// Content of a file, target of a symbolic link, else empty.
    pub data: &'a [u8],
}

/// Writes an archive into memory.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An archive without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a member. The kernel wants a directory before what is inside it.
    pub fn push(&mut self, member: &Member<'_>) -> Result<(), Error> {
        let name_bytes = member.name.len() + 1;
        if member.name.is_empty() || name_bytes > NAME_BYTES_MAX || member.name.contains(&0) {
            return Err(Error::Name {
                at: self.out.len(),
                got: name_bytes,
            });
        }
        let data_bytes = u32::try_from(member.data.len()).map_err(|_| Error::TooLarge {
            got: member.data.len(),
        })?;
        self.header(member, name_bytes as u32, data_bytes);
        self.out.extend_from_slice(member.name);
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(member.data);
        self.pad();
        Ok(())
    }

    /// Appends the trailer and gives the archive.
    pub fn finish(mut self) -> Vec<u8> {
        let trailer = Member {
            name: TRAILER,
            ino: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            mtime: 0,
            rdev: (0, 0),
            data: &[],
        };
        self.header(&trailer, TRAILER.len() as u32 + 1, 0);
        self.out.extend_from_slice(TRAILER);
        self.out.push(0);
        self.pad();
        self.out
    }

    fn header(&mut self, member: &Member<'_>, name_bytes: u32, data_bytes: u32) {
        self.out.extend_from_slice(MAGIC);
        let (major, minor) = member.rdev;
        let fields = [
            member.ino,
            member.mode,
            member.uid,
            member.gid,
            member.nlink,
            member.mtime,
            data_bytes,
            0,
            0,
            major,
            minor,
            name_bytes,
            0,
        ];
        for field in fields {
            self.out
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(ALIGN), 0);
    }
}

/// Reads the members of one archive, until its trailer or the first error.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    archive: &'a [u8],
    at: usize,
    done: bool,
}

impl<'a> Reader<'a> {
    /// Reads from the start of an uncompressed archive.
    pub fn new(archive: &'a [u8]) -> Self {
        Self {
            archive,
            at: 0,
            done: false,
        }
    }

    /// What follows the members that were read: after the last one, what follows the archive.
    pub fn rest(&self) -> &'a [u8] {
        self.archive.get(self.at..).unwrap_or_default()
    }

    fn member(&mut self) -> Result<Option<Member<'a>>, Error> {
        let start = self.at;
        let header = self.take(HEADER_BYTES)?;
        let magic: [u8; 6] = header.first_chunk().copied().unwrap_or_default();
        if magic != MAGIC && magic != MAGIC_CRC {
            return Err(Error::Magic {
                at: start,
                got: magic,
            });
        }
        let mut fields = [0u32; 13];
        for (index, field) in fields.iter_mut().enumerate() {
            let at = MAGIC.len() + index * 8;
            *field = hexadecimal(header.get(at..at + 8).unwrap_or_default())
                .ok_or(Error::Field { at: start + at })?;
        }
        let [
            ino,
            mode,
            uid,
            gid,
            nlink,
            mtime,
            data_bytes,
            _,
            _,
            major,
            minor,
            name_bytes,
            _,
        ] = fields;
        let name = self.name(start, name_bytes as usize)?;
        if name == TRAILER {
            return Ok(None);
        }
        let data = self.take(data_bytes as usize)?;
        self.skip_padding();
        Ok(Some(Member {
            name,
            ino,
            mode,
            uid,
            gid,
            nlink,
            mtime,
            rdev: (major, minor),
            data,
        }))
    }

    fn name(&mut self, at: usize, name_bytes: usize) -> Result<&'a [u8], Error> {
        let wrong = Error::Name {
            at,
            got: name_bytes,
        };
        if !(2..=NAME_BYTES_MAX).contains(&name_bytes) {
            return Err(wrong);
        }
        let raw = self.take(name_bytes)?;
        self.skip_padding();
        match raw.split_last() {
            Some((0, name)) if !name.contains(&0) => Ok(name),
            _ => Err(wrong),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Error> {
        let rest = self.archive.get(self.at..).unwrap_or_default();
        let taken = rest.get(..bytes).ok_or(Error::Truncated {
            at: self.at,
            expected: bytes,
            got: rest.len(),
        })?;
        self.at += bytes;
        Ok(taken)
    }

    /// Padding after the last member may be missing, so its absence is noticed by the next header only.
    fn skip_padding(&mut self) {
        self.at = self.at.next_multiple_of(ALIGN).min(self.archive.len());
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Member<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let member = self.member().transpose();
        self.done = !matches!(member, Some(Ok(_)));
        member
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |value, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(value << 4 | digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file<'a>(name: &'a [u8], data: &'a [u8]) -> Member<'a> {
        Member {
            name,
            ino: 7,
            mode: S_IFREG | 0o644,
            uid: 1,
            gid: 2,
            nlink: 1,
            mtime: 3,
            rdev: (0, 0),
            data,
        }
    }

    fn archive(members: &[Member<'_>]) -> Vec<u8> {
        let mut writer = Writer::new();
        for member in members {
            writer.push(member).unwrap();
        }
        writer.finish()
    }

    #[test]
    fn what_is_written_is_read() {
        let console = Member {
            mode: S_IFCHR | 0o600,
            rdev: (5, 1),
            ..file(b"dev/console", b"")
        };
        let members = [
            file(b"a", b""),
            file(b"init", b"12345"),
            console,
            file(b"name", b"1234"),
        ];
        let bytes = archive(&members);
        assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = Reader::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(read, members);
    }

    #[test]
    fn header_is_the_documented_one() {
        let bytes = archive(&[file(b"ab", b"x")]);
        let header = "070701\
            00000007000081A4000000010000000200000001000000030000000100000000000000000000000000000000\
            0000000300000000ab\0";
        assert!(bytes.starts_with(header.as_bytes()));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = archive(&[file(b"ab", b"x"), file(b"c", b"yz")]);
        let padding = (HEADER_BYTES + TRAILER.len() + 1).next_multiple_of(ALIGN)
            - (HEADER_BYTES + TRAILER.len() + 1);
        let trailer_name_end = bytes.len() - padding;
        for length in 0..trailer_name_end {
            let last = Reader::new(&bytes[..length]).last().unwrap();
            assert!(
                last.is_err(),
                "no error at {length} of {} bytes",
                bytes.len()
            );
        }
    }

    #[test]
    fn bad_magic_field_and_names_are_refused() {
        let good = archive(&[file(b"ab", b"x")]);
        let mut bad = good.clone();
        bad[5] = b'7';
        assert!(matches!(
            Reader::new(&bad).next(),
            Some(Err(Error::Magic { at: 0, .. }))
        ));
        let mut bad = good.clone();
        bad[6] = b'+';
        assert_eq!(Reader::new(&bad).next(), Some(Err(Error::Field { at: 6 })));
        let mut bad = good;
        bad[112] = b'x';
        assert!(matches!(
            Reader::new(&bad).next(),
            Some(Err(Error::Name { at: 0, got: 3 }))
        ));
        assert!(Writer::new().push(&file(b"", b"")).is_err());
        assert!(Writer::new().push(&file(b"a\0b", b"")).is_err());
        assert!(
            Writer::new()
                .push(&file(&[b'a'; NAME_BYTES_MAX], b""))
                .is_err()
        );
    }

    #[test]
    fn reading_stops_after_an_error() {
        let mut reader = Reader::new(b"nonsense");
        assert!(reader.next().unwrap().is_err());
        assert!(reader.next().is_none());
    }
}
