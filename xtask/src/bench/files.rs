//! `cargo xtask bench tftp` and `bench http`: one file, served by us and by others in turn, each on
//! one processor; the clients have the other one.

mod client;
mod load;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::{GATEWAY, Network, Tool};
use serde_json::Value;

use super::boot::{IMAGE, cache};
use super::ours::Ours;
use super::row::{Better, Report, Row, median};
use super::{Options, run_there};
use crate::workspace::{is_root, target_directory};
use crate::{dist, install};

pub use load::run as generate;
use server::Server;

/// The name of the benchmark that the clients' process is started as.
pub const GENERATOR: &str = "files-load";
/// The processors of server and clients.
const SERVER_CPU: &str = "0";
const GENERATOR_CPU: &str = "1";
/// How long one client fetches in a round.
const LOAD_TIME: Duration = Duration::from_millis(1500);

/// A figure: its name, unit, which way is better, the load that it is of, and that load's field.
struct Figure {
    name: &'static str,
    unit: &'static str,
    better: Better,
    load: &'static str,
    field: &'static str,
    /// The only peers that have it; none means all.
    peers: &'static [Server],
}

const fn rate(name: &'static str, load: &'static str, peers: &'static [Server]) -> Figure {
    Figure {
        name,
        unit: "MB/s",
        better: Better::Higher,
        load,
        field: "mb_per_s",
        peers,
    }
}

const TFTP_PEERS: [Server; 3] = [Server::Hpa, Server::Dnsmasq, Server::Tftpd];
const TFTP: [Figure; 5] = [
    rate("tftp-w1", "w1", &TFTP_PEERS),
    rate("tftp-w4", "w4", &TFTP_PEERS),
    rate("tftp-w16", "w16", &TFTP_PEERS),
    rate("tftp-firmware", "firmware", &[Server::Dnsmasq]),
    Figure {
        name: "tftp-fair",
        unit: "slowest client / median client",
        better: Better::Lower,
        load: "fair",
        field: "slowest",
        peers: &[],
    },
];

const HTTP_PEERS: [Server; 1] = [Server::Nginx];
const HTTP: [Figure; 2] = [
    rate("http", "http", &HTTP_PEERS),
    Figure {
        name: "http-cpu",
        unit: "s of server CPU for each GB",
        better: Better::Lower,
        load: "http",
        field: "cpu_s_per_gb",
        peers: &HTTP_PEERS,
    },
];

/// Runs `bench tftp`.
pub fn tftp(options: &Options) -> anyhow::Result<Report> {
    let loads = ["w1", "w4", "w16", "firmware", "fair"];
    run("tftp", options, &TFTP, &TFTP_PEERS, &options.loads(&loads)?)
}

/// Runs `bench http`.
pub fn http(options: &Options) -> anyhow::Result<Report> {
    run("http", options, &HTTP, &HTTP_PEERS, &["http"])
}

fn run(
    name: &'static str,
    options: &Options,
    figures: &[Figure],
    peers: &[Server],
    loads: &[&str],
) -> anyhow::Result<Report> {
    if !is_root() {
        bail!("the benchmark makes networks and serves on low ports: run it as root");
    }
    install::ensure(&[Tool::Iproute, Tool::Mmdebstrap], &server::PROGRAMS)?;
    let bench = Bench::prepare(loads)?;
    let mut sides = vec![(Server::Ours, Vec::new())];
    if !options.ours {
        sides.extend(peers.iter().map(|peer| (*peer, Vec::new())));
    }
    for round in 1..=options.rounds {
        for (server, rounds) in &mut sides {
            let printed = bench.measure(*server, options.clients);
            rounds.push(printed.with_context(|| server.name())?);
            eprintln!("round {round}/{}: {}", options.rounds, server.name());
        }
    }
    Ok(Report {
        name,
        conditions: conditions(options, &sides)?,
        rows: figures.iter().filter_map(|it| it.row(&sides)).collect(),
    })
}

/// A server, and what its clients printed in each round.
type Side = (Server, Vec<Value>);

impl Figure {
    fn row(&self, sides: &[Side]) -> Option<Row> {
        let read = |(_, rounds): &Side| {
            let values = rounds
                .iter()
                .filter_map(|it| it[self.load][self.field].as_f64());
            let values: Vec<f64> = values.collect();
            (!values.is_empty()).then(|| median(values))
        };
        let (ours, others) = sides.split_first()?;
        let others = others.iter().filter(|it| self.peers.contains(&it.0));
        let others = others.filter_map(|side| Some((side.0.name(), read(side)?)));
        let peer = match self.better {
            Better::Lower => others.min_by(|a, b| a.1.total_cmp(&b.1)),
            Better::Higher => others.max_by(|a, b| a.1.total_cmp(&b.1)),
        };
        Some(Row {
            name: self.name,
            unit: self.unit,
            better: self.better,
            ours: read(ours)?,
            peer,
        })
    }
}

/// What is measured with.
struct Bench {
    ours: Ours,
    /// Holds [`server::FILE`] for the peers.
    folder: PathBuf,
    scratch: PathBuf,
    loads: Vec<String>,
}

impl Bench {
    fn prepare(loads: &[&str]) -> anyhow::Result<Self> {
        let folder = target_directory()?.join("bench");
        let ours = Ours::prepare(dist::build()?, folder.join("ours"), IMAGE, &cache(&folder))?;
        let scratch = folder.join("files");
        let bench = Self {
            ours,
            folder: scratch.join("served"),
            scratch,
            loads: loads.iter().map(|it| (*it).to_owned()).collect(),
        };
        std::fs::create_dir_all(&bench.folder)
            .with_context(|| format!("making {}", bench.folder.display()))?;
        let program = server::tftpd(&bench.scratch);
        server::install_tftpd(&program)?;
        bench.ours.write_kernel(&bench.folder.join(server::FILE))?;
        Ok(bench)
    }

    fn measure(&self, server: Server, clients: usize) -> anyhow::Result<Value> {
        let network = Network::new()?;
        run_there(
            &network,
            "ip",
            &["address", "add", load::CLIENTS, "dev", "lo"],
        )?;
        let process = match server {
            Server::Ours => self.ours.start_on(SERVER_CPU, &network)?,
            other => other.start(&network, SERVER_CPU, &self.folder, &self.scratch)?,
        };
        let path = match server {
            Server::Ours => self.ours.kernel_path()?,
            _ => server::FILE.to_owned(),
        };
        let order = load::Order {
            server: GATEWAY,
            process: process.id(),
            path,
            file: self.folder.join(server::FILE),
            time: LOAD_TIME,
            clients,
            loads: self.loads_of(server),
        };
        let own = std::env::current_exe().context("finding this program")?;
        let own = own.to_string_lossy();
        let order = order.as_json().to_string();
        let words = [
            "--cpu-list",
            GENERATOR_CPU,
            &own,
            "bench",
            GENERATOR,
            &order,
        ];
        let printed = run_there(&network, "taskset", &words)?;
        serde_json::from_str(&printed).context("reading what the clients print")
    }

    /// How fair others are is no figure.
    fn loads_of(&self, server: Server) -> Vec<String> {
        let wanted = |it: &&String| server == Server::Ours || *it != "fair";
        self.loads.iter().filter(wanted).cloned().collect()
    }
}

fn conditions(options: &Options, sides: &[Side]) -> anyhow::Result<Vec<(&'static str, String)>> {
    let cores = std::thread::available_parallelism()?;
    ensure!(cores.get() > 1, "a processor for each side is needed");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let names: Vec<&str> = sides.iter().map(|side| side.0.name()).collect();
    Ok(vec![
        ("rounds", format!("{}, medians", options.rounds)),
        (
            "machine",
            format!(
                "{cores} cores, Linux {}, load {}",
                kernel.trim(),
                load.trim()
            ),
        ),
        (
            "servers",
            format!("{}; the better peer counts", names.join("; ")),
        ),
        (
            "file",
            format!(
                "the kernel of {IMAGE}, over loopback; the server on processor {SERVER_CPU}, the clients on {GENERATOR_CPU}"
            ),
        ),
        (
            "clients",
            format!("one, or {} at once (tftp-fair, http)", options.clients),
        ),
        ("checked", "every byte".to_owned()),
    ])
}

/// A path below a folder, as text.
fn text(path: &Path) -> String {
    path.display().to_string()
}
