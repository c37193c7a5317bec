//! `cargo xtask try` and `cargo xtask lint`.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, bail};
use lab::Tool;

use crate::install;
use crate::workspace::{as_root, can_be_root, cargo, must_succeed, status, target_directory};

/// Builds as the invoking user, then becomes `slate try` as root.
pub fn slate_try(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    // `cargo xtask try -- --nodes 3` and `cargo xtask try --nodes 3` mean the same.
    let options = arguments.strip_prefix(&["--"]).unwrap_or(arguments);
    if !can_be_root() {
        bail!(
            "`slate try` makes a private network and needs root: run this as root or with sudo at hand"
        );
    }
    install::ensure(
        &[
            Tool::Qemu,
            Tool::Firmware,
            Tool::Iproute,
            Tool::SshClient,
            Tool::Mmdebstrap,
        ],
        &[],
    )?;
    install::ensure_build()?;
    must_succeed(&mut cargo(["build", "--package", "cli", "--bin", "slate"]))?;
    let slate = target_directory()?.join("debug/slate");
    let error = as_root(&slate).arg("try").args(options).exec();
    Err(error).with_context(|| format!("starting {}", slate.display()))
}

/// Formatting and clippy, as the continuous integration wants them.
pub fn lint() -> anyhow::Result<ExitCode> {
    let formatted = status(&mut cargo(["fmt", "--all", "--check"]))?.success();
    let clean = status(&mut cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?
    .success();
    Ok(if formatted && clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
