//! A thread that writes objects, while the one that found them reads and hashes the next.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use wire::digest::Digest;

use super::disk::Disk;
use crate::error::{Error, Result};

/// Jobs that may wait; each has as many bytes as the session's buffer at most.
const WAITING_MAX: usize = 16;
/// Zeros in units of this, aligned, are left out of objects as holes.
const HOLE: usize = 4096;

enum Job {
    /// A whole object.
    Object { digest: Digest, content: Vec<u8> },
    /// An object whose digest is not known yet.
    Begin,
    /// The next bytes of it.
    Part(Vec<u8>),
    /// That many zeros of it.
    Zeros(u64),
    /// It is complete: its digest, or `None` where it is not wanted.
    End(Option<Digest>),
}

/// Writes objects into one directory, under their names. Dropped, it writes what was handed over, or
/// gives up at the first failure.
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    /// Buffers that were written, to be filled again: new memory costs more than copying into it.
    spare: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(disk: Disk, directory: PathBuf) -> Result<Writer> {
        let (jobs, queue) = sync_channel(WAITING_MAX);
        let (returned, spare) = channel();
        let place = directory.clone();
        let thread = thread::Builder::new()
            .name("objects".into())
            .spawn(move || write_all(&disk, &directory, &queue, &returned))
            .map_err(Error::io("starting a thread for", &place))?;
        Ok(Writer {
            jobs: Some(jobs),
            spare,
            thread: Some(thread),
        })
    }

    /// Hands an object over. The failure is that of an earlier one, if there was any; so it is for
    /// all of these.
    pub fn write(&mut self, digest: Digest, content: &[u8]) -> Result<()> {
        let content = self.copied(content);
        self.send(Job::Object { digest, content })
    }

    /// An object whose digest is not known yet: its parts follow.
    pub fn begin_parts(&mut self) -> Result<()> {
        self.send(Job::Begin)
    }

    /// Hands over the next part.
    pub fn write_part(&mut self, part: &[u8]) -> Result<()> {
        let part = self.copied(part);
        self.send(Job::Part(part))
    }

    /// As [`Writer::write_part`], a part of zeros.
    pub fn write_zeros(&mut self, count: u64) -> Result<()> {
        self.send(Job::Zeros(count))
    }

    /// The parts so far are an object.
    pub fn name_parts(&mut self, digest: Digest) -> Result<()> {
        self.send(Job::End(Some(digest)))
    }

    /// The parts so far are not wanted.
    pub fn discard_parts(&mut self) -> Result<()> {
        self.send(Job::End(None))
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

    fn copied(&self, content: &[u8]) -> Vec<u8> {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(content);
        buffer
    }

    fn send(&mut self, job: Job) -> Result<()> {
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(()) } else { self.finish() }
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

fn write_all(
    disk: &Disk,
    directory: &Path,
    queue: &Receiver<Job>,
    returned: &Sender<Vec<u8>>,
) -> Result<()> {
    // Nobody takes them when the writer is being dropped.
    let give_back = |buffer| _ = returned.send(buffer);
    let mut parts: Option<Draft> = None;
    let path_of = |digest: Digest| directory.join(digest.to_string());
    for job in queue {
        match job {
            Job::Object { digest, content } => {
                let mut object = Draft::new(disk, path_of(digest))?;
                object.write(&content)?;
                object.finish()?;
                give_back(content);
            }
            Job::Begin => parts = Some(Draft::new(disk, directory.join("parts"))?),
            Job::Part(content) => {
                if let Some(object) = &mut parts {
                    object.write(&content)?;
                }
                give_back(content);
            }
            Job::Zeros(count) => {
                if let Some(object) = &mut parts {
                    object.size += count;
                }
            }
            Job::End(name) => {
                if let Some(object) = parts.take() {
                    let path = object.finish()?;
                    match name {
                        Some(digest) => disk.rename(&path, &path_of(digest))?,
                        None => disk.remove(&path)?,
                    }
                }
            }
        }
    }
    Ok(())
}

/// An object that is being written.
struct Draft {
    file: File,
    path: PathBuf,
    size: u64,
    /// Where the last bytes that were written end: what follows is a hole.
    written: u64,
}

impl Draft {
    fn new(disk: &Disk, path: PathBuf) -> Result<Draft> {
        Ok(Draft {
            file: disk.create(&path)?,
            path,
            size: 0,
            written: 0,
        })
    }

    /// Gives it its length; its path.
    fn finish(self) -> Result<PathBuf> {
        if self.written < self.size {
            self.file
                .set_len(self.size)
                .map_err(Error::io("writing", &self.path))?;
        }
        Ok(self.path)
    }

    /// Writes what is not zero, in runs as long as can be.
    fn write(&mut self, content: &[u8]) -> Result<()> {
        let head = content
            .len()
            .min((HOLE - (self.size as usize % HOLE)) % HOLE);
        let (head, body) = content.split_at(head);
        self.write_run(0, head)?;
        let mut run = 0;
        let mut at = 0;
        for block in body.chunks(HOLE) {
            if block.len() == HOLE && block == [0; HOLE] {
                self.write_run(head.len() + run, &body[run..at])?;
                run = at + HOLE;
            }
            at += block.len();
        }
        self.write_run(head.len() + run, &body[run.min(body.len())..])?;
        self.size += content.len() as u64;
        Ok(())
    }

    fn write_run(&mut self, offset: usize, run: &[u8]) -> Result<()> {
        let at = self.size + offset as u64;
        if !run.is_empty() {
            self.file
                .write_all_at(run, at)
                .map_err(Error::io("writing", &self.path))?;
            self.written = at + run.len() as u64;
        }
        Ok(())
    }
}
