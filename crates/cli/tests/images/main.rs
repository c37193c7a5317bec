//! Images by the real command: built of real packages, and on file systems of their own, mounted from
//! files, that lose power and fill up.
//!
//! These need root and programs of the distribution: `cargo xtask test` installs and runs them. A
//! test that cannot run here prints why, as `skipped: reason`, and passes.

mod build;
mod disk;
mod labels;
mod layers;
mod power;
mod rig;
mod terminal;
