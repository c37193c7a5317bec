//! What the engine knows of images: names, digests, and which boot files a version has.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wire::digest::Digest;

/// A boot file of an image version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootFile {
    /// The signed first-stage loader for UEFI x86-64, `shimx64.efi`.
    Shim,
    /// The signed GRUB for UEFI x86-64, `grubx64.efi`.
    Grub,
    /// As [`BootFile::Shim`], for arm64.
    ShimArm64,
    /// As [`BootFile::Grub`], for arm64.
    GrubArm64,
    /// iPXE for UEFI x86-64, over the firmware's own network driver, `snponly.efi`.
    IpxeUefi,
    /// iPXE for a legacy BIOS, over its ROM's driver, `undionly.kpxe`.
    IpxeBios,
    /// PXELINUX, for a legacy BIOS, `pxelinux.0`.
    Pxelinux,
    /// Its second part, `ldlinux.c32`.
    Ldlinux,
    /// The kernel, `vmlinuz`.
    Kernel,
    /// The initramfs, `initrd`.
    Initrd,
}

impl BootFile {
    /// Every boot file.
    pub const ALL: [BootFile; 10] = [
        BootFile::Shim,
        BootFile::Grub,
        BootFile::ShimArm64,
        BootFile::GrubArm64,
        BootFile::IpxeUefi,
        BootFile::IpxeBios,
        BootFile::Pxelinux,
        BootFile::Ldlinux,
        BootFile::Kernel,
        BootFile::Initrd,
    ];

    /// The file's name below `/boot/<digest>/`, and that of a loader at the top.
    pub fn name(self) -> &'static str {
        match self {
            BootFile::Shim => "shimx64.efi",
            BootFile::Grub => "grubx64.efi",
            BootFile::ShimArm64 => "shimaa64.efi",
            BootFile::GrubArm64 => "grubaa64.efi",
            BootFile::IpxeUefi => "snponly.efi",
            BootFile::IpxeBios => "undionly.kpxe",
            BootFile::Pxelinux => "pxelinux.0",
            BootFile::Ldlinux => "ldlinux.c32",
            BootFile::Kernel => "vmlinuz",
            BootFile::Initrd => "initrd",
        }
    }

    /// Whether it is a loader: all but kernel and initramfs.
    pub fn is_loader(self) -> bool {
        !matches!(self, BootFile::Kernel | BootFile::Initrd)
    }

    /// The boot file with this name.
    pub fn from_name(name: &str) -> Option<BootFile> {
        BootFile::ALL.into_iter().find(|file| file.name() == name)
    }
}

/// One tag of the store and the version that it names now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The image's name.
    pub name: String,
    /// The tag, `latest` by default.
    pub tag: String,
    /// The version.
    pub digest: Digest,
    /// For each boot file its presence, or why the version has none (shown to users).
    pub files: BTreeMap<BootFile, Result<(), String>>,
    /// Whether its initramfs is somebody else's: a boot of it reports nothing, and counts as up once
    /// its root is mounted.
    pub foreign_initrd: bool,
    /// Loaders that are there but cannot go on over HTTP, and why (shown to users).
    pub no_http: BTreeMap<BootFile, String>,
    /// Loaders that are not of the image's own packages, and what they are of (shown to users).
    pub origins: BTreeMap<BootFile, String>,
}

/// An image by name and tag, written `NAME` or `NAME:TAG`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageRef {
    /// The image's name.
    pub name: String,
    /// The tag; `latest` where none was written.
    pub tag: String,
}

/// Text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected NAME or NAME:TAG of letters, digits, '.', '_' and '-', got {got:?}")]
pub struct ParseImageRefError {
    /// The text that was refused.
    pub got: String,
}

/// The tag that a bare name means.
const DEFAULT_TAG: &str = "latest";
/// Longest name or tag.
const MAX_PART_BYTES: usize = 128;

impl fmt::Display for ImageRef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tag.as_str() {
            DEFAULT_TAG => out.write_str(&self.name),
            tag => write!(out, "{}:{tag}", self.name),
        }
    }
}

impl FromStr for ImageRef {
    type Err = ParseImageRefError;

    fn from_str(text: &str) -> Result<ImageRef, ParseImageRefError> {
        let (name, tag) = text.split_once(':').unwrap_or((text, DEFAULT_TAG));
        if !is_part(name) || !is_part(tag) {
            return Err(ParseImageRefError {
                got: text.chars().take(300).collect(),
            });
        }
        Ok(ImageRef {
            name: name.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

pub(crate) fn is_part(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_PART_BYTES).contains(&text.len())
        && text.bytes().all(plain)
        && text.as_bytes()[0].is_ascii_alphanumeric()
}
