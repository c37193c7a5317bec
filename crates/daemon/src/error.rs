//! Why the daemon did not start or had to stop; each error says what to do next.

use std::io;
use std::path::PathBuf;

/// A fatal error of the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A privileged step was refused.
    #[error("{step} needs root or the right capability: {source}")]
    Privilege {
        /// What was tried.
        step: String,
        /// The system's answer.
        source: io::Error,
    },
    /// No network interface of that name.
    #[error("there is no network interface {name}; this machine has {}", present.join(", "))]
    InterfaceMissing {
        /// The name asked for.
        name: String,
        /// Names of the interfaces present.
        present: Vec<String>,
    },
    /// The interface has no IPv4 address.
    #[error("interface {name:?} has no IPv4 address")]
    InterfaceAddress {
        /// The interface.
        name: String,
    },
    /// Two interfaces are in one network, so that no answer would be sure to go out where it should.
    #[error("{first} and {second} are both in the network {network}")]
    NetworkTwice {
        /// One interface.
        first: String,
        /// The other one.
        second: String,
        /// `ADDRESS/PREFIX`.
        network: String,
    },
    /// Dynamic addresses that are in no network, or a second range of one.
    #[error("expected one range of addresses in each of {}, got {range}", networks.join(" and "))]
    RangeOutside {
        /// `FIRST-LAST`.
        range: String,
        /// The networks served, `ADDRESS/PREFIX`.
        networks: Vec<String>,
    },
    /// A port is in use.
    #[error("port {port}/{protocol} ({purpose}) is taken")]
    PortTaken {
        /// The port number.
        port: u16,
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// What it is for: `DHCP`, `TFTP`, `HTTP`, `NFS`.
        purpose: &'static str,
    },
    /// Another daemon answers on the control socket.
    #[error("another slate daemon answers on {}", path.display())]
    AlreadyRunning {
        /// The control socket.
        path: PathBuf,
    },
    /// The key file is damaged or open to others.
    #[error("key file {}: expected {expected}, got {got}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What was found.
        got: String,
    },
    /// A certificate or its key cannot be served with.
    #[error("{}: expected {expected}, got {got}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What was found.
        got: String,
    },
    /// The state database cannot be used.
    #[error("state database {}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// The state database was written by a newer slate.
    #[error("state database {}: expected schema up to {supported}, got {found}", path.display())]
    SchemaTooNew {
        /// The file.
        path: PathBuf,
        /// Newest schema that this binary knows.
        supported: u32,
        /// Schema of the file.
        found: u32,
    },
    /// The image store cannot be used.
    #[error("image store {}: {message}", path.display())]
    Store {
        /// The store's directory.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// The default image does not exist.
    #[error("there is no image {name}")]
    NoSuchImage {
        /// The name asked for.
        name: String,
        /// `NAME:TAG` of the images in the store.
        present: Vec<String>,
    },
    /// The user to become does not exist.
    #[error("no user named {name:?}")]
    NoSuchUser {
        /// The name asked for.
        name: String,
    },
    /// Input or output failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// An I/O error with what was being done.
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Error {
        Error::Io {
            doing: doing.into(),
            source,
        }
    }

    /// What to do next, in one or two sentences.
    pub fn hint(&self) -> String {
        match self {
            Error::Privilege { .. } => "Run it with sudo, or as a service: slate service install.".into(),
            Error::InterfaceMissing { .. } => "Name one of these with --interface.".into(),
            Error::InterfaceAddress { name } => format!(
                "Give it one first, for example: ip addr add 192.168.2.2/24 dev {name} && ip link set {name} up"
            ),
            Error::NetworkTwice { .. } => "Name one of them only.".into(),
            Error::RangeOutside { .. } => {
                "Give --range once for each network that needs one, or leave it out.".into()
            }
            Error::PortTaken { port, protocol, .. } => {
                let flag = if *protocol == "udp" { 'u' } else { 't' };
                format!("See who owns it: ss -l{flag}np 'sport = :{port}'. Stop that, or choose another port.")
            }
            Error::AlreadyRunning { .. } => {
                "Stop it first (systemctl stop slate, or Ctrl-C where it runs), or give this one another --run-dir.".into()
            }
            Error::KeyFile { path, .. } => format!(
                "chmod 600 {0}, or restore it from a backup. A new one would change every node's identity.",
                path.display()
            ),
            Error::Certificate { .. } => {
                "Give --tls-cert the server's certificate with its chain, and --tls-key its own key, both in PEM.".into()
            }
            Error::Database { path, .. } => format!(
                "Check free space and permissions of {}; the file can be inspected with sqlite3.",
                path.display()
            ),
            Error::SchemaTooNew { .. } => "Use the newer slate, or another --state-dir.".into(),
            Error::Store { path, .. } => format!("Check free space and permissions of {}.", path.display()),
            Error::NoSuchImage { present, .. } if !present.is_empty() => {
                format!("Choose one of: {}.", present.join(", "))
            }
            Error::NoSuchImage { .. } => {
                "Import one first: slate image import NAME DIRECTORY|TAR, or: slate image build debian13.".into()
            }
            Error::NoSuchUser { name } => format!("Make it: useradd --system --no-create-home {name}"),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "Free some disk space and start again: nothing that was promised is lost.".into()
            }
            Error::Io { .. } => "See the system's message above.".into(),
        }
    }
}
