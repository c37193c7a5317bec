//! Leaves the initramfs: moves the kernel's mounts, frees the initramfs, enters the root.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{StatFs, statfs};
use rustix::mount::{MountPropagationFlags, mount_change, mount_move};

use crate::mount::ROOT;

/// Makes the mounted root the root of this process. The initramfs is emptied on the way.
pub fn switch_root() -> io::Result<()> {
    for name in ["dev", "proc", "sys", "run"] {
        let target = format!("{ROOT}/{name}");
        fs::create_dir_all(&target)?;
        mount_move(format!("/{name}"), target)?;
    }
    rustix::process::chdir(ROOT)?;
    empty_initramfs()?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    // systemd shares mounts itself; other inits expect the kernel's default.
    mount_change("/", MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Deletes the initramfs's files to free their memory, if `/` is one beyond doubt.
fn empty_initramfs() -> io::Result<()> {
    let root = fs::metadata("/")?;
    let new_root = fs::metadata(ROOT)?;
    let kind: StatFs = statfs("/")?;
    if may_delete(
        kind.f_type as u64,
        root.dev(),
        new_root.dev(),
        Path::new("/init").exists(),
    ) {
        delete_within(Path::new("/"), root.dev());
    }
    Ok(())
}

const RAMFS_MAGIC: u64 = 0x8584_58f6;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Only a file system that lives in memory, is not the new root and holds `/init` is an initramfs.
fn may_delete(file_system: u64, device: u64, new_device: u64, has_init: bool) -> bool {
    matches!(file_system, RAMFS_MAGIC | TMPFS_MAGIC) && device != new_device && has_init
}

/// Deletes what lies on this device; other mounts are not entered.
fn delete_within(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            delete_within(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_initramfs_is_deleted() {
        assert!(may_delete(RAMFS_MAGIC, 1, 2, true));
        assert!(may_delete(TMPFS_MAGIC, 1, 2, true));
        assert!(!may_delete(0xef53, 1, 2, true));
        assert!(!may_delete(TMPFS_MAGIC, 1, 1, true));
        assert!(!may_delete(TMPFS_MAGIC, 1, 2, false));
    }
}
