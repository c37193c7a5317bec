//! `slate image`: what lies in the store, and how it gets there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use image::boot::{self, BootFiles, Origin};
use image::build as packages;
use image::check::{self, Finding, Severity};
use image::files::Files as _;
use image::import::container;
use image::store::split_reference;
use image::{Digest, Error, Publish, SkipReason, Skipped, Staged, Store, StoredTree, Tag, Version};
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};

use super::{build, commit, diff, edit, export, layer, upkeep};
use crate::args::{DirArgs, ImageCommand, OutputArgs};
use crate::failure::{AS_ROOT, Code, Failure, Outcome};
use crate::registry::{self, Remote};
use crate::render;

/// Runs one `slate image` command.
pub fn run(dirs: &DirArgs, command: ImageCommand) -> Outcome {
    let reads = matches!(
        command,
        ImageCommand::List { .. }
            | ImageCommand::Show { .. }
            | ImageCommand::Diff { .. }
            | ImageCommand::Log { .. }
            | ImageCommand::Layers { .. }
            | ImageCommand::Export { .. }
    );
    let done = carry_out(dirs, command);
    if !reads {
        upkeep::tell_daemon(dirs);
    }
    done
}

fn carry_out(dirs: &DirArgs, command: ImageCommand) -> Outcome {
    match command {
        ImageCommand::Import {
            name,
            source,
            output,
        } => import(&open_store(dirs)?, &name, &source, output),
        ImageCommand::Build {
            build: args,
            output,
        } => build::run(dirs, &args, output),
        ImageCommand::List { output } => list(&open_store(dirs)?, output),
        ImageCommand::Show { image, output } => show(&open_store(dirs)?, &image, output),
        ImageCommand::Tag {
            source,
            target,
            output,
        } => tag(&open_store(dirs)?, &source, &target, output),
        ImageCommand::Edit(change) => edit::edit(dirs, &open_store(dirs)?, &change),
        ImageCommand::Run {
            change,
            command,
            output,
        } => edit::run(dirs, &open_store(dirs)?, &change, &command, output),
        ImageCommand::Commit {
            commit: args,
            output,
        } => commit::run(dirs, &open_store(dirs)?, &args, output),
        ImageCommand::Layer {
            layer: args,
            output,
        } => layer::layer(dirs, &open_store(dirs)?, &args, output),
        ImageCommand::Layers { output } => layer::list(&open_store(dirs)?, output),
        ImageCommand::Compose { compose, output } => {
            layer::compose(&open_store(dirs)?, &compose, output)
        }
        ImageCommand::Diff {
            before,
            after,
            all,
            output,
        } => diff::run(&open_store(dirs)?, &before, &after, all, output),
        ImageCommand::Export {
            image,
            target,
            format,
            output,
        } => export::run(&open_store(dirs)?, &image, &target, format, output),
        ImageCommand::Log { image, output } => upkeep::log(&open_store(dirs)?, &image, output),
        ImageCommand::Rollback { image, output } => {
            upkeep::rollback(&open_store(dirs)?, &image, output)
        }
        ImageCommand::Pin {
            image,
            remove,
            output,
        } => upkeep::pin(&open_store(dirs)?, &image, remove, output),
        ImageCommand::Rm {
            image,
            force,
            output,
        } => upkeep::remove(dirs, &open_store(dirs)?, &image, force, output),
        ImageCommand::Gc { dry_run, output } => {
            upkeep::gc(dirs, &open_store(dirs)?, dry_run, output)
        }
        ImageCommand::Verify {
            image,
            discard,
            output,
        } => upkeep::verify(&open_store(dirs)?, image.as_deref(), discard, output),
    }
}

/// The store under the state directory, made where there is none.
pub(crate) fn open_store(dirs: &DirArgs) -> Outcome<Store> {
    Ok(Store::open(dirs.state_dir.join("store"))?)
}

/// Where built archives are kept: `SLATE_CACHE_DIR`, else `cache` under the state directory.
pub(crate) fn cache_dir(dirs: &DirArgs) -> PathBuf {
    std::env::var_os("SLATE_CACHE_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| dirs.state_dir.join("cache"), PathBuf::from)
}

/// What an import or a build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Packages become an archive.
    Building(packages::Progress),
    /// An archive or a directory becomes a version.
    Importing(image::Progress),
    /// A version leaves the store.
    Exporting(image::Progress),
    /// A version is written out as a directory.
    CheckingOut(image::Progress),
    /// A version is read again.
    Verifying(image::Progress),
}

/// A version that was imported and published.
#[derive(Debug)]
pub(crate) struct Imported {
    /// The tag that was moved to it.
    pub tag: Tag,
    /// What the checks noticed; none of it refuses the image.
    pub findings: Vec<Finding>,
    /// What the source had and the version has not.
    pub skipped: Vec<Skipped>,
}

/// What `NAME` or `NAME:TAG` asks an import to move.
pub(super) fn target(name: &str) -> Outcome<Publish<'_>> {
    let target = match name.split_once(':') {
        Some((name, tag)) => Publish::Tag { name, tag },
        None => Publish::Import { name },
    };
    // Said before minutes of work, not after them.
    target.check_names()?;
    Ok(target)
}

/// Judges a staged version and publishes it.
pub(super) fn publish(store: &Store, staged: Staged, target: Publish<'_>) -> Outcome<Imported> {
    publish_unless_moved(store, staged, target)?.map_err(Failure::from)
}

/// As [`publish`], with [`Error::TagMoved`] for who can go on from there.
pub(super) fn publish_unless_moved(
    store: &Store,
    staged: Staged,
    target: Publish<'_>,
) -> Outcome<Result<Imported, Error>> {
    let skipped = staged.skipped().to_vec();
    let mut findings = Vec::new();
    let published = store.publish(staged, target, |tree| {
        findings = judge(tree)?;
        refuse(&findings)
    });
    let tag = match published {
        Ok(tag) => tag.expect("an import moves a tag"),
        Err(Error::Refused { .. }) => return Err(refused(&findings)),
        Err(moved @ Error::TagMoved { .. }) => return Ok(Err(moved)),
        Err(error) => return Err(error.into()),
    };
    Ok(Ok(Imported {
        tag,
        findings,
        skipped,
    }))
}

fn judge(tree: &StoredTree) -> image::Result<Vec<Finding>> {
    check::check(tree).map_err(Error::io("checking", Path::new("the image")))
}

fn refuse(findings: &[Finding]) -> image::Result<()> {
    let reasons: Vec<String> = graves(findings).map(finding_text).collect();
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Error::Refused { reasons })
    }
}

fn graves(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings
        .iter()
        .filter(|finding| finding.severity == Severity::Refuse)
}

/// Every reason with what to do about it; the same advice is given once.
pub(super) fn refused(findings: &[Finding]) -> Failure {
    let mut failure = Failure::new("the image is refused; nothing was published");
    failure.causes = graves(findings).map(finding_text).collect();
    let hints: BTreeSet<&str> = graves(findings)
        .filter_map(|finding| finding.hint.as_deref())
        .collect();
    failure.hint(hints.into_iter().collect::<Vec<_>>().join("\n"))
}

fn import(store: &Store, name: &str, source: &Path, output: OutputArgs) -> Outcome {
    let target = target(name)?;
    let mut meter = Meter::new();
    let reference = registry::reference(source);
    if reference.is_some() {
        meter.fetching();
    }
    let mut follow = |step: image::Progress| meter.show(&Step::Importing(step));
    let staged = if source == Path::new("-") {
        store.stage_tar(io::stdin().lock(), &mut follow)?
    } else if let Some(reference) = reference {
        let remote = Remote::find(reference)?;
        store
            .stage_fetched(&remote.manifest()?, &remote, &mut follow)
            .map_err(|error| source_failure(source, error, &remote.hint()))?
    } else if !is_dir(source)? {
        let file = File::open(source).map_err(|error| path_failure("opening", source, &error))?;
        store
            .stage_file(file, &mut follow)
            .map_err(|error| source_failure(source, error, SOURCES))?
    } else if container::is_layout(source) {
        store
            .stage_layout(source, &mut follow)
            .map_err(|error| source_failure(source, error, SOURCES))?
    } else {
        store.stage_dir(source, &mut follow)?
    };
    meter.storing();
    let imported = publish(store, staged, target);
    meter.done();
    say_imported(store, &imported?, output)
}

const SOURCES: &str = "give a directory with a root file system, a tar archive of one (plain, gzip, zstd or xz),\n\
                       or a container image: an OCI image layout, what docker save writes, or docker://…";

fn is_dir(source: &Path) -> Outcome<bool> {
    let meta = fs::metadata(source)
        .map_err(|error| path_failure("opening", source, &error).hint(SOURCES))?;
    Ok(meta.is_dir())
}

/// A source that was read to a bad end, unless the store is what failed.
fn source_failure(source: &Path, error: Error, hint: &str) -> Failure {
    let failure = Failure::from(error);
    if failure.hint.is_some() {
        return failure;
    }
    let mut about = Failure::new(format!("importing {}", source.display())).hint(hint);
    about.causes = std::iter::once(failure.what)
        .chain(failure.causes)
        .collect();
    about
}

pub(super) fn say_imported(store: &Store, imported: &Imported, output: OutputArgs) -> Outcome {
    let Tag { name, tag, digest } = &imported.tag;
    let totals = store.open_tree(*digest)?.totals()?;
    if output.json {
        render::json(&json!({
            "name": name,
            "tag": tag,
            "digest": digest.to_string(),
            "files": totals.files,
            "bytes": totals.bytes,
            "findings": findings_json(&imported.findings),
            "skipped": imported.skipped.iter().map(skipped_json).collect::<Vec<_>>(),
        }))?;
        return layer::recompose_on(store, name, tag, *digest);
    }
    for line in skipped_lines(&imported.skipped) {
        anstream::eprintln!("{line}");
    }
    anstream::eprint!("{}", findings_lines(&imported.findings));
    anstream::println!(
        "{} is now {digest} ({} files, {})",
        format!("{name}:{tag}").bold(),
        totals.files,
        render::bytes(totals.bytes)
    );
    if tag == image::store::TAG_NEXT {
        anstream::println!("Nodes boot it after: slate image tag {name}:{tag} {name}");
    }
    layer::recompose_on(store, name, tag, *digest)
}

/// How far an import or a build has come: one live line on a terminal, else a line now and then.
pub(crate) struct Meter {
    bar: Option<ProgressBar>,
    said: Option<(Instant, String)>,
}

/// How long lines of progress keep apart where there is no terminal.
const LINES_APART: Duration = Duration::from_secs(10);

impl Meter {
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]");
            let bar = ProgressBar::new_spinner();
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, said: None }
    }

    /// Shows a step; called as often as there is one.
    pub(crate) fn show(&mut self, step: &Step) {
        match step {
            Step::Building(packages::Progress { stage, percent }) => {
                self.say(stage, || format!("building: {stage} ({percent} %)"));
            }
            Step::Importing(progress) => self.count("importing", progress),
            Step::Exporting(progress) => self.count("exporting", progress),
            Step::CheckingOut(progress) => self.count("checking out", progress),
            Step::Verifying(progress) => self.count("verifying", progress),
        }
    }

    /// Content comes from another machine.
    fn fetching(&mut self) {
        self.say("fetching", || "fetching".to_owned());
    }

    /// The version is complete and goes to the disk.
    pub(crate) fn storing(&mut self) {
        self.say("checking and storing", || "checking and storing".to_owned());
    }

    /// Takes the live line away.
    pub(crate) fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn count(&mut self, stage: &str, image::Progress { files, bytes }: &image::Progress) {
        self.say(stage, || {
            format!("{stage}: {files} files, {}", render::bytes(*bytes))
        });
    }

    /// A new stage by its name, later lines with how far it has come.
    fn say(&mut self, stage: &str, text: impl Fn() -> String) {
        if let Some(bar) = &self.bar {
            return bar.set_message(text());
        }
        let last = self.said.as_ref().filter(|(_, said)| said == stage);
        match last {
            None => anstream::eprintln!("{stage}"),
            Some((at, _)) if at.elapsed() >= LINES_APART => anstream::eprintln!("{}", text()),
            Some(_) => return,
        }
        self.said = Some((Instant::now(), stage.to_owned()));
    }
}

fn list(store: &Store, output: OutputArgs) -> Outcome {
    let versions = store.list()?;
    if output.json {
        return render::json(&versions.iter().map(version_json).collect::<Vec<_>>());
    }
    anstream::println!("{}", list_text(&versions));
    Ok(())
}

fn version_json(version: &Version) -> Value {
    json!({
        "digest": version.digest.to_string(),
        "tags": version.tags,
        "files": version.files,
        "bytes": version.bytes,
        "created_ms": unix_ms(version.created),
        "damage": version.damage,
        "own_initrd_bytes": version.initrd_bytes,
    })
}

fn list_text(versions: &[Version]) -> String {
    if versions.is_empty() {
        return "No image yet: slate image build debian13, or slate image import NAME DIR|TAR"
            .to_owned();
    }
    let header = ["IMAGE", "DIGEST", "SIZE", "FILES", "PUBLISHED"];
    let rows = versions.iter().map(|version| {
        vec![
            tags_text(&version.tags),
            render::short_digest(&version.digest.to_string()).to_owned(),
            match &version.damage {
                None => render::bytes(version.bytes),
                Some(_) => "damaged".to_owned(),
            },
            version.files.to_string(),
            render::ago(unix_ms(version.created)),
        ]
    });
    render::table(&header, rows)
}

fn tags_text(tags: &[String]) -> String {
    if tags.is_empty() {
        "(no tag)".to_owned()
    } else {
        tags.join(", ")
    }
}

pub(super) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// A loader in an image.
struct LoaderFile {
    path: PathBuf,
    bytes: u64,
    /// Where it is from, if it is not of the image's own packages.
    origin: Option<Origin>,
}

/// What `slate image show` tells about a version.
struct Page {
    digest: Digest,
    tags: Vec<String>,
    files: u64,
    bytes: u64,
    /// A kernel with its size in bytes, or why there is none; the same for each loader.
    kernel: Result<(String, PathBuf, u64), String>,
    shim: Result<LoaderFile, String>,
    grub: Result<LoaderFile, String>,
    /// The size of an initramfs in the place of ours, in bytes.
    own_initrd: Option<u64>,
    findings: Vec<Finding>,
}

fn show(store: &Store, reference: &str, output: OutputArgs) -> Outcome {
    let digest = resolve(store, reference)?;
    let page = page(store, digest)?;
    if output.json {
        return render::json(&page.json());
    }
    anstream::print!("{}", page.text());
    Ok(())
}

fn page(store: &Store, digest: Digest) -> Outcome<Page> {
    let tree = store.open_tree(digest)?;
    let totals = tree.totals()?;
    let tags = store.tags()?.into_iter().filter(|tag| tag.digest == digest);
    let (kernel, shim, grub) = match BootFiles::of(&tree) {
        Ok(found) => {
            let (path, bytes) = sized(&tree, found.kernel.vmlinuz)?;
            (
                Ok((found.kernel.version, path, bytes)),
                loader(&tree, found.shim)?,
                loader(&tree, found.grub)?,
            )
        }
        Err(boot::Error::Missing(missing)) => {
            let why = "not looked for without a kernel";
            (Err(missing.to_string()), Err(why.into()), Err(why.into()))
        }
        Err(error @ boot::Error::Read(_)) => return Err(Failure::of(&error)),
    };
    Ok(Page {
        digest,
        tags: tags
            .map(|tag| format!("{}:{}", tag.name, tag.tag))
            .collect(),
        files: totals.files,
        bytes: totals.bytes,
        kernel,
        shim,
        grub,
        own_initrd: store.initrd(digest)?.map(|it| it.bytes),
        findings: judge(&tree)?,
    })
}

fn loader(
    tree: &StoredTree,
    found: Result<PathBuf, boot::Missing>,
) -> Outcome<Result<LoaderFile, String>> {
    let path = match found {
        Ok(path) => path,
        Err(missing) => return Ok(Err(missing.to_string())),
    };
    let origin = Origin::of(tree, &path);
    let origin = origin.map_err(|error| path_failure("reading the origin of", &path, &error))?;
    let (path, bytes) = sized(tree, path)?;
    Ok(Ok(LoaderFile {
        path,
        bytes,
        origin,
    }))
}

/// A boot file as an absolute path, with its size in bytes.
fn sized(tree: &StoredTree, path: PathBuf) -> Outcome<(PathBuf, u64)> {
    let info = tree
        .info(&path)
        .map_err(|error| path_failure("reading", &path, &error))?;
    Ok((Path::new("/").join(path), info.map_or(0, |info| info.bytes)))
}

impl LoaderFile {
    fn json(&self) -> Value {
        let origin = self.origin.as_ref().map(|origin| {
            json!({
                "package": origin.package,
                "version": origin.version,
                "release": origin.release,
                "sha256": origin.sha256,
            })
        });
        json!({ "path": self.path, "bytes": self.bytes, "origin": origin })
    }

    fn text(&self) -> String {
        let origin = self.origin.as_ref().map(|it| format!(", {it}"));
        file_text(&self.path, self.bytes) + &origin.unwrap_or_default()
    }
}

impl Page {
    fn json(&self) -> Value {
        let loader = |found: &Result<LoaderFile, String>| match found {
            Ok(file) => file.json(),
            Err(_) => Value::Null,
        };
        let kernel = match &self.kernel {
            Ok((version, path, bytes)) => {
                json!({ "version": version, "path": path, "bytes": bytes })
            }
            Err(_) => Value::Null,
        };
        json!({
            "digest": self.digest.to_string(),
            "tags": self.tags,
            "files": self.files,
            "bytes": self.bytes,
            "kernel": kernel,
            "shim": loader(&self.shim),
            "grub": loader(&self.grub),
            "own_initrd_bytes": self.own_initrd,
            "findings": findings_json(&self.findings),
        })
    }

    fn text(&self) -> String {
        let size = format!("{} in {} files", render::bytes(self.bytes), self.files);
        let kernel = match &self.kernel {
            Ok((version, path, bytes)) => format!("{version}  {}", file_text(path, *bytes)),
            Err(why) => why.clone(),
        };
        let loader = |found: &Result<LoaderFile, String>| match found {
            Ok(file) => file.text(),
            Err(why) => why.clone(),
        };
        let rows = [
            ("Tags", tags_text(&self.tags)),
            ("Digest", self.digest.to_string()),
            ("Size", size),
            ("Kernel", kernel),
            ("Shim", loader(&self.shim)),
            ("GRUB", loader(&self.grub)),
        ];
        let initrd = self.own_initrd.map(|bytes| {
            let size = render::bytes(bytes);
            ("Initrd", format!("your own ({size}), by slate initrd use"))
        });
        let rows = rows.into_iter().chain(initrd);
        let rows: String = rows
            .map(|(name, value)| format!("{name:<8}{value}\n"))
            .collect();
        rows + &findings_lines(&self.findings)
    }
}

fn file_text(path: &Path, bytes: u64) -> String {
    format!("{} ({})", path.display(), render::bytes(bytes))
}

fn tag(store: &Store, source: &str, target: &str, output: OutputArgs) -> Outcome {
    let digest = resolve(store, source)?;
    let (name, tag) = split_reference(target);
    store.tag(name, tag, digest)?;
    if output.json {
        render::json(&json!({
            "name": name,
            "tag": tag,
            "digest": digest.to_string(),
        }))?;
    } else {
        anstream::println!("{} is now {digest}", format!("{name}:{tag}").bold());
    }
    layer::recompose_on(store, name, tag, digest)
}

/// The version that a reference names; a failure names the images that there are.
pub(super) fn resolve(store: &Store, reference: &str) -> Outcome<Digest> {
    store.resolve(reference).map_err(|error| {
        let known: Vec<String> = store
            .tags()
            .unwrap_or_default()
            .iter()
            .map(|tag| format!("{}:{}", tag.name, tag.tag))
            .collect();
        let failure = Failure::from(error);
        if known.is_empty() {
            return failure.hint("there is no image yet: slate image build debian13");
        }
        failure.hint(format!("there are: {}", known.join(", ")))
    })
}

fn finding_text(finding: &Finding) -> String {
    match &finding.path {
        Some(path) => format!("{}: {}", path.display(), finding.what),
        None => finding.what.clone(),
    }
}

fn findings_lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let label = match finding.severity {
            Severity::Info => "note:".cyan().bold().to_string(),
            Severity::Warn => "warning:".yellow().bold().to_string(),
            Severity::Refuse => "refused:".red().bold().to_string(),
        };
        text += &format!("{label} {}\n", finding_text(finding));
        if let Some(hint) = &finding.hint {
            text += &format!("  {} {hint}\n", "hint:".cyan().bold());
        }
    }
    text
}

fn findings_json(findings: &[Finding]) -> Vec<Value> {
    let severity = |severity| match severity {
        Severity::Info => "info",
        Severity::Warn => "warn",
        Severity::Refuse => "refuse",
    };
    findings
        .iter()
        .map(|finding| {
            json!({
                "severity": severity(finding.severity),
                "what": finding.what,
                "path": finding.path,
                "hint": finding.hint,
            })
        })
        .collect()
}

/// Most paths named for one reason that entries were left out.
const SKIPPED_SHOWN: usize = 3;

/// One line per reason: how many, and the first of them.
fn skipped_lines(skipped: &[Skipped]) -> Vec<String> {
    let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
    for entry in skipped {
        let (why, path) = (why_text(&entry.why), path_text(&entry.path));
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, paths)) => paths.push(path),
            None => reasons.push((why, vec![path])),
        }
    }
    reasons
        .into_iter()
        .map(|(why, paths)| {
            let mut shown = paths[..paths.len().min(SKIPPED_SHOWN)].join(", ");
            if paths.len() > SKIPPED_SHOWN {
                shown += &format!(" and {} more", paths.len() - SKIPPED_SHOWN);
            }
            format!("left out: {why}: {shown}")
        })
        .collect()
}

fn why_text(why: &SkipReason) -> String {
    match why {
        SkipReason::Socket => "sockets".to_owned(),
        SkipReason::Submount => "what is mounted from another file system".to_owned(),
        SkipReason::Attribute(name) => format!("extended attribute {name}"),
    }
}

fn path_text(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

fn skipped_json(skipped: &Skipped) -> Value {
    json!({ "path": path_text(&skipped.path), "why": why_text(&skipped.why) })
}

pub(crate) fn path_failure(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::because(format!("{doing} {}", path.display()), error);
    match error.kind() {
        io::ErrorKind::PermissionDenied => failure.hint(AS_ROOT).code(Code::NotReady),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => failure.hint(FREE_SPACE),
        _ => failure,
    }
}

const ONE_IMAGE: &str = "import the one that you mean from a place of its own: docker save NAME:TAG,\n\
                         or skopeo copy oci:DIR:NAME oci:OTHER (with --override-arch for a platform)";

const LAYER_AGAIN: &str = "make the layer again, on the base's present version:\n\
                           slate image layer LAYER --on BASE --script FILE";

const FREE_SPACE: &str = "free some disk space, or choose another --state-dir";

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::of(&error);
        match &error {
            _ if error.is_disk_full() => failure.hint(FREE_SPACE),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                failure.hint(AS_ROOT).code(Code::NotReady)
            }
            Error::NoSuchTag { .. } | Error::NoSuchVersion { .. } => {
                failure.hint("see what there is: slate image list")
            }
            Error::WrongBlob { .. } => {
                failure.hint("copy or save the container image again, and import that")
            }
            Error::NoSuchPlatform { .. } => failure.hint(ONE_IMAGE),
            Error::NoSuchLayer { .. } => failure.hint("see what there is: slate image layers"),
            Error::LayerKernel { .. } | Error::LayerConflict { .. } => failure.hint(LAYER_AGAIN),
            Error::BadTarget { .. } => failure
                .hint("name NAME.tar, NAME.tar.gz, NAME.tar.zst, - or a new directory")
                .code(Code::Usage),
            Error::NoEarlierVersion { .. } => {
                failure.hint("see what it named: slate image log NAME:TAG")
            }
            Error::BadName { .. } => failure
                .hint("write NAME or NAME:TAG, such as debian13 or rocky9:next")
                .code(Code::Usage),
            Error::Corrupt(_) | Error::DamagedObject { .. } | Error::WrongContent { .. } => failure
                .hint("the disk may be failing; see what else is damaged: slate image verify"),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_by_reason() {
        let entry = |path: &str, why| Skipped {
            path: path.as_bytes().to_vec(),
            why,
        };
        let skipped = [
            entry("run/a", SkipReason::Socket),
            entry("proc", SkipReason::Submount),
            entry("run/b", SkipReason::Socket),
            entry("run/c", SkipReason::Socket),
            entry("run/d", SkipReason::Socket),
        ];
        assert_eq!(
            skipped_lines(&skipped),
            [
                "left out: sockets: /run/a, /run/b, /run/c and 1 more",
                "left out: what is mounted from another file system: /proc"
            ]
        );
    }

    #[test]
    fn a_private_key_is_refused_with_advice_and_nothing_is_named() {
        let (source, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = source.path().join("root/.ssh");
        fs::create_dir_all(&folder).unwrap();
        // Longer than what an image keeps beside a file's name.
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\n".to_owned() + &"x".repeat(9000);
        fs::write(folder.join("id_rsa"), key).unwrap();
        let store = Store::open(state.path()).unwrap();
        let staged = store.stage_dir(source.path(), &mut |_| ()).unwrap();
        let failure = publish(&store, staged, Publish::Import { name: "x" }).unwrap_err();
        assert!(
            failure
                .causes
                .iter()
                .any(|cause| cause.starts_with("/root/.ssh/id_rsa: "))
        );
        assert!(failure.hint.unwrap().contains("remove it from the image"));
        assert!(store.tags().unwrap().is_empty());
    }

    #[test]
    fn names_are_judged_before_the_work() {
        assert!(matches!(target("a"), Ok(Publish::Import { name: "a" })));
        assert!(matches!(
            target("a:b"),
            Ok(Publish::Tag {
                name: "a",
                tag: "b"
            })
        ));
        assert_eq!(target("a/b").unwrap_err().code, Code::Usage);
        assert!(target("a:b:c").is_err());
    }
}
