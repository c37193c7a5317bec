//! What an image is made of: from the command line, or from a file that can live in git.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use image::build::{self, Release};
use serde::Deserialize;

use crate::args::BuildArgs;
use crate::commands::image::path_failure;
use crate::failure::{Code, Failure, Outcome};

/// Longest recipe that is read, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

const EXPECTED: &str = "expected a file like this one:\nname = \"compute\"\nfrom = \"debian:trixie\"\n\
    packages = [\"lldpd\"]            # this and all below may be left out\n\
    scripts = [\"setup.sh\"]          # run in the image, in this order\n\
    mirrors = [\"http://deb.debian.org/debian\"]\n\
    [files]\n\"/etc/motd\" = \"motd\"          # from beside this file";

/// A recipe, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// What the image is called: `NAME` or `NAME:TAG`.
    pub name: String,
    /// The distribution's part.
    pub packages: build::Recipe,
    /// Programs that run in the image, in this order.
    pub scripts: Vec<PathBuf>,
    /// Files put into the image before that.
    pub files: Vec<Copied>,
}

/// A file or a directory that is put into the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    from: PathBuf,
    /// Below the image's root, of plain names only.
    to: PathBuf,
}

/// As it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    from: String,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    scripts: Vec<PathBuf>,
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default)]
    files: BTreeMap<String, PathBuf>,
}

impl Recipe {
    /// What the command line asks for.
    pub fn of(args: &BuildArgs) -> Outcome<Recipe> {
        let mut recipe = match &args.file {
            Some(file) => read(file)?,
            None => from_words(args).map_err(|error| usage(&error))?,
        };
        if let Some(name) = args
            .rename
            .as_ref()
            .or(args.file.as_ref().and(args.name.as_ref()))
        {
            recipe.name.clone_from(name);
        }
        recipe.check_sources()?;
        Ok(recipe)
    }

    /// Whether it is what the distribution has, and nothing more.
    pub fn is_plain(&self) -> bool {
        self.scripts.is_empty() && self.files.is_empty()
    }

    /// Said before minutes of work, not after them.
    fn check_sources(&self) -> Outcome {
        let files = self.files.iter().map(|it| &it.from);
        for path in self.scripts.iter().chain(files) {
            fs::metadata(path).map_err(|error| {
                let hint = "paths in a recipe begin at the recipe's directory";
                path_failure("opening", path, &error).hint(hint)
            })?;
        }
        Ok(())
    }
}

fn usage(error: &build::Unexpected) -> Failure {
    Failure::of(error)
        .hint("slate image build NAME --from debian:trixie, or: slate image build -f RECIPE.toml")
        .code(Code::Usage)
}

fn from_words(args: &BuildArgs) -> Result<Recipe, build::Unexpected> {
    let name = args.name.as_deref().unwrap_or_default();
    let release: Release = args.from.as_deref().unwrap_or(name).parse()?;
    let packages = checked(release, args.packages.clone(), args.mirrors.clone())?;
    Ok(Recipe {
        name: name.to_owned(),
        packages,
        scripts: args.scripts.clone(),
        files: Vec::new(),
    })
}

fn checked(
    release: Release,
    packages: Vec<String>,
    mirrors: Vec<String>,
) -> Result<build::Recipe, build::Unexpected> {
    packages
        .iter()
        .try_for_each(|it| build::check_package(it))?;
    let recipe = build::Recipe {
        release,
        packages,
        mirrors,
    };
    recipe.check_mirrors()?;
    Ok(recipe)
}

fn read(path: &Path) -> Outcome<Recipe> {
    let shown = path.display();
    let length = fs::metadata(path).map(|meta| meta.len());
    let length = length.map_err(|error| path_failure("opening", path, &error))?;
    if length > FILE_MAX_BYTES {
        return Err(Failure::new(format!(
            "{shown}: expected at most 1 MiB, got {length} bytes"
        )));
    }
    let text = fs::read_to_string(path).map_err(|error| path_failure("reading", path, &error))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    parsed(&text, directory)
        .map_err(|cause| Failure::new(format!("{shown}: {cause}")).hint(EXPECTED))
}

/// A recipe in a file of that directory.
fn parsed(text: &str, directory: &Path) -> Result<Recipe, String> {
    let written: Written = toml::from_str(text).map_err(|error| error.to_string())?;
    let release: Release = written.from.parse().map_err(|it| format!("from: {it}"))?;
    let packages = checked(release, written.packages, written.mirrors);
    let packages = packages.map_err(|error| error.to_string())?;
    let files = written.files.into_iter().map(|(to, from)| {
        let to = below_root(&to).ok_or_else(|| {
            format!("files: expected an absolute path without . and .. in the image, got {to:?}")
        })?;
        let from = directory.join(from);
        Ok(Copied { from, to })
    });
    Ok(Recipe {
        name: written.name,
        packages,
        scripts: written
            .scripts
            .iter()
            .map(|it| directory.join(it))
            .collect(),
        files: files.collect::<Result<_, String>>()?,
    })
}

fn below_root(path: &str) -> Option<PathBuf> {
    let below = path.strip_prefix('/').filter(|it| !it.is_empty())?;
    let mut parts = Path::new(below).components();
    let plain = parts.all(|it| matches!(it, Component::Normal(_)));
    (plain && !path.contains("/./")).then(|| PathBuf::from(below))
}

impl Copied {
    /// Puts it into the image in `root`, for root, with the mode that it has here. Links of the image
    /// are not followed out of it.
    pub fn copy_to(&self, root: &Path) -> Outcome {
        let target = root.join(&self.to);
        let parent = target.parent().unwrap_or(root);
        let failed = |error| path_failure("copying to", &target, &error);
        // Before anything is made: what is there of the way must lead into the image.
        let there = parent.ancestors().find(|it| it.exists()).unwrap_or(root);
        let root = root.canonicalize().map_err(failed)?;
        if !there.canonicalize().map_err(failed)?.starts_with(&root) {
            let to = self.to.display();
            return Err(
                Failure::new(format!("/{to}: a link in the image leads out of it"))
                    .hint("name the path that the link means"),
            );
        }
        fs::create_dir_all(parent).map_err(failed)?;
        let mut cp = std::process::Command::new("cp");
        cp.args(["--recursive", "--no-dereference", "--preserve=mode,links"]);
        cp.args(["--no-target-directory", "--remove-destination", "--"]);
        let output = cp.arg(&self.from).arg(&target).output().map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(format!(
            "copying {}: {}",
            self.from.display(),
            said.trim()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_read_with_paths_from_beside_it() {
        let text = "name = \"compute\"\nfrom = \"debian:trixie\"\npackages = [\"lldpd\"]\n\
                    scripts = [\"setup.sh\"]\n[files]\n\"/etc/motd\" = \"motd\"";
        let recipe = parsed(text, Path::new("/srv/recipes")).unwrap();
        assert_eq!(recipe.name, "compute");
        assert_eq!(recipe.packages.release, Release::Debian13);
        assert_eq!(recipe.packages.packages, ["lldpd"]);
        assert_eq!(recipe.scripts, [PathBuf::from("/srv/recipes/setup.sh")]);
        let copied = Copied {
            from: "/srv/recipes/motd".into(),
            to: "etc/motd".into(),
        };
        assert_eq!(recipe.files, [copied]);
    }

    #[test]
    fn what_a_recipe_has_wrong_is_named() {
        let base = "name = \"x\"\nfrom = \"debian:trixie\"\n";
        let wrong = |more: &str| parsed(&format!("{base}{more}"), Path::new("")).unwrap_err();
        assert!(wrong("package = [\"a\"]").contains("package"));
        assert!(wrong("packages = [\"a b\"]").contains("\"a b\""));
        assert!(wrong("mirrors = [\"ftp://x\"]").contains("ftp://x"));
        for path in ["etc/motd", "/etc/../x", "/", "", "/a/./b"] {
            let said = wrong(&format!("[files]\n\"{path}\" = \"motd\""));
            assert!(said.contains("absolute path"), "{path}: {said}");
        }
        let text = "name = \"x\"\nfrom = \"rocky:7\"";
        let said = parsed(text, Path::new("")).unwrap_err();
        assert!(
            said.contains("rocky:9") && said.contains("rocky:7"),
            "{said}"
        );
    }

    #[test]
    fn files_are_not_copied_through_links_that_lead_out() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let from = outside.path().join("motd");
        fs::write(&from, "hello").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc")).unwrap();
        let copied = |to: &str| Copied {
            from: from.clone(),
            to: to.into(),
        };
        let failure = copied("etc/deep/motd").copy_to(root.path()).unwrap_err();
        assert!(failure.what.contains("leads out"), "{failure:?}");
        assert!(!outside.path().join("deep").exists());
        copied("srv/deep/motd").copy_to(root.path()).unwrap();
        assert_eq!(
            fs::read(root.path().join("srv/deep/motd")).unwrap(),
            b"hello"
        );
    }
}
