//! A private network: one namespace, one bridge `br0` with 10.77.0.1/24, taps, no uplink.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{self, Confinement, Process};

/// The bridge's own address: where a server on this network listens.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The length of the network's prefix.
pub const PREFIX_LENGTH: u8 = 24;
const BRIDGE: &str = "br0";
/// A host's one interface, inside its namespace.
const HOST_INTERFACE: &str = "eth0";

/// What goes wrong with a private network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a namespace.
    #[error("making a network namespace: {0} (root is needed)")]
    Namespace(io::Error),
    /// A program could not be started.
    #[error("starting {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// A program of the set-up failed.
    #[error("{command}: {message}")]
    Failed {
        /// The whole command.
        command: String,
        /// What it wrote to standard error.
        message: String,
    },
}

/// A network namespace with a bridge. It disappears with the last clone and the last process in it.
#[derive(Clone, Debug)]
pub struct Network {
    namespace: Arc<File>,
    taps: Arc<AtomicU32>,
}

/// A tap on the bridge, for one machine.
#[derive(Clone, Debug)]
pub struct Tap {
    pub(crate) name: String,
}

/// Another host on the bridge: a namespace of its own with one interface. It disappears with the
/// last clone and the last process in it.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Arc<File>,
}

impl Host {
    /// Its interface, inside its namespace.
    pub fn interface(&self) -> &str {
        HOST_INTERFACE
    }

    /// Starts `command` on the host.
    pub fn spawn(&self, command: Command) -> Result<Process, NetworkError> {
        spawn(command, &self.namespace)
    }

    /// Runs `command` on the host to its end and captures what it prints.
    pub fn run(&self, command: Command) -> Result<Output, NetworkError> {
        run(command, &self.namespace)
    }
}

impl Tap {
    /// The interface's name inside the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Network {
    /// Makes the namespace and its bridge. Needs root and `ip` from iproute2.
    pub fn new() -> Result<Self, NetworkError> {
        Self::with_gateway(GATEWAY)
    }

    fn with_gateway(gateway: Ipv4Addr) -> Result<Self, NetworkError> {
        let namespace = process::new_network_namespace().map_err(NetworkError::Namespace)?;
        let network = Self {
            namespace: Arc::new(namespace),
            taps: Arc::new(AtomicU32::new(0)),
        };
        network.ip("link set lo up")?;
        network.ip(&format!(
            "link add {BRIDGE} address 02:77:00:00:00:01 type bridge"
        ))?;
        network.ip(&format!(
            "address add {gateway}/{PREFIX_LENGTH} dev {BRIDGE}"
        ))?;
        network.ip(&format!("link set {BRIDGE} up"))?;
        Ok(network)
    }

    /// The interface to serve on, inside the namespace.
    pub fn interface(&self) -> &str {
        BRIDGE
    }

    /// Adds a tap to the bridge.
    pub fn add_tap(&self) -> Result<Tap, NetworkError> {
        let name = format!("tap{}", self.taps.fetch_add(1, Ordering::Relaxed));
        self.ip(&format!("tuntap add dev {name} mode tap"))?;
        self.ip(&format!("link set {name} master {BRIDGE} up"))?;
        Ok(Tap { name })
    }

    /// Adds another host to the bridge, with an address of this network.
    pub fn add_host(&self, address: Ipv4Addr) -> Result<Host, NetworkError> {
        let namespace = process::new_network_namespace().map_err(NetworkError::Namespace)?;
        let host = Host {
            namespace: Arc::new(namespace),
        };
        let name = format!("host{}", self.taps.fetch_add(1, Ordering::Relaxed));
        let path = process::path_of(&*host.namespace);
        self.ip(&format!(
            "link add {name} type veth peer name {HOST_INTERFACE} netns {}",
            path.display()
        ))?;
        self.ip(&format!("link set {name} master {BRIDGE} up"))?;
        let ip = |arguments: &str| ip(arguments, &host.namespace);
        ip("link set lo up")?;
        ip(&format!(
            "address add {address}/{PREFIX_LENGTH} dev {HOST_INTERFACE}"
        ))?;
        ip(&format!("link set {HOST_INTERFACE} up"))?;
        // So that programs without a thought for interfaces may broadcast.
        ip(&format!(
            "route add 255.255.255.255/32 dev {HOST_INTERFACE}"
        ))?;
        Ok(host)
    }

    /// Makes a network behind a router, which is `address` here and `gateway`, with 24 bits, there.
    /// The router is the other network's own namespace, and hosts here know the way to it.
    pub fn add_network(&self, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<Self, NetworkError> {
        let other = Self::with_gateway(gateway)?;
        let name = format!("router{}", self.taps.fetch_add(1, Ordering::Relaxed));
        let path = process::path_of(&*other.namespace);
        self.ip(&format!(
            "link add {name} type veth peer name {HOST_INTERFACE} netns {}",
            path.display()
        ))?;
        self.ip(&format!("link set {name} master {BRIDGE} up"))?;
        other.ip(&format!(
            "address add {address}/{PREFIX_LENGTH} dev {HOST_INTERFACE}"
        ))?;
        other.ip(&format!("link set {HOST_INTERFACE} up"))?;
        let mut forward = Command::new("sysctl");
        forward.args(["-q", "-w", "net.ipv4.ip_forward=1"]);
        other.run(forward)?;
        self.ip(&format!(
            "route add {}/{PREFIX_LENGTH} via {address}",
            network_of(gateway)
        ))?;
        Ok(other)
    }

    /// Starts `command` inside the namespace, with a `/sys` that shows its interfaces.
    pub fn spawn(&self, command: Command) -> Result<Process, NetworkError> {
        spawn(command, &self.namespace)
    }

    /// Runs `command` to its end inside the namespace and captures what it prints.
    pub fn run(&self, command: Command) -> Result<Output, NetworkError> {
        run(command, &self.namespace)
    }

    /// An ssh client that runs `remote` as root at `address`, accepting any host key; to be given
    /// to [`Network::run`] or [`Network::spawn`].
    pub fn ssh(address: Ipv4Addr, private_key: &Path, remote: &str) -> Command {
        let mut command = Command::new("ssh");
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=20",
            "ServerAliveInterval=10",
            "IdentitiesOnly=yes",
        ] {
            command.args(["-o", option]);
        }
        command
            .arg("-i")
            .arg(private_key)
            .arg(format!("root@{address}"))
            .arg(remote)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn confinement(&self) -> Confinement {
        confinement(&self.namespace)
    }

    fn ip(&self, arguments: &str) -> Result<(), NetworkError> {
        ip(arguments, &self.namespace)
    }
}

/// The first address of a host's network.
fn network_of(host: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = host.octets();
    Ipv4Addr::new(a, b, c, 0)
}

fn confinement(namespace: &Arc<File>) -> Confinement {
    Confinement {
        network: Some(namespace.clone()),
        ..Confinement::default()
    }
}

fn spawn(command: Command, namespace: &Arc<File>) -> Result<Process, NetworkError> {
    let program = program_of(&command);
    process::spawn(command, confinement(namespace))
        .map_err(|source| NetworkError::Start { program, source })
}

fn run(command: Command, namespace: &Arc<File>) -> Result<Output, NetworkError> {
    let program = program_of(&command);
    process::output(command, confinement(namespace))
        .map_err(|source| NetworkError::Start { program, source })
}

fn ip(arguments: &str, namespace: &Arc<File>) -> Result<(), NetworkError> {
    let mut command = Command::new("ip");
    command.args(arguments.split(' ')).stdin(Stdio::null());
    let output = run(command, namespace)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetworkError::Failed {
        command: format!("ip {arguments}"),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn program_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
