//! Kernel command lines: what is parsed and can be rendered parses back to the same arguments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::cmdline::BootArgs;

fuzz_target!(|line: &str| {
    let (args, _) = BootArgs::parse(line);
    let _ = args.breaks();
    if let Ok(rendered) = args.render() {
        assert_eq!(BootArgs::parse(&rendered), (args, vec![]));
    }
});
