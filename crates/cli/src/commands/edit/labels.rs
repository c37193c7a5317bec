//! SELinux labels of what has changed in an image, from the image's own policy.
//!
//! Programs that run on a machine without SELinux, or with another policy, leave their files without
//! labels or with wrong ones. The image's own setfiles(8) knows what its policy wants: it compiles the
//! patterns of `file_contexts`, which no other program does in quite the same way.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use image::diff::{Aspect, Change, What};
use image::files::{Files as _, HostDir, Root};
use owo_colors::OwoColorize as _;

use super::sandbox::Sandbox;
use crate::failure::{Failure, Outcome};

/// Where the policy is chosen.
const CONFIGURATION: &str = "etc/selinux/config";
/// The longest configuration that is read, in bytes.
const CONFIGURATION_MAX: u64 = 64 << 10;
/// Where distributions have setfiles.
const PROGRAMS: [&str; 2] = ["/usr/sbin/setfiles", "/sbin/setfiles"];
/// The list of paths, as it is seen in the image; `/tmp` there is not kept.
const LIST: &str = "slate-relabel";

/// Restores the labels of what has changed in the image in `root`; whether it has a policy by which
/// that could be done.
pub fn restore(sandbox: &Sandbox, root: &Path, changes: &[Change]) -> Outcome<bool> {
    let paths: Vec<&[u8]> = changes
        .iter()
        .filter(|it| is_labelled(it))
        .map(|it| &it.path[..])
        .collect();
    let Some(contexts) = contexts(root).filter(|_| !paths.is_empty()) else {
        return Ok(false);
    };
    let files = HostDir::new(root);
    let seen = Root::new(&files);
    let mut programs = PROGRAMS.into_iter();
    let Some(program) = programs.find(|it| seen.is_file(it).unwrap_or(false)) else {
        anstream::eprintln!(
            "{} the image has a SELinux policy and no setfiles: what changed keeps the labels that \
             programs left; install policycoreutils in it",
            "warning:".yellow().bold()
        );
        return Ok(false);
    };
    let list = sandbox.put(LIST, &listed(&paths))?;
    let words = [program, "-F", "-0", "-f", &list, &contexts].map(OsString::from);
    let status = sandbox.execute(&words, None)?;
    if status.success() {
        return Ok(true);
    }
    Err(Failure::new(format!("restoring SELinux labels: setfiles in the image: {status}"))
        .hint("nothing was published; to go on without: SELINUX=disabled in the image's /etc/selinux/config"))
}

/// The image's own file contexts, where it has a policy that is not switched off.
fn contexts(root: &Path) -> Option<String> {
    let files = HostDir::new(root);
    let seen = Root::new(&files);
    let (path, _) = seen.resolve(CONFIGURATION).ok()??;
    let text = files.read_up_to(&path, CONFIGURATION_MAX).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter_map(|line| line.trim().split_once('='));
    let values: BTreeMap<&str, &str> = lines
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect();
    if values.get("SELINUX") == Some(&"disabled") {
        return None;
    }
    let kind = values.get("SELINUXTYPE").filter(|it| !it.contains('/'))?;
    let contexts = format!("/etc/selinux/{kind}/contexts/files/file_contexts");
    seen.is_file(&contexts).ok()?.then_some(contexts)
}

/// Whether what happened to a name can have left it with another label than it should have.
fn is_labelled(change: &Change) -> bool {
    match &change.what {
        What::Removed => false,
        What::Added => true,
        What::Changed(aspects) => aspects
            .iter()
            .any(|it| matches!(it, Aspect::Kind | Aspect::Content | Aspect::Attributes)),
    }
}

/// As setfiles reads it: with a zero byte behind each, and what glob(7) would expand escaped.
fn listed(paths: &[&[u8]]) -> Vec<u8> {
    let mut list = Vec::new();
    for path in paths {
        list.push(b'/');
        for byte in *path {
            if b"*?[\\".contains(byte) {
                list.push(b'\\');
            }
            list.push(*byte);
        }
        list.push(0);
    }
    list
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_policy_that_is_there_and_not_off_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(contexts(root.path()), None);
        let policy = root.path().join("etc/selinux/default/contexts/files");
        fs::create_dir_all(&policy).unwrap();
        let configuration = root.path().join(CONFIGURATION);
        fs::write(
            &configuration,
            "# x\nSELINUX=permissive\nSELINUXTYPE=default\n",
        )
        .unwrap();
        assert_eq!(contexts(root.path()), None);
        fs::write(policy.join("file_contexts"), "").unwrap();
        let found = "/etc/selinux/default/contexts/files/file_contexts";
        assert_eq!(contexts(root.path()).as_deref(), Some(found));
        fs::write(&configuration, "SELINUX=disabled\nSELINUXTYPE=default\n").unwrap();
        assert_eq!(contexts(root.path()), None);
        fs::write(&configuration, "SELINUXTYPE=../../x\n").unwrap();
        assert_eq!(contexts(root.path()), None);
    }

    #[test]
    fn names_are_listed_as_they_are() {
        assert_eq!(
            listed(&[b"etc/a b", b"srv/[x]*"]),
            b"/etc/a b\0/srv/\\[x]\\*\0"
        );
    }
}
