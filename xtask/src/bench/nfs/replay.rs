//! Replays a boot's calls: every client makes all of them, one after the other.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};

use super::client::{ANONYMOUS, Client, Operations, Reply, State, op};
use super::drive::Script;
use super::outcome::{self, Listing, Outcome};
use super::recording::{Call, Recording, Step};
use super::targets::Walker;
use super::xdr::Reader;

/// Of what is read, so much at the start and at the end is compared.
const SAMPLE_LEN: usize = 1024;

/// A recording, made ready for one server.
pub struct Replay {
    calls: Vec<Call>,
    /// The file that each call is about in the end: that of its start, or one that it opens.
    subjects: Vec<usize>,
    /// The handles of the paths.
    handles: Vec<Vec<u8>>,
    /// The content of the files that are read.
    contents: HashMap<usize, Arc<[u8]>>,
}

impl Replay {
    /// Looks all paths up, and reads the files from the disk.
    pub fn prepare(
        recording: Recording,
        walker: &mut Walker,
        source: &Path,
    ) -> anyhow::Result<Self> {
        let handles = recording
            .paths
            .iter()
            .map(|path| walker.handle(Path::new(path)));
        let handles = handles.collect::<anyhow::Result<Vec<_>>>()?;
        let position = |path: &str| recording.paths.iter().position(|it| it == path);
        let subject = |call: &Call| {
            let opened = call.steps.iter().find_map(|step| match step {
                Step::Open(Some(name)) => Some(String::from_utf8_lossy(name)),
                _ => None,
            });
            let path = &recording.paths[call.at];
            let inner = opened.map(|name| format!("{path}/{name}"));
            inner.and_then(|path| position(path.trim_start_matches('/')))
        };
        let subjects: Vec<usize> = recording
            .calls
            .iter()
            .map(|call| subject(call).unwrap_or(call.at))
            .collect();
        let mut contents = HashMap::new();
        for (call, at) in recording.calls.iter().zip(&subjects) {
            let reads = call
                .steps
                .iter()
                .any(|step| matches!(step, Step::Read { .. }));
            if reads && !contents.contains_key(at) {
                let path = source.join(&recording.paths[*at]);
                let content =
                    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                contents.insert(*at, content.into());
            }
        }
        let mut calls = recording.calls;
        close_early(&mut calls, &subjects);
        Ok(Self {
            calls,
            subjects,
            handles,
            contents,
        })
    }
}

/// Has files closed by the last call that reads them. The node kept delegations, and with them files
/// open for long; a server that keeps a descriptor for each open file would run out of them.
fn close_early(calls: &mut [Call], subjects: &[usize]) {
    let mut last_reads = HashMap::new();
    for (at, subject) in subjects.iter().enumerate() {
        let steps = &calls[at].steps;
        let ends = |step: &Step| matches!(step, Step::Open(_) | Step::Close);
        if steps.iter().any(|step| matches!(step, Step::Read { .. })) {
            last_reads.insert(*subject, at);
        } else if steps.iter().any(ends)
            && let Some(last) = last_reads.remove(subject)
        {
            calls[last].steps.push(Step::Close);
        }
    }
    for last in last_reads.into_values() {
        calls[last].steps.push(Step::Close);
    }
}

/// One client's way through a replay.
pub struct Player<'a> {
    replay: &'a Replay,
    /// The call that is next, or under way.
    at: usize,
    opened: HashMap<usize, State>,
    /// Where the next page of a directory begins.
    pages: HashMap<usize, (u64, [u8; 8])>,
}

impl<'a> Player<'a> {
    /// Begins at the first call.
    pub fn new(replay: &'a Replay) -> Self {
        Self {
            replay,
            at: 0,
            opened: HashMap::new(),
            pages: HashMap::new(),
        }
    }

    fn operations(&self, client: u64, call: &Call, subject: usize) -> Operations {
        let mut operations = Operations::on(&self.replay.handles[call.at]);
        for step in &call.steps {
            operations = self.add(operations, client, step, subject);
        }
        operations
    }

    fn add(&self, to: Operations, client: u64, step: &Step, subject: usize) -> Operations {
        let state = self.opened.get(&subject).unwrap_or(&ANONYMOUS);
        match step {
            Step::Plain(number) => to.plain(*number),
            Step::LookUp(name) => to.look_up(name),
            // The third word holds attributes of version 4.2.
            Step::Attributes(wanted) => to.attributes(&wanted[..2]),
            // The higher bits ask about extended attributes, in version 4.2.
            Step::Access(asked) => to.access(asked & 0x3f),
            Step::Open(name) => to.open(client, name.as_deref()),
            // A delegation that is returned; here there are none.
            Step::Close if *state == ANONYMOUS => to.plain(op::GETFH),
            Step::Close => to.close(state),
            Step::Read { offset, count } => to.read(state, *offset, *count),
            Step::ReadDirectory {
                is_first,
                limits,
                wanted,
            } => {
                let page = self.pages.get(&subject).filter(|_| !is_first);
                let page = page.copied().unwrap_or_default();
                to.read_directory(page, *limits, &wanted[..2])
            }
        }
    }

    fn take_step(
        &mut self,
        step: &Step,
        subject: usize,
        reader: &mut Reader<'_>,
    ) -> anyhow::Result<()> {
        let (number, status) = (reader.u32()?, reader.u32()?);
        ensure!(status == 0, "operation {number}: status {status}");
        match (outcome::read(number, reader)?, step) {
            (Outcome::Opened(state), _) => drop(self.opened.insert(subject, state)),
            (Outcome::Content(is_last, got), Step::Read { offset, count }) => {
                self.check(subject, *offset, *count, is_last, got)?;
            }
            (Outcome::Listing(listing), _) => self.turn_page(subject, &listing),
            (_, Step::Close) => drop(self.opened.remove(&subject)),
            _ => {}
        }
        Ok(())
    }

    fn check(
        &self,
        subject: usize,
        offset: u64,
        count: u32,
        is_last: bool,
        got: &[u8],
    ) -> anyhow::Result<()> {
        let content = self
            .replay
            .contents
            .get(&subject)
            .context("an unread file")?;
        let rest = content.get(offset as usize..).unwrap_or_default();
        let expected = &rest[..rest.len().min(count as usize)];
        ensure!(
            got.len() == expected.len() && (is_last == (rest.len() <= count as usize)),
            "expected {} bytes at {offset}, got {}",
            expected.len(),
            got.len()
        );
        let sample = expected.len().min(SAMPLE_LEN);
        let last = expected.len() - sample;
        ensure!(
            got[..sample] == expected[..sample] && got[last..] == expected[last..],
            "wrong content"
        );
        Ok(())
    }

    fn turn_page(&mut self, subject: usize, listing: &Listing<'_>) {
        match listing.entries.last().filter(|_| !listing.is_last) {
            Some(last) => self.pages.insert(subject, (last.cookie, listing.verifier)),
            None => self.pages.remove(&subject),
        };
    }

    fn take_all(&mut self, reply: &Reply<'_>) -> anyhow::Result<()> {
        let replay = self.replay;
        let (call, subject) = (&replay.calls[self.at], replay.subjects[self.at]);
        ensure!(
            reply.status == call.status,
            "expected status {}, got {}",
            call.status,
            reply.status
        );
        if reply.status != 0 {
            return Ok(());
        }
        let mut reader = Reader::new(reply.tail);
        let _handle_was_put = reader.u64()?;
        for step in &call.steps {
            self.take_step(step, subject, &mut reader)?;
        }
        Ok(())
    }
}

impl Script for Player<'_> {
    fn next(&mut self, client: &mut Client) -> anyhow::Result<bool> {
        let Some(call) = self.replay.calls.get(self.at) else {
            return Ok(false);
        };
        let operations = self.operations(client.id, call, self.replay.subjects[self.at]);
        client.send(0, &operations);
        Ok(true)
    }

    fn take(&mut self, reply: &Reply<'_>) -> anyhow::Result<()> {
        self.take_all(reply).with_context(|| {
            let call = &self.replay.calls[self.at];
            format!("call {} of the boot, {:?}", self.at, call.steps)
        })?;
        self.at += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_closed_by_the_last_call_that_reads_them() {
        let call = |step: &Step| Call {
            at: 0,
            steps: vec![step.clone()],
            status: 0,
        };
        let (open, read) = (
            Step::Open(None),
            Step::Read {
                offset: 0,
                count: 9,
            },
        );
        let steps = [
            &open,
            &read,
            &read,
            &open,
            &read,
            &Step::Access(1),
            &Step::Close,
        ];
        let mut calls: Vec<Call> = steps.into_iter().map(call).collect();
        close_early(&mut calls, &[7; 7]);
        let closing = |call: &Call| call.steps.len() == 2 && call.steps[1] == Step::Close;
        let closed: Vec<bool> = calls.iter().map(closing).collect();
        assert_eq!(closed, [false, false, true, false, true, false, false]);
    }
}
