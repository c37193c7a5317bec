//! Messages of kernels: what is kept is short and printable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::netconsole::{Line, MAX_TEXT_BYTES};

fuzz_target!(|bytes: &[u8]| {
    if let Some(line) = Line::decode(bytes) {
        assert!(line.level < 8 && line.text.len() <= MAX_TEXT_BYTES);
        assert!(line.text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
});
