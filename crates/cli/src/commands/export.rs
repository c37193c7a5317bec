//! `slate image export`: a version as an archive or a directory, for whoever else can use it.

use std::io::{self, IsTerminal as _};
use std::path::Path;

use image::export::{self, Form};
use image::{Progress, Store, StoredTree};
use serde_json::json;

use super::image::{Meter, Step, resolve};
use crate::args::{Format, OutputArgs};
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// Writes a version to `target`: an archive by its name, `-` for standard output, else a directory.
pub(super) fn run(
    store: &Store,
    image: &str,
    target: &Path,
    format: Format,
    output: OutputArgs,
) -> Outcome {
    let tree = store.open_tree(resolve(store, image)?)?;
    let form = match format {
        Format::Root => Form::Root,
        Format::Oci => Form::Oci,
    };
    if target == Path::new("-") {
        return to_stdout(&tree, form, output);
    }
    let mut meter = Meter::new();
    let mut follow = |it: Progress| meter.show(&Step::Exporting(it));
    let is_archive = is_archive(target);
    let done = if is_archive {
        export::write_archive(&tree, form, target, &mut follow)
    } else {
        if form == Form::Root {
            Failure::unless_root("a directory with other users' files takes root").map_err(
                |failure| failure.hint("run it as root (sudo), or export an archive: NAME.tar"),
            )?;
        }
        export::write_dir(&tree, form, target, &mut follow)
    };
    meter.done();
    let done = done?;
    if output.json {
        return render::json(&json!({
            "digest": tree.digest().to_string(),
            "target": target,
            "files": done.files,
            "bytes": done.bytes,
        }));
    }
    anstream::println!(
        "{} has {image} ({} files, {})",
        target.display(),
        done.files,
        render::bytes(done.bytes)
    );
    if !is_archive
        && form == Form::Root
        && let Ok(path) = target.canonicalize()
    {
        anstream::println!(
            "To serve it by the kernel's NFS server, in /etc/exports (more options: exports(5)):\n{}",
            exports_line(&path)
        );
    }
    Ok(())
}

fn to_stdout(tree: &StoredTree, form: Form, output: OutputArgs) -> Outcome {
    let mut out = io::stdout().lock();
    if out.is_terminal() || output.json {
        return Err(
            Failure::new("standard output takes the archive, and nothing else")
                .hint("send it to a file or a program, without --json")
                .code(Code::Usage),
        );
    }
    let path = Path::new("standard output");
    export::write_tar(tree, form, &mut out, path, &mut |_| ())?;
    Ok(())
}

/// A name with an archive's ending is one, even if its compression is not known: no directory of such
/// a name is made by mistake.
fn is_archive(target: &Path) -> bool {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    !target.is_dir() && (name.contains(".tar") || name.ends_with(".tgz"))
}

/// Blanks and what else exports(5) would misread are written as octal numbers.
fn exports_line(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut line = String::new();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-+".contains(byte) {
            line.push(char::from(*byte));
        } else {
            line += &format!("\\{byte:03o}");
        }
    }
    line + " *(ro,no_root_squash,no_subtree_check)"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_decide_what_is_made() {
        for archive in ["x.tar", "a/x.tar.zst", "x.tgz", "x.tar.xz"] {
            assert!(is_archive(Path::new(archive)), "{archive}");
        }
        for directory in ["x", "a/tar", "/srv/debian.13"] {
            assert!(!is_archive(Path::new(directory)), "{directory}");
        }
    }

    #[test]
    fn the_line_for_exports_escapes_blanks() {
        assert_eq!(
            exports_line(Path::new("/srv/my image")),
            "/srv/my\\040image *(ro,no_root_squash,no_subtree_check)"
        );
    }
}
