//! Input that no client would send, handed to a connection without a socket.

use std::net::{IpAddr, Ipv4Addr};

use crate::Site;
use crate::client::{Credential, LINUX, Ops, ROOT, Results, Xdr, call_body, compound_args, record};
use crate::codes::*;

/// A connection to a sample server, and the client and session that were made over it.
struct Direct {
    wire: nfs::Direct,
    client: u64,
    session: [u8; 16],
    hello: Vec<u8>,
    _site: Site,
}

impl Direct {
    fn new() -> Direct {
        let site = Site::new();
        let mut direct = Direct {
            wire: site.server.direct(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            client: 0,
            session: [0; 16],
            hello: Vec::new(),
            _site: site,
        };
        let mut results = direct.compound(&Ops::new().exchange_id(b"client", 1, 0));
        let results = results.ok(EXCHANGE_ID);
        direct.client = results.u64();
        let sequence = results.u32();
        let create = Ops::new().create_session(direct.client, sequence, LINUX);
        direct.session = direct.compound(&create).ok(CREATE_SESSION).array();
        let walk = Ops::new()
            .sequence(&direct.session, 1, 0)
            .put_root()
            .lookup(b"image")
            .lookup(b"hello")
            .get_handle();
        let mut results = direct.compound(&walk);
        results.ok(SEQUENCE).fixed(36);
        results.ok(PUTROOTFH);
        results.ok(LOOKUP);
        results.ok(LOOKUP);
        direct.hello = results.ok(GETFH).opaque();
        direct
    }

    /// The results of a compound.
    fn compound(&mut self, ops: &Ops) -> Results {
        let call = call_body(7, [NFS, 4, 1], ROOT, &compound_args(2, ops));
        let mut reply = Results::new(self.wire.exchange(&record(&call)).expect("a reply"));
        // Mark, header, status, tag, count.
        reply.fixed(4 + 24 + 4 + 8 + 4);
        reply
    }

    /// Calls of every kind, each with arguments that are right. SEQUENCE is of a slot of its own.
    fn calls(&self) -> Vec<Ops> {
        let state = ANONYMOUS;
        let file = |slot: u32| Ops::new().sequence(&self.session, 1, slot).put(&self.hello);
        vec![
            Ops::new().exchange_id(b"other", 1, 0),
            Ops::new().create_session(self.client, 2, LINUX),
            Ops::new().op(BIND_CONN_TO_SESSION, |args| {
                args.fixed(&self.session).words(&[3, 0]);
            }),
            file(1).attributes(&[TYPE, SIZE, OWNER, FILEHANDLE]),
            file(2).access(0x3f).read(&state, 0, 100),
            file(3)
                .read_by(READ_PLUS, &state, 3, 100)
                .plain(LOOKUPP, &[]),
            file(4).open_here(SHARE_READ).read(&CURRENT, 0, 9),
            file(5)
                .put_root()
                .lookup(b"image")
                .read_directory(0, 999, &[TYPE]),
            file(6).plain(SAVEFH, &[]).plain(RESTOREFH, &[]).seek(0, 0),
            file(7).op(LISTXATTRS, |args| {
                args.u64(0).u32(100);
            }),
            file(8).op(GETXATTR, |args| {
                args.opaque(b"note");
            }),
            file(9).op(VERIFY, |args| {
                args.bits(&[SIZE]).u32(8).u64(13);
            }),
            file(10).op(LOCKT, |args| {
                args.u32(1).u64(0).u64(9).u64(1).opaque(b"locker");
            }),
            file(11).op(TEST_STATEID, |args| {
                args.u32(1).fixed(&state);
            }),
            file(12).op(SECINFO, |args| {
                args.opaque(b"x");
            }),
            file(13).plain(RECLAIM_COMPLETE, &[0]),
            file(14).op(OPEN, |args| {
                args.words(&[0, SHARE_READ, 0])
                    .u64(1)
                    .opaque(b"owner")
                    .u32(1);
                args.u32(3).u64(7).bits(&[MODE]).u32(4).u32(0o644);
                args.u32(CLAIM_NULL).opaque(b"fresh");
            }),
        ]
    }
}

/// The end of a call: refused by RPC with this status, or answered with this one.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Refused(u32),
    Answered(u32),
    HungUp,
}

fn end(wire: &mut nfs::Direct, body: &[u8]) -> End {
    let Some(reply) = wire.exchange(&record(body)) else {
        return End::HungUp;
    };
    let mut reply = Results::new(reply);
    let mark = reply.u32();
    assert_eq!(mark as usize, reply.len() | 1 << 31, "one whole record");
    let _header = (reply.fixed(8), reply.fixed(12));
    match reply.u32() {
        0 => End::Answered(reply.u32()),
        status => End::Refused(status),
    }
}

#[test]
fn a_call_that_ends_early_anywhere_is_garbage() {
    const GARBAGE_ARGS: u32 = 4;
    let mut direct = Direct::new();
    let header = call_body(7, [NFS, 4, 1], ROOT, &[]).len();
    for ops in direct.calls() {
        let whole = call_body(7, [NFS, 4, 1], ROOT, &compound_args(2, &ops));
        for len in 0..whole.len() {
            let ended = end(&mut direct.wire, &whole[..len]);
            if len < header {
                assert_eq!(ended, End::HungUp, "{len} bytes");
            } else {
                assert!(
                    matches!(ended, End::Refused(GARBAGE_ARGS) | End::Answered(BADXDR)),
                    "{len} of {} bytes: {ended:?} of {ops:?}",
                    whole.len()
                );
            }
        }
    }
}

#[test]
fn no_single_wrong_word_does_harm() {
    let mut direct = Direct::new();
    for (index, ops) in direct.calls().iter().enumerate() {
        let whole = call_body(7, [NFS, 4, 1], ROOT, &compound_args(2, ops));
        for at in (0..whole.len()).step_by(4) {
            for word in [0, 1, 2, 0x7fff_ffff, 0x8000_0000, u32::MAX, u32::MAX - 3] {
                let mut broken = whole.clone();
                broken[at..at + 4].copy_from_slice(&word.to_be_bytes());
                if let Some(reply) = direct.wire.exchange(&record(&broken)) {
                    assert!(reply.len() < 1 << 16, "call {index}, word {at}");
                }
            }
        }
    }
}

#[test]
fn counts_far_above_the_input_are_refused_at_once() {
    let mut direct = Direct::new();
    let session = direct.session;
    let claims = |write: &dyn Fn(&mut Xdr)| {
        let mut args = Xdr::default();
        args.opaque(b"tag").words(&[2, 2]);
        let sequence = Ops::new().sequence(&session, 1, 20);
        args.fixed(&sequence.bytes.0);
        write(&mut args);
        call_body(7, [NFS, 4, 1], ROOT, &args.0)
    };
    for body in [
        claims(&|args| {
            args.words(&[TEST_STATEID, u32::MAX]);
        }),
        claims(&|args| {
            args.words(&[GETATTR, 0x4000_0000]);
        }),
        claims(&|args| {
            args.words(&[PUTFH, u32::MAX]);
        }),
        claims(&|args| {
            args.words(&[LOOKUP, 0xffff_fffd]);
        }),
    ] {
        let ended = end(&mut direct.wire, &body);
        assert_eq!(ended, End::Answered(BADXDR));
    }
    // So many operations that are not there.
    let mut args = Xdr::default();
    args.opaque(b"").words(&[2, u32::MAX, PUTROOTFH]);
    let body = call_body(7, [NFS, 4, 1], Credential::None, &args.0);
    assert_eq!(
        end(&mut direct.wire, &body),
        End::Answered(OP_NOT_IN_SESSION)
    );
}
