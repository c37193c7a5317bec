//! Rules on the source files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::workspace::root;

/// The modules that may hold unsafe code: small, named for what they do.
const UNSAFE: &[&str] = &[
    "crates/cli/src/copy.rs",
    "crates/cli/src/foreground.rs",
    "crates/daemon/src/blob.rs",
    "crates/daemon/src/listeners.rs",
    "crates/daemon/src/net/sys.rs",
    "crates/daemon/src/privilege.rs",
    "crates/image/src/store/map.rs",
    "crates/image/src/sys.rs",
    "crates/init/src/sys.rs",
    "crates/init/src/unwind.rs",
    "crates/lab/src/process.rs",
    "crates/nfs/src/sys.rs",
];
/// What the clippy.toml of a crate without I/O must ban.
const BANNED: [&str; 8] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::fs::File",
    "std::thread::spawn",
    "std::hash::RandomState",
    "std::collections::HashMap",
];
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 6] = ["utils", "util", "common", "misc", "helpers", "types"];
/// Markers of unfinished work (put together so that this file does not hold them).
const MARKERS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("dbg", "!("),
];
/// Modules of `wire` that hold the tools of decoders, not a decoder.
const NOT_DECODERS: [&str; 3] = ["lib", "reader", "stage"];

struct Source {
    /// Relative to the root of the repository.
    path: PathBuf,
    text: String,
}

/// Checks the rules on sources.
pub fn check() -> anyhow::Result<Vec<(&'static str, Vec<String>)>> {
    let sources = read_sources()?;
    Ok(vec![
        (
            "unsafe code only in the listed modules, each block with its SAFETY",
            unsafe_code(&sources),
        ),
        (
            "engine and wire ban clocks, randomness, sockets and files",
            missing_bans()?,
        ),
        (
            "every file begins with a module doc",
            each(&sources, lacks_module_doc),
        ),
        (
            "file names are snake_case and say something",
            each(&sources, has_bad_name),
        ),
        ("no markers of unfinished work", each(&sources, has_marker)),
        (
            "every decoder has a fuzz target, every fuzz target is listed",
            fuzz_targets(&sources),
        ),
    ])
}

fn read_sources() -> anyhow::Result<Vec<Source>> {
    let mut open: Vec<PathBuf> = ["crates", "xtask", "fuzz/fuzz_targets"]
        .map(|name| root().join(name))
        .into();
    let mut sources = Vec::new();
    while let Some(folder) = open.pop().filter(|folder| folder.exists()) {
        for entry in
            std::fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?
        {
            let path = entry?.path();
            if path.is_dir() && path.file_name() != Some("target".as_ref()) {
                open.push(path);
            } else if path.extension() == Some("rs".as_ref()) {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                let path = path.strip_prefix(root()).unwrap_or(&path).to_owned();
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

/// One line per finding: `path: what is wrong`.
fn each(sources: &[Source], rule: impl Fn(&Source) -> Option<String>) -> Vec<String> {
    let report = |source: &Source| {
        rule(source).map(|problem| format!("{}: {problem}", source.path.display()))
    };
    sources.iter().filter_map(report).collect()
}

fn unsafe_code(sources: &[Source]) -> Vec<String> {
    let mut findings = each(sources, |source| {
        let number = unsafe_lines(&source.text).into_iter().next()?;
        let listed = UNSAFE.iter().any(|path| source.path == Path::new(path));
        (!listed).then(|| format!("unsafe code on line {number}; the module is not on the list"))
    });
    findings.extend(each(sources, |source| {
        let lines: Vec<&str> = source.text.lines().collect();
        let bare = unsafe_lines(&source.text)
            .into_iter()
            .find(|number| !is_explained(&lines, *number))?;
        Some(format!(
            "unsafe code on line {bare} without a SAFETY comment above it"
        ))
    }));
    findings
}

/// The numbers of the lines that begin an unsafe block, function or implementation.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let keyword = concat!("un", "safe");
    let is_code = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        let mut rest = code.split(keyword).skip(1);
        rest.any(|after| {
            ["{", "fn ", "impl ", "extern "]
                .iter()
                .any(|next| after.trim_start().starts_with(next))
        })
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| is_code(line))
        .map(|(index, _)| index + 1)
        .collect()
}

/// Whether the comment that ends above line `number`, or above the statement it is in, has a SAFETY.
fn is_explained(lines: &[&str], number: usize) -> bool {
    let above = lines[..number].iter().rev().take(12);
    above
        .take_while(|line| !line.trim().is_empty())
        .any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
}

fn missing_bans() -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    for name in ["engine", "wire"] {
        let path = format!("crates/{name}/clippy.toml");
        let text = std::fs::read_to_string(root().join(&path))
            .with_context(|| format!("reading {path}"))?;
        let absent = BANNED
            .iter()
            .filter(|banned| !text.contains(&format!("\"{banned}\"")));
        missing.extend(absent.map(|banned| format!("{path} does not ban {banned}")));
    }
    Ok(missing)
}

fn lacks_module_doc(source: &Source) -> Option<String> {
    let first = source
        .text
        .lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!"))?;
    (!first.starts_with("//!")).then(|| "no module doc".to_owned())
}

fn has_bad_name(source: &Source) -> Option<String> {
    let stem = source.path.file_stem()?.to_str()?;
    let snake = stem
        .chars()
        .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    (!snake || EMPTY_NAMES.contains(&stem)).then(|| format!("{stem} is not a good name"))
}

fn has_marker(source: &Source) -> Option<String> {
    let words = |line: &str, marker: &str| match line.find(marker) {
        Some(at) => !line[at + marker.len()..].starts_with(|next: char| next.is_alphanumeric()),
        None => false,
    };
    let found = |line: &str| MARKERS.iter().any(|marker| words(line, marker));
    let number = source.text.lines().position(found)? + 1;
    Some(format!("line {number}"))
}

fn fuzz_targets(sources: &[Source]) -> Vec<String> {
    let Ok(manifest) = std::fs::read_to_string(root().join("fuzz/Cargo.toml")) else {
        return vec!["fuzz/Cargo.toml cannot be read".to_owned()];
    };
    let stem = |path: &Path| {
        path.file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let in_folder = |folder: &'static str| {
        sources
            .iter()
            .filter(move |source| source.path.starts_with(folder))
    };
    let targets: BTreeSet<String> = in_folder("fuzz/fuzz_targets")
        .map(|source| stem(&source.path))
        .collect();
    let listed = |target: &String| manifest.contains(&format!("fuzz_targets/{target}.rs"));
    let mut findings: Vec<String> = targets
        .iter()
        .filter(|target| !listed(target))
        .map(|target| format!("{target} is not in fuzz/Cargo.toml"))
        .collect();
    for source in in_folder("crates/wire/src").filter(|source| is_decoder(&source.text)) {
        let name = stem(&source.path);
        if !NOT_DECODERS.contains(&name.as_str()) && !targets.contains(&name) {
            findings.push(format!(
                "{}: no fuzz_targets/{name}.rs",
                source.path.display()
            ));
        }
    }
    findings
}

fn is_decoder(text: &str) -> bool {
    text.lines().any(|line| {
        let function = line
            .trim_start()
            .strip_prefix("pub fn ")
            .unwrap_or_default();
        ["decode", "parse", "from_bytes", "open"]
            .iter()
            .any(|verb| function.starts_with(verb))
            || line.contains("impl FromStr for")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_code_is_found_outside_comments() {
        let keyword = concat!("un", "safe");
        let text = format!(
            "// {keyword} {{\n#![allow({keyword}_code)]\nlet x = {keyword} {{ f() }};\n{keyword} impl Send for X {{}}\n"
        );
        assert_eq!(unsafe_lines(&text), [3, 4]);
    }

    #[test]
    fn a_comment_above_the_statement_explains() {
        let lines = ["// SAFETY: fine", "let x =", "    f(g)", "", "h"];
        assert!(is_explained(&lines, 3));
        assert!(!is_explained(&lines, 5));
    }

    #[test]
    fn a_module_doc_may_follow_inner_attributes() {
        let source = |text: &str| Source {
            path: "a.rs".into(),
            text: text.to_owned(),
        };
        assert_eq!(lacks_module_doc(&source("#![no_main]\n//! Doc\n")), None);
        assert!(lacks_module_doc(&source("use x;\n")).is_some());
    }

    #[test]
    fn markers_are_words() {
        let source = |text: String| Source {
            path: "a.rs".into(),
            text,
        };
        assert!(has_marker(&source(format!("// {}: later", MARKERS[0]))).is_some());
        assert!(has_marker(&source(format!("{}s", MARKERS[0]))).is_none());
    }
}
