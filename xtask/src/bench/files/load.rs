//! The clients: a process of its own on the server's network, which fetches in several ways, checks
//! what comes and prints how fast it was.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::super::nfs::cost::Meter;
use super::super::row::median;
use super::client::{self, Blocks};

/// Where clients have their addresses.
pub const CLIENTS: &str = "10.78.0.1/16";
/// Of one client that fetches for an HTTP load, how often: kernel and initramfs, say.
const HTTP_TIMES: usize = 2;

/// What the process is asked to do.
pub struct Order {
    /// Where the server listens.
    pub server: Ipv4Addr,
    /// Its process.
    pub process: u32,
    /// The path of the file there.
    pub path: String,
    /// The same file on the disk.
    pub file: PathBuf,
    /// How long one client fetches, again and again.
    pub time: Duration,
    /// How many fetch at once where many do.
    pub clients: usize,
    /// The loads.
    pub loads: Vec<String>,
}

impl Order {
    /// The document that [`run`] takes.
    pub fn as_json(&self) -> Value {
        json!({
            "server": self.server.to_string(),
            "process": self.process,
            "path": self.path,
            "file": self.file,
            "time_ms": self.time.as_millis() as u64,
            "clients": self.clients,
            "loads": self.loads,
        })
    }

    fn read(text: &str) -> anyhow::Result<Self> {
        let order: Value = serde_json::from_str(text)?;
        let word = |field: &str| order[field].as_str().context("expected text");
        let number = |field: &str| order[field].as_u64().context("expected a number");
        let loads = order["loads"].as_array().context("expected loads")?;
        let loads = loads.iter().filter_map(Value::as_str).map(str::to_owned);
        Ok(Self {
            server: word("server")?.parse()?,
            process: number("process")?.try_into()?,
            path: word("path")?.to_owned(),
            file: word("file")?.into(),
            time: Duration::from_millis(number("time_ms")?),
            clients: number("clients")?.try_into()?,
            loads: loads.collect(),
        })
    }
}

/// Carries an order out and prints what came of it.
pub fn run(order: &str) -> anyhow::Result<()> {
    let order = Order::read(order)?;
    let expected = std::fs::read(&order.file).context("reading the file to compare with")?;
    let clients = Clients { order, expected };
    // The server may have to find the file first.
    clients.fetch(0, window(1428, 1))?;
    let mut printed = Map::new();
    for load in &clients.order.loads {
        let figures = match load.as_str() {
            "w1" => clients.one(&[window(1428, 1)]),
            "w4" => clients.one(&[window(1428, 4)]),
            "w16" => clients.one(&[window(1428, 16)]),
            // EDK2's own requests, and shim's.
            "firmware" => clients.one(&[window(1468, 4), window(512, 4)]),
            "fair" => clients.fair(),
            "http" => clients.http(),
            other => bail!("unknown load: {other}"),
        };
        let figures = figures.with_context(|| load.clone())?;
        printed.insert(load.clone(), figures);
    }
    println!("{}", Value::Object(printed));
    Ok(())
}

fn window(bytes: usize, window: u16) -> Blocks {
    Blocks { bytes, window }
}

struct Clients {
    order: Order,
    expected: Vec<u8>,
}

impl Clients {
    fn fetch(&self, index: usize, blocks: Blocks) -> anyhow::Result<()> {
        let order = &self.order;
        if order.loads.iter().any(|it| it == "http") {
            return client::http(order.server, own(index), &order.path, 1, &self.expected);
        }
        client::tftp(
            order.server,
            own(index),
            &order.path,
            blocks,
            &self.expected,
        )
    }

    /// One client, again and again.
    fn one(&self, ways: &[Blocks]) -> anyhow::Result<Value> {
        let begun = Instant::now();
        let mut bytes = 0;
        while begun.elapsed() < self.order.time {
            for blocks in ways {
                self.fetch(0, *blocks)?;
                bytes += self.expected.len();
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(json!({ "mb_per_s": bytes as f64 / 1e6 / seconds }))
    }

    /// Many at once: how long each takes.
    fn each(&self, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<Vec<f64>> {
        std::thread::scope(|scope| {
            let work = &work;
            let spawn = |index| {
                let thread = std::thread::Builder::new().stack_size(1 << 20);
                thread.spawn_scoped(scope, move || {
                    let begun = Instant::now();
                    work(index).map(|()| begun.elapsed().as_secs_f64())
                })
            };
            let threads: Vec<_> = (0..self.order.clients)
                .map(spawn)
                .collect::<Result<_, _>>()?;
            let join = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<f64>>| {
                let joined = thread.join();
                joined.unwrap_or_else(|_| bail!("a client panicked"))
            };
            threads.into_iter().map(join).collect()
        })
    }

    fn fair(&self) -> anyhow::Result<Value> {
        let seconds = self.each(|index| self.fetch(index, window(1428, 4)))?;
        let slowest = seconds.iter().copied().fold(0.0, f64::max);
        Ok(json!({ "slowest": slowest / median(seconds) }))
    }

    fn http(&self) -> anyhow::Result<Value> {
        let meter = Meter::start(self.order.process)?;
        let order = &self.order;
        self.each(|index| {
            let (server, path) = (order.server, &order.path);
            client::http(server, own(index), path, HTTP_TIMES, &self.expected)
        })?;
        let cost = meter.stop()?;
        let bytes = (self.expected.len() * HTTP_TIMES * order.clients) as f64;
        Ok(json!({
            "mb_per_s": bytes * 1e3 / cost.wall_ns as f64,
            "cpu_s_per_gb": cost.server_ns as f64 / bytes,
        }))
    }
}

/// The address of a client: one of [`CLIENTS`].
fn own(index: usize) -> Ipv4Addr {
    let [.., high, low] = (index as u32 + 2).to_be_bytes();
    Ipv4Addr::new(10, 78, high, low)
}
