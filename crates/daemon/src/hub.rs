//! The one loop over the engine. Everything that comes in becomes a [`Message`]; a batch of them
//! is decided, written in one transaction, and then carried out in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::{
    BootId, CommandError, CommandReply, Engine, Event, EventKind, HttpAnswer, Input, InterfaceId,
    Output, Timestamp,
};

use tokio::sync::oneshot;

use crate::Notice;
use crate::journal::Journal;
use crate::net::{dhcp, ndp, tftp};
use crate::power;
use crate::prepare::Order;
use crate::unwritten::Unwritten;

/// Most messages decided before their outputs are carried out.
const BATCH_MAX: usize = 256;
/// Most DHCP messages of one socket among them.
const DHCP_BATCH_MAX: usize = 256;
/// Most messages that wait for their turn.
pub const QUEUE_MAX: usize = 4096;
/// Most HTTP requests that wait for their answers.
const HELD_MAX: usize = 4096;
/// How long to sleep where the engine waits for nothing.
const IDLE: Duration = Duration::from_secs(3600);
/// How long after a failed write the next one is tried, at the latest.
const RETRY: Duration = Duration::from_secs(1);

/// The way to the loop; bounded by [`QUEUE_MAX`].
pub type Inbox = SyncSender<Message>;

/// What a command answers.
pub type CommandResult = Result<CommandReply, CommandError>;

/// Something for the loop.
pub enum Message {
    /// An input whose outputs go where they belong.
    Input(Input),
    /// An HTTP request, and where its answer goes.
    Http(Input, oneshot::Sender<HttpAnswer>),
    /// DHCP messages wait at the receiver of this number.
    Readable(usize),
    /// A command, and where its answer goes.
    Command(engine::Command, Sender<CommandResult>),
    /// A question to the engine as it is.
    Ask(Box<dyn FnOnce(&Engine) + Send>),
    /// Leave the loop.
    Stop,
}

/// Where the answer to one message goes.
enum Asker {
    Nobody,
    Http(oneshot::Sender<HttpAnswer>),
    Command(Sender<CommandResult>),
}

/// All that the loop drives.
pub struct Hub {
    /// Every decision.
    pub engine: Engine,
    /// Where they are kept.
    pub unwritten: Unwritten,
    /// Where events go.
    pub journal: Arc<Journal>,
    /// Told of every event.
    pub notices: Option<Sender<Notice>>,
    /// Sends DHCP replies.
    pub dhcp: HashMap<InterfaceId, dhcp::Port>,
    /// Answers who asks for IPv6 routers.
    pub routers: HashMap<InterfaceId, ndp::Port>,
    /// DHCP messages come from there.
    pub receivers: Vec<dhcp::Receiver>,
    /// Starts TFTP transfers.
    pub tftp: tftp::Starter,
    /// Makes boot files.
    pub prepare: Sender<Order>,
    /// Switches machines on and off.
    pub power: Sender<power::Job>,
    /// Whose HTTP requests wait for their answers.
    pub held: HashMap<BootId, oneshot::Sender<HttpAnswer>>,
}

/// The time as the engine counts it.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(since.as_millis() as u64)
}

/// Hands on a datagram, or drops it where too much waits already, as a full socket would.
/// False: the loop is gone.
pub fn offer(inbox: &Inbox, input: Input) -> bool {
    match inbox.try_send(Message::Input(input)) {
        Ok(()) => true,
        Err(TrySendError::Full(_)) => {
            tracing::debug!("a datagram was dropped: {QUEUE_MAX} messages wait");
            true
        }
        Err(TrySendError::Disconnected(_)) => false,
    }
}

impl Hub {
    /// Runs until [`Message::Stop`].
    pub fn run(mut self, messages: &Receiver<Message>) {
        // Receivers that had something when last looked at: more may have come meanwhile.
        let mut readable = Vec::new();
        loop {
            let patience = match readable.is_empty() {
                true => self.patience(),
                false => Duration::ZERO,
            };
            let mut batch: Vec<Message> = readable.drain(..).map(Message::Readable).collect();
            match messages.recv_timeout(patience) {
                Ok(message) => batch.push(message),
                Err(RecvTimeoutError::Timeout) if batch.is_empty() => {
                    batch.push(Message::Input(Input::Tick));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            batch.extend(messages.try_iter().take(BATCH_MAX - 1));
            if !self.batch(batch, &mut readable) {
                return;
            }
        }
    }

    fn patience(&self) -> Duration {
        let engine = match self.engine.next_deadline() {
            Some(deadline) => Duration::from_millis(deadline.millis_since(now())),
            None => IDLE,
        };
        if self.unwritten.is_empty() {
            engine
        } else {
            engine.min(RETRY)
        }
    }

    /// Decides, keeps, carries out; into `readable` the receivers to look at again. False: stop.
    fn batch(&mut self, batch: Vec<Message>, readable: &mut Vec<usize>) -> bool {
        let mut decided = Vec::new();
        let mut go_on = true;
        for message in batch {
            let (input, asker) = match message {
                Message::Input(input) => (input, Asker::Nobody),
                Message::Http(input, asker) => (input, Asker::Http(asker)),
                Message::Command(command, asker) => {
                    (Input::Command(command), Asker::Command(asker))
                }
                Message::Readable(index) => {
                    if self.receive(index, &mut decided) {
                        readable.push(index);
                    }
                    continue;
                }
                Message::Ask(question) => {
                    question(&self.engine);
                    continue;
                }
                Message::Stop => {
                    go_on = false;
                    break;
                }
            };
            decided.push((self.engine.handle(now(), input), asker));
        }
        self.carry_out(decided);
        go_on
    }

    /// Decides on the DHCP messages that wait. False: there were none, and the next one is told of.
    fn receive(&mut self, index: usize, decided: &mut Vec<(Vec<Output>, Asker)>) -> bool {
        let Some(receiver) = self.receivers.get_mut(index) else {
            return false;
        };
        let inputs: Vec<Input> = std::iter::from_fn(|| receiver.next())
            .take(DHCP_BATCH_MAX)
            .collect();
        if inputs.is_empty() {
            receiver.resume();
            return false;
        }
        for input in inputs {
            decided.push((self.engine.handle(now(), input), Asker::Nobody));
        }
        true
    }

    /// Nothing leaves before every record so far is durable, those of earlier batches included:
    /// the engine counts on them already. What is held back is dropped; whoever waits asks again.
    fn carry_out(&mut self, decided: Vec<(Vec<Output>, Asker)>) {
        let mut waiting = Vec::with_capacity(decided.len());
        for (outputs, asker) in decided {
            let outputs = outputs.into_iter().filter_map(|it| self.note(it));
            waiting.push((outputs.collect::<Vec<_>>(), asker));
        }
        let promises = self.unwritten.has_records();
        if promises {
            self.keep();
        }
        if !self.unwritten.has_records() {
            for (outputs, mut asker) in waiting {
                for output in outputs {
                    self.send(output, &mut asker);
                }
            }
        }
        // No answer waits for events alone.
        if !promises {
            self.keep();
        }
    }

    /// Takes what is to be written; the rest is to be sent.
    fn note(&mut self, output: Output) -> Option<Output> {
        match output {
            Output::Persist(record) => self.unwritten.record(record),
            Output::Event(event) => {
                self.learn(&event);
                self.unwritten.event(self.journal.number(event));
            }
            other => return Some(other),
        }
        None
    }

    /// Writes what is not written yet, and tells followers of the events among it.
    fn keep(&mut self) {
        let written = self.unwritten.write();
        if written.is_empty() {
            return;
        }
        self.journal.publish(&written);
        if let Some(notices) = &self.notices {
            // The receiver may be gone.
            let _ = notices.send(Notice::Events(written));
        }
    }

    fn send(&mut self, output: Output, asker: &mut Asker) {
        match output {
            // Noted, and written by now.
            Output::Persist(_) | Output::Event(_) => {}
            Output::Dhcp {
                interface,
                destination,
                packet,
            } => {
                if let Some(port) = self.dhcp.get(&interface) {
                    port.send(destination, &packet);
                }
            }
            Output::NoRouter {
                interface,
                destination,
            } => {
                if let Some(port) = self.routers.get(&interface) {
                    port.deny(destination);
                }
            }
            Output::Tftp { peer, answer } => self.tftp.start(peer, answer),
            // The receiver may be gone: the daemon stops.
            Output::Prepare { version, image } => drop(self.prepare.send((version, image))),
            Output::Http(answer) => {
                if let Asker::Http(asker) = std::mem::replace(asker, Asker::Nobody) {
                    let _ = asker.send(answer);
                }
            }
            Output::HoldHttp { boot } => {
                if let Asker::Http(asker) = std::mem::replace(asker, Asker::Nobody) {
                    self.hold(boot, asker);
                }
            }
            Output::AnswerHeld { boot, answer } => {
                if let Some(asker) = self.held.remove(&boot) {
                    let _ = asker.send(answer);
                }
            }
            // The receiver may be gone: the daemon stops.
            Output::Power { order, task } => drop(self.power.send((order, task))),
            Output::Reply(reply) => {
                if let Asker::Command(asker) = std::mem::replace(asker, Asker::Nobody) {
                    let _ = asker.send(reply);
                }
            }
        }
    }

    /// Has a request wait. Where too many do it is told to come again.
    fn hold(&mut self, boot: BootId, asker: oneshot::Sender<HttpAnswer>) {
        if self.held.len() >= HELD_MAX {
            self.held.retain(|_, asker| !asker.is_closed());
        }
        if self.held.len() < HELD_MAX || self.held.contains_key(&boot) {
            self.held.insert(boot, asker);
        }
    }

    /// Once a node is up, its version's trace is complete. Writing it waits for nobody here.
    fn learn(&self, event: &Event) {
        if let EventKind::Up {
            image: Some(digest),
            ..
        } = event.kind
        {
            let contents = Arc::clone(&self.tftp.contents);
            std::thread::spawn(move || contents.learn(digest));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;
    use std::path::Path;
    use std::sync::mpsc::{RecvError, channel, sync_channel};

    use engine::{Config, HttpRequest, Interface, NodeChange, Record};

    use super::*;
    use crate::content::Contents;
    use crate::state::State;

    fn hub(dir: &Path) -> Hub {
        let store = image::Store::open(dir.join("store")).unwrap();
        let contents = Contents::new(
            store,
            dir.to_owned(),
            dir.to_owned(),
            Arc::<[u8]>::default(),
            image::initramfs::Profile::Virtual,
        );
        let state = State::open(dir).unwrap();
        let interface = Interface::new(InterfaceId(1), [10, 77, 0, 1].into(), 24);
        let config = Config::new(vec![interface]);
        Hub {
            engine: Engine::new(config, [7; 32], state.records().unwrap()),
            journal: Arc::new(Journal::new(state.events().unwrap())),
            unwritten: Unwritten::new(state),
            notices: None,
            dhcp: HashMap::new(),
            routers: HashMap::new(),
            receivers: Vec::new(),
            prepare: channel().0,
            power: channel().0,
            held: HashMap::new(),
            tftp: tftp::Starter {
                contents: Arc::new(contents),
                hub: sync_channel(1).0,
                addresses: Vec::new(),
                running: Arc::default(),
            },
        }
    }

    /// What a command is answered, or that it is not.
    fn name(hub: &mut Hub, mac: &str, name: &str) -> Result<CommandResult, RecvError> {
        let (sender, receiver) = channel();
        let change = NodeChange {
            name: Some(name.into()),
            ..NodeChange::default()
        };
        let node = mac.to_owned();
        let command = engine::Command::NodeSet { node, change };
        hub.batch(vec![Message::Command(command, sender)], &mut Vec::new());
        receiver.recv()
    }

    fn names(dir: &Path) -> Vec<String> {
        let records = State::open(dir).unwrap().records().unwrap();
        let names = records.into_iter().filter_map(|record| match record {
            Record::Node(node) => Some(node.name),
            _ => None,
        });
        names.collect()
    }

    #[test]
    fn nothing_is_promised_until_every_earlier_record_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let mut hub = hub(dir.path());
        let (first, second) = ("52:54:00:00:00:01", "52:54:00:00:00:02");
        assert!(name(&mut hub, first, "one").unwrap().is_ok());
        assert_eq!(names(dir.path()), ["one"]);

        hub.unwritten.state.refuse_writes(true);
        assert!(name(&mut hub, second, "two").is_err());
        // This request needs no record of its own, but it comes after one.
        let (sender, mut receiver) = oneshot::channel();
        let peer = SocketAddrV4::new([10, 77, 0, 9].into(), 1000);
        let request = HttpRequest {
            method: "GET".into(),
            target: "/none".into(),
            body: Vec::new(),
        };
        let asked = Message::Http(Input::Http { peer, request }, sender);
        hub.batch(vec![asked], &mut Vec::new());
        assert!(receiver.try_recv().is_err());
        assert!(hub.patience() <= RETRY);

        hub.unwritten.state.refuse_writes(false);
        hub.batch(vec![Message::Input(Input::Tick)], &mut Vec::new());
        assert!(hub.unwritten.is_empty());
        assert_eq!(names(dir.path()), ["one", "two"]);
        assert!(name(&mut hub, second, "three").unwrap().is_ok());
        assert_eq!(names(dir.path()), ["one", "three"]);
    }

    #[test]
    fn a_failing_disk_keeps_one_record_of_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let mut hub = hub(dir.path());
        hub.unwritten.state.refuse_writes(true);
        for count in 0..50 {
            let named = name(&mut hub, "52:54:00:00:00:01", &format!("node{count}"));
            assert!(named.is_err());
        }
        assert!(hub.unwritten.waiting_records() < 5);
        hub.unwritten.state.refuse_writes(false);
        hub.batch(vec![Message::Input(Input::Tick)], &mut Vec::new());
        assert_eq!(names(dir.path()), ["node49"]);
    }
}
