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

/// The networks that one `slate up` can serve together, by the one or several that are needed: it
/// knows one mode of DHCP, and one network on each interface.
fn together(networks: &[Network]) -> Vec<Vec<&Network>> {
    let mut all: Vec<Vec<&Network>> = Vec::new();
    for network in networks {
        let shares =
            |other: &&Network| other.interface.is_some() && other.interface == network.interface;
        let fits = |served: &&mut Vec<&Network>| {
            served[0].is_proxy == network.is_proxy && !served.iter().any(shares)
        };
        match all.iter_mut().find(fits) {
            Some(served) => served.push(network),
            None => all.push(vec![network]),
        }
    }
    all
}

/// The `slate up` that serves networks as they were served, the shortest of their leases for all.
fn command(networks: &[&Network]) -> String {
    let mut words = vec!["slate up".to_owned()];
    let interfaces = (0..networks.len()).map(|at| interface(networks, at));
    words.extend(interfaces.map(|it| format!("--interface {it}")));
    if networks.iter().all(|it| it.is_proxy) {
        words.push("--dhcp proxy".to_owned());
        return words.join(" ");
    }
    words.push("--dhcp authoritative".to_owned());
    let ranges = networks.iter().filter_map(|it| it.range);
    words.extend(ranges.map(|(first, last)| format!("--range {first}-{last}")));
    let leases = networks.iter().filter_map(|it| it.lease_seconds);
    if let Some(seconds) = leases.filter(|it| *it != u32::MAX).min() {
        words.push(format!("--lease {seconds}"));
    }
    words.join(" ")
}

/// The interface of one of the networks, or what stands for it.
fn interface(networks: &[&Network], at: usize) -> String {
    match &networks[at].interface {
        Some(interface) => interface.clone(),
        None if networks.len() == 1 => "IF".to_owned(),
        None => format!("IF{}", at + 1),
    }
}

/// What is to be known of networks beside their command.
fn about(networks: &[&Network]) -> String {
    let one = |(at, network): (usize, &&Network)| {
        let mut text = match network.network {
            Some((address, prefix)) => format!("the network {address}/{prefix}"),
            None => "a network".to_owned(),
        };
        if networks.len() > 1 {
            let _ = write!(text, " on {}", interface(networks, at));
        }
        if let Some(server) = network.next_server {
            let _ = write!(text, ", whose interface has the address {server}");
        }
        text
    };
    let texts: Vec<String> = networks.iter().enumerate().map(one).collect();
    texts.join(", and ")
}

fn file(kind: Kind, imported: &Imported, ours: Inventory) -> Outcome<String> {
    let mut out = format!("# Imported from {kind}.\n");
    for networks in together(&imported.networks) {
        let _ = writeln!(out, "# For {}: {}", about(&networks), command(&networks));
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
    for networks in together(&imported.networks) {
        let _ = writeln!(
            out,
            "To serve {}:\n  {}",
            about(&networks),
            command(&networks).bold()
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
        })
    };
    let commands: Vec<String> = together(&imported.networks)
        .iter()
        .map(|networks| command(networks))
        .collect();
    json!({
        "from": kind.to_string(),
        "nodes": imported.nodes.iter().map(entry).collect::<Vec<_>>(),
        "networks": imported.networks.iter().map(network).collect::<Vec<_>>(),
        "commands": commands,
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

    /// What the only command that is printed means.
    fn typed(text: &str) -> crate::args::UpArgs {
        use clap::Parser as _;
        let imported = inventory::import(Kind::Dhcpd, text).unwrap();
        let document = document(Kind::Dhcpd, &imported);
        let commands = document["commands"].as_array().unwrap();
        let [line] = &commands[..] else {
            panic!("{commands:?}");
        };
        let parsed = crate::args::Cli::try_parse_from(line.as_str().unwrap().split(' '));
        match parsed.unwrap().command {
            crate::args::Command::Up(up) => up,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_that_is_printed_can_be_typed() {
        let up = typed(DHCPD);
        assert_eq!(up.interfaces, ["ens19"]);
        assert_eq!(up.lease, Some(7200));
        assert_eq!(up.ranges[0].to_string(), "192.168.2.20-192.168.2.254");
    }

    #[test]
    fn one_command_serves_several_networks() {
        let other = "subnet 10.78.0.0 netmask 255.255.255.0 {\n\
            range 10.78.0.20 10.78.0.99;\n\
            default-lease-time 600;\n\
            }\n";
        let up = typed(&format!("{DHCPD}{other}"));
        assert_eq!(up.interfaces, ["ens19", "IF2"]);
        let ranges: Vec<String> = up.ranges.iter().map(ToString::to_string).collect();
        assert_eq!(
            ranges,
            ["192.168.2.20-192.168.2.254", "10.78.0.20-10.78.0.99"]
        );
        assert_eq!(up.lease, Some(600));
        let imported = inventory::import(Kind::Dhcpd, &format!("{DHCPD}{other}")).unwrap();
        let networks = together(&imported.networks).concat();
        assert_eq!(
            about(&networks),
            "the network 192.168.2.0/24 on ens19, whose interface has the address 192.168.2.2, \
             and the network 10.78.0.0/24 on IF2"
        );
    }

    #[test]
    fn what_one_daemon_cannot_serve_has_a_command_of_its_own() {
        let network = |interface: Option<&str>, is_proxy| Network {
            interface: interface.map(str::to_owned),
            is_proxy,
            ..Network::default()
        };
        let networks = [
            network(Some("a"), false),
            network(Some("a"), false),
            network(None, false),
            network(None, false),
            network(Some("b"), true),
        ];
        let commands: Vec<String> = together(&networks).iter().map(|it| command(it)).collect();
        assert_eq!(
            commands,
            [
                "slate up --interface a --interface IF2 --interface IF3 --dhcp authoritative",
                "slate up --interface a --dhcp authoritative",
                "slate up --interface b --dhcp proxy",
            ]
        );
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
