//! Power that is switched by command: who is asked to do what, and who may say how.

use std::time::Duration;

use super::{GOOD, World, config, mac};
use crate::command::{CommandError, CommandReply};
use crate::io::Input;
use crate::orders::{OrderState, OrderView};
use crate::power::{PowerAction, PowerTask};
use crate::{Command, Group, Inventory};

fn world() -> World {
    let mut world = World::new(21, GOOD, config());
    world.power_on(2);
    world.boot_all(Duration::from_secs(300));
    world
}

/// What becomes of the power of all nodes, and of one by its own word.
fn inventory(world: &World, all: Option<&str>, own: Option<&str>) -> Inventory {
    let group = Group {
        power: all.map(str::to_owned),
        ..Group::default()
    };
    let mut inventory = world.engine.inventory();
    inventory.groups = [("all".to_owned(), group)].into();
    inventory.nodes[0].power = own.map(str::to_owned);
    inventory
}

fn apply(world: &mut World, inventory: Inventory, may_run: bool) -> Result<(), CommandError> {
    let command = Command::Apply {
        inventory,
        prune: true,
        dry_run: false,
        may_run,
    };
    world.command(command).map(drop)
}

fn switch(world: &mut World, nodes: &str, action: PowerAction) -> Vec<OrderView> {
    let nodes = nodes.to_owned();
    match world.command(Command::Power { nodes, action }) {
        Ok(CommandReply::Orders(orders)) => orders,
        other => panic!("{other:?}"),
    }
}

fn cause(order: &OrderView) -> &str {
    match &order.state {
        OrderState::Lost { cause } => cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn commands_are_filled_in_and_their_end_is_told() {
    let mut world = world();
    let command = "switch --{action} {name}-bmc {mac} {address}";
    let wanted = inventory(&world, Some(command), Some("wol"));
    apply(&mut world, wanted, true).unwrap();
    world.restart();
    let orders = switch(&mut world, "@all", PowerAction::On);
    assert_eq!(orders.len(), 2);
    let tasks = std::mem::take(&mut world.powers);
    let by_wol = world.engine.inventory().nodes[0].mac;
    let machine = (0..2).find(|it| mac(*it) != by_wol).expect("the other one");
    let other = world.engine.node(&mac(machine)).expect("a node");
    let address = other.address.expect("an address").to_string();
    for (_, task) in &tasks {
        match task {
            PowerTask::Wake { mac, broadcasts } => {
                assert_eq!(*mac, by_wol);
                assert_eq!(broadcasts[..], [config().interfaces[0].broadcast()]);
            }
            PowerTask::Run { words } => {
                let bmc = format!("{}-bmc", other.name);
                let expected = ["switch", "--on", &bmc, &other.mac.to_string(), &address];
                assert_eq!(words[..], expected);
            }
        }
    }
    for ((order, _), status) in tasks.iter().zip([0, 3]) {
        world.input(Input::PowerEnded {
            order: *order,
            status,
            output: b"said".to_vec(),
        });
        let Ok(CommandReply::Orders(views)) = world.command(Command::Orders { ids: vec![*order] })
        else {
            panic!("it is known");
        };
        assert_eq!(views[0].state, OrderState::Ended { status });
        assert_eq!(views[0].output, b"said");
    }
}

#[test]
fn what_cannot_be_switched_says_why() {
    let mut world = world();
    for order in switch(&mut world, "@all", PowerAction::Off) {
        assert!(cause(&order).contains("power ="), "{order:?}");
    }
    let wanted = inventory(&world, Some("wol"), None);
    apply(&mut world, wanted, false).unwrap();
    for order in switch(&mut world, "@all", PowerAction::Cycle) {
        assert!(
            cause(&order).contains("only switch machines on"),
            "{order:?}"
        );
    }
    assert!(world.powers.is_empty());
    for wrong in [
        "wake",
        "{name} {action}",
        "power {action} $(reboot)",
        "power {action} {host}",
    ] {
        let of_group = inventory(&world, Some(wrong), None);
        assert!(apply(&mut world, of_group, true).is_err(), "{wrong}");
        let of_node = inventory(&world, None, Some(wrong));
        assert!(apply(&mut world, of_node, true).is_err(), "{wrong}");
    }
}

#[test]
fn only_root_says_what_the_daemon_runs() {
    let mut world = world();
    let command = "switch {action} {name}";
    for (all, own) in [(Some(command), None), (None, Some(command))] {
        let wanted = inventory(&world, all, own);
        let refused = apply(&mut world, wanted.clone(), false).unwrap_err();
        assert!(refused.to_string().contains("only root"), "{refused}");
        apply(&mut world, wanted.clone(), true).unwrap();
        // What root has said may be said again.
        apply(&mut world, wanted, false).unwrap();
        let none = inventory(&world, None, None);
        apply(&mut world, none, false).unwrap();
    }
}
