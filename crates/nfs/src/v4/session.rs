//! The operations on clients, sessions and connections (RFC 8881, sections 18.33 to 18.37, 18.46,
//! 18.50, 18.51).

use std::sync::atomic::Ordering;

use super::compound::Compound;
use super::state::{Created, MAX_OPERATIONS, MAX_REPLY, MAX_SLOTS, SessionShape, Turn};
use crate::activity::Activity;
use crate::rpc::{self, MAX_RECORD};
use crate::status::{Result, Status};
use crate::xdr::{Reader, Writer};

const EXCHANGE_UPDATE: u32 = 1 << 30;
const EXCHANGE_NON_PNFS: u32 = 1 << 16;
const EXCHANGE_CONFIRMED: u32 = 1 << 31;
/// The flags that a client may set; minor version 2 adds SUPP_FENCE_OPS (RFC 7862, section 14.1).
const EXCHANGE_VALID: u32 = 0x4007_0103;
const EXCHANGE_VALID_2: u32 = EXCHANGE_VALID | 4;
const SESSION_BACK_CHANNEL: u32 = 2;
const STATUS_BACK_PATH_DOWN_SESSION: u32 = 0x200;
const MIN_REQUEST: u32 = 256;
const MIN_REPLY: u32 = 256;
/// A callback has a CB_SEQUENCE and one operation more.
const MIN_BACK_OPERATIONS: u32 = 2;

impl Compound<'_> {
    pub(super) fn sequence(&mut self) -> Result {
        let id = self.args.array()?;
        let (sequence, slot) = (self.args.u32()?, self.args.u32()?);
        let _highest = self.args.u32()?;
        let _cache_this = self.args.bool()?;
        let session = self.connection.session(self.core, &id)?;
        if self.count > session.max_operations {
            return Err(Status::TOO_MANY_OPS);
        }
        if self.request_len > session.max_request as usize {
            return Err(Status::REQ_TOO_BIG);
        }
        match session.take_turn(slot, sequence)? {
            Turn::Run => {}
            Turn::Replay(reply) => {
                self.replay = Some(reply);
                return Ok(());
            }
        }
        let path_down = session.wants_back && !session.has_back();
        self.reply.fixed(&id);
        self.reply.u32(sequence);
        self.reply.u32(slot);
        self.reply.u32(session.highest_slot());
        self.reply.u32(session.highest_slot());
        self.reply.u32(if path_down {
            STATUS_BACK_PATH_DOWN_SESSION
        } else {
            0
        });
        self.session = Some(session);
        self.slot = slot;
        Ok(())
    }

    pub(super) fn exchange_id(&mut self) -> Result {
        let verifier = self.args.array()?;
        let owner = self.args.opaque(1024)?;
        let flags = self.args.u32()?;
        let protection = self.args.u32()?;
        let valid = if self.minor >= 2 {
            EXCHANGE_VALID_2
        } else {
            EXCHANGE_VALID
        };
        if flags & !valid != 0 {
            return Err(Status::INVAL);
        }
        match protection {
            0 => {}
            // SP4_MACH_CRED needs RPCSEC_GSS; SP4_SSV needs algorithms that are not offered.
            1 => return Err(Status::INVAL),
            2 => return Err(Status::ENCR_ALG_UNSUPP),
            _ => return Err(Status::BADXDR),
        }
        self.skip_implementation_id()?;
        let address = self.connection.client.address;
        let update = flags & EXCHANGE_UPDATE != 0;
        let exchanged = self.core.state.exchange(owner, address, verifier, update)?;
        if exchanged.collision {
            self.core.observe(Activity::Collision {
                address,
                owner: owner.to_vec(),
            });
        }
        let confirmed = if exchanged.confirmed {
            EXCHANGE_CONFIRMED
        } else {
            0
        };
        let name = self.core.keys.server_name();
        self.reply.u64(exchanged.client);
        self.reply.u32(exchanged.sequence);
        self.reply.u32(EXCHANGE_NON_PNFS | confirmed);
        self.reply.u32(0);
        self.reply.u64(0);
        self.reply.opaque(&name);
        self.reply.opaque(&name);
        self.reply.u32(0);
        Ok(())
    }

    fn skip_implementation_id(&mut self) -> Result {
        if self.args.count(1)? == 1 {
            let _domain = self.args.opaque(1024)?;
            let _name = self.args.opaque(1024)?;
            let _date: [u8; 12] = self.args.array()?;
        }
        Ok(())
    }

    pub(super) fn create_session(&mut self) -> Result {
        let client = self.args.u64()?;
        let sequence = self.args.u32()?;
        let flags = self.args.u32()?;
        let fore = Channel::read(&mut self.args)?;
        let back = Channel::read(&mut self.args)?;
        let _program = self.args.u32()?;
        skip_callback_security(&mut self.args)?;
        if flags & !7 != 0 {
            return Err(Status::INVAL);
        }
        if back.operations < MIN_BACK_OPERATIONS {
            return Err(Status::TOOSMALL);
        }
        back.check()?;
        let fore = fore.granted()?;
        let shape = SessionShape {
            back: flags & SESSION_BACK_CHANNEL != 0,
            slot_count: fore.requests,
            max_request: fore.max_request,
            max_reply: fore.max_reply,
            max_operations: fore.operations,
        };
        let body = self.reply.len();
        match self.core.state.create(client, sequence, shape)? {
            Created::Replay(reply) => {
                self.reply.fixed(&reply);
                return Ok(());
            }
            Created::Session(session) => {
                self.reply.fixed(&session.id);
                if shape.back {
                    self.connection.bind_back(&session);
                }
            }
        }
        self.reply.u32(sequence);
        self.reply.u32(flags & SESSION_BACK_CHANNEL);
        fore.write(self.reply);
        back.write(self.reply);
        let reply = self.reply.bytes_from(body).unwrap_or_default();
        self.core.state.keep_create_reply(client, reply);
        Ok(())
    }

    pub(super) fn destroy_session(&mut self) -> Result {
        let id = self.args.array()?;
        self.connection.unbind(&id);
        self.core.state.destroy_session(&id)?;
        self.keep_reply = true;
        Ok(())
    }

    pub(super) fn destroy_client(&mut self) -> Result {
        let client = self.args.u64()?;
        self.core.state.destroy_client(client)?;
        self.keep_reply = true;
        Ok(())
    }

    pub(super) fn bind_connection(&mut self) -> Result {
        const FORE: u32 = 1;
        const BACK: u32 = 2;
        const BOTH: u32 = 3;
        let id = self.args.array()?;
        let wanted = self.args.u32()?;
        let _rdma = self.args.bool()?;
        let bound = match wanted {
            1 => FORE,
            2 => BACK,
            3 | 7 => BOTH,
            _ => return Err(Status::BADXDR),
        };
        let session = self.connection.session(self.core, &id)?;
        if bound != FORE {
            self.connection.bind_back(&session);
        }
        self.reply.fixed(&id);
        self.reply.u32(bound);
        self.reply.bool(false);
        Ok(())
    }

    pub(super) fn backchannel_control(&mut self) -> Result {
        let _program = self.args.u32()?;
        skip_callback_security(&mut self.args)?;
        Ok(())
    }

    pub(super) fn reclaim_complete(&mut self) -> Result {
        let one_fs = self.args.bool()?;
        if one_fs {
            return self.here().map(|_| ());
        }
        let session = self.session.as_ref().ok_or(Status::OP_NOT_IN_SESSION)?;
        if session.reclaim_complete.swap(true, Ordering::Relaxed) {
            return Err(Status::COMPLETE_ALREADY);
        }
        self.keep_reply = true;
        Ok(())
    }
}

/// The attributes of a channel (channel_attrs4).
#[derive(Clone, Copy)]
struct Channel {
    max_request: u32,
    max_reply: u32,
    max_cached: u32,
    operations: u32,
    requests: u32,
}

impl Channel {
    fn read(args: &mut Reader<'_>) -> Result<Channel> {
        let _padding = args.u32()?;
        let channel = Channel {
            max_request: args.u32()?,
            max_reply: args.u32()?,
            max_cached: args.u32()?,
            operations: args.u32()?,
            requests: args.u32()?,
        };
        if args.count(1)? == 1 {
            let _rdma_inline = args.u32()?;
        }
        Ok(channel)
    }

    /// Whether anything fits it.
    fn check(self) -> Result {
        if self.max_request < MIN_REQUEST || self.max_reply < MIN_REPLY {
            return Err(Status::TOOSMALL);
        }
        Ok(())
    }

    /// What a client gets that asks for this.
    fn granted(self) -> Result<Channel> {
        self.check()?;
        Ok(Channel {
            max_request: self.max_request.min(MAX_RECORD as u32),
            max_reply: self.max_reply.min(MAX_REPLY),
            max_cached: self.max_cached.min(8192),
            operations: self.operations.clamp(1, MAX_OPERATIONS),
            requests: self.requests.clamp(1, MAX_SLOTS),
        })
    }

    fn write(self, reply: &mut Writer) {
        let words = [
            0,
            self.max_request,
            self.max_reply,
            self.max_cached,
            self.operations,
            self.requests,
            0,
        ];
        for word in words {
            reply.u32(word);
        }
    }
}

/// Reads what the client would accept of callbacks (callback_sec_parms4); there never is one.
fn skip_callback_security(args: &mut Reader<'_>) -> Result {
    for _ in 0..args.count(16)? {
        match args.u32()? {
            0 => {}
            1 => {
                rpc::auth_sys(args)?;
            }
            6 => {
                let _service = args.u32()?;
                let _handles = (args.opaque(1024)?, args.opaque(1024)?);
            }
            _ => return Err(Status::BADXDR),
        }
    }
    Ok(())
}
