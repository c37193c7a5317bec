//! NFS: whatever comes over a connection, the server neither panics nor answers without bound.
//!
//! The first byte picks what the rest is: records as they come off a socket, a call's arguments, or
//! operations on a file behind a valid SEQUENCE.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nfs::{Config, Direct, Server};

#[allow(dead_code)]
#[path = "../../crates/nfs/tests/protocol/memory.rs"]
mod memory;

/// The longest reply is a READ of 1 MiB and what is around it.
const MAX_REPLY: usize = (1 << 20) + (64 << 10) + 4;
const PATHS: [&[&[u8]]; 8] = [
    &[b"image"],
    &[b"image", b"many"],
    &[b"image", b"hello"],
    &[b"image", b"big"],
    &[b"image", b"sparse"],
    &[b"image", b"link"],
    &[b"image", b"noted"],
    &[],
];

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let mut config = Config::new([7; 32]);
    config.threads = 1;
    Server::new(config)
        .expect("threads")
        .export("/image", [1; 16], Arc::new(memory::Memory::sample()))
        .expect("an export")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&[mode, minor, path], bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let mut wire = SERVER.direct(IpAddr::V4(Ipv4Addr::LOCALHOST));
    if mode < 16 {
        if let Some(reply) = wire.exchange(bytes) {
            // No record is shorter than a mark and an xid.
            assert!(reply.len() <= (bytes.len() / 8 + 1) * MAX_REPLY);
        }
        return;
    }
    if mode < 32 {
        exchange(&mut wire, &call(bytes));
        return;
    }
    let minor = u32::from(minor % 2 + 1);
    let session = session(&mut wire, minor);
    let path = PATHS[usize::from(path) % PATHS.len()];
    // The count of operations may be a lie, as long as the session allows it.
    let mut args = header(minor, u32::from(mode) % 65);
    args.extend(words(&[53]));
    args.extend(session);
    args.extend(words(&[1, 0, 0, 0, 24]));
    for name in path {
        args.extend(words(&[15]));
        args.extend(opaque(name));
    }
    args.extend(bytes);
    let first = exchange(&mut wire, &call(&args));
    // Sent again, it is answered again.
    let again = exchange(&mut wire, &call(&args));
    assert_eq!(first.is_some(), again.is_some());
});

/// A session of a client of this connection.
fn session(wire: &mut Direct, minor: u32) -> Vec<u8> {
    let mut args = header(minor, 1);
    args.extend(words(&[42, 0, 1]));
    args.extend(opaque(b"client"));
    args.extend(words(&[0, 0, 0]));
    // Mark, header, status, no tag, count, operation, status.
    let reply = exchange(wire, &call(&args)).expect("a client id");
    let (client, sequence) = (&reply[48..56], &reply[56..60]);
    let mut args = header(minor, 1);
    args.extend(words(&[43]));
    args.extend(client);
    args.extend(sequence);
    args.extend(words(&[2]));
    args.extend(words(&[0, 1 << 17, 1 << 20, 4096, 64, 64, 0]));
    args.extend(words(&[0, 4096, 4096, 0, 2, 16, 0]));
    args.extend(words(&[0x4000_0000, 1, 0]));
    let reply = exchange(wire, &call(&args)).expect("a session");
    reply[48..64].to_vec()
}

fn exchange(wire: &mut Direct, record: &[u8]) -> Option<Vec<u8>> {
    let reply = wire.exchange(record)?;
    assert!(reply.len() <= MAX_REPLY, "{} bytes", reply.len());
    Some(reply.to_vec())
}

/// A record with a COMPOUND of root.
fn call(args: &[u8]) -> Vec<u8> {
    let mut body = words(&[1, 0, 2, 100_003, 4, 1, 1, 20, 0, 0, 0, 0, 0, 0, 0]);
    body.extend(args);
    let mut record = words(&[1 << 31 | body.len() as u32]);
    record.append(&mut body);
    record
}

/// The arguments of COMPOUND up to its operations: no tag, minor version, count.
fn header(minor: u32, count: u32) -> Vec<u8> {
    words(&[0, minor, count])
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn opaque(bytes: &[u8]) -> Vec<u8> {
    let mut written = words(&[bytes.len() as u32]);
    written.extend(bytes);
    written.resize(written.len().next_multiple_of(4), 0);
    written
}
