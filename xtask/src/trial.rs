//! `cargo xtask try`: from a checkout to booted virtual nodes.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};
use lab::Tool;

use crate::dist::target_folder;
use crate::host;
use crate::run::{cargo, run};

/// Installs what `slate try` needs, builds as the invoking user, and becomes `slate try` as root.
pub fn boot_virtual_nodes(options: &[String]) -> Result<()> {
    host::install(&[
        Tool::Qemu,
        Tool::Firmware,
        Tool::Iproute,
        Tool::SshClient,
        Tool::Mmdebstrap,
    ])?;
    run(cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "cli",
    ]))?;
    let slate = target_folder()?.join("release/slate");
    let program = slate
        .to_str()
        .context("the target folder's path is not UTF-8")?;
    let mut command = host::as_root(program, &["TERM", "NO_COLOR", "SLATE_CACHE_DIR"]);
    command.arg("try").args(options);
    Err(command.exec()).with_context(|| format!("starting {program}"))
}
