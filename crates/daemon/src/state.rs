//! What survives: the engine's records and the last events, in SQLite. One transaction for a
//! whole batch of inputs, durable when [`State::write`] returns.
//!
//! A batch of records is one row of a log, and so is one of events: put where it belongs, each
//! record would change a page of its own. Now and then the log is folded into the table of records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::Record;
use rusqlite::{Connection, params};

use crate::Error;
use crate::journal::JournalEntry;

/// Schema of the database file: 2 has the log, and batches of events.
const SCHEMA: u32 = 2;
/// Pages of 4 kB that are written before they go where they belong: the more, the more often is a
/// page among them that is written again anyway.
const CHECKPOINT_PAGES: u32 = 4096;
/// The log's size in bytes from which it is folded: some 8,000 leases.
const LOG_BYTES_MAX: usize = 1 << 20;
/// Events kept, but for the rest of a batch.
pub const EVENTS_KEPT: u64 = 20_000;
/// What stands between a record's key and its value, and behind each record or event of a batch.
/// JSON has neither in it, and keys have no characters for control.
const BEFORE_VALUE: char = '\t';
const BEHIND: char = '\n';

/// The open database.
pub struct State {
    path: PathBuf,
    database: Connection,
    log_bytes: usize,
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
        let mut state = State {
            path,
            database,
            log_bytes: 0,
        };
        state.prepare()?;
        state.log_bytes = state.texts(LOG)?.iter().map(String::len).sum();
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
        // Schema 1 had each event in a row, with the event itself among what was made of it.
        let upgrade = match found {
            1 => {
                "UPDATE events SET value = CASE WHEN json_valid(value)
                 THEN coalesce(json_extract(value, '$.detail'), '') ELSE '' END;"
            }
            _ => "",
        };
        let script = format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
             BEGIN;
             CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
             {upgrade}
             PRAGMA user_version = {SCHEMA};
             COMMIT;"
        );
        database.execute_batch(&script).map_err(failed(&self.path))
    }

    /// Every record. One that cannot be read is left out and logged: it must not keep the others
    /// from booting.
    pub fn records(&self) -> Result<Vec<Record>, Error> {
        let log = self.texts(LOG)?;
        let newest = newest(&log);
        let mut records = Vec::new();
        self.each_row("SELECT key, value FROM records", |key: String, value| {
            if !newest.contains_key(key.as_str()) {
                records.extend(parse(&value));
            }
        })?;
        records.extend(newest.into_values().flatten().filter_map(parse));
        Ok(records)
    }

    /// The events kept, oldest first.
    pub fn events(&self) -> Result<Vec<JournalEntry>, Error> {
        let mut events = Vec::new();
        self.each_row(
            "SELECT id, value FROM events ORDER BY id",
            |last: i64, value| {
                let lines = value.lines().count() as u64;
                let ids = (last as u64 + 1).saturating_sub(lines)..;
                let entry = |(id, line)| {
                    Some(JournalEntry {
                        id,
                        event: parse(line)?,
                    })
                };
                events.extend(ids.zip(value.lines()).filter_map(entry));
            },
        )?;
        Ok(events)
    }

    fn each_row<T: rusqlite::types::FromSql>(
        &self,
        query: &str,
        mut take: impl FnMut(T, String),
    ) -> Result<(), Error> {
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = self.database.prepare(query)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                take(row.get(0)?, row.get(1)?);
            }
            Ok(())
        };
        read().map_err(failed(&self.path))
    }

    fn texts(&self, query: &str) -> Result<Vec<String>, Error> {
        texts(&self.database, query).map_err(failed(&self.path))
    }

    /// Stores records and events, all or none; durable when it returns.
    pub fn write(&mut self, records: &[Record], events: &[Arc<JournalEntry>]) -> Result<(), Error> {
        if records.is_empty() && events.is_empty() {
            return Ok(());
        }
        self.log_bytes = self
            .transact(&batch_of_records(records), events)
            .map_err(failed(&self.path))?;
        Ok(())
    }

    /// How long the log is then.
    fn transact(&mut self, batch: &str, events: &[Arc<JournalEntry>]) -> rusqlite::Result<usize> {
        let mut log_bytes = self.log_bytes + batch.len();
        let transaction = self.database.transaction()?;
        if !batch.is_empty() {
            transaction
                .prepare_cached("INSERT INTO log (value) VALUES (?1)")?
                .execute([batch])?;
        }
        if log_bytes > LOG_BYTES_MAX {
            fold(&transaction)?;
            log_bytes = 0;
        }
        if let Some(last) = events.last() {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO events VALUES (?1, ?2)")?
                .execute(params![last.id as i64, batch_of_events(events)])?;
            let oldest = last.id.saturating_sub(EVENTS_KEPT);
            transaction
                .prepare_cached("DELETE FROM events WHERE id <= ?1")?
                .execute([oldest as i64])?;
        }
        transaction.commit()?;
        Ok(log_bytes)
    }
}

const LOG: &str = "SELECT value FROM log ORDER BY id";

/// A line for each record: its key, and its value unless the record under that key is gone.
fn batch_of_records(records: &[Record]) -> String {
    let mut batch = Vec::new();
    for record in records {
        batch.extend_from_slice(record.key().as_bytes());
        if !matches!(record, Record::Removed { .. }) {
            batch.push(BEFORE_VALUE as u8);
            serde_json::to_writer(&mut batch, record).expect("records have JSON forms");
        }
        batch.push(BEHIND as u8);
    }
    String::from_utf8(batch).expect("keys and JSON are text")
}

/// A line for each event. They are numbered without a gap.
fn batch_of_events(events: &[Arc<JournalEntry>]) -> String {
    let mut batch = Vec::new();
    for entry in events {
        serde_json::to_writer(&mut batch, &entry.event).expect("events have JSON forms");
        batch.push(BEHIND as u8);
    }
    String::from_utf8(batch).expect("JSON is text")
}

/// What counts of a log: the last value under each key, or that there is none.
fn newest(log: &[String]) -> BTreeMap<&str, Option<&str>> {
    let lines = log.iter().flat_map(|batch| batch.lines());
    lines
        .map(|line| match line.split_once(BEFORE_VALUE) {
            Some((key, value)) => (key, Some(value)),
            None => (line, None),
        })
        .collect()
}

/// Puts what the log says where it belongs, in the order of the keys: neighbours share pages.
fn fold(database: &Connection) -> rusqlite::Result<()> {
    let log = texts(database, LOG)?;
    let mut put = database.prepare_cached("INSERT OR REPLACE INTO records VALUES (?1, ?2)")?;
    let mut remove = database.prepare_cached("DELETE FROM records WHERE key = ?1")?;
    for (key, value) in newest(&log) {
        match value {
            Some(value) => put.execute([key, value])?,
            None => remove.execute([key])?,
        };
    }
    database.execute("DELETE FROM log", [])?;
    Ok(())
}

fn texts(database: &Connection, query: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = database.prepare(query)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
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

    fn event(id: u64) -> Arc<JournalEntry> {
        let address = [10, 0, 0, 1].into();
        let event = engine::Event {
            at: engine::Timestamp(id),
            mac: None,
            node: None,
            kind: engine::EventKind::Release { address },
        };
        Arc::new(JournalEntry { id, event })
    }

    fn ids(state: &State) -> Vec<u64> {
        state.events().unwrap().iter().map(|it| it.id).collect()
    }

    #[test]
    fn records_survive_and_removed_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        let removed = Record::Removed {
            key: lease(1).key(),
        };
        state
            .write(&[lease(1), lease(2), removed], &[event(1), event(2)])
            .unwrap();
        drop(state);
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.records().unwrap(), [lease(2)]);
        let events: Vec<Arc<JournalEntry>> =
            state.events().unwrap().into_iter().map(Arc::new).collect();
        assert_eq!(events, [event(1), event(2)]);
    }

    #[test]
    fn a_folded_log_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        let removed = |last| Record::Removed {
            key: lease(last).key(),
        };
        state.write(&[lease(1), lease(2), lease(3)], &[]).unwrap();
        fold(&state.database).unwrap();
        assert!(state.texts(LOG).unwrap().is_empty());
        assert_eq!(state.records().unwrap(), [lease(1), lease(2), lease(3)]);
        // What is in the log counts before what was folded, until that is folded too.
        let held = Record::Lease(engine::Lease {
            address: [10, 0, 0, 3].into(),
            mac: Some(engine::Mac([2, 0, 0, 0, 0, 1])),
            expires: None,
        });
        state
            .write(&[removed(1), removed(2), held.clone(), lease(1)], &[])
            .unwrap();
        assert_eq!(state.records().unwrap(), [lease(1), held.clone()]);
        fold(&state.database).unwrap();
        assert_eq!(state.records().unwrap(), [lease(1), held]);
    }

    #[test]
    fn the_log_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        let leases: Vec<Record> = (0..=u8::MAX).map(lease).collect();
        let batch_bytes = batch_of_records(&leases).len();
        for batch in 0..=LOG_BYTES_MAX / batch_bytes {
            // Nor does a restart make it forget how long it is.
            if batch % 16 == 0 {
                state = State::open(dir.path()).unwrap();
            }
            state.write(&leases, &[]).unwrap();
            let log_bytes: usize = state.texts(LOG).unwrap().iter().map(String::len).sum();
            assert_eq!(state.log_bytes, log_bytes);
            assert!(log_bytes <= LOG_BYTES_MAX);
        }
        assert!(state.texts(LOG).unwrap().is_empty());
        assert_eq!(state.records().unwrap().len(), leases.len());
    }

    #[test]
    fn old_events_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        state.write(&[], &[event(1)]).unwrap();
        state.write(&[], &[event(2), event(3)]).unwrap();
        state.write(&[], &[event(EVENTS_KEPT + 2)]).unwrap();
        // Of a batch all stay until the last one may go.
        assert_eq!(ids(&state), [2, 3, EVENTS_KEPT + 2]);
        state.write(&[], &[event(EVENTS_KEPT + 3)]).unwrap();
        assert_eq!(ids(&state), [EVENTS_KEPT + 2, EVENTS_KEPT + 3]);
    }

    #[test]
    fn an_older_schema_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        // As version 1 wrote them.
        state
            .database
            .execute_batch(
                r#"DROP TABLE log; PRAGMA user_version = 1;
                INSERT INTO records VALUES ('lease/10.0.0.1',
                '{"record":"lease","address":"10.0.0.1","mac":null,"expires":null}');
                INSERT INTO events VALUES (7, '{"id":7,"at_ms":7,"mac":null,"node":null,
                "kind":"release","level":"trace","text":"gave 10.0.0.1 back",
                "detail":{"at":7,"mac":null,"node":null,"event":"release","address":"10.0.0.1"}}');"#,
            )
            .unwrap();
        drop(state);
        let state = State::open(dir.path()).unwrap();
        assert_eq!(state.records().unwrap(), [lease(1)]);
        assert_eq!(state.events().unwrap(), [(*event(7)).clone()]);
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
