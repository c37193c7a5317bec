//! Initramfs that somebody gives a version: told for what they are, or refused, without a panic.
#![no_main]

use image::initramfs::inspect;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let _ = inspect(file);
});
