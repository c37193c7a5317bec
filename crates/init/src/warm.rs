//! Reads ahead of the boot: most of its calls to the server ask for one name or one piece of a file
//! after another, and each is waited for. The trace of an earlier boot says what will be asked.
//!
//! Runs as a process of its own beside the image's init.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::thread;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use wire::trace::{Piece, decode};

/// Where `/init` leaves the trace.
pub const TRACE: &str = "/run/slate/trace";
/// How long files stay open: closing one is a call of its own, and a boot has better ones to wait
/// for.
const KEEP_OPEN: Duration = Duration::from_secs(120);
/// The kernel takes no more of one piece of advice than one READ carries
/// (`force_page_cache_ra` in mm/readahead.c).
const ADVICE_BYTES: usize = 1 << 20;
/// Entries after which a directory is large enough to be left to look-ups.
const ENTRIES_MAX: usize = 4096;

/// Reads ahead, then ends.
pub fn main() -> ! {
    let pieces = decode(&fs::read(TRACE).unwrap_or_default());
    let mut listed = HashSet::new();
    let mut open = Vec::new();
    // The pieces of one file follow each other.
    for of_file in pieces.chunk_by(|one, next| one.path == next.path) {
        let path = Path::new("/").join(OsStr::from_bytes(&of_file[0].path));
        let directories = path.ancestors().skip(1);
        directories.for_each(|directory| list(directory, &mut listed));
        if let Ok(file) = File::open(&path) {
            of_file.iter().for_each(|piece| read_ahead(&file, piece));
            open.push(file);
        }
    }
    thread::sleep(KEEP_OPEN);
    exit(0)
}

/// Lists a directory once: the NFS client keeps the handle and the attributes of every name.
fn list(directory: &Path, listed: &mut HashSet<PathBuf>) {
    if listed.insert(directory.to_owned()) {
        let entries = fs::read_dir(directory).into_iter().flatten();
        let _ = entries.take(ENTRIES_MAX).count();
    }
}

/// The kernel asks for the piece and does not wait for it.
fn read_ahead(file: &File, piece: &Piece) {
    let end = piece.offset.saturating_add(piece.len);
    for offset in (piece.offset..end).step_by(ADVICE_BYTES) {
        let len = (end - offset).min(ADVICE_BYTES as u64);
        let _ = fadvise(file, offset, NonZeroU64::new(len), Advice::WillNeed);
    }
}
