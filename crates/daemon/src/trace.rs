//! Learns what a version's first boot reads, so that later boots can read ahead of themselves.
//!
//! A version that has no trace yet is watched from its first read until a node that runs it is up.
//! Versions never change, so what one boot read the next one will read too; a trace that misses
//! something costs nothing but the wait that it could have saved.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::Digest;
use image::{Kind, StoredTree};
use wire::trace::{Piece, encode};

/// Reads are noted in multiples of this: a page of the client.
const CHUNK_BYTES: u64 = 4096;
/// Most chunks that are noted: 256 MiB.
const CHUNKS_MAX: usize = 65_536;
/// How deep a tree may be; deeper files are not in its trace.
const DEPTH_MAX: usize = 64;

/// The traces of all versions, kept in files.
pub struct Traces {
    folder: PathBuf,
    watched: Mutex<HashMap<Digest, Arc<Recorder>>>,
}

impl Traces {
    /// Traces are kept in `folder`.
    pub fn new(folder: PathBuf) -> Traces {
        Traces {
            folder,
            watched: Mutex::default(),
        }
    }

    /// A version's trace, if it has one.
    pub fn get(&self, digest: Digest) -> Option<Vec<u8>> {
        fs::read(self.path(digest)).ok()
    }

    /// What watches a version that has no trace yet.
    pub fn recorder(&self, digest: Digest) -> Option<Arc<Recorder>> {
        if self.path(digest).exists() {
            return None;
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(watched.entry(digest).or_default()))
    }

    /// A node that runs the version is up: what was read until now is its trace. Whether there is a
    /// new one.
    pub fn finish(
        &self,
        digest: Digest,
        open: impl FnOnce() -> image::Result<StoredTree>,
    ) -> std::io::Result<bool> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(recorder) = watched.remove(&digest) else {
            return Ok(false);
        };
        drop(watched);
        let noted = recorder.stop();
        if noted.is_empty() {
            return Ok(false);
        }
        let tree = open().map_err(std::io::Error::other)?;
        let pieces = pieces(&tree, &noted).map_err(std::io::Error::other)?;
        let path = self.path(digest);
        let aside = path.with_extension("new");
        fs::write(&aside, encode(&pieces))?;
        fs::rename(aside, path)?;
        Ok(true)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("trace-{digest}"))
    }
}

/// Notes the reads of one version; shared by all its exports.
#[derive(Default)]
pub struct Recorder {
    stopped: AtomicBool,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// Inode and number of the chunk, in the order of their first reads.
    order: Vec<(u32, u64)>,
    seen: HashSet<(u32, u64)>,
}

impl Recorder {
    /// A read of `len` bytes at `offset` of the file `ino`.
    pub fn note(&self, ino: u32, offset: u64, len: u64) {
        if len == 0 || self.stopped.load(Ordering::Relaxed) {
            return;
        }
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = offset.saturating_add(len - 1) / CHUNK_BYTES;
        for chunk in offset / CHUNK_BYTES..=last {
            if noted.order.len() < CHUNKS_MAX && noted.seen.insert((ino, chunk)) {
                noted.order.push((ino, chunk));
            }
        }
    }

    fn stop(&self) -> Vec<(u32, u64)> {
        self.stopped.store(true, Ordering::Relaxed);
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *noted).order
    }
}

/// Chunks as pieces of files: file by file, in the order of the first reads, neighbours joined.
fn pieces(tree: &StoredTree, noted: &[(u32, u64)]) -> image::Result<Vec<Piece>> {
    let mut chunks: HashMap<u32, Vec<u64>> = HashMap::new();
    let mut files = Vec::new();
    for (ino, chunk) in noted {
        let of_file = chunks.entry(*ino).or_insert_with(|| {
            files.push(*ino);
            Vec::new()
        });
        of_file.push(*chunk);
    }
    let mut paths = HashMap::new();
    find_paths(tree, tree.root(), &mut Vec::new(), &chunks, &mut paths)?;
    let mut out = Vec::new();
    for ino in files {
        let (Some(path), Some(mut chunks)) = (paths.get(&ino), chunks.remove(&ino)) else {
            continue;
        };
        chunks.sort_unstable();
        let size = tree.attr(ino)?.size;
        for run in chunks.chunk_by(|before, after| before + 1 == *after) {
            let offset = run[0].saturating_mul(CHUNK_BYTES);
            let end = offset.saturating_add(run.len() as u64 * CHUNK_BYTES);
            // Clients may ask for what lies behind a file's end.
            if offset < size {
                out.push(Piece {
                    offset,
                    len: end.min(size) - offset,
                    path: path.clone(),
                });
            }
        }
    }
    Ok(out)
}

/// Looks for a path of each wanted inode.
fn find_paths<V>(
    tree: &StoredTree,
    dir: u32,
    names: &mut Vec<Vec<u8>>,
    wanted: &HashMap<u32, V>,
    paths: &mut HashMap<u32, Vec<u8>>,
) -> image::Result<()> {
    if names.len() >= DEPTH_MAX {
        return Ok(());
    }
    for entry in tree.readdir(dir, 0)? {
        let entry = entry?;
        names.push(entry.name.to_vec());
        if wanted.contains_key(&entry.nid) {
            paths.insert(entry.nid, names.join(&b'/'));
        } else if tree.attr(entry.nid)?.kind == Kind::Directory {
            find_paths(tree, entry.nid, names, wanted, paths)?;
        }
        names.pop();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_names_what_was_read_until_the_node_was_up() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("usr/lib")).unwrap();
        fs::write(source.join("usr/lib/large"), vec![7; 1 << 20]).unwrap();
        fs::write(source.join("small"), "text").unwrap();
        fs::write(source.join("unread"), "text").unwrap();
        let store = image::Store::open(dir.path().join("store")).unwrap();
        let staged = store.stage_dir(&source, &mut |_| ()).unwrap();
        let digest = staged.digest();
        store
            .publish(staged, image::Publish::Untagged, |_| Ok(()))
            .unwrap();
        let tree = store.open_tree(digest).unwrap();
        let large = tree.walk_path("usr/lib/large").unwrap();
        let small = tree.walk_path("small").unwrap();

        let traces = Traces::new(dir.path().to_owned());
        let recorder = traces.recorder(digest).unwrap();
        recorder.note(large, 50 * CHUNK_BYTES, 10);
        recorder.note(small, 0, 100);
        recorder.note(large, 0, 3 * CHUNK_BYTES + 1);
        recorder.note(large, 255 * CHUNK_BYTES, 9 * CHUNK_BYTES);
        recorder.note(large, u64::MAX, 1);
        assert!(traces.get(digest).is_none());
        assert!(traces.finish(digest, || store.open_tree(digest)).unwrap());

        let text = String::from_utf8(traces.get(digest).unwrap()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            "0 16384 usr/lib/large",
            "204800 4096 usr/lib/large",
            "1044480 4096 usr/lib/large",
            "0 4 small",
        ];
        assert_eq!(lines, expected);
        // Once is enough.
        assert!(traces.recorder(digest).is_none());
        assert!(!traces.finish(digest, || store.open_tree(digest)).unwrap());
    }
}
