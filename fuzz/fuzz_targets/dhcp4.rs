//! DHCP messages: what decodes encodes within its budget, and once it has, survives whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::dhcp4::{
    DEFAULT_BUDGET_BYTES, MAX_BUDGET_BYTES, Message, decode_search, encode_search, server_payload,
};

fuzz_target!(|bytes: &[u8]| {
    let domains = decode_search(bytes);
    let encoded = encode_search(domains.iter().map(String::as_str));
    // What has no encoding, or does not fit any more, is left out.
    let kept = decode_search(&encoded);
    assert!(kept.iter().all(|domain| domains.contains(domain)));
    assert_eq!(encode_search(kept.iter().map(String::as_str)), encoded);
    if let Some((_, payload)) = server_payload(bytes) {
        assert!(payload.len() + 28 <= bytes.len());
    }
    let Ok(message) = Message::decode(bytes) else {
        return;
    };
    assert!(message.encode(0).len() <= DEFAULT_BUDGET_BYTES);
    assert!(message.encode(message.budget()).len() <= MAX_BUDGET_BYTES);
    // The first encoding may leave out what does not fit.
    let encoded = message.encode(MAX_BUDGET_BYTES);
    let fitting = Message::decode(&encoded).expect("our own message");
    let again = Message::decode(&fitting.encode(MAX_BUDGET_BYTES));
    assert_eq!(again, Ok(fitting));
});
