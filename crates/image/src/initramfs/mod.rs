//! The initramfs: a kernel's own drivers and /init, and nothing else.
//!
//! What it holds: `/init`; `/modules/NAME.ko`, decompressed, signatures kept; `/modules/table`, by which /init loads
//! them ([`wire::modtable`]); `/lib/firmware/NAME` where the image has what a module names; `/dev/console` and empty
//! directories to mount on. The same inputs give the same bytes.

mod index;
mod module;
mod profile;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use wire::cpio::{self, Member};
use wire::digest::Digest;
use wire::modtable::{Module, TABLE_PATH, Table};
use wire::trace::TRACE_PATH;

use index::Index;
use profile::{CORE, HELPERS, SECOND_HALVES};
pub use profile::{Profile, UnknownProfile};
pub use source::ModuleSource;

/// Goes up whenever the same inputs give other bytes.
pub const FORMAT: u32 = 1;

const ZSTD_LEVEL: i32 = 19;

/// How an initramfs is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// For kernels with `CONFIG_RD_ZSTD` (5.9 and later).
    Zstd,
    /// For all others.
    Gzip,
}

/// A finished initramfs.
#[derive(Debug, Clone)]
pub struct Initramfs {
    /// What the loader gives to the kernel.
    pub bytes: Vec<u8>,
    /// Release of the kernel that it belongs to.
    pub kernel: String,
    /// How `bytes` are compressed.
    pub compression: Compression,
    /// Canonical names of the modules inside, sorted.
    pub modules: Vec<String>,
    /// Names of the firmware files inside, relative to /lib/firmware, sorted.
    pub firmware: Vec<String>,
}

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, or its compression is damaged.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// Path in the source.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no modules.dep.
    #[error(
        "no modules for kernel {kernel}: looked for {}; install the kernel's package, or run depmod {kernel}",
        looked_for.display()
    )]
    NoModules {
        /// The kernel's release.
        kernel: String,
        /// Where modules.dep should be.
        looked_for: PathBuf,
    },
    /// The kernel has something neither as a module nor built in that no node can do without.
    #[error(
        "no {module} module in kernel {kernel}, and it is not built in: install a kernel that has it \
         (Debian and Ubuntu: linux-image-amd64 or linux-modules-extra; Enterprise Linux and Fedora: kernel-modules)"
    )]
    NoModule {
        /// The module's name.
        module: &'static str,
        /// The kernel's release.
        kernel: String,
    },
    /// modules.dep names a file that is not there.
    #[error("{} is in modules.dep of kernel {kernel} and not on disk: reinstall the kernel's package", path.display())]
    MissingModule {
        /// The kernel's release.
        kernel: String,
        /// The file.
        path: PathBuf,
    },
    /// A module's file is something else.
    #[error("{}: expected a 64-bit ELF module: reinstall the kernel's package", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
    /// The archive cannot hold a file.
    #[error("writing the initramfs: {0}")]
    Archive(#[from] cpio::Error),
    /// The compressor failed.
    #[error("compressing the initramfs: {0}")]
    Compress(io::Error),
}

/// Builds the initramfs of a kernel: `init` as /init, and the modules that the profile asks for.
pub fn build(
    source: &ModuleSource<'_>,
    profile: &Profile,
    init: &[u8],
) -> Result<Initramfs, Error> {
    let index = source.index()?;
    let table = choose(&index, source.kernel(), profile)?;
    let mut contents = Contents::default();
    let mut firmware = BTreeSet::new();
    for module in &table.modules {
        let path = index
            .path(&module.name)
            .map(PathBuf::as_path)
            .unwrap_or(std::path::Path::new(""));
        let bytes = source.module(path)?;
        firmware.extend(module::firmware_of(&bytes));
        contents.file(&module.path(), 0o644, bytes);
    }
    let mut shipped = Vec::new();
    for name in firmware.into_iter().filter(|name| is_plain(name)) {
        if let Some(bytes) = source.firmware(&name)? {
            contents.file(&format!("/lib/firmware/{name}"), 0o644, bytes);
            shipped.push(name);
        }
    }
    contents.file(TABLE_PATH, 0o644, table.encode().into_bytes());
    contents.file("/init", 0o755, init.to_vec());
    let compression = source.compression()?;
    Ok(Initramfs {
        bytes: compress(&contents.archive()?, compression).map_err(Error::Compress)?,
        kernel: table.kernel,
        compression,
        modules: table
            .modules
            .into_iter()
            .map(|module| module.name)
            .collect(),
        firmware: shipped,
    })
}

/// An initramfs with the trace of a boot ([`wire::trace`]). It is an archive of its own before the
/// other one: the kernel unpacks all that follow each other (initramfs-buffer-format.rst).
pub fn with_trace(initramfs: &[u8], trace: &[u8]) -> Vec<u8> {
    let mut contents = Contents::default();
    contents.file(TRACE_PATH, 0o644, trace.to_vec());
    match contents.archive() {
        Ok(archive) => [&archive, initramfs].concat(),
        // A trace too large for an archive is no use.
        Err(_) => initramfs.to_vec(),
    }
}

/// The name under which an initramfs can be kept: equal keys mean equal bytes.
pub fn cache_key(image: &Digest, kernel: &str, profile: &Profile, init: &[u8]) -> Digest {
    let mut hash = Sha256::new();
    let format = FORMAT.to_le_bytes();
    let profile = profile.key();
    for part in [
        b"slate initramfs",
        format.as_slice(),
        &image.0,
        kernel.as_bytes(),
        profile.as_bytes(),
        init,
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Digest(hash.finalize().into())
}

/// Which modules go in, and how /init is to load them.
fn choose(index: &Index, kernel: &str, profile: &Profile) -> Result<Table, Error> {
    let core = core(index, kernel)?;
    let mut names = profile.drivers(index);
    names.extend(core.iter().cloned());
    let needed: Vec<_> = names
        .iter()
        .flat_map(|name| index.needs(name, &HELPERS))
        .collect();
    names.extend(needed.into_iter().map(|need| need.name));
    let aliases = names.iter().flat_map(|name| {
        let first = SECOND_HALVES
            .iter()
            .find(|(_, second)| second == name)
            .map(|(first, _)| *first);
        let of_first = first.into_iter().flat_map(|first| index.aliases_of(first));
        of_first
            .chain(index.aliases_of(name))
            .map(|alias| wire::modtable::Alias {
                module: name.clone(),
                ..alias.clone()
            })
    });
    Ok(Table {
        kernel: kernel.to_owned(),
        // Names of file systems and protocols are aliases too, but no device has them: a device's has its bus first.
        aliases: aliases
            .filter(|alias| alias.pattern.contains(':'))
            .collect(),
        modules: names
            .iter()
            .map(|name| Module {
                name: name.clone(),
                needs: index.needs(name, &HELPERS),
            })
            .collect(),
        core,
    })
}

fn core(index: &Index, kernel: &str) -> Result<Vec<String>, Error> {
    let mut core = Vec::new();
    for module in CORE {
        if index.is_module(module) {
            core.push(module.to_owned());
        } else if !index.is_builtin(module) {
            return Err(Error::NoModule {
                module,
                kernel: kernel.to_owned(),
            });
        }
    }
    Ok(core)
}

/// A relative path that stays where it is: firmware names come out of modules, which others made.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() < 256
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// What goes into the archive, by path without the leading slash. Sorted, so a directory comes before its content.
#[derive(Debug)]
struct Contents {
    members: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Default for Contents {
    fn default() -> Self {
        let mut contents = Self {
            members: BTreeMap::new(),
        };
        for directory in ["dev", "proc", "run", "sys", "sysroot"] {
            contents
                .members
                .insert(directory.into(), (cpio::S_IFDIR | 0o755, Vec::new()));
        }
        // The kernel opens it for /init's standard streams before anybody could mount devtmpfs.
        contents
            .members
            .insert("dev/console".into(), (cpio::S_IFCHR | 0o600, Vec::new()));
        contents
    }
}

impl Contents {
    fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            let directory = (cpio::S_IFDIR | 0o755, Vec::new());
            self.members
                .entry(path[..at].to_owned())
                .or_insert(directory);
        }
        self.members
            .insert(path.to_owned(), (cpio::S_IFREG | mode, bytes));
    }

    fn archive(&self) -> Result<Vec<u8>, Error> {
        let mut writer = cpio::Writer::new();
        for (ino, (path, (mode, data))) in (1..).zip(&self.members) {
            let is_device = mode & cpio::S_IFMT == cpio::S_IFCHR;
            writer.push(&Member {
                name: path.as_bytes(),
                ino,
                mode: *mode,
                uid: 0,
                gid: 0,
                nlink: 1,
                mtime: 0,
                rdev: if is_device { CONSOLE } else { (0, 0) },
                data,
            })?;
        }
        Ok(writer.finish())
    }
}

const CONSOLE: (u32, u32) = (5, 1);

fn compress(archive: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    match compression {
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            encoder.set_pledged_src_size(Some(archive.len() as u64))?;
            encoder.write_all(archive)?;
            encoder.finish()
        }
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(archive)?;
            encoder.finish()
        }
    }
}

#[cfg(test)]
mod tests;
