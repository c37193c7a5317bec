//! The files that a node is given with its identity: those that its groups name, and those by which
//! the rest of its groups' settings reach its system.

use std::cell::LazyCell;
use std::collections::BTreeMap;

use minijinja::{Value, context};
use wire::identity::File;

use crate::group::{Disk, FileEntry, Mount};
use crate::record::Node;
use crate::{Engine, template, unit};

const UNITS: &str = "/run/systemd/system";
/// Prepares disks on the node.
const PREPARE_DISK: &str = "/run/slate/prepare-disk";
/// File systems that need a network, which systemd waits for before it mounts them.
const REMOTE: [&str; 10] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "lustre",
    "beegfs",
    "glusterfs",
    "9p",
    "afs",
];
/// All files of one node together, in bytes: a document holds them, the keys and the hosts.
const MAX_FILES_BYTES: usize = 640 << 10;

/// A file that cannot be delivered, and why.
pub(crate) type Omitted = (String, String);

impl Engine {
    /// The files of a node, and those that cannot be made.
    pub(crate) fn files_for(&self, node: &Node) -> (Vec<File>, Vec<Omitted>) {
        let mut files = self.settings_files(node);
        let mut omitted = Vec::new();
        let mut bytes: usize = files.iter().map(|file| file.content.len()).sum();
        // Every node is described there, which only templates ask for.
        let values = LazyCell::new(|| self.values(node));
        for (path, entry) in self.entries_of(node, |group| &group.files) {
            let made = self.file_content(entry, || &values).and_then(|content| {
                bytes += content.len();
                if bytes > MAX_FILES_BYTES {
                    bytes -= content.len();
                    return Err("a node's files hold at most 640 KiB together".into());
                }
                Ok(content)
            });
            match made {
                Ok(content) => files.push(File {
                    path: path.to_owned(),
                    mode: entry.mode(),
                    owner: entry.owner.clone().unwrap_or_default(),
                    content,
                }),
                Err(cause) => omitted.push((path.to_owned(), cause)),
            }
        }
        (files, omitted)
    }

    fn file_content<'a>(
        &self,
        entry: &FileEntry,
        values: impl FnOnce() -> &'a Value,
    ) -> Result<Vec<u8>, String> {
        if let Some(name) = &entry.secret {
            let secret = self.secrets.get(name);
            let secret = secret.ok_or_else(|| format!("there is no secret {name}"))?;
            return Ok(secret.0.clone());
        }
        let content = entry.content.as_deref().unwrap_or_default();
        if entry.template {
            template::fill(content, values())
        } else {
            Ok(content.as_bytes().to_vec())
        }
    }

    /// What templates may name.
    fn values(&self, node: &Node) -> Value {
        let describe = |node: &Node| {
            let address = self.address_of(node).map(|it| it.to_string());
            context! {
                name => node.name.clone(),
                mac => node.mac.to_string(),
                address,
                groups => node.groups.clone(),
            }
        };
        let nodes: Vec<Value> = self.nodes_by_name().into_iter().map(describe).collect();
        context! { nodes, ..describe(node) }
    }

    fn settings_files(&self, node: &Node) -> Vec<File> {
        let mut files = Vec::new();
        for name in self.masked_units(node) {
            // An empty unit is a masked one (systemd.unit(5)).
            files.push(text(&format!("{UNITS}/{name}"), String::new()));
        }
        if let Some(size) = self.setting(node, |group| group.journal_size.as_ref()) {
            files.push(text(
                "/run/systemd/journald.conf.d/50-slate.conf",
                format!("[Journal]\nSystemMaxUse={size}\nRuntimeMaxUse={size}\n"),
            ));
        }
        files.extend(self.time_files(node));
        let mut wants: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (path, mount) in self.entries_of(node, |group| &group.mounts) {
            let name = format!("{}.mount", unit::escape(path));
            let remote = REMOTE.contains(&mount.kind.as_str()) || mount.options.contains("_netdev");
            let target = if remote {
                "remote-fs.target"
            } else {
                "local-fs.target"
            };
            wants.entry(target).or_default().push(name.clone());
            files.push(unit_file(&name, mount_unit(path, mount)));
        }
        for (path, disk) in self.entries_of(node, |group| &group.disks) {
            let (target, units) = disk_units(path, disk);
            let (name, _) = &units[0];
            wants.entry(target).or_default().push(name.clone());
            files.extend(units.into_iter().map(|(name, text)| unit_file(&name, text)));
        }
        if wants.keys().any(|target| *target != "remote-fs.target") {
            files.push(File {
                mode: 0o755,
                ..text(PREPARE_DISK, include_str!("prepare-disk.sh").into())
            });
        }
        for (target, units) in wants {
            files.push(text(
                &format!("{UNITS}/{target}.d/50-slate.conf"),
                format!("[Unit]\nWants={}\n", units.join(" ")),
            ));
        }
        files
    }

    /// For chrony (`sourcedir /run/chrony-dhcp` in Debian's and Red Hat's configuration) and for
    /// systemd-timesyncd.
    fn time_files(&self, node: &Node) -> Vec<File> {
        let Ok(interface) = self.network_of(node) else {
            return Vec::new();
        };
        let servers = self.network_settings(Some(node), interface).time;
        if servers.is_empty() {
            return Vec::new();
        }
        let sources = servers.iter().map(|it| format!("server {it} iburst\n"));
        let list: Vec<String> = servers.iter().map(ToString::to_string).collect();
        vec![
            text("/run/chrony-dhcp/slate.sources", sources.collect()),
            text(
                "/run/systemd/timesyncd.conf.d/50-slate.conf",
                format!("[Time]\nNTP={}\n", list.join(" ")),
            ),
        ]
    }
}

fn text(path: &str, content: String) -> File {
    File {
        path: path.to_owned(),
        mode: 0o644,
        owner: String::new(),
        content: content.into_bytes(),
    }
}

fn unit_file(name: &str, content: String) -> File {
    text(&format!("{UNITS}/{name}"), content)
}

fn mount_unit(path: &str, mount: &Mount) -> String {
    let Mount {
        source,
        kind,
        options,
    } = mount;
    format!(
        "[Unit]\nDescription={path} of the node's groups\n\n[Mount]\nWhat={}\nWhere={}\nType={kind}\nOptions={}\n",
        unit::literal(source),
        unit::literal(path),
        unit::literal(options),
        path = unit::literal(path),
    )
}

/// The units of a disk, the one that is wanted first, and the target that wants it. Nothing requires
/// a disk: whatever is wrong with it, the node comes up and says so.
fn disk_units(path: &str, disk: &Disk) -> (&'static str, Vec<(String, String)>) {
    let device = unit::literal(&disk.device);
    let is_swap = path == unit::SWAP;
    let kind = if is_swap { "swap" } else { &disk.kind };
    let prepare = match is_swap {
        true => "slate-disk-swap.service".to_owned(),
        false => format!("slate-disk-{}.service", unit::escape(path)),
    };
    let service = format!(
        "[Unit]\nDescription=Prepares {device}\nDefaultDependencies=no\n\
         After=systemd-udevd.service\nConflicts=shutdown.target\nBefore=shutdown.target\n\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/bin/sh {PREPARE_DISK} {device} {kind} {}\n",
        disk.wipe.name()
    );
    let needs = format!("Requires={prepare}\nAfter={prepare}\n");
    let options = unit::literal(&disk.options);
    let (target, name, user) = if is_swap {
        let name = format!("{}.swap", unit::escape(&disk.device));
        let text = format!("[Unit]\n{needs}\n[Swap]\nWhat={device}\nOptions={options}\n");
        ("swap.target", name, text)
    } else {
        let place = unit::literal(path);
        let text = format!(
            "[Unit]\n{needs}\n[Mount]\nWhat={device}\nWhere={place}\nType={kind}\nOptions={options}\n"
        );
        (
            "local-fs.target",
            format!("{}.mount", unit::escape(path)),
            text,
        )
    };
    (target, vec![(name, user), (prepare, service)])
}
