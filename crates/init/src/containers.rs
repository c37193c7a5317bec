//! A place for container engines. They lay overlays of their own over what they store, and the
//! kernel takes no overlay for another one's upper layer: so their stores get a tmpfs instead.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use crate::selinux;

/// Where an engine stores, and the programs that do.
const STORES: [(&str, &[&str]); 3] = [
    (
        "/var/lib/docker",
        &["/usr/bin/dockerd", "/usr/sbin/dockerd"],
    ),
    ("/var/lib/containerd", &["/usr/bin/containerd"]),
    (
        "/var/lib/containers",
        &["/usr/bin/podman", "/usr/bin/buildah", "/usr/bin/crio"],
    ),
];

/// Mounts a tmpfs where an engine of the image is going to store. What the image has stored there
/// already stays in sight; those places are answered.
pub fn mount_stores() -> io::Result<Vec<&'static str>> {
    let mut kept = Vec::new();
    for (store, programs) in STORES {
        if !programs.iter().any(|program| Path::new(program).exists()) {
            continue;
        }
        selinux::note(Path::new(store));
        fs::create_dir_all(store)?;
        if holds_files(Path::new(store))? {
            kept.push(store);
            continue;
        }
        mount(
            "tmpfs",
            store,
            "tmpfs",
            MountFlags::empty(),
            c"mode=0711,size=50%",
        )?;
    }
    Ok(kept)
}

/// Whether there is anything but directories.
fn holds_files(directory: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || holds_files(&entry.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}
