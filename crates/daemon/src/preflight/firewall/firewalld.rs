//! firewalld: what the interface's zone lets in.

use super::{Firewall, FirewallFinding, Port, output, words};

/// Whether firewalld manages this machine's rules.
pub fn is_running() -> bool {
    output(&["firewall-cmd", "--state"]).is_some_and(|state| state.trim() == "running")
}

/// Asks for the interface's zone, and what it lets in.
pub fn check(interface: &str, ports: &[Port]) -> Option<FirewallFinding> {
    let of_interface = format!("--get-zone-of-interface={interface}");
    let zone = output(&["firewall-cmd", &of_interface])
        .or_else(|| output(&["firewall-cmd", "--get-default-zone"]))?;
    let zone = zone.trim().to_owned();
    let allowed = output(&["firewall-cmd", &format!("--zone={zone}"), "--list-all"])?;
    let dropped = dropped(&allowed, ports);
    (!dropped.is_empty()).then(|| FirewallFinding {
        commands: commands(&zone, &dropped),
        firewall: Firewall::Firewalld { zone },
        interface: interface.to_owned(),
        dropped,
    })
}

/// Which ports the output of `--list-all` does not let in.
fn dropped(list_all: &str, ports: &[Port]) -> Vec<Port> {
    let field = |name: &str| {
        list_all
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
            .trim()
    };
    if field("target") == "ACCEPT" {
        return Vec::new();
    }
    let open = |port: &Port| {
        let listed = field("ports").split_whitespace();
        let served = field("services").split_whitespace();
        listed.into_iter().any(|entry| covers(entry, port))
            || served.into_iter().any(|service| serves(service, port))
    };
    ports.iter().filter(|port| !open(port)).copied().collect()
}

/// Whether `68-70/udp` covers a port.
fn covers(entry: &str, port: &Port) -> bool {
    let Some((range, protocol)) = entry.split_once('/') else {
        return false;
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
        return false;
    };
    protocol == port.protocol.name() && (first..=last).contains(&port.number)
}

/// Whether a service of firewalld's own list is a port's.
fn serves(service: &str, port: &Port) -> bool {
    let own = match service {
        "dhcp" => "67/udp",
        "tftp" => "69/udp",
        "http" => "80/tcp",
        "nfs" => "2049/tcp",
        _ => return false,
    };
    covers(own, port)
}

/// Now, and for the next start.
fn commands(zone: &str, dropped: &[Port]) -> Vec<Vec<String>> {
    let ports: Vec<String> = dropped
        .iter()
        .map(|port| format!("--add-port={}/{}", port.number, port.protocol.name()))
        .collect();
    let ports = ports.join(" ");
    vec![
        words(&format!("firewall-cmd --zone={zone} {ports}")),
        words(&format!("firewall-cmd --permanent --zone={zone} {ports}")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: &str = "public (active)
  target: default
  icmp-block-inversion: no
  interfaces: enp3s0
  sources: 
  services: cockpit dhcpv6-client http ssh
  ports: 67-68/udp
  protocols: 
  forward: yes
";

    #[test]
    fn services_and_ranges_are_understood() {
        let ports = [
            Port::udp(67, "DHCP"),
            Port::udp(69, "TFTP"),
            Port::tcp(80, "HTTP"),
            Port::tcp(2049, "NFS"),
        ];
        let dropped = dropped(PUBLIC, &ports);
        assert_eq!(dropped, [Port::udp(69, "TFTP"), Port::tcp(2049, "NFS")]);
        assert_eq!(
            commands("public", &dropped)[1].join(" "),
            "firewall-cmd --permanent --zone=public --add-port=69/udp --add-port=2049/tcp"
        );
    }

    #[test]
    fn a_trusted_zone_drops_nothing() {
        let trusted = PUBLIC.replace("target: default", "target: ACCEPT");
        assert!(dropped(&trusted, &[Port::udp(69, "TFTP")]).is_empty());
    }
}
