//! One layer: what it adds to those below it, and what of theirs it hides.
//!
//! OCI image specification, layer.md, "Whiteouts": a whiteout hides only what lower layers put there,
//! never what its own layer adds, wherever in the layer it stands. So a layer is read as a whole,
//! then hides, then adds. What is hidden is looked for by its path alone: no symbolic link is
//! followed, so that the mark of an opaque directory that took a link's place does not empty what the
//! link led to.

use std::io::{self, BufRead as _, BufReader, Read};

use super::digest::{BlobDigest, Hashed};
use super::documents::Descriptor;
use super::place::{Place, check_digest};
use crate::error::{Error, Result};
use crate::import::archive::Archive;
use crate::import::tar::{Compression, Intake, Item, decompressed, put};
use crate::manifest::{Manifest, bad, components};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that begin so, but for [`OPAQUE`], are what AUFS kept for itself. No whiteout can mean the
/// rest of such a name, since no file can have it.
const META: &[u8] = b".wh..wh.";
/// The most bytes that a layer may unpack to.
const LAYER_MAX: u64 = if cfg!(test) { 64 << 20 } else { 1 << 42 };
const BUFFER: usize = 1 << 18;

/// A layer in a place.
pub struct LayerSource {
    /// Its path.
    pub path: String,
    /// What the image says of the bytes that are there, if it does.
    pub blob: Option<Descriptor>,
    /// The digest of what they unpack to.
    pub diff_id: BlobDigest,
}

/// What a layer does, in memory.
#[derive(Default)]
pub struct Layer {
    /// Paths that lower layers have and the image has not.
    hidden: Vec<Vec<u8>>,
    /// Directories of which the image has nothing that lower layers put there.
    opaque: Vec<Vec<u8>>,
    /// What it adds, in order.
    items: Vec<(Vec<u8>, Item)>,
}

/// What an entry's name says about its layer.
enum Mark {
    Adds,
    Hides(Vec<u8>),
    Opaque(Vec<u8>),
    Nothing,
}

impl Layer {
    /// Reads a layer to its end and checks its digests.
    pub fn read(place: &Place<'_>, source: &LayerSource, intake: &mut Intake<'_>) -> Result<Layer> {
        let LayerSource { path, diff_id, .. } = source;
        let Some(descriptor) = &source.blob else {
            return Layer::unpack(place.required(path)?, path, diff_id, intake);
        };
        let mut blob = Hashed::like(&descriptor.digest, place.blob(descriptor)?);
        let layer = Layer::unpack(&mut blob, path, diff_id, intake);
        // Bytes that are not what was promised explain whatever went wrong with them.
        io::copy(&mut blob, &mut io::sink()).map_err(Error::io("reading", path.as_ref()))?;
        check_digest(path, &descriptor.digest, &blob.finish().0)?;
        layer
    }

    fn unpack(
        blob: impl Read,
        name: &str,
        diff_id: &BlobDigest,
        intake: &mut Intake<'_>,
    ) -> Result<Layer> {
        let failed = |error| Error::io("reading", name.as_ref())(error);
        let mut blob = BufReader::with_capacity(BUFFER, blob);
        if Compression::of(blob.fill_buf().map_err(failed)?) == Some(Compression::Xz) {
            let why = "a layer that is compressed by xz, expected gzip, zstd or none";
            return Err(bad(name.as_bytes(), why));
        }
        let plain = decompressed(blob).map_err(failed)?.take(LAYER_MAX + 1);
        let mut plain = BufReader::with_capacity(BUFFER, Hashed::like(diff_id, plain));
        let mut layer = Layer::default();
        let outcome = layer.add_entries(&mut plain, name, intake);
        io::copy(&mut plain, &mut io::sink()).map_err(failed)?;
        let (got, bytes) = plain.into_inner().finish();
        if bytes > LAYER_MAX {
            return Err(Error::TooLarge {
                path: format!("{name}, unpacked"),
                size: bytes,
                limit: LAYER_MAX,
            });
        }
        check_digest(&format!("{name}, unpacked"), diff_id, &got)?;
        outcome.map(|()| layer)
    }

    fn add_entries(&mut self, plain: impl Read, name: &str, intake: &mut Intake<'_>) -> Result<()> {
        let mut archive = Archive::new(plain);
        let failed = |error| Error::io("reading", name.as_ref())(error);
        while let Some(entry) = archive.next_entry().map_err(failed)? {
            let mark = mark_of(&entry.path)?;
            if !matches!(mark, Mark::Adds) {
                intake.hold(&entry)?;
            }
            match mark {
                Mark::Adds => self.items.push(intake.take(&mut archive, entry)?),
                Mark::Hides(path) => self.hidden.push(path),
                Mark::Opaque(path) => self.opaque.push(path),
                Mark::Nothing => {}
            }
        }
        Ok(())
    }

    /// Lays it over what is below.
    pub fn apply(self, tree: &mut Manifest) -> Result<()> {
        self.hidden.iter().for_each(|path| tree.remove(path));
        self.opaque.iter().for_each(|path| tree.clear(path));
        self.items
            .into_iter()
            .try_for_each(|(path, item)| put(tree, &path, item))
    }
}

fn mark_of(path: &[u8]) -> Result<Mark> {
    let names: Vec<&[u8]> = components(path).collect();
    let Some((last, parents)) = names.split_last() else {
        return Ok(Mark::Adds);
    };
    if !names.iter().any(|name| name.starts_with(PREFIX)) {
        return Ok(Mark::Adds);
    }
    if names
        .iter()
        .any(|name| name.starts_with(META) && *name != OPAQUE)
    {
        return Ok(Mark::Nothing);
    }
    if parents.iter().any(|name| name.starts_with(PREFIX)) {
        return Err(bad(
            path,
            "an entry inside a whiteout, which is no directory",
        ));
    }
    if parents.contains(&b"..".as_slice()) {
        return Err(bad(path, "a path with `..`"));
    }
    let folder = parents.join(&b'/');
    if *last == OPAQUE {
        return Ok(Mark::Opaque(folder));
    }
    match last.strip_prefix(PREFIX) {
        Some(b"" | b"." | b"..") => Err(bad(path, "a whiteout that names no file")),
        Some(name) if folder.is_empty() => Ok(Mark::Hides(name.to_vec())),
        Some(name) => Ok(Mark::Hides([&folder, name].join(&b'/'))),
        None => Ok(Mark::Adds),
    }
}
