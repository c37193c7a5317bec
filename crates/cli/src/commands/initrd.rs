//! `slate initrd`: an initramfs as a file, for loaders and machines that the daemon does not serve,
//! and versions that boot with somebody else's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand, ValueHint};
use daemon::control::Client;
use image::boot::{BOOT_FILE_MAX, BootFiles};
use image::files::{Files, HostDir};
use image::initramfs::{
    self, Compression, Encoding, ExtraFile, Initramfs, LEVEL_QUICK, ModuleSource, Profile, Wanted,
};
use image::{Digest, Store, StoredTree, Version};
use serde_json::json;

use super::image::{open_store, path_failure, resolve};
use super::{node, upkeep};
use crate::args::{DirArgs, OutputArgs};
use crate::embedded;
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// `slate initrd …`.
#[derive(Subcommand, Debug)]
pub enum InitrdCommand {
    /// Write the initramfs of an image or a directory into a file
    ///
    /// The same inputs give the same bytes.
    Build(Box<BuildArgs>),
    /// Boot a version with an initramfs of your own, such as dracut's, in the place of ours
    ///
    /// The daemon sends the file as it is. It belongs to the version that the tag names now: the next
    /// version boots with ours again, and `slate image gc` removes it with its version.
    Use(UseArgs),
    /// List the versions that boot with an initramfs of your own
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Which version boots with which file.
#[derive(Args, Debug)]
pub struct UseArgs {
    /// The version
    #[arg(value_name = "NAME[:TAG]|DIGEST")]
    image: String,
    /// The initramfs: a cpio archive, as a rule compressed
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "reset")]
    file: Option<PathBuf>,
    /// Boot with ours again
    #[arg(long, conflicts_with = "file")]
    reset: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What goes into an initramfs, and where it comes from.
#[derive(Args, Debug, Clone)]
pub struct BuildArgs {
    /// An image, or (with a / in it) a directory: a root file system or the modules of one kernel
    #[arg(value_name = "IMAGE|DIR", value_hint = ValueHint::AnyPath)]
    source: PathBuf,
    /// Where to write it
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// The kernel's release [default: the newest; for a directory of modules, its name]
    #[arg(long, value_name = "RELEASE")]
    kernel: Option<String>,
    /// Which network drivers go in: virtual, server, all-nic, or (of a daemon that runs) inventory: what
    /// its nodes loaded at their last boots
    #[arg(long, default_value = "server")]
    profile: Profile,
    /// A further module, loaded when a device wants it, or at once if it is for no device
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A further file, at the same path or at PATH, with its permissions
    #[arg(long = "file", value_name = "FILE[:PATH]", value_hint = ValueHint::FilePath)]
    files: Vec<Added>,
    /// A shell (busybox, of the source or of this machine), for rd.break on the kernel command line
    #[arg(long)]
    debug_shell: bool,
    /// How to compress it: zstd, gzip or none [default: the best that the kernel undoes]
    #[arg(long, value_name = "HOW")]
    compression: Option<Compression>,
    /// How hard zstd tries: 19, as `slate up` does it, is a tenth smaller and takes over ten times as long
    #[arg(
        long,
        value_name = "1-19",
        default_value_t = LEVEL_QUICK,
        value_parser = clap::value_parser!(i32).range(1..=19)
    )]
    level: i32,
    #[command(flatten)]
    json: OutputArgs,
}

/// `FILE[:PATH]`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Added {
    from: PathBuf,
    to: String,
}

impl FromStr for Added {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once(':').unwrap_or((text, text));
        if from.is_empty() || !to.starts_with('/') {
            return Err(format!(
                "expected FILE:/PATH, or FILE as an absolute path, got {text}"
            ));
        }
        Ok(Self {
            from: from.into(),
            to: to.to_owned(),
        })
    }
}

/// Runs one `slate initrd` command.
pub fn run(dirs: &DirArgs, command: InitrdCommand) -> Outcome {
    match command {
        InitrdCommand::Build(args) => build(dirs, &args),
        InitrdCommand::Use(args) => {
            let done = use_other(&open_store(dirs)?, &args);
            upkeep::tell_daemon(dirs);
            done
        }
        InitrdCommand::List { output } => list(&open_store(dirs)?, output),
    }
}

const GIVE: &str = "give the file that dracut, mkinitcpio or update-initramfs made";

fn use_other(store: &Store, args: &UseArgs) -> Outcome {
    let digest = resolve(store, &args.image)?;
    let Some(file) = &args.file else {
        return reset(store, digest, args.output);
    };
    let bytes = read_bounded(file)?;
    let encoding = initramfs::inspect(&bytes).map_err(|error| {
        Failure::because(format!("checking {}", file.display()), &error)
            .hint(GIVE)
            .code(Code::Usage)
    })?;
    check_kernel(&store.open_tree(digest)?, file, encoding)?;
    store.use_initrd(digest, &bytes)?;
    if args.output.json {
        return render::json(&json!({
            "digest": digest.to_string(),
            "bytes": bytes.len(),
            "compression": encoding.to_string(),
        }));
    }
    anstream::println!(
        "{digest} boots with {} now ({}, {encoding})",
        file.display(),
        render::bytes(bytes.len() as u64),
    );
    anstream::println!(
        "It reports no stages. Back to ours: slate initrd use {} --reset",
        args.image
    );
    Ok(())
}

fn reset(store: &Store, digest: Digest, output: OutputArgs) -> Outcome {
    let had = store.reset_initrd(digest)?;
    if output.json {
        return render::json(&json!({ "digest": digest.to_string(), "had_own": had }));
    }
    let again = if had {
        "boots with our initramfs again"
    } else {
        "boots with our initramfs"
    };
    anstream::println!("{digest} {again}");
    Ok(())
}

/// A file that can be an initramfs by its size.
fn read_bounded(path: &Path) -> Outcome<Vec<u8>> {
    let failure = |error| path_failure("reading", path, &error).hint(GIVE);
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failure)?;
    file.take(BOOT_FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failure)?;
    if bytes.len() as u64 <= BOOT_FILE_MAX {
        return Ok(bytes);
    }
    let most = render::bytes(BOOT_FILE_MAX);
    let what = format!(
        "{}: expected an initramfs of at most {most}",
        path.display()
    );
    let hint = "leave drivers and firmware out of it (dracut --omit-drivers, --no-kernel)";
    Err(Failure::new(what).hint(hint).code(Code::Usage))
}

/// Refuses what the version's kernel could not unpack, as far as its configuration tells.
fn check_kernel(tree: &StoredTree, file: &Path, encoding: Encoding) -> Outcome {
    let kernel = newest(tree)?;
    let undoes = ModuleSource::in_image(tree, &kernel)
        .unpacks(encoding)
        .map_err(|error| Failure::of(&error))?;
    if undoes {
        return Ok(());
    }
    let option = encoding.option().unwrap_or_default();
    let what = format!(
        "{} is compressed with {encoding}, and kernel {kernel} has no {option}",
        file.display()
    );
    let hint = "compress it with gzip (dracut --gzip), which every kernel unpacks";
    Err(Failure::new(what).hint(hint).code(Code::Usage))
}

fn list(store: &Store, output: OutputArgs) -> Outcome {
    let versions = store.list()?;
    let own: Vec<(&Version, u64)> = versions
        .iter()
        .filter_map(|version| Some((version, version.initrd_bytes?)))
        .collect();
    if output.json {
        let rows = own.iter().map(|(version, bytes)| {
            json!({
                "digest": version.digest.to_string(),
                "tags": version.tags,
                "bytes": bytes,
            })
        });
        return render::json(&rows.collect::<Vec<_>>());
    }
    if own.is_empty() {
        anstream::println!("Every version boots with our initramfs.");
        return Ok(());
    }
    let rows = own.iter().map(|(version, bytes)| {
        vec![
            version.tags.join(", "),
            render::short_digest(&version.digest.to_string()).to_owned(),
            render::bytes(*bytes),
        ]
    });
    anstream::println!("{}", render::table(&["IMAGE", "DIGEST", "INITRAMFS"], rows));
    Ok(())
}

fn build(dirs: &DirArgs, args: &BuildArgs) -> Outcome {
    let mut args = args.clone();
    if let Profile::Inventory(names) = &mut args.profile {
        *names = reported(dirs)?;
    }
    let args = &args;
    let initramfs = if args.source.as_os_str().as_encoded_bytes().contains(&b'/') {
        from_directory(args)?
    } else {
        let store = open_store(dirs)?;
        let tree = store.open_tree(resolve(&store, &args.source.to_string_lossy())?)?;
        from_root(&tree, args)?
    };
    write(&args.output, &initramfs.bytes)?;
    say(&args.output, &initramfs, args.json)
}

/// The drivers that any node reported, each once. A node that reported none might not boot with what
/// the others have.
fn reported(dirs: &DirArgs) -> Outcome<Vec<String>> {
    let nodes = node::list(&mut Client::connect(&dirs.run_dir)?)?;
    let (told, silent): (Vec<_>, Vec<_>) = nodes.iter().partition(|node| !node.drivers.is_empty());
    if told.is_empty() {
        return Err(Failure::new("no node has reported its drivers")
            .hint("boot the nodes once with an initramfs of slate up, or choose --profile all-nic")
            .code(Code::NotReady));
    }
    if !silent.is_empty() {
        let names: Vec<&str> = silent.iter().map(|node| &*node.name).collect();
        anstream::eprintln!(
            "no drivers are known of {}: they boot only if the others' are theirs",
            names.join(", ")
        );
    }
    let drivers: BTreeSet<&String> = told.iter().flat_map(|node| &node.drivers).collect();
    Ok(drivers.into_iter().cloned().collect())
}

fn from_directory(args: &BuildArgs) -> Outcome<Initramfs> {
    let directory = args
        .source
        .canonicalize()
        .map_err(|error| path_failure("opening", &args.source, &error))?;
    let files = HostDir::new(&directory);
    if !directory.join("modules.dep").is_file() {
        return from_root(&files, args);
    }
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let kernel = args.kernel.as_deref().unwrap_or(&name);
    make(&ModuleSource::in_directory(&files, kernel), &files, args)
}

fn from_root(files: &dyn Files, args: &BuildArgs) -> Outcome<Initramfs> {
    let kernel = match &args.kernel {
        Some(kernel) => kernel.clone(),
        None => newest(files)?,
    };
    make(&ModuleSource::in_image(files, &kernel), files, args)
}

fn newest(files: &dyn Files) -> Outcome<String> {
    let found = BootFiles::of(files).map_err(|error| Failure::of(&error))?;
    Ok(found.kernel.version)
}

fn make(source: &ModuleSource<'_>, root: &dyn Files, args: &BuildArgs) -> Outcome<Initramfs> {
    let mut files = args.files.iter().map(read).collect::<Outcome<Vec<_>>>()?;
    if args.debug_shell {
        let shell = initramfs::shell(root);
        files.push(shell.map_err(|error| Failure::of(&error).code(Code::NotReady))?);
    }
    let wanted = Wanted {
        profile: &args.profile,
        modules: &args.modules,
        files: &files,
        compression: args.compression,
        level: args.level,
    };
    initramfs::build(source, &wanted, &embedded::inits()).map_err(|error| {
        let failure = Failure::because("building the initramfs", &error);
        match error {
            initramfs::Error::UnknownModule { .. }
            | initramfs::Error::CannotUndo { .. }
            | initramfs::Error::BadPath { .. } => failure.code(Code::Usage),
            _ => failure,
        }
    })
}

fn read(added: &Added) -> Outcome<ExtraFile> {
    let failure = |error| path_failure("reading", &added.from, &error);
    Ok(ExtraFile {
        path: added.to.clone(),
        mode: fs::metadata(&added.from)
            .map_err(failure)?
            .permissions()
            .mode(),
        bytes: fs::read(&added.from).map_err(failure)?,
    })
}

/// Beside its place first: nobody boots half of one. A link or a device there stays one, and is
/// written to.
fn write(output: &Path, bytes: &[u8]) -> Outcome {
    let failure = |error| path_failure("writing", output, &error);
    if fs::symlink_metadata(output).is_ok_and(|there| !there.is_file()) {
        return fs::write(output, bytes).map_err(failure);
    }
    let mut partial = OsString::from(output);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, output))
        .map_err(|error| {
            let _ = fs::remove_file(&partial);
            failure(error)
        })
}

fn say(output: &Path, initramfs: &Initramfs, print: OutputArgs) -> Outcome {
    if print.json {
        return render::json(&json!({
            "path": output,
            "bytes": initramfs.bytes.len(),
            "init_bytes": initramfs.init_bytes,
            "kernel": initramfs.kernel,
            "compression": initramfs.compression.to_string(),
            "modules": initramfs.modules,
            "firmware": initramfs.firmware,
            "microcode_bytes": initramfs.microcode_bytes,
        }));
    }
    anstream::println!(
        "{}: {} ({}) with {} modules of kernel {} and {} firmware files",
        output.display(),
        render::bytes(initramfs.bytes.len() as u64),
        initramfs.compression,
        initramfs.modules.len(),
        initramfs.kernel,
        initramfs.firmware.len(),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_files_have_an_absolute_place() {
        let added = |text: &str| text.parse::<Added>().map(|it| (it.from, it.to));
        assert_eq!(
            added("site.conf:/etc/site.conf"),
            Ok(("site.conf".into(), "/etc/site.conf".into()))
        );
        assert_eq!(
            added("/etc/site.conf"),
            Ok(("/etc/site.conf".into(), "/etc/site.conf".into()))
        );
        for wrong in ["site.conf", "site.conf:etc", ":/etc/site.conf", ""] {
            assert!(added(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_written_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("initrd");
        write(&output, b"new").unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write(&folder.path().join("none/initrd"), b"x").is_err());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&output, &link).unwrap();
        write(&link, b"newer").unwrap();
        assert!(
            link.is_symlink(),
            "what stands in a device's or a link's place"
        );
        assert_eq!(fs::read(&output).unwrap(), b"newer");
    }
}
