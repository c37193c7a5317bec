//! The kernel command line: the daemon writes it, `/init` reads it, both by the one type
//! [`BootArgs`].
//!
//! The syntax is dracut's (dracut.cmdline(7)), so that a command line made for a dracut initramfs
//! means the same here: `root=nfs[4]:[SERVER:]PATH[:OPTIONS]`, `root=/dev/nfs nfsroot=`, `ip=`,
//! `vlan=`, `bond=`, `nameserver=`, `BOOTIF=`, `rd.break`, `rd.driver.blacklist=`. Words are split and unquoted as
//! the kernel does it (lib/cmdline.c, `next_arg`). Parameters that mean nothing here stay in
//! [`BootArgs::extra`]; malformed ones are left out and reported by name.
//!
//! Parsing never panics. Rendering refuses what the kernel's quoting cannot express.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use thiserror::Error;

use crate::identity::{BootId, Token};
use crate::mac::Mac;
use crate::stage::Stage;

/// The longest command line that every architecture's kernel keeps, in bytes, without its NUL.
pub const MAX_CMDLINE_BYTES: usize = 2047;

/// Everything that a boot's command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootArgs {
    /// `root=`: the NFS export that is the lower layer.
    pub root: Option<NfsRoot>,
    /// `ip=`, in order; none means DHCP.
    pub ip: Vec<Ip>,
    /// `vlan=`, in order: interfaces made over others.
    pub vlans: Vec<Vlan>,
    /// `bond=`, in order.
    pub bonds: Vec<Bond>,
    /// `nameserver=`, in order.
    pub nameservers: Vec<Ipv4Addr>,
    /// `BOOTIF=`: the interface that the firmware booted from.
    pub bootif: Option<Mac>,
    /// `slate.*`: the daemon to talk to; none with a plain NFS root.
    pub slate: Option<SlateArgs>,
    /// `nfs.nfs4_unique_id=`: tells this node's NFS client from its twins.
    pub nfs_unique_id: Option<String>,
    /// `init=`: what to start in the root.
    pub init: Option<String>,
    /// All other parameters, in order.
    pub extra: Vec<Param>,
    /// The words after `--`, arguments of the root's init.
    pub init_args: Vec<String>,
}

/// One word of the command line: `name` or `name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// What is before the first `=`.
    pub name: String,
    /// What is after it.
    pub value: Option<String>,
}

/// An NFS root: `nfs[4]:[server:]path[:options]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NfsRoot {
    /// Whether `nfs4:` was written, which excludes version 3.
    pub only_v4: bool,
    /// The server; none means the DHCP server's `next-server`.
    pub server: Option<Ipv4Addr>,
    /// The export's absolute path.
    pub path: String,
    /// Mount options as the user gave them, in order.
    pub options: Vec<String>,
}

/// How one interface, or any, gets its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ip {
    /// `dhcp`, `on` or `any`.
    Dhcp {
        /// This interface only; none: any.
        interface: Option<String>,
        /// Maximum transmission unit to set, in bytes.
        mtu: Option<u16>,
    },
    /// `off` or `none`: leave the interfaces alone.
    Off {
        /// This interface only; none: all.
        interface: Option<String>,
    },
    /// `ADDRESS:SERVER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:none[:MTU | :DNS1[:DNS2]]`.
    Static(StaticIp),
}

/// A fixed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticIp {
    /// The node's address.
    pub address: Ipv4Addr,
    /// The second field: an NFS server or peer.
    pub server: Option<Ipv4Addr>,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Length of the network prefix, 0 to 32.
    pub prefix: u8,
    /// The node's host name.
    pub hostname: Option<String>,
    /// This interface only; none: any.
    pub interface: Option<String>,
    /// Maximum transmission unit to set, in bytes.
    pub mtu: Option<u16>,
    /// Name servers, at most two.
    pub dns: Vec<Ipv4Addr>,
}

/// `NAME:DEVICE`: a tagged network over an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// The new interface's name: `vlan5`, `vlan0005`, `eth0.5`, `eth0.0005`.
    pub name: String,
    /// The VLAN's number, 1 to 4094: the last digits of the name.
    pub id: u16,
    /// The interface that it is made over.
    pub parent: String,
}

/// `[NAME[:INTERFACE,…[:OPTION=VALUE,…[:MTU]]]]`: several interfaces as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bond {
    /// The new interface's name; `bond0` where none was given.
    pub name: String,
    /// What it is made of; `eth0` and `eth1` where nothing was given.
    pub members: Vec<String>,
    /// The kernel's options (Documentation/networking/bonding.rst), in order; `mode=balance-rr`
    /// where none were given.
    pub options: Vec<(String, String)>,
    /// Maximum transmission unit to set, in bytes.
    pub mtu: Option<u16>,
}

/// How to reach the daemon, and what proves that this boot is the one it planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlateArgs {
    /// `slate.server=`: HTTP over TCP and beacons over UDP.
    pub server: SocketAddrV4,
    /// `slate.boot=`.
    pub boot: BootId,
    /// `slate.token=`.
    pub token: Token,
}

/// What is wrong with a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CmdlineError {
    /// A parameter's value has no meaning.
    #[error("{name}: expected {expected}, got {got:?}")]
    Malformed {
        /// The parameter's name.
        name: String,
        /// What could stand there.
        expected: &'static str,
        /// What stands there, shortened.
        got: String,
    },
    /// A value that no command line can carry.
    #[error("{name}: expected printable ASCII without quotes, got {got:?}")]
    Inexpressible {
        /// The parameter's name.
        name: String,
        /// The value, shortened.
        got: String,
    },
    /// The rendered line is longer than kernels keep.
    #[error("expected a command line of at most {MAX_CMDLINE_BYTES} bytes, got {0}")]
    TooLong(usize),
}

impl BootArgs {
    /// Reads a command line. Malformed parameters are left out of the result and reported.
    pub fn parse(line: &str) -> (BootArgs, Vec<CmdlineError>) {
        let mut parser = Parser::default();
        let mut words = split(line).into_iter();
        for word in words.by_ref() {
            if word.name == "--" && word.value.is_none() {
                break;
            }
            parser.take(word);
        }
        parser.args.init_args = words.map(Param::into_text).collect();
        parser.finish()
    }

    /// The command line, quoted for the kernel; [`BootArgs::parse`] gives the same arguments back.
    pub fn render(&self) -> Result<String, CmdlineError> {
        let mut out = Renderer::default();
        if let Some(root) = &self.root {
            out.put("root", &root.render()?)?;
        }
        if let Some(bootif) = self.bootif {
            out.put("BOOTIF", &bootif.bootif())?;
        }
        for ip in &self.ip {
            out.put("ip", &ip.to_string())?;
        }
        for vlan in &self.vlans {
            out.put("vlan", &vlan.to_string())?;
        }
        for bond in &self.bonds {
            out.put("bond", &bond.to_string())?;
        }
        for server in &self.nameservers {
            out.put("nameserver", &server.to_string())?;
        }
        if let Some(slate) = &self.slate {
            out.put("slate.server", &slate.server.to_string())?;
            out.put("slate.boot", &slate.boot.to_string())?;
            out.put("slate.token", &slate.token.to_hex())?;
        }
        if let Some(id) = &self.nfs_unique_id {
            out.put(NFS_ID, id)?;
        }
        if let Some(init) = &self.init {
            out.put("init", init)?;
        }
        for param in &self.extra {
            out.word(param)?;
        }
        out.init_args(&self.init_args)?;
        out.finish()
    }

    /// The last value of a parameter in [`BootArgs::extra`]; empty where it has none.
    pub fn param(&self, name: &str) -> Option<&str> {
        let last = self.extra.iter().rev().find(|param| param.name == name)?;
        Some(last.value.as_deref().unwrap_or(""))
    }

    /// Where `rd.break` asks for a shell, each place once; and values that name none.
    pub fn breaks(&self) -> (BTreeSet<Break>, Vec<CmdlineError>) {
        let (mut places, mut errors) = (BTreeSet::new(), Vec::new());
        for param in self.extra.iter().filter(|param| param.name == "rd.break") {
            let name = param.value.as_deref().unwrap_or("");
            match Break::named(name) {
                Some(place) => drop(places.insert(place)),
                None => errors.push(CmdlineError::Malformed {
                    name: "rd.break".to_owned(),
                    expected: Break::EXPECTED,
                    got: shortened(name),
                }),
            }
        }
        (places, errors)
    }

    /// Whether `net.ifnames=0` asks for the kernel's names (`eth0`).
    pub fn kernel_ifnames(&self) -> bool {
        matches!(
            self.param("net.ifnames"),
            Some("0" | "no" | "false" | "off")
        )
    }

    /// The parameters of one kernel module, from words such as `MODULE.NAME=VALUE`, joined by
    /// spaces as init_module(2) takes them. `-` and `_` are the same.
    pub fn module_params(&self, module: &str) -> String {
        let wanted = module.replace('-', "_");
        let mut params: Vec<String> = self
            .extra
            .iter()
            .filter_map(|param| param.of_module(&wanted))
            .collect();
        if let (Some(id), "nfs") = (&self.nfs_unique_id, wanted.as_str()) {
            params.push(quoted("nfs4_unique_id", id));
        }
        params.join(" ")
    }

    /// Whether `modprobe.blacklist=` or `rd.driver.blacklist=` names this module.
    pub fn is_blacklisted(&self, module: &str) -> bool {
        let wanted = module.replace('-', "_");
        self.extra
            .iter()
            .filter(|param| matches!(&*param.name, "modprobe.blacklist" | "rd.driver.blacklist"))
            .flat_map(|param| param.value.as_deref().unwrap_or("").split(','))
            .any(|name| name.replace('-', "_") == wanted)
    }
}

/// Where an initramfs has its shell, if it has one: a busybox.
pub const SHELL_PATH: &str = "/bin/busybox";

/// Where a boot can stop for a shell, in the order in which it comes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Break {
    /// Before anything is loaded or configured.
    Init,
    /// The network is configured, nothing is mounted.
    Network,
    /// The root is mounted, nothing of it runs.
    Mount,
    /// In the finished root, before its init.
    SwitchRoot,
}

impl Break {
    /// Every value of `rd.break`.
    pub const EXPECTED: &str = "init, network, mount or switch-root, or dracut's cmdline, pre-udev, \
        pre-trigger, initqueue, pre-mount, pre-pivot or cleanup";

    /// The place that a value of `rd.break` means. Dracut's names (dracut.cmdline(7)) mean the place
    /// that comes nearest, except for `mount`, which is our own stage of that name.
    pub fn named(name: &str) -> Option<Break> {
        Some(match name {
            "init" | "cmdline" | "pre-udev" | "pre-trigger" | "initqueue" => Break::Init,
            "network" | "pre-mount" => Break::Network,
            "mount" | "pre-pivot" | "cleanup" => Break::Mount,
            "switch-root" | "" => Break::SwitchRoot,
            _ => return None,
        })
    }

    /// The stage that has just been reached there.
    pub fn stage(self) -> Stage {
        match self {
            Break::Init => Stage::Init,
            Break::Network => Stage::Network,
            Break::Mount => Stage::Mount,
            Break::SwitchRoot => Stage::SwitchRoot,
        }
    }
}

const NFS_ID: &str = "nfs.nfs4_unique_id";

impl Param {
    /// A parameter with a value.
    pub fn new(name: &str, value: &str) -> Param {
        Param {
            name: name.to_owned(),
            value: Some(value.to_owned()),
        }
    }

    /// A word without a value.
    pub fn flag(name: &str) -> Param {
        Param {
            name: name.to_owned(),
            value: None,
        }
    }

    /// The word without any quotes.
    fn into_text(self) -> String {
        match self.value {
            Some(value) => format!("{}={value}", self.name),
            None => self.name,
        }
    }

    fn of_module(&self, module: &str) -> Option<String> {
        let (prefix, name) = self.name.split_once('.')?;
        if prefix.replace('-', "_") != module || name.is_empty() {
            return None;
        }
        Some(match &self.value {
            Some(value) => quoted(name, value),
            None => name.to_owned(),
        })
    }
}

/// As [`BootArgs::render`] would write the word, if it can be written.
impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => f.write_str(&quoted(&self.name, value)),
            None => f.write_str(&self.name),
        }
    }
}

fn quoted(name: &str, value: &str) -> String {
    if value.contains(is_space) {
        format!("{name}=\"{value}\"")
    } else {
        format!("{name}={value}")
    }
}

/// Whether a line can hold the word: printable, and without a quote left open, which would take in
/// the words behind it.
fn can_stand(word: &str) -> bool {
    let printable = word.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    printable && word.matches('"').count().is_multiple_of(2)
}

/// What the kernel's `isspace` takes for ASCII.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// The words of a command line, unquoted as the kernel does it.
pub fn split(line: &str) -> Vec<Param> {
    let mut words = Vec::new();
    let mut rest = line.trim_start_matches(is_space);
    while !rest.is_empty() {
        let mut in_quotes = false;
        let end = rest.find(|c| {
            in_quotes ^= c == '"';
            is_space(c) && !in_quotes
        });
        let (word, tail) = rest.split_at(end.unwrap_or(rest.len()));
        words.extend(unquote(word));
        rest = tail.trim_start_matches(is_space);
    }
    words
}

fn unquote(word: &str) -> Option<Param> {
    let word = match word.strip_prefix('"') {
        Some(inner) => inner.strip_suffix('"').unwrap_or(inner),
        None => word,
    };
    let equals = word.match_indices('=').map(|(at, _)| at).find(|at| *at > 0);
    let Some(equals) = equals else {
        return (!word.is_empty()).then(|| Param::flag(word));
    };
    let value = &word[equals + 1..];
    let value = match value.strip_prefix('"') {
        Some(inner) => inner.strip_suffix('"').unwrap_or(inner),
        None => value,
    };
    Some(Param::new(&word[..equals], value))
}

#[derive(Default)]
struct Parser {
    args: BootArgs,
    errors: Vec<CmdlineError>,
    root_is_dev_nfs: bool,
    nfsroot: Option<String>,
    server: Option<SocketAddrV4>,
    boot: Option<BootId>,
    token: Option<Token>,
}

impl Parser {
    fn take(&mut self, word: Param) {
        let Some(value) = word.value.as_deref() else {
            return self.args.extra.push(word);
        };
        let taken = match word.name.as_str() {
            "root" => self.root(value),
            "nfsroot" => {
                self.nfsroot = Some(value.to_owned());
                Ok(())
            }
            "ip" => Ip::parse(value).map(|ip| self.args.ip.push(ip)),
            "vlan" => Vlan::parse(value).map(|vlan| self.args.vlans.push(vlan)),
            "bond" => Bond::parse(value).map(|bond| self.args.bonds.push(bond)),
            "nameserver" => ipv4(value).map(|server| self.args.nameservers.push(server)),
            "BOOTIF" => bootif(value).map(|mac| self.args.bootif = Some(mac)),
            "slate.server" => parsed(value, "ADDRESS:PORT").map(|it| self.server = Some(it)),
            "slate.boot" => parsed(value, "16 hexadecimal digits").map(|it| self.boot = Some(it)),
            "slate.token" => parsed(value, "32 hexadecimal digits").map(|it| self.token = Some(it)),
            NFS_ID => {
                self.args.nfs_unique_id = Some(value.to_owned());
                Ok(())
            }
            "init" => {
                self.args.init = Some(value.to_owned());
                Ok(())
            }
            _ => return self.args.extra.push(word),
        };
        if let Err(expected) = taken {
            // A token is a secret even where it is malformed.
            let shown = if word.name == "slate.token" {
                ""
            } else {
                value
            };
            self.malformed(&word.name, expected, shown);
        }
    }

    fn malformed(&mut self, name: &str, expected: &'static str, got: &str) {
        self.errors.push(CmdlineError::Malformed {
            name: name.to_owned(),
            expected,
            got: shortened(got),
        });
    }

    fn root(&mut self, value: &str) -> Result<(), &'static str> {
        self.root_is_dev_nfs = value == "/dev/nfs";
        if self.root_is_dev_nfs {
            return Ok(());
        }
        self.args.root = Some(NfsRoot::parse(value)?);
        Ok(())
    }

    fn finish(mut self) -> (BootArgs, Vec<CmdlineError>) {
        match (self.root_is_dev_nfs, self.nfsroot.take()) {
            (true, Some(value)) => match NfsRoot::parse_location(&value) {
                Ok(root) => self.args.root = Some(root),
                Err(expected) => self.malformed("nfsroot", expected, &value),
            },
            (true, None) => self.malformed("root", "nfsroot= beside root=/dev/nfs", "/dev/nfs"),
            (false, Some(value)) => self.args.extra.push(Param::new("nfsroot", &value)),
            (false, None) => {}
        }
        match (self.server, self.boot, self.token) {
            (Some(server), Some(boot), Some(token)) => {
                self.args.slate = Some(SlateArgs {
                    server,
                    boot,
                    token,
                });
            }
            (None, None, None) => {}
            _ => self.malformed("slate.*", "slate.server=, slate.boot= and slate.token=", ""),
        }
        (self.args, self.errors)
    }
}

impl NfsRoot {
    /// Reads what is after `root=`.
    pub fn parse(value: &str) -> Result<NfsRoot, &'static str> {
        let (kind, location) = value.split_once(':').unwrap_or((value, ""));
        let only_v4 = match kind {
            "nfs" => false,
            "nfs4" => true,
            _ => return Err("nfs:[SERVER:]PATH[:OPTIONS]"),
        };
        let root = NfsRoot::parse_location(location)?;
        Ok(NfsRoot { only_v4, ..root })
    }

    /// Reads `[SERVER:]PATH[:OPTIONS]`, also with the comma that nfsroot= has before its options.
    fn parse_location(value: &str) -> Result<NfsRoot, &'static str> {
        let (server, path) = match value.split_once(":/") {
            Some((server, _)) if !server.contains('/') => {
                (Some(ipv4(server)?), &value[server.len() + 1..])
            }
            _ => (None, value),
        };
        let end = path.find([':', ',']).unwrap_or(path.len());
        let (path, options) = path.split_at(end);
        if !path.starts_with('/') {
            return Err("an absolute path on the NFS server");
        }
        let options = options.get(1..).unwrap_or("").trim_matches(':').split(',');
        Ok(NfsRoot {
            only_v4: false,
            server,
            path: path.to_owned(),
            options: options
                .filter(|option| !option.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }

    /// The last value of the mount option `name=`.
    pub fn option(&self, name: &str) -> Option<&str> {
        let values = self.options.iter().rev();
        values
            .filter_map(|option| option.strip_prefix(name)?.strip_prefix('='))
            .next()
    }

    fn render(&self) -> Result<String, CmdlineError> {
        let kind = if self.only_v4 { "nfs4" } else { "nfs" };
        let server = self.server.map_or(String::new(), |it| format!("{it}:"));
        let options = match self.options.join(",") {
            options if options.is_empty() => options,
            options => format!(":{options}"),
        };
        let value = format!("{kind}:{server}{}{options}", self.path);
        if NfsRoot::parse(&value).as_ref() != Ok(self) {
            return Err(CmdlineError::Malformed {
                name: "root".to_owned(),
                expected: "an absolute path without colon or comma, options without comma",
                got: shortened(&value),
            });
        }
        Ok(value)
    }
}

impl Ip {
    /// Reads what is after `ip=`.
    pub fn parse(value: &str) -> Result<Ip, &'static str> {
        let fields: Vec<&str> = value.split(':').collect();
        match fields[..] {
            [mode] => Ip::automatic(mode, None, ""),
            [interface, mode] if is_mode(mode) => Ip::automatic(mode, filled(interface), ""),
            [interface, mode, mtu] if is_mode(mode) => Ip::automatic(mode, filled(interface), mtu),
            [_, mode, ..] if is_mode(mode) => Err("INTERFACE:dhcp[:MTU]"),
            _ => StaticIp::parse(&fields),
        }
    }

    fn automatic(mode: &str, interface: Option<String>, mtu: &str) -> Result<Ip, &'static str> {
        let mtu = optional(mtu, "an MTU in bytes")?;
        match mode {
            "dhcp" | "on" | "any" | "single-dhcp" => Ok(Ip::Dhcp { interface, mtu }),
            "off" | "none" => Ok(Ip::Off { interface }),
            _ => Err("dhcp, off or ADDRESS:SERVER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:none"),
        }
    }
}

fn is_mode(word: &str) -> bool {
    const MODES: [&str; 12] = [
        "dhcp",
        "on",
        "any",
        "single-dhcp",
        "off",
        "none",
        "dhcp6",
        "auto6",
        "either6",
        "link6",
        "link-local",
        "ibft",
    ];
    MODES.contains(&word)
}

impl StaticIp {
    fn parse(fields: &[&str]) -> Result<Ip, &'static str> {
        let field = |at: usize| fields.get(at).copied().unwrap_or("");
        if fields.len() > 9 {
            return Err("at most nine fields");
        }
        if field(0).is_empty() {
            // No address: the rest only names an interface and how it is configured.
            let mode = Some(field(6)).filter(|mode| !mode.is_empty());
            return Ip::automatic(mode.unwrap_or("dhcp"), filled(field(5)), field(7));
        }
        if !matches!(field(6), "" | "off" | "none" | "static") {
            return Err("none after the interface of a fixed address");
        }
        let (mtu, dns) = match (field(7).parse(), field(8)) {
            (Ok(mtu), "") => (Some(mtu), Vec::new()),
            _ => (None, dns(field(7), field(8))?),
        };
        Ok(Ip::Static(StaticIp {
            address: ipv4(field(0))?,
            server: optional(field(1), "an IPv4 address of the server")?,
            gateway: optional(field(2), "an IPv4 address of the gateway")?,
            prefix: prefix(field(3))?,
            hostname: filled(field(4)),
            interface: filled(field(5)),
            mtu,
            dns,
        }))
    }
}

/// As `ip=` takes it.
impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, interface, mtu) = match self {
            Ip::Static(fixed) => return fixed.fmt(f),
            Ip::Dhcp { interface, mtu } => ("dhcp", interface, *mtu),
            Ip::Off { interface } => ("off", interface, None),
        };
        match (interface, mtu) {
            (None, None) => f.write_str(mode),
            (Some(interface), None) => write!(f, "{interface}:{mode}"),
            (interface, Some(mtu)) => write!(f, "{}:{mode}:{mtu}", text(interface)),
        }
    }
}

impl fmt::Display for StaticIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = |it: &Option<Ipv4Addr>| it.map_or(String::new(), |it| it.to_string());
        write!(
            f,
            "{}:{}:{}:{}:{}:{}:none",
            self.address,
            address(&self.server),
            address(&self.gateway),
            netmask(self.prefix),
            text(&self.hostname),
            text(&self.interface),
        )?;
        match self.mtu {
            Some(mtu) => write!(f, ":{mtu}"),
            None => self
                .dns
                .iter()
                .try_for_each(|server| write!(f, ":{server}")),
        }
    }
}

impl Vlan {
    fn parse(value: &str) -> Result<Vlan, &'static str> {
        const EXPECTED: &str =
            "NAME:INTERFACE, with a name such as vlan5 or eth0.5 that ends in 1 to 4094";
        let (name, parent) = value.split_once(':').ok_or(EXPECTED)?;
        let digits = name.len() - name.trim_end_matches(|it: char| it.is_ascii_digit()).len();
        let id = name[name.len() - digits..].parse().map_err(|_| EXPECTED)?;
        if !is_interface(name) || !is_interface(parent) || !(1..=4094).contains(&id) {
            return Err(EXPECTED);
        }
        Ok(Vlan {
            name: name.to_owned(),
            id,
            parent: parent.to_owned(),
        })
    }
}

/// As `vlan=` takes it.
impl fmt::Display for Vlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.parent)
    }
}

impl Bond {
    fn parse(value: &str) -> Result<Bond, &'static str> {
        const EXPECTED: &str = "NAME:INTERFACE,INTERFACE:mode=MODE,OPTION=VALUE:MTU";
        let mut fields = value.splitn(4, ':');
        let mut field = |default: &'static str| {
            let given = fields.next().filter(|text| !text.is_empty());
            given.unwrap_or(default).to_owned()
        };
        let (name, members) = (field("bond0"), field("eth0,eth1"));
        let (options, mtu) = (field("mode=balance-rr"), field(""));
        let members: Vec<String> = members.split(',').map(str::to_owned).collect();
        let option = |text: &str| {
            let (name, value) = text.split_once('=')?;
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            (!name.is_empty() && name.bytes().all(is_plain))
                .then(|| (name.to_owned(), value.to_owned()))
        };
        let options: Option<Vec<_>> = options.split(',').map(option).collect();
        if !is_interface(&name) || !members.iter().all(|it| is_interface(it)) {
            return Err(EXPECTED);
        }
        Ok(Bond {
            name,
            members,
            options: options.ok_or(EXPECTED)?,
            mtu: optional(&mtu, "an MTU in bytes")?,
        })
    }
}

/// As `bond=` takes it.
impl fmt::Display for Bond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.name, self.members.join(","))?;
        for (at, (name, value)) in self.options.iter().enumerate() {
            write!(f, "{}{name}={value}", if at == 0 { "" } else { "," })?;
        }
        match self.mtu {
            Some(mtu) => write!(f, ":{mtu}"),
            None => Ok(()),
        }
    }
}

/// Whether an interface can have this name (net/core/dev.c, `dev_valid_name`); and no `,`, which a
/// list of them is written with.
fn is_interface(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b',' | b'"');
    (1..=15).contains(&name.len()) && name.bytes().all(fine) && !matches!(name, "." | "..")
}

fn text(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("")
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn parsed<T: std::str::FromStr>(value: &str, expected: &'static str) -> Result<T, &'static str> {
    value.parse().map_err(|_| expected)
}

fn optional<T: std::str::FromStr>(
    value: &str,
    expected: &'static str,
) -> Result<Option<T>, &'static str> {
    match value {
        "" => Ok(None),
        value => parsed(value, expected).map(Some),
    }
}

fn ipv4(value: &str) -> Result<Ipv4Addr, &'static str> {
    parsed(value, "an IPv4 address")
}

fn dns(first: &str, second: &str) -> Result<Vec<Ipv4Addr>, &'static str> {
    let servers = [first, second].into_iter().filter(|it| !it.is_empty());
    servers.map(ipv4).collect()
}

/// `255.255.255.0` or `24`; where nothing stands, a single host's network.
fn prefix(value: &str) -> Result<u8, &'static str> {
    const EXPECTED: &str = "a netmask such as 255.255.255.0";
    if let Ok(length) = value.parse() {
        return if length <= 32 {
            Ok(length)
        } else {
            Err(EXPECTED)
        };
    }
    if value.is_empty() {
        return Ok(32);
    }
    let mask = u32::from(value.parse::<Ipv4Addr>().map_err(|_| EXPECTED)?);
    let length = mask.leading_ones() as u8;
    if mask == u32::from(netmask(length)) {
        Ok(length)
    } else {
        Err(EXPECTED)
    }
}

/// The netmask of a prefix length from 0 to 32.
pub fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(
        u32::MAX
            .checked_shl(32 - u32::from(prefix.min(32)))
            .unwrap_or(0),
    )
}

/// PXELINUX's form has the hardware type before the address; plain addresses are seen too.
fn bootif(value: &str) -> Result<Mac, &'static str> {
    let address = match value.strip_prefix("01-") {
        Some(address) if value.len() == 20 => address,
        _ => value
            .strip_prefix("01:")
            .filter(|_| value.len() == 20)
            .unwrap_or(value),
    };
    parsed(address, "an Ethernet address such as 01-68-05-ca-93-95-a5")
}

fn shortened(value: &str) -> String {
    value.chars().take(64).collect()
}

#[derive(Default)]
struct Renderer {
    words: Vec<String>,
}

impl Renderer {
    fn put(&mut self, name: &str, value: &str) -> Result<(), CmdlineError> {
        self.word(&Param::new(name, value))
    }

    /// A word, if the kernel reads the same word back.
    fn word(&mut self, param: &Param) -> Result<(), CmdlineError> {
        let word = param.to_string();
        if !can_stand(&word) || param.name == "--" || split(&word) != [param.clone()] {
            return Err(CmdlineError::Inexpressible {
                name: shortened(&param.name),
                got: shortened(param.value.as_deref().unwrap_or("")),
            });
        }
        self.words.push(word);
        Ok(())
    }

    fn init_args(&mut self, args: &[String]) -> Result<(), CmdlineError> {
        if args.is_empty() {
            return Ok(());
        }
        self.words.push("--".to_owned());
        for arg in args {
            let word = match arg.contains(is_space) {
                true => format!("\"{arg}\""),
                false => arg.clone(),
            };
            let mut read_back = split(&word).into_iter().map(Param::into_text);
            if !can_stand(&word)
                || read_back.next().as_ref() != Some(arg)
                || read_back.next().is_some()
            {
                return Err(CmdlineError::Inexpressible {
                    name: "--".to_owned(),
                    got: shortened(arg),
                });
            }
            self.words.push(word);
        }
        Ok(())
    }

    fn finish(self) -> Result<String, CmdlineError> {
        let line = self.words.join(" ");
        match line.len() {
            0..=MAX_CMDLINE_BYTES => Ok(line),
            length => Err(CmdlineError::TooLong(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(line: &str) -> BootArgs {
        let (args, errors) = BootArgs::parse(line);
        assert_eq!(errors, vec![], "in {line}");
        args
    }

    fn round_trip(line: &str) -> BootArgs {
        let args = clean(line);
        assert_eq!(clean(&args.render().unwrap()), args);
        args
    }

    fn first_error(line: &str) -> String {
        let (_, errors) = BootArgs::parse(line);
        errors.first().map_or(String::new(), ToString::to_string)
    }

    #[test]
    fn the_recipe_s_own_line() {
        let args = round_trip(
            "BOOT_IMAGE=rocky9-nfs.krl splash=none \
             root=nfs:192.168.2.2:/export/root:ro,vers=4.2,sec=sys,nolock net.ifnames=0 selinux=0",
        );
        let root = args.root.clone().unwrap();
        assert_eq!(root.server, Some(Ipv4Addr::new(192, 168, 2, 2)));
        assert_eq!(root.path, "/export/root");
        assert_eq!(root.options, ["ro", "vers=4.2", "sec=sys", "nolock"]);
        assert_eq!(root.option("vers"), Some("4.2"));
        assert!(args.kernel_ifnames() && args.slate.is_none() && args.ip.is_empty());
        assert_eq!(args.param("selinux"), Some("0"));
    }

    #[test]
    fn the_daemon_s_line() {
        let digest = "ab".repeat(32);
        let args = round_trip(&format!(
            "root=nfs:10.77.0.1:/images/{digest}:ro,vers=4.2,nocto,port=20490 \
             BOOTIF=01-68-05-ca-93-95-a5 ip=dhcp slate.server=10.77.0.1:80 \
             slate.boot=0123456789abcdef slate.token=000102030405060708090a0b0c0d0e0f \
             nfs.nfs4_unique_id=slate-6805ca9395a5 console=ttyS0"
        ));
        let slate = args.slate.unwrap();
        assert_eq!(slate.server.to_string(), "10.77.0.1:80");
        assert_eq!(args.bootif, Some(Mac([0x68, 5, 0xca, 0x93, 0x95, 0xa5])));
        assert_eq!(
            args.module_params("nfs"),
            "nfs4_unique_id=slate-6805ca9395a5"
        );
    }

    #[test]
    fn other_spellings_of_root() {
        let dev = round_trip("root=/dev/nfs nfsroot=10.0.0.1:/srv/root,vers=3,nolock");
        assert_eq!(dev.root.unwrap().options, ["vers=3", "nolock"]);
        let after = clean("nfsroot=/srv/root root=/dev/nfs");
        assert_eq!(after.root.unwrap().server, None);
        let v4 = round_trip("root=nfs4:/srv/root").root.unwrap();
        assert!(v4.only_v4 && v4.server.is_none() && v4.options.is_empty());
        assert!(first_error("root=/dev/sda1").starts_with("root: expected nfs:"));
        assert!(first_error("root=nfs:server:/x").contains("IPv4"));
        assert!(first_error("root=nfs:10.0.0.1:x").contains("absolute"));
        assert!(first_error("root=/dev/nfs").contains("nfsroot="));
    }

    #[test]
    fn ip_in_all_its_forms() {
        let ip = |value: &str| round_trip(&format!("ip={value}")).ip.remove(0);
        let dhcp = |interface: Option<&str>, mtu| Ip::Dhcp {
            interface: interface.map(str::to_owned),
            mtu,
        };
        assert_eq!(ip("dhcp"), dhcp(None, None));
        assert_eq!(ip("eth0:dhcp"), dhcp(Some("eth0"), None));
        assert_eq!(ip("eth0:on:9000"), dhcp(Some("eth0"), Some(9000)));
        assert_eq!(ip(":::::eth1:dhcp"), dhcp(Some("eth1"), None));
        assert_eq!(ip("off"), Ip::Off { interface: None });
        let Ip::Static(fixed) = ip("10.0.0.5::10.0.0.1:255.255.255.0:node5:eth0:none:10.0.0.2")
        else {
            panic!("not static");
        };
        assert_eq!(fixed.address, Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!((fixed.prefix, fixed.mtu), (24, None));
        assert_eq!(fixed.gateway, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(fixed.hostname.as_deref(), Some("node5"));
        assert_eq!(fixed.dns, [Ipv4Addr::new(10, 0, 0, 2)]);
        assert!(
            matches!(ip("10.0.0.5:::16::eth0:none:9000"), Ip::Static(it) if it.mtu == Some(9000))
        );
        for wrong in [
            "dhcp6",
            "10.0.0.5:::255.0.255.0:::none",
            "1.2.3:::24",
            "a:b:c",
        ] {
            assert!(first_error(&format!("ip={wrong}")).starts_with("ip: expected"));
        }
    }

    #[test]
    fn quoting_is_the_kernel_s() {
        let words = split(" a  b=\"c d\"\t\"e=f g\" h=i\"j k\"l = x==");
        let shown: Vec<_> = words
            .iter()
            .map(|word| (word.name.as_str(), word.value.as_deref()))
            .collect();
        assert_eq!(
            shown,
            [
                ("a", None),
                ("b", Some("c d")),
                ("e", Some("f g")),
                ("h", Some("i\"j k\"l")),
                ("=", None),
                ("x", Some("=")),
            ]
        );
    }

    #[test]
    fn init_and_its_arguments() {
        let args = round_trip("quiet init=/bin/sh -- -c \"echo hello\"");
        assert_eq!(args.init.as_deref(), Some("/bin/sh"));
        assert_eq!(args.init_args, ["-c", "echo hello"]);
    }

    #[test]
    fn what_cannot_be_quoted_is_refused() {
        let render = |param| {
            let args = BootArgs {
                extra: vec![param],
                ..BootArgs::default()
            };
            args.render()
        };
        assert_eq!(render(Param::new("a", "b c")).unwrap(), "a=\"b c\"");
        for (name, value) in [
            ("a", "\""),
            ("a", "x\ny"),
            ("a b", "c"),
            ("", "x"),
            ("a=b", "c"),
        ] {
            assert!(
                render(Param::new(name, value)).is_err(),
                "{name:?}={value:?}"
            );
        }
        assert!(render(Param::flag("--")).is_err());
        assert!(render(Param::flag("a b")).is_err());
        assert!(render(Param::flag("a\"b")).is_err());
        assert_eq!(render(Param::flag("a\"b c\"")).unwrap(), "a\"b c\"");
        assert!(render(Param::new("a", &"x".repeat(3000))).is_err());
        let root = NfsRoot {
            only_v4: false,
            server: None,
            path: "/a:b".into(),
            options: vec![],
        };
        let args = BootArgs {
            root: Some(root),
            ..BootArgs::default()
        };
        assert!(args.render().is_err());
    }

    #[test]
    fn half_a_slate_is_reported_and_tokens_are_not_shown() {
        let (args, errors) = BootArgs::parse("slate.server=10.0.0.1:80 slate.token=zz");
        assert!(args.slate.is_none());
        assert_eq!(errors.len(), 2);
        assert!(!format!("{errors:?}").contains("zz"));
    }

    #[test]
    fn modules() {
        let args = clean("modprobe.blacklist=r8169,be2net rd.driver.blacklist=virtio-net");
        assert!(args.is_blacklisted("be2net") && args.is_blacklisted("virtio_net"));
        assert!(!args.is_blacklisted("e1000e"));
        let args = clean("usb-storage.quirks=a:b usb_storage.x");
        assert_eq!(args.module_params("usb_storage"), "quirks=a:b x");
    }

    #[test]
    fn interfaces_over_others() {
        let args = clean(
            "vlan=vlan0005:eth0 vlan=bond0.7:bond0 bond=bond0:eth0,eth1:mode=802.3ad,miimon=100:9000",
        );
        let ids: Vec<_> = args.vlans.iter().map(|it| (it.id, &*it.parent)).collect();
        assert_eq!(ids, [(5, "eth0"), (7, "bond0")]);
        let bond = &args.bonds[0];
        assert_eq!((&*bond.name, bond.mtu), ("bond0", Some(9000)));
        assert_eq!(bond.members, ["eth0", "eth1"]);
        assert_eq!(bond.options[1], ("miimon".to_owned(), "100".to_owned()));
        let defaults = clean("bond=");
        assert_eq!(
            defaults.bonds[0].to_string(),
            "bond0:eth0,eth1:mode=balance-rr"
        );
        for args in [args, defaults] {
            assert_eq!(BootArgs::parse(&args.render().unwrap()), (args, vec![]));
        }
        for wrong in [
            "vlan=vlan5",
            "vlan=vlan:eth0",
            "vlan=vlan4095:eth0",
            "vlan=vlan0:eth0",
            "vlan=a/5:eth0",
            "vlan=vlan5:a,b",
            "bond=bond0:eth0,:mode=1",
            "bond=bond0:eth0:../x=1",
            "bond=bond0:eth0:mode",
            "bond=bond0:eth0:mode=1:big",
            "bond=a_name_too_long_for_it:eth0",
        ] {
            let (args, errors) = BootArgs::parse(wrong);
            assert_eq!((args.vlans.len(), args.bonds.len()), (0, 0), "{wrong}");
            assert_eq!(errors.len(), 1, "{wrong}");
        }
    }

    #[test]
    fn breaks_of_dracut_and_our_stages() {
        let breaks = |line: &str| {
            let (places, errors) = clean(line).breaks();
            (places.into_iter().collect::<Vec<_>>(), errors.len())
        };
        assert_eq!(breaks("quiet"), (vec![], 0));
        assert_eq!(breaks("rd.break"), (vec![Break::SwitchRoot], 0));
        let line = "rd.break=pre-pivot rd.break=cmdline rd.break=initqueue rd.break=pre-mount";
        let all = [Break::Init, Break::Network, Break::Mount];
        assert_eq!(breaks(line), (all.to_vec(), 0));
        for stage in ["init", "network", "mount", "switch-root"] {
            let (places, errors) = clean(&format!("rd.break={stage}")).breaks();
            let stages: Vec<&str> = places.iter().map(|it| it.stage().name()).collect();
            assert_eq!((stages, errors), (vec![stage], vec![]));
        }
        let (places, errors) = clean("rd.break=premount").breaks();
        assert!(places.is_empty());
        assert!(errors[0].to_string().contains("pre-mount"), "{errors:?}");
    }
}
