//! A file system in a file, and the power that it loses.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Which file system.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Ext4,
    Xfs,
}

/// One that is mounted in a mount namespace of its own: no namespace that somebody else makes
/// meanwhile has a copy of the mount, and holds it. It goes with the namespace.
pub struct Disk {
    file: PathBuf,
    mount: PathBuf,
    /// Keeps the namespace.
    keeper: Child,
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
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F", "-b4096"]),
            Kind::Xfs => ("mkfs.xfs", &["-q"]),
        };
        succeed(Command::new(program).args(options).arg(&file));
        let disk = Disk {
            file,
            mount,
            keeper: keeper(),
            _directory: directory,
        };
        disk.mount();
        disk
    }

    /// Where it is mounted, for programs started by [`Disk::command`].
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// The same for this process.
    pub fn seen(&self) -> PathBuf {
        let path = self.mount.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.keeper.id())).join(path)
    }

    /// A program to be started where the disk is mounted.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()));
        command.arg("--").arg(program);
        command
    }

    /// From now on nothing gets to the disk any more, neither data nor the log, until it is
    /// [`Disk::restore`]d: EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN without a flush.
    pub fn cut_power(&self) {
        let mut command = self.command("xfs_io");
        succeed(command.args(["-x", "-c", "shutdown"]).arg(&self.mount));
    }

    /// Mounts it again; what was not durable is lost, and the log is replayed.
    pub fn restore(&self) {
        self.unmount();
        self.mount();
    }

    fn mount(&self) {
        let mut command = self.command("mount");
        succeed(
            command
                .args(["-o", "loop"])
                .arg(&self.file)
                .arg(&self.mount),
        );
    }

    /// Who was killed a moment ago may still hold it, in a namespace of his own even after it is
    /// unmounted here: the loop device goes with the last one.
    fn unmount(&self) {
        let unmounted = || {
            let output = self.command("umount").arg(&self.mount).output();
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

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Starts a process with a mount namespace of its own, which ends with its standard input.
fn keeper() -> Child {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command.args(["sh", "-c", "echo ready; exec cat"]);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut keeper = pipes.spawn().expect("unshare starts");
    let mut line = String::new();
    let output = keeper.stdout.as_mut().expect("a pipe");
    BufReader::new(output).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    keeper
}

fn wait_until(what: &str, is_done: &dyn Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_done() {
        assert!(Instant::now() < end, "cannot {what} the disk");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
}
