//! Brings a version to nodes a few at a time, and takes it back where it does not hold.
//!
//! Until it is over, every node of a rollout is pinned: to the version that it had, and once the new
//! one has come up on it and passed its gate, to that. The new version is given for one boot only
//! before that, so a power cut in the middle boots nobody into a version that was not proved there.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wire::digest::Digest;
use wire::identity::BootId;
use wire::mac::Mac;
use wire::order::MAX_COMMAND_BYTES;
use wire::stage::Stage;

use crate::boots::{is_up, reached};
use crate::command::{CommandError, CommandReply};
use crate::commands::cut;
use crate::event::EventKind;
use crate::orders::OrderState;
use crate::power::PowerAction;
use crate::record::{Node, Record};
use crate::time::Timestamp;
use crate::{Engine, Turn};

/// Rollouts that are kept once they are over.
const KEPT: usize = 16;
/// A gate's own time is the rollout's; this is for whoever never says how an order ended.
const BACK_SECONDS: u32 = 60;

/// How many nodes are tried at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Batch {
    /// So many.
    Nodes(u32),
    /// So many of a hundred of all of them.
    Percent(u8),
}

/// What a rollout is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutPlan {
    /// The image, `NAME[:TAG]`, whose version of now is brought to the nodes.
    pub image: String,
    /// A list of nodes.
    pub nodes: String,
    /// Nodes that are tried before any other.
    pub canary: u32,
    /// Nodes that are tried at once after that.
    pub batch: Batch,
    /// A command line that must succeed on each node once it is up.
    pub gate: Option<String>,
    /// Reboots a node, or fails; `None` = nodes are tried when somebody reboots them.
    pub reboot: Option<String>,
    /// Reboots a node in any case: to take the version back.
    pub back: String,
    /// How long a node may take to begin to boot, and from there to the end of the gate, in seconds.
    pub seconds: u32,
}

/// A rollout and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Names it; never given twice.
    pub id: u64,
    /// What it is to do.
    pub plan: RolloutPlan,
    /// The version that it brings.
    #[serde(with = "crate::text")]
    pub version: Digest,
    /// Its nodes.
    pub nodes: Vec<MacText>,
    /// Whether it is over, and how.
    pub state: RolloutState,
}

/// A MAC as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MacText(#[serde(with = "crate::text")] pub Mac);

/// Whether a rollout is over, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum RolloutState {
    /// It goes on.
    Running,
    /// Every node runs the version, and passed the gate.
    Done,
    /// It was stopped and taken back.
    Failed {
        /// Why.
        cause: String,
    },
}

/// A node's part in a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The rollout.
    pub rollout: u64,
    /// The version that is tried.
    #[serde(with = "crate::text")]
    pub version: Digest,
    /// The version that the node was pinned to before, by an earlier rollout.
    #[serde(default, with = "crate::text::option")]
    pub former: Option<Digest>,
    /// How far it is.
    pub step: Step,
    /// When the step before this one began to count against the rollout's time.
    pub since: Timestamp,
    /// Whether its power was switched because it did not begin to boot.
    #[serde(default)]
    pub switched: bool,
}

/// How far a node is in a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Its turn has not come.
    Waiting,
    /// Its next boot takes the version.
    Rebooting,
    /// Nobody can reboot it now; its next boot takes the version, and nobody waits for that.
    Away,
    /// It boots the version.
    Booting {
        /// The boot.
        #[serde(with = "crate::text")]
        boot: BootId,
    },
    /// It is up with the version; the gate decides.
    Gate,
    /// The version holds there.
    Proved,
}

impl Step {
    /// As people read it.
    pub fn name(&self) -> &'static str {
        match self {
            Step::Waiting => "waits",
            Step::Rebooting => "reboots",
            Step::Away => "on next boot",
            Step::Booting { .. } => "boots",
            Step::Gate => "at the gate",
            Step::Proved => "proved",
        }
    }
}

/// A rollout as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Names it.
    pub id: u64,
    /// The image.
    pub image: String,
    /// The version.
    #[serde(with = "crate::text")]
    pub version: Digest,
    /// Whether it is over, and how.
    #[serde(flatten)]
    pub state: RolloutState,
    /// The nodes by name, and how far each is.
    pub nodes: Vec<(String, String)>,
}

/// Every rollout, and the orders that those who run have given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rollouts {
    by_id: BTreeMap<u64, Rollout>,
    /// The order that a node's step waits for. None is known after a restart: it is given again.
    orders: BTreeMap<Mac, u64>,
}

impl Rollouts {
    pub(crate) fn restore(&mut self, rollout: Rollout) {
        self.by_id.insert(rollout.id, rollout);
    }

    fn running(&self) -> Vec<u64> {
        let running = |rollout: &&Rollout| rollout.state == RolloutState::Running;
        self.by_id
            .values()
            .filter(running)
            .map(|it| it.id)
            .collect()
    }
}

impl Engine {
    /// Begins a rollout.
    pub(crate) fn roll_out(
        &mut self,
        turn: &mut Turn,
        plan: RolloutPlan,
    ) -> Result<CommandReply, CommandError> {
        let image = self.parse_image(&plan.image)?;
        let version = self.find_image(&image).map(|it| it.digest);
        let version = version.expect("it was found when it was parsed");
        check_plan(&plan)?;
        let macs = self.select(&plan.nodes)?;
        if let Some(busy) = macs.iter().find_map(|mac| self.busy(*mac)) {
            return Err(CommandError::BadSetting {
                expected: "nodes of no other rollout".into(),
                got: busy,
            });
        }
        let id = turn
            .now
            .0
            .max(self.rollouts.by_id.keys().last().map_or(0, |it| it + 1));
        for mac in &macs {
            self.begin_trial(turn, *mac, id, version);
        }
        let rollout = Rollout {
            id,
            plan,
            version,
            nodes: macs.into_iter().map(MacText).collect(),
            state: RolloutState::Running,
        };
        turn.persist(Record::Rollout(Box::new(rollout.clone())));
        self.rollouts.restore(rollout);
        self.forget_old_rollouts(turn);
        let name = image.to_string();
        self.tell(
            turn,
            None,
            EventKind::RolloutStarted {
                image: name,
                version,
            },
        );
        self.prepare(turn, version);
        self.advance_rollouts(turn);
        Ok(CommandReply::Rollouts(self.rollout_views(Some(id))))
    }

    /// The name of a node that takes part in a rollout already.
    fn busy(&self, mac: Mac) -> Option<String> {
        let node = self.nodes.get(&mac)?;
        let trial = node.trial.as_ref()?;
        self.rollouts
            .running()
            .contains(&trial.rollout)
            .then(|| node.name.clone())
    }

    fn begin_trial(&mut self, turn: &mut Turn, mac: Mac, rollout: u64, version: Digest) {
        let Some(node) = self.nodes.get(&mac) else {
            return;
        };
        // Where its image is gone there is nothing to go back to.
        let former = node.pinned;
        let pinned = former.or_else(|| self.version_of(Some(node)).ok());
        let now = turn.now;
        self.change_node(turn, mac, |node| {
            node.pinned = pinned;
            node.trial = Some(Box::new(Trial {
                rollout,
                version,
                former,
                step: Step::Waiting,
                since: now,
                switched: false,
            }));
        });
    }

    fn change_node(&mut self, turn: &mut Turn, mac: Mac, change: impl FnOnce(&mut Node)) {
        if let Some(((), node)) = self.nodes.change(mac, change) {
            turn.persist(Record::Node(Box::new(node.clone())));
        }
    }

    fn set_step(&mut self, turn: &mut Turn, mac: Mac, step: Step) {
        self.rollouts.orders.remove(&mac);
        let now = turn.now;
        self.change_node(turn, mac, |node| {
            if let Some(trial) = &mut node.trial {
                // The time of a reboot ends, and that of its boot begins, with the first boot.
                if matches!(step, Step::Rebooting | Step::Away) {
                    trial.since = now;
                } else if matches!(trial.step, Step::Rebooting | Step::Away) {
                    trial.since = trial.since.max(now);
                }
                trial.step = step;
            }
        });
    }

    /// Stops a rollout by a user's word.
    pub(crate) fn stop_rollout(
        &mut self,
        turn: &mut Turn,
        id: u64,
    ) -> Result<CommandReply, CommandError> {
        if !self.rollouts.running().contains(&id) {
            return Err(CommandError::BadSetting {
                expected: "the number of a rollout that goes on".into(),
                got: id.to_string(),
            });
        }
        self.take_back(turn, id, "it was stopped by command".into());
        Ok(CommandReply::Rollouts(self.rollout_views(Some(id))))
    }

    /// Whatever may have happened: brings every rollout as far as it can come now.
    pub(crate) fn advance_rollouts(&mut self, turn: &mut Turn) {
        for id in self.rollouts.running() {
            self.advance(turn, id);
        }
    }

    fn advance(&mut self, turn: &mut Turn, id: u64) {
        let Some(rollout) = self.rollouts.by_id.get(&id).cloned() else {
            return;
        };
        // Those that were forgotten meanwhile do not keep it from its end.
        let nodes: Vec<Mac> = rollout.nodes.iter().map(|it| it.0).collect();
        let trying = |it: &Engine, step: fn(&Step) -> bool| -> Vec<Mac> {
            let of = |mac: &&Mac| it.trial_step(**mac, id).is_some_and(step);
            nodes.iter().filter(of).copied().collect()
        };
        let is_tried = |step: &Step| !matches!(step, Step::Waiting | Step::Proved);
        for mac in trying(self, is_tried) {
            if let Err(cause) = self.advance_node(turn, mac, &rollout) {
                let name = self.nodes.get(&mac).map(|it| it.name.clone());
                let cause = format!("{}: {cause}", name.unwrap_or_default());
                return self.take_back(turn, id, cause);
            }
        }
        let is_first = trying(self, |step| *step == Step::Proved).is_empty();
        // Those that are away keep the others waiting until the version holds anywhere.
        let away = trying(self, |step| *step == Step::Away);
        if trying(self, is_tried).len() > away.len() {
            return;
        }
        let mut waiting = trying(self, |step| *step == Step::Waiting);
        if waiting.is_empty() && away.is_empty() {
            return self.finish(turn, id);
        }
        if rollout.plan.reboot.is_some() {
            // After a start of the daemon nobody was heard yet, which says nothing.
            waiting.retain(|mac| self.is_connected(*mac, turn.now) || self.is_away(*mac, turn.now));
            waiting.sort_by_key(|mac| !self.in_reach(*mac, turn.now));
        }
        if is_first && !away.is_empty() {
            // A canary that is away makes room for one that is not.
            let other = waiting.first().copied();
            if !other.is_some_and(|mac| self.in_reach(mac, turn.now)) {
                return;
            }
            for mac in away {
                self.set_step(turn, mac, Step::Waiting);
            }
        }
        if waiting.is_empty() {
            return;
        }
        let size = match rollout.plan.batch {
            _ if is_first && rollout.plan.canary > 0 => rollout.plan.canary as usize,
            Batch::Nodes(count) => count as usize,
            Batch::Percent(percent) => nodes.len() * usize::from(percent) / 100,
        };
        for mac in waiting.into_iter().take(size.max(1)) {
            self.begin_reboot(turn, mac, &rollout.plan);
        }
        // What runs the version already need not reboot.
        self.advance(turn, id);
    }

    /// Whether a node can be made to reboot now.
    fn in_reach(&self, mac: Mac, now: Timestamp) -> bool {
        self.is_connected(mac, now) || self.can_switch(mac, PowerAction::On)
    }

    /// A node's turn: one that is off is switched on, or left to boot when somebody else does it.
    fn begin_reboot(&mut self, turn: &mut Turn, mac: Mac, plan: &RolloutPlan) {
        let is_ours = plan.reboot.is_some() && !self.is_connected(mac, turn.now);
        if is_ours && !self.can_switch(mac, PowerAction::On) {
            return self.set_step(turn, mac, Step::Away);
        }
        self.set_step(turn, mac, Step::Rebooting);
        if is_ours {
            // What comes of it is an event; the rollout's time decides.
            let _ = self.switch_one(turn, mac, PowerAction::On);
        }
    }

    /// A node that was told to reboot, and does not begin to boot, has its power switched, once.
    fn switch_late(&mut self, turn: &mut Turn, mac: Mac) -> bool {
        let trial = self.nodes.get(&mac).and_then(|node| node.trial.as_ref());
        let may = trial.is_some_and(|it| it.step == Step::Rebooting && !it.switched);
        if !may || !self.can_switch(mac, PowerAction::Cycle) {
            return false;
        }
        let now = turn.now;
        self.change_node(turn, mac, |node| {
            if let Some(trial) = &mut node.trial {
                (trial.switched, trial.since) = (true, now);
            }
        });
        self.switch_one(turn, mac, PowerAction::Cycle).is_ok()
    }

    fn trial_step(&self, mac: Mac, rollout: u64) -> Option<&Step> {
        let trial = self.nodes.get(&mac)?.trial.as_ref()?;
        (trial.rollout == rollout).then_some(&trial.step)
    }

    /// Brings one node as far as it can come now, or says why the rollout fails on it.
    fn advance_node(&mut self, turn: &mut Turn, mac: Mac, rollout: &Rollout) -> Result<(), String> {
        let Some(trial) = self.nodes.get(&mac).and_then(|node| node.trial.clone()) else {
            return Ok(());
        };
        let boot = self.boots.current(mac);
        let runs = boot.filter(|boot| is_up(boot)).and_then(|boot| boot.image);
        let reached = boot.and_then(reached);
        match &trial.step {
            Step::Rebooting | Step::Away | Step::Booting { .. } if runs == Some(trial.version) => {
                self.set_step(turn, mac, Step::Gate);
                return self.advance_node(turn, mac, rollout);
            }
            Step::Booting { .. } if runs.is_some() => {
                return Err("it came up with another version".into());
            }
            // It was only out of reach: its turn comes as that of any other.
            Step::Away if self.is_connected(mac, turn.now) => {
                self.set_step(turn, mac, Step::Waiting);
                return Ok(());
            }
            Step::Rebooting => {
                if let Some(script) = &rollout.plan.reboot {
                    self.carry_out_order(turn, mac, script, rollout.plan.seconds)
                        .map_err(|cause| format!("it does not reboot: {cause}"))?;
                }
            }
            Step::Gate => match &rollout.plan.gate {
                None => self.prove(turn, mac),
                Some(gate) => {
                    let passed = self.carry_out_order(turn, mac, gate, rollout.plan.seconds);
                    if passed.map_err(|cause| format!("the gate fails: {cause}"))? {
                        self.prove(turn, mac);
                    }
                }
            },
            Step::Booting { .. } | Step::Away | Step::Waiting | Step::Proved => {}
        }
        // Whoever waits for somebody to reboot it has all the time in the world.
        let is_ours = trial.step != Step::Away
            && (rollout.plan.reboot.is_some() || trial.step != Step::Rebooting);
        let end = trial.since + Duration::from_secs(rollout.plan.seconds.into());
        let is_over = self
            .trial_step(mac, rollout.id)
            .is_none_or(|it| *it == Step::Proved);
        if is_ours && !is_over && turn.now >= end && !self.switch_late(turn, mac) {
            let stage = reached.map_or("nowhere", Stage::name);
            return Err(format!(
                "it did not come through within {} s; it is {}, its boot came to {stage}",
                rollout.plan.seconds,
                trial.step.name(),
            ));
        }
        Ok(())
    }

    /// Gives a node the order that its step waits for, once; whether it has ended well.
    fn carry_out_order(
        &mut self,
        turn: &mut Turn,
        mac: Mac,
        script: &str,
        seconds: u32,
    ) -> Result<bool, String> {
        let state = self.rollouts.orders.get(&mac);
        let state = state.and_then(|id| self.order_state(*id));
        match state {
            None => {
                // One that is away may come back; the rollout's time decides.
                if let Ok(order) = self.give(turn, mac, script, seconds) {
                    self.rollouts.orders.insert(mac, order);
                }
                Ok(false)
            }
            Some((OrderState::Ended { status: 0 }, _)) => Ok(true),
            Some((OrderState::Ended { status }, output)) => {
                let said = String::from_utf8_lossy(&output);
                let said = cut(said.trim());
                Err(format!("status {status}, {said:?}"))
            }
            // It was told to reboot, and has; or the time will tell.
            Some((OrderState::Lost { .. } | OrderState::Waiting | OrderState::Running, _)) => {
                Ok(false)
            }
        }
    }

    fn prove(&mut self, turn: &mut Turn, mac: Mac) {
        self.set_step(turn, mac, Step::Proved);
        self.change_node(turn, mac, |node| {
            node.pinned = node.trial.as_ref().map(|it| it.version);
        });
        self.tell(turn, Some(mac), EventKind::VersionProved);
    }

    fn finish(&mut self, turn: &mut Turn, id: u64) {
        let Some(rollout) = self.rollouts.by_id.get(&id).cloned() else {
            return;
        };
        for mac in &rollout.nodes {
            self.change_node(turn, mac.0, |node| node.trial = None);
        }
        self.end_rollout(turn, id, RolloutState::Done);
        let image = rollout.plan.image;
        self.tell(turn, None, EventKind::RolloutDone { image });
        self.unpin_followers(turn);
    }

    /// Every node goes back to what it had; those that run the version are rebooted.
    fn take_back(&mut self, turn: &mut Turn, id: u64, cause: String) {
        let Some(rollout) = self.rollouts.by_id.get(&id).cloned() else {
            return;
        };
        for MacText(mac) in &rollout.nodes {
            let is_part = self.trial_step(*mac, id).is_some();
            if !is_part {
                continue;
            }
            self.rollouts.orders.remove(mac);
            self.change_node(turn, *mac, |node| {
                node.pinned = node.trial.take().and_then(|trial| trial.former);
            });
            let runs = self.boots.current(*mac).and_then(|boot| boot.image);
            if runs == Some(rollout.version) {
                // One that can neither be told nor switched takes the former version whenever it boots.
                let told = self.give(turn, *mac, &rollout.plan.back, BACK_SECONDS);
                if told.is_err() && self.can_switch(*mac, PowerAction::Cycle) {
                    let _ = self.switch_one(turn, *mac, PowerAction::Cycle);
                }
            }
        }
        let failed = RolloutState::Failed {
            cause: cause.clone(),
        };
        self.end_rollout(turn, id, failed);
        let image = rollout.plan.image;
        self.tell(turn, None, EventKind::RolloutFailed { image, cause });
    }

    fn end_rollout(&mut self, turn: &mut Turn, id: u64, state: RolloutState) {
        if let Some(rollout) = self.rollouts.by_id.get_mut(&id) {
            rollout.state = state;
            turn.persist(Record::Rollout(Box::new(rollout.clone())));
        }
    }

    fn forget_old_rollouts(&mut self, turn: &mut Turn) {
        let is_over = |rollout: &&Rollout| rollout.state != RolloutState::Running;
        let over = self.rollouts.by_id.values().filter(is_over);
        let over: Vec<u64> = over.map(|rollout| rollout.id).collect();
        for id in over.iter().take(over.len().saturating_sub(KEPT)) {
            self.rollouts.by_id.remove(id);
            turn.persist(Record::Removed {
                key: format!("rollout/{id}"),
            });
        }
    }

    /// Nodes whose image now names the version that they are pinned to follow it again.
    pub(crate) fn unpin_followers(&mut self, turn: &mut Turn) {
        let follows = |node: &&Node| {
            let own = self.image_of(Some(node)).ok().map(|image| image.digest);
            node.trial.is_none() && node.pinned.is_some() && node.pinned == own
        };
        let nodes = self.nodes.values().filter(follows);
        let macs: Vec<Mac> = nodes.map(|node| node.mac).collect();
        for mac in macs {
            self.change_node(turn, mac, |node| node.pinned = None);
        }
    }

    /// The version of a node's next boot only, or of the one that its loaders are at.
    pub(crate) fn trial_version(&self, node: &Node) -> Option<Digest> {
        let trial = node.trial.as_ref()?;
        match &trial.step {
            Step::Rebooting | Step::Away => Some(trial.version),
            Step::Booting { boot } => {
                let boot = self.boots.get(*boot)?;
                (reached(boot) < Some(Stage::Init)).then_some(trial.version)
            }
            _ => None,
        }
    }

    /// A boot of a node begins: it may be the one in which the version is tried.
    pub(crate) fn boot_on_trial(&mut self, turn: &mut Turn, mac: Mac, boot: BootId) {
        let Some(trial) = self.nodes.get(&mac).and_then(|node| node.trial.as_ref()) else {
            return;
        };
        let is_tried = match &trial.step {
            Step::Rebooting | Step::Away => true,
            // One that did not get as far as to run anything of the version tells nothing of it.
            Step::Booting { boot } => self
                .boots
                .get(*boot)
                .is_none_or(|boot| reached(boot) < Some(Stage::Initrd)),
            _ => false,
        };
        if is_tried {
            self.set_step(turn, mac, Step::Booting { boot });
        }
    }

    /// When a rollout wants to be looked at next.
    pub(crate) fn rollout_deadline(&self) -> Option<Timestamp> {
        let running = self.rollouts.running();
        let of = |id: &u64| self.rollouts.by_id.get(id);
        let rollouts = running.iter().filter_map(of);
        let deadlines = rollouts.flat_map(|rollout| {
            let time = Duration::from_secs(rollout.plan.seconds.into());
            let trials = rollout.nodes.iter().filter_map(|mac| {
                let trial = self.nodes.get(&mac.0)?.trial.as_ref()?;
                let waits = matches!(trial.step, Step::Waiting | Step::Away | Step::Proved)
                    || (trial.step == Step::Rebooting && rollout.plan.reboot.is_none());
                (!waits).then_some(trial.since)
            });
            trials.map(move |since| since + time)
        });
        let settles = self.orders.settles().filter(|_| !running.is_empty());
        deadlines.chain(settles).min()
    }

    /// All rollouts, or one.
    pub(crate) fn rollout_views(&self, wanted: Option<u64>) -> Vec<RolloutView> {
        let is_wanted = |rollout: &&Rollout| wanted.is_none_or(|id| id == rollout.id);
        let rollouts = self.rollouts.by_id.values().filter(is_wanted);
        rollouts.map(|rollout| self.rollout_view(rollout)).collect()
    }

    fn rollout_view(&self, rollout: &Rollout) -> RolloutView {
        let nodes = rollout.nodes.iter().filter_map(|mac| {
            let node = self.nodes.get(&mac.0)?;
            let step = match (self.trial_step(node.mac, rollout.id), &rollout.state) {
                (Some(step), _) => step.name(),
                (None, RolloutState::Done) => Step::Proved.name(),
                (None, _) => "taken back",
            };
            Some((node.name.clone(), step.to_owned()))
        });
        RolloutView {
            id: rollout.id,
            image: rollout.plan.image.clone(),
            version: rollout.version,
            state: rollout.state.clone(),
            nodes: nodes.collect(),
        }
    }

    /// The versions that rollouts may bring to a node, or have brought.
    pub(crate) fn rollout_versions(node: &Node) -> impl Iterator<Item = Digest> {
        node.pinned
            .into_iter()
            .chain(node.trial.as_ref().map(|it| it.version))
    }
}

fn check_plan(plan: &RolloutPlan) -> Result<(), CommandError> {
    let scripts = [&plan.gate, &plan.reboot, &Some(plan.back.clone())];
    let fits = scripts
        .into_iter()
        .flatten()
        .all(|it| (1..=MAX_COMMAND_BYTES).contains(&it.len()) && !it.contains('\0'));
    let batch = match plan.batch {
        Batch::Nodes(count) => count > 0,
        Batch::Percent(percent) => (1..=100).contains(&percent),
    };
    if fits && batch && (10..=24 * 3600).contains(&plan.seconds) {
        return Ok(());
    }
    Err(CommandError::BadSetting {
        expected: format!(
            "commands of at most {MAX_COMMAND_BYTES} bytes, a batch of at least one node or one \
             percent, and 10 seconds to a day"
        ),
        got: format!("{:?} in {} s", plan.batch, plan.seconds),
    })
}
