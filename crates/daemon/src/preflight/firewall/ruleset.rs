//! The kernel's own rules, as `nft -j list ruleset` prints them: would a node's packet get through?
//!
//! A packet is walked through every base chain of hook input. Conditions that cannot be decided
//! here (counters, limits, marks, iptables extensions) are taken as not met: a rule with such a
//! condition neither lets a packet in nor keeps it out.

use serde_json::Value;

use super::{Firewall, FirewallFinding, Port, Protocol, numbers};

/// Deepest chain of jumps; the kernel allows 16.
const JUMPS_MAX: u32 = 16;

/// Ports that the ruleset drops on `interface`, with the rules that would let them in; `None` where
/// every port is let in, or the text is no ruleset.
pub fn check(json: &str, interface: &str, ports: &[Port]) -> Option<FirewallFinding> {
    let document: Value = serde_json::from_str(json).ok()?;
    let ruleset = Ruleset {
        objects: document["nftables"].as_array()?,
    };
    let mut dropped = Vec::new();
    let mut commands = Vec::new();
    for chain in ruleset.input_chains() {
        let here: Vec<Port> = ports
            .iter()
            .filter(|port| !ruleset.lets_in(chain, interface, port))
            .copied()
            .collect();
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let numbers = numbers(&here, protocol);
            if !numbers.is_empty() {
                commands.push(insert(chain, interface, protocol, &numbers));
            }
        }
        dropped.extend(
            here.into_iter()
                .filter(|port| !dropped.contains(port))
                .collect::<Vec<_>>(),
        );
    }
    (!dropped.is_empty()).then(|| FirewallFinding {
        firewall: Firewall::Nftables,
        interface: interface.to_owned(),
        dropped,
        commands,
    })
}

/// The rule that lets the ports in, before all others of the chain.
fn insert(chain: &Value, interface: &str, protocol: Protocol, ports: &[u16]) -> Vec<String> {
    let name = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let ports = ports.join(", ");
    let protocol = protocol.name();
    let rule = format!("iifname \"{interface}\" {protocol} dport {{ {ports} }} accept");
    let (family, table, chain) = (name("family"), name("table"), name("name"));
    let words = ["nft", "insert", "rule", &family, &table, &chain, &rule];
    words.map(str::to_owned).to_vec()
}

struct Ruleset<'a> {
    objects: &'a [Value],
}

/// What a rule or a chain says of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    Return,
    Continue,
}

impl<'a> Ruleset<'a> {
    fn input_chains(&self) -> impl Iterator<Item = &'a Value> {
        self.objects
            .iter()
            .filter_map(|object| object.get("chain"))
            .filter(|chain| chain["hook"] == "input" && is_ipv4(chain) && chain["type"] == "filter")
    }

    fn lets_in(&self, chain: &Value, interface: &str, port: &Port) -> bool {
        match self.walk(chain, interface, port, JUMPS_MAX) {
            Verdict::Accept => true,
            Verdict::Drop => false,
            Verdict::Return | Verdict::Continue => chain["policy"] != "drop",
        }
    }

    /// The first verdict of a chain's rules.
    fn walk(&self, chain: &Value, interface: &str, port: &Port, jumps: u32) -> Verdict {
        let rules = self
            .objects
            .iter()
            .filter_map(|object| object.get("rule"))
            .filter(|rule| {
                rule["family"] == chain["family"]
                    && rule["table"] == chain["table"]
                    && rule["chain"] == chain["name"]
            });
        for rule in rules {
            match self.judge(rule, interface, port, jumps) {
                Verdict::Continue => {}
                verdict => return verdict,
            }
        }
        Verdict::Continue
    }

    fn judge(&self, rule: &Value, interface: &str, port: &Port, jumps: u32) -> Verdict {
        let statements = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
        for statement in statements {
            if let Some(condition) = statement.get("match") {
                if !self.met(rule, condition, interface, port) {
                    return Verdict::Continue;
                }
            } else if statement.get("accept").is_some() {
                return Verdict::Accept;
            } else if statement.get("drop").is_some() || statement.get("reject").is_some() {
                return Verdict::Drop;
            } else if statement.get("return").is_some() {
                return Verdict::Return;
            } else if let Some(target) = target(statement) {
                return self.jump(rule, statement, target, interface, port, jumps);
            } else if !is_harmless(statement) {
                return Verdict::Continue;
            }
        }
        Verdict::Continue
    }

    fn jump(
        &self,
        rule: &Value,
        statement: &Value,
        target: &str,
        interface: &str,
        port: &Port,
        jumps: u32,
    ) -> Verdict {
        let chain = self
            .objects
            .iter()
            .filter_map(|object| object.get("chain"))
            .find(|chain| {
                chain["family"] == rule["family"]
                    && chain["table"] == rule["table"]
                    && chain["name"] == target
            });
        let (Some(chain), Some(jumps)) = (chain, jumps.checked_sub(1)) else {
            return Verdict::Continue;
        };
        match self.walk(chain, interface, port, jumps) {
            Verdict::Return | Verdict::Continue if statement.get("goto").is_some() => {
                Verdict::Return
            }
            Verdict::Return => Verdict::Continue,
            verdict => verdict,
        }
    }

    /// Whether the first packet of a node meets a condition; `false` where that is not known.
    fn met(&self, rule: &Value, condition: &Value, interface: &str, port: &Port) -> bool {
        let (left, right) = (&condition["left"], &condition["right"]);
        let protocol = port.protocol.name();
        let is_one_of = |wanted: &Value| self.contains(rule, right, wanted);
        let equal = match condition["op"].as_str() {
            Some("==" | "in") => true,
            Some("!=") => false,
            _ => return false,
        };
        let payload = (
            left["payload"]["protocol"].as_str(),
            left["payload"]["field"].as_str(),
        );
        let known = match (left["meta"]["key"].as_str(), payload) {
            (Some("iifname" | "iif"), _) => is_one_of(&Value::from(interface)),
            (Some("l4proto"), _) | (_, (Some("ip"), Some("protocol"))) => {
                is_one_of(&Value::from(protocol))
            }
            (Some("nfproto"), _) => is_one_of(&Value::from("ipv4")),
            (_, (Some(of), Some("dport"))) if of == protocol || of == "th" => {
                is_one_of(&Value::from(port.number))
            }
            _ if left["ct"]["key"] == "state" => is_one_of(&Value::from("new")),
            _ => return false,
        };
        known == equal
    }

    /// Whether `set` (a value, a list, a set, a range, or the name of a set) contains `value`.
    fn contains(&self, rule: &Value, set: &Value, value: &Value) -> bool {
        if let Some(name) = set.as_str().and_then(|name| name.strip_prefix('@')) {
            return self.named_set(rule, name).is_some_and(|elements| {
                elements
                    .iter()
                    .any(|element| self.contains(rule, element, value))
            });
        }
        let list = set.as_array().or_else(|| set["set"].as_array());
        if let Some(elements) = list {
            return elements
                .iter()
                .any(|element| self.contains(rule, element, value));
        }
        if let Some([first, last]) = set["range"].as_array().map(Vec::as_slice) {
            let number = value.as_u64();
            return number >= first.as_u64() && number <= last.as_u64() && number.is_some();
        }
        match (set.as_str(), value.as_str()) {
            (Some(pattern), Some(text)) => match pattern.strip_suffix('*') {
                Some(prefix) => text.starts_with(prefix),
                None => pattern == text,
            },
            _ => set == value,
        }
    }

    fn named_set(&self, rule: &Value, name: &str) -> Option<&'a Vec<Value>> {
        let set = self
            .objects
            .iter()
            .filter_map(|object| object.get("set"))
            .find(|set| {
                set["name"] == name
                    && set["family"] == rule["family"]
                    && set["table"] == rule["table"]
            });
        set?.get("elem")?.as_array()
    }
}

fn is_ipv4(chain: &Value) -> bool {
    chain["family"] == "ip" || chain["family"] == "inet"
}

fn target(statement: &Value) -> Option<&str> {
    let jump = statement.get("jump").or_else(|| statement.get("goto"))?;
    jump["target"].as_str()
}

/// Statements that neither decide nor restrict.
fn is_harmless(statement: &Value) -> bool {
    ["counter", "log", "notrack", "mangle"]
        .iter()
        .any(|kind| statement.get(kind).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nft -j list ruleset` of a small workstation firewall, as nft 1.0.6 prints it.
    const WORKSTATION: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"table": {"family": "inet", "name": "filter", "handle": 1}},
        {"set": {"family": "inet", "name": "open", "table": "filter", "type": "inet_service", "handle": 4, "elem": [22, 80]}},
        {"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "filter", "name": "lan", "handle": 2}},
        {"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 5, "expr": [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]}},
        {"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 6, "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}, {"accept": null}]}},
        {"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 7, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": "@open"}}, {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}]}},
        {"rule": {"family": "inet", "table": "filter", "chain": "input", "handle": 8, "expr": [{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth1"}}, {"jump": {"target": "lan"}}]}},
        {"rule": {"family": "inet", "table": "filter", "chain": "lan", "handle": 9, "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": {"set": [{"range": [67, 69]}, 123]}}}, {"accept": null}]}}
    ]}"#;

    fn ports() -> [Port; 4] {
        [
            Port::udp(67, "DHCP"),
            Port::udp(69, "TFTP"),
            Port::tcp(80, "HTTP"),
            Port::tcp(2049, "NFS"),
        ]
    }

    #[test]
    fn a_drop_policy_without_an_accept_is_found() {
        let finding = check(WORKSTATION, "eth1", &ports()).unwrap();
        assert_eq!(finding.dropped, [Port::tcp(2049, "NFS")]);
        assert_eq!(
            finding.hint(),
            "open it (--open-firewall does it):\n\
             nft insert rule inet filter input 'iifname \"eth1\" tcp dport { 2049 } accept'"
        );
    }

    #[test]
    fn another_interface_is_judged_by_its_own_rules() {
        let finding = check(WORKSTATION, "eth0", &ports()).unwrap();
        assert_eq!(finding.dropped.len(), 3);
        assert_eq!(check(WORKSTATION, "lo", &ports()), None);
    }

    #[test]
    fn an_accepting_policy_or_no_ruleset_drops_nothing() {
        let open = WORKSTATION.replace(r#""policy": "drop""#, r#""policy": "accept""#);
        assert_eq!(check(&open, "eth1", &ports()), None);
        assert_eq!(check("not json", "eth1", &ports()), None);
    }

    #[test]
    fn a_rule_that_drops_is_found_under_an_accepting_policy() {
        let rejecting = WORKSTATION
            .replace(r#""policy": "drop""#, r#""policy": "accept""#)
            .replace(r#"{"jump": {"target": "lan"}}"#, r#"{"reject": null}"#);
        let finding = check(&rejecting, "eth1", &ports()).unwrap();
        assert_eq!(finding.dropped.len(), 3);
    }
}
