//! Tells the world what happens: the kernel log, the console, and the daemon by beacon.
//!
//! One reporter per process, shared by all threads. Events that happen before the network is up
//! travel with the first beacon after it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{SocketAddrV4, UdpSocket};
use std::sync::Mutex;

use rustix::time::{ClockId, clock_gettime};
use wire::beacon::{Beacon, BeaconEvent, Kind, MAX_TEXT_BYTES};
use wire::cmdline::SlateArgs;
use wire::identity::BootId;
use wire::mac::Mac;
use wire::stage::Stage;

/// Where the last beacon is left for the agent, which goes on counting from it.
pub const BEACON_PATH: &str = "/run/slate/beacon";

/// More events than fit into one datagram, so that a burst of notes loses nothing of weight.
const EVENTS_MAX: usize = 64;

/// The one place where events go.
pub struct Reporter {
    inner: Mutex<Inner>,
}

struct Inner {
    kmsg: Option<File>,
    slate: Option<SlateArgs>,
    mac: Option<Mac>,
    events: Vec<BeaconEvent>,
    online: bool,
}

impl Reporter {
    /// A reporter that knows of no daemon yet.
    pub fn new() -> Reporter {
        Reporter {
            inner: Mutex::new(Inner {
                kmsg: OpenOptions::new().write(true).open("/dev/kmsg").ok(),
                slate: None,
                mac: None,
                events: Vec::new(),
                online: false,
            }),
        }
    }

    /// From now on events are kept for the daemon that the command line names.
    pub fn set_slate(&self, slate: Option<SlateArgs>) {
        self.lock().slate = slate;
    }

    /// The node's network works from now on: sends all events so far.
    pub fn online(&self, mac: Mac) {
        let mut inner = self.lock();
        inner.mac = Some(mac);
        inner.online = true;
        inner.send();
    }

    /// Goes on where `/init` stopped.
    pub fn resume(&self, beacon: Beacon) {
        let mut inner = self.lock();
        inner.events = beacon.events;
        inner.mac = Some(beacon.mac);
        inner.online = true;
    }

    /// The stage was reached.
    pub fn progress(&self, stage: Stage, text: &str) {
        self.event(Kind::Progress, stage, text);
    }

    /// The stage failed or is being retried.
    pub fn failure(&self, stage: Stage, text: &str) {
        self.event(Kind::Failure, stage, text);
    }

    /// Worth knowing.
    pub fn info(&self, stage: Stage, text: &str) {
        self.event(Kind::Info, stage, text);
    }

    /// These modules drive devices of this node.
    pub fn drivers(&self, names: &[&str]) {
        for text in texts(names, MAX_TEXT_BYTES) {
            self.event(Kind::Drivers, Stage::Init, &text);
        }
    }

    /// For the log only.
    pub fn log(&self, text: &str) {
        self.lock().kmsg(6, text);
    }

    /// Sends the last events once more.
    pub fn repeat(&self) {
        self.lock().send();
    }

    /// The last events as a datagram, if there is a daemon.
    pub fn datagram(&self) -> Option<Vec<u8>> {
        self.lock().datagram().map(|(_, datagram)| datagram)
    }

    fn event(&self, kind: Kind, stage: Stage, text: &str) {
        let mut inner = self.lock();
        let (level, mark) = match kind {
            Kind::Failure => (3, "failed: "),
            Kind::Progress | Kind::Info => (5, ""),
            Kind::Drivers => (6, "drivers: "),
        };
        inner.kmsg(level, &format!("{stage}: {mark}{text}"));
        inner.record(kind, stage, text);
        inner.send();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Inner {
    /// The kernel shows what is written to kmsg on its consoles, as loud as its log level says.
    fn kmsg(&mut self, level: u8, text: &str) {
        let line = format!("<{level}>slate: {text}\n");
        if let Some(kmsg) = &mut self.kmsg {
            let _ = kmsg.write_all(line.as_bytes());
        }
    }

    fn record(&mut self, kind: Kind, stage: Stage, text: &str) {
        if self.events.len() == EVENTS_MAX {
            self.events.remove(0);
        }
        self.events.push(BeaconEvent {
            seq: self.events.last().map_or(1, |last| last.seq + 1),
            monotonic_us: monotonic_us(),
            kind,
            stage,
            text: text.to_owned(),
        });
    }

    fn datagram(&self) -> Option<(SocketAddrV4, Vec<u8>)> {
        let slate = self.slate?;
        let beacon = Beacon {
            boot: BootId(slate.boot.0),
            mac: self.mac?,
            events: self.events.clone(),
        };
        Some((slate.server, beacon.encode(&slate.token)))
    }

    /// A lost beacon is repeated by the next one.
    fn send(&mut self) {
        if !self.online {
            return;
        }
        if let Some((server, datagram)) = self.datagram() {
            let sent = UdpSocket::bind("0.0.0.0:0").and_then(|it| it.send_to(&datagram, server));
            if let Err(error) = sent {
                self.kmsg(4, &format!("beacon to {server}: {error}"));
            }
        }
    }
}

/// The names, apart by spaces, in as few texts of at most `bytes_max` as they fit in.
fn texts(names: &[&str], bytes_max: usize) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    for name in names.iter().filter(|name| name.len() <= bytes_max) {
        match texts.last_mut() {
            Some(text) if text.len() + 1 + name.len() <= bytes_max => {
                text.push(' ');
                text.push_str(name);
            }
            _ => texts.push((*name).to_owned()),
        }
    }
    texts
}

/// Microseconds since the kernel started.
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_take_several_texts() {
        assert_eq!(texts(&[], 10), [""; 0]);
        assert_eq!(texts(&["igb", "ixgbe", "tg3"], 9), ["igb ixgbe", "tg3"]);
        assert_eq!(texts(&["longer_than_any", "a"], 5), ["a"]);
    }
}
