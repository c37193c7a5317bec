//! What is built into the command.

/// The static /init for nodes, as `build.rs` built it.
pub fn init() -> &'static [u8] {
    include_bytes!(env!("SLATE_INIT_EMBEDDED"))
}
