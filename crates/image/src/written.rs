//! What a running node has written over its version, as a version of its own.
//!
//! A node's root is an overlay: what was written lies in a directory of its own (the upper layer), in
//! which a character device 0:0 stands for what was removed, and an attribute marks directories that
//! show nothing of those below them (the kernel's `overlayfs.rst`, "whiteouts and opaque
//! directories"). It comes here as a tar archive of GNU tar, which [`list_command`] and
//! [`TAR_COMMAND`] make on the node, and is laid over the version that the node runs.
//!
//! Panic contract: no archive makes this panic. What an archive has outside of its [`Scope`] is passed over.

use std::collections::BTreeSet;
use std::io::{BufReader, Read};

use crate::error::{Error, Result, shown};
use crate::import::Progress;
use crate::import::archive::{Archive, Entry};
use crate::import::tar::{Intake, Item, put};
use crate::layer::manifest_of;
use crate::manifest::{Content, Manifest, bad, components};
use crate::store::{Staged, Store};
use crate::tree::StoredTree;

/// Where a node's upper layer is, on the node.
pub const UPPER: &str = "/run/slate/upper/data";
/// What is younger than this file was not delivered by the server.
const DELIVERED: &str = "/run/slate/beacon";
/// Archives the paths of the list in `$list`, each ended by a NUL, in the present directory. Its status
/// is 1 where files changed meanwhile.
pub const TAR_COMMAND: &str = "tar --create --format=posix --numeric-owner --xattrs \
    --xattrs-include='*' --sparse --no-recursion --null --files-from=\"$list\"";
/// Most paths that a scope may name.
const PATHS_MAX: usize = 64;
const BUFFER: usize = 1 << 18;

/// What never becomes part of a version, and everything below it: places of the moment, logs, caches,
/// what users keep, and what belongs to one node.
const LEFT_OUT: [&str; 26] = [
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "home",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
    "var/tmp",
    "root/.cache",
    "root/.bash_history",
    "root/.ssh/authorized_keys",
    "etc/hostname",
    "etc/hosts",
    "etc/machine-id",
    "etc/resolv.conf",
    "var/lib/NetworkManager",
    "var/lib/dbus/machine-id",
    "var/lib/dhcp",
    "var/lib/systemd/catalog",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/timers",
    "var/lib/systemd/timesync",
    "var/lib/private/systemd",
];
/// A node's SSH host keys.
const HOST_KEYS: &str = "etc/ssh/ssh_host_";
const REDIRECTS: [&[u8]; 4] = [
    b"trusted.overlay.redirect",
    b"trusted.overlay.metacopy",
    b"user.overlay.redirect",
    b"user.overlay.metacopy",
];
const OPAQUE: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];

/// Which part of what a node has written is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Without a leading slash; empty: everything.
    paths: Vec<Vec<u8>>,
}

/// How a path lies to a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is meant.
    Inside,
    /// Something below it is meant.
    Above,
    Outside,
}

impl Scope {
    /// Only these paths and what is below them; everything where there are none.
    pub fn new(paths: &[impl AsRef<[u8]>]) -> Result<Scope> {
        let mut scope = Scope::default();
        for path in paths {
            let names: Vec<&[u8]> = components(path.as_ref()).collect();
            let path = names.join(&b'/');
            let why = if names.is_empty() {
                "the root itself, expected a path in it"
            } else if names.contains(&&b".."[..]) || path.contains(&0) {
                "not a path from the root"
            } else if is_left_out(&path) {
                "it belongs to one node or to the moment, and is never part of a version"
            } else if scope.paths.len() == PATHS_MAX {
                "too many paths: give directories above them"
            } else {
                scope.paths.push(path);
                continue;
            };
            return Err(bad(&path, why));
        }
        Ok(scope)
    }

    fn place(&self, path: &[u8]) -> Place {
        if is_left_out(path) {
            return Place::Outside;
        }
        let inside = |it: &Vec<u8>| is_at_or_below(path, it);
        if self.paths.is_empty() || self.paths.iter().any(inside) {
            Place::Inside
        } else if self.paths.iter().any(|it| is_at_or_below(it, path)) {
            Place::Above
        } else {
            Place::Outside
        }
    }

    /// The paths that are meant and lie below one.
    fn below(&self, path: &[u8]) -> impl Iterator<Item = &Vec<u8>> {
        self.paths.iter().filter(move |it| is_at_or_below(it, path))
    }
}

fn is_left_out(path: &[u8]) -> bool {
    LEFT_OUT
        .iter()
        .any(|it| is_at_or_below(path, it.as_bytes()))
        || path.starts_with(HOST_KEYS.as_bytes())
}

fn is_at_or_below(path: &[u8], top: &[u8]) -> bool {
    let rest = path.strip_prefix(top);
    rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// A command for a POSIX shell in the upper layer, with `find` of findutils: writes what was written
/// since the node's boot to `$list`, each path ended by a NUL. What lies below other file systems is
/// left out.
pub fn list_command(scope: &Scope) -> String {
    let everything = [b".".to_vec()];
    let tops: Vec<Vec<u8>> = match &scope.paths[..] {
        [] => everything.into(),
        paths => paths.iter().map(|it| dotted(it)).collect(),
    };
    let words = |paths: &[Vec<u8>]| {
        paths
            .iter()
            .map(|it| quoted(it))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let above: Vec<Vec<u8>> = above(&scope.paths).iter().map(|it| dotted(it)).collect();
    let left_out = LEFT_OUT.map(|it| format!("-path ./{it}")).join(" -o ");
    format!(
        r#"there() {{ [ -e "$1" ] || [ -L "$1" ]; }}
: >"$list" || exit 1
for path in {above}; do
    if there "$path"; then printf '%s\0' "$path" >>"$list"; fi
done
set -- '(' {left_out} -o -path './{HOST_KEYS}*'
while read -r _ _ _ _ mount _; do
    [ "$mount" = / ] || set -- "$@" -o -path ".$mount"
done </proc/self/mountinfo
set -- "$@" ')' -prune -o -cnewer {DELIVERED} '!' -type s '!' -path . -print0
for path in {tops}; do
    if there "$path"; then find "$path" -ignore_readdir_race "$@" >>"$list" || exit 1; fi
done"#,
        above = words(&above),
        tops = words(&tops),
    )
}

/// The directories above paths, the uppermost first.
fn above(paths: &[Vec<u8>]) -> BTreeSet<Vec<u8>> {
    let ends = |path: &[u8]| {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        slashes.map(|(at, _)| at).collect::<Vec<_>>()
    };
    let of = |path: &Vec<u8>| {
        ends(path)
            .into_iter()
            .map(|at| path[..at].to_vec())
            .collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

fn dotted(path: &[u8]) -> Vec<u8> {
    [b"./", path].concat()
}

/// A word for the shell. Bytes that are no text stay out of commands: nothing is found by them.
fn quoted(path: &[u8]) -> String {
    format!("'{}'", String::from_utf8_lossy(path).replace('\'', r"'\''"))
}

impl Store {
    /// Lays what a node has written over the version that it runs. `archive` is what [`TAR_COMMAND`]
    /// wrote.
    pub fn stage_written(
        &self,
        base: &StoredTree,
        archive: impl Read,
        scope: &Scope,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Staged> {
        self.stage_from(progress, |intake| {
            let mut laying = Laying {
                tree: manifest_of(base)?,
                scope,
                removed: BTreeSet::new(),
            };
            let mut archive = Archive::new(BufReader::with_capacity(BUFFER, archive));
            let failed = |error| Error::io("reading", "what the node wrote".as_ref())(error);
            while let Some(entry) = archive.next_entry().map_err(failed)? {
                laying.take(&mut archive, entry, intake)?;
            }
            Ok(laying.tree)
        })
    }
}

/// An upper layer that is being laid over a version.
struct Laying<'a> {
    tree: Manifest,
    scope: &'a Scope,
    /// Marks of what was removed: one inode may be all of them.
    removed: BTreeSet<Vec<u8>>,
}

impl Laying<'_> {
    fn take(
        &mut self,
        archive: &mut Archive<impl Read>,
        mut entry: Entry,
        intake: &mut Intake<'_>,
    ) -> Result<()> {
        let path = normal(&entry.path)?;
        let place = self.scope.place(&path);
        if path.is_empty() || place == Place::Outside {
            return Ok(());
        }
        let has = |names: &[&[u8]]| entry.xattrs.iter().find(|it| names.contains(&&it.0[..]));
        if let Some((name, _)) = has(&REDIRECTS) {
            let why = format!(
                "the node's overlay keeps it in two places ({})",
                shown(name)
            );
            return Err(bad(&path, why));
        }
        let is_opaque = has(&OPAQUE).is_some_and(|(_, value)| value == b"y");
        let is_directory = entry.kind == b'5';
        if self.is_removal(&entry)? {
            intake.hold(&entry)?;
            self.hide(&path, place);
            self.removed.insert(path);
            return Ok(());
        }
        if (is_opaque && is_directory) || (!is_directory && place == Place::Above) {
            self.hide(&path, place);
        }
        if place == Place::Above && (!is_directory || self.has_directory(&path)) {
            return Ok(());
        }
        let is_mark =
            |name: &[u8]| name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.");
        entry.xattrs.retain(|(name, _)| !is_mark(name));
        let (_, item) = intake.take(archive, entry)?;
        self.put(&path, item)
    }

    /// Whether an entry says that what was at its path is gone.
    fn is_removal(&self, entry: &Entry) -> Result<bool> {
        Ok(match entry.kind {
            b'3' => (entry.device.major, entry.device.minor) == (0, 0),
            b'1' => self.removed.contains(&normal(&entry.target)?),
            _ => false,
        })
    }

    /// Takes away what the version has at a path or, where that is a directory that stays, in it; of
    /// what lies above what is meant only that.
    fn hide(&mut self, path: &[u8], place: Place) {
        if place == Place::Inside {
            self.tree.remove(path);
            return;
        }
        for meant in self.scope.below(path) {
            self.tree.remove(meant);
        }
    }

    fn has_directory(&self, path: &[u8]) -> bool {
        let is_directory = |id| matches!(self.tree.node(id).content, Content::Directory(_));
        self.tree.at(path).is_some_and(is_directory)
    }

    fn put(&mut self, path: &[u8], item: Item) -> Result<()> {
        let Item::Link(target) = item else {
            return put(&mut self.tree, path, item);
        };
        let target = normal(&target)?;
        // What is linked to was written too, so it came before.
        let first = self
            .tree
            .at(&target)
            .filter(|_| self.scope.place(&target) == Place::Inside);
        let missing = || {
            bad(
                path,
                format!("a hard link to {}, which is not there", shown(&target)),
            )
        };
        let first = first.ok_or_else(missing)?;
        let parent = self.tree.make_parents(path)?;
        let (parent, name) = parent.ok_or_else(|| bad(path, "the root as a link"))?;
        self.tree.link(parent, name, first)
    }
}

/// A path without its dots; one that leads upwards is refused.
fn normal(path: &[u8]) -> Result<Vec<u8>> {
    let names: Vec<&[u8]> = components(path).collect();
    match names.contains(&&b".."[..]) {
        true => Err(bad(path, "a path with `..`")),
        false => Ok(names.join(&b'/')),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;
    use crate::store::Publish;
    use crate::store::tests::is_root;

    /// A version, an overlay over it in which CHANGES were made, the archive of its upper layer, and
    /// one of what it shows.
    const OVERLAY: &str = r#"
        set -e
        cd "$1"
        mount -t tmpfs tmpfs over
        mkdir over/data over/work over/root
        layers=lowerdir=lower,upperdir=over/data,workdir=over/work,index=off,metacopy=off
        mount -t overlay -o "$layers" overlay over/root
        (cd over/root; eval "$CHANGES")
        # What is cached of a changed file has another inode than its new names.
        umount over/root
        mount -t overlay -o "$layers" overlay over/root
        cd over/data
        list=../list
        find . -mindepth 1 -print0 > "$list"
        eval "$TAR" > "$1/upper.tar"
        cd ../root
        find . -mindepth 1 -print0 > "$list"
        eval "$TAR" > "$1/merged.tar"
    "#;
    /// What upper layers consist of: files changed, removed, made anew; directories that hide what was
    /// in them, or come in place of something else, and the other way round; names of all kinds.
    const CHANGES: &str = r#"
        echo more >> etc/changed
        rm etc/removed
        rm -r usr/gone
        rm -r usr/anew; mkdir usr/anew; echo new > usr/anew/file
        rm usr/file; mkdir usr/file; echo new > usr/file/inside
        rm -r usr/directory; echo file > usr/directory
        rm usr/link; mkdir -p usr/link/deep
        mkdir srv/new; ln etc/changed srv/new/second; ln srv/new/second srv/new/third
        chown 1000:60000 srv/new/third; chmod 4755 srv/new/third
        name=$(printf '%0255d' 7); echo long > "srv/$name"
        echo odd > "srv/a b'c"
        printf '\n' > "srv/$(printf 'new\nline')"
        truncate -s 64M srv/sparse; printf end | dd of=srv/sparse bs=1M seek=63 conv=notrunc 2> /dev/null
        mknod srv/pipe p; mknod srv/device c 1 3; ln -s nowhere srv/symlink
        if [ -x /sbin/setcap ]; then /sbin/setcap cap_net_raw+ep srv/sparse; fi
        mv usr/old/name usr/old/newname
        rm -r usr/old/deep; mkdir usr/old/deep
        touch -d 2001-02-03 usr/old/newname
    "#;

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn lower(root: &Path) {
        for path in [
            "etc/changed",
            "etc/removed",
            "etc/kept",
            "usr/gone/a/b",
            "usr/anew/old",
            "usr/file",
            "usr/directory/old/older",
            "usr/old/name",
            "usr/old/deep/er",
            "srv/there",
        ] {
            write(root, path, path);
        }
        std::os::unix::fs::symlink("directory", root.join("usr/link")).unwrap();
    }

    struct Rig {
        directory: TempDir,
        store: Store,
        base: StoredTree,
    }

    impl Rig {
        /// `None`, and why, where no overlay can be made.
        fn new(changes: &str) -> Option<Rig> {
            if !is_root() {
                eprintln!("skipped: only root can mount overlays");
                return None;
            }
            let directory = TempDir::new().unwrap();
            let top = directory.path();
            fs::create_dir(top.join("over")).unwrap();
            lower(&top.join("lower"));
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "sh", "-c", OVERLAY, "sh"])
                .arg(top);
            command.env("CHANGES", changes).env("TAR", TAR_COMMAND);
            let output = command.output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            if errors.contains("unknown filesystem type") || errors.contains("setfattr: not found")
            {
                eprintln!("skipped: {errors}");
                return None;
            }
            assert!(output.status.success(), "{errors}");
            let store = Store::open(top.join("store")).unwrap();
            let staged = store.stage_dir(&top.join("lower"), &mut |_| ()).unwrap();
            let digest = staged.digest();
            store
                .publish(staged, Publish::Untagged, |_| Ok(()))
                .unwrap();
            let base = store.open_tree(digest).unwrap();
            Some(Rig {
                directory,
                store,
                base,
            })
        }

        fn archive(&self, name: &str) -> fs::File {
            fs::File::open(self.directory.path().join(name)).unwrap()
        }

        fn written(&self, scope: &Scope) -> Result<Staged> {
            let upper = self.archive("upper.tar");
            self.store
                .stage_written(&self.base, upper, scope, &mut |_| ())
        }
    }

    #[test]
    fn what_was_written_becomes_what_the_overlay_shows() {
        let Some(rig) = Rig::new(CHANGES) else { return };
        let staged = rig.written(&Scope::default()).unwrap();
        let tree = staged.tree();
        let merged = rig.archive("merged.tar");
        let shown = rig.store.stage_tar(merged, &mut |_| ()).unwrap();
        // The root's own attributes are those of the version.
        let differences = crate::diff::diff(shown.tree(), tree).unwrap();
        let differences: Vec<_> = differences
            .iter()
            .filter(|it| !it.path.is_empty())
            .collect();
        assert!(differences.is_empty(), "{differences:?}");
        assert!(staged.skipped().is_empty(), "{:?}", staged.skipped());
        let nlink = |path: &str| tree.attr(tree.walk_path(path).unwrap()).unwrap().nlink;
        assert_eq!(nlink("srv/new/third"), 3);
        assert!(tree.read_file("usr/anew/old").is_err());
        assert_eq!(tree.read_file("etc/kept").unwrap(), b"etc/kept");
    }

    #[test]
    fn only_what_is_meant_is_taken_and_nothing_of_the_node_itself() {
        let changes = "rm -r usr/gone usr/anew; mkdir usr/anew; echo new > usr/anew/file; \
            echo x > etc/changed; mkdir -p var/log home/user etc/ssh; echo x > var/log/syslog; \
            echo x > home/user/file; echo x > etc/machine-id; echo x > etc/ssh/ssh_host_rsa_key; \
            echo x > etc/hostname.d";
        let Some(rig) = Rig::new(changes) else { return };
        let all = rig.written(&Scope::default()).unwrap();
        let has = |tree: &StoredTree, path: &str| tree.walk_path(path).is_ok();
        for (path, expected) in [
            ("usr/gone", false),
            ("usr/anew/file", true),
            ("usr/anew/old", false),
            ("etc/hostname.d", true),
            ("var/log/syslog", false),
            ("home", false),
            ("etc/machine-id", false),
            ("etc/ssh/ssh_host_rsa_key", false),
        ] {
            assert_eq!(has(all.tree(), path), expected, "{path}");
        }
        // Below a directory that is gone, and in one that hides what was there.
        let scope = Scope::new(&["/usr/gone/a", "usr/anew/old"]).unwrap();
        let some = rig.written(&scope).unwrap();
        assert!(has(some.tree(), "usr/gone") && !has(some.tree(), "usr/gone/a"));
        assert!(has(some.tree(), "usr/anew") && !has(some.tree(), "usr/anew/old"));
        assert!(!has(some.tree(), "usr/anew/file"));
        assert_eq!(
            some.tree().read_file("etc/changed").unwrap(),
            b"etc/changed"
        );
        let none = rig.written(&Scope::new(&["opt"]).unwrap()).unwrap();
        assert_eq!(none.digest(), rig.base.digest());
    }

    #[test]
    fn scopes_that_mean_nothing_are_refused() {
        for wrong in [
            "",
            "/",
            "a/../..",
            "/home/user",
            "/etc/machine-id",
            "/var/log",
        ] {
            assert!(Scope::new(&[wrong]).is_err(), "{wrong}");
        }
        let many: Vec<String> = (0..=PATHS_MAX).map(|it| format!("/srv/{it}")).collect();
        assert!(Scope::new(&many).is_err());
        assert!(Scope::new(&many[1..]).is_ok());
    }

    #[test]
    fn lists_name_what_is_above_and_quote_what_is_odd() {
        let command = list_command(&Scope::new(&["/srv/it's/here", "/srv/x"]).unwrap());
        assert!(
            command.contains(r"for path in './srv' './srv/it'\''s'; do"),
            "{command}"
        );
        assert!(
            command.contains(r"for path in './srv/it'\''s/here' './srv/x'; do"),
            "{command}"
        );
    }

    /// An archive with one entry, as a hostile node could send it.
    fn one_entry(path: &str, kind: tar::EntryType, target: &str) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o644);
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn what_no_upper_layer_has_is_refused() {
        let directory = TempDir::new().unwrap();
        lower(&directory.path().join("lower"));
        let store = Store::open(directory.path().join("store")).unwrap();
        let staged = store
            .stage_dir(&directory.path().join("lower"), &mut |_| ())
            .unwrap();
        let stage = |archive: &[u8]| {
            store.stage_written(staged.tree(), archive, &Scope::default(), &mut |_| ())
        };
        use tar::EntryType as Type;
        for (path, kind, target) in [
            ("../escape", Type::Regular, ""),
            ("srv/link", Type::Link, "var/log/kept"),
            ("srv/link", Type::Link, "etc"),
            ("srv/link", Type::Link, "../etc/kept"),
            ("srv/strange", Type::new(b'Q'), ""),
        ] {
            assert!(
                stage(&one_entry(path, kind, target)).is_err(),
                "{path} {target}"
            );
        }
        let archive = one_entry("var/log/x", Type::Regular, "");
        assert_eq!(stage(&archive).unwrap().digest(), staged.digest());
    }
}
