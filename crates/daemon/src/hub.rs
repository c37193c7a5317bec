//! The one loop over the engine. Everything that comes in becomes a [`Message`]; a batch of them
//! is decided, written in one transaction, and then carried out in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::{
    CommandError, CommandReply, Engine, HttpAnswer, Input, InterfaceId, Output, Record, Timestamp,
};

use crate::Notice;
use crate::control::EventRecord;
use crate::journal::Journal;
use crate::net::{dhcp, tftp};
use crate::state::State;

/// Most messages decided before their outputs are carried out.
const BATCH_MAX: usize = 256;
/// How long to sleep where the engine waits for nothing.
const IDLE: Duration = Duration::from_secs(3600);

/// What a command answers.
pub type CommandResult = Result<CommandReply, CommandError>;

/// Something for the loop.
pub enum Message {
    /// An input whose outputs go where they belong.
    Input(Input),
    /// An HTTP request, and where its answer goes.
    Http(Input, tokio::sync::oneshot::Sender<HttpAnswer>),
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
    Http(tokio::sync::oneshot::Sender<HttpAnswer>),
    Command(Sender<CommandResult>),
}

/// All that the loop drives.
pub struct Hub {
    /// Every decision.
    pub engine: Engine,
    /// Where they are kept.
    pub state: State,
    /// Where events go.
    pub journal: Arc<Journal>,
    /// Told of every event.
    pub notices: Option<Sender<Notice>>,
    /// Sends DHCP replies.
    pub dhcp: HashMap<InterfaceId, dhcp::Port>,
    /// Starts TFTP transfers.
    pub tftp: tftp::Starter,
}

/// The time as the engine counts it.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(since.as_millis() as u64)
}

impl Hub {
    /// Runs until [`Message::Stop`].
    pub fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let first = match messages.recv_timeout(self.patience()) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => Message::Input(Input::Tick),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let rest = messages.try_iter().take(BATCH_MAX - 1);
            let batch: Vec<Message> = std::iter::once(first).chain(rest).collect();
            if !self.batch(batch) {
                return;
            }
        }
    }

    fn patience(&self) -> Duration {
        match self.engine.next_deadline() {
            Some(deadline) => Duration::from_millis(deadline.millis_since(now())),
            None => IDLE,
        }
    }

    /// Decides, keeps, carries out. False: stop.
    fn batch(&mut self, batch: Vec<Message>) -> bool {
        let mut decided = Vec::new();
        let mut go_on = true;
        for message in batch {
            let (input, asker) = match message {
                Message::Input(input) => (input, Asker::Nobody),
                Message::Http(input, asker) => (input, Asker::Http(asker)),
                Message::Command(command, asker) => {
                    (Input::Command(command), Asker::Command(asker))
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

    fn carry_out(&mut self, decided: Vec<(Vec<Output>, Asker)>) {
        let events = self.tell(&decided);
        let outputs = || decided.iter().flat_map(|(outputs, _)| outputs);
        let records: Vec<&Record> = outputs()
            .filter_map(|output| match output {
                Output::Persist(record) => Some(record),
                _ => None,
            })
            .collect();
        let kept = self.state.write(&records, &events);
        if let Err(error) = &kept {
            tracing::error!(%error, hint = error.hint(), "what was decided could not be kept, so it is not promised");
        }
        for (outputs, mut asker) in decided {
            for output in outputs {
                // What stands behind a record that is not durable must not leave.
                if matches!(output, Output::Persist(_)) && kept.is_err() {
                    break;
                }
                self.send(output, &mut asker);
            }
        }
    }

    fn tell(&self, decided: &[(Vec<Output>, Asker)]) -> Vec<EventRecord> {
        let mut records = Vec::new();
        for output in decided.iter().flat_map(|(outputs, _)| outputs) {
            let Output::Event(event) = output else {
                continue;
            };
            let record = self.journal.add(event);
            if let Some(notices) = &self.notices {
                // The receiver may be gone.
                let _ = notices.send(Notice::Event(record.clone()));
            }
            records.push(record);
        }
        records
    }

    fn send(&mut self, output: Output, asker: &mut Asker) {
        match output {
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
            Output::Tftp { peer, answer } => self.tftp.start(peer, answer),
            Output::Http(answer) => {
                if let Asker::Http(asker) = std::mem::replace(asker, Asker::Nobody) {
                    let _ = asker.send(answer);
                }
            }
            Output::Reply(reply) => {
                if let Asker::Command(asker) = std::mem::replace(asker, Asker::Nobody) {
                    let _ = asker.send(reply);
                }
            }
        }
    }
}
