//! What the fuzz target `nfs_rpc` does with its input; the tests do it with recorded input.
//!
//! The first three bytes, `mode`, `minor` and `path`, say what the rest is: records as they come off
//! a socket, the arguments of a COMPOUND, those of a call of version 3 or of MOUNT, or operations of
//! version 4 on a file behind a valid SEQUENCE.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use nfs::{Config, Direct, Server};

use crate::memory::Memory;

/// The longest reply is a READ of 1 MiB and what is around it.
const MAX_REPLY: usize = (1 << 20) + (64 << 10) + 4;
const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
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
        .export("/image", [1; 16], Arc::new(Memory::sample()))
        .expect("an export")
});

/// The handles of [`PATHS`].
static HANDLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let wire = &mut direct();
    PATHS.iter().map(|path| handle(wire, path)).collect()
});

/// Panics where the server answers without bound; so does the server where it is wrong.
pub fn run(bytes: &[u8]) {
    let Some((&[mode, minor, path], bytes)) = bytes.split_first_chunk() else {
        return;
    };
    let wire = &mut direct();
    let path = usize::from(path) % PATHS.len();
    match mode {
        0..16 => records(wire, bytes),
        16..24 => {
            exchange(wire, &call([NFS, 4, 1], bytes));
        }
        24..32 => version_3(wire, minor, path, bytes),
        32.. => operations(wire, mode, minor, path, bytes),
    }
}

fn direct() -> Direct {
    SERVER.direct(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn records(wire: &mut Direct, bytes: &[u8]) {
    if let Some(reply) = wire.exchange(bytes) {
        // No record is shorter than a mark and an xid.
        assert!(reply.len() <= (bytes.len() / 8 + 1) * MAX_REPLY);
    }
}

/// A procedure of version 3, most of them with a valid handle before the arguments, or of MOUNT.
fn version_3(wire: &mut Direct, selector: u8, path: usize, bytes: &[u8]) {
    const PROCEDURES: u32 = 23;
    let selector = u32::from(selector);
    let (target, args) = match selector / PROCEDURES {
        0..=8 => {
            let args = [&opaque(&HANDLES[path]), bytes].concat();
            ([NFS, 3, selector % PROCEDURES], args)
        }
        9 => ([NFS, 3, selector % PROCEDURES], bytes.to_vec()),
        _ => ([MOUNT, 3, selector % 7], bytes.to_vec()),
    };
    let call = call(target, &args);
    let first = exchange(wire, &call);
    // There is no state: what is asked again is answered alike.
    assert_eq!(exchange(wire, &call), first);
}

/// Operations behind SEQUENCE and the way to a file.
fn operations(wire: &mut Direct, mode: u8, minor: u8, path: usize, bytes: &[u8]) {
    let minor = u32::from(minor % 2 + 1);
    let session = session(wire, minor);
    // The count of operations may be a lie, as long as the session allows it.
    let mut args = header(minor, u32::from(mode) % 65);
    args.extend(words(&[53]));
    args.extend(session);
    args.extend(words(&[1, 0, 0, 0, 24]));
    for name in PATHS[path] {
        args.extend(words(&[15]));
        args.extend(opaque(name));
    }
    args.extend(bytes);
    let call = call([NFS, 4, 1], &args);
    let first = exchange(wire, &call);
    // Sent again, it is answered again.
    let again = exchange(wire, &call);
    assert_eq!(first.is_some(), again.is_some());
}

/// The handle of a path: MOUNT, then look-ups.
fn handle(wire: &mut Direct, path: &[&[u8]]) -> Vec<u8> {
    // Mark, header, status; the handle's length stands before it.
    let found = |reply: Option<Vec<u8>>| {
        let reply = reply.expect("a handle");
        let len = u32::from_be_bytes([reply[32], reply[33], reply[34], reply[35]]);
        reply[36..36 + len as usize].to_vec()
    };
    let root = found(exchange(wire, &call([MOUNT, 3, 1], &opaque(b"/"))));
    path.iter().fold(root, |dir, name| {
        let args = [opaque(&dir), opaque(name)].concat();
        found(exchange(wire, &call([NFS, 3, 3], &args)))
    })
}

/// A session of a client of this connection.
fn session(wire: &mut Direct, minor: u32) -> Vec<u8> {
    let mut args = header(minor, 1);
    args.extend(words(&[42, 0, 1]));
    args.extend(opaque(b"client"));
    args.extend(words(&[0, 0, 0]));
    // Mark, header, status, no tag, count, operation, status.
    let reply = exchange(wire, &call([NFS, 4, 1], &args)).expect("a client id");
    let (client, sequence) = (&reply[48..56], &reply[56..60]);
    let mut args = header(minor, 1);
    args.extend(words(&[43]));
    args.extend(client);
    args.extend(sequence);
    args.extend(words(&[2]));
    args.extend(words(&[0, 1 << 17, 1 << 20, 4096, 64, 64, 0]));
    args.extend(words(&[0, 4096, 4096, 0, 2, 16, 0]));
    args.extend(words(&[0x4000_0000, 1, 0]));
    let reply = exchange(wire, &call([NFS, 4, 1], &args)).expect("a session");
    reply[48..64].to_vec()
}

fn exchange(wire: &mut Direct, record: &[u8]) -> Option<Vec<u8>> {
    let reply = wire.exchange(record)?;
    assert!(reply.len() <= MAX_REPLY, "{} bytes", reply.len());
    Some(reply.to_vec())
}

/// A record with a call by root: program, version, procedure.
fn call(target: [u32; 3], args: &[u8]) -> Vec<u8> {
    let mut body = words(&[1, 0, 2]);
    body.extend(words(&target));
    body.extend(words(&[1, 20, 0, 0, 0, 0, 0, 0, 0]));
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
