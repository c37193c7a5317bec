//! `slate image edit|run`: a version is changed in a private copy, and what changed becomes the next
//! version. Nothing that runs from the version, or follows its tag, is touched.

mod commit;
pub(super) mod labels;
pub(super) mod sandbox;

use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use image::boot::BootFiles;
use image::checkout::Checkout;
use image::diff::{self, Change, What};
use image::store::{TAG_NEXT, split_reference};
use image::{Digest, Staged, Store};
use owo_colors::OwoColorize as _;
use serde_json::json;

use super::image::{Meter, Step, path_failure, resolve};
use crate::args::{ChangeArgs, DirArgs, OutputArgs, Switch};
use crate::failure::{Failure, Outcome};
use crate::render;
pub(super) use commit::{Commit, Decision};
use labels::Unlabelled;
use sandbox::{Sandbox, WorkDir};

/// Paths that two changes have in common, named in a failure.
const PATHS_SHOWN: usize = 5;

/// Opens a shell in an image.
pub(super) fn edit(dirs: &DirArgs, store: &Store, change: &ChangeArgs) -> Outcome {
    need_terminal("to run a command: slate image run NAME -- COMMAND")?;
    let session = Session::begin(dirs, store, change)?;
    session.open_shell(&format!("becomes {}:{TAG_NEXT}", session.name))?;
    session.finish(change.discard, true, OutputArgs { json: false })
}

/// Runs a command in an image.
pub(super) fn run(
    dirs: &DirArgs,
    store: &Store,
    change: &ChangeArgs,
    command: &[String],
    output: OutputArgs,
) -> Outcome {
    let session = Session::begin(dirs, store, change)?;
    let status = session.execute(command)?;
    if !status.success() {
        return Err(
            Failure::new(format!("{} in the image: {status}", command[0]))
                .hint("nothing was published"),
        );
    }
    session.finish(change.discard, false, output)
}

fn need_terminal(hint: &str) -> Outcome {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Failure::new("this opens a shell, and there is no terminal").hint(hint))
}

/// A change under way.
pub(super) struct Session<'s> {
    store: &'s Store,
    name: String,
    /// What `NAME:next` named when it began.
    next: Option<Digest>,
    checkout: Checkout,
    /// How long that took.
    checkout_took: Duration,
    sandbox: Sandbox,
    // Last: dropping it removes the directory.
    _work: WorkDir,
}

impl<'s> Session<'s> {
    fn begin(dirs: &DirArgs, store: &'s Store, change: &ChangeArgs) -> Outcome<Session<'s>> {
        Failure::unless_root("changing an image takes root")?;
        let (name, tag) = split_reference(&change.image);
        let base = resolve(store, &format!("{name}:{tag}"))?;
        if !change.replace {
            check_next(store, name, tag, base, store.read_tag(name, TAG_NEXT)?)?;
        }
        Session::on(dirs, store, name, base, change.network)
    }

    /// A copy of a version, to become one of the image `name`.
    pub fn on(
        dirs: &DirArgs,
        store: &'s Store,
        name: &str,
        base: Digest,
        network: Switch,
    ) -> Outcome<Session<'s>> {
        Failure::unless_root("changing an image takes root")?;
        let next = store.read_tag(name, TAG_NEXT)?;
        let work = WorkDir::new(&dirs.state_dir.join("edit"))?;
        let root = work.path().join("root");
        fs::create_dir(&root).map_err(|error| path_failure("making", &root, &error))?;
        let (mut meter, begun) = (Meter::new(), Instant::now());
        let tree = store.open_tree(base)?;
        let checkout = Checkout::new(tree, &root, &mut |it| meter.show(&Step::CheckingOut(it)));
        meter.done();
        let checkout = checkout?;
        let checkout_took = begun.elapsed();
        let kernel = BootFiles::of(checkout.base())
            .ok()
            .map(|it| it.kernel.version);
        let sandbox = Sandbox::new(&root, work.path(), name, kernel, network)?;
        Ok(Session {
            store,
            name: name.to_owned(),
            next,
            checkout,
            checkout_took,
            sandbox,
            _work: work,
        })
    }

    fn shell(&self) -> &'static str {
        let has = |path: &str| self.checkout.path().join(path).exists();
        if has("bin/bash") {
            "/bin/bash"
        } else {
            "/bin/sh"
        }
    }

    /// The copy.
    pub fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    /// Opens a shell; what is changed in it `becomes` something.
    pub fn open_shell(&self, becomes: &str) -> Outcome {
        need_terminal("to run a command or a script: --run COMMAND, --script FILE")?;
        let name = self.name.bold();
        anstream::eprintln!("A shell in {name}: what you change {becomes}. Leave it with exit.");
        self.execute(&[self.shell().into()]).map(|_| ())
    }

    /// Runs a program of this machine in the image.
    pub fn execute_script(&self, script: &Path) -> Outcome<ExitStatus> {
        self.sandbox.run_script(script, None)
    }

    /// Runs a command of the image.
    pub fn execute(&self, command: &[String]) -> Outcome<ExitStatus> {
        let placed = self.sandbox.prepare()?;
        let status = self.sandbox.run(command);
        placed.take_back()?;
        status
    }

    /// Says what has changed, and publishes it.
    fn finish(&self, discard: bool, ask: bool, output: OutputArgs) -> Outcome {
        let begun = Instant::now();
        let (staged, changes) = self.stage(Unlabelled::Label)?;
        let commit = Commit {
            store: self.store,
            name: &self.name,
            next: self.next,
            base: self.checkout.base(),
        };
        let decision = match (discard, ask) {
            (true, _) => Decision::Discard,
            (false, true) => Decision::Ask,
            (false, false) => Decision::Publish,
        };
        let times = || {
            json!({
                "checkout_ms": self.checkout_took.as_millis() as u64,
                "commit_ms": begun.elapsed().as_millis() as u64,
            })
        };
        commit.finish(staged, &changes, decision, times, output)
    }

    /// Reads the copy into the store, with the labels that the image's own policy wants of what has
    /// changed, or of all where there are none yet; what has changed.
    pub fn stage(&self, unlabelled: Unlabelled) -> Outcome<(Staged, Vec<Change>)> {
        let read = || -> Outcome<(Staged, Vec<Change>)> {
            let mut meter = Meter::new();
            let mut follow = |it| meter.show(&Step::Importing(it));
            let staged = self.store.stage_checkout(&self.checkout, &mut follow);
            meter.done();
            let staged = staged?;
            let changes = diff::diff(self.checkout.base(), staged.tree())?;
            Ok((staged, changes))
        };
        let (staged, changes) = read()?;
        if !labels::restore(&self.sandbox, self.checkout.path(), &changes, unlabelled)? {
            return Ok((staged, changes));
        }
        drop(staged);
        read()
    }
}

/// Changes but those of a time alone.
fn real(changes: &[Change]) -> impl Iterator<Item = &Change> {
    changes.iter().filter(|it| !it.is_time_only())
}

/// A next version that is neither the base nor one that the base's tag came by is work that a commit
/// would take the name of.
pub(super) fn check_next(
    store: &Store,
    name: &str,
    tag: &str,
    base: Digest,
    next: Option<Digest>,
) -> Outcome {
    let Some(next) = next.filter(|next| *next != base) else {
        return Ok(());
    };
    if store.log(name, tag)?.iter().any(|it| it.digest == next) {
        return Ok(());
    }
    let failure = Failure::new(format!(
        "{name}:{TAG_NEXT} has changes that {name}:{tag} has not, and this would replace it"
    ));
    Err(failure.hint(format!(
        "to build on it: slate image edit {name}:{TAG_NEXT}\n\
         to see it: slate image diff {name}:{tag} {name}:{TAG_NEXT}\n\
         to begin anew from {name}:{tag}: --replace"
    )))
}

fn confirm(question: &str) -> Outcome<bool> {
    anstream::eprint!("{question} [Y/n] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::because("reading the answer", &error))?;
    // The end of input is no consent.
    Ok(answer.ends_with('\n') && !answer.trim().to_ascii_lowercase().starts_with('n'))
}

/// What changed, counted.
#[derive(Default)]
pub(super) struct Summary {
    added: usize,
    changed: usize,
    removed: usize,
    /// Bytes of added and changed files.
    bytes: u64,
}

impl Summary {
    pub fn of(changes: &[Change]) -> Summary {
        let mut summary = Summary::default();
        for change in real(changes) {
            match change.what {
                What::Added => summary.added += 1,
                What::Changed(_) => summary.changed += 1,
                What::Removed => summary.removed += 1,
            }
            summary.bytes += change.bytes;
        }
        summary
    }

    pub fn text(&self) -> String {
        format!(
            "{} added, {} changed, {} removed; {} in added and changed files",
            self.added,
            self.changed,
            self.removed,
            render::bytes(self.bytes)
        )
    }

    fn json(&self, name: &str, digest: Digest) -> serde_json::Value {
        json!({
            "name": name,
            "tag": TAG_NEXT,
            "digest": digest.to_string(),
            "added": self.added,
            "changed": self.changed,
            "removed": self.removed,
            "bytes": self.bytes,
        })
    }

    pub fn say_unpublished(&self, discarded: bool, output: OutputArgs) -> Outcome {
        if output.json {
            return render::json(&json!({
                "digest": null,
                "added": self.added,
                "changed": self.changed,
                "removed": self.removed,
                "bytes": self.bytes,
            }));
        }
        anstream::println!(
            "{}",
            if discarded {
                "Discarded."
            } else {
                "Nothing changed: nothing to publish."
            }
        );
        Ok(())
    }
}
