//! `cargo xtask dist`: the release binary, static, with /init inside, for 64-bit x86 and 64-bit ARM.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::workspace::{cargo, must_succeed, target_directory};
use crate::{elf, init, install};

/// Builds `target/dist/slate` and says so.
pub fn run() -> anyhow::Result<ExitCode> {
    let distributed = build()?;
    let bytes = std::fs::metadata(&distributed)
        .with_context(|| format!("reading {}", distributed.display()))?
        .len();
    println!(
        "{}: {:.1} MB, static",
        distributed.display(),
        bytes as f64 / 1e6
    );
    Ok(ExitCode::SUCCESS)
}

/// Builds the release binary and checks that it is static; its path.
pub fn build() -> anyhow::Result<PathBuf> {
    install::ensure_build()?;
    let aarch64 = init::build_aarch64()?;
    must_succeed(
        cargo([
            "build",
            "--release",
            "--locked",
            "--package",
            "cli",
            "--bin",
            "slate",
            "--target",
            install::MUSL,
        ])
        .env("SLATE_INIT_AARCH64_BIN", aarch64),
    )?;
    let target = target_directory()?;
    let built = target.join(install::MUSL).join("release/slate");
    let program = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    elf::check_static(&program).with_context(|| format!("{} is not static", built.display()))?;
    let folder = target.join("dist");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let distributed = folder.join("slate");
    std::fs::copy(&built, &distributed)
        .with_context(|| format!("writing {}", distributed.display()))?;
    Ok(distributed)
}
