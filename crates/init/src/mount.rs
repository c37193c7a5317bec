//! The root: an NFS export below, a tmpfs above, overlayfs joining them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::fs::{XattrFlags, major, minor};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use wire::cmdline::NfsRoot;
use wire::stage::Stage;

use crate::failure::{Failure, Remedy};
use crate::selinux;

/// Where the finished root is mounted.
pub const ROOT: &str = "/sysroot";
const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
/// What this program is called with to run [`join_as_init`].
pub const JOIN: &str = "join";
/// The layers as the kernel lists them (proc_pid_mountinfo(5)): nobody sees them once they are
/// detached.
const LAYERS: &str = "/run/slate/layers";
/// Where root finds what this node has written.
const WRITTEN: &str = "/run/slate/upper";
/// What mount(2) was given for the lower layer, for [`lower_again`].
const ARGUMENTS: &str = "/run/slate/lower";

/// Mounts the export and the overlay. `server` is used where `root=` names none, `client` is the
/// node's own address, `upper_size` what the node may write, as tmpfs(5) has it. Answers what was
/// mounted, for the log.
pub fn root(
    root: &NfsRoot,
    server: Option<Ipv4Addr>,
    client: Ipv4Addr,
    upper_size: &str,
) -> Result<String, Failure> {
    let server = root.server.or(server).ok_or_else(no_server)?;
    let mut mounted = mount_lower(root, server, client)?;
    match selinux::load(LOWER) {
        Ok(None) => {}
        Ok(Some(policy)) => {
            unmount(LOWER, UnmountFlags::empty()).map_err(|error| lasting(root, server, &error))?;
            mounted = mount_lower(root, server, client)?;
            selinux::label_run(LOWER);
            mounted += &format!(" with the SELinux policy {}", policy.display());
        }
        Err(error) => mounted += &format!(" without its SELinux policy: {error}"),
    }
    mounted += &overlay(upper_size).map_err(|error| {
        let cause = format!("mounting the overlay: {error}");
        let hint = "the initramfs needs the module overlay, the kernel CONFIG_TMPFS_XATTR";
        Failure::lasting(Stage::Mount, cause, hint)
    })?;
    Ok(mounted)
}

fn no_server() -> Failure {
    let hint = "write root=nfs:SERVER:/PATH or let DHCP name a next-server";
    Failure::lasting(Stage::Mount, "root= names no server", hint)
}

/// Version 4.2 first; other versions only where the user named none.
fn mount_lower(root: &NfsRoot, server: Ipv4Addr, client: Ipv4Addr) -> Result<String, Failure> {
    fs::create_dir_all(LOWER).map_err(|error| lasting(root, server, &error))?;
    let source = format!("{server}:{}", root.path);
    let mut last = Errno::INVAL;
    for plan in plans(root, server, client) {
        let data = CString::new(plan.data).map_err(|error| lasting(root, server, &error))?;
        match mount(&source, LOWER, "nfs", plan.flags, data.as_c_str()) {
            Ok(()) => {
                let text = format!(
                    "{source}\n{}\n{}",
                    plan.flags.bits(),
                    data.to_string_lossy()
                );
                fs::write(ARGUMENTS, text).map_err(|error| lasting(root, server, &error))?;
                return Ok(format!("{source} vers={}", plan.version));
            }
            Err(error) => last = error,
        }
        // Only these say that the server or the kernel lacks this version.
        if !matches!(
            last,
            Errno::PROTONOSUPPORT | Errno::INVAL | Errno::OPNOTSUPP
        ) {
            break;
        }
    }
    Err(failure(root, server, last))
}

fn lasting(root: &NfsRoot, server: Ipv4Addr, error: &dyn std::fmt::Display) -> Failure {
    let cause = format!("mounting {server}:{}: {error}", root.path);
    Failure::lasting(Stage::Mount, cause, "correct root=")
}

/// Tells what time heals from what somebody has to heal.
fn failure(root: &NfsRoot, server: Ipv4Addr, error: Errno) -> Failure {
    let (remedy, hint) = match error {
        Errno::NOENT => (
            Remedy::Reboot,
            "the server has no such export: correct root=",
        ),
        Errno::ACCESS | Errno::PERM => (
            Remedy::Reboot,
            "the server refuses this node: check its exports",
        ),
        Errno::INVAL => (
            Remedy::Reboot,
            "the kernel refuses a mount option: correct root=",
        ),
        Errno::PROTONOSUPPORT => (
            Remedy::Reboot,
            "the server lacks this NFS version: change vers=",
        ),
        Errno::NODEV => (
            Remedy::Reboot,
            "the initramfs needs the modules nfs and nfsv4",
        ),
        _ => (Remedy::Retry, "is the NFS server running and reachable?"),
    };
    let cause = format!("mounting {server}:{}: {error}", root.path);
    Failure {
        remedy,
        ..Failure::passing(Stage::Mount, cause, hint)
    }
}

/// Mounts the lower layer once more, at `target`; answers the server's address. Nobody is asked for
/// more than a few look-ups, since the kernel takes the file system that it has; that it did is
/// checked.
pub fn lower_again(target: &str) -> io::Result<String> {
    let text = fs::read_to_string(ARGUMENTS)?;
    let (source, flags, data) = arguments(&text).ok_or(io::ErrorKind::InvalidData)?;
    mount(source, target, "nfs", flags, data.as_c_str())?;
    let device = fs::metadata(target)?.dev();
    let device = format!("{}:{}", major(device), minor(device));
    let layers = fs::read_to_string(LAYERS)?;
    let mut lowers = layers.lines().filter(|line| line.contains(" /lower "));
    if lowers.any(|line| line.split(' ').nth(2) == Some(&device)) {
        let server = source.split(':').next().unwrap_or(source);
        return Ok(server.to_owned());
    }
    unmount(target, UnmountFlags::DETACH)?;
    let text = format!("{source}: {device} is another file system than the root's: {layers}");
    Err(io::Error::other(text))
}

/// Reads what [`mount_lower`] left.
fn arguments(text: &str) -> Option<(&str, MountFlags, CString)> {
    let mut lines = text.lines();
    let source = lines.next()?;
    let flags = MountFlags::from_bits_retain(lines.next()?.parse().ok()?);
    let data = CString::new(lines.next()?).ok()?;
    Some((source, flags, data))
}

/// One attempt at mount(2).
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    version: String,
    flags: MountFlags,
    data: String,
}

fn plans(root: &NfsRoot, server: Ipv4Addr, client: Ipv4Addr) -> Vec<Plan> {
    let named = root.option("vers").or_else(|| root.option("nfsvers"));
    let versions = match (named, root.only_v4) {
        (Some(version), _) => vec![version],
        (None, true) => vec!["4.2", "4.1", "4.0"],
        (None, false) => vec!["4.2", "4.1", "4.0", "3"],
    };
    let plan = |version: &str| {
        let (flags, mut data) = options(&root.options);
        data.push(format!("vers={version}"));
        if version == "3" && !data.iter().any(|it| it == "nolock") {
            data.push("nolock".to_owned());
        }
        data.push(format!("addr={server}"));
        data.push(format!("clientaddr={client}"));
        if version.starts_with('3') {
            data.pop();
        }
        Plan {
            version: version.to_owned(),
            flags,
            data: data.join(","),
        }
    };
    versions.into_iter().map(plan).collect()
}

/// Splits options into flags of mount(2) and words for the NFS client. The lower layer is read-only
/// whatever they say. What only mount.nfs(8) and mount(8) understand is left out.
fn options(options: &[String]) -> (MountFlags, Vec<String>) {
    let mut flags = MountFlags::RDONLY;
    let mut data = Vec::new();
    for option in options {
        let name = option.split('=').next().unwrap_or("");
        match name {
            "ro" | "rw" | "defaults" | "auto" | "noauto" | "_netdev" | "nofail" | "user"
            | "nouser" | "bg" | "fg" | "retry" | "vers" | "nfsvers" | "addr" | "clientaddr"
            | "atime" | "dev" | "suid" | "exec" | "async" => {}
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "nodev" => flags |= MountFlags::NODEV,
            "nosuid" => flags |= MountFlags::NOSUID,
            "noexec" => flags |= MountFlags::NOEXEC,
            _ if name.starts_with("x-") => {}
            _ => data.push(option.clone()),
        }
    }
    (flags, data)
}

/// The overlay keeps clones of both mounts of its own, so that of the lower layer can go: no
/// shutdown has to unmount it. That of the upper one stays within root's reach. Answers what is to be
/// added to the log.
fn overlay(upper_size: &str) -> io::Result<String> {
    for directory in [UPPER, ROOT] {
        fs::create_dir_all(directory)?;
    }
    let options = CString::new(format!("size={upper_size},mode=0700"))?;
    mount(
        "tmpfs",
        UPPER,
        "tmpfs",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    for directory in ["/upper/data", "/upper/work"] {
        fs::create_dir(directory)?;
    }
    selinux::copy_label(LOWER, "/upper/data");
    hide_mount_points()?;
    let mut note = String::new();
    if selinux::is_on() {
        let child = Command::new("/proc/self/exe").arg(JOIN).output()?;
        note = String::from_utf8_lossy(&child.stderr).trim().to_owned();
        if !child.status.success() {
            return Err(io::Error::other(note));
        }
    } else {
        join()?;
    }
    fs::write(
        LAYERS,
        layers_of(&fs::read_to_string("/proc/self/mountinfo")?),
    )?;
    unmount(LOWER, UnmountFlags::DETACH)?;
    fs::create_dir_all(WRITTEN)?;
    mount_move(UPPER, WRITTEN)?;
    Ok(note)
}

/// Mounts the overlay.
fn join() -> io::Result<()> {
    let layers = c"lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work,\
        index=off,metacopy=off,xino=on";
    Ok(mount(
        "overlay",
        ROOT,
        "overlay",
        MountFlags::empty(),
        layers,
    )?)
}

/// Mounts the overlay under SELinux, as a process of its own.
pub fn join_as_init() -> ! {
    let domain = selinux::become_init(&format!("{LOWER}/usr/lib/systemd/systemd"));
    if let Err(error) = domain {
        eprint!(", not as init under SELinux: {error}");
    }
    let joined = join();
    if let Err(error) = &joined {
        eprintln!("{error}");
    }
    std::process::exit(i32::from(joined.is_err()))
}

/// What lies below mount points is nobody's business, but each attempt to make one of them anew
/// (`mkdir -p`) would ask the server. Opaque directories of the upper layer answer for themselves.
fn hide_mount_points() -> io::Result<()> {
    for (name, mode) in [
        ("dev", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("sys", 0o555),
    ] {
        let path = format!("{UPPER}/data/{name}");
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        // Without extended attributes the layers are merged, and nothing is lost.
        let _ = rustix::fs::setxattr(&path, c"trusted.overlay.opaque", b"y", XattrFlags::empty());
    }
    Ok(())
}

/// The lines of a mountinfo that are about the root's layers.
fn layers_of(mountinfo: &str) -> String {
    let lines = mountinfo.split_inclusive('\n');
    lines
        .filter(|line| matches!(line.split(' ').nth(4), Some(LOWER | UPPER)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans_of(text: &str) -> Vec<Plan> {
        let root = NfsRoot::parse(text).unwrap();
        plans(
            &root,
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 0, 2),
        )
    }

    #[test]
    fn the_recipe_s_options() {
        let plans = plans_of("nfs:10.0.0.1:/export/root:ro,vers=4.2,sec=sys,nolock");
        let data = "sec=sys,nolock,vers=4.2,addr=10.0.0.1,clientaddr=10.0.0.2";
        assert_eq!(plans.len(), 1);
        assert_eq!(
            (plans[0].data.as_str(), plans[0].flags),
            (data, MountFlags::RDONLY)
        );
    }

    #[test]
    fn versions_are_tried_only_where_none_is_named() {
        let versions = |text| {
            plans_of(text)
                .into_iter()
                .map(|it| it.version)
                .collect::<Vec<_>>()
        };
        assert_eq!(versions("nfs:/x"), ["4.2", "4.1", "4.0", "3"]);
        assert_eq!(versions("nfs4:/x"), ["4.2", "4.1", "4.0"]);
        assert_eq!(versions("nfs:/x:nfsvers=3"), ["3"]);
        assert_eq!(
            plans_of("nfs:/x:vers=3")[0].data,
            "vers=3,nolock,addr=10.0.0.1"
        );
    }

    #[test]
    fn flags_are_no_words_for_the_client() {
        let plan = &plans_of("nfs:/x:rw,noatime,nosuid,_netdev,port=20490,vers=4.1")[0];
        let flags = MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::NOSUID;
        assert_eq!(plan.flags, flags);
        assert!(plan.data.starts_with("port=20490,vers=4.1,addr="));
    }

    #[test]
    fn layers_are_remembered() {
        let text = "21 1 0:2 / /proc rw - proc proc rw\n22 1 0:3 / /lower ro - nfs4 s:/x ro\n\
                    23 1 0:4 / /upper rw - tmpfs tmpfs rw\n24 1 0:5 / /lower/x rw - a b rw\n";
        let expected =
            "22 1 0:3 / /lower ro - nfs4 s:/x ro\n23 1 0:4 / /upper rw - tmpfs tmpfs rw\n";
        assert_eq!(layers_of(text), expected);
    }

    #[test]
    fn only_absent_servers_are_worth_waiting_for() {
        let root = NfsRoot::parse("nfs:/x").unwrap();
        let remedy = |error| failure(&root, Ipv4Addr::LOCALHOST, error).remedy;
        assert_eq!(remedy(Errno::CONNREFUSED), Remedy::Retry);
        assert_eq!(remedy(Errno::TIMEDOUT), Remedy::Retry);
        assert_eq!(remedy(Errno::ACCESS), Remedy::Reboot);
    }
}
