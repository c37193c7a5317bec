//! Any bytes as an image: every inode, name, attribute and content range is either readable
//! within the image or an error.
#![no_main]

use image::erofs::Image;
use libfuzzer_sys::fuzz_target;

/// Inodes that one input is read for: an image whose directories form circles has no end.
const INODES_MAX: usize = 2000;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    let mut ahead = vec![image.root()];
    for _ in 0..INODES_MAX {
        let Some(nid) = ahead.pop() else { return };
        let Ok(inode) = image.inode(nid) else {
            continue;
        };
        let _ = image.object(&inode);
        let Ok(held) = image.held(&inode) else {
            continue;
        };
        assert!(held.blocks.end <= bytes.len() && held.tail.end <= bytes.len());
        let blocks = image.directory_blocks(&inode).unwrap_or(0).min(INODES_MAX);
        for index in 0..blocks {
            let Ok(block) = image.directory_block(&inode, index) else {
                continue;
            };
            for entry in (0..block.len()).filter_map(|index| block.entry(index).ok()) {
                let _ = image.lookup(&inode, entry.name);
                ahead.push(entry.nid);
            }
        }
        ahead.truncate(INODES_MAX);
    }
});
