//! Any bytes as a package's header in rpm's database: refused, or a name and a version of them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &[u8]| {
    if let Some(read) = image::packages::rpm::parse(header) {
        // Text that is not UTF-8 may grow threefold.
        assert!(read.name.len() + read.version.len() <= 9 * header.len() + 16);
    }
});
