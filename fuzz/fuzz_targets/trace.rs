//! Traces: what was decoded is encoded and decoded again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::trace::{decode, encode};

fuzz_target!(|bytes: &[u8]| {
    let pieces = decode(bytes);
    assert_eq!(decode(&encode(&pieces)), pieces);
});
