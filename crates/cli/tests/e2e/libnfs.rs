//! libnfs, an NFS client in a library of its own, beside the kernel's: its commands list and read
//! what was imported.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lab::Tool;

use crate::harness::{PATIENCE, Site, impossible, script, text};

#[test]
#[ignore = "makes a network: cargo xtask test"]
fn libnfs_lists_and_reads_over_version_3_and_is_told_that_4_0_is_not_served() {
    if impossible(&[Tool::Iproute, Tool::Mmdebstrap, Tool::Libnfs]) {
        return;
    }
    let mut site = Site::new("debian12", &[]);
    let source = site.import_made("plain", |source| {
        script(MAKE, source);
    });
    let shown = site.slate_json(&["image", "show", "plain", "--json"]);
    let export = format!("/images/{}", text(&shown, "digest"));

    wait_for(&site, &url(&export, "", 3));

    let listed = succeeds(&site, &["nfs-ls", "-R", &url(&export, "", 3)]);
    let listed = String::from_utf8(listed.stdout).expect("names in UTF-8");
    let mut expected = BTreeSet::new();
    list(&source, &source, &mut expected);
    assert!(expected.len() > 2000, "{}", expected.len());
    let listed: BTreeSet<String> = listed.lines().map(without_directory_size).collect();
    let missing: Vec<_> = expected.difference(&listed).take(9).collect();
    let surplus: Vec<_> = listed.difference(&expected).take(9).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "not listed: {missing:#?}, instead: {surplus:#?}"
    );
    for file in ["empty", "one", "page", "large", "deep/er/file"] {
        let content = fs::read(source.join(file)).expect("a file of the source");
        let url = url(&export, file, 3);
        assert!(
            succeeds(&site, &["nfs-cat", &url]).stdout == content,
            "{file}"
        );
        let copy = site.path(&format!("copy-of-{}", file.replace('/', "-")));
        succeeds(&site, &["nfs-cp", &url, copy.to_str().expect("UTF-8")]);
        assert!(fs::read(&copy).expect("a copy") == content, "{file}");
    }
    let none = run(&site, &["nfs-cat", &url(&export, "none", 3)]);
    assert!(!none.status.success());

    // A disk that loses what is served is an error to who reads it, at once, and to nobody else.
    let digest = object_of(&site, &source.join("large"));
    fs::OpenOptions::new()
        .write(true)
        .open(site.path("state/store/objects").join(&digest))
        .and_then(|object| object.set_len(1 << 20))
        .expect("an object that can be cut");
    let mut broken = Command::new("timeout");
    broken.args(["60", "nfs-cat", &url(&export, "large", 3)]);
    let broken = site.network.run(broken).expect("a command of libnfs");
    let said = String::from_utf8_lossy(&broken.stderr);
    assert!(
        said.contains("Failed to read from file"),
        "{} {said}",
        broken.status
    );
    let whole = succeeds(&site, &["nfs-cat", &url(&export, "page", 3)]);
    assert!(whole.stdout == fs::read(source.join("page")).expect("a file of the source"));

    // Its version 4 is minor version 0, which has no sessions.
    let refused = run(&site, &["nfs-ls", &url(&export, "", 4)]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(said.contains("NFS4ERR_MINOR_VERS_MISMATCH"), "{said}");
}

/// The object that holds a file's content, as a path below the store's objects.
fn object_of(site: &Site, file: &Path) -> PathBuf {
    let objects = site.path("state/store/objects");
    let content = fs::read(file).expect("a file of the source");
    let heads = fs::read_dir(&objects).expect("objects").flatten();
    let all = heads.flat_map(|head| fs::read_dir(head.path()).expect("objects").flatten());
    let found = all
        .map(|entry| entry.path())
        .find(|path| fs::read(path).is_ok_and(|it| it == content));
    let found = found.expect("an object with that content");
    found
        .strip_prefix(objects)
        .expect("a path below")
        .to_owned()
}

fn url(export: &str, file: &str, version: u32) -> String {
    let port = "nfsport=2049&mountport=2049";
    let path = Path::new(export).join(file);
    format!(
        "nfs://{}{}?version={version}&{port}",
        lab::GATEWAY,
        path.display()
    )
}

/// The daemon looks for new images every now and then.
fn wait_for(site: &Site, url: &str) {
    let end = Instant::now() + PATIENCE;
    while !run(site, &["nfs-ls", url]).status.success() {
        assert!(Instant::now() < end, "{url} is not exported");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn run(site: &Site, words: &[&str]) -> Output {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    site.network.run(command).expect("a command of libnfs")
}

fn succeeds(site: &Site, words: &[&str]) -> Output {
    let output = run(site, words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {errors}");
    output
}

/// How long a directory is depends on the file system, which an image does not keep.
fn without_directory_size(line: &str) -> String {
    let words = line.split_whitespace().enumerate();
    let words = words.filter(|(at, _)| *at != 4 || !line.starts_with('d'));
    words.map(|(_, word)| word).collect::<Vec<_>>().join(" ")
}

/// A line for everything below a directory, as `nfs-ls` prints it.
fn list(root: &Path, directory: &Path, lines: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path: PathBuf = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("attributes");
        let kind = match meta.file_type() {
            kind if kind.is_dir() => "d",
            kind if kind.is_symlink() => "l",
            _ => "-",
        };
        let bits = (0..9).map(|bit| {
            let is_set = meta.mode() & (0o400 >> bit) != 0;
            if is_set {
                ["r", "w", "x"][bit % 3]
            } else {
                "-"
            }
        });
        let mode: String = bits.collect();
        let below = path.strip_prefix(root).expect("below the root");
        let line = format!(
            "{kind}{mode} {:2} {:5} {:5} {:12} {}",
            meta.nlink(),
            meta.uid(),
            meta.gid(),
            meta.len(),
            below.display()
        );
        lines.insert(without_directory_size(&line));
        if meta.is_dir() {
            list(root, &path, lines);
        }
    }
}

/// Fills the directory `$1`.
const MAKE: &str = r#"
cd "$1"
umask 022
: > empty
printf x > one
head -c 4096 /dev/urandom > page
head -c 3145729 /dev/urandom > large
chmod 0640 page; chown 1234:4321 page
mkdir -p deep/er many
cp one deep/er/file
ln page deep/second
ln -s ../one deep/link
perl -e 'for (0..1999) { open(my $file, ">", "many/$_") or die; print $file $_; }'
"#;
