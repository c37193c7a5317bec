//! Clients and sessions.
//!
//! Both tables are caches: a session or client id says what it stands for, so an entry that was
//! dropped, or made by a predecessor of this process, comes back with the next call. What was
//! destroyed on purpose is remembered for a while, so that its end holds.
//!
//! That is also why the tables can be bounded: a stranger who fills them only makes others come
//! back, and what a connection is using goes last.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::ident::{Keys, SessionId, SessionParts};
use crate::rpc::MAX_RECORD;
use crate::status::{Result, Status};

/// Slots of a session.
pub(crate) const MAX_SLOTS: u32 = 64;
/// Operations of a compound.
pub(crate) const MAX_OPERATIONS: u32 = 64;
/// Longest reply: a READ of full size and what is around it.
pub(crate) const MAX_REPLY: u32 = crate::content::MAX_READ + (64 << 10);
/// Longest reply that is kept for a repetition of its call, and how many of them a session has.
const MAX_KEPT_REPLY: usize = 1024;
const MAX_KEPT_REPLIES: usize = 8;
const MAX_CLIENTS: usize = 16384;
/// A client needs one.
const MAX_SESSIONS_PER_CLIENT: usize = 16;
const MAX_SESSIONS_PER_SHARD: usize = 2048;
const SHARDS: usize = 16;
/// Ends of sessions and clients that are remembered.
const MAX_ENDED: usize = 8192;
/// So many restarts of one client within the time are several clients with one name.
const COLLISION_RESTARTS: u32 = 4;
/// Incarnations of an owner that wait for their end.
const MAX_EARLIER: usize = 8;
const COLLISION_WINDOW: Duration = Duration::from_secs(60);

/// A session.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) client: u64,
    /// The client asked for a backchannel.
    pub(crate) wants_back: bool,
    /// Longest request that it said it would send, and longest reply that it takes.
    pub(crate) max_request: u32,
    pub(crate) max_reply: u32,
    pub(crate) max_operations: u32,
    /// Live connections that are its backchannel.
    pub(crate) back_connections: AtomicUsize,
    /// It is not in the table any more: ended, or dropped and perhaps back as another.
    pub(crate) gone: AtomicBool,
    pub(crate) reclaim_complete: AtomicBool,
    slot_count: u32,
    /// It was made by a predecessor of this process.
    restored: bool,
    slots: Mutex<Vec<Slot>>,
}

#[derive(Default)]
struct Slot {
    /// The last sequence id; `None` while it is unknown.
    sequence: Option<u32>,
    /// A call has been taken in it.
    used: bool,
    /// The reply, where doing the call again would not give it again.
    reply: Option<Box<[u8]>>,
}

/// What SEQUENCE has to do with a call.
pub(crate) enum Turn {
    /// Run it. A repeated call without a kept reply is run again: the answer is the same.
    Run,
    /// Send this again.
    Replay(Box<[u8]>),
}

impl Session {
    pub(crate) fn highest_slot(&self) -> u32 {
        self.slot_count - 1
    }

    /// Takes a call in a slot (RFC 8881, section 2.10.6.1).
    pub(crate) fn take_turn(&self, slot: u32, sequence: u32) -> Result<Turn> {
        if slot >= self.slot_count {
            return Err(Status::BADSLOT);
        }
        let mut slots = lock(&self.slots);
        while slots.len() <= slot as usize {
            slots.push(Slot {
                sequence: (!self.restored).then_some(0),
                ..Slot::default()
            });
        }
        let slot = slots.get_mut(slot as usize).ok_or(Status::BADSLOT)?;
        match slot.sequence {
            Some(last) if last == sequence && slot.used => {
                return Ok(slot.reply.clone().map_or(Turn::Run, Turn::Replay));
            }
            Some(last) if last.wrapping_add(1) != sequence => return Err(Status::SEQ_MISORDERED),
            _ => {}
        }
        *slot = Slot {
            sequence: Some(sequence),
            used: true,
            reply: None,
        };
        Ok(Turn::Run)
    }

    /// Keeps the reply of the call that is in the slot, if it is one of few and short.
    pub(crate) fn keep_reply(&self, slot: u32, reply: &[u8]) {
        if reply.len() > MAX_KEPT_REPLY {
            return;
        }
        let mut slots = lock(&self.slots);
        let mut kept = slots.iter_mut().filter(|slot| slot.reply.is_some());
        if let Some(other) = kept.nth(MAX_KEPT_REPLIES - 1) {
            other.reply = None;
        }
        if let Some(slot) = slots.get_mut(slot as usize) {
            slot.reply = Some(reply.into());
        }
    }

    pub(crate) fn has_back(&self) -> bool {
        self.back_connections.load(Ordering::Relaxed) > 0
    }
}

/// What a client asks of a new session.
#[derive(Clone, Copy)]
pub(crate) struct SessionShape {
    pub(crate) back: bool,
    pub(crate) slot_count: u32,
    pub(crate) max_request: u32,
    pub(crate) max_reply: u32,
    pub(crate) max_operations: u32,
}

/// The clients and sessions of a server.
pub(crate) struct State {
    keys: Keys,
    clients: Mutex<Clients>,
    sessions: [Mutex<HashMap<SessionId, Arc<Session>>>; SHARDS],
    ended_sessions: Mutex<Recent<SessionId>>,
    nonce: AtomicU32,
}

#[derive(Default)]
struct Clients {
    by_id: HashMap<u64, Client>,
    by_owner: HashMap<OwnerKey, Owner>,
    /// By the moment of the last call on the client itself.
    by_age: BTreeMap<u64, u64>,
    next_age: u64,
    ended: Recent<u64>,
}

type OwnerKey = (IpAddr, Box<[u8]>);

/// A client: one incarnation of an owner.
#[derive(Default)]
struct Client {
    owner: Option<OwnerKey>,
    confirmed: bool,
    /// The sequence id of the last CREATE_SESSION, `None` while it is unknown, and its reply.
    created: Option<u32>,
    create_reply: Option<Box<[u8]>>,
    sessions: Vec<(SessionId, Weak<Session>)>,
    age: u64,
}

/// A name at an address.
struct Owner {
    current: u64,
    /// What it was before, until the current one is confirmed.
    earlier: Vec<u64>,
    restarts: u32,
    since: Instant,
    collides: bool,
}

/// What EXCHANGE_ID learns.
pub(crate) struct Exchanged {
    pub(crate) client: u64,
    /// The sequence id that CREATE_SESSION has to carry.
    pub(crate) sequence: u32,
    pub(crate) confirmed: bool,
    /// Several clients share the name; told when it is noticed.
    pub(crate) collision: bool,
}

/// What CREATE_SESSION comes to.
pub(crate) enum Created {
    Session(Arc<Session>),
    /// The call is a repetition: send this again.
    Replay(Box<[u8]>),
}

impl State {
    pub(crate) fn new(keys: Keys) -> State {
        State {
            keys,
            clients: Mutex::default(),
            sessions: Default::default(),
            ended_sessions: Mutex::default(),
            nonce: AtomicU32::new(RandomState::new().hash_one(0) as u32),
        }
    }

    /// A number that is unlikely to come again.
    pub(crate) fn nonce(&self) -> u32 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }

    /// EXCHANGE_ID (RFC 8881, section 18.35.4). The id follows from owner, address and verifier: a
    /// client that asks twice gets the same, and one that restarted another.
    pub(crate) fn exchange(
        &self,
        owner: &[u8],
        address: IpAddr,
        verifier: [u8; 8],
        update: bool,
    ) -> Result<Exchanged> {
        let id = self.keys.client_id(owner, address, verifier);
        let key: OwnerKey = (address, owner.into());
        let mut clients = lock(&self.clients);
        let known = clients
            .by_id
            .get(&id)
            .is_some_and(|client| client.confirmed);
        if update && !known {
            let other = clients.has_confirmed(&key);
            return Err(if other {
                Status::NOT_SAME
            } else {
                Status::NOENT
            });
        }
        clients.ended.remove(&id);
        let client = clients.admit(id);
        client.owner = Some(key.clone());
        if !client.confirmed && client.created.is_none() {
            client.created = Some(0);
        }
        let sequence = client.created.map_or(1, |last| last.wrapping_add(1));
        let collision = clients.note_incarnation(key, id);
        Ok(Exchanged {
            client: id,
            sequence,
            confirmed: known,
            collision,
        })
    }

    /// CREATE_SESSION (RFC 8881, section 18.36.4): makes the session, confirms the client and ends
    /// what an earlier incarnation of it had.
    pub(crate) fn create(
        &self,
        client: u64,
        sequence: u32,
        shape: SessionShape,
    ) -> Result<Created> {
        let mut clients = lock(&self.clients);
        if !self.keys.is_client_id(client) || clients.ended.contains(&client) {
            return Err(Status::STALE_CLIENTID);
        }
        let record = clients.admit(client);
        match (record.created, &record.create_reply) {
            (Some(last), Some(reply)) if last == sequence => {
                return Ok(Created::Replay(reply.clone()));
            }
            (Some(last), _) if last.wrapping_add(1) != sequence => {
                return Err(Status::SEQ_MISORDERED);
            }
            _ => {}
        }
        let parts = SessionParts {
            client,
            back: shape.back,
        };
        let session = Arc::new(Session::new(
            self.keys.session_id(parts, self.nonce()),
            parts,
            shape,
            false,
        ));
        record.created = Some(sequence);
        record.create_reply = None;
        record.confirmed = true;
        let dropped = record.add_session(&session);
        let ended = clients.end_earlier_incarnations(client);
        drop(clients);
        for id in ended {
            self.end_session(&id);
        }
        if let Some(id) = dropped {
            drop_session(&mut lock(self.shard(&id)), &id);
        }
        self.insert(Arc::clone(&session));
        Ok(Created::Session(session))
    }

    /// Keeps the reply of a CREATE_SESSION.
    pub(crate) fn keep_create_reply(&self, client: u64, reply: &[u8]) {
        if let Some(client) = lock(&self.clients).by_id.get_mut(&client) {
            client.create_reply = Some(reply.into());
        }
    }

    /// DESTROY_CLIENTID (RFC 8881, section 18.50).
    pub(crate) fn destroy_client(&self, client: u64) -> Result {
        let mut clients = lock(&self.clients);
        if !self.keys.is_client_id(client) || clients.ended.contains(&client) {
            return Err(Status::STALE_CLIENTID);
        }
        if clients
            .by_id
            .get(&client)
            .is_some_and(|client| !client.sessions.is_empty())
        {
            return Err(Status::CLIENTID_BUSY);
        }
        clients.forget(client);
        clients.ended.insert(client);
        Ok(())
    }

    /// The session with this id, from this process or a predecessor.
    pub(crate) fn session(&self, id: &SessionId) -> Result<Arc<Session>> {
        if let Some(session) = lock(self.shard(id)).get(id) {
            return Ok(Arc::clone(session));
        }
        let parts = self.keys.open_session_id(id).ok_or(Status::BADSESSION)?;
        if lock(&self.ended_sessions).contains(id) {
            return Err(Status::BADSESSION);
        }
        self.restore(id, parts)
    }

    fn restore(&self, id: &SessionId, parts: SessionParts) -> Result<Arc<Session>> {
        let mut clients = lock(&self.clients);
        if clients.ended.contains(&parts.client) {
            return Err(Status::BADSESSION);
        }
        let shape = SessionShape {
            back: parts.back,
            slot_count: MAX_SLOTS,
            max_request: MAX_RECORD as u32,
            max_reply: MAX_REPLY,
            max_operations: MAX_OPERATIONS,
        };
        let session = self.insert(Arc::new(Session::new(*id, parts, shape, true)));
        let client = clients.admit(parts.client);
        client.confirmed = true;
        let dropped = client.add_session(&session);
        drop(clients);
        if let Some(id) = dropped {
            drop_session(&mut lock(self.shard(&id)), &id);
        }
        Ok(session)
    }

    /// DESTROY_SESSION (RFC 8881, section 18.37).
    pub(crate) fn destroy_session(&self, id: &SessionId) -> Result {
        let session = self.session(id)?;
        self.end_session(id);
        if let Some(client) = lock(&self.clients).by_id.get_mut(&session.client) {
            client.sessions.retain(|(other, _)| other != id);
        }
        Ok(())
    }

    fn end_session(&self, id: &SessionId) {
        lock(&self.ended_sessions).insert(*id);
        drop_session(&mut lock(self.shard(id)), id);
    }

    /// Inserts a session; returns the one that is there if another thread was faster.
    fn insert(&self, session: Arc<Session>) -> Arc<Session> {
        let mut shard = lock(self.shard(&session.id));
        if shard.len() >= MAX_SESSIONS_PER_SHARD && !shard.contains_key(&session.id) {
            // Whoever is dropped comes back with its next call.
            let victim = shard
                .values()
                .find(|session| Arc::strong_count(session) == 1)
                .or(shard.values().next());
            if let Some(id) = victim.map(|session| session.id) {
                drop_session(&mut shard, &id);
            }
        }
        Arc::clone(shard.entry(session.id).or_insert(session))
    }

    fn shard(&self, id: &SessionId) -> &Mutex<HashMap<SessionId, Arc<Session>>> {
        &self.sessions[usize::from(id[15]) % SHARDS]
    }
}

/// Takes a session out of its table; connections that use it look for it again.
fn drop_session(shard: &mut HashMap<SessionId, Arc<Session>>, id: &SessionId) {
    if let Some(session) = shard.remove(id) {
        session.gone.store(true, Ordering::Relaxed);
    }
}

impl Session {
    fn new(id: SessionId, parts: SessionParts, shape: SessionShape, restored: bool) -> Session {
        Session {
            id,
            client: parts.client,
            wants_back: parts.back,
            max_request: shape.max_request,
            max_reply: shape.max_reply,
            max_operations: shape.max_operations,
            back_connections: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            reclaim_complete: AtomicBool::new(false),
            slot_count: shape.slot_count,
            restored,
            slots: Mutex::default(),
        }
    }
}

impl Client {
    /// Adds a session; returns another one to be dropped if there are too many, one that no
    /// connection uses before others.
    fn add_session(&mut self, session: &Arc<Session>) -> Option<SessionId> {
        self.sessions.retain(|(id, _)| *id != session.id);
        let dropped = (self.sessions.len() >= MAX_SESSIONS_PER_CLIENT).then(|| {
            let idle = self.sessions.iter().position(|(_, it)| !is_used(it));
            self.sessions.remove(idle.unwrap_or(0)).0
        });
        self.sessions.push((session.id, Arc::downgrade(session)));
        dropped
    }

    fn is_used(&self) -> bool {
        self.sessions.iter().any(|(_, session)| is_used(session))
    }
}

/// Whether a connection uses the session: someone besides the table has it.
fn is_used(session: &Weak<Session>) -> bool {
    session.strong_count() > 1
}

impl Clients {
    /// Whether any incarnation of an owner is confirmed.
    fn has_confirmed(&self, key: &OwnerKey) -> bool {
        let is_confirmed = |id| {
            let client = self.by_id.get(id);
            client.is_some_and(|client| client.confirmed)
        };
        let owner = self.by_owner.get(key);
        owner.is_some_and(|owner| {
            is_confirmed(&owner.current) || owner.earlier.iter().any(is_confirmed)
        })
    }

    /// The client with this id, which is made if it is not there: it becomes the youngest.
    fn admit(&mut self, id: u64) -> &mut Client {
        if !self.by_id.contains_key(&id) {
            self.make_room();
        }
        let client = self.by_id.entry(id).or_default();
        self.next_age += 1;
        self.by_age.remove(&client.age);
        client.age = self.next_age;
        self.by_age.insert(client.age, id);
        client
    }

    /// Drops the oldest client that nobody uses, if the table is full. Those in use on the way
    /// become young, so that the next search does not meet them again.
    fn make_room(&mut self) {
        if self.by_id.len() < MAX_CLIENTS {
            return;
        }
        for _ in 0..MAX_CLIENTS {
            let Some((_, id)) = self.by_age.first_key_value() else {
                return;
            };
            let id = *id;
            if !self.by_id.get(&id).is_some_and(Client::is_used) {
                return self.forget(id);
            }
            self.admit(id);
        }
        if let Some((_, id)) = self.by_age.first_key_value() {
            self.forget(*id);
        }
    }

    fn remove(&mut self, id: u64) -> Option<Client> {
        let client = self.by_id.remove(&id)?;
        self.by_age.remove(&client.age);
        Some(client)
    }

    fn forget(&mut self, id: u64) {
        let owner = self.remove(id).and_then(|client| client.owner);
        if let Some(owner) = owner
            && self
                .by_owner
                .get(&owner)
                .is_some_and(|owner| owner.current == id)
        {
            self.by_owner.remove(&owner);
        }
    }

    /// Remembers the newest incarnation of an owner; true when it turns out to be several clients.
    fn note_incarnation(&mut self, key: OwnerKey, id: u64) -> bool {
        let now = Instant::now();
        let fresh = || Owner {
            current: id,
            earlier: Vec::new(),
            restarts: 0,
            since: now,
            collides: false,
        };
        let owner = self.by_owner.entry(key).or_insert_with(fresh);
        if owner.current == id {
            return false;
        }
        owner.earlier.retain(|other| *other != id);
        if owner.earlier.len() < MAX_EARLIER {
            owner.earlier.push(owner.current);
        }
        owner.current = id;
        if now.duration_since(owner.since) > COLLISION_WINDOW {
            owner.since = now;
            owner.restarts = 0;
        }
        owner.restarts += 1;
        let noticed = owner.restarts >= COLLISION_RESTARTS && !owner.collides;
        owner.collides |= noticed;
        noticed
    }

    /// Forgets the other incarnations of a client's owner, unless they are really other clients;
    /// returns their sessions.
    fn end_earlier_incarnations(&mut self, id: u64) -> Vec<SessionId> {
        let Some(key) = self.by_id.get(&id).and_then(|client| client.owner.clone()) else {
            return Vec::new();
        };
        let Some(owner) = self
            .by_owner
            .get_mut(&key)
            .filter(|owner| owner.current == id)
        else {
            return Vec::new();
        };
        let earlier = std::mem::take(&mut owner.earlier);
        if owner.collides {
            return Vec::new();
        }
        let mut sessions = Vec::new();
        for other in earlier {
            if let Some(client) = self.remove(other) {
                sessions.extend(client.sessions.into_iter().map(|(id, _)| id));
            }
            self.ended.insert(other);
        }
        sessions
    }
}

/// The last things that were put in.
struct Recent<T> {
    set: HashSet<T>,
    order: VecDeque<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent {
            set: HashSet::new(),
            order: VecDeque::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> Recent<T> {
    fn contains(&self, value: &T) -> bool {
        self.set.contains(value)
    }

    fn insert(&mut self, value: T) {
        if !self.set.insert(value) {
            return;
        }
        self.order.push_back(value);
        if self.order.len() > MAX_ENDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    fn remove(&mut self, value: &T) {
        if self.set.remove(value) {
            self.order.retain(|other| other != value);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: SessionShape = SessionShape {
        back: true,
        slot_count: MAX_SLOTS,
        max_request: MAX_RECORD as u32,
        max_reply: MAX_REPLY,
        max_operations: MAX_OPERATIONS,
    };
    const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn state() -> State {
        State::new(Keys::new(&[7; 32]))
    }

    fn client(state: &State, address: IpAddr, owner: &[u8]) -> u64 {
        let exchanged = state.exchange(owner, address, [1; 8], false);
        exchanged.unwrap_or_else(|_| panic!("a client id")).client
    }

    fn session(state: &State, client: u64, sequence: u32) -> Arc<Session> {
        match state.create(client, sequence, SHAPE) {
            Ok(Created::Session(session)) => session,
            _ => panic!("a session"),
        }
    }

    fn sessions(state: &State) -> usize {
        state.sessions.iter().map(|shard| lock(shard).len()).sum()
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_spares_the_client_that_is_there() {
        let state = state();
        let node = client(&state, NODE, b"node");
        let held = session(&state, node, 1);
        for index in 0..MAX_CLIENTS as u32 + 100 {
            client(&state, STRANGER, &index.to_be_bytes());
        }
        let clients = lock(&state.clients);
        assert_eq!(clients.by_id.len(), MAX_CLIENTS);
        assert_eq!(clients.by_age.len(), MAX_CLIENTS);
        assert!(clients.by_owner.len() <= MAX_CLIENTS);
        assert!(clients.by_id.contains_key(&node));
        drop(clients);
        assert!(!held.gone.load(Ordering::Relaxed));
        // Nor do names and their ends come to more.
        for index in 0..MAX_ENDED as u32 + 100 {
            let gone = client(&state, STRANGER, &index.to_le_bytes());
            assert_eq!(state.destroy_client(gone), Ok(()));
        }
        let clients = lock(&state.clients);
        assert_eq!(clients.by_id.len(), clients.by_age.len());
        assert_eq!(clients.ended.set.len(), MAX_ENDED);
        assert_eq!(clients.ended.order.len(), MAX_ENDED);
    }

    #[test]
    fn client_ids_that_were_dropped_come_back_within_the_bound() {
        let state = state();
        let ids: Vec<u64> = (0..MAX_CLIENTS as u32 + 100)
            .map(|index| client(&state, STRANGER, &index.to_be_bytes()))
            .collect();
        for id in ids {
            session(&state, id, 1);
        }
        assert_eq!(lock(&state.clients).by_id.len(), MAX_CLIENTS);
    }

    #[test]
    fn a_client_has_few_sessions_and_keeps_those_that_it_uses() {
        let state = state();
        let node = client(&state, NODE, b"node");
        let used = session(&state, node, 1);
        let many: Vec<SessionId> = (2..100)
            .map(|sequence| session(&state, node, sequence).id)
            .collect();
        assert_eq!(sessions(&state), MAX_SESSIONS_PER_CLIENT);
        assert!(!used.gone.load(Ordering::Relaxed));
        assert!(Arc::ptr_eq(&used, &state.session(&used.id).unwrap()));
        // Dropped ones are good all the same.
        for id in many {
            assert!(state.session(&id).is_ok());
        }
        assert_eq!(sessions(&state), MAX_SESSIONS_PER_CLIENT);
        assert!(Arc::ptr_eq(&used, &state.session(&used.id).unwrap()));
    }

    #[test]
    fn a_flood_of_sessions_is_bounded_and_spares_those_in_use() {
        let state = state();
        let held = session(&state, client(&state, NODE, b"node"), 1);
        for index in 0..3000_u32 {
            let stranger = client(&state, STRANGER, &index.to_be_bytes());
            for sequence in 1..=MAX_SESSIONS_PER_CLIENT as u32 {
                session(&state, stranger, sequence);
            }
        }
        assert!(sessions(&state) <= SHARDS * MAX_SESSIONS_PER_SHARD);
        assert!(Arc::ptr_eq(&held, &state.session(&held.id).unwrap()));
    }

    #[test]
    fn slots_and_kept_replies_are_bounded() {
        let state = state();
        let session = session(&state, client(&state, NODE, b"node"), 1);
        assert_eq!(session.take_turn(MAX_SLOTS, 1).err(), Some(Status::BADSLOT));
        for slot in 0..MAX_SLOTS {
            assert!(session.take_turn(slot, 1).is_ok());
            session.keep_reply(slot, &[0; MAX_KEPT_REPLY]);
        }
        let replayed = |slot| matches!(session.take_turn(slot, 1), Ok(Turn::Replay(_)));
        assert!(replayed(MAX_SLOTS - 1), "the last call may be repeated");
        let count = (0..MAX_SLOTS).filter(|slot| replayed(*slot)).count();
        assert_eq!(count, MAX_KEPT_REPLIES);
        assert!(session.take_turn(0, 2).is_ok());
        session.keep_reply(0, &[0; MAX_KEPT_REPLY + 1]);
        assert!(!replayed(0));
    }

    #[test]
    fn sequence_numbers_go_on_over_zero() {
        let state = state();
        let session = session(&state, client(&state, NODE, b"node"), 1);
        assert_eq!(session.take_turn(0, 0).err(), Some(Status::SEQ_MISORDERED));
        if let Some(slot) = lock(&session.slots).first_mut() {
            slot.sequence = Some(u32::MAX);
        }
        for sequence in [0, 0, 1] {
            assert!(session.take_turn(0, sequence).is_ok(), "{sequence}");
        }
    }
}
