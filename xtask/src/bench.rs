//! `cargo xtask bench`: Cleanslate and what it replaces, in turn, on the same machine.

mod boot;
mod capture;
mod chain;
mod dhcp;
mod files;
mod ganesha;
mod image;
mod initrd;
mod nfs;
mod ours;
mod peer;
mod row;
mod start;

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use lab::Network;

const KNOWN: &str = "boot, chain, dhcp, http, image, initrd, nfs, tftp";
/// How often each side is measured unless `--rounds` says otherwise.
const ROUNDS: usize = 3;
/// Clients that call at once unless `--clients` says otherwise.
const CLIENTS: usize = 200;

/// What the user asked for.
struct Options {
    json: bool,
    rounds: usize,
    /// Leave the peer out.
    ours: bool,
    /// Clients that call or fetch at once, where many do.
    clients: usize,
    /// The loads or parts that are wanted; none means all.
    only: Vec<String>,
}

/// Runs the benchmark that `arguments` name.
pub fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let Some((&name, rest)) = arguments.split_first() else {
        bail!("which benchmark? known: {KNOWN}");
    };
    match (name, rest) {
        (nfs::GENERATOR, [order]) => {
            nfs::generate(order)?;
            return Ok(ExitCode::SUCCESS);
        }
        (dhcp::GENERATOR, []) => {
            dhcp::generate()?;
            return Ok(ExitCode::SUCCESS);
        }
        (files::GENERATOR, [order]) => {
            files::generate(order)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let options = Options::parse(rest)?;
    let report = match name {
        "boot" => boot::run(&options)?,
        "chain" => chain::run(&options)?,
        "image" => image::run(&options)?,
        "initrd" => initrd::run(&options)?,
        "dhcp" => dhcp::run(&options)?,
        "http" => files::http(&options)?,
        "nfs" => nfs::run(&options)?,
        "tftp" => files::tftp(&options)?,
        _ => bail!("unknown benchmark: {name}; known: {KNOWN}"),
    };
    if options.json {
        println!("{:#}", report.as_json());
    } else {
        print!("{}", report.as_table());
    }
    Ok(ExitCode::SUCCESS)
}

/// A command that is kept on one processor from its beginning, so that it makes as many threads as
/// that has use for.
fn on_processor(processor: &str, command: &Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned
        .args(["--cpu-list", processor])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            pinned.env(name, value);
        }
    }
    pinned
}

/// A shell script, with its arguments to be added; it keeps only its errors.
fn script(text: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", text, "sh"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Runs a program on a network to its end; what it printed.
fn run_there(network: &Network, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = network.run(command)?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", message.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How long something takes, in seconds.
fn seconds(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

impl Options {
    /// The loads to measure, of those that a benchmark has.
    fn loads<'a>(&self, known: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
        let unknown = self.only.iter().find(|it| !known.contains(&it.as_str()));
        if let Some(unknown) = unknown {
            bail!(
                "--only: unknown load: {unknown}; known: {}",
                known.join(", ")
            );
        }
        let wanted = known.iter().copied().filter(|it| self.wants(it));
        Ok(wanted.collect())
    }

    /// Whether one of them is to be measured.
    fn wants(&self, load: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|it| it == load)
    }

    fn parse(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut options = Self {
            json: false,
            rounds: ROUNDS,
            ours: false,
            clients: CLIENTS,
            only: Vec::new(),
        };
        let mut words = arguments.iter();
        while let Some(&word) = words.next() {
            match word {
                "--json" => options.json = true,
                "--ours" => options.ours = true,
                "--rounds" => options.rounds = above_zero(word, words.next())?,
                "--clients" => options.clients = above_zero(word, words.next())?,
                "--only" => {
                    let loads = words.next().context("--only: expected names")?;
                    options.only = loads.split(',').map(str::to_owned).collect();
                }
                _ => bail!(
                    "unknown option: {word}; known: --json, --ours, --rounds N, --clients N, \
                     --only PART,..."
                ),
            }
        }
        Ok(options)
    }
}

fn above_zero(option: &str, number: Option<&&str>) -> anyhow::Result<usize> {
    let number = number.with_context(|| format!("{option}: expected a number"))?;
    let parsed = number.parse().ok().filter(|number| *number > 0);
    parsed.with_context(|| format!("{option}: expected a number above 0, got {number}"))
}
