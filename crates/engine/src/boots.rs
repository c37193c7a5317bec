//! The boots of every node: minted when firmware asks, followed from stage to stage.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use rand_chacha::rand_core::Rng as _;
use wire::beacon::{Beacon, BeaconEvent, Kind, MAGIC};
use wire::digest::Digest;
use wire::identity::{BootId, Token};
use wire::mac::Mac;
use wire::modtable::is_name;
use wire::netconsole::Line;
use wire::stage::Stage;

use crate::config::DhcpMode;
use crate::event::EventKind;
use crate::image::ImageRef;
use crate::learned::Evidence;
use crate::record::{Boot, Failure, Record, StageAt};
use crate::time::Timestamp;
use crate::view::BootView;
use crate::{Engine, Turn};

/// Boots kept of each node, the current one included.
const KEPT: usize = 4;
/// DISCOVERs of machines that are not nodes yet, remembered for when they become ones.
const MAX_SIGHTINGS: usize = 1024;
/// A DISCOVER longer ago than this belongs to an earlier attempt.
const SIGHTING_MS: u64 = 60_000;
/// Most drivers that are noted of one boot.
const DRIVERS_MAX: usize = 64;
/// A boot that stays in one stage for longer is reported.
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// Every boot, by id and by node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Boots {
    by_id: BTreeMap<BootId, Boot>,
    /// Newest first.
    by_mac: BTreeMap<Mac, Vec<BootId>>,
    sightings: BTreeMap<Mac, Timestamp>,
    reported: BTreeMap<BootId, Stage>,
    next_deadline: Option<Timestamp>,
}

impl Boots {
    pub(crate) fn restore(&mut self, boot: Boot) {
        let (id, mac) = (boot.id, boot.mac);
        self.by_id.insert(id, boot);
        let ids = self.by_mac.entry(mac).or_default();
        ids.push(id);
        ids.sort_by_key(|id| std::cmp::Reverse(self.by_id[id].started));
        self.watch(last_progress(&self.by_id[&id]) + STUCK_AFTER);
    }

    /// Adds a boot; returns those that are too old to keep. The newest one that came up is kept for
    /// as long as none after it does.
    fn add(&mut self, boot: Boot) -> Vec<Boot> {
        let (id, mac) = (boot.id, boot.mac);
        self.by_id.insert(id, boot);
        let ids = self.by_mac.entry(mac).or_default();
        ids.insert(0, id);
        let last_up = ids.iter().position(|id| is_up(&self.by_id[id]));
        let mut old = ids.split_off(ids.len().min(KEPT));
        if let Some(place) = last_up.and_then(|at| at.checked_sub(KEPT)) {
            ids.push(old.remove(place));
        }
        old.iter().filter_map(|id| self.by_id.remove(id)).collect()
    }

    /// The boots of a node, newest first.
    pub(crate) fn of(&self, mac: Mac) -> Vec<&Boot> {
        let ids = self.by_mac.get(&mac).map(Vec::as_slice).unwrap_or_default();
        ids.iter().filter_map(|id| self.by_id.get(id)).collect()
    }

    /// The versions that nodes run, or may run: of each node's boots, that of the newest one, and
    /// that of the newest one that came up. A node that has begun to boot again may not be the one
    /// that runs.
    pub(crate) fn versions(&self) -> BTreeSet<Digest> {
        let mut versions = BTreeSet::new();
        for ids in self.by_mac.values() {
            let boots = || ids.iter().filter_map(|id| self.by_id.get(id));
            versions.extend(boots().find_map(|boot| boot.image));
            versions.extend(boots().find(|boot| is_up(boot)).and_then(|boot| boot.image));
        }
        versions
    }

    pub(crate) fn get(&self, id: BootId) -> Option<&Boot> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: BootId) -> Option<&mut Boot> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn current(&self, mac: Mac) -> Option<&Boot> {
        self.by_id.get(self.by_mac.get(&mac)?.first()?)
    }

    pub(crate) fn current_mut(&mut self, mac: Mac) -> Option<&mut Boot> {
        self.by_id.get_mut(self.by_mac.get(&mac)?.first()?)
    }

    /// A machine runs the boot `id`, so that boots behind which nothing ever ran are none. Returns
    /// those; `None` where a boot that is further on is newer.
    fn revive(&mut self, id: BootId, mac: Mac) -> Option<Vec<BootId>> {
        let ids = self.by_mac.get(&mac)?;
        let newer = ids.iter().position(|it| *it == id)?;
        let unused = |id: &BootId| reached(&self.by_id[id]).is_none_or(|it| it <= Stage::Address);
        if !ids[..newer].iter().all(unused) {
            return None;
        }
        let dropped: Vec<_> = self.by_mac.get_mut(&mac)?.drain(..newer).collect();
        dropped.iter().for_each(|id| drop(self.by_id.remove(id)));
        Some(dropped)
    }

    /// Forgets a node's boots; returns their ids.
    pub(crate) fn forget(&mut self, mac: Mac) -> Vec<BootId> {
        let ids = self.by_mac.remove(&mac).unwrap_or_default();
        ids.iter().for_each(|id| drop(self.by_id.remove(id)));
        ids
    }

    /// Remembers when firmware was first heard, for the start of its boot.
    pub(crate) fn saw_firmware(&mut self, mac: Mac, now: Timestamp) {
        if self.sightings.len() >= MAX_SIGHTINGS {
            self.sightings
                .retain(|_, at| now.millis_since(*at) < SIGHTING_MS);
        }
        let full = self.sightings.len() >= MAX_SIGHTINGS;
        match self.sightings.get_mut(&mac) {
            Some(at) if now.millis_since(*at) < SIGHTING_MS => {}
            Some(at) => *at = now,
            None if !full => drop(self.sightings.insert(mac, now)),
            None => {}
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.next_deadline
    }

    fn watch(&mut self, until: Timestamp) {
        self.next_deadline = Some(self.next_deadline.map_or(until, |it| it.min(until)));
    }
}

/// A boot as users see it.
pub(crate) fn view(boot: &Boot) -> BootView {
    BootView {
        id: boot.id,
        started: boot.started,
        image: boot.image,
        stage: reached(boot),
        timeline: boot.timeline.clone(),
        failure: boot.failure.clone(),
        kernel: boot.kernel.to_vec(),
        loader_bytes: boot.loader_bytes,
        initrd_bytes: boot.initrd_bytes,
    }
}

/// When a boot last came to a stage.
fn last_progress(boot: &Boot) -> Timestamp {
    let stages = boot.timeline.iter().map(|it| it.at);
    stages.max().unwrap_or(boot.started)
}

/// Whether firmware and loaders are all that has run yet.
pub(crate) fn is_loading(boot: &Boot) -> bool {
    reached(boot).is_none_or(|stage| stage < Stage::Init)
}

/// Whether a boot has come to its end.
pub(crate) fn is_up(boot: &Boot) -> bool {
    reached(boot) == Some(Stage::MultiUser)
}

/// The furthest stage of a boot.
pub(crate) fn reached(boot: &Boot) -> Option<Stage> {
    boot.timeline.iter().map(|it| it.stage).max()
}

impl Engine {
    /// The boot that a machine's firmware begins now: a new one, unless the last has not got
    /// beyond the stage `up_to` and is recent (firmware asks several times).
    pub(crate) fn begin_boot(&mut self, turn: &mut Turn, mac: Mac, up_to: Stage) -> BootId {
        if let Some(boot) = self.boots.current(mac) {
            let fresh = turn.now < last_progress(boot) + STUCK_AFTER;
            if fresh && reached(boot).is_none_or(|stage| stage <= up_to) {
                return boot.id;
            }
        }
        self.mint_boot(turn, mac)
    }

    /// A new boot with a token of its own.
    pub(crate) fn mint_boot(&mut self, turn: &mut Turn, mac: Mac) -> BootId {
        self.fall_back(turn, mac);
        let (mut id, mut token, mut control_key) = ([0; 8], [0; 16], [0; 32]);
        self.rng.fill_bytes(&mut id);
        self.rng.fill_bytes(&mut token);
        self.rng.fill_bytes(&mut control_key);
        let once = self.take_once(turn, mac);
        let seen = self.boots.sightings.remove(&mac);
        let boot = Boot {
            id: BootId(id),
            mac,
            token: Token(token),
            control_key: Some(control_key),
            once,
            started: seen.unwrap_or(turn.now),
            image: None,
            identity_key: None,
            timeline: seen
                .map(|at| StageAt {
                    stage: Stage::Firmware,
                    at,
                })
                .into_iter()
                .collect(),
            failure: None,
            last_seq: 0,
            loader_bytes: 0,
            initrd_bytes: 0,
            drivers: BTreeSet::new(),
            kernel: [].into(),
        };
        turn.persist(Record::Boot(boot.clone()));
        for old in self.boots.add(boot) {
            turn.persist(Record::Removed {
                key: Record::Boot(old).key(),
            });
        }
        self.boot_on_trial(turn, mac, BootId(id));
        self.boots.watch(turn.now + STUCK_AFTER);
        self.tell(turn, Some(mac), EventKind::BootStarted { boot: BootId(id) });
        BootId(id)
    }

    /// The image that a node was given for one boot, which begins.
    fn take_once(&mut self, turn: &mut Turn, mac: Mac) -> Option<ImageRef> {
        let (once, node) = self.nodes.change(mac, |node| node.once.take())?;
        let once = once?;
        turn.persist(Record::Node(Box::new(node.clone())));
        Some(once)
    }

    /// A node's current boot has come to a stage.
    pub(crate) fn reach(&mut self, turn: &mut Turn, mac: Mac, stage: Stage, text: &str) {
        let now = turn.now;
        let Some(boot) = self.boots.current_mut(mac) else {
            return;
        };
        if boot.timeline.iter().any(|it| it.stage == stage) {
            return;
        }
        boot.timeline.push(StageAt { stage, at: now });
        boot.failure = None;
        let (boot, started, image) = (boot.clone(), boot.started, boot.image);
        let id = boot.id;
        self.boots.watch(now + STUCK_AFTER);
        turn.persist(Record::Boot(boot));
        self.tell(
            turn,
            Some(mac),
            EventKind::Stage {
                stage,
                text: text.to_owned(),
            },
        );
        if stage >= Stage::Init {
            self.end_former_agents(turn, mac, id);
        }
        if stage == Stage::MultiUser {
            let learned = self.learned_address(mac);
            let address = learned.or_else(|| self.leases.address_of(mac));
            let after_ms = now.millis_since(started);
            self.tell(
                turn,
                Some(mac),
                EventKind::Up {
                    address,
                    image,
                    after_ms,
                },
            );
        }
    }

    /// A node's root was mounted. Where its initramfs does not say so, this does.
    pub(crate) fn mounted_in_silence(&mut self, turn: &mut Turn, mac: Mac) {
        let boot = self.boots.current(mac);
        let boot = boot.filter(|boot| reached(boot) == Some(Stage::Initrd));
        if boot.is_some_and(|boot| self.is_silent(boot)) {
            self.reach(turn, mac, Stage::Mount, "its initramfs reports no more");
        }
    }

    /// A node's current boot failed at a stage, or is retrying it.
    pub(crate) fn fail(&mut self, turn: &mut Turn, mac: Mac, stage: Stage, cause: String) {
        self.note_failure(turn, mac, stage, &cause);
        self.tell(turn, Some(mac), EventKind::Failed { stage, cause });
    }

    /// Keeps with a node's current boot what another event tells.
    pub(crate) fn note_failure(&mut self, turn: &mut Turn, mac: Mac, stage: Stage, cause: &str) {
        let at = turn.now;
        let Some(boot) = self.boots.current_mut(mac) else {
            return;
        };
        let is_known = |known: &Failure| known.stage == stage && known.cause == cause;
        if boot.failure.as_ref().is_some_and(is_known) {
            return;
        }
        let cause = cause.to_owned();
        boot.failure = Some(Failure { stage, cause, at });
        turn.out
            .push(crate::Output::Persist(Record::Boot(boot.clone())));
    }

    /// A datagram on the beacon port: a beacon, or a message of a kernel.
    pub(crate) fn beacon(&mut self, turn: &mut Turn, sender: Ipv4Addr, datagram: &[u8]) {
        if !datagram.starts_with(&MAGIC)
            && let Some(line) = Line::decode(datagram)
        {
            return self.kernel_says(turn, sender, &line);
        }
        let beacon = Beacon::peek(datagram).and_then(|(id, _)| match self.boots.get(id) {
            Some(boot) => Beacon::decode(datagram, &boot.token).map(Some),
            None => Ok(None),
        });
        match beacon {
            Ok(Some(beacon)) => self.follow(turn, sender, &beacon),
            Ok(None) => self.refuse_beacon(turn, sender, "no such boot"),
            Err(error) => self.refuse_beacon(turn, sender, &error.to_string()),
        }
    }

    fn refuse_beacon(&mut self, turn: &mut Turn, address: Ipv4Addr, cause: &str) {
        if self.strangers.take(turn.now) {
            let cause = cause.to_owned();
            self.tell(turn, None, EventKind::BeaconRefused { address, cause });
        }
    }

    fn follow(&mut self, turn: &mut Turn, sender: Ipv4Addr, beacon: &Beacon) {
        let Some(boot) = self
            .boots
            .get(beacon.boot)
            .filter(|boot| boot.mac == beacon.mac)
        else {
            return;
        };
        let seen = boot.last_seq;
        if beacon.events.iter().all(|event| event.seq <= seen) {
            return;
        }
        // A late copy of a DHCP message, or a plan that nobody booted, makes a boot of its own.
        let Some(unused) = self.boots.revive(beacon.boot, beacon.mac) else {
            return;
        };
        for id in unused {
            let key = format!("boot/{id}");
            turn.persist(Record::Removed { key });
        }
        // Something new, so it is no copy that somebody else sends again.
        self.learn(turn, beacon.mac, sender, Evidence::Proof);
        for event in beacon.events.iter().filter(|event| event.seq > seen) {
            // Counted one by one: what is stored with one event must not hide the next.
            if let Some(boot) = self.boots.get_mut(beacon.boot) {
                boot.last_seq = boot.last_seq.max(event.seq);
            }
            self.apply(turn, beacon.mac, event);
        }
    }

    fn apply(&mut self, turn: &mut Turn, mac: Mac, event: &BeaconEvent) {
        let (stage, text) = (event.stage, event.text.clone());
        match event.kind {
            Kind::Progress => self.reach(turn, mac, stage, &text),
            Kind::Failure => self.fail(turn, mac, stage, text),
            Kind::Info => self.tell(turn, Some(mac), EventKind::Info { stage, text }),
            Kind::Drivers => self.note_drivers(turn, mac, &text),
        }
    }

    fn note_drivers(&mut self, turn: &mut Turn, mac: Mac, names: &str) {
        let Some(boot) = self.boots.current_mut(mac) else {
            return;
        };
        for name in names.split_whitespace().filter(|name| is_name(name)) {
            if boot.drivers.len() < DRIVERS_MAX {
                boot.drivers.insert(name.to_owned());
            }
        }
        turn.out
            .push(crate::Output::Persist(Record::Boot(boot.clone())));
    }

    /// Tells of boots that have not moved for too long, each stage once.
    pub(crate) fn report_stuck(&mut self, turn: &mut Turn) {
        let now = turn.now;
        let interfaces = &self.config.interfaces;
        let beside = interfaces
            .iter()
            .any(|it| it.dhcp != DhcpMode::Authoritative);
        self.boots.next_deadline = None;
        let ids: Vec<BootId> = self
            .boots
            .by_mac
            .values()
            .filter_map(|ids| ids.first().copied())
            .collect();
        for id in ids {
            let Some(boot) = self.boots.get(id) else {
                continue;
            };
            let stage = reached(boot).unwrap_or(Stage::Firmware);
            let since = last_progress(boot);
            let mac = boot.mac;
            let silent = self.is_silent(boot);
            let last = if silent {
                Stage::Mount
            } else {
                Stage::MultiUser
            };
            let done = stage >= last || self.boots.reported.get(&id) == Some(&stage);
            if done || boot.timeline.is_empty() {
                continue;
            }
            if now < since + STUCK_AFTER {
                self.boots.watch(since + STUCK_AFTER);
                continue;
            }
            self.boots.reported.insert(id, stage);
            let cause = if silent && stage == Stage::Initrd {
                NOT_MOUNTED
            } else {
                next_step(stage, beside)
            };
            let cause = cause.to_owned();
            let for_ms = now.millis_since(since);
            let next = Stage::ALL.into_iter().find(|it| *it > stage);
            self.note_failure(turn, mac, next.unwrap_or(stage), &cause);
            self.tell(
                turn,
                Some(mac),
                EventKind::Stuck {
                    stage,
                    for_ms,
                    cause,
                },
            );
        }
        let by_id = &self.boots.by_id;
        self.boots.reported.retain(|id, _| by_id.contains_key(id));
    }
}

/// What is wrong where an initramfs that reports nothing was sent.
const NOT_MOUNTED: &str = "kernel and the initramfs of slate initrd use were sent but no root was mounted: look at its \
     console, and whether that initramfs has the node's network driver and knows NFS";

/// What should have come next, and where to look; `beside` another DHCP server.
fn next_step(stage: Stage, beside: bool) -> &'static str {
    match stage {
        Stage::Firmware if beside => {
            "it was told what to boot but asked for no address: does the other DHCP server give it one?"
        }
        Stage::Address if beside => {
            "it has an address but fetched no loader: its firmware may not join the answers of two servers (then use --dhcp authoritative and switch the other server off), or UDP 69 does not reach this server"
        }
        Stage::Grub if beside => {
            "GRUB was sent but asked for no configuration: beside another DHCP server it must be GRUB 2.12 or newer (Debian 13); look at its screen"
        }
        Stage::Firmware => {
            "it asked for an address but did not take the one offered: look for another DHCP server"
        }
        Stage::Address => {
            "it has an address but fetched no loader: look at its firmware's messages, and whether UDP 69 reaches this server"
        }
        Stage::Loader => {
            "its first loader (shim, iPXE, PXELINUX) was sent but asked for nothing more: look at its screen (Secure Boot may have refused it)"
        }
        Stage::Grub => "GRUB was sent but asked for no configuration: look at its screen",
        Stage::Config | Stage::Kernel => {
            "its loader has a configuration but did not fetch kernel and initramfs: look at its screen"
        }
        Stage::Initrd => {
            "kernel and initramfs were sent but /init did not report: look at its console (Secure Boot, memory, a missing network driver)"
        }
        Stage::Init => "/init runs but has no network: a missing driver, or no DHCP answer",
        Stage::Network => "it has a network but did not mount its root: can it reach the NFS port?",
        Stage::Mount | Stage::SwitchRoot => {
            "its root is mounted but systemd did not finish: look at its console for a unit that waits"
        }
        Stage::MultiUser => "nothing: it is up",
    }
}
