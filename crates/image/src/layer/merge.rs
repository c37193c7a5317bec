//! Files of records that a base's update and a layer may both change: lists of users, of packages.

use std::collections::{BTreeMap, BTreeSet};

/// How a file is made of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Lines with a key before the first `:`; passwd(5) and its like.
    Lines {
        /// The field, counted from 0, that no two may share: the number of a user or group.
        unique: Option<usize>,
    },
    /// Paragraphs of dpkg, known by package and architecture; deb822(5).
    Paragraphs,
}

/// The style of the file at a path, if it is of one.
pub fn style_of(path: &[u8]) -> Option<Style> {
    Some(match path {
        b"etc/passwd" | b"etc/group" => Style::Lines { unique: Some(2) },
        b"etc/shadow" | b"etc/gshadow" | b"etc/subuid" | b"etc/subgid" => {
            Style::Lines { unique: None }
        }
        b"var/lib/dpkg/status" | b"var/lib/apt/extended_states" => Style::Paragraphs,
        _ => return None,
    })
}

/// Whether what is at a path can be had again, so that either side's will do: caches, logs, backups.
pub fn is_renewable(path: &[u8]) -> bool {
    const PREFIXES: [&[u8]; 5] = [
        b"var/cache/",
        b"var/log/",
        b"var/lib/apt/lists/",
        b"var/tmp/",
        b"usr/share/mime/",
    ];
    const FILES: [&[u8]; 8] = [
        b"etc/ld.so.cache",
        b"etc/.pwd.lock",
        b"etc/passwd-",
        b"etc/group-",
        b"etc/shadow-",
        b"etc/gshadow-",
        b"var/lib/dpkg/status-old",
        b"var/lib/dpkg/diversions-old",
    ];
    PREFIXES.iter().any(|it| path.starts_with(it)) || FILES.contains(&path)
}

/// What becomes of `old` when both `ours` and `theirs` were made of it; an error names the record
/// that both changed.
pub fn merge(style: Style, old: &[u8], ours: &[u8], theirs: &[u8]) -> Result<Vec<u8>, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "not UTF-8".to_owned());
    let (old, ours, theirs) = (text(old)?, text(ours)?, text(theirs)?);
    let [old_map, ours_map, theirs_map] = [&old, &ours, &theirs].map(|it| keyed(style, it));
    let keys: BTreeSet<&String> = old_map.keys().chain(theirs_map.keys()).collect();
    let mut changed = BTreeMap::new();
    for key in keys {
        let (old, ours, theirs) = (old_map.get(key), ours_map.get(key), theirs_map.get(key));
        if theirs != old && theirs != ours {
            if ours != old {
                return Err(key.clone());
            }
            changed.insert(key, theirs);
        }
    }
    // In the order of ours, then what they added in their order.
    let mut merged: Vec<(String, &str)> = Vec::new();
    for (key, record) in records(style, &ours) {
        match changed.get(&key) {
            Some(Some(theirs)) => merged.push((key, theirs)),
            Some(None) => {}
            None => merged.push((key, record)),
        }
    }
    for (key, record) in records(style, &theirs) {
        if changed.contains_key(&key) && !ours_map.contains_key(&key) {
            merged.push((key, record));
        }
    }
    unique(style, &merged)?;
    let separator = match style {
        Style::Lines { .. } => "\n",
        Style::Paragraphs => "\n\n",
    };
    let merged = merged.iter().flat_map(|(_, record)| [*record, separator]);
    Ok(merged.collect::<String>().into_bytes())
}

fn records(style: Style, text: &str) -> impl Iterator<Item = (String, &str)> {
    let separator = match style {
        Style::Lines { .. } => "\n",
        Style::Paragraphs => "\n\n",
    };
    let parts = text.split(separator).map(|it| it.trim_matches('\n'));
    let parts = parts.filter(|it| !it.is_empty());
    parts.map(move |record| (key(style, record), record))
}

fn keyed(style: Style, text: &str) -> BTreeMap<String, &str> {
    records(style, text).collect()
}

fn key(style: Style, record: &str) -> String {
    match style {
        Style::Lines { .. } => record.split(':').next().unwrap_or_default().to_owned(),
        Style::Paragraphs => {
            let field = |name: &str| {
                let mut lines = record.lines();
                lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            let (package, architecture) = (field("Package"), field("Architecture"));
            format!(
                "{}:{}",
                package.unwrap_or(record),
                architecture.unwrap_or_default()
            )
        }
    }
}

/// Two records that were added apart may have taken the same number.
fn unique(style: Style, records: &[(String, &str)]) -> Result<(), String> {
    let Style::Lines {
        unique: Some(field),
    } = style
    else {
        return Ok(());
    };
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, record) in records {
        let Some(number) = record.split(':').nth(field) else {
            continue;
        };
        if let Some(other) = taken.insert(number, key) {
            return Err(format!("{other} and {key}, which have the number {number}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: Style = Style::Lines { unique: Some(2) };

    fn merged(style: Style, old: &str, ours: &str, theirs: &str) -> Result<String, String> {
        let merged = merge(style, old.as_bytes(), ours.as_bytes(), theirs.as_bytes())?;
        Ok(String::from_utf8(merged).expect("text"))
    }

    #[test]
    fn users_of_both_sides_are_there() {
        let old = "root:x:0\nsshd:x:101\ngames:x:5\n";
        let ours = "root:x:0\nsshd:x:101\ngames:x:5\nchrony:x:102\n";
        let theirs = "root:x:0\nsshd:x:101:/bin/false\nnvidia:x:103\n";
        let expected = "root:x:0\nsshd:x:101:/bin/false\nchrony:x:102\nnvidia:x:103\n";
        assert_eq!(merged(USERS, old, ours, theirs).as_deref(), Ok(expected));
    }

    #[test]
    fn what_both_changed_is_named() {
        let old = "root:x:0\nsshd:x:101\n";
        let apart = merged(USERS, old, "root:x:0\nsshd:x:7\n", "root:x:0\nsshd:x:8\n");
        assert_eq!(apart, Err("sshd".into()));
        let removed = merged(USERS, old, "root:x:0\n", "root:x:0\nsshd:x:8\n");
        assert_eq!(removed, Err("sshd".into()));
        let number = merged(
            USERS,
            old,
            &format!("{old}a:x:9\n"),
            &format!("{old}b:x:9\n"),
        );
        assert!(number.unwrap_err().contains("number 9"));
    }

    #[test]
    fn packages_of_both_sides_are_there() {
        let package = |name: &str, version: &str| {
            format!("Package: {name}\nArchitecture: amd64\nVersion: {version}\n\n")
        };
        let old = [package("bash", "1"), package("libc6", "1")].concat();
        let ours = [package("bash", "2"), package("libc6", "1")].concat();
        let theirs = [
            package("bash", "1"),
            package("dkms", "1"),
            package("libc6", "1"),
        ]
        .concat();
        let expected = [
            package("bash", "2"),
            package("libc6", "1"),
            package("dkms", "1"),
        ]
        .concat();
        assert_eq!(
            merged(Style::Paragraphs, &old, &ours, &theirs),
            Ok(expected)
        );
    }
}
