//! Makes the initramfs of versions before nodes ask for them, one after another.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use engine::{BootFile, Digest, Input};

use crate::content::Contents;
use crate::hub::{Inbox, Message};
use crate::{ContentProgress, Notice};

/// A version, and what people call it.
pub type Order = (Digest, String);

/// Carries out what the engine orders.
pub struct Preparer {
    /// Where they are made and kept.
    pub contents: Arc<Contents>,
    /// Is told how it went.
    pub hub: Inbox,
    /// Is told of the beginning and the end.
    pub notices: Option<Sender<Notice>>,
}

impl Preparer {
    /// Runs until nobody orders any more.
    pub fn run(self, orders: &Receiver<Order>) {
        for (version, image) in orders {
            self.tell(&image, ContentProgress::Building);
            let started = Instant::now();
            let result = self.contents.file(version, BootFile::Initrd);
            let result = result.map(|bytes| bytes.len() as u64);
            let what = match result.clone() {
                Ok(initrd_bytes) => ContentProgress::Ready {
                    initrd_bytes,
                    took_ms: started.elapsed().as_millis() as u64,
                },
                Err(cause) => ContentProgress::Failed { cause },
            };
            let result = result.map(|_| ());
            let input = Input::Prepared { version, result };
            if self.hub.send(Message::Input(input)).is_err() {
                return;
            }
            self.tell(&image, what);
        }
    }

    fn tell(&self, image: &str, what: ContentProgress) {
        if let Some(notices) = &self.notices {
            let image = image.to_owned();
            let _ = notices.send(Notice::Content { image, what });
        }
    }
}
