//! The events that users see: numbered, kept in a bounded ring, handed to whoever follows.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Event, EventKind, Severity};

use crate::control::EventRecord;
use crate::state::EVENTS_KEPT;

/// Events that a slow follower may lag behind before it loses the connection.
const FOLLOWER_BUFFER: usize = 4096;

/// An event with its number. What is told of it is made when somebody asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// Rises by one per event, never given to another event.
    pub id: u64,
    /// What happened.
    pub event: Event,
}

/// All events kept, oldest first.
#[derive(Default)]
pub struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    events: VecDeque<Arc<JournalEntry>>,
    followers: Vec<SyncSender<Arc<JournalEntry>>>,
}

impl Journal {
    /// A journal that goes on after the events of earlier runs.
    pub fn new(events: Vec<JournalEntry>) -> Journal {
        let inner = Inner {
            last: events.last().map_or(0, |event| event.id),
            events: events.into_iter().map(Arc::new).collect(),
            followers: Vec::new(),
        };
        Journal {
            inner: Mutex::new(inner),
        }
    }

    /// Numbers an event. The number is only known to others once [`Journal::publish`] has it,
    /// which is after it was written: no number is ever given twice.
    pub fn number(&self, event: Event) -> JournalEntry {
        let mut inner = self.lock();
        inner.last += 1;
        JournalEntry {
            id: inner.last,
            event,
        }
    }

    /// Keeps events that are durable, and hands them on.
    pub fn publish(&self, records: &[Arc<JournalEntry>]) {
        let mut inner = self.lock();
        for record in records {
            inner.publish(record);
        }
    }

    /// The events after `since`, and those to come where `follow`.
    pub fn read(
        &self,
        since: u64,
        follow: bool,
    ) -> (Vec<Arc<JournalEntry>>, Option<Receiver<Arc<JournalEntry>>>) {
        let mut inner = self.lock();
        let old = inner
            .events
            .iter()
            .filter(|event| event.id > since)
            .cloned()
            .collect();
        let new = follow.then(|| {
            let (sender, receiver) = sync_channel(FOLLOWER_BUFFER);
            inner.followers.push(sender);
            receiver
        });
        (old, new)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn publish(&mut self, record: &Arc<JournalEntry>) {
        self.events.push_back(Arc::clone(record));
        while self.events.len() as u64 > EVENTS_KEPT {
            self.events.pop_front();
        }
        // A follower that cannot keep up must not hold up anybody.
        self.followers
            .retain(|follower| match follower.try_send(Arc::clone(record)) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            });
    }
}

impl JournalEntry {
    /// What users are told of it.
    pub fn record(&self) -> EventRecord {
        let event = &self.event;
        let detail = serde_json::to_value(event).unwrap_or_default();
        EventRecord {
            id: self.id,
            at_ms: event.at.0,
            mac: event.mac.map(|mac| mac.to_string()),
            node: event.node.clone(),
            kind: detail["event"].as_str().unwrap_or_default().to_owned(),
            level: self.level().to_owned(),
            text: event.kind.to_string(),
            detail,
        }
    }

    /// `trace`, `info` or `warn`.
    pub fn level(&self) -> &'static str {
        match self.event.kind.severity() {
            Severity::Debug => "trace",
            Severity::Info => "info",
            Severity::Warning => "warn",
        }
    }

    /// Where a node is reached that is up now.
    pub fn address_that_is_up(&self) -> Option<Ipv4Addr> {
        match self.event.kind {
            EventKind::Up { address, .. } => address,
            _ => None,
        }
    }
}
