//! SELinux labels of what has changed in an image, from the image's own policy.
//!
//! Programs that run on a machine without SELinux, or with another policy, leave their files without
//! labels or with wrong ones. The image's own setfiles(8) knows what its policy wants: it compiles the
//! patterns of `file_contexts`, which no other program does in quite the same way.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::ExitStatus;

use image::diff::{Aspect, Change, What};
use image::files::{HostDir, Root};
use image::selinux;
use owo_colors::OwoColorize as _;

use super::sandbox::Sandbox;
use crate::failure::{Failure, Outcome};

/// Where distributions have setfiles.
const PROGRAMS: [&str; 2] = ["/usr/sbin/setfiles", "/sbin/setfiles"];

/// What becomes of an image that has a policy and no labels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unlabelled {
    /// It gets them all.
    Label,
    /// Only what has changed gets them: a layer is not to hold all of its base.
    Leave,
}

/// Restores the labels of what has changed in the image in `root`; whether it has a policy by which
/// that could be done.
pub fn restore(
    sandbox: &Sandbox,
    root: &Path,
    changes: &[Change],
    unlabelled: Unlabelled,
) -> Outcome<bool> {
    let files = HostDir::new(root);
    if unlabelled == Unlabelled::Label && !selinux::is_labelled(&files).map_err(unreadable)? {
        return label_all(sandbox, root, None);
    }
    let paths: Vec<&[u8]> = changes
        .iter()
        .filter(|it| is_labelled(it))
        .map(|it| &it.path[..])
        .collect();
    if paths.is_empty() {
        return Ok(false);
    }
    let Some([program, contexts]) = setfiles(&files)? else {
        return Ok(false);
    };
    let words = [&program, "-F", "-0", "-f", "-", &contexts].map(OsString::from);
    succeed(sandbox.execute_bare(&words, &listed(&paths), None)?)?;
    Ok(true)
}

/// Gives every file of the image in `root` its label; whether it has a policy by which that could be
/// done. What programs print goes to `log`.
pub fn label_all(sandbox: &Sandbox, root: &Path, log: Option<&File>) -> Outcome<bool> {
    let Some([program, contexts]) = setfiles(&HostDir::new(root))? else {
        return Ok(false);
    };
    let words = [&program, "-F", "-e", "/proc", &contexts, "/"].map(OsString::from);
    succeed(sandbox.execute_bare(&words, b"", log)?)?;
    Ok(true)
}

/// Where the image has setfiles, and its own file contexts; `None` where it has no policy, or nothing
/// to label files by it, which is said.
fn setfiles(files: &HostDir) -> Outcome<Option<[String; 2]>> {
    let Some(contexts) = selinux::contexts(files).map_err(unreadable)? else {
        return Ok(None);
    };
    let root = Root::new(files);
    let mut programs = PROGRAMS.into_iter();
    if let Some(program) = programs.find(|it| root.is_file(it).unwrap_or(false)) {
        return Ok(Some([program.to_owned(), contexts]));
    }
    anstream::eprintln!(
        "{} the image has a SELinux policy and no setfiles: what changed keeps the labels that \
         programs left; install policycoreutils in it",
        "warning:".yellow().bold()
    );
    Ok(None)
}

#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
fn unreadable(error: std::io::Error) -> Failure {
    Failure::because("reading the image", &error)
}

fn succeed(status: ExitStatus) -> Outcome {
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("restoring SELinux labels: setfiles in the image: {status}"))
        .hint("nothing was published; to go on without: SELINUX=disabled in the image's /etc/selinux/config"))
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
    use super::*;

    #[test]
    fn names_are_listed_as_they_are() {
        assert_eq!(
            listed(&[b"etc/a b", b"srv/[x]*"]),
            b"/etc/a b\0/srv/\\[x]\\*\0"
        );
    }
}
