//! Beacons: decode, encode, decode gives the same beacon. The fuzzer's bytes are the body; the
//! tag is made here, or nothing would get past it.
#![no_main]

use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use wire::beacon::{Beacon, MAGIC};
use wire::identity::Token;

const TOKEN: Token = Token([0x5a; 16]);

fuzz_target!(|body: &[u8]| {
    let _ = Beacon::decode(body, &TOKEN);
    let mut datagram = [&MAGIC, body].concat();
    let mut hmac = Hmac::<sha2::Sha256>::new_from_slice(&TOKEN.0).expect("any length");
    hmac.update(&datagram);
    datagram.extend_from_slice(&hmac.finalize().into_bytes()[..16]);
    if let Ok(beacon) = Beacon::decode(&datagram, &TOKEN) {
        assert_eq!(Beacon::decode(&beacon.encode(&TOKEN), &TOKEN), Ok(beacon));
    }
});
