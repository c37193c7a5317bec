//! Only a node whose firmware is iPXE just now is told that there is no IPv6 router.

use std::cell::Cell;
use std::net::Ipv6Addr;

use wire::dhcp4::{MAX_BUDGET_BYTES, option};

use super::machine::Chain;
use super::*;
use crate::command::NodeChange;
use crate::config::UnknownPolicy;

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
const OTHER_INTERFACE: InterfaceId = InterfaceId(2);

fn link_local(index: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, index as u16)
}

fn solicits(index: usize, interface: InterfaceId) -> Input {
    Input::RouterSolicitation {
        interface,
        source: link_local(index),
        mac: mac(index),
    }
}

/// How often a machine is answered when it asks so often; all that is sent goes to it.
fn answers(engine: &mut Engine, now: Timestamp, asked: &Input, times: usize) -> usize {
    let &Input::RouterSolicitation {
        interface: on,
        source,
        ..
    } = asked
    else {
        panic!("no solicitation");
    };
    let mut answers = 0;
    for _ in 0..times {
        for output in engine.handle(now, asked.clone()) {
            match output {
                Output::NoRouter {
                    interface,
                    destination,
                } => {
                    assert_eq!((interface, destination), (on, source));
                    answers += 1;
                }
                Output::Event(event) => assert_eq!(event.kind, EventKind::RoutersDenied),
                other => panic!("{other:?}"),
            }
        }
    }
    answers
}

/// Whether a machine would be told so now.
fn is_answered(world: &World, index: usize) -> bool {
    let asked = solicits(index, INTERFACE);
    answers(&mut world.engine.clone(), world.now, &asked, 1) == 1
}

fn name_it(world: &mut World, index: usize) {
    let node = mac(index).to_string();
    let change = NodeChange {
        name: Some(format!("pc{index}")),
        ..NodeChange::default()
    };
    let set = Command::NodeSet { node, change };
    world.command(set).expect("a node");
}

/// A DISCOVER of a machine.
fn discover(world: &mut World, index: usize, class: &[u8], is_ipxe: bool) -> Message {
    let mut message = Message::request(mac(index), world.rng.next_u32());
    message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
    message.push(option::CLASS, class);
    message.push(option::ARCHITECTURE, [0, 7]);
    if is_ipxe {
        message.push(option::USER_CLASS, *b"iPXE");
    }
    message
}

fn hears(world: &mut World, message: &Message) {
    world.input(dhcp(message.encode(MAX_BUDGET_BYTES)));
}

const PXE: &[u8] = b"PXEClient:Arch:00007:UNDI:003001";

#[test]
fn a_node_is_answered_from_its_asking_as_ipxe_until_it_fetches_its_kernel() {
    for mode in [DhcpMode::Authoritative, DhcpMode::Proxy] {
        for (seed, network) in [(1, GOOD), (2, BAD), (3, BAD)] {
            let mut world = World::new(seed, network, config());
            world.config.interfaces[0].dhcp = mode;
            if mode == DhcpMode::Proxy {
                world.other = Some(OtherServer::default());
            }
            world.restart();
            (0..2).for_each(|index| name_it(&mut world, index));
            world.power_on(2);
            world.machines[0].chain = Chain::BiosIpxe;
            let (times, fetched) = (Cell::new(0), Cell::new(false));
            let up = world.run_until(30 * MINUTE, |world| {
                assert!(!is_answered(world, 1), "GRUB's\n{}", world.story());
                assert!(!is_answered(world, 7), "nobody's\n{}", world.story());
                let boot = world.engine.boots.current(mac(0));
                let stage = boot.and_then(crate::boots::reached);
                fetched.set(stage >= Some(crate::Stage::Kernel));
                if is_answered(world, 0) {
                    assert!(!fetched.get(), "its kernel's\n{}", world.story());
                    assert!(world.machines[0].is_ipxe, "{}", world.story());
                    times.set(times.get() + 1);
                }
                world.all_up()
            });
            assert!(up, "{}", world.story());
            assert!(times.get() > 0, "{}", world.story());
        }
    }
}

#[test]
fn answers_are_bounded_and_told_of_once() {
    let mut world = World::new(1, GOOD, config());
    name_it(&mut world, 0);
    for _ in 0..2 {
        let asks = discover(&mut world, 0, PXE, true);
        hears(&mut world, &asks);
        let now = world.now;
        let engine = &mut world.engine;
        assert_eq!(answers(engine, now, &solicits(0, OTHER_INTERFACE), 100), 0);
        assert_eq!(answers(engine, now, &solicits(0, INTERFACE), 1000), 6);
    }
    let asks = discover(&mut world, 0, PXE, true);
    hears(&mut world, &asks);
    for _ in 0..3 {
        world.input(solicits(0, INTERFACE));
    }
    assert_eq!(world.count(|it| *it == EventKind::RoutersDenied), 1);
}

/// What happens to a node, by name.
type Case = (&'static str, fn(&mut World));

#[test]
fn it_is_forgotten_who_is_ipxe_no_longer() {
    let cases: [Case; 6] = [
        ("time", |world| world.now = world.now + 61 * SECOND),
        ("other firmware", |world| {
            let asks = discover(world, 0, PXE, false);
            hears(world, &asks);
        }),
        ("a system", |world| {
            let asks = discover(world, 0, b"systemd", false);
            hears(world, &asks);
        }),
        ("a relay", |world| {
            let mut asks = discover(world, 0, PXE, true);
            asks.giaddr = Ipv4Addr::new(10, 77, 0, 9);
            hears(world, &asks);
        }),
        ("no node", |world| {
            let node = mac(0).to_string();
            world
                .command(Command::NodeForget { node })
                .expect("a command");
        }),
        ("a restart", World::restart),
    ];
    for (case, then) in cases {
        let mut world = World::new(1, GOOD, config());
        name_it(&mut world, 0);
        assert!(!is_answered(&world, 0), "{case}");
        let asks = discover(&mut world, 0, PXE, true);
        hears(&mut world, &asks);
        world.now = world.now + 59 * SECOND;
        assert!(is_answered(&world, 0), "{case}");
        then(&mut world);
        assert!(!is_answered(&world, 0), "{case}");
    }
}

#[test]
fn strangers_are_told_nothing() {
    for policy in [UnknownPolicy::Approve, UnknownPolicy::Ignore] {
        let mut world = World::new(1, GOOD, config());
        world.config.unknown = Some(policy);
        world.restart();
        let asks = discover(&mut world, 0, PXE, true);
        hears(&mut world, &asks);
        assert!(!is_answered(&world, 0), "{policy:?}");
        assert_eq!(
            world.engine.soliciting,
            crate::solicit::Soliciting::default()
        );
    }
}
