//! What a node's firmware and loaders fetch out of an image: shim, GRUB and the kernel.

use std::cmp::Ordering;
use std::io;
use std::path::PathBuf;

use crate::files::{FileKind, Files, Root};

/// Where an image's boot files lie. An image without loaders still boots where a loader comes from elsewhere, so
/// each of those is an answer of its own.
#[derive(Debug)]
pub struct BootFiles {
    /// The newest kernel that has both modules and an executable.
    pub kernel: Kernel,
    /// Path of the signed shim for x86-64 UEFI.
    pub shim: Result<PathBuf, Missing>,
    /// Path of the signed GRUB for x86-64 UEFI that boots over the network.
    pub grub: Result<PathBuf, Missing>,
}

/// A kernel in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` says it.
    pub version: String,
    /// Path of its executable.
    pub vmlinuz: PathBuf,
}

/// What an image lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {what} in the image: looked for {}; {hint}", looked_for.join(", "))]
pub struct Missing {
    /// What is missing.
    pub what: &'static str,
    /// Where it could have been.
    pub looked_for: Vec<String>,
    /// What to do about it.
    pub hint: &'static str,
}

/// Why an image cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no kernel.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The image could not be read.
    #[error("reading the image: {0}")]
    Read(#[from] io::Error),
}

/// Where distributions keep a signed shim for x86-64.
const SHIMS: [&str; 2] = [
    "/usr/lib/shim/shimx64.efi.signed",
    "/usr/lib/shim/shimx64.efi.signed.latest",
];
/// Where Debian and Ubuntu keep the signed GRUB that boots over the network.
const GRUBS: [&str; 1] = ["/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"];
/// Red Hat's family keeps both in a folder of the vendor's name here.
const EFI_VENDORS: &str = "/boot/efi/EFI";
/// Largest boot file read into memory.
pub const BOOT_FILE_MAX: u64 = 256 << 20;

impl BootFiles {
    /// Finds the boot files of an image.
    pub fn of(files: &dyn Files) -> Result<Self, Error> {
        let root = Root::new(files);
        Ok(Self {
            kernel: newest_kernel(root)?,
            shim: find_loader(
                root,
                "signed shim",
                &SHIMS,
                "shimx64.efi",
                "install shim-signed (Debian, Ubuntu) or shim-x64 (Red Hat family)",
            )?,
            grub: find_loader(
                root,
                "signed network GRUB",
                &GRUBS,
                "grubx64.efi",
                "install grub-efi-amd64-signed (Debian, Ubuntu) or grub2-efi-x64 (Red Hat family)",
            )?,
        })
    }
}

fn newest_kernel(root: Root<'_>) -> Result<Kernel, Error> {
    let mut versions: Vec<String> = root
        .names("/lib/modules")?
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .collect();
    versions.sort_by(|a, b| compare_versions(b, a));
    let mut looked_for = Vec::new();
    for version in versions {
        if !root.is_file(format!("/lib/modules/{version}/modules.dep"))? {
            looked_for.push(format!("/lib/modules/{version}/modules.dep"));
            continue;
        }
        for path in [
            format!("/boot/vmlinuz-{version}"),
            format!("/lib/modules/{version}/vmlinuz"),
        ] {
            if let Some(vmlinuz) = file_at(root, &path)? {
                return Ok(Kernel { version, vmlinuz });
            }
            looked_for.push(path);
        }
    }
    if looked_for.is_empty() {
        looked_for.push("/lib/modules/*/modules.dep".into());
    }
    Err(Error::Missing(Missing {
        what: "kernel with its modules",
        looked_for,
        hint: "install linux-image-amd64 (Debian), linux-image-generic (Ubuntu) or kernel (Red Hat family)",
    }))
}

/// A loader at one of `paths`, or under `name` in a vendor's folder.
fn find_loader(
    root: Root<'_>,
    what: &'static str,
    paths: &[&str],
    name: &str,
    hint: &'static str,
) -> io::Result<Result<PathBuf, Missing>> {
    for path in paths {
        if let Some(found) = file_at(root, path)? {
            return Ok(Ok(found));
        }
    }
    let mut vendors = root.names(EFI_VENDORS)?;
    vendors.sort();
    for vendor in vendors.iter().filter_map(|vendor| vendor.to_str()) {
        if let Some(found) = file_at(root, &format!("{EFI_VENDORS}/{vendor}/{name}"))? {
            return Ok(Ok(found));
        }
    }
    let mut looked_for: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    looked_for.push(format!("{EFI_VENDORS}/*/{name}"));
    Ok(Err(Missing {
        what,
        looked_for,
        hint,
    }))
}

/// The resolved path of a regular file at `path`.
fn file_at(root: Root<'_>, path: &str) -> io::Result<Option<PathBuf>> {
    let found = root.resolve(path)?;
    Ok(found.and_then(|(path, info)| (info.kind == FileKind::File).then_some(path)))
}

/// Numbers compare as numbers, the rest byte by byte: 6.1.0-9 comes before 6.1.0-10.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while let (Some(first), Some(second)) = (a.first(), b.first()) {
        if first.is_ascii_digit() && second.is_ascii_digit() {
            let ((left, rest_a), (right, rest_b)) = (split_number(a), split_number(b));
            match left.len().cmp(&right.len()).then(left.cmp(right)) {
                Ordering::Equal => (a, b) = (rest_a, rest_b),
                order => return order,
            }
        } else if first == second {
            (a, b) = (&a[1..], &b[1..]);
        } else {
            return first.cmp(second);
        }
    }
    a.len().cmp(&b.len())
}

/// The leading digits without leading zeros, and what follows.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text
        .iter()
        .position(|it| !it.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let start = digits
        .iter()
        .position(|it| *it != b'0')
        .unwrap_or(digits.len());
    (&digits[start..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::HostDir;

    fn image(paths: &[&str]) -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        for path in paths {
            let path = top.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"x").unwrap();
        }
        top
    }

    #[test]
    fn the_newest_kernel_with_modules_and_the_loaders() {
        let top = image(&[
            "usr/lib/modules/6.1.0-9-amd64/modules.dep",
            "usr/lib/modules/6.1.0-10-amd64/modules.dep",
            "usr/lib/modules/6.1.0-11-amd64/other",
            "boot/vmlinuz-6.1.0-9-amd64",
            "boot/vmlinuz-6.1.0-10-amd64",
            "boot/vmlinuz-6.1.0-11-amd64",
            "usr/lib/shim/shimx64.efi.signed",
            "boot/efi/EFI/rocky/grubx64.efi",
        ]);
        std::os::unix::fs::symlink("usr/lib", top.path().join("lib")).unwrap();
        let found = BootFiles::of(&HostDir::new(top.path())).unwrap();
        assert_eq!(found.kernel.version, "6.1.0-10-amd64");
        assert!(
            found
                .kernel
                .vmlinuz
                .ends_with("boot/vmlinuz-6.1.0-10-amd64")
        );
        assert!(found.shim.unwrap().ends_with("shimx64.efi.signed"));
        assert!(found.grub.unwrap().ends_with("rocky/grubx64.efi"));
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_install() {
        let top = image(&["lib/modules/6.1/modules.dep", "etc/fstab"]);
        let error = BootFiles::of(&HostDir::new(top.path()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/boot/vmlinuz-6.1") && error.contains("linux-image-amd64"),
            "{error}"
        );
        let top = image(&["lib/modules/6.1/modules.dep", "boot/vmlinuz-6.1"]);
        let shim = BootFiles::of(&HostDir::new(top.path()))
            .unwrap()
            .shim
            .unwrap_err();
        assert!(shim.to_string().contains("shim-signed"), "{shim}");
    }

    #[test]
    fn versions_order_by_their_numbers() {
        let mut versions = ["6.12.0", "6.2.0-1", "6.1.0-10", "6.1.0-9", "6.1.0"];
        versions.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(
            versions,
            ["6.1.0", "6.1.0-9", "6.1.0-10", "6.2.0-1", "6.12.0"]
        );
    }
}
