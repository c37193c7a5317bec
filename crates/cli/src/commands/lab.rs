//! `slate try`.

use crate::args::TryArgs;
use crate::failure::{Failure, Outcome};

/// Runs it.
pub fn run(_args: &TryArgs) -> Outcome {
    Err(Failure::new("not built yet"))
}
