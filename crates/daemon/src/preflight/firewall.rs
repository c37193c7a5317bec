//! Firewalls that drop what nodes send: firewalld, ufw, plain nftables.

mod firewalld;
pub mod ruleset;
mod ufw;

use std::fmt;
use std::process::Command;

use super::CommandFailed;
use super::ports::{Port, Protocol};

/// What filters packets here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firewall {
    /// firewalld, with the interface's zone.
    Firewalld {
        /// The zone.
        zone: String,
    },
    /// ufw.
    Ufw,
    /// nftables rules that nobody else manages (iptables-nft included).
    Nftables,
}

/// A firewall that drops what nodes send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallFinding {
    /// Which firewall.
    pub firewall: Firewall,
    /// The interface that it drops them on.
    pub interface: String,
    /// What it drops.
    pub dropped: Vec<Port>,
    /// The commands that open it, each as its words.
    pub commands: Vec<Vec<String>>,
}

impl FirewallFinding {
    /// The commands, one per line.
    pub fn hint(&self) -> String {
        let mut lines = vec!["open it (--open-firewall does it):".to_owned()];
        lines.extend(self.commands.iter().map(|words| shell(words)));
        lines.join("\n")
    }
}

impl fmt::Display for FirewallFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.firewall {
            Firewall::Firewalld { zone } => format!("firewalld (zone {zone})"),
            Firewall::Ufw => "ufw".to_owned(),
            Firewall::Nftables => "an nftables ruleset".to_owned(),
        };
        let ports: Vec<String> = self
            .dropped
            .iter()
            .map(|port| format!("{}/{}", port.number, port.protocol.name()))
            .collect();
        let interface = &self.interface;
        write!(f, "{name} drops {} on {interface}", ports.join(", "))
    }
}

/// Asks the firewall that manages this machine, else reads the kernel's rules.
pub fn check(interface: &str, ports: &[Port]) -> Option<FirewallFinding> {
    if firewalld::is_running() {
        return firewalld::check(interface, ports);
    }
    if let Some(status) = ufw::status() {
        return ufw::check(&status, interface, ports);
    }
    let rules = output(&["nft", "-j", "list", "ruleset"])?;
    ruleset::check(&rules, interface, ports)
}

/// Standard output of a command that succeeded.
fn output(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then_some(text)
}

/// Runs one of the commands that open a firewall.
pub fn run_command(words: &[String]) -> Result<(), CommandFailed> {
    let failed = |message: String| CommandFailed {
        command: shell(words),
        message,
    };
    let output = Command::new(&words[0])
        .args(&words[1..])
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

/// The words as they are typed into a shell.
fn shell(words: &[String]) -> String {
    let quoted = words.iter().map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+".contains(c);
        match word.chars().all(plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Numbers of the ports of one protocol, sorted, each once.
fn numbers(ports: &[Port], protocol: Protocol) -> Vec<u16> {
    let of_protocol = ports.iter().filter(|port| port.protocol == protocol);
    let mut numbers: Vec<u16> = of_protocol.map(|port| port.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}
