//! Layers by the real command: made by scripts, laid over new versions, with modules of several.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{Slate, busybox_root, impossible, write};

/// Modules of a real kernel, for which depmod is run.
const MODULES: &str = "/usr/lib/uml/modules";
const PROGRAMS: [&str; 3] = ["/bin/busybox", "/sbin/depmod", MODULES];
const RELEASE: &str = "lib/modules/1.0";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Some of them, which need no other.
fn modules() -> Vec<PathBuf> {
    let mut find = Command::new("find");
    let output = find
        .args([MODULES, "-path", "*/kernel/lib/*", "-name", "*.ko"])
        .output();
    let output = output.expect("find starts");
    let mut paths: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(PathBuf::from)
        .collect();
    paths.sort();
    assert!(paths.len() >= 3, "{MODULES} has too few: {paths:?}");
    paths
}

#[test]
#[ignore = "changes images as root: cargo xtask test"]
fn layers_are_laid_over_what_their_base_became() {
    if impossible(&PROGRAMS) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let slate = Slate::at(&directory.path().join("state"));
    let root = directory.path().join("root");
    busybox_root(&root);
    let modules = modules();
    let install = |module: &Path, into: &Path| {
        let place = into.join(module.file_name().expect("a name"));
        fs::create_dir_all(into).expect("a directory");
        fs::copy(module, place).expect("a module");
    };
    install(&modules[0], &root.join(RELEASE).join("kernel"));
    let depmod = ["-b", text(&root), "1.0"];
    let output = Command::new("/sbin/depmod").args(depmod).output();
    assert!(output.expect("depmod starts").status.success());
    slate.run(&["image", "import", "base", text(&root)]);

    // Each adds a module, as if it had run depmod in the image.
    for (name, module) in [("gpu", &modules[1]), ("mpi", &modules[2])] {
        let stem = module
            .file_name()
            .and_then(|it| it.to_str())
            .expect("a name");
        let staged = directory.path().join(name);
        let script = format!(
            "#!/bin/sh -e\nd=/lib/modules/1.0/updates\nmkdir -p $d\nbase64 -d > $d/{stem} << END\n{}\nEND\n\
             echo updates/{stem}: >> /lib/modules/1.0/modules.dep\necho {name} > /etc/{name}\n",
            base64(module)
        );
        write(&staged, script);
        slate.run(&[
            "image",
            "layer",
            name,
            "--on",
            "base",
            "--script",
            text(&staged),
        ]);
        slate.run(&["image", "show", name]);
    }
    let layers = slate.json(&["image", "layers", "--json"]);
    let names: Vec<_> = layers
        .as_array()
        .expect("layers")
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(names, ["gpu", "mpi"]);
    assert_eq!(layers[0]["kernel"], "1.0");
    let both = [
        "image", "compose", "node", "--on", "base", "--layer", "gpu", "--layer", "mpi",
    ];
    slate.run(&both);
    check(&slate, directory.path(), "node", &modules, "");

    // The base goes on: what is composed follows, as its next version; nodes follow no sooner than
    // they are told to. A next version of the base alone changes nothing.
    let first = slate.digest("node");
    write(&root.join("etc/motd"), "second\n");
    slate.run(&["image", "import", "base", text(&root)]);
    let none = slate.output(&["image", "show", "node:next"]);
    assert!(!none.status.success(), "{none:?}");
    let moved = slate.output(&["image", "tag", "base:next", "base"]);
    assert!(moved.status.success(), "{moved:?}");
    let said = String::from_utf8_lossy(&moved.stderr).into_owned();
    for image in ["gpu", "mpi", "node"] {
        let expected = format!("{image}:next: base:latest with its layers");
        assert!(said.contains(&expected), "{said}");
    }
    check(&slate, directory.path(), "node:next", &modules, "second\n");
    assert_eq!(slate.digest("node"), first);
    let second = slate.digest("node:next");
    let again = slate.output(&["image", "tag", "base:latest", "base:latest"]);
    assert!(again.stderr.is_empty(), "{again:?}");
    slate.run(&["image", "rollback", "base"]);
    assert_eq!(slate.digest("node:next"), first);
    slate.run(&["image", "rollback", "base"]);
    assert_eq!(slate.digest("node:next"), second);

    // Another kernel: no layer with modules is laid over it.
    for file in ["boot/vmlinuz-2.0", "lib/modules/2.0/modules.dep"] {
        write(&root.join(file), "kernel/nfsv4.ko:\nkernel/overlay.ko:\n");
    }
    let before = slate.digest("node:next");
    let moved = slate.output(&["image", "import", "base:latest", text(&root)]);
    assert!(moved.status.success(), "{moved:?}");
    let said = String::from_utf8_lossy(&moved.stderr).into_owned();
    for part in ["node stays as it is", "the layer gpu", "1.0", "2.0"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    let parts = ["the layer gpu", "1.0", "2.0", "make the layer again"];
    slate.fails(&["image", "compose", "node"], 1, &parts);
    assert_eq!(slate.digest("node:next"), before);

    // What was done by hand to what is composed is not thrown away unasked.
    slate.run(&[
        "image",
        "run",
        "gpu:next",
        "--",
        "sh",
        "-c",
        "echo x > /etc/by-hand",
    ]);
    slate.fails(&["image", "compose", "gpu"], 1, &["by hand", "--replace"]);
    slate.fails(&["image", "compose", "base"], 2, &["--layer"]);
    slate.fails(
        &["image", "layer", "base", "--on", "gpu", "--run", "true"],
        2,
        &["another name"],
    );
    slate.fails(
        &["image", "layer", "gpu", "--remove"],
        1,
        &["node is composed"],
    );
    slate.run(&["image", "gc"]);
    slate.run(&["image", "verify"]);
}

fn base64(path: &Path) -> String {
    let output = Command::new("base64")
        .arg(path)
        .output()
        .expect("base64 starts");
    String::from_utf8(output.stdout).expect("base64 is text")
}

/// All modules are there, and modprobe finds them.
fn check(slate: &Slate<'_>, directory: &Path, image: &str, modules: &[PathBuf], motd: &str) {
    let out = directory.join(format!("out-{}", image.replace(':', "-")));
    slate.run(&["image", "export", image, text(&out)]);
    let is_there = |name: &str| out.join("etc").join(name).is_file();
    assert!(is_there("gpu") && is_there("mpi"));
    assert_eq!(
        fs::read_to_string(out.join("etc/motd")).unwrap_or_default(),
        motd
    );
    for module in &modules[..3] {
        let name = module
            .file_stem()
            .and_then(|it| it.to_str())
            .expect("a name");
        let words = ["-d", text(&out), "-S", "1.0", "--show-depends", name];
        let output = Command::new("/sbin/modprobe").args(words).output();
        let output = output.expect("modprobe starts");
        assert!(output.status.success(), "{name}: {output:?}");
    }
}
