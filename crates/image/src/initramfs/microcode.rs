//! CPU microcode, in an archive of its own that the kernel reads before it unpacks anything
//! (Documentation/arch/x86/microcode.rst, "Early load microcode").

use std::path::Path;

use wire::cpio::{self, Member};

use super::module::{self, FILE_BYTES_MAX};
use super::{Error, ModuleSource};
use crate::files::Root;

/// Most bytes of microcode of one vendor: more than all that any has published.
const VENDOR_BYTES_MAX: usize = 64 << 20;

/// A maker of processors.
struct Vendor {
    /// Where its files are, below the firmware.
    folder: &'static str,
    /// The one file that the kernel looks for.
    path: &'static str,
    is_one: fn(&str) -> bool,
}

const VENDORS: [Vendor; 2] = [
    Vendor {
        folder: "intel-ucode",
        path: "kernel/x86/microcode/GenuineIntel.bin",
        is_one: is_intel,
    },
    Vendor {
        folder: "amd-ucode",
        path: "kernel/x86/microcode/AuthenticAMD.bin",
        is_one: is_amd,
    },
];

/// `FAMILY-MODEL-STEPPING`; some are meant for this moment only, and say so in their name.
fn is_intel(name: &str) -> bool {
    let name = name.strip_suffix(".initramfs").unwrap_or(name);
    let parts: Vec<&str> = name.split('-').collect();
    let is_hexadecimal =
        |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    parts.len() == 3 && parts.iter().all(is_hexadecimal)
}

fn is_amd(name: &str) -> bool {
    name.starts_with("microcode_amd") && name.ends_with(".bin")
}

/// The archive, empty where the image has no microcode. It stands uncompressed before all others.
pub(super) fn archive(source: &ModuleSource<'_>) -> Result<Vec<u8>, Error> {
    let mut writer = cpio::Writer::new();
    let mut found = false;
    for vendor in VENDORS {
        let bytes = all_of(source, &vendor)?;
        if bytes.is_empty() {
            continue;
        }
        found = true;
        // Intel's processors want theirs, which is first, at a multiple of 16 bytes, and the kernel
        // hands it to them from where it lies: this name and the file's take 124 and 148 bytes with
        // their headers. Nobody makes the folder above, so that the kernel later unpacks nothing of it
        // into memory.
        writer.push(&member("kernel/x86", cpio::S_IFDIR | 0o755, &[]))?;
        writer.push(&member(vendor.path, cpio::S_IFREG | 0o644, &bytes))?;
    }
    Ok(if found { writer.finish() } else { Vec::new() })
}

fn member<'a>(name: &'a str, mode: u32, data: &'a [u8]) -> Member<'a> {
    Member {
        name: name.as_bytes(),
        ino: 0,
        mode,
        uid: 0,
        gid: 0,
        nlink: 1,
        mtime: 0,
        rdev: (0, 0),
        data,
    }
}

/// All files of a vendor, one after another, in the order of their names.
fn all_of(source: &ModuleSource<'_>, vendor: &Vendor) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    let Some((root, top)) = source.firmware_root() else {
        return Ok(all);
    };
    let folder = top.join(vendor.folder);
    for (name, path) in names(root, &folder)? {
        if !(vendor.is_one)(&name) {
            continue;
        }
        let reading = Error::reading(&path);
        let bytes = root.read(&path, FILE_BYTES_MAX).and_then(|bytes| {
            let bytes = bytes.unwrap_or_default();
            module::decompress(&path, bytes)
        });
        all.extend(bytes.map_err(reading)?);
        if all.len() > VENDOR_BYTES_MAX {
            return Err(Error::TooMuchMicrocode {
                folder: folder.clone(),
                max: VENDOR_BYTES_MAX,
            });
        }
    }
    Ok(all)
}

/// The names in a folder without the endings of compression, and their paths, sorted.
fn names(root: &Root<'_>, folder: &Path) -> Result<Vec<(String, std::path::PathBuf)>, Error> {
    let names = root.names(folder).map_err(Error::reading(folder))?;
    let mut names: Vec<_> = names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .map(|name| {
            let plain = [".xz", ".zst"].iter().find_map(|it| name.strip_suffix(it));
            (plain.unwrap_or(&name).to_owned(), folder.join(&name))
        })
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_each_vendor_are_known_by_name() {
        for name in ["06-55-04", "0f-04-0a", "06-56-03.initramfs"] {
            assert!(is_intel(name), "{name}");
        }
        for name in ["06-55-04.asc", "list", "06-55", "6-55-04", "06-55-0x"] {
            assert!(!is_intel(name), "{name}");
        }
        assert!(is_amd("microcode_amd.bin") && is_amd("microcode_amd_fam19h.bin"));
        assert!(!is_amd("microcode_amd.bin.asc") && !is_amd("README"));
    }
}
