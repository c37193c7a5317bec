//! What parses as a digest is written as the same digest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::digest::Digest;

fuzz_target!(|text: &str| {
    if let Ok(value) = text.parse::<Digest>() {
        assert_eq!(value.to_string().parse(), Ok(value));
    }
});
