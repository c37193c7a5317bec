//! Calls as fast as the answers come: many at once over one connection, or one at a time over many.

use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::epoll;

use super::client::{Client, Reply};
use super::cost::Meter;
use super::load::Figures;
use super::percentile::Latencies;
use super::targets::Target;

/// How long a load runs before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// Keeps `depth` calls under way over one connection, for `time`.
pub fn pipeline(
    client: &mut Client,
    process: u32,
    targets: &[Target],
    depth: usize,
    time: Duration,
) -> anyhow::Result<Figures> {
    let mut pipeline = Pipeline {
        targets,
        turn: 0,
        under_way: vec![0; depth],
    };
    for slot in 0..depth {
        pipeline.send(client, slot);
    }
    pipeline.run(client, WARM_UP)?;
    let meter = Meter::start(process)?;
    let calls = pipeline.run(client, time)?;
    let cost = meter.stop()?;
    Ok(Figures {
        calls,
        cost,
        ..Figures::default()
    })
}

struct Pipeline<'a> {
    targets: &'a [Target],
    turn: u64,
    /// The turn of the call in each slot.
    under_way: Vec<u64>,
}

impl Pipeline<'_> {
    fn target(&self, turn: u64) -> &Target {
        &self.targets[turn as usize % self.targets.len()]
    }

    fn send(&mut self, client: &mut Client, slot: usize) {
        client.send(slot, &self.target(self.turn).operations);
        self.under_way[slot] = self.turn;
        self.turn += 1;
    }

    /// Answers every reply with the next call; how many came.
    fn run(&mut self, client: &mut Client, time: Duration) -> anyhow::Result<u64> {
        let end = Instant::now() + time;
        let before = self.turn;
        let mut free = Vec::new();
        while Instant::now() < end {
            client.flush()?;
            client.fill()?;
            client.replies(|reply| {
                let turn = *self.under_way.get(reply.slot).context("an unknown call")?;
                self.target(turn).check(turn, &reply)?;
                free.push(reply.slot);
                Ok(())
            })?;
            for slot in free.drain(..) {
                self.send(client, slot);
            }
        }
        Ok(self.turn - before)
    }
}

/// What one of a crowd does: calls in its only slot, one after the other.
pub trait Script {
    /// Adds the next call to what the client sends; false when it has come to its end.
    fn next(&mut self, client: &mut Client) -> anyhow::Result<bool>;
    /// Takes the reply.
    fn take(&mut self, reply: &Reply<'_>) -> anyhow::Result<()>;
}

impl<S: Script + ?Sized> Script for Box<S> {
    fn next(&mut self, client: &mut Client) -> anyhow::Result<bool> {
        (**self).next(client)
    }

    fn take(&mut self, reply: &Reply<'_>) -> anyhow::Result<()> {
        (**self).take(reply)
    }
}

/// A client of a crowd.
pub struct Member<S> {
    /// The client.
    pub client: Client,
    /// What it does.
    pub script: S,
    sent: Instant,
    /// When it came to its end, from when the crowd began.
    ended: Option<Duration>,
}

impl<S: Script> Member<S> {
    /// A client with what it is to do.
    pub fn new(client: Client, script: S) -> Self {
        Self {
            client,
            script,
            sent: Instant::now(),
            ended: None,
        }
    }

    /// When it came to its end, in nanoseconds since the crowd began.
    pub fn end_ns(&self) -> Option<u64> {
        self.ended.map(|ended| ended.as_nanos() as u64)
    }

    fn send(&mut self, begun: Instant) -> anyhow::Result<()> {
        if self.script.next(&mut self.client)? {
            self.sent = Instant::now();
            self.client.flush()
        } else {
            self.ended = Some(begun.elapsed());
            Ok(())
        }
    }
}

/// Runs all of a crowd at once: until `enough` says so, which is asked after every round of
/// replies, or all have ended. The latency of every call.
pub fn crowd<S: Script>(
    members: &mut [Member<S>],
    mut enough: impl FnMut(&[Member<S>]) -> bool,
) -> anyhow::Result<Latencies> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, member) in members.iter().enumerate() {
        let token = epoll::EventData::new_u64(index as u64);
        epoll::add(&poll, member.client.stream(), token, epoll::EventFlags::IN)?;
    }
    let begun = Instant::now();
    for member in &mut *members {
        member.ended = None;
        member.send(begun)?;
    }
    let mut latencies = Latencies::default();
    let mut running = members.iter().filter(|it| it.ended.is_none()).count();
    let mut events = [epoll::Event {
        flags: epoll::EventFlags::empty(),
        data: epoll::EventData::new_u64(0),
    }; 256];
    while running > 0 && !enough(members) {
        let count = epoll::wait(&poll, &mut events, None)?;
        for event in &events[..count] {
            let index = event.data.u64() as usize;
            let member = &mut members[index];
            member.client.fill()?;
            let (mut came, sent, script) = (false, member.sent, &mut member.script);
            member.client.replies(|reply| {
                latencies.0.push(sent.elapsed().as_nanos() as u64);
                came = true;
                script.take(&reply)
            })?;
            if came {
                member.send(begun)?;
                running -= usize::from(member.ended.is_some());
            }
        }
    }
    Ok(latencies)
}

/// Takes the replies that are still under way after [`crowd`] had enough.
pub fn settle<S: Script>(members: &mut [Member<S>]) -> anyhow::Result<()> {
    for member in members.iter_mut().filter(|it| it.ended.is_none()) {
        let mut came = false;
        while !came {
            member.client.fill()?;
            let script = &mut member.script;
            member.client.replies(|reply| {
                came = true;
                script.take(&reply)
            })?;
        }
    }
    Ok(())
}

/// Goes round the targets for ever.
pub struct Round<'a> {
    targets: &'a [Target],
    turn: u64,
}

impl<'a> Round<'a> {
    /// Begins with the `first`th target.
    pub fn new(targets: &'a [Target], first: usize) -> Self {
        Self {
            targets,
            turn: first as u64,
        }
    }

    fn target(&self) -> &'a Target {
        &self.targets[self.turn as usize % self.targets.len()]
    }
}

impl Script for Round<'_> {
    fn next(&mut self, client: &mut Client) -> anyhow::Result<bool> {
        client.send(0, &self.target().operations);
        Ok(true)
    }

    fn take(&mut self, reply: &Reply<'_>) -> anyhow::Result<()> {
        let checked = self.target().check(self.turn, reply);
        self.turn += 1;
        checked
    }
}
