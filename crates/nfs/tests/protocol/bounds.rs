//! Limits on what a stranger can grow, and that they do not hurt who is there already. Those of the
//! tables of clients and sessions are tested beside them.

use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::Site;
use crate::client::{Client, LINUX, Ops, Peer, call_body, compound_args, record, walk};
use crate::codes::*;

const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const SECOND_NODE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Whether the server answers on a connection, which it may have closed.
fn is_served(peer: &mut Peer) -> bool {
    let ping = record(&call_body(1, [NFS, 4, 0], peer.credential, &[]));
    peer.stream.write_all(&ping).is_ok() && peer.receive().is_some()
}

#[test]
fn one_address_has_so_many_connections_and_no_more() {
    let site = Site::with(|config| config.max_connections_per_address = 3);
    let mut peers: Vec<Peer> = (0..3).map(|_| site.connect()).collect();
    assert!(peers.iter_mut().all(is_served));
    assert!(!is_served(&mut site.connect()));
    assert!(is_served(&mut Peer::connect_from(STRANGER, site.address)));
    assert!(peers.iter_mut().all(is_served));
    // One that ends makes room for another.
    peers.pop();
    let end = Instant::now() + Duration::from_secs(20);
    while !is_served(&mut site.connect()) {
        assert!(Instant::now() < end);
    }
}

#[test]
fn connections_without_a_session_give_way() {
    let site = Site::with(|config| {
        config.max_connections = 8;
        config.threads = 1;
    });
    let mut node = site.client();
    let mut strangers: Vec<Peer> = Vec::new();
    for _ in 0..30 {
        let mut stranger = Peer::connect_from(STRANGER, site.address);
        assert!(is_served(&mut stranger), "the newest is served");
        strangers.push(stranger);
    }
    assert!(site.server.stats().connections <= 8);
    assert_eq!(node.status(walk("hello")), OK);
    let second = Peer::connect_from(SECOND_NODE, site.address);
    let mut second = second.mount(b"second", 1, LINUX);
    for _ in 0..30 {
        is_served(&mut Peer::connect_from(STRANGER, site.address));
    }
    assert_eq!(second.status(walk("hello")), OK);
    assert_eq!(node.status(walk("hello")), OK);
    assert!(!is_served(&mut strangers[0]));
}

#[test]
fn an_address_with_many_sessions_gives_way_to_one_with_few() {
    let site = Site::with(|config| {
        config.max_connections = 8;
        config.threads = 1;
    });
    let mut node = site.client();
    let mut strangers: Vec<Client> = (0..7_u8)
        .map(|index| Peer::connect_from(STRANGER, site.address).mount(&[index], 1, LINUX))
        .collect();
    let second = Peer::connect_from(SECOND_NODE, site.address);
    let mut second = second.mount(b"second", 1, LINUX);
    assert_eq!(node.status(walk("hello")), OK);
    assert_eq!(second.status(walk("hello")), OK);
    assert!(!is_served(&mut strangers[0].peer));
    assert_eq!(strangers[6].status(walk("hello")), OK);
    assert_eq!(site.server.stats().connections, 8);
}

/// How many of forty strangers are cut off that ask for sixteen replies of up to 1 MiB of a file
/// before they take any, where 6 MiB may be kept for all. A node that takes its replies goes on.
///
/// The replies of each stranger have a size of their own: the kernel takes about as much for every
/// connection, and if replies were of one size it could end near the end of one, everywhere.
fn cut_off_while_reading(name: &str) -> usize {
    const CALLS: u32 = 16;
    let site = Site::with(|config| {
        config.max_kept_bytes = 6 << 20;
        config.threads = 1;
    });
    let mut node = site.client();
    let file = node.handle(name);
    let ask = |client: &mut Client, bytes: u32| {
        for slot in 0..CALLS {
            let ops = Ops::new().sequence(&client.session, 1, 10 + slot);
            let ops = ops.put(&file).read(&ANONYMOUS, 0, bytes);
            let call = call_body(
                slot,
                [NFS, 4, 1],
                client.peer.credential,
                &compound_args(2, &ops),
            );
            if client.peer.stream.write_all(&record(&call)).is_err() {
                return;
            }
        }
    };
    let take = |client: &mut Client| {
        (0..CALLS)
            .take_while(|_| client.peer.receive().is_some())
            .count()
    };
    let mut strangers: Vec<(Client, u32)> = (0..40_u8)
        .map(|index| {
            let peer = Peer::connect_from(STRANGER, site.address);
            let bytes = (1 << 20) - u32::from(index) * (13 << 10);
            (peer.mount(&[index], 1, LINUX), bytes)
        })
        .collect();
    let ask_as_stranger = |(client, bytes): &mut (Client, u32)| ask(client, *bytes);
    // Slower than it might be, but alive: five replies of 1 MiB may be kept.
    ask(&mut node, 1 << 20);
    strangers.iter_mut().take(4).for_each(ask_as_stranger);
    assert_eq!(take(&mut node), CALLS as usize);
    strangers.iter_mut().skip(4).for_each(ask_as_stranger);
    assert_eq!(node.status(walk("hello")), OK);
    let cut = strangers
        .iter_mut()
        .map(|(client, _)| take(client))
        .filter(|count| *count < CALLS as usize)
        .count();
    let read = node.on(&file, Ops::new().read(&ANONYMOUS, 0, 1 << 20));
    assert_eq!(read.0, OK);
    cut
}

#[test]
fn whoever_does_not_take_replies_is_cut_off_and_others_are_not() {
    // What is left of a reply of up to 1 MiB, forty times, is far above 6 MiB.
    let cut = cut_off_while_reading("loose");
    assert!(cut >= 10, "{cut} of 40 were cut off");
}

#[test]
fn content_that_is_sent_from_where_it_is_costs_nothing_to_keep() {
    assert_eq!(cut_off_while_reading("big"), 0);
}

#[test]
fn a_dropped_session_is_one_session_again_on_all_its_connections() {
    let site = Site::new();
    let mut client = site.client();
    let mut second = site.connect();
    let mut others = Vec::new();
    let ping = |peer: &mut Peer, session: &[u8; 16], sequence: u32| {
        let (status, mut results) = peer.compound(&Ops::new().sequence(session, sequence, 0));
        assert_eq!(status, OK, "sequence {sequence}");
        results.ok(SEQUENCE).fixed(32);
        results.u32()
    };
    ping(&mut client.peer, &client.session, 1);
    ping(&mut second, &client.session, 2);
    // More sessions than a client may have, each with a connection that holds it.
    for sequence in 2..40 {
        let mut peer = site.connect();
        peer.create_session(client.client, sequence, LINUX);
        others.push(peer);
    }
    for round in 0..10 {
        let back = ping(&mut client.peer, &client.session, 3 + 2 * round);
        assert_eq!(back, 0, "its backchannel is still there");
        ping(&mut second, &client.session, 4 + 2 * round);
    }
}
