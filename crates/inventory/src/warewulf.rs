//! Warewulf 4's `nodes.conf`: YAML with nodes, and profiles whose values nodes inherit.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScanError};

use crate::{Candidate, Found, ImportError, MAX_DEPTH, is_image, mac};

/// The profile of nodes that name none.
const DEFAULT_PROFILE: &str = "default";
/// The network device of nodes that name none as their first one.
const DEFAULT_DEVICE: &str = "default";

/// A YAML value and the line where it begins.
struct Value {
    line: usize,
    data: Data,
}

enum Data {
    Scalar(String),
    List(Vec<Value>),
    Map(Vec<(Key, Value)>),
}

struct Key {
    line: usize,
    name: String,
}

impl Value {
    fn scalar(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar(text) => Some(text),
            _ => None,
        }
    }

    fn entries(&self) -> &[(Key, Value)] {
        match &self.data {
            Data::Map(entries) => entries,
            _ => &[],
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        let mut entries = self.entries().iter();
        entries
            .find(|(key, _)| key.name == name)
            .map(|(_, value)| value)
    }

    /// A scalar, or those of a list.
    fn texts(&self) -> Vec<&str> {
        match &self.data {
            Data::Scalar(text) => vec![text],
            Data::List(values) => values.iter().filter_map(Value::scalar).collect(),
            Data::Map(_) => Vec::new(),
        }
    }
}

/// What counts of a node or a profile; profiles first, the node's own values last.
#[derive(Clone, Default)]
struct Conf {
    image: Option<String>,
    kernel_args: Option<String>,
    primary: Option<String>,
    devices: BTreeMap<String, Device>,
}

#[derive(Clone, Default)]
struct Device {
    mac: Option<String>,
    address: Option<String>,
    is_primary: bool,
}

/// Reads all of it.
pub(crate) fn read(text: &str, found: &mut Found) -> Result<(), ImportError> {
    let document = load(text)?;
    let mut profiles = BTreeMap::new();
    for (key, value) in document.entries() {
        match key.name.as_str() {
            "nodeprofiles" => {
                found.became(key.line, &key.name, "values of the nodes that have them");
                for (name, value) in value.entries() {
                    let what = format!("profile {}", name.name);
                    found.became(name.line, &what, "values of the nodes that have it");
                    profiles.insert(name.name.as_str(), conf_of(value, found));
                }
            }
            "nodes" => found.became(key.line, &key.name, "the nodes"),
            "WW_INTERNAL" => found.left_out(key.line, &key.name, "the version of the file's form"),
            _ => leave_out(key, value, found, "slate has nothing like it"),
        }
    }
    // Profiles may stand behind the nodes.
    let nodes = document
        .get("nodes")
        .map(Value::entries)
        .unwrap_or_default();
    for (key, value) in nodes {
        node(key, value, &profiles, found);
    }
    Ok(())
}

fn node(key: &Key, value: &Value, profiles: &BTreeMap<&str, Conf>, found: &mut Found) {
    let own = conf_of(value, found);
    let named = value.get("profiles").map(Value::texts);
    let named = named.unwrap_or_else(|| vec![DEFAULT_PROFILE]);
    let mut conf = Conf::default();
    for name in named {
        match profiles.get(name) {
            Some(profile) => conf.merge(profile),
            None if name == DEFAULT_PROFILE => {}
            None => {
                let what = format!("profile {name}");
                found.left_out(key.line, &what, "the file has no such profile");
            }
        }
    }
    conf.merge(&own);
    let what = format!("node {}", key.name);
    let primary = conf.primary_device();
    let (device, others) = primary.unwrap_or_default();
    let address = device.address.as_deref().and_then(address);
    let candidate = Candidate {
        name: key.name.clone(),
        mac: device.mac.as_deref().and_then(mac),
        address,
        image: conf.image.clone(),
        kernel_args: conf.kernel_args.clone().unwrap_or_default(),
    };
    if let (Some(text), None) = (&device.address, address) {
        found.left_out(key.line, text, "expected an IPv4 address");
    }
    if found.node(key.line, &what, candidate).is_none() {
        return;
    }
    for other in others {
        let what = format!("network device {other}");
        found.left_out(
            key.line,
            &what,
            "a node boots from one network card; the others are its image's business",
        );
    }
    if let Some(image) = conf.image.filter(|image| !is_image(image)) {
        found.left_out(key.line, &image, "it is no name that an image can have");
    }
}

/// An IPv4 address, which may have a prefix behind it.
fn address(text: &str) -> Option<std::net::Ipv4Addr> {
    text.split('/').next()?.parse().ok()
}

impl Conf {
    fn merge(&mut self, nearer: &Conf) {
        let nearer = nearer.clone();
        self.image = nearer.image.or(self.image.take());
        self.kernel_args = nearer.kernel_args.or(self.kernel_args.take());
        self.primary = nearer.primary.or(self.primary.take());
        for (name, device) in nearer.devices {
            let known = self.devices.entry(name).or_default();
            known.mac = device.mac.or(known.mac.take());
            known.address = device.address.or(known.address.take());
            known.is_primary |= device.is_primary;
        }
    }

    /// The device that it boots from, and the names of the others.
    fn primary_device(&self) -> Option<(Device, Vec<String>)> {
        let marked = || self.devices.iter().find(|(_, it)| it.is_primary);
        let named = self.primary.as_deref();
        let by_name = |name: &str| self.devices.get_key_value(name);
        let has_mac = || self.devices.iter().find(|(_, it)| it.mac.is_some());
        let (name, device) = named
            .and_then(by_name)
            .or_else(marked)
            .or_else(|| by_name(DEFAULT_DEVICE).filter(|(_, it)| it.mac.is_some()))
            .or_else(has_mac)?;
        let others = self.devices.keys().filter(|it| *it != name).cloned();
        Some((device.clone(), others.collect()))
    }
}

/// What counts of a node or a profile, as far as it says so itself.
fn conf_of(value: &Value, found: &mut Found) -> Conf {
    let mut conf = Conf::default();
    for (key, value) in value.entries() {
        let text = value.texts().join(" ");
        let what = format!("{}: {text}", key.name);
        match key.name.as_str() {
            "container name" | "image name" if !text.is_empty() => {
                let why = format!("image {text}; bring it: slate image import {text} DIR|TAR");
                found.became(key.line, &what, why);
                conf.image = Some(text);
            }
            "kernel" => kernel(value, &mut conf, found),
            "kernel args" => {
                found.became(key.line, &what, "kernel_args");
                conf.kernel_args = Some(text);
            }
            "primary network" => {
                found.became(key.line, &what, "the network card that it boots from");
                conf.primary = Some(text);
            }
            "network devices" => {
                for (name, value) in value.entries() {
                    let device = device(name, value, found);
                    conf.devices.insert(name.name.clone(), device);
                }
            }
            "profiles" => found.became(key.line, &what, "the values of these profiles"),
            name => leave_out(key, value, found, why_not(name)),
        }
    }
    conf
}

fn kernel(value: &Value, conf: &mut Conf, found: &mut Found) {
    for (key, value) in value.entries() {
        let text = value.texts().join(" ");
        let what = format!("kernel {}: {text}", key.name);
        if key.name == "args" {
            found.became(key.line, &what, "kernel_args");
            conf.kernel_args = Some(text);
        } else {
            found.left_out(key.line, &what, "a node boots the kernel of its image");
        }
    }
}

fn device(name: &Key, value: &Value, found: &mut Found) -> Device {
    let mut device = Device::default();
    for (key, value) in value.entries() {
        let text = value.texts().join(" ");
        let what = format!("{} {}: {text}", name.name, key.name);
        match key.name.as_str() {
            "hwaddr" if mac(&text).is_some() => {
                found.became(key.line, &what, "mac");
                device.mac = Some(text);
            }
            "hwaddr" => found.left_out(key.line, &what, "expected six hexadecimal bytes"),
            "ipaddr" | "ipcidr" => {
                found.became(key.line, &what, "address");
                device.address = Some(text);
            }
            "primary" => {
                device.is_primary = text == "true";
                found.became(key.line, &what, "the network card that it boots from");
            }
            "netmask" | "prefixlen" | "gateway" | "mtu" => {
                found.left_out(
                    key.line,
                    &what,
                    "of the network slate knows what its own interface has",
                );
            }
            _ => leave_out(
                key,
                value,
                found,
                "slate knows a node's card by its address alone",
            ),
        }
    }
    device
}

/// All that stands under a key.
fn leave_out(key: &Key, value: &Value, found: &mut Found, why: &str) {
    let what = match value.scalar() {
        Some(text) => format!("{}: {text}", key.name),
        None => key.name.clone(),
    };
    found.left_out(key.line, &what, why);
    match &value.data {
        Data::Scalar(_) => {}
        Data::List(values) => {
            for value in values.iter().filter(|it| it.line != key.line) {
                let what = value.scalar().unwrap_or(&key.name);
                found.left_out(value.line, what, why);
                value
                    .entries()
                    .iter()
                    .for_each(|(key, value)| leave_out(key, value, found, why));
            }
        }
        Data::Map(entries) => {
            entries
                .iter()
                .for_each(|(key, value)| leave_out(key, value, found, why));
        }
    }
}

/// Why a value of a node or a profile is left out.
fn why_not(name: &str) -> &'static str {
    match name {
        "comment" | "cluster name" | "asset key" | "tags" | "keys" => {
            "it changes nothing of a boot"
        }
        "ipmi" => "slate switches no machine on or off",
        "runtime overlay" | "system overlay" => {
            "what differs between nodes comes with their identity, not in overlays"
        }
        "init" | "root" => "slate's own /init mounts the root",
        "ipxe template" | "kernel version" | "kernel override" => {
            "a node boots the kernel of its image"
        }
        "discoverable" => "slate makes nodes of machines that ask to boot",
        "disks" | "filesystems" | "resources" => "nodes have no disks to set up",
        _ if name.starts_with("ipmi ") => "slate switches no machine on or off",
        _ => "slate has nothing like it",
    }
}

/// The one document of a text.
fn load(text: &str) -> Result<Value, ImportError> {
    let mut loader = Loader {
        parser: Parser::new_from_str(text),
    };
    let mut document = None;
    loop {
        let (event, line) = loader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if document.is_some() => {
                return Err(syntax(line, "expected one document, got another one"));
            }
            event => document = Some(loader.value(event, line, 0)?),
        }
    }
    let nothing = Value {
        line: 1,
        data: Data::Map(Vec::new()),
    };
    Ok(document.unwrap_or(nothing))
}

struct Loader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), ImportError> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(scan_error(&error)),
            None => Ok((Event::StreamEnd, 1)),
        }
    }

    fn value(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Value, ImportError> {
        if depth >= MAX_DEPTH {
            return Err(syntax(line, "expected fewer values within values"));
        }
        let data = match event {
            Event::Scalar(text, ..) => Data::Scalar(match text.as_ref() {
                "~" | "null" => String::new(),
                text => text.to_owned(),
            }),
            Event::SequenceStart(..) => {
                let mut values = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break Data::List(values),
                        (event, line) => values.push(self.value(event, line, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => Data::Map(self.entries(depth)?),
            // Copies of copies of copies could make a short text endless.
            Event::Alias(_) => return Err(syntax(line, "expected no aliases (*NAME)")),
            _ => return Err(syntax(line, "expected a value")),
        };
        Ok(Value { line, data })
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<(Key, Value)>, ImportError> {
        let mut entries = Vec::new();
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                (Event::Scalar(text, ..), line) => Key {
                    line,
                    name: text.into_owned(),
                },
                (_, line) => return Err(syntax(line, "expected a plain key")),
            };
            let (event, line) = self.next()?;
            entries.push((key, self.value(event, line, depth + 1)?));
        }
    }
}

fn syntax(line: usize, cause: &str) -> ImportError {
    ImportError::Syntax {
        line: line.max(1),
        cause: cause.to_owned(),
    }
}

fn scan_error(error: &ScanError) -> ImportError {
    syntax(error.marker().line(), error.info())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fate, Imported, Kind, import};

    const SITE: &str = "\
WW_INTERNAL: 45
nodeprofiles:
  default:
    comment: for every node
    container name: rocky-9
    kernel:
      args: quiet crashkernel=no
    network devices:
      default:
        device: eth0
        netmask: 255.255.255.0
  gpu:
    image name: rocky-9-gpu
    kernel:
      args:
      - quiet
      - nouveau.modeset=0
    ipmi:
      username: admin
      tags:
        a: b
nodes:
  n1:
    profiles:
    - default
    network devices:
      default:
        hwaddr: 68:05:ca:93:95:a5
        ipaddr: 10.0.2.1
      ib:
        ipaddr: 10.1.2.1
  n2.cluster:
    profiles: [default, gpu]
    primary network: second
    network devices:
      default:
        hwaddr: 68:05:ca:93:95:b1
      second:
        hwaddr: 68:05:ca:93:95:b2
        ipcidr: 10.0.2.2/24
  n3:
    profiles: [missing]
    tags: {a: b}
";

    fn imported(text: &str) -> Imported {
        import(Kind::Warewulf, text).unwrap()
    }

    #[test]
    fn nodes_inherit_from_their_profiles() {
        let site = imported(SITE);
        let [first, second] = &site.nodes[..] else {
            panic!("{site:#?}");
        };
        assert_eq!(
            (first.name.as_str(), first.address),
            ("n1", Some([10, 0, 2, 1].into()))
        );
        assert_eq!(first.image.as_deref(), Some("rocky-9"));
        assert_eq!(first.kernel_args, "quiet crashkernel=no");
        assert_eq!(second.mac.to_string(), "68:05:ca:93:95:b2");
        assert_eq!(
            (second.name.as_str(), second.address),
            ("n2", Some([10, 0, 2, 2].into()))
        );
        assert_eq!(second.image.as_deref(), Some("rocky-9-gpu"));
        assert_eq!(second.kernel_args, "quiet nouveau.modeset=0");
    }

    #[test]
    fn every_line_with_a_value_is_accounted_for() {
        let site = imported(SITE);
        let told: Vec<usize> = site.entries.iter().map(|it| it.line).collect();
        for (index, line) in SITE.lines().enumerate() {
            let holds_others = line.ends_with(':') || line.trim().starts_with("- ");
            assert!(
                holds_others || told.contains(&(index + 1)),
                "{}: {line}\n{:#?}",
                index + 1,
                site.entries
            );
        }
        let has = |what: &str, why: &str| {
            site.entries.iter().any(|it| {
                it.what.contains(what)
                    && matches!(&it.fate, Fate::LeftOut(said) if said.contains(why))
            })
        };
        assert!(has("node n3", "no Ethernet address"));
        assert!(has("profile missing", "no such profile"));
        assert!(has("network device ib", "one network card"));
    }

    #[test]
    fn what_is_no_such_file_is_refused_with_its_line() {
        for (text, line) in [
            ("nodes:\n  n1: [\n", 3),
            ("a: &x 1\nb: *x\n", 2),
            ("---\na: 1\n---\nb: 1\n", 4),
            ("? [a]\n: b\n", 1),
        ] {
            match import(Kind::Warewulf, text) {
                Err(ImportError::Syntax { line: got, .. }) => assert_eq!(got, line, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        let deep = "[".repeat(1000);
        assert!(import(Kind::Warewulf, &deep).is_err());
        let unended = imported("nodes:\n  n1:\n    network devices:\n      default:\n?    ");
        assert!(unended.entries.iter().all(|it| it.line <= 5), "{unended:?}");
        assert_eq!(imported("").nodes, []);
        assert_eq!(imported("just text").nodes, []);
    }
}
