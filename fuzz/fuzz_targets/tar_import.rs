//! Any bytes as an archive: it is refused, or it becomes a version that reads back whole.
#![no_main]

use std::sync::LazyLock;

use image::Store;
use libfuzzer_sys::fuzz_target;

static STORE: LazyLock<Store> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("fuzz-tar-import-{}", std::process::id()));
    Store::open(dir).expect("a store")
});

fuzz_target!(|archive: &[u8]| {
    if let Ok(staged) = STORE.stage_tar(archive, &mut |_| ()) {
        let tree = staged.tree();
        tree.totals().expect("a tree that was just written");
    }
});
