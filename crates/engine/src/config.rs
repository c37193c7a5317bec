//! What the engine is told once, when it starts.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::image::ImageRef;

/// Names one of [`Config::interfaces`] in inputs and outputs: the daemon's own number for it,
/// such as the kernel's interface index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceId(pub u32);

/// Who gives addresses on a network, and who tells firmware what to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DhcpMode {
    /// We do both: this is the network's only DHCP server.
    Authoritative,
    /// Another server gives the addresses; we tell firmware what to boot (proxyDHCP, PXE 2.1).
    Proxy,
    /// Another server does both, and names us as the boot server.
    Off,
}

/// What UEFI machines load first, where an image has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UefiLoader {
    /// The distribution's signed shim and GRUB: Secure Boot may stay on.
    Shim,
    /// iPXE: faster over a network with delay, but Secure Boot refuses it.
    Ipxe,
}

impl UefiLoader {
    /// The one of this name.
    pub fn from_name(name: &str) -> Option<UefiLoader> {
        let all = [UefiLoader::Shim, UefiLoader::Ipxe];
        all.into_iter().find(|it| it.name() == name)
    }

    /// As in files.
    pub fn name(self) -> &'static str {
        match self {
            UefiLoader::Shim => "shim",
            UefiLoader::Ipxe => "ipxe",
        }
    }
}

/// What becomes of machines that are no nodes and ask to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownPolicy {
    /// They become nodes, and boot.
    Auto,
    /// They are listed, and boot once somebody makes them nodes.
    Approve,
    /// They get no answer to anything, and are not listed.
    Ignore,
}

impl UnknownPolicy {
    /// What holds where nothing is said.
    pub fn of(mode: DhcpMode) -> UnknownPolicy {
        match mode {
            DhcpMode::Authoritative => UnknownPolicy::Auto,
            DhcpMode::Proxy | DhcpMode::Off => UnknownPolicy::Approve,
        }
    }

    /// As in files.
    pub fn name(self) -> &'static str {
        match self {
            UnknownPolicy::Auto => "auto",
            UnknownPolicy::Approve => "approve",
            UnknownPolicy::Ignore => "ignore",
        }
    }
}

/// One network that nodes boot from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The number that inputs and outputs carry.
    pub id: InterfaceId,
    /// What DHCP is spoken there.
    pub dhcp: DhcpMode,
    /// The server's own address there; also the address that boot plans name.
    pub address: Ipv4Addr,
    /// Length of the network's prefix in bits, 1 to 30.
    pub prefix: u8,
    /// First and last address of the dynamic pool; `None` = every address of the network but the
    /// server's.
    pub pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Where the network lies behind a relay: its router. The server's own address is in another one.
    pub relayed: Option<Ipv4Addr>,
}

/// The engine's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The networks served; those behind relays come after the one that the relays speak to.
    pub interfaces: Vec<Interface>,
    /// Lease of a machine that is not a node.
    pub lease: Duration,
    /// Lease of a node; `None` = infinite.
    pub node_lease: Option<Duration>,
    /// TCP port of HTTP and UDP port of beacons.
    pub http_port: u16,
    /// TCP port of HTTPS, where firmware that boots over HTTP is to use that.
    pub https_boot_port: Option<u16>,
    /// TCP port of NFS.
    pub nfs_port: u16,
    /// Image of nodes for which none is set.
    pub default_image: Option<ImageRef>,
    /// Arguments added to every node's kernel command line.
    pub kernel_args: String,
    /// Whether nodes let anybody log in on their console.
    pub console_login: bool,
    /// OpenSSH public keys that nodes accept for root.
    pub authorized_keys: Vec<String>,
    /// What UEFI machines load first.
    pub uefi_loader: UefiLoader,
    /// What becomes of machines that are no nodes, unless the inventory says it; `None` = by what
    /// DHCP is spoken, as [`UnknownPolicy::of`].
    pub unknown: Option<UnknownPolicy>,
    /// DISCOVERs per second answered to machines that have no lease and no node entry.
    pub unknown_per_second: u32,
}

impl Config {
    /// The defaults for these networks.
    pub fn new(interfaces: Vec<Interface>) -> Config {
        Config {
            interfaces,
            lease: Duration::from_secs(12 * 3600),
            node_lease: None,
            http_port: 80,
            https_boot_port: None,
            nfs_port: 2049,
            default_image: None,
            kernel_args: String::new(),
            console_login: false,
            authorized_keys: Vec::new(),
            uefi_loader: UefiLoader::Shim,
            unknown: None,
            unknown_per_second: 20_000,
        }
    }

    /// Whether whoever has `address` has it from us. Machines behind relays and routers have
    /// theirs from us where nobody else gives any.
    pub fn gives(&self, address: Ipv4Addr) -> bool {
        let is_ours = |it: &Interface| it.dhcp == DhcpMode::Authoritative;
        match self.interfaces.iter().find(|it| it.contains(address)) {
            Some(interface) => is_ours(interface),
            None => self.interfaces.iter().all(is_ours),
        }
    }
}

impl Interface {
    /// An interface where addresses are ours to give, with the whole network as its pool.
    pub fn new(id: InterfaceId, address: Ipv4Addr, prefix: u8) -> Interface {
        Interface {
            id,
            dhcp: DhcpMode::Authoritative,
            address,
            prefix,
            pool: None,
            relayed: None,
        }
    }

    /// The network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        let host_bits = 32 - u32::from(self.prefix.clamp(1, 30));
        Ipv4Addr::from(u32::MAX << host_bits)
    }

    /// A network behind relays that speak to this interface: that of `router`, through which its
    /// machines reach the server.
    pub fn behind(&self, router: Ipv4Addr, prefix: u8) -> Interface {
        Interface {
            relayed: Some(router),
            pool: None,
            prefix,
            ..self.clone()
        }
    }

    /// The network's own address, its first.
    pub fn network(&self) -> Ipv4Addr {
        let inside = self.relayed.unwrap_or(self.address);
        Ipv4Addr::from(u32::from(inside) & u32::from(self.mask()))
    }

    /// The network's broadcast address, its last.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network()) | !u32::from(self.mask()))
    }

    /// The network as inventories name it, `ADDRESS/PREFIX`.
    pub fn cidr(&self) -> String {
        format!("{}/{}", self.network(), self.prefix)
    }

    /// Whether `address` lies in the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & u32::from(self.mask()) == u32::from(self.network())
    }

    /// Whether a host may have `address`: in the network, neither its first nor its last, and
    /// not the server's.
    pub fn is_assignable(&self, address: Ipv4Addr) -> bool {
        self.contains(address)
            && address != self.network()
            && address != self.broadcast()
            && address != self.address
            && Some(address) != self.relayed
    }
}
