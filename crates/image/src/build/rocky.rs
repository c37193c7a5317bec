//! Rocky Linux, by dnf with a root of its own to install to.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::{Error, Progress, Recipe, Stage, io_error, run};

/// The distribution's own server. A mirror has the same below it.
const MIRROR: &str = "https://dl.rockylinux.org/pub/rocky";

/// What every image has: systemd, a network manager, a kernel with its signed loaders, SSH.
const PACKAGES: [&str; 21] = [
    "basesystem",
    "rocky-release",
    "systemd",
    "systemd-udev",
    "dbus-broker",
    "NetworkManager",
    "chrony",
    "iproute",
    "iputils",
    "kmod",
    "util-linux",
    "shadow-utils",
    "passwd",
    "procps-ng",
    "less",
    "ca-certificates",
    "openssh-server",
    "kernel-core",
    "kernel-modules",
    "shim-x64",
    "grub2-efi-x64",
];

/// Weak dependencies and manuals are of no use on a node. Packages have to be signed.
const CONFIGURATION: &str = "[main]\ngpgcheck=1\ninstall_weak_deps=False\ntsflags=nodocs\nbest=True\n\
    keepcache=False\nplugins=False\nretries=5\ntimeout=30\nzchunk=False\n";

/// Where Rocky 9 keeps its package database and in which format, whatever this machine does.
const MACROS: &str = "%_dbpath /var/lib/rpm\n%_db_backend sqlite\n";

/// Runs in mount and process namespaces of its own. Arguments: the root, a directory with the
/// configuration, the archive to make, then the packages.
const SCRIPT: &str = include_str!("rocky.sh");

/// What dnf says it is doing.
const STAGES: [Stage; 5] = [
    ("BaseOS", 2, "fetching the package index"),
    ("Downloading Packages", 10, "downloading packages"),
    ("Running transaction", 40, "installing packages"),
    ("Verifying", 80, "verifying packages"),
    ("slate: packing", 85, "packing"),
];

/// Makes the archive; what the image lacks.
pub fn build(
    recipe: &Recipe,
    out_tar: &Path,
    log: &File,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<String>, Error> {
    let beside = out_tar.parent().unwrap_or(out_tar);
    let work = tempfile::tempdir_in(beside).map_err(io_error("making a directory in", beside))?;
    let root = work.path().join("root");
    for directory in [&root, &work.path().join("repos")] {
        fs::create_dir(directory).map_err(io_error("making", directory))?;
    }
    let files = [
        ("dnf.conf", CONFIGURATION.to_owned()),
        ("repos/rocky.repo", repositories(recipe)),
        (".rpmmacros", MACROS.to_owned()),
    ];
    for (name, content) in files {
        let path = work.path().join(name);
        fs::write(&path, content).map_err(io_error("writing", &path))?;
    }
    is_there("dnf")?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child"]);
    command.args(["--propagation", "private", "sh", "-c", SCRIPT, "sh"]);
    command.arg(&root).arg(work.path()).arg(out_tar);
    command.args(PACKAGES).args(&recipe.packages);
    run("dnf", &mut command, &STAGES, is_error, log, progress)
}

/// All that a build depends on.
pub fn fingerprint(recipe: &Recipe) -> Vec<OsString> {
    let mut words = vec![SCRIPT.into(), CONFIGURATION.into(), MACROS.into()];
    words.push(repositories(recipe).into());
    words.extend(PACKAGES.iter().map(OsString::from));
    words.extend(recipe.packages.iter().map(OsString::from));
    words
}

fn repositories(recipe: &Recipe) -> String {
    let mirror = recipe.mirrors.first().map_or(MIRROR, String::as_str);
    let mirror = mirror.trim_end_matches('/');
    let repository = |name: &str| {
        format!(
            "[{name}]\nname={name}\nbaseurl={mirror}/9/{name}/x86_64/os/\n\
             gpgkey={mirror}/RPM-GPG-KEY-Rocky-9\nenabled=1\n"
        )
    };
    ["BaseOS", "AppStream"].map(repository).concat()
}

/// A shell would say so in words of its own.
fn is_there(program: &'static str) -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|it| it.join(program).is_file());
    found.then_some(()).ok_or(Error::NoProgram { program })
}

/// Whether a line says why dnf fails.
fn is_error(line: &str) -> bool {
    line.starts_with("Error: ")
        || line.starts_with("E: ")
        || line.contains("No space left")
        || line.contains("Could not resolve")
        || line.contains("superuser")
}
