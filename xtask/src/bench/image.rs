//! `cargo xtask bench image`: what importing, changing and opening images takes, beside tar and
//! OSTree.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use lab::Tool;
use serde_json::Value;

use super::boot::{IMAGE, archive, cache};
use super::ours::Ours;
use super::row::{Better, Report, Row, median};
use super::{Options, script, seconds};
use crate::install::Extra;
use crate::workspace::{cargo, is_root, must_succeed, output_of, target_directory};
use crate::{dist, install};

const PROGRAMS: [Extra; 2] = [
    Extra {
        path: "/usr/bin/ostree",
        package: "ostree",
        purpose: "be compared with",
    },
    Extra {
        path: "/usr/bin/perl",
        package: "perl-base",
        purpose: "make many small files",
    },
];

/// Where below the folder earlier measurements lie until the end.
const OLD: &str = "old";

/// Makes the archive `$1` of 200,000 files of some hundred bytes.
const SMALL: &str = r#"
set -e
rm -rf "$1.dir"
mkdir "$1.dir"
cd "$1.dir"
perl -e 'for $d (0..199) { mkdir $d or die; for $f (0..999) { open(my $h, ">", "$d/$f") or die; print $h "$d/$f\n" x (1 + $f % 50); } }'
tar --create --file="$1.part" --sort=name .
rm -rf "$1.dir"
mv "$1.part" "$1"
"#;

/// Unpacks the archive `$1` into the new folder `$2`, durably.
const UNPACK: &str = r#"
set -e
mkdir "$2"
tar --extract --file="$1" --directory="$2" --numeric-owner --xattrs --xattrs-include='*'
sync --file-system "$2"
"#;

/// Changes 10 files of the tree `$1`, another way each time.
const CHANGE: &str = r#"
for number in 1 2 3 4 5 6 7 8 9 10; do
    { cat "$1/etc/passwd"; date +%s.%N; head -c 20000 /dev/urandom; } > "$1/etc/changed-$number"
done
"#;

/// What is done to an image in 100 files.
const EDIT: &str = "for number in $(seq 100); do cat /bin/cat > /etc/edited-$number; done; date +%s.%N > /etc/edited";

/// What `--only` chooses from: rows, and those that come of the same work.
const PARTS: [&str; 4] = ["import", "import-small", "reimport", "commit"];

/// Measures.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    options.loads(&PARTS)?;
    if !is_root() {
        bail!("the benchmark unpacks images with their owners: run it as root");
    }
    install::ensure(&[Tool::Mmdebstrap], &PROGRAMS)?;
    let folder = target_directory()?.join("bench");
    let cache = cache(&folder);
    let program = dist::build()?;
    // Its archive is what all sides begin with.
    Ours::prepare(program.clone(), folder.join("ours"), IMAGE, &cache)?;
    let site = Site::prepare(archive(&cache)?, folder.join("image"), program)?;
    let mut rows = Vec::new();
    for round in 1..=options.rounds {
        rows.push(site.round(options)?);
        eprintln!("round {round}/{}", options.rounds);
    }
    site.clear()?;
    Ok(Report {
        name: "image",
        conditions: conditions(options.rounds, &site)?,
        rows: medians(&rows),
    })
}

struct Site {
    archive: PathBuf,
    small: PathBuf,
    folder: PathBuf,
    program: PathBuf,
    open: PathBuf,
}

impl Site {
    fn prepare(archive: PathBuf, folder: PathBuf, program: PathBuf) -> anyhow::Result<Site> {
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let small = folder.join("small.tar");
        if !small.exists() {
            eprintln!("making 200,000 small files, once");
            must_succeed(script(SMALL).arg(&small)).context("making small files")?;
        }
        must_succeed(&mut cargo([
            "build",
            "--release",
            "--quiet",
            "--package",
            "image",
            "--example",
            "open",
            "--target",
            install::MUSL,
        ]))?;
        Ok(Site {
            archive,
            small,
            folder,
            program,
            open: target_directory()?
                .join(install::MUSL)
                .join("release/examples/open"),
        })
    }

    fn round(&self, options: &Options) -> anyhow::Result<Vec<Row>> {
        let with_peer = !options.ours;
        let mut rows = Vec::new();
        if options.wants("import") {
            rows.push(self.import("import", &self.archive, with_peer)?);
        }
        if options.wants("import-small") {
            rows.push(self.import("import-small", &self.small, with_peer)?);
            rows.extend(self.open_small()?);
        }
        if options.wants("reimport") {
            rows.extend(self.reimport(with_peer)?);
        }
        if options.wants("commit") {
            rows.extend(self.commit(with_peer)?);
        }
        Ok(rows)
    }

    /// An archive into a new store, and into a folder.
    fn import(&self, name: &'static str, archive: &Path, with_peer: bool) -> anyhow::Result<Row> {
        let state = self.fresh("state")?;
        let archive_name = archive.to_string_lossy();
        let ours = seconds(|| {
            self.slate(&state, &["image", "import", name, &archive_name])
                .map(drop)
        })?;
        let theirs = || {
            let folder = self.fresh("unpacked")?;
            seconds(|| must_succeed(script(UNPACK).arg(archive).arg(&folder)))
        };
        let theirs = with_peer.then(theirs).transpose()?;
        Ok(row(name, "s", ours, theirs.map(|it| ("tar -x; sync", it))))
    }

    /// The store of small files, which the last import made: how long one process takes to open a
    /// version and look at its root, and the memory that it has then.
    fn open_small(&self) -> anyhow::Result<Vec<Row>> {
        let store = self.folder.join("state/store");
        let mut open = Command::new(&self.open);
        let printed = output_of(open.arg(&store).arg("import-small"))?;
        let figures: Value = serde_json::from_str(&printed).context("reading its figures")?;
        let figure = |name: &str| figures[name].as_f64().context("a figure is missing");
        Ok(vec![
            row("open-200k", "ms", figure("us")? / 1000.0, None),
            row("open-200k-bytes", "B", figure("bytes")?, None),
        ])
    }

    /// A tree that is in the store already, but for a few files.
    fn reimport(&self, with_peer: bool) -> anyhow::Result<Vec<Row>> {
        let (tree, state, repo) = (
            self.fresh("tree")?,
            self.fresh("state")?,
            self.fresh("repo")?,
        );
        must_succeed(script(UNPACK).arg(&self.archive).arg(&tree))?;
        // OSTree takes no device nodes.
        must_succeed(script("find \"$1/dev\" -mindepth 1 -delete").arg(&tree))?;
        let from = tree.to_string_lossy().into_owned();
        let import = || {
            self.slate(&state, &["image", "import", "tree:latest", &from])
                .map(drop)
        };
        let repository = format!("--repo={}", repo.display());
        let from = format!("--tree=dir={}", tree.display());
        let ostree =
            |words: &[&str]| must_succeed(Command::new("ostree").args(words).stdout(Stdio::null()));
        let commit = || {
            ostree(&["commit", &repository, "--branch=tree", &from])?;
            must_succeed(Command::new("sync").arg("--file-system").arg(&repo))
        };
        import()?;
        if with_peer {
            ostree(&["init", &repository, "--mode=bare"])?;
            commit()?;
        }
        must_succeed(script(CHANGE).arg(&tree))?;
        let before = (disk_bytes(&state)?, disk_bytes(&repo).unwrap_or(0.0));
        let ours = seconds(import)?;
        let theirs = with_peer.then(|| seconds(commit)).transpose()?;
        let after = (disk_bytes(&state)?, disk_bytes(&repo).unwrap_or(0.0));
        let peer = |value: f64| with_peer.then_some(("ostree commit", value));
        Ok(vec![
            row("reimport", "s", ours, theirs.and_then(peer)),
            row(
                "reimport-bytes",
                "B",
                after.0 - before.0,
                peer(after.1 - before.1),
            ),
        ])
    }

    /// An edit of 100 files becomes a version, and the tag goes back.
    fn commit(&self, with_peer: bool) -> anyhow::Result<Vec<Row>> {
        let state = self.fresh("state")?;
        let archive = self.archive.to_string_lossy();
        self.slate(&state, &["image", "import", "edited", &archive])?;
        let words = ["image", "run", "--json", "edited", "--", "sh", "-c", EDIT];
        let said: Value = serde_json::from_str(&self.slate(&state, &words)?)?;
        let milliseconds = |name: &str| {
            said[name]
                .as_f64()
                .context("slate image run names no times")
        };
        let (checkout, commit) = (milliseconds("checkout_ms")?, milliseconds("commit_ms")?);
        self.slate(&state, &["image", "tag", "edited:next", "edited"])?;
        let back = seconds(|| {
            self.slate(&state, &["image", "rollback", "edited"])
                .map(drop)
        })?;
        let tar = || {
            let (tree, packed) = (self.fresh("tree")?, self.fresh("packed.tar")?);
            must_succeed(script(UNPACK).arg(&self.archive).arg(&tree))?;
            let mut tar = Command::new("tar");
            tar.arg("--create")
                .arg("--file")
                .arg(&packed)
                .arg("--directory")
                .arg(&tree);
            tar.args(["--xattrs", "--numeric-owner", "."]);
            seconds(|| must_succeed(&mut tar))
        };
        let tar = with_peer.then(tar).transpose()?;
        Ok(vec![
            row("checkout", "s", checkout / 1000.0, None),
            row("commit", "s", commit / 1000.0, tar.map(|it| ("tar -c", it))),
            row("rollback", "s", back, None),
        ])
    }

    fn slate(&self, state: &Path, words: &[&str]) -> anyhow::Result<String> {
        let mut slate = Command::new(&self.program);
        slate
            .args(words)
            .env("SLATE_STATE_DIR", state)
            .env("SLATE_RUN_DIR", state.join("run"))
            .stdin(Stdio::null());
        output_of(&mut slate)
    }

    /// A path below the folder with nothing there, and nothing left to be written.
    ///
    /// What was there goes at the end: ext4 gives nobody an inode that was freed in the last minute
    /// (`recently_deleted` in its ialloc.c) and looks at each of them whenever a file is made, and
    /// nobody deletes an image just before importing one.
    fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        if path.exists() {
            let old = self.folder.join(OLD);
            std::fs::create_dir_all(&old)?;
            let count = std::fs::read_dir(&old)?.count();
            std::fs::rename(&path, old.join(count.to_string()))
                .with_context(|| format!("moving {} away", path.display()))?;
        }
        must_succeed(&mut Command::new("sync"))?;
        Ok(path)
    }

    /// Removes what earlier measurements made.
    fn clear(&self) -> anyhow::Result<()> {
        must_succeed(Command::new("rm").arg("-rf").arg(self.folder.join(OLD)))
    }
}

fn disk_bytes(path: &Path) -> anyhow::Result<f64> {
    let text = output_of(
        Command::new("du")
            .args(["--summarize", "--block-size=1"])
            .arg(path),
    )?;
    let bytes = text.split_whitespace().next().context("du says nothing")?;
    bytes.parse().context("du names no number")
}

fn row(
    name: &'static str,
    unit: &'static str,
    ours: f64,
    peer: Option<(&'static str, f64)>,
) -> Row {
    Row {
        better: Better::Lower,
        name,
        unit,
        ours,
        peer,
    }
}

fn medians(rounds: &[Vec<Row>]) -> Vec<Row> {
    let Some(first) = rounds.first() else {
        return Vec::new();
    };
    let at = |index: usize, read: &dyn Fn(&Row) -> Option<f64>| {
        median(
            rounds
                .iter()
                .filter_map(|rows| read(&rows[index]))
                .collect(),
        )
    };
    let rows = first.iter().enumerate().map(|(index, it)| Row {
        better: Better::Lower,
        name: it.name,
        unit: it.unit,
        ours: at(index, &|row| Some(row.ours)),
        peer: it
            .peer
            .map(|(name, _)| (name, at(index, &|row| row.peer.map(|it| it.1)))),
    });
    rows.collect()
}

fn conditions(rounds: usize, site: &Site) -> anyhow::Result<Vec<(&'static str, String)>> {
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let bytes = std::fs::metadata(&site.archive)?.len();
    Ok(vec![
        ("rounds", format!("{rounds}, each side in turn, medians")),
        ("machine", format!("{cores} cores, load {}", load.trim())),
        (
            "input",
            format!(
                "{IMAGE} of {} MB; 200,000 files of up to 500 bytes; both in the page cache",
                bytes / 1_000_000
            ),
        ),
        (
            "durable",
            "all sides: imports end when everything is on the disk".to_owned(),
        ),
    ])
}
