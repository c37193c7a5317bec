//! A thread that writes objects, while the one that found them reads and hashes the next.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use wire::digest::Digest;

use super::disk::Disk;
use super::session::Draft;
use crate::error::{Error, Result};

/// Objects that may wait to be written; each is as large as the session's buffer at most.
const WAITING_MAX: usize = 16;

struct Job {
    digest: Digest,
    content: Vec<u8>,
}

/// Writes objects into one directory, under their names. Dropped, it writes what was handed over, or
/// gives up at the first failure.
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(disk: Disk, directory: PathBuf) -> Result<Writer> {
        let (jobs, queue) = sync_channel(WAITING_MAX);
        let place = directory.clone();
        let thread = thread::Builder::new()
            .name("objects".into())
            .spawn(move || write_all(&disk, &directory, &queue))
            .map_err(Error::io("starting a thread for", &place))?;
        Ok(Writer {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Hands an object over. The failure is that of an earlier one, if there was any.
    pub fn write(&mut self, digest: Digest, content: Vec<u8>) -> Result<()> {
        let job = Job { digest, content };
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(()) } else { self.finish() }
    }

    /// Waits until all objects are written.
    pub fn finish(&mut self) -> Result<()> {
        self.jobs = None;
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Whoever wants to know has finished it.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(disk: &Disk, directory: &std::path::Path, queue: &Receiver<Job>) -> Result<()> {
    for Job { digest, content } in queue {
        let mut object = Draft::new(disk, directory.join("written"))?;
        object.write_sparse(&content)?;
        object.name(disk, directory, digest)?;
    }
    Ok(())
}
