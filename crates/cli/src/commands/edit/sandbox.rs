//! The place where an image's own programs run: namespaces, a minimal `/dev`, and a resolver.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use image::boot::BootFiles;
use image::files::HostDir;
use signal_hook::consts::SIGINT;

use crate::args::Switch;
use crate::commands::image::path_failure;
use crate::failure::{Failure, Outcome};
use crate::foreground;

/// Mounts, then enters.
const ENTER: &str = include_str!("enter.sh");
/// The same with next to no mounts. Arguments: the image's root; then the command.
const ENTER_BARE: &str =
    r#"mount -t proc -o nosuid,nodev,noexec proc "$0/proc" && exec chroot "$0" "$@""#;
/// Has Debian's packages start no daemons (invoke-rc.d(8)).
const POLICY: &str =
    "#!/bin/sh\n# By slate, while the image is changed: start nothing.\nexit 101\n";
/// Where the mount points are.
const DIRECTORIES: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];

/// A directory for one change; removed when dropped, and by the next one if this process was killed.
pub struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Makes one below `parent`.
    pub fn new(parent: &Path) -> Outcome<WorkDir> {
        use std::os::unix::fs::DirBuilderExt as _;
        let failed = |error| path_failure("making", parent, &error);
        let mut private = fs::DirBuilder::new();
        private
            .mode(0o700)
            .recursive(true)
            .create(parent)
            .map_err(failed)?;
        remove_abandoned(parent).map_err(failed)?;
        let path = parent.join(std::process::id().to_string());
        let lock = File::create(lock_of(&path)).map_err(failed)?;
        lock.lock().map_err(failed)?;
        private.create(&path).map_err(failed)?;
        Ok(WorkDir { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // What stays behind is removed by the next one.
        let _ = fs::remove_dir_all(&self.path);
        let _ = fs::remove_file(lock_of(&self.path));
    }
}

fn lock_of(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

fn remove_abandoned(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        if path.extension().is_none() {
            continue;
        }
        let held = File::open(&path).and_then(|lock| Ok(lock.try_lock()?));
        // What cannot be removed keeps its lock, for the next one to try: a process that was killed may
        // leave others behind for a moment.
        if held.is_ok() && is_removed(&path.with_extension("")) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

fn is_removed(directory: &Path) -> bool {
    fs::remove_dir_all(directory).is_ok() || !directory.exists()
}

/// The release of the kernel of the image in `root`, where it has one that nodes can boot.
pub fn kernel_of(root: &Path) -> Option<String> {
    BootFiles::of(&HostDir::new(root))
        .ok()
        .map(|it| it.kernel.version)
}

/// A command line that goes on in namespaces of its own and ends with this process.
fn isolated(network: Switch) -> Command {
    let mut enter = Command::new("setpriv");
    enter.args(["--pdeathsig", "KILL", "unshare", "--mount", "--uts"]);
    enter.args(["--ipc", "--pid", "--fork", "--kill-child"]);
    enter.args(["--propagation", "private"]);
    if network == Switch::Off {
        enter.arg("--net");
    }
    enter
}

/// Has a command print to a log, where there is one.
fn print_to(command: &mut Command, log: Option<&File>) -> Outcome {
    if let Some(log) = log {
        let failed = |error| Failure::because("opening the log", &error);
        command.stdout(log.try_clone().map_err(failed)?);
        command.stderr(log.try_clone().map_err(failed)?);
    }
    Ok(())
}

/// Waits for a command of [`isolated`]. Meanwhile Ctrl-C is the command's.
fn run_to_end(command: &mut Command) -> Outcome<ExitStatus> {
    let over = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register_conditional_default(SIGINT, Arc::clone(&over))
        .map_err(|error| Failure::because("catching Ctrl-C", &error))?;
    let status = command.status();
    over.store(true, Ordering::Relaxed);
    status.map_err(|error| Failure::because("starting setpriv", &error).hint("install util-linux"))
}

/// Where and how programs run.
pub struct Sandbox {
    root: PathBuf,
    /// Their `/tmp`.
    scratch: PathBuf,
    name: String,
    kernel: Option<String>,
    network: Switch,
}

impl Sandbox {
    /// For the image in `root`.
    pub fn new(
        root: &Path,
        work: &Path,
        name: &str,
        kernel: Option<String>,
        network: Switch,
    ) -> Outcome<Sandbox> {
        use std::os::unix::fs::PermissionsExt as _;
        for directory in DIRECTORIES {
            let path = root.join(directory);
            if !path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                return Err(Failure::new(format!(
                    "expected a directory /{directory} in the image, found none"
                ))
                .hint("import a whole root file system"));
            }
        }
        let scratch = work.join("tmp");
        fs::create_dir(&scratch)
            .and_then(|()| fs::set_permissions(&scratch, fs::Permissions::from_mode(0o1777)))
            .map_err(|error| path_failure("making", &scratch, &error))?;
        Ok(Sandbox {
            root: root.to_owned(),
            scratch,
            name: name.to_owned(),
            kernel,
            network,
        })
    }

    /// Puts into the image what must be there only while programs run.
    pub fn prepare(&self) -> Outcome<Placed> {
        let mut placed = Placed::default();
        let programs = self.directory("usr/sbin");
        if let Some(programs) = programs.filter(|it| it.join("invoke-rc.d").exists()) {
            placed.place(&programs.join("policy-rc.d"), POLICY.as_bytes(), 0o755)?;
        }
        let configuration = self.directory("etc").filter(|_| self.network == Switch::On);
        if let Some(configuration) = configuration {
            let resolver = configuration.join("resolv.conf");
            let ours = fs::read("/etc/resolv.conf").unwrap_or_default();
            placed.place(&resolver, &ours, 0o644)?;
        }
        Ok(placed)
    }

    /// A directory of the image, all links resolved; `None` where they lead out of it.
    fn directory(&self, name: &str) -> Option<PathBuf> {
        let root = self.root.canonicalize().ok()?;
        let directory = self.root.join(name).canonicalize().ok()?;
        (directory.starts_with(&root) && directory.is_dir()).then_some(directory)
    }

    /// Runs a program of this machine in the image, as `/tmp/NAME`; what it prints goes to `log`.
    pub fn run_script(&self, script: &Path, log: Option<&File>) -> Outcome<ExitStatus> {
        use std::os::unix::fs::PermissionsExt as _;
        let failed = |error| path_failure("copying", script, &error);
        let name = script.file_name().unwrap_or("script".as_ref());
        let copy = self.scratch.join(name);
        fs::copy(script, &copy).map_err(failed)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        let mut path = OsString::from("/tmp/");
        path.push(name);
        let placed = self.prepare()?;
        let status = self.execute(&[path], log);
        placed.take_back()?;
        status
    }

    /// Runs a command to its end. Meanwhile Ctrl-C is the command's.
    pub fn run(&self, command: &[String]) -> Outcome<ExitStatus> {
        let command: Vec<OsString> = command.iter().map(OsString::from).collect();
        self.execute(&command, None)
    }

    /// Runs a program of the image that needs nothing but files, without any mount over them but
    /// `/proc`: it sees the image's own mount points. `input` is what it reads.
    pub fn execute_bare(
        &self,
        command: &[OsString],
        input: &[u8],
        log: Option<&File>,
    ) -> Outcome<ExitStatus> {
        let path = self.scratch.join("input");
        // What programs left there may be a link.
        let _ = fs::remove_file(&path);
        let failed = |error| path_failure("writing", &path, &error);
        fs::write(&path, input).map_err(failed)?;
        let input = File::open(&path).map_err(failed)?;
        let mut enter = isolated(Switch::Off);
        enter
            .args(["sh", "-c", ENTER_BARE])
            .arg(&self.root)
            .args(command);
        enter.stdin(input);
        print_to(&mut enter, log)?;
        run_to_end(&mut enter)
    }

    /// Runs a command, what it prints to a log where there is one.
    pub fn execute(&self, command: &[OsString], log: Option<&File>) -> Outcome<ExitStatus> {
        let mut enter = isolated(self.network);
        enter.args(["sh", "-c", ENTER, "sh"]);
        enter.arg(&self.root).arg(&self.scratch);
        enter.arg(self.kernel.as_deref().unwrap_or_default());
        enter.arg(&self.name).arg(self.resolver_in_run());
        enter.args(command);
        if log.is_some() {
            enter.stdin(Stdio::null());
        }
        print_to(&mut enter, log)?;
        let status = run_to_end(&mut enter);
        if log.is_none() {
            foreground::take_back();
        }
        status
    }

    /// Where the resolver's configuration is expected below `/run`, which is empty at first.
    fn resolver_in_run(&self) -> PathBuf {
        let Ok(target) = fs::read_link(self.root.join("etc/resolv.conf")) else {
            return PathBuf::new();
        };
        let target = target
            .strip_prefix("..")
            .or_else(|_| target.strip_prefix("/"))
            .unwrap_or(&target);
        let plain = target
            .components()
            .all(|it| matches!(it, std::path::Component::Normal(_)));
        if plain && target.starts_with("run") && self.network == Switch::On {
            target.to_owned()
        } else {
            PathBuf::new()
        }
    }
}

/// Files that were put into the image, and what was there before.
#[derive(Default)]
pub struct Placed(Vec<Placement>);

/// One of them.
struct Placement {
    path: PathBuf,
    content: Vec<u8>,
    before: Option<(Vec<u8>, SystemTime)>,
    parent: SystemTime,
    /// The directory's time once the file was there: another one later says that somebody else
    /// changed it, too.
    parent_placed: SystemTime,
}

impl Placed {
    fn place(&mut self, path: &Path, content: &[u8], mode: u32) -> Outcome {
        use std::os::unix::fs::PermissionsExt as _;
        let failed = |error| path_failure("writing", path, &error);
        if path.symlink_metadata().is_ok_and(|it| !it.is_file()) {
            // A link is for the image to follow, once it runs.
            return Ok(());
        }
        let directory = path.parent().unwrap_or(path);
        let parent = modified(directory).map_err(failed)?;
        let before = match fs::read(path) {
            Ok(content) => Some((content, modified(path).map_err(failed)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        fs::write(path, content).map_err(failed)?;
        if before.is_none() {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
        self.0.push(Placement {
            path: path.to_owned(),
            content: content.to_vec(),
            before,
            parent,
            parent_placed: modified(directory).map_err(failed)?,
        });
        Ok(())
    }

    /// Puts back what was there, unless the command has put something else there.
    pub fn take_back(self) -> Outcome {
        for file in self.0 {
            file.take_back()
                .map_err(|error| path_failure("restoring", &file.path, &error))?;
        }
        Ok(())
    }
}

impl Placement {
    fn take_back(&self) -> io::Result<()> {
        let is_ours = fs::read(&self.path).is_ok_and(|content| content == self.content);
        let is_file = self.path.symlink_metadata().is_ok_and(|it| it.is_file());
        if !is_ours || !is_file {
            return Ok(());
        }
        let directory = self.path.parent().unwrap_or(&self.path);
        if directory.canonicalize()? != directory {
            return Ok(());
        }
        let untouched = modified(directory)? == self.parent_placed;
        match &self.before {
            Some((content, time)) => {
                fs::write(&self.path, content)?;
                File::options()
                    .write(true)
                    .open(&self.path)?
                    .set_modified(*time)?;
            }
            None => fs::remove_file(&self.path)?,
        }
        if untouched {
            File::open(directory)?.set_modified(self.parent)?;
        }
        Ok(())
    }
}

fn modified(path: &Path) -> io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_placed_is_gone_afterwards_and_the_times_are_as_before() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().canonicalize().unwrap();
        let (old, new) = (folder.join("old"), folder.join("new"));
        fs::write(&old, "before").unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let set = |path: &Path| File::open(path).unwrap().set_modified(long_ago).unwrap();
        set(&old);
        set(root.path());
        let mut placed = Placed::default();
        placed.place(&old, b"meanwhile", 0o644).unwrap();
        placed.place(&new, b"meanwhile", 0o755).unwrap();
        placed.take_back().unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"before");
        assert!(!new.exists());
        assert_eq!(modified(&old).unwrap(), long_ago);
        assert_eq!(modified(root.path()).unwrap(), long_ago);

        // What the command wrote there itself stays.
        let mut placed = Placed::default();
        placed.place(&old, b"meanwhile", 0o644).unwrap();
        placed.place(&new, b"meanwhile", 0o755).unwrap();
        fs::write(&old, "by the command").unwrap();
        fs::write(&new, "by the command").unwrap();
        placed.take_back().unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"by the command");
        assert_eq!(fs::read(&new).unwrap(), b"by the command");
    }

    #[test]
    fn an_image_whose_links_lead_out_of_it_changes_nothing_outside() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("resolv.conf"), "of this machine").unwrap();
        for directory in DIRECTORIES {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        let work = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::new(root.path(), work.path(), "x", None, Switch::On).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc")).unwrap();
        assert!(sandbox.prepare().unwrap().0.is_empty());
        fs::remove_file(root.path().join("etc")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let link = root.path().join("etc/resolv.conf");
        std::os::unix::fs::symlink(outside.path().join("resolv.conf"), &link).unwrap();
        assert!(sandbox.prepare().unwrap().0.is_empty());
        fs::remove_file(&link).unwrap();
        let placed = sandbox.prepare().unwrap();
        assert_eq!(placed.0.len(), 1);
        placed.take_back().unwrap();
        assert!(!link.exists());
        let there = fs::read(outside.path().join("resolv.conf")).unwrap();
        assert_eq!(there, b"of this machine");
    }

    #[test]
    fn a_killed_change_leaves_nothing_to_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let abandoned = parent.path().join("1");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("file"), "x").unwrap();
        fs::write(lock_of(&abandoned), "").unwrap();
        let held = parent.path().join("2");
        fs::create_dir(&held).unwrap();
        let lock = File::create(lock_of(&held)).unwrap();
        lock.lock().unwrap();
        let work = WorkDir::new(parent.path()).unwrap();
        assert!(!abandoned.exists() && held.exists());
        let path = work.path().to_owned();
        drop(work);
        assert!(!path.exists() && !lock_of(&path).exists());
    }
}
