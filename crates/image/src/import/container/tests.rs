//! Container images become the tree that their layers make, or are refused with the reason.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::store::Store;
use crate::store::tests::{everything, new_store};
use crate::tree::{Kind, StoredTree};

/// A layer of such entries: `dir/`, `file=content`, `link->target`, `name=>hard link's target`.
fn layer(entries: &[&str]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        let (path, content) = if let Some((path, target)) = entry.split_once("->") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name_literal(target).expect("a target");
            (path, "")
        } else if let Some((path, target)) = entry.split_once("=>") {
            header.set_entry_type(tar::EntryType::Link);
            header.set_link_name_literal(target).expect("a target");
            (path, "")
        } else if let Some((path, content)) = entry.split_once('=') {
            header.set_size(content.len() as u64);
            (path, content)
        } else {
            header.set_entry_type(tar::EntryType::Directory);
            (*entry, "")
        };
        // Not by the builder's own method: it refuses what is to be refused by the import.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive
            .append(&header, content.as_bytes())
            .expect("an entry");
    }
    archive.into_inner().expect("an archive")
}

fn digest(bytes: &[u8]) -> BlobDigest {
    let mut hashed = Hashed::sha256(std::io::sink());
    hashed.write_all(bytes).expect("hashing");
    hashed.finish().0
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("compressing");
    gzip.finish().expect("compressing")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("compressing")
}

/// The files of a container image by their paths.
#[derive(Clone, Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn put(&mut self, path: &str, content: &[u8]) {
        self.0.insert(path.to_owned(), content.to_vec());
    }

    fn put_json(&mut self, path: &str, content: &Value) {
        self.put(path, content.to_string().as_bytes());
    }

    /// Adds a blob and returns what a descriptor says of it.
    fn blob(&mut self, media_type: &str, content: &[u8]) -> Value {
        let digest = digest(content);
        self.put(&digest.path(), content);
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": content.len() })
    }

    fn json_blob(&mut self, media_type: &str, content: &Value) -> Value {
        self.blob(media_type, content.to_string().as_bytes())
    }

    /// Adds an image of such layers, packed as `pack` does it; its descriptor.
    fn image(&mut self, platform: &str, layers: &[Vec<u8>], pack: &Pack<'_>) -> Value {
        let described: Vec<Value> = layers
            .iter()
            .enumerate()
            .map(|(index, layer)| {
                let (ending, packed) = pack(index, layer);
                self.blob(&format!("{}{ending}", doc::LAYER), &packed)
            })
            .collect();
        let config = self.json_blob(doc::CONFIG, &config(platform, layers));
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": described });
        self.json_blob(doc::MANIFEST, &manifest)
    }

    fn index(&mut self, manifests: &[Value]) {
        self.put_json("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }));
        self.put_json(
            "index.json",
            &json!({ "schemaVersion": 2, "manifests": manifests }),
        );
    }

    fn archive(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            archive
                .append_data(&mut header, path, &content[..])
                .expect("a file");
        }
        archive.into_inner().expect("an archive")
    }

    fn write(&self, top: &Path) {
        for (path, content) in &self.0 {
            let path = top.join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, content).expect("a file");
        }
    }
}

/// The ending of a layer's type, and its bytes in the image.
type Pack<'a> = dyn Fn(usize, &[u8]) -> (&'static str, Vec<u8>) + 'a;

fn plainly(_: usize, layer: &[u8]) -> (&'static str, Vec<u8>) {
    ("", layer.to_vec())
}

fn config(platform: &str, layers: &[Vec<u8>]) -> Value {
    let (os, architecture) = platform.split_once('/').expect("os/architecture");
    let ids: Vec<String> = layers.iter().map(|it| digest(it).to_string()).collect();
    json!({
        "architecture": architecture,
        "os": os,
        "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": ids },
    })
}

fn layout(layers: &[Vec<u8>]) -> Files {
    let mut files = Files::default();
    let image = files.image("linux/amd64", layers, &plainly);
    files.index(&[image]);
    files
}

/// What `docker save` writes: the second of two layers with the same content is a link.
fn saved(layers: &[Vec<u8>]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8], target: Option<String>| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        if let Some(target) = target {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name(target).expect("a target");
        }
        archive
            .append_data(&mut header, path, content)
            .expect("a file");
    };
    let config = config("linux/amd64", layers).to_string();
    let name = format!("{:?}.json", digest(config.as_bytes())).replace("sha256:", "");
    let mut paths = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let folder = |index: usize| format!("{index:064}");
        let first = layers.iter().position(|it| it == layer).expect("itself");
        let path = format!("{}/layer.tar", folder(index));
        if first == index {
            add(&path, layer, None);
        } else {
            add(&path, b"", Some(format!("../{}/layer.tar", folder(first))));
        }
        paths.push(path);
    }
    add(&name, config.as_bytes(), None);
    let list = json!([{ "Config": name, "RepoTags": ["a:1"], "Layers": paths }]);
    add("manifest.json", list.to_string().as_bytes(), None);
    archive.into_inner().expect("an archive")
}

/// Every path of a tree, files with their content.
fn paths(tree: &StoredTree) -> Vec<String> {
    let mut found = Vec::new();
    let mut ahead = vec![(String::new(), tree.root())];
    while let Some((path, nid)) = ahead.pop() {
        for entry in tree.readdir(nid, 0).expect("a directory") {
            let entry = entry.expect("an entry");
            let path = format!("{path}{}", String::from_utf8_lossy(entry.name));
            match entry.kind {
                Kind::Directory => {
                    found.push(format!("{path}/"));
                    ahead.push((format!("{path}/"), entry.nid));
                }
                Kind::File => {
                    let content = tree.read_inode(entry.nid).expect("content");
                    found.push(format!("{path}={}", String::from_utf8_lossy(&content)));
                }
                _ => found.push(path),
            }
        }
    }
    found.sort();
    found
}

fn import(store: &Store, files: &Files) -> Result<crate::Staged> {
    store.stage_tar(&files.archive()[..], &mut |_| ())
}

/// The error of an import that has to fail, with what it says.
#[track_caller]
fn refused(store: &Store, files: &Files, parts: &[&str]) -> Error {
    let error = import(store, files).err().expect("a refusal");
    says(&error, parts);
    error
}

#[track_caller]
fn says(error: &Error, parts: &[&str]) {
    let mut text = error.to_string();
    if let Error::Io { source, .. } = error {
        text += &source.to_string();
    }
    for part in parts {
        assert!(text.contains(part), "{part:?} not in: {text}");
    }
}

#[test]
fn one_tree_has_one_digest_through_every_container_image() -> Result<()> {
    let (dir, store) = new_store();
    let whole = everything();
    let expected = store.stage_tar(&whole[..], &mut |_| ())?.digest();
    // The same in two layers, the first of which has something that the second takes away.
    let below = layer(&[
        "sizes/",
        "sizes/more=1",
        "gone/",
        "gone/x=1",
        "old/",
        "old/x=1",
    ]);
    let marks = layer(&["sizes/.wh.more", ".wh.gone", ".wh.none"]);
    let layers = [below.clone(), whole, marks];
    let as_it_comes = |index: usize, layer: &[u8]| match index {
        0 => ("+zstd", zstd(layer)),
        1 => ("+gzip", gzip(layer)),
        _ => ("", layer.to_vec()),
    };
    let mut files = Files::default();
    let image = files.image("linux/amd64", &layers, &as_it_comes);
    files.index(&[image]);
    let folder = dir.path().join("layout");
    files.write(&folder);
    assert!(is_layout(&folder) && !is_layout(dir.path()));
    let from_dir = store.stage_layout(&folder, &mut |_| ())?;
    assert_eq!(from_dir.digest(), expected);
    let archive = files.archive();
    for packed in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let staged = store.stage_tar(&packed[..], &mut |_| ())?;
        assert_eq!(staged.digest(), expected);
        let path = dir.path().join("archive");
        std::fs::write(&path, &packed).expect("a file");
        let file = std::fs::File::open(&path).expect("the file");
        assert_eq!(store.stage_file(file, &mut |_| ())?.digest(), expected);
    }
    // The first layer once more: a link in the archive, and hidden again by what follows.
    let [below, whole, marks] = layers;
    let archive = saved(&[below.clone(), below, whole, marks]);
    assert_eq!(
        store.stage_tar(&archive[..], &mut |_| ())?.digest(),
        expected
    );
    Ok(())
}

/// The examples are those of layer.md, "Whiteouts" and "Opaque Whiteout", and what differs in real
/// layers. Each layer is also read from its end to its start where no entry needs another.
#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() -> Result<()> {
    let (_dir, store) = new_store();
    let cases: &[(&[&[&str]], &[&str])] = &[
        (&[&["a/", "a/x=1", "a/y=2"], &["a/.wh.x"]], &["a/", "a/y=2"]),
        (&[&["a/", "a/b/", "a/b/c=1"], &[".wh.a"]], &[]),
        (&[&["a=1"], &[".wh.a"], &["a=3"]], &["a=3"]),
        (&[&["a=1", ".wh.a"]], &["a=1"]),
        (&[&["a=1"], &["a=2", ".wh.a"]], &["a=2"]),
        (
            &[
                &["a/", "a/old=1", "a/b/", "a/b/old=1"],
                &["a/", "a/b/new=2", ".wh.a"],
            ],
            &["a/", "a/b/", "a/b/new=2"],
        ),
        (
            &[
                &["a/", "a/b/", "a/b/c/", "a/b/c/bar=1"],
                &["a/", "a/.wh..wh..opq", "a/b/", "a/b/c/", "a/b/c/foo=2"],
            ],
            &["a/", "a/b/", "a/b/c/", "a/b/c/foo=2"],
        ),
        (&[&["a/", "a/x=1"], &["a/.wh..wh..opq"]], &["a/"]),
        (&[&["a/", "a/x=1"], &[".wh..wh..opq", "b=2"]], &["b=2"]),
        (
            &[&["a/"], &["a/.wh.x", "b/.wh.x", "b/.wh..wh..opq"]],
            &["a/"],
        ),
        // A directory that takes a link's place is opaque, and what the link led to is not.
        (
            &[
                &["usr/", "usr/lib/", "usr/lib/x=1", "lib->usr/lib"],
                &["lib/", "lib/.wh..wh..opq", "lib/.wh.x", "lib/y=2"],
            ],
            &["lib/", "lib/y=2", "usr/", "usr/lib/", "usr/lib/x=1"],
        ),
        (
            &[&["usr/", "lib->usr"], &["lib/x=2"]],
            &["lib", "usr/", "usr/x=2"],
        ),
        (&[&["a=1", "b=>a"], &[".wh.a"], &["c=>b"]], &["b=1", "c=1"]),
        (&[&["a/", "a/x=1"], &["a=2"]], &["a=2"]),
        (&[&["a=1"], &["a/", "a/x=2"]], &["a/", "a/x=2"]),
        (
            &[&[
                "a=1",
                ".wh..wh.plnk/",
                ".wh..wh.plnk/1.2=x",
                ".wh..wh.aufs=",
            ]],
            &["a=1"],
        ),
    ];
    for (layers, expected) in cases {
        let forwards: Vec<Vec<u8>> = layers.iter().map(|it| layer(it)).collect();
        let staged = import(&store, &layout(&forwards))?;
        assert_eq!(paths(staged.tree()), *expected, "{layers:?}");
        if layers
            .iter()
            .any(|it| it.iter().any(|entry| entry.contains("=>")))
        {
            continue;
        }
        // Marks first or last, all else in its order.
        let sorted = |marks_first: bool| -> Vec<Vec<u8>> {
            let sort = |entries: &&[&str]| {
                let mut entries = entries.to_vec();
                entries.sort_by_key(|entry| entry.contains(".wh.") != marks_first);
                layer(&entries)
            };
            layers.iter().map(sort).collect()
        };
        for layers in [sorted(true), sorted(false)] {
            let staged = import(&store, &layout(&layers))?;
            assert_eq!(paths(staged.tree()), *expected, "{layers:?}");
        }
    }
    Ok(())
}

#[test]
fn hostile_layers_are_refused_and_nothing_leaves_the_root() -> Result<()> {
    let (_dir, store) = new_store();
    for (entry, why) in [
        (".wh.=", "a whiteout that names no file"),
        (".wh..=", "a whiteout that names no file"),
        ("a/.wh...=", "a whiteout that names no file"),
        ("../.wh.a=", "`..`"),
        ("a/../../.wh.a=", "`..`"),
        ("a/../../.wh..wh..opq=", "`..`"),
        (".wh.a/b=", "inside a whiteout"),
        (".wh..wh..opq/b=", "inside a whiteout"),
        ("../a=", "`..`"),
        ("/a/../../b=", "`..`"),
        ("link=>../outside", "`..`"),
        ("link=>missing", "is not there"),
    ] {
        refused(&store, &layout(&[layer(&[entry])]), &[why]);
    }
    // Absolute paths and links are meant from the root of the image.
    let inside = ["/a/", "out->/../../a", "out/b=1", "etc->/a/.."];
    let staged = import(&store, &layout(&[layer(&inside), layer(&["etc/c=2"])]))?;
    assert_eq!(paths(staged.tree()), ["a/", "a/b=1", "c=2", "etc", "out"]);
    Ok(())
}

#[test]
fn what_is_too_large_is_refused_before_it_fills_memory_or_disk() {
    let (_dir, store) = new_store();
    let compressed = |layer: &[u8]| {
        let mut files = Files::default();
        let pack = |_, layer: &[u8]| ("+zstd", zstd(layer));
        let image = files.image("linux/amd64", &[layer.to_vec()], &pack);
        files.index(&[image]);
        files
    };
    // A small blob of many zeros, after what ends the archive.
    let mut bomb = layer(&["a=1"]);
    bomb.resize(80 << 20, 0);
    refused(
        &store,
        &compressed(&bomb),
        &["unpacked: ", "expected at most"],
    );
    let many: Vec<String> = (0..60_000)
        .map(|it| format!("file{it}={}", "x".repeat(400)))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(
        &store,
        &compressed(&layer(&many)),
        &["the most for one image"],
    );
    let long = "d/".repeat(35);
    let marks: Vec<String> = (0..120_000).map(|it| format!("{long}.wh.{it}=")).collect();
    let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
    refused(
        &store,
        &compressed(&layer(&marks)),
        &["the most for one image"],
    );
    let mut files = layout(&[layer(&["a=1"])]);
    let index = files.0["index.json"].clone();
    files.put("index.json", &[&index[..], &vec![b' '; 5 << 20]].concat());
    refused(&store, &files, &["index.json", "expected at most"]);
}

#[test]
fn every_blob_is_checked() {
    let (_dir, store) = new_store();
    let content = layer(&["a=1"]);
    for packed in [false, true] {
        let mut files = Files::default();
        let pack = |_, layer: &[u8]| {
            if packed {
                ("+gzip", gzip(layer))
            } else {
                ("", layer.to_vec())
            }
        };
        let image = files.image("linux/amd64", std::slice::from_ref(&content), &pack);
        files.index(&[image]);
        assert!(import(&store, &files).is_ok());
        let blobs: Vec<String> = files
            .0
            .keys()
            .filter(|it| it.starts_with("blobs/"))
            .cloned()
            .collect();
        assert_eq!(blobs.len(), 3, "a manifest, a configuration, a layer");
        for path in blobs {
            for at in [3, files.0[&path].len() / 2] {
                let mut changed = files.clone();
                changed.0.get_mut(&path).expect("the blob")[at] ^= 1;
                let got = digest(&changed.0[&path]).to_string();
                let expected = path.replace("blobs/sha256/", "sha256:");
                let error = refused(&store, &changed, &[&path, &expected, &got]);
                assert!(matches!(error, Error::WrongBlob { .. }));
            }
            let mut cut = files.clone();
            cut.0.get_mut(&path).expect("the blob").pop();
            let expected = format!("expected {} bytes", files.0[&path].len());
            refused(&store, &cut, &[&path, &expected]);
            let mut missing = files.clone();
            missing.0.remove(&path);
            refused(&store, &missing, &[&path, "lacks"]);
        }
    }
}

/// The layer is what the manifest says, but not what the configuration says.
#[test]
fn a_layer_is_checked_against_the_configuration_too() {
    let (_dir, store) = new_store();
    let (one, other) = (layer(&["a=1"]), layer(&["a=2"]));
    let mut files = Files::default();
    let swap = |_, _: &[u8]| ("+gzip", gzip(&other));
    let image = files.image("linux/amd64", std::slice::from_ref(&one), &swap);
    files.index(&[image]);
    let (expected, got) = (digest(&one).to_string(), digest(&other).to_string());
    refused(&store, &files, &["unpacked", &expected, &got]);
    let mut changed = saved(std::slice::from_ref(&one));
    let at = changed.windows(one.len()).position(|it| it == one);
    let content = at.expect("the layer") + 512;
    assert_eq!(changed[content], b'1');
    changed[content] = b'2';
    let error = store
        .stage_tar(&changed[..], &mut |_| ())
        .err()
        .expect("a refusal");
    says(&error, &["layer.tar", &expected, &got]);
}

#[test]
fn of_several_platforms_the_nodes_is_taken() -> Result<()> {
    let (_dir, store) = new_store();
    let mut files = Files::default();
    let mut image = |platform: &str, said: Value, name: &str| {
        let mut descriptor = files.image(platform, &[layer(&[&format!("name={name}")])], &plainly);
        descriptor["platform"] = said;
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        descriptor
    };
    let of = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
    let amd = image("linux/amd64", of("amd64"), "amd");
    let mut amd_v3 = image("linux/amd64", of("amd64"), "amd-v3");
    amd_v3["platform"]["variant"] = "v3".into();
    let arm = image("linux/arm64", of("arm64"), "arm");
    let silent = image("linux/amd64", Value::Null, "silent");
    let silent_arm = image("linux/arm64", Value::Null, "silent-arm");
    let other = image("linux/amd64", of("amd64"), "other");
    let windows = image(
        "windows/amd64",
        json!({ "os": "windows", "architecture": "amd64" }),
        "nt",
    );
    let nothing = image(
        "linux/amd64",
        json!({ "os": "unknown", "architecture": "unknown" }),
        "attested",
    );
    let unknown_type = json!({ "mediaType": "x/y", "digest": amd["digest"], "size": 3 });
    let inner = files.json_blob(doc::INDEX, &json!({ "manifests": [arm, amd] }));
    for (manifests, expected) in [
        (vec![&amd], "amd"),
        (vec![&arm], "arm"),
        (vec![&arm, &amd, &nothing], "amd"),
        (vec![&amd_v3, &amd], "amd"),
        (vec![&amd_v3, &arm], "amd-v3"),
        (vec![&silent_arm, &silent], "silent"),
        (vec![&windows, &amd], "amd"),
        (vec![&amd, &amd], "amd"),
        (vec![&inner], "amd"),
        (vec![&inner, &amd, &silent_arm], "amd"),
    ] {
        files.index(&manifests.into_iter().cloned().collect::<Vec<_>>());
        let staged = import(&store, &files)?;
        assert_eq!(staged.tree().read_file("name")?, expected.as_bytes());
    }
    for (manifests, listed) in [
        (
            vec![&arm, &silent_arm],
            ["linux/arm64 arm ", "linux/arm64 silent-arm "],
        ),
        (
            vec![&amd, &other],
            ["linux/amd64 amd ", "linux/amd64 other "],
        ),
        (
            vec![&windows],
            ["windows/amd64 nt ", "expected one image for linux/amd64"],
        ),
    ] {
        files.index(&manifests.into_iter().cloned().collect::<Vec<_>>());
        let error = refused(&store, &files, &listed);
        assert!(matches!(error, Error::NoSuchPlatform { .. }));
    }
    files.index(&[unknown_type]);
    refused(&store, &files, &["it lists \"x/y\""]);
    Ok(())
}

/// A registry of these files, which notes what it is asked for.
struct Shelf {
    files: Files,
    asked: RefCell<Vec<String>>,
    /// What is done to the bytes of a part before they are sent.
    spoil: fn(&mut Vec<u8>),
}

impl Origin for Shelf {
    fn fetch(&self, part: Part<'_>, out: &mut dyn Write) -> std::io::Result<()> {
        let path = format!("blobs/{}", part.digest.replace(':', "/"));
        let mut bytes = self.files.0[&path].clone();
        assert_eq!(part.size, bytes.len() as u64);
        assert_eq!(
            part.is_manifest,
            bytes.starts_with(b"{\"config\":{\"digest")
        );
        self.asked.borrow_mut().push(path);
        (self.spoil)(&mut bytes);
        out.write_all(&bytes)
    }
}

#[test]
fn only_what_is_needed_is_fetched_and_no_more_than_was_promised() -> Result<()> {
    let (_dir, store) = new_store();
    let mut files = Files::default();
    let content = layer(&["a=1"]);
    let of = |mut descriptor: Value, architecture: &str| {
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    };
    let arm = files.image("linux/arm64", &[layer(&["arm="])], &plainly);
    let amd = files.image("linux/amd64", std::slice::from_ref(&content), &plainly);
    let index = json!({ "manifests": [of(arm, "arm64"), of(amd.clone(), "amd64")] }).to_string();
    let manifest_digest: BlobDigest = amd["digest"]
        .as_str()
        .expect("text")
        .parse()
        .expect("a digest");
    let manifest = files.0[&manifest_digest.path()].clone();
    let mut shelf = Shelf {
        files,
        asked: RefCell::default(),
        spoil: |_| (),
    };
    let fetch = |root: &[u8], shelf: &Shelf| store.stage_fetched(root, shelf, &mut |_| ());
    for (root, parts) in [(index.as_bytes(), 3), (&manifest[..], 2)] {
        shelf.asked.borrow_mut().clear();
        let staged = fetch(root, &shelf)?;
        assert_eq!(paths(staged.tree()), ["a=1"]);
        let asked = shelf.asked.borrow();
        assert_eq!(asked.len(), parts, "{asked:?}");
        assert_eq!(asked.last(), Some(&digest(&content).path()));
    }
    let endless: fn(&mut Vec<u8>) = |bytes| bytes.resize(bytes.len() + (1 << 20), b' ');
    let short: fn(&mut Vec<u8>) = |bytes| _ = bytes.pop();
    let changed: fn(&mut Vec<u8>) = |bytes| bytes[9] ^= 1;
    for (spoil, why) in [
        (endless, "more bytes than the image says"),
        (short, "bytes, got "),
        (changed, "is damaged or was changed: expected sha256:"),
    ] {
        shelf.spoil = spoil;
        says(&fetch(&manifest, &shelf).err().expect("a refusal"), &[why]);
    }
    Ok(())
}

#[test]
fn hostile_layouts_are_refused() {
    let (_dir, store) = new_store();
    let good = layout(&[layer(&["a=1"])]);
    let with_index = |manifests: Value| {
        let mut files = good.clone();
        files.put_json("index.json", &json!({ "manifests": manifests }));
        files
    };
    let descriptor =
        |digest: &str| json!([{ "mediaType": doc::MANIFEST, "digest": digest, "size": 2 }]);
    for digest in [
        "sha256:../../../etc/passwd",
        "",
        "md5:00",
        &format!("sha256:{}", "A".repeat(64)),
    ] {
        refused(
            &store,
            &with_index(descriptor(digest)),
            &["index.json", "expected a digest"],
        );
    }
    refused(&store, &with_index(json!([])), &["it lists no image"]);
    refused(
        &store,
        &with_index(json!("x")),
        &["index.json", "expected a sequence"],
    );

    let mut deep = good.clone();
    let mut inner = json!({ "manifests": [] });
    for _ in 0..DEPTH_MAX {
        let descriptor = deep.json_blob(doc::INDEX, &inner);
        inner = json!({ "manifests": [descriptor] });
    }
    deep.put_json("index.json", &inner);
    refused(&store, &deep, &["deep"]);
    // One index, listed again and again.
    let mut wide = good.clone();
    let inner = wide.json_blob(doc::INDEX, &json!({ "manifests": [] }));
    wide.index(&vec![inner; DESCRIPTORS_MAX + 1]);
    refused(&store, &wide, &["more than"]);

    let mut version = good.clone();
    version.put_json("oci-layout", &json!({ "imageLayoutVersion": "2.0.0" }));
    refused(&store, &version, &["2.0.0", "expected 1.0.0"]);
    for (media_type, why) in [
        (
            "application/vnd.oci.image.layer.v1.tar+encrypted",
            "a layer of type",
        ),
        (
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            "a layer of type",
        ),
    ] {
        let mut files = good.clone();
        let content = layer(&["a=1"]);
        let config = files.json_blob(
            doc::CONFIG,
            &config("linux/amd64", std::slice::from_ref(&content)),
        );
        let blob = files.blob(media_type, &content);
        let image = files.json_blob(
            doc::MANIFEST,
            &json!({ "config": config, "layers": [blob] }),
        );
        files.index(&[image]);
        refused(&store, &files, &[why, media_type]);
    }
    let mut artifact = good.clone();
    let config = artifact.json_blob("application/vnd.cncf.helm.config.v1+json", &json!({}));
    let image = artifact.json_blob(doc::MANIFEST, &json!({ "config": config, "layers": [] }));
    artifact.index(&[image]);
    refused(&store, &artifact, &["not a container image", "helm"]);
    refused(&store, &layout(&[]), &["without layers"]);
    let mut xz = Vec::new();
    lzma_rs::xz_compress(&mut &layer(&["a=1"])[..], &mut xz).expect("compressing");
    let mut files = Files::default();
    let image = files.image("linux/amd64", &[layer(&["a=1"])], &|_, _| ("", xz.clone()));
    files.index(&[image]);
    refused(&store, &files, &["xz", "expected gzip, zstd or none"]);
}

#[test]
fn hostile_saved_archives_are_refused() {
    let (_dir, store) = new_store();
    let content = layer(&["a=1"]);
    let config = config("linux/amd64", std::slice::from_ref(&content));
    let files = |config_path: &str, layers: &[&str]| {
        let mut files = Files::default();
        files.put("layer.tar", &content);
        files.put_json("config.json", &config);
        let wrong = format!("{}.json", "0".repeat(64));
        files.put_json(&wrong, &config);
        files.put_json(
            "manifest.json",
            &json!([{ "Config": config_path, "Layers": layers }]),
        );
        files
    };
    assert!(import(&store, &files("config.json", &["layer.tar"])).is_ok());
    let wrong = format!("{}.json", "0".repeat(64));
    // Each kind of name that has the digest in it is held to it.
    let named = digest(config.to_string().as_bytes()).to_string();
    for (name, other) in [
        (named.clone(), format!("sha256:{}", "0".repeat(64))),
        (named.replace("sha256:", ""), "0".repeat(64)),
        (
            named.replace(':', "/"),
            format!("sha256/{}", "0".repeat(64)),
        ),
    ] {
        let mut good = files(&name, &["layer.tar"]);
        good.put_json(&name, &config);
        assert!(import(&store, &good).is_ok(), "{name}");
        let mut bad = files(&other, &["layer.tar"]);
        bad.put_json(&other, &config);
        refused(&store, &bad, &["is damaged or was changed", &named]);
    }
    for (config, layers, why) in [
        (
            "../../etc/passwd",
            &["layer.tar"][..],
            "leads out of the container image",
        ),
        (
            "config.json",
            &["../layer.tar"],
            "leads out of the container image",
        ),
        ("config.json", &["none.tar"], "lacks this file"),
        (
            "config.json",
            &["layer.tar", "layer.tar"],
            "digests of 1 layers",
        ),
        (&wrong, &["layer.tar"], "is damaged or was changed"),
        (
            "layer.tar",
            &["layer.tar"],
            "not what a container image has there",
        ),
    ] {
        refused(&store, &files(config, layers), &[why]);
    }
    // Links in a circle, and one that leads out.
    for target in ["layer.tar", "../../layer.tar", "/etc/passwd"] {
        let mut archive = tar::Builder::new(Vec::new());
        let files = files("config.json", &["layer.tar"]);
        for (path, content) in files.0.iter().filter(|(path, _)| *path != "layer.tar") {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            archive
                .append_data(&mut header, path, &content[..])
                .expect("a file");
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive
            .append_link(&mut link, "layer.tar", target)
            .expect("a link");
        let archive = archive.into_inner().expect("an archive");
        let staged = store.stage_tar(&archive[..], &mut |_| ());
        says(&staged.err().expect("a refusal"), &["layer.tar: "]);
    }
}

#[test]
fn archives_are_known_by_their_first_entry() {
    let hex = "0123456789abcdef".repeat(4);
    for first in [
        "oci-layout",
        "./index.json",
        "manifest.json",
        "repositories",
        "blobs/",
        &format!("{hex}/"),
        &format!("{hex}/layer.tar"),
        &format!("{hex}.json"),
        &format!("{hex}.tar"),
        &format!("{hex}.tar.gz"),
        &format!("sha256:{hex}"),
    ] {
        assert!(may_begin_with(first.as_bytes()), "{first}");
    }
    for first in ["./", "bin", "etc/index.json", ".dockerenv", &hex[1..]] {
        assert!(!may_begin_with(first.as_bytes()), "{first}");
    }
}

#[test]
fn a_root_that_begins_like_a_container_image_stays_a_root() -> Result<()> {
    let (dir, store) = new_store();
    for entries in [
        ["index.json=x", "etc/", "etc/fstab="],
        ["blobs/", "blobs/sha256/", "oci-layout=x"],
        ["./", "blobs/", "blobs/x=1"],
    ] {
        let archive = layer(&entries);
        let staged = store.stage_tar(&archive[..], &mut |_| ())?;
        let mut expected: Vec<&str> = entries.into_iter().filter(|it| *it != "./").collect();
        expected.sort_unstable();
        assert_eq!(paths(staged.tree()), expected);
        let path = dir.path().join("archive");
        std::fs::write(&path, &archive).expect("a file");
        let file = std::fs::File::open(&path).expect("the file");
        assert_eq!(
            store.stage_file(file, &mut |_| ())?.digest(),
            staged.digest()
        );
    }
    Ok(())
}

#[test]
fn a_failed_import_leaves_nothing_behind() {
    let (_dir, store): (TempDir, Store) = new_store();
    let mut files = layout(&[layer(&["large=x", "../a="])]);
    files.put("filler", &vec![7; 1 << 20]);
    assert!(import(&store, &files).is_err());
    let count = |name: &str| {
        store
            .path()
            .join(name)
            .read_dir()
            .expect("a directory")
            .count()
    };
    assert_eq!((count("tmp"), count("objects")), (0, 0));
}
