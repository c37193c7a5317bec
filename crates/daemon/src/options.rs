//! What one run of the daemon is told: the validated form, no strings left to parse.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::mpsc::Sender;

pub use engine::{DhcpMode, UefiLoader, UnknownPolicy};

use image::initramfs::Inits;

pub use crate::net::tls::CertificateFiles;
use crate::notice::Notice;

/// Everything [`crate::run`] needs to know. [`Options::new`] fills in the defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// Network interfaces to serve, by name; at least one, each with an IPv4 address.
    pub interfaces: Vec<String>,
    /// How DHCP is spoken.
    pub dhcp: DhcpMode,
    /// Networks behind DHCP relays, each by its router's address and the length of its prefix.
    pub relayed: Vec<(Ipv4Addr, u8)>,
    /// Directory of `store/`, `state.db`, `keys/`, `cache/` and `loaders/`; made when missing.
    pub state_dir: PathBuf,
    /// Directory of the control socket; made when missing.
    pub run_dir: PathBuf,
    /// Image (`NAME[:TAG]`) of nodes that were not given one; without it such nodes are
    /// named in events and get an address, but nothing to boot.
    pub image: Option<String>,
    /// Ports to listen on.
    pub ports: Ports,
    /// Lease time of machines that are not nodes, in seconds.
    pub lease_seconds: u32,
    /// First and last dynamic address, each pair in another network that is served; where none is said
    /// every free address of the network.
    pub ranges: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Lease time of nodes, in seconds; `None` = infinite.
    pub node_lease_seconds: Option<u32>,
    /// OpenSSH public keys, one line each, that may log in to nodes as root.
    pub authorized_keys: Vec<String>,
    /// Arguments added to every node's kernel command line.
    pub extra_kernel_args: String,
    /// What UEFI machines load first, where an image has both.
    pub uefi_loader: UefiLoader,
    /// What becomes of machines that are no nodes, unless the inventory says it; `None` = by `dhcp`.
    pub unknown: Option<UnknownPolicy>,
    /// The certificate of HTTPS; `None` = there is none.
    pub certificate: Option<CertificateFiles>,
    /// Whether firmware that boots over HTTP is told to do it by HTTPS. Where there is a certificate.
    pub https_boot: bool,
    /// Whether a node's consoles log root in without a password.
    pub console_login: bool,
    /// Which drivers the initramfs carries.
    pub drivers: Drivers,
    /// Whether the initramfs carries a shell, for `rd.break`.
    pub debug_shell: bool,
    /// The static `/init` programs, one of which goes into each initramfs.
    pub inits: Inits,
    /// User to become once sockets and directories are open; `None` = `slate` where that
    /// user exists, else stay.
    pub user: Option<String>,
    /// Receives what happens, as it happens; a dropped receiver is harmless.
    pub notices: Option<Sender<Notice>>,
}

impl Options {
    /// Options with every default, serving these interfaces with one of `inits` as the nodes' `/init`.
    pub fn new(interfaces: &[String], inits: impl Into<Inits>) -> Options {
        Options {
            interfaces: interfaces.to_vec(),
            dhcp: DhcpMode::Authoritative,
            relayed: Vec::new(),
            state_dir: PathBuf::from(DEFAULT_STATE_DIR),
            run_dir: PathBuf::from(DEFAULT_RUN_DIR),
            image: None,
            ports: Ports::default(),
            lease_seconds: DEFAULT_LEASE_SECONDS,
            ranges: Vec::new(),
            node_lease_seconds: None,
            authorized_keys: Vec::new(),
            extra_kernel_args: String::new(),
            uefi_loader: UefiLoader::Shim,
            unknown: None,
            certificate: None,
            https_boot: false,
            console_login: false,
            drivers: Drivers::AllNetwork,
            debug_shell: false,
            inits: inits.into(),
            user: None,
            notices: None,
        }
    }
}

/// Default of [`Options::state_dir`].
pub const DEFAULT_STATE_DIR: &str = "/var/lib/slate";
/// Default of [`Options::run_dir`].
pub const DEFAULT_RUN_DIR: &str = "/run/slate";
/// Default of [`Options::lease_seconds`]: one hour.
pub const DEFAULT_LEASE_SECONDS: u32 = 3600;

/// Ports to listen on, on every served interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// TFTP, UDP.
    pub tftp: u16,
    /// HTTP, TCP; beacons come to the same number over UDP.
    pub http: u16,
    /// HTTPS, TCP; `None` = not served.
    pub https: Option<u16>,
    /// NFS, TCP.
    pub nfs: u16,
    /// Take the next free port where `nfs` is taken, instead of failing.
    pub nfs_fallback: bool,
}

impl Ports {
    /// The ports that NFS may be served on, the best one first.
    pub fn nfs_candidates(&self) -> RangeInclusive<u16> {
        let others = if self.nfs_fallback { NFS_FALLBACKS } else { 0 };
        self.nfs..=self.nfs.saturating_add(others)
    }
}

/// Ports tried after the usual one.
const NFS_FALLBACKS: u16 = 16;

impl Default for Ports {
    fn default() -> Ports {
        Ports {
            tftp: 69,
            http: 80,
            https: None,
            nfs: 2049,
            nfs_fallback: true,
        }
    }
}

/// Which drivers the initramfs carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drivers {
    /// Virtual machines' network cards only: a small initramfs.
    Virtual,
    /// Every Ethernet driver of the image's kernel.
    AllNetwork,
}
