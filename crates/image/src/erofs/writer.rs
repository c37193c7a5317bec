//! Writes a canonical tree as an EROFS image, byte for byte as composefs's format version 1 says.
//!
//! Inodes in breadth-first order, packed after the superblock; shared attributes; then whole
//! blocks of directories and small files. The same tree always gives the same bytes.

use std::collections::{BTreeMap, HashMap};

use super::format::*;
use crate::error::Result;
use crate::manifest::{Content, Id, Manifest, Xattrs, bad};
use crate::tree::{Device, Mtime};

/// The image of a tree.
pub fn write(tree: &Manifest) -> Result<Vec<u8>> {
    let mut inodes = collect(tree);
    let shared = share_xattrs(&mut inodes);
    let oldest = inodes
        .iter()
        .map(|inode| inode.mtime)
        .min()
        .unwrap_or_default();
    let places = place(&inodes, oldest);
    let end = places
        .last()
        .map_or(SUPERBLOCK + SUPERBLOCK_SIZE, |place| place.end());
    if end.div_ceil(SLOT) > u32::MAX as usize {
        return Err(bad(b"/", "more inodes than an image can hold"));
    }
    Ok(emit(&inodes, &places, &shared, oldest))
}

struct Inode<'a> {
    mode: u16,
    nlink: u32,
    uid: u32,
    gid: u32,
    mtime: Mtime,
    xattrs: Xattrs,
    /// The attributes that others have too, by their place among the shared ones.
    shared: Vec<u32>,
    /// The attributes that only this inode has.
    own: Vec<(Vec<u8>, Vec<u8>)>,
    /// For each bit: no attribute's name hashes to it.
    filter: u32,
    has_acl: bool,
    body: Body<'a>,
}

enum Body<'a> {
    Directory(BTreeMap<&'a [u8], usize>),
    Bytes(&'a [u8]),
    Object(u64),
    Device(u32),
    Empty,
}

/// Where an inode lies.
struct Place {
    offset: usize,
    compact: bool,
    xattr_size: usize,
    /// Whole blocks of content.
    blocks: usize,
    /// Bytes of content right after the inode.
    tail: usize,
}

impl Place {
    fn header(&self) -> usize {
        if self.compact { COMPACT } else { EXTENDED }
    }

    fn end(&self) -> usize {
        self.offset + self.header() + self.xattr_size + self.tail
    }

    fn nid(&self) -> u64 {
        (self.offset / SLOT) as u64
    }
}

/// All inodes in breadth-first order, each at the first of its names, in byte order.
fn collect(tree: &Manifest) -> Vec<Inode<'_>> {
    let mut inodes = vec![inode_of(tree, Manifest::ROOT)];
    let mut sources = vec![(Some(Manifest::ROOT), 0)];
    let mut numbers: HashMap<Id, usize> = HashMap::from([(Manifest::ROOT, 0)]);
    let mut next = 0;
    while next < inodes.len() {
        let (source, parent) = sources[next];
        if let Some(Content::Directory(children)) = source.map(|id| &tree.node(id).content) {
            let mut entries = BTreeMap::from([(b".".as_slice(), next), (b"..".as_slice(), parent)]);
            let mut names: BTreeMap<&[u8], Option<Id>> = children
                .iter()
                .map(|(name, id)| (name.as_slice(), Some(*id)))
                .collect();
            if next == 0 {
                STUBS
                    .iter()
                    .for_each(|stub| _ = names.entry(stub).or_insert(None));
            }
            for (name, id) in names {
                let number = match id.and_then(|id| numbers.get(&id)) {
                    Some(number) => {
                        inodes[*number].nlink += 1;
                        *number
                    }
                    None => {
                        let inode = id.map_or_else(|| stub_of(&inodes[0]), |id| inode_of(tree, id));
                        inodes[next].nlink += u32::from(inode.mode & TYPE_MASK == TYPE_DIRECTORY);
                        if let Some(id) = id {
                            numbers.insert(id, inodes.len());
                        }
                        inodes.push(inode);
                        sources.push((id, next));
                        inodes.len() - 1
                    }
                };
                if id.is_some_and(|id| is_whiteout(&tree.node(id).content)) {
                    mark(&mut inodes[next].xattrs, &WHITEOUT_PARENT_MARKS);
                }
                entries.insert(name, number);
            }
            inodes[next].body = Body::Directory(entries);
        }
        next += 1;
    }
    mark(&mut inodes[0].xattrs, &[(OPAQUE, "y")]);
    inodes
}

/// The names of the root's 256 whiteouts: they hide the object directories where those lie
/// under the image in an overlay.
static STUBS: [[u8; 2]; 256] = stubs();

const fn stubs() -> [[u8; 2]; 256] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut names = [[0; 2]; 256];
    let mut i = 0;
    while i < 256 {
        names[i] = [HEX[i >> 4], HEX[i & 15]];
        i += 1;
    }
    names
}

fn stub_of<'a>(root: &Inode<'a>) -> Inode<'a> {
    let label = root.xattrs.get(b"security.selinux".as_slice());
    Inode {
        mode: TYPE_CHARACTER | 0o644,
        nlink: 1,
        uid: root.uid,
        gid: root.gid,
        mtime: root.mtime,
        xattrs: label
            .map(|value| (b"security.selinux".to_vec(), value.clone()))
            .into_iter()
            .collect(),
        shared: Vec::new(),
        own: Vec::new(),
        filter: u32::MAX,
        has_acl: false,
        body: Body::Device(0),
    }
}

fn inode_of(tree: &Manifest, id: Id) -> Inode<'_> {
    let node = tree.node(id);
    let mut xattrs = node.meta.xattrs.clone();
    let (kind, body) = match &node.content {
        Content::Directory(_) => (TYPE_DIRECTORY, Body::Empty),
        Content::Inline(bytes) => (TYPE_FILE, Body::Bytes(bytes)),
        Content::Object { digest, size } => {
            let name = digest.to_string();
            let mut metacopy = vec![0, 36, 0, 1];
            metacopy.extend(digest.0);
            xattrs.insert(METACOPY.into(), metacopy);
            xattrs.insert(
                REDIRECT.into(),
                format!("/{}/{}", &name[..2], &name[2..]).into(),
            );
            (TYPE_FILE, Body::Object(*size))
        }
        Content::Symlink(target) => (TYPE_SYMLINK, Body::Bytes(target)),
        content if is_whiteout(content) => {
            mark(&mut xattrs, &WHITEOUT_MARKS);
            (TYPE_FILE, Body::Bytes(&[]))
        }
        Content::Character(device) => (TYPE_CHARACTER, Body::Device(encoded(*device))),
        Content::Block(device) => (TYPE_BLOCK, Body::Device(encoded(*device))),
        Content::Fifo => (TYPE_FIFO, Body::Empty),
    };
    Inode {
        mode: kind | node.meta.mode & 0o7777,
        nlink: if kind == TYPE_DIRECTORY { 2 } else { 1 },
        uid: node.meta.uid,
        gid: node.meta.gid,
        mtime: node.meta.mtime,
        xattrs,
        shared: Vec::new(),
        own: Vec::new(),
        filter: u32::MAX,
        has_acl: false,
        body,
    }
}

fn is_whiteout(content: &Content) -> bool {
    matches!(content, Content::Character(Device { major: 0, minor: 0 }))
}

fn mark(xattrs: &mut Xattrs, marks: &[(&str, &str)]) {
    xattrs.extend(
        marks
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into())),
    );
}

/// The kernel's new_encode_dev (include/linux/kdev_t.h).
fn encoded(device: Device) -> u32 {
    device.minor & 0xff | device.major << 8 | (device.minor & !0xff) << 12
}

/// Splits the attributes of all inodes into those of several and those of one. Returns the
/// shared ones as they lie on disk; an inode's `shared` are offsets into them.
fn share_xattrs(inodes: &mut [Inode<'_>]) -> Vec<u8> {
    let mut uses: HashMap<(&[u8], &[u8]), u32> = HashMap::new();
    for (name, value) in inodes.iter().flat_map(|inode| &inode.xattrs) {
        *uses.entry((name, value)).or_default() += 1;
    }
    let mut several: Vec<_> = uses
        .into_iter()
        .filter(|(_, uses)| *uses > 1)
        .map(|(xattr, _)| xattr)
        .collect();
    // composefs sorts downwards: by name, then the value's length, then the value.
    several.sort_by(|a, b| (b.0, b.1.len(), b.1).cmp(&(a.0, a.1.len(), a.1)));
    let mut table = Vec::new();
    let mut offsets: HashMap<(Vec<u8>, Vec<u8>), u32> = HashMap::new();
    for (name, value) in several {
        offsets.insert((name.to_vec(), value.to_vec()), table.len() as u32);
        put_xattr(&mut table, name, value);
    }
    for inode in inodes {
        for xattr in std::mem::take(&mut inode.xattrs) {
            let (index, rest) = xattr_index(&xattr.0).unwrap_or((0, &xattr.0));
            inode.filter &= !xattr_filter_bit(index, rest);
            inode.has_acl |= xattr.0.starts_with(b"system.posix_acl_");
            match offsets.get(&xattr) {
                Some(offset) if inode.shared.len() < SHARED_XATTRS_MAX => {
                    inode.shared.push(*offset);
                }
                _ => inode.own.push(xattr),
            }
        }
    }
    table
}

fn xattr_entry_size(name: &[u8], value: &[u8]) -> usize {
    let rest = xattr_index(name).map_or(name.len(), |(_, rest)| rest.len());
    (4 + rest + value.len()).next_multiple_of(4)
}

fn put_xattr(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let (index, rest) = xattr_index(name).unwrap_or((0, name));
    out.extend([rest.len() as u8, index]);
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(rest);
    out.extend(value);
    pad(out, 4);
}

fn xattr_size(inode: &Inode<'_>) -> usize {
    if inode.shared.is_empty() && inode.own.is_empty() {
        return 0;
    }
    let own: usize = inode
        .own
        .iter()
        .map(|(name, value)| xattr_entry_size(name, value))
        .sum();
    XATTR_HEADER + inode.shared.len() * 4 + own
}

/// Gives every inode its place.
fn place(inodes: &[Inode<'_>], oldest: Mtime) -> Vec<Place> {
    let mut at = SUPERBLOCK + SUPERBLOCK_SIZE;
    let mut places = Vec::with_capacity(inodes.len());
    for inode in inodes {
        let (blocks, tail) = content_shape(inode);
        let mut place = Place {
            offset: at.next_multiple_of(SLOT),
            compact: false,
            xattr_size: xattr_size(inode),
            blocks,
            tail,
        };
        place.compact = is_compact(inode, &place, oldest);
        if inode.mode & TYPE_MASK == TYPE_SYMLINK {
            keep_whole(&mut place);
        } else {
            keep_tail_whole(&mut place);
        }
        at = place.end();
        places.push(place);
    }
    places
}

/// Whole blocks, and bytes that follow the inode: never more than half a block of those, but
/// for the targets of links.
fn content_shape(inode: &Inode<'_>) -> (usize, usize) {
    match &inode.body {
        Body::Directory(entries) => {
            let blocks = directory_blocks(entries);
            let last = blocks.last().map_or(0, |block| directory_bytes(block));
            if last > BLOCK / 2 {
                (blocks.len(), 0)
            } else {
                (blocks.len() - 1, last)
            }
        }
        Body::Bytes(target) if inode.mode & TYPE_MASK == TYPE_SYMLINK => (0, target.len()),
        Body::Bytes(bytes) if bytes.len() % BLOCK > BLOCK / 2 => (bytes.len() / BLOCK + 1, 0),
        Body::Bytes(bytes) => (bytes.len() / BLOCK, bytes.len() % BLOCK),
        Body::Object(_) => (0, 4),
        Body::Device(_) | Body::Empty => (0, 0),
    }
}

fn is_compact(inode: &Inode<'_>, place: &Place, oldest: Mtime) -> bool {
    let short = |value: u32| value <= u32::from(u16::MAX);
    inode.mtime == oldest
        && short(inode.nlink)
        && short(inode.uid)
        && short(inode.gid)
        && inode_size(inode, place) <= u64::from(u32::MAX)
}

fn inode_size(inode: &Inode<'_>, place: &Place) -> u64 {
    match &inode.body {
        Body::Directory(_) => (place.blocks * BLOCK + place.tail) as u64,
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::Object(size) => *size,
        Body::Device(_) | Body::Empty => 0,
    }
}

/// A link's inode and target share one block, unless they are longer than a block.
fn keep_whole(place: &mut Place) {
    let end = place.end();
    let crosses = place.offset / BLOCK != (end - 1) / BLOCK;
    if end - place.offset >= BLOCK {
        place.blocks += 1;
        place.tail = 0;
    }
    if crosses {
        place.offset = place.offset.next_multiple_of(BLOCK);
    }
}

/// What follows an inode lies in one block, the inode itself need not.
fn keep_tail_whole(place: &mut Place) {
    let left = |place: &Place| BLOCK - (place.end() - place.tail) % BLOCK;
    let room = left(place);
    if room >= place.tail {
        return;
    }
    let start = place.offset;
    place.offset += room.next_multiple_of(SLOT);
    if left(place) < place.tail {
        place.offset = start.next_multiple_of(BLOCK);
        place.blocks += 1;
        place.tail = 0;
    }
}

/// A directory's entries as they are spread over blocks.
fn directory_blocks<'d>(entries: &'d BTreeMap<&'d [u8], usize>) -> Vec<Vec<(&'d [u8], usize)>> {
    let mut blocks = vec![Vec::new()];
    let mut used = 0;
    for (name, number) in entries {
        let size = DIRENT + name.len();
        if used + size > BLOCK {
            blocks.push(Vec::new());
            used = 0;
        }
        used += size;
        if let Some(block) = blocks.last_mut() {
            block.push((*name, *number));
        }
    }
    blocks
}

fn directory_bytes(block: &[(&[u8], usize)]) -> usize {
    block.iter().map(|(name, _)| DIRENT + name.len()).sum()
}

fn put_directory_block(
    out: &mut Vec<u8>,
    block: &[(&[u8], usize)],
    inodes: &[Inode<'_>],
    places: &[Place],
) {
    let mut name_at = block.len() * DIRENT;
    for (name, number) in block {
        out.extend(places[*number].nid().to_le_bytes());
        out.extend((name_at as u16).to_le_bytes());
        out.extend([dirent_type(inodes[*number].mode), 0]);
        name_at += name.len();
    }
    block.iter().for_each(|(name, _)| out.extend(*name));
}

fn emit(inodes: &[Inode<'_>], places: &[Place], shared: &[u8], oldest: Mtime) -> Vec<u8> {
    let inodes_end = places.last().map_or(0, Place::end).next_multiple_of(SLOT);
    let data = (inodes_end + shared.len()).next_multiple_of(BLOCK);
    let blocks: usize = places.iter().map(|place| place.blocks).sum();
    let mut out = Vec::with_capacity(data + blocks * BLOCK);
    put_header(&mut out, inodes);
    put_superblock(
        &mut out,
        inodes.len(),
        &places[0],
        inodes_end,
        data / BLOCK + blocks,
        oldest,
    );
    let mut next_block = (data / BLOCK) as u32;
    for (number, (inode, place)) in inodes.iter().zip(places).enumerate() {
        out.resize(place.offset, 0);
        put_inode(&mut out, inode, place, number as u32, next_block);
        next_block += place.blocks as u32;
        put_xattrs(&mut out, inode, inodes_end);
        put_tail(&mut out, inode, place, inodes, places);
    }
    out.resize(inodes_end, 0);
    out.extend(shared);
    out.resize(data, 0);
    for (inode, place) in inodes.iter().zip(places) {
        put_blocks(&mut out, inode, place, inodes, places);
    }
    out
}

fn put_header(out: &mut Vec<u8>, inodes: &[Inode<'_>]) {
    let flags = if inodes.iter().any(|inode| inode.has_acl) {
        FLAG_HAS_ACL
    } else {
        0
    };
    for word in [COMPOSEFS_MAGIC, HEADER_VERSION, flags, COMPOSEFS_VERSION] {
        out.extend(word.to_le_bytes());
    }
    out.resize(SUPERBLOCK, 0);
}

fn put_superblock(
    out: &mut Vec<u8>,
    inodes: usize,
    root: &Place,
    end: usize,
    blocks: usize,
    oldest: Mtime,
) {
    out.extend(EROFS_MAGIC.to_le_bytes());
    out.extend(0u32.to_le_bytes()); // no checksum
    out.extend(FEATURES_COMPATIBLE.to_le_bytes());
    out.extend([BLOCK_BITS as u8, 0]);
    out.extend((root.nid() as u16).to_le_bytes());
    out.extend((inodes as u64).to_le_bytes());
    out.extend(oldest.seconds.to_le_bytes());
    out.extend(oldest.nanoseconds.to_le_bytes());
    out.extend((blocks as u32).to_le_bytes());
    out.extend(0u32.to_le_bytes()); // inodes are counted from block 0
    out.extend(((end / BLOCK) as u32).to_le_bytes());
    out.resize(SUPERBLOCK + SUPERBLOCK_SIZE, 0);
}

fn put_inode(out: &mut Vec<u8>, inode: &Inode<'_>, place: &Place, number: u32, next_block: u32) {
    let (layout, word) = match &inode.body {
        Body::Object(size) => (LAYOUT_CHUNKS, chunk_bits(*size)),
        Body::Device(device) => (LAYOUT_PLAIN, *device),
        _ => (
            if place.tail > 0 {
                LAYOUT_INLINE
            } else {
                LAYOUT_PLAIN
            },
            if place.blocks > 0 { next_block } else { 0 },
        ),
    };
    let xattr_count = if place.xattr_size == 0 {
        0
    } else {
        (place.xattr_size - XATTR_HEADER) / 4 + 1
    };
    let size = inode_size(inode, place);
    out.extend((layout << 1 | u16::from(!place.compact)).to_le_bytes());
    out.extend((xattr_count as u16).to_le_bytes());
    out.extend(inode.mode.to_le_bytes());
    if place.compact {
        out.extend((inode.nlink as u16).to_le_bytes());
        out.extend((size as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(word.to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend((inode.uid as u16).to_le_bytes());
        out.extend((inode.gid as u16).to_le_bytes());
        out.extend([0; 4]);
    } else {
        out.extend([0; 2]);
        out.extend(size.to_le_bytes());
        out.extend(word.to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend(inode.uid.to_le_bytes());
        out.extend(inode.gid.to_le_bytes());
        out.extend(inode.mtime.seconds.to_le_bytes());
        out.extend(inode.mtime.nanoseconds.to_le_bytes());
        out.extend(inode.nlink.to_le_bytes());
        out.extend([0; 16]);
    }
}

/// The bit shift, over a block's, of one chunk that spans the whole file.
fn chunk_bits(size: u64) -> u32 {
    let bits = size.max(2).next_power_of_two().ilog2();
    bits.saturating_sub(BLOCK_BITS).min(CHUNK_BITS_MAX)
}

fn put_xattrs(out: &mut Vec<u8>, inode: &Inode<'_>, inodes_end: usize) {
    if inode.shared.is_empty() && inode.own.is_empty() {
        return;
    }
    out.extend(inode.filter.to_le_bytes());
    out.extend([inode.shared.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
    for offset in &inode.shared {
        out.extend((((inodes_end % BLOCK) as u32 + offset) / 4).to_le_bytes());
    }
    inode
        .own
        .iter()
        .for_each(|(name, value)| put_xattr(out, name, value));
}

fn put_tail(
    out: &mut Vec<u8>,
    inode: &Inode<'_>,
    place: &Place,
    inodes: &[Inode<'_>],
    places: &[Place],
) {
    if place.tail == 0 {
        return;
    }
    match &inode.body {
        Body::Directory(entries) => {
            let blocks = directory_blocks(entries);
            blocks[place.blocks..]
                .iter()
                .for_each(|block| put_directory_block(out, block, inodes, places));
        }
        Body::Bytes(bytes) => out.extend(&bytes[bytes.len() - place.tail..]),
        Body::Object(_) => out.extend(NULL_CHUNK.to_le_bytes()),
        Body::Device(_) | Body::Empty => {}
    }
}

fn put_blocks(
    out: &mut Vec<u8>,
    inode: &Inode<'_>,
    place: &Place,
    inodes: &[Inode<'_>],
    places: &[Place],
) {
    if place.blocks == 0 {
        return;
    }
    match &inode.body {
        Body::Directory(entries) => {
            for block in &directory_blocks(entries)[..place.blocks] {
                put_directory_block(out, block, inodes, places);
                pad(out, BLOCK);
            }
        }
        Body::Bytes(bytes) => {
            out.extend(&bytes[..bytes.len() - place.tail]);
            pad(out, BLOCK);
        }
        Body::Object(_) | Body::Device(_) | Body::Empty => {}
    }
}

fn pad(out: &mut Vec<u8>, alignment: usize) {
    out.resize(out.len().next_multiple_of(alignment), 0);
}
