//! The fs-verity digest of a file: SHA-256 over a Merkle tree of 4 KiB blocks, no salt.
//!
//! This is what `fsverity measure` prints and how composefs names its objects. See the
//! kernel's Documentation/filesystems/fsverity.rst, "Merkle tree" and "fs-verity descriptor".

use std::sync::LazyLock;

use sha2::{Digest as _, Sha256};
use wire::digest::Digest;

/// Bytes of a block of the Merkle tree.
const BLOCK: usize = 4096;
const HASH: usize = 32;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What a block of zeros hashes to. Files with holes are mostly made of these.
static ZERO_BLOCK_HASH: LazyLock<[u8; HASH]> = LazyLock::new(|| Sha256::digest(ZEROS).into());

/// The digest of a file's whole content.
pub fn digest_of(content: &[u8]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(content);
    hasher.finish()
}

/// Computes the digest of content that comes in pieces.
pub struct Hasher {
    size: u64,
    /// Its first `filled` bytes are the content since the last whole block, always less than one.
    partial: [u8; BLOCK],
    filled: usize,
    /// For each level of the tree, from the lowest, the hashes of its unfinished block.
    levels: Vec<Vec<u8>>,
}

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher {
            size: 0,
            partial: ZEROS,
            filled: 0,
            levels: Vec::new(),
        }
    }
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, mut content: &[u8]) {
        self.size += content.len() as u64;
        if self.filled > 0 {
            let (head, rest) = content.split_at(content.len().min(BLOCK - self.filled));
            self.keep(head);
            content = rest;
            if self.filled < BLOCK {
                return;
            }
            self.filled = 0;
            self.push(0, block_hash(&self.partial));
        }
        let mut blocks = content.chunks_exact(BLOCK);
        for block in &mut blocks {
            self.push(0, block_hash(block));
        }
        self.keep(blocks.remainder());
    }

    fn keep(&mut self, content: &[u8]) {
        self.partial[self.filled..][..content.len()].copy_from_slice(content);
        self.filled += content.len();
    }

    /// Adds that many zeros, as [`Hasher::update`] would, but sooner.
    pub fn update_zeros(&mut self, mut count: u64) {
        let head = count.min((BLOCK - self.filled) as u64 % BLOCK as u64);
        self.update(&ZEROS[..head as usize]);
        count -= head;
        for _ in 0..count / BLOCK as u64 {
            self.push(0, *ZERO_BLOCK_HASH);
        }
        self.size += count / BLOCK as u64 * BLOCK as u64;
        self.update(&ZEROS[..(count % BLOCK as u64) as usize]);
    }

    /// The bytes added so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of all that was added.
    pub fn finish(mut self) -> Digest {
        let root = self.root();
        let mut descriptor = [0; 256];
        descriptor[0] = 1; // version
        descriptor[1] = 1; // SHA-256
        descriptor[2] = BLOCK.ilog2() as u8;
        descriptor[8..16].copy_from_slice(&self.size.to_le_bytes());
        descriptor[16..16 + HASH].copy_from_slice(&root);
        Digest(Sha256::digest(descriptor).into())
    }

    /// The root hash; of an empty file it is zero.
    fn root(&mut self) -> [u8; HASH] {
        if self.size == 0 {
            return [0; HASH];
        }
        if self.filled > 0 {
            self.push(0, padded_hash(&self.partial[..self.filled]));
        }
        let mut level = 0;
        loop {
            let hashes = std::mem::take(&mut self.levels[level]);
            let top = level + 1 == self.levels.len();
            match <[u8; HASH]>::try_from(hashes.as_slice()) {
                Ok(root) if top => return root,
                _ if hashes.is_empty() => {}
                _ => self.push(level + 1, padded_hash(&hashes)),
            }
            level += 1;
        }
    }

    fn push(&mut self, level: usize, hash: [u8; HASH]) {
        if level == self.levels.len() {
            // Grows: musl asks the kernel for as much as a block of memory, for each small file.
            self.levels.push(Vec::new());
        }
        let hashes = &mut self.levels[level];
        hashes.extend_from_slice(&hash);
        if hashes.len() == BLOCK {
            let hash = Sha256::digest(&*hashes).into();
            hashes.clear();
            self.push(level + 1, hash);
        }
    }
}

fn block_hash(block: &[u8]) -> [u8; HASH] {
    if block == ZEROS {
        *ZERO_BLOCK_HASH
    } else {
        Sha256::digest(block).into()
    }
}

fn padded_hash(bytes: &[u8]) -> [u8; HASH] {
    let mut block = ZEROS;
    block[..bytes.len()].copy_from_slice(bytes);
    Sha256::digest(block).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    /// The definition, level by level, with everything in memory.
    fn by_definition(content: &[u8]) -> Digest {
        let mut level = content.to_vec();
        while level.len() > HASH || (level.len() == content.len() && !level.is_empty()) {
            level = level.chunks(BLOCK).flat_map(padded_hash).collect();
            if level.len() == HASH {
                break;
            }
        }
        let mut descriptor = vec![1, 1, 12, 0, 0, 0, 0, 0];
        descriptor.extend((content.len() as u64).to_le_bytes());
        level.resize(HASH, 0);
        descriptor.extend(level);
        descriptor.resize(256, 0);
        Digest(Sha256::digest(descriptor).into())
    }

    #[test]
    fn known_digests() {
        // Printed by `fsverity digest` for an empty file.
        assert_eq!(
            digest_of(b"").to_string(),
            "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"
        );
    }

    #[test]
    fn every_shape_of_tree_matches_the_definition() {
        let full = 128 * BLOCK;
        for len in [
            1,
            31,
            32,
            33,
            4095,
            4096,
            4097,
            8192,
            full - 1,
            full,
            full + 1,
            2 * full,
            128 * full + 5,
        ] {
            let content = pattern(len);
            assert_eq!(digest_of(&content), by_definition(&content), "{len} bytes");
        }
    }

    #[test]
    fn pieces_do_not_matter() {
        let content = pattern(20_000);
        for piece in [1, 7, 4095, 4096, 4097, 9000] {
            let mut hasher = Hasher::default();
            content.chunks(piece).for_each(|part| hasher.update(part));
            assert_eq!(hasher.size(), 20_000);
            assert_eq!(hasher.finish(), digest_of(&content), "pieces of {piece}");
        }
    }

    #[test]
    fn zeros_equal_written_zeros() {
        for (head, zeros) in [
            (0, 1),
            (0, 4096),
            (0, 8193),
            (5, 4091),
            (5, 4090),
            (5, 70_000),
            (4096, 12_288),
        ] {
            let mut content = pattern(head);
            let mut hasher = Hasher::default();
            hasher.update(&content);
            hasher.update_zeros(zeros as u64);
            hasher.update(b"end");
            content.resize(head + zeros, 0);
            content.extend(b"end");
            assert_eq!(hasher.finish(), digest_of(&content), "{head} then {zeros}");
        }
    }
}
