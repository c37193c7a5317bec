//! Is this machine ready to serve nodes? Asked before anything is opened or changed.
//!
//! [`check`] reads the machine and returns [`Finding`]s, each with what to do next. Reading
//! (`/proc`, `/sys`, firewall programs) is kept apart from judging, which is pure and tested on
//! recorded outputs.

pub mod dhcp;
mod finding;
mod firewall;
mod interface;
mod owner;
mod ports;
mod privilege;

use std::net::Ipv4Addr;
use std::path::Path;

use wire::dhcp4::{BOOT_SERVER_PORT, SERVER_PORT};

pub use finding::{Finding, Severity};
pub use firewall::{Firewall, FirewallFinding, ruleset};
pub use owner::{Owner, Process};
pub use ports::{Port, Protocol};

use crate::options::{DhcpMode, Ports};

/// Checks what every look at the network needs: rights, and an interface with an address.
pub fn check_interface(interface: &str) -> Vec<Finding> {
    let mut findings = privilege::check();
    findings.extend(interface::check(interface).err());
    findings
}

/// Checks everything that `slate up` needs on `interface`; empty where all is well. Findings come
/// in the order in which they should be dealt with.
pub fn check(interface: &str, ports: &Ports, mode: DhcpMode) -> Vec<Finding> {
    let mut findings = privilege::check();
    let privileged = findings.is_empty();
    let addresses = interface::check(interface);
    let Ok(address) = addresses else {
        findings.extend(addresses.err());
        return findings;
    };
    // Without privileges every bind would fail for that reason alone.
    if privileged {
        findings.extend(ports::check(interface, address, ports, mode));
        let needed = needed(&ports::as_served(interface, address, ports), mode);
        findings.extend(firewall::check(interface, &needed).map(Finding::Firewall));
    }
    findings
}

/// Who owns a port that could not be bound on `interface`.
pub fn owner_of(port: Port) -> Owner {
    owner::find(Path::new("/proc"), port)
}

/// Every port that nodes must reach.
pub(crate) fn needed(ports: &Ports, mode: DhcpMode) -> Vec<Port> {
    let mut needed = match mode {
        DhcpMode::Authoritative => vec![Port::udp(SERVER_PORT, DHCP)],
        DhcpMode::Proxy => vec![
            Port::udp(SERVER_PORT, DHCP),
            Port::udp(BOOT_SERVER_PORT, PROXY_DHCP),
        ],
        DhcpMode::Off => Vec::new(),
    };
    needed.extend([
        Port::udp(ports.tftp, "TFTP"),
        Port::udp(ports.http, "boot events"),
        Port::tcp(ports.http, "HTTP"),
        Port::tcp(ports.nfs, "NFS"),
    ]);
    needed.extend(ports.https.map(|port| Port::tcp(port, "HTTPS")));
    needed
}

/// What the DHCP server's port is for.
const DHCP: &str = "DHCP";
/// What the boot server's port is for, beside another DHCP server.
const PROXY_DHCP: &str = "proxyDHCP";

/// The firewall that drops what nodes send to these ports, if one does.
pub(crate) fn firewall(interface: &str, needed: &[Port]) -> Option<FirewallFinding> {
    firewall::check(interface, needed)
}

/// Who has a port of this machine; `None` = nobody.
pub(crate) fn holder(port: Port, interface: &str, address: Ipv4Addr) -> Option<Owner> {
    ports::is_taken(port, interface, address).then(|| owner_of(port))
}

/// Opens the firewall that `finding` is about, by the commands that it names. Returns the commands
/// that were run; on failure the one that failed, with its words.
pub fn open_firewall(finding: &FirewallFinding) -> Result<Vec<String>, CommandFailed> {
    finding
        .commands
        .iter()
        .map(|command| firewall::run_command(command).map(|()| command.join(" ")))
        .collect()
}

/// A command that did not do what it was started for.
#[derive(Debug, thiserror::Error)]
#[error("{command}: {message}")]
pub struct CommandFailed {
    /// The command.
    pub command: String,
    /// What it said, or why it could not be started.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_needs_its_ports() {
        let udp = |mode| -> Vec<u16> {
            let needed = needed(&Ports::default(), mode);
            let udp = needed.iter().filter(|it| it.protocol == Protocol::Udp);
            udp.map(|it| it.number).collect()
        };
        assert_eq!(udp(DhcpMode::Authoritative), [67, 69, 80]);
        assert_eq!(udp(DhcpMode::Proxy), [67, 4011, 69, 80]);
        assert_eq!(udp(DhcpMode::Off), [69, 80]);
    }
}
