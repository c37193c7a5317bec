//! `cargo xtask tidy`: the rules of the architecture that a machine can check.

mod dependencies;
mod sources;

use std::fmt;
use std::process::ExitCode;

/// A rule, and where it is broken.
pub struct Finding {
    rule: &'static str,
    violations: Vec<String>,
}

impl Finding {
    /// Whether the rule is broken anywhere.
    pub fn is_violation(&self) -> bool {
        !self.violations.is_empty()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_violation() { "BROKEN" } else { "ok" };
        write!(f, "tidy: {} ... {verdict}", self.rule)?;
        self.violations
            .iter()
            .try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

/// Checks every rule and prints what it finds.
pub fn run() -> anyhow::Result<ExitCode> {
    let findings = check()?;
    findings.iter().for_each(|finding| println!("{finding}"));
    let broken = findings.iter().any(Finding::is_violation);
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Checks every rule.
pub fn check() -> anyhow::Result<Vec<Finding>> {
    let rules: Vec<(&'static str, Vec<String>)> = dependencies::check()?
        .into_iter()
        .chain(sources::check()?)
        .collect();
    Ok(rules
        .into_iter()
        .map(|(rule, violations)| Finding { rule, violations })
        .collect())
}
