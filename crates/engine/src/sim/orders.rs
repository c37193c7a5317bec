//! Orders to running nodes, and images for one boot.

use std::net::SocketAddrV4;
use std::time::Duration;

use wire::identity::BootId;
use wire::order::{ControlKey, Order, Orders, Part, Poll};
use wire::upload::Claim;

use super::{DIGEST, GOOD, NEXT, World, config, mac};
use crate::command::{CommandError, CommandReply};
use crate::event::EventKind;
use crate::io::{Content, HttpBody, HttpRequest, Input, Output};
use crate::orders::{MAX_OUTPUT_BYTES, OrderState, OrderView, UploadLeave};
use crate::{Command, NodeChange, Setting};

/// How much the orders of these tests may upload.
const UPLOAD_BYTES: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

/// A node's agent.
struct Agent {
    boot: BootId,
    key: ControlKey,
    peer: SocketAddrV4,
    nonce: u8,
}

impl Agent {
    /// That of a machine that is up.
    fn of(world: &World, machine: usize) -> Agent {
        let boot = world.engine.boots.current(mac(machine)).expect("a boot");
        let held = world.machines[machine].held.expect("an address");
        Agent {
            boot: boot.id,
            key: ControlKey(boot.control_key.expect("a key")),
            peer: SocketAddrV4::new(held.address, 50_000),
            nonce: 0,
        }
    }

    /// Polls; the orders that it is answered, or `None` where it has to wait.
    fn poll(&mut self, world: &mut World, known: &[u64], part: Option<Part>) -> Option<Vec<Order>> {
        self.nonce += 1;
        let poll = Poll {
            known: known.into(),
            part,
        };
        let body = poll.seal(self.boot, &self.key, [self.nonce; 12]);
        match post(world, self.peer, body).as_slice() {
            [Output::Http(answer)] => Some(self.open(answer)),
            [Output::HoldHttp { boot }] if *boot == self.boot => None,
            other => panic!("{other:?}"),
        }
    }

    fn open(&self, answer: &crate::HttpAnswer) -> Vec<Order> {
        assert_eq!(answer.status, 200, "{answer:?}");
        let HttpBody::Content(Content::Bytes(bytes)) = &answer.body else {
            panic!("{answer:?}");
        };
        let orders = Orders::open(bytes, &self.key, [self.nonce; 12]);
        orders.expect("orders for this poll").0
    }

    fn part(order: u64, offset: u64, bytes: &[u8], end: Option<i32>) -> Option<Part> {
        Some(Part {
            order,
            offset,
            total: offset + bytes.len() as u64,
            bytes: bytes.into(),
            end,
        })
    }
}

/// What a request to `/control` brings, events and records left out.
fn post(world: &mut World, peer: SocketAddrV4, body: Vec<u8>) -> Vec<Output> {
    let request = HttpRequest {
        method: "POST".into(),
        target: "/control".into(),
        body,
    };
    let now = world.now;
    let outputs = world.engine.handle(now, Input::Http { peer, request });
    told(world, outputs)
}

/// Keeps the events of outputs with the world's; the answers among the rest.
fn told(world: &mut World, outputs: Vec<Output>) -> Vec<Output> {
    let mut rest = Vec::new();
    for output in outputs {
        match output {
            Output::Event(event) => world.events.push(event),
            Output::Persist(_) => {}
            other => rest.push(other),
        }
    }
    rest
}

fn order(world: &mut World, nodes: &str) -> (Vec<OrderView>, Vec<Output>) {
    let command = Command::Order {
        nodes: nodes.into(),
        script: "uptime".into(),
        seconds: 60,
        upload_bytes: UPLOAD_BYTES,
    };
    let now = world.now;
    let outputs = world.engine.handle(now, Input::Command(command));
    let mut outputs = told(world, outputs);
    match outputs.pop() {
        Some(Output::Reply(Ok(CommandReply::Orders(orders)))) => (orders, outputs),
        other => panic!("{other:?}"),
    }
}

fn view(world: &mut World, id: u64) -> OrderView {
    match world.command(Command::Orders { ids: vec![id] }) {
        Ok(CommandReply::Orders(mut orders)) => orders.remove(0),
        other => panic!("{other:?}"),
    }
}

/// A machine's name as a node.
fn name(world: &World, machine: usize) -> String {
    world.engine.node(&mac(machine)).expect("a node").name
}

fn world(seed: u8, machines: usize) -> World {
    let mut world = World::new(seed, GOOD, config());
    world.power_on(machines);
    world.boot_all(5 * MINUTE);
    world
}

#[test]
fn an_order_reaches_a_node_that_waits_and_its_output_comes_back() {
    let mut world = world(1, 1);
    let mut agent = Agent::of(&world, 0);
    assert_eq!(agent.poll(&mut world, &[], None), None);
    let (orders, outputs) = order(&mut world, "node1");
    let id = orders[0].id.expect("it was given");
    assert_eq!(orders[0].state, OrderState::Waiting);
    let [Output::AnswerHeld { boot, answer }] = outputs.as_slice() else {
        panic!("{outputs:?}");
    };
    assert_eq!(*boot, agent.boot);
    let got = agent.open(answer);
    assert_eq!(
        (got.len(), got[0].id, got[0].command.as_str()),
        (1, id, "uptime")
    );

    // It is not told again of what it has, and waits.
    assert_eq!(agent.poll(&mut world, &[id], None), None);
    assert_eq!(view(&mut world, id).state, OrderState::Running);
    // A part that comes twice, or out of place, counts once.
    for part in [
        Agent::part(id, 0, b"up ", None),
        Agent::part(id, 0, b"up ", None),
        Agent::part(id, 9, b"lost", None),
        Agent::part(id, 3, b"4 days\n", Some(3)),
    ] {
        assert!(agent.poll(&mut world, &[id], part).is_some());
    }
    let ended = view(&mut world, id);
    assert_eq!(ended.state, OrderState::Ended { status: 3 });
    assert_eq!(
        (ended.output.as_slice(), ended.printed),
        (&b"up 4 days\n"[..], 10)
    );
    let end = |it: &EventKind| matches!(it, EventKind::OrderEnded { status: 3, .. });
    assert_eq!(world.count(end), 1);
    // Nothing is left to do.
    assert_eq!(agent.poll(&mut world, &[], None), None);
}

#[test]
fn orders_go_only_to_nodes_that_are_there_and_to_no_other_boot() {
    let mut world = world(2, 2);
    let mut agent = Agent::of(&world, 0);
    assert_eq!(agent.poll(&mut world, &[], None), None);
    let name = name(&world, 0);
    let (mut orders, _) = order(&mut world, "@all");
    orders.sort_by_key(|it| it.node != name);
    assert!(orders[0].id.is_some());
    assert_eq!(orders[1].id, None);
    assert!(
        matches!(&orders[1].state, OrderState::Lost { cause } if cause.contains("not connected"))
    );
    // The node boots anew before it gets the order: the next boot does not run it.
    let now = world.now;
    world.machines[0].power_cycle(now);
    world.boot_all(5 * MINUTE);
    // Nor is it given to the agent that ended with the boot before, before there is another one.
    assert_eq!(order(&mut world, &name).0[0].id, None);
    let mut next = Agent::of(&world, 0);
    assert_ne!(next.boot, agent.boot);
    assert_eq!(next.poll(&mut world, &[], None), None);
    let lost = view(&mut world, orders[0].id.unwrap());
    assert!(matches!(&lost.state, OrderState::Lost { cause } if cause.contains("booted anew")));

    // An agent that is silent for long gets none, and what it was given is lost at some time.
    let (orders, _) = order(&mut world, &name);
    let id = orders[0].id.expect("it was given");
    world.run_until(4 * MINUTE, |_| false);
    assert!(matches!(
        view(&mut world, id).state,
        OrderState::Lost { .. }
    ));
    assert_eq!(order(&mut world, &name).0[0].id, None);
    world.restart();
    let gone = view(&mut world, id);
    assert!(matches!(&gone.state, OrderState::Lost { cause } if cause.contains("daemon")));
    // After a restart of the daemon the running node's next poll is as good as any.
    let mut agent = Agent::of(&world, 0);
    assert_eq!(agent.poll(&mut world, &[], None), None);
    let again = order(&mut world, &name).0[0].id.expect("it was given");
    assert!(again > id, "ids are never given twice");
}

#[test]
fn nobody_else_gets_orders() {
    let mut world = world(3, 2);
    let agent = Agent::of(&world, 0);
    let other = Agent::of(&world, 1);
    let polls = [
        Vec::new(),
        b"SLC1".to_vec(),
        Poll::default().seal(agent.boot, &other.key, [1; 12]),
        Poll::default().seal(BootId([9; 8]), &agent.key, [1; 12]),
    ];
    let count = polls.len();
    for poll in polls {
        let outputs = post(&mut world, agent.peer, poll);
        let [Output::Http(answer)] = outputs.as_slice() else {
            panic!("{outputs:?}");
        };
        assert_eq!(answer.status, 403);
    }
    let refused = |it: &EventKind| matches!(it, EventKind::PollRefused { .. });
    assert_eq!(world.count(refused), count);
    // One node's part does not count for another one's order.
    let (mut agent, mut other) = (agent, other);
    assert_eq!(agent.poll(&mut world, &[], None), None);
    assert_eq!(other.poll(&mut world, &[], None), None);
    let name = name(&world, 0);
    let id = order(&mut world, &name).0[0].id.expect("it was given");
    assert!(
        other
            .poll(&mut world, &[id], Agent::part(id, 0, b"x", Some(0)))
            .is_some()
    );
    assert_eq!(view(&mut world, id).state, OrderState::Waiting);
}

#[test]
fn only_an_order_that_runs_may_upload_and_only_for_its_own_boot() {
    let mut world = world(6, 2);
    let (mut agent, other) = (Agent::of(&world, 0), Agent::of(&world, 1));
    assert_eq!(agent.poll(&mut world, &[], None), None);
    let name = name(&world, 0);
    let id = order(&mut world, &name).0[0].id.expect("it was given");
    let leave = |world: &World, boot, order| world.engine.upload_leave(Claim { boot, order });
    let given = UploadLeave {
        key: agent.key,
        max_bytes: UPLOAD_BYTES,
    };
    assert_eq!(leave(&world, agent.boot, id), Some(given));
    assert_eq!(leave(&world, other.boot, id), None);
    assert_eq!(leave(&world, agent.boot, id + 1), None);
    let end = Agent::part(id, 0, b"", Some(0));
    assert!(agent.poll(&mut world, &[id], end).is_some());
    assert_eq!(leave(&world, agent.boot, id), None);
    // One that nobody expects an upload of.
    let plain = Command::Order {
        nodes: name,
        script: "uptime".into(),
        seconds: 60,
        upload_bytes: 0,
    };
    let Ok(CommandReply::Orders(orders)) = world.command(plain) else {
        panic!("it was given");
    };
    let id = orders[0].id.expect("it was given");
    assert_eq!(leave(&world, agent.boot, id), None);
}

#[test]
fn outputs_and_orders_are_bounded() {
    let mut world = world(4, 1);
    let mut agent = Agent::of(&world, 0);
    agent.poll(&mut world, &[], None);
    let ids: Vec<Option<u64>> = (0..17)
        .map(|_| order(&mut world, "node1").0[0].id)
        .collect();
    assert!(
        ids[..16].iter().all(Option::is_some) && ids[16].is_none(),
        "{ids:?}"
    );
    let id = ids[0].expect("it was given");
    let block = vec![b'x'; 8 << 10];
    for index in 0..160 {
        let offset = index * block.len() as u64;
        agent.poll(&mut world, &[], Agent::part(id, offset, &block, None));
    }
    let full = view(&mut world, id);
    assert_eq!(full.output.len(), MAX_OUTPUT_BYTES);
    assert_eq!(full.printed, 160 * block.len() as u64);
    let long = Command::Order {
        nodes: "node1".into(),
        script: "x".repeat(9000),
        seconds: 60,
        upload_bytes: UPLOAD_BYTES,
    };
    assert!(matches!(
        world.command(long),
        Err(CommandError::BadSetting { .. })
    ));
    // What has ended long ago is forgotten.
    world.run_until(60 * MINUTE, |_| false);
    assert!(world.engine.next_deadline().is_none_or(|it| it > world.now));
    assert_eq!(view(&mut world, id).node, "");
}

#[test]
fn an_image_for_once_is_booted_once() {
    let mut world = World::with_next(5);
    world.power_on(1);
    world.boot_all(5 * MINUTE);
    let booted = |world: &World| {
        let node = world.engine.node(&mac(0)).expect("a node");
        (node.boot.and_then(|boot| boot.image), node.next_image)
    };
    assert_eq!(booted(&world), (Some(DIGEST), Some(DIGEST)));
    let once = |image: &str| Command::NodeSet {
        node: "node1".into(),
        change: NodeChange {
            once: Some(Setting::To(image.into())),
            ..NodeChange::default()
        },
    };
    assert!(world.command(once("none")).is_err());
    world.command(once("next")).unwrap();
    world.restart();
    assert_eq!(booted(&world), (Some(DIGEST), Some(NEXT)));
    let power_cycle = |world: &mut World| {
        let now = world.now;
        world.machines[0].power_cycle(now);
        world.boot_all(5 * MINUTE);
    };
    power_cycle(&mut world);
    assert_eq!(booted(&world), (Some(NEXT), Some(DIGEST)));
    power_cycle(&mut world);
    assert_eq!(booted(&world), (Some(DIGEST), Some(DIGEST)));
}
