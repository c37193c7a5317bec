//! What a node's firmware and loaders fetch out of an image: shim, GRUB and the kernel.

use std::cmp::Ordering;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use memchr::memmem;

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

/// A loader that an image may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// The signed shim for x86-64 UEFI.
    Shim,
    /// The signed GRUB for x86-64 UEFI that boots over the network.
    Grub,
    /// The signed shim for arm64 UEFI.
    ShimArm64,
    /// The signed GRUB for arm64 UEFI that boots over the network.
    GrubArm64,
    /// iPXE for x86-64 UEFI, over the firmware's network driver.
    IpxeUefi,
    /// iPXE for a legacy BIOS, over its ROM's network driver.
    IpxeBios,
    /// PXELINUX.
    Pxelinux,
    /// PXELINUX's second part.
    Ldlinux,
}

/// Where a loader may be, and what to do where it is not.
struct Place {
    what: &'static str,
    /// Where distributions keep it.
    paths: &'static [&'static str],
    /// Red Hat's family keeps it under this name in a folder of the vendor's name.
    vendor_name: Option<&'static str>,
    hint: &'static str,
}

const IPXE_HINT: &str =
    "install ipxe (Debian, Ubuntu) or ipxe-bootimgs-x86 (Red Hat family) in the image";
const PXELINUX_HINT: &str = "install pxelinux and syslinux-common (Debian, Ubuntu) or syslinux-tftpboot (Red Hat family) in the image";

impl Loader {
    fn place(self) -> Place {
        match self {
            Loader::Shim => Place {
                what: "signed shim",
                paths: &[
                    "/usr/lib/shim/shimx64.efi.signed",
                    "/usr/lib/shim/shimx64.efi.signed.latest",
                ],
                vendor_name: Some("shimx64.efi"),
                hint: "install shim-signed (Debian, Ubuntu) or shim-x64 (Red Hat family)",
            },
            Loader::Grub => Place {
                what: "signed network GRUB",
                paths: &["/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"],
                vendor_name: Some("grubx64.efi"),
                hint: "install grub-efi-amd64-signed (Debian, Ubuntu) or grub2-efi-x64 (Red Hat family)",
            },
            Loader::ShimArm64 => Place {
                what: "signed shim for arm64",
                paths: &[
                    "/usr/lib/shim/shimaa64.efi.signed",
                    "/usr/lib/shim/shimaa64.efi.signed.latest",
                ],
                vendor_name: Some("shimaa64.efi"),
                hint: "an arm64 image is needed, with shim-signed (Debian, Ubuntu) or shim-aa64 (Red Hat family)",
            },
            Loader::GrubArm64 => Place {
                what: "signed network GRUB for arm64",
                paths: &["/usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed"],
                vendor_name: Some("grubaa64.efi"),
                hint: "an arm64 image is needed, with grub-efi-arm64-signed (Debian, Ubuntu) or grub2-efi-aa64 (Red Hat family)",
            },
            Loader::IpxeUefi => Place {
                what: "iPXE for UEFI (snponly.efi)",
                paths: &[
                    "/usr/lib/ipxe/snponly.efi",
                    "/usr/share/ipxe/ipxe-snponly-x86_64.efi",
                ],
                vendor_name: None,
                hint: IPXE_HINT,
            },
            Loader::IpxeBios => Place {
                what: "iPXE for a BIOS (undionly.kpxe)",
                paths: &[
                    "/usr/lib/ipxe/undionly.kpxe",
                    "/usr/share/ipxe/undionly.kpxe",
                ],
                vendor_name: None,
                hint: IPXE_HINT,
            },
            Loader::Pxelinux => Place {
                what: "PXELINUX (pxelinux.0)",
                paths: &[
                    "/usr/lib/PXELINUX/pxelinux.0",
                    "/usr/share/syslinux/pxelinux.0",
                    "/tftpboot/pxelinux.0",
                ],
                vendor_name: None,
                hint: PXELINUX_HINT,
            },
            Loader::Ldlinux => Place {
                what: "PXELINUX's second part (ldlinux.c32)",
                paths: &[
                    "/usr/lib/syslinux/modules/bios/ldlinux.c32",
                    "/usr/share/syslinux/ldlinux.c32",
                    "/tftpboot/ldlinux.c32",
                ],
                vendor_name: None,
                hint: PXELINUX_HINT,
            },
        }
    }

    /// The path of the loader in an image, or where it was looked for.
    ///
    /// Where the image's own GRUB has no HTTP, and a build laid newer loaders beside it, shim and GRUB are
    /// those: always both, because they have to match.
    pub fn find(self, files: &dyn Files) -> io::Result<Result<PathBuf, Missing>> {
        let root = Root::new(files);
        // Only these have newer ones: to look takes reading the image's own GRUB.
        let newer = match self {
            Loader::Shim => newer_loaders(root)?.map(|(shim, _)| shim),
            Loader::Grub => newer_loaders(root)?.map(|(_, grub)| grub),
            _ => None,
        };
        match newer {
            Some(newer) => Ok(Ok(newer)),
            None => find_loader(root, &self.place()),
        }
    }
}

/// Where a build keeps loaders of a later release; the packages of the image do not know of them.
const NEWER_LOADERS: &str = "/usr/lib/slate/loaders";
/// Says where they come from, a line for each: file, package, version, release, SHA-256.
const ORIGINS: &str = "origins";
/// Largest such text, in bytes.
const ORIGINS_MAX: u64 = 16 << 10;

/// Where a loader comes from that is not of the image's own packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The distribution's release that it is of.
    pub release: String,
    /// Its SHA-256 when it was fetched, in hexadecimal.
    pub sha256: String,
}

impl Origin {
    /// Where the loader at a path that [`Loader::find`] gave comes from; `None` for the image's own.
    pub fn of(files: &dyn Files, loader: &Path) -> io::Result<Option<Origin>> {
        let root = Root::new(files);
        let name = loader.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            return Ok(None);
        };
        if file_at(root, &format!("{NEWER_LOADERS}/{name}"))?.as_deref() != Some(loader) {
            return Ok(None);
        }
        let text = root.text(format!("{NEWER_LOADERS}/{ORIGINS}"), ORIGINS_MAX)?;
        Ok(text.and_then(|text| text.lines().find_map(|line| Origin::parse(line, name))))
    }

    /// The origin that a line tells of the file with this name.
    fn parse(line: &str, name: &str) -> Option<Origin> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [file, package, version, release, sha256] = words[..] else {
            return None;
        };
        (file == name).then(|| Origin {
            package: package.to_owned(),
            version: version.to_owned(),
            release: release.to_owned(),
            sha256: sha256.to_owned(),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            package,
            version,
            release,
            ..
        } = self;
        write!(out, "{package} {version} of {release}")
    }
}

/// The shim and the GRUB of a later release, where both are there and the image's own GRUB has no HTTP.
fn newer_loaders(root: Root<'_>) -> io::Result<Option<(PathBuf, PathBuf)>> {
    let newer = |name: &str| file_at(root, &format!("{NEWER_LOADERS}/{name}"));
    let (Some(shim), Some(grub)) = (newer("shimx64.efi")?, newer("grubx64.efi")?) else {
        return Ok(None);
    };
    let own = match find_loader(root, &Loader::Grub.place())? {
        Ok(own) => root.read(&own, BOOT_FILE_MAX)?,
        Err(_) => None,
    };
    let is_needed = !own.is_some_and(|own| grub_speaks_http(&own));
    Ok(is_needed.then_some((shim, grub)))
}

/// Whether a GRUB, by its bytes, fetches over HTTP: Debian 12's network GRUB does not have that module.
pub fn grub_speaks_http(grub: &[u8]) -> bool {
    memmem::find(grub, b"HTTP/1.1").is_some()
}

/// Red Hat's family keeps both in a folder of the vendor's name here.
const EFI_VENDORS: &str = "/boot/efi/EFI";
/// Largest boot file read into memory.
pub const BOOT_FILE_MAX: u64 = 256 << 20;

impl BootFiles {
    /// Finds the boot files of an image.
    pub fn of(files: &dyn Files) -> Result<Self, Error> {
        let root = Root::new(files);
        let kernel = newest_kernel(root)?;
        // Not one by one: to look for newer ones takes reading the image's own GRUB.
        let (shim, grub) = match newer_loaders(root)? {
            Some((shim, grub)) => (Ok(shim), Ok(grub)),
            None => (
                find_loader(root, &Loader::Shim.place())?,
                find_loader(root, &Loader::Grub.place())?,
            ),
        };
        Ok(Self { kernel, shim, grub })
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

fn find_loader(root: Root<'_>, place: &Place) -> io::Result<Result<PathBuf, Missing>> {
    for path in place.paths {
        if let Some(found) = file_at(root, path)? {
            return Ok(Ok(found));
        }
    }
    let mut looked_for: Vec<String> = place.paths.iter().map(|path| (*path).to_owned()).collect();
    if let Some(name) = place.vendor_name {
        let mut vendors = root.names(EFI_VENDORS)?;
        vendors.sort();
        for vendor in vendors.iter().filter_map(|vendor| vendor.to_str()) {
            if let Some(found) = file_at(root, &format!("{EFI_VENDORS}/{vendor}/{name}"))? {
                return Ok(Ok(found));
            }
        }
        looked_for.push(format!("{EFI_VENDORS}/*/{name}"));
    }
    Ok(Err(Missing {
        what: place.what,
        looked_for,
        hint: place.hint,
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
    fn every_loader_is_found_where_distributions_keep_it() {
        let cases = [
            (Loader::ShimArm64, "usr/lib/shim/shimaa64.efi.signed"),
            (Loader::GrubArm64, "boot/efi/EFI/rocky/grubaa64.efi"),
            (Loader::IpxeUefi, "usr/lib/ipxe/snponly.efi"),
            (Loader::IpxeBios, "usr/share/ipxe/undionly.kpxe"),
            (Loader::Pxelinux, "usr/lib/PXELINUX/pxelinux.0"),
            (Loader::Ldlinux, "usr/lib/syslinux/modules/bios/ldlinux.c32"),
        ];
        for (loader, path) in cases {
            let found = loader.find(&HostDir::new(image(&[path]).path())).unwrap();
            assert!(found.unwrap().ends_with(path), "{path}");
            let missing = loader.find(&HostDir::new(image(&["etc/fstab"]).path()));
            let missing = missing.unwrap().unwrap_err();
            assert!(!missing.hint.is_empty() && !missing.looked_for.is_empty());
        }
    }

    #[test]
    fn newer_loaders_take_the_place_of_a_grub_without_http() {
        let own = "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed";
        let newer = "usr/lib/slate/loaders";
        let shim = format!("{newer}/shimx64.efi");
        let grub = format!("{newer}/grubx64.efi");
        let top = image(&[own, "usr/lib/shim/shimx64.efi.signed", &shim]);
        let files = HostDir::new(top.path());
        let found = |loader: Loader| loader.find(&files).unwrap().unwrap();
        // Not one without the other.
        assert_eq!(found(Loader::Grub), Path::new(own));
        assert!(found(Loader::Shim).ends_with("shimx64.efi.signed"));
        std::fs::write(top.path().join(&grub), b"x").unwrap();
        assert_eq!(found(Loader::Grub), Path::new(&grub));
        assert_eq!(found(Loader::Shim), Path::new(&shim));

        let origin = |path: &str| Origin::of(&files, Path::new(path)).unwrap();
        assert_eq!(origin(&shim), None);
        let text = "# what\nshimx64.efi shim-signed 1.51 trixie 00ff\ngrubx64.efi too few\n";
        std::fs::write(top.path().join(newer).join(ORIGINS), text).unwrap();
        assert_eq!(
            origin(&shim).unwrap().to_string(),
            "shim-signed 1.51 of trixie"
        );
        assert_eq!(origin(&grub), None);
        assert_eq!(origin(own), None);

        // The image was brought to the later release.
        std::fs::write(top.path().join(own), b".. HTTP/1.1 ..").unwrap();
        assert_eq!(found(Loader::Grub), Path::new(own));
        assert!(found(Loader::Shim).ends_with("shimx64.efi.signed"));
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
