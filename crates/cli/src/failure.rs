//! How a command fails: what happened, why, and what to do next, with one of few exit codes.

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;

use owo_colors::OwoColorize as _;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// What the command was doing or found.
    pub what: String,
    /// Each cause of the one before, outermost first.
    pub causes: Vec<String>,
    /// What to do next; several lines where there are several steps.
    pub hint: Option<String>,
    /// The exit code.
    pub code: Code,
}

/// Exit codes; `slate --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Something went wrong while it was being done.
    Failed = 1,
    /// The command line asks for something that cannot be.
    Usage = 2,
    /// This machine is not ready; nothing was started.
    NotReady = 3,
    /// No daemon answers.
    NoDaemon = 4,
    /// Nothing is broken, but something should be looked at.
    Warned = 5,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// What to do where a command may not do its work.
pub const AS_ROOT: &str = "run it as root (sudo)";

/// The result of every command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure without a cause beneath it.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            causes: Vec::new(),
            hint: None,
            code: Code::Failed,
        }
    }

    /// `what` failed because of `error` and all that lies beneath it.
    pub fn because(what: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let mut failure = Self::new(what);
        failure.push_chain(error);
        failure
    }

    /// The error's own words, with the causes beneath it.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut failure = Self::new(error.to_string());
        if let Some(source) = error.source() {
            failure.push_chain(source);
        }
        failure
    }

    /// Says what to do next; an empty hint says nothing.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into()).filter(|hint| !hint.is_empty());
        self
    }

    /// Ends with another code than 1.
    pub fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// Refuses what only root may do, saying what that is.
    pub fn unless_root(what: &str) -> Outcome {
        if rustix::process::geteuid().is_root() {
            return Ok(());
        }
        Err(Self::new(what).hint(AS_ROOT).code(Code::NotReady))
    }

    /// The lines for standard error.
    pub fn render(&self) -> String {
        let mut text = format!("{} {}\n", "error:".red().bold(), self.what);
        for cause in &self.causes {
            let _ = writeln!(text, "  caused by: {cause}");
        }
        for (index, line) in self.hint.iter().flat_map(|hint| hint.lines()).enumerate() {
            let label = if index == 0 { "hint:" } else { "     " };
            let _ = writeln!(text, "{} {line}", label.cyan().bold());
        }
        text
    }

    fn push_chain(&mut self, error: &(dyn Error + 'static)) {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // Errors that quote their source in their own words would say everything twice.
            if !self.last_words().ends_with(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
    }

    fn last_words(&self) -> &str {
        self.causes.last().unwrap_or(&self.what)
    }
}

impl From<daemon::control::ClientError> for Failure {
    fn from(error: daemon::control::ClientError) -> Self {
        let code = match error {
            daemon::control::ClientError::NotRunning { .. } => Code::NoDaemon,
            daemon::control::ClientError::NotAllowed { .. } => Code::NotReady,
            _ => Code::Failed,
        };
        Self::of(&error).hint(error.hint()).code(code)
    }
}

impl From<daemon::Error> for Failure {
    fn from(error: daemon::Error) -> Self {
        let code = match error {
            daemon::Error::Privilege { .. }
            | daemon::Error::InterfaceMissing { .. }
            | daemon::Error::InterfaceAddress { .. }
            | daemon::Error::PortTaken { .. }
            | daemon::Error::AlreadyRunning { .. }
            | daemon::Error::NoSuchImage { .. } => Code::NotReady,
            _ => Code::Failed,
        };
        Self::of(&error).hint(error.hint()).code(code)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn plain(failure: &Failure) -> String {
        anstream::adapter::strip_str(&failure.render()).to_string()
    }

    #[test]
    fn says_what_why_and_what_next() {
        let cause = io::Error::new(io::ErrorKind::StorageFull, "no space left on device");
        let failure = Failure::because("storing the image", &cause)
            .hint("free some space in /var/lib/slate,\nor choose another --state-dir");
        assert_eq!(
            plain(&failure),
            "error: storing the image\n  \
             caused by: no space left on device\n\
             hint: free some space in /var/lib/slate,\n      \
             or choose another --state-dir\n"
        );
    }

    #[test]
    fn a_source_quoted_by_its_error_is_said_once() {
        let error = daemon::control::ClientError::NotRunning {
            path: "/run/slate/control".into(),
            source: io::Error::from(io::ErrorKind::NotFound),
        };
        assert_eq!(
            plain(&Failure::from(error)),
            "error: no daemon answers on /run/slate/control: entity not found\n\
             hint: Start one: slate up --interface IF\n"
        );
    }

    #[test]
    fn a_missing_daemon_has_its_own_code() {
        let error = daemon::control::ClientError::Malformed("x".into());
        assert_eq!(Failure::from(error).code, Code::Failed);
    }
}
