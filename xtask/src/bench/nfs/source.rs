//! The tree that both servers export, as it lies on the disk: what is asked for, and what the
//! answers have to be.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::client::LINUX_ATTRIBUTES;
use super::xdr::Reader;

/// A file or directory of the tree.
pub struct Entry {
    /// Its path from the root of the tree.
    pub path: PathBuf,
    /// What the disk says of it.
    pub metadata: Metadata,
}

/// All entries below `root` but the root itself, in order of their paths.
pub fn entries(root: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let place = root.join(&folder);
        let listed = std::fs::read_dir(&place);
        for entry in listed.with_context(|| format!("listing {}", place.display()))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                open.push(path.clone());
            }
            entries.push(Entry { path, metadata });
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// At most `count` elements that lie evenly in `all`.
pub fn spread<T>(all: Vec<T>, count: usize) -> Vec<T> {
    let step = all.len().div_ceil(count).max(1);
    all.into_iter().step_by(step).collect()
}

/// A range of a file, and what is in it.
#[derive(Clone)]
pub struct Piece {
    /// The content; shorter than what is asked for only where the file ends.
    pub content: Arc<[u8]>,
    /// Whether the file ends here.
    pub is_last: bool,
}

impl Piece {
    /// Reads `len` bytes from `offset` of a file.
    pub fn load(path: &Path, offset: u64, len: usize) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let size = file.metadata()?.len();
        let mut content = vec![0; len.min(size.saturating_sub(offset) as usize)];
        file.read_exact_at(&mut content, offset)
            .with_context(|| format!("reading {}", path.display()))?;
        Ok(Self {
            is_last: offset + content.len() as u64 >= size,
            content: content.into(),
        })
    }
}

/// Attributes as a server gives them.
#[derive(Debug, PartialEq, Eq)]
struct Attributes {
    kind: u32,
    size: u64,
    mode: u32,
    links: u32,
    owner: String,
    group: String,
    modified: (i64, u32),
}

impl Attributes {
    /// Reads a fattr4 with what the Linux client asks for.
    fn read(reader: &mut Reader<'_>) -> anyhow::Result<Self> {
        let given = reader.bitmap()?;
        ensure!(
            given[..2] == LINUX_ATTRIBUTES && given[2] == 0,
            "expected the attributes {LINUX_ATTRIBUTES:x?}, got {given:x?}"
        );
        let mut values = Reader::new(reader.opaque()?);
        let kind = values.u32()?;
        let _change = values.u64()?;
        let size = values.u64()?;
        let _file_system = (values.u64()?, values.u64()?);
        let _number = values.u64()?;
        let (mode, links) = (values.u32()?, values.u32()?);
        let mut text = || anyhow::Ok(String::from_utf8_lossy(values.opaque()?).into_owned());
        let (owner, group) = (text()?, text()?);
        let _device = values.u64()?;
        let _used = values.u64()?;
        let _accessed_and_changed = values.take(24)?;
        let modified = (values.u64()? as i64, values.u32()?);
        Ok(Self {
            kind,
            size,
            mode,
            links,
            owner,
            group,
            modified,
        })
    }
}

/// Reads a fattr4 and compares it with what the disk says. Sizes and link counts of directories are
/// each file system's own affair, and so are owners that a server gives by name.
pub fn check_attributes(reader: &mut Reader<'_>, expected: &Metadata) -> anyhow::Result<()> {
    let mut got = Attributes::read(reader)?;
    let mut expected = Attributes {
        kind: kind(expected),
        size: expected.len(),
        mode: expected.mode() & 0o7777,
        links: expected.nlink() as u32,
        owner: expected.uid().to_string(),
        group: expected.gid().to_string(),
        modified: (expected.mtime(), expected.mtime_nsec() as u32),
    };
    if expected.kind == DIRECTORY {
        (got.size, got.links) = (expected.size, expected.links);
    }
    for (got, expected) in [
        (&mut got.owner, &mut expected.owner),
        (&mut got.group, &mut expected.group),
    ] {
        if got.parse::<u32>().is_err() {
            expected.clone_from(got);
        }
    }
    ensure!(got == expected, "expected {expected:?}, got {got:?}");
    Ok(())
}

const DIRECTORY: u32 = 2;

/// What version 4 calls the type of a file (nfs_ftype4).
fn kind(metadata: &Metadata) -> u32 {
    let kind = metadata.file_type();
    if kind.is_dir() {
        DIRECTORY
    } else if kind.is_block_device() {
        3
    } else if kind.is_char_device() {
        4
    } else if kind.is_symlink() {
        5
    } else if kind.is_socket() {
        6
    } else if kind.is_fifo() {
        7
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::super::xdr::Writer;
    use super::*;

    #[test]
    fn attributes_are_compared_with_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let metadata = path.symlink_metadata().unwrap();
        let encoded = |size: u64, owner: &str| {
            let mut values = Writer::default();
            values.u32(1);
            values.u64(5);
            values.u64(size);
            [0; 3].into_iter().for_each(|word| values.u64(word));
            values.u32(metadata.mode() & 0o7777);
            values.u32(1);
            values.opaque(owner.as_bytes());
            values.opaque(metadata.gid().to_string().as_bytes());
            [0; 5].into_iter().for_each(|word| values.u64(word));
            values.u64(metadata.mtime() as u64);
            values.u32(metadata.mtime_nsec() as u32);
            values.u64(0);
            let mut out = Writer::default();
            out.bitmap(&LINUX_ATTRIBUTES);
            out.opaque(&values.0);
            out.0
        };
        let check = |bytes: &[u8]| check_attributes(&mut Reader::new(bytes), &metadata);
        let uid = metadata.uid().to_string();
        assert!(check(&encoded(7, &uid)).is_ok());
        assert!(check(&encoded(7, "root@example.org")).is_ok());
        assert!(check(&encoded(8, &uid)).is_err());
        assert!(check(&encoded(7, "4294967295")).is_err());
        assert!(check(&encoded(7, &uid)[..40]).is_err());
    }

    #[test]
    fn a_piece_knows_whether_its_file_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let piece = Piece::load(&path, 2, 3).unwrap();
        assert_eq!((&*piece.content, piece.is_last), (&b"nte"[..], false));
        let piece = Piece::load(&path, 2, 100).unwrap();
        assert_eq!((&*piece.content, piece.is_last), (&b"ntent"[..], true));
    }

    #[test]
    fn spreads_evenly() {
        assert_eq!(spread((0..10).collect(), 3), [0, 4, 8]);
        assert_eq!(spread(vec![1, 2], 5), [1, 2]);
        assert!(spread(Vec::<u8>::new(), 5).is_empty());
    }
}
