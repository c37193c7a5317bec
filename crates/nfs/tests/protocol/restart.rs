//! A second server with the key and the trees of the first one goes on where that was.

use crate::client::{Client, LINUX, Ops, Shape, walk};
use crate::codes::*;
use crate::{KEY, Site};

/// Moves a client to another server, as a client does that reconnects.
fn reconnect(client: &mut Client, site: &Site) {
    client.peer = site.connect();
}

#[test]
fn handles_sessions_and_states_go_on() {
    let first = Site::new();
    let mut client = first.client();
    let hello = client.handle("hello");
    let (_, mut results) = client.on(&hello, Ops::new().open_here(SHARE_READ));
    let state = results.ok(OPEN).array();
    first.server.shutdown();
    let second = Site::new();
    reconnect(&mut client, &second);
    assert_eq!(client.handle("hello"), hello);
    assert_eq!(client.on(&hello, Ops::new().read(&state, 0, 5)).0, OK);
    // Slots count on from where they are.
    let jump = Ops::new().sequence(&client.session, client.sequence + 2, 0);
    assert_eq!(client.peer.compound(&jump).0, SEQ_MISORDERED);
    // A reclaim needs no grace period, and is answered outside of one.
    let reclaim = Ops::new().open(SHARE_READ, |args| {
        args.words(&[CLAIM_PREVIOUS, 1]);
    });
    assert_eq!(client.on(&hello, reclaim).0, OK);
    let complete = Ops::new().plain(RECLAIM_COMPLETE, &[0]);
    assert_eq!(client.status(complete), OK);
    let close = Ops::new().op(CLOSE, |args| {
        args.u32(0).fixed(&state);
    });
    assert_eq!(client.on(&hello, close).0, OK);
}

#[test]
fn a_call_whose_reply_was_lost_is_answered_by_the_next_server() {
    let first = Site::new();
    // Without a backchannel, whose loss would be in the second reply.
    let shape = Shape {
        back: false,
        ..LINUX
    };
    let mut client = first.connect().mount(b"client", 1, shape);
    let read = walk("hello").read(&ANONYMOUS, 0, 100);
    let before = client.try_run(&read);
    first.server.shutdown();
    let second = Site::new();
    reconnect(&mut client, &second);
    client.sequence -= 1;
    assert_eq!(client.try_run(&read), before);
}

#[test]
fn a_client_may_also_begin_anew() {
    let first = Site::new();
    let mut before = first.client();
    assert_eq!(before.status(walk("")), OK);
    first.server.shutdown();
    let second = Site::new();
    let mut after = second.connect().mount(b"client", 1, LINUX);
    assert_eq!(after.client, before.client, "the same incarnation");
    assert_ne!(after.session, before.session);
    assert_eq!(after.status(walk("")), OK);
    let mut restarted = second.connect().mount(b"client", 2, LINUX);
    assert_eq!(restarted.status(walk("")), OK);
    assert_eq!(after.try_run(&walk("")).0, BADSESSION);
}

#[test]
fn a_client_id_outlives_the_server_between_its_two_calls() {
    let first = Site::new();
    let (client, sequence) = first.connect().exchange_id(b"client", 1);
    first.server.shutdown();
    let second = Site::new();
    let mut peer = second.connect();
    let session = peer.create_session(client, sequence, LINUX);
    assert_eq!(peer.compound(&Ops::new().sequence(&session, 1, 0)).0, OK);
}

#[test]
fn a_server_with_another_key_sends_clients_to_begin_anew() {
    let first = Site::new();
    let mut client = first.client();
    let hello = client.handle("hello");
    first.server.shutdown();
    let other = Site::with(|config| config.key[0] = !KEY[0]);
    let states = Site::with(|config| config.key[31] = !KEY[31]);
    reconnect(&mut client, &states);
    assert_eq!(client.try_run(&walk("")).0, BADSESSION);
    let create = Ops::new().create_session(client.client, 2, LINUX);
    assert_eq!(client.peer.compound(&create).0, STALE_CLIENTID);
    let mut anew = other.client();
    assert_eq!(anew.status(Ops::new().put(&hello)), BADHANDLE);
}
