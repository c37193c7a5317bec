//! The operations on open files.
//!
//! A state id says itself which client has which file open, so that there is no table of open
//! files: opening, locking and closing change nothing here. On a tree that never changes nothing
//! can conflict, as only read access and read locks are granted.

use super::attr::change;
use super::compound::Compound;
use super::ops;
use crate::access;
use crate::content::MAX_READ;
use crate::exports::Place;
use crate::ident::{StateKind, StateOther};
use crate::status::{Result, Status};
use crate::tree::{Attr, FileKind, Whence};
use crate::xdr::{Bitmap, Reader, Writer};

const SHARE_READ: u32 = 1;
const SHARE_ACCESS_MASK: u32 = 3;
const WANT_MASK: u32 = 0xff00;
const WANT_NO_DELEGATION: u32 = 0x400;
const WANT_CANCEL: u32 = 0x500;
const WANT_OPEN_XOR_DELEGATION: u32 = 0x20_0000;
const RESULT_LOCKTYPE_POSIX: u32 = 4;
const RESULT_NO_OPEN_STATE: u32 = 0x10;
const DELEGATE_NONE: u32 = 0;
const DELEGATE_READ: u32 = 1;
const DELEGATE_NONE_EXT: u32 = 3;
const WHY_NOT_WANTED: u32 = 0;
const WHY_RESOURCE: u32 = 2;
const WHY_CANCELLED: u32 = 7;
const READ_LOCKS: [u32; 2] = [1, 3];
const WRITE_LOCKS: [u32; 2] = [2, 4];

/// A state id: sequence number and the rest.
type StateId = (u32, StateOther);
const ANONYMOUS: StateId = (0, [0; 12]);
const READ_BYPASS: StateId = (u32::MAX, [255; 12]);
const CURRENT: StateId = (1, [0; 12]);
const INVALID: StateId = (u32::MAX, [0; 12]);

/// How OPEN names its file.
enum Claim<'a> {
    /// By name in the current directory.
    Name(&'a [u8]),
    /// It is the current file handle.
    Handle,
}

/// The arguments of OPEN.
struct OpenArgs<'a> {
    share: u32,
    /// Whether it may make the file, and whether that must not be there before.
    create: Option<bool>,
    claim: Claim<'a>,
}

impl<'a> OpenArgs<'a> {
    fn read(args: &mut Reader<'a>) -> Result<OpenArgs<'a>> {
        let _sequence = args.u32()?;
        let share = args.u32()?;
        let _deny = args.u32()?;
        skip_owner(args)?;
        let create = match args.u32()? {
            0 => None,
            1 => Some(read_create_mode(args)?),
            _ => return Err(Status::BADXDR),
        };
        let claim = match args.u32()? {
            0 => Claim::Name(args.opaque(4096)?),
            1 => {
                let _delegation = args.u32()?;
                Claim::Handle
            }
            2 => {
                read_state(args)?;
                Claim::Name(args.opaque(4096)?)
            }
            3 => Claim::Name(args.opaque(4096)?),
            4 | 6 => Claim::Handle,
            5 => {
                read_state(args)?;
                Claim::Handle
            }
            _ => return Err(Status::BADXDR),
        };
        Ok(OpenArgs {
            share,
            create,
            claim,
        })
    }
}

fn read_create_mode(args: &mut Reader<'_>) -> Result<bool> {
    let mode = args.u32()?;
    if mode == 2 || mode == 3 {
        let _verifier: [u8; 8] = args.array()?;
    }
    if mode != 2 {
        let _attributes = (args.bitmap()?, args.opaque(64 << 10)?);
    }
    match mode {
        0 => Ok(false),
        1..=3 => Ok(true),
        _ => Err(Status::BADXDR),
    }
}

fn skip_owner(args: &mut Reader<'_>) -> Result {
    let _owner = (args.u64()?, args.opaque(1024)?);
    Ok(())
}

fn read_state(args: &mut Reader<'_>) -> Result<StateId> {
    Ok((args.u32()?, args.array()?))
}

fn write_state(state: StateId, reply: &mut Writer) {
    reply.u32(state.0);
    reply.fixed(&state.1);
}

/// The same state after an operation on it; sequence numbers leave 0 out.
fn next(state: StateId) -> StateId {
    (state.0.checked_add(1).unwrap_or(1), state.1)
}

impl<'a> Compound<'a> {
    /// The current file handle, which has to be a regular file.
    fn file(&self) -> Result<(Place<'a>, Attr)> {
        let here = self.here()?;
        let attr = here.attr()?;
        match attr.kind {
            FileKind::Regular => Ok((here, attr)),
            FileKind::Directory => Err(Status::ISDIR),
            FileKind::Symlink => Err(Status::SYMLINK),
            _ => Err(Status::WRONG_TYPE),
        }
    }

    pub(super) fn open(&mut self) -> Result {
        let args = OpenArgs::read(&mut self.args)?;
        match args.share & SHARE_ACCESS_MASK {
            0 => return Err(Status::INVAL),
            SHARE_READ => {}
            _ => return self.here().and(Err(Status::ROFS)),
        }
        let before = self.here()?.attr()?;
        if let Claim::Name(name) = args.claim {
            let found = match (self.find(name), args.create) {
                (Err(Status::NOENT), Some(_)) => Err(Status::ROFS),
                (Ok(_), Some(true)) => Err(Status::EXIST),
                (found, _) => found,
            };
            self.go(found?);
        }
        let (here, attr) = self.file()?;
        if !access::may_read(&self.credential, &attr) {
            return Err(Status::ACCESS);
        }
        self.write_open(here, args.share, change(&before))
    }

    fn write_open(&mut self, here: Place<'a>, share: u32, change: u64) -> Result {
        let client = self.client()?;
        let delegates = self
            .session
            .as_ref()
            .is_some_and(|session| session.has_back());
        let want = share & WANT_MASK;
        let refusal = match want {
            WANT_NO_DELEGATION => Some(WHY_NOT_WANTED),
            WANT_CANCEL => Some(WHY_CANCELLED),
            _ if !delegates => Some(WHY_RESOURCE),
            _ => None,
        };
        let xor = refusal.is_none() && share & WANT_OPEN_XOR_DELEGATION != 0;
        let state = if xor {
            ANONYMOUS
        } else {
            // A new id each time, in sequence 1: a client that has the file open already takes it
            // without waiting for the sequence numbers in between.
            let nonce = self.core.state.nonce();
            (
                1,
                self.core
                    .keys
                    .state_id(client, StateKind::Open, here.ino, nonce),
            )
        };
        write_state(state, self.reply);
        self.reply.bool(true);
        self.reply.u64(change);
        self.reply.u64(change);
        // Without the first flag Linux has no byte-range locks on the file, with a delegation either.
        self.reply.u32(if xor {
            RESULT_LOCKTYPE_POSIX | RESULT_NO_OPEN_STATE
        } else {
            RESULT_LOCKTYPE_POSIX
        });
        self.reply.bitmap(Bitmap::default());
        match refusal {
            None => {
                let state = self.delegation(client, here);
                write_delegation(state, self.reply);
                if xor {
                    self.current_state = Some(state);
                    return Ok(());
                }
            }
            Some(why) if want != 0 => write_refusal(why, self.reply),
            Some(_) => self.reply.u32(DELEGATE_NONE),
        }
        self.current_state = Some(state);
        Ok(())
    }

    /// The read delegation of a file: a client always gets the same one, so that a second grant
    /// does not look like a second delegation.
    fn delegation(&self, client: u64, here: Place<'_>) -> StateId {
        let nonce = self.core.keys.tree_nonce(&here.export.id);
        (
            1,
            self.core
                .keys
                .state_id(client, StateKind::Delegation, here.ino, nonce),
        )
    }

    /// Reads a state id, with the special one for the current state id replaced.
    fn state(&mut self) -> Result<StateId> {
        match read_state(&mut self.args)? {
            CURRENT => self.current_state.ok_or(Status::BAD_STATEID),
            INVALID => Err(Status::BAD_STATEID),
            state => Ok(state),
        }
    }

    /// Checks a state id that is not a special one for the current file; returns its kind.
    fn check_state(&self, state: StateId) -> Result<StateKind> {
        let opened = self.core.keys.open_state_id(self.client()?, &state.1);
        let (kind, ino) = opened.ok_or(Status::BAD_STATEID)?;
        if ino != self.here()?.ino {
            return Err(Status::BAD_STATEID);
        }
        Ok(kind)
    }

    /// Reads and checks a state id to read with.
    fn state_to_read(&mut self) -> Result {
        match self.state()? {
            ANONYMOUS | READ_BYPASS => Ok(()),
            state => self.check_state(state).map(|_| ()),
        }
    }

    /// Reads a state id of one kind for the current file.
    fn state_of(&mut self, expected: StateKind) -> Result<StateId> {
        let state = self.state()?;
        if self.check_state(state)? != expected {
            return Err(Status::BAD_STATEID);
        }
        Ok(state)
    }

    pub(super) fn open_downgrade(&mut self) -> Result {
        let state = next(self.state_of(StateKind::Open)?);
        let _sequence = self.args.u32()?;
        let (share, _deny) = (self.args.u32()?, self.args.u32()?);
        if share & SHARE_ACCESS_MASK != SHARE_READ {
            return Err(Status::INVAL);
        }
        write_state(state, self.reply);
        self.current_state = Some(state);
        Ok(())
    }

    pub(super) fn close(&mut self) -> Result {
        let _sequence = self.args.u32()?;
        self.state_of(StateKind::Open)?;
        write_state(INVALID, self.reply);
        self.current_state = None;
        Ok(())
    }

    pub(super) fn delegation_return(&mut self) -> Result {
        self.state_of(StateKind::Delegation).map(|_| ())
    }

    /// GET_DIR_DELEGATION: unavailable, and no signal when it will be (RFC 8881, 18.39).
    pub(super) fn directory_delegation(&mut self) -> Result {
        self.here()?;
        self.reply.u32(1);
        self.reply.bool(false);
        Ok(())
    }

    pub(super) fn read(&mut self) -> Result {
        self.state_to_read()?;
        let (offset, count) = (self.args.u64()?, self.args.u32()?);
        let (here, attr) = self.file()?;
        let len = self.read_len(&attr, offset, count)?;
        self.reply
            .bool(offset.saturating_add(len.into()) >= attr.size);
        self.reply.u32(len);
        self.copy(here, offset, len)
    }

    /// READ_PLUS with a single segment of data (RFC 7862, section 15.10).
    pub(super) fn read_plus(&mut self) -> Result {
        self.state_to_read()?;
        let (offset, count) = (self.args.u64()?, self.args.u32()?);
        let (here, attr) = self.file()?;
        let len = self.read_len(&attr, offset, count)?;
        self.reply
            .bool(offset.saturating_add(len.into()) >= attr.size);
        self.reply.u32((len > 0).into());
        if len == 0 {
            return Ok(());
        }
        self.reply.u32(0);
        self.reply.u64(offset);
        self.reply.u32(len);
        self.copy(here, offset, len)
    }

    /// How much of a read lies in the file and fits the reply. Nothing at all would look like the
    /// end of the file, so that is an error where it is not.
    fn read_len(&self, attr: &Attr, offset: u64, count: u32) -> Result<u32> {
        let room = self.room().saturating_sub(64) & !3;
        let left = attr.size.saturating_sub(offset);
        let wanted = u64::from(count.min(MAX_READ)).min(left);
        if wanted > 0 && room == 0 {
            return Err(Status::REP_TOO_BIG);
        }
        Ok(u32::try_from(wanted.min(room as u64)).unwrap_or(MAX_READ))
    }

    fn copy(&mut self, here: Place<'_>, offset: u64, len: u32) -> Result {
        self.connection
            .append_content(self.core, here, (offset, len), self.reply)
    }

    pub(super) fn seek(&mut self) -> Result {
        self.state_to_read()?;
        let (offset, what) = (self.args.u64()?, self.args.u32()?);
        let whence = match what {
            0 => Whence::Data,
            1 => Whence::Hole,
            _ => return Err(Status::UNION_NOTSUPP),
        };
        let (here, attr) = self.file()?;
        if offset >= attr.size {
            return Err(Status::NXIO);
        }
        let found = here.export.tree.seek(here.ino, offset, whence)?;
        self.reply
            .bool(found.is_none_or(|found| found >= attr.size));
        self.reply.u64(found.unwrap_or(attr.size));
        Ok(())
    }

    pub(super) fn lock(&mut self) -> Result {
        let kind = self.args.u32()?;
        let _reclaim = self.args.bool()?;
        let range = (self.args.u64()?, self.args.u64()?);
        let state = if self.args.bool()? {
            let _open_sequence = self.args.u32()?;
            self.state_of(StateKind::Open)?;
            let _lock_sequence = self.args.u32()?;
            skip_owner(&mut self.args)?;
            let (client, ino) = (self.client()?, self.here()?.ino);
            let nonce = self.core.state.nonce();
            (
                1,
                self.core.keys.state_id(client, StateKind::Lock, ino, nonce),
            )
        } else {
            let state = self.state_of(StateKind::Lock)?;
            let _lock_sequence = self.args.u32()?;
            next(state)
        };
        check_lock(kind, range)?;
        if WRITE_LOCKS.contains(&kind) {
            return Err(Status::OPENMODE);
        }
        write_state(state, self.reply);
        self.current_state = Some(state);
        Ok(())
    }

    pub(super) fn lock_test(&mut self) -> Result {
        let kind = self.args.u32()?;
        let range = (self.args.u64()?, self.args.u64()?);
        skip_owner(&mut self.args)?;
        self.file()?;
        check_lock(kind, range)
    }

    pub(super) fn unlock(&mut self) -> Result {
        let kind = self.args.u32()?;
        let _sequence = self.args.u32()?;
        let state = next(self.state_of(StateKind::Lock)?);
        let range = (self.args.u64()?, self.args.u64()?);
        check_lock(kind, range)?;
        write_state(state, self.reply);
        self.current_state = Some(state);
        Ok(())
    }

    pub(super) fn test_states(&mut self) -> Result {
        let client = self.client()?;
        let count = self.args.count(ops::OPERATIONS * 64)?;
        self.reply.u32(crate::xdr::length(count));
        for _ in 0..count {
            let (_, other) = read_state(&mut self.args)?;
            let known = self.core.keys.open_state_id(client, &other).is_some();
            self.reply
                .u32(if known { 0 } else { Status::BAD_STATEID.0 });
        }
        Ok(())
    }

    pub(super) fn free_state(&mut self) -> Result {
        let client = self.client()?;
        let (_, other) = self.state()?;
        self.core
            .keys
            .open_state_id(client, &other)
            .ok_or(Status::BAD_STATEID)?;
        Ok(())
    }
}

fn check_lock(kind: u32, (offset, len): (u64, u64)) -> Result {
    if !READ_LOCKS.contains(&kind) && !WRITE_LOCKS.contains(&kind) {
        return Err(Status::BADXDR);
    }
    let fits = len == u64::MAX || offset.checked_add(len).is_some();
    if len == 0 || !fits {
        Err(Status::INVAL)
    } else {
        Ok(())
    }
}

fn write_delegation(state: StateId, reply: &mut Writer) {
    reply.u32(DELEGATE_READ);
    write_state(state, reply);
    reply.bool(false);
    // An ACE that allows nothing without ACCESS: type, flags, mask, who.
    for word in [0, 0, 0] {
        reply.u32(word);
    }
    reply.opaque(b"");
}

fn write_refusal(why: u32, reply: &mut Writer) {
    reply.u32(DELEGATE_NONE_EXT);
    reply.u32(why);
    if why == WHY_RESOURCE {
        reply.bool(false);
    }
}
