//! ISC DHCP's `dhcpd.conf` (dhcpd.conf(5), dhcp-options(5)): statements that end with a semicolon or
//! have a block. Parameters are inherited from the blocks around, wherever in them they stand.

use std::net::Ipv4Addr;

use crate::{
    Candidate, Found, ImportError, MAX_DEPTH, Network, Told, lease_option, mac, prefix_of,
};

/// A statement, as far as it is one by its form.
struct Statement {
    line: usize,
    words: Vec<String>,
    block: Option<Vec<Statement>>,
}

impl Statement {
    fn text(&self) -> String {
        self.words.join(" ")
    }

    fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    fn address(&self, index: usize) -> Option<Ipv4Addr> {
        self.word(index).parse().ok()
    }
}

/// Reads all of it.
pub(crate) fn read(text: &str, found: &mut Found) -> Result<(), ImportError> {
    let mut tokens = Tokens {
        rest: text,
        line: 1,
    };
    let statements = block(&mut tokens, None, 0)?;
    descend(&statements, &Scope::default(), found)
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    End,
}

struct Tokens<'a> {
    rest: &'a str,
    line: usize,
}

impl Tokens<'_> {
    /// The next token and its line.
    fn next(&mut self) -> Result<Option<(usize, Token)>, ImportError> {
        self.skip();
        let line = self.line;
        let Some(first) = self.rest.chars().next() else {
            return Ok(None);
        };
        let token = match first {
            '{' => Token::Open,
            '}' => Token::Close,
            ';' => Token::End,
            '"' => return self.quoted().map(|word| Some((line, Token::Word(word)))),
            _ => {
                let is_over =
                    |it: char| it.is_whitespace() || matches!(it, '{' | '}' | ';' | '"' | '#');
                let end = self.rest.find(is_over).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                self.rest = rest;
                return Ok(Some((line, Token::Word(word.to_owned()))));
            }
        };
        self.rest = &self.rest[1..];
        Ok(Some((line, token)))
    }

    /// Space and comments.
    fn skip(&mut self) {
        loop {
            let trimmed = self.rest.trim_start();
            self.count(self.rest.len() - trimmed.len());
            if !self.rest.starts_with('#') {
                return;
            }
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.count(end);
        }
    }

    /// Takes bytes, and counts the lines in them.
    fn count(&mut self, bytes: usize) {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count();
        self.rest = rest;
    }

    fn quoted(&mut self) -> Result<String, ImportError> {
        let line = self.line;
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find(|(_, it)| {
            let ends = *it == '"' && !escaped;
            escaped = *it == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else {
            let cause = "expected a closing quote, got the end of the file".to_owned();
            return Err(ImportError::Syntax { line, cause });
        };
        let word = self.rest[1..end].to_owned();
        self.count(end + 1);
        Ok(word)
    }
}

/// The statements up to the block's end, or, outside of blocks, the file's. `opened`: the line where
/// the block begins.
fn block(
    tokens: &mut Tokens<'_>,
    opened: Option<usize>,
    depth: usize,
) -> Result<Vec<Statement>, ImportError> {
    let syntax = |line: usize, cause: &str| ImportError::Syntax {
        line,
        cause: cause.to_owned(),
    };
    let mut statements = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut begun = 0;
    while let Some((line, token)) = tokens.next()? {
        if words.is_empty() {
            begun = line;
        }
        match token {
            Token::Word(word) => words.push(word),
            Token::End if words.is_empty() => {}
            Token::End => statements.push(Statement {
                line: begun,
                words: std::mem::take(&mut words),
                block: None,
            }),
            Token::Open if depth >= MAX_DEPTH => {
                return Err(syntax(line, "expected fewer blocks within blocks"));
            }
            Token::Open => statements.push(Statement {
                line: begun,
                words: std::mem::take(&mut words),
                block: Some(block(tokens, Some(line), depth + 1)?),
            }),
            Token::Close if opened.is_none() => {
                return Err(syntax(line, "expected a statement, got a closing brace"));
            }
            Token::Close if words.is_empty() => return Ok(statements),
            Token::Close => return Err(syntax(begun, "expected a semicolon behind the statement")),
        }
    }
    match opened {
        _ if !words.is_empty() => Err(syntax(begun, "expected a semicolon behind the statement")),
        Some(line) => Err(syntax(line, "expected a closing brace for this block")),
        None => Ok(statements),
    }
}

/// Parameters that count in a block.
#[derive(Clone, Default)]
struct Scope {
    next_server: Option<Ipv4Addr>,
    lease_seconds: Option<u32>,
    told: Told,
    /// Why nothing in here counts.
    dead: Option<&'static str>,
    /// The network, by its place among those found.
    network: Option<usize>,
}

fn descend(statements: &[Statement], outer: &Scope, found: &mut Found) -> Result<(), ImportError> {
    let mut scope = outer.clone();
    for statement in statements.iter().filter(|it| it.block.is_none()) {
        parameter(statement, &mut scope, found)?;
    }
    fill_network(&scope, found);
    for statement in statements {
        if let Some(inner) = &statement.block {
            enter(statement, inner, &scope, found)?;
        }
    }
    Ok(())
}

/// What was said around or in a network and not nearer to it.
fn fill_network(scope: &Scope, found: &mut Found) {
    let network = scope
        .network
        .and_then(|it| found.imported.networks.get_mut(it));
    if let Some(network) = network {
        network.lease_seconds = scope.lease_seconds.or(network.lease_seconds);
        network.next_server = scope.next_server.or(network.next_server);
        network.told = scope.told.or(&network.told);
    }
}

fn enter(
    statement: &Statement,
    inner: &[Statement],
    scope: &Scope,
    found: &mut Found,
) -> Result<(), ImportError> {
    let text = statement.text();
    let mut scope = scope.clone();
    if let Some(why) = scope.dead {
        found.left_out(statement.line, &text, why);
        return descend(inner, &scope, found);
    }
    match statement.word(0) {
        "subnet" => subnet(statement, &mut scope, found)?,
        "host" => return host(statement, inner, found),
        // They hold others together; what is in them counts.
        "group" | "shared-network" | "pool" => {
            found.became(statement.line, &text, "what is in it counts");
        }
        "if" | "elsif" | "else" | "switch" | "case" | "default" => {
            let why = "conditions are for boot files, which slate chooses by the firmware";
            found.left_out(statement.line, &text, why);
            scope.dead = Some("it stands in a condition");
        }
        "class" | "subclass" => {
            let why = "slate has no classes: every machine becomes a node";
            found.left_out(statement.line, &text, why);
            scope.dead = Some("it stands in a class");
        }
        "subnet6" => {
            found.left_out(statement.line, &text, "slate serves IPv4 only");
            scope.dead = Some("slate serves IPv4 only");
        }
        _ => {
            found.left_out(statement.line, &text, "slate has nothing like it");
            scope.dead = Some("what it stands in was left out");
        }
    }
    descend(inner, &scope, found)
}

fn subnet(statement: &Statement, scope: &mut Scope, found: &mut Found) -> Result<(), ImportError> {
    let text = statement.text();
    let prefix = statement.address(3).and_then(prefix_of);
    let (Some(network), Some(prefix)) = (statement.address(1), prefix) else {
        return Err(ImportError::Syntax {
            line: statement.line,
            cause: format!("expected subnet ADDRESS netmask MASK, got {text}"),
        });
    };
    found.became(
        statement.line,
        &text,
        format!("a network of its own: {network}/{prefix}"),
    );
    scope.network = Some(found.imported.networks.len());
    found.imported.networks.push(Network {
        network: Some((network, prefix)),
        ..Network::default()
    });
    Ok(())
}

fn host(statement: &Statement, inner: &[Statement], found: &mut Found) -> Result<(), ImportError> {
    let mut candidate = Candidate {
        name: statement.word(1).to_owned(),
        ..Candidate::default()
    };
    for statement in inner {
        host_parameter(statement, &mut candidate, found)?;
    }
    found.node(statement.line, &statement.text(), candidate);
    Ok(())
}

fn host_parameter(
    statement: &Statement,
    candidate: &mut Candidate,
    found: &mut Found,
) -> Result<(), ImportError> {
    let (line, text) = (statement.line, statement.text());
    match (statement.word(0), statement.word(1)) {
        ("hardware", "ethernet") => {
            candidate.mac = mac(statement.word(2));
            match candidate.mac {
                Some(mac) => found.became(line, &text, format!("mac {mac}")),
                None => found.left_out(line, &text, "expected six hexadecimal bytes"),
            }
        }
        ("hardware", _) => found.left_out(line, &text, "slate knows Ethernet only"),
        ("fixed-address", _) => fixed_address(statement, candidate, found),
        ("option", "host-name") => {
            candidate.name = statement.word(2).to_owned();
            found.became(line, &text, "the node's name");
        }
        ("include", _) => return Err(ImportError::Include { line, what: text }),
        _ => match statement.block.as_deref() {
            Some(block) => {
                found.left_out(
                    line,
                    &text,
                    "of a host only its addresses and its name count",
                );
                leave_out(block, found)?;
            }
            None => found.left_out(line, &text, why_not(statement)),
        },
    }
    Ok(())
}

/// All statements of a block in which nothing counts.
fn leave_out(statements: &[Statement], found: &mut Found) -> Result<(), ImportError> {
    for statement in statements {
        let (line, text) = (statement.line, statement.text());
        if statement.word(0) == "include" {
            return Err(ImportError::Include { line, what: text });
        }
        found.left_out(line, &text, "what it stands in was left out");
        leave_out(statement.block.as_deref().unwrap_or_default(), found)?;
    }
    Ok(())
}

fn fixed_address(statement: &Statement, candidate: &mut Candidate, found: &mut Found) {
    let (line, text) = (statement.line, statement.text());
    let words = statement.words.iter().skip(1);
    let parts = words
        .flat_map(|word| word.split(','))
        .filter(|it| !it.is_empty());
    let parts: Vec<&str> = parts.collect();
    let first: Option<Ipv4Addr> = parts.first().and_then(|it| it.parse().ok());
    match first {
        None => found.left_out(line, &text, "expected an address: names are not looked up"),
        Some(address) => {
            candidate.address = Some(address);
            found.became(line, &text, format!("address {address}"));
            if parts.len() > 1 {
                found.left_out(line, &parts[1..].join(" "), "a node has one address");
            }
        }
    }
}

/// A statement without a block, outside of hosts.
fn parameter(
    statement: &Statement,
    scope: &mut Scope,
    found: &mut Found,
) -> Result<(), ImportError> {
    let (line, text) = (statement.line, statement.text());
    if statement.word(0) == "include" {
        return Err(ImportError::Include { line, what: text });
    }
    if let Some(why) = scope.dead {
        found.left_out(line, &text, why);
        return Ok(());
    }
    let network = scope
        .network
        .and_then(|it| found.imported.networks.get_mut(it));
    match (statement.word(0), network) {
        ("range", _) => range(statement, scope, found),
        ("interface", Some(network)) => {
            network.interface = Some(statement.word(1).to_owned());
            found.became(line, &text, format!("--interface {}", statement.word(1)));
        }
        ("next-server", _) => match statement.address(1) {
            Some(address) => {
                scope.next_server = Some(address);
                let what = format!("{address} is the server's own address: of its --interface");
                found.became(line, &text, what);
            }
            None => found.left_out(line, &text, "expected an address: names are not looked up"),
        },
        ("default-lease-time", _) => {
            match statement.word(1).parse().map(|it| (it, lease_option(it))) {
                Ok((seconds, Ok(option))) => {
                    scope.lease_seconds = Some(seconds);
                    found.became(line, &text, option);
                }
                Ok((_, Err(why))) => found.left_out(line, &text, why),
                Err(_) => found.left_out(line, &text, "expected a number of seconds"),
            }
        }
        ("option", _) if option_code(statement.word(1)).is_some() => {
            let code = option_code(statement.word(1)).unwrap_or_default();
            let values = statement.words.iter().skip(2).flat_map(|it| it.split(','));
            let values: Vec<&str> = values.map(str::trim).filter(|it| !it.is_empty()).collect();
            match scope.told.take(code, &values) {
                Ok(this) => found.became(line, &text, this),
                Err(why) => found.left_out(line, &text, why),
            }
        }
        ("authoritative", _) => found.became(line, &text, "--dhcp authoritative"),
        _ => found.left_out(line, &text, why_not(statement)),
    }
    Ok(())
}

/// The code of an option that networks have here, by its name (dhcp-options(5)).
fn option_code(name: &str) -> Option<u8> {
    match name {
        "routers" => Some(3),
        "domain-name-servers" => Some(6),
        "domain-name" => Some(15),
        "ntp-servers" => Some(42),
        _ => None,
    }
}

fn range(statement: &Statement, scope: &Scope, found: &mut Found) {
    let (line, text) = (statement.line, statement.text());
    let at = 1 + usize::from(statement.word(1) == "dynamic-bootp");
    let first = statement.address(at);
    let last = match statement.word(at + 1) {
        "" => first,
        _ => statement.address(at + 1),
    };
    let (Some(first), Some(last)) = (first, last) else {
        return found.left_out(line, &text, "expected its first and its last address");
    };
    // A pool of a shared network may stand beside the subnet that it is for.
    let networks = &mut found.imported.networks;
    let holds = networks.iter().position(|it| it.contains(first));
    let Some(network) = holds.or(scope.network).and_then(|it| networks.get_mut(it)) else {
        return found.left_out(line, &text, "it stands in no subnet");
    };
    match network.range {
        Some((first, last)) => {
            let why = format!("--range takes one range: {first}-{last}");
            found.left_out(line, &text, why);
        }
        None if first > last => {
            found.left_out(line, &text, "expected its first and its last address");
        }
        None => {
            network.range = Some((first, last));
            found.became(line, &text, format!("--range {first}-{last}"));
        }
    }
}

/// Why a statement is left out.
fn why_not(statement: &Statement) -> &'static str {
    match (statement.word(0), statement.word(1)) {
        ("filename", _) => "slate chooses the boot file by the firmware",
        ("max-lease-time" | "min-lease-time", _) => {
            "a lease is as long as --lease says, whatever a machine asks for; nodes have theirs for ever"
        }
        ("option", "space") => "slate speaks PXE by itself",
        ("option", _) if statement.words.iter().any(|it| it == "code") => {
            "slate knows the options that it speaks"
        }
        ("option", "subnet-mask" | "broadcast-address") => "slate has it from its interface",
        ("option", _) => "slate speaks its own options only",
        ("allow" | "deny" | "ignore", "client-updates") => "slate updates no DNS",
        ("allow" | "deny" | "ignore", _) => {
            "slate answers every machine of the network, or with --dhcp proxy nodes only"
        }
        (
            "ddns-update-style"
            | "update-static-leases"
            | "ddns-updates"
            | "ddns-domainname"
            | "ddns-rev-domainname",
            _,
        ) => "slate updates no DNS",
        ("next-server", _) => "nodes boot from this server",
        ("interface", _) => "it stands in no subnet",
        ("server-name" | "server-identifier", _) => "slate says its own address",
        _ => "slate has nothing like it",
    }
}

#[cfg(test)]
mod tests {
    use wire::mac::Mac;

    use super::*;
    use crate::{Fate, Imported, Kind, Node, import};

    /// The form of a site that boots three machines from a shared NFS root: parameters before and
    /// in the subnet, a condition, hosts in the pool.
    const SITE: &str = r#"allow booting;
allow bootp;
ddns-update-style none;
default-lease-time 31556952; # one year
max-lease-time 31556952; # else it ends
ignore client-updates;
update-static-leases on;

option space pxelinux;
option pxelinux.magic code 208 = string;
option architecture-type code 93 = unsigned integer 16;

subnet 192.168.2.0 netmask 255.255.255.0 {
        interface ens19;

        option subnet-mask 255.255.255.0;

        next-server 192.168.2.2;

        if option architecture-type = 00:07 {
                filename "shim.efi";
        } else {
                filename "pxelinux.0";
        }

        pool {
                range dynamic-bootp 192.168.2.20 192.168.2.254;

                host node1 {
                        hardware ethernet 68:05:CA:93:95:A5;
                        fixed-address 192.168.2.5;
                }

                host node2 {
                        hardware ethernet 68:05:CA:93:95:BE;
                        fixed-address 192.168.2.6;
                }

                host node3 {
                        hardware ethernet 68:05:CA:93:95:A1;
                        fixed-address 192.168.2.7;
                }
        }
}
"#;

    fn imported(text: &str) -> Imported {
        import(Kind::Dhcpd, text).unwrap()
    }

    #[test]
    fn a_whole_site_is_imported() {
        let site = imported(SITE);
        let node = |number: u8, last: u8, address: u8| Node {
            name: format!("node{number}"),
            mac: Mac([0x68, 5, 0xca, 0x93, 0x95, last]),
            address: Some([192, 168, 2, address].into()),
            image: None,
            kernel_args: String::new(),
        };
        assert_eq!(
            site.nodes,
            [node(1, 0xa5, 5), node(2, 0xbe, 6), node(3, 0xa1, 7)]
        );
        let network = Network {
            interface: Some("ens19".into()),
            network: Some(([192, 168, 2, 0].into(), 24)),
            range: Some(([192, 168, 2, 20].into(), [192, 168, 2, 254].into())),
            lease_seconds: Some(31_556_952),
            next_server: Some([192, 168, 2, 2].into()),
            is_proxy: false,
            told: Told::default(),
        };
        assert_eq!(site.networks, [network]);
    }

    #[test]
    fn every_line_of_a_site_is_accounted_for() {
        let site = imported(SITE);
        let told: Vec<usize> = site.entries.iter().map(|it| it.line).collect();
        for (number, line) in SITE.lines().enumerate() {
            let says = line.trim().trim_start_matches("} ").trim_matches('}');
            if !says.is_empty() {
                assert!(told.contains(&(number + 1)), "{}: {line}", number + 1);
            }
        }
        let mut sorted = told.clone();
        sorted.sort_unstable();
        assert_eq!(told, sorted);
    }

    fn fate(of: &Imported, what: &str) -> Fate {
        let entry = of.entries.iter().find(|it| it.what.contains(what));
        entry
            .unwrap_or_else(|| panic!("no {what} in {:#?}", of.entries))
            .fate
            .clone()
    }

    #[test]
    fn parameters_are_inherited_wherever_they_stand() {
        let site = imported(
            "subnet 10.0.0.0 netmask 255.255.0.0 { range 10.0.1.1; }\n\
             shared-network x { subnet 10.1.0.0 netmask 255.255.0.0 { default-lease-time 600; option routers 10.1.0.1; pool { range 10.1.1.1 10.1.1.9; } }\n\
             next-server 10.1.0.2; }\n\
             default-lease-time 7200;\n\
             option domain-name-servers 10.0.0.3, 10.0.0.4; option domain-name \"example.org\";\n",
        );
        let [first, second] = &site.networks[..] else {
            panic!("{site:?}");
        };
        let one = Ipv4Addr::new(10, 0, 1, 1);
        assert_eq!(
            (first.lease_seconds, first.range),
            (Some(7200), Some((one, one)))
        );
        for network in [first, second] {
            assert_eq!(
                network.told.dns,
                [[10, 0, 0, 3], [10, 0, 0, 4]].map(Ipv4Addr::from)
            );
            assert_eq!(network.told.domain.as_deref(), Some("example.org"));
        }
        assert_eq!(second.told.routers, [Ipv4Addr::new(10, 1, 0, 1)]);
        assert!(first.told.routers.is_empty());
        assert_eq!(second.lease_seconds, Some(600));
        assert_eq!(second.next_server, Some([10, 1, 0, 2].into()));
        assert_eq!(second.range.map(|it| it.1), Some([10, 1, 1, 9].into()));
    }

    #[test]
    fn hosts_in_groups_and_outside_of_subnets_are_nodes_too() {
        let site = imported(
            "group { option host-name \"no\"; host a { hardware ethernet 2:0:0:0:0:1; option host-name \"alpha.example.org\"; } }\n\
             host b { fixed-address b.example.org; hardware ethernet 02:00:00:00:00:02; filename \"x\"; }\n\
             host c { hardware token-ring 02:00:00:00:00:03; }\n\
             host d { hardware ethernet 02:00:00:00:00:04; fixed-address 10.0.0.4, 10.1.0.4; }\n\
             host e { hardware ethernet 02:00:00:00:00:04; }\n",
        );
        let names: Vec<&str> = site.nodes.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["alpha", "b", "d"]);
        assert_eq!(site.nodes[1].address, None);
        assert!(matches!(fate(&site, "host c"), Fate::LeftOut(why) if why.contains("no Ethernet")));
        assert!(
            matches!(fate(&site, "host e"), Fate::LeftOut(why) if why.contains("of d already"))
        );
        assert!(
            matches!(fate(&site, "b.example.org"), Fate::LeftOut(why) if why.contains("looked up"))
        );
    }

    #[test]
    fn what_stands_in_classes_and_conditions_does_not_count() {
        let site = imported(
            "class \"pxe\" { match if x = \"PXE;Client}\"; next-server 10.0.0.9; }\n\
             subnet 10.0.0.0 netmask 255.0.0.0 { if known { next-server 10.0.0.8; } elsif x { range 10.0.0.1; } }\n\
             failover peer \"y\" { primary; }\n\
             key k { secret \"a\\\"b\"; };\n",
        );
        assert_eq!(site.networks[0].next_server, None);
        assert_eq!(site.networks[0].range, None);
        assert!(matches!(fate(&site, "match if"), Fate::LeftOut(why) if why.contains("class")));
        assert!(matches!(fate(&site, "primary"), Fate::LeftOut(_)));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        for (text, line, cause) in [
            (
                "subnet 10.0.0.0 netmask 255.0.0.0 {\n\n",
                1,
                "closing brace",
            ),
            ("\n}\n", 2, "closing brace"),
            ("allow booting\nsubnet x {", 2, "closing brace"),
            ("allow booting\n", 1, "semicolon"),
            ("host a {\n hardware ethernet x }\n", 2, "semicolon"),
            ("\nfilename \"x;\n", 2, "closing quote"),
            (
                "subnet 10.0.0.0 netmask 255.0.255.0 { }",
                1,
                "subnet ADDRESS",
            ),
        ] {
            let Err(ImportError::Syntax {
                line: got,
                cause: said,
            }) = import(Kind::Dhcpd, text)
            else {
                panic!("accepted: {text}");
            };
            assert_eq!(got, line, "{text}: {said}");
            assert!(said.contains(cause), "{said}");
        }
        let deep = "group {".repeat(100);
        assert!(import(Kind::Dhcpd, &deep).is_err());
        for text in [
            "\ninclude \"/etc/x\";",
            "\ngroup { include \"x\"; }",
            "\nhost a { if x { include \"y\"; } }",
        ] {
            let error = import(Kind::Dhcpd, text).unwrap_err();
            assert!(
                matches!(error, ImportError::Include { line: 2, .. }),
                "{error}"
            );
            assert!(!error.hint().is_empty());
        }
    }
}
