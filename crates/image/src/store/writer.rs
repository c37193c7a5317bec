//! A thread that writes objects, while the one that found them reads and hashes the next.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use wire::digest::Digest;

use super::disk::Disk;
use crate::error::{Error, Result};

/// Jobs that may wait; each has as many bytes as the session's buffer at most.
const WAITING_MAX: usize = 16;
/// Up to so many objects and their directories are made durable one by one. Tests have imports on
/// both sides of it.
pub const SYNCED_ALONE_MAX: usize = if cfg!(test) { 3 } else { 256 };
/// Where objects are to be made durable by one sync of the file system, one is begun whenever that
/// many bytes were written: else the disk would be idle until the end. Tests come to it, too.
const SYNCED_EARLY: u64 = if cfg!(test) { 1 << 14 } else { 64 << 20 };
/// Zeros in units of this, aligned, are left out of objects as holes.
const HOLE: usize = 4096;

enum Job {
    /// A whole object.
    Object { digest: Digest, content: Filled },
    /// An object whose digest is not known yet.
    Begin,
    /// The next bytes of it.
    Part(Filled),
    /// That many zeros of it.
    Zeros(u64),
    /// It is complete: its digest, or `None` where it is not wanted.
    End(Option<Digest>),
}

/// A buffer whose first bytes are to be written. It goes to the writer as it is, and is not copied.
pub struct Filled {
    /// The buffer.
    pub buffer: Vec<u8>,
    /// How many of its bytes count.
    pub len: usize,
}

impl Filled {
    /// All of a buffer.
    pub fn whole(buffer: Vec<u8>) -> Filled {
        let len = buffer.len();
        Filled { buffer, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

/// Writes objects into one directory, under their names. Dropped, it writes what was handed over, or
/// gives up at the first failure.
pub struct Writer {
    jobs: Option<SyncSender<Job>>,
    /// Buffers that were written, to be filled again: new memory costs more than filling it.
    spare: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    /// Starts the thread. Buffers of that length are kept for [`Writer::spare`].
    pub fn start(disk: Disk, directory: PathBuf, length: usize) -> Result<Writer> {
        let (jobs, queue) = sync_channel(WAITING_MAX);
        let (returned, spare) = channel();
        let place = directory.clone();
        // Nobody takes them when the writer is being dropped.
        let give_back = move |filled: Filled| {
            if filled.buffer.len() == length {
                let _ = returned.send(filled.buffer);
            }
        };
        let thread = thread::Builder::new()
            .name("objects".into())
            .spawn(move || write_all(&disk, &directory, &queue, &give_back))
            .map_err(Error::io("starting a thread for", &place))?;
        Ok(Writer {
            jobs: Some(jobs),
            spare,
            thread: Some(thread),
        })
    }

    /// Hands an object over. The failure is that of an earlier one, if there was any; so it is for
    /// all of these.
    pub fn write(&mut self, digest: Digest, content: Filled) -> Result<()> {
        self.send(Job::Object { digest, content })
    }

    /// An object whose digest is not known yet: its parts follow.
    pub fn begin_parts(&mut self) -> Result<()> {
        self.send(Job::Begin)
    }

    /// Hands over the next part.
    pub fn write_part(&mut self, part: Filled) -> Result<()> {
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

    /// A buffer that was written and is not needed any more.
    pub fn spare(&self) -> Option<Vec<u8>> {
        self.spare.try_recv().ok()
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

/// Carries out all jobs, and beside them has the disk begin with what was written.
fn write_all(
    disk: &Disk,
    directory: &Path,
    queue: &Receiver<Job>,
    give_back: &dyn Fn(Filled),
) -> Result<()> {
    thread::scope(|scope| {
        // One sync that runs and one that waits take in all that there is.
        let (ask, asked) = sync_channel(1);
        let syncs =
            scope.spawn(move || asked.iter().try_for_each(|()| Disk::sync_early(directory)));
        let (objects, written) = (0, 0);
        let early = Early {
            ask,
            objects,
            written,
        };
        write_jobs(disk, directory, queue, give_back, early)?;
        syncs
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Decides when a sync is begun early. Dropped, it ends the thread that waits for it.
struct Early {
    ask: SyncSender<()>,
    /// Objects that were begun.
    objects: usize,
    /// Bytes since it asked last.
    written: u64,
}

impl Early {
    fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
        if self.objects > SYNCED_ALONE_MAX && self.written >= SYNCED_EARLY {
            self.written = 0;
            // Full where one waits already; without a receiver after a failure, which is told at the end.
            let _ = self.ask.try_send(());
        }
    }
}

fn write_jobs(
    disk: &Disk,
    directory: &Path,
    queue: &Receiver<Job>,
    give_back: &dyn Fn(Filled),
    mut early: Early,
) -> Result<()> {
    let mut parts: Option<Draft> = None;
    let path_of = |digest: Digest| directory.join(digest.to_string());
    for job in queue {
        match job {
            Job::Object { digest, content } => {
                let mut object = Draft::new(disk, path_of(digest))?;
                object.write(content.bytes())?;
                object.finish()?;
                early.objects += 1;
                early.wrote(content.len);
                give_back(content);
            }
            Job::Begin => {
                early.objects += 1;
                parts = Some(Draft::new(disk, directory.join("parts"))?);
            }
            Job::Part(content) => {
                if let Some(object) = &mut parts {
                    object.write(content.bytes())?;
                }
                early.wrote(content.len);
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
