//! The JSON documents of container images, as far as an import or an export needs them.
//!
//! OCI image specification 1.1: image-layout.md, image-index.md, manifest.md, config.md; Docker's
//! image specification 1.2 for `manifest.json`. Fields that are not known are not an error.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest::BlobDigest;
use crate::error::{Error, Result};

/// The largest document, in bytes: what registries take for a manifest.
pub const DOCUMENT_MAX: u64 = 4 << 20;

pub const LAYOUT_VERSION: &str = "1.0.0";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The annotation with an image's name (annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Kinds of layers, before what says their compression.
const LAYERS: [&str; 4] = [
    LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// `oci-layout`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Layout {
    /// The version of the layout.
    pub image_layout_version: String,
}

/// `index.json`, and an index among the blobs.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    #[serde(default)]
    pub schema_version: u32,
    /// [`INDEX`].
    #[serde(default)]
    pub media_type: String,
    /// What it lists.
    pub manifests: Vec<Descriptor>,
}

/// Says which blob, how long, and of which kind.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The kind.
    #[serde(default)]
    pub media_type: String,
    /// The blob's name.
    pub digest: BlobDigest,
    /// Its length in bytes.
    pub size: u64,
    /// What the image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// More about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Platform {
    /// The processor, in the words of Go (`amd64`).
    #[serde(default)]
    pub architecture: String,
    /// The operating system.
    #[serde(default)]
    pub os: String,
    /// Which kind of that processor (`v3`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// An image's manifest.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// 2.
    #[serde(default)]
    pub schema_version: u32,
    /// [`MANIFEST`].
    #[serde(default)]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// An image's configuration.
#[derive(Debug, Deserialize, Serialize)]
pub struct Config {
    /// What it runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// The layers' digests.
    pub rootfs: RootFs,
}

/// Of a configuration.
#[derive(Debug, Deserialize, Serialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The layers' digests, not compressed, lowest first.
    pub diff_ids: Vec<BlobDigest>,
}

/// An image in the `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    /// The path of its configuration.
    pub config: String,
    /// Its names.
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// The paths of its layers, lowest first.
    pub layers: Vec<String>,
}

impl Index {
    /// One that lists one thing.
    pub fn of(manifest: Descriptor) -> Index {
        Index {
            schema_version: 2,
            media_type: INDEX.into(),
            manifests: vec![manifest],
        }
    }
}

impl Descriptor {
    /// What refers to a blob.
    pub fn new(media_type: &str, digest: BlobDigest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The same, of an image for this platform.
    pub fn of_platform(mut self, platform: Platform) -> Descriptor {
        self.platform = Some(platform);
        self
    }

    /// The same, of an image with this name in its layout.
    pub fn called(mut self, name: &str) -> Descriptor {
        self.annotations
            .insert(REF_NAME.to_owned(), name.to_owned());
        self
    }

    /// Whether it is about an index.
    pub fn is_index(&self) -> bool {
        [INDEX, DOCKER_INDEX].contains(&self.media_type.as_str())
    }

    /// Whether it is about an image's manifest.
    pub fn is_manifest(&self) -> bool {
        [MANIFEST, DOCKER_MANIFEST].contains(&self.media_type.as_str())
    }

    /// Whether it is about an image's configuration; other programs' artifacts have others.
    pub fn is_config(&self) -> bool {
        [CONFIG, DOCKER_CONFIG].contains(&self.media_type.as_str())
    }

    /// Whether it is about a layer that can be read. The compression is told by the first bytes.
    pub fn is_layer(&self) -> bool {
        let rest = LAYERS
            .iter()
            .find_map(|kind| self.media_type.strip_prefix(kind));
        rest.is_some_and(|rest| matches!(rest, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
    }

    /// The name that the image has in the layout.
    pub fn reference(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }
}

impl Platform {
    /// Whether it is what nodes are.
    pub fn is_wanted(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }

    /// Whether it is what builders say of what they attach to an image.
    pub fn is_nothing(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Whether a node can run it at all; what says nothing is judged by what is in it.
    pub fn may_be_linux(&self) -> bool {
        self.os == "linux" || self.is_nothing()
    }

    /// Whether every processor of its kind will do.
    pub fn is_plain(&self) -> bool {
        matches!(self.variant.as_str(), "" | "v1")
    }
}

/// A document's text.
pub fn json(document: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(document)
        .map_err(|error| Error::io("writing", "a document of the image".as_ref())(error.into()))
}

/// The kind of a manifest or an index. Both may leave it out, but only an index lists manifests.
pub fn kind_of(text: &[u8]) -> &'static str {
    #[derive(Deserialize)]
    struct Either {
        manifests: Option<serde::de::IgnoredAny>,
    }
    match serde_json::from_slice(text) {
        Ok(Either { manifests: Some(_) }) => INDEX,
        _ => MANIFEST,
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() {
            return Ok(());
        }
        write!(out, "/{}", self.variant)
    }
}
