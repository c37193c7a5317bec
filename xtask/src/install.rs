//! Installs what a chore needs by the distribution's package manager, saying what and why.

use std::path::Path;

use anyhow::{Context, bail};
use lab::{Distribution, Tool, find_tools};

use crate::workspace::{as_root, can_be_root, cargo, must_succeed};

/// The target of the release binary and of /init.
pub const MUSL: &str = "x86_64-unknown-linux-musl";

/// The target of /init for 64-bit ARM.
pub const MUSL_AARCH64: &str = "aarch64-unknown-linux-musl";

/// A program that only one chore needs, from one Debian package.
pub struct Extra {
    /// What is looked for.
    pub path: &'static str,
    /// The Debian package.
    pub package: &'static str,
    /// What for.
    pub purpose: &'static str,
}

/// Makes sure that tools and programs are there.
pub fn ensure(tools: &[Tool], extras: &[Extra]) -> anyhow::Result<()> {
    let distribution = Distribution::detect();
    let missing = find_tools(tools)
        .err()
        .map(|missing| missing.tools)
        .unwrap_or_default();
    let mut wanted: Vec<(&str, &str, Option<&str>)> = missing
        .iter()
        .map(|tool| {
            (
                tool.name(),
                tool.purpose(),
                distribution.and_then(|known| tool.package(known)),
            )
        })
        .collect();
    for extra in extras
        .iter()
        .filter(|extra| !Path::new(extra.path).exists())
    {
        let package = (distribution == Some(Distribution::Debian)).then_some(extra.package);
        wanted.push((extra.path, extra.purpose, package));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let mut packages = Vec::new();
    for (name, purpose, package) in &wanted {
        let Some(package) = package else {
            bail!("{name} is needed to {purpose}, and this distribution is not known to have it");
        };
        eprintln!("installing {package}: {name} is needed to {purpose}");
        packages.push(*package);
    }
    install(
        distribution.context("this distribution is not known")?,
        &packages,
    )
}

fn install(distribution: Distribution, packages: &[&str]) -> anyhow::Result<()> {
    if !can_be_root() {
        bail!(
            "installing packages needs root; run: sudo {} {}",
            distribution.install_command().join(" "),
            packages.join(" ")
        );
    }
    let attempt = || {
        let (program, arguments) = distribution
            .install_command()
            .split_first()
            .context("an empty command")?;
        let mut command = as_root(program);
        must_succeed(
            command
                .args(arguments)
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    if distribution != Distribution::Debian {
        return attempt();
    }
    // The lists of a fresh machine are empty or old.
    attempt().or_else(|_| {
        must_succeed(as_root("apt-get").args(["update"]))?;
        attempt()
    })
}

/// Makes sure that a Rust target for static programs is there.
pub fn ensure_target(target: &str) -> anyhow::Result<()> {
    let output = std::process::Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .current_dir(crate::workspace::root())
        .output()
        .context("starting rustc")?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if Path::new(&folder)
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
    {
        return Ok(());
    }
    eprintln!("adding the Rust target {target}: /init is a static program");
    let mut command = std::process::Command::new("rustup");
    must_succeed(
        command
            .args(["target", "add", target])
            .current_dir(crate::workspace::root()),
    )
    .context("adding a Rust target needs rustup")
}

/// Makes sure that everything that building `slate` needs is there.
pub fn ensure_build() -> anyhow::Result<()> {
    ensure(
        &[Tool::MuslCompiler],
        &[Extra {
            path: "/usr/bin/cc",
            package: "gcc",
            purpose: "compile SQLite",
        }],
    )?;
    ensure_target(MUSL)?;
    must_succeed(cargo(["fetch", "--quiet", "--locked"]).env_remove("CARGO_TARGET_DIR"))
}
