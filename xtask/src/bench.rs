//! `cargo xtask bench NAME [--json]`: Cleanslate and its peer in turn on the same machine.

use std::process::ExitCode;

/// Runs the benchmark that `arguments` name.
pub fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    anyhow::bail!("unknown benchmark: {}", arguments.join(" "))
}
