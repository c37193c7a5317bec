//! What the tests share: the command, a state directory for it, a small image that programs run in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::disk::Disk;

/// Says why a test cannot run here, in the words that the test runner counts.
pub fn impossible(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|it| !Path::new(it).exists());
    let reason = if !is_root() {
        "only root can mount file systems and change images".to_owned()
    } else if let Some(program) = missing {
        format!("{program} is not installed")
    } else {
        return false;
    };
    println!("skipped: {reason}");
    true
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// `slate` with a state directory of its own.
pub struct Slate<'d> {
    state: PathBuf,
    disk: Option<&'d Disk>,
}

impl<'d> Slate<'d> {
    pub fn at(state: &Path) -> Slate<'d> {
        Slate {
            state: state.to_owned(),
            disk: None,
        }
    }

    /// With the state on a disk.
    pub fn on(disk: &'d Disk) -> Slate<'d> {
        Slate {
            state: disk.path().join("state"),
            disk: Some(disk),
        }
    }

    /// The state directory, for this process.
    pub fn state(&self) -> PathBuf {
        self.disk
            .map_or_else(|| self.state.clone(), |disk| disk.seen().join("state"))
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_slate");
        let mut command = match self.disk {
            Some(disk) => disk.command(program),
            None => Command::new(program),
        };
        command
            .args(words)
            .env("SLATE_STATE_DIR", &self.state)
            .env("SLATE_RUN_DIR", self.state.join("run"))
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("slate starts")
    }

    /// Runs it to a good end; what it printed.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "slate {words:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The one JSON document that it prints.
    pub fn json(&self, words: &[&str]) -> Value {
        let printed = self.run(words);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// Runs it to an end of that exit status; what it said, every part of which is expected.
    pub fn fails(&self, words: &[&str], code: i32, parts: &[&str]) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "slate {words:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
        said
    }

    /// The version that a reference names.
    pub fn digest(&self, reference: &str) -> String {
        let shown = self.json(&["image", "show", reference, "--json"]);
        shown["digest"].as_str().expect("a digest").to_owned()
    }
}

/// Makes a root file system in which a shell runs, with as much of a kernel as the checks want.
pub fn busybox_root(root: &Path) {
    for directory in [
        "bin", "usr", "etc", "proc", "sys", "dev", "run", "tmp", "sbin",
    ] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox");
    for name in ["sh", "env", "sed", "uname"] {
        symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    symlink("../bin", root.join("usr/bin")).expect("a link");
    write(&root.join("sbin/init"), "init");
    write(&root.join("boot/vmlinuz-1.0"), "kernel");
    write(
        &root.join("lib/modules/1.0/modules.dep"),
        "kernel/nfsv4.ko:\nkernel/overlay.ko:\n",
    );
}

/// Writes a file, and makes the directories above it.
pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, content).expect("a file");
}
