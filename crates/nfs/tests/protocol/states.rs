//! Open files, delegations, locks: state that describes itself.

use crate::Site;
use crate::client::{Client, LINUX, Ops, Results, Shape, State, Xdr};
use crate::codes::*;

/// What OPEN gave.
struct Opened {
    state: State,
    flags: u32,
    delegation: Delegation,
}

#[derive(Debug, PartialEq, Eq)]
enum Delegation {
    None,
    Read(State),
    /// None, and why.
    NoneBecause(u32),
}

fn opened(results: &mut Results) -> Opened {
    let results = results.ok(OPEN);
    let state = results.array();
    let _change = (results.bool(), results.u64(), results.u64());
    let flags = results.u32();
    assert_eq!(results.bits(), [] as [u32; 0], "no attribute was set");
    let delegation = match results.u32() {
        0 => Delegation::None,
        1 => {
            let state = results.array();
            assert!(!results.bool(), "it is not recalled");
            let _ace = (results.fixed(12), results.opaque());
            Delegation::Read(state)
        }
        3 => {
            let why = results.u32();
            if why == 1 || why == 2 {
                results.bool();
            }
            Delegation::NoneBecause(why)
        }
        other => panic!("delegation {other}"),
    };
    Opened {
        state,
        flags,
        delegation,
    }
}

fn open(client: &mut Client, handle: &[u8], share: u32) -> Opened {
    let (status, mut results) = client.on(handle, Ops::new().open_here(share));
    assert_eq!(status, OK);
    opened(&mut results)
}

fn close(state: &State) -> Ops {
    Ops::new().op(CLOSE, |args| {
        args.u32(0).fixed(state);
    })
}

fn give_back(state: &State) -> Ops {
    Ops::new().op(DELEGRETURN, |args| {
        args.fixed(state);
    })
}

fn delegation(opened: &Opened) -> State {
    match opened.delegation {
        Delegation::Read(state) => state,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_opened_by_every_claim_and_never_has_to_wait_for_grace() {
    let site = Site::new();
    let mut client = site.client();
    let (dir, file) = (client.handle(""), client.handle("hello"));
    let held = delegation(&open(&mut client, &file, SHARE_READ));
    let by_name = |claim: u32, state: bool| {
        let mut args = Xdr::default();
        args.u32(claim);
        if state {
            args.fixed(&held);
        }
        args.opaque(b"hello");
        (&dir, args)
    };
    let by_handle = |claim: u32, rest: &[u8]| {
        let mut args = Xdr::default();
        args.u32(claim).fixed(rest);
        (&file, args)
    };
    for (handle, claim) in [
        by_name(CLAIM_NULL, false),
        by_handle(CLAIM_PREVIOUS, &[0, 0, 0, 1]),
        by_name(2, true),
        by_name(3, false),
        by_handle(CLAIM_FH, &[]),
        by_handle(5, &held),
        by_handle(6, &[]),
    ] {
        let ops = Ops::new().open(SHARE_READ, |args| {
            args.fixed(&claim.0);
        });
        let (status, mut results) = client.on(handle, ops.get_handle());
        assert_eq!(status, OK, "{claim:?}");
        let opened = opened(&mut results);
        assert_eq!(delegation(&opened), held, "always the same, for {claim:?}");
        assert_eq!(results.ok(GETFH).opaque(), file, "{claim:?}");
        let read = Ops::new().read(&opened.state, 0, 5);
        assert_eq!(client.on(&file, read).0, OK);
    }
}

#[test]
fn delegations_come_with_a_backchannel_only() {
    let site = Site::new();
    let mut client = site.client();
    let file = client.handle("hello");
    let with = open(&mut client, &file, SHARE_READ);
    assert!(matches!(with.delegation, Delegation::Read(_)));
    let refused = open(&mut client, &file, SHARE_READ | WANT_NO_DELEGATION);
    assert_eq!(refused.delegation, Delegation::NoneBecause(0));
    let shape = Shape {
        back: false,
        ..LINUX
    };
    let mut deaf = site.connect().mount(b"deaf", 1, shape);
    let without = open(&mut deaf, &file, SHARE_READ);
    assert_eq!(without.delegation, Delegation::None);
    // Whoever says what it wants is told why not: resources (2).
    let without = open(&mut deaf, &file, SHARE_READ | 0x100);
    assert_eq!(without.delegation, Delegation::NoneBecause(2));
}

#[test]
fn a_delegation_instead_of_an_open_state_spares_the_close() {
    const LOCKTYPE_POSIX: u32 = 4;
    const NO_OPEN_STATE: u32 = 0x10;
    let site = Site::new();
    let mut client = site.client();
    let file = client.handle("hello");
    let share = SHARE_READ | WANT_OPEN_XOR_DELEGATION;
    let xor = open(&mut client, &file, share);
    assert_eq!(xor.flags, LOCKTYPE_POSIX | NO_OPEN_STATE);
    let held = delegation(&xor);
    assert_eq!(client.on(&file, Ops::new().read(&held, 0, 5)).0, OK);
    assert_eq!(client.on(&file, give_back(&held)).0, OK);
    // The current state id is the delegation's then.
    let both = Ops::new().open_here(share).read(&CURRENT, 0, 5);
    assert_eq!(client.on(&file, both).0, OK);
    let plain = open(&mut client, &file, SHARE_READ);
    assert_eq!(plain.flags, LOCKTYPE_POSIX);
}

#[test]
fn opening_to_write_or_to_create_is_refused() {
    let site = Site::new();
    let mut client = site.client();
    let (dir, file) = (client.handle(""), client.handle("hello"));
    assert_eq!(client.on(&file, Ops::new().open_here(2)).0, ROFS);
    assert_eq!(client.on(&file, Ops::new().open_here(SHARE_BOTH)).0, ROFS);
    assert_eq!(client.on(&file, Ops::new().open_here(0)).0, INVAL);
    // OPEN4_CREATE, and then UNCHECKED or EXCLUSIVE.
    let create = |name: &[u8], exclusive: bool| {
        Ops::new().op(OPEN, |args| {
            args.words(&[0, SHARE_READ, 0])
                .u64(1)
                .opaque(b"owner")
                .u32(1);
            if exclusive {
                args.u32(2).u64(7);
            } else {
                args.u32(0).bits(&[]).u32(0);
            }
            args.u32(CLAIM_NULL).opaque(name);
        })
    };
    assert_eq!(client.on(&dir, create(b"hello", false)).0, OK);
    assert_eq!(client.on(&dir, create(b"hello", true)).0, EXIST);
    assert_eq!(client.on(&dir, create(b"fresh", false)).0, ROFS);
    let missing = Ops::new().open(SHARE_READ, |args| {
        args.u32(CLAIM_NULL).opaque(b"fresh");
    });
    assert_eq!(client.on(&dir, missing).0, NOENT);
}

#[test]
fn the_current_state_id_is_that_of_the_open_before() {
    let site = Site::new();
    let mut client = site.client();
    let file = client.handle("hello");
    let open = Ops::new().open_here(SHARE_READ);
    let ops = open.clone().read(&CURRENT, 0, 5).op(CLOSE, |args| {
        args.u32(0).fixed(&CURRENT);
    });
    assert_eq!(client.on(&file, ops).0, OK);
    let none = Ops::new().read(&CURRENT, 0, 5);
    assert_eq!(client.on(&file, none).0, BAD_STATEID);
    // It goes with a saved handle.
    let ops = open.plain(SAVEFH, &[]).put_root().plain(RESTOREFH, &[]);
    assert_eq!(client.on(&file, ops.read(&CURRENT, 0, 5)).0, OK);
}

#[test]
fn state_ids_are_of_one_client_and_one_file() {
    let site = Site::new();
    let mut client = site.client();
    let mut other = site.connect().mount(b"other", 1, LINUX);
    let (file, big) = (client.handle("hello"), client.handle("big"));
    let opened = open(&mut client, &file, SHARE_READ);
    let held = delegation(&opened);
    for at in 4..16 {
        let mut forged = opened.state;
        forged[at] ^= 1;
        let read = Ops::new().read(&forged, 0, 1);
        assert_eq!(client.on(&file, read).0, BAD_STATEID, "byte {at}");
    }
    let read = Ops::new().read(&opened.state, 0, 1);
    assert_eq!(client.on(&file, read.clone()).0, OK);
    assert_eq!(client.on(&big, read.clone()).0, BAD_STATEID);
    assert_eq!(other.on(&file, read).0, BAD_STATEID);
    // Nor does one kind pass for another.
    assert_eq!(client.on(&file, close(&held)).0, BAD_STATEID);
    assert_eq!(client.on(&file, give_back(&opened.state)).0, BAD_STATEID);
    assert_eq!(client.on(&file, close(&opened.state)).0, OK);
    assert_eq!(client.on(&file, give_back(&held)).0, OK);
}

#[test]
fn state_ids_are_tested_and_freed() {
    let site = Site::new();
    let mut client = site.client();
    let file = client.handle("hello");
    let opened = open(&mut client, &file, SHARE_READ);
    let mut forged = opened.state;
    forged[9] ^= 1;
    let states = [opened.state, forged, delegation(&opened)];
    let test = Ops::new().op(TEST_STATEID, |args| {
        args.u32(3).fixed(&states.concat());
    });
    let (_, mut results) = client.run(test);
    let results = results.ok(TEST_STATEID);
    let answers: Vec<u32> = (0..results.u32()).map(|_| results.u32()).collect();
    assert_eq!(answers, [OK, BAD_STATEID, OK]);
    let free = |state: &State| {
        Ops::new().op(FREE_STATEID, |args| {
            args.fixed(state);
        })
    };
    assert_eq!(client.status(free(&opened.state)), OK);
    assert_eq!(client.status(free(&forged)), BAD_STATEID);
}

#[test]
fn read_locks_are_granted_and_write_locks_are_not() {
    let site = Site::new();
    let mut client = site.client();
    let file = client.handle("hello");
    let opened = open(&mut client, &file, SHARE_READ);
    let lock = |kind: u32, offset: u64, len: u64| {
        Ops::new().op(LOCK, |args| {
            args.words(&[kind, 0]).u64(offset).u64(len).words(&[1, 0]);
            args.fixed(&opened.state).u32(0).u64(1).opaque(b"locker");
        })
    };
    let (status, mut results) = client.on(&file, lock(1, 0, u64::MAX));
    assert_eq!(status, OK);
    let state: State = results.ok(LOCK).array();
    assert_eq!(client.on(&file, Ops::new().read(&state, 0, 1)).0, OK);
    let unlock = Ops::new().op(LOCKU, |args| {
        args.words(&[1, 0]).fixed(&state).u64(0).u64(u64::MAX);
    });
    let (status, mut results) = client.on(&file, unlock);
    assert_eq!(status, OK);
    let after: State = results.ok(LOCKU).array();
    assert_eq!((&after[..4], &after[4..]), (&[0, 0, 0, 2][..], &state[4..]));
    for (kind, offset, len, expected) in [
        (2, 0, 1, OPENMODE),
        (1, 0, 0, INVAL),
        (1, 2, u64::MAX - 1, INVAL),
        (9, 0, 1, BADXDR),
    ] {
        assert_eq!(client.on(&file, lock(kind, offset, len)).0, expected);
    }
    let test = Ops::new().op(LOCKT, |args| {
        args.u32(2).u64(0).u64(9).u64(1).opaque(b"locker");
    });
    assert_eq!(client.on(&file, test).0, OK);
}
