//! What tags named before, and versions that are kept without a tag.
//!
//! `history/NAME/TAG` has a line for each version that the tag was moved away from, oldest first:
//! when it had been moved there (milliseconds since 1970) and the version. It is written before the
//! tag moves; a power cut in between leaves a last line that says what the tag still names, which
//! readers leave out.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use wire::digest::Digest;

use super::{Store, Tag, check_name, names_in};
use crate::error::{Error, Result};

/// Lines kept of one tag's history.
const LINES_MAX: usize = 100;
/// The directory beside the images' names that holds pins; no image can be called so.
const PINS: &str = "@pins";

/// A version that a tag names or named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The version.
    pub digest: Digest,
    /// When the tag was moved to it.
    pub at: SystemTime,
    /// Whether the store still has it.
    pub present: bool,
}

impl Store {
    /// The versions that a tag names and named, newest first: the first is the present one.
    pub fn log(&self, name: &str, tag: &str) -> Result<Vec<Move>> {
        check_name(name)?;
        check_name(tag)?;
        let now = self.tagged(name, tag)?;
        let at = tagged_at(&self.refs().join(name).join(tag))?;
        let mut moves = vec![self.as_move(now, at)];
        let mut past = self.past(name, tag)?;
        past.reverse();
        if past.first().is_some_and(|(_, digest)| *digest == now) {
            past.remove(0);
        }
        moves.extend(
            past.into_iter()
                .map(|(at, digest)| self.as_move(digest, at)),
        );
        Ok(moves)
    }

    /// Moves a tag back to the version that it named before the present one; the two versions, the
    /// one that it names now first. Rolling back once more takes that back.
    pub fn rollback(&self, name: &str, tag: &str) -> Result<(Digest, Digest)> {
        let log = self.log(name, tag)?;
        let target = earlier(&log).ok_or_else(|| Error::NoEarlierVersion {
            name: name.into(),
            tag: tag.into(),
        })?;
        self.tag(name, tag, target)?;
        Ok((target, log[0].digest))
    }

    /// Keeps a version whatever happens to its tags.
    pub fn pin(&self, digest: Digest) -> Result<()> {
        let _versions = self.lock("lock", FlockOperation::LockShared)?;
        let _tags = self.lock_tags()?;
        self.check_version(digest)?;
        let directory = self.refs().join(PINS);
        self.disk.create_dir(&directory)?;
        let target = Path::new("../..").join(digest.to_string());
        self.link_atomically(&target, &directory.join(digest.to_string()))?;
        self.disk.sync_dir(&directory)?;
        self.disk.sync_dir(&self.refs())
    }

    /// Takes a pin back; whether there was one.
    pub fn unpin(&self, digest: Digest) -> Result<bool> {
        let _tags = self.lock_tags()?;
        let directory = self.refs().join(PINS);
        let pin = directory.join(digest.to_string());
        if pin.symlink_metadata().is_err() {
            return Ok(false);
        }
        self.disk.remove(&pin)?;
        self.disk.sync_dir(&directory)?;
        Ok(true)
    }

    /// The versions that are pinned.
    pub fn pins(&self) -> Result<Vec<Digest>> {
        let names = names_in(&self.refs().join(PINS))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// What [`Store::rollback`] would take each tag back to.
    pub(super) fn previous(&self) -> Result<Vec<Digest>> {
        let mut previous = Vec::new();
        for Tag { name, tag, .. } in self.tags()? {
            previous.extend(earlier(&self.log(&name, &tag)?));
        }
        Ok(previous)
    }

    /// Notes what a tag names, before it is moved. For who holds the lock on tags.
    pub(super) fn remember(&self, name: &str, tag: &str) -> Result<()> {
        let Some(digest) = self.read_tag(name, tag)? else {
            return Ok(());
        };
        let at = tagged_at(&self.refs().join(name).join(tag))?;
        let mut past = self.past(name, tag)?;
        if past.last() != Some(&(at, digest)) {
            past.push((at, digest));
        }
        let path = self.history(name).join(tag);
        self.disk.create_dir(&self.history(name))?;
        let draft = self.dir.join("tmp").join(format!("history.{name}.{tag}"));
        let lines = past.iter().skip(past.len().saturating_sub(LINES_MAX));
        let lines = lines.map(|(at, digest)| format!("{} {digest}\n", unix_ms(*at)));
        let lines: String = lines.collect();
        self.disk.replace(&draft, &path, lines.as_bytes())?;
        self.disk.sync_dir(&self.history(name))
    }

    /// Forgets what a tag named. For who holds the lock on tags.
    pub(super) fn forget(&self, name: &str, tag: &str) -> Result<()> {
        self.disk.remove(&self.history(name).join(tag))
    }

    fn past(&self, name: &str, tag: &str) -> Result<Vec<(SystemTime, Digest)>> {
        let path = self.history(name).join(tag);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.map_err(Error::io("reading", &path))?,
        };
        let line = |line: &str| {
            let (at, digest) = line.split_once(' ')?;
            let at = UNIX_EPOCH + Duration::from_millis(at.parse().ok()?);
            Some((at, digest.parse().ok()?))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    fn as_move(&self, digest: Digest, at: SystemTime) -> Move {
        Move {
            digest,
            at,
            present: self.has_version(digest),
        }
    }

    fn history(&self, name: &str) -> PathBuf {
        self.dir.join("history").join(name)
    }
}

/// The version before the present one of a tag's history that the store still has.
fn earlier(log: &[Move]) -> Option<Digest> {
    let (now, past) = log.split_first()?;
    let mut others = past.iter().filter(|it| it.digest != now.digest);
    others.find(|it| it.present).map(|it| it.digest)
}

/// A tag is a link that is made anew by each move.
fn tagged_at(link: &Path) -> Result<SystemTime> {
    let meta = link
        .symlink_metadata()
        .map_err(Error::io("reading the attributes of", link))?;
    let ms = meta.mtime().max(0) as u64 * 1000 + meta.mtime_nsec() as u64 / 1_000_000;
    Ok(UNIX_EPOCH + Duration::from_millis(ms))
}

fn unix_ms(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}
