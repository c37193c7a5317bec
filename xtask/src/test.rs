//! `cargo xtask test`: everything that can be tested on this machine, end-to-end boots last.

use anyhow::{Context as _, Result, bail};
use lab::Tool;
use serde_json::Value;

use crate::host;
use crate::run::{cargo, output, run};

/// What the tests on real machines need.
const TOOLS: [Tool; 7] = [
    Tool::Qemu,
    Tool::Firmware,
    Tool::UserModeLinux,
    Tool::Iproute,
    Tool::SshClient,
    Tool::Mmdebstrap,
    Tool::MuslCompiler,
];

/// Environment variables that reach tests which run as root.
const KEPT: [&str; 4] = ["SLATE_E2E", "SLATE_CACHE_DIR", "RUST_BACKTRACE", "CI"];

/// Runs the hermetic tests, the tidiness checks, the lab's tests and the end-to-end boots.
pub fn test(full: bool) -> Result<()> {
    host::install(&TOOLS)?;
    run(cargo(&["test", "--workspace", "--locked"]))?;
    crate::tidy::tidy()?;
    run_as_root(
        "lab",
        "machines",
        &["--include-ignored", "--test-threads=1"],
    )?;
    let mode = if full { "full" } else { "short" };
    run_e2e(mode)
}

fn run_e2e(mode: &str) -> Result<()> {
    let binary = test_binary("cli", "e2e")?;
    let mut command = host::as_root(&binary, &KEPT);
    command.env("SLATE_E2E", mode);
    run(command)
}

fn run_as_root(package: &str, name: &str, arguments: &[&str]) -> Result<()> {
    let mut command = host::as_root(&test_binary(package, name)?, &KEPT);
    command.args(arguments);
    run(command)
}

/// Builds an integration test without running it: the path of its program.
fn test_binary(package: &str, name: &str) -> Result<String> {
    let build = [
        "test",
        "--locked",
        "--no-run",
        "--message-format=json",
        "--package",
        package,
        "--test",
        name,
    ];
    let messages = output(cargo(&build)).with_context(|| format!("building the test {name}"))?;
    let artifacts = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = artifacts
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(str::to_owned));
    match program {
        Some(program) => Ok(program),
        None => bail!("cargo built no program for the test {name} of {package}"),
    }
}
