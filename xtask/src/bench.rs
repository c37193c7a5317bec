//! `cargo xtask bench`: Cleanslate and what it replaces, in turn, on the same machine.

mod boot;
mod capture;
mod ours;
mod peer;
mod row;

use std::process::ExitCode;

use anyhow::{Context, bail};

/// How often each side is measured unless `--rounds` says otherwise.
const ROUNDS: usize = 3;

/// What the user asked for.
#[derive(Clone, Copy)]
struct Options {
    json: bool,
    rounds: usize,
    /// Leave the peer out.
    ours: bool,
}

/// Runs the benchmark that `arguments` name.
pub fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let Some((&name, rest)) = arguments.split_first() else {
        bail!("which benchmark? known: boot");
    };
    let options = Options::parse(rest)?;
    let report = match name {
        "boot" => boot::run(options)?,
        _ => bail!("unknown benchmark: {name}; known: boot"),
    };
    if options.json {
        println!("{:#}", report.as_json());
    } else {
        print!("{}", report.as_table());
    }
    Ok(ExitCode::SUCCESS)
}

impl Options {
    fn parse(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut options = Self {
            json: false,
            rounds: ROUNDS,
            ours: false,
        };
        let mut words = arguments.iter();
        while let Some(&word) = words.next() {
            match word {
                "--json" => options.json = true,
                "--ours" => options.ours = true,
                "--rounds" => {
                    let number = words.next().context("--rounds: expected a number")?;
                    options.rounds = number
                        .parse()
                        .ok()
                        .filter(|rounds| *rounds > 0)
                        .with_context(|| {
                            format!("--rounds: expected a number above 0, got {number}")
                        })?;
                }
                _ => bail!("unknown option: {word}; known: --json, --ours, --rounds N"),
            }
        }
        Ok(options)
    }
}
