//! What is built into the command.

use image::initramfs::Inits;

/// The static /init programs for nodes, as `build.rs` found them.
pub fn inits() -> Inits {
    let aarch64: &[u8] = include_bytes!(env!("SLATE_INIT_EMBEDDED_AARCH64"));
    Inits {
        x86_64: include_bytes!(env!("SLATE_INIT_EMBEDDED"))[..].into(),
        aarch64: (!aarch64.is_empty()).then(|| aarch64.into()),
    }
}
