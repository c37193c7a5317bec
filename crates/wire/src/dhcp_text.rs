//! DHCP options as people read them.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::dhcp4::{MessageType, option};
use crate::hex::hexadecimal;

/// How a value is written.
#[derive(Clone, Copy)]
enum Kind {
    Addresses,
    Text,
    Seconds,
    Number,
    MessageType,
    Codes,
    Bytes,
}

/// Names as RFC 2132 and its followers have them, and how values are written.
const OPTIONS: [(u8, &str, Kind); 24] = [
    (option::SUBNET_MASK, "subnet mask", Kind::Addresses),
    (option::ROUTER, "routers", Kind::Addresses),
    (option::DNS, "name servers", Kind::Addresses),
    (option::HOST_NAME, "host name", Kind::Text),
    (option::DOMAIN, "domain name", Kind::Text),
    (option::BROADCAST, "broadcast address", Kind::Addresses),
    (option::VENDOR, "vendor-specific", Kind::Bytes),
    (
        option::REQUESTED_ADDRESS,
        "requested address",
        Kind::Addresses,
    ),
    (option::LEASE_TIME, "lease time", Kind::Seconds),
    (option::MESSAGE_TYPE, "message type", Kind::MessageType),
    (option::SERVER_ID, "server", Kind::Addresses),
    (option::PARAMETERS, "parameter request list", Kind::Codes),
    (option::MESSAGE, "message", Kind::Text),
    (option::MAX_SIZE, "maximum message size", Kind::Number),
    (option::RENEWAL_TIME, "renewal time", Kind::Seconds),
    (option::REBINDING_TIME, "rebinding time", Kind::Seconds),
    (option::CLASS, "vendor class", Kind::Text),
    (option::CLIENT_ID, "client identifier", Kind::Bytes),
    (option::TFTP_SERVER, "TFTP server name", Kind::Text),
    (option::BOOT_FILE, "boot file name", Kind::Text),
    (option::USER_CLASS, "user class", Kind::Text),
    (option::RELAY, "relay agent information", Kind::Bytes),
    (option::ARCHITECTURE, "client architecture", Kind::Number),
    (
        option::MACHINE_UUID,
        "client machine identifier",
        Kind::Bytes,
    ),
];

/// What an option is called; `None` where it is none that we handle.
pub fn name(code: u8) -> Option<&'static str> {
    let known = OPTIONS.iter().find(|(known, _, _)| *known == code);
    known.map(|(_, name, _)| *name)
}

/// An option's value in one line, by its kind where it has the form, else in hexadecimal. Nothing
/// but printable ASCII comes out.
pub fn value(code: u8, value: &[u8]) -> String {
    let known = OPTIONS.iter().find(|(known, _, _)| *known == code);
    let shown =
        match known.map_or(Kind::Bytes, |(_, _, kind)| *kind) {
            Kind::Addresses => addresses(value),
            Kind::Text => Some(text(value)),
            Kind::Seconds => <[u8; 4]>::try_from(value)
                .ok()
                .map(|bytes| match u32::from_be_bytes(bytes) {
                    // RFC 2131, 3.3.
                    u32::MAX => "for ever".to_owned(),
                    seconds => format!("{seconds} s"),
                }),
            Kind::Number => <[u8; 2]>::try_from(value)
                .ok()
                .map(|bytes| u16::from_be_bytes(bytes).to_string()),
            Kind::MessageType => <[u8; 1]>::try_from(value)
                .ok()
                .map(|[code]| message_type(MessageType::from_code(code))),
            Kind::Codes => {
                let codes: Vec<String> = value.iter().map(u8::to_string).collect();
                Some(codes.join(" "))
            }
            Kind::Bytes => None,
        };
    shown.unwrap_or_else(|| hexadecimal(value))
}

fn addresses(value: &[u8]) -> Option<String> {
    let (all, rest) = value.as_chunks::<4>();
    let shown: Vec<String> = all
        .iter()
        .map(|it| Ipv4Addr::from(*it).to_string())
        .collect();
    (rest.is_empty() && !shown.is_empty()).then(|| shown.join(", "))
}

/// A text with what is not printable escaped; the NUL that some firmware wants stays visible.
fn text(value: &[u8]) -> String {
    let mut out = String::new();
    for byte in value {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b' '..=b'~' => out.push(char::from(*byte)),
            0 => out.push_str("\\0"),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out
}

fn message_type(kind: MessageType) -> String {
    match kind {
        MessageType::Discover => "DISCOVER".to_owned(),
        MessageType::Offer => "OFFER".to_owned(),
        MessageType::Request => "REQUEST".to_owned(),
        MessageType::Decline => "DECLINE".to_owned(),
        MessageType::Ack => "ACK".to_owned(),
        MessageType::Nak => "NAK".to_owned(),
        MessageType::Release => "RELEASE".to_owned(),
        MessageType::Inform => "INFORM".to_owned(),
        MessageType::Other(code) => code.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_by_their_kind() {
        for (code, bytes, shown) in [
            (3, &[10, 0, 0, 1, 10, 0, 0, 2][..], "10.0.0.1, 10.0.0.2"),
            (12, b"node1", "node1"),
            (51, &[0, 0, 14, 16], "3600 s"),
            (51, &[255; 4], "for ever"),
            (53, &[2], "OFFER"),
            (53, &[77], "77"),
            (67, b"shimx64.efi\0", "shimx64.efi\\0"),
            (93, &[0, 7], "7"),
            (43, &[6, 1, 8, 255], "060108ff"),
            (200, &[1], "01"),
        ] {
            assert_eq!(value(code, bytes), shown, "{code}");
        }
    }

    #[test]
    fn what_has_not_the_form_is_shown_as_bytes() {
        for code in 0..=255 {
            for bytes in [&[][..], &[7], &[1, 2, 3], &[27, b'[', b'\n', 200, 0]] {
                let shown = value(code, bytes);
                assert!(shown.bytes().all(|it| matches!(it, b' '..=b'~')), "{shown}");
            }
            assert_eq!(value(51, &[1, 2, 3]), "010203");
        }
        assert_eq!((name(12), name(199)), (Some("host name"), None));
    }
}
