//! Builds /init for the nodes (static musl) and hands its path to the command, which embeds it.
//!
//! `SLATE_INIT_BIN=/path` takes a binary that was built elsewhere. `SLATE_INIT_AARCH64_BIN=/path` takes
//! one for 64-bit ARM besides, which `cargo xtask dist` builds; without it there is none.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// The target of /init: static, so that it runs on any image's kernel.
const TARGET: &str = "x86_64-unknown-linux-musl";

fn main() {
    let root = workspace_root();
    for watched in [
        "crates/init",
        "crates/wire",
        "Cargo.lock",
        "rust-toolchain.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-env-changed=SLATE_INIT_BIN");
    let init = match env::var_os("SLATE_INIT_BIN") {
        Some(path) => PathBuf::from(path),
        None => build_init(&root),
    };
    if !init.is_file() {
        fail(&format!(
            "no /init binary at {} (from SLATE_INIT_BIN, or the build of crates/init)",
            init.display()
        ));
    }
    println!("cargo::rerun-if-changed={}", init.display());
    println!("cargo::rustc-env=SLATE_INIT_EMBEDDED={}", init.display());
    let arm = aarch64();
    println!(
        "cargo::rustc-env=SLATE_INIT_EMBEDDED_AARCH64={}",
        arm.display()
    );
}

/// The /init for 64-bit ARM; an empty file where there is none.
fn aarch64() -> PathBuf {
    println!("cargo::rerun-if-env-changed=SLATE_INIT_AARCH64_BIN");
    if let Some(path) = env::var_os("SLATE_INIT_AARCH64_BIN") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            let path = path.display();
            fail(&format!(
                "no /init binary at {path} (from SLATE_INIT_AARCH64_BIN)"
            ));
        }
        println!("cargo::rerun-if-changed={}", path.display());
        return path;
    }
    let none = PathBuf::from(variable("OUT_DIR")).join("no-init");
    if let Err(error) = std::fs::write(&none, "") {
        fail(&format!("writing {}: {error}", none.display()));
    }
    none
}

/// Builds package `init` in a target folder of its own: the outer build holds the lock of the usual
/// one.
fn build_init(root: &Path) -> PathBuf {
    require_target();
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("init-target");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--package", "init", "--profile", "init"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir);
    for inherited in inherited_variables() {
        cargo.env_remove(inherited);
    }
    match cargo.status() {
        Ok(status) if status.success() => target_dir.join(TARGET).join("init").join("init"),
        Ok(status) => fail(&format!("building crates/init for {TARGET}: {status}")),
        Err(error) => fail(&format!("starting cargo to build crates/init: {error}")),
    }
}

/// What the outer build sets for itself: wrappers such as clippy-driver, flags and targets that are
/// not /init's.
fn inherited_variables() -> impl Iterator<Item = String> {
    env::vars().map(|(name, _)| name).filter(|name| {
        let own = [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "RUSTFLAGS",
        ];
        own.contains(&name.as_str())
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_PROFILE_")
    })
}

/// Says which command is missing before rustc says "can't find crate for `std`".
fn require_target() {
    let libdir = Command::new(variable("RUSTC"))
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    if !libdir.is_some_and(|path| path.is_dir()) {
        fail(&format!(
            "the Rust target {TARGET} is not installed: run `rustup target add {TARGET}` \
             (or set SLATE_INIT_BIN to a static build of crates/init)"
        ));
    }
}

fn workspace_root() -> PathBuf {
    let crate_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    match crate_dir.ancestors().nth(2) {
        Some(root) => root.to_path_buf(),
        None => fail("crates/cli is not inside the workspace"),
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
