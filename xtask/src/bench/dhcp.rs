//! `cargo xtask bench dhcp`: leases for each second, by us, Kea and dnsmasq in turn, each on one
//! processor and with leases that survive a crash; the clients are perfdhcp, Kea's load generator. And
//! a storm: firmware of a thousand machines that asks within one second.

mod storm;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::{GATEWAY, Host, Network, Process, Tool};
use serde_json::Value;

use super::boot::{IMAGE, cache};
use super::ours::Ours;
use super::row::{Better, Report, Row, median};
use super::{Options, on_processor, run_there};
use crate::dist;
use crate::install::{self, Extra};
use crate::workspace::{is_root, target_directory};

/// The machines of a storm, in a process of its own.
pub use storm::run as generate;

/// The name of the benchmark that the storm's process is started as.
pub const GENERATOR: &str = "dhcp-storm";
const SERVER_CPU: &str = "0";
const GENERATOR_CPU: &str = "1";
/// Where the clients are.
const CLIENTS: [u8; 4] = [10, 77, 0, 9];
/// How many perfdhcp plays, and at which rates until a server falls behind.
const MACHINES: &str = "30000";
const RATES: [u32; 13] = [
    100, 250, 500, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000, 12_000, 16_000, 24_000, 32_000,
];
/// How long each rate is offered, in seconds.
const OFFERED_S: &str = "3";
/// A server that completes less than this share of what is offered is not asked for more.
const KEEPS_UP: f64 = 0.7;

const PROGRAMS: [Extra; 3] = [
    Extra {
        path: "/usr/sbin/perfdhcp",
        package: "kea-admin",
        purpose: "play many DHCP clients",
    },
    Extra {
        path: "/usr/sbin/kea-dhcp4",
        package: "kea-dhcp4-server",
        purpose: "be a DHCP server to compare with",
    },
    Extra {
        path: "/usr/sbin/dnsmasq",
        package: "dnsmasq-base",
        purpose: "be a DHCP server to compare with",
    },
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Ours,
    Kea,
    Dnsmasq,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Server::Ours => "Cleanslate",
            Server::Kea => "Kea, memfile",
            Server::Dnsmasq => "dnsmasq",
        }
    }
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    if !is_root() {
        bail!("the benchmark makes networks and serves on low ports: run it as root");
    }
    install::ensure(&[Tool::Iproute, Tool::Mmdebstrap], &PROGRAMS)?;
    let folder = target_directory()?.join("bench");
    let bench = Bench {
        ours: Ours::prepare(dist::build()?, folder.join("ours"), IMAGE, &cache(&folder))?,
        scratch: folder.join("dhcp"),
    };
    std::fs::create_dir_all(&bench.scratch)
        .with_context(|| format!("making {}", bench.scratch.display()))?;
    let loads = options.loads(&["leases", "storm"])?;
    let mut sides = Vec::new();
    if loads.contains(&"leases") {
        sides.push((Server::Ours, Vec::new()));
    }
    if !options.ours && loads.contains(&"leases") {
        sides.extend([Server::Kea, Server::Dnsmasq].map(|it| (it, Vec::new())));
    }
    let mut storms = Vec::new();
    for round in 1..=options.rounds {
        for (server, rounds) in &mut sides {
            let leases = bench.leases(*server);
            let leases = leases.with_context(|| server.name())?;
            rounds.push(leases);
            eprintln!(
                "round {round}/{}: {} {leases:.0} leases/s",
                options.rounds,
                server.name()
            );
        }
        if loads.contains(&"storm") {
            storms.push(bench.storm().context("the storm")?);
        }
    }
    Ok(Report {
        name: "dhcp",
        conditions: conditions(options)?,
        rows: rows(&sides, &storms),
    })
}

fn rows(sides: &[(Server, Vec<f64>)], storms: &[Value]) -> Vec<Row> {
    let figure = |server: Server| {
        let side = sides.iter().find(|it| it.0 == server)?;
        Some((server.name(), median(side.1.clone())))
    };
    let ours = figure(Server::Ours).map_or(f64::NAN, |it| it.1);
    let leases = |name, peer| Row {
        name,
        unit: "leases/s",
        better: Better::Higher,
        ours,
        peer,
    };
    let storm = |name, unit, field: &str| Row {
        name,
        unit,
        better: Better::Lower,
        ours: median(storms.iter().filter_map(|it| it[field].as_f64()).collect()),
        peer: None,
    };
    let mut rows = Vec::new();
    if ours.is_finite() {
        rows.push(leases("leases", figure(Server::Kea)));
    }
    if let Some(dnsmasq) = figure(Server::Dnsmasq) {
        rows.push(leases("leases-dnsmasq", Some(dnsmasq)));
    }
    if !storms.is_empty() {
        rows.push(storm("storm-p99", "ms from DISCOVER to OFFER", "p99_ms"));
        rows.push(storm("storm-unanswered", "of 1000 machines", "unanswered"));
    }
    rows
}

struct Bench {
    ours: Ours,
    scratch: PathBuf,
}

impl Bench {
    /// A network with room for all of them, a server on it, and a host that asks.
    fn site(&self, server: Server) -> anyhow::Result<(Network, Process, Host)> {
        let network = Network::new()?;
        let interface = network.interface().to_owned();
        let address = |verb: &str, bits: &str| {
            let address = format!("{GATEWAY}/{bits}");
            run_there(
                &network,
                "ip",
                &["address", verb, &address, "dev", &interface],
            )
        };
        address("del", "24")?;
        address("add", "16")?;
        let host = network.add_host(CLIENTS.into())?;
        let process = match server {
            Server::Ours => self.ours.start_on(SERVER_CPU, &network)?,
            other => self.start_peer(other, &network)?,
        };
        Ok((network, process, host))
    }

    fn start_peer(&self, server: Server, network: &Network) -> anyhow::Result<Process> {
        let leases = self.scratch.join("leases");
        let _ = std::fs::remove_file(&leases);
        let mut command = match server {
            Server::Kea => {
                let config = self.scratch.join("kea.json");
                std::fs::write(&config, kea_config(network.interface(), &leases))
                    .with_context(|| format!("writing {}", config.display()))?;
                let mut command = Command::new("/usr/sbin/kea-dhcp4");
                command
                    .arg("-c")
                    .arg(config)
                    .env("KEA_PIDFILE_DIR", &self.scratch)
                    .env("KEA_LOCKFILE_DIR", &self.scratch);
                command
            }
            _ => {
                let mut command = Command::new("/usr/sbin/dnsmasq");
                command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]);
                command.args(["--pid-file=", "--user=root", "--bind-interfaces"]);
                command.args([
                    "--no-ping",
                    "--dhcp-authoritative",
                    "--dhcp-lease-max=70000",
                ]);
                command.arg("--dhcp-range=10.77.1.0,10.77.255.254,255.255.0.0,1h");
                command.arg(format!("--interface={}", network.interface()));
                command.arg(format!("--dhcp-leasefile={}", leases.display()));
                command
            }
        };
        command = on_processor(SERVER_CPU, &command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = network.spawn(command);
        let process = process.with_context(|| format!("starting {}", server.name()))?;
        std::thread::sleep(Duration::from_secs(2));
        Ok(process)
    }

    /// The most that a server gives in a second, at any rate.
    fn leases(&self, server: Server) -> anyhow::Result<f64> {
        let (_network, _process, host) = self.site(server)?;
        let mut most = 0.0_f64;
        for rate in RATES {
            let given = offer(&host, rate)?;
            most = most.max(given);
            if given < f64::from(rate) * KEEPS_UP {
                break;
            }
        }
        Ok(most)
    }

    fn storm(&self) -> anyhow::Result<Value> {
        let (_network, _process, host) = self.site(Server::Ours)?;
        let mut command = Command::new("taskset");
        command
            .args(["--cpu-list", GENERATOR_CPU])
            .arg(std::env::current_exe().context("finding this program")?)
            .args(["bench", GENERATOR])
            .stdin(Stdio::null());
        let output = host.run(command)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}", errors.trim());
        serde_json::from_slice(&output.stdout).context("reading what the storm prints")
    }
}

/// Exchanges that are completed in a second when so many are begun.
fn offer(host: &Host, rate: u32) -> anyhow::Result<f64> {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", GENERATOR_CPU, "/usr/sbin/perfdhcp", "-4"]);
    command.args(["-R", MACHINES, "-r", &rate.to_string(), "-p", OFFERED_S]);
    command.args(["-l", host.interface(), &GATEWAY.to_string()]);
    command.stdin(Stdio::null());
    let output = host.run(command)?;
    // It fails where exchanges are left open, which is the point.
    let printed = String::from_utf8_lossy(&output.stdout);
    rate_in(&printed).with_context(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!(
            "perfdhcp names no rate: {} {}",
            printed.trim(),
            errors.trim()
        )
    })
}

fn rate_in(printed: &str) -> Option<f64> {
    let line = printed.lines().find_map(|it| it.strip_prefix("Rate: "))?;
    line.split_whitespace().next()?.parse().ok()
}

fn kea_config(interface: &str, leases: &Path) -> String {
    format!(
        r#"{{ "Dhcp4": {{
  "interfaces-config": {{ "interfaces": [ "{interface}" ] }},
  "lease-database": {{ "type": "memfile", "persist": true, "name": "{}", "lfc-interval": 0 }},
  "valid-lifetime": 3600,
  "subnet4": [ {{ "subnet": "10.77.0.0/16", "pools": [ {{ "pool": "10.77.1.0 - 10.77.255.254" }} ] }} ],
  "loggers": [ {{ "name": "kea-dhcp4", "severity": "ERROR" }} ]
}} }}"#,
        leases.display()
    )
}

fn conditions(options: &Options) -> anyhow::Result<Vec<(&'static str, String)>> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(vec![
        ("rounds", format!("{}, medians", options.rounds)),
        (
            "machine",
            format!("{cores} cores, Linux {}, load {}", kernel.trim(), load.trim()),
        ),
        (
            "leases",
            format!("perfdhcp as a relay of {MACHINES} machines, at rising rates of {OFFERED_S} s each; the best counts; the server on processor {SERVER_CPU}"),
        ),
        (
            "kept",
            "ours: on disk before the reply; Kea and dnsmasq: written to a file, left to the kernel".to_owned(),
        ),
        (
            "storm",
            "1000 DISCOVERs of UEFI firmware within one second, new machines all".to_owned(),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_off() {
        let printed = "Running: perfdhcp\n***Rate statistics***\nRate: 5965.12 4-way exchanges/second, expected rate: 6000\n";
        assert_eq!(rate_in(printed), Some(5965.12));
        assert_eq!(rate_in("none"), None);
    }
}
