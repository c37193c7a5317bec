//! `cargo xtask tidy`: the rules of ARCHITECTURE.md that a machine can check.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::run::{cargo, output, root};

/// Which crates of ours a crate may import.
const IMPORTS: [(&str, &[&str]); 9] = [
    ("wire", &[]),
    ("engine", &["wire"]),
    ("nfs", &[]),
    ("image", &["wire"]),
    ("init", &["wire"]),
    ("lab", &[]),
    ("daemon", &["wire", "engine", "nfs", "image"]),
    ("cli", &["daemon", "image", "lab", "wire", "engine"]),
    ("xtask", &["lab"]),
];

/// Crates whose dependency trees hold no async runtime.
const WITHOUT_TOKIO: [&str; 4] = ["wire", "engine", "nfs", "init"];

/// Crates that decide without clock, randomness, sockets and files.
const PURE: [&str; 2] = ["wire", "engine"];

/// Modules that may hold unsafe code.
const UNSAFE_MODULES: [&str; 10] = [
    "crates/daemon/src/privilege.rs",
    "crates/daemon/src/listeners.rs",
    "crates/daemon/src/net/sys.rs",
    "crates/image/src/map.rs",
    "crates/image/src/sys.rs",
    "crates/init/src/sys.rs",
    "crates/lab/src/process.rs",
    "crates/lab/src/sys.rs",
    "crates/nfs/src/sys.rs",
    "crates/cli/src/sys.rs",
];

/// A broken rule, for people.
type Problem = String;

/// Checks every rule; an error that lists what is broken.
pub fn tidy() -> Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(root())
        .exec()
        .context("reading cargo's metadata")?;
    let sources = sources()?;
    let mut problems = check_imports(&metadata);
    problems.extend(check_tokio()?);
    problems.extend(check_bans()?);
    problems.extend(sources.iter().flat_map(|source| check_source(source)));
    problems.extend(check_fuzz_targets()?);
    if problems.is_empty() {
        println!("tidy: {} files, no problem", sources.len());
        return Ok(());
    }
    bail!("{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn check_imports(metadata: &Metadata) -> Vec<Problem> {
    let rules: BTreeMap<_, _> = IMPORTS.into_iter().collect();
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let Some(allowed) = rules.get(package.name.as_str()) else {
            problems.push(format!("{}: no rule says what it may import", package.name));
            continue;
        };
        let imports = package
            .dependencies
            .iter()
            .filter(|it| it.kind == DependencyKind::Normal);
        for import in imports.filter(|it| rules.contains_key(it.name.as_str())) {
            if !allowed.contains(&import.name.as_str()) {
                problems.push(format!("{} must not import {}", package.name, import.name));
            }
        }
    }
    problems
}

fn check_tokio() -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for name in WITHOUT_TOKIO {
        let tree = [
            "tree",
            "--package",
            name,
            "--edges",
            "normal",
            "--prefix",
            "none",
        ];
        let text = output(cargo(&tree))?;
        if text.lines().any(|line| line.starts_with("tokio ")) {
            problems.push(format!("{name} must not depend on tokio"));
        }
    }
    Ok(problems)
}

/// The pure crates carry a clippy.toml that bans what would make them impure.
fn check_bans() -> Result<Vec<Problem>> {
    const BANNED: [&str; 6] = [
        "std::time::Instant::now",
        "std::time::SystemTime::now",
        "std::fs::File",
        "std::net::UdpSocket",
        "std::net::TcpStream",
        "std::thread::spawn",
    ];
    let mut problems = Vec::new();
    for name in PURE {
        let path = root().join("crates").join(name).join("clippy.toml");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let missing = BANNED.iter().filter(|banned| !text.contains(**banned));
        problems.extend(missing.map(|banned| format!("{}: does not ban {banned}", path.display())));
    }
    Ok(problems)
}

/// One Rust file of the project.
struct Source {
    /// Relative to the workspace.
    path: String,
    text: String,
}

fn sources() -> Result<Vec<Source>> {
    let list = [
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ];
    let mut git = std::process::Command::new("git");
    git.args(list).current_dir(root());
    let mut sources = Vec::new();
    for path in output(git)?
        .lines()
        .filter(|path| root().join(path).exists())
    {
        let text = std::fs::read_to_string(root().join(path))
            .with_context(|| format!("reading {path}"))?;
        sources.push(Source {
            path: path.to_owned(),
            text,
        });
    }
    Ok(sources)
}

fn check_source(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut complain = |what: &str| problems.push(format!("{}: {what}", source.path));
    let first = source.text.lines().find(|line| !line.starts_with("#!["));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        complain("does not begin with a module doc (//!)");
    }
    // Written in two parts, so that this file may name what it looks for.
    for stub in [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
    ] {
        if source.text.contains(stub) {
            complain(&format!("holds {stub}"));
        }
    }
    let unsafe_code = source
        .text
        .lines()
        .map(str::trim)
        .filter(|line| is_unsafe(line))
        .count();
    if unsafe_code > 0 && !UNSAFE_MODULES.contains(&source.path.as_str()) {
        complain("holds unsafe code, which belongs into one of the modules named for it");
    }
    if source.text.matches("// SAFETY:").count() < unsafe_code {
        complain("holds an unsafe block without its SAFETY line");
    }
    problems
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
        .iter()
        .any(|it| code.contains(it))
}

/// Every file in `fuzz/fuzz_targets` is a target of `fuzz/Cargo.toml`, and the other way round.
fn check_fuzz_targets() -> Result<Vec<Problem>> {
    let fuzz = root().join("fuzz");
    let manifest =
        std::fs::read_to_string(fuzz.join("Cargo.toml")).context("reading fuzz/Cargo.toml")?;
    let listed: BTreeSet<PathBuf> = manifest
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("path = \"fuzz_targets/")?
                .strip_suffix('"')
        })
        .map(PathBuf::from)
        .collect();
    let mut present = BTreeSet::new();
    for entry in
        std::fs::read_dir(fuzz.join("fuzz_targets")).context("reading fuzz/fuzz_targets")?
    {
        present.insert(PathBuf::from(entry?.file_name()));
    }
    let lonely = |path: &Path, what: &str| format!("fuzz target {}: {what}", path.display());
    let unlisted = present
        .difference(&listed)
        .map(|path| lonely(path, "not in fuzz/Cargo.toml"));
    let absent = listed
        .difference(&present)
        .map(|path| lonely(path, "has no file"));
    Ok(unlisted.chain(absent).collect())
}
