//! What running nodes are told to do, over a channel that they keep open themselves: their agents
//! poll, and a poll is answered when there is something to do.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use rand_chacha::rand_core::Rng as _;
use serde::{Deserialize, Serialize};
use wire::identity::BootId;
use wire::mac::Mac;
use wire::order::{
    ControlKey, MAX_COMMAND_BYTES, MAX_ORDERS, NONCE_BYTES, Order as WireOrder, Orders as Answer,
    Part, Poll,
};
use wire::upload::Claim;

use crate::command::{CommandError, CommandReply};
use crate::commands::cut;
use crate::event::EventKind;
use crate::files::text;
use crate::io::{Content, HttpAnswer, HttpBody, Output};
use crate::learned::Evidence;
use crate::power::PowerAction;
use crate::time::Timestamp;
use crate::{Engine, Turn};

/// Most orders that are kept, ended ones included.
const KEPT: usize = 65_536;
/// How long an ended order is kept for whoever gave it.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Most bytes of one order's output that are kept.
pub const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// Most bytes of all outputs together.
const MAX_OUTPUTS_BYTES: usize = 64 << 20;
/// An agent that has not polled for so long is gone; it polls once a minute at least.
const ALIVE_FOR: Duration = Duration::from_secs(150);
/// How long after its time an order's end is waited for.
const GRACE: Duration = Duration::from_secs(60);
/// Longest time that an order may take.
const MAX_SECONDS: u32 = 24 * 3600;

/// Every order, and the agents that may get one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Orders {
    by_id: BTreeMap<u64, Order>,
    last_id: u64,
    agents: BTreeMap<Mac, Agent>,
    output_bytes: usize,
    /// When the engine began to hear agents.
    began: Option<Timestamp>,
    /// Whether every agent that is there has had the time to be heard.
    settled: bool,
}

/// A node's end of the channel.
#[derive(Clone, Debug)]
struct Agent {
    boot: BootId,
    polled: Timestamp,
    /// The nonce of a poll that waits for its answer.
    waiting: Option<[u8; NONCE_BYTES]>,
}

#[derive(Clone, Debug)]
struct Order {
    mac: Mac,
    /// The boot that carries it out; `None` = the daemon does.
    boot: Option<BootId>,
    command: String,
    seconds: u32,
    given: Timestamp,
    state: OrderState,
    ended: Option<Timestamp>,
    output: Vec<u8>,
    received: u64,
    printed: u64,
    /// Most bytes that it may upload.
    upload_bytes: u64,
}

/// Leave for a piece of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadLeave {
    /// What its pieces are sealed with.
    pub key: ControlKey,
    /// Most bytes of the whole upload.
    pub max_bytes: u64,
}

/// A poll that was proven to be a node's.
struct Opened {
    mac: Mac,
    boot: BootId,
    key: ControlKey,
    nonce: [u8; NONCE_BYTES],
    poll: Poll,
}

/// How far an order is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum OrderState {
    /// The node does not have it yet.
    Waiting,
    /// The node does it.
    Running,
    /// It has ended.
    Ended {
        /// Its exit code, 128 and the number of a signal, or -1 where it could not be started.
        status: i32,
    },
    /// Nobody knows what became of it, or it was never given.
    Lost {
        /// Why.
        cause: String,
    },
}

/// An order as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderView {
    /// Names it; `None` = it was not given.
    pub id: Option<u64>,
    /// The node's name.
    pub node: String,
    /// How far it is.
    #[serde(flatten)]
    pub state: OrderState,
    /// What it has printed so far, at most [`MAX_OUTPUT_BYTES`].
    #[serde(with = "crate::text::bytes")]
    pub output: Vec<u8>,
    /// Bytes that it has printed.
    pub printed: u64,
}

impl OrderView {
    /// Whether nothing more will come.
    pub fn is_over(&self) -> bool {
        matches!(
            self.state,
            OrderState::Ended { .. } | OrderState::Lost { .. }
        )
    }
}

impl Order {
    fn new(
        mac: Mac,
        boot: Option<BootId>,
        command: String,
        seconds: u32,
        given: Timestamp,
    ) -> Order {
        Order {
            mac,
            boot,
            command,
            seconds,
            given,
            state: OrderState::Waiting,
            ended: None,
            output: Vec::new(),
            received: 0,
            printed: 0,
            upload_bytes: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    fn deadline(&self) -> Timestamp {
        match self.ended {
            Some(at) => at + KEPT_FOR,
            None => self.given + Duration::from_secs(self.seconds.into()) + GRACE,
        }
    }

    fn take_part(&mut self, part: &Part, space: usize) -> usize {
        if part.offset != self.received {
            return 0;
        }
        self.received += part.bytes.len() as u64;
        self.printed = part.total;
        let space = space.min(MAX_OUTPUT_BYTES - self.output.len());
        let kept = &part.bytes[..part.bytes.len().min(space)];
        self.output.extend_from_slice(kept);
        kept.len()
    }
}

impl Orders {
    /// Time passes.
    pub(crate) fn notice(&mut self, now: Timestamp) {
        let began = *self.began.get_or_insert(now);
        self.settled |= now >= began + ALIVE_FOR;
    }

    /// When silence begins to mean something, if that is not yet so.
    pub(crate) fn settles(&self) -> Option<Timestamp> {
        let began = self.began.filter(|_| !self.settled);
        began.map(|it| it + ALIVE_FOR)
    }

    /// Takes an order in; its id.
    fn keep(&mut self, order: Order, now: Timestamp) -> Result<u64, String> {
        if self.by_id.len() >= KEPT {
            return Err(format!("{KEPT} orders are kept already"));
        }
        // Ids are never given twice, not even by the next daemon.
        self.last_id = now.0.max(self.last_id + 1);
        self.by_id.insert(self.last_id, order);
        Ok(self.last_id)
    }

    fn open_of(&self, mac: Mac, boot: BootId) -> impl Iterator<Item = (&u64, &Order)> {
        let of_boot = move |order: &Order| order.mac == mac && order.boot == Some(boot);
        self.by_id
            .iter()
            .filter(move |(_, order)| of_boot(order) && !order.is_over())
    }

    fn answer(&self, mac: Mac, boot: BootId) -> Answer {
        let orders = self.open_of(mac, boot).map(|(id, order)| WireOrder {
            id: *id,
            seconds: order.seconds,
            command: order.command.clone(),
        });
        Answer(orders.collect())
    }

    fn take_part(&mut self, mac: Mac, part: &Part) {
        let space = MAX_OUTPUTS_BYTES - self.output_bytes;
        if let Some(order) = self.by_id.get_mut(&part.order)
            && order.mac == mac
        {
            self.output_bytes += order.take_part(part, space);
        }
    }

    pub(crate) fn polled(&self, mac: Mac) -> Option<Timestamp> {
        self.agents.get(&mac).map(|agent| agent.polled)
    }

    pub(crate) fn forget(&mut self, mac: Mac) {
        self.agents.remove(&mac);
    }

    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.by_id.values().map(Order::deadline).min()
    }

    /// Forgets orders that ended long ago.
    fn sweep(&mut self, now: Timestamp) {
        let is_old = |order: &Order| order.is_over() && order.deadline() <= now;
        self.by_id.retain(|_, order| !is_old(order));
        self.output_bytes = self.by_id.values().map(|order| order.output.len()).sum();
    }
}

impl Engine {
    /// Whether a node's agent can be told to do something.
    pub(crate) fn is_connected(&self, mac: Mac, now: Timestamp) -> bool {
        let agent = self.orders.agents.get(&mac);
        agent.is_some_and(|it| now < it.polled + ALIVE_FOR)
    }

    /// Whether a node is off, or hangs: it does not poll, and would have. One that never booted is.
    pub(crate) fn is_away(&self, mac: Mac, now: Timestamp) -> bool {
        let was_there = self.boots.current(mac).is_some();
        !self.is_connected(mac, now) && (self.orders.settled || !was_there)
    }

    /// Whether an order of a boot may upload now; bulk itself never comes here.
    pub fn upload_leave(&self, claim: Claim) -> Option<UploadLeave> {
        let order = self.orders.by_id.get(&claim.order)?;
        let may = order.boot == Some(claim.boot) && !order.is_over() && order.upload_bytes > 0;
        let key = self.boots.get(claim.boot)?.control_key?;
        may.then_some(UploadLeave {
            key: ControlKey(key),
            max_bytes: order.upload_bytes,
        })
    }

    /// `POST /control`: an agent's poll.
    pub(crate) fn poll(&mut self, turn: &mut Turn, peer: Ipv4Addr, body: &[u8]) {
        match self.open_poll(body) {
            Ok(Opened {
                mac,
                boot,
                key,
                nonce,
                poll,
            }) => {
                self.learn(turn, mac, peer, Evidence::Proof);
                self.take_poll(turn, mac, boot, &poll);
                let answer = self.orders.answer(mac, boot);
                let is_new = |order: &WireOrder| !poll.known.contains(&order.id);
                let at_once = poll.part.is_some() || answer.0.iter().any(is_new);
                let agent = Agent {
                    boot,
                    polled: turn.now,
                    waiting: (!at_once).then_some(nonce),
                };
                // What one part is answered says nothing of the poll that waits beside it.
                match self.orders.agents.get_mut(&mac) {
                    Some(known) if known.boot == boot && at_once && poll.part.is_some() => {
                        known.polled = turn.now;
                    }
                    _ => drop(self.orders.agents.insert(mac, agent)),
                }
                let output = if at_once {
                    Output::Http(self.seal_orders(&answer, &key, nonce))
                } else {
                    Output::HoldHttp { boot }
                };
                turn.out.push(output);
            }
            Err(cause) => {
                if self.strangers.take(turn.now) {
                    let cause = cause.clone();
                    self.tell(
                        turn,
                        None,
                        EventKind::PollRefused {
                            address: peer,
                            cause,
                        },
                    );
                }
                turn.out.push(Output::Http(text(403, &cause)));
            }
        }
    }

    fn open_poll(&self, body: &[u8]) -> Result<Opened, String> {
        let (id, nonce) = Poll::peek(body).map_err(|error| error.to_string())?;
        let boot = self.boots.get(id);
        let boot = boot.filter(|boot| self.nodes.contains_key(&boot.mac));
        let boot = boot.ok_or("no such boot of a node")?;
        let key = ControlKey(boot.control_key.ok_or("this boot has no control key")?);
        let poll = Poll::open(body, &key).map_err(|error| error.to_string())?;
        Ok(Opened {
            mac: boot.mac,
            boot: id,
            key,
            nonce,
            poll,
        })
    }

    fn take_poll(&mut self, turn: &mut Turn, mac: Mac, boot: BootId, poll: &Poll) {
        self.end_former_agents(turn, mac, boot);
        for id in &poll.known {
            if let Some(order) = self.orders.by_id.get_mut(id)
                && order.mac == mac
                && order.state == OrderState::Waiting
            {
                order.state = OrderState::Running;
            }
        }
        let Some(part) = &poll.part else {
            return;
        };
        self.orders.take_part(mac, part);
        if let Some(status) = part.end
            && let Some(order) = self.orders.by_id.get_mut(&part.order)
            && order.mac == mac
            && !order.is_over()
        {
            order.state = OrderState::Ended { status };
            order.ended = Some(turn.now);
            let order = part.order;
            self.tell(turn, Some(mac), EventKind::OrderEnded { order, status });
        }
    }

    /// A node runs a boot: whatever an earlier one was told, it does no more, and is told nothing.
    pub(crate) fn end_former_agents(&mut self, turn: &mut Turn, mac: Mac, boot: BootId) {
        let agent = self.orders.agents.get(&mac);
        if agent.is_some_and(|agent| agent.boot != boot) {
            self.orders.agents.remove(&mac);
        }
        let former = |order: &Order| {
            order.mac == mac && order.boot.is_some_and(|it| it != boot) && !order.is_over()
        };
        self.lose(turn, "the node has booted anew", former);
    }

    fn lose(&mut self, turn: &mut Turn, cause: &str, which: impl Fn(&Order) -> bool) {
        let mut lost = Vec::new();
        for (id, order) in &mut self.orders.by_id {
            if which(order) {
                let cause = cause.to_owned();
                order.state = OrderState::Lost { cause };
                order.ended = Some(turn.now);
                lost.push((*id, order.mac));
            }
        }
        for (order, mac) in lost {
            let cause = cause.to_owned();
            self.tell(turn, Some(mac), EventKind::OrderLost { order, cause });
        }
    }

    /// Orders whose time is over long since are lost, and old ones forgotten.
    pub(crate) fn expire_orders(&mut self, turn: &mut Turn) {
        let now = turn.now;
        let is_late = |order: &Order| !order.is_over() && order.deadline() <= now;
        self.lose(turn, "the node did not say how it ended", is_late);
        self.orders.sweep(now);
    }

    fn seal_orders(
        &mut self,
        answer: &Answer,
        key: &ControlKey,
        poll: [u8; NONCE_BYTES],
    ) -> HttpAnswer {
        let mut nonce = [0; NONCE_BYTES];
        self.rng.fill_bytes(&mut nonce);
        HttpAnswer {
            status: 200,
            content_type: "application/octet-stream",
            body: HttpBody::Content(Content::Bytes(answer.seal(key, poll, nonce))),
            path: None,
        }
    }

    /// Has nodes run a command. Nodes that cannot get it do not keep the others from it.
    pub(crate) fn order(
        &mut self,
        turn: &mut Turn,
        nodes: &str,
        command: &str,
        seconds: u32,
        upload_bytes: u64,
    ) -> Result<CommandReply, CommandError> {
        let fits = (1..=MAX_COMMAND_BYTES).contains(&command.len()) && !command.contains('\0');
        if !fits || !(1..=MAX_SECONDS).contains(&seconds) {
            return Err(CommandError::BadSetting {
                expected: format!(
                    "a command of at most {MAX_COMMAND_BYTES} bytes and a time of at most \
                     {MAX_SECONDS} seconds"
                ),
                got: format!("{} within {seconds} s", cut(command)),
            });
        }
        self.orders.sweep(turn.now);
        let macs = self.select(nodes)?;
        let orders: Vec<OrderView> = self
            .nodes_by_name()
            .into_iter()
            .filter(|node| macs.contains(&node.mac))
            .map(|node| node.mac)
            .collect::<Vec<_>>()
            .into_iter()
            .map(|mac| self.order_one(turn, mac, command, seconds))
            .collect();
        for id in orders.iter().filter_map(|order| order.id) {
            if let Some(order) = self.orders.by_id.get_mut(&id) {
                order.upload_bytes = upload_bytes;
            }
        }
        Ok(CommandReply::Orders(orders))
    }

    fn order_one(&mut self, turn: &mut Turn, mac: Mac, command: &str, seconds: u32) -> OrderView {
        let given = self.give(turn, mac, command, seconds);
        self.given_view(mac, given)
    }

    /// An order that was just given, or why it was not.
    pub(crate) fn given_view(&self, mac: Mac, given: Result<u64, String>) -> OrderView {
        let not_given = |cause| OrderView {
            id: None,
            node: self.name_of(mac),
            state: OrderState::Lost { cause },
            output: Vec::new(),
            printed: 0,
        };
        match given {
            Ok(id) => self.order_view(id).expect("it was given"),
            Err(cause) => not_given(cause),
        }
    }

    fn name_of(&self, mac: Mac) -> String {
        let node = self.nodes.get(&mac);
        node.map_or_else(|| mac.to_string(), |node| node.name.clone())
    }

    /// Keeps an order that the daemon carries out itself.
    pub(crate) fn keep_power_order(
        &mut self,
        turn: &Turn,
        mac: Mac,
        action: PowerAction,
        seconds: u32,
    ) -> Result<u64, String> {
        let command = format!("power {}", action.name());
        let mut order = Order::new(mac, None, command, seconds, turn.now);
        order.state = OrderState::Running;
        self.orders.keep(order, turn.now)
    }

    /// An order that the daemon carried out has ended.
    pub(crate) fn power_ended(&mut self, turn: &mut Turn, id: u64, status: i32, output: &[u8]) {
        let Some(order) = self.orders.by_id.get_mut(&id) else {
            return;
        };
        if order.boot.is_some() || order.is_over() {
            return;
        }
        let mac = order.mac;
        let part = Part {
            order: id,
            offset: 0,
            total: output.len() as u64,
            bytes: output.into(),
            end: None,
        };
        order.state = OrderState::Ended { status };
        order.ended = Some(turn.now);
        self.orders.take_part(mac, &part);
        self.tell(turn, Some(mac), EventKind::OrderEnded { order: id, status });
    }

    /// How far an order is, and what it has printed.
    pub(crate) fn order_state(&self, id: u64) -> Option<(OrderState, Vec<u8>)> {
        let order = self.orders.by_id.get(&id)?;
        Some((order.state.clone(), order.output.clone()))
    }

    pub(crate) fn give(
        &mut self,
        turn: &mut Turn,
        mac: Mac,
        command: &str,
        seconds: u32,
    ) -> Result<u64, String> {
        if !self.is_connected(mac, turn.now) {
            return Err("it is not connected: is it up?".into());
        }
        let agent = self.orders.agents.get_mut(&mac);
        let agent = agent.ok_or("it is not connected: is it up?")?;
        let (boot, waiting) = (agent.boot, agent.waiting.take());
        if self.orders.open_of(mac, boot).count() >= MAX_ORDERS {
            return Err(format!("it has {MAX_ORDERS} orders already"));
        }
        let order = Order::new(mac, Some(boot), command.to_owned(), seconds, turn.now);
        let id = self.orders.keep(order, turn.now)?;
        let shown = cut(command);
        self.tell(
            turn,
            Some(mac),
            EventKind::Ordered {
                order: id,
                command: shown,
            },
        );
        let key = self.boots.get(boot).and_then(|boot| boot.control_key);
        if let (Some(nonce), Some(key)) = (waiting, key) {
            let answer = self.orders.answer(mac, boot);
            let answer = self.seal_orders(&answer, &ControlKey(key), nonce);
            turn.out.push(Output::AnswerHeld { boot, answer });
        }
        Ok(id)
    }

    /// Orders as they are now; those that nobody remembers are lost.
    pub(crate) fn orders_of(&self, ids: &[u64]) -> CommandReply {
        let gone = |id: u64| OrderView {
            id: Some(id),
            node: String::new(),
            state: OrderState::Lost {
                cause: "the daemon does not know it: was it started anew?".into(),
            },
            output: Vec::new(),
            printed: 0,
        };
        let view = |id: &u64| self.order_view(*id).unwrap_or_else(|| gone(*id));
        CommandReply::Orders(ids.iter().map(view).collect())
    }

    fn order_view(&self, id: u64) -> Option<OrderView> {
        let order = self.orders.by_id.get(&id)?;
        Some(OrderView {
            id: Some(id),
            node: self.name_of(order.mac),
            state: order.state.clone(),
            output: order.output.clone(),
            printed: order.printed,
        })
    }
}
