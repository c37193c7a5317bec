//! User-Mode Linux: a Linux kernel as a process, for fast boots with a real NFS client.

use std::arch::x86_64::__cpuid_count;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::MemfdFlags;

use crate::machine::MacAddress;
use crate::network::Tap;
use crate::process::{SCRATCH, inherited_path};

/// The most processor state that the kernel of Debian's package can handle, in bytes.
const STATE_MAX_BYTES: u32 = 2696;
/// What makes it handle more: see there.
const REGISTERS: &str = include_str!("uml_registers.c");

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

    /// What has to be preloaded on this processor, as an open file.
    pub(crate) fn preload() -> io::Result<Option<Arc<OwnedFd>>> {
        static COMPILED: Mutex<Option<Arc<OwnedFd>>> = Mutex::new(None);
        // The size of the processor state by the features that are enabled.
        if __cpuid_count(0xd, 0).ebx <= STATE_MAX_BYTES {
            return Ok(None);
        }
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.is_none() {
            *compiled = Some(Arc::new(compile(REGISTERS)?));
        }
        Ok(compiled.clone())
    }

    pub(crate) fn command(
        &self,
        name: &str,
        tap: &Tap,
        mac: MacAddress,
        preload: Option<&Arc<OwnedFd>>,
    ) -> Command {
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
        if let Some(library) = preload {
            command.env("LD_PRELOAD", inherited_path(library));
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }
}

/// Compiles C into a shared library that exists in memory only.
fn compile(source: &str) -> io::Result<OwnedFd> {
    let library = rustix::fs::memfd_create("uml-registers", MemfdFlags::CLOEXEC)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), library.as_raw_fd());
    let mut compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", &path])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("starting cc, a C compiler: {error}")))?;
    if let Some(mut input) = compiler.stdin.take() {
        input.write_all(source.as_bytes())?;
    }
    if !compiler.wait()?.success() {
        return Err(io::Error::other(
            "cc could not compile what this processor needs",
        ));
    }
    Ok(library)
}
