//! What orders upload: files below the state directory, `uploads/ORDER`, for whoever gave the order.
//!
//! While it grows an upload is `ORDER.part`; it gets its name when its last piece is there. Nothing
//! here outlives the daemon that took it, as no order does.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;

use wire::upload::Piece;

/// The directory in the state directory.
pub const UPLOADS: &str = "uploads";

/// Takes pieces.
pub struct Uploads {
    directory: PathBuf,
    /// A piece that is repeated while the first of it is written waits for that.
    writing: Mutex<()>,
}

/// Why a piece is not taken.
#[derive(Debug)]
pub enum Refused {
    /// It is not the next one: so many bytes are there.
    OutOfPlace(u64),
    /// The upload is longer than it may be, in bytes.
    TooLong(u64),
    /// The file system refuses.
    Disk(io::Error),
}

impl Refused {
    /// The HTTP status of it, and the cause in words.
    pub fn answer(&self) -> (u16, String) {
        match self {
            Refused::OutOfPlace(length) => (409, format!("{length} bytes are there")),
            Refused::TooLong(limit) => (413, format!("more than {limit} bytes, the most for it")),
            Refused::Disk(error) => (507, format!("the server cannot keep it: {error}")),
        }
    }
}

impl Uploads {
    /// Below a state directory; what an earlier daemon took is removed.
    pub fn open(state_dir: &Path) -> io::Result<Uploads> {
        let directory = state_dir.join(UPLOADS);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Uploads {
            directory,
            writing: Mutex::new(()),
        })
    }

    /// Takes a piece of an order's upload, which may be repeated.
    pub fn take(&self, order: u64, piece: &Piece, max_bytes: u64) -> Result<(), Refused> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = self.directory.join(order.to_string());
        let part = self.directory.join(format!("{order}.part"));
        let end = piece.offset + piece.bytes.len() as u64;
        if end > max_bytes {
            let _ = fs::remove_file(&part);
            return Err(Refused::TooLong(max_bytes));
        }
        if let Ok(meta) = fs::metadata(&whole) {
            return match end <= meta.len() {
                true => Ok(()),
                false => Err(Refused::OutOfPlace(meta.len())),
            };
        }
        let taken = append(&part, piece).and_then(|length| {
            if length == Some(end) && piece.is_last {
                fs::rename(&part, &whole)?;
            }
            Ok(length)
        });
        match taken {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Refused::OutOfPlace(
                fs::metadata(&part).map_or(0, |it| it.len()),
            )),
            Err(error) => {
                // Nobody can go on from here: the space is better used.
                let _ = fs::remove_file(&part);
                Err(Refused::Disk(error))
            }
        }
    }
}

/// Writes a piece at its place; the file's length, or `None` where the piece leaves a gap.
fn append(path: &Path, piece: &Piece) -> io::Result<Option<u64>> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(piece.offset == 0)
        .truncate(false)
        .mode(0o600);
    let file: File = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let length = file.metadata()?.len();
    if piece.offset > length {
        return Ok(None);
    }
    file.write_all_at(&piece.bytes, piece.offset)?;
    Ok(Some(file.metadata()?.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, bytes: &[u8], is_last: bool) -> Piece {
        Piece {
            offset,
            is_last,
            bytes: bytes.into(),
        }
    }

    #[test]
    fn pieces_in_order_become_a_file_and_repeated_ones_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(UPLOADS)).unwrap();
        fs::write(dir.path().join(UPLOADS).join("7"), "of an earlier daemon").unwrap();
        let uploads = Uploads::open(dir.path()).unwrap();
        let place = |name: &str| dir.path().join(UPLOADS).join(name);
        assert!(!place("7").exists());

        let take = |piece: &Piece| uploads.take(7, piece, 9);
        let gap = take(&piece(3, b"def", false));
        assert!(matches!(gap, Err(Refused::OutOfPlace(0))), "{gap:?}");
        take(&piece(0, b"abc", false)).unwrap();
        take(&piece(0, b"abc", false)).unwrap();
        let gap = take(&piece(6, b"ghi", true));
        assert!(matches!(gap, Err(Refused::OutOfPlace(3))), "{gap:?}");
        take(&piece(3, b"def", false)).unwrap();
        assert!(!place("7").exists(), "it is not whole");
        for _ in 0..2 {
            take(&piece(6, b"ghi", true)).unwrap();
        }
        assert_eq!(fs::read(place("7")).unwrap(), b"abcdefghi");
        assert!(!place("7.part").exists());
        // One that is empty is one as well.
        uploads.take(8, &piece(0, b"", true), 9).unwrap();
        assert_eq!(fs::read(place("8")).unwrap(), b"");
    }

    #[test]
    fn what_is_too_long_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(dir.path()).unwrap();
        uploads.take(7, &piece(0, b"abc", false), 5).unwrap();
        let long = uploads.take(7, &piece(3, b"def", true), 5);
        assert!(matches!(long, Err(Refused::TooLong(5))), "{long:?}");
        let left = fs::read_dir(dir.path().join(UPLOADS)).unwrap().count();
        assert_eq!(left, 0);
    }
}
