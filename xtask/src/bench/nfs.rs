//! `cargo xtask bench nfs`: our NFS server and NFS-Ganesha, called by one load generator.
//!
//! Both export the same tree, in turn, each on a network of its own, with one processor to itself;
//! the generator has the other one.

mod boots;
mod client;
pub mod cost;
mod cpio;
mod drive;
mod knfsd;
mod load;
mod outcome;
mod pcap;
pub mod percentile;
mod recording;
mod replay;
mod source;
mod targets;
mod xdr;

use std::path::{Path, PathBuf};

use std::time::Duration;

use anyhow::{Context, bail};
use lab::{GATEWAY, Network, Process, Tool};
use serde_json::Value;

use super::boot::{IMAGE, archive, cache};
use super::ganesha::Ganesha;
use super::ours::Ours;
use super::peer::{self, Peer};
use super::row::{Better, Report, Row, median};
use super::{Options, run_there, script};
use crate::workspace::{is_root, must_succeed, target_directory};
use crate::{dist, install};

use boots::Boots;
use load::Boot;
/// The generator's work, in its own process.
pub use load::run as generate;

/// The name of the benchmark that the generator's process is started as.
pub const GENERATOR: &str = "nfs-load";

const TOOLS: [Tool; 3] = [Tool::Iproute, Tool::UserModeLinux, Tool::Mmdebstrap];
/// The processors of server and generator.
const SERVER_CPU: &str = "0";
const GENERATOR_CPU: &str = "1";
const PORT: u16 = 2049;
/// How long each load is measured in a round.
const LOAD_TIME: Duration = Duration::from_millis(1500);
const LOADS: [&str; 11] = [
    "getattr",
    "access",
    "lookup",
    "read-4k",
    "read-64k",
    "read-1m",
    "crowd",
    "replay",
    "replay-first",
    "replay-among",
    "idle",
];

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    if !is_root() {
        bail!("the benchmark makes networks and exports files: run it as root");
    }
    install::ensure(&TOOLS, &peer::PROGRAMS)?;
    install::ensure(&[], &knfsd::PROGRAMS)?;
    if let Some(unknown) = options.only.iter().find(|it| !LOADS.contains(&it.as_str())) {
        bail!(
            "--only: unknown load: {unknown}; known: {}",
            LOADS.join(", ")
        );
    }
    let wanted = |load: &&str| options.only.is_empty() || options.only.iter().any(|it| it == load);
    let loads: Vec<String> = LOADS
        .iter()
        .filter(|it| wanted(it))
        .map(|it| (*it).to_owned())
        .collect();
    let bench = Bench::prepare(options, loads)?;
    let mut sides = vec![Side::new(Server::Ours)];
    if !options.ours {
        sides.push(Side::new(Server::Ganesha {
            numeric_owners: false,
        }));
        sides.push(Side::new(Server::Ganesha {
            numeric_owners: true,
        }));
    }
    for round in 1..=options.rounds {
        for side in &mut sides {
            let name = side.server.name();
            let figures = bench.measure(side.server, options.clients);
            side.rounds.push(figures.with_context(|| name.to_owned())?);
            eprintln!("round {round}/{}: {name}", options.rounds);
        }
    }
    let mut rows = rows(&sides);
    rows.extend(bench.boot_rows()?);
    Ok(Report {
        name: "nfs",
        conditions: conditions(options, &sides)?,
        rows,
    })
}

/// A server that is measured.
#[derive(Clone, Copy)]
enum Server {
    Ours,
    Ganesha { numeric_owners: bool },
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Server::Ours => "Cleanslate",
            Server::Ganesha {
                numeric_owners: false,
            } => "NFS-Ganesha",
            Server::Ganesha {
                numeric_owners: true,
            } => "NFS-Ganesha, numeric owners",
        }
    }
}

/// A server and what it was measured at: what the generator printed in each round.
struct Side {
    server: Server,
    rounds: Vec<Value>,
}

impl Side {
    fn new(server: Server) -> Self {
        Self {
            server,
            rounds: Vec::new(),
        }
    }

    /// The median of a figure; `None` where it was not measured.
    fn figure(&self, read: impl Fn(&Value) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.rounds.iter().filter_map(read).collect();
        (!values.is_empty()).then(|| median(values))
    }
}

/// What is measured with.
struct Bench {
    ours: Ours,
    /// The exported tree, unpacked.
    tree: PathBuf,
    scratch: PathBuf,
    loads: Vec<String>,
    boots: Option<Boots>,
    /// The peers' boots, by the names of their rows.
    their_boots: Vec<(&'static str, &'static str, Boot)>,
}

impl Bench {
    fn prepare(options: &Options, loads: Vec<String>) -> anyhow::Result<Self> {
        let folder = target_directory()?.join("bench");
        let cache = cache(&folder);
        let ours = Ours::prepare(dist::build()?, folder.join("ours"), IMAGE, &cache)?;
        let scratch = folder.join("nfs");
        std::fs::create_dir_all(&scratch)
            .with_context(|| format!("making {}", scratch.display()))?;
        let archive = archive(&cache)?;
        let tree = unpack(&archive, &scratch)?;
        let has_boot = loads.iter().any(|load| load.starts_with("replay"));
        let boot = || boots::ours(&ours, &scratch).context("booting from our server");
        let boots = has_boot.then(boot).transpose()?;
        let their_boots = || {
            let peer = Peer::prepare(&archive, &folder)?;
            let ganesha = boots::ganesha(&ours, &peer, &scratch).context("booting from Ganesha")?;
            let knfsd = boots::knfsd(&ours, &peer, &tree, &scratch);
            let knfsd = knfsd.context("booting from the kernel's NFS server")?;
            anyhow::Ok(vec![
                ("boot-rpcs", "NFS-Ganesha", ganesha),
                ("boot-rpcs-knfsd", knfsd::NAME, knfsd),
            ])
        };
        let has_theirs = has_boot && !options.ours;
        let their_boots = has_theirs.then(their_boots).transpose()?;
        Ok(Self {
            ours,
            tree,
            loads,
            boots,
            their_boots: their_boots.unwrap_or_default(),
            scratch,
        })
    }

    /// How many calls a node makes until it is up.
    fn boot_rows(&self) -> anyhow::Result<Vec<Row>> {
        let calls = |boot: &Boot| boots::calls(boot, PORT).map(|calls| calls as f64);
        let Some(boots) = &self.boots else {
            return Ok(Vec::new());
        };
        let row = |name, ours, peer| Row {
            better: Better::Lower,
            name,
            unit: "calls",
            ours,
            peer,
        };
        let (ours, first) = (calls(&boots.ours)?, calls(&boots.first)?);
        let mut rows = Vec::new();
        for (name, peer, boot) in &self.their_boots {
            rows.push(row(*name, ours, Some((*peer, calls(boot)?))));
        }
        if rows.is_empty() {
            rows.push(row("boot-rpcs", ours, None));
        }
        rows.push(row("boot-rpcs-first", first, rows[0].peer));
        Ok(rows)
    }

    /// Starts a server, has the generator call it, and ends it.
    fn measure(&self, server: Server, clients: usize) -> anyhow::Result<Value> {
        let network = Network::new()?;
        run_there(
            &network,
            "ip",
            &["address", "add", load::CLIENTS, "dev", "lo"],
        )?;
        let export = format!("/images/{IMAGE}");
        let process = match server {
            Server::Ours => self.ours.start_on(SERVER_CPU, &network)?,
            Server::Ganesha { numeric_owners } => Ganesha {
                root: &self.tree,
                export: &export,
                numeric_owners,
                processor: Some(SERVER_CPU),
            }
            .start(&network, &self.scratch)?,
        };
        self.generate(&network, &process, clients)
    }

    fn generate(
        &self,
        network: &Network,
        server: &Process,
        clients: usize,
    ) -> anyhow::Result<Value> {
        let order = load::Order {
            server: (GATEWAY, PORT).into(),
            process: server.id(),
            export: vec!["images".into(), IMAGE.into()],
            source: self.tree.clone(),
            time: LOAD_TIME,
            clients,
            loads: self.loads.clone(),
            boot: self.boots.as_ref().map(|boots| boots.ours.clone()),
            first_boot: self.boots.as_ref().map(|boots| boots.first.clone()),
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
        let printed = run_there(network, "taskset", &words)?;
        serde_json::from_str(&printed).context("reading what the generator prints")
    }
}

/// Unpacks the image's archive, once; the folder.
fn unpack(archive: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let name = archive.file_stem().context("an archive without a name")?;
    let tree = folder.join(name);
    if !tree.exists() {
        let aside = folder.join("unpacking");
        let unpack = "rm -rf \"$2\" && mkdir \"$2\" && tar --extract --file=\"$1\" --directory=\"$2\" \
            --numeric-owner --xattrs --xattrs-include='*' && mv \"$2\" \"$3\"";
        must_succeed(script(unpack).arg(archive).arg(aside).arg(&tree))
            .context("unpacking the image")?;
    }
    Ok(tree)
}

/// A row: its name, its unit, the load that it shows, and how it is read off that.
type Figure = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Value) -> Option<f64>,
);

const FIGURES: [Figure; 20] = [
    ("getattr-cpu", "µs", "getattr", cpu_us),
    ("access-cpu", "µs", "access", cpu_us),
    ("lookup-cpu", "µs", "lookup", cpu_us),
    ("read-4k-cpu", "µs", "read-4k", cpu_us),
    ("read-64k-cpu", "µs", "read-64k", cpu_us),
    ("read-1m-cpu", "µs", "read-1m", cpu_us),
    ("getattr-wall", "µs", "getattr", wall_us),
    ("read-1m-wall", "µs", "read-1m", wall_us),
    ("p99-200", "µs", "crowd", p99_us),
    ("replay-cpu", "µs", "replay", cpu_us),
    ("replay-wall", "s", "replay", |it| seconds(it, "wall_ns")),
    ("replay-p99", "µs", "replay", p99_us),
    ("replay-fairness", "slowest / median", "replay", |it| {
        Some(seconds(it, "last_end_ns")? / seconds(it, "median_end_ns")?)
    }),
    ("replay-first-cpu", "µs", "replay-first", cpu_us),
    ("replay-first-wall", "s", "replay-first", |it| {
        seconds(it, "wall_ns")
    }),
    ("replay-first-p99", "µs", "replay-first", p99_us),
    ("replay-among-readers", "s", "replay-among", |it| {
        seconds(it, "last_end_ns")
    }),
    ("idle-client-bytes", "B", "idle", |it| {
        it["client_bytes"].as_f64()
    }),
    ("generator-getattr", "µs", "getattr", generator_us),
    ("generator-read-1m", "µs", "read-1m", generator_us),
];

/// Processor time of the server for each call.
fn cpu_us(load: &Value) -> Option<f64> {
    us_for_each(load, "server_ns")
}

/// Time on the clock for each call.
fn wall_us(load: &Value) -> Option<f64> {
    us_for_each(load, "wall_ns")
}

/// Processor time of the generator for each call: no merit of anybody, but a bound to the others.
fn generator_us(load: &Value) -> Option<f64> {
    us_for_each(load, "generator_ns")
}

/// The latency that 99 of 100 calls do not exceed.
fn p99_us(load: &Value) -> Option<f64> {
    Some(load["p99_ns"].as_f64()? / 1e3)
}

fn us_for_each(load: &Value, field: &str) -> Option<f64> {
    Some(load[field].as_f64()? / load["calls"].as_f64()? / 1e3)
}

fn seconds(load: &Value, field: &str) -> Option<f64> {
    Some(load[field].as_f64()? / 1e9)
}

fn rows(sides: &[Side]) -> Vec<Row> {
    let (ours, peers) = sides.split_at(1);
    let mut rows = Vec::new();
    for (name, unit, load, figure) in FIGURES {
        let read = |side: &Side| side.figure(|round| figure(&round[load]));
        let Some(ours) = ours.first().and_then(read) else {
            continue;
        };
        let theirs = peers
            .iter()
            .filter_map(|side| Some((side.server.name(), read(side)?)));
        rows.push(Row {
            better: Better::Lower,
            name,
            unit,
            ours,
            peer: theirs.min_by(|a, b| a.1.total_cmp(&b.1)),
        });
    }
    rows
}

fn conditions(options: &Options, sides: &[Side]) -> anyhow::Result<Vec<(&'static str, String)>> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let names: Vec<&str> = sides.iter().map(|side| side.server.name()).collect();
    Ok(vec![
        ("rounds", format!("{}, medians", options.rounds)),
        (
            "machine",
            format!("{cores} cores, Linux {}, load {}", kernel.trim(), load.trim()),
        ),
        ("servers", format!("{}; the better peer counts", names.join("; "))),
        (
            "calls",
            format!(
                "NFS 4.1 over loopback, the server on processor {SERVER_CPU}, the generator on {GENERATOR_CPU}; \
                 depth 64, for READ 32 (4 KiB), 16 (64 KiB) and 8 (1 MiB)"
            ),
        ),
        ("crowd", format!("{} clients, one GETATTR at a time each", options.clients)),
        (
            "checked",
            "every status and length; each answer as a whole once, then attributes as a whole and 2 KiB of content"
                .to_owned(),
        ),
    ])
}
