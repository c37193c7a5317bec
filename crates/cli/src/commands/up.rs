//! `slate up`.

use crate::args::{DirArgs, UpArgs};
use crate::failure::{Failure, Outcome};

/// Runs it.
pub fn run(_dirs: &DirArgs, _args: &UpArgs) -> Outcome {
    Err(Failure::new("not built yet"))
}
