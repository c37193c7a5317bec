//! Numbers of the format on disk: Linux fs/erofs/erofs_fs.h, and composefs's use of it.

/// The composefs header's magic, at byte 0.
pub const COMPOSEFS_MAGIC: u32 = 0xd078_629a;
/// The version of the composefs header.
pub const HEADER_VERSION: u32 = 1;
/// The version of composefs's rules for what the image holds.
pub const COMPOSEFS_VERSION: u32 = 1;
/// Header flag: some inode has an access control list.
pub const FLAG_HAS_ACL: u32 = 1;

/// Where the superblock lies.
pub const SUPERBLOCK: usize = 1024;
/// Bytes of the superblock.
pub const SUPERBLOCK_SIZE: usize = 128;
/// The superblock's magic.
pub const EROFS_MAGIC: u32 = 0xe0f5_e1e2;
/// Bit shift of a block.
pub const BLOCK_BITS: u32 = 12;
/// Bytes of a block.
pub const BLOCK: usize = 1 << BLOCK_BITS;
/// Inodes start at multiples of this, and their numbers count it.
pub const SLOT: usize = 32;
/// Compatible features: the build time stands for modification times; xattr name filters.
pub const FEATURES_COMPATIBLE: u32 = 0x2 | 0x4;
/// Incompatible feature: files by chunks. The only one that we read.
pub const FEATURE_CHUNKED: u32 = 0x4;

/// Bytes of a compact inode.
pub const COMPACT: usize = 32;
/// Bytes of an extended inode.
pub const EXTENDED: usize = 64;
/// Content in blocks.
pub const LAYOUT_PLAIN: u16 = 0;
/// Content in blocks, the rest right after the inode.
pub const LAYOUT_INLINE: u16 = 2;
/// Content by chunks; in composefs these are all absent, the content being in an object.
pub const LAYOUT_CHUNKS: u16 = 4;
/// A chunk that is not there.
pub const NULL_CHUNK: u32 = u32::MAX;
/// The most that a chunk's bit shift exceeds a block's.
pub const CHUNK_BITS_MAX: u32 = 31;

/// Bytes of a directory entry without its name.
pub const DIRENT: usize = 12;
/// Bytes before the xattrs of an inode.
pub const XATTR_HEADER: usize = 12;
/// The most shared xattrs that one inode names.
pub const SHARED_XATTRS_MAX: usize = 128;
/// Seed of the xattr name filter.
pub const XATTR_FILTER_SEED: u32 = 0x25bb_e08f;

/// Prefixes of xattr names and their index on disk.
pub const XATTR_PREFIXES: [(u8, &str); 5] = [
    (1, "user."),
    (2, "system.posix_acl_access"),
    (3, "system.posix_acl_default"),
    (4, "trusted."),
    (6, "security."),
];

/// Names the object that holds a file's content: `/xx/…`.
pub const REDIRECT: &str = "trusted.overlay.redirect";
/// Says that content is elsewhere, and its digest.
pub const METACOPY: &str = "trusted.overlay.metacopy";
/// On the root: layers below show nothing else.
pub const OPAQUE: &str = "trusted.overlay.opaque";
/// On a file that stands for a device 0, 0, which overlayfs would take as a deletion.
pub const ESCAPED_WHITEOUT: &str = "trusted.overlay.overlay.whiteout";
/// What composefs sets on a file that stands for a device 0, 0.
pub const WHITEOUT_MARKS: [(&str, &str); 2] =
    [(ESCAPED_WHITEOUT, ""), ("user.overlay.whiteout", "")];
/// What composefs sets on a directory that holds one.
pub const WHITEOUT_PARENT_MARKS: [(&str, &str); 4] = [
    ("trusted.overlay.overlay.whiteouts", ""),
    ("user.overlay.whiteouts", ""),
    ("trusted.overlay.overlay.opaque", "x"),
    ("user.overlay.opaque", "x"),
];

/// Type bits of a mode.
pub const TYPE_MASK: u16 = 0o170000;
/// A named pipe.
pub const TYPE_FIFO: u16 = 0o010000;
/// A character device.
pub const TYPE_CHARACTER: u16 = 0o020000;
/// A directory.
pub const TYPE_DIRECTORY: u16 = 0o040000;
/// A block device.
pub const TYPE_BLOCK: u16 = 0o060000;
/// A regular file.
pub const TYPE_FILE: u16 = 0o100000;
/// A symbolic link.
pub const TYPE_SYMLINK: u16 = 0o120000;
/// A socket.
pub const TYPE_SOCKET: u16 = 0o140000;

/// The kind of file that a directory entry announces, by the mode that it names.
pub fn dirent_type(mode: u16) -> u8 {
    match mode & TYPE_MASK {
        TYPE_FILE => 1,
        TYPE_DIRECTORY => 2,
        TYPE_CHARACTER => 3,
        TYPE_BLOCK => 4,
        TYPE_FIFO => 5,
        TYPE_SOCKET => 6,
        TYPE_SYMLINK => 7,
        _ => 0,
    }
}

/// The index on disk and the rest of an xattr's name; `None` for a name that EROFS cannot hold.
pub fn xattr_index(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES
        .iter()
        .find_map(|(index, prefix)| Some((*index, name.strip_prefix(prefix.as_bytes())?)))
}

/// The bit of an inode's xattr filter that a name sets: cleared bits say "may be here".
pub fn xattr_filter_bit(index: u8, rest: &[u8]) -> u32 {
    1 << (xxh32(rest, XATTR_FILTER_SEED.wrapping_add(u32::from(index))) % 32)
}

/// XXH32 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
fn xxh32(input: &[u8], seed: u32) -> u32 {
    const P: [u32; 5] = [
        0x9e37_79b1,
        0x85eb_ca77,
        0xc2b2_ae3d,
        0x27d4_eb2f,
        0x1656_67b1,
    ];
    let lane = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let stripes = input.chunks_exact(16);
    let rest = stripes.remainder();
    let mut hash = if input.len() < 16 {
        seed.wrapping_add(P[4])
    } else {
        let first = seed.wrapping_add(P[0]);
        let mut state = [
            first.wrapping_add(P[1]),
            seed.wrapping_add(P[1]),
            seed,
            seed.wrapping_sub(P[0]),
        ];
        for stripe in stripes {
            for (acc, bytes) in state.iter_mut().zip(stripe.chunks_exact(4)) {
                *acc = acc
                    .wrapping_add(lane(bytes).wrapping_mul(P[1]))
                    .rotate_left(13)
                    .wrapping_mul(P[0]);
            }
        }
        let turned = state
            .iter()
            .zip([1, 7, 12, 18])
            .map(|(acc, by)| acc.rotate_left(by));
        turned.fold(0, u32::wrapping_add)
    };
    hash = hash.wrapping_add(input.len() as u32);
    let words = rest.chunks_exact(4);
    for byte in words
        .clone()
        .map(lane)
        .map(Word::Four)
        .chain(words.remainder().iter().map(|b| Word::One(*b)))
    {
        hash = match byte {
            Word::Four(word) => hash
                .wrapping_add(word.wrapping_mul(P[2]))
                .rotate_left(17)
                .wrapping_mul(P[3]),
            Word::One(byte) => hash
                .wrapping_add(u32::from(byte).wrapping_mul(P[4]))
                .rotate_left(11)
                .wrapping_mul(P[0]),
        };
    }
    hash = (hash ^ hash >> 15).wrapping_mul(P[1]);
    hash = (hash ^ hash >> 13).wrapping_mul(P[2]);
    hash ^ hash >> 16
}

enum Word {
    Four(u32),
    One(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xxh32_known_values() {
        assert_eq!(xxh32(b"", 0), 0x02cc_5d05);
        assert_eq!(xxh32(b"abc", 0), 0x32d1_53ff);
        assert_eq!(
            xxh32(b"Nobody inspects the spammish repetition", 0),
            0xe229_3b2f
        );
    }

    #[test]
    fn xattr_names_split_by_prefix() {
        assert_eq!(xattr_index(b"user.a"), Some((1, b"a".as_slice())));
        assert_eq!(
            xattr_index(b"system.posix_acl_default"),
            Some((3, b"".as_slice()))
        );
        assert_eq!(xattr_index(b"btrfs.x"), None);
    }
}
