//! `cargo xtask dist`: the release binary, static, with /init inside.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use lab::Tool;

use crate::host;
use crate::run::{cargo, output, root, run};

const TARGET: &str = "x86_64-unknown-linux-musl";

/// Builds the release and puts it into `target/dist/slate`; returns that path.
pub fn dist() -> Result<PathBuf> {
    host::install(&[Tool::MuslCompiler])?;
    run(cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "cli",
        "--target",
        TARGET,
    ]))?;
    let built = target_folder()?.join(TARGET).join("release/slate");
    let folder = root().join("target/dist");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let binary = folder.join("slate");
    std::fs::copy(&built, &binary).with_context(|| format!("copying {}", built.display()))?;
    check_static(&binary)?;
    let bytes = std::fs::metadata(&binary)?.len();
    println!("{}: {:.1} MB, static", binary.display(), bytes as f64 / 1e6);
    Ok(binary)
}

/// Where cargo builds.
pub fn target_folder() -> Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(root())
        .no_deps()
        .exec()
        .context("reading cargo's metadata")?;
    Ok(metadata.target_directory.into_std_path_buf())
}

/// An ELF file without an interpreter and without needed libraries.
fn check_static(binary: &std::path::Path) -> Result<()> {
    let mut command = std::process::Command::new("readelf");
    command
        .args(["--wide", "--program-headers", "--dynamic"])
        .arg(binary);
    let text = output(command)?;
    for forbidden in ["INTERP", "(NEEDED)"] {
        if let Some(line) = text.lines().find(|line| line.contains(forbidden)) {
            bail!(
                "expected a static binary, got {}: {}",
                binary.display(),
                line.trim()
            );
        }
    }
    Ok(())
}
