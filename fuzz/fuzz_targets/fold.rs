//! Folded modules: whatever folds comes back; anything can be unfolded or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::fold::{fold, unfold};

fuzz_target!(|bytes: &[u8]| {
    let mut module = bytes.to_vec();
    if fold(&mut module).is_ok() {
        unfold(&mut module).expect("it was folded");
        assert_eq!(module, bytes);
    } else {
        assert_eq!(module, bytes);
        let _ = unfold(&mut module);
        assert_eq!(module.len(), bytes.len());
    }
});
