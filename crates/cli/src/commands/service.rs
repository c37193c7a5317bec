//! `slate service`.

use crate::args::{DirArgs, ServiceCommand};
use crate::failure::{Failure, Outcome};

/// Runs it.
pub fn run(_dirs: &DirArgs, _command: ServiceCommand) -> Outcome {
    Err(Failure::new("not built yet"))
}
