//! `slate node`: what the daemon knows of its nodes, and changes to it.

use std::collections::BTreeMap;

use daemon::control::{
    BootView, Client, FailureView, NodeChange, NodeView, PlanView, Request, Response, SeenView,
};
use owo_colors::OwoColorize as _;
use serde_json::json;
use wire::mac::Mac;
use wire::stage::Stage;

use super::image::open_store;
use super::{diff, order, power};
use crate::args::{self, DirArgs, NodeCommand};
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// Runs one `slate node` command.
pub fn run(dirs: &DirArgs, command: NodeCommand) -> Outcome {
    let mut client = Client::connect(&dirs.run_dir)?;
    match command {
        NodeCommand::List { output } => {
            let (nodes, seen) = list_all(&mut client)?;
            if output.json {
                return render::json(&nodes);
            }
            anstream::println!("{}", list_text(&nodes));
            anstream::print!("{}", seen_text(&seen));
        }
        NodeCommand::Show { node, output } => {
            let node = one(&mut client, &Request::Node { node })?;
            show(&node, output.json)?;
        }
        NodeCommand::Log { node, output } => {
            let (name, boots) = boots(&mut client, node)?;
            if output.json {
                return render::json(&boots);
            }
            anstream::println!("{}", log_text(&name, &boots));
        }
        NodeCommand::Stale { output } => stale(dirs, &list(&mut client)?, output)?,
        NodeCommand::Plan { node, output } => {
            let plan = plan(&mut client, node)?;
            if output.json {
                return render::json(&plan);
            }
            anstream::println!("{}", plan.cmdline);
        }
        NodeCommand::Approve { macs, seen, output } => {
            approve(&mut client, &macs, seen, output.json)?;
        }
        NodeCommand::Forget { nodes, output } => forget(&mut client, &nodes, output.json)?,
        NodeCommand::Run(args) => order::run(&mut client, &args)?,
        NodeCommand::Reboot(args) => order::reboot(&mut client, &args)?,
        NodeCommand::Power(args) => power::run(&mut client, &args)?,
        NodeCommand::Diff(args) => order::diff(dirs, &mut client, &args)?,
        NodeCommand::Set {
            node,
            change,
            output,
        } => set(&mut client, node, change, output.json)?,
    }
    Ok(())
}

/// Makes nodes of machines, one after the other.
fn approve(client: &mut Client, macs: &[Mac], all_seen: bool, json: bool) -> Outcome {
    let mut macs: Vec<String> = macs.iter().map(ToString::to_string).collect();
    if all_seen {
        let (_, seen) = list_all(client)?;
        macs.extend(seen.into_iter().map(|machine| machine.mac));
    }
    let mut made = Vec::new();
    for mac in macs {
        let change = NodeChange::default();
        let node = one(client, &Request::SetNode { node: mac, change })?;
        if !json {
            anstream::println!("{} is {}", node.mac, node.name.bold());
        }
        made.push(node);
    }
    if json {
        return render::json(&made);
    }
    if made.is_empty() {
        anstream::println!("No machine asked to boot that is no node.");
    }
    Ok(())
}

/// Forgets nodes one after the other; what was forgotten before an error stays so.
fn forget(client: &mut Client, nodes: &[String], json: bool) -> Outcome {
    let mut forgotten = Vec::new();
    for node in select(client, nodes.join(","))? {
        let request = Request::ForgetNode { node: node.mac };
        match client.request(&request)? {
            Response::Done if !json => anstream::println!("forgot {}", node.name),
            Response::Done => {}
            other => return Err(unexpected(&other)),
        }
        forgotten.push(node.name);
    }
    if json {
        return render::json(&json!({ "forgotten": forgotten }));
    }
    Ok(())
}

/// Changes one node, which it may make, or several that there are.
fn set(client: &mut Client, wanted: String, change: args::NodeChange, json: bool) -> Outcome {
    let is_list = wanted.contains(['[', ',', '@']);
    if !is_list {
        let change = NodeChange::from(change);
        let node = one(
            client,
            &Request::SetNode {
                node: wanted,
                change,
            },
        )?;
        return show(&node, json);
    }
    if change.name.is_some() || change.address.is_some() {
        return Err(Failure::new("--name and --address are for one node")
            .hint("give each node its own in a file: slate apply")
            .code(Code::Usage));
    }
    let mut changed = Vec::new();
    for node in select(client, wanted)? {
        let change = NodeChange::from(change.clone());
        let node = one(
            client,
            &Request::SetNode {
                node: node.mac,
                change,
            },
        )?;
        if !json {
            anstream::println!("changed {}", node.name);
        }
        changed.push(node);
    }
    if json {
        return render::json(&changed);
    }
    Ok(())
}

/// The nodes that a list such as `n[001-600],@gpu` means.
pub(super) fn select(client: &mut Client, nodes: String) -> Outcome<Vec<NodeView>> {
    match client.request(&Request::Select { nodes })? {
        Response::Nodes { nodes, .. } => Ok(nodes),
        other => Err(unexpected(&other)),
    }
}

fn show(node: &NodeView, json: bool) -> Outcome {
    if json {
        return render::json(node);
    }
    anstream::print!("{}", show_text(node));
    Ok(())
}

/// Nodes that a restart would change, by what they run and would boot.
fn stale(dirs: &DirArgs, nodes: &[NodeView], output: args::OutputArgs) -> Outcome {
    let mut groups: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for node in nodes {
        if let (Some(digest), Some(next)) = (&node.digest, &node.next_digest)
            && digest != next
        {
            groups.entry((digest, next)).or_default().push(&node.name);
        }
    }
    if output.json {
        let group = |((digest, next), nodes): (&(&str, &str), &Vec<&str>)| json!({ "digest": digest, "next_digest": next, "nodes": nodes });
        return render::json(&groups.iter().map(group).collect::<Vec<_>>());
    }
    if groups.is_empty() {
        anstream::println!("Every node runs the version that it would boot.");
    }
    let store = open_store(dirs)?;
    for ((digest, next), nodes) in groups {
        anstream::println!(
            "{}: {} -> {}",
            nodes.join(", ").bold(),
            render::short_digest(digest),
            render::short_digest(next)
        );
        match diff::summary(&store, digest, next) {
            Ok(summary) => anstream::print!("{summary}"),
            // What it runs may be gone from the store, or damaged: that it is stale counts.
            Err(failure) => anstream::println!("What differs is not known: {}", failure.what),
        }
    }
    Ok(())
}

pub(super) fn list(client: &mut Client) -> Outcome<Vec<NodeView>> {
    list_all(client).map(|(nodes, _)| nodes)
}

/// With the machines that asked to boot and are no nodes.
fn list_all(client: &mut Client) -> Outcome<(Vec<NodeView>, Vec<SeenView>)> {
    match client.request(&Request::Nodes)? {
        Response::Nodes { nodes, seen } => Ok((nodes, seen)),
        other => Err(unexpected(&other)),
    }
}

fn one(client: &mut Client, request: &Request) -> Outcome<NodeView> {
    match client.request(request)? {
        Response::Node(node) => Ok(*node),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn boots(client: &mut Client, node: String) -> Outcome<(String, Vec<BootView>)> {
    match client.request(&Request::Boots { node })? {
        Response::Boots { node, boots } => Ok((node, boots)),
        other => Err(unexpected(&other)),
    }
}

fn plan(client: &mut Client, node: String) -> Outcome<PlanView> {
    match client.request(&Request::Plan { node })? {
        Response::Plan(plan) => Ok(plan),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn unexpected(response: &Response) -> Failure {
    Failure::new(format!(
        "the daemon gave an answer to another question: {response:?}"
    ))
    .hint("restart it, so that it is the same version as this command")
}

impl From<args::NodeChange> for NodeChange {
    fn from(change: args::NodeChange) -> Self {
        Self {
            name: change.name,
            address: change.address,
            image: change.image,
            kernel_args: change.kernel_args,
            loader: change.loader,
            console: change.console,
            groups: change.groups,
            once: change.once,
        }
    }
}

/// The table of `slate node list`.
fn list_text(nodes: &[NodeView]) -> String {
    if nodes.is_empty() {
        return "No node was seen yet: power a machine on, or name one with slate node set MAC --name NAME"
            .to_owned();
    }
    let header = [
        "NODE", "MAC", "ADDRESS", "IMAGE", "VERSION", "REACHED", "SEEN",
    ];
    let rows = nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            node.mac.clone(),
            node.address
                .map_or_else(dash, |address| address.to_string()),
            node.image.clone().unwrap_or_else(|| "(default)".to_owned()),
            version_text(node),
            progress(node),
            node.seen_ms.map_or_else(dash, render::ago),
        ]
    });
    render::table(&header, rows)
}

/// Below the nodes, where there is anything to say.
fn seen_text(seen: &[SeenView]) -> String {
    if seen.is_empty() {
        return String::new();
    }
    let rows = seen.iter().map(|machine| {
        vec![
            machine.mac.clone(),
            machine.firmware.clone(),
            render::ago(machine.seen_ms),
        ]
    });
    let table = render::table(&["MAC", "FIRMWARE", "ASKED"], rows);
    format!("\nThese asked to boot and are no nodes. To let one: slate node approve MAC\n{table}\n")
}

/// What it booted last, and what it would boot where that is another version.
fn version_text(node: &NodeView) -> String {
    let short = |digest: &String| render::short_digest(digest).to_owned();
    match (&node.digest, &node.next_digest) {
        (Some(digest), _) if node.failed_digest.is_some() => {
            let failed = node.failed_digest.as_ref().map(short).unwrap_or_default();
            format!("{}, {}", short(digest), format!("{failed} failed").red())
        }
        (Some(digest), Some(next)) if digest != next => {
            format!("{}, next {}", short(digest), short(next))
        }
        (digest, _) => digest.as_ref().map_or_else(dash, short),
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// How far the node has come, or where it failed.
fn progress(node: &NodeView) -> String {
    match &node.failure {
        Some(FailureView { stage, .. }) => format!("failed at {stage}").red().to_string(),
        None => match node.reached.as_deref() {
            Some("multi-user") if node.mounted => "multi-user".green().to_string(),
            Some(stage) => stage.to_owned(),
            None => dash(),
        },
    }
}

/// The page of `slate node show`.
fn show_text(node: &NodeView) -> String {
    let mut lines = vec![
        line("Node", &node.name),
        line("MAC", &node.mac),
        line("Address", &address_text(node)),
        line(
            "Firmware",
            node.firmware.as_deref().unwrap_or("not seen yet"),
        ),
        line("Image", &image_text(node)),
        line("Reached", &progress(node)),
        line("Orders", &orders_text(node)),
    ];
    if let Some(failure) = &node.failure {
        lines.push(line("Cause", &failure.cause));
    }
    if let Some(failed) = &node.failed_digest {
        let text = format!(
            "{} failed twice in a row here, so it boots the last version that came up; to try it \
             again: slate node set {} --image {}",
            render::short_digest(failed),
            node.name,
            node.image.as_deref().unwrap_or("none")
        );
        lines.push(line("Fallback", &text));
    }
    if let Some(digest) = &node.pinned_digest {
        let text = format!(
            "{}, by a rollout, until its image names that; let it follow its image again: \
             slate node set {} --image {}",
            render::short_digest(digest),
            node.name,
            node.image.as_deref().unwrap_or("none")
        );
        lines.push(line("Pinned", &text));
    }
    if !node.groups.is_empty() {
        lines.push(line("Groups", &node.groups.join(", ")));
    }
    if let Some(loader) = &node.loader {
        lines.push(line("Loader", loader));
    }
    if !node.console.is_empty() {
        lines.push(line("Console", &node.console.join(" ")));
    }
    if !node.kernel_args.is_empty() {
        lines.push(line("Kernel", &node.kernel_args));
    }
    if !node.drivers.is_empty() {
        lines.push(line("Drivers", &node.drivers.join(" ")));
    }
    if let Some(seen) = node.seen_ms {
        lines.push(line("Seen", &render::ago(seen)));
    }
    lines.push(line("Host key", &node.ssh_host_key));
    if let Some(first) = node.timeline.first() {
        lines.push(line("Last boot", &transfer_text(node)));
        for reached in &node.timeline {
            let since = render::seconds(reached.at_ms.saturating_sub(first.at_ms));
            lines.push(format!("  {since:>8}  {}", reached.stage));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Whether it can be told to do something.
fn orders_text(node: &NodeView) -> String {
    match node.polled_ms {
        Some(at) => format!("asked for {}", render::ago(at)),
        None => "not asked for since the daemon started".to_owned(),
    }
}

/// The page of `slate node log`: a column for each boot, a row for each stage that any came to.
fn log_text(name: &str, boots: &[BootView]) -> String {
    if boots.is_empty() {
        return format!("{name} has not booted yet");
    }
    let mut header = vec!["BOOT".to_owned()];
    header.extend(boots.iter().map(|boot| render::ago(boot.started_ms)));
    let row = |label: &str, cell: &dyn Fn(&BootView) -> String| {
        let cells = boots.iter().map(cell);
        std::iter::once(label.to_owned()).chain(cells).collect()
    };
    let mut rows: Vec<Vec<String>> = vec![row("version", &|boot| {
        let digest = boot.digest.as_deref().map(render::short_digest);
        digest.map_or_else(dash, str::to_owned)
    })];
    for stage in Stage::ALL.map(Stage::name) {
        let at = |boot: &BootView| {
            boot.timeline
                .iter()
                .find(|it| it.stage == stage)
                .map(|it| it.at_ms)
        };
        if boots.iter().any(|boot| at(boot).is_some()) {
            rows.push(row(stage, &|boot| {
                at(boot).map_or_else(dash, |at| {
                    render::seconds(at.saturating_sub(boot.started_ms))
                })
            }));
        }
    }
    rows.push(row("failed at", &|boot| {
        let failure = boot.failure.as_ref();
        failure.map_or_else(dash, |failure| failure.stage.red().to_string())
    }));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut text = render::table(&header, rows);
    for boot in boots {
        if let Some(failure) = &boot.failure {
            let at = render::ago(boot.started_ms);
            text.push_str(&format!("\n\n{at}, {}: {}", failure.stage, failure.cause));
        }
        if !boot.kernel.is_empty() {
            let at = render::ago(boot.started_ms);
            let lines = boot.kernel.join("\n  ");
            text.push_str(&format!("\n\n{at}, its kernel's words:\n  {lines}"));
        }
    }
    text
}

fn line(label: &str, value: &str) -> String {
    format!("{label:<10} {value}")
}

fn address_text(node: &NodeView) -> String {
    match node.address {
        Some(address) if node.fixed => format!("{address} (fixed)"),
        Some(address) => address.to_string(),
        None => "none yet".to_owned(),
    }
}

fn image_text(node: &NodeView) -> String {
    let name = node.image.as_deref().unwrap_or("the default");
    match &node.digest {
        Some(digest) => format!("{name}, booted {}", render::short_digest(digest)),
        None => name.to_owned(),
    }
}

fn transfer_text(node: &NodeView) -> String {
    format!(
        "{} of loaders and kernel, {} of initrd, {} NFS calls, {} read",
        render::bytes(node.loader_bytes),
        render::bytes(node.initrd_bytes),
        node.nfs.rpcs,
        render::bytes(node.nfs.bytes)
    )
}

#[cfg(test)]
mod tests {
    use daemon::control::{NfsView, StageAt};

    use super::*;

    fn node() -> NodeView {
        NodeView {
            name: "node1".into(),
            mac: "52:54:00:00:00:01".into(),
            address: Some([10, 77, 0, 101].into()),
            fixed: true,
            firmware: Some("uefi-x64".into()),
            image: None,
            digest: Some("ab".repeat(32)),
            next_digest: None,
            failed_digest: None,
            kernel_args: String::new(),
            loader: None,
            console: Vec::new(),
            groups: Vec::new(),
            once: None,
            pinned_digest: None,
            polled_ms: None,
            reached: Some("kernel".into()),
            failure: None,
            seen_ms: None,
            timeline: vec![
                StageAt {
                    stage: "firmware".into(),
                    at_ms: 1_000,
                },
                StageAt {
                    stage: "kernel".into(),
                    at_ms: 13_400,
                },
            ],
            loader_bytes: 13_000_000,
            initrd_bytes: 1_900_000,
            nfs: NfsView::default(),
            drivers: Vec::new(),
            mounted: false,
            ssh_host_key: "ssh-ed25519 AAAA".into(),
        }
    }

    #[test]
    fn list_is_one_line_per_node() {
        assert_eq!(
            list_text(&[node()]),
            "NODE   MAC                ADDRESS      IMAGE      VERSION       REACHED  SEEN\n\
             node1  52:54:00:00:00:01  10.77.0.101  (default)  abababababab  kernel   -"
        );
        let mut stale = node();
        stale.next_digest = Some("cd".repeat(32));
        assert!(list_text(&[stale]).contains("abababababab, next cdcdcdcdcdcd  kernel"));
    }

    #[test]
    fn log_has_boots_side_by_side() {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let boot = |days_ago: u64, digest: &str, stages: &[(&str, u64)]| {
            let started_ms = render::now_ms() - days_ago * DAY_MS;
            BootView {
                id: "0123456789abcdef".into(),
                started_ms,
                digest: Some(digest.repeat(32)),
                reached: stages.last().map(|(stage, _)| (*stage).to_owned()),
                failure: None,
                kernel: Vec::new(),
                timeline: stages
                    .iter()
                    .map(|(stage, after_ms)| StageAt {
                        stage: (*stage).into(),
                        at_ms: started_ms + after_ms,
                    })
                    .collect(),
                loader_bytes: 0,
                initrd_bytes: 0,
            }
        };
        let mut failed = boot(3, "cd", &[("firmware", 0), ("init", 9_100)]);
        failed.failure = Some(FailureView {
            stage: "network".into(),
            cause: "no carrier".into(),
        });
        let up = boot(
            5,
            "ab",
            &[("firmware", 0), ("init", 8_000), ("multi-user", 12_300)],
        );
        let text = log_text("node1", &[failed, up]);
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "BOOT        3 d ago       5 d ago\n\
             version     cdcdcdcdcdcd  abababababab\n\
             firmware    0.0 s         0.0 s\n\
             init        9.1 s         8.0 s\n\
             multi-user  -             12.3 s\n\
             failed at   network       -\n\n\
             3 d ago, network: no carrier"
        );
        assert_eq!(log_text("node1", &[]), "node1 has not booted yet");
    }

    #[test]
    fn a_node_that_fell_back_says_from_what() {
        let mut node = node();
        node.next_digest = node.digest.clone();
        node.failed_digest = Some("cd".repeat(32));
        let list = anstream::adapter::strip_str(&list_text(&[node.clone()])).to_string();
        assert!(list.contains("abababababab, cdcdcdcdcdcd failed"), "{list}");
        let page = show_text(&node);
        assert!(page.contains("slate node set node1 --image none"), "{page}");
    }

    #[test]
    fn an_empty_list_says_what_to_do() {
        assert!(list_text(&[]).starts_with("No node was seen yet: power a machine on"));
    }

    #[test]
    fn machines_that_are_no_nodes_stand_below() {
        assert_eq!(seen_text(&[]), "");
        let machine = SeenView {
            mac: "52:54:00:00:00:09".into(),
            firmware: "bios".into(),
            seen_ms: render::now_ms(),
        };
        let text = seen_text(&[machine]);
        assert!(text.contains("slate node approve MAC\nMAC "), "{text}");
        assert!(
            text.ends_with("52:54:00:00:00:09  bios      0 s ago\n"),
            "{text}"
        );
    }

    #[test]
    fn show_has_the_boot_and_the_cause() {
        let mut node = node();
        node.failure = Some(FailureView {
            stage: "kernel".into(),
            cause: "asked for vmlinuz: not found".into(),
        });
        let text = show_text(&node);
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "Node       node1\n\
             MAC        52:54:00:00:00:01\n\
             Address    10.77.0.101 (fixed)\n\
             Firmware   uefi-x64\n\
             Image      the default, booted abababababab\n\
             Reached    failed at kernel\n\
             Orders     not asked for since the daemon started\n\
             Cause      asked for vmlinuz: not found\n\
             Host key   ssh-ed25519 AAAA\n\
             Last boot  13 MB of loaders and kernel, 1.9 MB of initrd, 0 NFS calls, 0 B read\n     \
             0.0 s  firmware\n    12.4 s  kernel\n"
        );
    }
}
