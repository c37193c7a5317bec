//! Records and calls below NFS (RFC 5531).

use std::io::Write;

use crate::Site;
use crate::client::{Credential, LINUX, Ops, Results, call_body, compound_args, record};
use crate::codes::*;

#[test]
fn other_programs_versions_and_procedures_are_told_apart() {
    let site = Site::new();
    let mut peer = site.connect();
    // MSG_ACCEPTED, a verifier of two words, the status, and for a mismatch the served versions.
    let cases: [([u32; 3], &[u32]); 7] = [
        ([NFS, 4, 0], &[0, 0, 0, 0]),
        ([NFS, 3, 0], &[0, 0, 0, 0]),
        ([NFS, 2, 0], &[0, 0, 0, 2, 3, 4]),
        ([NFS, 5, 1], &[0, 0, 0, 2, 3, 4]),
        ([NFS, 4, 2], &[0, 0, 0, 3]),
        ([100_227, 3, 0], &[0, 0, 0, 1]),
        ([0, 0, 0], &[0, 0, 0, 1]),
    ];
    for (target, expected) in cases {
        let mut reply = peer.call(target, &[]);
        let words: Vec<u32> = (0..expected.len()).map(|_| reply.u32()).collect();
        assert_eq!(words, expected, "{target:?}");
        assert_eq!(reply.len(), 0, "{target:?}");
    }
}

#[test]
fn arguments_that_are_none_are_garbage() {
    let site = Site::new();
    let mut peer = site.connect();
    let mut reply = peer.call([NFS, 4, 1], &[0, 0, 0, 9]);
    assert_eq!((reply.fixed(12), reply.u32()), (vec![0; 12], 4));
}

#[test]
fn a_credential_that_is_not_served_is_too_weak() {
    let site = Site::new();
    let mut peer = site.connect();
    peer.credential = Credential::Gss;
    let mut reply = peer.call([NFS, 4, 1], &compound_args(1, &Ops::new().put_root()));
    // MSG_DENIED, AUTH_ERROR, AUTH_TOOWEAK.
    assert_eq!([reply.u32(), reply.u32(), reply.u32()], [1, 1, 5]);
    let mut ping = peer.call([NFS, 4, 0], &[]);
    assert_eq!(ping.fixed(16), [0; 16]);
}

#[test]
fn another_version_of_rpc_is_refused() {
    let site = Site::new();
    let mut peer = site.connect();
    let mut body = call_body(9, [NFS, 4, 0], Credential::None, &[]);
    body[11] = 3;
    peer.stream.write_all(&record(&body)).unwrap();
    let mut reply = Results::new(&peer.receive().unwrap());
    // The xid, REPLY, MSG_DENIED, RPC_MISMATCH, from 2 to 2.
    let words: Vec<u32> = (0..6).map(|_| reply.u32()).collect();
    assert_eq!(words, [9, 1, 1, 0, 2, 2]);
}

#[test]
fn a_record_may_come_in_fragments_and_bytes() {
    let site = Site::new();
    let mut peer = site.connect();
    let body = call_body(5, [NFS, 4, 0], Credential::None, &[]);
    let (head, tail) = body.split_at(7);
    let mut bytes = (head.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(&(tail.len() as u32).to_be_bytes());
    bytes.extend_from_slice(tail);
    // The last fragment may be empty.
    bytes.extend_from_slice(&(1_u32 << 31).to_be_bytes());
    peer.stream.set_nodelay(true).unwrap();
    for byte in &bytes {
        peer.stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(Results::new(&peer.receive().unwrap()).u32(), 5);
}

#[test]
fn many_calls_in_one_segment_are_all_answered_in_order() {
    let site = Site::new();
    let mut peer = site.connect();
    let calls: Vec<u8> = (1..=500)
        .flat_map(|xid| record(&call_body(xid, [NFS, 4, 0], Credential::None, &[])))
        .collect();
    peer.stream.write_all(&calls).unwrap();
    for xid in 1..=500 {
        assert_eq!(Results::new(&peer.receive().unwrap()).u32(), xid);
    }
}

#[test]
fn a_peer_that_does_not_speak_rpc_is_hung_up_on() {
    let site = Site::new();
    let too_long = ((1_u32 << 31) | ((128 << 10) + 1)).to_be_bytes().to_vec();
    let mut too_long_in_pieces = Vec::new();
    for _ in 0..3 {
        too_long_in_pieces.extend_from_slice(&(50_000_u32).to_be_bytes());
        too_long_in_pieces.resize(too_long_in_pieces.len() + 50_000, 0);
    }
    let far_too_long = ((1_u32 << 31) | (64 << 20)).to_be_bytes().to_vec();
    let endless = vec![0; 4];
    let short = record(&[0; 8]);
    let web = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    for bytes in [
        too_long,
        far_too_long,
        too_long_in_pieces,
        endless,
        short,
        web,
    ] {
        let mut peer = site.connect();
        // The server may hang up before it has taken everything.
        let _ = peer.stream.write_all(&bytes);
        assert_eq!(peer.receive(), None);
    }
    assert_eq!(
        site.connect().mount(b"client", 1, LINUX).status(Ops::new()),
        OK
    );
}
