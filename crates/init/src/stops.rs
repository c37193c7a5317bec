//! `rd.break`: shells on the console, between the stages of the boot.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use wire::cmdline::{BootArgs, Break, SHELL_PATH};
use wire::stage::Stage;

use crate::report::Reporter;

/// Where the boot stops for a shell.
pub struct Stops<'a> {
    places: BTreeSet<Break>,
    /// Is told of each stop.
    pub report: &'a Reporter,
}

impl<'a> Stops<'a> {
    /// As the command line asks.
    pub fn wanted(args: &BootArgs, report: &'a Reporter) -> Stops<'a> {
        let (places, errors) = args.breaks();
        for error in errors {
            report.failure(Stage::Init, &error.to_string());
        }
        Stops { places, report }
    }

    /// The boot has come here: opens a shell if one is wanted, and goes on when it ends.
    pub fn at(&mut self, place: Break) {
        if !self.places.contains(&place) {
            return;
        }
        let stage = place.stage();
        let shell = match place {
            Break::SwitchRoot => Some("/bin/sh"),
            _ => Some(SHELL_PATH).filter(|it| Path::new(it).exists()),
        };
        let Some(shell) = shell else {
            let text = format!(
                "rd.break={stage}: expected a shell at {SHELL_PATH} in the initramfs; slate up \
                 --debug-shell puts one there"
            );
            self.report.failure(stage, &text);
            if place == Break::Mount {
                // The image's own is not far.
                self.places.insert(Break::SwitchRoot);
            }
            return;
        };
        self.report
            .info(stage, "rd.break: a shell; the boot goes on after exit");
        if let Err(error) = run(shell) {
            self.report
                .failure(stage, &format!("rd.break: {shell}: {error}"));
        }
    }
}

fn run(shell: &str) -> std::io::Result<()> {
    let console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    let (output, errors) = (console.try_clone()?, console.try_clone()?);
    let mut command = Command::new(shell);
    if shell == SHELL_PATH {
        Command::new(shell)
            .args(["--install", "-s", "/bin"])
            .status()?;
        command.arg("sh").env("PATH", "/bin");
    }
    command
        .env("PS1", "slate:\\w# ")
        .stdin(console)
        .stdout(output)
        .stderr(errors)
        .status()
        .map(drop)
}
