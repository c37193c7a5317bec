//! What is called: operations on files of the exported tree, with the answers that they must get.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::client::{Client, LINUX_ATTRIBUTES, Operations, OwnReply, Reply, State, op};
use super::load::Order;
use super::outcome::{self, Outcome};
use super::source::{self, Entry, Piece};

/// Names and files that calls rotate over.
const NAMES: usize = 512;
const FILES: usize = 256;
/// What Linux asks to be allowed on an inode.
const ACCESS_ASKED: u32 = 0x1f;
/// Of long answers, so much at the start, and as much at a place that moves, is compared in every
/// answer. Each was compared as a whole once.
const SAMPLE_LEN: usize = 1024;

/// A call and its answer.
pub struct Target {
    /// The call.
    pub operations: Operations,
    /// What the results begin with.
    head: Vec<u8>,
    /// The content that follows, for READ.
    piece: Option<Piece>,
}

impl Target {
    /// Compares the answer to the `turn`th call with what it must be.
    pub fn check(&self, turn: u64, reply: &Reply<'_>) -> anyhow::Result<()> {
        ensure!(
            reply.status == 0,
            "expected success, got status {}",
            reply.status
        );
        let content: &[u8] = self.piece.as_ref().map_or(&[], |piece| &piece.content);
        let len = self.head.len() + content.len().next_multiple_of(4);
        ensure!(
            reply.tail.len() == len && reply.tail.starts_with(&self.head),
            "another answer than before"
        );
        let got = &reply.tail[self.head.len()..][..content.len()];
        let blocks = content.len().div_ceil(SAMPLE_LEN).max(1);
        for block in [0, turn as usize % blocks] {
            let start = block * SAMPLE_LEN;
            let end = content.len().min(start + SAMPLE_LEN);
            ensure!(
                got[start..end] == content[start..end],
                "wrong content at byte {start}"
            );
        }
        Ok(())
    }
}

/// A client that knows its way in the exported tree.
pub struct Walker {
    /// The client.
    pub client: Client,
    export: Vec<String>,
    handles: HashMap<PathBuf, Vec<u8>>,
}

impl Walker {
    /// Connects from an address, under a name.
    pub fn connect(order: &Order, source: Ipv4Addr, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::connect(order.server, source, name)?,
            export: order.export.clone(),
            handles: HashMap::new(),
        })
    }

    /// The handle of a path in the tree.
    pub fn handle(&mut self, path: &Path) -> anyhow::Result<Vec<u8>> {
        if let Some(handle) = self.handles.get(path) {
            return Ok(handle.clone());
        }
        let handle = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = self.handle(parent)?;
                let operations = Operations::on(&parent).look_up(name.as_encoded_bytes());
                self.find(op::PUTFH, &[op::LOOKUP], operations)
            }
            _ => self.root(),
        };
        let handle = handle.with_context(|| format!("looking {} up", path.display()))?;
        self.handles.insert(path.to_owned(), handle.clone());
        Ok(handle)
    }

    fn root(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut operations = Operations::default().plain(op::PUTROOTFH);
        for name in &self.export {
            operations = operations.look_up(name.as_bytes());
        }
        let lookups = vec![op::LOOKUP; self.export.len()];
        self.find(op::PUTROOTFH, &lookups, operations)
    }

    fn find(
        &mut self,
        first: u32,
        then: &[u32],
        operations: Operations,
    ) -> anyhow::Result<Vec<u8>> {
        let reply = self.client.call(&operations.plain(op::GETFH))?;
        let mut results = reply.results()?;
        results.expect(first)?;
        for number in then {
            results.expect(*number)?;
        }
        Ok(results.expect(op::GETFH)?.opaque()?.to_vec())
    }

    /// Opens a file for reading.
    pub fn open(&mut self, handle: &[u8]) -> anyhow::Result<State> {
        let operations = Operations::on(handle).open(self.client.id, None);
        let reply = self.client.call(&operations)?;
        let mut results = reply.results()?;
        results.expect(op::PUTFH)?;
        match outcome::read(op::OPEN, results.expect(op::OPEN)?)? {
            Outcome::Opened(state) => Ok(state),
            other => bail!("expected a state id, got {other:?}"),
        }
    }

    /// GETATTR of all sorts of inodes.
    pub fn attributes(&mut self, source: &Path) -> anyhow::Result<Vec<Target>> {
        self.each_name(source, |walker, entry| {
            let handle = walker.handle(&entry.path)?;
            let operations = Operations::on(&handle).attributes(&LINUX_ATTRIBUTES);
            walker.inspected(operations, entry, |_| Ok(()))
        })
    }

    /// ACCESS, with GETATTR, as Linux has it.
    pub fn access(&mut self, source: &Path) -> anyhow::Result<Vec<Target>> {
        self.each_name(source, |walker, entry| {
            let handle = walker.handle(&entry.path)?;
            let operations = Operations::on(&handle).access(ACCESS_ASKED);
            let operations = operations.attributes(&LINUX_ATTRIBUTES);
            walker.inspected(operations, entry, |results| {
                let (_known, granted) = {
                    let reader = results.expect(op::ACCESS)?;
                    (reader.u32()?, reader.u32()?)
                };
                // Root may read anything.
                ensure!(granted & 1 != 0, "expected leave to read, got {granted:#x}");
                Ok(())
            })
        })
    }

    /// LOOKUP, with GETFH and GETATTR, as Linux has it.
    pub fn lookup(&mut self, source: &Path) -> anyhow::Result<Vec<Target>> {
        self.each_name(source, |walker, entry| {
            let (Some(parent), Some(name)) = (entry.path.parent(), entry.path.file_name()) else {
                unreachable!("an entry has a name");
            };
            let handle = walker.handle(parent)?;
            let operations = Operations::on(&handle).look_up(name.as_encoded_bytes());
            let operations = operations.plain(op::GETFH).attributes(&LINUX_ATTRIBUTES);
            walker.inspected(operations, entry, |results| {
                results.expect(op::LOOKUP)?;
                results.expect(op::GETFH)?.opaque()?;
                Ok(())
            })
        })
    }

    fn each_name(
        &mut self,
        source: &Path,
        target: impl Fn(&mut Self, &Entry) -> anyhow::Result<Target>,
    ) -> anyhow::Result<Vec<Target>> {
        let names = source::spread(source::entries(source)?, NAMES);
        let names = names.iter().map(|entry| {
            target(self, entry).with_context(|| format!("of {}", entry.path.display()))
        });
        names.collect()
    }

    /// Makes a call that ends with GETATTR and compares the attributes with the disk's; `before`
    /// takes the results between PUTFH and that.
    fn inspected(
        &mut self,
        operations: Operations,
        entry: &Entry,
        before: impl FnOnce(&mut super::client::Results<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Target> {
        let reply: OwnReply = self.client.call(&operations)?;
        let mut results = reply.results()?;
        results.expect(op::PUTFH)?;
        before(&mut results)?;
        source::check_attributes(results.expect(op::GETATTR)?, &entry.metadata)?;
        Ok(Target {
            operations,
            head: reply.tail,
            piece: None,
        })
    }

    /// READ of `count` bytes, from many files that are at least that long; with `state`, or where
    /// there is none with the files opened.
    pub fn reads(
        &mut self,
        source: &Path,
        count: u32,
        state: Option<State>,
    ) -> anyhow::Result<Vec<Target>> {
        let mut entries = source::entries(source)?;
        entries.retain(|it| it.metadata.is_file() && it.metadata.len() >= count.into());
        let files = source::spread(entries, FILES);
        let targets = files.iter().enumerate().map(|(index, entry)| {
            // Not always the start of the file.
            let pieces = entry.metadata.len() / u64::from(count);
            let offset = index as u64 % pieces * u64::from(count);
            let piece = Piece::load(&source.join(&entry.path), offset, count as usize)?;
            self.read(&entry.path, piece, (offset, count), state)
                .with_context(|| format!("of {}", entry.path.display()))
        });
        targets.collect()
    }

    fn read(
        &mut self,
        path: &Path,
        piece: Piece,
        (offset, count): (u64, u32),
        state: Option<State>,
    ) -> anyhow::Result<Target> {
        let handle = self.handle(path)?;
        let state = state.map_or_else(|| self.open(&handle), Ok)?;
        let operations = Operations::on(&handle).read(&state, offset, count);
        let reply = self.client.call(&operations)?;
        let mut results = reply.results()?;
        results.expect(op::PUTFH)?;
        let reader = results.expect(op::READ)?;
        let is_last = reader.u32()? == 1;
        ensure!(is_last == piece.is_last, "wrong about the end of the file");
        ensure!(reader.opaque()? == &*piece.content, "wrong content");
        let content_len = piece.content.len().next_multiple_of(4);
        let head = reply.tail[..reply.tail.len() - content_len].to_vec();
        Ok(Target {
            operations,
            head,
            piece: Some(piece),
        })
    }
}
