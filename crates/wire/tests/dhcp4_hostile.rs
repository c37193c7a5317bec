//! The DHCP codec against hostile input, by table and at random, and against `dhcproto`.

use std::net::Ipv4Addr;

use dhcproto::{Decodable, Encodable};
use wire::dhcp4::{DecodeError, Message, MessageType, Op, option};
use wire::mac::Mac;

const COOKIE: [u8; 4] = [99, 130, 83, 99];

const NODE: Mac = Mac([0x68, 0x05, 0xca, 0x93, 0x95, 0xa5]);

fn request(mac: Mac, xid: u32) -> Message {
    Message {
        broadcast: false,
        ..Message::request(mac, xid)
    }
}

/// EDK2's DISCOVER: the options and order that OVMF 2022.11 sends.
fn edk2_discover() -> Message {
    let mut message = request(NODE, 0x1234_5678);
    message.broadcast = true;
    message.push(option::MESSAGE_TYPE, [1]);
    message.push(option::MAX_SIZE, 1472u16.to_be_bytes());
    message.push(
        option::PARAMETERS,
        [1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41],
    );
    message.push(option::MACHINE_UUID, [0; 17]);
    message.push(94, [1, 3, 16]);
    message.push(option::ARCHITECTURE, [0, 7]);
    message.push(option::CLASS, *b"PXEClient:Arch:00007:UNDI:003016");
    message
}

fn raw(options: &[u8]) -> Vec<u8> {
    let mut bytes = request(NODE, 1).encode(548)[..240].to_vec();
    bytes.extend_from_slice(options);
    bytes
}

fn decode_options(options: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let message = Message::decode(&raw(options)).unwrap();
    message
        .options
        .into_iter()
        .map(|option| (option.code, option.value))
        .collect()
}

#[test]
fn round_trips() {
    let message = edk2_discover();
    let bytes = message.encode(1444);
    assert!(bytes.len() >= 300);
    assert_eq!(Message::decode(&bytes), Ok(message));
}

#[test]
fn dhcproto_reads_what_we_write() {
    let mut message = edk2_discover();
    message.file = b"shimx64.efi".to_vec();
    message.siaddr = Ipv4Addr::new(10, 77, 0, 1);
    let theirs = dhcproto::v4::Message::from_bytes(&message.encode(1444)).unwrap();
    assert_eq!(theirs.xid(), message.xid);
    assert_eq!(theirs.siaddr(), message.siaddr);
    assert_eq!(theirs.chaddr(), NODE.0);
    assert_eq!(
        theirs.opts().msg_type(),
        Some(dhcproto::v4::MessageType::Discover)
    );
    let theirs_file = theirs.fname().unwrap();
    assert!(theirs_file.starts_with(b"shimx64.efi"));
}

#[test]
fn we_read_what_dhcproto_writes() {
    use dhcproto::v4::{DhcpOption as Theirs, Message as TheirMessage, MessageType as TheirType};
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut theirs = TheirMessage::new_with_id(7, zero, zero, zero, zero, &NODE.0);
    theirs
        .opts_mut()
        .insert(Theirs::MessageType(TheirType::Request));
    theirs
        .opts_mut()
        .insert(Theirs::RequestedIpAddress(Ipv4Addr::new(10, 0, 0, 9)));
    let message = Message::decode(&theirs.to_vec().unwrap()).unwrap();
    assert_eq!(message.message_type(), Some(MessageType::Request));
    assert_eq!(
        message.address_option(option::REQUESTED_ADDRESS),
        Some(Ipv4Addr::new(10, 0, 0, 9))
    );
    assert_eq!((message.mac, message.xid), (NODE, 7));
}

#[test]
fn truncation_at_every_byte_never_panics() {
    let bytes = edk2_discover().encode(1444);
    for length in 0..bytes.len() {
        match Message::decode(&bytes[..length]) {
            Ok(message) => assert!(length >= 240 && message.options.len() <= 7),
            Err(DecodeError::Short { got }) => assert_eq!(got, length),
            Err(DecodeError::Cookie { .. }) => assert!((236..240).contains(&length)),
            Err(error) => panic!("{length}: {error}"),
        }
    }
}

#[test]
fn hardware_that_is_not_ethernet_is_refused() {
    for (htype, hlen) in [
        (1, 0),
        (1, 17),
        (1, 255),
        (1, 5),
        (6, 6),
        (0, 6),
        (255, 255),
    ] {
        let mut bytes = edk2_discover().encode(576);
        bytes[1] = htype;
        bytes[2] = hlen;
        assert_eq!(
            Message::decode(&bytes),
            Err(DecodeError::Hardware { htype, hlen })
        );
    }
}

#[test]
fn bad_cookie_and_op_are_refused() {
    let mut bytes = edk2_discover().encode(576);
    bytes[239] ^= 1;
    assert_eq!(
        Message::decode(&bytes),
        Err(DecodeError::Cookie {
            got: vec![99, 130, 83, 98]
        })
    );
    for op in [0, 3, 255] {
        bytes[0] = op;
        assert_eq!(Message::decode(&bytes), Err(DecodeError::Op { got: op }));
    }
    bytes[239] ^= 1;
    bytes[0] = 2;
    assert_eq!(Message::decode(&bytes).unwrap().op, Op::Reply);
}

#[test]
fn bootp_without_a_cookie_has_no_options() {
    let mut bytes = raw(&[53, 1, 1, 255]);
    bytes[236..240].fill(0);
    let message = Message::decode(&bytes).unwrap();
    assert!(message.is_bootp() && message.options.is_empty());
    assert_eq!(message.encode(300).len(), 300);
    assert!(!Message::decode(&raw(&[53, 0])).unwrap().is_bootp());
}

/// Option bytes and what they decode to.
type Case = (&'static [u8], &'static [(u8, &'static [u8])]);

#[test]
fn options_are_tolerated_where_firmware_is_sloppy() {
    let cases: [Case; 9] = [
        (&[], &[]),
        (&[255], &[]),
        (&[0, 0, 0], &[]),
        (&[53, 1, 1], &[(53, &[1])]),                // no end option
        (&[53, 1, 1, 12, 200, b'x'], &[(53, &[1])]), // past the end
        (&[53, 1, 1, 12], &[(53, &[1])]),            // no length
        (&[12, 0, 53, 1, 1, 255], &[(12, &[]), (53, &[1])]), // zero length
        (
            &[67, 1, b'a', 53, 1, 1, 67, 1, b'b', 255],
            &[(67, b"ab"), (53, &[1])],
        ), // split
        (&[53, 1, 1, 255, 53, 1, 2], &[(53, &[1])]), // behind the end
    ];
    for (bytes, expected) in cases {
        let expected: Vec<_> = expected
            .iter()
            .map(|(code, value)| (*code, value.to_vec()))
            .collect();
        assert_eq!(decode_options(bytes), expected, "{bytes:?}");
    }
}

#[test]
fn odd_message_types_survive_as_other() {
    let kind = |options: &[u8]| Message::decode(&raw(options)).unwrap().message_type();
    assert_eq!(kind(&[53, 1, 0]), Some(MessageType::Other(0)));
    assert_eq!(kind(&[53, 1, 255]), Some(MessageType::Other(255)));
    assert_eq!(kind(&[53, 1, 1, 53, 1, 3]), None);
    assert_eq!(kind(&[53, 0]), None);
    assert_eq!(kind(&[]), None);
}

#[test]
fn overload_reads_both_fields_and_does_not_loop() {
    let mut bytes = raw(&[52, 1, 3, 53, 1, 1, 255]);
    bytes[108..114].copy_from_slice(&[52, 1, 3, 12, 1, b'f']);
    bytes[44..48].copy_from_slice(&[15, 1, b's', 255]);
    let message = Message::decode(&bytes).unwrap();
    assert_eq!(message.option(12), Some(&b"f"[..]));
    assert_eq!(message.option(15), Some(&b"s"[..]));
    assert!(message.file.is_empty() && message.sname.is_empty());
    let again = Message::decode(&message.encode(576)).unwrap();
    assert_eq!(again, message);
}

#[test]
fn size_budget_is_clamped() {
    for (option, budget) in [
        (None, 548),
        (Some(0), 548),
        (Some(300), 548),
        (Some(576), 548),
        (Some(1472), 1444),
        (Some(1500), 1472),
        (Some(65535), 1472),
    ] {
        let mut message = request(NODE, 1);
        if let Some(size) = option {
            message.push(option::MAX_SIZE, u16::to_be_bytes(size));
        }
        assert_eq!(message.budget(), budget, "{option:?}");
    }
}

#[test]
fn relay_information_is_kept_where_others_do_not_fit() {
    let mut message = request(NODE, 1);
    message.push(option::MESSAGE_TYPE, [5]);
    message.push(option::DOMAIN, vec![b'x'; 290]);
    message.push(option::RELAY, vec![7; 40]);
    let bytes = message.encode(548);
    assert!(bytes.len() <= 548);
    let decoded = Message::decode(&bytes).unwrap();
    assert_eq!(decoded.option(option::RELAY), Some(&[7; 40][..]));
    assert_eq!(decoded.option(option::DOMAIN), None);
    assert_eq!(Message::decode(&message.encode(1400)).unwrap(), message);
}

proptest::proptest! {
    #[test]
    fn any_bytes_decode_to_what_encodes_to_the_same(
        mut bytes in proptest::collection::vec(0u8.., 0..600), fix in 0u8..4,
    ) {
        if fix > 0 && bytes.len() >= 240 {
            let op = 1 + (bytes[0] & 1);
            bytes[..3].copy_from_slice(&[op, 1, 6]);
            bytes[236..240].copy_from_slice(&COOKIE);
            // The encoder ends both fields with a NUL, so a full one cannot come back whole.
            bytes[107] = 0;
            bytes[235] = 0;
        }
        if let Ok(mut message) = Message::decode(&bytes) {
            let again = Message::decode(&message.encode(1472));
            // Option 82 is echoed behind all others (RFC 3046, 2.2).
            message.options.sort_by_key(|option| option.code == 82);
            proptest::prop_assert_eq!(again, Ok(message));
        }
    }
}
