//! The `slate` command.
fn main() {}
