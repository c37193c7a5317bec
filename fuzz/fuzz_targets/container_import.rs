//! Any texts and layers as a container image: it is refused, or it becomes a version that reads back
//! whole.
//!
//! The input is cut into files at each `0xff 0xfe 0xff`. Blobs are checked against their digests, so
//! no input could hit upon one: in each file `@N;` stands for the digest of the Nth file after it,
//! `%N;` for its path and `#N;` for its length.
#![no_main]

use std::sync::LazyLock;

use image::Store;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};

static STORE: LazyLock<Store> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("fuzz-container-import-{}", std::process::id()));
    Store::open(dir).expect("a store")
});
const CUT: &[u8] = &[0xff, 0xfe, 0xff];
const FILES_MAX: usize = 10;

fuzz_target!(|input: &[u8]| {
    let archive = archive_of(input);
    if let Ok(staged) = STORE.stage_tar(&archive[..], &mut |_| ()) {
        let tree = staged.tree();
        tree.totals().expect("a tree that was just written");
    }
});

/// The first file says by its first byte which kind of image it lists.
fn archive_of(input: &[u8]) -> Vec<u8> {
    let mut files: Vec<Vec<u8>> = cut(input);
    let mut names = vec![String::new(); files.len()];
    for index in (0..files.len()).rev() {
        for later in index + 1..files.len() {
            let (number, name) = (later - index, &names[later]);
            for (mark, by) in [
                ('@', name.clone()),
                ('%', path_of(name)),
                ('#', files[later].len().to_string()),
            ] {
                let what = format!("{mark}{number};");
                files[index] = replaced(&files[index], what.as_bytes(), by.as_bytes());
            }
        }
        names[index] = format!("sha256:{}", hexadecimal(&files[index]));
    }
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).expect("a file");
    };
    let (list, blobs) = files.split_first().expect("one file at least");
    match list.first() {
        Some(b'[') => add("manifest.json", list),
        _ => {
            add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
            add("index.json", list);
        }
    }
    for (name, content) in names[1..].iter().zip(blobs) {
        add(&path_of(name), content);
    }
    archive.into_inner().expect("an archive")
}

fn path_of(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn cut(input: &[u8]) -> Vec<Vec<u8>> {
    let mut files = vec![Vec::new()];
    let mut rest = input;
    while let Some((first, next)) = rest.split_first() {
        if rest.starts_with(CUT) && files.len() < FILES_MAX {
            files.push(Vec::new());
            rest = &rest[CUT.len()..];
            continue;
        }
        files.last_mut().expect("a file").push(*first);
        rest = next;
    }
    files
}

fn replaced(text: &[u8], what: &[u8], by: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, next)) = rest.split_first() {
        if rest.starts_with(what) {
            out.extend_from_slice(by);
            rest = &rest[what.len()..];
        } else {
            out.push(*first);
            rest = next;
        }
    }
    out
}

fn hexadecimal(content: &[u8]) -> String {
    wire::hex::hexadecimal(&Sha256::digest(content))
}
