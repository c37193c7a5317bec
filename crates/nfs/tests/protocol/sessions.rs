//! Clients, sessions, slots (RFC 8881, section 2.10 and 18.33 to 18.51).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use crate::Site;
use crate::client::{LINUX, Ops, Peer, Shape, walk};
use crate::codes::*;

#[test]
fn minor_version_0_is_a_mismatch_and_so_is_3() {
    let site = Site::new();
    let mut peer = site.connect();
    for minor in [0, 3, u32::MAX] {
        peer.minor = minor;
        let (status, results) = peer.compound(&Ops::new().put_root());
        assert_eq!((status, results.len()), (MINOR_VERS_MISMATCH, 0), "{minor}");
    }
}

#[test]
fn what_linux_asks_of_a_session_is_granted_in_full() {
    let site = Site::new();
    let mut peer = site.connect();
    let (client, sequence) = peer.exchange_id(b"client", 1);
    let (_, mut results) = peer.compound(&Ops::new().create_session(client, sequence, LINUX));
    let results = results.ok(CREATE_SESSION);
    let _id = results.fixed(16);
    assert_eq!([results.u32(), results.u32()], [sequence, 2]);
    let fore: Vec<u32> = (0..7).map(|_| results.u32()).collect();
    let [_, request, reply, _, operations, slots, _] = fore[..] else {
        unreachable!()
    };
    assert!((65536..=LINUX.request).contains(&request), "{request}");
    assert_eq!((reply, operations), (LINUX.reply, LINUX.operations));
    assert_eq!(slots, LINUX.slots);
}

#[test]
fn a_session_too_small_for_anything_is_refused() {
    let site = Site::new();
    let mut peer = site.connect();
    let (client, sequence) = peer.exchange_id(b"client", 1);
    for (request, reply) in [(100, 4096), (4096, 100)] {
        let shape = Shape {
            request,
            reply,
            ..LINUX
        };
        let (status, _) = peer.compound(&Ops::new().create_session(client, sequence, shape));
        assert_eq!(status, TOOSMALL);
    }
}

#[test]
fn channels_that_carry_nothing_are_refused_and_narrow_ones_are_not() {
    let site = Site::new();
    let mut peer = site.connect();
    let (client, sequence) = peer.exchange_id(b"client", 1);
    // Longest request and reply, operations; of each channel. Numbers of the RDMA list.
    for (fore, back, rdma, expected) in [
        ([512, 512, 8], [4096, 4096, 1], 0, TOOSMALL),
        ([512, 512, 8], [10, 4096, 2], 0, TOOSMALL),
        ([512, 512, 8], [4096, 10, 2], 0, TOOSMALL),
        ([512, 512, 8], [4096, 4096, 2], 2, BADXDR),
        ([400, 400, 8], [400, 400, 2], 1, OK),
    ] {
        let create = Ops::new().op(CREATE_SESSION, |args| {
            args.u64(client).words(&[sequence, 0]);
            for [request, reply, operations] in [fore, back] {
                args.words(&[0, request, reply, 0, operations, 4]);
                args.u32(rdma).words(&vec![9; rdma as usize]);
            }
            args.words(&[0x4000_0000, 1, 0]);
        });
        let (status, _) = peer.compound(&create);
        assert_eq!(status, expected, "{fore:?} {back:?} {rdma}");
    }
}

#[test]
fn a_slot_takes_one_call_after_the_other() {
    let site = Site::new();
    let mut client = site.client();
    assert_eq!(client.status(walk("")), OK);
    assert_eq!(client.status(walk("")), OK);
    for (sequence, expected) in [(1, SEQ_MISORDERED), (4, SEQ_MISORDERED), (2, OK), (3, OK)] {
        let call = Ops::new().sequence(&client.session, sequence, 0);
        assert_eq!(client.peer.compound(&call).0, expected, "{sequence}");
    }
    for (slot, sequence, expected) in [
        (1, 1, OK),
        (63, 2, SEQ_MISORDERED),
        (63, 0, SEQ_MISORDERED),
        (63, 1, OK),
        (64, 1, BADSLOT),
        (u32::MAX, 1, BADSLOT),
    ] {
        let call = Ops::new().sequence(&client.session, sequence, slot);
        assert_eq!(client.peer.compound(&call).0, expected, "slot {slot}");
    }
}

#[test]
fn a_call_sent_again_gets_the_same_reply() {
    let site = Site::new();
    let mut client = site.client();
    // Reads are run again; that cannot be told from a kept reply.
    let read = walk("hello").read(&ANONYMOUS, 0, 100);
    let first = client.try_run(&read);
    client.sequence -= 1;
    assert_eq!(client.try_run(&read), first);
    // What works only once would answer otherwise the second time.
    let complete = Ops::new().plain(RECLAIM_COMPLETE, &[0]);
    let first = client.try_run(&complete);
    assert_eq!(first.0, OK);
    client.sequence -= 1;
    assert_eq!(client.try_run(&complete), first);
    assert_eq!(client.status(complete), COMPLETE_ALREADY);
    // Over another connection of the same client too.
    let second = site.connect().mount(b"other", 1, LINUX).session;
    let destroy = Ops::new().op(DESTROY_SESSION, |args| {
        args.fixed(&second);
    });
    let first = client.try_run(&destroy);
    assert_eq!(first.0, OK);
    client.sequence -= 1;
    client.peer = site.connect();
    assert_eq!(client.try_run(&destroy), first);
}

#[test]
fn a_failed_sequence_leaves_the_slot_alone() {
    let site = Site::new();
    let mut client = site.client();
    let long = (0..LINUX.operations).fold(Ops::new(), |ops, _| ops.put_root());
    assert_eq!(client.try_run(&long).0, TOO_MANY_OPS);
    client.sequence -= 1;
    assert_eq!(client.status(walk("")), OK);
}

#[test]
fn create_session_sent_again_makes_no_second_session() {
    let site = Site::new();
    let mut peer = site.connect();
    let (client, sequence) = peer.exchange_id(b"client", 1);
    let first = peer.create_session(client, sequence, LINUX);
    assert_eq!(peer.create_session(client, sequence, LINUX), first);
    let next = Ops::new().create_session(client, sequence + 2, LINUX);
    assert_eq!(peer.compound(&next).0, SEQ_MISORDERED);
    let second = peer.create_session(client, sequence + 1, LINUX);
    assert_ne!(second, first);
    for session in [first, second] {
        let call = Ops::new().sequence(&session, 1, 0);
        assert_eq!(peer.compound(&call).0, OK);
    }
}

#[test]
fn ids_that_the_server_did_not_make_are_refused() {
    let site = Site::new();
    let mut client = site.client();
    for at in 0..16 {
        let mut forged = client.session;
        forged[at] ^= 1;
        let call = Ops::new().sequence(&forged, 1, 0);
        assert_eq!(client.peer.compound(&call).0, BADSESSION, "byte {at}");
    }
    for client_id in [0, client.client ^ 1, client.client ^ 1 << 40] {
        let create = Ops::new().create_session(client_id, 1, LINUX);
        assert_eq!(client.peer.compound(&create).0, STALE_CLIENTID);
    }
}

#[test]
fn a_session_and_a_client_end_when_they_are_told_to() {
    let site = Site::new();
    let mut client = site.client();
    let destroy_client = Ops::new().op(DESTROY_CLIENTID, |args| {
        args.u64(client.client);
    });
    let destroy_session = Ops::new().op(DESTROY_SESSION, |args| {
        args.fixed(&client.session);
    });
    assert_eq!(client.status(walk("")), OK);
    assert_eq!(client.peer.compound(&destroy_client).0, CLIENTID_BUSY);
    assert_eq!(client.peer.compound(&destroy_session).0, OK);
    assert_eq!(client.try_run(&walk("")).0, BADSESSION);
    assert_eq!(client.peer.compound(&destroy_session).0, BADSESSION);
    assert_eq!(client.peer.compound(&destroy_client).0, OK);
    assert_eq!(client.peer.compound(&destroy_client).0, STALE_CLIENTID);
    let create = Ops::new().create_session(client.client, 2, LINUX);
    assert_eq!(client.peer.compound(&create).0, STALE_CLIENTID);
    // The same client may come back.
    let mut again = site.connect().mount(b"client", 1, LINUX);
    assert_eq!(again.status(walk("")), OK);
}

#[test]
fn operations_stand_where_the_protocol_wants_them() {
    let site = Site::new();
    let mut client = site.client();
    let twice = Ops::new().sequence(&client.session, 9, 0);
    assert_eq!(client.status(twice), SEQUENCE_POS);
    for (ops, expected) in [
        (Ops::new().put_root(), OP_NOT_IN_SESSION),
        (Ops::new().plain(READLINK, &[]), OP_NOT_IN_SESSION),
        (
            Ops::new().exchange_id(b"client", 1, 0).put_root(),
            NOT_ONLY_OP,
        ),
    ] {
        assert_eq!(client.peer.compound(&ops).0, expected);
    }
    assert_eq!(client.status(Ops::new().get_handle()), NOFILEHANDLE);
    assert_eq!(client.status(Ops::new().plain(RESTOREFH, &[])), 10030);
}

#[test]
fn one_name_at_two_addresses_is_two_clients() {
    let site = Site::new();
    let mut here = site.connect().mount(b"Linux NFSv4.2 (none)", 1, LINUX);
    let there = Peer::connect_from(Ipv4Addr::new(127, 0, 0, 2), site.address);
    let mut there = there.mount(b"Linux NFSv4.2 (none)", 2, LINUX);
    assert_ne!(here.client, there.client);
    for client in [&mut here, &mut there] {
        assert_eq!(client.status(walk("hello")), OK);
    }
}

#[test]
fn a_client_that_restarts_ends_what_it_had() {
    let site = Site::new();
    let mut before = site.connect().mount(b"client", 1, LINUX);
    assert_eq!(before.status(walk("")), OK);
    let mut peer = site.connect();
    let (client, sequence) = peer.exchange_id(b"client", 2);
    assert_ne!(client, before.client);
    // Until it is confirmed, the new incarnation may be a mistake.
    assert_eq!(before.status(walk("")), OK);
    peer.create_session(client, sequence, LINUX);
    assert_eq!(before.try_run(&walk("")).0, BADSESSION);
    let create = Ops::new().create_session(before.client, 2, LINUX);
    assert_eq!(before.peer.compound(&create).0, STALE_CLIENTID);
}

#[test]
fn machines_of_one_name_behind_one_address_do_not_fight_for_ever() {
    let site = Site::new();
    let mut machines: Vec<_> = (0..4)
        .map(|verifier| site.connect().mount(b"localhost", verifier, LINUX))
        .collect();
    // Each comes back as a Linux client does when its session is gone.
    for _ in 0..8 {
        for verifier in 0..4 {
            let machine = &mut machines[verifier as usize];
            if machine.try_run(&walk("hello")).0 != OK {
                *machine = site.connect().mount(b"localhost", verifier, LINUX);
            }
        }
    }
    for machine in &mut machines {
        assert_eq!(machine.status(walk("hello")), OK);
    }
}

#[test]
fn an_update_of_a_client_needs_that_client() {
    const UPDATE: u32 = 1 << 30;
    let site = Site::new();
    let mut client = site.client();
    site.connect().exchange_id(b"passer-by", 1);
    for (owner, verifier, expected) in [
        (&b"client"[..], 1, OK),
        (b"client", 2, NOT_SAME),
        (b"nobody", 1, NOENT),
        // Known, but never confirmed.
        (b"passer-by", 1, NOENT),
        (b"passer-by", 2, NOENT),
    ] {
        let update = Ops::new().exchange_id(owner, verifier, UPDATE);
        assert_eq!(client.peer.compound(&update).0, expected);
    }
}

#[test]
fn flags_of_another_minor_version_are_refused() {
    const FENCE_OPS: u32 = 4;
    let site = Site::new();
    let mut peer = site.connect();
    for (minor, flags, expected) in [
        (1, 0x101, OK),
        (1, FENCE_OPS, INVAL),
        (2, FENCE_OPS, OK),
        (2, 1 << 20, INVAL),
    ] {
        peer.minor = minor;
        let ops = Ops::new().exchange_id(b"client", 1, flags);
        assert_eq!(peer.compound(&ops).0, expected, "{flags:x} in 4.{minor}");
    }
}

#[test]
fn a_client_learns_that_its_backchannel_is_gone_and_binds_another() {
    const PATH_DOWN: u32 = 0x200;
    let site = Site::new();
    let mut client = site.client();
    let flags = |client: &mut crate::client::Client| {
        let (_, mut results) = client.try_run(&Ops::new());
        results.ok(SEQUENCE).fixed(32);
        results.u32()
    };
    assert_eq!(flags(&mut client), 0);
    client.peer = site.connect();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while flags(&mut client) != PATH_DOWN {
        assert!(std::time::Instant::now() < end, "it is never told");
    }
    let bind = Ops::new().op(BIND_CONN_TO_SESSION, |args| {
        args.fixed(&client.session).words(&[3, 0]);
    });
    let (_, mut results) = client.peer.compound(&bind);
    let results = results.ok(BIND_CONN_TO_SESSION);
    assert_eq!(results.fixed(16), client.session);
    assert_eq!(results.u32(), 3);
    assert_eq!(flags(&mut client), 0);
}

#[test]
fn replies_keep_to_the_limit_of_the_session() {
    let site = Site::new();
    let shape = Shape {
        reply: 2048,
        operations: 64,
        ..LINUX
    };
    let mut client = site.connect().mount(b"small", 1, shape);
    let big = client.handle("big");
    // A read is cut to what fits.
    let (status, mut results) = client.on(&big, Ops::new().read(&ANONYMOUS, 0, 1 << 20));
    assert_eq!(status, OK);
    let results = results.ok(READ);
    assert!(!results.bool());
    let len = results.opaque().len();
    assert!(len > 1024 && len < 2048, "{len}");
    // What cannot be cut is refused, and the whole reply still fits.
    let mut refused = 0;
    for count in 1..60 {
        let ops = (0..count).fold(walk("big"), |ops, _| ops.get_handle());
        let (status, results) = client.run(ops.plain(SETATTR, &[0; 6]));
        assert!(status == ROFS || status == REP_TOO_BIG);
        refused += u32::from(status == REP_TOO_BIG);
        // RPC header, status, tag, count and the result of SEQUENCE.
        let len = 24 + 4 + 8 + 4 + 44 + results.len();
        assert!(
            len <= shape.reply as usize,
            "{count} operations, {len} bytes"
        );
    }
    assert!(refused > 10);
    // No room to read into is an error, not an empty read in the middle of the file.
    for count in 1..60 {
        let ops = (0..count).fold(Ops::new(), |ops, _| ops.get_handle());
        let (status, mut results) = client.on(&big, ops.read(&ANONYMOUS, 0, 4096));
        if status == OK {
            (0..count).for_each(|_| drop(results.ok(GETFH).opaque()));
            let read = results.ok(READ);
            assert!(!read.bool() && !read.opaque().is_empty(), "{count}");
        } else {
            assert_eq!(status, REP_TOO_BIG);
        }
    }
}

#[test]
fn machines_of_one_name_behind_one_address_are_reported_once_and_elsewhere_not() {
    #[derive(Default)]
    struct Collisions(Mutex<Vec<(IpAddr, Vec<u8>)>>);

    impl nfs::Observer for Collisions {
        fn observe(&self, activity: nfs::Activity) {
            if let nfs::Activity::Collision { address, owner } = activity {
                self.0.lock().expect("no panic").push((address, owner));
            }
        }
    }

    let seen = Arc::new(Collisions::default());
    let site = Site::with(|config| config.observer = Some(seen.clone()));
    // The same name at many addresses, each of which restarted once, is none.
    for address in 2..20 {
        for verifier in 0..2 {
            let node = Peer::connect_from(Ipv4Addr::new(127, 0, 0, address), site.address);
            node.mount(b"localhost", verifier, LINUX);
        }
    }
    assert_eq!(*seen.0.lock().expect("no panic"), []);
    for round in 0..20 {
        site.connect().mount(b"localhost", round % 2, LINUX);
    }
    let expected = (IpAddr::V4(Ipv4Addr::LOCALHOST), b"localhost".to_vec());
    assert_eq!(*seen.0.lock().expect("no panic"), [expected]);
}

#[test]
fn a_request_above_the_limit_of_the_session_is_refused() {
    let site = Site::new();
    let shape = Shape {
        request: 512,
        ..LINUX
    };
    let mut client = site.connect().mount(b"small", 1, shape);
    assert_eq!(client.status(walk("hello")), OK);
    let long = Ops::new().put_root().lookup(&[b'x'; 500]);
    assert_eq!(client.try_run(&long).0, REQ_TOO_BIG);
    // The slot is as it was.
    client.sequence -= 1;
    assert_eq!(client.status(walk("hello")), OK);
}
