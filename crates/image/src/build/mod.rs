//! Makes root file systems of a distribution's packages, by the distribution's own tools.

mod debian;
mod rocky;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use wire::hex::hexadecimal;

/// Longest package name, in bytes.
const PACKAGE_MAX: usize = 128;

/// A distribution's release that images can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 12 "bookworm".
    Debian12,
    /// Debian 13 "trixie".
    Debian13,
    /// Rocky Linux 9.
    Rocky9,
}

/// All of them.
const RELEASES: [Release; 3] = [Release::Debian12, Release::Debian13, Release::Rocky9];

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The release.
    pub release: Release,
    /// Packages besides those that every image has; see [`check_package`].
    pub packages: Vec<String>,
    /// Where packages come from instead of the distribution's own servers; see
    /// [`Recipe::check_mirrors`].
    pub mirrors: Vec<String>,
}

/// What a build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The stage, for people.
    pub stage: String,
    /// How much of the whole build is done, 0 to 100.
    pub percent: u8,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that builds is not installed.
    #[error("{program}: not found on PATH")]
    NoProgram {
        /// The program, which a Debian package of the same name has.
        program: &'static str,
    },
    /// The program that builds gave up.
    #[error("{program} failed ({status}): {}", last_lines.join("; "))]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last errors that it printed.
        last_lines: Vec<String>,
    },
    /// Something on this machine could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A word that means nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {got:?}")]
pub struct Unexpected {
    /// What would have been right.
    pub expected: &'static str,
    /// The word.
    pub got: String,
}

impl Error {
    /// What to do next; empty where its words do not tell.
    pub fn hint(&self) -> String {
        match self {
            Self::NoProgram { program } => format!("install it: apt-get install {program}"),
            Self::Failed { last_lines, .. } => hint(last_lines),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => DISK_SPACE.into(),
                io::ErrorKind::PermissionDenied => "run it as root (sudo)".into(),
                _ => String::new(),
            },
        }
    }
}

const DISK_SPACE: &str =
    "free some disk space: a build needs about 2 GB in the temporary folder and the cache";

impl Recipe {
    /// That release, as it comes.
    pub fn of(release: Release) -> Recipe {
        Recipe {
            release,
            packages: Vec::new(),
            mirrors: Vec::new(),
        }
    }

    /// Makes a tar archive of a root file system that boots well without a disk. What it could have had
    /// and has not is returned, in a sentence each.
    ///
    /// Needs root, the network and about 1 GB in `out_tar`'s directory. What the tools print goes to
    /// `log`.
    pub fn build(
        &self,
        out_tar: &Path,
        log: &File,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<String>, Error> {
        let built = match self.release.suite() {
            Some(suite) => debian::build(suite, self, out_tar, log, progress),
            None => rocky::build(self, out_tar, log, progress),
        };
        if built.is_err() {
            // What is there is not an archive.
            let _ = std::fs::remove_file(out_tar);
        }
        built
    }

    /// The name under which a built archive can be kept: it changes when the recipe does.
    pub fn cache_key(&self) -> String {
        let (name, words) = match self.release.suite() {
            Some(suite) => (suite, debian::arguments(suite, self, Path::new(""))),
            None => ("rocky9", rocky::fingerprint(self)),
        };
        let mut hash = Sha256::new();
        for word in words {
            hash.update((word.len() as u64).to_le_bytes());
            hash.update(word.as_encoded_bytes());
        }
        let digest = hash.finalize();
        format!("{name}-{}", hexadecimal(&digest[..8]))
    }

    /// Whether the tools can be told of these mirrors: for Debian URLs or lines of a sources.list, for
    /// Rocky one URL, below which there is `9/BaseOS/x86_64/os/`.
    pub fn check_mirrors(&self) -> Result<(), Unexpected> {
        let is_debian = self.release.suite().is_some();
        let is_url = |text: &str| {
            let known = ["http://", "https://", "file:///"];
            let plain = |it: char| it.is_ascii_graphic() && !"\"'`$\\,;".contains(it);
            known.iter().any(|it| text.starts_with(it)) && text.chars().all(plain)
        };
        let is_line = |text: &str| {
            text.starts_with("deb ") && text.chars().all(|it| it == ' ' || it.is_ascii_graphic())
        };
        let mirrors = self.mirrors.iter();
        let mut bad = mirrors.filter(|it| !(is_url(it) || is_debian && is_line(it)));
        if let Some(bad) = bad.next() {
            return Err(Unexpected {
                expected: "a mirror's URL (http://…, https://… or file:///…)",
                got: bad.clone(),
            });
        }
        if !is_debian && self.mirrors.len() > 1 {
            return Err(Unexpected {
                expected: "one mirror",
                got: self.mirrors.join(" "),
            });
        }
        Ok(())
    }
}

/// Whether that can be a package's name (or a group's, `@core`): it goes into a command line.
pub fn check_package(name: &str) -> Result<(), Unexpected> {
    let plain = |it: u8| it.is_ascii_alphanumeric() || b"+.-_:=~@".contains(&it);
    let first = name.bytes().next();
    let fine = first.is_some_and(|it| it.is_ascii_alphanumeric() || it == b'@')
        && name.bytes().all(plain)
        && name.len() <= PACKAGE_MAX;
    fine.then_some(()).ok_or_else(|| Unexpected {
        expected: "a package's name",
        got: name.into(),
    })
}

impl Release {
    /// Its codename in Debian's archive, where it is one of Debian's.
    fn suite(self) -> Option<&'static str> {
        match self {
            Release::Debian12 => Some("bookworm"),
            Release::Debian13 => Some("trixie"),
            Release::Rocky9 => None,
        }
    }

    /// What it is called: by `slate image build` alone, and after `--from`.
    fn names(self) -> [&'static str; 3] {
        match self {
            Release::Debian12 => ["debian12", "debian:bookworm", "debian:12"],
            Release::Debian13 => ["debian13", "debian:trixie", "debian:13"],
            Release::Rocky9 => ["rocky9", "rocky:9", "rockylinux:9"],
        }
    }
}

impl FromStr for Release {
    type Err = Unexpected;

    fn from_str(text: &str) -> Result<Self, Unexpected> {
        let mut releases = RELEASES.into_iter();
        let found = releases.find(|it| it.names().contains(&text));
        found.ok_or_else(|| Unexpected {
            expected: "debian:trixie, debian:bookworm or rocky:9",
            got: text.into(),
        })
    }
}

/// A line by which a tool tells that a stage begins: a part of it, how far that is, words for it.
type Stage = (&'static str, u8, &'static str);

/// Begins a line that tells what an image will lack.
const WARNING: &str = "slate: warning: ";

/// What a tool printed, as far as it matters.
#[derive(Debug, Default)]
struct Said {
    /// What the image will lack.
    warnings: Vec<String>,
    /// The last error lines, or where there are none the last lines.
    last_lines: Vec<String>,
}

/// Error lines kept for the message, and warnings.
const ERRORS_KEPT: usize = 4;
/// The longest line that is looked at, in bytes.
const LINE_MAX: usize = 4096;

/// Runs a tool to its end, with what it prints to `log`; `is_error` knows the lines that say why it
/// fails. What it warned of.
fn run(
    program: &'static str,
    command: &mut Command,
    stages: &[Stage],
    is_error: fn(&str) -> bool,
    log: &File,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<String>, Error> {
    let failed = |doing| io_error(doing, Path::new(program));
    let (reader, writer) = io::pipe().map_err(failed("making a pipe for"))?;
    let copy = writer.try_clone().map_err(failed("making a pipe for"))?;
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(copy);
    let spawned = command.spawn();
    // The pipe ends with the child only if nobody else has its other end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoProgram { program },
        _ => failed("starting")(source),
    })?;
    let said = follow(reader, stages, is_error, log, progress);
    let status = child.wait().map_err(failed("waiting for"))?;
    if status.success() {
        return Ok(said.warnings);
    }
    Err(Error::Failed {
        program,
        status,
        last_lines: said.last_lines,
    })
}

/// Reports stages until the stream ends.
fn follow(
    output: impl io::Read,
    stages: &[Stage],
    is_error: fn(&str) -> bool,
    mut log: impl io::Write,
    progress: &mut dyn FnMut(Progress),
) -> Said {
    let mut warnings = Vec::new();
    let (mut errors, mut last) = (VecDeque::new(), VecDeque::new());
    let mut reader = io::BufReader::new(output);
    let (mut line, mut reached) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = io::Read::take(&mut reader, LINE_MAX as u64).read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) {
            let found = if errors.is_empty() { last } else { errors };
            return Said {
                warnings,
                last_lines: found.into(),
            };
        }
        // A log that cannot be written is no reason to end a build.
        let _ = log.write_all(&line);
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        // What begins a stage may be said again later, of something else.
        let mut ahead = stages.iter().filter(|(_, percent, _)| *percent > reached);
        if let Some((_, percent, stage)) = ahead.find(|(mark, ..)| text.contains(mark)) {
            reached = *percent;
            progress(Progress {
                stage: (*stage).to_owned(),
                percent: *percent,
            });
        }
        if let Some(warning) = text.strip_prefix(WARNING)
            && warnings.len() < ERRORS_KEPT
        {
            warnings.push(warning.to_owned());
        }
        let kept = if is_error(&text) {
            &mut errors
        } else {
            &mut last
        };
        if !text.is_empty() {
            kept.push_back(text);
        }
        if kept.len() > ERRORS_KEPT {
            kept.pop_front();
        }
    }
}

/// What to do about a failure, as far as its words tell.
fn hint(lines: &[String]) -> String {
    let after = |mark: &str| {
        let mut found = lines.iter().filter_map(|line| line.split_once(mark));
        found.next().map(|(_, name)| name.trim().to_owned())
    };
    // apt's words, and dnf's.
    let missing = ["Unable to locate package ", "Unable to find a match: "];
    if let Some(name) = missing.iter().find_map(|mark| after(mark)) {
        return format!("the distribution has no package {name}: check how it is called there");
    }
    let says = |words: &[&str]| {
        let mut lines = lines.iter();
        lines.any(|line| words.iter().any(|word| line.contains(word)))
    };
    let text = if says(&["No space left"]) {
        DISK_SPACE
    } else if says(&[
        "Could not resolve",
        "Failed to fetch",
        "Failed to download",
        "Cannot download",
        "Connection",
        "unable to download",
        "does not have a Release file",
    ]) {
        "check that this machine reaches the mirror (and http_proxy, if it needs one)"
    } else if says(&["GPG", "not signed", "NO_PUBKEY"]) {
        "packages must be signed by the distribution's key: check the mirror"
    } else if says(&["must be root", "unshare", "newuidmap", "superuser"]) {
        "run it as root (sudo)"
    } else {
        "try again later: a mirror that is being updated fails like this"
    };
    text.into()
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_key_follows_the_recipe() {
        let plain = Recipe::of(Release::Debian12);
        let mut keys = vec![plain.cache_key()];
        assert!(keys[0].starts_with("bookworm-"));
        for release in [Release::Debian13, Release::Rocky9] {
            keys.push(Recipe::of(release).cache_key());
        }
        for release in RELEASES {
            let (packages, mirrors) = (vec!["vim".into()], vec!["http://a/b".into()]);
            let plain = Recipe::of(release);
            let with = Recipe {
                packages,
                ..plain.clone()
            };
            keys.push(with.cache_key());
            keys.push(Recipe { mirrors, ..plain }.cache_key());
        }
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn progress_and_errors_are_read_from_what_tools_print() {
        let text = "I: automatically chosen mode: root\nI: running apt-get update...\ndone\n\
                    slate: warning: no shim\nE: Failed to fetch http://x\nE: apt-get failed\n";
        let (mut seen, mut log) = (Vec::new(), Vec::new());
        let mut note = |it: Progress| seen.push(it.percent);
        let said = follow(
            text.as_bytes(),
            &debian::STAGES,
            debian::is_error,
            &mut log,
            &mut note,
        );
        assert_eq!(seen, [2]);
        assert_eq!(said.last_lines.len(), 2);
        assert_eq!(said.warnings, ["no shim"]);
        assert_eq!(log, text.as_bytes());
        assert!(hint(&said.last_lines).contains("mirror"));
        let read = |text: &str| {
            follow(
                text.as_bytes(),
                &[],
                debian::is_error,
                io::sink(),
                &mut |_| (),
            )
            .last_lines
        };
        assert_eq!(read("1\n2\n3\n4\n\n5\n"), ["2", "3", "4", "5"]);
        assert!(hint(&["E: No space left on device".into()]).contains("disk space"));
        let unknown = hint(&["E: Unable to locate package nonesuch".into()]);
        assert!(unknown.contains("no package nonesuch"));
    }

    #[test]
    fn what_goes_into_command_lines_is_checked() {
        for fine in [
            "vim",
            "g++",
            "libc6:i386",
            "nginx=1.2~rc1",
            "@core",
            "NetworkManager",
        ] {
            assert_eq!(check_package(fine), Ok(()), "{fine}");
        }
        for bad in [
            "",
            "-y",
            "a b",
            "a,b",
            "$(x)",
            "../x",
            "?essential",
            &"x".repeat(200),
        ] {
            assert!(check_package(bad).is_err(), "{bad}");
        }
        let check = |release, mirror: &str| {
            let mirrors = vec![mirror.to_owned()];
            let recipe = Recipe {
                mirrors,
                ..Recipe::of(release)
            };
            recipe.check_mirrors().is_ok()
        };
        assert!(check(Release::Debian12, "http://deb.debian.org/debian"));
        assert!(check(
            Release::Debian12,
            "deb http://deb.debian.org/debian trixie main"
        ));
        assert!(check(Release::Rocky9, "file:///srv/rocky"));
        assert!(!check(
            Release::Rocky9,
            "deb http://deb.debian.org/debian trixie main"
        ));
        for bad in ["", "/srv", "ftp://x/y", "http://x/\"y", "-o x"] {
            assert!(!check(Release::Debian12, bad), "{bad}");
        }
    }

    #[test]
    fn releases_have_names() {
        assert_eq!("debian:trixie".parse(), Ok(Release::Debian13));
        assert_eq!("debian12".parse(), Ok(Release::Debian12));
        assert_eq!("rocky:9".parse(), Ok(Release::Rocky9));
        assert!("rocky:8".parse::<Release>().is_err());
    }
}
