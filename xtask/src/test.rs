//! `cargo xtask test`: every test, then one line that counts them.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use cargo_metadata::Message;
use lab::Tool;

use crate::workspace::{as_root, can_be_root, cargo, describe};
use crate::{install, tidy};

/// What came of the tests so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
}

/// What a test puts in the way of a daemon.
const NFTABLES: install::Extra = install::Extra {
    path: "/usr/sbin/nft",
    package: "nftables",
    purpose: "be a firewall that drops what nodes send",
};

/// Where a test's container images come from.
const REGISTRY: install::Extra = install::Extra {
    path: "/usr/bin/docker-registry",
    package: "docker-registry",
    purpose: "be a registry of container images",
};

/// Loaders that machines fetch where their image has none.
const IPXE: install::Extra = install::Extra {
    path: "/usr/lib/ipxe/undionly.kpxe",
    package: "ipxe",
    purpose: "boot machines by iPXE",
};
const PXELINUX: install::Extra = install::Extra {
    path: "/usr/lib/PXELINUX/pxelinux.0",
    package: "pxelinux",
    purpose: "boot machines with a BIOS",
};
const SYSLINUX: install::Extra = install::Extra {
    path: "/usr/lib/syslinux/modules/bios/ldlinux.c32",
    package: "syslinux-common",
    purpose: "boot machines with a BIOS",
};

/// What stands between two networks.
const RELAY: install::Extra = install::Extra {
    path: "/usr/sbin/dhcrelay",
    package: "isc-dhcp-relay",
    purpose: "be a DHCP relay",
};

/// Which checks the lines of `slate plan --as dhcpd`, and boots a machine with them.
const ISC_DHCPD: install::Extra = install::Extra {
    path: "/usr/sbin/dhcpd",
    package: "isc-dhcp-server",
    purpose: "be another DHCP server that names this one to firmware",
};

/// Which checks the document of `slate plan --as kea`.
const KEA: install::Extra = install::Extra {
    path: "/usr/sbin/kea-dhcp4",
    package: "kea-dhcp4-server",
    purpose: "check what Kea is to be told",
};

/// The tests that boot machines, as package and test target.
const END_TO_END: [(&str, &str); 3] = [("lab", "machines"), ("cli", "errors"), ("cli", "e2e")];
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
        counts.failed += u32::from(finding.is_violation());
        counts.passed += u32::from(!finding.is_violation());
    }
    println!("== end-to-end boots");
    match tools {
        Ok(()) if can_be_root() => counts.add(end_to_end(full)?),
        Ok(()) => counts.skip("end-to-end boots: they need root, and sudo does not work here"),
        Err(error) => counts.skip(&format!("end-to-end boots: {error:#}")),
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
    install::ensure(
        &tools,
        &[
            NFTABLES, REGISTRY, IPXE, PXELINUX, SYSLINUX, RELAY, ISC_DHCPD, KEA,
        ],
    )?;
    built
}

fn end_to_end(full: bool) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    for (package, target) in END_TO_END {
        let Some(program) = build_test(package, target)? else {
            println!("{package}: its test {target} does not compile");
            counts.failed += 1;
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

/// Builds a test target as the invoking user; `None` if it does not compile.
fn build_test(package: &str, target: &str) -> anyhow::Result<Option<PathBuf>> {
    let mut command = cargo([
        "test",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    command
        .args(["--package", package, "--test", target])
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", describe(&command)))?;
    let output = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
    let mut program = None;
    for message in Message::parse_stream(output) {
        if let Message::CompilerArtifact(artifact) = message.context("reading cargo's messages")?
            && artifact.target.name == target
            && artifact.target.is_test()
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
    for line in output.lines() {
        let line = line.with_context(|| format!("reading the output of {name}"))?;
        println!("{line}");
        counts.add(counts_in(&line, ignored));
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for {name}"))?;
    if !status.success() && counts.failed == 0 {
        println!("{name}: {status}");
        counts.failed = 1;
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
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
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
                skipped: 0
            }
        );
        assert_eq!(
            counts_in(line, IgnoredTests::Skipped),
            Counts {
                passed: 12,
                failed: 3,
                skipped: 4
            }
        );
        assert_eq!(
            counts_in("test a ... ok", IgnoredTests::Skipped),
            Counts::default()
        );
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
