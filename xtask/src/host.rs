//! What has to be installed on this computer, and who we are on it.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::{Result, bail};
use lab::{Distribution, Tool, find_tools};

use crate::run::run;

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// `program`, by way of sudo unless we are root. Environment variables in `keep` are handed on.
pub fn as_root(program: &str, keep: &[&str]) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    if !keep.is_empty() {
        command.arg(format!("--preserve-env={}", keep.join(",")));
    }
    command.arg(program);
    command
}

/// Installs those of `tools` that are missing, after saying what and why.
pub fn install(tools: &[Tool]) -> Result<()> {
    let Err(missing) = find_tools(tools) else {
        return Ok(());
    };
    for tool in &missing.tools {
        eprintln!("{} is needed to {}", tool.name(), tool.purpose());
    }
    let Some(distribution) = missing.distribution else {
        bail!("{missing}");
    };
    let packages = missing.packages();
    if packages.len() < missing.tools.len() {
        bail!("{missing}; this distribution has no package for some of them");
    }
    eprintln!("installing {}", packages.join(", "));
    refresh_index(distribution)?;
    let words = distribution.install_command();
    let mut command = as_root(words[0], &[]);
    command.args(&words[1..]).args(&packages);
    if distribution == Distribution::Debian {
        command.env("DEBIAN_FRONTEND", "noninteractive");
    }
    run(command)?;
    Ok(find_tools(tools)?)
}

/// A new Debian machine has no package index yet; the others fetch theirs by themselves.
fn refresh_index(distribution: Distribution) -> Result<()> {
    if distribution != Distribution::Debian {
        return Ok(());
    }
    let mut command = as_root("apt-get", &[]);
    command.arg("update");
    run(command)
}
