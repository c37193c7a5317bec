//! One import's writes: objects gather in a directory of their own under `tmp/`, unseen, until
//! all of them are durable; only then do they get their names.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use rustix::fs::SeekFrom;
use wire::digest::Digest;

use super::disk::Disk;
use super::objects::{Objects, object_path};
use super::writer::{Filled, SYNCED_ALONE_MAX, Writer};
use crate::erofs;
use crate::error::{Error, Result};
use crate::manifest::{Content, INLINE_MAX, Manifest};
use crate::verity::{self, Hasher};

/// Content up to this is hashed before anything is written, so that what the store already has
/// costs no write.
const BUFFER: usize = 1 << 20;

/// Objects that are made durable at once.
const SYNCS: usize = 4;

/// Pieces of an image that may wait to be hashed.
const PIECES_WAITING: usize = 4;

/// The next part of a file that is imported.
pub enum Piece {
    /// That many bytes were put into the buffer.
    Data(usize),
    /// That many zero bytes, not read.
    Hole(u64),
    /// There is no more.
    End,
}

/// A file that is imported.
pub trait Source {
    /// Reads the next part.
    fn next(&mut self, buffer: &mut [u8]) -> io::Result<Piece>;
}

/// A file on disk, its holes stepped over.
pub struct Sparse<'a> {
    file: &'a File,
    at: u64,
    data_until: u64,
    size: u64,
}

impl<'a> Sparse<'a> {
    /// A file of that size.
    pub fn new(file: &'a File, size: u64) -> Sparse<'a> {
        Sparse {
            file,
            at: 0,
            data_until: 0,
            size,
        }
    }

    /// Where the next data starts and ends. A file system that cannot tell has data everywhere.
    fn next_data(&self) -> (u64, u64) {
        let seek = |from| rustix::fs::seek(self.file, from);
        match seek(SeekFrom::Data(self.at)) {
            Ok(start) => (start, seek(SeekFrom::Hole(start)).unwrap_or(self.size)),
            Err(rustix::io::Errno::NXIO) => (self.size, self.size),
            Err(_) => (self.at, self.size),
        }
    }
}

impl Source for Sparse<'_> {
    fn next(&mut self, buffer: &mut [u8]) -> io::Result<Piece> {
        if self.at >= self.size {
            return Ok(Piece::End);
        }
        if self.at >= self.data_until {
            let (start, end) = self.next_data();
            let hole = start.min(self.size) - self.at;
            self.data_until = end.max(start);
            self.at += hole;
            if hole > 0 {
                return Ok(Piece::Hole(hole));
            }
        }
        let len = buffer
            .len()
            .min((self.data_until.min(self.size) - self.at) as usize);
        let read = self.file.read_at(&mut buffer[..len], self.at)?;
        self.at += read as u64;
        Ok(if read == 0 {
            Piece::End
        } else {
            Piece::Data(read)
        })
    }
}

/// The writes of one import. Dropping it removes what was not published.
pub struct Session {
    store: PathBuf,
    disk: Disk,
    directory: PathBuf,
    /// Objects that the store lacks, in `directory` under their names.
    new: HashMap<Digest, u64>,
    buffer: Vec<u8>,
    /// Runs from the first object that the store lacks.
    writer: Option<Writer>,
    /// Makes durable what was settled.
    syncing: Option<JoinHandle<Result<()>>>,
    /// The shared lock that holds off the removal of objects.
    _lock: File,
}

impl Session {
    /// Starts writing to a store on which `lock` is held.
    pub fn begin(store: &Path, disk: &Disk, lock: File) -> Result<Session> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = store
            .join("tmp")
            .join(format!("{}.{count}", std::process::id()));
        disk.remove_all(&directory)?;
        disk.create_dir(&directory)?;
        Ok(Session {
            store: store.to_owned(),
            disk: disk.clone(),
            directory,
            new: HashMap::new(),
            buffer: vec![0; BUFFER],
            writer: None,
            syncing: None,
            _lock: lock,
        })
    }

    /// A directory of its own for something else that the import needs until it is done.
    pub fn place_for(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Keeps a stream in a file without a name, as long as that is open.
    pub fn spool(&self, mut source: impl Read) -> Result<File> {
        let mut file = tempfile::tempfile_in(&self.directory)
            .map_err(Error::io("making a file in", &self.directory))?;
        io::copy(&mut source, &mut file)
            .map_err(Error::io("copying the archive to", &self.directory))?;
        Ok(file)
    }

    /// Takes in a file's content; small content comes back as it is.
    pub fn add(&mut self, path: &Path, source: &mut dyn Source) -> Result<Content> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let content = self.add_with(&mut buffer, path, source);
        self.buffer = buffer;
        content
    }

    fn add_with(
        &mut self,
        buffer: &mut Vec<u8>,
        path: &Path,
        source: &mut dyn Source,
    ) -> Result<Content> {
        let mut read = |buffer: &mut [u8]| {
            loop {
                match source.next(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    piece => return piece.map_err(Error::io("reading", path)),
                }
            }
        };
        let mut filled = 0;
        let mut rest = Piece::End;
        while filled < buffer.len() {
            match read(&mut buffer[filled..])? {
                Piece::Data(len) => filled += len,
                Piece::Hole(len) if len <= (buffer.len() - filled) as u64 => {
                    buffer[filled..filled + len as usize].fill(0);
                    filled += len as usize;
                }
                Piece::End => return self.add_filled(buffer, filled),
                hole => {
                    rest = hole;
                    break;
                }
            }
        }
        let mut hasher = Hasher::default();
        self.writer()?.begin_parts()?;
        self.add_part(&mut hasher, buffer, filled)?;
        loop {
            match rest {
                Piece::Data(len) => self.add_part(&mut hasher, buffer, len)?,
                Piece::Hole(len) => {
                    hasher.update_zeros(len);
                    self.writer()?.write_zeros(len)?;
                }
                Piece::End => {}
            }
            rest = read(buffer)?;
            if matches!(rest, Piece::End) {
                let size = hasher.size();
                let digest = self.name_parts(hasher)?;
                return Ok(Content::Object { digest, size });
            }
        }
    }

    /// Takes in a whole file, the first `len` bytes of the buffer.
    fn add_filled(&mut self, buffer: &mut Vec<u8>, len: usize) -> Result<Content> {
        let content = &buffer[..len];
        if len <= INLINE_MAX {
            return Ok(Content::Inline(content.to_vec().into()));
        }
        let (digest, size) = (verity::digest_of(content), len as u64);
        if !self.has(digest, size) {
            let filled = self.filled(buffer, len)?;
            self.writer()?.write(digest, filled)?;
            self.new.insert(digest, size);
        }
        Ok(Content::Object { digest, size })
    }

    /// Hashes the next part of an object whose digest is not known yet, and hands it over.
    fn add_part(&mut self, hasher: &mut Hasher, buffer: &mut Vec<u8>, len: usize) -> Result<()> {
        hasher.update(&buffer[..len]);
        let part = self.filled(buffer, len)?;
        self.writer()?.write_part(part)
    }

    /// The first `len` bytes of the buffer, in whose place comes another one.
    fn filled(&mut self, buffer: &mut Vec<u8>, len: usize) -> Result<Filled> {
        let other = self.writer()?.spare().unwrap_or_else(|| vec![0; BUFFER]);
        let buffer = std::mem::replace(buffer, other);
        Ok(Filled { buffer, len })
    }

    /// The parts are an object now, which the store may have already; its name.
    fn name_parts(&mut self, hasher: Hasher) -> Result<Digest> {
        let (size, digest) = (hasher.size(), hasher.finish());
        if self.has(digest, size) {
            self.writer()?.discard_parts()?;
        } else {
            self.writer()?.name_parts(digest)?;
            self.new.insert(digest, size);
        }
        Ok(digest)
    }

    /// Takes in content that is in memory.
    pub fn add_bytes(&mut self, content: Vec<u8>) -> Result<Content> {
        if content.len() <= INLINE_MAX {
            return Ok(Content::Inline(content.into()));
        }
        let (digest, size) = (verity::digest_of(&content), content.len() as u64);
        if !self.has(digest, size) {
            self.writer()?.write(digest, Filled::whole(content))?;
            self.new.insert(digest, size);
        }
        Ok(Content::Object { digest, size })
    }

    /// Takes in the image of a tree, which is hashed and written while it is made; its digest.
    pub fn add_image(&mut self, tree: &Manifest) -> Result<Digest> {
        self.writer()?.begin_parts()?;
        let mut hasher = Hasher::default();
        let made = thread::scope(|scope| {
            let (pieces, made) = sync_channel(PIECES_WAITING);
            let making = scope.spawn(move || {
                // Nobody takes them where writing failed.
                erofs::write(tree, &mut |piece| Ok(_ = pieces.send(piece)))
            });
            for piece in made {
                hasher.update(&piece);
                self.writer()?.write_part(Filled::whole(piece))?;
            }
            making
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        made?;
        self.name_parts(hasher)
    }

    fn writer(&mut self) -> Result<&mut Writer> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::start(self.disk.clone(), self.directory.clone(), BUFFER)?,
        };
        Ok(self.writer.insert(writer))
    }

    /// Waits until all objects that were added can be read.
    pub fn settle(&mut self) -> Result<()> {
        self.writer
            .take()
            .map_or(Ok(()), |mut writer| writer.finish())
    }

    /// Begins to make durable what was settled, nothing being added any more. Meanwhile whoever is to
    /// publish it looks at it.
    pub fn begin_sync(&mut self) -> Result<()> {
        let (disk, directory) = (self.disk.clone(), self.directory.clone());
        let objects: Vec<PathBuf> = self.new.keys().map(|it| self.path_of(*it)).collect();
        let syncing = thread::Builder::new()
            .name("sync".into())
            .spawn(move || make_durable(&disk, &directory, &objects))
            .map_err(Error::io("starting a thread for", &self.directory))?;
        self.syncing = Some(syncing);
        Ok(())
    }

    /// The path of an object that was added, named already or not yet; there after
    /// [`Session::settle`].
    pub fn path_of(&self, digest: Digest) -> PathBuf {
        if self.new.contains_key(&digest) {
            self.directory.join(digest.to_string())
        } else {
            object_path(&self.store, digest)
        }
    }

    /// The store's objects and those that were added, for reading.
    pub fn objects(&self) -> Objects {
        Objects::with_staged(&self.store, &self.directory)
    }

    /// Makes the objects durable, then gives them their names, durably.
    pub fn commit(&mut self) -> Result<()> {
        self.settle()?;
        if self.syncing.is_none() {
            self.begin_sync()?;
        }
        self.end_sync()?;
        let many = self.new.len() > SYNCED_ALONE_MAX;
        let mut directories: Vec<PathBuf> = Vec::new();
        for digest in self.new.keys() {
            let path = object_path(&self.store, *digest);
            if let Some(parent) = path.parent() {
                self.disk.create_dir(parent)?;
                directories.push(parent.to_owned());
            }
            self.disk
                .rename(&self.directory.join(digest.to_string()), &path)?;
        }
        self.new.clear();
        directories.sort();
        directories.dedup();
        directories.push(self.store.join("objects"));
        if many {
            return self.disk.sync_all(&self.store);
        }
        directories
            .iter()
            .try_for_each(|directory| self.disk.sync_dir(directory))
    }

    /// Waits until all is durable that was to be.
    fn end_sync(&mut self) -> Result<()> {
        self.syncing.take().map_or(Ok(()), |syncing| {
            syncing
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Whether the store has an object, whole as far as its length tells.
    fn has(&self, digest: Digest, size: u64) -> bool {
        self.new.contains_key(&digest)
            || object_path(&self.store, digest)
                .symlink_metadata()
                .is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }
}

/// One sync of the file system for many objects. For few, one of each: the other would wait for all
/// that is being written there, the copy that was changed among it.
fn make_durable(disk: &Disk, directory: &Path, objects: &[PathBuf]) -> Result<()> {
    if objects.len() > SYNCED_ALONE_MAX {
        return disk.sync_all(directory);
    }
    let sync = |objects: &[PathBuf]| {
        objects.iter().try_for_each(|path| {
            let file = File::open(path).map_err(Error::io("opening", path))?;
            disk.sync_file(&file, path)
        })
    };
    // The file system makes durable together what is asked for at the same time.
    thread::scope(|scope| {
        let parts = objects.chunks(objects.len().div_ceil(SYNCS).max(1));
        let syncs: Vec<_> = parts.map(|part| scope.spawn(move || sync(part))).collect();
        syncs.into_iter().try_for_each(|it| {
            it.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

impl Drop for Session {
    fn drop(&mut self) {
        self.writer = None;
        // Its failure is of what is removed now.
        let _ = self.end_sync();
        // What stays behind is removed when the store is next opened for writing.
        let _ = self.disk.remove_all(&self.directory);
    }
}
