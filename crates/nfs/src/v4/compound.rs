//! COMPOUND: runs the operations of a call one after the other (RFC 8881, section 16.2).
//!
//! Nothing here panics, whatever the input. Results go straight into the reply; the result of an
//! operation that fails is cut back to its status.

use std::sync::Arc;

use super::ops;
use super::state::Session;
use crate::connection::{Connection, Core};
use crate::exports::{Place, Table};
use crate::ident::StateOther;
use crate::rpc::Credential;
use crate::status::{Result, Status};
use crate::xdr::{Malformed, Reader, Writer};

const MAX_TAG: usize = 1024;
/// Longest result of an operation that fails: number, status, and SETATTR's empty bitmap.
const FAILURE_LEN: usize = 12;

/// A compound while it runs.
pub(super) struct Compound<'a> {
    pub(super) core: &'a Core,
    pub(super) table: &'a Table,
    pub(super) connection: &'a mut Connection,
    pub(super) credential: Credential,
    pub(super) minor: u32,
    pub(super) args: Reader<'a>,
    pub(super) reply: &'a mut Writer,
    /// Operations of the call, and its length without the header.
    pub(super) count: u32,
    pub(super) request_len: usize,
    /// Where the reply begins.
    pub(super) reply_start: usize,
    pub(super) current: Option<Place<'a>>,
    pub(super) saved: Option<Place<'a>>,
    /// The state id that the special one "current" means, with the current and the saved handle.
    pub(super) current_state: Option<(u32, StateOther)>,
    pub(super) saved_state: Option<(u32, StateOther)>,
    /// Session and slot, once SEQUENCE has run.
    pub(super) session: Option<Arc<Session>>,
    pub(super) slot: u32,
    /// Doing the call again would give another reply.
    pub(super) keep_reply: bool,
    /// A reply that was kept, to be sent instead of running the call.
    pub(super) replay: Option<Box<[u8]>>,
}

/// Runs the compound in `args` and writes its results. `reply` already holds the RPC header, which
/// began at `reply_start`.
pub(crate) fn run(
    core: &Core,
    table: &Table,
    connection: &mut Connection,
    credential: Credential,
    mut args: Reader<'_>,
    reply: &mut Writer,
    reply_start: usize,
) -> std::result::Result<(), Malformed> {
    let request_len = args.len();
    let tag = args.opaque(MAX_TAG)?;
    let minor = args.u32()?;
    let count = args.u32()?;
    let status_at = reply.len();
    reply.u32(0);
    reply.opaque(tag);
    let done_at = reply.len();
    reply.u32(0);
    let mut compound = Compound {
        core,
        table,
        connection,
        credential,
        minor,
        args,
        reply,
        count,
        request_len,
        reply_start,
        current: None,
        saved: None,
        current_state: None,
        saved_state: None,
        session: None,
        slot: 0,
        keep_reply: false,
        replay: None,
    };
    let (status, done) = if (1..=2).contains(&minor) {
        compound.run()?
    } else {
        (Status::MINOR_VERS_MISMATCH.0, 0)
    };
    compound.reply.set_u32(status_at, status);
    compound.reply.set_u32(done_at, done);
    compound.finish(status_at);
    Ok(())
}

impl<'a> Compound<'a> {
    /// Runs the operations up to the first that fails; returns the last status and the count of
    /// results.
    fn run(&mut self) -> std::result::Result<(u32, u32), Malformed> {
        for index in 0..self.count {
            let number = self.args.u32()?;
            let result = self.step(index, number);
            if self.replay.is_some() {
                return Ok((0, 0));
            }
            if let Err(status) = result {
                return Ok((status.0, index + 1));
            }
        }
        Ok((0, self.count))
    }

    /// Runs one operation and writes its result.
    fn step(&mut self, index: u32, number: u32) -> Result {
        let defined = ops::is_defined(number, self.minor);
        let number = if defined { number } else { ops::ILLEGAL };
        let start = self.reply.len();
        self.reply.u32(number);
        self.reply.u32(0);
        self.connection.client.tally.operation(number);
        let result = if defined {
            self.admit(index, number)
                .and_then(|()| self.execute(number))
        } else {
            Err(Status::OP_ILLEGAL)
        };
        let result = result.and_then(|()| self.check_reply_len(index));
        if let Err(status) = result {
            self.reply.truncate(start + 4);
            self.reply.u32(status.0);
            if number == ops::SETATTR {
                // The one result that has a body when it fails: no attribute was set.
                self.reply.u32(0);
            }
        }
        result
    }

    /// Whether the operation may stand where it does (RFC 8881, section 2.10.6.3 and 13.1).
    fn admit(&self, index: u32, number: u32) -> Result {
        match (number, index) {
            (ops::SEQUENCE, 0) => Ok(()),
            (ops::SEQUENCE, _) => Err(Status::SEQUENCE_POS),
            (
                ops::EXCHANGE_ID
                | ops::CREATE_SESSION
                | ops::DESTROY_SESSION
                | ops::DESTROY_CLIENTID
                | ops::BIND_CONN_TO_SESSION,
                0,
            ) => {
                if self.count == 1 {
                    Ok(())
                } else {
                    Err(Status::NOT_ONLY_OP)
                }
            }
            (ops::BIND_CONN_TO_SESSION | ops::EXCHANGE_ID, _) if self.session.is_some() => {
                if number == ops::EXCHANGE_ID {
                    Ok(())
                } else {
                    Err(Status::NOT_ONLY_OP)
                }
            }
            (_, 0) => Err(Status::OP_NOT_IN_SESSION),
            _ => Ok(()),
        }
    }

    /// Whether the reply fits the session, with room for the next operation to fail in.
    fn check_reply_len(&self, index: u32) -> Result {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let reserved = if index + 1 < self.count {
            FAILURE_LEN
        } else {
            0
        };
        if self.reply.len() - self.reply_start + reserved > session.max_reply as usize {
            return Err(Status::REP_TOO_BIG);
        }
        Ok(())
    }

    fn execute(&mut self, number: u32) -> Result {
        match number {
            ops::SEQUENCE => self.sequence(),
            ops::PUTFH => self.put_handle(),
            ops::PUTROOTFH | ops::PUTPUBFH => self.put_root(),
            ops::GETFH => self.get_handle(),
            ops::SAVEFH => self.save(),
            ops::RESTOREFH => self.restore(),
            ops::LOOKUP => self.lookup(),
            ops::LOOKUPP => self.lookup_parent(),
            ops::GETATTR => self.get_attributes(),
            ops::ACCESS => self.access(),
            ops::VERIFY => self.verify(true),
            ops::NVERIFY => self.verify(false),
            ops::READDIR => self.read_directory(),
            ops::READLINK => self.read_link(),
            ops::RENAME => self.rename(),
            ops::SECINFO => self.security(),
            ops::SECINFO_NO_NAME => self.security_no_name(),
            ops::OPEN => self.open(),
            ops::OPEN_DOWNGRADE => self.open_downgrade(),
            ops::CLOSE => self.close(),
            ops::READ => self.read(),
            ops::READ_PLUS => self.read_plus(),
            ops::SEEK => self.seek(),
            ops::DELEGRETURN => self.delegation_return(),
            ops::DELEGPURGE => Err(Status::NOTSUPP),
            ops::GET_DIR_DELEGATION => self.directory_delegation(),
            ops::LOCK => self.lock(),
            ops::LOCKT => self.lock_test(),
            ops::LOCKU => self.unlock(),
            ops::TEST_STATEID => self.test_states(),
            ops::FREE_STATEID => self.free_state(),
            ops::GETXATTR => self.get_xattr(),
            ops::LISTXATTRS => self.list_xattrs(),
            ops::EXCHANGE_ID => self.exchange_id(),
            ops::CREATE_SESSION => self.create_session(),
            ops::DESTROY_SESSION => self.destroy_session(),
            ops::DESTROY_CLIENTID => self.destroy_client(),
            ops::BIND_CONN_TO_SESSION => self.bind_connection(),
            ops::BACKCHANNEL_CTL => self.backchannel_control(),
            ops::RECLAIM_COMPLETE => self.reclaim_complete(),
            _ if ops::is_mutating(number) => self.here().and(Err(Status::ROFS)),
            _ => Err(Status::NOTSUPP),
        }
    }

    /// Keeps or replays what a repeated call has to get.
    fn finish(&mut self, status_at: usize) {
        if let Some(replay) = self.replay.take() {
            self.reply.truncate(status_at);
            self.reply.fixed(&replay);
        } else if self.keep_reply
            && let Some(session) = &self.session
            && let Some(reply) = self.reply.bytes_from(status_at)
        {
            session.keep_reply(self.slot, reply);
        }
    }

    /// The current file handle.
    #[inline]
    pub(super) fn here(&self) -> Result<Place<'a>> {
        self.current.ok_or(Status::NOFILEHANDLE)
    }

    pub(super) fn go(&mut self, place: Place<'a>) {
        self.current = Some(place);
        self.current_state = None;
    }

    fn put_handle(&mut self) -> Result {
        let handle = self.args.opaque(128)?;
        let place = self.connection.open_handle(self.core, self.table, handle)?;
        self.go(place);
        Ok(())
    }

    fn put_root(&mut self) -> Result {
        let root = self.table.root().ok_or(Status::STALE)?;
        self.go(root);
        Ok(())
    }

    fn get_handle(&mut self) -> Result {
        let here = self.here()?;
        self.reply
            .opaque(&self.core.keys.handle(&here.export.id, here.ino));
        Ok(())
    }

    fn save(&mut self) -> Result {
        self.saved = Some(self.here()?);
        self.saved_state = self.current_state;
        Ok(())
    }

    fn restore(&mut self) -> Result {
        self.current = Some(self.saved.ok_or(Status::RESTOREFH)?);
        self.current_state = self.saved_state;
        Ok(())
    }

    /// Bytes that the reply may still grow by.
    pub(super) fn room(&self) -> usize {
        let max = self
            .session
            .as_ref()
            .map_or(0, |session| session.max_reply as usize);
        max.saturating_sub(self.reply.len() - self.reply_start)
    }

    /// The client of the session.
    pub(super) fn client(&self) -> Result<u64> {
        self.session
            .as_ref()
            .map(|session| session.client)
            .ok_or(Status::OP_NOT_IN_SESSION)
    }
}
