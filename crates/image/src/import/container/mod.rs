//! Container images as a source: an OCI image layout, as a directory or an archive, and the archive
//! of `docker save`.
//!
//! OCI image specification 1.1: <https://github.com/opencontainers/image-spec>. Of several images the
//! one for the nodes' platform is taken. Every blob is checked against its digest, and every layer
//! against the one that the configuration has of its content.

mod digest;
pub(crate) mod documents;
mod layer;
mod place;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::Path;

pub use self::digest::BlobDigest;
pub(crate) use self::digest::Hashed;
use self::documents as doc;
pub use self::documents::DOCUMENT_MAX;
use self::documents::{Config, Descriptor, ImageManifest, Index, Layout, Platform, Saved};
use self::layer::{Layer, LayerSource};
pub use self::place::{Origin, Part};
pub(crate) use self::place::{Packed, Place, Window, check_digest};
use super::tar::Intake;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, bad, components};

/// The most layers of an image.
const LAYERS_MAX: usize = 1024;
/// How deep indexes may lie in each other.
const DEPTH_MAX: usize = 8;
/// The most descriptors that are looked at.
const DESCRIPTORS_MAX: usize = 1000;

/// Whether a directory is an OCI image layout.
pub fn is_layout(directory: &Path) -> bool {
    let is_file = |name| directory.join(name).is_file();
    is_file("oci-layout") && is_file("index.json")
}

/// Whether the archive of a container image may have this as its first entry. Layouts have `blobs`;
/// `docker save`, and those who write the same (skopeo, crane, Bazel), have names of 64 hexadecimal
/// digits.
pub(crate) fn may_begin_with(path: &[u8]) -> bool {
    let Some(first) = components(path).next() else {
        return false;
    };
    let named = [
        "oci-layout",
        "index.json",
        "manifest.json",
        "repositories",
        "blobs",
    ];
    let stem = first.strip_prefix(b"sha256:").unwrap_or(first);
    let stem = stem.split(|byte| *byte == b'.').next().unwrap_or(stem);
    named.iter().any(|name| first == name.as_bytes())
        || (stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit))
}

/// Reads the image in a place, flattened.
pub(crate) fn read(place: &Place<'_>, intake: &mut Intake<'_>) -> Result<Manifest> {
    let layers = if place.has("oci-layout")? && place.has("index.json")? {
        layout_layers(place)?
    } else {
        saved_layers(place)?
    };
    let mut tree = Manifest::new();
    for layer in layers {
        Layer::read(place, &layer, intake)?.apply(&mut tree)?;
    }
    Ok(tree)
}

/// An image among others.
struct Candidate<T> {
    /// What it is called, for people.
    name: String,
    platform: Platform,
    image: T,
}

fn layout_layers(place: &Place<'_>) -> Result<Vec<LayerSource>> {
    let layout: Layout = place.document("oci-layout")?;
    if !layout.image_layout_version.starts_with("1.") {
        return Err(bad(
            b"oci-layout",
            format!(
                "layout version {:?}, expected {}",
                layout.image_layout_version,
                doc::LAYOUT_VERSION
            ),
        ));
    }
    let mut candidates = Vec::new();
    for descriptor in manifests(place)? {
        let platform = match &descriptor.platform {
            Some(platform) => platform.clone(),
            None => platform_of(place, &descriptor)?,
        };
        let name = descriptor.reference().unwrap_or_default();
        candidates.push(Candidate {
            name: format!("{name} {}", descriptor.digest).trim().to_owned(),
            platform,
            image: descriptor,
        });
    }
    let manifest: ImageManifest = place.described(&choose("index.json", candidates)?)?;
    let config = config_of(place, &manifest)?;
    let name = manifest.config.digest.path();
    check_layers(&name, &config, manifest.layers.len())?;
    let layers = manifest.layers.iter().zip(config.rootfs.diff_ids);
    layers
        .map(|(layer, diff_id)| layout_layer(layer, diff_id))
        .collect()
}

fn layout_layer(layer: &Descriptor, diff_id: BlobDigest) -> Result<LayerSource> {
    let path = layer.digest.path();
    if !layer.is_layer() {
        return Err(bad(
            path.as_bytes(),
            format!(
                "a layer of type {:?}, expected {} (plain, +gzip or +zstd)",
                layer.media_type,
                doc::LAYER
            ),
        ));
    }
    Ok(LayerSource {
        path,
        blob: Some(layer.clone()),
        diff_id,
    })
}

/// The descriptors of all images of a layout, those in indexes too. What is no image is passed over.
fn manifests(place: &Place<'_>) -> Result<Vec<Descriptor>> {
    let index: Index = place.document("index.json")?;
    let mut ahead: Vec<(Descriptor, usize)> =
        index.manifests.into_iter().map(|it| (it, 1)).collect();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut others = Vec::new();
    let mut looked_at = 0;
    ahead.reverse();
    while let Some((descriptor, depth)) = ahead.pop() {
        looked_at += 1;
        if looked_at > DESCRIPTORS_MAX {
            let why = format!("more than {DESCRIPTORS_MAX} descriptors, with those of its indexes");
            return Err(bad(b"index.json", why));
        }
        if !seen.insert(descriptor.digest.clone()) {
            continue;
        }
        if descriptor.is_manifest() {
            found.push(descriptor);
        } else if !descriptor.is_index() {
            others.push(descriptor.media_type);
        } else if depth == DEPTH_MAX {
            let why = format!("indexes inside each other, more than {DEPTH_MAX} deep");
            return Err(bad(b"index.json", why));
        } else {
            let inner: Index = place.described(&descriptor)?;
            ahead.extend(inner.manifests.into_iter().rev().map(|it| (it, depth + 1)));
        }
    }
    if found.is_empty() {
        return Err(bad(
            b"index.json",
            match &others[..] {
                [] => "it lists no image".to_owned(),
                [other, ..] => format!("expected {}, it lists {other:?}", doc::MANIFEST),
            },
        ));
    }
    Ok(found)
}

fn platform_of(place: &Place<'_>, descriptor: &Descriptor) -> Result<Platform> {
    let manifest: ImageManifest = place.described(descriptor)?;
    if !manifest.config.is_config() {
        // An artifact of another kind: nothing that could be chosen.
        return Ok(Platform {
            architecture: "unknown".into(),
            os: "unknown".into(),
            variant: String::new(),
        });
    }
    Ok(config_of(place, &manifest)?.platform)
}

fn config_of(place: &Place<'_>, manifest: &ImageManifest) -> Result<Config> {
    if !manifest.config.is_config() {
        return Err(bad(
            manifest.config.digest.path().as_bytes(),
            format!(
                "not a container image: its configuration is of type {:?}, expected {}",
                manifest.config.media_type,
                doc::CONFIG
            ),
        ));
    }
    place.described(&manifest.config)
}

fn saved_layers(place: &Place<'_>) -> Result<Vec<LayerSource>> {
    const LIST: &str = "manifest.json";
    let list: Vec<Saved> = place.document(LIST)?;
    if list.len() > DESCRIPTORS_MAX {
        let why = format!("{} images, expected at most {DESCRIPTORS_MAX}", list.len());
        return Err(bad(LIST.as_bytes(), why));
    }
    let mut candidates = Vec::new();
    for saved in list {
        let config: Config =
            place.checked_document(&saved.config, named_by(&saved.config).as_ref())?;
        candidates.push(Candidate {
            name: saved.repo_tags.clone().unwrap_or_default().join(", "),
            platform: config.platform.clone(),
            image: (saved, config),
        });
    }
    let (saved, config) = choose(LIST, candidates)?;
    check_layers(&saved.config, &config, saved.layers.len())?;
    let layers = saved.layers.into_iter().zip(config.rootfs.diff_ids);
    let sources = layers.map(|(path, diff_id)| LayerSource {
        path,
        blob: None,
        diff_id,
    });
    Ok(sources.collect())
}

/// The digest that the path of a configuration has in it: `HEX.json`, `sha256:HEX` or
/// `blobs/sha256/HEX`.
fn named_by(path: &str) -> Option<BlobDigest> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let name = name.strip_suffix(".json").unwrap_or(name);
    BlobDigest::sha256(name.strip_prefix("sha256:").unwrap_or(name)).ok()
}

fn check_layers(path: &str, config: &Config, layers: usize) -> Result<()> {
    let why = match config.rootfs.diff_ids.len() {
        _ if config.rootfs.kind != "layers" => {
            format!("a root of type {:?}, expected layers", config.rootfs.kind)
        }
        0 => "an image without layers".to_owned(),
        count if count > LAYERS_MAX => format!("{count} layers, expected at most {LAYERS_MAX}"),
        count if count != layers => {
            format!("digests of {count} layers, but the manifest lists {layers}")
        }
        _ => return Ok(()),
    };
    Err(bad(path.as_bytes(), why))
}

/// The image for the nodes' platform, or the only one.
fn choose<T>(path: &str, mut candidates: Vec<Candidate<T>>) -> Result<T> {
    if candidates.iter().any(|it| !it.platform.is_nothing()) {
        candidates.retain(|it| !it.platform.is_nothing());
    }
    let all: Vec<String> = candidates
        .iter()
        .map(|it| format!("{} {}", it.platform, it.name).trim().to_owned())
        .collect();
    for is_better in [Platform::is_wanted, Platform::is_plain] {
        if candidates.len() > 1 {
            candidates.retain(|it| is_better(&it.platform));
        }
    }
    match candidates.pop() {
        Some(only) if candidates.is_empty() && only.platform.may_be_linux() => Ok(only.image),
        _ => Err(Error::NoSuchPlatform {
            path: path.to_owned(),
            found: all,
        }),
    }
}
