//! A file system in a file, and the power that it loses.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Which file system.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Ext4,
    Xfs,
}

/// One that is mounted; unmounted and gone when dropped.
pub struct Disk {
    file: PathBuf,
    mount: PathBuf,
    _directory: tempfile::TempDir,
}

impl Disk {
    /// Makes one of so many MiB; they take space as they are written. XFS wants 300.
    pub fn new(kind: Kind, mib: u64) -> Disk {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (file, mount) = (directory.path().join("disk"), directory.path().join("mnt"));
        let image = File::create(&file).expect("a file");
        image.set_len(mib << 20).expect("a file of that length");
        std::fs::create_dir(&mount).expect("a directory");
        let (program, options): (&str, &[&str]) = match kind {
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Kind::Xfs => ("mkfs.xfs", &["-q"]),
        };
        command(Command::new(program).args(options).arg(&file));
        let disk = Disk {
            file,
            mount,
            _directory: directory,
        };
        disk.mount();
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// From now on nothing gets to the disk any more, neither data nor the log, until it is
    /// [`Disk::restore`]d: EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN without a flush.
    pub fn cut_power(&self) {
        command(
            Command::new("xfs_io")
                .args(["-x", "-c", "shutdown"])
                .arg(&self.mount),
        );
    }

    /// Mounts it again; what was not durable is lost, and the log is replayed.
    pub fn restore(&self) {
        self.unmount();
        self.mount();
    }

    fn mount(&self) {
        command(
            Command::new("mount")
                .args(["-o", "loop"])
                .arg(&self.file)
                .arg(&self.mount),
        );
    }

    /// Who was killed a moment ago may still hold it, in a namespace of his own even after it is
    /// unmounted here: the loop device goes with the last one.
    fn unmount(&self) {
        let unmounted = || {
            let output = Command::new("umount").arg(&self.mount).output();
            output.expect("umount starts").status.success()
        };
        wait_until("unmount", &unmounted);
        let is_free = || {
            let mut list = Command::new("losetup");
            let devices = list.arg("--associated").arg(&self.file).output();
            devices.expect("losetup starts").stdout.is_empty()
        };
        wait_until("free the loop device of", &is_free);
    }
}

fn wait_until(what: &str, is_done: &dyn Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_done() {
        assert!(Instant::now() < end, "cannot {what} the disk");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut lazily = Command::new("umount");
        let _ = lazily.arg("--lazy").arg(&self.mount).status();
    }
}

fn command(command: &mut Command) {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
}
