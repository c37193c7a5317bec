//! Layers over bases that change: what comes of both, and what is refused.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

use super::Layer;
use crate::error::Error;
use crate::store::tests::collect;
use crate::store::{Publish, Store};
use crate::tree::StoredTree;

const INDEX: &str = "usr/lib/modules/1.0/modules.dep";

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn base(root: &Path) {
    write(root, "boot/vmlinuz-1.0", "kernel");
    std::os::unix::fs::symlink("usr/lib", root.join("lib")).unwrap();
    write(root, INDEX, "kernel/overlay.ko:\n");
    write(root, "usr/lib/modules/1.0/kernel/overlay.ko", "module");
    write(root, "etc/passwd", "root:x:0:0\n");
    write(root, "etc/old", "old");
    write(root, "usr/bin/tool", &"tool 1 ".repeat(2000));
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/tool-link")).unwrap();
}

struct Rig {
    store: Store,
    _directory: TempDir,
}

impl Rig {
    fn new() -> Rig {
        let directory = TempDir::new().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        Rig {
            store,
            _directory: directory,
        }
    }

    fn version(&self, changes: &[&dyn Fn(&Path)]) -> StoredTree {
        let source = TempDir::new().unwrap();
        base(source.path());
        changes.iter().for_each(|change| change(source.path()));
        let staged = self.store.stage_dir(source.path(), &mut |_| ()).unwrap();
        let digest = staged.digest();
        self.store
            .publish(staged, Publish::Untagged, |_| Ok(()))
            .unwrap();
        self.store.open_tree(digest).unwrap()
    }

    /// What a change adds to the plain base.
    fn layer(&self, name: &str, change: &dyn Fn(&Path)) -> Layer {
        Layer {
            name: name.into(),
            on: "x:latest".into(),
            base: self.version(&[]).digest(),
            version: self.version(&[change]).digest(),
            kernel: Some("1.0".into()),
        }
    }
}

fn read(tree: &StoredTree, path: &str) -> String {
    String::from_utf8(tree.read_file(path).unwrap()).unwrap()
}

#[test]
fn a_layer_is_laid_over_a_base_that_went_on() {
    let rig = Rig::new();
    let layer = rig.layer("gpu", &|root| {
        write(root, "opt/gpu/lib", &"driver ".repeat(2000));
        fs::hard_link(root.join("opt/gpu/lib"), root.join("opt/gpu/lib2")).unwrap();
        write(root, "etc/passwd", "root:x:0:0\ngpu:x:100:100\n");
        fs::set_permissions(root.join("usr/bin/tool"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_file(root.join("etc/old")).unwrap();
        write(root, "var/cache/x", "of the layer");
    });
    let later = rig.version(&[&|root| {
        write(root, "etc/passwd", "root:x:0:0\nchrony:x:101:101\n");
        write(root, "etc/new", "new");
        write(root, "var/cache/x", "of the base");
    }]);
    let staged = rig
        .store
        .compose(&later, std::slice::from_ref(&layer))
        .unwrap();
    let tree = staged.tree();
    assert_eq!(read(tree, "opt/gpu/lib"), "driver ".repeat(2000));
    let nid = |path: &str| tree.walk_path(path).unwrap();
    assert_eq!(nid("opt/gpu/lib"), nid("opt/gpu/lib2"));
    assert_eq!(nid("usr/bin/tool"), nid("usr/bin/tool-link"));
    assert_eq!(tree.attr(nid("usr/bin/tool-link")).unwrap().mode, 0o700);
    assert_eq!(
        read(tree, "etc/passwd"),
        "root:x:0:0\nchrony:x:101:101\ngpu:x:100:100\n"
    );
    assert_eq!(read(tree, "etc/new"), "new");
    assert_eq!(read(tree, "var/cache/x"), "of the layer");
    assert!(tree.walk_path("etc/old").is_err());

    // Over the version that it was made on, it is what it was made as.
    let same = rig.store.open_tree(layer.base).unwrap();
    let again = rig
        .store
        .compose(&same, std::slice::from_ref(&layer))
        .unwrap();
    let made = rig.store.open_tree(layer.version).unwrap();
    let differing = crate::diff::diff(&made, again.tree()).unwrap();
    assert!(
        differing.iter().all(crate::diff::Change::is_time_only),
        "{differing:?}"
    );
}

#[test]
fn what_both_changed_is_refused_by_name() {
    let rig = Rig::new();
    let layer = rig.layer("gpu", &|root| {
        write(root, "usr/bin/tool", "tool of the layer");
    });
    let later = rig.version(&[&|root| write(root, "usr/bin/tool", "tool of the base")]);
    let refused = rig.store.compose(&later, &[layer]).map(|_| ()).unwrap_err();
    let Error::LayerConflict { layer, paths } = &refused else {
        panic!("{refused}");
    };
    assert_eq!(layer, "gpu");
    assert!(paths.contains(&"/usr/bin/tool".to_owned()), "{paths:?}");

    let layer = rig.layer("users", &|root| {
        write(root, "etc/passwd", "root:x:0:0\na:x:100:1\n");
    });
    let later = rig.version(&[&|root| write(root, "etc/passwd", "root:x:0:0\nb:x:100:1\n")]);
    let refused = rig.store.compose(&later, &[layer]).map(|_| ()).unwrap_err();
    assert!(
        refused.to_string().contains("/etc/passwd: b and a"),
        "{refused}"
    );

    let layer = rig.layer("gone", &|root| {
        fs::remove_file(root.join("etc/old")).unwrap();
    });
    let later = rig.version(&[&|root| write(root, "etc/old", "newer")]);
    let refused = rig.store.compose(&later, &[layer]).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("/etc/old"), "{refused}");
}

#[test]
fn modules_of_another_kernel_are_refused_and_other_files_are_not() {
    let rig = Rig::new();
    let modules = rig.layer("gpu", &|root| {
        write(root, "usr/lib/modules/1.0/updates/gpu.ko", "module");
    });
    let files = rig.layer("files", &|root| write(root, "etc/motd", "hello"));
    let later = rig.version(&[&|root| {
        write(root, "boot/vmlinuz-2.0", "kernel");
        write(
            root,
            "usr/lib/modules/2.0/modules.dep",
            "kernel/overlay.ko:\n",
        );
    }]);
    let refused = rig
        .store
        .compose(&later, &[modules])
        .map(|_| ())
        .unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("gpu") && text.contains("1.0") && text.contains("2.0"),
        "{text}"
    );
    let staged = rig.store.compose(&later, &[files]).unwrap();
    assert_eq!(read(staged.tree(), "etc/motd"), "hello");
}

#[test]
fn gc_keeps_what_layers_are_made_of() {
    let rig = Rig::new();
    let layer = rig.layer("gpu", &|root| write(root, "etc/motd", "hello"));
    rig.store.record_layer(&layer).unwrap();
    assert_eq!(rig.store.layers().unwrap(), std::slice::from_ref(&layer));
    assert!(rig.store.gc(&[], false).unwrap().versions.is_empty());
    let base = rig.store.open_tree(layer.base).unwrap();
    rig.store.compose(&base, &[layer]).unwrap();
    drop(base);
    rig.store.remove_layer("gpu").unwrap();
    let collected = collect(&rig.store, &[], false, 2).unwrap();
    assert_eq!(collected.versions.len(), 2);
    assert!(matches!(
        rig.store.layer("gpu"),
        Err(Error::NoSuchLayer { .. })
    ));
}
