//! Router solicitations: only those of one machine of the link are taken.
#![no_main]

use std::net::Ipv6Addr;

use libfuzzer_sys::fuzz_target;
use wire::ndp::RouterSolicitation;

const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 1);

fuzz_target!(|bytes: &[u8]| {
    assert!(RouterSolicitation::decode(Ipv6Addr::UNSPECIFIED, bytes).is_err());
    if let Ok(asked) = RouterSolicitation::decode(SOURCE, bytes) {
        assert!(asked.source == SOURCE && asked.mac.is_unicast());
        assert!(bytes.windows(6).any(|it| it == asked.mac.0));
        assert!(bytes.len() % 8 == 0 && bytes.len() >= 16);
    }
});
