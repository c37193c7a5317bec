//! The interface that nodes are on: its state, the ports on it, what filters them, who else gives
//! addresses there.

use std::net::Ipv4Addr;

use wire::mac::Mac;

use super::Report;
use crate::net::interface;
use crate::options::{DhcpMode, Ports};
use crate::preflight::{self, Owner, Protocol};

/// A whole block of firmware's TFTP, 1,468 bytes, fits into this.
const ETHERNET_MTU: u32 = 1500;

/// What is served where.
pub struct Network<'a> {
    /// The interface.
    pub name: &'a str,
    /// The server's address on it.
    pub address: Ipv4Addr,
    /// The ports that are served.
    pub ports: Ports,
    /// The DHCP that is spoken.
    pub mode: DhcpMode,
    /// The daemon's process.
    pub pid: u32,
}

impl Network<'_> {
    /// All of it; what needs root only with it.
    pub fn examine(&self, is_root: bool, report: &mut Report) {
        self.interface(report);
        self.mtu(report);
        if is_root {
            self.ports(report);
            self.firewall(report);
            self.other_servers(report);
        }
    }

    fn interface(&self, report: &mut Report) {
        for finding in preflight::check_interface(self.name) {
            report.error("interface", finding.to_string(), finding.hint());
        }
        let wanted = self.address;
        match interface::address(self.name) {
            Ok(Some((address, prefix))) if address == wanted => {
                report.ok("interface", format!("{} has {address}/{prefix}", self.name));
            }
            Ok(_) => {
                let hint = "give it its address back, or restart the daemon for another one";
                report.error(
                    "interface",
                    format!("{} has not {wanted} any more", self.name),
                    hint,
                );
            }
            Err(cause) => report.skip("interface", cause),
        }
    }

    fn mtu(&self, report: &mut Report) {
        let mtu = std::fs::read_to_string(format!("/sys/class/net/{}/mtu", self.name));
        let mtu: Option<u32> = mtu.ok().and_then(|text| text.trim().parse().ok());
        match mtu {
            None => report.skip("mtu", format!("{} tells none", self.name)),
            Some(ETHERNET_MTU) => report.ok("mtu", "1500"),
            Some(mtu) if mtu < ETHERNET_MTU => {
                let hint = format!("ip link set {} mtu 1500", self.name);
                report.error(
                    "mtu",
                    format!("{mtu}: firmware's TFTP blocks do not fit"),
                    hint,
                );
            }
            Some(mtu) => {
                let hint = "make sure that every switch and card there takes frames of that size";
                report.warn("mtu", format!("{mtu}: firmware uses 1500"), hint);
            }
        }
    }

    fn ports(&self, report: &mut Report) {
        for port in preflight::needed(&self.ports, self.mode) {
            let check = format!("port {}/{}", port.number, port.protocol.name());
            match preflight::holder(port, self.name, self.address) {
                Some(owner) if self.is_ours(&owner) => report.ok(check, port.purpose),
                Some(owner) => {
                    report.error(
                        check,
                        format!("{} is held by {owner}", port.purpose),
                        owner.hint(port),
                    );
                }
                None => {
                    let hint = "restart the daemon: systemctl restart slate";
                    report.error(check, format!("nobody listens for {}", port.purpose), hint);
                }
            }
        }
    }

    /// The service manager may hold a socket with us.
    fn is_ours(&self, owner: &Owner) -> bool {
        match owner {
            Owner::Process(process) => process.pid == self.pid || process.pid == 1,
            Owner::KernelNfs | Owner::Unknown => false,
        }
    }

    fn firewall(&self, report: &mut Report) {
        let needed = preflight::needed(&self.ports, self.mode);
        match preflight::firewall(self.name, &needed) {
            Some(finding) => {
                let commands: Vec<String> =
                    finding.commands.iter().map(|it| it.join(" ")).collect();
                let hint = format!("open it: {}", commands.join("; "));
                report.error("firewall", finding.to_string(), hint);
            }
            None => {
                let count = |protocol| needed.iter().filter(|it| it.protocol == protocol).count();
                let (udp, tcp) = (count(Protocol::Udp), count(Protocol::Tcp));
                report.ok(
                    "firewall",
                    format!("{udp} UDP and {tcp} TCP ports are open"),
                );
            }
        }
    }

    fn other_servers(&self, report: &mut Report) {
        let check = "other dhcp servers";
        let servers = interface::find(self.name)
            .map_err(|error| error.to_string())
            .and_then(|it| {
                preflight::dhcp::servers(self.name, &it, Mac::PROBE).map_err(|it| it.to_string())
            });
        let servers = match servers {
            Ok(servers) => servers,
            Err(cause) => return report.skip(check, cause),
        };
        let listed = preflight::dhcp::listed(&servers);
        match (self.mode, servers.is_empty()) {
            (DhcpMode::Authoritative, true) => report.ok(check, "none answers"),
            (DhcpMode::Authoritative, false) => report.error(
                check,
                format!("{listed} answers too: machines get addresses from either"),
                "switch one of the two off, or start this one with --dhcp proxy",
            ),
            (_, false) => report.ok(check, format!("{listed} gives the addresses")),
            (_, true) => report.warn(
                check,
                "none answered within 5 s, and no addresses are given here",
                "it may answer known machines only; where there is none: --dhcp authoritative",
            ),
        }
    }
}
