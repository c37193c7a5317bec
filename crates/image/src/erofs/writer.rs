//! Writes a canonical tree as an EROFS image, byte for byte as composefs's format version 1 says.
//!
//! Inodes in breadth-first order, packed after the superblock; shared attributes; then whole
//! blocks of directories and small files. The same tree always gives the same bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use wire::digest::Digest;

use super::format::*;
use crate::error::Result;
use crate::manifest::{Content, Id, Manifest, Xattrs, bad};
use crate::tree::{Device, Mtime};

/// An image is handed over in pieces of about this many bytes.
const PIECE: usize = 256 << 10;

/// Takes the pieces of an image in order.
pub type Sink<'s> = dyn FnMut(Vec<u8>) -> Result<()> + 's;

/// Writes the image of a tree.
pub fn write(tree: &Manifest, sink: &mut Sink<'_>) -> Result<()> {
    let mut collected = Collected::of(tree);
    let shared = collected.attributes.share();
    let oldest = collected.inodes.iter().map(|inode| inode.mtime).min();
    let oldest = oldest.unwrap_or_default();
    let places = collected.places(oldest);
    let end = places
        .last()
        .map_or(SUPERBLOCK + SUPERBLOCK_SIZE, |place| place.end());
    if end.div_ceil(SLOT) > u32::MAX as usize {
        return Err(bad(b"/", "more inodes than an image can hold"));
    }
    collected.emit(&places, &shared, oldest, sink)
}

/// The inodes of an image, and what they are made of.
struct Collected<'a> {
    inodes: Vec<Inode<'a>>,
    /// The entries of all directories.
    entries: Vec<Entry<'a>>,
    attributes: Attributes<'a>,
}

struct Inode<'a> {
    mode: u16,
    nlink: u32,
    uid: u32,
    gid: u32,
    mtime: Mtime,
    /// What the tree says; a few are added by the format.
    xattrs: Option<&'a Xattrs>,
    marks: Marks,
    /// Among [`Attributes::of_inodes`].
    attributes: Range<usize>,
    body: Body<'a>,
}

/// What the format marks an inode as.
#[derive(Clone, Copy, Default)]
struct Marks {
    /// It is one of the root's 256 whiteouts.
    stub: bool,
    /// It stands for a device 0, 0.
    whiteout: bool,
    /// It holds such a one.
    whiteout_parent: bool,
    /// Layers below it show nothing.
    opaque: bool,
}

enum Body<'a> {
    /// Its entries among all.
    Directory(Range<usize>),
    Bytes(&'a [u8]),
    Object(&'a Digest, u64),
    Device(u32),
    Empty,
}

/// A name, and the number of its inode.
struct Entry<'a> {
    name: &'a [u8],
    number: u32,
}

impl Entry<'_> {
    fn size(&self) -> usize {
        DIRENT + self.name.len()
    }
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

impl<'a> Collected<'a> {
    /// All inodes in breadth-first order, each at the first of its names, in byte order.
    fn of(tree: &'a Manifest) -> Collected<'a> {
        let count = tree.len() + STUBS.len();
        let mut collecting = Collecting {
            tree,
            inodes: Vec::with_capacity(count),
            sources: Vec::with_capacity(count),
            numbers: vec![None; tree.len()],
            entries: Vec::with_capacity(2 * count),
        };
        collecting.inodes.push(inode_of(tree, Manifest::ROOT));
        collecting.sources.push((Some(Manifest::ROOT), 0));
        collecting.inodes[0].marks.opaque = true;
        collecting.numbers[Manifest::ROOT] = Some(0);
        let mut next = 0;
        while next < collecting.inodes.len() {
            collecting.directory(next);
            next += 1;
        }
        let Collecting {
            mut inodes,
            entries,
            ..
        } = collecting;
        let mut attributes = Attributes::default();
        attributes.of_inodes.reserve(2 * count);
        attributes.known.reserve(2 * count);
        attributes.by_object.reserve(count);
        for inode in &mut inodes {
            attributes.take(inode);
        }
        Collected {
            inodes,
            entries,
            attributes,
        }
    }
}

struct Collecting<'a> {
    tree: &'a Manifest,
    inodes: Vec<Inode<'a>>,
    /// Of each inode its node, and the number of the directory that it was found in.
    sources: Vec<(Option<Id>, u32)>,
    /// Of each node its inode.
    numbers: Vec<Option<u32>>,
    entries: Vec<Entry<'a>>,
}

impl<'a> Collecting<'a> {
    /// Lists the entries of an inode that is a directory, and appends those that are new.
    fn directory(&mut self, number: usize) {
        let (source, parent) = self.sources[number];
        let Some(Content::Directory(children)) = source.map(|id| &self.tree.node(id).content)
        else {
            return;
        };
        let start = self.entries.len();
        for (name, number) in [(&b"."[..], number as u32), (b"..", parent)] {
            self.entries.push(Entry { name, number });
        }
        if number == 0 {
            let stubs = STUBS.iter().map(|name| (&name[..], None));
            let mut names: BTreeMap<&[u8], Option<Id>> = stubs.collect();
            names.extend(children.iter().map(|(name, id)| (&name[..], Some(*id))));
            names
                .into_iter()
                .for_each(|(name, id)| self.entry(number, name, id));
        } else {
            children
                .iter()
                .for_each(|(name, id)| self.entry(number, name, Some(*id)));
        }
        // Some names come before the two dots.
        self.entries[start..].sort_by_key(|entry| entry.name);
        self.inodes[number].body = Body::Directory(start..self.entries.len());
    }

    fn entry(&mut self, directory: usize, name: &'a [u8], id: Option<Id>) {
        let number = match id.and_then(|id| self.numbers[id]) {
            Some(number) => {
                self.inodes[number as usize].nlink += 1;
                number
            }
            None => self.inode(directory, id),
        };
        if id.is_some_and(|id| is_whiteout(&self.tree.node(id).content)) {
            self.inodes[directory].marks.whiteout_parent = true;
        }
        self.entries.push(Entry { name, number });
    }

    fn inode(&mut self, directory: usize, id: Option<Id>) -> u32 {
        let stub = || stub_of(&self.inodes[0]);
        let inode = id.map_or_else(stub, |id| inode_of(self.tree, id));
        self.inodes[directory].nlink += u32::from(inode.mode & TYPE_MASK == TYPE_DIRECTORY);
        let number = self.inodes.len() as u32;
        if let Some(id) = id {
            self.numbers[id] = Some(number);
        }
        self.inodes.push(inode);
        self.sources.push((id, directory as u32));
        number
    }
}

/// The names of the root's 256 whiteouts: they hide the object directories where those lie
/// under the image in an overlay.
static STUBS: [[u8; 2]; 256] = stubs();

const fn stubs() -> [[u8; 2]; 256] {
    let mut names = [[0; 2]; 256];
    let mut i = 0;
    while i < 256 {
        names[i] = [HEX[i >> 4], HEX[i & 15]];
        i += 1;
    }
    names
}

const HEX: &[u8; 16] = b"0123456789abcdef";
/// The only attribute of its directory that a stub has, too.
const LABEL: &[u8] = b"security.selinux";

fn stub_of<'a>(root: &Inode<'a>) -> Inode<'a> {
    Inode {
        mode: TYPE_CHARACTER | 0o644,
        nlink: 1,
        uid: root.uid,
        gid: root.gid,
        mtime: root.mtime,
        xattrs: root.xattrs,
        marks: Marks {
            stub: true,
            ..Marks::default()
        },
        attributes: 0..0,
        body: Body::Device(0),
    }
}

fn inode_of(tree: &Manifest, id: Id) -> Inode<'_> {
    let node = tree.node(id);
    let mut marks = Marks::default();
    let (kind, body) = match &node.content {
        Content::Directory(_) => (TYPE_DIRECTORY, Body::Empty),
        Content::Inline(bytes) => (TYPE_FILE, Body::Bytes(bytes)),
        Content::Object { digest, size } => (TYPE_FILE, Body::Object(digest, *size)),
        Content::Symlink(target) => (TYPE_SYMLINK, Body::Bytes(target)),
        content if is_whiteout(content) => {
            marks.whiteout = true;
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
        xattrs: Some(&node.meta.xattrs).filter(|it| !it.is_empty()),
        marks,
        attributes: 0..0,
        body,
    }
}

fn is_whiteout(content: &Content) -> bool {
    matches!(content, Content::Character(Device { major: 0, minor: 0 }))
}

/// The kernel's new_encode_dev (include/linux/kdev_t.h).
fn encoded(device: Device) -> u32 {
    device.minor & 0xff | device.major << 8 | (device.minor & !0xff) << 12
}

/// The attributes of all inodes, each different one once.
#[derive(Default)]
struct Attributes<'a> {
    known: Vec<Attribute<'a>>,
    /// Indices into `known`, an inode's together and in the order of their names.
    of_inodes: Vec<u32>,
    by_content: HashMap<(&'a [u8], &'a [u8]), u32>,
    /// Of the two that name an object the first; the second follows it.
    by_object: HashMap<&'a Digest, u32>,
    has_acl: bool,
}

/// An attribute as inodes may have it.
struct Attribute<'a> {
    name: &'a [u8],
    value: Value<'a>,
    uses: u32,
    /// Where it lies among the shared ones, if several inodes have it.
    shared: Option<u32>,
    /// The bit of the filter that says "not here".
    filter_bit: u32,
}

/// What an attribute holds.
enum Value<'a> {
    Bytes(&'a [u8]),
    /// Where an object lies.
    Redirect(&'a Digest),
    /// That content is an object.
    Metacopy(&'a Digest),
}

/// Bytes of a redirect: `/xx/…`.
const REDIRECT_LEN: usize = 66;
/// What a metacopy attribute begins with: version, length, flags, algorithm (SHA-256).
const METACOPY_HEAD: [u8; 4] = [0, 36, 0, 1];

impl<'a> Attribute<'a> {
    fn new(name: &'a [u8], value: Value<'a>) -> Attribute<'a> {
        let (index, rest) = xattr_index(name).unwrap_or((0, name));
        Attribute {
            name,
            value,
            uses: 0,
            shared: None,
            filter_bit: xattr_filter_bit(index, rest),
        }
    }

    fn value(&self) -> Cow<'a, [u8]> {
        match self.value {
            Value::Bytes(bytes) => bytes.into(),
            Value::Metacopy(digest) => [&METACOPY_HEAD[..], &digest.0].concat().into(),
            Value::Redirect(digest) => redirect(digest).to_vec().into(),
        }
    }

    /// Its bytes among those of an inode.
    fn size(&self) -> usize {
        let rest = xattr_index(self.name).map_or(self.name.len(), |(_, rest)| rest.len());
        (4 + rest + self.value_len()).next_multiple_of(4)
    }

    fn value_len(&self) -> usize {
        match self.value {
            Value::Bytes(bytes) => bytes.len(),
            Value::Metacopy(digest) => METACOPY_HEAD.len() + digest.0.len(),
            Value::Redirect(_) => REDIRECT_LEN,
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.size();
        let (index, rest) = xattr_index(self.name).unwrap_or((0, self.name));
        out.extend_from_slice(&[rest.len() as u8, index]);
        out.extend_from_slice(&(self.value_len() as u16).to_le_bytes());
        out.extend_from_slice(rest);
        match self.value {
            Value::Bytes(bytes) => out.extend_from_slice(bytes),
            Value::Metacopy(digest) => {
                out.extend_from_slice(&METACOPY_HEAD);
                out.extend_from_slice(&digest.0);
            }
            Value::Redirect(digest) => out.extend_from_slice(&redirect(digest)),
        }
        out.resize(end, 0);
    }
}

fn redirect(digest: &Digest) -> [u8; REDIRECT_LEN] {
    let mut path = [b'/'; REDIRECT_LEN];
    for (index, byte) in digest.0.iter().enumerate() {
        // The first two digits are the directory.
        let at = 1 + index * 2 + usize::from(index > 0);
        path[at] = HEX[usize::from(byte >> 4)];
        path[at + 1] = HEX[usize::from(byte & 15)];
    }
    path
}

impl<'a> Attributes<'a> {
    /// Takes in those of an inode.
    fn take(&mut self, inode: &mut Inode<'a>) {
        let start = self.of_inodes.len();
        for (name, value) in inode.xattrs.into_iter().flatten() {
            if !inode.marks.stub || name == LABEL {
                self.has_acl |= name.starts_with(b"system.posix_acl_");
                self.add(name, value);
            }
        }
        if let Body::Object(digest, _) = inode.body {
            self.add_object(digest);
        }
        let marked = |is_marked: bool, marks: &'static [(&str, &str)]| {
            marks.iter().filter(move |_| is_marked)
        };
        let marks = marked(inode.marks.whiteout, &WHITEOUT_MARKS)
            .chain(marked(inode.marks.whiteout_parent, &WHITEOUT_PARENT_MARKS))
            .chain(marked(inode.marks.opaque, &[(OPAQUE, "y")]));
        for (name, value) in marks {
            self.add(name.as_bytes(), value.as_bytes());
        }
        let known = &self.known;
        self.of_inodes[start..].sort_by_key(|index| known[*index as usize].name);
        inode.attributes = start..self.of_inodes.len();
    }

    fn add(&mut self, name: &'a [u8], value: &'a [u8]) {
        let index = *self.by_content.entry((name, value)).or_insert_with(|| {
            self.known.push(Attribute::new(name, Value::Bytes(value)));
            self.known.len() as u32 - 1
        });
        self.have(index);
    }

    fn add_object(&mut self, digest: &'a Digest) {
        let first = *self.by_object.entry(digest).or_insert_with(|| {
            let metacopy = Attribute::new(METACOPY.as_bytes(), Value::Metacopy(digest));
            let redirect = Attribute::new(REDIRECT.as_bytes(), Value::Redirect(digest));
            self.known.extend([metacopy, redirect]);
            self.known.len() as u32 - 2
        });
        self.have(first);
        self.have(first + 1);
    }

    fn have(&mut self, index: u32) {
        self.known[index as usize].uses += 1;
        self.of_inodes.push(index);
    }

    /// Gives those of several inodes their places. Returns them as they lie on disk.
    fn share(&mut self) -> Vec<u8> {
        let several = self.known.iter_mut().filter(|it| it.uses > 1);
        let mut several: Vec<_> = several.map(|it| (it.value(), it)).collect();
        // composefs sorts downwards: by name, then the value's length, then the value.
        several.sort_by(|(a_value, a), (b_value, b)| {
            (b.name, b_value.len(), b_value).cmp(&(a.name, a_value.len(), a_value))
        });
        let mut table = Vec::new();
        for (_, attribute) in several {
            attribute.shared = Some(table.len() as u32);
            attribute.put(&mut table);
        }
        table
    }

    /// Those of an inode: the shared ones that it names, and those that it holds itself.
    fn split(&self, inode: &Inode<'_>) -> (Vec<u32>, Vec<&Attribute<'a>>) {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for index in &self.of_inodes[inode.attributes.clone()] {
            let attribute = &self.known[*index as usize];
            match attribute.shared {
                Some(offset) if shared.len() < SHARED_XATTRS_MAX => shared.push(offset),
                _ => own.push(attribute),
            }
        }
        (shared, own)
    }

    fn size(&self, inode: &Inode<'_>) -> usize {
        if inode.attributes.is_empty() {
            return 0;
        }
        let (shared, own) = self.split(inode);
        let own: usize = own.iter().map(|it| it.size()).sum();
        XATTR_HEADER + shared.len() * 4 + own
    }

    /// For each bit: no attribute's name hashes to it.
    fn filter(&self, inode: &Inode<'_>) -> u32 {
        let of_inode = &self.of_inodes[inode.attributes.clone()];
        let bits = of_inode
            .iter()
            .map(|it| self.known[*it as usize].filter_bit);
        !bits.fold(0, |all, bit| all | bit)
    }

    fn put(&self, out: &mut Vec<u8>, inode: &Inode<'_>, inodes_end: usize) {
        if inode.attributes.is_empty() {
            return;
        }
        let (shared, own) = self.split(inode);
        out.extend_from_slice(&self.filter(inode).to_le_bytes());
        out.extend_from_slice(&[shared.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
        for offset in shared {
            out.extend_from_slice(&(((inodes_end % BLOCK) as u32 + offset) / 4).to_le_bytes());
        }
        own.iter().for_each(|it| it.put(out));
    }
}

impl<'a> Collected<'a> {
    /// Gives every inode its place.
    fn places(&self, oldest: Mtime) -> Vec<Place> {
        let mut at = SUPERBLOCK + SUPERBLOCK_SIZE;
        let mut places = Vec::with_capacity(self.inodes.len());
        for inode in &self.inodes {
            let (blocks, tail) = self.content_shape(inode);
            let mut place = Place {
                offset: at.next_multiple_of(SLOT),
                compact: false,
                xattr_size: self.attributes.size(inode),
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
    fn content_shape(&self, inode: &Inode<'_>) -> (usize, usize) {
        match &inode.body {
            Body::Directory(entries) => {
                let blocks = DirectoryBlocks(&self.entries[entries.clone()]);
                let sizes = blocks.map(|block| block.iter().map(Entry::size).sum());
                let (count, last) = sizes.fold((0, 0), |(count, _), size: usize| (count + 1, size));
                if last > BLOCK / 2 {
                    (count, 0)
                } else {
                    (count - 1, last)
                }
            }
            Body::Bytes(target) if inode.mode & TYPE_MASK == TYPE_SYMLINK => (0, target.len()),
            Body::Bytes(bytes) if bytes.len() % BLOCK > BLOCK / 2 => (bytes.len() / BLOCK + 1, 0),
            Body::Bytes(bytes) => (bytes.len() / BLOCK, bytes.len() % BLOCK),
            Body::Object(..) => (0, 4),
            Body::Device(_) | Body::Empty => (0, 0),
        }
    }

    fn emit(
        &self,
        places: &[Place],
        shared: &[u8],
        oldest: Mtime,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let inodes_end = places.last().map_or(0, Place::end).next_multiple_of(SLOT);
        let data = (inodes_end + shared.len()).next_multiple_of(BLOCK);
        let blocks: usize = places.iter().map(|place| place.blocks).sum();
        let mut out = Out {
            bytes: Vec::with_capacity(2 * PIECE),
            before: 0,
            sink,
        };
        put_header(&mut out.bytes, self.attributes.has_acl);
        put_superblock(
            &mut out.bytes,
            self.inodes.len(),
            &places[0],
            inodes_end,
            data / BLOCK + blocks,
            oldest,
        );
        let mut next_block = (data / BLOCK) as u32;
        for (number, (inode, place)) in self.inodes.iter().zip(places).enumerate() {
            out.fill_to(place.offset);
            put_inode(&mut out.bytes, inode, place, number as u32, next_block);
            next_block += place.blocks as u32;
            self.attributes.put(&mut out.bytes, inode, inodes_end);
            self.put_tail(&mut out.bytes, inode, place, places);
            out.pass_on()?;
        }
        out.fill_to(inodes_end);
        out.bytes.extend_from_slice(shared);
        out.fill_to(data);
        for (inode, place) in self.inodes.iter().zip(places) {
            self.put_blocks(&mut out, inode, place, places);
            out.pass_on()?;
        }
        (out.sink)(out.bytes)
    }

    fn put_tail(&self, out: &mut Vec<u8>, inode: &Inode<'_>, place: &Place, places: &[Place]) {
        if place.tail == 0 {
            return;
        }
        match &inode.body {
            Body::Directory(entries) => {
                let mut blocks = DirectoryBlocks(&self.entries[entries.clone()]);
                if let Some(last) = blocks.nth(place.blocks) {
                    self.put_directory_block(out, last, places);
                }
            }
            Body::Bytes(bytes) => out.extend_from_slice(&bytes[bytes.len() - place.tail..]),
            Body::Object(..) => out.extend_from_slice(&NULL_CHUNK.to_le_bytes()),
            Body::Device(_) | Body::Empty => {}
        }
    }

    fn put_blocks(
        &self,
        out: &mut Out<'_, '_>,
        inode: &Inode<'_>,
        place: &Place,
        places: &[Place],
    ) {
        if place.blocks == 0 {
            return;
        }
        match &inode.body {
            Body::Directory(entries) => {
                let blocks = DirectoryBlocks(&self.entries[entries.clone()]);
                for block in blocks.take(place.blocks) {
                    self.put_directory_block(&mut out.bytes, block, places);
                    out.fill_block();
                }
            }
            Body::Bytes(bytes) => {
                out.bytes
                    .extend_from_slice(&bytes[..bytes.len() - place.tail]);
                out.fill_block();
            }
            Body::Object(..) | Body::Device(_) | Body::Empty => {}
        }
    }

    fn put_directory_block(&self, out: &mut Vec<u8>, block: &[Entry<'_>], places: &[Place]) {
        let mut name_at = block.len() * DIRENT;
        for Entry { name, number } in block {
            let number = *number as usize;
            out.extend_from_slice(&places[number].nid().to_le_bytes());
            out.extend_from_slice(&(name_at as u16).to_le_bytes());
            out.extend_from_slice(&[dirent_type(self.inodes[number].mode), 0]);
            name_at += name.len();
        }
        block
            .iter()
            .for_each(|entry| out.extend_from_slice(entry.name));
    }
}

/// An image under construction.
struct Out<'o, 's> {
    bytes: Vec<u8>,
    /// Bytes that were passed on.
    before: usize,
    sink: &'o mut Sink<'s>,
}

impl Out<'_, '_> {
    /// Zeros up to that offset in the image.
    fn fill_to(&mut self, offset: usize) {
        self.bytes.resize(offset - self.before, 0);
    }

    /// Zeros up to the end of the block.
    fn fill_block(&mut self) {
        self.fill_to((self.before + self.bytes.len()).next_multiple_of(BLOCK));
    }

    fn pass_on(&mut self) -> Result<()> {
        if self.bytes.len() < PIECE {
            return Ok(());
        }
        self.before += self.bytes.len();
        let next = Vec::with_capacity(2 * PIECE);
        (self.sink)(std::mem::replace(&mut self.bytes, next))
    }
}

/// A directory's entries as they are spread over blocks.
struct DirectoryBlocks<'d, 'a>(&'d [Entry<'a>]);

impl<'d, 'a> Iterator for DirectoryBlocks<'d, 'a> {
    type Item = &'d [Entry<'a>];

    fn next(&mut self) -> Option<&'d [Entry<'a>]> {
        let mut used = 0;
        let fits = |entry: &&Entry<'_>| {
            used += entry.size();
            used <= BLOCK
        };
        let count = self.0.iter().take_while(fits).count();
        let (block, rest) = self.0.split_at(count);
        self.0 = rest;
        (!block.is_empty()).then_some(block)
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
        Body::Object(_, size) => *size,
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

fn put_header(out: &mut Vec<u8>, has_acl: bool) {
    let flags = if has_acl { FLAG_HAS_ACL } else { 0 };
    for word in [COMPOSEFS_MAGIC, HEADER_VERSION, flags, COMPOSEFS_VERSION] {
        out.extend_from_slice(&word.to_le_bytes());
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
    out.extend_from_slice(&EROFS_MAGIC.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes()); // no checksum
    out.extend_from_slice(&FEATURES_COMPATIBLE.to_le_bytes());
    out.extend_from_slice(&[BLOCK_BITS as u8, 0]);
    out.extend_from_slice(&(root.nid() as u16).to_le_bytes());
    out.extend_from_slice(&(inodes as u64).to_le_bytes());
    out.extend_from_slice(&oldest.seconds.to_le_bytes());
    out.extend_from_slice(&oldest.nanoseconds.to_le_bytes());
    out.extend_from_slice(&(blocks as u32).to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes()); // inodes are counted from block 0
    out.extend_from_slice(&((end / BLOCK) as u32).to_le_bytes());
    out.resize(SUPERBLOCK + SUPERBLOCK_SIZE, 0);
}

fn put_inode(out: &mut Vec<u8>, inode: &Inode<'_>, place: &Place, number: u32, next_block: u32) {
    let (layout, word) = match &inode.body {
        Body::Object(_, size) => (LAYOUT_CHUNKS, chunk_bits(*size)),
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
    out.extend_from_slice(&(layout << 1 | u16::from(!place.compact)).to_le_bytes());
    out.extend_from_slice(&(xattr_count as u16).to_le_bytes());
    out.extend_from_slice(&inode.mode.to_le_bytes());
    if place.compact {
        out.extend_from_slice(&(inode.nlink as u16).to_le_bytes());
        out.extend_from_slice(&(size as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&word.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(inode.uid as u16).to_le_bytes());
        out.extend_from_slice(&(inode.gid as u16).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    } else {
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(&word.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&inode.uid.to_le_bytes());
        out.extend_from_slice(&inode.gid.to_le_bytes());
        out.extend_from_slice(&inode.mtime.seconds.to_le_bytes());
        out.extend_from_slice(&inode.mtime.nanoseconds.to_le_bytes());
        out.extend_from_slice(&inode.nlink.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
    }
}

/// The bit shift, over a block's, of one chunk that spans the whole file.
fn chunk_bits(size: u64) -> u32 {
    let bits = size.max(2).next_power_of_two().ilog2();
    bits.saturating_sub(BLOCK_BITS).min(CHUNK_BITS_MAX)
}
