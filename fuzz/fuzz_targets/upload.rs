//! Pieces of uploads from anybody, and what somebody with the key may have put into them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::order::ControlKey;
use wire::upload::{Claim, Piece};

fuzz_target!(|bytes: &[u8]| {
    let _ = Claim::peek(bytes);
    let _ = Piece::open(bytes, &ControlKey([1; 32]));
    if let Some(piece) = Piece::decode(bytes) {
        assert_eq!(Piece::decode(&piece.encode()), Some(piece));
    }
});
