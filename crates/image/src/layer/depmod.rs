//! The index of a kernel's modules, made anew where modules of several sources come together.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result, shown};
use crate::manifest::{Content, Id, Manifest};

/// What depmod reads besides modules.
const INPUTS: [&[u8]; 4] = [
    b"modules.order",
    b"modules.builtin",
    b"modules.builtin.modinfo",
    b"modules.builtin.alias.bin",
];

/// Runs depmod over the modules below `directory` (`usr/lib/modules/RELEASE`) of a tree, whose
/// objects are at `object`; the names and contents of what it makes. `scratch` is an empty directory.
pub fn index(
    tree: &Manifest,
    directory: &[u8],
    object: &dyn Fn(&Content) -> Option<std::path::PathBuf>,
    scratch: &Path,
) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let release = directory
        .rsplit(|it| *it == b'/')
        .next()
        .unwrap_or_default();
    let release = std::ffi::OsStr::from_bytes(release);
    let top = scratch.join("lib/modules").join(release);
    fs::create_dir_all(&top).map_err(Error::io("making", &top))?;
    if let Some(id) = tree.at(directory) {
        place(tree, id, object, &top)?;
    }
    let mut depmod = Command::new("depmod");
    depmod.arg("--basedir").arg(scratch).arg(release);
    let output = depmod
        .output()
        .map_err(Error::io("starting", Path::new("depmod")))?;
    if !output.status.success() {
        let said = io::Error::other(shown(&output.stderr));
        return Err(Error::io("running depmod on", &top)(said));
    }
    let mut made = Vec::new();
    for entry in fs::read_dir(&top).map_err(Error::io("listing", &top))? {
        let path = entry.map_err(Error::io("listing", &top))?.path();
        let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
        if name.starts_with(b"modules.") && !INPUTS.contains(&&name[..]) {
            let content = fs::read(&path).map_err(Error::io("reading", &path))?;
            made.push((name, content));
        }
    }
    made.sort();
    Ok(made)
}

/// Puts modules where depmod looks for them: as links to their objects, which are only read.
fn place(
    tree: &Manifest,
    id: Id,
    object: &dyn Fn(&Content) -> Option<std::path::PathBuf>,
    to: &Path,
) -> Result<()> {
    let Content::Directory(entries) = &tree.node(id).content else {
        return Ok(());
    };
    for (name, id) in entries {
        let target = to.join(std::ffi::OsStr::from_bytes(name));
        let content = &tree.node(*id).content;
        if matches!(content, Content::Directory(_)) {
            fs::create_dir(&target).map_err(Error::io("making", &target))?;
            place(tree, *id, object, &target)?;
            continue;
        }
        let is_module = name.windows(3).any(|it| it == b".ko");
        if !is_module && !INPUTS.contains(&&name[..]) {
            continue;
        }
        let placed = match content {
            Content::Inline(bytes) => fs::write(&target, bytes),
            Content::Symlink(link) => symlink(std::ffi::OsStr::from_bytes(link), &target),
            other => object(other).map_or(Ok(()), |path| symlink(path, &target)),
        };
        placed.map_err(Error::io("making", &target))?;
    }
    Ok(())
}
