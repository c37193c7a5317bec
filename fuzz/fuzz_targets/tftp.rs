//! TFTP packets: decode, encode, decode gives the same packet; and a transfer takes any of them.
#![no_main]

use engine::Timestamp;
use engine::tftp::Transfer;
use libfuzzer_sys::fuzz_target;
use wire::tftp::Packet;

const CONTENT: [u8; 5000] = [7; 5000];

fuzz_target!(|bytes: &[u8]| {
    let Ok(packet) = Packet::decode(bytes) else {
        return;
    };
    assert_eq!(Packet::decode(&packet.encode()).as_ref(), Ok(&packet));
    let options = match packet {
        Packet::Read(request) => request.options,
        _ => wire::tftp::Options::default(),
    };
    let mut transfer = Transfer::new(options);
    transfer.start(Timestamp(0), CONTENT.len() as u64);
    let mut out = Vec::new();
    for block in 0..6 {
        while transfer.poll_transmit(Timestamp(0), &CONTENT[..], &mut out) {
            assert!(out.len() <= 1472);
        }
        transfer.handle(Timestamp(0), &Packet::Ack { block }.encode());
        transfer.handle(Timestamp(0), bytes);
    }
    assert!(transfer.bytes_acknowledged() <= CONTENT.len() as u64);
});
