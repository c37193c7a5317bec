//! What parses as an Ethernet address is written as the same address.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::mac::Mac;

fuzz_target!(|text: &str| {
    if let Ok(value) = text.parse::<Mac>() {
        assert_eq!(value.to_string().parse(), Ok(value));
    }
});
