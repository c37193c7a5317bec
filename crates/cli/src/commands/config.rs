//! `slate config import`: the nodes of another system as a file of ours.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use daemon::control::{Inventory, NetworkSettings, NodeEntry};
use inventory::{Entry, Fate, Imported, Kind, Network, Node};
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};

use super::apply;
use crate::args::{ConfigCommand, DirArgs, ImportArgs, ImportedKind};
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// Runs one `slate config` command.
pub fn run(dirs: &DirArgs, command: &ConfigCommand) -> Outcome {
    match command {
        ConfigCommand::Import(args) => import(dirs, args),
    }
}

fn import(dirs: &DirArgs, args: &ImportArgs) -> Outcome {
    let text = apply::read_text(&args.file)
        .map_err(|failure| failure.hint("name the other system's file; - is standard input"))?;
    let shown = args.file.display();
    let kind = match args.from {
        Some(kind) => kind.into(),
        None => inventory::guess(&text).ok_or_else(|| unknown(&args.file))?,
    };
    let imported = inventory::import(kind, &text).map_err(|error| {
        Failure::new(format!("{shown}, as a file of {kind}: {error}")).hint(error.hint())
    })?;
    if args.json {
        return render::json(&document(kind, &imported));
    }
    anstream::eprint!("{}", report(kind, &imported));
    let ours = ours(&imported);
    if args.apply {
        return apply::add(dirs, ours, args.dry_run);
    }
    if args.dry_run {
        return Ok(());
    }
    let file = file(kind, &imported, ours)?;
    match &args.output {
        Some(path) => write_new(path, &file),
        None => {
            anstream::print!("{file}");
            Ok(())
        }
    }
}

fn unknown(path: &Path) -> Failure {
    Failure::new(format!(
        "{}: expected a file of ISC dhcpd, dnsmasq, Warewulf or xCAT, got none that is known by its content",
        path.display()
    ))
    .hint("say what it is: --from dhcpd|dnsmasq|warewulf|xcat")
    .code(Code::Usage)
}

/// A file that is there already is nobody's to overwrite: it may be what git has.
fn write_new(path: &Path, text: &str) -> Outcome {
    let shown = path.display();
    let file = std::fs::File::create_new(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        Failure::because(format!("writing {shown}"), &error)
            .hint("name a file that does not exist, or leave -o out and look at the nodes first")
    })?;
    anstream::eprintln!("wrote {shown}; next: slate apply {shown} --dry-run");
    Ok(())
}

impl From<ImportedKind> for Kind {
    fn from(kind: ImportedKind) -> Self {
        match kind {
            ImportedKind::Dhcpd => Self::Dhcpd,
            ImportedKind::Dnsmasq => Self::Dnsmasq,
            ImportedKind::Warewulf => Self::Warewulf,
            ImportedKind::Xcat => Self::Xcat,
        }
    }
}

fn entry(node: &Node) -> NodeEntry {
    NodeEntry {
        address: node.address,
        image: node.image.clone(),
        kernel_args: node.kernel_args.clone(),
        ..NodeEntry::new(node.mac, node.name.clone())
    }
}

fn ours(imported: &Imported) -> Inventory {
    let settings = |network: &Network| {
        let (address, prefix) = network.network?;
        let told = NetworkSettings {
            routers: network.told.routers.clone(),
            dns: network.told.dns.clone(),
            domain: network.told.domain.clone(),
            time: network.told.time.clone(),
            ..NetworkSettings::default()
        };
        let says = told != NetworkSettings::default();
        says.then(|| (format!("{address}/{prefix}"), told))
    };
    Inventory {
        nodes: imported.nodes.iter().map(entry).collect(),
        networks: imported.networks.iter().filter_map(settings).collect(),
        ..Inventory::default()
    }
}

/// The `slate up` that serves a network as it was served.
fn command(network: &Network) -> String {
    let mut words = vec!["slate up".to_owned()];
    let interface = network.interface.as_deref().unwrap_or("IF");
    words.push(format!("--interface {interface}"));
    if network.is_proxy {
        words.push("--dhcp proxy".to_owned());
        return words.join(" ");
    }
    words.push("--dhcp authoritative".to_owned());
    if let Some((first, last)) = network.range {
        words.push(format!("--range {first}-{last}"));
    }
    if let Some(seconds) = network.lease_seconds.filter(|it| *it != u32::MAX) {
        words.push(format!("--lease {seconds}"));
    }
    words.join(" ")
}

/// What is to be known of a network beside its command.
fn about(network: &Network) -> String {
    let mut text = match network.network {
        Some((address, prefix)) => format!("the network {address}/{prefix}"),
        None => "a network".to_owned(),
    };
    if let Some(server) = network.next_server {
        let _ = write!(text, ", whose interface has the address {server}");
    }
    text
}

fn file(kind: Kind, imported: &Imported, ours: Inventory) -> Outcome<String> {
    let mut out = format!("# Imported from {kind}.\n");
    for network in &imported.networks {
        let _ = writeln!(out, "# For {}: {}", about(network), command(network));
    }
    out.push_str(&apply::written(ours)?);
    Ok(out)
}

fn report(kind: Kind, imported: &Imported) -> String {
    let row = |entry: &Entry| {
        let fate = match &entry.fate {
            Fate::Became(this) => this.clone(),
            Fate::LeftOut(why) => format!("{} {why}", "left out:".yellow()),
        };
        vec![entry.line.to_string(), entry.what.clone(), fate]
    };
    let mut out = String::new();
    if !imported.entries.is_empty() {
        let rows = imported.entries.iter().map(row);
        let _ = writeln!(
            out,
            "{}\n",
            render::table(&["LINE", "STATEMENT", "BECAME"], rows)
        );
    }
    let left_out = imported
        .entries
        .iter()
        .filter(|it| matches!(it.fate, Fate::LeftOut(_)));
    let _ = writeln!(
        out,
        "{} from {kind}; {} of {} statements left out",
        counted(imported.nodes.len()),
        left_out.count(),
        imported.entries.len()
    );
    for network in &imported.networks {
        let _ = writeln!(
            out,
            "To serve {}:\n  {}",
            about(network),
            command(network).bold()
        );
    }
    let mut images: Vec<&str> = imported
        .nodes
        .iter()
        .filter_map(|it| it.image.as_deref())
        .collect();
    images.sort_unstable();
    images.dedup();
    for image in images {
        let _ = writeln!(
            out,
            "Needed before slate apply: slate image import {image} DIR|TAR"
        );
    }
    out
}

fn counted(nodes: usize) -> String {
    match nodes {
        1 => "1 node".to_owned(),
        more => format!("{more} nodes"),
    }
}

fn document(kind: Kind, imported: &Imported) -> Value {
    let statement = |entry: &Entry| {
        let (became, left_out) = match &entry.fate {
            Fate::Became(this) => (Some(this), None),
            Fate::LeftOut(why) => (None, Some(why)),
        };
        json!({ "line": entry.line, "statement": entry.what, "became": became, "left_out": left_out })
    };
    let network = |network: &Network| {
        json!({
            "interface": network.interface,
            "network": network.network.map(|(address, prefix)| format!("{address}/{prefix}")),
            "range": network.range.map(|(first, last)| format!("{first}-{last}")),
            "lease_seconds": network.lease_seconds,
            "next_server": network.next_server,
            "command": command(network),
        })
    };
    json!({
        "from": kind.to_string(),
        "nodes": imported.nodes.iter().map(entry).collect::<Vec<_>>(),
        "networks": imported.networks.iter().map(network).collect::<Vec<_>>(),
        "statements": imported.entries.iter().map(statement).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DHCPD: &str = "default-lease-time 7200;\n\
        subnet 192.168.2.0 netmask 255.255.255.0 {\n\
        interface ens19;\n\
        next-server 192.168.2.2;\n\
        option routers 192.168.2.1;\n\
        filename \"shim.efi\";\n\
        pool { range 192.168.2.20 192.168.2.254;\n\
        host node1 { hardware ethernet 68:05:CA:93:95:A5; fixed-address 192.168.2.5; } }\n\
        }\n";

    #[test]
    fn what_is_written_can_be_applied() {
        let imported = inventory::import(Kind::Dhcpd, DHCPD).unwrap();
        let ours = ours(&imported);
        let text = file(Kind::Dhcpd, &imported, ours.clone()).unwrap();
        let expected = "# Imported from ISC dhcpd.\n\
            # For the network 192.168.2.0/24, whose interface has the address 192.168.2.2: \
            slate up --interface ens19 --dhcp authoritative --range 192.168.2.20-192.168.2.254 --lease 7200\n";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(ours.networks["192.168.2.0/24"].routers.len(), 1);
        assert_eq!(apply::parsed(&text), Ok(ours));
    }

    #[test]
    fn the_command_that_is_printed_can_be_typed() {
        use clap::Parser as _;
        let imported = inventory::import(Kind::Dhcpd, DHCPD).unwrap();
        let line = command(&imported.networks[0]);
        let parsed = crate::args::Cli::try_parse_from(line.split(' '));
        let crate::args::Command::Up(up) = parsed.unwrap().command else {
            panic!("{line}");
        };
        assert_eq!(up.interfaces, ["ens19"]);
        assert_eq!(up.lease, Some(7200));
        assert_eq!(up.ranges[0].to_string(), "192.168.2.20-192.168.2.254");
    }

    #[test]
    fn the_report_says_what_became_of_each_statement() {
        let imported = inventory::import(Kind::Dhcpd, DHCPD).unwrap();
        let text = report(Kind::Dhcpd, &imported);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert!(text.contains("1 node from ISC dhcpd"), "{text}");
        assert!(
            text.contains("left out: slate chooses the boot file"),
            "{text}"
        );
        let document = document(Kind::Dhcpd, &imported);
        let statements = document["statements"].as_array().unwrap();
        assert_eq!(statements.len(), imported.entries.len());
        assert_eq!(document["nodes"][0]["name"], "node1");
    }
}
