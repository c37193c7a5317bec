//! What nodes' kernels say before they die, by netconsole.
//!
//! Anybody who can forge a sender's address can say such things, so they are told and kept, in few
//! and short words, and decide nothing: no fallback, no rollout and no address depends on them.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use wire::identity::BootId;
use wire::mac::Mac;
use wire::netconsole::Line;

use crate::boots::reached;
use crate::event::EventKind;
use crate::limit::TokenBucket;
use crate::record::Record;
use crate::time::Timestamp;
use crate::{Engine, Turn};

/// Nodes whose messages are kept at the same time; the one that was silent longest makes way.
const NODES_MAX: usize = 1024;
/// Messages kept of those before anything goes wrong.
const BEFORE_MAX: usize = 10;
/// Messages kept of one misfortune.
const LINES_MAX: usize = 80;
/// A kernel that is in trouble is not told of again for this long.
const QUIET: Duration = Duration::from_secs(30);
/// A trace of an oops ends, a panic ends, and the kernel says that it reboots.
const ENDS_MAX: u8 = 4;
/// Events a second, of all nodes together.
const EVENTS_PER_SECOND: u32 = 20;

/// What was heard of all nodes' kernels.
#[derive(Clone, Debug)]
pub(crate) struct Kernels {
    nodes: BTreeMap<Mac, Heard>,
    bucket: TokenBucket,
}

/// What was heard of one.
#[derive(Clone, Debug)]
struct Heard {
    /// The boot that it is of.
    boot: Option<BootId>,
    lines: VecDeque<String>,
    last: Timestamp,
    oopsed: Option<Timestamp>,
    panicked: Option<Timestamp>,
    /// How often all was said.
    ends: u8,
}

/// What a message means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark<'a> {
    /// The kernel stops, and why.
    Panic(&'a str),
    /// Something is broken; it may go on.
    Oops,
    /// All was said.
    End,
    None,
}

impl Default for Kernels {
    fn default() -> Kernels {
        Kernels {
            nodes: BTreeMap::new(),
            bucket: TokenBucket::new(EVENTS_PER_SECOND),
        }
    }
}

impl Kernels {
    fn heard(&mut self, mac: Mac, boot: Option<BootId>, now: Timestamp) -> &mut Heard {
        if !self.nodes.contains_key(&mac) && self.nodes.len() >= NODES_MAX {
            let silent = self.nodes.iter().min_by_key(|(_, heard)| heard.last);
            if let Some(silent) = silent.map(|(mac, _)| *mac) {
                self.nodes.remove(&silent);
            }
        }
        let quiet = |heard: &Heard| {
            let troubled = heard.oopsed.max(heard.panicked);
            troubled.is_some_and(|at| now >= at + QUIET)
        };
        // Whatever it was, the node outlived it or has been started anew.
        let old = |heard: &Heard| heard.boot != boot || quiet(heard);
        if self.nodes.get(&mac).is_some_and(old) {
            self.nodes.remove(&mac);
        }
        let heard = self.nodes.entry(mac).or_insert(Heard {
            boot,
            lines: VecDeque::new(),
            last: now,
            oopsed: None,
            panicked: None,
            ends: 0,
        });
        heard.last = now;
        heard
    }
}

impl Heard {
    fn push(&mut self, text: &str) {
        let troubled = self.oopsed.or(self.panicked).is_some();
        if !troubled && self.lines.len() >= BEFORE_MAX {
            self.lines.pop_front();
        }
        // Of a misfortune the beginning says most.
        if self.lines.len() < LINES_MAX {
            self.lines.push_back(text.to_owned());
        }
    }

    /// Whether a message is the first of its kind; notes it if so.
    fn is_news(&mut self, mark: Mark<'_>, now: Timestamp) -> bool {
        match mark {
            Mark::Panic(_) => self.panicked.replace(now).is_none(),
            // A panic's own trace is no second misfortune.
            Mark::Oops => self.panicked.is_none() && self.oopsed.replace(now).is_none(),
            Mark::End if self.oopsed.or(self.panicked).is_some() => {
                self.ends = self.ends.saturating_add(1);
                self.ends <= ENDS_MAX
            }
            Mark::End => false,
            Mark::None => false,
        }
    }
}

impl Engine {
    /// A kernel's message from that address. Whoever is no node is not listened to.
    pub(crate) fn kernel_says(&mut self, turn: &mut Turn, sender: Ipv4Addr, line: &Line) {
        let Some(mac) = self.node_at(sender).map(|node| node.mac) else {
            return;
        };
        let boot = self.boots.current(mac).map(|boot| boot.id);
        let heard = self.kernels.heard(mac, boot, turn.now);
        heard.push(&line.text);
        let mark = mark(&line.text);
        if !heard.is_news(mark, turn.now) || !self.kernels.bucket.take(turn.now) {
            return;
        }
        self.keep_lines(turn, mac);
        match mark {
            Mark::Panic(cause) => {
                let stage = self.boots.current(mac).and_then(reached);
                if let Some(stage) = stage {
                    self.note_failure(turn, mac, stage, &format!("kernel panic: {cause}"));
                }
                let cause = cause.to_owned();
                self.tell(turn, Some(mac), EventKind::Panicked { cause });
            }
            Mark::Oops => {
                let text = line.text.clone();
                self.tell(turn, Some(mac), EventKind::KernelTrouble { text });
            }
            Mark::End | Mark::None => {}
        }
    }

    /// Keeps what a node's kernel said with the node's boot.
    fn keep_lines(&mut self, turn: &mut Turn, mac: Mac) {
        let Some(heard) = self.kernels.nodes.get(&mac) else {
            return;
        };
        if let Some(boot) = self.boots.current_mut(mac) {
            boot.kernel = heard.lines.iter().cloned().collect();
            turn.out
                .push(crate::Output::Persist(Record::Boot(boot.clone())));
        }
    }
}

/// Knows x86's words and arm64's.
fn mark(text: &str) -> Mark<'_> {
    const OOPS: [&str; 8] = [
        "BUG: ",
        "Oops",
        "kernel BUG at ",
        "general protection fault",
        "Internal error: ",
        "Unable to handle kernel ",
        "watchdog: BUG: ",
        "SError Interrupt ",
    ];
    const END: [&str; 3] = ["---[ end ", "Rebooting in ", "System halted"];
    if let Some(cause) = text.strip_prefix("Kernel panic - not syncing: ") {
        return Mark::Panic(cause.trim());
    }
    let begins = |with: &&str| text.starts_with(*with);
    if OOPS.iter().any(begins) {
        Mark::Oops
    } else if END.iter().any(begins) {
        Mark::End
    } else {
        Mark::None
    }
}
