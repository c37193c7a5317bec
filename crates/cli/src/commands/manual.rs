//! Manual pages and shell completions, from the definitions that parse the command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::{Failure, Outcome};

/// Prints the completion script.
pub fn completions(shell: Shell) -> Outcome {
    clap_complete::generate(shell, &mut Cli::command(), "slate", &mut io::stdout());
    Ok(())
}

/// Writes `slate.1`, `slate-up.1`, … into `dir`.
pub fn write(dir: &Path) -> Outcome {
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|error| {
            Failure::because(format!("writing manual pages to {}", dir.display()), &error)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_manual_has_a_page_per_command() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        for page in ["slate.1", "slate-up.1", "slate-image-import.1"] {
            assert!(dir.path().join(page).is_file(), "{page}");
        }
        assert!(!dir.path().join("slate-man.1").exists());
    }
}
