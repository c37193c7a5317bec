//! What happens on real networks, played through.

use std::collections::BTreeSet;

use wire::beacon::{Beacon, BeaconEvent, Kind};
use wire::dhcp4::{MAX_BUDGET_BYTES, option};
use wire::identity::Request as IdentityRequest;
use wire::stage::Stage;

use super::*;
use crate::apply::{Inventory, NodeEntry};
use crate::command::{CommandError, NodeChange, Setting};
use crate::config::Interface;
use crate::record::Failure;

const MINUTE: Duration = Duration::from_secs(60);

fn world(seed: u8, network: Network) -> World {
    World::new(seed, network, config())
}

#[test]
fn one_node_boots_to_multi_user() {
    let mut world = world(1, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    let view = world.engine.node(&mac(0)).expect("a node");
    let boot = view.boot.expect("a boot");
    let stages: Vec<_> = boot.timeline.iter().map(|it| it.stage).collect();
    assert_eq!(stages, Stage::ALL);
    assert!(boot.timeline.is_sorted_by_key(|it| it.at));
    assert_eq!(
        (boot.started, boot.image),
        (boot.timeline[0].at, Some(DIGEST))
    );
    assert_eq!(boot.initrd_bytes, 30_001);
    assert!(boot.loader_bytes > 3000 + 1468 * 4 + 20_000);
    assert_eq!(world.machines[0].hostname.as_deref(), Some("node1"));
    assert!(view.nfs_alive && boot.failure.is_none());
    assert_eq!(view.address, world.machines[0].address(world.now));
    assert_eq!(world.count(|it| matches!(it, EventKind::Up { .. })), 1);
    assert_eq!(
        world.count(|it| it.severity() == crate::Severity::Warning),
        0
    );
}

#[test]
fn thirty_nodes_at_once_on_a_bad_network() {
    for seed in 0..6 {
        let mut world = world(seed, BAD);
        world.power_on(30);
        world.boot_all(30 * MINUTE);
        let names: BTreeSet<_> = world
            .machines
            .iter()
            .map(|it| it.hostname.clone())
            .collect();
        assert_eq!(names.len(), 30);
        for machine in &world.machines {
            let boot = world.engine.node(&machine.mac).and_then(|it| it.boot);
            let stage = boot.and_then(|it| it.stage);
            assert_eq!(stage, Some(Stage::MultiUser), "{}", world.story());
        }
    }
}

/// The outputs of an undisturbed boot of two nodes.
fn undisturbed(seed: u8, network: Network) -> World {
    let mut world = world(seed, network);
    world.power_on(2);
    world.boot_all(20 * MINUTE);
    world
}

#[test]
fn the_daemon_may_die_between_any_two_outputs() {
    for (seed, network) in [(1, GOOD), (2, BAD)] {
        for killed_before in 0..undisturbed(seed, network).outputs {
            let mut world = world(seed, network);
            world.killed_before = Some(killed_before);
            world.power_on(2);
            world.boot_all(20 * MINUTE);
            for machine in &world.machines {
                let view = world.engine.node(&machine.mac).expect("a node");
                assert_eq!(view.boot.and_then(|it| it.stage), Some(Stage::MultiUser));
            }
        }
    }
}

#[test]
fn restart_between_offer_and_request() {
    let mut world = world(1, GOOD);
    world.power_on(1);
    let offered = |world: &World| world.count(|it| matches!(it, EventKind::Offer { .. })) == 1;
    assert!(world.run_until(MINUTE, offered));
    world.restart();
    world.boot_all(2 * MINUTE);
    assert_eq!(world.count(|it| matches!(it, EventKind::Nak { .. })), 0);
}

#[test]
fn power_cycles_in_the_middle() {
    let mut world = world(9, BAD);
    world.power_on(8);
    for _ in 0..20 {
        world.run_until(Duration::from_secs(7), |_| false);
        let index = world.rng.next_u32() as usize % 8;
        let now = world.now;
        world.machines[index].power_cycle(now);
    }
    world.boot_all(20 * MINUTE);
}

#[test]
fn finite_leases_are_renewed() {
    let mut config = config();
    config.node_lease = Some(Duration::from_secs(600));
    let mut world = World::new(3, BAD, config);
    world.power_on(5);
    world.boot_all(20 * MINUTE);
    let addresses = |world: &World| -> Vec<_> {
        world
            .machines
            .iter()
            .map(|it| it.address(world.now))
            .collect()
    };
    let before = addresses(&world);
    world.run_until(100 * MINUTE, |_| false);
    assert_eq!(addresses(&world), before);
}

#[test]
fn a_nodes_lease_does_not_end() {
    let mut world = world(3, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    assert_eq!(world.machines[0].held.map(|it| it.until), Some(None));
    // What nobody meant to boot gets an address for a while.
    let wanted = Some([10, 77, 0, 200].into());
    world.input(dhcp(leases::ask(1, MessageType::Request, wanted)));
    let strangers = world.records.values().filter(|record| match record {
        Record::Lease(lease) => lease.expires.is_some(),
        _ => false,
    });
    assert_eq!(strangers.count(), 1);
}

#[test]
fn users_cannot_give_up_the_address_of_a_node() {
    let mut world = undisturbed(1, GOOD);
    let held = world.machines[0].held.expect("an address").address;
    let owner = |world: &World| world.records.get(&format!("lease/{held}")).cloned();
    let before = owner(&world);
    for (kind, port, is_kept) in [
        (MessageType::Release, 40_000, true),
        (MessageType::Decline, 40_000, true),
        (MessageType::Decline, 68, false),
    ] {
        let mut message = Message::request(mac(0), 1);
        message.push(option::MESSAGE_TYPE, [kind.code()]);
        message.push(option::SERVER_ID, SERVER.octets());
        message.push(option::REQUESTED_ADDRESS, held.octets());
        message.ciaddr = held;
        world.input(Input::Dhcp {
            interface: INTERFACE,
            source: SocketAddrV4::new(held, port),
            packet: message.encode(MAX_BUDGET_BYTES),
        });
        assert_eq!(
            owner(&world) == before,
            is_kept,
            "{kind:?} from port {port}"
        );
    }
}

#[test]
fn the_pool_runs_out_and_recovers() {
    let mut config = config();
    let first = Ipv4Addr::new(10, 77, 0, 100);
    config.interfaces = vec![Interface {
        pool: Some((first, Ipv4Addr::new(10, 77, 0, 103))),
        ..Interface::new(INTERFACE, SERVER, 24)
    }];
    let mut world = World::new(4, GOOD, config);
    world.power_on(6);
    let up = |world: &World| {
        world
            .machines
            .iter()
            .filter(|it| it.step == Step::Up)
            .count()
    };
    assert!(!world.run_until(10 * MINUTE, |world| up(world) == 5));
    assert_eq!(up(&world), 4);
    let full = |it: &EventKind| matches!(it, EventKind::PoolExhausted { size: 4, .. });
    assert!(world.count(full) > 0);
    // Two of those that have an address go for good.
    for _ in 0..2 {
        let machine = world.machines.iter().position(|it| it.step == Step::Up);
        let machine = machine.expect("one that is up");
        let gone = world.machines.remove(machine);
        let node = gone.mac.to_string();
        let address = gone.held.expect("an address").address;
        world.input(Input::Nfs {
            address,
            activity: NfsActivity::Gone,
        });
        world
            .command(Command::NodeForget { node })
            .expect("forgotten");
        world
            .machines
            .iter_mut()
            .enumerate()
            .for_each(|(at, it)| it.index = at);
    }
    world.boot_all(10 * MINUTE);
}

/// A DISCOVER of a machine that nobody knows.
fn stranger(number: u32) -> Vec<u8> {
    let [a, b, c, d] = number.to_be_bytes();
    let mut message = Message::request(Mac([0x02, 0xff, a, b, c, d]), number);
    message.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
    message.push(option::CLASS, *b"PXEClient:Arch:00007:UNDI:003001");
    message.push(option::ARCHITECTURE, [0, 7]);
    message.encode(MAX_BUDGET_BYTES)
}

#[test]
fn a_known_node_boots_through_a_flood() {
    let mut config = config();
    config.node_lease = Some(Duration::from_secs(300));
    config.unknown_per_second = 500;
    let mut world = World::new(5, GOOD, config);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    // Off for so long that its lease has ended.
    let back = world.now + Duration::from_secs(3600);
    let address = world.machines[0].held.expect("an address").address;
    world.machines[0].power_cycle(back);
    world.input(Input::Nfs {
        address,
        activity: NfsActivity::Gone,
    });
    world.run_until(Duration::from_secs(3590), |_| false);
    world.events.clear();
    let mut numbers = 0..100_000;
    while numbers.start < numbers.end {
        for number in numbers.by_ref().take(500) {
            world.input(dhcp(stranger(number)));
        }
        world
            .queue
            .retain(|_, it| !matches!(it, Packet::DhcpReply(reply) if is_stranger(reply)));
        world.run_until(Duration::from_millis(200), |_| false);
        world.events.retain(|it| {
            it.mac == Some(mac(0)) || matches!(it.kind, EventKind::RateLimited { .. })
        });
    }
    assert!(world.all_up(), "{}", world.story());
    assert_eq!(world.machines[0].address(world.now), Some(address));
    assert!(world.count(|it| matches!(it, EventKind::RateLimited { .. })) > 0);
    assert!(world.engine.nodes().len() == 1, "strangers became nodes");
    assert!(world.records.len() < 400, "{}", world.records.len());
}

fn is_stranger(reply: &[u8]) -> bool {
    Message::decode(reply).is_ok_and(|reply| reply.mac.0[0] == 0x02)
}

#[test]
fn an_identity_goes_to_one_key_also_after_a_restart() {
    let mut world = undisturbed(1, GOOD);
    let boot = world.machines[0].boot.expect("a boot");
    let thief = IdentityRequest::new(boot.boot, mac(0), &[99; 32]);
    let peer = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 9), 1);
    for _ in 0..2 {
        let body = thief.encode(&boot.token);
        let request = HttpRequest {
            method: "POST".into(),
            target: "/identity".into(),
            body,
        };
        let answer = world.ask(Input::Http { peer, request }).expect("an answer");
        assert_eq!(answer.status, 403);
        world.restart();
    }
    assert_eq!(
        world.count(|it| matches!(it, EventKind::IdentityRefused { .. })),
        2
    );
    assert_eq!(world.count(|it| matches!(it, EventKind::IdentityGiven)), 2);
}

#[test]
fn a_boot_that_hangs_is_reported_once_also_after_a_restart() {
    for restarts in [false, true] {
        let mut world = world(6, GOOD);
        world.power_on(1);
        world.machines[0].hangs_before = Some("grubx64.efi");
        world.run_until(MINUTE, |_| false);
        if restarts {
            world.restart();
        }
        world.run_until(60 * MINUTE, |_| false);
        let stuck: Vec<_> = world
            .events
            .iter()
            .filter_map(|event| match &event.kind {
                EventKind::Stuck {
                    stage,
                    for_ms,
                    cause,
                } => Some((*stage, *for_ms, cause.contains("shim"))),
                _ => None,
            })
            .collect();
        assert_eq!(stuck, [(Stage::Loader, 180_000, true)]);
        let failure = failure_of(&world, 0).expect("a failure");
        assert_eq!(failure.stage, Stage::Grub);
        assert!(failure.cause.contains("shim"), "{}", failure.cause);
    }
}

/// Why a machine's boot does not go on, as users see it.
fn failure_of(world: &World, index: usize) -> Option<Failure> {
    world.engine.node(&mac(index))?.boot?.failure
}

#[test]
fn a_missing_loader_is_an_event_with_its_cause() {
    let mut world = world(7, GOOD);
    let cause = "the image has no /usr/lib/grub: install grub-efi-amd64-signed";
    for file in [BootFile::Grub, BootFile::IpxeUefi] {
        world.images[0].files.insert(file, Err(cause.into()));
    }
    world.show_images();
    world.power_on(1);
    assert!(!world.run_until(MINUTE, World::all_up));
    let told = world
        .events
        .iter()
        .find(|it| it.node.is_some() && matches!(it.kind, EventKind::Failed { .. }));
    let told = told.expect("an event");
    assert_eq!(told.node.as_deref(), Some("node1"));
    let failure = failure_of(&world, 0).expect("a failure");
    assert_eq!(failure.stage, Stage::Address);
    assert_eq!(
        failure.cause,
        format!("nothing to boot it by: {cause}; and {cause}")
    );
    // Repaired, it boots without a hand on the machine.
    world.images = vec![image()];
    world.show_images();
    world.boot_all(5 * MINUTE);
    assert_eq!(failure_of(&world, 0), None);
}

/// The images' one tag names another version from now on.
fn retag(world: &mut World, digest: Digest) {
    world.images[0].digest = digest;
    world.show_images();
}

/// Boots the first machine anew, to the end; the version that it runs then.
fn reboot(world: &mut World) -> Option<Digest> {
    let now = world.now;
    world.machines[0].power_cycle(now);
    world.boot_all(20 * MINUTE);
    let boot = world.engine.node(&mac(0))?.boot?;
    assert_eq!(boot.stage, Some(Stage::MultiUser));
    boot.image
}

fn fell_back(world: &World) -> usize {
    world.count(|it| matches!(it, EventKind::FellBack { .. }))
}

#[test]
fn a_version_that_fails_twice_makes_way_for_the_last_that_came_up() {
    for (seed, network) in [(1, GOOD), (2, BAD), (3, BAD)] {
        let mut world = world(seed, network);
        world.power_on(1);
        world.boot_all(20 * MINUTE);
        retag(&mut world, NEXT);
        world.machines[0].broken = vec![NEXT];
        assert_eq!(reboot(&mut world), Some(DIGEST), "{}", world.story());
        assert_eq!(fell_back(&world), 1);
        assert!(world.machines[0].died >= 2);
        let view = world.engine.node(&mac(0)).expect("a node");
        assert_eq!(
            (view.failed_image, view.next_image),
            (Some(NEXT), Some(DIGEST))
        );
        // It stays, also over a restart, and what it needs is not collected.
        world.restart();
        let died = world.machines[0].died;
        assert_eq!(reboot(&mut world), Some(DIGEST));
        assert_eq!((fell_back(&world), world.machines[0].died), (1, died));
        assert!(world.engine.versions_in_use().contains(&DIGEST));
        // Repaired, and tried again because a user says so.
        world.machines[0].broken.clear();
        let again = NodeChange {
            image: Some(Setting::To("debian".into())),
            ..NodeChange::default()
        };
        assert!(set(&mut world, "node1", again).is_ok());
        assert_eq!(reboot(&mut world), Some(NEXT));
        assert_eq!(fell_back(&world), 1);
    }
}

#[test]
fn a_node_follows_its_tag_from_the_version_that_failed_to_the_next() {
    let mut world = world(4, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    retag(&mut world, NEXT);
    world.machines[0].broken = vec![NEXT];
    reboot(&mut world);
    // Rolled back: what failed does not count any more.
    retag(&mut world, DIGEST);
    let view = world.engine.node(&mac(0)).expect("a node");
    assert_eq!((view.failed_image, view.next_image), (None, Some(DIGEST)));
}

#[test]
fn an_initramfs_that_reports_nothing_is_judged_by_what_it_mounts() {
    let mut world = world(4, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    world.images[0].foreign_initrd = true;
    retag(&mut world, NEXT);
    world.machines[0].silent = true;
    let mut boot = |mounts: bool| {
        let now = world.now;
        world.machines[0].power_cycle(now);
        world.boot_all(5 * MINUTE);
        let address = world.machines[0].held.expect("an address").address;
        for activity in [NfsActivity::Mounted, NfsActivity::Gone] {
            if mounts {
                world.input(Input::Nfs { address, activity });
            }
        }
        let failure = failure_of(&world, 0);
        world.run_until(20 * MINUTE, |_| false);
        let view = world.engine.node(&mac(0)).expect("a node");
        let late = failure_of(&world, 0);
        let boot = view.boot.expect("a boot");
        assert_eq!(failure, None);
        (boot.stage, late.map(|it| it.cause), fell_back(&world))
    };
    for _ in 0..3 {
        assert_eq!(boot(true), (Some(Stage::Mount), None, 0));
    }
    let (stage, cause, _) = boot(false);
    assert_eq!(stage, Some(Stage::Initrd));
    let cause = cause.expect("a cause");
    assert!(cause.contains("slate initrd use"), "{cause}");
}

#[test]
fn drivers_are_noted_within_bounds_and_outlive_the_next_start() {
    let mut world = world(4, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    let args = world.machines[0].boot.expect("a boot");
    let mut seq = 100;
    let mut tell = |world: &mut World, text: &str| {
        seq += 1;
        let beacon = Beacon {
            boot: args.boot,
            mac: mac(0),
            events: vec![BeaconEvent {
                seq,
                monotonic_us: 0,
                kind: Kind::Drivers,
                stage: Stage::Init,
                text: text.to_owned(),
            }],
        };
        let from = world.machines[0].held.expect("an address").address;
        world.input(Input::Beacon {
            peer: SocketAddrV4::new(from, 40_001),
            datagram: beacon.encode(&args.token),
        });
    };
    tell(&mut world, "virtio_net ../evil a;b");
    tell(&mut world, "igb virtio_net");
    let drivers = |world: &World| world.engine.node(&mac(0)).expect("a node").drivers;
    assert_eq!(
        drivers(&world),
        ["igb", "virtio_net"].map(str::to_owned).into()
    );
    let now = world.now;
    world.machines[0].power_cycle(now);
    world.boot_all(2 * MINUTE);
    world.restart();
    assert_eq!(
        drivers(&world).len(),
        2,
        "what is not told anew is not forgotten"
    );
}

/// A kernel's words in the order in which a real one sends them.
const PANIC: [&str; 6] = [
    "BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "---[ end trace 0000000000000000 ]---",
    "Kernel panic - not syncing: Fatal exception",
    "Kernel Offset: 0x1000000 from 0xffffffff81000000",
    "---[ end Kernel panic - not syncing: Fatal exception ]---",
];

/// Tells the server a kernel's words from that address.
fn kernel_says(world: &mut World, from: Ipv4Addr, words: &[&str]) -> Vec<EventKind> {
    let before = world.events.len();
    for (sequence, text) in words.iter().enumerate() {
        world.input(Input::Beacon {
            peer: SocketAddrV4::new(from, 6665),
            datagram: format!("0,{sequence},1,-;{text}\n").into_bytes(),
        });
    }
    let events = world.events[before..].iter().map(|it| it.kind.clone());
    events.collect()
}

#[test]
fn a_panic_is_told_once_and_kept_with_the_boot() {
    let mut world = world(4, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    let from = world.machines[0].held.expect("an address").address;
    kernel_says(&mut world, from, &["usb 1-1: new device"; 30]);
    let told = kernel_says(&mut world, from, &PANIC);
    let expected = [
        EventKind::KernelTrouble {
            text: PANIC[0].into(),
        },
        EventKind::Panicked {
            cause: "Fatal exception".into(),
        },
    ];
    assert_eq!(told, expected);
    assert_eq!(kernel_says(&mut world, from, &PANIC), [], "said again");
    world.restart();
    let boot = world.engine.node(&mac(0)).expect("a node").boot;
    let boot = boot.expect("a boot");
    assert_eq!(
        boot.failure.map(|it| it.cause),
        Some("kernel panic: Fatal exception".into())
    );
    assert_eq!(boot.kernel[boot.kernel.len() - PANIC.len()..], PANIC);
    assert!(boot.kernel.len() < PANIC.len() + 30, "{:?}", boot.kernel);
    assert_eq!(fell_back(&world), 0);

    // The next boot's panic is another one.
    let now = world.now;
    world.machines[0].power_cycle(now);
    world.boot_all(2 * MINUTE);
    assert_eq!(kernel_says(&mut world, from, &PANIC).len(), 2);
}

#[test]
fn kernels_of_strangers_are_not_heard_and_nobody_can_say_too_much() {
    let mut world = world(4, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    assert_eq!(kernel_says(&mut world, [10, 77, 0, 250].into(), &PANIC), []);
    let from = world.machines[0].held.expect("an address").address;
    kernel_says(&mut world, from, &PANIC[..1]);
    let flood = vec!["x".repeat(5000); 2000];
    let flood: Vec<&str> = flood.iter().map(String::as_str).collect();
    assert_eq!(kernel_says(&mut world, from, &flood), []);
    kernel_says(&mut world, from, &["---[ end trace 0 ]---"; 100]);
    let boot = world.engine.node(&mac(0)).expect("a node").boot;
    let kernel = boot.expect("a boot").kernel;
    assert_eq!(kernel[0], PANIC[0], "the beginning is kept");
    assert!(kernel.len() <= 80 && kernel.iter().all(|it| it.len() <= 200));
}

#[test]
fn another_initramfs_is_made_ready_anew() {
    let mut world = world(4, GOOD);
    world.run_until(MINUTE, |_| false);
    let mut orders = |foreign: bool| {
        world.images[0].foreign_initrd = foreign;
        let images = Input::Images {
            images: world.images.clone(),
            versions: [DIGEST].into(),
            no_selinux: BTreeMap::new(),
        };
        let outputs = world.engine.handle(world.now, images);
        let ordered = |it: &&Output| {
            matches!(
                it,
                Output::Prepare {
                    version: DIGEST,
                    ..
                }
            )
        };
        outputs.iter().filter(ordered).count()
    };
    let counts = [false, true, true, false].map(&mut orders);
    assert_eq!(counts, [0, 1, 0, 1]);
}

#[test]
fn a_node_that_nothing_came_up_on_goes_on_with_its_image() {
    let mut world = world(5, GOOD);
    world.power_on(1);
    world.machines[0].broken = vec![DIGEST];
    assert!(!world.run_until(30 * MINUTE, World::all_up));
    assert!(world.machines[0].died > 5);
    assert_eq!(fell_back(&world), 0);
    world.machines[0].broken.clear();
    world.boot_all(20 * MINUTE);
}

#[test]
fn the_last_boot_that_came_up_is_remembered_however_many_fail() {
    let mut world = world(6, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    world.machines[0].broken = vec![DIGEST];
    let now = world.now;
    world.machines[0].power_cycle(now);
    assert!(!world.run_until(60 * MINUTE, World::all_up));
    assert!(world.machines[0].died > 10);
    let view = world.engine.node(&mac(0)).expect("a node");
    let last = view.former_boots.last().expect("former boots");
    assert_eq!(last.stage, Some(Stage::MultiUser));
    assert!(view.former_boots.len() <= 5 && world.records.len() < 20);
}

#[test]
fn a_loader_waits_until_its_initramfs_is_made() {
    let mut world = world(7, GOOD);
    world.power_on(1);
    world.boot_all(2 * MINUTE);
    let waits = |world: &World| world.count(|it| matches!(it, EventKind::Waits { .. }));
    assert_eq!(waits(&world), 1);
    // For what a node is set to, or comes back to, it is made before the node asks.
    retag(&mut world, NEXT);
    world.run_until(MINUTE, |_| false);
    assert_eq!(reboot(&mut world), Some(NEXT));
    assert_eq!(waits(&world), 1);
}

#[test]
fn an_initramfs_that_cannot_be_made_is_told_and_tried_again() {
    let mut world = world(8, GOOD);
    world.making_fails = Some("no space left on device".into());
    world.power_on(1);
    let failed = |world: &World| failure_of(world, 0).is_some();
    assert!(world.run_until(MINUTE, failed), "{}", world.story());
    let failure = failure_of(&world, 0).expect("a failure");
    assert_eq!(
        (failure.stage, failure.cause.as_str()),
        (Stage::Config, "no space left on device")
    );
    world.making_fails = None;
    world.boot_all(10 * MINUTE);
}

/// A change of one setting.
fn set(world: &mut World, node: &str, change: NodeChange) -> Result<CommandReply, CommandError> {
    let node = node.to_owned();
    world.command(Command::NodeSet { node, change })
}

fn name(name: &str) -> NodeChange {
    NodeChange {
        name: Some(name.into()),
        ..NodeChange::default()
    }
}

fn address(address: [u8; 4]) -> NodeChange {
    NodeChange {
        address: Some(Setting::To(address.into())),
        ..NodeChange::default()
    }
}

#[test]
fn node_settings_are_checked_before_anything_changes() {
    let mut world = undisturbed(1, GOOD);
    let before = world.records.clone();
    let other = world.machines[1].held.expect("an address").address.octets();
    let image = |image: &str| NodeChange {
        image: Some(Setting::To(image.into())),
        ..NodeChange::default()
    };
    let args = |args: &str| NodeChange {
        kernel_args: Some(args.into()),
        ..NodeChange::default()
    };
    for change in [
        name(""),
        name("-a"),
        name("a.b"),
        name("a b"),
        name(&"a".repeat(64)),
        name("NODE2"),
        address([10, 78, 0, 5]),
        address([10, 77, 0, 0]),
        address([10, 77, 0, 255]),
        address(SERVER.octets()),
        address(other),
        image("no such"),
        image("fedora"),
        args("a\nb"),
        args("ümlaut"),
        args("inner\"quote\""),
        args("back\\slash"),
        args(&"a ".repeat(600)),
    ] {
        let refused = set(&mut world, "node1", change.clone());
        let error = refused.expect_err(&format!("{change:?}"));
        assert!(!error.hint().is_empty());
    }
    let multicast = set(&mut world, "01:00:5e:00:00:01", name("multi"));
    assert!(matches!(multicast, Err(CommandError::BadMac { .. })));
    let unknown = set(&mut world, "nobody", name("somebody"));
    assert!(matches!(unknown, Err(CommandError::UnknownNode { .. })));
    assert_eq!(world.records, before);
    assert!(set(&mut world, "node1", args("quiet a=\"b c\"")).is_ok());
    assert!(set(&mut world, "02:00:00:00:00:07", name("ready")).is_ok());
    assert_ne!(world.records, before);
}

fn entry(index: usize, name: &str, address: Option<[u8; 4]>) -> NodeEntry {
    NodeEntry {
        address: address.map(Ipv4Addr::from),
        ..NodeEntry::new(mac(index), name)
    }
}

/// A node's name before and after.
type Renamed = (Option<String>, Option<String>);

/// Applies entries; the names before and after of the nodes that change.
fn apply(
    world: &mut World,
    nodes: Vec<NodeEntry>,
    prune: bool,
    dry_run: bool,
) -> Result<Vec<Renamed>, CommandError> {
    let command = Command::Apply {
        inventory: Inventory {
            nodes,
            ..Inventory::default()
        },
        prune,
        dry_run,
        may_run: true,
    };
    let CommandReply::Applied(changes) = world.command(command)? else {
        panic!("another reply");
    };
    let name = |entry: Option<NodeEntry>| entry.map(|it| it.name);
    Ok(changes
        .nodes
        .into_iter()
        .map(|it| (name(it.before), name(it.after)))
        .collect())
}

#[test]
fn entries_are_applied_all_or_none() {
    let mut world = world(2, GOOD);
    let some = |name: &str| Some(name.to_owned());
    let first = vec![
        entry(0, "a", Some([10, 77, 0, 10])),
        entry(1, "b", Some([10, 77, 0, 11])),
    ];
    assert_eq!(
        apply(&mut world, first.clone(), false, false),
        Ok(vec![(None, some("a")), (None, some("b"))])
    );
    assert_eq!(apply(&mut world, first, true, false), Ok(Vec::new()));
    // Names and addresses change hands in one go, as they could not one by one.
    let swapped = vec![
        entry(0, "b", Some([10, 77, 0, 11])),
        entry(1, "a", Some([10, 77, 0, 10])),
    ];
    let before = world.records.clone();
    let changes = Ok(vec![(some("a"), some("b")), (some("b"), some("a"))]);
    assert_eq!(apply(&mut world, swapped.clone(), false, true), changes);
    assert_eq!(world.records, before, "a dry run changes nothing");
    assert_eq!(apply(&mut world, swapped.clone(), false, false), changes);
    let inventory = Inventory {
        nodes: vec![swapped[1].clone(), swapped[0].clone()],
        ..Inventory::default()
    };
    assert_eq!(
        world.command(Command::Inventory),
        Ok(CommandReply::Inventory(inventory))
    );
    // Only whoever says so loses what is not named.
    let one = vec![entry(2, "c", None)];
    assert_eq!(
        apply(&mut world, one.clone(), false, true),
        Ok(vec![(None, some("c"))])
    );
    world.restart();
    assert_eq!(
        apply(&mut world, one, true, false),
        Ok(vec![
            (some("b"), None),
            (some("a"), None),
            (None, some("c"))
        ])
    );
    assert_eq!(world.engine.nodes().len(), 1);
}

#[test]
fn every_problem_of_an_entry_is_named_and_nothing_changes() {
    let mut world = world(3, GOOD);
    assert!(apply(&mut world, vec![entry(0, "a", None)], false, false).is_ok());
    let before = world.records.clone();
    let bad = vec![
        entry(1, "A", None),
        entry(2, "no name", None),
        entry(3, "outside", Some([10, 78, 0, 5])),
        entry(4, "twin", Some([10, 77, 0, 20])),
        entry(8, "twin2", Some([10, 77, 0, 20])),
        entry(5, "first", None),
        entry(5, "same", None),
        NodeEntry {
            image: Some("fedora".into()),
            ..entry(6, "image", None)
        },
        NodeEntry {
            kernel_args: "a\nb".into(),
            ..entry(7, "args", None)
        },
    ];
    let Err(CommandError::Invalid { problems }) = apply(&mut world, bad, false, false) else {
        panic!("accepted");
    };
    let of: BTreeSet<&str> = problems.iter().map(|(node, _)| node.as_str()).collect();
    let expected = ["A", "no name", "outside", "twin2", "same", "image", "args"];
    assert!(
        expected.iter().all(|name| of.contains(name)),
        "{problems:?}"
    );
    assert_eq!(world.records, before);
}

#[test]
fn a_fixed_address_counts_from_the_next_boot() {
    let mut world = undisturbed(1, GOOD);
    let running = world.machines[0].held.expect("an address").address;
    assert!(set(&mut world, "node1", address([10, 77, 0, 200])).is_ok());
    // Renewals of the running system go on as before; a refusal would panic in the machine.
    world.run_until(24 * 60 * MINUTE, |_| false);
    assert_eq!(world.machines[0].address(world.now), Some(running));
    let now = world.now;
    world.machines[0].power_cycle(now);
    world.boot_all(5 * MINUTE);
    let fixed = world.machines[0].held.expect("an address");
    assert_eq!(
        (fixed.address.octets(), fixed.until),
        ([10, 77, 0, 200], None)
    );
}

#[test]
fn a_plan_that_nobody_boots_does_not_hide_the_running_boot() {
    let mut world = world(8, GOOD);
    world.power_on(1);
    let reporting = |world: &World| world.machines[0].step == Step::Report;
    assert!(world.run_until(2 * MINUTE, reporting));
    let node = "node1".to_owned();
    assert!(world.command(Command::Plan { node }).is_ok());
    world.boot_all(2 * MINUTE);
    let boot = world
        .engine
        .node(&mac(0))
        .and_then(|it| it.boot)
        .expect("a boot");
    assert_eq!(boot.stage, Some(Stage::MultiUser));
    world.restart();
    assert_eq!(
        world.engine.node(&mac(0)).and_then(|it| it.boot),
        Some(boot)
    );
}

#[test]
fn a_node_on_a_retired_version_is_told_of_but_not_all_the_time() {
    let mut world = World::new(9, GOOD, config());
    world.power_on(1);
    world.boot_all(5 * MINUTE);
    let address = world.machines[0].held.expect("an address").address;
    let stale = |address| Input::Nfs {
        address,
        activity: NfsActivity::Stale([0xab; 16]),
    };
    let told = |world: &World| world.count(|it| matches!(it, EventKind::NfsStale { .. }));
    for _ in 0..100 {
        world.input(stale(address));
        // Of a machine that is no node, nothing is told.
        world.input(stale(Ipv4Addr::new(192, 0, 2, 1)));
    }
    assert_eq!(told(&world), 1);
    world.run_until(2 * MINUTE, |_| false);
    world.input(stale(address));
    assert_eq!(told(&world), 2);
    let line = world.events.last().expect("an event").kind.to_string();
    assert!(
        line.contains("abababab") && line.contains("reboot"),
        "{line}"
    );
    world.run_until(2 * MINUTE, |_| false);
    world.input(Input::Nfs {
        address,
        activity: NfsActivity::Damaged([0xcd; 16]),
    });
    let line = world.events.last().expect("an event").kind.to_string();
    assert!(
        line.contains("cdcdcdcd") && line.contains("verify"),
        "{line}"
    );
}

#[test]
fn every_identity_has_the_hosts_of_its_moment() {
    let mut world = World::new(40, GOOD, config());
    world.power_on(3);
    world.boot_all(Duration::from_secs(600));
    let by_hand = |world: &World| -> Vec<(Ipv4Addr, String)> {
        let nodes = world.engine.nodes().into_iter();
        nodes
            .filter_map(|it| Some((it.address?, it.name)))
            .collect()
    };
    let hosts = |world: &mut World| world.engine.hosts().to_vec();
    assert_eq!(hosts(&mut world), by_hand(&world));
    let set = |world: &mut World, node: Mac, change: NodeChange| {
        let node = node.to_string();
        world.command(Command::NodeSet { node, change }).unwrap();
    };
    set(&mut world, mac(1), name("renamed"));
    assert!(hosts(&mut world).iter().any(|it| it.1 == "renamed"));
    set(&mut world, mac(9), address([10, 77, 0, 99]));
    assert_eq!(hosts(&mut world).len(), 4);
    set(&mut world, mac(9), address([10, 77, 0, 98]));
    assert_eq!(hosts(&mut world), by_hand(&world));
    let forget = Command::NodeForget {
        node: mac(0).to_string(),
    };
    world.command(forget).unwrap();
    assert_eq!(hosts(&mut world), by_hand(&world));
    // Another one comes.
    world.power_on(1);
    world.boot_all(Duration::from_secs(600));
    assert_eq!(hosts(&mut world), by_hand(&world));
    // As long as nobody moves it is made once, renewals or not.
    let before = world.engine.hosts();
    let now = world.now + Duration::from_secs(60);
    world.machines[1].power_cycle(now);
    world.boot_all(Duration::from_secs(600));
    assert!(std::sync::Arc::ptr_eq(&before, &world.engine.hosts()));
}
