//! Polls and orders from anybody, and what somebody with the key may have put into them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::order::{ControlKey, Orders, Poll};

fuzz_target!(|bytes: &[u8]| {
    let key = ControlKey([1; 32]);
    let _ = Poll::open(bytes, &key);
    let _ = Orders::open(bytes, &key, [2; 12]);
    if let Some(poll) = Poll::decode(bytes) {
        assert_eq!(Poll::decode(&poll.encode()), Some(poll));
    }
    if let Some(orders) = Orders::decode(bytes) {
        assert_eq!(Orders::decode(&orders.encode()), Some(orders));
    }
});
