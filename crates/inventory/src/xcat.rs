//! xCAT: what `lsdef -z` prints (stanzas: a name with a colon, then `attribute=value` lines), and
//! what `tabdump` prints (comma-separated values below a line with the names of the columns). Several
//! of either may stand one behind the other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::csv::{Record, records};
use crate::{Candidate, Found, ImportError, Network, is_image, lease_option, mac, prefix_of};

/// First columns of tables, and what their rows are about.
const TABLES: [(&str, &str); 3] = [("node", "node"), ("netname", "network"), ("key", "site")];

/// A value, and the line where it stands.
struct Value {
    line: usize,
    text: String,
}

/// What is said of one object, by the names that `lsdef` has for it.
#[derive(Default)]
struct Object {
    line: usize,
    attributes: BTreeMap<String, Value>,
}

/// A stanza as it is read: what its object is, is among its attributes.
struct Stanza {
    name: String,
    line: usize,
    attributes: Vec<(String, Value)>,
}

/// By kind and name, in order of their appearance.
#[derive(Default)]
struct Objects {
    order: Vec<(String, String)>,
    by_name: BTreeMap<(String, String), Object>,
}

impl Objects {
    fn of(&mut self, kind: &str, name: &str, line: usize) -> &mut Object {
        let key = (kind.to_owned(), name.to_owned());
        let order = &mut self.order;
        self.by_name.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            Object {
                line,
                ..Object::default()
            }
        })
    }
}

/// Whether a line names a table's columns.
pub(crate) fn is_table_header(line: &str) -> bool {
    let Some((first, _)) = line.strip_prefix('#').and_then(|it| it.split_once(',')) else {
        return false;
    };
    let plain = |it: &str| {
        it.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b',' | b'.'))
    };
    plain(line.trim_start_matches('#').trim_end()) && !first.is_empty()
}

/// Reads all of it.
pub(crate) fn read(text: &str, found: &mut Found) -> Result<(), ImportError> {
    let mut objects = Objects::default();
    let first = text.lines().find(|line| !line.trim().is_empty());
    if first.is_some_and(is_table_header) {
        tables(text, &mut objects, found);
    } else {
        stanzas(text, &mut objects, found)?;
    }
    for (kind, name) in std::mem::take(&mut objects.order) {
        let Some(object) = objects.by_name.remove(&(kind.clone(), name.clone())) else {
            continue;
        };
        match kind.as_str() {
            "node" => node(&name, object, found),
            "network" => network(&name, object, found),
            "site" => site(object, found),
            _ => {
                let why = format!("slate has no objects like those of xCAT's kind {kind:?}");
                found.left_out(object.line, &name, why.as_str());
                leave_out(object, found, &why);
            }
        }
    }
    Ok(())
}

fn stanzas(text: &str, objects: &mut Objects, found: &mut Found) -> Result<(), ImportError> {
    let mut open: Option<Stanza> = None;
    for (index, line) in text.lines().enumerate() {
        let (number, trimmed) = (index + 1, line.trim());
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let name = trimmed.strip_suffix(':').filter(|name| !name.contains('='));
        if let Some(name) = name {
            close(open.take(), objects, found);
            open = Some(Stanza {
                name: name.trim().to_owned(),
                line: number,
                attributes: Vec::new(),
            });
            continue;
        }
        let syntax = |cause: String| ImportError::Syntax {
            line: number,
            cause,
        };
        let (Some(stanza), Some((key, value))) = (&mut open, trimmed.split_once('=')) else {
            let got = crate::shown(trimmed);
            return Err(syntax(format!(
                "expected NAME: or, below one, ATTRIBUTE=VALUE, got {got}"
            )));
        };
        let value = Value {
            line: number,
            text: value.trim().trim_matches('"').to_owned(),
        };
        stanza.attributes.push((key.trim().to_owned(), value));
    }
    close(open, objects, found);
    Ok(())
}

fn close(stanza: Option<Stanza>, objects: &mut Objects, found: &mut Found) {
    let Some(Stanza {
        name,
        line,
        attributes,
    }) = stanza
    else {
        return;
    };
    let kind = attributes.iter().find(|(key, _)| key == "objtype");
    let kind = kind
        .map_or("node", |(_, value)| value.text.as_str())
        .to_owned();
    let object = objects.of(&kind, &name, line);
    for (key, value) in attributes {
        if key == "objtype" {
            found.became(value.line, &format!("objtype={}", value.text), "what it is");
        } else {
            object.attributes.insert(key, value);
        }
    }
}

fn tables(text: &str, objects: &mut Objects, found: &mut Found) {
    let mut columns: Vec<String> = Vec::new();
    for Record { line, fields } in records(text) {
        let first = fields.first().map_or("", String::as_str);
        if let Some(name) = first.strip_prefix('#').filter(|_| fields.len() > 1) {
            columns = std::iter::once(name.to_owned())
                .chain(fields.iter().skip(1).cloned())
                .collect();
            found.became(line, &fields.join(","), "names of columns");
            continue;
        }
        let kind = TABLES
            .iter()
            .find(|(column, _)| columns.first().is_some_and(|it| it == column));
        let Some((_, kind)) = kind else {
            found.left_out(line, &fields.join(","), "slate has nothing like this table");
            continue;
        };
        let disabled = columns
            .iter()
            .position(|it| it == "disable")
            .and_then(|at| fields.get(at));
        if disabled.is_some_and(|it| matches!(it.to_ascii_lowercase().as_str(), "1" | "yes")) {
            found.left_out(line, &fields.join(","), "it is disabled");
            continue;
        }
        let pairs = columns
            .iter()
            .zip(&fields)
            .skip(1)
            .filter(|(_, value)| !value.is_empty());
        let object = match *kind {
            // One row is one attribute of the one site.
            "site" => objects.of("site", "site", line),
            kind => objects.of(kind, first, line),
        };
        for (column, text) in pairs {
            let key = match (*kind, column.as_str()) {
                ("site", "value") => first,
                (_, column) => column,
            };
            let text = text.clone();
            object
                .attributes
                .insert(key.to_owned(), Value { line, text });
        }
    }
}

fn node(name: &str, mut object: Object, found: &mut Found) {
    let mut candidate = Candidate {
        name: name.to_owned(),
        ..Candidate::default()
    };
    if let Some(Value { line, text }) = object.attributes.remove("mac") {
        candidate.mac = own_mac(name, line, &text, found);
    }
    if let Some(Value { line, text }) = object.attributes.remove("ip") {
        let what = format!("ip={text}");
        candidate.address = text.parse().ok();
        match candidate.address {
            Some(address) => found.became(line, &what, format!("address {address}")),
            None => found.left_out(
                line,
                &what,
                "expected an IPv4 address: patterns and names are not followed",
            ),
        }
    }
    if let Some(Value { line, text }) = object.attributes.remove("provmethod") {
        let what = format!("provmethod={text}");
        if is_image(&text) && !matches!(text.as_str(), "install" | "netboot" | "statelite") {
            let why = format!("image {text}; bring it: slate image import {text} DIR|TAR");
            found.became(line, &what, why);
            candidate.image = Some(text);
        } else {
            found.left_out(line, &what, "it names no image");
        }
    }
    for key in ["addkcmdline", "kcmdline"] {
        let is_own = key == "addkcmdline" && candidate.kernel_args.is_empty();
        match object.attributes.remove(key) {
            Some(Value { line, text }) if is_own => {
                found.became(line, &format!("{key}={text}"), "kernel_args");
                candidate.kernel_args = text;
            }
            Some(Value { line, text }) => {
                let why = "slate writes the kernel command line by itself";
                found.left_out(line, &format!("{key}={text}"), why);
            }
            None => {}
        }
    }
    found.node(object.line, &format!("node {name}"), candidate);
    for (key, Value { line, text }) in object.attributes {
        found.left_out(line, &format!("{key}={text}"), why_not(&key));
    }
}

/// `MAC[!NAME][|MAC[!NAME]…]`: the one of the node's own name, or without one.
fn own_mac(node: &str, line: usize, text: &str, found: &mut Found) -> Option<wire::mac::Mac> {
    let parts = || {
        text.split('|')
            .map(|part| part.split_once('!').unwrap_or((part, node)))
    };
    let own = parts().find(|(_, name)| *name == node);
    let own = own.or_else(|| parts().find(|(_, name)| *name != "*NOIP*"));
    let mac = own.and_then(|(text, _)| mac(text));
    match mac {
        Some(mac) => found.became(line, &format!("mac={text}"), format!("mac {mac}")),
        None => found.left_out(
            line,
            &format!("mac={text}"),
            "expected six hexadecimal bytes",
        ),
    }
    for (other, _) in parts().filter(|it| Some(*it) != own) {
        found.left_out(line, other, "a node boots from one network card");
    }
    mac
}

fn network(name: &str, mut object: Object, found: &mut Found) {
    let mut network = Network::default();
    let mut take = |key: &str| object.attributes.remove(key);
    let (net, mask) = (take("net"), take("mask"));
    if let (Some(net), Some(mask)) = (&net, &mask) {
        let prefix = mask.text.parse().ok().and_then(prefix_of);
        let prefix = prefix.or_else(|| {
            mask.text
                .strip_prefix('/')?
                .parse()
                .ok()
                .filter(|it| *it <= 32)
        });
        network.network = net.text.parse().ok().zip(prefix);
    }
    let what = format!("network {name}");
    match network.network {
        Some((net, prefix)) => found.became(
            object.line,
            &what,
            format!("a network of its own: {net}/{prefix}"),
        ),
        None => found.left_out(object.line, &what, "expected its IPv4 address and its mask"),
    }
    for (key, value) in [("net", net), ("mask", mask)] {
        if let Some(Value { line, text }) = value {
            found.became(line, &format!("{key}={text}"), "the network");
        }
    }
    for (key, Value { line, text }) in object.attributes {
        let what = format!("{key}={text}");
        let named: Option<Ipv4Addr> = text.parse().ok();
        match (key.as_str(), named) {
            ("mgtifname", _) if !text.starts_with('!') => {
                found.became(line, &what, format!("--interface {text}"));
                network.interface = Some(text);
            }
            ("dynamicrange", _) => match ranges(&text).as_slice() {
                [] => found.left_out(line, &what, "expected FIRST-LAST"),
                [(first, last), more @ ..] => {
                    network.range = Some((*first, *last));
                    found.became(line, &what, format!("--range {first}-{last}"));
                    if !more.is_empty() {
                        found.left_out(line, &what, "--range takes one range, the first");
                    }
                }
            },
            ("gateway" | "nameservers" | "ntpservers" | "domain", _) => {
                let code = match key.as_str() {
                    "gateway" => 3,
                    "nameservers" => 6,
                    "ntpservers" => 42,
                    _ => 15,
                };
                let values: Vec<&str> = text.split(',').map(str::trim).collect();
                match network.told.take(code, &values) {
                    Ok(this) => found.became(line, &what, this),
                    Err(why) => found.left_out(line, &what, why),
                }
            }
            ("tftpserver", Some(server)) => {
                network.next_server = Some(server);
                found.became(
                    line,
                    &what,
                    format!("{server} is the server's own address: of its --interface"),
                );
            }
            _ => found.left_out(
                line,
                &what,
                "slate has it from its interface, or has nothing like it",
            ),
        }
    }
    if network.network.is_some() {
        found.imported.networks.push(network);
    }
}

/// `FIRST-LAST[;FIRST-LAST…]`.
fn ranges(text: &str) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-')?;
        let range = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (range.0 <= range.1).then_some(range)
    };
    text.split(';').filter_map(range).collect()
}

fn site(mut object: Object, found: &mut Found) {
    found.became(object.line, "site", "how long addresses are lent");
    if let Some(Value { line, text }) = object.attributes.remove("dhcplease") {
        let what = format!("dhcplease={text}");
        match text.parse().map(|seconds| (seconds, lease_option(seconds))) {
            Ok((seconds, Ok(option))) => {
                found.became(line, &what, option);
                for network in &mut found.imported.networks {
                    network.lease_seconds = Some(seconds);
                }
            }
            Ok((_, Err(why))) => found.left_out(line, &what, why),
            Err(_) => found.left_out(line, &what, "expected a number of seconds"),
        }
    }
    leave_out(object, found, "slate has nothing like it");
}

fn leave_out(object: Object, found: &mut Found, why: &str) {
    for (key, Value { line, text }) in object.attributes {
        found.left_out(line, &format!("{key}={text}"), why);
    }
}

/// Why an attribute of a node is left out.
fn why_not(key: &str) -> &'static str {
    match key {
        "bmc" | "bmcpassword" | "bmcusername" | "power" | "mgt" | "cons" | "conserver" | "hcp" => {
            "slate switches no machine on or off"
        }
        "os" | "arch" | "profile" | "kernel" | "initrd" | "imagename" => {
            "a node boots what its image has"
        }
        "netboot" | "tftpserver" | "xcatmaster" | "nfsserver" | "servicenode" | "monserver" => {
            "nodes boot from this server"
        }
        "postscripts" | "postbootscripts" => "what a node starts is its image's business",
        "serialport" | "serialspeed" | "serialflow" => {
            "add console=ttyS0,115200 to kernel_args for a serial console"
        }
        "status" | "statustime" | "updatestatus" | "updatestatustime" | "currstate"
        | "currchain" | "chain" | "appstatus" | "appstatustime" => "a state of xCAT's own",
        "hostnames" | "otherinterfaces" => "a node has one name and one address",
        "groups" | "comments" | "usercomment" => "it changes nothing of a boot",
        _ if key.starts_with("nic") => {
            "a node boots from one network card; the others are its image's business"
        }
        _ => "slate has nothing like it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fate, Imported, Kind, Told, guess, import};

    const STANZAS: &str = "\
# <xCAT data object stanza file>

cn1:
    objtype=node
    arch=x86_64
    bmc=10.4.42.254
    groups=all
    ip=10.0.0.11
    mac=42:e1:0a:05:27:0b!cn1|42:e1:0a:05:27:0c!*NOIP*
    nicips.eth1=11.1.89.7|12.1.89.7
    provmethod=rocky9-x86_64-netboot-compute
    addkcmdline=quiet nouveau.modeset=0

cn2:
    objtype=node
    ip=|cn(\\d+)|10.0.0.($1+0)|
    mac=42:e1:0a:05:27:0d

rocky9-x86_64-netboot-compute:
    objtype=osimage
    rootimgdir=/install/netboot

10_0_0_0-255_255_0_0:
    objtype=network
    net=10.0.0.0
    mask=255.255.0.0
    mgtifname=eth0
    gateway=10.0.0.254
    dynamicrange=10.0.1.1-10.0.1.99;10.0.2.1-10.0.2.99
    tftpserver=10.0.0.1

clustersite:
    objtype=site
    dhcplease=7200
    domain=cluster.com
";

    const TABLES: &str = "\
#node,interface,mac,comments,disable
\"cn1\",,\"42:e1:0a:05:27:0b\",,
\"cn3\",,\"42:e1:0a:05:27:0e\",,\"1\"
#node,ip,hostnames,otherinterfaces,comments,disable
\"cn1\",\"10.0.0.11\",,,,
\"all\",\"|cn(\\d+)|10.0.0.($1)|\",,,,
#netname,net,mask,mgtifname,gateway,dhcpserver,tftpserver,nameservers,ntpservers,logservers,dynamicrange,comments,disable
\"net\",\"10.0.0.0\",\"255.255.0.0\",\"eth0\",\"10.0.0.254\",,\"10.0.0.1\",,,,\"10.0.1.1-10.0.1.99\",,
#key,value,comments,disable
\"dhcplease\",\"7200\",,
#priority,name,host
\"1\",\"root\",
";

    fn imported(text: &str) -> Imported {
        assert_eq!(guess(text), Some(Kind::Xcat));
        import(Kind::Xcat, text).unwrap()
    }

    fn served() -> Network {
        Network {
            interface: Some("eth0".into()),
            network: Some(([10, 0, 0, 0].into(), 16)),
            range: Some(([10, 0, 1, 1].into(), [10, 0, 1, 99].into())),
            lease_seconds: Some(7200),
            next_server: Some([10, 0, 0, 1].into()),
            is_proxy: false,
            told: Told {
                routers: vec![[10, 0, 0, 254].into()],
                ..Told::default()
            },
        }
    }

    #[test]
    fn stanzas_are_imported() {
        let site = imported(STANZAS);
        let [first, second] = &site.nodes[..] else {
            panic!("{site:#?}");
        };
        assert_eq!(
            (first.name.as_str(), first.address),
            ("cn1", Some([10, 0, 0, 11].into()))
        );
        assert_eq!(first.mac.to_string(), "42:e1:0a:05:27:0b");
        assert_eq!(
            first.image.as_deref(),
            Some("rocky9-x86_64-netboot-compute")
        );
        assert_eq!(first.kernel_args, "quiet nouveau.modeset=0");
        assert_eq!((second.name.as_str(), second.address), ("cn2", None));
        assert_eq!(site.networks, [served()]);
        let told: Vec<usize> = site.entries.iter().map(|it| it.line).collect();
        for (index, line) in STANZAS.lines().enumerate().skip(1) {
            assert!(
                line.is_empty() || told.contains(&(index + 1)),
                "{}: {line}",
                index + 1
            );
        }
    }

    #[test]
    fn tables_are_imported() {
        let site = imported(TABLES);
        let [node] = &site.nodes[..] else {
            panic!("{site:#?}");
        };
        assert_eq!(
            (node.name.as_str(), node.address),
            ("cn1", Some([10, 0, 0, 11].into()))
        );
        assert_eq!(site.networks, [served()]);
        let has = |what: &str, why: &str| {
            site.entries.iter().any(|it| {
                it.what.contains(what)
                    && matches!(&it.fate, Fate::LeftOut(said) if said.contains(why))
            })
        };
        assert!(has("cn3", "disabled"));
        assert!(has("node all", "no Ethernet address"));
        assert!(has("1,root", "nothing like this table"));
        let told: Vec<usize> = site.entries.iter().map(|it| it.line).collect();
        assert!(
            (1..=TABLES.lines().count()).all(|line| told.contains(&line)),
            "{told:?}"
        );
    }

    #[test]
    fn what_is_no_stanza_is_refused_with_its_line() {
        for text in ["\nmac=1\n", "a:\nmac\n"] {
            let error = import(Kind::Xcat, text).unwrap_err();
            assert!(
                matches!(error, ImportError::Syntax { line: 2, .. }),
                "{error}"
            );
        }
    }
}
