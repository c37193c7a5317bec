//! `slate doctor`: what would keep nodes from booting.

use daemon::doctor::{self, Check, Outcome as Health, Place, Report};
use owo_colors::OwoColorize as _;

use crate::args::{DirArgs, OutputArgs};
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// Runs it.
pub fn run(dirs: &DirArgs, output: OutputArgs) -> Outcome {
    let report = doctor::examine(&Place {
        run_dir: dirs.run_dir.clone(),
        state_dir: dirs.state_dir.clone(),
    });
    if output.json {
        render::json(&report)?;
    } else {
        anstream::print!("{}", text(&report));
    }
    verdict(&report)
}

fn text(report: &Report) -> String {
    let row = |check: &Check| {
        let outcome = match check.outcome {
            Health::Ok => check.outcome.green().to_string(),
            Health::Skipped => check.outcome.to_string(),
            Health::Warning => check.outcome.yellow().bold().to_string(),
            Health::Error => check.outcome.red().bold().to_string(),
        };
        vec![outcome, check.title(), check.found.clone()]
    };
    let rows = report.checks.iter().map(row);
    let mut out = format!("{}\n", render::table(&["", "CHECK", "FOUND"], rows));
    for check in report.checks.iter().filter(|check| !check.hint.is_empty()) {
        out.push_str(&format!("\n{}: {}\n", check.title().bold(), check.found));
        out.push_str(&format!("  what to do: {}\n", check.hint));
    }
    out
}

fn verdict(report: &Report) -> Outcome {
    let count = |outcome| {
        let checks = report.checks.iter();
        checks.filter(|check| check.outcome == outcome).count()
    };
    let (errors, warnings) = (count(Health::Error), count(Health::Warning));
    let of = report.checks.len();
    let failure = match report.worst() {
        Health::Ok | Health::Skipped => return Ok(()),
        Health::Warning => {
            Failure::new(format!("{warnings} of {of} checks warn")).code(Code::Warned)
        }
        Health::Error => {
            let code = if report.daemon {
                Code::Failed
            } else {
                Code::NoDaemon
            };
            Failure::new(format!("{errors} of {of} checks found something wrong")).code(code)
        }
    };
    Err(failure.hint("what to do stands above, below each finding"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(daemon: bool, outcomes: &[Health]) -> Report {
        let check = |outcome: &Health| Check {
            check: "disk".into(),
            interface: None,
            outcome: *outcome,
            found: "little room".into(),
            hint: match outcome {
                Health::Ok | Health::Skipped => String::new(),
                _ => "make room".into(),
            },
        };
        Report {
            daemon,
            checks: outcomes.iter().map(check).collect(),
        }
    }

    #[test]
    fn the_exit_code_says_how_bad_it_is() {
        let code = |daemon, outcomes: &[Health]| {
            verdict(&report(daemon, outcomes))
                .err()
                .map(|failure| failure.code)
        };
        assert_eq!(code(true, &[Health::Ok, Health::Skipped]), None);
        assert_eq!(
            code(true, &[Health::Warning, Health::Ok]),
            Some(Code::Warned)
        );
        assert_eq!(
            code(true, &[Health::Error, Health::Warning]),
            Some(Code::Failed)
        );
        assert_eq!(code(false, &[Health::Error]), Some(Code::NoDaemon));
    }

    #[test]
    fn each_finding_says_what_to_do() {
        let text = text(&report(true, &[Health::Ok, Health::Error]));
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(
            text,
            "       CHECK  FOUND\nok     disk   little room\nerror  disk   little room\n\n\
             disk: little room\n  what to do: make room\n"
        );
    }
}
