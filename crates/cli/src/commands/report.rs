//! The document that `slate try --json` prints: what each virtual node did, and what it runs on.

use std::collections::BTreeMap;

use daemon::control::NodeView;
use serde::Serialize;

/// The whole document.
#[derive(Serialize, Debug)]
pub struct Document {
    /// In the order in which they were powered on.
    pub nodes: Vec<Node>,
}

/// One node.
#[derive(Serialize, Debug)]
pub struct Node {
    pub name: String,
    pub mac: String,
    pub address: Option<std::net::Ipv4Addr>,
    pub firmware: Option<String>,
    /// `multi-user`, or the stage where it stopped.
    pub reached: String,
    /// As the guest sees it; absent where it did not come up.
    pub root: Option<Root>,
    /// From power-on.
    pub timeline: Vec<Stage>,
    pub loader_bytes: u64,
    pub initrd_bytes: u64,
    pub nfs: Nfs,
}

/// A stage and when it was reached.
#[derive(Serialize, Debug)]
pub struct Stage {
    pub stage: String,
    pub at_ms: u64,
}

/// A node's calls to the NFS server.
#[derive(Serialize, Debug)]
pub struct Nfs {
    pub rpcs: u64,
    pub bytes: u64,
    pub by_op: BTreeMap<String, u64>,
}

/// The root file system.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub struct Root {
    pub fstype: String,
    /// Topmost first.
    pub lower: Vec<Lower>,
    /// File system type of the layer that is written to.
    pub upper: String,
}

/// A read-only layer.
#[derive(Serialize, Debug, PartialEq, Eq)]
pub struct Lower {
    pub fstype: String,
    pub vers: String,
    pub options: Vec<String>,
}

impl Node {
    /// A node as the daemon knows it, powered on at `powered_on_ms` (Unix).
    pub fn new(view: NodeView, powered_on_ms: u64, root: Option<Root>) -> Node {
        let stage = |reached: &daemon::control::StageAt| Stage {
            stage: reached.stage.clone(),
            at_ms: reached.at_ms.saturating_sub(powered_on_ms),
        };
        Node {
            timeline: view.timeline.iter().map(stage).collect(),
            name: view.name,
            mac: view.mac,
            address: view.address,
            firmware: view.firmware,
            reached: view.reached.unwrap_or_else(|| "power-on".into()),
            root,
            loader_bytes: view.loader_bytes,
            initrd_bytes: view.initrd_bytes,
            nfs: Nfs {
                rpcs: view.nfs.rpcs,
                bytes: view.nfs.bytes,
                by_op: view.nfs.by_op,
            },
        }
    }
}

/// Prints the root and its layers, in the form that [`parse_root`] reads. The layers are hidden
/// from the running system; /init noted down their mountinfo lines.
pub const SHOW_ROOT: &str =
    "awk '$2 == \"/\" { print \"root\", $3 }' /proc/self/mounts; cat /run/slate/layers";

/// Reads what [`SHOW_ROOT`] printed.
pub fn parse_root(text: &str) -> Option<Root> {
    let fstype = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("root "))?;
    let mut root = Root {
        fstype: fstype.trim().to_owned(),
        lower: Vec::new(),
        upper: String::new(),
    };
    for line in text.lines() {
        // proc_pid_mountinfo(5): … mount point, options, fields, "-", type, source, super options.
        let Some((mount, file_system)) = line.split_once(" - ") else {
            continue;
        };
        let mount: Vec<&str> = mount.split_whitespace().collect();
        let [kind, _source, options] = file_system.split_whitespace().collect::<Vec<_>>()[..]
        else {
            continue;
        };
        match mount.get(4) {
            Some(&"/lower") => root.lower.push(lower(
                kind,
                mount.get(5).copied().unwrap_or_default(),
                options,
            )),
            Some(&"/upper") => root.upper = kind.to_owned(),
            _ => {}
        }
    }
    Some(root)
}

fn lower(kind: &str, mount_options: &str, options: &str) -> Lower {
    let mut all: Vec<String> = Vec::new();
    for option in mount_options.split(',').chain(options.split(',')) {
        // The super block is ours alone, and what the mount says counts.
        let shadowed = option == "rw" && all.iter().any(|it| it == "ro");
        if !shadowed && !all.iter().any(|it| it == option) {
            all.push(option.to_owned());
        }
    }
    let vers = all
        .iter()
        .find_map(|option| option.strip_prefix("vers="))
        .unwrap_or_default()
        .to_owned();
    Lower {
        fstype: kind.to_owned(),
        vers,
        options: all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_and_its_layers() {
        let text = "root overlay\r\n\
            25 1 0:22 / /lower ro,noatime shared:1 - nfs4 10.77.0.1:/images/ab ro,vers=4.2,addr=10.77.0.1\r\n\
            26 1 0:23 / /upper rw,relatime - tmpfs none rw,size=50%\r\n";
        let root = parse_root(text).unwrap();
        assert_eq!(
            (root.fstype.as_str(), root.upper.as_str()),
            ("overlay", "tmpfs")
        );
        let [lower] = &root.lower[..] else {
            panic!("{root:?}")
        };
        assert_eq!(
            (lower.fstype.as_str(), lower.vers.as_str()),
            ("nfs4", "4.2")
        );
        assert_eq!(
            lower.options,
            ["ro", "noatime", "vers=4.2", "addr=10.77.0.1"]
        );
        assert_eq!(parse_root("nothing"), None);
    }
}
