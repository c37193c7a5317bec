//! The initramfs: a kernel's own drivers and /init, and nothing else.
//!
//! What it holds: `/init`; `/modules/NAME.ko`, decompressed, signatures kept, and folded ([`wire::fold`]) if the
//! whole is compressed; `/modules/table`, by which /init loads them ([`wire::modtable`]); `/lib/firmware/NAME` where the image has what a module names; `/dev/console` and empty
//! directories to mount on. Before it, where the image has any and the machines are real ones, stands the processors'
//! microcode. The same inputs give the same bytes.

mod foreign;
mod index;
mod inits;
mod microcode;
mod modprobe;
mod module;
mod profile;
mod shell;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use wire::cpio::{self, Member};
use wire::digest::Digest;
use wire::modtable::{Alias, Module, TABLE_PATH, Table, canonical};
use wire::trace::TRACE_PATH;

use crate::check::machine_of;

pub use foreign::{Encoding, NotInitramfs, inspect};
use index::Index;
pub use inits::Inits;
use modprobe::Modprobe;
use profile::{BY_INIT, CORE, HELPERS, SECOND_HALVES};
pub use profile::{Profile, UnknownProfile};
pub use shell::shell;
pub use source::ModuleSource;

/// Goes up whenever the same inputs give other bytes.
pub const FORMAT: u32 = 3;

/// The zstd level for what travels to every node at every boot.
pub const LEVEL_SMALL: i32 = 19;
/// The zstd level for what somebody waits for: less than a tenth of the time for an eighth more bytes.
pub const LEVEL_QUICK: i32 = 9;

/// The least window that zstd knows, as a power of two.
const WINDOW_LOG_MIN: u32 = 10;
/// The largest window that the kernel unpacks (`ZSTD_WINDOWSIZE_MAX` in its lib/decompress_unzstd.c).
const WINDOW_LOG_MAX: u32 = 27;

/// What an initramfs is to hold besides /init and the file systems of a root.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The machines that it is for.
    pub profile: &'a Profile,
    /// Names of further modules. Each is loaded when a device wants it, or at once if it is for no device.
    pub modules: &'a [String],
    /// Further files.
    pub files: &'a [ExtraFile],
    /// `None`: the best that the kernel undoes.
    pub compression: Option<Compression>,
    /// How hard zstd tries, 1 to 19.
    pub level: i32,
}

/// A file that somebody adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraFile {
    /// Where it lies in the initramfs.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub bytes: Vec<u8>,
}

impl<'a> Wanted<'a> {
    /// What a profile asks for, and nothing else.
    pub fn by(profile: &'a Profile) -> Self {
        Self {
            profile,
            modules: &[],
            files: &[],
            compression: None,
            level: LEVEL_SMALL,
        }
    }
}

/// How an initramfs is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// For kernels with `CONFIG_RD_ZSTD` (5.9 and later).
    Zstd,
    /// For kernels with `CONFIG_RD_GZIP`, as every distribution's are.
    Gzip,
    /// Not at all: for loaders that compress by themselves, for looking inside, and for kernels that
    /// undo neither.
    None,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::None => "none",
        })
    }
}

/// A word that names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected compression zstd, gzip or none, got {got:?}")]
pub struct UnknownCompression {
    /// The word.
    pub got: String,
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(word: &str) -> Result<Self, UnknownCompression> {
        match word {
            "zstd" => Ok(Self::Zstd),
            "gzip" => Ok(Self::Gzip),
            "none" => Ok(Self::None),
            _ => Err(UnknownCompression {
                got: word.to_owned(),
            }),
        }
    }
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
    /// The size of its /init.
    pub init_bytes: usize,
    /// How many of `bytes` are processors' microcode; it stands first, uncompressed.
    pub microcode_bytes: usize,
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
    /// A module that was asked for by name.
    #[error(
        "no module {module} in kernel {kernel}, and it is not built in: see modules.dep for the names that there are"
    )]
    UnknownModule {
        /// The module's name.
        module: String,
        /// The kernel's release.
        kernel: String,
    },
    /// A compression that was asked for by name.
    #[error("kernel {kernel} cannot undo {asked}: choose {best}, or a kernel that can")]
    CannotUndo {
        /// The compression.
        asked: Compression,
        /// The best that it undoes.
        best: Compression,
        /// The kernel's release.
        kernel: String,
    },
    /// There is no /init for the kernel's processor.
    #[error(
        "kernel {kernel} is for {machine}, and this build of slate has no /init for that: it has one for {}",
        there_are.join(" and one for ")
    )]
    NoInit {
        /// The kernel's release.
        kernel: String,
        /// The processor that its modules are for.
        machine: &'static str,
        /// Processors that there is one for.
        there_are: Vec<&'static str>,
    },
    /// A file that was added has no place.
    #[error(
        "{path}: expected a path in the initramfs that nothing else has, without . and .., such as /etc/site.conf"
    )]
    BadPath {
        /// The path.
        path: String,
    },
    /// A shell was asked for and there is none.
    #[error(
        "expected a busybox for x86-64 that is linked statically, in the image or on this machine, found none: \
         install busybox-static in either (Enterprise Linux and Fedora: busybox)"
    )]
    NoShell,
    /// More microcode than there can be.
    #[error("{}: expected at most {max} bytes of microcode: remove what is not a processor's", folder.display())]
    TooMuchMicrocode {
        /// Where it lies in the source.
        folder: PathBuf,
        /// The most, in bytes.
        max: usize,
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

/// Builds the initramfs of a kernel: that of `inits` which is for its processor, and what is wanted.
pub fn build(
    source: &ModuleSource<'_>,
    wanted: &Wanted<'_>,
    inits: &Inits,
) -> Result<Initramfs, Error> {
    let modprobe = source.modprobe()?;
    let index = source.index(&modprobe)?;
    let compression = compression(source, wanted.compression)?;
    let table = choose(&index, source.kernel(), wanted, &modprobe)?;
    let mut contents = Contents::default();
    let mut firmware = BTreeSet::new();
    let mut machine = None;
    for module in &table.modules {
        let path = index
            .path(&module.name)
            .map(PathBuf::as_path)
            .unwrap_or(std::path::Path::new(""));
        let mut bytes = source.module(path)?;
        firmware.extend(module::firmware_of(&bytes));
        machine = machine_of(&bytes).or(machine);
        if compression != Compression::None {
            wire::fold::fold(&mut bytes).map_err(|_| Error::NotAModule {
                path: path.to_owned(),
            })?;
        }
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
    let init = inits.for_kernel(source.kernel(), machine)?;
    contents.file("/init", 0o755, init.to_vec());
    for file in wanted.files {
        contents.add(file)?;
    }
    let mut bytes = match wanted.profile {
        // It is the host's business.
        Profile::Virtual => Vec::new(),
        _ => microcode::archive(source)?,
    };
    let microcode_bytes = bytes.len();
    let archive = contents.archive()?;
    bytes.extend(compress(&archive, compression, wanted.level).map_err(Error::Compress)?);
    Ok(Initramfs {
        bytes,
        microcode_bytes,
        init_bytes: init.len(),
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

/// The compression that is asked for, as far as the kernel undoes it.
fn compression(
    source: &ModuleSource<'_>,
    asked: Option<Compression>,
) -> Result<Compression, Error> {
    let best = source.compression()?;
    match asked {
        Some(asked) if source.undoes(asked)? => Ok(asked),
        Some(asked) => Err(Error::CannotUndo {
            asked,
            best,
            kernel: source.kernel().to_owned(),
        }),
        None => Ok(best),
    }
}

/// An initramfs with the trace of a boot ([`wire::trace`]). It is an archive of its own before the
/// other one: the kernel unpacks all that follow each other (initramfs-buffer-format.rst).
pub fn with_trace(initramfs: &[u8], trace: &[u8]) -> Vec<u8> {
    let mut contents = Contents::default();
    contents.file(TRACE_PATH, 0o644, trace.to_vec());
    match contents.archive() {
        Ok(mut archive) => {
            // Microcode that follows must keep its place.
            archive.resize(archive.len().next_multiple_of(16), 0);
            archive.extend_from_slice(initramfs);
            archive
        }
        // A trace too large for an archive is no use.
        Err(_) => initramfs.to_vec(),
    }
}

/// The name under which an initramfs can be kept: equal keys mean equal bytes.
pub fn cache_key(image: &Digest, kernel: &str, wanted: &Wanted<'_>, inits: &Inits) -> Digest {
    let mut hash = Sha256::new();
    let mut put = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    put(b"slate initramfs");
    put(&FORMAT.to_le_bytes());
    put(&image.0);
    put(kernel.as_bytes());
    put(wanted.profile.key().as_bytes());
    for init in inits.all() {
        put(init);
    }
    put(format!("{:?} {}", wanted.compression, wanted.level).as_bytes());
    put(wanted.modules.join(" ").as_bytes());
    for file in wanted.files {
        put(file.path.as_bytes());
        put(&file.mode.to_le_bytes());
        put(&file.bytes);
    }
    Digest(hash.finalize().into())
}

/// Which modules go in, and how /init is to load them.
fn choose(
    index: &Index,
    kernel: &str,
    wanted: &Wanted<'_>,
    modprobe: &Modprobe,
) -> Result<Table, Error> {
    let mut core = core(index, kernel)?;
    let extra = extra(index, kernel, wanted.modules)?;
    let mut names = &wanted.profile.drivers(index) - &modprobe.blacklisted;
    names.extend(core.iter().cloned());
    let deviceless = extra
        .iter()
        .filter(|name| !names.contains(*name))
        .filter(|name| !has_device(index, name) || modprobe.blacklisted.contains(*name));
    core.extend(deviceless.cloned());
    names.extend(extra);
    let by_init = BY_INIT.iter().filter(|name| index.is_module(name));
    names.extend(by_init.map(|name| (*name).to_owned()));
    let needed: Vec<_> = names
        .iter()
        .flat_map(|name| index.needs(name, &HELPERS))
        .collect();
    names.extend(needed.into_iter().map(|need| need.name));
    // As modprobe has it: what is blacklisted is loaded for no device, yet where another one needs it.
    let for_devices = names.difference(&modprobe.blacklisted);
    let aliases = for_devices.flat_map(|name| {
        let first = SECOND_HALVES
            .iter()
            .find(|(_, second)| second == name)
            .map(|(first, _)| *first);
        let of_first = first.into_iter().flat_map(|first| index.aliases_of(first));
        of_first.chain(index.aliases_of(name)).map(|alias| Alias {
            module: name.clone(),
            ..alias.clone()
        })
    });
    Ok(Table {
        kernel: kernel.to_owned(),
        aliases: aliases.filter(is_of_device).collect(),
        modules: names
            .iter()
            .map(|name| Module {
                name: name.clone(),
                needs: index.needs(name, &HELPERS),
                options: modprobe.options.get(name).cloned().unwrap_or_default(),
            })
            .collect(),
        core,
    })
}

/// The modules asked for by name that are not built in.
fn extra(index: &Index, kernel: &str, asked: &[String]) -> Result<BTreeSet<String>, Error> {
    let mut extra = BTreeSet::new();
    for name in asked.iter().map(|name| canonical(name)) {
        if index.is_module(&name) {
            extra.insert(name);
        } else if !index.is_builtin(&name) {
            return Err(Error::UnknownModule {
                module: name,
                kernel: kernel.to_owned(),
            });
        }
    }
    Ok(extra)
}

fn has_device(index: &Index, module: &str) -> bool {
    index.aliases_of(module).any(is_of_device)
}

/// Names of file systems and protocols are aliases too, but no device has them: a device's has its bus first.
fn is_of_device(alias: &Alias) -> bool {
    alias.pattern.contains(':')
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

    /// A file of somebody else's, which takes nobody's place.
    fn add(&mut self, file: &ExtraFile) -> Result<(), Error> {
        let path = file.path.trim_start_matches('/');
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        let is_directory = |above: &str| {
            self.members
                .get(above)
                .is_none_or(|(mode, _)| mode & cpio::S_IFMT == cpio::S_IFDIR)
        };
        if !is_plain(path)
            || self.members.contains_key(path)
            || !above.into_iter().all(is_directory)
        {
            return Err(Error::BadPath {
                path: file.path.clone(),
            });
        }
        self.file(path, file.mode & 0o7777, file.bytes.clone());
        Ok(())
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

fn compress(archive: &[u8], compression: Compression, level: i32) -> io::Result<Vec<u8>> {
    match compression {
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level)?;
            encoder.include_checksum(true)?;
            encoder.set_pledged_src_size(Some(archive.len() as u64))?;
            // Drivers resemble each other: all of the archive is within reach, as far as the kernel allows.
            let reach = archive.len().next_power_of_two().ilog2();
            encoder.window_log(reach.clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX))?;
            encoder.write_all(archive)?;
            encoder.finish()
        }
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(archive)?;
            encoder.finish()
        }
        Compression::None => Ok(archive.to_vec()),
    }
}

#[cfg(test)]
mod tests;
