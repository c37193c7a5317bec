//! `slate apply` and `slate export`: the inventory as a file that can live in git.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::Path;

use daemon::control::{Change, Client, NodeEntry, Request, Response};
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

/// The file: `[nodes.NAME]` tables.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
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
}

/// Runs `slate apply`.
pub fn run(dirs: &DirArgs, args: &ApplyArgs) -> Outcome {
    let nodes = read(&args.file)?;
    let mut client = Client::connect(&dirs.run_dir)?;
    let request = Request::Apply {
        nodes,
        prune: args.prune,
        dry_run: args.dry_run,
    };
    let changes = match client.request(&request)? {
        Response::Applied { changes } => changes,
        other => return Err(unexpected(&other)),
    };
    if args.output.json {
        return render::json(&json!({ "dry_run": args.dry_run, "changes": changes }));
    }
    anstream::print!("{}", text(&changes, args.dry_run));
    Ok(())
}

/// Runs `slate export`.
pub fn export(dirs: &DirArgs, output: OutputArgs) -> Outcome {
    let mut client = Client::connect(&dirs.run_dir)?;
    let nodes = match client.request(&Request::Entries)? {
        Response::Entries { nodes } => nodes,
        other => return Err(unexpected(&other)),
    };
    if output.json {
        return render::json(&nodes);
    }
    anstream::print!("{}", written(nodes)?);
    Ok(())
}

fn read(path: &Path) -> Outcome<Vec<NodeEntry>> {
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
        Ok(length) if length as u64 > FILE_MAX_BYTES => {
            return Err(Failure::new(format!(
                "{shown}: expected at most {}",
                render::bytes(FILE_MAX_BYTES)
            )));
        }
        Ok(_) => {}
        Err(error) => {
            return Err(Failure::because(format!("reading {shown}"), &error)
                .hint("name the file, or make one of what there is: slate export > slate.toml"));
        }
    }
    entries(&text).map_err(|cause| {
        Failure::new(format!("{shown}: {cause}")).hint(
            "expected tables like this one:\n[nodes.node1]\nmac = \"68:05:ca:93:95:a5\"\n\
             address = \"192.168.2.5\"     # or leave it out, as image and kernel_args",
        )
    })
}

fn entries(text: &str) -> Result<Vec<NodeEntry>, String> {
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
        })
    };
    file.nodes.into_iter().map(entry).collect()
}

/// Nodes in the order in which they come, each with its table.
fn written(nodes: Vec<NodeEntry>) -> Outcome<String> {
    let mut out = String::from("# The nodes of slate; make it so with: slate apply FILE\n");
    for entry in nodes {
        let node = Node {
            mac: entry.mac.to_string(),
            address: entry.address,
            image: entry.image,
            kernel_args: entry.kernel_args,
        };
        let file = File {
            nodes: [(entry.name, node)].into(),
        };
        let table = toml::to_string(&file);
        let table = table.map_err(|error| Failure::because("writing the nodes", &error))?;
        out.push('\n');
        out.push_str(&table);
    }
    Ok(out)
}

fn text(changes: &[Change], dry_run: bool) -> String {
    if changes.is_empty() {
        return "Nothing to change.\n".to_owned();
    }
    let mut out = String::new();
    for change in changes {
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
    out.push_str(&format!("{} {verb}.\n", counted(changes.len())));
    out
}

fn counted(nodes: usize) -> String {
    match nodes {
        1 => "1 node".to_owned(),
        more => format!("{more} nodes"),
    }
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

fn fields(node: &NodeEntry) -> [(&'static str, String); 4] {
    let unset = || UNSET.to_owned();
    [
        ("name", node.name.clone()),
        (
            "address",
            node.address.map_or_else(unset, |it| it.to_string()),
        ),
        ("image", node.image.clone().unwrap_or_else(unset)),
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
        NodeEntry {
            name: name.into(),
            mac: Mac([0x52, 0x54, 0, 0, 0, last]),
            address: None,
            image: None,
            kernel_args: String::new(),
        }
    }

    #[test]
    fn what_is_exported_can_be_applied() {
        let full = NodeEntry {
            address: Some([10, 77, 0, 9].into()),
            image: Some("rocky9:next".into()),
            kernel_args: "console=ttyS0 a=\"b c\"".into(),
            ..entry("node2", 2)
        };
        let nodes = vec![entry("node10", 10), full];
        let text = written(nodes.clone()).unwrap();
        assert_eq!(entries(&text), Ok(nodes), "{text}");
        assert_eq!(entries("# nothing\n"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_shown_where_it_is() {
        for (text, expected) in [
            ("[nodes.a]\nmac = \"zz\"\n", "nodes.a: mac: "),
            ("[nodes.a]\nmac = 5\n", "line 2"),
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
        ] {
            let error = entries(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn changes_are_a_line_each() {
        let (before, mut after) = (entry("node1", 1), entry("gpu1", 1));
        after.address = Some([10, 77, 0, 9].into());
        let change = |before: Option<&NodeEntry>, after: Option<&NodeEntry>| Change {
            before: before.cloned(),
            after: after.cloned(),
        };
        let changes = [
            change(None, Some(&after)),
            change(Some(&before), Some(&after)),
            change(Some(&before), None),
        ];
        let text = text(&changes, true);
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "+ gpu1 52:54:00:00:00:01, address 10.77.0.9\n\
             ~ node1: name node1 -> gpu1, address (default) -> 10.77.0.9\n\
             - node1 52:54:00:00:00:01\n\
             3 nodes would change.\n"
        );
        assert_eq!(super::text(&[], false), "Nothing to change.\n");
    }
}
