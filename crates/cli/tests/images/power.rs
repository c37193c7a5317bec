//! Power that fails, and processes that are killed, at any instant of all that changes a store.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal};

use crate::disk::{Disk, Kind};
use crate::rig::{Slate, busybox_root, impossible, write};

const PROGRAMS: [&str; 4] = [
    "/usr/sbin/mkfs.ext4",
    "/usr/sbin/mkfs.xfs",
    "/usr/sbin/xfs_io",
    "/bin/busybox",
];
/// Times in a run of every day, and in the long one.
const FEW: u32 = 16;
const MANY: u32 = 100;

#[test]
#[ignore = "mounts file systems: cargo xtask test"]
fn ext4_loses_no_version_when_everything_stops_at_once() {
    stop_at_random(Kind::Ext4, FEW);
}

#[test]
#[ignore = "mounts file systems: cargo xtask test"]
fn xfs_loses_no_version_when_everything_stops_at_once() {
    stop_at_random(Kind::Xfs, FEW);
}

#[test]
#[ignore = "mounts file systems: cargo xtask test --full"]
fn full_ext4_loses_no_version_in_a_hundred_stops() {
    stop_at_random(Kind::Ext4, MANY);
}

#[test]
#[ignore = "mounts file systems: cargo xtask test --full"]
fn full_xfs_loses_no_version_in_a_hundred_stops() {
    stop_at_random(Kind::Xfs, MANY);
}

fn stop_at_random(kind: Kind, rounds: u32) {
    if impossible(&PROGRAMS) {
        return;
    }
    let seed = std::env::var("SLATE_SEED").map_or_else(
        |_| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.expect("a time after 1970").subsec_nanos().into()
        },
        |text| text.parse().expect("SLATE_SEED: expected a number"),
    );
    println!("{kind:?}: to repeat these instants, about: SLATE_SEED={seed}");
    let disk = Disk::new(kind, 400);
    let mut rig = Rig::new(&disk, seed);
    let mut stopped = 0;
    for round in 1..=rounds {
        stopped += usize::from(rig.round(round));
    }
    println!("{stopped} of {rounds} times something was under way");
    assert!(
        stopped > 0,
        "nothing was ever stopped: no instant was early enough"
    );
}

/// What is started in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// An import of few objects, which are synced one by one.
    Small,
    /// One of many, for which the file system is synced.
    Large,
    /// A change by a command.
    Run,
}

/// Objects of [`Writer::Small`] and [`Writer::Large`].
const OBJECTS: [usize; 2] = [5, 400];

/// A command that was started, and what it means for one tag.
struct Started {
    what: String,
    begun: Instant,
    child: Child,
    /// The tag that it moves and what to, where that is known.
    moves: Option<(&'static str, Goal)>,
}

/// What a tag is to name.
#[derive(Clone, Debug)]
enum Goal {
    Version(String),
    /// A version that differs from the base by that path alone.
    Changed {
        base: String,
        path: String,
    },
}

/// All tags and what they name.
type Tags = BTreeMap<String, String>;

struct Rig<'d> {
    slate: Slate<'d>,
    /// A store on this machine's disk, which tells what digest a source has.
    reference: Slate<'d>,
    source: PathBuf,
    random: u64,
    /// About how long each writer takes when nothing disturbs it.
    lasts: BTreeMap<&'static str, Duration>,
    /// A version that has no name but a pin.
    pinned: String,
    disk: &'d Disk,
    _directory: tempfile::TempDir,
}

impl<'d> Rig<'d> {
    fn new(disk: &'d Disk, seed: u64) -> Rig<'d> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut rig = Rig {
            slate: Slate::on(disk),
            reference: Slate::at(&directory.path().join("reference")),
            source: directory.path().join("source"),
            random: seed | 1,
            lasts: BTreeMap::new(),
            pinned: String::new(),
            disk,
            _directory: directory,
        };
        busybox_root(&rig.source);
        rig.slate.run(&["image", "import", "x", rig.source()]);
        rig.fill(0, OBJECTS[0]);
        rig.slate.run(&["image", "import", "x:old", rig.source()]);
        rig.pinned = rig.slate.digest("x:old");
        rig.slate.run(&["image", "pin", "x:old"]);
        rig.slate.run(&["image", "rm", "x:old"]);
        for writer in [Writer::Small, Writer::Large, Writer::Run] {
            let mut started = rig.start(writer, 0);
            let status = started.child.wait().expect("an end");
            assert!(status.success(), "{}", started.what);
            rig.lasts.insert(writer.name(), started.begun.elapsed());
        }
        rig
    }

    /// Starts commands, stops all of them at some instant, and looks at what is there then. Whether
    /// one was under way.
    fn round(&mut self, round: u32) -> bool {
        let writer = [Writer::Small, Writer::Large, Writer::Run][self.below(3) as usize];
        let before = self.tags();
        let mut started = vec![self.start(writer, round)];
        if writer != Writer::Run && self.below(2) == 0 {
            started.push(self.start_tag(&before));
        }
        if self.below(2) == 0 {
            started.push(self.spawn("gc", &["image", "gc"], None));
        }
        let lasts = self.lasts[writer.name()].as_micros() as u64;
        let instant = Duration::from_micros(self.below(lasts));
        std::thread::sleep(instant);
        let power = self.below(3) > 0;
        let what: Vec<&str> = started.iter().map(|it| &*it.what).collect();
        let how = if power { "power" } else { "kill" };
        println!("{round}: {} {how} after {instant:.0?}", what.join(", "));
        let (done, ended) = self.stop(&mut started, power);
        self.look(&before, &started, &done);
        // The machine's load changes what a command takes.
        let lasts = self.lasts.get_mut(writer.name()).expect("all are there");
        *lasts = *lasts * if ended { 9 } else { 11 } / 10;
        !ended
    }

    /// Stops everything. Which commands were done before, and whether all of them had ended.
    fn stop(&self, started: &mut [Started], power: bool) -> (Vec<bool>, bool) {
        let ends = started
            .iter_mut()
            .map(|it| it.child.try_wait().expect("asking"));
        let ends: Vec<_> = ends.collect();
        if power {
            self.disk.cut_power();
        }
        for command in started.iter_mut() {
            let group = Pid::from_child(&command.child);
            // The group is gone where the command has ended.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            command.child.wait().expect("an end");
        }
        if power {
            self.disk.restore();
        }
        let done = ends.iter().map(|it| it.is_some_and(|it| it.success()));
        (done.collect(), ends.iter().all(Option::is_some))
    }

    /// Every tag names what it named before or was to name, and what was promised is kept.
    fn look(&self, before: &Tags, started: &[Started], done: &[bool]) {
        let after = self.tags();
        for (tag, old) in before {
            let new = after.get(tag);
            let new = new.unwrap_or_else(|| panic!("{tag} is gone"));
            let mover = started.iter().zip(done).find_map(|(command, done)| {
                let (moved, goal) = command.moves.as_ref()?;
                (format!("x:{moved}") == *tag).then_some((goal, *done))
            });
            match mover {
                Some((goal, true)) => assert!(self.reached(new, goal), "{tag}: a promise is lost"),
                Some((goal, false)) => {
                    assert!(new == old || self.reached(new, goal), "{tag} names {new}");
                }
                None => assert_eq!(new, old, "{tag} was moved by nobody"),
            }
        }
        self.check_whole(&after);
        let kept: BTreeSet<&String> = before.values().collect();
        let there = self.versions();
        // What a tag named just before may be rolled back to.
        let lost = kept.iter().find(|it| !there.contains(**it));
        assert_eq!(lost, None, "a version is lost");
        self.slate.run(&["image", "gc"]);
        self.check_whole(&after);
        let rests = std::fs::read_dir(self.slate.state().join("store/tmp")).expect("a directory");
        assert_eq!(rests.count(), 0, "gc left something of what was stopped");
    }

    fn reached(&self, digest: &str, goal: &Goal) -> bool {
        match goal {
            Goal::Version(wanted) => digest == wanted,
            Goal::Changed { base, path } => {
                let diff = self.slate.json(&["image", "diff", base, digest, "--json"]);
                let files = diff["files"].as_array().expect("files").iter();
                let paths: Vec<&str> = files.filter_map(|it| it["path"].as_str()).collect();
                paths == ["/etc", path] || paths == [path]
            }
        }
    }

    /// Every version is whole, those that tags and the pin name among them.
    fn check_whole(&self, tags: &Tags) {
        let verified = self.slate.output(&["image", "verify"]);
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success(), "{said}");
        let there = self.versions();
        assert!(there.contains(&self.pinned), "the pinned version is lost");
        for (tag, digest) in tags {
            assert!(there.contains(digest), "{tag} names a version that is lost");
        }
    }

    fn versions(&self) -> BTreeSet<String> {
        let list = self.slate.json(&["image", "list", "--json"]);
        let versions = list.as_array().expect("versions").iter();
        let versions = versions.inspect(|it| assert!(it["damage"].is_null(), "{it}"));
        let digest = |it: &serde_json::Value| it["digest"].as_str().expect("a digest").to_owned();
        versions.map(digest).collect()
    }

    fn tags(&self) -> Tags {
        let list = self.slate.json(&["image", "list", "--json"]);
        let mut tags = Tags::new();
        for version in list.as_array().expect("versions") {
            for tag in version["tags"].as_array().expect("tags") {
                let tag = tag.as_str().expect("a tag").to_owned();
                tags.insert(tag, version["digest"].as_str().expect("a digest").into());
            }
        }
        tags
    }

    /// Starts what makes a new x:next.
    fn start(&mut self, writer: Writer, round: u32) -> Started {
        match writer {
            Writer::Small | Writer::Large => {
                self.fill(round, OBJECTS[usize::from(writer == Writer::Large)]);
                let source = self.source.clone();
                let source = source.to_str().expect("a path in UTF-8");
                self.reference.run(&["image", "import", "x:any", source]);
                let goal = Goal::Version(self.reference.digest("x:any"));
                let words = ["image", "import", "x:next", source];
                self.spawn(writer.name(), &words, Some(("next", goal)))
            }
            Writer::Run => {
                let path = format!("/etc/round-{round}");
                let script = format!("echo {round} > {path}");
                let base = self.slate.digest("x");
                let words = ["image", "run", "x", "--replace", "--network", "off", "--"];
                let words = [&words[..], &["sh", "-c", &script]].concat();
                self.spawn("run", &words, Some(("next", Goal::Changed { base, path })))
            }
        }
    }

    /// Starts to move x:latest to another version.
    fn start_tag(&mut self, tags: &Tags) -> Started {
        let index = self.random();
        let versions: Vec<&String> = tags.values().chain([&self.pinned]).collect();
        let version = versions[index as usize % versions.len()].clone();
        let goal = Goal::Version(version.clone());
        let words = ["image", "tag", &version, "x:latest"];
        self.spawn("tag", &words, Some(("latest", goal)))
    }

    fn spawn(&self, what: &str, words: &[&str], moves: Option<(&'static str, Goal)>) -> Started {
        let mut command = self.slate.command(words);
        command.process_group(0);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Started {
            what: what.to_owned(),
            begun: Instant::now(),
            child: command.spawn().expect("slate starts"),
            moves,
        }
    }

    /// Gives the source files of this round.
    fn fill(&self, round: u32, objects: usize) {
        let directory = self.source.join("content");
        let _ = std::fs::remove_dir_all(&directory);
        for number in 0..objects {
            let line = format!("file {number} of round {round}\n");
            write(&directory.join(number.to_string()), line.repeat(200));
        }
    }

    fn source(&self) -> &str {
        self.source.to_str().expect("a path in UTF-8")
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.random() % limit
    }

    /// Marsaglia's xorshift: "Xorshift RNGs", Journal of Statistical Software 8 (2003).
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl Writer {
    fn name(self) -> &'static str {
        match self {
            Writer::Small => "small import",
            Writer::Large => "large import",
            Writer::Run => "run",
        }
    }
}

#[test]
#[ignore = "mounts file systems: cargo xtask test"]
fn a_disk_that_fills_up_in_an_import_keeps_nothing_of_it() {
    if impossible(&PROGRAMS) {
        return;
    }
    for kind in [Kind::Ext4, Kind::Xfs] {
        let disk = Disk::new(kind, 320);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let slate = Slate::on(&disk);
        let root = directory.path().join("root");
        busybox_root(&root);
        let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        slate.run(&["image", "import", "x", &path(&root)]);
        let (free, digest) = (free_bytes(&disk.seen()), slate.digest("x"));
        // Together more than there is, in pieces that each are hashed before they are written.
        let mut content = vec![0_u8; 1 << 20];
        for number in 0..free.div_ceil(1 << 20) + 8 {
            content.fill(number as u8 | 1);
            content[..8].copy_from_slice(&number.to_le_bytes());
            write(&root.join(format!("content/{number}")), &content);
        }
        let import = ["image", "import", "x", &path(&root)];
        let parts = ["No space left on device", "free some disk space"];
        slate.fails(&import, 1, &parts);
        let tmp = slate.state().join("store/tmp");
        let rests = std::fs::read_dir(tmp).expect("a directory").count();
        assert_eq!(rests, 0, "{kind:?}: rests of the import");
        disk.restore();
        let lost = free.saturating_sub(free_bytes(&disk.seen()));
        assert!(lost < 1 << 20, "{kind:?}: {lost} bytes are not free again");
        let list = slate.json(&["image", "list", "--json"]);
        assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
        assert_eq!(slate.digest("x"), digest);
        slate.run(&["image", "verify"]);
    }
}

fn free_bytes(path: &Path) -> u64 {
    let disk = rustix::fs::statvfs(path).expect("the file system's sizes");
    disk.f_bfree * disk.f_frsize
}

#[test]
#[ignore = "mounts file systems: cargo xtask test"]
fn what_a_disk_lost_is_named_and_put_back_by_the_same_source() {
    if impossible(&PROGRAMS) {
        return;
    }
    for kind in [Kind::Ext4, Kind::Xfs] {
        let disk = Disk::new(kind, 320);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let slate = Slate::on(&disk);
        let root = directory.path().join("root");
        busybox_root(&root);
        for name in ["cut", "gone", "changed"] {
            write(&root.join("srv").join(name), name.repeat(3000));
        }
        let root = root.to_str().expect("a path in UTF-8");
        slate.run(&["image", "import", "x", root]);
        let objects = slate.state().join("store/objects");
        let object = |content: &str| find(&objects, content.repeat(3000).as_bytes());
        let cut = std::fs::File::options().write(true).open(object("cut"));
        cut.and_then(|file| file.set_len(1000))
            .expect("an object that is cut");
        std::fs::remove_file(object("gone")).expect("an object that is gone");
        std::fs::write(object("changed"), "Changed".repeat(3000)).expect("one that is changed");
        disk.restore();
        let parts = ["/srv/cut", "/srv/gone", "/srv/changed"];
        slate.fails(&["image", "verify"], 1, &parts);
        slate.fails(&["image", "verify", "--discard"], 1, &parts);
        slate.run(&["image", "import", "x", root]);
        slate.run(&["image", "verify"]);
        for name in ["cut", "gone", "changed"] {
            object(name);
        }
    }
}

/// The object with that content.
fn find(objects: &Path, content: &[u8]) -> PathBuf {
    let heads = std::fs::read_dir(objects).expect("a directory").flatten();
    let all = heads.flat_map(|head| {
        std::fs::read_dir(head.path())
            .expect("a directory")
            .flatten()
    });
    let mut paths = all.map(|entry| entry.path());
    let found = paths.find(|path| std::fs::read(path).expect("an object") == content);
    found.expect("an object with that content")
}
