//! Other systems' inventories as nodes of ours: ISC dhcpd, dnsmasq, Warewulf 4 and xCAT.
//!
//! [`import`] reads a whole file and says for each of its statements what it became, or that it was
//! left out and why. Nothing is opened and nothing is looked up: a file that includes others is
//! refused.
//!
//! Panic contract: nothing here panics, whatever the text. Depth, length and the number of nodes are
//! bounded.

mod csv;
mod dhcpd;
mod dnsmasq;
mod warewulf;
mod xcat;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use wire::mac::Mac;

/// Longest text that is read, in bytes.
pub const MAX_TEXT_BYTES: usize = 4 << 20;
/// Most nodes of an inventory.
const MAX_NODES: usize = 65_536;
/// Blocks within blocks, at most.
const MAX_DEPTH: usize = 32;
/// Longest piece of a file that is repeated to people, in characters.
const SHOWN_CHARS: usize = 60;
/// Longest host name (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 63;

/// What a file is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ISC DHCP, `dhcpd.conf`.
    Dhcpd,
    /// dnsmasq, `dnsmasq.conf`.
    Dnsmasq,
    /// Warewulf 4, `nodes.conf`.
    Warewulf,
    /// xCAT, as `lsdef -z` or `tabdump` print it.
    Xcat,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Dhcpd => "ISC dhcpd",
            Kind::Dnsmasq => "dnsmasq",
            Kind::Warewulf => "Warewulf",
            Kind::Xcat => "xCAT",
        })
    }
}

/// A node that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// A host name of at most 63 letters, digits and inner hyphens, which no other node has.
    pub name: String,
    /// A unicast address that no other node has.
    pub mac: Mac,
    /// Its fixed address, which no other node has.
    pub address: Option<Ipv4Addr>,
    /// What it booted, by the name that it had there.
    pub image: Option<String>,
    /// Arguments added to its kernel command line.
    pub kernel_args: String,
}

/// A network that was served, in terms of `slate up`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The interface.
    pub interface: Option<String>,
    /// The network's address and the length of its prefix in bits.
    pub network: Option<(Ipv4Addr, u8)>,
    /// First and last address for machines without a fixed one.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// How long an address is lent, in seconds; `u32::MAX` = for ever.
    pub lease_seconds: Option<u32>,
    /// Where the boot files are: the server's own address, where it is the same machine.
    pub next_server: Option<Ipv4Addr>,
    /// Whether another server gives the addresses.
    pub is_proxy: bool,
    /// What nodes are told there.
    pub told: Told,
}

impl Network {
    fn contains(&self, address: Ipv4Addr) -> bool {
        self.network.is_some_and(|(network, prefix)| {
            let bits = u32::from(network) ^ u32::from(address);
            bits.checked_shr(32 - u32::from(prefix.min(32)))
                .unwrap_or(0)
                == 0
        })
    }
}

/// What the nodes of a network are told by DHCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Routers: option 3.
    pub routers: Vec<Ipv4Addr>,
    /// Name servers: option 6.
    pub dns: Vec<Ipv4Addr>,
    /// The domain's name: option 15.
    pub domain: Option<String>,
    /// Time servers: option 42.
    pub time: Vec<Ipv4Addr>,
}

/// What became of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// This: a node, a setting of one, an option of `slate up`, or what stands for one.
    Became(String),
    /// Nothing, because.
    LeftOut(String),
}

/// A statement of the file, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The line where it begins, from 1.
    pub line: usize,
    /// The statement, cut where it is long; nothing but printable characters.
    pub what: String,
    /// What became of it.
    pub fate: Fate,
}

/// All that came of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// In order of their appearance.
    pub nodes: Vec<Node>,
    /// In order of their appearance.
    pub networks: Vec<Network>,
    /// In order of lines.
    pub entries: Vec<Entry>,
}

/// Why a file was refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It is too long.
    #[error("expected at most {MAX_TEXT_BYTES} bytes, got {got}")]
    TooLong {
        /// Its length.
        got: usize,
    },
    /// It cannot be read.
    #[error("line {line}: {cause}")]
    Syntax {
        /// Where, from 1.
        line: usize,
        /// What was expected and what came.
        cause: String,
    },
    /// It is not whole by itself.
    #[error("line {line}: {what} names another file")]
    Include {
        /// Where, from 1.
        line: usize,
        /// The statement.
        what: String,
    },
}

impl ImportError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            ImportError::TooLong { .. } => "Import it in parts.",
            ImportError::Syntax { .. } => {
                "Correct the line, or say what the file is with --from dhcpd|dnsmasq|warewulf|xcat."
            }
            ImportError::Include { .. } => {
                "Only the file itself is read. Put the other file in the place of that line, and import the result; - reads standard input."
            }
        }
    }
}

/// What a text seems to be; `None` where nothing speaks for one kind.
pub fn guess(text: &str) -> Option<Kind> {
    let mut lines = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.trim().is_empty());
    if lines
        .clone()
        .any(|line| line.starts_with("# <xCAT data object stanza file>"))
    {
        return Some(Kind::Xcat);
    }
    // A table's first line names its columns behind the mark of a comment.
    if lines.clone().next().is_some_and(xcat::is_table_header) {
        return Some(Kind::Xcat);
    }
    let plain = || {
        let lines = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'));
        lines.filter(|line| !line.trim().is_empty())
    };
    if plain().any(|line| matches!(line.trim_end(), "nodes:" | "nodeprofiles:")) {
        return Some(Kind::Warewulf);
    }
    if plain().any(|line| line.trim().starts_with("objtype=")) {
        return Some(Kind::Xcat);
    }
    if plain().any(|line| line.trim_end().ends_with([';', '{', '}'])) {
        return Some(Kind::Dhcpd);
    }
    let first = lines.find(|line| !line.starts_with('#'))?;
    let key = first.split('=').next().unwrap_or_default().trim();
    let is_key = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (key.bytes().all(is_key) && !key.is_empty()).then_some(Kind::Dnsmasq)
}

/// Reads a file.
pub fn import(kind: Kind, text: &str) -> Result<Imported, ImportError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(ImportError::TooLong { got: text.len() });
    }
    let mut found = Found::default();
    match kind {
        Kind::Dhcpd => dhcpd::read(text, &mut found)?,
        Kind::Dnsmasq => dnsmasq::read(text, &mut found)?,
        Kind::Warewulf => warewulf::read(text, &mut found)?,
        Kind::Xcat => xcat::read(text, &mut found)?,
    }
    let mut imported = found.imported;
    // YAML has values that stand behind the last line: empty ones.
    let last = text.lines().count().max(1);
    for entry in &mut imported.entries {
        entry.line = entry.line.clamp(1, last);
    }
    // Parameters of a block count before what is in it, wherever they stand.
    imported.entries.sort_by_key(|entry| entry.line);
    Ok(imported)
}

/// A node as the file has it.
#[derive(Clone, Debug, Default)]
struct Candidate {
    name: String,
    mac: Option<Mac>,
    address: Option<Ipv4Addr>,
    image: Option<String>,
    kernel_args: String,
}

/// What was found so far.
#[derive(Default)]
struct Found {
    imported: Imported,
    by_mac: BTreeMap<Mac, String>,
    by_address: BTreeMap<Ipv4Addr, String>,
    by_name: BTreeMap<String, Mac>,
}

impl Found {
    fn tell(&mut self, line: usize, what: &str, fate: Fate) {
        let what = shown(what);
        self.imported.entries.push(Entry { line, what, fate });
    }

    fn left_out(&mut self, line: usize, what: &str, why: impl Into<String>) {
        self.tell(line, what, Fate::LeftOut(why.into()));
    }

    fn became(&mut self, line: usize, what: &str, this: impl Into<String>) {
        self.tell(line, what, Fate::Became(this.into()));
    }

    /// Takes a node in, or says why not; the name that it has here.
    fn node(&mut self, line: usize, what: &str, candidate: Candidate) -> Option<String> {
        let Some(mac) = candidate.mac else {
            self.left_out(line, what, "it has no Ethernet address");
            return None;
        };
        if !mac.is_unicast() {
            self.left_out(line, what, format!("{mac} is no machine's own address"));
            return None;
        }
        if let Some(other) = self.by_mac.get(&mac) {
            let why = format!("{mac} is the address of {other} already");
            self.left_out(line, what, why);
            return None;
        }
        let Some(name) = host_name(&candidate.name) else {
            let why = format!("{:?} makes no host name", shown(&candidate.name));
            self.left_out(line, what, why);
            return None;
        };
        if let Some(other) = self.by_name.get(&name.to_ascii_lowercase()) {
            let why = format!("{other} is called {name} already");
            self.left_out(line, what, why);
            return None;
        }
        if self.imported.nodes.len() >= MAX_NODES {
            self.left_out(
                line,
                what,
                format!("an inventory has at most {MAX_NODES} nodes"),
            );
            return None;
        }
        let address = candidate.address.filter(|address| {
            let Some(other) = self.by_address.get(address) else {
                return true;
            };
            let why = format!("{address} is the address of {other} already");
            self.imported.entries.push(Entry {
                line,
                what: shown(what),
                fate: Fate::LeftOut(why),
            });
            false
        });
        self.by_mac.insert(mac, name.clone());
        self.by_name.insert(name.to_ascii_lowercase(), mac);
        if let Some(address) = address {
            self.by_address.insert(address, name.clone());
        }
        self.became(line, what, format!("node {name}"));
        self.imported.nodes.push(Node {
            name: name.clone(),
            mac,
            address,
            image: candidate.image.filter(|image| is_image(image)),
            kernel_args: candidate.kernel_args,
        });
        Some(name)
    }
}

/// A host name made of a name: its first label, with hyphens for what a host name cannot have.
fn host_name(name: &str) -> Option<String> {
    let label = name.split('.').next().unwrap_or_default();
    let letter = |it: char| if it.is_ascii_alphanumeric() { it } else { '-' };
    let name: String = label.chars().take(MAX_NAME_BYTES).map(letter).collect();
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

impl Told {
    /// Takes an option by its code; what it is then, or why not.
    fn take(&mut self, code: u8, values: &[&str]) -> Result<&'static str, &'static str> {
        let addresses: Option<Vec<Ipv4Addr>> = values.iter().map(|it| it.parse().ok()).collect();
        let addresses = addresses.filter(|it| !it.is_empty());
        let wrong = "expected addresses: names are not looked up";
        if values.contains(&"0.0.0.0") {
            return Err("0.0.0.0 is the server itself, which is none for nodes");
        }
        match code {
            3 => self.routers = addresses.ok_or(wrong)?,
            6 => self.dns = addresses.ok_or(wrong)?,
            42 => self.time = addresses.ok_or(wrong)?,
            15 => match values {
                [name] if is_domain(name) => self.domain = Some((*name).to_owned()),
                _ => return Err("expected a domain's name"),
            },
            _ => return Err("slate speaks its own options only"),
        }
        Ok(match code {
            3 => "routers of the network",
            6 => "dns of the network",
            42 => "time of the network",
            _ => "domain of the network",
        })
    }

    /// With what is said nearer to the network in the place of what is said around it.
    fn or(&self, outer: &Told) -> Told {
        let nearer = |near: &Vec<Ipv4Addr>, far: &Vec<Ipv4Addr>| {
            if near.is_empty() { far } else { near }.clone()
        };
        Told {
            routers: nearer(&self.routers, &outer.routers),
            dns: nearer(&self.dns, &outer.dns),
            domain: self.domain.clone().or_else(|| outer.domain.clone()),
            time: nearer(&self.time, &outer.time),
        }
    }
}

fn is_domain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    (1..=253).contains(&name.len()) && name.bytes().all(plain)
}

/// Whether a name can be an image's here.
fn is_image(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=128).contains(&name.len())
        && name.bytes().all(plain)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// A piece of a file as people may see it.
fn shown(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(SHOWN_CHARS)
        .map(|it| if it.is_control() { ' ' } else { it })
        .collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        out.push('…');
    }
    out
}

/// An Ethernet address in any of the forms that these files have, such as `0:1A:2b-3:4:5`.
fn mac(text: &str) -> Option<Mac> {
    let parts: Vec<&str> = text.trim().split([':', '-']).collect();
    let mut bytes = [0; 6];
    if parts.len() != bytes.len() {
        return None;
    }
    for (byte, part) in bytes.iter_mut().zip(parts) {
        let digits = (1..=2).contains(&part.len()) && part.bytes().all(|it| it.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
    }
    Some(Mac(bytes))
}

/// The length of a mask's prefix, where it is one.
fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let ones = bits.leading_ones();
    (bits.count_ones() == ones).then_some(ones as u8)
}

/// What a lease becomes: `slate up --lease`, which takes 60 s at least.
fn lease_option(seconds: u32) -> Result<String, String> {
    match seconds {
        u32::MAX => Err("addresses are lent for a time; nodes have theirs for ever anyway".into()),
        0..60 => Err(format!("{seconds} s is too short: 60 s at least")),
        _ => Ok(format!("--lease {seconds}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_several_forms() {
        let expected = Some(Mac([0, 0x1a, 0x2b, 3, 4, 5]));
        for text in ["00:1a:2b:03:04:05", "0:1A:2b:3:4:5", " 00-1A-2B-03-04-05 "] {
            assert_eq!(mac(text), expected, "{text}");
        }
        for text in [
            "",
            "00:1a:2b:03:04",
            "00:1a:2b:03:04:05:06",
            "00:1a:2b:03:04:+5",
            "0:1:2:3:4:*",
        ] {
            assert_eq!(mac(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_becomes_a_host_name() {
        for (name, expected) in [
            ("node1", Some("node1")),
            ("node_1.example.org", Some("node-1")),
            ("-x-", Some("x")),
            ("", None),
            ("..", None),
            ("\u{e9}", None),
        ] {
            assert_eq!(host_name(name).as_deref(), expected, "{name}");
        }
        assert_eq!(host_name(&"a".repeat(200)).map(|it| it.len()), Some(63));
    }

    #[test]
    fn what_is_no_mask_has_no_prefix() {
        assert_eq!(prefix_of([255, 255, 240, 0].into()), Some(20));
        assert_eq!(prefix_of([255, 0, 255, 0].into()), None);
    }

    #[test]
    fn two_machines_share_nothing() {
        let mut found = Found::default();
        let candidate = |name: &str, last: u8, address: u8| Candidate {
            name: name.into(),
            mac: Some(Mac([2, 0, 0, 0, 0, last])),
            address: Some([10, 0, 0, address].into()),
            ..Candidate::default()
        };
        assert!(found.node(1, "a", candidate("a", 1, 1)).is_some());
        assert!(found.node(2, "b", candidate("b", 1, 2)).is_none());
        assert!(found.node(3, "A", candidate("A", 3, 3)).is_none());
        assert!(found.node(4, "d", candidate("d", 4, 1)).is_some());
        let nodes = &found.imported.nodes;
        assert_eq!((nodes.len(), nodes[1].address), (2, None));
    }

    #[test]
    fn a_file_is_known_by_what_is_in_it() {
        for (text, kind) in [
            (
                "# nodes\nsubnet 10.0.0.0 netmask 255.0.0.0 {\n}\n",
                Some(Kind::Dhcpd),
            ),
            (
                "# a = b;\ndhcp-range=10.0.0.5,10.0.0.9\n",
                Some(Kind::Dnsmasq),
            ),
            ("log-dhcp\n", Some(Kind::Dnsmasq)),
            ("WW_INTERNAL: 45\nnodes:\n  n1: {}\n", Some(Kind::Warewulf)),
            (
                "# <xCAT data object stanza file>\n\nn1:\n",
                Some(Kind::Xcat),
            ),
            ("n1:\n    objtype=node\n", Some(Kind::Xcat)),
            (
                "#node,interface,mac,comments,disable\n\"n1\",,\"x\",,\n",
                Some(Kind::Xcat),
            ),
            ("hello, world\n", None),
            ("", None),
        ] {
            assert_eq!(guess(text), kind, "{text}");
        }
    }
}
