//! The database of rpm 4.16 and later: SQLite, a header for each installed package.
//!
//! SQLite reads the file, since that format is its own; from a copy, so that it may replay the log
//! that an image can have beside it. A header is read here: "RPM Package format, Header structure"
//! (rpm.org, documentation of version 4) and what rpm's database keeps of it, which has no magic. What
//! is there may be anything: nothing panics, and the numbers of packages and bytes are bounded.

use std::fs;
use std::io;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::Packages;
use crate::error::{Error, Result};
use crate::tree::StoredTree;

/// Where databases are: of Red Hat 9 and older, and since.
const DATABASES: [&str; 2] = [
    "var/lib/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
];
/// Most packages that are read.
const PACKAGES_MAX: u32 = 100_000;
/// The longest header, in bytes; rpm's own limit is 256 MiB.
const HEADER_MAX: u32 = 64 << 20;
/// Most entries of a header's index; rpm's own limit.
const ENTRIES_MAX: usize = 65_536;

/// What a header says of its package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The package's name.
    pub name: String,
    /// Its version and release, with the epoch before them where there is one.
    pub version: String,
    /// Its architecture; keys for signatures have none.
    pub architecture: Option<String>,
}

/// Adds the packages that rpm has installed; none where it never ran. Several of one name, as
/// kernels, are one entry.
pub fn add(tree: &StoredTree, packages: &mut Packages) -> Result<()> {
    for path in DATABASES {
        match tree.read_file(path) {
            Ok(database) => return read(tree, path, &database, packages),
            Err(Error::NoSuchFile { .. } | Error::NotADirectory { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read(tree: &StoredTree, path: &str, database: &[u8], packages: &mut Packages) -> Result<()> {
    let failed = |error: io::Error| Error::io("reading", Path::new(path))(error);
    let scratch = tempfile::tempdir().map_err(failed)?;
    let copy = scratch.path().join("rpmdb.sqlite");
    fs::write(&copy, database).map_err(failed)?;
    let log = match tree.read_file(format!("{path}-wal")) {
        Ok(log) => log,
        Err(Error::NoSuchFile { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    fs::write(scratch.path().join("rpmdb.sqlite-wal"), log).map_err(failed)?;
    let headers = headers(&copy).map_err(|error| failed(io::Error::other(error)))?;
    for header in headers {
        let header = parse(&header)
            .ok_or_else(|| failed(io::Error::other("a package's header is damaged")))?;
        let name = match header.architecture {
            Some(architecture) => format!("{}.{architecture}", header.name),
            None => header.name,
        };
        let entry = packages.entry(name).or_default();
        *entry = match entry.is_empty() {
            true => header.version,
            false => format!("{entry}, {}", header.version),
        };
    }
    Ok(())
}

fn headers(database: &Path) -> rusqlite::Result<Vec<Vec<u8>>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    // The schema is the image's: it may define nothing that runs.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    let mut statement = connection
        .prepare("SELECT blob FROM Packages WHERE length(blob) <= ?1 ORDER BY hnum LIMIT ?2")?;
    let rows = statement.query_map((HEADER_MAX, PACKAGES_MAX), |row| row.get(0))?;
    rows.collect()
}

/// Reads a header as rpm's database has it: two lengths, the index, the data. `None` where it is
/// damaged.
pub fn parse(header: &[u8]) -> Option<Header> {
    let entries = number(header, 0)?;
    if entries > ENTRIES_MAX {
        return None;
    }
    let index = header.get(8..8 + entries * 16)?;
    let data = header.get(8 + entries * 16..)?;
    let data = data.get(..number(header, 4)?)?;
    let find = |tag: usize, kind: usize| {
        let mut entries = index.chunks_exact(16);
        let entry = entries.find(|it| number(it, 0) == Some(tag))?;
        let offset = (number(entry, 4) == Some(kind)).then(|| number(entry, 8))?;
        data.get(offset?..)
    };
    let text = |tag: usize| {
        let bytes = find(tag, kind::STRING)?;
        let end = bytes.iter().position(|it| *it == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    };
    let version = format!("{}-{}", text(tag::VERSION)?, text(tag::RELEASE)?);
    let epoch = find(tag::EPOCH, kind::INT32).and_then(|it| number(it, 0));
    Some(Header {
        name: text(tag::NAME)?,
        version: epoch.map_or(version.clone(), |epoch| format!("{epoch}:{version}")),
        architecture: text(tag::ARCH),
    })
}

/// A big-endian number of 32 bits.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?;
    let number = u32::from_be_bytes(bytes.try_into().ok()?);
    usize::try_from(number).ok()
}

/// Tags of a header (rpmtag.h).
mod tag {
    pub const NAME: usize = 1000;
    pub const VERSION: usize = 1001;
    pub const RELEASE: usize = 1002;
    pub const EPOCH: usize = 1003;
    pub const ARCH: usize = 1022;
}

/// Types of a header's data (rpmtag.h).
mod kind {
    pub const INT32: usize = 4;
    pub const STRING: usize = 6;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with these texts, and the epoch where there is one.
    fn header(texts: &[(usize, &str)], epoch: Option<u32>) -> Vec<u8> {
        let (mut index, mut data) = (Vec::new(), Vec::new());
        let mut entry = |tag: usize, kind: usize, at: usize| {
            for word in [tag, kind, at, 1] {
                index.extend_from_slice(&(word as u32).to_be_bytes());
            }
        };
        for (tag, text) in texts {
            entry(*tag, kind::STRING, data.len());
            data.extend_from_slice(text.as_bytes());
            data.push(0);
        }
        if let Some(epoch) = epoch {
            entry(tag::EPOCH, kind::INT32, data.len());
            data.extend_from_slice(&epoch.to_be_bytes());
        }
        let mut header = ((index.len() / 16) as u32).to_be_bytes().to_vec();
        header.extend_from_slice(&(data.len() as u32).to_be_bytes());
        [header, index, data].concat()
    }

    #[test]
    fn a_header_tells_name_version_and_architecture() {
        let texts = [
            (tag::NAME, "bind-utils"),
            (tag::VERSION, "9.16"),
            (tag::RELEASE, "1.el9"),
            (tag::ARCH, "x86_64"),
        ];
        let read = parse(&header(&texts, Some(32))).expect("a header");
        assert_eq!(read.name, "bind-utils");
        assert_eq!(read.version, "32:9.16-1.el9");
        assert_eq!(read.architecture.as_deref(), Some("x86_64"));
        let key = parse(&header(&texts[..3], None)).expect("a header");
        assert_eq!(
            (key.version.as_str(), key.architecture),
            ("9.16-1.el9", None)
        );
    }

    #[test]
    fn damaged_headers_are_refused() {
        let texts = [(tag::NAME, "a"), (tag::VERSION, "1"), (tag::RELEASE, "1")];
        let whole = header(&texts, None);
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            parse(&changed);
        }
        assert_eq!(parse(&[0xff; 64]), None);
        assert_eq!(parse(&header(&texts[..2], None)), None);
    }
}
