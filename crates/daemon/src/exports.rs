//! Keeps what is served in step with the store: exports over NFS, and the images that the engine
//! may plan with.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::{BootFile, Digest, ImageInfo, Input};
use image::boot::BootFiles;
use image::selinux::Lack;
use image::{Store, Tag};

use crate::content::{self, Contents, LocalLoaders};
use crate::hub::{Inbox, Message};
use crate::tree::Served;

/// How often the store is looked at for changes made by other processes.
const POLL: Duration = Duration::from_secs(1);

/// What the store had: its generation, which also changes with an initramfs that takes ours' place,
/// versions and tags; and what loaders are beside it.
type Seen = (u64, Vec<Digest>, Vec<Tag>, LocalLoaders);

/// Follows one store.
pub struct Follower {
    /// The store.
    pub store: Store,
    /// The NFS server's exports.
    pub exports: nfs::Exports,
    /// Boot files.
    pub contents: Arc<Contents>,
    /// Told of the images.
    pub hub: Inbox,
    /// What the engine was told last.
    pub images: Arc<Mutex<Vec<ImageInfo>>>,
    /// What is exported: path and version.
    pub exported: HashMap<String, Digest>,
    /// What versions lack to run with SELinux, if anything.
    pub no_selinux: HashMap<Digest, Option<Lack>>,
    /// The store's state when it was last looked at.
    pub seen: Option<Seen>,
    /// Whoever has changed the store asks for a look, and is told when it is done.
    pub asked: Receiver<Sender<()>>,
}

impl Follower {
    /// Looks at the store again and again, until the hub is gone.
    pub fn run(mut self) {
        loop {
            let asker = match self.asked.recv_timeout(POLL) {
                Ok(asker) => Some(asker),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if !self.refresh() {
                return;
            }
            if let Some(asker) = asker {
                let _ = asker.send(());
            }
        }
    }

    /// Takes over what has changed. False: the hub is gone.
    pub fn refresh(&mut self) -> bool {
        let now = match self.look() {
            Ok(now) => now,
            // What is exported stays: nodes run from it.
            Err(error) => {
                tracing::warn!(%error, "looking at the image store");
                return true;
            }
        };
        if self.seen.as_ref() == Some(&now) {
            return true;
        }
        self.export(&now.1, &now.2);
        let describe = |tag| self.describe(tag, &now.3);
        let images: Vec<ImageInfo> = now.2.iter().map(describe).collect();
        let versions = now.1.iter().copied().collect();
        let no_selinux = self.without_selinux(&now.1);
        self.seen = Some(now);
        self.images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&images);
        let input = Input::Images {
            images,
            versions,
            no_selinux,
        };
        self.hub.send(Message::Input(input)).is_ok()
    }

    /// The versions that lack something to run with SELinux, and what. Each is looked at once.
    fn without_selinux(&mut self, versions: &[Digest]) -> BTreeMap<Digest, String> {
        let mut known = std::mem::take(&mut self.no_selinux);
        for digest in versions {
            let found = known.remove(digest).or_else(|| {
                let tree = self.store.open_tree_unheld(*digest).ok()?;
                image::selinux::lack(&tree).ok()
            });
            if let Some(found) = found {
                self.no_selinux.insert(*digest, found);
            }
        }
        let lacks = self.no_selinux.iter();
        lacks
            .filter_map(|(digest, lack)| Some((*digest, lack.as_ref()?.to_string())))
            .collect()
    }

    fn look(&self) -> image::Result<Seen> {
        let known = self
            .seen
            .as_ref()
            .map(|it| it.3.clone())
            .unwrap_or_default();
        Ok((
            self.store.generation()?,
            self.store.versions()?,
            self.store.tags()?,
            self.contents.look_at_loaders(&known),
        ))
    }

    /// Every version by its digest, every tag by its name, and what `NAME` alone means beside the
    /// digests: people write that. A version stays exported as long as the store has it, whatever
    /// tags do: nodes may run it.
    fn export(&mut self, versions: &[Digest], tags: &[Tag]) {
        let mut wanted: BTreeMap<String, Digest> = versions
            .iter()
            .map(|digest| (format!("/images/{digest}"), *digest))
            .collect();
        for tag in tags {
            wanted.insert(format!("/images/{}", tag.digest), tag.digest);
            wanted.insert(format!("/tags/{}/{}", tag.name, tag.tag), tag.digest);
        }
        for tag in tags.iter().filter(|tag| tag.tag == "latest") {
            // No name takes the place of a digest.
            let path = format!("/images/{}", tag.name);
            wanted.entry(path).or_insert(tag.digest);
        }
        for (path, digest) in &wanted {
            if self.exported.get(path) != Some(digest) {
                self.export_one(path, *digest);
            }
        }
        let gone: Vec<String> = self
            .exported
            .keys()
            .filter(|it| !wanted.contains_key(*it))
            .cloned()
            .collect();
        for path in gone {
            self.exports.remove(&path);
            self.exported.remove(&path);
        }
    }

    fn export_one(&mut self, path: &str, digest: Digest) {
        // Held, every version would be in use for as long as this daemon runs.
        let recorder = self.contents.traces().recorder(digest);
        let tree = self.store.open_tree_unheld(digest);
        let tree = tree
            .map_err(|error| error.to_string())
            .and_then(|tree| Served::new(tree, recorder).map_err(|error| error.to_string()));
        let tree = match tree {
            Ok(tree) => Arc::new(tree),
            Err(error) => {
                tracing::error!(%error, %digest, "an image version cannot be served");
                return;
            }
        };
        match self.exports.add(path, digest.image_id(), tree) {
            Ok(()) => drop(self.exported.insert(path.to_owned(), digest)),
            Err(error) => tracing::error!(%error, path, "exporting an image version"),
        }
    }

    /// Which boot files a version has. The initramfs is built when it is first wanted.
    fn describe(&self, tag: &Tag, local: &LocalLoaders) -> ImageInfo {
        let tree = self
            .store
            .open_tree(tag.digest)
            .map_err(|error| error.to_string());
        let tree = tree.and_then(|tree| match BootFiles::of(&tree) {
            Ok(_) => Ok(tree),
            Err(error) => Err(error.to_string()),
        });
        let all = BootFile::ALL.into_iter();
        let (files, no_http, origins) = match &tree {
            Ok(tree) => (
                BootFile::ALL.map(|file| (file, self.contents.lacks(tree, file, local))),
                all.clone()
                    .filter_map(|file| Some((file, self.contents.lacks_http(tree, file)?)))
                    .collect(),
                all.filter_map(|file| Some((file, content::origin(tree, file)?)))
                    .collect(),
            ),
            Err(cause) => (
                BootFile::ALL.map(|file| (file, Err(cause.clone()))),
                BTreeMap::new(),
                BTreeMap::new(),
            ),
        };
        ImageInfo {
            name: tag.name.clone(),
            tag: tag.tag.clone(),
            digest: tag.digest,
            files: files.into(),
            foreign_initrd: self.store.initrd(tag.digest).is_ok_and(|it| it.is_some()),
            no_http,
            origins,
        }
    }
}
