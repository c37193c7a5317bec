//! What was decided and is not durable yet. A write that fails loses nothing: its records and
//! events stay in front of the next one.

use std::collections::HashSet;
use std::sync::Arc;

use engine::Record;

use crate::journal::JournalEntry;
use crate::state::{EVENTS_KEPT, State};

/// The way into the database.
pub struct Unwritten {
    pub(crate) state: State,
    records: Vec<Record>,
    events: Vec<Arc<JournalEntry>>,
    failing: bool,
}

impl Unwritten {
    /// Nothing waits.
    pub fn new(state: State) -> Unwritten {
        Unwritten {
            state,
            records: Vec::new(),
            events: Vec::new(),
            failing: false,
        }
    }

    /// Adds a record.
    pub fn record(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Adds an event.
    pub fn event(&mut self, event: JournalEntry) {
        self.events.push(Arc::new(event));
    }

    /// Whether records wait: nothing may be promised.
    pub fn has_records(&self) -> bool {
        !self.records.is_empty()
    }

    /// How many records wait.
    #[cfg(test)]
    pub fn waiting_records(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.events.is_empty()
    }

    /// Tries to write all that waits; the events that are durable now, oldest first.
    pub fn write(&mut self) -> Vec<Arc<JournalEntry>> {
        if self.is_empty() {
            return Vec::new();
        }
        match self.state.write(&self.records, &self.events) {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the state database can be written again; nothing was lost");
                }
                self.records.clear();
                std::mem::take(&mut self.events)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, hint = error.hint(), "no node is answered until the state can be written");
                }
                self.compact();
                Vec::new()
            }
        }
    }

    /// Of each key only the last record counts; of the events only the newest are kept anyway.
    fn compact(&mut self) {
        let mut seen = HashSet::new();
        let mut newest: Vec<Record> = std::mem::take(&mut self.records);
        newest.reverse();
        newest.retain(|record| seen.insert(record.key()));
        newest.reverse();
        self.records = newest;
        let surplus = self.events.len().saturating_sub(EVENTS_KEPT as usize);
        self.events.drain(..surplus);
    }
}
