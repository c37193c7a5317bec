//! ufw: its own table of what is let in.

use super::{Firewall, FirewallFinding, Port, output, words};

/// `ufw status verbose` where ufw is installed and active.
pub fn status() -> Option<String> {
    output(&["ufw", "status", "verbose"]).filter(|status| status.contains("Status: active"))
}

/// What the status does not let in on the interface.
pub fn check(status: &str, interface: &str, ports: &[Port]) -> Option<FirewallFinding> {
    if !["deny (incoming)", "reject (incoming)"]
        .iter()
        .any(|policy| status.contains(policy))
    {
        return None;
    }
    let open = |port: &Port| status.lines().any(|rule| allows(rule, interface, port));
    let dropped: Vec<Port> = ports.iter().filter(|port| !open(port)).copied().collect();
    (!dropped.is_empty()).then(|| FirewallFinding {
        firewall: Firewall::Ufw,
        interface: interface.to_owned(),
        commands: dropped
            .iter()
            .map(|port| command(interface, port))
            .collect(),
        dropped,
    })
}

/// Whether one line of the table lets the port in from anywhere.
fn allows(rule: &str, interface: &str, port: &Port) -> bool {
    let Some((to, from)) = rule.split_once("ALLOW IN") else {
        return false;
    };
    let (to, device) = match to.split_once(" on ") {
        Some((to, device)) => (to.trim(), Some(device.trim())),
        None => (to.trim(), None),
    };
    let numbers = |list: &str| {
        list.split(',').any(|range| {
            let (first, last) = range.split_once(':').unwrap_or((range, range));
            let number = port.number;
            first.parse().is_ok_and(|first| number >= first)
                && last.parse().is_ok_and(|last| number <= last)
        })
    };
    let matches = match to.split_once('/') {
        Some((list, protocol)) => protocol == port.protocol.name() && numbers(list),
        None => to == "Anywhere" || numbers(to),
    };
    matches
        && device.is_none_or(|device| device == interface)
        && from.trim().starts_with("Anywhere")
        && !from.contains("(v6)")
}

fn command(interface: &str, port: &Port) -> Vec<String> {
    let (number, protocol) = (port.number, port.protocol.name());
    words(&format!(
        "ufw allow in on {interface} to any port {number} proto {protocol}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Status: active
Logging: on (low)
Default: deny (incoming), allow (outgoing), disabled (routed)
New profiles: skip

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW IN    Anywhere
80,443/tcp                 ALLOW IN    Anywhere
67/udp on eth1             ALLOW IN    Anywhere
2049/tcp                   ALLOW IN    192.168.7.0/24
Anywhere on eth2           ALLOW IN    Anywhere
80/tcp (v6)                ALLOW IN    Anywhere (v6)
";

    fn ports() -> [Port; 3] {
        [
            Port::udp(67, "DHCP"),
            Port::tcp(80, "HTTP"),
            Port::tcp(2049, "NFS"),
        ]
    }

    #[test]
    fn what_is_not_let_in_on_the_interface_is_dropped() {
        let finding = check(STATUS, "eth1", &ports()).unwrap();
        assert_eq!(finding.dropped, [Port::tcp(2049, "NFS")]);
        assert_eq!(finding.to_string(), "ufw drops 2049/tcp on eth1");
        assert_eq!(
            finding.hint(),
            "open it (--open-firewall does it):\n\
             ufw allow in on eth1 to any port 2049 proto tcp"
        );
    }

    #[test]
    fn an_open_interface_or_policy_is_fine() {
        assert_eq!(check(STATUS, "eth2", &ports()), None);
        let open = STATUS.replace("deny (incoming)", "allow (incoming)");
        assert_eq!(check(&open, "eth1", &ports()), None);
    }
}
