//! Archives: the members that can be read, written again, read back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::cpio::{Reader, Writer};

fuzz_target!(|archive: &[u8]| {
    let members: Vec<_> = Reader::new(archive).map_while(Result::ok).collect();
    let mut writer = Writer::new();
    for member in &members {
        writer.push(member).expect("a member that was read");
    }
    let written = writer.finish();
    let again: Result<Vec<_>, _> = Reader::new(&written).collect();
    assert_eq!(again, Ok(members));
});
