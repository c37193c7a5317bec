//! Debian, by mmdebstrap.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use super::{Error, Progress, Recipe, Stage, run};

/// Makes the archive; what the image lacks.
pub fn build(
    suite: &str,
    recipe: &Recipe,
    out_tar: &Path,
    log: &File,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<String>, Error> {
    let mut command = Command::new("mmdebstrap");
    command.args(arguments(suite, recipe, out_tar));
    run("mmdebstrap", &mut command, &STAGES, is_error, log, progress)
}

/// Whether a line says why mmdebstrap fails.
pub fn is_error(line: &str) -> bool {
    line.starts_with("E: ") || line.contains("No space left") || line.contains("Could not resolve")
}

/// What every image has: systemd, a network manager, a kernel with its signed loaders, SSH.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,libpam-systemd,systemd-timesyncd,iproute2,\
    iputils-ping,kmod,login,passwd,procps,less,ca-certificates,openssh-server,linux-image-amd64,\
    shim-signed,grub-efi-amd64-signed";

/// Left out of what packages bring: half the inodes of an image, and of no use on a node. The
/// initramfs that the kernel's package makes would be the largest file of all.
const EXCLUDED: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
];

/// What is done to the tree before it is packed. Nodes bring their own identity and network.
const CUSTOMIZE: [&str; 7] = [
    "rm -f \"$1\"/etc/ssh/ssh_host_* \"$1\"/var/lib/dbus/machine-id \"$1\"/boot/initrd.img-* \"$1\"/var/log/*.log",
    ": > \"$1\"/etc/machine-id",
    ": > \"$1\"/etc/fstab",
    "rm -f \"$1\"/etc/hostname \"$1\"/etc/resolv.conf",
    "chroot \"$1\" systemctl enable systemd-networkd.service serial-getty@ttyS0.service",
    // Jobs of a machine with a disk.
    "chroot \"$1\" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
     e2scrub_all.timer e2scrub_reap.service fstrim.timer man-db.timer",
    "rm -rf \"$1\"/var/cache/apt/archives/*.deb \"$1\"/var/lib/apt/lists/*",
];

/// Releases whose GRUB cannot boot over HTTP or by proxyDHCP, each with a later one of the same keys whose
/// GRUB can.
const NEWER_LOADERS: [(&str, &str); 1] = [("bookworm", "trixie")];

/// Lays the later release's shim and GRUB into the image, where [`crate::boot`] looks for them.
const LAY_LOADERS: &str = include_str!("newer_loaders.sh");

/// The hook that does so, if a release needs it.
fn lay_loaders(suite: &str) -> Option<String> {
    let (_, newer) = NEWER_LOADERS.iter().find(|(old, _)| *old == suite)?;
    let arguments = format!("set -- \"$1\" {suite} {newer}\n");
    Some(LAY_LOADERS.replacen("set -- \"$1\" RELEASE NEWER\n", &arguments, 1))
}

/// What mmdebstrap is told.
pub fn arguments(suite: &str, recipe: &Recipe, out_tar: &Path) -> Vec<OsString> {
    let mut packages = PACKAGES.replace(' ', "");
    for package in &recipe.packages {
        packages = packages + "," + package;
    }
    let mut words: Vec<OsString> = vec![
        "--variant=minbase".into(),
        "--format=tar".into(),
        format!("--include={packages}").into(),
        "--aptopt=Acquire::Retries \"5\"".into(),
        "--aptopt=APT::Install-Recommends \"false\"".into(),
        // The kernel's package would make an initramfs that nobody uses: 30 s and 30 MB.
        "--essential-hook=mkdir -p \"$1\"/etc/initramfs-tools && echo update_initramfs=no > \"$1\"/etc/initramfs-tools/update-initramfs.conf".into(),
    ];
    // That file is a conffile of initramfs-tools, which would ask whether to keep it.
    words.push("--dpkgopt=force-confold".into());
    words.extend(
        EXCLUDED
            .iter()
            .map(|path| format!("--dpkgopt=path-exclude={path}").into()),
    );
    words.extend(
        CUSTOMIZE
            .iter()
            .map(|hook| format!("--customize-hook={hook}").into()),
    );
    words.extend(lay_loaders(suite).map(|hook| format!("--customize-hook={hook}").into()));
    words.push(suite.into());
    words.push(out_tar.into());
    words.extend(recipe.mirrors.iter().map(OsString::from));
    words
}

/// What mmdebstrap says it is doing, how far that is through a build, and the words for it.
pub const STAGES: [Stage; 7] = [
    ("running apt-get update", 2, "fetching the package index"),
    ("downloading packages", 8, "downloading base packages"),
    ("extracting archives", 15, "unpacking base packages"),
    (
        "installing essential packages",
        20,
        "installing base packages",
    ),
    (
        "installing remaining packages",
        35,
        "downloading and installing packages",
    ),
    (
        "slate: fetching the loaders",
        83,
        "fetching a newer shim and GRUB",
    ),
    ("cleaning package lists", 85, "packing"),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::boot::{Loader, Origin};
    use crate::files::HostDir;

    /// An image's root whose mirror is in `repository`, with these words of apt's before its address.
    struct Scene {
        top: tempfile::TempDir,
    }

    impl Scene {
        fn new(options: &str) -> Scene {
            let top = tempfile::tempdir().unwrap();
            let scene = Scene { top };
            for directory in ["root/etc/apt/trusted.gpg.d", "repository"] {
                fs::create_dir_all(scene.path(directory)).unwrap();
            }
            let mirror = scene.path("repository");
            let line = format!("deb {options}file://{} bookworm main\n", mirror.display());
            fs::write(scene.path("root/etc/apt/sources.list"), line).unwrap();
            let keys = scene.path("keys");
            fs::create_dir(&keys).unwrap();
            let config = format!(
                "Dir \"{}\";\nDir::Etc::TrustedParts \"{}\";\nAPT::Architecture \"amd64\";\n",
                scene.path("root").display(),
                keys.display()
            );
            fs::write(scene.path("apt.conf"), config).unwrap();
            scene
        }

        fn path(&self, name: &str) -> PathBuf {
            self.top.path().join(name)
        }

        /// Makes a package with one file, and the index of all so far, which nobody signed.
        fn publish(&self, package: &str, file: &str, content: &str) {
            let tree = self.path(package);
            let path = tree.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::create_dir(tree.join("DEBIAN")).unwrap();
            fs::write(path, content).unwrap();
            let control = format!(
                "Package: {package}\nVersion: 1:2.12+x\nArchitecture: amd64\n\
                 Maintainer: a <a@example.org>\nDescription: a loader\n"
            );
            fs::write(tree.join("DEBIAN/control"), &control).unwrap();
            let script = "set -e; cd repository; dpkg-deb --build ../$1 . > /dev/null; \
                index=dists/trixie/main/binary-amd64; mkdir -p $index; deb=$(ls $1_*.deb); \
                { cat ../$1/DEBIAN/control; echo \"Filename: $deb\"; \
                echo \"Size: $(stat -c %s $deb)\"; echo \"SHA256: $(sha256sum < $deb | cut -c -64)\"; \
                echo; } >> $index/Packages; cd dists/trixie; \
                { echo 'Suite: stable'; echo 'Codename: trixie'; echo 'Architectures: amd64'; \
                echo 'Components: main'; echo 'Date: Sat, 21 Nov 2026 09:15:44 UTC'; echo 'SHA256:'; \
                echo \" $(sha256sum < main/binary-amd64/Packages | cut -c -64) \
                $(stat -c %s main/binary-amd64/Packages) main/binary-amd64/Packages\"; } > Release";
            let mut sh = Command::new("sh");
            sh.args(["-c", script, "sh", package]);
            let output = sh.current_dir(self.top.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }

        /// Runs the hook; what it prints.
        fn lay(&self) -> String {
            let hook = lay_loaders("bookworm").unwrap();
            let mut sh = Command::new("sh");
            sh.args(["-c", &hook, "sh"]).arg(self.path("root"));
            sh.env("MMDEBSTRAP_APT_CONFIG", self.path("apt.conf"));
            let output = sh.env("LC_ALL", "C").output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        }

        fn publish_both(&self) {
            self.publish(
                "shim-signed",
                "usr/lib/shim/shimx64.efi.signed",
                "a newer shim",
            );
            self.publish(
                "grub-efi-amd64-signed",
                "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
                "a newer GRUB, with HTTP/1.1",
            );
        }

        fn loaders(&self) -> PathBuf {
            self.path("root/usr/lib/slate/loaders")
        }
    }

    fn has_apt() -> bool {
        let there = ["/usr/bin/apt-get", "/usr/bin/dpkg-deb"];
        let has = there.iter().all(|it| Path::new(it).exists());
        if !has {
            println!("skipped: no apt and dpkg here");
        }
        has
    }

    fn warning(said: &str) -> &str {
        let mut lines = said.lines();
        let found = lines.find_map(|line| line.strip_prefix(super::super::WARNING));
        found.unwrap_or_else(|| panic!("no warning: {said}"))
    }

    #[test]
    fn a_later_release_s_loaders_are_laid_with_their_origins() {
        if !has_apt() {
            return;
        }
        let scene = Scene::new("[trusted=yes] ");
        scene.publish_both();
        let said = scene.lay();
        assert!(!said.contains(super::super::WARNING), "{said}");
        let files = HostDir::new(scene.path("root"));
        for (loader, package, content) in [
            (Loader::Shim, "shim-signed", "a newer shim"),
            (
                Loader::Grub,
                "grub-efi-amd64-signed",
                "a newer GRUB, with HTTP/1.1",
            ),
        ] {
            let path = loader.find(&files).unwrap().unwrap();
            let laid = fs::read_to_string(scene.path("root").join(&path)).unwrap();
            assert_eq!(laid, content);
            let origin = Origin::of(&files, &path).unwrap().unwrap();
            assert_eq!(origin.to_string(), format!("{package} 1:2.12+x of trixie"));
            let digest = <sha2::Sha256 as sha2::Digest>::digest(content);
            assert_eq!(origin.sha256, wire::hex::hexadecimal(&digest));
        }
        // Nothing else of it is in the image.
        assert_eq!(fs::read_dir(scene.loaders()).unwrap().count(), 3);
        assert!(!scene.path("root/var").exists());
    }

    #[test]
    fn without_the_later_release_the_image_goes_without_and_says_so() {
        if !has_apt() {
            return;
        }
        let nothing = Scene::new("");
        let cause = warning(&nothing.lay()).to_owned();
        assert!(
            cause.starts_with("no shim and GRUB of trixie: ")
                && cause.contains("does not have a Release file"),
            "{cause}"
        );
        // One package of the two.
        let half = Scene::new("[trusted=yes] ");
        half.publish("shim-signed", "usr/lib/shim/shimx64.efi.signed", "x");
        let cause = warning(&half.lay()).to_owned();
        assert!(cause.contains("grub-efi-amd64-signed"), "{cause}");
        // Nobody's signature.
        let unsigned = Scene::new("");
        unsigned.publish_both();
        let cause = warning(&unsigned.lay()).to_owned();
        assert!(cause.contains("not signed"), "{cause}");
        // A mirror for another release than the image's.
        let other = Scene::new("[trusted=yes] ");
        fs::write(
            other.path("root/etc/apt/sources.list"),
            "deb file:/x sid main",
        )
        .unwrap();
        let cause = warning(&other.lay()).to_owned();
        assert!(cause.contains("no mirror names bookworm"), "{cause}");
        for scene in [nothing, half, unsigned, other] {
            assert!(!scene.loaders().exists());
        }
    }

    #[test]
    fn only_debian_12_needs_newer_loaders() {
        assert!(lay_loaders("bookworm").unwrap().starts_with("# Lays"));
        assert_eq!(lay_loaders("trixie"), None);
    }
}
