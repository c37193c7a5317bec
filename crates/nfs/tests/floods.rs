//! What strangers can make of the server's memory, in figures, while a node goes on: `cargo test
//! --package nfs --test floods -- --nocapture`. A process of its own, whose memory is the server's
//! and little more. That the tables are bounded is tested beside them, by their counts.

#[allow(dead_code)]
#[path = "protocol/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "protocol/codes.rs"]
mod codes;
#[allow(dead_code)]
#[path = "protocol/memory.rs"]
mod memory;

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};

use client::{Client, LINUX, Ops, Peer, ROOT, Results, call_body, compound_args, record, walk};
use codes::*;
use memory::Memory;

const NODE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const MIB: u64 = 1 << 20;

/// One after the other, since they look at the memory of the whole process, and the smallest first:
/// what one of them freed is still counted with the next.
#[test]
fn floods_are_bounded_and_a_node_goes_on() {
    connections_that_say_nothing();
    records_that_never_end();
    a_hundred_thousand_client_ids();
    a_hundred_thousand_sessions_with_every_slot();
    replies_that_are_kept_for_every_slot();
}

struct Site {
    server: nfs::Server,
    address: SocketAddr,
    node: Client,
    /// Bytes of memory with the first server, before the floods.
    idle: u64,
}

impl Site {
    /// A server with one node, which has a session.
    fn new(change: impl FnOnce(&mut nfs::Config)) -> Site {
        let mut config = nfs::Config::new([7; 32]);
        config.threads = 1;
        change(&mut config);
        let server = nfs::Server::new(config)
            .expect("threads")
            .export("/image", [1; 16], Arc::new(Memory::sample()))
            .expect("an export");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        server.serve(listener).expect("a listener");
        let mut node = Peer::connect_from(NODE, address).mount(b"node", 1, LINUX);
        assert_eq!(node.status(walk("hello")), OK);
        static IDLE: OnceLock<u64> = OnceLock::new();
        Site {
            server,
            address,
            node,
            idle: *IDLE.get_or_init(resident),
        }
    }

    fn stranger(&self) -> Wire {
        Wire(self.server.direct(IpAddr::V4(STRANGER)))
    }

    /// The node's session is there, and the process has grown by less than `most` MiB in all.
    fn assert_unharmed(mut self, what: &str, most: u64) {
        let grown = resident().saturating_sub(self.idle) / MIB;
        println!("{what}: the process is {grown} MiB larger than it was idle");
        assert_eq!(self.node.status(walk("hello")), OK, "{what}");
        assert!(grown < most, "{what}: {grown} MiB");
    }
}

/// A connection without a socket.
struct Wire(nfs::Direct);

impl Wire {
    /// The status of a compound and its results.
    fn compound(&mut self, ops: &Ops) -> (u32, Results) {
        let call = call_body(7, [NFS, 4, 1], ROOT, &compound_args(2, ops));
        let reply = self.0.exchange(&record(&call)).expect("a reply");
        let mut reply = Results::new(reply);
        // Mark, header; then status, tag, count.
        reply.fixed(28);
        let status = reply.u32();
        reply.fixed(12);
        (status, reply)
    }

    fn exchange_id(&mut self, owner: &[u8]) -> (u64, u32) {
        let (_, mut results) = self.compound(&Ops::new().exchange_id(owner, 1, 0));
        let results = results.ok(EXCHANGE_ID);
        (results.u64(), results.u32())
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("its own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok()).expect("a size") * 1024
}

/// The longest name that a client may have, a different one each time.
fn name(index: u32) -> [u8; 1024] {
    let mut name = [b'x'; 1024];
    name[..4].copy_from_slice(&index.to_be_bytes());
    name
}

fn a_hundred_thousand_client_ids() {
    let site = Site::new(|_| ());
    let mut stranger = site.stranger();
    for index in 0..100_000 {
        stranger.exchange_id(&name(index));
    }
    site.assert_unharmed("100,000 client ids with names of 1 KiB", 128);
}

fn a_hundred_thousand_sessions_with_every_slot() {
    let site = Site::new(|_| ());
    let mut stranger = site.stranger();
    for index in 0..100_000_u32 {
        let (client, sequence) = stranger.exchange_id(&index.to_be_bytes());
        let create = Ops::new().create_session(client, sequence, LINUX);
        let (_, mut results) = stranger.compound(&create);
        let session = results.ok(CREATE_SESSION).array();
        let call = Ops::new().sequence(&session, 1, LINUX.slots - 1);
        assert_eq!(stranger.compound(&call).0, OK);
    }
    site.assert_unharmed("100,000 sessions of 64 slots", 256);
}

fn replies_that_are_kept_for_every_slot() {
    let site = Site::new(|_| ());
    let mut stranger = site.stranger();
    // What is kept holds the call's tag, so let that be long.
    let tag = [b'x'; 900];
    for index in 0..20_000_u32 {
        let (client, mut sequence) = stranger.exchange_id(&index.to_be_bytes());
        let mut create = |stranger: &mut Wire| {
            let create = Ops::new().create_session(client, sequence, LINUX);
            sequence += 1;
            let (_, mut results) = stranger.compound(&create);
            results.ok(CREATE_SESSION).array::<16>()
        };
        let session = create(&mut stranger);
        for slot in 0..4 {
            let other = create(&mut stranger);
            let ops = Ops::new().sequence(&session, 1, slot);
            let ops = ops.op(DESTROY_SESSION, |args| {
                args.fixed(&other);
            });
            let mut args = client::Xdr::default();
            args.opaque(&tag).words(&[2, ops.count]);
            args.fixed(&ops.bytes.0);
            let call = record(&call_body(7, [NFS, 4, 1], ROOT, &args.0));
            assert!(stranger.0.exchange(&call).is_some());
        }
    }
    site.assert_unharmed("20,000 sessions with replies to repeat", 512);
}

fn records_that_never_end() {
    const KEPT_BYTES: usize = 16 << 20;
    let site = Site::new(|config| config.max_kept_bytes = KEPT_BYTES);
    // The most that a record may have, less one byte, in one fragment or in two.
    let one = [&((1_u32 << 31) | 131_072).to_be_bytes()[..], &[0; 131_071]].concat();
    let mut two = [&131_068_u32.to_be_bytes()[..], &[0; 131_068]].concat();
    two.extend_from_slice(&[0x80, 0, 0, 4, 0]);
    let mut peers = Vec::new();
    for index in 0..400 {
        let mut peer = Peer::connect_from(STRANGER, site.address);
        let bytes = if index % 2 == 0 { &one } else { &two };
        if let Err(error) = peer.stream.write_all(bytes) {
            let cut = matches!(
                error.kind(),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            );
            assert!(cut, "{error}");
        }
        peers.push(peer);
    }
    let bound = KEPT_BYTES as u64 / MIB + 32;
    site.assert_unharmed("400 connections, each with 128 KiB of a record", bound);
    drop(peers);
}

fn connections_that_say_nothing() {
    let site = Site::new(|config| config.max_connections = 1000);
    let peers: Vec<Peer> = (0..400)
        .map(|_| Peer::connect_from(STRANGER, site.address))
        .collect();
    site.assert_unharmed("400 silent connections", 8);
    drop(peers);
}
