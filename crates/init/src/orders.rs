//! The node's end of the channel by which its server has it do things: polls for orders, runs each
//! as a process of its own, and sends what it printed and how it ended.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::rand::{GetRandomFlags, getrandom};
use wire::cmdline::SlateArgs;
use wire::order::{
    ControlKey, MAX_ANSWER_BYTES, MAX_PART_BYTES, NONCE_BYTES, Order, Orders, Part, Poll,
};

use crate::backoff::Backoff;
use crate::boot::random;
use crate::http;

/// Where `/init` leaves the key for the agent.
pub const KEY_PATH: &str = "/run/slate/control";
/// The environment variable in which a command finds the number of its order.
pub const ORDER: &str = "SLATE_ORDER";
/// Longer than the server has a poll wait.
const POLL_TIMEOUT: Duration = Duration::from_secs(90);
/// Most bytes of an output that are sent; the server keeps no more.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// What an order prints is kept in memory: one that prints more is ended.
const MAX_PRINTED_BYTES: u64 = 64 << 20;
/// How often it is looked whether an order has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The status of an order that could not be started.
const NOT_STARTED: i32 = -1;

/// The channel.
struct Channel {
    slate: SlateArgs,
    key: ControlKey,
    /// Orders that run.
    running: Mutex<BTreeSet<u64>>,
}

/// Polls for ever, in a thread of its own.
pub fn serve(slate: SlateArgs, key: ControlKey) {
    let channel = Arc::new(Channel {
        slate,
        key,
        running: Mutex::default(),
    });
    thread::spawn(move || {
        let mut waits = new_waits();
        loop {
            match channel.exchange(None) {
                Ok(orders) => {
                    waits = new_waits();
                    orders.into_iter().for_each(|order| channel.start(order));
                }
                // The server is away, or has too much to do.
                Err(_) => thread::sleep(waits.wait()),
            }
        }
    });
}

fn new_waits() -> Backoff {
    Backoff::new(Duration::from_secs(1), Duration::from_secs(30), random())
}

impl Channel {
    /// One poll, which may wait for its answer.
    fn exchange(&self, part: Option<Part>) -> io::Result<Vec<Order>> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom(&mut nonce[..], GetRandomFlags::empty())?;
        let known = self.running().iter().copied().collect();
        let poll = Poll { known, part };
        let body = poll.seal(self.slate.boot, &self.key, nonce);
        let server = self.slate.server;
        let reply = http::post(server, "/control", &body, POLL_TIMEOUT, MAX_ANSWER_BYTES)?;
        match reply {
            (200, body) => Orders::open(&body, &self.key, nonce)
                .map(|orders| orders.0)
                .map_err(io::Error::other),
            (204, _) => Ok(Vec::new()),
            (status, _) => Err(io::Error::other(format!("HTTP status {status}"))),
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an order that does not run yet.
    fn start(self: &Arc<Self>, order: Order) {
        if !self.running().insert(order.id) {
            return;
        }
        let channel = Arc::clone(self);
        thread::spawn(move || {
            let (output, status) = match run(&order) {
                Ok((output, status)) => (Some(output), status),
                Err(_) => (None, NOT_STARTED),
            };
            channel.tell(order.id, output.as_ref(), status);
            channel.running().remove(&order.id);
        });
    }

    /// Sends what an order has printed and how it ended, until the server has all of it.
    fn tell(&self, order: u64, output: Option<&File>, status: i32) {
        let mut offset = 0;
        let total = output.and_then(|it| it.metadata().ok());
        let total = total.map_or(0, |it| it.len());
        let mut waits = new_waits();
        loop {
            let mut bytes = vec![0; MAX_PART_BYTES];
            let read = output.map_or(Ok(0), |it| it.read_at(&mut bytes, offset));
            let read = read.unwrap_or(0);
            bytes.truncate(read);
            let next = offset + read as u64;
            let is_last = read < MAX_PART_BYTES || next >= MAX_OUTPUT_BYTES;
            let part = Part {
                order,
                offset,
                total,
                bytes,
                end: is_last.then_some(status),
            };
            match self.exchange(Some(part)) {
                Ok(_) if is_last => return,
                Ok(_) => offset = next,
                Err(_) => thread::sleep(waits.wait()),
            }
        }
    }
}

/// Runs a command; what it printed, and its exit code, or 128 and the signal that ended it.
fn run(order: &Order) -> io::Result<(File, i32)> {
    let output = File::from(memfd_create("order", MemfdFlags::CLOEXEC)?);
    let stream = || -> io::Result<OwnedFd> { Ok(output.try_clone()?.into()) };
    let mut child = Command::new("/bin/sh")
        .args(["-c", &order.command])
        .env(ORDER, order.id.to_string())
        .stdin(Stdio::null())
        .stdout(stream()?)
        .stderr(stream()?)
        .process_group(0)
        .spawn()?;
    let end = Instant::now() + Duration::from_secs(order.seconds.into());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end || output.metadata()?.len() > MAX_PRINTED_BYTES {
            break end_group(&mut child)?;
        }
        thread::sleep(LOOK_EVERY);
    };
    let code = status.code().or(status.signal().map(|it| 128 + it));
    Ok((output, code.unwrap_or(NOT_STARTED)))
}

fn end_group(child: &mut Child) -> io::Result<ExitStatus> {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, seconds: u32) -> (String, i32) {
        let order = Order {
            id: 1,
            seconds,
            command: command.to_owned(),
        };
        let (output, status) = super::run(&order).unwrap();
        let length = output.metadata().unwrap().len() as usize;
        let mut bytes = vec![0; length];
        output.read_exact_at(&mut bytes, 0).unwrap();
        (String::from_utf8(bytes).unwrap(), status)
    }

    #[test]
    fn commands_are_run_and_ended() {
        let printed = run("echo a; echo b >&2; exit 3", 60);
        assert_eq!(printed, ("a\nb\n".to_owned(), 3));
        // The shorter times may be over before the shell has come to its first command.
        let late = |seconds| run("echo early; (sleep 600; echo late) & sleep 600", seconds);
        let mut ended = [1, 5, 25].into_iter().map(late);
        let printed = ended.find(|(printed, _)| !printed.is_empty());
        assert_eq!(printed, Some(("early\n".to_owned(), 128 + 9)));
        // Whoever stays behind keeps nobody waiting.
        let left = run("sleep 600 >/dev/null 2>&1 & kill $!; echo done", 60);
        assert_eq!(left, ("done\n".to_owned(), 0));
        assert_eq!(run("kill -TERM $$", 60).1, 128 + 15);
    }
}
