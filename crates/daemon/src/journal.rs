//! The events that users see: numbered, kept in a bounded ring, handed to whoever follows.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Event, Severity};

use crate::control::EventRecord;
use crate::state::EVENTS_KEPT;

/// Events that a slow follower may lag behind before it loses the connection.
const FOLLOWER_BUFFER: usize = 4096;

/// All events kept, oldest first.
#[derive(Default)]
pub struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    events: VecDeque<Arc<EventRecord>>,
    followers: Vec<SyncSender<Arc<EventRecord>>>,
}

impl Journal {
    /// A journal that goes on after the events of earlier runs.
    pub fn new(events: Vec<EventRecord>) -> Journal {
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
    pub fn number(&self, event: &Event) -> EventRecord {
        let mut inner = self.lock();
        inner.last += 1;
        record(inner.last, event)
    }

    /// Keeps events that are durable, and hands them on.
    pub fn publish(&self, records: &[Arc<EventRecord>]) {
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
    ) -> (Vec<Arc<EventRecord>>, Option<Receiver<Arc<EventRecord>>>) {
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
    fn publish(&mut self, record: &Arc<EventRecord>) {
        self.events.push_back(Arc::clone(record));
        if self.events.len() as u64 > EVENTS_KEPT {
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

fn record(id: u64, event: &Event) -> EventRecord {
    let detail = serde_json::to_value(event).unwrap_or_default();
    let level = match event.kind.severity() {
        Severity::Debug => "trace",
        Severity::Info => "info",
        Severity::Warning => "warn",
    };
    EventRecord {
        id,
        at_ms: event.at.0,
        mac: event.mac.map(|mac| mac.to_string()),
        node: event.node.clone(),
        kind: detail["event"].as_str().unwrap_or_default().to_owned(),
        level: level.to_owned(),
        text: event.kind.to_string(),
        detail,
    }
}
