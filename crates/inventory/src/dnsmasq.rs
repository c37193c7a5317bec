//! dnsmasq's `dnsmasq.conf` (dnsmasq(8)): an option a line, as on its command line without the
//! hyphens.

use std::net::Ipv4Addr;

use wire::mac::Mac;

use crate::{Candidate, Found, ImportError, Network, Told, lease_option, mac, prefix_of};

/// Options that name other files.
const INCLUDES: [&str; 5] = [
    "conf-file",
    "conf-dir",
    "dhcp-hostsfile",
    "dhcp-hostsdir",
    "conf-script",
];

/// Reads all of it.
pub(crate) fn read(text: &str, found: &mut Found) -> Result<(), ImportError> {
    let mut reading = Reading::default();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let line = without_comment(line).trim();
        if line.is_empty() {
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim(), value.trim());
        let is_key = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !key.bytes().all(is_key) {
            let cause = "expected an option such as dhcp-host=…".to_owned();
            return Err(ImportError::Syntax {
                line: line_number,
                cause,
            });
        }
        if INCLUDES.contains(&key) {
            return Err(ImportError::Include {
                line: line_number,
                what: crate::shown(line),
            });
        }
        reading.option(line_number, line, key, value, found);
    }
    reading.finish(found);
    Ok(())
}

/// A comment begins at a mark that is the line's first or stands behind a space; not within quotes.
fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    let mut former = ' ';
    for (at, it) in line.char_indices() {
        match it {
            '"' => quoted = !quoted,
            '#' if !quoted && former.is_whitespace() => return &line[..at],
            _ => {}
        }
        former = it;
    }
    line
}

/// What counts for every network.
#[derive(Default)]
struct Reading {
    interface: Option<String>,
    next_server: Option<Ipv4Addr>,
    told: Told,
}

impl Reading {
    fn option(&mut self, number: usize, line: &str, key: &str, value: &str, found: &mut Found) {
        match key {
            "dhcp-host" => host(number, line, value, found),
            "dhcp-range" => range(number, line, value, found),
            "dhcp-boot" => self.boot(number, line, value, found),
            "interface" => {
                let more = self.interface.is_some();
                match (more, value) {
                    (false, "lo") | (_, "") => found.left_out(number, line, "nodes are not there"),
                    (true, _) => found.left_out(number, line, "one slate up serves one interface"),
                    (false, name) => {
                        self.interface = Some(name.to_owned());
                        found.became(number, line, format!("--interface {name}"));
                    }
                }
            }
            "dhcp-option" | "dhcp-option-force" => self.told(number, line, value, found),
            "domain" => match self.told.take(15, &[value]) {
                Ok(this) => found.became(number, line, this),
                Err(why) => found.left_out(number, line, why),
            },
            "dhcp-authoritative" => found.became(number, line, "--dhcp authoritative"),
            _ => found.left_out(number, line, why_not(key)),
        }
    }

    /// `[tag:…,]FILE[,SERVERNAME[,ADDRESS]]`.
    fn boot(&mut self, number: usize, line: &str, value: &str, found: &mut Found) {
        let is_tag = |it: &&str| it.starts_with("tag:") || it.starts_with("net:");
        let parts: Vec<&str> = value
            .split(',')
            .map(str::trim)
            .filter(|it| !is_tag(it))
            .collect();
        let server = parts.get(2).and_then(|it| it.parse().ok());
        found.left_out(number, line, "slate chooses the boot file by the firmware");
        if let Some(server) = server {
            self.next_server = Some(server);
            let what = format!("{server} is the server's own address: of its --interface");
            found.became(number, line, what);
        }
    }

    /// `CODE|option:NAME,VALUE…`, for every machine.
    fn told(&mut self, number: usize, line: &str, value: &str, found: &mut Found) {
        let parts: Vec<&str> = value.split(',').map(str::trim).collect();
        let (first, values) = parts.split_first().unwrap_or((&"", &[]));
        let code = match *first {
            "option:router" => Some(3),
            "option:dns-server" => Some(6),
            "option:domain-name" => Some(15),
            "option:ntp-server" => Some(42),
            code => code.parse().ok(),
        };
        let taken = match code {
            Some(code) => self.told.take(code, values),
            None => Err("slate tells all nodes of a network the same"),
        };
        match taken {
            Ok(this) => found.became(number, line, this),
            Err(why) => found.left_out(number, line, why),
        }
    }

    fn finish(self, found: &mut Found) {
        for network in &mut found.imported.networks {
            network.interface = network.interface.take().or_else(|| self.interface.clone());
            network.next_server = self.next_server;
            network.told = self.told.clone();
        }
    }
}

/// `[HWADDR…][,id:…][,set:…][,tag:…][,ADDRESS][,NAME][,LEASE][,ignore]`, in any order.
fn host(number: usize, line: &str, value: &str, found: &mut Found) {
    let mut candidate = Candidate::default();
    let mut others: Vec<Mac> = Vec::new();
    let mut wildcard = false;
    for part in value.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        if let Some(found_mac) = mac(part.strip_prefix("1-").unwrap_or(part)) {
            match candidate.mac {
                None => candidate.mac = Some(found_mac),
                Some(_) => others.push(found_mac),
            }
        } else if let Ok(address) = part.parse() {
            candidate.address = Some(address);
        } else if part == "ignore" {
            return found.left_out(number, line, "slate cannot be told to ignore a machine");
        } else if part.contains(':') {
            wildcard |= part.contains('*');
        } else if lease_seconds(part).is_none() && !part.starts_with('[') {
            candidate.name = part.to_owned();
        }
    }
    if wildcard && candidate.mac.is_none() {
        return found.left_out(number, line, "a node has one whole Ethernet address");
    }
    if candidate.name.is_empty()
        && let Some(mac) = candidate.mac
    {
        candidate.name = format!("n{}", mac.plain());
    }
    let Some(name) = found.node(number, line, candidate) else {
        return;
    };
    for other in others {
        let why = format!("a node has one Ethernet address; {name} has another one");
        found.left_out(number, &other.to_string(), why);
    }
}

/// `[tag:…,][set:…,]START[,END|MODE][,MASK[,BROADCAST]][,LEASE]`.
fn range(number: usize, line: &str, value: &str, found: &mut Found) {
    let is_tag = |it: &&str| {
        ["tag:", "set:", "net:", "interface:"]
            .iter()
            .any(|tag| it.starts_with(tag))
    };
    let parts: Vec<&str> = value
        .split(',')
        .map(str::trim)
        .filter(|it| !is_tag(it))
        .collect();
    let addresses: Vec<Ipv4Addr> = parts.iter().filter_map(|it| it.parse().ok()).collect();
    if value.contains(':') && addresses.is_empty() {
        return found.left_out(number, line, "slate serves IPv4 only");
    }
    let is_proxy = parts.contains(&"proxy");
    let mut network = Network {
        is_proxy,
        ..Network::default()
    };
    let mask = addresses
        .iter()
        .skip(1)
        .find_map(|it| prefix_of(*it).filter(|bits| *bits >= 8));
    if let (Some(first), Some(prefix)) = (addresses.first(), mask) {
        let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        network.network = Some((Ipv4Addr::from(u32::from(*first) & !host_bits), prefix));
    }
    let mut options = Vec::new();
    if is_proxy {
        options.push("--dhcp proxy".to_owned());
    } else if let [first, last, ..] = addresses[..]
        && first <= last
        && !parts.contains(&"static")
    {
        network.range = Some((first, last));
        options.push(format!("--range {first}-{last}"));
    }
    let lease = parts.iter().skip(1).find_map(|it| lease_seconds(it));
    match lease.map(|seconds| (seconds, lease_option(seconds))) {
        Some((seconds, Ok(option))) => {
            network.lease_seconds = Some(seconds);
            options.push(option);
        }
        Some((_, Err(why))) => found.left_out(number, line, why),
        None => {}
    }
    if options.is_empty() {
        let why = if parts.contains(&"static") {
            "slate gives every machine an address, unless another server does (--dhcp proxy)"
        } else {
            "expected its first and its last address"
        };
        return found.left_out(number, line, why);
    }
    found.became(number, line, options.join(" "));
    found.imported.networks.push(network);
}

/// `45`, `30m`, `12h`, `2d`, `1w` or `infinite`.
fn lease_seconds(text: &str) -> Option<u32> {
    if text == "infinite" {
        return Some(u32::MAX);
    }
    let (number, unit) = match text.char_indices().last()? {
        (at, 's') => (&text[..at], 1),
        (at, 'm') => (&text[..at], 60),
        (at, 'h') => (&text[..at], 3600),
        (at, 'd') => (&text[..at], 86_400),
        (at, 'w') => (&text[..at], 604_800),
        _ => (text, 1),
    };
    number.parse::<u32>().ok()?.checked_mul(unit)
}

/// Why an option is left out.
fn why_not(key: &str) -> &'static str {
    match key {
        "enable-tftp" | "tftp-root" | "tftp-no-blocksize" | "tftp-secure" | "tftp-unique-root" => {
            "slate serves boot files by itself"
        }
        "pxe-service" | "pxe-prompt" | "dhcp-match" | "dhcp-vendorclass" | "dhcp-userclass"
        | "dhcp-mac" | "dhcp-broadcast" | "tag-if" => {
            "slate knows firmware by itself, and has no tags"
        }
        "dhcp-ignore" => {
            "with --dhcp proxy only nodes are answered; alone, slate answers every machine"
        }
        "local" | "address" | "server" | "host-record" | "cname" | "addn-hosts"
        | "expand-hosts" | "port" | "no-resolv" | "resolv-file" | "no-hosts" | "domain-needed"
        | "bogus-priv" | "cache-size" | "srv-host" | "ptr-record" => "slate is no DNS server",
        _ => "slate has nothing like it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fate, Imported, Kind, import};

    fn imported(text: &str) -> Imported {
        import(Kind::Dnsmasq, text).unwrap()
    }

    #[test]
    fn a_site_is_imported() {
        let site = imported(
            "# nodes\n\
             interface=enp3s0 # where they are\n\
             dhcp-range=set:lan,192.168.2.20,192.168.2.254,255.255.255.0,12h\n\
             dhcp-host=68:05:CA:93:95:A5,node1,192.168.2.5,infinite\n\
             dhcp-host=68:05:ca:93:95:be,set:gpu,192.168.2.6\n\
             dhcp-host=68:05:ca:93:95:a1,68:05:ca:93:95:a2,node3,45m\n\
             dhcp-boot=tag:efi,shim.efi,boot,192.168.2.2\n\
             enable-tftp\n\
             dhcp-option=option:router,192.168.2.1\n",
        );
        let nodes: Vec<_> = site
            .nodes
            .iter()
            .map(|it| {
                (
                    it.name.as_str(),
                    it.mac.to_string(),
                    it.address.map(|it| it.octets()[3]),
                )
            })
            .collect();
        assert_eq!(
            nodes,
            [
                ("node1", "68:05:ca:93:95:a5".to_owned(), Some(5)),
                ("n6805ca9395be", "68:05:ca:93:95:be".to_owned(), Some(6)),
                ("node3", "68:05:ca:93:95:a1".to_owned(), None),
            ]
        );
        let network = Network {
            interface: Some("enp3s0".into()),
            network: Some(([192, 168, 2, 0].into(), 24)),
            range: Some(([192, 168, 2, 20].into(), [192, 168, 2, 254].into())),
            lease_seconds: Some(43_200),
            next_server: Some([192, 168, 2, 2].into()),
            is_proxy: false,
            told: Told {
                routers: vec![[192, 168, 2, 1].into()],
                ..Told::default()
            },
        };
        assert_eq!(site.networks, [network]);
        let lines: Vec<usize> = site.entries.iter().map(|it| it.line).collect();
        assert!((2..=9).all(|line| lines.contains(&line)), "{lines:?}");
        let second_card = site
            .entries
            .iter()
            .find(|it| it.what == "68:05:ca:93:95:a2");
        assert!(matches!(second_card.unwrap().fate, Fate::LeftOut(_)));
    }

    #[test]
    fn odd_options_are_left_out_with_a_reason() {
        let site = imported(
            "dhcp-host=11:22:33:*:*:*,node1\ndhcp-host=id:01:02,node2\ndhcp-host=02:00:00:00:00:01,ignore\n\
             dhcp-range=fd00::5,fd00::9\ndhcp-range=10.0.0.0,static\nlog-dhcp\n",
        );
        assert!(site.nodes.is_empty() && site.networks.is_empty());
        assert_eq!(site.entries.len(), 6);
        assert!(
            site.entries
                .iter()
                .all(|it| matches!(&it.fate, Fate::LeftOut(why) if !why.is_empty()))
        );
    }

    #[test]
    fn a_proxy_stays_one() {
        let site = imported("dhcp-range=192.168.2.0,proxy\n");
        assert!(site.networks[0].is_proxy);
        assert_eq!(site.entries[0].fate, Fate::Became("--dhcp proxy".into()));
    }

    #[test]
    fn other_files_and_what_is_no_option_are_refused() {
        let error = import(Kind::Dnsmasq, "\nconf-dir=/etc/dnsmasq.d\n").unwrap_err();
        assert!(matches!(error, ImportError::Include { line: 2, .. }));
        let error = import(Kind::Dnsmasq, "a b {\n").unwrap_err();
        assert!(matches!(error, ImportError::Syntax { line: 1, .. }));
    }

    #[test]
    fn leases_have_units() {
        for (text, seconds) in [
            ("45", Some(45)),
            ("2d", Some(172_800)),
            ("infinite", Some(u32::MAX)),
            ("node1", None),
            ("", None),
            ("é", None),
            ("9999999w", None),
        ] {
            assert_eq!(lease_seconds(text), seconds, "{text}");
        }
    }
}
