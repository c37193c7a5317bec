//! The `slate` command: parse, run one command, say how it went.

mod args;
mod commands;
#[cfg(all(target_arch = "x86_64", any(target_env = "musl", test)))]
mod copy;
mod embedded;
mod failure;
mod foreground;
mod recipe;
mod registry;
mod render;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use failure::Outcome;

/// musl's own has one lock for all threads, and is slow.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            anstream::eprint!("{}", failure.render());
            failure.code.into()
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let dirs = &cli.dirs;
    match cli.command {
        Command::Up(up) => commands::up::run(dirs, &up),
        Command::Try(args) => commands::lab::run(&args),
        Command::Image(command) => commands::image::run(dirs, command),
        Command::Initrd(command) => commands::initrd::run(dirs, command),
        Command::Node(command) => commands::node::run(dirs, command),
        Command::Plan(args) => commands::plan::run(dirs, &args),
        Command::Apply(args) => commands::apply::run(dirs, &args),
        Command::Export { output } => commands::apply::export(dirs, output),
        Command::Rollout(args) => commands::rollout::run(dirs, &args),
        Command::Secret(command) => commands::secret::run(dirs, command),
        Command::Config(command) => commands::config::run(dirs, &command),
        Command::Events(args) => commands::events::run(dirs, &args),
        Command::Doctor { output } => commands::doctor::run(dirs, output),
        Command::Service(command) => commands::service::run(dirs, command),
        Command::Completions { shell } => commands::manual::completions(shell),
        Command::Man { dir } => commands::manual::write(&dir),
    }
}
