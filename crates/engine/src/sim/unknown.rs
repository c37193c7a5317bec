//! What becomes of machines that are no nodes, by policy and by what DHCP is spoken.

use wire::dhcp4::{MAX_BUDGET_BYTES, option};

use super::beside::OtherServer;
use super::*;
use crate::apply::{Change, Inventory, NodeEntry};
use crate::command::{CommandError, NodeChange};
use crate::config::UnknownPolicy::{self, Approve, Auto, Ignore};

const MINUTES: Duration = Duration::from_secs(600);

fn world(dhcp: DhcpMode, unknown: Option<UnknownPolicy>) -> World {
    let mut config = config();
    config.interfaces[0].dhcp = dhcp;
    config.unknown = unknown;
    let mut world = World::new(1, GOOD, config);
    match dhcp {
        DhcpMode::Authoritative => {}
        DhcpMode::Proxy => world.other = Some(OtherServer::default()),
        DhcpMode::Off => {
            world.other = Some(OtherServer::naming_us());
            world.deaf = true;
        }
    }
    world
}

fn approve(world: &mut World, index: usize) {
    let node = mac(index).to_string();
    let change = NodeChange::default();
    world
        .command(Command::NodeSet { node, change })
        .expect("a node");
}

fn say(world: &mut World, unknown: Option<UnknownPolicy>, prune: bool) -> Result<(), CommandError> {
    let inventory = Inventory {
        unknown,
        ..Inventory::default()
    };
    let command = Command::Apply {
        inventory,
        prune,
        dry_run: false,
        may_run: true,
    };
    world.command(command).map(drop)
}

#[test]
fn each_policy_holds_in_each_mode() {
    // Whether machines boot by themselves, and whether they are listed where they do not.
    for (dhcp, said, boots, seen) in [
        (DhcpMode::Authoritative, None, true, false),
        (DhcpMode::Authoritative, Some(Auto), true, false),
        (DhcpMode::Authoritative, Some(Approve), false, true),
        (DhcpMode::Authoritative, Some(Ignore), false, false),
        (DhcpMode::Proxy, None, false, true),
        (DhcpMode::Proxy, Some(Auto), true, false),
        (DhcpMode::Proxy, Some(Approve), false, true),
        (DhcpMode::Proxy, Some(Ignore), false, false),
        (DhcpMode::Off, None, false, true),
        (DhcpMode::Off, Some(Approve), false, true),
        (DhcpMode::Off, Some(Ignore), false, false),
    ] {
        let case = format!("{dhcp:?} {said:?}");
        let mut world = world(dhcp, said);
        approve(&mut world, 0);
        world.power_on(2);
        let all = world.run_until(MINUTES, World::all_up);
        assert_eq!(all, boots, "{case}\n{}", world.story());
        assert_eq!(world.machines[0].step, Step::Up, "{case}");
        let listed = world.engine.seen();
        assert_eq!(listed.len(), usize::from(seen), "{case}");
        assert!(listed.iter().all(|it| it.mac == mac(1)), "{case}");
        assert_eq!(world.engine.nodes().len(), 1 + usize::from(boots), "{case}");
        let told = world.count(|it| matches!(it, EventKind::MachineSeen { .. }));
        assert_eq!(told, usize::from(seen), "{case}");
        if boots {
            continue;
        }
        // Only another server gave it an address.
        let lease = |record: &Record| matches!(record, Record::Lease(it) if it.mac == Some(mac(1)));
        assert!(!world.records.values().any(lease), "{case}");
        approve(&mut world, 1);
        assert!(
            world.run_until(MINUTES, World::all_up),
            "{case}\n{}",
            world.story()
        );
        assert!(world.engine.seen().is_empty(), "{case}");
    }
}

/// Whether a system without firmware, such as a printer, is offered an address.
fn system_is_answered(world: &mut World) -> bool {
    let mut discover = Message::request(mac(7), 7);
    discover.push(option::MESSAGE_TYPE, [MessageType::Discover.code()]);
    let packet = discover.encode(MAX_BUDGET_BYTES);
    let outputs = world.engine.handle(world.now, dhcp(packet));
    let answered = outputs.iter().any(|it| matches!(it, Output::Dhcp { .. }));
    world.carry_out(outputs);
    answered
}

#[test]
fn who_does_not_ask_to_boot_gets_its_address_unless_strangers_are_ignored() {
    for (policy, answered) in [(Auto, true), (Approve, true), (Ignore, false)] {
        let mut world = world(DhcpMode::Authoritative, Some(policy));
        assert_eq!(system_is_answered(&mut world), answered, "{policy:?}");
        assert!(world.engine.seen().is_empty() && world.engine.nodes().is_empty());
    }
}

#[test]
fn the_inventory_s_word_counts_before_the_start_s_and_survives() {
    let mut world = world(DhcpMode::Authoritative, Some(Auto));
    say(&mut world, Some(Ignore), false).unwrap();
    world.restart();
    assert_eq!(world.engine.inventory().unknown, Some(Ignore));
    world.power_on(1);
    assert!(!world.run_until(MINUTES, World::all_up));
    assert!(world.engine.seen().is_empty());
    // A file that says nothing of it changes nothing, unless it is all that is to be.
    say(&mut world, None, false).unwrap();
    assert_eq!(world.engine.inventory().unknown, Some(Ignore));
    let dry = world.command(Command::Apply {
        inventory: Inventory::default(),
        prune: true,
        dry_run: true,
        may_run: true,
    });
    let Ok(CommandReply::Applied(changes)) = dry else {
        panic!("{dry:?}");
    };
    let change = Change {
        before: Some(Ignore),
        after: None,
    };
    assert_eq!(changes.unknown, Some(change));
    assert_eq!(world.engine.inventory().unknown, Some(Ignore));
    say(&mut world, None, true).unwrap();
    world.restart();
    world.boot_all(MINUTES);
}

#[test]
fn keys_and_policy_do_not_overwrite_each_other() {
    let mut world = world(DhcpMode::Authoritative, None);
    let keys = vec![format!("ssh-ed25519 {}", "A".repeat(60))];
    say(&mut world, Some(Approve), false).unwrap();
    let set = Command::SetAuthorizedKeys { keys: keys.clone() };
    world.command(set).unwrap();
    world.restart();
    assert_eq!(world.engine.inventory().unknown, Some(Approve));
    assert_eq!(world.engine.settings.authorized_keys, keys);
}

#[test]
fn what_cannot_be_is_refused_and_never_obeyed() {
    let mut deaf = world(DhcpMode::Off, None);
    let Err(CommandError::Invalid { problems }) = say(&mut deaf, Some(Auto), false) else {
        panic!("auto was accepted where firmware is not heard");
    };
    assert!(problems[0].1.contains("--dhcp off"), "{problems:?}");
    // Said where it could be, and started anew without.
    let mut heard = world(DhcpMode::Proxy, None);
    say(&mut heard, Some(Auto), false).unwrap();
    heard.config.interfaces[0].dhcp = DhcpMode::Off;
    heard.restart();
    assert_eq!(heard.engine.unknown_policy(DhcpMode::Off), Approve);
}

#[test]
fn the_doctor_s_machine_is_heard_under_every_policy_and_becomes_no_node() {
    for dhcp_mode in [DhcpMode::Authoritative, DhcpMode::Proxy] {
        for policy in [Auto, Approve, Ignore] {
            let mut world = world(dhcp_mode, Some(policy));
            let message = crate::Firmware::UefiX64.message(Mac::PROBE, 1, MessageType::Discover);
            world.input(dhcp(message.encode(MAX_BUDGET_BYTES)));
            let heard = world
                .count(|it| matches!(it, EventKind::MachineSeen { .. } | EventKind::Offer { .. }));
            assert_eq!(heard, 1, "{dhcp_mode:?} {policy:?}");
            assert!(world.engine.nodes().is_empty() && world.engine.seen().is_empty());
        }
    }
}

#[test]
fn a_fixed_address_that_another_server_would_have_to_give_is_told_of() {
    for (mode, told) in [
        (DhcpMode::Authoritative, 0),
        (DhcpMode::Proxy, 1),
        (DhcpMode::Off, 1),
    ] {
        let mut world = world(mode, None);
        let inventory = |address: Option<[u8; 4]>| Inventory {
            nodes: vec![NodeEntry {
                address: address.map(Ipv4Addr::from),
                ..NodeEntry::new(mac(0), "fixed")
            }],
            ..Inventory::default()
        };
        let mut notes = |address| {
            let command = Command::Apply {
                inventory: inventory(address),
                prune: false,
                dry_run: false,
                may_run: true,
            };
            match world.command(command) {
                Ok(CommandReply::Applied(changes)) => changes.notes,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(notes(None), [""; 0]);
        let notes = notes(Some([10, 77, 0, 9]));
        assert_eq!(notes.len(), told, "{mode:?}: {notes:?}");
        assert!(notes.iter().all(|it| it.contains("fixed")), "{notes:?}");
    }
}
