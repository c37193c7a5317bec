//! NFS: whatever comes over a connection, the server neither panics nor answers without bound.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/nfs/tests/protocol/fuzz.rs"]
mod fuzz;
#[allow(dead_code)]
#[path = "../../crates/nfs/tests/protocol/memory.rs"]
mod memory;

fuzz_target!(|bytes: &[u8]| fuzz::run(bytes));
