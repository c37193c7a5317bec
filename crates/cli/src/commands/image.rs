//! `slate image`.

use crate::args::{DirArgs, ImageCommand};
use crate::failure::{Failure, Outcome};

/// Runs it.
pub fn run(_dirs: &DirArgs, _command: ImageCommand) -> Outcome {
    Err(Failure::new("not built yet"))
}
