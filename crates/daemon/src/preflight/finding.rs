//! What stands in the way, and what to do about it.

use std::fmt;

use super::firewall::FirewallFinding;
use super::owner::Owner;
use super::ports::Port;

/// Whether the daemon can start all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It works, in another way than asked for.
    Note,
    /// It starts, but nodes will probably not boot.
    Warning,
    /// It cannot start.
    Error,
}

/// One thing that stands in the way. `Display` says what it is; [`Finding::hint`] what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Neither root nor the capabilities for it.
    NotPrivileged {
        /// The capabilities that are missing.
        missing: Vec<&'static str>,
    },
    /// No such interface.
    InterfaceMissing {
        /// The name asked for.
        name: String,
        /// The interfaces of this machine.
        present: Vec<String>,
    },
    /// The interface is down.
    InterfaceDown {
        /// Its name.
        name: String,
    },
    /// The interface has no IPv4 address.
    InterfaceWithoutAddress {
        /// Its name.
        name: String,
    },
    /// The interfaces could not be read.
    InterfaceUnknown {
        /// Its name.
        name: String,
        /// Why.
        cause: String,
    },
    /// A port is in use.
    PortTaken {
        /// The port.
        port: Port,
        /// Who uses it.
        owner: Owner,
    },
    /// The NFS port is in use; another one is served, and every node is told.
    OtherNfsPort {
        /// The port that is taken.
        port: Port,
        /// Who uses it.
        owner: Owner,
    },
    /// A firewall drops what nodes send.
    Firewall(FirewallFinding),
}

impl Finding {
    /// Whether the daemon can start all the same.
    pub fn severity(&self) -> Severity {
        match self {
            Self::OtherNfsPort { .. } => Severity::Note,
            Self::Firewall(_) => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// What to do next; several lines where there are several commands.
    pub fn hint(&self) -> String {
        match self {
            Self::NotPrivileged { .. } => {
                "run it with sudo, or as a service: sudo slate service install".into()
            }
            Self::InterfaceMissing { present, .. } if present.is_empty() => {
                "this machine has no network interface but loopback".into()
            }
            Self::InterfaceMissing { present, .. } => {
                format!("choose one of: {}", present.join(", "))
            }
            Self::InterfaceDown { name } => format!("ip link set {name} up"),
            Self::InterfaceWithoutAddress { name } => {
                format!(
                    "give it one that the nodes' network has, such as: ip address add 192.168.2.2/24 dev {name}"
                )
            }
            Self::InterfaceUnknown { .. } => "is /sys mounted and iproute2 installed?".into(),
            Self::PortTaken { owner, port } if port.purpose == super::DHCP && !owner.is_slate() => {
                format!(
                    "{}; or, where that is the network's DHCP server, have it name this machine to \
                     the nodes' firmware, and start with --dhcp off (docs/dhcp.md)",
                    owner.hint(*port)
                )
            }
            Self::PortTaken { owner, port } => match port.option() {
                Some(option) => format!("{}; or choose another {option}", owner.hint(*port)),
                None => owner.hint(*port),
            },
            Self::OtherNfsPort { .. } => String::new(),
            Self::Firewall(finding) => finding.hint(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPrivileged { missing } => write!(
                f,
                "serving nodes needs root (missing: {})",
                missing.join(", ")
            ),
            Self::InterfaceMissing { name, .. } => {
                write!(f, "there is no network interface {name}")
            }
            Self::InterfaceDown { name } => write!(f, "interface {name} is down"),
            Self::InterfaceWithoutAddress { name } => {
                write!(f, "interface {name} has no IPv4 address")
            }
            Self::InterfaceUnknown { name, cause } => {
                write!(f, "reading the state of interface {name}: {cause}")
            }
            Self::PortTaken { port, owner } => write!(f, "{port} is taken by {owner}"),
            Self::OtherNfsPort { port, owner } => write!(
                f,
                "{port} is taken by {owner}: another port is served, and every node is told which"
            ),
            Self::Firewall(finding) => finding.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_names_those_that_exist() {
        let finding = Finding::InterfaceMissing {
            name: "eth9".into(),
            present: vec!["eth0".into(), "wlan0".into()],
        };
        assert_eq!(finding.to_string(), "there is no network interface eth9");
        assert_eq!(finding.hint(), "choose one of: eth0, wlan0");
        assert_eq!(finding.severity(), Severity::Error);
    }

    #[test]
    fn a_taken_nfs_port_is_only_a_note() {
        let finding = Finding::OtherNfsPort {
            port: Port::tcp(2049, "NFS"),
            owner: Owner::KernelNfs,
        };
        assert_eq!(finding.severity(), Severity::Note);
        assert_eq!(
            finding.to_string(),
            "port 2049/tcp (NFS) is taken by the kernel's NFS server (nfs-server.service): \
             another port is served, and every node is told which"
        );
    }
}
