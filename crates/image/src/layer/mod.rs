//! Layers: what a change adds to a version of one image, to be laid over that image's later versions.
//!
//! A layer is two versions in the store, before and after the change, and what they differ in; so it
//! takes no space of its own, and `gc` keeps both. An image that is composed names a base and
//! layers; composing it makes a version like any other: one tree, which nodes mount as a whole.
//!
//! ```text
//! layers/NAME         a layer, as JSON
//! compositions/NAME   an image that is composed, as JSON
//! ```

mod compose;
mod depmod;
mod merge;
#[cfg(test)]
mod tests;

pub(crate) use compose::{manifest_of, node_of};

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wire::digest::Digest;

use crate::error::{Error, Result};
use crate::store::{Store, check_name, names_in};

/// Most layers of one image.
pub const LAYERS_MAX: usize = 32;

/// What a change added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// The image that was changed, as `NAME:TAG`.
    pub on: String,
    /// The version that was changed.
    pub base: Digest,
    /// What the change made of it.
    pub version: Digest,
    /// The release of the kernel that nodes boot from that version, where there is one.
    pub kernel: Option<String>,
}

/// An image that is made of a base and layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Composition {
    /// The base, as `NAME:TAG`.
    pub on: String,
    /// The names of its layers, the lowest first.
    pub layers: Vec<String>,
    /// The base's version that was used last.
    #[serde(with = "digest_text")]
    pub base: Digest,
    /// The version that was made last.
    #[serde(with = "digest_text")]
    pub made: Digest,
}

/// A layer, as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    on: String,
    #[serde(with = "digest_text")]
    base: Digest,
    #[serde(with = "digest_text")]
    version: Digest,
    kernel: Option<String>,
}

mod digest_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use wire::digest::Digest;

    pub fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(digest)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Store {
    /// All layers, by name.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        let mut names = names_in(&self.path().join("layers"))?;
        names.sort();
        names.iter().map(|name| self.layer(name)).collect()
    }

    /// The layer of that name.
    pub fn layer(&self, name: &str) -> Result<Layer> {
        let written: Option<Written> = self.read_record("layers", name)?;
        let written = written.ok_or_else(|| Error::NoSuchLayer { name: name.into() })?;
        Ok(Layer {
            name: name.into(),
            on: written.on,
            base: written.base,
            version: written.version,
            kernel: written.kernel,
        })
    }

    /// Keeps a layer under its name.
    pub fn record_layer(&self, layer: &Layer) -> Result<()> {
        let written = Written {
            on: layer.on.clone(),
            base: layer.base,
            version: layer.version,
            kernel: layer.kernel.clone(),
        };
        self.write_record("layers", &layer.name, &written)
    }

    /// Forgets a layer that no image is composed of.
    pub fn remove_layer(&self, name: &str) -> Result<()> {
        self.layer(name)?;
        let users = self.compositions()?.into_iter();
        let mut users =
            users.filter(|(image, it)| image != name && it.layers.iter().any(|it| it == name));
        if let Some((image, _)) = users.next() {
            return Err(Error::LayerInUse {
                name: name.into(),
                image,
            });
        }
        let _tags = self.lock_tags()?;
        self.remove_record("compositions", name)?;
        self.remove_record("layers", name)
    }

    /// All images that are composed, by name.
    pub fn compositions(&self) -> Result<Vec<(String, Composition)>> {
        let mut names = names_in(&self.path().join("compositions"))?;
        names.sort();
        let read = names.into_iter().map(|name| {
            let composition = self.composition(&name)?;
            Ok(composition.map(|it| (name, it)))
        });
        read.filter_map(Result::transpose).collect()
    }

    /// What an image is composed of, if it is.
    pub fn composition(&self, name: &str) -> Result<Option<Composition>> {
        self.read_record("compositions", name)
    }

    /// Notes what an image is composed of.
    pub fn record_composition(&self, name: &str, composition: &Composition) -> Result<()> {
        self.write_record("compositions", name, composition)
    }

    /// The versions that layers are made of.
    pub(crate) fn layer_versions(&self) -> Result<Vec<Digest>> {
        let layers = self.layers()?.into_iter();
        Ok(layers.flat_map(|it| [it.base, it.version]).collect())
    }

    fn record_path(&self, kind: &str, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        Ok(self.path().join(kind).join(name))
    }

    fn read_record<T: serde::de::DeserializeOwned>(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Option<T>> {
        let path = self.record_path(kind, name)?;
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(Error::io("reading", &path))?,
        };
        let parsed = serde_json::from_str(&text);
        parsed
            .map(Some)
            .map_err(|error| Error::io("reading", &path)(error.into()))
    }

    fn write_record(&self, kind: &str, name: &str, record: &impl Serialize) -> Result<()> {
        let path = self.record_path(kind, name)?;
        let text = serde_json::to_string(record);
        let text = text.map_err(|error| Error::io("writing", &path)(error.into()))?;
        self.replace_durably(&path, text.as_bytes())
    }

    fn remove_record(&self, kind: &str, name: &str) -> Result<()> {
        let path = self.record_path(kind, name)?;
        self.remove_durably(&path)
    }
}
