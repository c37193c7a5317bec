//! Which versions have their initramfs. It is made once, which takes seconds; a loader that has
//! asked for it does not wait so long and starts the kernel without.

use std::collections::BTreeSet;

use wire::digest::Digest;

use crate::image::{BootFile, ImageInfo};
use crate::io::Output;
use crate::{Engine, Turn};

/// How far a version's initramfs is.
#[derive(Clone, Debug)]
pub(crate) enum Readiness {
    /// It is being made.
    Making,
    /// It can be sent.
    Ready,
    /// It could not be made.
    Failed(String),
}

impl Engine {
    /// Has made what nodes would boot now, before they ask. What failed is tried again.
    pub(crate) fn prepare_all(&mut self, turn: &mut Turn) {
        let versions = &self.versions;
        self.readiness.retain(|version, readiness| {
            versions.contains(version) && !matches!(readiness, Readiness::Failed(_))
        });
        let default = self.config.default_image.as_ref();
        let default = default.and_then(|image| self.find_image(image));
        let nodes = self.nodes.values();
        let of_nodes: BTreeSet<_> = nodes
            .filter_map(|it| self.version_of(Some(it)).ok())
            .collect();
        for version in default
            .map(|image| image.digest)
            .into_iter()
            .chain(of_nodes)
        {
            self.prepare(turn, version);
        }
    }

    /// Of versions whose initramfs is another one by this list, nothing is ready.
    pub(crate) fn forget_other_initrds(&mut self, images: &[ImageInfo]) {
        for image in images {
            let known = self.tagged(image.digest);
            if known.is_some_and(|it| it.foreign_initrd != image.foreign_initrd) {
                self.readiness.remove(&image.digest);
            }
        }
    }

    /// Has a version's initramfs made, unless that is done or cannot be.
    pub(crate) fn prepare(&mut self, turn: &mut Turn, version: Digest) {
        let known = self.readiness.contains_key(&version);
        if known || self.has_file(version, BootFile::Initrd).is_err() {
            return;
        }
        self.readiness.insert(version, Readiness::Making);
        let image = self.tagged(version).map_or_else(
            || version.to_string(),
            |image| format!("{}:{}", image.name, image.tag),
        );
        turn.out.push(Output::Prepare { version, image });
    }

    /// The making of a version's initramfs is over.
    pub(crate) fn prepared(&mut self, version: Digest, result: Result<(), String>) {
        if let Some(readiness) = self.readiness.get_mut(&version) {
            *readiness = match result {
                Ok(()) => Readiness::Ready,
                Err(cause) => Readiness::Failed(cause),
            };
        }
    }

    /// Whether a version's initramfs can be sent; the cause where it could not be made. From then
    /// on it is on its way.
    pub(crate) fn is_ready(&mut self, turn: &mut Turn, version: Digest) -> Result<bool, String> {
        match self.readiness.get(&version) {
            Some(Readiness::Ready) => return Ok(true),
            Some(Readiness::Making) => return Ok(false),
            Some(Readiness::Failed(cause)) => {
                let cause = cause.clone();
                self.readiness.remove(&version);
                self.prepare(turn, version);
                return Err(cause);
            }
            None => self.prepare(turn, version),
        }
        Ok(false)
    }
}
