//! One connection's calls, without its socket: bytes in, replies out.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::activity::{Activity, Observer};
use crate::content;
use crate::exports::{Export, PSEUDO_ID, Place, Table};
use crate::ident::{Keys, SessionId};
use crate::rpc::{self, Call, Framed, MAX_RECORD, Message, Refusal};
use crate::stats::{Client, Registry};
use crate::status::{Result, Status};
use crate::v3;
use crate::v4::compound;
use crate::v4::state::{Session, State};
use crate::xdr::{Malformed, Reader, Writer};

/// Sessions whose backchannel one connection may be.
const MAX_BACK_SESSIONS: usize = 16;

/// What all connections share.
pub(crate) struct Core {
    pub(crate) keys: Keys,
    pub(crate) state: State,
    pub(crate) clients: Registry,
    observer: Option<Arc<dyn Observer>>,
    /// Set for good once a mapping could not be sent: content is copied from then on.
    mistrusts_mappings: AtomicBool,
}

impl Core {
    pub(crate) fn new(key: &[u8; 32], observer: Option<Arc<dyn Observer>>) -> Core {
        let keys = Keys::new(key);
        Core {
            state: State::new(keys.clone()),
            keys,
            clients: Registry::new(),
            observer,
            mistrusts_mappings: AtomicBool::new(false),
        }
    }

    /// Takes note of why a reply could not be sent.
    pub(crate) fn note_send_error(&self, error: &io::Error) {
        let fault = rustix::io::Errno::FAULT.raw_os_error();
        if error.raw_os_error() == Some(fault) {
            self.mistrusts_mappings.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn observe(&self, activity: Activity) {
        if let Some(observer) = &self.observer {
            observer.observe(activity);
        }
    }
}

/// A connection.
pub(crate) struct Connection {
    pub(crate) client: Arc<Client>,
    /// The session of the last call.
    session: Option<Arc<Session>>,
    /// Sessions that have this connection as a backchannel.
    back: Vec<Arc<Session>>,
    /// The tree that was used last, the one that was found stale last, and the one that was found
    /// damaged last.
    used: [u8; 16],
    /// All that were used.
    trees: Vec<[u8; 16]>,
    stale: [u8; 16],
    damaged: [u8; 16],
    /// Earlier fragments of the record that is being received.
    fragments: Vec<u8>,
    pub(crate) scratch: Vec<u8>,
}

/// The peer does not speak RPC: the connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotRpc;

impl From<Malformed> for NotRpc {
    fn from(_: Malformed) -> NotRpc {
        NotRpc
    }
}

impl Connection {
    pub(crate) fn open(core: &Core, address: IpAddr) -> Connection {
        let client = core.clients.connect(address);
        if client.connections.load(Ordering::Relaxed) == 1 {
            core.observe(Activity::Connected { address });
        }
        Connection {
            client,
            session: None,
            back: Vec::new(),
            used: PSEUDO_ID,
            trees: Vec::new(),
            stale: PSEUDO_ID,
            damaged: PSEUDO_ID,
            fragments: Vec::new(),
            scratch: Vec::new(),
        }
    }

    pub(crate) fn close(&mut self, core: &Core) {
        for session in self.back.drain(..) {
            session.back_connections.fetch_sub(1, Ordering::Relaxed);
        }
        for tree in self.trees.drain(..) {
            self.client.end_use(tree);
        }
        if core.clients.disconnect(&self.client) {
            core.observe(Activity::Gone {
                address: self.client.address,
            });
        }
    }

    /// Bytes that are kept of an unfinished record.
    pub(crate) fn kept(&self) -> usize {
        self.fragments.len()
    }

    /// Takes the first fragment off `bytes` and answers the call that it completes, if it does: the
    /// reply is appended with its record mark. Returns what follows the fragment, or `None` while
    /// it is not whole.
    pub(crate) fn advance<'b>(
        &mut self,
        core: &Core,
        table: &Table,
        bytes: &'b [u8],
        reply: &mut Writer,
    ) -> std::result::Result<Option<&'b [u8]>, NotRpc> {
        let (body, last, rest) = match rpc::split_fragment(bytes) {
            Framed::Partial => return Ok(None),
            Framed::TooLong => return Err(NotRpc),
            Framed::Fragment { body, last, rest } => (body, last, rest),
        };
        if last && self.fragments.is_empty() {
            self.call(core, table, body, reply)?;
            return Ok(Some(rest));
        }
        let endless = body.is_empty() && !last;
        if endless || self.fragments.len() + body.len() > MAX_RECORD {
            return Err(NotRpc);
        }
        self.fragments.extend_from_slice(body);
        if last {
            let record = std::mem::take(&mut self.fragments);
            self.call(core, table, &record, reply)?;
        }
        Ok(Some(rest))
    }

    fn call(
        &mut self,
        core: &Core,
        table: &Table,
        record: &[u8],
        reply: &mut Writer,
    ) -> std::result::Result<(), Malformed> {
        let mark = rpc::begin_record(reply);
        let mut reader = Reader::new(record);
        match rpc::message(&mut reader)? {
            Message::Call(call) => self.dispatch(core, table, call, reader, reply),
            Message::WrongVersion { xid } => rpc::refuse(xid, Refusal::RpcMismatch, reply),
            Message::Reply => {}
        }
        rpc::end_record(mark, reply);
        Ok(())
    }

    fn dispatch(
        &mut self,
        core: &Core,
        table: &Table,
        call: Call,
        args: Reader<'_>,
        reply: &mut Writer,
    ) {
        self.client.tally.rpcs.fetch_add(1, Ordering::Relaxed);
        let start = reply.len();
        let result = match (call.program, call.version, call.procedure, call.credential) {
            (rpc::NFS, 3 | 4, 0, _) | (rpc::MOUNT, 3, 0, _) => {
                rpc::accept(call.xid, reply);
                Ok(())
            }
            (rpc::NFS, 4, 2.., _) | (rpc::NFS, 3, 22.., _) | (rpc::MOUNT, 3, 6.., _) => {
                Err(Refusal::ProcedureUnavailable)
            }
            (rpc::NFS, 3 | 4, _, None) | (rpc::MOUNT, 3, _, None) => Err(Refusal::AuthTooWeak),
            (rpc::NFS, 4, _, Some(credential)) => {
                rpc::accept(call.xid, reply);
                let garbage = |_| Refusal::GarbageArguments;
                compound::run(core, table, self, credential, args, reply, start).map_err(garbage)
            }
            (rpc::NFS, 3, procedure, Some(credential)) => {
                rpc::accept(call.xid, reply);
                v3::run(core, table, self, credential, procedure, args, reply)
            }
            (rpc::MOUNT, 3, procedure, Some(_)) => {
                rpc::accept(call.xid, reply);
                v3::mount::run(core, table, self, procedure, args, reply)
            }
            (rpc::NFS, ..) => Err(Refusal::ProgramMismatch(3, 4)),
            (rpc::MOUNT, ..) => Err(Refusal::ProgramMismatch(3, 3)),
            _ => Err(Refusal::ProgramUnavailable),
        };
        if let Err(refusal) = result {
            reply.truncate(start);
            rpc::refuse(call.xid, refusal, reply);
        }
    }

    /// Whether a session or an exported tree has been used over it.
    pub(crate) fn is_used(&self) -> bool {
        self.session.is_some() || !self.back.is_empty() || self.used != PSEUDO_ID
    }

    /// The session with this id.
    pub(crate) fn session(&mut self, core: &Core, id: &SessionId) -> Result<Arc<Session>> {
        if let Some(session) = &self.session
            && session.id == *id
            && !session.gone.load(Ordering::Relaxed)
        {
            return Ok(Arc::clone(session));
        }
        let session = core.state.session(id)?;
        if self.back.iter().any(|other| other.id == *id) {
            // It was dropped and is back: so is its backchannel.
            self.bind_back(&session);
        }
        self.session = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Makes this connection a backchannel of the session.
    pub(crate) fn bind_back(&mut self, session: &Arc<Session>) {
        if self.back.iter().any(|other| Arc::ptr_eq(other, session)) {
            return;
        }
        self.unbind(&session.id);
        if self.back.len() >= MAX_BACK_SESSIONS
            && let Some(id) = self.back.first().map(|oldest| oldest.id)
        {
            self.unbind(&id);
        }
        session.back_connections.fetch_add(1, Ordering::Relaxed);
        self.back.push(Arc::clone(session));
    }

    /// Forgets a session that is about to end.
    pub(crate) fn unbind(&mut self, id: &SessionId) {
        if let Some(at) = self.back.iter().position(|session| session.id == *id) {
            self.back
                .remove(at)
                .back_connections
                .fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The inode of a handle that a client has sent.
    pub(crate) fn open_handle<'t>(
        &mut self,
        core: &Core,
        table: &'t Table,
        handle: &[u8],
    ) -> Result<Place<'t>> {
        let (id, ino) = core.keys.open_handle(handle).ok_or(Status::BADHANDLE)?;
        let Some(export) = table.export(&id) else {
            self.note_stale(core, id);
            return Err(Status::STALE);
        };
        self.note_use(core, export);
        Ok(Place { export, ino })
    }

    /// Tells when a client begins to use a tree.
    #[inline]
    pub(crate) fn note_use(&mut self, core: &Core, export: &Export) {
        if self.used != export.id {
            self.used = export.id;
            self.note_first_use(core, export);
        }
    }

    fn note_first_use(&mut self, core: &Core, export: &Export) {
        const MAX_TREES: usize = 256;
        let known = export.id == PSEUDO_ID || self.trees.contains(&export.id);
        if known || self.trees.len() >= MAX_TREES {
            return;
        }
        self.trees.push(export.id);
        if self.client.begin_use(export.id) {
            core.observe(Activity::Mounted {
                address: self.client.address,
                id: export.id,
                path: export.path.clone(),
            });
        }
    }

    /// Appends `len` bytes of a file, which has them, and padding.
    pub(crate) fn append_content(
        &mut self,
        core: &Core,
        here: Place<'_>,
        (offset, len): (u64, u32),
        reply: &mut Writer,
    ) -> Result {
        let copied = core.mistrusts_mappings.load(Ordering::Relaxed);
        let appended = content::append(here, offset, len, copied, reply);
        match appended {
            Ok(()) => self.client.tally.read(len),
            Err(_) => self.note_damaged(core, here.export.id),
        }
        appended
    }

    /// Tells when a tree cannot give what it should have.
    fn note_damaged(&mut self, core: &Core, id: [u8; 16]) {
        if self.damaged != id {
            self.damaged = id;
            core.observe(Activity::Damaged {
                address: self.client.address,
                id,
            });
        }
    }

    /// Tells when a client uses a tree that is not exported.
    fn note_stale(&mut self, core: &Core, id: [u8; 16]) {
        self.client.tally.stale.fetch_add(1, Ordering::Relaxed);
        if self.stale != id {
            self.stale = id;
            core.observe(Activity::Stale {
                address: self.client.address,
                id,
            });
        }
    }
}
