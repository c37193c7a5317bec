//! User-Mode Linux: a Linux kernel as a process, for fast boots with a real NFS client.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::machine::MacAddress;
use crate::network::Tap;
use crate::process::SCRATCH;

/// A User-Mode Linux machine.
#[derive(Clone, Debug)]
pub struct Uml {
    /// The initramfs; without one the command line must name a root file system.
    pub initrd: Option<PathBuf>,
    /// The part of the kernel command line that the boot server decides.
    pub command_line: String,
    /// Memory, in MiB.
    pub memory_mib: u32,
}

impl Uml {
    /// Where the distribution's package keeps the modules of its kernel: the folder named by the
    /// kernel release, e.g. `/usr/lib/uml/modules/6.1.176`.
    pub fn modules() -> Option<PathBuf> {
        let mut releases: Vec<PathBuf> = Path::new("/usr/lib/uml/modules")
            .read_dir()
            .ok()?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.is_dir())
            .collect();
        releases.sort();
        releases.pop()
    }

    pub(crate) fn command(&self, name: &str, tap: &Tap, mac: MacAddress) -> Command {
        // The kernel runs each guest process as a process of its own. In a process namespace they
        // all end with it; the shell is there because a namespace's first process ignores signals.
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
        command.args(["sh", "-c", "\"$@\"; exit $?", "sh", "linux.uml"]);
        command.arg(format!("mem={}M", self.memory_mib));
        command
            .arg(format!("umid={name}"))
            .arg(format!("uml_dir={SCRATCH}"));
        if let Some(initrd) = &self.initrd {
            command.arg(format!("initrd={}", initrd.display()));
        }
        // Without gro=1 the driver drops segments that the host's kernel has joined.
        command.arg(format!(
            "vec0:transport=tap,ifname={},depth=128,gro=1,mac={mac}",
            tap.name
        ));
        command.args([
            "con=null",
            "ssl=null",
            "ssl0=fd:0,fd:1",
            "console=ttyS0",
            "panic=1",
        ]);
        command.args(self.command_line.split_ascii_whitespace());
        command.env("TMPDIR", SCRATCH).env("HOME", SCRATCH);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }
}
