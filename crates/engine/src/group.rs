//! Groups: what is said of several nodes at once. A node is in those that it names and in `all`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::command::CommandError;
use crate::commands::{check_kernel_args, cut};
use crate::config::{Interface, UefiLoader};
use crate::console;
use crate::image::{ImageRef, is_part};
use crate::record::Node;
use crate::{Engine, unit};

/// The group of all nodes, and of machines that are none yet as far as their network goes.
pub const ALL: &str = "all";
/// Most groups.
pub(crate) const MAX_GROUPS: usize = 1024;
/// Most groups of one node.
const MAX_GROUPS_OF_NODE: usize = 32;
/// Longest content of one file, in bytes.
const MAX_FILE_BYTES: usize = 128 << 10;
/// Longest text of any other setting, in bytes.
const MAX_TEXT_BYTES: usize = 512;
/// Most entries of one kind in one group.
const MAX_ENTRIES: usize = 256;
/// Units that put a machine to sleep: one whose root is on the network does not wake up.
const SLEEP_UNITS: [&str; 5] = [
    "sleep.target",
    "suspend.target",
    "hibernate.target",
    "hybrid-sleep.target",
    "suspend-then-hibernate.target",
];

/// What the nodes of a group are given. What is left out is for the node's other groups to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Group {
    /// The image of nodes that name none, `NAME[:TAG]`.
    #[serde(with = "crate::text::option", skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// Arguments added to the kernel command line, before the node's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kernel_args: String,
    /// What UEFI nodes that say nothing of it load first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loader: Option<UefiLoader>,
    /// Consoles of nodes that name none, the one of the system last: `["tty0", "ttyS0,115200"]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
    /// What the node may write: `50%` of its memory, or `8G`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_size: Option<String>,
    /// What its journal may hold: `64M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal_size: Option<String>,
    /// What drives the power of its nodes: `wol`, or a command with `{action}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<String>,
    /// systemd units that cannot be started; `None` = those that put a machine to sleep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_units: Option<Vec<String>>,
    /// What DHCP tells of the network.
    #[serde(skip_serializing_if = "NetworkSettings::is_empty")]
    pub network: NetworkSettings,
    /// File systems to mount, by mount point.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, Mount>,
    /// Local disks to use, by mount point; `swap` for swap space.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<String, Disk>,
    /// Files to deliver, by path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileEntry>,
}

/// What DHCP tells of a network. Nothing is told of a service that nobody named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSettings {
    /// Option 3.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routers: Vec<Ipv4Addr>,
    /// Option 6.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
    /// Option 15.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Option 119.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Option 42; also told to chrony and systemd-timesyncd.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub time: Vec<Ipv4Addr>,
}

/// A file system to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What: `10.0.0.1:/export/home`.
    pub source: String,
    /// The kind of file system.
    #[serde(default = "nfs", rename = "type")]
    pub kind: String,
    /// Mount options.
    #[serde(default = "defaults")]
    pub options: String,
}

/// A local disk, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its device, best by id: `/dev/disk/by-id/nvme-…`.
    pub device: String,
    /// The kind of file system; of no weight for swap space.
    #[serde(default = "ext4", rename = "type")]
    pub kind: String,
    /// Mount options.
    #[serde(default = "defaults")]
    pub options: String,
    /// When the file system is made.
    #[serde(default)]
    pub wipe: Wipe,
}

/// When a file system is made on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wipe {
    /// Where the disk holds nothing that is known.
    #[default]
    IfBlank,
    /// Not at all.
    Never,
    /// At every boot, whatever the disk holds.
    Always,
}

impl Wipe {
    /// As in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Wipe::IfBlank => "if-blank",
            Wipe::Never => "never",
            Wipe::Always => "always",
        }
    }
}

/// A file to deliver: its content, or a secret's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileEntry {
    /// What it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// A file of that content, which the user's command reads: none is left when the engine sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The secret whose content it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Whether `{{ … }}` in the content stands for something.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub template: bool,
    /// Permission bits in octal; `None` = 644, for secrets 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// `USER[:GROUP]`; `None` = root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

fn nfs() -> String {
    "nfs".into()
}

fn ext4() -> String {
    "ext4".into()
}

fn defaults() -> String {
    "defaults".into()
}

impl NetworkSettings {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == NetworkSettings::default()
    }

    /// Takes from `other` what is not said yet.
    fn fill_in(&mut self, other: &NetworkSettings) {
        fill(&mut self.routers, &other.routers);
        fill(&mut self.dns, &other.dns);
        fill(&mut self.search, &other.search);
        fill(&mut self.time, &other.time);
        self.domain = self.domain.take().or_else(|| other.domain.clone());
    }

    pub(crate) fn check(&self) -> Result<(), CommandError> {
        let domains = self.search.iter().chain(&self.domain);
        for domain in domains {
            let labels = |it: &str| it.split('.').all(is_label);
            check(domain.len() <= 253 && labels(domain), || {
                ("a domain such as lab.example.org", domain)
            })?;
        }
        let lists = [&self.routers, &self.dns, &self.time];
        let bad = lists.into_iter().find(|list| list.len() > 8);
        check(bad.is_none() && self.search.len() <= 8, || {
            ("at most 8 addresses or domains of a kind", "more")
        })
    }
}

fn fill<T: Clone>(list: &mut Vec<T>, other: &[T]) {
    if list.is_empty() {
        list.extend_from_slice(other);
    }
}

impl FileEntry {
    pub(crate) fn mode(&self) -> u32 {
        let default = if self.secret.is_some() { 0o600 } else { 0o644 };
        let mode = self.mode.as_ref().map(|it| u32::from_str_radix(it, 8));
        mode.and_then(Result::ok).unwrap_or(default)
    }

    fn check(&self) -> Result<(), CommandError> {
        let both = self.content.is_some() == self.secret.is_some();
        check(!both && self.source.is_none(), || {
            (
                "one of content, source and secret",
                "another number of them",
            )
        })?;
        if let Some(mode) = &self.mode {
            let number = u32::from_str_radix(mode, 8);
            check(number.is_ok_and(|it| it <= 0o7777), || {
                ("a mode in octal such as \"0644\"", mode)
            })?;
        }
        if let Some(owner) = &self.owner {
            let parts = owner.split(':');
            check(
                parts.clone().count() <= 2 && parts.into_iter().all(is_part),
                || ("an owner such as munge or root:adm", owner),
            )?;
        }
        let content = self.content.as_deref().unwrap_or_default();
        check(content.len() <= MAX_FILE_BYTES, || {
            ("at most 128 KiB in a file", "more")
        })?;
        if self.template {
            crate::template::check(content).map_err(|cause| CommandError::BadTemplate { cause })?;
        }
        Ok(())
    }
}

impl Group {
    /// Checks all that can be checked of a group by itself.
    pub(crate) fn check(&self) -> Result<(), CommandError> {
        check_kernel_args(&self.kernel_args)?;
        console::check(&self.console)?;
        self.network.check()?;
        if let Some(size) = &self.upper_size {
            check(is_size(size) || is_share(size), || {
                ("a size such as \"50%\" or \"8G\"", size)
            })?;
        }
        if let Some(size) = &self.journal_size {
            check(is_size(size), || ("a size such as \"64M\"", size))?;
        }
        self.power.as_deref().map_or(Ok(()), crate::power::check)?;
        for name in self.masked_units.iter().flatten() {
            check(unit::is_name(name), || {
                ("a unit's name such as sleep.target", name)
            })?;
        }
        let counts = [
            self.mounts.len(),
            self.disks.len(),
            self.files.len(),
            self.masked_units.as_ref().map_or(0, Vec::len),
        ];
        check(counts.into_iter().all(|it| it <= MAX_ENTRIES), || {
            ("at most 256 entries of a kind", "more")
        })?;
        for (path, mount) in &self.mounts {
            check_path(path)?;
            check_line(&mount.source)?;
            check_word(&mount.kind)?;
            check_word(&mount.options)?;
        }
        for (path, disk) in &self.disks {
            if path != unit::SWAP {
                check_path(path)?;
            }
            check(disk.device.starts_with("/dev/"), || {
                ("a device such as /dev/disk/by-id/…", &disk.device)
            })?;
            check_word(&disk.device)?;
            let kind = disk.kind.bytes().all(|it| it.is_ascii_alphanumeric());
            check(kind && !disk.kind.is_empty(), || {
                ("a kind of file system such as ext4", &disk.kind)
            })?;
            check_word(&disk.options)?;
        }
        for (path, file) in &self.files {
            check_path(path)?;
            file.check()?;
        }
        Ok(())
    }
}

pub(crate) fn check_group_name(name: &str) -> Result<(), CommandError> {
    check(is_part(name) && name.len() <= 63, || {
        ("a group's name of letters, digits, '.', '_' and '-'", name)
    })
}

/// Whether `holds`, else what was expected and what came.
fn check<'a>(
    holds: bool,
    problem: impl FnOnce() -> (&'static str, &'a str),
) -> Result<(), CommandError> {
    if holds {
        return Ok(());
    }
    let (expected, got) = problem();
    Err(CommandError::BadSetting {
        expected: expected.into(),
        got: cut(got),
    })
}

/// A path that leads nowhere but where it says.
fn check_path(path: &str) -> Result<(), CommandError> {
    let mut parts = path.split('/').skip(1);
    let plain = parts.all(|part| !matches!(part, "" | "." | ".."));
    check(path.starts_with('/') && plain && path.len() > 1, || {
        ("an absolute path such as /home", path)
    })?;
    check_line(path)
}

fn check_line(text: &str) -> Result<(), CommandError> {
    let holds =
        !text.is_empty() && text.len() <= MAX_TEXT_BYTES && !text.contains(char::is_control);
    check(holds, || ("a line of at most 512 bytes", text))
}

fn check_word(text: &str) -> Result<(), CommandError> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\' | b'$');
    let holds = (1..=MAX_TEXT_BYTES).contains(&text.len()) && text.bytes().all(plain);
    check(holds, || ("a word without quotes", text))
}

fn is_label(label: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&label.len()) && label.bytes().all(plain)
}

/// Digits and a unit of tmpfs(5) and journald.conf(5).
fn is_size(text: &str) -> bool {
    let digits = text.strip_suffix(['K', 'M', 'G']).unwrap_or(text);
    (1..=12).contains(&digits.len())
        && digits.bytes().all(|it| it.is_ascii_digit())
        && digits.bytes().any(|it| it != b'0')
}

fn is_share(text: &str) -> bool {
    let share = text.strip_suffix('%').and_then(|it| it.parse().ok());
    share.is_some_and(|it: u8| (1..=100).contains(&it))
}

impl Engine {
    /// A node's groups, those that count first first.
    pub(crate) fn groups_of<'a>(&'a self, node: Option<&'a Node>) -> Vec<&'a Group> {
        let own = node.into_iter().flat_map(|node| &node.groups);
        own.map(String::as_str)
            .chain([ALL])
            .filter_map(|name| self.groups.get(name))
            .collect()
    }

    /// The first word on a setting that a node's groups have.
    pub(crate) fn setting<'a, T>(
        &'a self,
        node: &'a Node,
        setting: impl Fn(&'a Group) -> Option<&'a T>,
    ) -> Option<&'a T> {
        self.groups_of(Some(node)).into_iter().find_map(setting)
    }

    /// Entries of all of a node's groups; of those with one key the first counts.
    pub(crate) fn entries_of<'a, T>(
        &'a self,
        node: &'a Node,
        entries: impl Fn(&'a Group) -> &'a BTreeMap<String, T>,
    ) -> BTreeMap<&'a str, &'a T> {
        let mut all = BTreeMap::new();
        for (key, entry) in self.groups_of(Some(node)).into_iter().flat_map(entries) {
            all.entry(key.as_str()).or_insert(entry);
        }
        all
    }

    /// The units that a node cannot start.
    pub(crate) fn masked_units<'a>(&'a self, node: &'a Node) -> Vec<&'a str> {
        match self.setting(node, |group| group.masked_units.as_ref()) {
            Some(units) => units.iter().map(String::as_str).collect(),
            None => SLEEP_UNITS.into(),
        }
    }

    /// What a machine loads first, where its image has both and it is UEFI.
    pub(crate) fn loader_of(&self, node: Option<&Node>) -> UefiLoader {
        let own = node.and_then(|node| node.loader);
        let of_groups = || self.groups_of(node).into_iter().find_map(|it| it.loader);
        own.or_else(of_groups).unwrap_or(self.config.uefi_loader)
    }

    /// A node's consoles: its own, else those of the first of its groups that has any.
    pub(crate) fn consoles_of<'a>(&'a self, node: &'a Node) -> &'a [String] {
        let groups = self.groups_of(Some(node)).into_iter();
        let all = std::iter::once(&node.console).chain(groups.map(|it| &it.console));
        all.into_iter()
            .find(|it| !it.is_empty())
            .map_or(&[], Vec::as_slice)
    }

    /// All arguments that a node's kernel is given, those that count last.
    pub(crate) fn kernel_args(&self, node: &Node) -> String {
        let groups = self.groups_of(Some(node));
        let upper_size = self.setting(node, |group| group.upper_size.as_ref());
        let upper_size = upper_size.map(|size| format!("slate.upper={size}"));
        let consoles = self.consoles_of(node).iter();
        let consoles: Vec<String> = consoles.map(|it| format!("console={it}")).collect();
        std::iter::once(self.config.kernel_args.as_str())
            .chain(consoles.iter().map(String::as_str))
            .chain(upper_size.as_deref())
            .chain(groups.iter().rev().map(|group| group.kernel_args.as_str()))
            .chain([node.kernel_args.as_str()])
            .filter(|args| !args.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// What DHCP tells a machine on a network: what its groups say, then what is said of the network.
    pub(crate) fn network_settings(
        &self,
        node: Option<&Node>,
        interface: &Interface,
    ) -> NetworkSettings {
        let mut settings = NetworkSettings::default();
        for group in self.groups_of(node) {
            settings.fill_in(&group.network);
        }
        // Its name is not written out where nothing is said of any.
        if !self.networks.is_empty()
            && let Some(of_network) = self.networks.get(&interface.cidr())
        {
            settings.fill_in(of_network);
        }
        // A router elsewhere is none (RFC 2132, 3.5).
        settings.routers.retain(|it| interface.contains(*it));
        if settings.routers.is_empty() {
            settings.routers.extend(interface.relayed);
        }
        settings
    }

    /// Whether an address is that of a router that machines are told of.
    pub(crate) fn is_router(&self, address: Ipv4Addr) -> bool {
        let of_groups = self.groups.values().map(|group| &group.network);
        let mut all = of_groups.chain(self.networks.values());
        all.any(|settings| settings.routers.contains(&address))
    }

    /// Checks a node's groups: known, not too many, each named once, and not `all`.
    pub(crate) fn check_groups(
        groups: &[String],
        known: impl Fn(&str) -> bool,
    ) -> Result<(), CommandError> {
        check(groups.len() <= MAX_GROUPS_OF_NODE, || {
            ("at most 32 groups of one node", "more")
        })?;
        for (at, name) in groups.iter().enumerate() {
            check(name != ALL, || {
                ("a group besides all, where every node is", name)
            })?;
            check(!groups[..at].contains(name), || ("each group once", name))?;
            if !known(name) {
                return Err(CommandError::UnknownGroup { got: cut(name) });
            }
        }
        Ok(())
    }
}
