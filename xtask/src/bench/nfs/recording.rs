//! What a node called while it booted, as operations on paths: it can be replayed on any server
//! that exports the same tree.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::client::op;
use super::outcome::{self, Outcome};
use super::pcap::{Record, records};
use super::xdr::Reader;

/// A boot's calls.
#[derive(Debug, Default, PartialEq)]
pub struct Recording {
    /// The paths that calls start from, below the export.
    pub paths: Vec<String>,
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// Calls that cannot be replayed: those on clients and sessions, and above the export.
    pub left_out: usize,
}

/// A call: operations from a path on.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Where it starts, as a position in the paths.
    pub at: usize,
    /// What it does.
    pub steps: Vec<Step>,
    /// What it came to: 0, or why its last operation failed.
    pub status: u32,
}

/// An operation without handles, state ids and cookies, which are each server's own.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// An operation without arguments.
    Plain(u32),
    /// LOOKUP of a name.
    LookUp(Vec<u8>),
    /// GETATTR of a bitmap.
    Attributes([u32; 3]),
    /// ACCESS.
    Access(u32),
    /// OPEN of a name in the directory, or of the file itself.
    Open(Option<Vec<u8>>),
    /// CLOSE or DELEGRETURN.
    Close,
    /// READ.
    Read {
        /// Where.
        offset: u64,
        /// How much.
        count: u32,
    },
    /// READDIR.
    ReadDirectory {
        /// From the first entry on, or where the page before ended.
        is_first: bool,
        /// Limits of a page: its names, all of it.
        limits: [u32; 2],
        /// The attributes of each entry.
        wanted: [u32; 3],
    },
}

impl Recording {
    /// Reads a packet capture: the calls on the tree exported as `export` that were made until
    /// `end_us` (microseconds since 1970).
    pub fn read(capture: &Path, port: u16, export: &str, end_us: u64) -> anyhow::Result<Self> {
        let bytes =
            std::fs::read(capture).with_context(|| format!("reading {}", capture.display()))?;
        let mut records = records(&bytes, port)?;
        records.retain(|record| record.at_us <= end_us);
        Self::of(&records, export)
    }

    fn of(records: &[Record], export: &str) -> anyhow::Result<Self> {
        let mut reader = Recorder {
            export: export.trim_matches('/'),
            ..Recorder::default()
        };
        for record in records {
            if record.to_server {
                reader.call(record);
            } else {
                reader.reply(record)?;
            }
        }
        reader.finish()
    }
}

/// A call that waits for its reply.
struct Waiting {
    order: usize,
    compound: Option<Vec<Operation>>,
}

/// An operation as it was sent.
#[derive(Clone)]
struct Operation {
    number: u32,
    handle: Vec<u8>,
    step: Step,
}

#[derive(Default)]
struct Recorder<'e> {
    export: &'e str,
    sent: usize,
    waiting: HashMap<((std::net::Ipv4Addr, u16), u32), Waiting>,
    /// Calls with their replies, by the order in which they were sent.
    done: Vec<(usize, Option<Call>)>,
    /// What handles stand for: paths from the root of the server.
    handles: HashMap<Vec<u8>, String>,
    paths: Vec<String>,
    positions: HashMap<String, usize>,
}

impl Recorder<'_> {
    fn call(&mut self, record: &Record) {
        let Ok((xid, compound)) = compound(&record.body) else {
            return;
        };
        let waiting = Waiting {
            order: self.sent,
            compound,
        };
        self.sent += 1;
        self.waiting.insert((record.client, xid), waiting);
    }

    fn reply(&mut self, record: &Record) -> anyhow::Result<()> {
        let mut reader = Reader::new(&record.body);
        let Some(waiting) = self.waiting.remove(&(record.client, reader.u32()?)) else {
            // A call on the backchannel.
            return Ok(());
        };
        let call = match waiting.compound {
            Some(operations) => self.follow(&operations, &mut reader)?,
            None => None,
        };
        self.done.push((waiting.order, call));
        Ok(())
    }

    /// Follows a call through its reply, and learns what the handles in that stand for. `None`
    /// where it is about nothing in the exported tree.
    fn follow(
        &mut self,
        operations: &[Operation],
        reader: &mut Reader<'_>,
    ) -> anyhow::Result<Option<Call>> {
        let _header = reader.take(20)?;
        let status = reader.u32()?;
        let _tag = reader.opaque()?;
        let count = reader.u32()? as usize;
        ensure!(count <= operations.len(), "more results than operations");
        let (mut current, mut saved) = (None, None);
        let mut begun = None;
        for operation in &operations[..count] {
            let got = (reader.u32()?, reader.u32()?);
            ensure!(got.0 == operation.number, "a result of another operation");
            if got.1 != 0 {
                if operation.number == op::PUTFH {
                    return Ok(None);
                }
                break;
            }
            let outcome = outcome::read(operation.number, reader)?;
            match (operation.number, &operation.step) {
                (op::PUTROOTFH, _) => current = Some(String::new()),
                (op::PUTFH, _) => current = self.handles.get(&operation.handle).cloned(),
                (op::SAVEFH, _) => saved.clone_from(&current),
                (op::RESTOREFH, _) => current.clone_from(&saved),
                (op::LOOKUPP, _) => {
                    current =
                        current.map(|path| path.rsplit_once('/').unwrap_or_default().0.to_owned());
                }
                (_, Step::LookUp(name) | Step::Open(Some(name))) => {
                    current = current.map(|path| below(&path, name));
                }
                _ => {}
            }
            if matches!(operation.number, op::PUTFH | op::PUTROOTFH) {
                begun.clone_from(&current);
            }
            self.learn(&outcome, current.as_deref());
        }
        let position = begun.and_then(|path| self.position(&path));
        Ok(position.map(|at| Call {
            at,
            steps: operations
                .iter()
                .filter(|it| !matches!(it.number, op::SEQUENCE | op::PUTFH | op::PUTROOTFH))
                .map(|it| it.step.clone())
                .collect(),
            status,
        }))
    }

    fn learn(&mut self, outcome: &Outcome<'_>, current: Option<&str>) {
        let Some(current) = current else {
            return;
        };
        match outcome {
            Outcome::Handle(handle) => {
                self.handles.insert(handle.to_vec(), current.to_owned());
            }
            Outcome::Listing(listing) => {
                for entry in &listing.entries {
                    if let Some(handle) = entry.handle {
                        self.handles
                            .insert(handle.to_vec(), below(current, entry.name));
                    }
                }
            }
            _ => {}
        }
    }

    /// The position of a path from the server's root among those in the export.
    fn position(&mut self, path: &str) -> Option<usize> {
        let below = path.trim_start_matches('/').strip_prefix(self.export)?;
        let path = match below.strip_prefix('/') {
            Some(path) => path,
            None if below.is_empty() => "",
            None => return None,
        };
        if let Some(at) = self.positions.get(path) {
            return Some(*at);
        }
        self.paths.push(path.to_owned());
        self.positions.insert(path.to_owned(), self.paths.len() - 1);
        Some(self.paths.len() - 1)
    }

    fn finish(mut self) -> anyhow::Result<Recording> {
        self.done.sort_by_key(|(order, _)| *order);
        let all = self.done.len();
        let calls: Vec<Call> = self.done.into_iter().filter_map(|(_, call)| call).collect();
        ensure!(
            !calls.is_empty(),
            "the capture has no calls on {}",
            self.export
        );
        Ok(Recording {
            paths: self.paths,
            left_out: all - calls.len(),
            calls,
        })
    }
}

fn below(path: &str, name: &[u8]) -> String {
    format!("{path}/{}", String::from_utf8_lossy(name))
}

/// Reads a call: its transaction id and the operations, or `None` where there are some that have
/// no place in a replay.
fn compound(record: &[u8]) -> anyhow::Result<(u32, Option<Vec<Operation>>)> {
    let mut reader = Reader::new(record);
    let xid = reader.u32()?;
    let head = [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?];
    ensure!(head == [0, 2, 100_003, 4], "no call of NFS 4");
    let procedure = reader.u32()?;
    for _credential_and_verifier in 0..2 {
        let _ = (reader.u32()?, reader.opaque()?);
    }
    if procedure == 0 {
        return Ok((xid, None));
    }
    let _tag = reader.opaque()?;
    let _minor = reader.u32()?;
    let count = reader.u32()?;
    let operations: anyhow::Result<Vec<_>> = (0..count).map(|_| operation(&mut reader)).collect();
    Ok((xid, operations.ok()))
}

fn operation(reader: &mut Reader<'_>) -> anyhow::Result<Operation> {
    let number = reader.u32()?;
    let mut handle = Vec::new();
    let step = match number {
        op::SEQUENCE => {
            reader.take(32)?;
            Step::Plain(number)
        }
        op::PUTFH => {
            handle = reader.opaque()?.to_vec();
            Step::Plain(number)
        }
        op::PUTROOTFH | op::LOOKUPP | op::SAVEFH | op::RESTOREFH | op::GETFH | op::READLINK => {
            Step::Plain(number)
        }
        op::LOOKUP => Step::LookUp(reader.opaque()?.to_vec()),
        op::GETATTR => Step::Attributes(reader.bitmap()?),
        op::ACCESS => Step::Access(reader.u32()?),
        op::OPEN => Step::Open(open(reader)?),
        op::CLOSE => {
            reader.take(20)?;
            Step::Close
        }
        op::DELEGRETURN => {
            reader.take(16)?;
            Step::Close
        }
        op::READ => {
            let _state = reader.take(16)?;
            Step::Read {
                offset: reader.u64()?,
                count: reader.u32()?,
            }
        }
        op::READDIR => {
            let is_first = reader.u64()? == 0;
            let _verifier = reader.u64()?;
            Step::ReadDirectory {
                is_first,
                limits: [reader.u32()?, reader.u32()?],
                wanted: reader.bitmap()?,
            }
        }
        _ => bail!("operation {number} is not replayed"),
    };
    Ok(Operation {
        number,
        handle,
        step,
    })
}

/// The arguments of an OPEN that makes no file: the name, or `None` for the current file.
fn open(reader: &mut Reader<'_>) -> anyhow::Result<Option<Vec<u8>>> {
    let _sequence_access_deny = reader.take(12)?;
    let _owner = (reader.u64()?, reader.opaque()?);
    ensure!(reader.u32()? == 0, "an OPEN that makes a file");
    match reader.u32()? {
        0 => Ok(Some(reader.opaque()?.to_vec())),
        4 => Ok(None),
        claim => bail!("claim {claim} is not replayed"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Operations;
    use super::super::xdr::Writer;
    use super::*;

    const CLIENT: (std::net::Ipv4Addr, u16) = (std::net::Ipv4Addr::LOCALHOST, 700);

    fn record(to_server: bool, words: &[u32], body: &[u8]) -> Record {
        let mut out = Writer::default();
        words.iter().for_each(|word| out.u32(*word));
        out.fixed(body);
        Record {
            at_us: 0,
            client: CLIENT,
            to_server,
            body: out.0,
        }
    }

    fn call(xid: u32, operations: &Operations) -> Record {
        let head = [xid, 0, 2, 100_003, 4, 1, 0, 0, 0, 0, 0, 1, operations.count];
        record(true, &head, &operations.body.0)
    }

    fn reply(xid: u32, status: u32, count: u32, results: &Writer) -> Record {
        let head = [xid, 1, 0, 0, 0, 0, status, 0, count];
        record(false, &head, &results.0)
    }

    fn results(words: &[u32]) -> Writer {
        let mut out = Writer::default();
        words.iter().for_each(|word| out.u32(*word));
        out
    }

    #[test]
    fn handles_become_paths() {
        let walk = Operations::default().plain(op::PUTROOTFH);
        let walk = walk.look_up(b"images").look_up(b"debian");
        let walk = walk.look_up(b"etc").plain(op::GETFH);
        let mut walked = results(&[24, 0, 15, 0, 15, 0, 15, 0, op::GETFH, 0]);
        walked.opaque(b"etc!");
        let missing = Operations::on(b"etc!").look_up(b"none");
        let outside = Operations::on(b"unknown").access(1);
        let session = {
            let mut operations = Operations::default();
            operations.begin(op::EXCHANGE_ID);
            operations
        };
        // The second call is made before the first is answered, and answered first.
        let records = [
            call(9, &session),
            reply(9, 0, 0, &results(&[])),
            call(1, &walk),
            reply(1, 0, 5, &walked),
            call(2, &Operations::on(b"etc!").access(5)),
            call(3, &missing),
            reply(3, 2, 2, &results(&[op::PUTFH, 0, op::LOOKUP, 2])),
            reply(2, 0, 2, &results(&[op::PUTFH, 0, op::ACCESS, 0, 1, 1])),
            call(4, &outside),
            reply(4, 0, 2, &results(&[op::PUTFH, 0, op::ACCESS, 0, 1, 1])),
            call(5, &missing),
        ];
        let recording = Recording::of(&records, "/images/debian").unwrap();
        let expected = Recording {
            paths: vec!["etc".to_owned()],
            calls: vec![
                Call {
                    at: 0,
                    steps: vec![Step::Access(5)],
                    status: 0,
                },
                Call {
                    at: 0,
                    steps: vec![Step::LookUp(b"none".to_vec())],
                    status: 2,
                },
            ],
            left_out: 3,
        };
        assert_eq!(recording, expected);
        assert!(Recording::of(&records[..2], "/images/debian").is_err());
    }
}
