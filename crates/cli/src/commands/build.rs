//! `slate image build`: an image made of a distribution's packages, and what a recipe adds to them.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use image::boot::{Loader, Origin};
use image::build::{self, Release};
use image::check::{Finding, Severity};
use image::files::{Files, HostDir};
use image::selinux::{self, Lack};
use image::{Staged, Store, StoredTree};

use super::edit::labels;
use super::edit::sandbox::{Sandbox, WorkDir, kernel_of};
use super::image::{
    Imported, Meter, Step, cache_dir, open_store, path_failure, publish, say_imported, target,
};
use crate::args::{BuildArgs, DirArgs, OutputArgs, Switch};
use crate::failure::{Code, Failure, Outcome};
use crate::recipe::Recipe;

/// How long a built archive is used again; after that the distribution has newer packages.
const CACHE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Lines of the log that a failure of a script shows.
const LINES_SHOWN: usize = 5;
/// Most of the end of a log that is read for them, in bytes.
const TAIL_MAX: u64 = 64 << 10;

/// Runs `slate image build`.
pub fn run(dirs: &DirArgs, args: &BuildArgs, output: OutputArgs) -> Outcome {
    let recipe = Recipe::of(args)?;
    let store = open_store(dirs)?;
    let mut meter = Meter::new();
    let mut follow = |step: Step| meter.show(&step);
    let imported = build(dirs, &store, &recipe, &cache_dir(dirs), &mut follow);
    meter.done();
    say_imported(&store, &imported?, output)
}

/// Makes a plain image of a release and imports it as `name` (`NAME` or `NAME:TAG`, as for an
/// import). An archive that was made within [`CACHE_AGE_MAX`] is used again.
pub(crate) fn build_plain(
    store: &Store,
    release: Release,
    name: &str,
    cache: &Path,
    progress: &mut dyn FnMut(Step),
) -> Outcome<Imported> {
    let target = target(name)?;
    let log = Log::new(&cache.join("log"), name)?;
    let archive = archive(&build::Recipe::of(release), cache, &log, progress)?;
    let staged = stage(store, &archive.path, progress)?;
    archive.remark(store, publish(store, staged, target)?, &log)
}

fn build(
    dirs: &DirArgs,
    store: &Store,
    recipe: &Recipe,
    cache: &Path,
    progress: &mut dyn FnMut(Step),
) -> Outcome<Imported> {
    let target = target(&recipe.name)?;
    let log = Log::new(&dirs.state_dir.join("log"), &recipe.name)?;
    if !recipe.is_plain() {
        Failure::unless_root("building an image takes root")?;
    }
    let archive = archive(&recipe.packages, cache, &log, progress)?;
    if recipe.is_plain() {
        let staged = stage(store, &archive.path, progress)?;
        // Without root there are none, and the import says so.
        if !lacks_labels(staged.tree())? || Failure::unless_root("").is_err() {
            return archive.remark(store, publish(store, staged, target)?, &log);
        }
    }
    let work = WorkDir::new(&dirs.state_dir.join("edit"))?;
    let root = work.path().join("root");
    progress(step("unpacking", 86));
    unpack(&archive.path, &root)?;
    for file in &recipe.files {
        file.copy_to(&root)?;
    }
    let name = recipe.name.split(':').next().unwrap_or_default();
    let sandbox = Sandbox::new(&root, work.path(), name, kernel_of(&root), Switch::On)?;
    for script in &recipe.scripts {
        progress(step(&format!("running {}", script.display()), 88));
        log.script(&sandbox, script)?;
    }
    if lacks_labels(&HostDir::new(&root))? {
        progress(step("labelling for SELinux", 89));
        labels::label_all(&sandbox, &root, Some(&log.file))?;
    }
    let staged = store.stage_dir(&root, &mut |it| progress(Step::Importing(it)))?;
    archive.remark(store, publish(store, staged, target)?, &log)
}

fn step(stage: &str, percent: u8) -> Step {
    let stage = stage.to_owned();
    Step::Building(build::Progress { stage, percent })
}

/// A recipe's packages as a root file system.
struct Archive {
    path: PathBuf,
    /// What it could have had and has not.
    lacks: Vec<String>,
}

impl Archive {
    /// Adds what the image lacks, and what it has besides its packages, to what was noticed of it.
    fn remark(self, store: &Store, mut imported: Imported, log: &Log) -> Outcome<Imported> {
        let tree = store.open_tree(imported.tag.digest)?;
        let origins = [Loader::Shim, Loader::Grub].map(|it| origin(&tree, it));
        if let [Some(shim), Some(grub)] = origins {
            imported.findings.push(Finding {
                severity: Severity::Info,
                what: format!("UEFI machines boot it by {shim} and {grub}: GRUB of its own packages cannot boot over HTTP or beside another DHCP server"),
                path: None,
                hint: None,
            });
        }
        let hint = format!(
            "UEFI machines boot it by PXE, but not over HTTP or beside another DHCP server. For that build it again with a mirror that has both releases. All that was printed: {}",
            log.path.display()
        );
        let lacks = self.lacks.into_iter().map(|what| Finding {
            severity: Severity::Warn,
            what,
            path: None,
            hint: Some(hint.clone()),
        });
        imported.findings.extend(lacks);
        Ok(imported)
    }
}

/// What a loader is of, if it is not of the image's own packages.
fn origin(tree: &StoredTree, loader: Loader) -> Option<Origin> {
    let path = loader.find(tree).ok()?.ok()?;
    Origin::of(tree, &path).ok()?
}

/// The archive of a recipe's packages: from the cache, or built into it.
fn archive(
    recipe: &build::Recipe,
    cache: &Path,
    log: &Log,
    progress: &mut dyn FnMut(Step),
) -> Outcome<Archive> {
    fs::create_dir_all(cache).map_err(|error| path_failure("creating", cache, &error))?;
    let _lock = lock_cache(cache)?;
    let key = recipe.cache_key();
    let path = cache.join(format!("{key}.tar"));
    if is_fresh(&path) {
        let lacks = Vec::new();
        return Ok(Archive { path, lacks });
    }
    let partial = cache.join(format!("{key}.partial.tar"));
    let built = recipe.build(&partial, &log.file, &mut |it| progress(Step::Building(it)));
    let lacks = built.map_err(|error| log.add_to(build_failure(&error)))?;
    if !lacks.is_empty() {
        set_stale(&partial)
            .map_err(|error| path_failure("setting the time of", &partial, &error))?;
    }
    fs::rename(&partial, &path).map_err(|error| path_failure("renaming", &partial, &error))?;
    Ok(Archive { path, lacks })
}

/// Has the next build make the archive again: what it lacks may be there by then.
fn set_stale(archive: &Path) -> std::io::Result<()> {
    let file = File::options().write(true).open(archive)?;
    file.set_modified(SystemTime::UNIX_EPOCH)
}

/// Keeps a second build of the same archive waiting; held until the file is dropped.
fn lock_cache(cache: &Path) -> Outcome<File> {
    let path = cache.join("build.lock");
    let file = File::create(&path).map_err(|error| path_failure("creating", &path, &error))?;
    file.lock()
        .map_err(|error| path_failure("locking", &path, &error))?;
    Ok(file)
}

fn is_fresh(archive: &Path) -> bool {
    let modified = fs::metadata(archive).and_then(|meta| meta.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age < CACHE_AGE_MAX))
}

fn build_failure(error: &build::Error) -> Failure {
    let failure = Failure::because("building the image", error).hint(error.hint());
    match error {
        build::Error::NoProgram { .. } => failure.code(Code::NotReady),
        _ => failure,
    }
}

fn stage(store: &Store, archive: &Path, progress: &mut dyn FnMut(Step)) -> Outcome<Staged> {
    let file = File::open(archive).map_err(|error| path_failure("opening", archive, &error))?;
    Ok(store.stage_tar(file, &mut |step| progress(Step::Importing(step)))?)
}

/// Whether an image has a SELinux policy, and files that are not labelled for it.
fn lacks_labels(files: &dyn Files) -> Outcome<bool> {
    let lack = selinux::lack(files);
    let lack = lack.map_err(|error| Failure::because("reading the image", &error))?;
    Ok(lack == Some(Lack::Labels))
}

/// Unpacks an archive that was built here into a new directory.
fn unpack(archive: &Path, root: &Path) -> Outcome {
    fs::create_dir(root).map_err(|error| path_failure("making", root, &error))?;
    let mut tar = std::process::Command::new("tar");
    tar.args(["--extract", "--numeric-owner", "--xattrs"]);
    tar.args(["--xattrs-include=*", "--same-permissions", "--file"]);
    tar.arg(archive).arg("--directory").arg(root);
    let output = tar
        .output()
        .map_err(|error| Failure::because("starting tar", &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let failure = Failure::new(format!("unpacking {}: {}", archive.display(), said.trim()));
    Err(failure.hint("free some disk space; or remove the archive, to have it built again"))
}

/// What the programs of one build print.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// That of the last build of `name`.
    fn new(directory: &Path, name: &str) -> Outcome<Log> {
        fs::create_dir_all(directory).map_err(|error| path_failure("making", directory, &error))?;
        let path = directory.join(format!("build-{}.log", name.replace(':', "-")));
        let file = File::create(&path).map_err(|error| path_failure("making", &path, &error))?;
        Ok(Log { path, file })
    }

    /// Runs a script of the recipe in the image.
    fn script(&self, sandbox: &Sandbox, script: &Path) -> Outcome {
        let _ = writeln!(&self.file, "slate: running {}", script.display());
        let status = sandbox.run_script(script, Some(&self.file))?;
        if status.success() {
            return Ok(());
        }
        let mut failure = Failure::new(format!("{} in the image: {status}", script.display()));
        failure.causes = self.last_lines();
        Err(self.add_to(failure.hint("nothing was published")))
    }

    /// Says where the rest can be read.
    fn add_to(&self, failure: Failure) -> Failure {
        let hint = failure.hint.clone().unwrap_or_default();
        let all = format!("{hint}\nall that was printed: {}", self.path.display());
        failure.hint(all.trim_start())
    }

    fn last_lines(&self) -> Vec<String> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut tail = Vec::new();
        let _ = File::open(&self.path).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_MAX)))?;
            file.read_to_end(&mut tail)
        });
        let text = String::from_utf8_lossy(&tail).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        shown.iter().map(|it| (*it).to_owned()).collect()
    }
}
