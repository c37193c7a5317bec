//! Chores: `cargo xtask help` lists them.

mod bench;
mod dist;
mod elf;
mod init;
mod install;
mod run;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::bail;

const HELP: &str = "\
cargo xtask CHORE

  test [--full]              every test, end-to-end boots included; installs what is missing
  try [ARGUMENTS]            build, then `slate try ARGUMENTS` as root
  bench boot [--rounds N] [--ours] [--json]
                             boot a virtual machine with Cleanslate and with what it replaces, in
                             turn; --ours leaves the peer out
  bench nfs [--rounds N] [--clients N] [--only LOAD,...] [--ours] [--json]
                             call our NFS server and NFS-Ganesha in turn: what a call costs
  bench tftp|http [--rounds N] [--clients N] [--ours] [--json]
                             fetch a kernel from us and from other servers in turn
  bench dhcp [--rounds N] [--ours] [--json]
                             leases for each second, from us and from other servers in turn
  tidy                       the rules of the architecture
  lint                       formatting and clippy
  dist                       the release binary: target/dist/slate";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test"] => test::run(false),
        ["test", "--full"] => test::run(true),
        ["try", rest @ ..] => run::slate_try(rest),
        ["bench", rest @ ..] => bench::run(rest),
        ["tidy"] => tidy::run(),
        ["lint"] => run::lint(),
        ["dist"] => dist::run(),
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!("unknown chore: {}\n\n{HELP}", words.join(" ")),
    }
}
