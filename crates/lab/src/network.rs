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

impl Tap {
    /// The interface's name inside the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Network {
    /// Makes the namespace and its bridge. Needs root and `ip` from iproute2.
    pub fn new() -> Result<Self, NetworkError> {
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
            "address add {GATEWAY}/{PREFIX_LENGTH} dev {BRIDGE}"
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

    /// Starts `command` inside the namespace, with a `/sys` that shows its interfaces.
    pub fn spawn(&self, command: Command) -> Result<Process, NetworkError> {
        let program = program_of(&command);
        process::spawn(command, self.confinement())
            .map_err(|source| NetworkError::Start { program, source })
    }

    /// Runs `command` to its end inside the namespace and captures what it prints.
    pub fn run(&self, command: Command) -> Result<Output, NetworkError> {
        let program = program_of(&command);
        process::output(command, self.confinement())
            .map_err(|source| NetworkError::Start { program, source })
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
        Confinement {
            network: Some(self.namespace.clone()),
            ..Confinement::default()
        }
    }

    fn ip(&self, arguments: &str) -> Result<(), NetworkError> {
        let mut command = Command::new("ip");
        command.args(arguments.split(' ')).stdin(Stdio::null());
        let output = self.run(command)?;
        if output.status.success() {
            return Ok(());
        }
        Err(NetworkError::Failed {
            command: format!("ip {arguments}"),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

fn program_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
