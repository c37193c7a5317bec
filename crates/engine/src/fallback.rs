//! A version that does not come up on a node makes way for the last one that did.

use wire::mac::Mac;
use wire::stage::Stage;

use crate::boots::{is_up, reached};
use crate::event::EventKind;
use crate::record::{Boot, Fallback, Node, Record};
use crate::{Engine, Turn};

/// How many boots of a version must fail, one after another, before another one is given.
const FAILED_BOOTS: usize = 2;

impl Engine {
    /// What a node boots instead of its image, where that failed on it.
    pub(crate) fn fallback_of(&self, node: &Node) -> Option<Fallback> {
        let wanted = self.wanted_version(Some(node)).ok()?;
        node.fallback.filter(|it| it.failed == wanted)
    }

    /// Before a new boot of a node: decides whether its former ones speak against the version that
    /// it would take.
    pub(crate) fn fall_back(&mut self, turn: &mut Turn, mac: Mac) {
        let Some(fallback) = self.nodes.get(&mac).and_then(|it| self.to_fall_back(it)) else {
            return;
        };
        let changed = self
            .nodes
            .change(mac, |node| node.fallback = Some(fallback));
        let Some(((), node)) = changed else {
            return;
        };
        turn.persist(Record::Node(Box::new(node.clone())));
        let Fallback { failed, instead } = fallback;
        self.tell(turn, Some(mac), EventKind::FellBack { failed, instead });
        self.prepare(turn, instead);
    }

    fn to_fall_back(&self, node: &Node) -> Option<Fallback> {
        if self.fallback_of(node).is_some() {
            return None;
        }
        let wanted = self.wanted_version(Some(node)).ok()?;
        let boots = self.boots.of(node.mac);
        // Before it has asked for all that its version boots with, the version is not to blame.
        let failed = boots.iter().take_while(|boot| !self.came_up(boot));
        let failed = failed.filter(|boot| {
            boot.image == Some(wanted)
                && reached(boot) >= Some(Stage::Initrd)
                && node.image_set.is_none_or(|set| boot.started > set)
        });
        if failed.count() < FAILED_BOOTS {
            return None;
        }
        let last_up = boots.iter().find(|boot| self.came_up(boot));
        let instead = last_up.and_then(|boot| boot.image)?;
        let is_there = instead != wanted && self.versions.contains(&instead);
        is_there.then_some(Fallback {
            failed: wanted,
            instead,
        })
    }

    /// Whether a boot came as far as its version can tell.
    fn came_up(&self, boot: &Boot) -> bool {
        let mounted = || reached(boot) >= Some(Stage::Mount);
        is_up(boot) || (self.is_silent(boot) && mounted())
    }

    /// Whether a boot's initramfs reports nothing.
    pub(crate) fn is_silent(&self, boot: &Boot) -> bool {
        let image = boot.image.and_then(|version| self.tagged(version));
        image.is_some_and(|image| image.foreign_initrd)
    }
}
