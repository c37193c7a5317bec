//! `slate node power`: machines are switched on and off by the daemon.

use daemon::control::{Client, OrderView, PowerAction, Request, Response};
use owo_colors::OwoColorize as _;

use super::node::unexpected;
use super::order::{all_done, follow, is_done, order_json};
use crate::args::{PowerArg, PowerArgs};
use crate::failure::Outcome;
use crate::render;

impl From<PowerArg> for PowerAction {
    fn from(arg: PowerArg) -> Self {
        match arg {
            PowerArg::On => Self::On,
            PowerArg::Off => Self::Off,
            PowerArg::Cycle => Self::Cycle,
        }
    }
}

/// Runs `slate node power`.
pub fn run(client: &mut Client, args: &PowerArgs) -> Outcome {
    let orders = switch(client, &args.nodes, args.action.into())?;
    let json = args.output.json;
    let orders = follow(client, orders, |order| {
        if !json {
            show(order);
        }
    })?;
    if json {
        render::json(&orders.iter().map(order_json).collect::<Vec<_>>())?;
    }
    all_done(&orders)
}

/// Has the daemon switch the power of nodes.
pub(super) fn switch(
    client: &mut Client,
    nodes: &str,
    action: PowerAction,
) -> Outcome<Vec<OrderView>> {
    let request = Request::Power {
        nodes: nodes.to_owned(),
        action,
    };
    match client.request(&request)? {
        Response::Orders { orders } => Ok(orders),
        other => Err(unexpected(&other)),
    }
}

fn show(order: &OrderView) {
    let text = if is_done(order) { "done" } else { "failed" };
    anstream::println!("{} {text}", order.node.bold());
    anstream::print!("{}", String::from_utf8_lossy(&order.output));
}
