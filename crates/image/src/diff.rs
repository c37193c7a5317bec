//! What two versions differ in, name by name.

use std::cmp::Ordering;

use crate::error::{Error, Result, shown};
use crate::tree::{Attr, Entry, Kind, Nid, StoredTree};

/// Directories within each other, at most: more than any path of a real system has, and a bound on
/// what a damaged image can ask for.
const DEPTH_MAX: usize = 4096;

/// A name that is not the same in both versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path from the root, without a leading `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// What happened to it.
    pub what: What,
    /// What it is, in the later version where it is there.
    pub kind: Kind,
    /// Its size before, in bytes; 0 where it was not there, or is no file.
    pub bytes_before: u64,
    /// Its size now, as before.
    pub bytes: u64,
}

/// What happened to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Only the later version has it.
    Added,
    /// Only the earlier version has it.
    Removed,
    /// Both have it, and differ in these, at least one.
    Changed(Vec<Aspect>),
}

/// In what a name can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// One is a file, the other a directory, a link or something else.
    Kind,
    /// The bytes of a file, the target of a link, the number of a device.
    Content,
    /// Permissions.
    Mode,
    /// User or group.
    Owner,
    /// Extended attributes.
    Attributes,
    /// The number of a file's names.
    Links,
    /// The time of the last modification.
    Time,
}

impl Aspect {
    /// Its name, for people and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Aspect::Kind => "kind",
            Aspect::Content => "content",
            Aspect::Mode => "mode",
            Aspect::Owner => "owner",
            Aspect::Attributes => "attributes",
            Aspect::Links => "links",
            Aspect::Time => "time",
        }
    }
}

impl Change {
    /// Whether nothing but a time has changed.
    pub fn is_time_only(&self) -> bool {
        self.what == What::Changed(vec![Aspect::Time])
    }
}

/// Compares two versions; what differs, in byte order of the paths' components, a directory before
/// what is in it. What lies in a directory that only one of them has is told of as well.
pub fn diff(before: &StoredTree, after: &StoredTree) -> Result<Vec<Change>> {
    let mut comparison = Comparison {
        before,
        after,
        changes: Vec::new(),
        path: Vec::new(),
    };
    comparison.visit(Some(before.root()), Some(after.root()), 0)?;
    Ok(comparison.changes)
}

struct Comparison<'a> {
    before: &'a StoredTree,
    after: &'a StoredTree,
    changes: Vec<Change>,
    path: Vec<u8>,
}

impl Comparison<'_> {
    fn visit(&mut self, before: Option<Nid>, after: Option<Nid>, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            let path = shown(&self.path);
            let why = format!("more than {DEPTH_MAX} directories in each other");
            return Err(Error::BadSource { path, why });
        }
        let old = before.map(|nid| self.before.attr(nid)).transpose()?;
        let new = after.map(|nid| self.after.attr(nid)).transpose()?;
        self.note(old.as_ref(), new.as_ref())?;
        let (old, new) = (
            entries(self.before, old.as_ref())?,
            entries(self.after, new.as_ref())?,
        );
        let (mut old, mut new) = (&old[..], &new[..]);
        loop {
            let order = match (old.first(), new.first()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.name.cmp(new.name),
            };
            let before = take(&mut old, order != Ordering::Greater);
            let after = take(&mut new, order != Ordering::Less);
            let Some(entry) = before.or(after) else {
                return Ok(());
            };
            let len = self.path.len();
            if len > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(entry.name);
            self.visit(before.map(|it| it.nid), after.map(|it| it.nid), depth + 1)?;
            self.path.truncate(len);
        }
    }

    fn note(&mut self, old: Option<&Attr>, new: Option<&Attr>) -> Result<()> {
        let what = match (old, new) {
            (None, None) => return Ok(()),
            (Some(_), None) => What::Removed,
            (None, Some(_)) => What::Added,
            (Some(old), Some(new)) => match self.aspects(old, new)? {
                aspects if aspects.is_empty() => return Ok(()),
                aspects => What::Changed(aspects),
            },
        };
        let bytes = |attr: Option<&Attr>| {
            attr.filter(|it| it.kind == Kind::File)
                .map_or(0, |it| it.size)
        };
        let kind = new.or(old).map_or(Kind::File, |attr| attr.kind);
        self.changes.push(Change {
            path: self.path.clone(),
            what,
            kind,
            bytes_before: bytes(old),
            bytes: bytes(new),
        });
        Ok(())
    }

    fn aspects(&self, old: &Attr, new: &Attr) -> Result<Vec<Aspect>> {
        let same_kind = old.kind == new.kind;
        let differs = [
            (Aspect::Kind, !same_kind),
            (Aspect::Content, same_kind && !self.same_content(old, new)?),
            (Aspect::Mode, old.mode != new.mode),
            (Aspect::Owner, (old.uid, old.gid) != (new.uid, new.gid)),
            (
                Aspect::Attributes,
                self.before.xattrs(old.nid)? != self.after.xattrs(new.nid)?,
            ),
            // A directory's follow from what is in it, which is told of by itself.
            (
                Aspect::Links,
                same_kind && old.kind != Kind::Directory && old.nlink != new.nlink,
            ),
            (Aspect::Time, old.mtime != new.mtime),
        ];
        let differing = differs.into_iter().filter(|(_, differs)| *differs);
        Ok(differing.map(|(aspect, _)| aspect).collect())
    }

    fn same_content(&self, old: &Attr, new: &Attr) -> Result<bool> {
        let (before, after) = (self.before, self.after);
        Ok(match old.kind {
            Kind::File if old.size != new.size => false,
            Kind::File => match (before.object_of(old.nid)?, after.object_of(new.nid)?) {
                (Some(old), Some(new)) => old == new,
                _ => before.held(old.nid)? == after.held(new.nid)?,
            },
            Kind::Symlink => before.readlink(old.nid)? == after.readlink(new.nid)?,
            Kind::Character | Kind::Block => old.rdev == new.rdev,
            Kind::Directory | Kind::Fifo | Kind::Socket => true,
        })
    }
}

/// The entries of a directory, by name; none where it is no directory.
fn entries<'t>(tree: &'t StoredTree, attr: Option<&Attr>) -> Result<Vec<Entry<'t>>> {
    match attr.filter(|it| it.kind == Kind::Directory) {
        Some(directory) => tree.readdir(directory.nid, 0)?.collect(),
        None => Ok(Vec::new()),
    }
}

fn take<'n, 't>(entries: &mut &'n [Entry<'t>], wanted: bool) -> Option<&'n Entry<'t>> {
    let (first, rest) = entries.split_first().filter(|_| wanted)?;
    *entries = rest;
    Some(first)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;
    use crate::store::{Publish, Store};

    fn version(store: &Store, make: impl FnOnce(&Path)) -> StoredTree {
        let source = tempfile::tempdir().unwrap();
        make(source.path());
        let staged = store.stage_dir(source.path(), &mut |_| ()).unwrap();
        let digest = staged.digest();
        store
            .publish(staged, Publish::Untagged, |_| Ok(()))
            .unwrap();
        store.open_tree(digest).unwrap()
    }

    fn timed(path: &Path, content: &[u8]) {
        fs::write(path, content).unwrap();
        stamp(path);
    }

    fn stamp(path: &Path) {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    }

    /// What is in both versions, then what each has of its own.
    fn common(root: &Path) {
        fs::create_dir_all(root.join("etc/deep")).unwrap();
        timed(&root.join("etc/same"), b"same");
        timed(&root.join("etc/large-same"), &vec![7; 50_000]);
        symlink("same", root.join("etc/link")).unwrap();
    }

    fn finish(root: &Path) {
        for directory in ["etc/deep", "etc", ""] {
            stamp(&root.join(directory));
        }
    }

    #[test]
    fn every_difference_is_named_once_in_order() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        let before = version(&store, |root| {
            common(root);
            fs::create_dir(root.join("etc/gone")).unwrap();
            timed(&root.join("etc/gone/file"), b"12345");
            timed(&root.join("etc/deep/large"), &vec![1; 20_000]);
            timed(&root.join("etc/mode"), b"m");
            timed(&root.join("etc/became"), b"a file");
            fs::write(root.join("etc/time"), b"t").unwrap();
            finish(root);
        });
        let after = version(&store, |root| {
            common(root);
            fs::remove_file(root.join("etc/link")).unwrap();
            symlink("other", root.join("etc/link")).unwrap();
            timed(&root.join("etc/deep/large"), &vec![2; 20_000]);
            timed(&root.join("etc/mode"), b"m");
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(root.join("etc/mode"), executable).unwrap();
            fs::create_dir(root.join("etc/became")).unwrap();
            timed(&root.join("etc/new"), b"123");
            timed(&root.join("etc/time"), b"t");
            stamp(&root.join("etc/became"));
            finish(root);
        });
        let found = diff(&before, &after).unwrap();
        let lines: Vec<String> = found
            .iter()
            .map(|it| {
                let what = match &it.what {
                    What::Added => "+".to_owned(),
                    What::Removed => "-".to_owned(),
                    What::Changed(aspects) => aspects
                        .iter()
                        .map(|it| it.name())
                        .collect::<Vec<_>>()
                        .join(","),
                };
                let path = String::from_utf8_lossy(&it.path);
                format!("{what} {path} {} {}", it.bytes_before, it.bytes)
            })
            .collect();
        // A symbolic link has a time of its own, that of its making.
        let lines: Vec<String> = lines
            .iter()
            .map(|it| it.replace("content,time etc/link", "content etc/link"))
            .collect();
        assert_eq!(
            lines,
            [
                "kind,mode etc/became 6 0",
                "content etc/deep/large 20000 20000",
                "- etc/gone 0 0",
                "- etc/gone/file 5 0",
                "content etc/link 0 0",
                "mode etc/mode 1 1",
                "+ etc/new 0 3",
                "time etc/time 1 1",
            ]
        );
        assert!(found[7].is_time_only() && !found[5].is_time_only());
        assert!(diff(&before, &before).unwrap().is_empty());
        let back = diff(&after, &before).unwrap();
        assert_eq!(back.len(), found.len());
    }
}
