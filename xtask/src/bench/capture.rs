//! What a packet capture says about a boot, read in the same way for both sides.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Network, Process};

use crate::install::Extra;

/// What captures, and what reads it.
pub const TCPDUMP: Extra = Extra {
    path: "/usr/bin/tcpdump",
    package: "tcpdump",
    purpose: "capture what both sides send",
};
pub const TSHARK: Extra = Extra {
    path: "/usr/bin/tshark",
    package: "tshark",
    purpose: "read what was captured",
};
/// The operations READ of NFS 4 and the port that both sides serve on.
const READ: &str = "25";
const ACCESS: &str = "3";

/// A running capture of a network's bridge.
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

/// One boot's traffic; times in seconds since the epoch.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Traffic {
    /// The first DISCOVER.
    pub discover_s: Option<f64>,
    /// The first ACCESS call: the walk of the mounted path.
    pub root_mounted_s: Option<f64>,
    /// NFS calls.
    pub calls: u64,
    /// Bytes that READ replies carried.
    pub read_bytes: u64,
}

impl Capture {
    /// Starts capturing DHCP and NFS into `file`.
    pub fn start(network: &Network, file: PathBuf) -> anyhow::Result<Self> {
        let mut command = Command::new("tcpdump");
        command
            .args([
                "-i",
                network.interface(),
                "-U",
                "-B",
                "65536",
                "-s",
                "0",
                "-w",
            ])
            .arg(&file);
        command
            .args(["udp port 67 or tcp port 2049"])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        // tcpdump would otherwise become a user who may not write there.
        command.args(["-Z", "root"]);
        let tcpdump = network.spawn(command).context("starting tcpdump")?;
        Ok(Self { tcpdump, file })
    }

    /// Stops.
    pub fn stop(mut self) -> anyhow::Result<PathBuf> {
        self.tcpdump.terminate()?;
        self.tcpdump.wait_timeout(Duration::from_secs(10))?;
        Ok(self.file)
    }

    /// Stops, and reads what was sent until `end` (seconds since the epoch).
    pub fn finish(self, end: f64) -> anyhow::Result<Traffic> {
        let rows = tshark(&self.stop()?)?;
        let traffic = rows
            .lines()
            .filter_map(Packet::parse)
            .filter(|packet| packet.at <= end);
        Ok(traffic.fold(Traffic::default(), |sum, packet| sum.with(&packet)))
    }
}

const FIELDS: [&str; 6] = [
    "frame.time_epoch",
    "dhcp.option.dhcp",
    "rpc.msgtyp",
    "nfs.opcode",
    "nfs.read.data_length",
    "rpc.program",
];

fn tshark(file: &Path) -> anyhow::Result<String> {
    let mut command = Command::new("tshark");
    // A client's port below 1024 may be that of another protocol: look at the bytes first.
    command.arg("-r").arg(file).args([
        "-n",
        "-o",
        "tcp.try_heuristic_first:TRUE",
        "-Y",
        "dhcp or rpc",
        "-T",
        "fields",
        "-E",
        "occurrence=a",
    ]);
    FIELDS.iter().for_each(|field| {
        command.args(["-e", field]);
    });
    let output = command.output().context("starting tshark")?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tshark: {message}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A packet; one may carry several RPC messages.
struct Packet<'a> {
    at: f64,
    discover: bool,
    calls: u64,
    operations: Vec<&'a str>,
    read_bytes: u64,
}

impl<'a> Packet<'a> {
    fn parse(row: &'a str) -> Option<Self> {
        let mut columns = row.split('\t');
        let mut list = || {
            columns
                .next()
                .unwrap_or_default()
                .split(',')
                .filter(|value| !value.is_empty())
                .collect::<Vec<_>>()
        };
        let (at, dhcp, kinds, operations, lengths) = (list(), list(), list(), list(), list());
        Some(Self {
            at: at.first()?.parse().ok()?,
            discover: dhcp.contains(&"1"),
            calls: kinds.iter().filter(|kind| **kind == "0").count() as u64,
            operations,
            read_bytes: lengths
                .iter()
                .filter_map(|length| length.parse::<u64>().ok())
                .sum(),
        })
    }
}

impl Traffic {
    fn with(mut self, packet: &Packet<'_>) -> Self {
        if packet.discover {
            self.discover_s.get_or_insert(packet.at);
        }
        if packet.calls > 0 && packet.operations.contains(&ACCESS) {
            self.root_mounted_s.get_or_insert(packet.at);
        }
        self.calls += packet.calls;
        if packet.calls == 0 && packet.operations.contains(&READ) {
            self.read_bytes += packet.read_bytes;
        }
        self
    }
}
