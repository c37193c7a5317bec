//! What is wrong with an image before a node finds out.

use std::io;
use std::path::{Path, PathBuf};

use memchr::memmem;
use sha2::{Digest as _, Sha256};
use wire::hex::hexadecimal;

use crate::boot::{BOOT_FILE_MAX, BootFiles, Origin};
use crate::files::{FileKind, Files, Root};
use crate::selinux::{self, Lack};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// It boots, but probably not as meant.
    Warn,
    /// The image must not be published as it is.
    Refuse,
}

/// One thing noticed about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was noticed, as a sentence without its full stop.
    pub what: String,
    /// The file that it is about; from the image's root, with a leading slash.
    pub path: Option<PathBuf>,
    /// What to do about it, if anything.
    pub hint: Option<String>,
}

/// Checks an image; findings come with the gravest first.
pub fn check(files: &dyn Files) -> io::Result<Vec<Finding>> {
    let root = Root::new(files);
    let mut findings = Vec::new();
    check_keys(root, &mut findings)?;
    check_boot(root, &mut findings)?;
    check_processor(root, &mut findings)?;
    check_system(root, &mut findings)?;
    check_identity(root, &mut findings)?;
    check_labels(files, &mut findings)?;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(findings)
}

impl Finding {
    fn new(severity: Severity, what: impl Into<String>, path: &str, hint: &str) -> Self {
        Self {
            severity,
            what: what.into(),
            path: (!path.is_empty()).then(|| PathBuf::from(path)),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }
}

/// Folders where private keys lie, searched this deep.
const KEY_FOLDERS: [(&str, u32); 6] = [
    ("/etc/ssh", 1),
    ("/etc/ssl/private", 2),
    ("/etc/pki", 4),
    ("/etc/wireguard", 1),
    ("/root/.ssh", 1),
    ("/home", 3),
];
/// Keys are small; what is larger is something else.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Most files looked into: a hostile image must not stop an import for hours.
const KEY_FILES_MAX: usize = 20_000;

/// Every node on the wire can read an image, so no private key may be in one.
fn check_keys(root: Root<'_>, findings: &mut Vec<Finding>) -> io::Result<()> {
    let mut budget = KEY_FILES_MAX;
    for (folder, depth) in KEY_FOLDERS {
        search_keys(root, folder, depth, &mut budget, findings)?;
    }
    Ok(())
}

/// Private keys among further files, by their paths from the root, without a leading slash.
pub fn check_files<'p>(
    files: &dyn Files,
    paths: impl Iterator<Item = &'p Path>,
) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for path in paths {
        let info = files.info(path)?;
        let is_small = |it: &crate::files::FileInfo| it.bytes <= KEY_BYTES_MAX;
        if info.is_some_and(|it| it.kind == FileKind::File && is_small(&it)) {
            let text = files.read_up_to(path, KEY_BYTES_MAX)?;
            let path = format!("/{}", path.display());
            if is_key(&text, &path) {
                findings.push(private_key(&path));
            }
        }
    }
    Ok(findings)
}

fn private_key(path: &str) -> Finding {
    Finding::new(
        Severity::Refuse,
        "a private key, which every machine on the network could read",
        path,
        "remove it from the image; each node gets its own SSH host key when it boots",
    )
}

fn search_keys(
    root: Root<'_>,
    folder: &str,
    depth: u32,
    budget: &mut usize,
    findings: &mut Vec<Finding>,
) -> io::Result<()> {
    for name in root.names(folder)? {
        let Some(left) = budget.checked_sub(1) else {
            return Ok(());
        };
        *budget = left;
        let path = format!("{folder}/{}", name.to_string_lossy());
        match root.files().info(Path::new(&path[1..]))? {
            Some(info) if info.kind == FileKind::Directory && depth > 1 => {
                search_keys(root, &path, depth - 1, budget, findings)?;
            }
            Some(info)
                if info.kind == FileKind::File
                    && info.bytes <= KEY_BYTES_MAX
                    && holds_key(root, &path)? =>
            {
                findings.push(private_key(&path));
            }
            _ => {}
        }
    }
    Ok(())
}

fn holds_key(root: Root<'_>, path: &str) -> io::Result<bool> {
    let text = root.read(path, KEY_BYTES_MAX)?.unwrap_or_default();
    Ok(is_key(&text, path))
}

fn is_key(text: &[u8], path: &str) -> bool {
    let has = |mark: &[u8]| memmem::find(text, mark).is_some();
    (has(b"-----BEGIN ") && has(b"PRIVATE KEY-----"))
        || (path.starts_with("/etc/wireguard/") && has(b"PrivateKey"))
}

fn check_boot(root: Root<'_>, findings: &mut Vec<Finding>) -> io::Result<()> {
    match BootFiles::of(root.files()) {
        Ok(boot) => {
            check_modules(root, &boot.kernel.version, findings)?;
            for loader in [&boot.shim, &boot.grub].into_iter().flatten() {
                check_origin(root, loader, findings)?;
            }
            for missing in [boot.shim.err(), boot.grub.err()].into_iter().flatten() {
                findings.push(Finding::new(
                    Severity::Warn,
                    format!("UEFI machines cannot boot it: {missing}"),
                    "",
                    "",
                ));
            }
        }
        Err(crate::boot::Error::Missing(missing)) => {
            findings.push(Finding::new(
                Severity::Warn,
                format!("nodes cannot boot it: {missing}"),
                "",
                if has_init(root)? { "" } else { FOR_CONTAINERS },
            ));
        }
        Err(crate::boot::Error::Read(error)) => return Err(error),
    }
    Ok(())
}

/// A loader that a build fetched must be what was fetched.
fn check_origin(root: Root<'_>, loader: &Path, findings: &mut Vec<Finding>) -> io::Result<()> {
    let Some(origin) = Origin::of(root.files(), loader)? else {
        return Ok(());
    };
    let bytes = root.read(loader, BOOT_FILE_MAX)?.unwrap_or_default();
    if hexadecimal(&Sha256::digest(bytes)) != origin.sha256 {
        findings.push(Finding::new(
            Severity::Warn,
            format!(
                "not the file of {origin} that was fetched, whose SHA-256 is {}",
                origin.sha256
            ),
            &format!("/{}", loader.display()),
            "build the image again",
        ));
    }
    Ok(())
}

/// Programs that every system has, one of them at least.
const PROGRAMS: [&str; 4] = [
    "/sbin/init",
    "/usr/lib/systemd/systemd",
    "/bin/sh",
    "/bin/busybox",
];
/// Machines of an ELF file's header (elf(5), `e_machine`): AMD64, which nodes are,
pub(crate) const X86_64: u16 = 62;
/// and that of nodes which get loaders and `/init` as well.
pub(crate) const AARCH64: u16 = 183;
/// Other machines, for people.
const MACHINES: [(u16, &str); 8] = [
    (X86_64, "64-bit x86"),
    (3, "32-bit x86"),
    (8, "MIPS"),
    (21, "POWER"),
    (22, "S/390"),
    (40, "32-bit ARM"),
    (AARCH64, "64-bit ARM"),
    (243, "RISC-V"),
];

/// A container image may be for another processor, and so may any root file system.
fn check_processor(root: Root<'_>, findings: &mut Vec<Finding>) -> io::Result<()> {
    for path in PROGRAMS {
        let Some((real, info)) = root.resolve(path)? else {
            continue;
        };
        if info.kind != FileKind::File {
            continue;
        }
        let head = root.files().read_up_to(&real, 20)?;
        let Some(machine) = machine_of(&head).filter(|it| *it != X86_64) else {
            continue;
        };
        let name = machine_name(machine);
        let (what, fix) = if machine == AARCH64 {
            (
                format!("only {name} nodes can run it"),
                "import the image for linux/amd64 if nodes are 64-bit x86",
            )
        } else {
            (
                format!("nodes cannot run it: its programs are for {name}, expected 64-bit x86"),
                "import the image for linux/amd64",
            )
        };
        findings.push(Finding::new(Severity::Warn, what, path, fix));
        return Ok(());
    }
    Ok(())
}

/// A machine of [`MACHINES`], for people.
pub(crate) fn machine_name(machine: u16) -> &'static str {
    let mut known = MACHINES.into_iter().filter(|it| it.0 == machine);
    known.next().map_or("another processor", |it| it.1)
}

/// What an ELF file runs on, by its first 20 bytes.
pub(crate) fn machine_of(head: &[u8]) -> Option<u16> {
    let bytes: [u8; 2] = head.get(18..20)?.try_into().ok()?;
    // EI_DATA: 1 is little-endian.
    match (head.starts_with(b"\x7fELF"), head[5]) {
        (true, 1) => Some(u16::from_le_bytes(bytes)),
        (true, 2) => Some(u16::from_be_bytes(bytes)),
        _ => None,
    }
}

/// What to do about an image with neither a kernel nor an init.
const FOR_CONTAINERS: &str = "most container images lack a kernel, systemd and a network manager: install them where \
                              it is made, or here by slate image run";

/// The modules that a root over NFS needs; a kernel may have them built in.
fn check_modules(root: Root<'_>, kernel: &str, findings: &mut Vec<Finding>) -> io::Result<()> {
    let folder = format!("/lib/modules/{kernel}");
    let mut known = String::new();
    for list in ["modules.dep", "modules.builtin"] {
        known += &root
            .text(format!("{folder}/{list}"), 16 << 20)?
            .unwrap_or_default();
    }
    for module in ["nfsv4", "overlay"] {
        if !known.contains(&format!("/{module}.ko")) {
            findings.push(Finding::new(
                Severity::Warn,
                format!("nodes cannot boot it: kernel {kernel} has no {module} module"),
                &folder,
                "install the kernel's full set of modules (linux-modules-extra on Ubuntu, kernel-modules on the Red Hat family)",
            ));
        }
    }
    Ok(())
}

fn check_system(root: Root<'_>, findings: &mut Vec<Finding>) -> io::Result<()> {
    if !has_init(root)? {
        findings.push(Finding::new(
            Severity::Warn,
            "nodes cannot boot it: no init",
            "/sbin/init",
            "install systemd-sysv",
        ));
    }
    if !has_network_manager(root)? {
        findings.push(Finding::new(
            Severity::Info,
            "no network manager is enabled: nodes have the interface that they boot from and no other",
            "",
            "enable systemd-networkd or NetworkManager in the image if nodes use other interfaces",
        ));
    }
    let fstab = root.text("/etc/fstab", 1 << 20)?.unwrap_or_default();
    for line in fstab.lines().filter(|line| would_hang(line)) {
        findings.push(Finding::new(
            Severity::Warn,
            format!("a node would wait for this disk: {}", line.trim()),
            "/etc/fstab",
            "remove the line, or add the option nofail",
        ));
    }
    Ok(())
}

fn has_init(root: Root<'_>) -> io::Result<bool> {
    Ok(root.is_file("/sbin/init")? || root.is_file("/usr/lib/systemd/systemd")?)
}

fn has_network_manager(root: Root<'_>) -> io::Result<bool> {
    let wanted = "/etc/systemd/system/multi-user.target.wants";
    // Which of the two netplan starts, it decides at each boot.
    if root.is_file("/usr/sbin/netplan")? {
        return Ok(true);
    }
    for unit in [
        "systemd-networkd.service",
        "NetworkManager.service",
        "networking.service",
    ] {
        // Links to units, so what counts is that the name is there.
        if root.names(wanted)?.iter().any(|name| name == unit) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A line that names a local disk which systemd would wait for.
fn would_hang(line: &str) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [source, _, kind, options, ..] = fields[..] else {
        return false;
    };
    let disk = ["/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="]
        .iter()
        .any(|it| source.starts_with(it));
    let optional = options
        .split(',')
        .any(|it| it == "nofail" || it == "noauto");
    disk && !optional && !line.trim_start().starts_with('#') && kind != "swap"
}

fn check_identity(root: Root<'_>, findings: &mut Vec<Finding>) -> io::Result<()> {
    let machine_id = root.text("/etc/machine-id", 4096)?.unwrap_or_default();
    if !matches!(machine_id.trim(), "" | "uninitialized") {
        findings.push(Finding::new(
            Severity::Info,
            "the image has a machine-id, which nodes replace by their own",
            "/etc/machine-id",
            "",
        ));
    }
    let shadow = root.text("/etc/shadow", 1 << 20)?.unwrap_or_default();
    for user in shadow.lines().filter_map(user_with_hash) {
        findings.push(Finding::new(
            Severity::Warn,
            format!("{user} has a password hash, which every machine on the network can read"),
            "/etc/shadow",
            "lock the password (passwd --lock) and log in by SSH key",
        ));
    }
    Ok(())
}

/// A policy without labels is of no use; without a policy nobody expects any.
fn check_labels(files: &dyn Files, findings: &mut Vec<Finding>) -> io::Result<()> {
    if let Some(lack @ Lack::Labels) = selinux::lack(files)? {
        findings.push(Finding::new(
            Severity::Warn,
            format!("nodes run it without SELinux: {lack}"),
            "/etc/selinux",
            "to label it by its own policy, with policycoreutils in it: slate image run NAME -- true",
        ));
    }
    Ok(())
}

fn user_with_hash(line: &str) -> Option<&str> {
    let mut fields = line.split(':');
    let (user, hash) = (fields.next()?, fields.next()?);
    hash.trim_start_matches('!')
        .starts_with('$')
        .then_some(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::HostDir;

    fn findings(files: &[(&str, &str)]) -> Vec<Finding> {
        let top = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = top.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        check(&HostDir::new(top.path())).unwrap()
    }

    fn about<'a>(findings: &'a [Finding], word: &str) -> Option<&'a Finding> {
        findings.iter().find(|finding| finding.what.contains(word))
    }

    #[test]
    fn private_keys_are_refused_wherever_they_usually_lie() {
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n";
        for path in [
            "etc/ssh/ssh_host_ed25519_key",
            "root/.ssh/id_rsa",
            "etc/ssl/private/a/b.pem",
            "home/me/.ssh/id",
        ] {
            let found = findings(&[(path, key)]);
            assert_eq!(found[0].severity, Severity::Refuse, "{path}");
            assert_eq!(
                found[0].path.as_deref(),
                Some(Path::new(&format!("/{path}")))
            );
        }
        let public = findings(&[("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA")]);
        assert!(about(&public, "private key").is_none());
    }

    #[test]
    fn a_fetched_loader_that_is_another_file_now_is_warned_of() {
        let digest = hexadecimal(&Sha256::digest(b"shim"));
        let origins = format!(
            "shimx64.efi shim-signed 1.51 trixie {digest}\ngrubx64.efi grub 2.12 trixie {digest}"
        );
        let found = findings(&[
            ("lib/modules/6.1/modules.dep", ""),
            ("lib/modules/6.1/vmlinuz", ""),
            ("usr/lib/slate/loaders/shimx64.efi", "shim"),
            ("usr/lib/slate/loaders/grubx64.efi", "not grub"),
            ("usr/lib/slate/loaders/origins", &origins),
        ]);
        let grub = about(&found, "grub 2.12 of trixie").expect("a finding");
        let path = Path::new("/usr/lib/slate/loaders/grubx64.efi");
        assert_eq!(grub.path.as_deref(), Some(path));
        assert!(about(&found, "shim-signed").is_none());
    }

    #[test]
    fn password_hashes_and_disks_are_warned_of() {
        let found = findings(&[
            (
                "etc/shadow",
                "root:*:1::\nme:$y$j9T$abc:1::\nold:!$6$x:1::\n",
            ),
            (
                "etc/fstab",
                "# UUID=1 / ext4 rw 0 1\nUUID=2 / ext4 rw 0 1\n/dev/sdb /x ext4 nofail 0 0\ntmpfs /t tmpfs rw 0 0\n",
            ),
        ]);
        assert!(about(&found, "me has a password hash").is_some());
        assert!(about(&found, "old has a password hash").is_some());
        assert!(about(&found, "root has").is_none());
        let disks: Vec<_> = found
            .iter()
            .filter(|it| it.what.contains("wait for this disk"))
            .collect();
        assert_eq!(disks.len(), 1);
        assert!(disks[0].what.contains("UUID=2"));
    }

    #[test]
    fn programs_for_another_processor_are_warned_of() {
        let header = |data: u8, machine: [u8; 2]| {
            let mut header = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\0\0";
            header[5] = data;
            header[18..].copy_from_slice(&machine);
            header
        };
        let found = |header: [u8; 20]| {
            let top = tempfile::tempdir().unwrap();
            std::fs::create_dir(top.path().join("bin")).unwrap();
            std::fs::write(top.path().join("bin/real"), header).unwrap();
            std::os::unix::fs::symlink("/bin/real", top.path().join("bin/sh")).unwrap();
            check(&HostDir::new(top.path())).unwrap()
        };
        let arm = found(header(1, 183_u16.to_le_bytes()));
        assert!(
            about(&arm, "only 64-bit ARM nodes can run it").is_some(),
            "{arm:?}"
        );
        assert!(about(&arm, "nodes cannot run it").is_none(), "{arm:?}");
        let mainframe = found(header(2, 22_u16.to_be_bytes()));
        let mainframe = about(&mainframe, "for S/390").expect("a warning");
        assert!(mainframe.what.starts_with("nodes cannot run it"));
        let fine = found(header(1, 62_u16.to_le_bytes()));
        assert!(about(&fine, "programs are for").is_none(), "{fine:?}");
    }

    #[test]
    fn modules_that_the_root_needs() {
        let base = ("boot/vmlinuz-6.1", "");
        let found = findings(&[
            base,
            ("lib/modules/6.1/modules.dep", "kernel/fs/nfs/nfsv4.ko: x\n"),
        ]);
        assert!(about(&found, "no overlay module").is_some());
        assert!(about(&found, "no nfsv4 module").is_none());
        let builtin = (
            "lib/modules/6.1/modules.builtin",
            "kernel/fs/overlayfs/overlay.ko\n",
        );
        let found = findings(&[
            base,
            (
                "lib/modules/6.1/modules.dep",
                "kernel/fs/nfs/nfsv4.ko.xz: x\n",
            ),
            builtin,
        ]);
        assert!(about(&found, "module").is_none());
    }
}
