//! `slate plan`: what a machine would get, and what another DHCP server has to tell it.

use std::fmt::Write as _;

use daemon::control::{
    BootServiceView, Client, NodeEntry, OptionView, PlannedFileView, PreviewView, ReplyView,
    Request, Response,
};
use owo_colors::OwoColorize as _;

use super::node::unexpected;
use super::otherserver;
use crate::args::{DirArgs, OtherServer, PlanArgs};
use crate::failure::{Code, Failure, Outcome};
use crate::render;

/// Runs it.
pub fn run(dirs: &DirArgs, args: &PlanArgs) -> Outcome {
    let mut client = Client::connect(&dirs.run_dir)?;
    if let Some(server) = args.server {
        return for_other_server(&mut client, server, args.node.as_deref());
    }
    let node = args.node.clone().unwrap_or_default();
    let firmware = args.firmware.clone();
    let preview = match client.request(&Request::Preview { node, firmware })? {
        Response::Preview(preview) => preview,
        other => return Err(unexpected(&other)),
    };
    if args.output.json {
        return render::json(&preview);
    }
    anstream::print!("{}", text(&preview));
    Ok(())
}

fn for_other_server(client: &mut Client, server: OtherServer, node: Option<&str>) -> Outcome {
    let service = match client.request(&Request::BootService { server: None })? {
        Response::BootService(service) => service,
        other => return Err(unexpected(&other)),
    };
    let mut nodes = match client.request(&Request::Inventory)? {
        Response::Inventory(inventory) => inventory.nodes,
        other => return Err(unexpected(&other)),
    };
    if let Some(wanted) = node {
        nodes.retain(|it| is_meant(it, wanted));
        if nodes.is_empty() {
            return Err(Failure::new(format!("no node is called {wanted:?}"))
                .hint("make it one first: slate node approve MAC")
                .code(Code::Failed));
        }
    }
    if service.dhcp != "off" {
        note_mode(&service);
    }
    anstream::print!("{}", otherserver::text(server, &service, &nodes));
    Ok(())
}

fn is_meant(entry: &NodeEntry, wanted: &str) -> bool {
    entry.name == wanted
        || wanted
            .parse()
            .is_ok_and(|mac: wire::mac::Mac| mac == entry.mac)
        || entry.address.is_some_and(|it| it.to_string() == wanted)
}

/// On standard error: what is printed goes into a file.
fn note_mode(service: &BootServiceView) {
    anstream::eprintln!(
        "{} this server answers DHCP itself ({}); beside one with these lines start it with --dhcp off",
        "note:".yellow().bold(),
        service.dhcp
    );
}

fn text(preview: &PreviewView) -> String {
    let mut out = String::new();
    let name = preview.node.as_deref().unwrap_or("a stranger");
    let line = format!("{name} ({}) as {}", preview.mac, preview.firmware);
    let _ = writeln!(out, "{}", line.bold());
    for note in &preview.notes {
        let _ = writeln!(out, "{} {note}", "note:".yellow().bold());
    }
    out.push_str(&dhcp_text(preview));
    if preview.files.is_empty() {
        out.push_str("\nNo file: nothing is served to it.\n");
        return out;
    }
    out.push_str("\nFiles, in the order in which they are asked for\n");
    let rows = preview
        .files
        .iter()
        .map(|file| vec![format!("  {}", file.path), content_of(file)]);
    let _ = writeln!(out, "{}", without_header(rows));
    for file in &preview.files {
        if let Some(text) = &file.text {
            let _ = write!(out, "\n{}\n{}", file.path, indented(text));
        }
    }
    out
}

fn dhcp_text(preview: &PreviewView) -> String {
    let mut out = String::new();
    let mut former: &[OptionView] = &[];
    for exchange in &preview.exchanges {
        out.push('\n');
        match &exchange.reply {
            Some(reply) => {
                out.push_str(&reply_text(reply, former));
                former = &reply.options;
            }
            None => out.push_str(&silence(preview)),
        }
    }
    out
}

fn silence(preview: &PreviewView) -> String {
    let why = match preview.dhcp.as_str() {
        "off" => "another server answers all of it (--dhcp off)",
        _ => "it gets none from here",
    };
    format!("No DHCP reply: {why}.\n")
}

/// A reply; of one behind another, the options that differ.
fn reply_text(reply: &ReplyView, former: &[OptionView]) -> String {
    let kind = value_of(&reply.options, 53).unwrap_or("reply");
    let address = reply.address.map(|it| format!("address {it}, "));
    let mut out = format!(
        "DHCP {kind}: {}next server {}, file {}\n",
        address.unwrap_or_default(),
        reply
            .next_server
            .map_or("none".to_owned(), |it| it.to_string()),
        if reply.file.is_empty() {
            "none"
        } else {
            &reply.file
        },
    );
    let differs = |it: &&OptionView| !former.contains(it);
    let gone = |it: &&OptionView| !reply.options.iter().any(|now| now.code == it.code);
    let row = |it: &OptionView| vec![format!("  {}", it.code), it.name.clone(), it.value.clone()];
    let mut rows: Vec<_> = reply.options.iter().filter(differs).map(row).collect();
    let without = former.iter().filter(gone);
    rows.extend(without.map(|it| vec![format!("  {}", it.code), it.name.clone(), "(gone)".into()]));
    let _ = writeln!(out, "{}", without_header(rows));
    if !former.is_empty() {
        out.push_str("  and the other options as before\n");
    }
    out
}

fn value_of(options: &[OptionView], code: u8) -> Option<&str> {
    let option = options.iter().find(|it| it.code == code);
    option.map(|it| it.value.as_str())
}

fn content_of(file: &PlannedFileView) -> String {
    match (&file.error, &file.digest) {
        (Some(cause), _) => format!("none: {cause}").red().to_string(),
        (None, Some(digest)) => {
            let origin = file.origin.as_ref().map(|it| format!(", {it}"));
            let version = render::short_digest(digest);
            format!("of version {version}{}", origin.unwrap_or_default())
        }
        (None, None) => "made for it, see below".to_owned(),
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn without_header(rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut rows = rows.into_iter();
    let Some(first) = rows.next() else {
        return String::new();
    };
    let header: Vec<&str> = first.iter().map(String::as_str).collect();
    render::table(&header, rows)
}

#[cfg(test)]
mod tests {
    use daemon::control::ExchangeView;

    use super::*;

    fn option(code: u8, value: &str) -> OptionView {
        OptionView {
            code,
            name: format!("option {code}"),
            value: value.to_owned(),
        }
    }

    fn reply(options: Vec<OptionView>) -> ExchangeView {
        let reply = ReplyView {
            bytes: String::new(),
            address: Some([10, 77, 0, 9].into()),
            next_server: Some([10, 77, 0, 1].into()),
            file: "shimx64.efi".into(),
            options,
        };
        ExchangeView {
            request: String::new(),
            reply: Some(reply),
        }
    }

    #[test]
    fn a_second_reply_shows_what_differs() {
        let offer = vec![option(53, "OFFER"), option(51, "3600 s"), option(3, "x")];
        let ack = vec![option(53, "ACK"), option(51, "3600 s"), option(12, "node1")];
        let preview = PreviewView {
            mac: "52:54:00:00:00:01".into(),
            node: Some("node1".into()),
            is_node: true,
            firmware: "uefi-x64".into(),
            dhcp: "authoritative".into(),
            exchanges: vec![reply(offer), reply(ack)],
            files: vec![PlannedFileView {
                path: "grub/grub.cfg".into(),
                digest: None,
                file: None,
                origin: None,
                text: Some("set timeout=0\nboot\n".into()),
                error: None,
            }],
            notes: vec!["wait".into()],
        };
        let text = text(&preview);
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "node1 (52:54:00:00:00:01) as uefi-x64\n\
             note: wait\n\n\
             DHCP OFFER: address 10.77.0.9, next server 10.77.0.1, file shimx64.efi\n\
             \x20 53  option 53  OFFER\n\
             \x20 51  option 51  3600 s\n\
             \x20 3   option 3   x\n\n\
             DHCP ACK: address 10.77.0.9, next server 10.77.0.1, file shimx64.efi\n\
             \x20 53  option 53  ACK\n\
             \x20 12  option 12  node1\n\
             \x20 3   option 3   (gone)\n\
             \x20 and the other options as before\n\n\
             Files, in the order in which they are asked for\n\
             \x20 grub/grub.cfg  made for it, see below\n\n\
             grub/grub.cfg\n\
             \x20 set timeout=0\n\
             \x20 boot\n"
        );
    }
}
