//! What survives: the engine's records and the last events, in SQLite. One transaction for a
//! whole batch of inputs, durable when [`State::write`] returns.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::Record;
use rusqlite::{Connection, params};

use crate::Error;
use crate::control::EventRecord;

/// Schema of the database file.
const SCHEMA: u32 = 1;
/// Pages of 4 kB that are written before they go where they belong: the more, the more often is a
/// page among them that is written again anyway.
const CHECKPOINT_PAGES: u32 = 4096;
/// Events kept.
pub const EVENTS_KEPT: u64 = 20_000;

/// The open database.
pub struct State {
    path: PathBuf,
    database: Connection,
}

impl State {
    /// Opens `state.db` below the state directory; makes it where there is none.
    pub fn open(state_dir: &Path) -> Result<State, Error> {
        let path = state_dir.join("state.db");
        let database = Connection::open(&path).map_err(failed(&path))?;
        // Boot records hold tokens.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, private)
            .map_err(|error| Error::io(format!("protecting {}", path.display()), error))?;
        let state = State { path, database };
        state.prepare()?;
        Ok(state)
    }

    fn prepare(&self) -> Result<(), Error> {
        let database = &self.database;
        let version = || database.query_row("PRAGMA user_version", [], |row| row.get(0));
        let found: u32 = version().map_err(failed(&self.path))?;
        if found > SCHEMA {
            return Err(Error::SchemaTooNew {
                path: self.path.clone(),
                supported: SCHEMA,
                found,
            });
        }
        let script = format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
             CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
             PRAGMA user_version = {SCHEMA};"
        );
        database.execute_batch(&script).map_err(failed(&self.path))
    }

    /// Every record. One that cannot be read is left out and logged: it must not keep the others
    /// from booting.
    pub fn records(&self) -> Result<Vec<Record>, Error> {
        let records = self.texts("SELECT value FROM records")?;
        Ok(records.iter().filter_map(|text| parse(text)).collect())
    }

    /// The events kept, oldest first.
    pub fn events(&self) -> Result<Vec<EventRecord>, Error> {
        let events = self.texts("SELECT value FROM events ORDER BY id")?;
        Ok(events.iter().filter_map(|text| parse(text)).collect())
    }

    fn texts(&self, query: &str) -> Result<Vec<String>, Error> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = self.database.prepare(query)?;
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        };
        read().map_err(failed(&self.path))
    }

    /// Stores records and events, all or none; durable when it returns.
    pub fn write(&mut self, records: &[&Record], events: &[Arc<EventRecord>]) -> Result<(), Error> {
        if records.is_empty() && events.is_empty() {
            return Ok(());
        }
        let path = self.path.clone();
        self.transact(records, events).map_err(failed(&path))
    }

    fn transact(
        &mut self,
        records: &[&Record],
        events: &[Arc<EventRecord>],
    ) -> rusqlite::Result<()> {
        let transaction = self.database.transaction()?;
        for record in records {
            match record {
                Record::Removed { key } => {
                    transaction
                        .prepare_cached("DELETE FROM records WHERE key = ?1")?
                        .execute([key])?;
                }
                other => {
                    let value = serde_json::to_string(other).expect("records have JSON forms");
                    transaction
                        .prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2)")?
                        .execute(params![other.key(), value])?;
                }
            }
        }
        for event in events {
            let value = serde_json::to_string(&**event).expect("events have JSON forms");
            transaction
                .prepare_cached("INSERT OR REPLACE INTO events VALUES (?1, ?2)")?
                .execute(params![event.id as i64, value])?;
        }
        if let Some(oldest) = events
            .last()
            .and_then(|event| event.id.checked_sub(EVENTS_KEPT))
        {
            transaction
                .prepare_cached("DELETE FROM events WHERE id <= ?1")?
                .execute([oldest as i64])?;
        }
        transaction.commit()
    }
}

#[cfg(test)]
impl State {
    /// As if the disk were full, or not any more.
    pub fn refuse_writes(&self, refuse: bool) {
        let value = i32::from(refuse);
        self.database
            .execute_batch(&format!("PRAGMA query_only = {value}"))
            .unwrap();
    }
}

/// The image versions that nodes run, or may run, by what the last daemon wrote in `state_dir`: for
/// when none runs. Empty where none ever did.
pub fn versions_in_use(state_dir: &Path) -> Result<Vec<engine::Digest>, Error> {
    if !state_dir.join("state.db").exists() {
        return Ok(Vec::new());
    }
    let records = State::open(state_dir)?.records()?;
    Ok(engine::versions_in_use(records).into_iter().collect())
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text)
        .inspect_err(
            |error| tracing::warn!(%error, "a stored record cannot be read and is left out"),
        )
        .ok()
}

fn failed(path: &Path) -> impl FnOnce(rusqlite::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Database { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(last: u8) -> Record {
        let address = [10, 0, 0, last].into();
        Record::Lease(engine::Lease {
            address,
            mac: None,
            expires: None,
        })
    }

    fn event(id: u64) -> Arc<EventRecord> {
        Arc::new(EventRecord {
            id,
            at_ms: 0,
            mac: None,
            node: None,
            kind: "ack".into(),
            level: "info".into(),
            text: String::new(),
            detail: serde_json::Value::Null,
        })
    }

    #[test]
    fn records_survive_and_removed_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        let removed = Record::Removed {
            key: lease(1).key(),
        };
        state
            .write(&[&lease(1), &lease(2), &removed], &[event(1)])
            .unwrap();
        drop(state);
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.records().unwrap(), [lease(2)]);
        assert_eq!(state.events().unwrap().len(), 1);
    }

    #[test]
    fn old_events_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        state
            .write(&[], &[event(1), event(2), event(EVENTS_KEPT + 1)])
            .unwrap();
        let ids: Vec<u64> = state.events().unwrap().iter().map(|it| it.id).collect();
        assert_eq!(ids, [2, EVENTS_KEPT + 1]);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state
            .database
            .execute_batch("PRAGMA user_version = 9")
            .unwrap();
        drop(state);
        assert!(matches!(
            State::open(dir.path()),
            Err(Error::SchemaTooNew { found: 9, .. })
        ));
    }
}
