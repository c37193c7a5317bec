//! Any bytes as what a node has written: they are refused, or laid over a version that reads back whole.
#![no_main]

use std::sync::LazyLock;

use image::Store;
use image::StoredTree;
use image::written::Scope;
use libfuzzer_sys::fuzz_target;

static BASE: LazyLock<(Store, StoredTree)> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("fuzz-written-{}", std::process::id()));
    let source = dir.join("source");
    for path in ["etc/a", "usr/b/c"] {
        let path = source.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, "content").expect("a file");
    }
    let store = Store::open(dir.join("store")).expect("a store");
    let staged = store.stage_dir(&source, &mut |_| ()).expect("a version");
    let digest = staged.digest();
    let untagged = image::Publish::Untagged;
    store.publish(staged, untagged, |_| Ok(())).expect("a version");
    let tree = store.open_tree(digest).expect("a version");
    (store, tree)
});

fuzz_target!(|archive: &[u8]| {
    let (store, base) = &*BASE;
    for scope in [Scope::default(), Scope::new(&["usr/b/c"]).expect("a scope")] {
        if let Ok(staged) = store.stage_written(base, archive, &scope, &mut |_| ()) {
            staged.tree().totals().expect("a tree that was just written");
        }
    }
});
