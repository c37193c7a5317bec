//! A version as a container image: an OCI image layout (OCI image specification 1.1) with one layer.
//!
//! The layer is the archive that [`super::tar`] writes, not compressed, so that the image's digests
//! depend on nothing but the version: registries and other tools compress as they like. It is made
//! twice, for the documents that come first have its digest.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{BUFFER, base, dir, tar};
use crate::error::{Error, Result};
use crate::import::Progress;
use crate::import::container::{BlobDigest, Hashed, check_digest, documents as doc};
use crate::manifest::bad;
use crate::tree::{Attr, StoredTree};
use crate::walk::{Visitor, walk};

/// What the image is called inside its layout: tools ask for a name.
const NAME: &str = "latest";

/// Writes a version as a tar archive of an OCI image layout, not compressed. `path` is where `out`
/// leads, for errors.
///
/// # Errors
/// [`Error::BadSource`] for a name that a layer cannot have; else as [`tar::write`].
pub fn write_tar(
    tree: &StoredTree,
    out: &mut dyn Write,
    path: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let layout = Layout::of(tree, progress)?;
    let failed = |error| Error::io("writing", path)(error);
    for (name, text) in &layout.documents {
        tar::put_file_head(out, name.as_bytes(), text.len() as u64).map_err(failed)?;
        out.write_all(text).map_err(failed)?;
        tar::put_padding(out, text.len() as u64).map_err(failed)?;
    }
    let name = layout.layer.path();
    tar::put_file_head(out, name.as_bytes(), layout.size).map_err(failed)?;
    let done = layout.write_layer(tree, out, path, progress)?;
    tar::put_padding(out, layout.size).map_err(failed)?;
    tar::put_end(out).map_err(failed)?;
    out.flush().map_err(failed)?;
    Ok(done)
}

/// Fills a directory that is new, or empty, with an OCI image layout of a version. It is made beside
/// its place and renamed to it when it is whole and on the disk.
///
/// # Errors
/// As [`super::write_dir`] and [`write_tar`].
pub fn write_dir(
    tree: &StoredTree,
    target: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    let draft = dir::Draft::beside(target)?;
    let top = draft.path();
    let layout = Layout::of(tree, progress)?;
    let failed = |error| Error::io("writing", target)(error);
    for (name, text) in &layout.documents {
        let path = top.join(name);
        let folder = path.parent().unwrap_or(top);
        fs::create_dir_all(folder).map_err(failed)?;
        fs::write(&path, text).map_err(failed)?;
    }
    let layer = File::create(top.join(layout.layer.path())).map_err(failed)?;
    let mut out = BufWriter::with_capacity(BUFFER, layer);
    let done = layout.write_layer(tree, &mut out, target, progress)?;
    out.flush().map_err(failed)?;
    // A draft is its maker's alone.
    fs::set_permissions(top, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    draft.keep()?;
    Ok(done)
}

/// All of an image but its layer.
struct Layout {
    /// Paths and texts.
    documents: Vec<(String, Vec<u8>)>,
    layer: BlobDigest,
    /// The layer's length in bytes.
    size: u64,
}

impl Layout {
    fn of(tree: &StoredTree, progress: &mut dyn FnMut(Progress)) -> Result<Layout> {
        walk(tree, &mut Names, &mut |_| ())?;
        let mut hashed = Hashed::sha256(io::sink());
        tar::write(tree, &mut hashed, Path::new("nowhere"), progress)?;
        let (layer, size) = hashed.finish();
        let platform = doc::Platform {
            architecture: "amd64".into(),
            os: "linux".into(),
            variant: String::new(),
        };
        let mut documents = Vec::new();
        let config = blob(
            &mut documents,
            doc::CONFIG,
            &doc::Config {
                platform: platform.clone(),
                rootfs: doc::RootFs {
                    kind: "layers".into(),
                    diff_ids: vec![layer.clone()],
                },
            },
        )?;
        let manifest = blob(
            &mut documents,
            doc::MANIFEST,
            &doc::ImageManifest {
                schema_version: 2,
                media_type: doc::MANIFEST.into(),
                config,
                layers: vec![doc::Descriptor::new(doc::LAYER, layer.clone(), size)],
            },
        )?;
        let index = doc::Index::of(manifest.of_platform(platform).called(NAME));
        let version = doc::Layout {
            image_layout_version: doc::LAYOUT_VERSION.into(),
        };
        // First in an archive: what tells that it is an image.
        documents.insert(0, ("oci-layout".into(), doc::json(&version)?));
        documents.insert(1, ("index.json".into(), doc::json(&index)?));
        Ok(Layout {
            documents,
            layer,
            size,
        })
    }

    fn write_layer(
        &self,
        tree: &StoredTree,
        out: &mut dyn Write,
        path: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Progress> {
        let mut hashed = Hashed::sha256(out);
        let done = tar::write(tree, &mut hashed, path, progress)?;
        check_digest("the layer", &self.layer, &hashed.finish().0)?;
        Ok(done)
    }
}

/// Adds a document to the blobs; what refers to it.
fn blob(
    documents: &mut Vec<(String, Vec<u8>)>,
    media_type: &str,
    document: &impl serde::Serialize,
) -> Result<doc::Descriptor> {
    let text = doc::json(document)?;
    let (digest, size) = (BlobDigest::of(&text), text.len() as u64);
    documents.push((digest.path(), text));
    Ok(doc::Descriptor::new(media_type, digest, size))
}

/// In a layer, a name that begins so takes another away.
struct Names;

impl Visitor for Names {
    fn enter(&mut self, path: &[u8], _: &Attr) -> Result<()> {
        check_name(path)
    }

    fn node(&mut self, path: &[u8], _: &Attr) -> Result<()> {
        check_name(path)
    }

    fn link(&mut self, path: &[u8], _: &Attr, _: &[u8]) -> Result<()> {
        check_name(path)
    }
}

fn check_name(path: &[u8]) -> Result<()> {
    if base(path).starts_with(b".wh.") {
        let why =
            "no container image can have a name that begins with .wh.: export a plain archive";
        return Err(bad(path, why));
    }
    Ok(())
}
