//! Chores of the project: `cargo xtask --help`.

mod dist;
mod host;
mod run;
mod test;
mod tidy;
mod trial;

use clap::{Parser, Subcommand};

/// Chores of the project.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run every test, end-to-end boots included; installs what is missing.
    Test {
        /// Also run the long matrix: more kernels, repeated kills.
        #[arg(long)]
        full: bool,
    },
    /// Boot virtual nodes: installs what is missing, builds, runs `slate try` as root.
    Try {
        /// Options of `slate try`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Check the rules of ARCHITECTURE.md that a machine can check.
    Tidy,
    /// Build the release: one static binary with /init inside, in target/dist.
    Dist,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().chore {
        Chore::Test { full } => test::test(full),
        Chore::Try { options } => trial::boot_virtual_nodes(&options),
        Chore::Tidy => tidy::tidy(),
        Chore::Dist => dist::dist().map(drop),
    }
}
