//! Spares the running system round trips to its server: most of a boot's calls ask for one name or
//! one piece of a file after another.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How far the kernel reads ahead in files of the server, in KiB. Its default of 128 is a disk's; a
/// read over NFS costs the same up to 1 MiB, but what is read in vain fills memory.
const READ_AHEAD_KIB: u32 = 256;

/// Directories in which every boot looks many names up. Listing one fetches what look-ups would.
const BUSY: [&str; 9] = [
    "",
    "etc",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/lib/systemd",
    "usr/sbin",
    "var",
];
/// Where Debian and its kin keep the libraries of one architecture: `usr/lib/x86_64-linux-gnu`.
const MULTIARCH: &str = "-linux-gnu";
/// Entries after which a directory is large enough to be left to look-ups.
const ENTRIES_MAX: usize = 4096;

/// Sets the read-ahead of the file system mounted at `path`.
pub fn read_ahead(path: &str) -> io::Result<()> {
    let device = fs::metadata(path)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // Documentation/ABI/testing/sysfs-class-bdi.
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    fs::write(file, READ_AHEAD_KIB.to_string())
}

/// Lists the busy directories of the root at `root`: the NFS client keeps every name's handle and
/// attributes (READDIR asks for them).
pub fn directories(root: &str) {
    let libraries = multiarch(&Path::new(root).join("usr/lib"));
    let busy = BUSY.into_iter().map(|it| Path::new(root).join(it));
    for directory in busy.chain(libraries) {
        let entries = fs::read_dir(directory).into_iter().flatten();
        let _ = entries.take(ENTRIES_MAX).count();
    }
}

fn multiarch(libraries: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(libraries).ok()?.flatten();
    let mut names = entries.filter(|it| it.file_name().to_string_lossy().ends_with(MULTIARCH));
    names.next().map(|it| it.path())
}
