//! What can go wrong in `/init`, and what follows from it.

use std::fmt;

use wire::stage::Stage;

/// A failed step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The stage that was not reached.
    pub stage: Stage,
    /// What went wrong, expected and got.
    pub cause: String,
    /// What to do about it.
    pub hint: &'static str,
    /// Whether trying again can help.
    pub remedy: Remedy,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The network or a server is away: try again, for ever.
    Retry,
    /// The configuration is wrong: report, wait, reboot into what may be a better one.
    Reboot,
}

impl Failure {
    /// A failure that time may heal.
    pub fn passing(stage: Stage, cause: impl fmt::Display, hint: &'static str) -> Failure {
        Failure {
            stage,
            cause: cause.to_string(),
            hint,
            remedy: Remedy::Retry,
        }
    }

    /// A failure that somebody has to heal.
    pub fn lasting(stage: Stage, cause: impl fmt::Display, hint: &'static str) -> Failure {
        Failure {
            remedy: Remedy::Reboot,
            ..Failure::passing(stage, cause, hint)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.hint)
    }
}
