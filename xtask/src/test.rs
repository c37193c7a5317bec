//! `cargo xtask test`: every test, then one line that counts them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use cargo_metadata::Message;
use lab::Tool;

use crate::workspace::{as_root, can_be_root, cargo, describe, must_succeed};
use crate::{init, install, tidy};

/// What came of the tests so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
    /// What failed, each once.
    failures: BTreeSet<String>,
}

/// The list of failed tests that a test program ends with: what comes before it may be long.
#[derive(Debug, Default)]
struct FailureList {
    reading: bool,
    names: BTreeSet<String>,
}

/// What only tests need: what shows that it is there, its package, and what for.
const EXTRAS: [[&str; 3]; 21] = [
    ["/usr/sbin/ufw", "ufw", "be another firewall"],
    [FIREWALLD, "firewalld", "be another firewall"],
    [
        "/usr/sbin/dhclient",
        "isc-dhcp-client",
        "ask for addresses as machines do",
    ],
    ["/usr/sbin/udhcpc", "udhcpc", "ask as firmware does"],
    ["/usr/sbin/bootpc", "bootpc", "ask by BOOTP"],
    ["/usr/bin/openssl", "openssl", "make certificates"],
    ["/usr/bin/curl", "curl", "fetch by HTTPS"],
    [
        "/usr/sbin/nft",
        "nftables",
        "be a firewall that drops what nodes send",
    ],
    [
        "/usr/bin/docker-registry",
        "docker-registry",
        "be a registry of container images",
    ],
    [
        "/usr/lib/ipxe/undionly.kpxe",
        "ipxe",
        "boot machines by iPXE",
    ],
    [
        "/usr/lib/PXELINUX/pxelinux.0",
        "pxelinux",
        "boot machines with a BIOS",
    ],
    [
        "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        "syslinux-common",
        "boot machines with a BIOS",
    ],
    ["/usr/sbin/dhcrelay", "isc-dhcp-relay", "be a DHCP relay"],
    [
        "/usr/sbin/dhcpd",
        "isc-dhcp-server",
        "be another DHCP server that names this one to firmware",
    ],
    [
        "/usr/sbin/kea-dhcp4",
        "kea-dhcp4-server",
        "check what Kea is to be told",
    ],
    [
        "/usr/sbin/xfs_io",
        "xfsprogs",
        "make XFS file systems, and cut the power of file systems",
    ],
    [
        "/usr/sbin/setfiles",
        "policycoreutils",
        "label the files of an image",
    ],
    ["/usr/bin/dnf", "dnf", "make an image of rpm packages"],
    ["/usr/bin/rpmbuild", "rpm", "make rpm packages"],
    [
        "/usr/bin/createrepo_c",
        "createrepo-c",
        "make a repository of rpm packages",
    ],
    ["/usr/bin/gpg-agent", "gnupg", "sign rpm packages"],
];

const FIREWALLD: &str = "/usr/sbin/firewalld";

/// The tests that boot machines or change images, as package and test target.
const END_TO_END: [(&str, &str); 4] = [
    ("lab", "machines"),
    ("cli", "errors"),
    ("cli", "images"),
    ("cli", "e2e"),
];
/// Tests of the long matrix begin with this.
const LONG: &str = "full_";

/// Runs everything; `full` adds the long matrix.
pub fn run(full: bool) -> anyhow::Result<ExitCode> {
    let mut counts = Counts::default();
    let tools = install_everything();
    println!("== unit and integration tests");
    counts.add(libtest(
        &mut cargo(["test", "--locked", "--workspace", "--no-fail-fast"]),
        IgnoredTests::RunLater,
    )?);
    println!("== rules of the architecture");
    for finding in tidy::check()? {
        println!("{finding}");
        if finding.is_violation() {
            counts.fail(finding.to_string());
        } else {
            counts.passed += 1;
        }
    }
    println!("== /init for 64-bit ARM");
    counts.add(init_aarch64());
    println!("== end-to-end boots");
    match tools {
        Ok(()) if can_be_root() => {
            counts.add(on_file_systems()?);
            counts.add(end_to_end(full)?);
        }
        Ok(()) => counts.skip("end-to-end boots: they need root, and sudo does not work here"),
        Err(error) => counts.skip(&format!("end-to-end boots: {error:#}")),
    }
    for name in &counts.failures {
        println!("failed: {name}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    Ok(if counts.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds it and looks at it. Nothing here boots it.
fn init_aarch64() -> Counts {
    let mut counts = Counts::default();
    if let Err(error) = install::ensure_target(install::MUSL_AARCH64) {
        counts.skip(&format!("/init for 64-bit ARM: {error:#}"));
        return counts;
    }
    match init::build_aarch64() {
        Ok(path) => {
            println!("{}: static, for 64-bit ARM", path.display());
            counts.passed += 1;
        }
        Err(error) => {
            println!("/init for 64-bit ARM: {error:#}");
            counts.failed += 1;
        }
    }
    counts
}

fn install_everything() -> anyhow::Result<()> {
    let tools = [
        Tool::Qemu,
        Tool::Firmware,
        Tool::IpxeRoms,
        Tool::UserModeLinux,
        Tool::Iproute,
        Tool::SshClient,
        Tool::Mmdebstrap,
        Tool::Tcpdump,
        Tool::Libnfs,
        Tool::Dnsmasq,
        Tool::Busybox,
    ];
    let built = install::ensure_build();
    let extras = EXTRAS.map(|[path, package, purpose]| install::Extra {
        path,
        package,
        purpose,
    });
    keep_firewalld_stopped()?;
    install::ensure(&tools, &extras)?;
    built
}

/// Debian starts it where it is installed: it would filter this machine's own packets, and tests start
/// one of their own.
fn keep_firewalld_stopped() -> anyhow::Result<()> {
    let is_there = Path::new(FIREWALLD).exists();
    let has_systemd = Path::new("/run/systemd/system").exists();
    if is_there || !has_systemd || !can_be_root() {
        return Ok(());
    }
    eprintln!("masking firewalld.service: its tests need no service");
    must_succeed(as_root("systemctl").args(["mask", "--quiet", "firewalld.service"]))
}

fn end_to_end(full: bool) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    for (package, target) in END_TO_END {
        let Some(program) = build_test(package, target, &["--test", target])? else {
            counts.fail(format!("{package}: its test {target} does not compile"));
            continue;
        };
        let mut command = as_root(&program);
        command.args(["--ignored", "--test-threads=1", "--nocapture"]);
        if !full {
            command.args(["--skip", LONG]);
        }
        counts.add(libtest(&mut command, IgnoredTests::Skipped)?);
    }
    Ok(counts)
}

/// File systems, and what they are made with. Small ones would have small blocks, and these only short links.
const FILE_SYSTEMS: [[&str; 2]; 2] = [["ext4", "-qFb4096"], ["xfs", "-q"]];

/// Runs `$4` where `TMPDIR` is a file system of kind `$1`, made with the options `$2`, in the file `$3`.
const ON_FILE_SYSTEM: &str = r#"
set -e
truncate --size=400M "$3"
"mkfs.$1" "$2" "$3"
mkdir "$3.mnt"
mount -o loop "$3" "$3.mnt"
trap 'umount "$3.mnt"' EXIT
TMPDIR=$3.mnt "$4"
"#;

/// The tests of the image store, on the file systems that servers have.
fn on_file_systems() -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let Some(program) = build_test("image", "image", &["--lib"])? else {
        counts.fail("image: its tests do not compile".to_owned());
        return Ok(counts);
    };
    for [kind, options] in FILE_SYSTEMS {
        println!("== tests of the image store on {kind}");
        let directory = tempfile::tempdir().context("making a temporary directory")?;
        let mut command = as_root("sh");
        command.args(["-c", ON_FILE_SYSTEM, "sh", kind, options]);
        command.arg(directory.path().join("disk")).arg(&program);
        counts.add(libtest(&mut command, IgnoredTests::Skipped)?);
    }
    Ok(counts)
}

/// Builds a test target, chosen by `choice`, as the invoking user; `None` if it does not compile.
fn build_test(package: &str, target: &str, choice: &[&str]) -> anyhow::Result<Option<PathBuf>> {
    let mut command = cargo([
        "test",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    command
        .args(["--package", package])
        .args(choice)
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", describe(&command)))?;
    let output = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
    let mut program = None;
    for message in Message::parse_stream(output) {
        if let Message::CompilerArtifact(artifact) = message.context("reading cargo's messages")?
            && artifact.target.name == target
            && artifact.profile.test
        {
            program = artifact
                .executable
                .map(cargo_metadata::camino::Utf8PathBuf::into_std_path_buf);
        }
    }
    Ok(program.filter(|_| child.wait().is_ok_and(|status| status.success())))
}

/// What tests marked `#[ignore]` mean in a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IgnoredTests {
    /// A later stage runs them: they do not count here.
    RunLater,
    /// They count as skipped.
    Skipped,
}

/// Runs test programs, shows their output and adds up what they report. A run that fails without
/// reporting a failed test (it did not compile, it crashed) counts as one failure.
fn libtest(command: &mut Command, ignored: IgnoredTests) -> anyhow::Result<Counts> {
    let name = describe(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let output = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
    let mut counts = Counts::default();
    let mut failures = FailureList::default();
    for line in output.lines() {
        let line = line.with_context(|| format!("reading the output of {name}"))?;
        println!("{line}");
        counts.add(counts_in(&line, ignored));
        counts.failures.extend(failures.read(&line));
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for {name}"))?;
    if !status.success() && counts.failed == 0 {
        counts.fail(format!("{name}: {status}"));
    }
    Ok(counts)
}

/// What one line of a test program's output adds: its summary, or a test that ended early because
/// something is impossible here ("skipped: reason"; the summary counts such a test as passed).
fn counts_in(line: &str, ignored: IgnoredTests) -> Counts {
    if line.contains("skipped: ") {
        return Counts {
            skipped: 1,
            ..Counts::default()
        };
    }
    let Some((_, summary)) = line.split_once("test result: ") else {
        return Counts::default();
    };
    let count = |word: &str| {
        let mut parts = summary.split([';', '.', ',']).map(str::trim);
        parts
            .find_map(|part| part.strip_suffix(word)?.trim().parse().ok())
            .unwrap_or(0)
    };
    let skipped = if ignored == IgnoredTests::Skipped {
        count("ignored")
    } else {
        0
    };
    Counts {
        passed: count("passed"),
        failed: count("failed"),
        skipped,
        ..Counts::default()
    }
}

impl FailureList {
    /// The failed tests, when `line` ends the list of them.
    fn read(&mut self, line: &str) -> BTreeSet<String> {
        // A list of what the failed tests printed comes first, under the same title.
        if line == "failures:" {
            self.reading = true;
            self.names.clear();
        } else if line.starts_with("test result: ") {
            self.reading = false;
            return std::mem::take(&mut self.names);
        } else if let Some(name) = line.strip_prefix("    ")
            && self.reading
        {
            self.names.insert(name.to_owned());
        }
        BTreeSet::new()
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.failures.extend(other.failures);
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.insert(what);
    }

    fn skip(&mut self, reason: &str) {
        println!("skipped: {reason}");
        self.skipped += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added_up() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 5 filtered out; finished in 0.01s";
        assert_eq!(
            counts_in(line, IgnoredTests::RunLater),
            Counts {
                passed: 12,
                failed: 3,
                ..Counts::default()
            }
        );
        assert_eq!(
            counts_in(line, IgnoredTests::Skipped),
            Counts {
                passed: 12,
                failed: 3,
                skipped: 4,
                ..Counts::default()
            }
        );
        assert_eq!(
            counts_in("test a ... ok", IgnoredTests::Skipped),
            Counts::default()
        );
    }

    #[test]
    fn failed_tests_are_named() {
        let output = "failures:\n\n---- a::b stdout ----\n    not a test\n\nfailures:\n    a::b\n    a::c\n\ntest result: FAILED. 1 passed";
        let mut list = FailureList::default();
        let names: Vec<String> = output.lines().flat_map(|line| list.read(line)).collect();
        assert_eq!(names, ["a::b", "a::c"]);
        assert!(!list.reading);
    }

    #[test]
    fn a_test_that_cannot_run_is_skipped() {
        let line = "test boots ... skipped: no User-Mode Linux in this distribution";
        assert_eq!(
            counts_in(line, IgnoredTests::Skipped),
            Counts {
                skipped: 1,
                ..Counts::default()
            }
        );
    }
}
