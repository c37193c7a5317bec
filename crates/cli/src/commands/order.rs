//! `slate node run|reboot|diff`: what running nodes are told to do.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use daemon::control::{
    Client, NodeChange, NodeView, OrderState, OrderView, PowerAction, Request, Response,
};
use image::{Kind, StoredTree};
use owo_colors::OwoColorize as _;
use serde_json::json;

use super::image::open_store;
use super::node::{boots, select, unexpected};
use super::power;
use crate::args::{DiffArgs, DirArgs, RebootArgs, RunArgs};
use crate::failure::{Failure, Outcome};
use crate::render;

/// How often it is asked how far orders are.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long the check before a reboot, and looking for changes, may take, in seconds.
const CHECK_SECONDS: u32 = 120;
/// Names those who would be disturbed by a reboot, and fails where there are any.
const WHO_IS_THERE: &str = r#"
held=0
for session in $(loginctl list-sessions --no-legend 2>/dev/null | while read -r id rest; do echo "$id"; done)
do
    show() { loginctl show-session "$session" --value -p "$1" 2>/dev/null; }
    if [ "$(show Class)" = user ] && [ "$(show State)" != closing ]; then
        echo "$(show Name) is logged in $(show TTY)$(show RemoteHost)"
        held=1
    fi
done
if systemd-inhibit --list --no-legend 2>/dev/null | grep 'shutdown.*block'; then
    held=1
fi
[ "$held" = 0 ] || exit 1
"#;
/// Leaves time for this order's end to be told.
const REBOOT: &str = "(sleep 1; exec systemctl reboot) >/dev/null 2>&1 &";
/// What is younger than the end of `/init`: kind, size and path of each file.
const WRITTEN: &str = r"cd /run/slate/upper/data && find . -mindepth 1 \( -path ./run -o -path ./dev \
    -o -path ./proc -o -path ./sys -o -path ./tmp \) -prune -o -cnewer /run/slate/beacon \
    -printf '%y %s %P\0' && printf 'opaque\0' && find . -mindepth 1 -type d -cnewer /run/slate/beacon \
    -print0 | /run/slate/agent opaque 2>/dev/null";
/// Comes between that and the directories among it that hide what the image has in them.
const OPAQUE: &[u8] = b"opaque";

/// Runs `slate node run`.
pub fn run(client: &mut Client, args: &RunArgs) -> Outcome {
    let script = shell_words(&args.command);
    let seconds = u32::try_from(args.timeout.as_secs()).unwrap_or(u32::MAX);
    let orders = give(client, &args.nodes, script, seconds, 0)?;
    let single = orders.len() == 1;
    let json = args.output.json;
    let orders = follow(client, orders, |order| {
        if !json {
            anstream::print!("{}", output_text(order, single));
        }
    })?;
    if json {
        render::json(&orders.iter().map(order_json).collect::<Vec<_>>())?;
    }
    all_done(&orders)
}

/// Runs `slate node reboot`.
pub fn reboot(client: &mut Client, args: &RebootArgs) -> Outcome {
    let nodes = select(client, args.nodes.clone())?;
    if let Some(image) = &args.once {
        set_once(client, &nodes, image)?;
    }
    let former = args.wait.then(|| boot_ids(client, &nodes)).transpose()?;
    let seconds = u32::try_from(args.timeout.as_secs()).unwrap_or(u32::MAX);
    let given = give(
        client,
        &args.nodes,
        reboot_script(args.force, args.before.as_deref()),
        seconds,
        0,
    )?;
    let given = match args.force {
        true => switch_silent(client, given)?,
        false => given,
    };
    let orders = follow(client, given, |order| {
        let text = match &order.state {
            OrderState::Ended { status: 0 } => "reboots".to_owned(),
            OrderState::Lost { cause } => format!("does not reboot: {cause}").red().to_string(),
            _ => "does not reboot:".red().to_string(),
        };
        anstream::println!("{} {text}", order.node.bold());
        if !is_done(order) {
            anstream::print!("{}", String::from_utf8_lossy(&order.output));
        }
    })?;
    let refused: Vec<&str> = orders
        .iter()
        .filter(|order| !is_done(order))
        .map(|order| order.node.as_str())
        .collect();
    if args.once.is_some() {
        let stay: Vec<NodeView> = nodes
            .iter()
            .filter(|node| refused.contains(&node.name.as_str()))
            .cloned()
            .collect();
        set_once(client, &stay, "")?;
    }
    if let Some(former) = former {
        let going = nodes
            .iter()
            .filter(|node| !refused.contains(&node.name.as_str()));
        wait_up(client, going, &former, args.timeout)?;
    }
    if refused.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("{} not rebooted", refused.join(", ")))
        .hint("reboot them whoever is there with --force"))
}

/// Nodes that were not told, since they do not answer, have their power switched where that can be.
fn switch_silent(client: &mut Client, given: Vec<OrderView>) -> Outcome<Vec<OrderView>> {
    let mut orders = Vec::new();
    for order in given {
        let switched = match order.id {
            Some(_) => None,
            None => power::switch(client, &order.node, PowerAction::Cycle)?.pop(),
        };
        orders.push(switched.filter(|it| it.id.is_some()).unwrap_or(order));
    }
    Ok(orders)
}

/// What has a node reboot, after `before`, and unless somebody is there.
pub(super) fn reboot_script(force: bool, before: Option<&str>) -> String {
    let check = if force { "" } else { WHO_IS_THERE };
    let before = match before {
        Some(command) => format!("({command}\n) || {{ echo \"--before failed\"; exit 1; }}\n"),
        None => String::new(),
    };
    format!("{check}{before}{REBOOT}")
}

fn set_once(client: &mut Client, nodes: &[NodeView], image: &str) -> Outcome {
    for node in nodes {
        let change = NodeChange {
            once: Some(image.to_owned()),
            ..NodeChange::default()
        };
        let node = node.mac.clone();
        match client.request(&Request::SetNode { node, change })? {
            Response::Node(_) => {}
            other => return Err(unexpected(&other)),
        }
    }
    Ok(())
}

/// The newest boot of each node, by MAC.
fn boot_ids(client: &mut Client, nodes: &[NodeView]) -> Outcome<BTreeMap<String, Option<String>>> {
    let mut ids = BTreeMap::new();
    for node in nodes {
        let (_, boots) = boots(client, node.mac.clone())?;
        ids.insert(node.mac.clone(), boots.first().map(|boot| boot.id.clone()));
    }
    Ok(ids)
}

/// Waits until each of the nodes is up in a new boot, or has failed in one.
fn wait_up<'a>(
    client: &mut Client,
    nodes: impl Iterator<Item = &'a NodeView>,
    former: &BTreeMap<String, Option<String>>,
    patience: Duration,
) -> Outcome {
    let end = Instant::now() + patience;
    let mut waiting: Vec<&NodeView> = nodes.collect();
    while !waiting.is_empty() {
        thread::sleep(ASK_EVERY * 5);
        let mut still = Vec::new();
        for node in waiting {
            let (_, boots) = boots(client, node.mac.clone())?;
            let new = boots
                .first()
                .filter(|boot| former.get(&node.mac) != Some(&Some(boot.id.clone())));
            match new {
                Some(boot) if boot.reached.as_deref() == Some("multi-user") => {
                    let digest = boot.digest.as_deref().map_or("", render::short_digest);
                    anstream::println!("{} is up with {digest}", node.name.bold());
                }
                _ => still.push(node),
            }
        }
        waiting = still;
        if Instant::now() >= end && !waiting.is_empty() {
            let names: Vec<&str> = waiting.iter().map(|node| node.name.as_str()).collect();
            return Err(Failure::new(format!(
                "{} did not come up within {} s",
                names.join(", "),
                patience.as_secs()
            ))
            .hint("see why: slate node log NODE"));
        }
    }
    Ok(())
}

/// Runs `slate node diff`.
pub fn diff(dirs: &DirArgs, client: &mut Client, args: &DiffArgs) -> Outcome {
    let orders = give(client, &args.node, WRITTEN.to_owned(), CHECK_SECONDS, 0)?;
    let [order] = follow(client, orders, |_| ())?.try_into().map_err(|_| {
        Failure::new("expected one node").hint("ask each node by itself: slate node diff NODE")
    })?;
    if !is_done(&order) {
        return all_done(&[order]);
    }
    if order.printed > order.output.len() as u64 {
        return Err(
            Failure::new(format!("{} has written too many files to list", order.node))
                .hint("look there: /run/slate/upper/data"),
        );
    }
    let node = select(client, args.node.clone())?;
    let digest = node.first().and_then(|node| node.digest.clone());
    let digest = digest.ok_or_else(|| Failure::new("the version that it runs is not known"))?;
    let store = open_store(dirs)?;
    let tree = store.open_tree(super::image::resolve(&store, &digest)?)?;
    let changes = changes(&order.output, &tree)?;
    if args.output.json {
        let change = |(mark, size, path): &Written| json!({ "change": name(*mark), "bytes": size, "path": path });
        return render::json(&changes.iter().map(change).collect::<Vec<_>>());
    }
    if changes.is_empty() {
        anstream::println!("{} has changed nothing since its boot.", order.node);
    }
    for (mark, size, path) in &changes {
        let line = match mark {
            '-' => format!("- {path}").red().to_string(),
            '+' => format!("+ {path}  {}", render::bytes(*size))
                .green()
                .to_string(),
            _ => format!("~ {path}  {}", render::bytes(*size)),
        };
        anstream::println!("{line}");
    }
    Ok(())
}

/// A mark (`+` added, `~` changed, `-` removed), bytes and a path.
type Written = (char, u64, String);

fn name(mark: char) -> &'static str {
    match mark {
        '+' => "added",
        '-' => "removed",
        _ => "changed",
    }
}

/// What the files of an upper layer are to the image below.
fn changes(listed: &[u8], tree: &StoredTree) -> image::Result<Vec<Written>> {
    let records: Vec<&[u8]> = listed.split(|byte| *byte == 0).collect();
    let mut parts = records.splitn(2, |record| *record == OPAQUE);
    let (listed, opaque) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let mut changes: Vec<Written> = listed
        .iter()
        .filter_map(|record| {
            let mut fields = record.splitn(3, |byte| *byte == b' ');
            let (kind, size, path) = (fields.next()?, fields.next()?, fields.next()?);
            let below = tree.walk_path(path).is_ok();
            let mark = match (kind, below) {
                // What is removed is a character device in its place (the kernel's overlayfs.rst).
                (b"c", true) => '-',
                (b"c", false) | (b"d", true) => return None,
                (_, true) => '~',
                (_, false) => '+',
            };
            let size = str::from_utf8(size).ok()?.parse().ok()?;
            let size = if kind == b"f" { size } else { 0 };
            Some((mark, size, format!("/{}", String::from_utf8_lossy(path))))
        })
        .collect();
    let there = |record: &&&[u8]| !record.starts_with(b"c ");
    let paths = listed.iter().filter(there);
    let paths = paths.filter_map(|record| record.splitn(3, |byte| *byte == b' ').nth(2));
    let paths: BTreeSet<&[u8]> = paths.collect();
    for path in opaque.iter().filter_map(|it| it.strip_prefix(b"./")) {
        hidden(tree, path, &paths, &mut changes)?;
    }
    changes.sort_by(|one, other| one.2.cmp(&other.2));
    changes.dedup_by(|one, other| one.2 == other.2);
    Ok(changes)
}

/// What the image has in a directory that hides it, and what is not there anew.
fn hidden(
    tree: &StoredTree,
    directory: &[u8],
    there: &BTreeSet<&[u8]>,
    changes: &mut Vec<Written>,
) -> image::Result<()> {
    let Ok(nid) = tree.walk_path(directory) else {
        return Ok(());
    };
    if tree.attr(nid)?.kind != Kind::Directory {
        return Ok(());
    }
    for entry in tree.readdir(nid, 0)? {
        let path = [directory, b"/", entry?.name].concat();
        if there.contains(&path[..]) {
            hidden(tree, &path, there, changes)?;
        } else {
            changes.push(('-', 0, format!("/{}", String::from_utf8_lossy(&path))));
        }
    }
    Ok(())
}

/// Gives nodes an order, which may upload so many bytes.
pub(super) fn give(
    client: &mut Client,
    nodes: &str,
    script: String,
    seconds: u32,
    upload_bytes: u64,
) -> Outcome<Vec<OrderView>> {
    let request = Request::Order {
        nodes: nodes.to_owned(),
        script,
        seconds,
        upload_bytes,
    };
    match client.request(&request)? {
        Response::Orders { orders } => Ok(orders),
        other => Err(unexpected(&other)),
    }
}

/// Waits until every order is over; each is shown as it comes to its end.
pub(super) fn follow(
    client: &mut Client,
    orders: Vec<OrderView>,
    mut show: impl FnMut(&OrderView),
) -> Outcome<Vec<OrderView>> {
    let (mut over, mut open): (Vec<_>, Vec<_>) = orders.into_iter().partition(OrderView::is_over);
    over.iter().for_each(&mut show);
    while !open.is_empty() {
        thread::sleep(ASK_EVERY);
        let mut still = Vec::new();
        for order in open {
            let order = now(client, order)?;
            if order.is_over() {
                show(&order);
                over.push(order);
            } else {
                still.push(order);
            }
        }
        open = still;
    }
    Ok(over)
}

/// An order as it is now.
fn now(client: &mut Client, order: OrderView) -> Outcome<OrderView> {
    let Some(id) = order.id else {
        return Ok(order);
    };
    match client.request(&Request::OrderNow { id })? {
        Response::Orders { orders } => Ok(orders
            .into_iter()
            .next()
            .map(|now| OrderView {
                node: order.node.clone(),
                ..now
            })
            .unwrap_or(order)),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn is_done(order: &OrderView) -> bool {
    order.state == OrderState::Ended { status: 0 }
}

/// Fails where any order did not end well, saying how.
pub(super) fn all_done(orders: &[OrderView]) -> Outcome {
    let lines: Vec<String> = orders
        .iter()
        .filter(|order| !is_done(order))
        .map(|order| match &order.state {
            OrderState::Ended { status: -1 } => format!("{}: it could not be started", order.node),
            OrderState::Ended { status } => format!("{}: status {status}", order.node),
            OrderState::Lost { cause } => format!("{}: {cause}", order.node),
            OrderState::Waiting | OrderState::Running => format!("{}: not over", order.node),
        })
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    Err(Failure::new(lines.join("\n")))
}

fn output_text(order: &OrderView, single: bool) -> String {
    let text = String::from_utf8_lossy(&order.output);
    let missing = order.printed.saturating_sub(order.output.len() as u64);
    let mut out = String::new();
    for line in text.lines() {
        if !single {
            out.push_str(&format!("{} ", format!("{}:", order.node).bold()));
        }
        out.push_str(line);
        out.push('\n');
    }
    if missing > 0 {
        out.push_str(&format!("… and {} more\n", render::bytes(missing)));
    }
    out
}

pub(super) fn order_json(order: &OrderView) -> serde_json::Value {
    let (status, cause) = match &order.state {
        OrderState::Ended { status } => (Some(status), None),
        OrderState::Lost { cause } => (None, Some(cause)),
        OrderState::Waiting | OrderState::Running => (None, None),
    };
    json!({
        "node": order.node,
        "status": status,
        "cause": cause,
        "output": String::from_utf8_lossy(&order.output),
    })
}

/// One word is a command line; several are a program and its arguments.
fn shell_words(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => {
            let quoted = words
                .iter()
                .map(|word| format!("'{}'", word.replace('\'', "'\\''")));
            quoted.collect::<Vec<_>>().join(" ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let words =
            |words: &[&str]| shell_words(&words.iter().map(|it| (*it).into()).collect::<Vec<_>>());
        assert_eq!(words(&["uptime | wc"]), "uptime | wc");
        assert_eq!(words(&["echo", "it's  $x"]), "'echo' 'it'\\''s  $x'");
    }

    #[test]
    fn outputs_of_several_nodes_are_told_apart() {
        let order = OrderView {
            id: Some(1),
            node: "n1".into(),
            state: OrderState::Ended { status: 0 },
            output: b"a\nb".into(),
            printed: 1027,
        };
        let plain = |single| anstream::adapter::strip_str(&output_text(&order, single)).to_string();
        assert_eq!(plain(true), "a\nb\n… and 1.0 kB more\n");
        assert!(
            plain(false).starts_with("n1: a\nn1: b\n"),
            "{}",
            plain(false)
        );
    }
}
