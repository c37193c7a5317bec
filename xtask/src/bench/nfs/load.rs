//! The load generator: a process of its own on the server's network, which calls one server in
//! several ways, checks the answers and prints what they cost.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::client::{ANONYMOUS, Client};
use super::cost::{Cost, Meter, memory_bytes};
use super::drive::{Member, Round, Script, crowd, pipeline, settle};
use super::recording::Recording;
use super::replay::{Player, Replay};
use super::targets::{Target, Walker};

/// What the generator is asked to do.
pub struct Order {
    /// Where the server listens.
    pub server: SocketAddr,
    /// Its process.
    pub process: u32,
    /// The exported path, in names.
    pub export: Vec<String>,
    /// The same tree on the disk.
    pub source: PathBuf,
    /// How long each load is measured.
    pub time: Duration,
    /// How many clients call at once.
    pub clients: usize,
    /// The loads.
    pub loads: Vec<String>,
    /// The boot to replay.
    pub boot: Option<Boot>,
    /// The first boot of the image, to replay as well.
    pub first_boot: Option<Boot>,
}

/// A boot that was captured.
#[derive(Clone)]
pub struct Boot {
    /// The packets.
    pub capture: PathBuf,
    /// The path under which the tree was exported.
    pub export: String,
    /// When the node was up, in microseconds since 1970.
    pub end_us: u64,
}

impl Order {
    /// The document that [`Order::read`] takes.
    pub fn as_json(&self) -> Value {
        json!({
            "server": self.server.to_string(),
            "process": self.process,
            "export": self.export,
            "source": self.source,
            "time_ms": self.time.as_millis() as u64,
            "clients": self.clients,
            "loads": self.loads,
            "boot": self.boot.as_ref().map(Boot::as_json),
            "first_boot": self.first_boot.as_ref().map(Boot::as_json),
        })
    }

    fn read(text: &str) -> anyhow::Result<Self> {
        let order: Value = serde_json::from_str(text)?;
        let number = |field: &str| {
            let number = order[field].as_u64();
            number.with_context(|| format!("{field}: expected a number"))
        };
        let words = |field: &str| -> anyhow::Result<Vec<String>> {
            let list = order[field].as_array();
            let list = list.with_context(|| format!("{field}: expected a list"))?;
            list.iter().map(word).collect()
        };
        let boot = |field: &str| {
            let boot = Some(&order[field]).filter(|boot| boot.is_object());
            boot.map(Boot::read).transpose()
        };
        Ok(Self {
            server: word(&order["server"])?.parse()?,
            process: number("process")?.try_into()?,
            export: words("export")?,
            source: word(&order["source"])?.into(),
            time: Duration::from_millis(number("time_ms")?),
            clients: number("clients")?.try_into()?,
            loads: words("loads")?,
            boot: boot("boot")?,
            first_boot: boot("first_boot")?,
        })
    }
}

impl Boot {
    fn as_json(&self) -> Value {
        json!({
            "capture": self.capture,
            "export": self.export,
            "end_us": self.end_us,
        })
    }

    fn read(value: &Value) -> anyhow::Result<Self> {
        Ok(Self {
            capture: word(&value["capture"])?.into(),
            export: word(&value["export"])?,
            end_us: value["end_us"]
                .as_u64()
                .context("end_us: expected a number")?,
        })
    }
}

fn word(value: &Value) -> anyhow::Result<String> {
    value.as_str().map(str::to_owned).context("expected text")
}

/// What a load came to.
#[derive(Default)]
pub struct Figures {
    /// Calls.
    pub calls: u64,
    /// What they cost together.
    pub cost: Cost,
    /// The latency that 99 of 100 calls do not exceed, in nanoseconds.
    pub p99_ns: u64,
    /// When clients came to their end, in nanoseconds since the beginning: the median and the last.
    pub ends_ns: Option<(u64, u64)>,
    /// Bytes of memory that the server took for each client.
    pub client_bytes: Option<u64>,
}

impl Figures {
    fn as_json(&self) -> Value {
        json!({
            "calls": self.calls,
            "server_ns": self.cost.server_ns,
            "generator_ns": self.cost.own_ns,
            "wall_ns": self.cost.wall_ns,
            "p99_ns": self.p99_ns,
            "median_end_ns": self.ends_ns.map(|(median, _)| median),
            "last_end_ns": self.ends_ns.map(|(_, last)| last),
            "client_bytes": self.client_bytes,
        })
    }
}

/// Carries an order out and prints what came of it: an object with one for each load.
pub fn run(order: &str) -> anyhow::Result<()> {
    let order = Order::read(order).context("reading the order")?;
    let mut results = serde_json::Map::new();
    for name in &order.loads {
        let figures = one(&order, name).with_context(|| format!("load {name}"))?;
        results.insert(name.clone(), figures.as_json());
    }
    println!("{}", Value::Object(results));
    Ok(())
}

fn one(order: &Order, name: &str) -> anyhow::Result<Figures> {
    let mut walker = Walker::connect(order, address(0), name)?;
    let source = &order.source;
    let (targets, depth) = match name {
        "getattr" => (walker.attributes(source)?, 64),
        "access" => (walker.access(source)?, 64),
        "lookup" => (walker.lookup(source)?, 64),
        "read-4k" => (walker.reads(source, 4 << 10, None)?, 32),
        "read-64k" => (walker.reads(source, 64 << 10, None)?, 16),
        "read-1m" => (walker.reads(source, 1 << 20, None)?, 8),
        "crowd" => return attributes_for_all(order, name, &walker.attributes(source)?),
        "replay" => return replay(order, name, &mut walker, order.boot.as_ref()),
        "replay-first" => return replay(order, name, &mut walker, order.first_boot.as_ref()),
        "idle" => return idle(order, name, &walker.attributes(source)?),
        "replay-among" => return replay_among_readers(order, name, &mut walker),
        _ => bail!("unknown load"),
    };
    let client = &mut walker.client;
    pipeline(client, order.process, &targets, depth, order.time)
}

/// Every client asks for the attributes of one inode after the other.
fn attributes_for_all(order: &Order, name: &str, targets: &[Target]) -> anyhow::Result<Figures> {
    let clients = clients(order, name)?.into_iter().enumerate();
    let members = clients.map(|(at, client)| Member::new(client, Round::new(targets, at * 7)));
    let mut members: Vec<_> = members.collect();
    let end = Instant::now() + order.time;
    let figures = measure(order, &mut members, |_| Instant::now() > end)?;
    settle(&mut members)?;
    Ok(figures)
}

/// Many clients that have called, and are silent now.
fn idle(order: &Order, name: &str, targets: &[Target]) -> anyhow::Result<Figures> {
    const SLOTS_USED: usize = 16;
    let before = memory_bytes(order.process)?;
    let mut clients = clients(order, name)?;
    for client in &mut clients {
        for (slot, target) in targets.iter().enumerate().take(SLOTS_USED) {
            client.send(slot, &target.operations);
        }
        client.flush()?;
        let mut came = 0;
        while came < SLOTS_USED {
            client.fill()?;
            client.replies(|reply| {
                came += 1;
                targets[reply.slot].check(0, &reply)
            })?;
        }
    }
    let taken = memory_bytes(order.process)?.saturating_sub(before);
    Ok(Figures {
        calls: (clients.len() * SLOTS_USED) as u64,
        client_bytes: Some(taken / clients.len() as u64),
        ..Figures::default()
    })
}

/// Every client boots.
fn replay(
    order: &Order,
    name: &str,
    walker: &mut Walker,
    boot: Option<&Boot>,
) -> anyhow::Result<Figures> {
    let replay = prepare(order, walker, boot)?;
    let clients = clients(order, name)?.into_iter();
    let members = clients.map(|client| Member::new(client, Player::new(&replay)));
    let mut members: Vec<_> = members.collect();
    let mut figures = measure(order, &mut members, |_| false)?;
    let mut ends: Vec<u64> = members.iter().filter_map(Member::end_ns).collect();
    ends.sort_unstable();
    let last = ends.last().copied().context("nobody came to an end")?;
    figures.ends_ns = Some((ends[ends.len() / 2], last));
    Ok(figures)
}

/// One client boots while all others read without end.
fn replay_among_readers(order: &Order, name: &str, walker: &mut Walker) -> anyhow::Result<Figures> {
    let replay = prepare(order, walker, order.boot.as_ref())?;
    let targets = walker.reads(&order.source, 64 << 10, Some(ANONYMOUS))?;
    let clients = clients(order, name)?.into_iter().enumerate();
    let members = clients.map(|(at, client)| {
        let script: Box<dyn Script + '_> = if at == 0 {
            Box::new(Player::new(&replay))
        } else {
            Box::new(Round::new(&targets, at * 7))
        };
        Member::new(client, script)
    });
    let mut members: Vec<_> = members.collect();
    let mut figures = measure(order, &mut members, |members| members[0].end_ns().is_some())?;
    settle(&mut members)?;
    let end = members[0].end_ns().context("the boot came to no end")?;
    figures.ends_ns = Some((end, end));
    Ok(figures)
}

fn prepare(order: &Order, walker: &mut Walker, boot: Option<&Boot>) -> anyhow::Result<Replay> {
    let boot = boot.context("no boot to replay")?;
    let port = order.server.port();
    let recording = Recording::read(&boot.capture, port, &boot.export, boot.end_us)?;
    Replay::prepare(recording, walker, &order.source)
}

fn measure<S: Script>(
    order: &Order,
    members: &mut [Member<S>],
    enough: impl FnMut(&[Member<S>]) -> bool,
) -> anyhow::Result<Figures> {
    let meter = Meter::start(order.process)?;
    let mut latencies = crowd(members, enough)?;
    Ok(Figures {
        calls: latencies.0.len() as u64,
        cost: meter.stop()?,
        p99_ns: latencies.percentile(0.99),
        ..Figures::default()
    })
}

/// As many clients as were ordered, each with an address of its own.
fn clients(order: &Order, load: &str) -> anyhow::Result<Vec<Client>> {
    let connect = |index| {
        // A client that comes again under its name would have to make its peace with what was.
        let name = format!("{load}{index}");
        Client::connect(order.server, address(index), &name)
    };
    (1..=order.clients).map(connect).collect()
}

/// The address of a client: one of [`CLIENTS`].
fn address(index: usize) -> Ipv4Addr {
    let [high, low] = ((index + 1) as u16).to_be_bytes();
    Ipv4Addr::new(10, 78, high, low)
}

/// The addresses of all clients: the loopback interface has them.
pub const CLIENTS: &str = "10.78.0.1/16";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_as_it_was_written() {
        let order = Order {
            server: "10.77.0.1:2049".parse().unwrap(),
            process: 7,
            export: vec!["images".into(), "debian".into()],
            source: "/tree".into(),
            time: Duration::from_millis(500),
            clients: 200,
            loads: vec!["getattr".into()],
            boot: Some(Boot {
                capture: "/capture".into(),
                export: "/images/0123".into(),
                end_us: 5,
            }),
            first_boot: Some(Boot {
                capture: "/first".into(),
                export: "/images/0123".into(),
                end_us: 6,
            }),
        };
        let text = order.as_json().to_string();
        let read = Order::read(&text).unwrap();
        assert_eq!(read.as_json().to_string(), text);
        assert!(Order::read("{}").is_err());
    }

    #[test]
    fn clients_have_different_addresses() {
        assert_eq!(address(0), Ipv4Addr::new(10, 78, 0, 1));
        assert_eq!(address(999), Ipv4Addr::new(10, 78, 3, 232));
    }
}
