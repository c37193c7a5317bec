//! Rollouts, with agents that do as they are told.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use wire::digest::Digest;
use wire::order::{ControlKey, Orders, Part, Poll};

use super::{DIGEST, NEXT, World, image, mac};
use crate::command::{CommandError, CommandReply};
use crate::event::EventKind;
use crate::io::{Content, HttpBody, HttpRequest, Input, Output};
use crate::power::PowerTask;
use crate::rollout::{Batch, RolloutPlan, RolloutState, RolloutView};
use crate::{Command, Group, Inventory, NodeChange, Setting};

const SECOND: Duration = Duration::from_secs(1);
const REBOOT: &str = "reboot";
const BACK: &str = "back";
const GATE: &str = "gate";

/// A world with agents, and what they were told, by machine.
struct Fleet {
    world: World,
    told: BTreeMap<usize, Vec<String>>,
    /// Whose gate fails with the new version.
    bad: Vec<usize>,
    /// Who does not reboot.
    busy: Vec<usize>,
    /// Who takes itself off where it was told to reboot.
    hung: Vec<usize>,
    /// Whether power can be switched, where it is asked for.
    powered: bool,
    nonce: u8,
}

fn plan() -> RolloutPlan {
    RolloutPlan {
        image: "next".into(),
        nodes: "@all".into(),
        canary: 1,
        batch: Batch::Percent(40),
        gate: Some(GATE.into()),
        reboot: Some(REBOOT.into()),
        back: BACK.into(),
        seconds: 600,
    }
}

impl Fleet {
    fn new(seed: u8, machines: usize) -> Fleet {
        let mut world = World::with_next(seed);
        world.power_on(machines);
        world.boot_all(300 * SECOND);
        Fleet {
            world,
            told: BTreeMap::new(),
            bad: Vec::new(),
            busy: Vec::new(),
            hung: Vec::new(),
            powered: true,
            nonce: 0,
        }
    }

    fn command(&mut self, command: Command) -> Result<CommandReply, CommandError> {
        self.world.command(command)
    }

    fn begin(&mut self, plan: RolloutPlan) -> RolloutView {
        match self.command(Command::RollOut(plan)) {
            Ok(CommandReply::Rollouts(mut views)) => views.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn view(&mut self) -> RolloutView {
        match self.command(Command::Rollouts) {
            Ok(CommandReply::Rollouts(mut views)) => views.pop().expect("a rollout"),
            other => panic!("{other:?}"),
        }
    }

    /// What each machine runs.
    fn runs(&self) -> Vec<Option<Digest>> {
        let machines = 0..self.world.machines.len();
        machines
            .map(|it| self.world.engine.boots.current(mac(it))?.image)
            .collect()
    }

    /// What each machine's next boot takes.
    fn next(&self) -> Vec<Option<Digest>> {
        let node = |it| self.world.engine.node(&mac(it)).expect("a node");
        let machines = 0..self.world.machines.len();
        machines.map(|it| node(it).next_image).collect()
    }

    /// Lets time pass, in which agents poll and do as they are told, until the rollout is over.
    fn run(&mut self, limit: Duration) -> RolloutState {
        let end = self.world.now + limit;
        loop {
            let state = self.view().state;
            if state != RolloutState::Running || self.world.now >= end {
                return state;
            }
            self.second();
        }
    }

    fn second(&mut self) {
        let until = self.world.now + SECOND;
        self.world.run_until(SECOND, |world| world.now >= until);
        self.world.now = self.world.now.max(until);
        for machine in 0..self.world.machines.len() {
            self.obey(machine);
        }
        self.world.input(Input::Tick);
        for (order, task) in std::mem::take(&mut self.world.powers) {
            self.switch(order, &task);
        }
    }

    /// Does what was asked of a machine's power.
    fn switch(&mut self, order: u64, task: &PowerTask) {
        let now = self.world.now;
        let PowerTask::Run { words } = task else {
            panic!("{task:?}");
        };
        let [program, action, mac_text] = &words[..] else {
            panic!("{words:?}");
        };
        assert_eq!(program, "switch");
        let machine = (0..self.world.machines.len()).find(|it| mac(*it).to_string() == *mac_text);
        let machine = machine.expect("a machine");
        self.told.entry(machine).or_default().push(action.clone());
        if self.powered {
            self.world.machines[machine].power_cycle(now);
        }
        self.world.input(Input::PowerEnded {
            order,
            status: i32::from(!self.powered),
            output: b"said".to_vec(),
        });
    }

    /// Every node's power is driven by a command.
    fn give_power(&mut self) {
        let all = Group {
            power: Some("switch {action} {mac}".into()),
            ..Group::default()
        };
        let command = Command::Apply {
            inventory: Inventory {
                groups: [("all".to_owned(), all)].into(),
                ..Inventory::default()
            },
            prune: false,
            dry_run: false,
            may_run: true,
        };
        self.command(command).expect("applied");
    }

    /// Cuts a machine off, long enough for the engine to notice that its agent is away.
    fn cut_off(&mut self, machine: usize) {
        self.world.machines[machine].power_off();
        for _ in 0..200 {
            self.second();
        }
    }

    /// How far a machine is.
    fn step(&mut self, machine: usize) -> String {
        let name = self.world.engine.node(&mac(machine)).expect("a node").name;
        let nodes = self.view().nodes;
        let step = nodes.into_iter().find(|it| it.0 == name);
        step.expect("it takes part").1
    }

    /// A machine's agent polls, where it is up, and does what it is told at once.
    fn obey(&mut self, machine: usize) {
        let now = self.world.now;
        let boot = self.world.engine.boots.current(mac(machine));
        let Some(boot) = boot.filter(|it| crate::boots::is_up(it)).cloned() else {
            return;
        };
        let Some(address) = self.world.machines[machine].address(now) else {
            return;
        };
        let key = ControlKey(boot.control_key.expect("a key"));
        let mut post = |world: &mut World, poll: Poll| {
            self.nonce = self.nonce.wrapping_add(1);
            let nonce = [self.nonce; 12];
            let input = Input::Http {
                peer: SocketAddrV4::new(address, 50_000),
                request: HttpRequest {
                    method: "POST".into(),
                    target: "/control".into(),
                    body: poll.seal(boot.id, &key, nonce),
                },
            };
            let outputs = world.engine.handle(now, input);
            let answer = outputs.iter().find_map(|output| match output {
                Output::Http(answer) => Some(answer.clone()),
                _ => None,
            });
            world.carry_out(outputs);
            let Some(answer) = answer else {
                return Vec::new();
            };
            let HttpBody::Content(Content::Bytes(bytes)) = answer.body else {
                panic!("another body");
            };
            Orders::open(&bytes, &key, nonce).expect("orders").0
        };
        for order in post(&mut self.world, Poll::default()) {
            let status = match order.command.as_str() {
                REBOOT if self.busy.contains(&machine) => 1,
                GATE if boot.image == Some(NEXT) && self.bad.contains(&machine) => 1,
                _ => 0,
            };
            let bytes = b"said".to_vec();
            let part = Part {
                order: order.id,
                offset: 0,
                total: 4,
                bytes,
                end: Some(status),
            };
            let poll = Poll {
                known: vec![order.id],
                part: Some(part),
            };
            post(&mut self.world, poll);
            let reboots = [REBOOT, BACK].contains(&order.command.as_str()) && status == 0;
            self.told.entry(machine).or_default().push(order.command);
            if reboots && self.hung.contains(&machine) {
                self.world.machines[machine].power_off();
                return;
            }
            if reboots {
                self.world.machines[machine].power_cycle(now);
                return;
            }
        }
    }
}

#[test]
fn a_version_comes_to_one_node_then_to_batches_and_every_node_is_pinned_to_it() {
    let mut fleet = Fleet::new(1, 5);
    let begun = fleet.begin(plan());
    assert_eq!(begun.nodes.len(), 5);
    let mut most = 0;
    let mut first = true;
    while fleet.view().state == RolloutState::Running {
        fleet.second();
        let new = fleet.runs().iter().filter(|it| **it == Some(NEXT)).count();
        let steps: Vec<String> = fleet.view().nodes.into_iter().map(|it| it.1).collect();
        let tried = steps
            .iter()
            .filter(|it| !matches!(it.as_str(), "waits" | "proved"));
        let tried = tried.count();
        let proved = steps.iter().filter(|it| *it == "proved").count();
        // The canary is alone until it is proved; after it two of five are tried at once.
        if first && proved == 0 {
            assert!(tried <= 1, "{steps:?}");
        } else {
            first = false;
        }
        most = most.max(tried);
        // Only those that were tried boot the version; a power cut boots all others as before.
        let next = fleet.next().iter().filter(|it| **it == Some(NEXT)).count();
        assert!(next <= proved + tried && new <= proved + tried, "{steps:?}");
    }
    assert_eq!(most, 2);
    assert_eq!(fleet.view().state, RolloutState::Done);
    assert_eq!(fleet.runs(), vec![Some(NEXT); 5]);
    assert_eq!(fleet.next(), vec![Some(NEXT); 5]);
    for told in fleet.told.values() {
        assert_eq!(told, &[REBOOT, GATE]);
    }
    // They stay there until their image names that version; then they follow it again.
    let pinned = |fleet: &Fleet| {
        let nodes = fleet.world.engine.nodes.values();
        nodes.filter(|node| node.pinned == Some(NEXT)).count()
    };
    fleet.world.restart();
    assert_eq!(pinned(&fleet), 5);
    fleet.world.images[0].digest = NEXT;
    fleet.world.show_images();
    assert_eq!(pinned(&fleet), 0);
    assert_eq!(fleet.next(), vec![Some(NEXT); 5]);
}

#[test]
fn a_gate_that_fails_takes_everything_back() {
    let mut fleet = Fleet::new(2, 4);
    fleet.bad = vec![0, 1, 2, 3];
    fleet.begin(plan());
    let RolloutState::Failed { cause } = fleet.run(3600 * SECOND) else {
        panic!("{:?}", fleet.view());
    };
    assert!(
        cause.contains("the gate fails: status 1, \"said\""),
        "{cause}"
    );
    // Only the canary had it, and goes back.
    for _ in 0..300 {
        fleet.second();
    }
    assert_eq!(fleet.runs(), vec![Some(DIGEST); 4]);
    assert_eq!(fleet.next(), vec![Some(DIGEST); 4]);
    let told: Vec<_> = fleet.told.values().collect();
    assert_eq!(told, [&[REBOOT, GATE, BACK]]);
    let failed = |it: &EventKind| matches!(it, EventKind::RolloutFailed { .. });
    assert_eq!(fleet.world.count(failed), 1);

    // Later in the rollout, those that had passed go back as well.
    fleet.told.clear();
    let canary = fleet
        .begin(plan())
        .nodes
        .iter()
        .position(|it| it.1 != "waits");
    assert!(canary.is_some());
    fleet.bad.clear();
    while fleet
        .view()
        .nodes
        .iter()
        .filter(|it| it.1 == "proved")
        .count()
        < 2
    {
        fleet.second();
    }
    fleet.bad = vec![0, 1, 2, 3];
    assert!(matches!(
        fleet.run(3600 * SECOND),
        RolloutState::Failed { .. }
    ));
    for _ in 0..300 {
        fleet.second();
    }
    assert_eq!(fleet.runs(), vec![Some(DIGEST); 4]);
    assert_eq!(fleet.next(), vec![Some(DIGEST); 4]);
}

#[test]
fn a_power_cut_of_everything_boots_nobody_into_what_was_not_proved() {
    let mut fleet = Fleet::new(3, 4);
    fleet.begin(plan());
    // Cut at the worst time: the canary is up with the version, and its gate not passed.
    while !fleet.view().nodes.iter().any(|it| it.1 == "boots") {
        fleet.second();
    }
    let now = fleet.world.now;
    fleet.world.restart();
    for machine in &mut fleet.world.machines {
        machine.power_cycle(now);
    }
    fleet.world.boot_all(600 * SECOND);
    let new = fleet.runs().iter().filter(|it| **it == Some(NEXT)).count();
    assert!(new <= 1, "the canary at most: its loaders had begun");
    let proved = fleet
        .view()
        .nodes
        .iter()
        .filter(|it| it.1 == "proved")
        .count();
    let next = fleet.next().iter().filter(|it| **it == Some(NEXT)).count();
    assert_eq!((proved, next), (0, 0));
    // It goes on after that, or takes itself back; in the end all are alike.
    let state = fleet.run(7200 * SECOND);
    assert_ne!(state, RolloutState::Running);
    for _ in 0..300 {
        fleet.second();
    }
    let expected = if state == RolloutState::Done {
        NEXT
    } else {
        DIGEST
    };
    assert_eq!(fleet.runs(), vec![Some(expected); 4], "{state:?}");
}

#[test]
fn a_node_that_does_not_reboot_or_does_not_come_up_fails_the_rollout() {
    let mut fleet = Fleet::new(4, 2);
    fleet.busy = vec![0, 1];
    fleet.begin(plan());
    let RolloutState::Failed { cause } = fleet.run(3600 * SECOND) else {
        panic!("it goes on");
    };
    assert!(cause.contains("does not reboot: status 1"), "{cause}");
    assert_eq!(fleet.runs(), vec![Some(DIGEST); 2]);
    fleet.busy.clear();
    for machine in &mut fleet.world.machines {
        machine.broken = vec![NEXT];
    }
    fleet.begin(plan());
    let RolloutState::Failed { cause } = fleet.run(3600 * SECOND) else {
        panic!("it goes on");
    };
    let expected = [
        "came up with another version",
        "did not come through within 600 s",
    ];
    assert!(expected.iter().any(|it| cause.contains(it)), "{cause}");
    fleet.world.boot_all(1200 * SECOND);
    assert_eq!(fleet.runs(), vec![Some(DIGEST); 2]);
}

#[test]
fn what_users_say_ends_a_node_s_part_and_nodes_have_one_rollout_at_a_time() {
    let mut fleet = Fleet::new(5, 3);
    let id = fleet.begin(plan()).id;
    let again = fleet.command(Command::RollOut(plan()));
    assert!(
        matches!(again, Err(CommandError::BadSetting { .. })),
        "{again:?}"
    );
    let bad = RolloutPlan {
        batch: Batch::Percent(0),
        ..plan()
    };
    assert!(fleet.command(Command::RollOut(bad)).is_err());
    let unknown = RolloutPlan {
        image: "none".into(),
        ..plan()
    };
    assert!(fleet.command(Command::RollOut(unknown)).is_err());
    let change = NodeChange {
        image: Some(Setting::Default),
        ..NodeChange::default()
    };
    let node = "node3".to_owned();
    fleet.command(Command::NodeSet { node, change }).unwrap();
    fleet.run(3 * SECOND);
    fleet.command(Command::StopRollout { id }).unwrap();
    assert!(fleet.command(Command::StopRollout { id }).is_err());
    for _ in 0..300 {
        fleet.second();
    }
    assert_eq!(fleet.runs(), vec![Some(DIGEST); 3]);
}

#[test]
fn a_rollout_that_fails_leaves_nodes_where_an_earlier_one_brought_them() {
    let mut fleet = Fleet::new(7, 2);
    fleet.begin(plan());
    assert_eq!(fleet.run(3600 * SECOND), RolloutState::Done);
    fleet.busy = vec![0, 1];
    fleet.begin(RolloutPlan {
        image: image().name,
        ..plan()
    });
    let state = fleet.run(3600 * SECOND);
    assert!(matches!(state, RolloutState::Failed { .. }), "{state:?}");
    assert_eq!(fleet.next(), vec![Some(NEXT); 2]);
}

#[test]
fn on_the_next_boot_nobody_is_told_to_reboot() {
    let mut fleet = Fleet::new(6, 2);
    fleet.begin(RolloutPlan {
        reboot: None,
        gate: None,
        ..plan()
    });
    assert_eq!(fleet.run(2 * 3600 * SECOND), RolloutState::Running);
    for _ in 0..2 {
        let now = fleet.world.now;
        for machine in &mut fleet.world.machines {
            machine.power_cycle(now);
        }
        fleet.world.boot_all(300 * SECOND);
        fleet.run(5 * SECOND);
    }
    assert_eq!(fleet.view().state, RolloutState::Done);
    assert_eq!(fleet.runs(), vec![Some(NEXT); 2]);
    assert!(fleet.told.is_empty());
}

#[test]
fn nodes_that_are_off_keep_nobody_waiting_and_take_the_version_when_they_boot() {
    let mut fleet = Fleet::new(8, 4);
    for machine in [0, 2] {
        fleet.cut_off(machine);
    }
    fleet.begin(plan());
    for _ in 0..300 {
        fleet.second();
    }
    let steps: Vec<String> = (0..4).map(|it| fleet.step(it)).collect();
    assert_eq!(steps, ["on next boot", "proved", "on next boot", "proved"]);
    assert_eq!(fleet.view().state, RolloutState::Running);
    // Over a restart, and long after the time of any reboot.
    fleet.world.restart();
    fleet.run(3600 * SECOND);
    assert_eq!(fleet.view().state, RolloutState::Running);
    let now = fleet.world.now;
    fleet.world.machines[0].power_cycle(now);
    fleet.world.machines[2].power_cycle(now);
    assert_eq!(fleet.run(600 * SECOND), RolloutState::Done);
    assert_eq!(fleet.runs(), vec![Some(NEXT); 4]);
    assert_eq!(fleet.told[&0], [GATE], "nobody told it to reboot");
}

#[test]
fn where_every_node_is_off_one_is_tried_before_the_others() {
    let mut fleet = Fleet::new(9, 3);
    for machine in 0..3 {
        fleet.cut_off(machine);
    }
    fleet.begin(plan());
    fleet.run(30 * SECOND);
    let next = |fleet: &Fleet| fleet.next().iter().filter(|it| **it == Some(NEXT)).count();
    assert_eq!(next(&fleet), 1, "the canary alone");
    let now = fleet.world.now;
    for machine in &mut fleet.world.machines {
        machine.power_cycle(now);
    }
    assert_eq!(fleet.run(1200 * SECOND), RolloutState::Done);
    assert_eq!(fleet.runs(), vec![Some(NEXT); 3]);
}

#[test]
fn nodes_that_are_off_are_switched_on_where_that_can_be() {
    let mut fleet = Fleet::new(10, 3);
    fleet.give_power();
    fleet.cut_off(1);
    fleet.begin(plan());
    assert_eq!(fleet.run(3600 * SECOND), RolloutState::Done);
    assert_eq!(fleet.runs(), vec![Some(NEXT); 3]);
    assert_eq!(fleet.told[&1], ["on", GATE]);
    assert_eq!(fleet.told[&0], [REBOOT, GATE]);
}

#[test]
fn a_node_that_does_not_come_back_has_its_power_switched_once() {
    let mut fleet = Fleet::new(11, 2);
    fleet.give_power();
    fleet.second();
    fleet.hung = vec![0, 1];
    fleet.begin(plan());
    assert_eq!(fleet.run(4 * 3600 * SECOND), RolloutState::Done);
    assert_eq!(fleet.runs(), vec![Some(NEXT); 2]);
    for told in fleet.told.values() {
        assert_eq!(told, &[REBOOT, "cycle", GATE]);
    }

    // Where that is of no use either, the rollout fails.
    let mut fleet = Fleet::new(12, 2);
    fleet.give_power();
    fleet.second();
    (fleet.hung, fleet.powered) = (vec![0, 1], false);
    fleet.begin(plan());
    let state = fleet.run(4 * 3600 * SECOND);
    assert!(matches!(state, RolloutState::Failed { .. }), "{state:?}");
    let told: Vec<&Vec<String>> = fleet.told.values().collect();
    assert_eq!(told, [&[REBOOT, "cycle"]]);
}

#[test]
fn a_restart_of_the_daemon_makes_nobody_look_as_if_it_were_off() {
    let mut fleet = Fleet::new(13, 5);
    fleet.begin(RolloutPlan {
        batch: Batch::Nodes(1),
        ..plan()
    });
    while !(0..5).any(|it| fleet.step(it) == "proved") {
        fleet.second();
    }
    fleet.world.restart();
    // Agents come back one after the other; until then they are not taken for machines without power.
    let now = fleet.world.now;
    fleet.world.engine.handle(now, Input::Tick);
    while fleet.view().state == RolloutState::Running {
        let steps: Vec<String> = (0..5).map(|it| fleet.step(it)).collect();
        assert!(!steps.iter().any(|it| it == "on next boot"), "{steps:?}");
        let next = fleet.next().iter().filter(|it| **it == Some(NEXT)).count();
        let proved = steps.iter().filter(|it| *it == "proved").count();
        assert!(next <= proved + 1, "{steps:?}");
        fleet.second();
    }
    assert_eq!(fleet.view().state, RolloutState::Done);
}
