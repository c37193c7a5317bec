//! `slate apply` and `slate export`: the inventory as a file that can live in git.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::Path;

use daemon::control::{
    Change, Changes, Client, FileEntry, Group, Inventory, NetworkSettings, NodeEntry, Request,
    Response, UefiLoader, UnknownPolicy,
};
use owo_colors::OwoColorize as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use wire::mac::Mac;

use super::node::unexpected;
use crate::args::{ApplyArgs, DirArgs, OutputArgs};
use crate::failure::{Failure, Outcome};
use crate::render;

/// Longest file that is read.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// The file: `unknown`, and tables `[nodes.NAME]`, `[groups.NAME]` and `[networks."ADDRESS/PREFIX"]`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<UnknownPolicy>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    networks: BTreeMap<String, NetworkSettings>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<String, Group>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    kernel_args: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loader: Option<UefiLoader>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    console: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    power: Option<String>,
}

/// Runs `slate apply`.
pub fn run(dirs: &DirArgs, args: &ApplyArgs) -> Outcome {
    let inventory = read(&args.file)?;
    let changes = ask(dirs, inventory, args.prune, args.dry_run)?;
    if args.output.json {
        return render::json(&json!({ "dry_run": args.dry_run, "changes": changes }));
    }
    show(&changes, args.dry_run);
    Ok(())
}

/// Makes the inventory what this one says, all of it or nothing, and says what that changed; what it
/// does not name stays.
pub(super) fn add(dirs: &DirArgs, inventory: Inventory, dry_run: bool) -> Outcome {
    let changes = ask(dirs, inventory, false, dry_run)?;
    show(&changes, dry_run);
    Ok(())
}

fn show(changes: &Changes, dry_run: bool) {
    for note in &changes.notes {
        anstream::eprintln!("{} {note}", "warning:".yellow().bold());
    }
    anstream::print!("{}", text(changes, dry_run));
}

fn ask(dirs: &DirArgs, inventory: Inventory, prune: bool, dry_run: bool) -> Outcome<Changes> {
    let mut client = Client::connect(&dirs.run_dir)?;
    let request = Request::Apply {
        inventory,
        prune,
        dry_run,
    };
    match client.request(&request)? {
        Response::Applied(changes) => Ok(changes),
        other => Err(unexpected(&other)),
    }
}

/// Runs `slate export`.
pub fn export(dirs: &DirArgs, output: OutputArgs) -> Outcome {
    let mut client = Client::connect(&dirs.run_dir)?;
    let inventory = match client.request(&Request::Inventory)? {
        Response::Inventory(inventory) => inventory,
        other => return Err(unexpected(&other)),
    };
    if output.json {
        return render::json(&inventory);
    }
    anstream::print!("{}", written(inventory)?);
    Ok(())
}

fn read(path: &Path) -> Outcome<Inventory> {
    let shown = path.display();
    let text = read_text(path).map_err(|failure| {
        failure.hint("name the file, or make one of what there is: slate export > slate.toml")
    })?;
    let mut inventory = parsed(&text).map_err(|cause| {
        Failure::new(format!("{shown}: {cause}")).hint(
            "expected tables like this one:\n[nodes.node1]\nmac = \"68:05:ca:93:95:a5\"\n\
             address = \"192.168.2.5\"     # or leave it out, as image, groups and kernel_args\n\
             docs/nodes.md has those of groups and networks",
        )
    })?;
    let beside = path.parent().unwrap_or(Path::new(""));
    let files = inventory.groups.values_mut();
    for file in files.flat_map(|group| group.files.values_mut()) {
        read_source(beside, file)?;
    }
    Ok(inventory)
}

/// A file's text, or that of standard input.
pub(super) fn read_text(path: &Path) -> Outcome<String> {
    let shown = path.display();
    let mut text = String::new();
    let mut read =
        |source: &mut dyn std::io::Read| source.take(FILE_MAX_BYTES + 1).read_to_string(&mut text);
    let length = if path == Path::new("-") {
        read(&mut std::io::stdin())
    } else {
        std::fs::File::open(path).and_then(|mut file| read(&mut file))
    };
    match length {
        Ok(length) if length as u64 > FILE_MAX_BYTES => Err(Failure::new(format!(
            "{shown}: expected at most {}",
            render::bytes(FILE_MAX_BYTES)
        ))),
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::because(format!("reading {shown}"), &error)),
    }
}

/// Takes a file's content from where its entry says, beside the inventory.
fn read_source(beside: &Path, file: &mut FileEntry) -> Outcome {
    if file.content.is_some() || file.secret.is_some() {
        // The daemon says what is wrong with two of them.
        return Ok(());
    }
    let Some(source) = file.source.take() else {
        return Ok(());
    };
    let path = beside.join(source);
    let content = std::fs::read_to_string(&path).map_err(|error| {
        Failure::because(format!("reading {}", path.display()), &error).hint(
            "name a text file, beside the inventory or by its whole path; other content can be a \
             secret: slate secret set NAME FILE",
        )
    })?;
    file.content = Some(content);
    Ok(())
}

pub(super) fn parsed(text: &str) -> Result<Inventory, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let entry = |(name, node): (String, Node)| {
        let mac: Mac = node
            .mac
            .parse()
            .map_err(|error| format!("nodes.{name}: mac: {error}"))?;
        Ok(NodeEntry {
            name,
            mac,
            address: node.address,
            image: node.image,
            kernel_args: node.kernel_args,
            loader: node.loader,
            console: node.console,
            groups: node.groups,
            power: node.power,
        })
    };
    let nodes: Result<_, String> = file.nodes.into_iter().map(entry).collect();
    Ok(Inventory {
        nodes: nodes?,
        groups: file.groups,
        networks: file.networks,
        unknown: file.unknown,
    })
}

/// Networks and groups, then nodes in the order in which they come, each with its table.
pub(super) fn written(inventory: Inventory) -> Outcome<String> {
    let failed = |error| Failure::because("writing the inventory", &error);
    let mut out = String::from("# The nodes of slate; make it so with: slate apply FILE\n");
    let shared = File {
        unknown: inventory.unknown,
        networks: inventory.networks,
        groups: inventory.groups,
        nodes: BTreeMap::new(),
    };
    if shared != File::default() {
        out.push('\n');
        out.push_str(&toml::to_string(&shared).map_err(failed)?);
    }
    for entry in inventory.nodes {
        let node = Node {
            mac: entry.mac.to_string(),
            address: entry.address,
            image: entry.image,
            kernel_args: entry.kernel_args,
            loader: entry.loader,
            console: entry.console,
            groups: entry.groups,
            power: entry.power,
        };
        let file = File {
            nodes: [(entry.name, node)].into(),
            ..File::default()
        };
        out.push('\n');
        out.push_str(&toml::to_string(&file).map_err(failed)?);
    }
    Ok(out)
}

fn text(changes: &Changes, dry_run: bool) -> String {
    if changes.is_empty() {
        return "Nothing to change.\n".to_owned();
    }
    let mut out = String::new();
    if let Some(Change { before, after }) = changes.unknown {
        let shown = |policy: Option<UnknownPolicy>| policy.map_or(UNSET, UnknownPolicy::name);
        out.push_str(&format!(
            "~ unknown machines: {} -> {}\n",
            shown(before),
            shown(after)
        ));
    }
    for (name, change) in &changes.networks {
        out.push_str(&setting_text(&format!("network {name}"), change));
    }
    for (name, change) in &changes.groups {
        out.push_str(&setting_text(&format!("group {name}"), change));
    }
    for change in &changes.nodes {
        match (&change.before, &change.after) {
            (None, Some(after)) => {
                let line = format!("+ {} {}{}", after.name, after.mac, settings(after));
                out.push_str(&format!("{}\n", line.green()));
            }
            (Some(before), None) => {
                let line = format!("- {} {}", before.name, before.mac);
                out.push_str(&format!("{}\n", line.red()));
            }
            (Some(before), Some(after)) => {
                out.push_str(&format!(
                    "~ {}: {}\n",
                    before.name,
                    differences(before, after)
                ));
            }
            (None, None) => {}
        }
    }
    let verb = if dry_run { "would change" } else { "changed" };
    let counted = [
        counted(changes.networks.len(), "network"),
        counted(changes.groups.len(), "group"),
        counted(changes.nodes.len(), "node"),
    ];
    let counted: Vec<String> = counted.into_iter().flatten().collect();
    if !counted.is_empty() {
        out.push_str(&format!("{} {verb}.\n", counted.join(", ")));
    }
    out
}

fn counted(count: usize, what: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        more => Some(format!("{more} {what}s")),
    }
}

/// A group or network: a line that names it, and the lines of its table that come and go.
fn setting_text<T: Serialize>(name: &str, change: &Change<T>) -> String {
    let table = |it: &Option<T>| it.as_ref().and_then(|it| toml::to_string(it).ok());
    let (before, after) = (table(&change.before), table(&change.after));
    let mut out = match (&before, &after) {
        (None, _) => format!("{}\n", format!("+ {name}").green()),
        (_, None) => format!("{}\n", format!("- {name}").red()),
        _ => format!("~ {name}\n"),
    };
    let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
    let lines = |text: &str, others: &str, mark: char| -> Vec<String> {
        let others: Vec<&str> = others.lines().collect();
        let differ = text
            .lines()
            .filter(|it| !it.is_empty() && !others.contains(it));
        differ.map(|line| format!("    {mark} {line}")).collect()
    };
    for line in lines(&before, &after, '-') {
        out.push_str(&format!("{}\n", line.red()));
    }
    for line in lines(&after, &before, '+') {
        out.push_str(&format!("{}\n", line.green()));
    }
    out
}

/// The settings of a node, as far as they are not the default.
fn settings(node: &NodeEntry) -> String {
    let named = fields(node).into_iter().skip(1);
    let set = named.filter(|(_, value)| value != UNSET);
    set.map(|(name, value)| format!(", {name} {value}"))
        .collect()
}

fn differences(before: &NodeEntry, after: &NodeEntry) -> String {
    let pairs = fields(before).into_iter().zip(fields(after));
    let differ = pairs.filter(|(before, after)| before != after);
    let shown = differ.map(|((name, from), (_, to))| format!("{name} {from} -> {to}"));
    shown.collect::<Vec<_>>().join(", ")
}

const UNSET: &str = "(default)";

fn fields(node: &NodeEntry) -> [(&'static str, String); 7] {
    let unset = || UNSET.to_owned();
    [
        ("name", node.name.clone()),
        (
            "address",
            node.address.map_or_else(unset, |it| it.to_string()),
        ),
        ("image", node.image.clone().unwrap_or_else(unset)),
        (
            "loader",
            node.loader.map_or_else(unset, |it| it.name().to_owned()),
        ),
        (
            "console",
            Some(node.console.join(" "))
                .filter(|it| !it.is_empty())
                .unwrap_or_else(unset),
        ),
        (
            "groups",
            Some(node.groups.join(","))
                .filter(|it| !it.is_empty())
                .unwrap_or_else(unset),
        ),
        (
            "kernel_args",
            Some(&node.kernel_args)
                .filter(|it| !it.is_empty())
                .map_or_else(unset, |it| format!("\"{it}\"")),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, last: u8) -> NodeEntry {
        NodeEntry::new(Mac([0x52, 0x54, 0, 0, 0, last]), name)
    }

    const GROUPS: &str = r#"
unknown = "approve"

[networks."10.77.0.0/24"]
routers = ["10.77.0.254"]

[groups.all]
masked_units = []

[groups.all.network]
dns = ["10.77.0.1"]
search = ["lab.example.org"]

[groups.gpu]
image = "rocky9:next"
loader = "ipxe"
console = ["ttyS0,115200"]
upper_size = "16G"

[groups.gpu.mounts."/home"]
source = "10.0.0.1:/export/home"

[groups.gpu.disks."/scratch"]
device = "/dev/disk/by-id/nvme-one"
type = "xfs"
wipe = "always"

[groups.gpu.files."/etc/munge/munge.key"]
secret = "munge"
owner = "munge:munge"

[nodes.node1]
mac = "52:54:00:00:00:01"
groups = ["gpu"]
"#;

    #[test]
    fn what_is_exported_can_be_applied() {
        let full = NodeEntry {
            address: Some([10, 77, 0, 9].into()),
            image: Some("rocky9:next".into()),
            kernel_args: "console=ttyS0 a=\"b c\"".into(),
            loader: Some(UefiLoader::Ipxe),
            console: vec!["tty0".into(), "ttyS0,115200".into()],
            ..entry("node2", 2)
        };
        let nodes = vec![entry("node10", 10), full];
        let inventory = Inventory {
            nodes,
            ..Inventory::default()
        };
        let text = written(inventory.clone()).unwrap();
        assert_eq!(parsed(&text), Ok(inventory), "{text}");
        assert_eq!(parsed("# nothing\n"), Ok(Inventory::default()));

        let groups = parsed(GROUPS).unwrap();
        assert_eq!(groups.unknown, Some(UnknownPolicy::Approve));
        let gpu = &groups.groups["gpu"];
        assert_eq!(gpu.mounts["/home"].kind, "nfs");
        assert_eq!(groups.groups["all"].masked_units, Some(Vec::new()));
        let text = written(groups.clone()).unwrap();
        assert_eq!(parsed(&text), Ok(groups), "{text}");
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_is() {
        for (text, expected) in [
            ("[nodes.a]\nmac = \"zz\"\n", "nodes.a: mac: "),
            ("[nodes.a]\nmac = 5\n", "line 2"),
            (
                "[groups.a]\nloader = \"lilo\"\n",
                "expected `shim` or `ipxe`",
            ),
            (
                "unknown = \"yes\"\n",
                "expected one of `auto`, `approve`, `ignore`",
            ),
            (
                "[nodes.a]\nadress = \"10.0.0.5\"\n",
                "unknown field `adress`",
            ),
            ("[nodes.a]\n", "missing field `mac`"),
            ("[node.a]\n", "unknown field `node`"),
            (
                "[nodes.a]\nmac = \"52:54:00:00:00:01\"\naddress = \"10.0.0\"\n",
                "line 3",
            ),
            (
                "[groups.a]\nupersize = \"1G\"\n",
                "unknown field `upersize`",
            ),
            (
                "[groups.a.disks.\"/x\"]\ndevice = \"/dev/a\"\nwipe = \"yes\"\n",
                "unknown variant `yes`",
            ),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn files_come_from_beside_the_inventory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("motd"), "hello\n").unwrap();
        let path = dir.path().join("slate.toml");
        let text = "[groups.a.files.\"/etc/motd\"]\nsource = \"motd\"\n";
        std::fs::write(&path, text).unwrap();
        let file = &read(&path).unwrap().groups["a"].files["/etc/motd"];
        assert_eq!(file.content.as_deref(), Some("hello\n"));
        assert_eq!(file.source, None);
        std::fs::remove_file(dir.path().join("motd")).unwrap();
        assert!(read(&path).unwrap_err().what.contains("motd"));
    }

    #[test]
    fn changes_are_a_line_each() {
        let (before, mut after) = (entry("node1", 1), entry("gpu1", 1));
        after.address = Some([10, 77, 0, 9].into());
        after.groups = vec!["gpu".into(), "rack1".into()];
        after.console = vec!["tty0".into(), "ttyS0".into()];
        after.loader = Some(UefiLoader::Shim);
        let change = |before: Option<&NodeEntry>, after: Option<&NodeEntry>| Change {
            before: before.cloned(),
            after: after.cloned(),
        };
        let nodes = vec![
            change(None, Some(&after)),
            change(Some(&before), Some(&after)),
            change(Some(&before), None),
        ];
        let mut groups = parsed(GROUPS).unwrap().groups;
        let mut gpu = groups.remove("gpu").unwrap();
        let former = Group {
            upper_size: Some("8G".into()),
            ..gpu.clone()
        };
        gpu.mounts.clear();
        let changed = Change {
            before: Some(former),
            after: Some(gpu),
        };
        let changes = Changes {
            nodes,
            groups: vec![("gpu".into(), changed)],
            networks: Vec::new(),
            notes: Vec::new(),
            unknown: Some(Change {
                before: None,
                after: Some(UnknownPolicy::Ignore),
            }),
        };
        let text = text(&changes, true);
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "~ unknown machines: (default) -> ignore\n\
             ~ group gpu\n    \
             - upper_size = \"8G\"\n    \
             - [mounts.\"/home\"]\n    \
             - source = \"10.0.0.1:/export/home\"\n    \
             - type = \"nfs\"\n    \
             + upper_size = \"16G\"\n\
             + gpu1 52:54:00:00:00:01, address 10.77.0.9, loader shim, console tty0 ttyS0, groups gpu,rack1\n\
             ~ node1: name node1 -> gpu1, address (default) -> 10.77.0.9, loader (default) -> shim, console (default) -> tty0 ttyS0, groups (default) -> gpu,rack1\n\
             - node1 52:54:00:00:00:01\n\
             1 group, 3 nodes would change.\n"
        );
        assert_eq!(
            super::text(&Changes::default(), false),
            "Nothing to change.\n"
        );
    }
}
