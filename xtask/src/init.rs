//! /init for 64-bit ARM. That for 64-bit x86 is built with `slate` itself (`crates/cli/build.rs`).

use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::workspace::{cargo, must_succeed, target_directory};
use crate::{elf, install};

/// The largest that /init may be, in bytes: it travels to every node at every boot.
const BYTES_MAX: usize = 1 << 20;

/// Builds it and looks at it; its path. Rust's own linker does, so no compiler for ARM is needed.
pub fn build_aarch64() -> anyhow::Result<PathBuf> {
    install::ensure_target(install::MUSL_AARCH64)?;
    let target = target_directory()?.join("init-aarch64");
    let mut build = cargo([
        "build",
        "--locked",
        "--package",
        "init",
        "--profile",
        "init",
    ]);
    build.args(["--target", install::MUSL_AARCH64, "--target-dir"]);
    build.arg(&target);
    build.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld");
    must_succeed(build.env_remove("RUSTFLAGS"))?;
    let built = target.join(install::MUSL_AARCH64).join("init/init");
    let program = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    check(&program).with_context(|| built.display().to_string())?;
    Ok(built)
}

/// Refuses what no node with a 64-bit ARM processor could start as /init.
fn check(program: &[u8]) -> anyhow::Result<()> {
    elf::check_static(program)?;
    let machine = elf::machine(program)?;
    ensure!(
        machine == elf::AARCH64,
        "expected a program for 64-bit ARM (machine {}), got one for machine {machine}",
        elf::AARCH64
    );
    ensure!(
        program.len() <= BYTES_MAX,
        "expected at most {BYTES_MAX} bytes, got {}",
        program.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_small_static_program_for_arm_passes() {
        let program = |machine: u16, length: usize| {
            let mut bytes = vec![0; length];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[0x12..0x14].copy_from_slice(&machine.to_le_bytes());
            bytes
        };
        assert!(check(&program(183, 0x40)).is_ok());
        assert!(check(&program(62, 0x40)).is_err());
        assert!(check(&program(183, BYTES_MAX + 1)).is_err());
        assert!(check(b"#!/bin/sh").is_err());
    }
}
