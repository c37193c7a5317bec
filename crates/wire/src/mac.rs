//! Ethernet addresses: the one identity of a node.

use std::fmt;
use std::str::FromStr;

use crate::hex::DIGITS;

/// A 48-bit Ethernet address, in transmission order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// Text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected six hexadecimal bytes such as 68:05:ca:93:95:a5, got {got:?}")]
pub struct ParseMacError {
    /// The text that was refused.
    pub got: String,
}

impl Mac {
    /// The address that `slate doctor` asks with: a locally administered one (IEEE 802, 8.2.2) that no
    /// card has.
    pub const PROBE: Mac = Mac([0x02, b's', b'l', b'a', b't', b'e']);

    /// The form that PXELINUX and the kernel's `BOOTIF=` use: `01-aa-bb-cc-dd-ee-ff`
    /// (hardware type 1, then the address).
    pub fn bootif(self) -> String {
        let [a, b, c, d, e, f] = self.0;
        format!("01-{a:02x}-{b:02x}-{c:02x}-{d:02x}-{e:02x}-{f:02x}")
    }

    /// Twelve lower-case hexadecimal digits without separators.
    pub fn plain(self) -> String {
        let [a, b, c, d, e, f] = self.0;
        format!("{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}")
    }

    /// Whether one machine can own this address: neither a group address nor all zeroes.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not as six formatted numbers: each lease has its machine written three times.
        let mut text = [b':'; 17];
        for (digits, byte) in text.chunks_mut(3).zip(self.0) {
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
        out.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Mac, ParseMacError> {
        parse(text).map(Mac).ok_or_else(|| ParseMacError {
            got: text.chars().take(64).collect(),
        })
    }
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut parts = text.split(separator);
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        *byte = parse_byte(parts.next()?)?;
    }
    parts.next().is_none().then_some(bytes)
}

fn parse_byte(text: &str) -> Option<u8> {
    let all_hex = text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    all_hex.then(|| u8::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Mac = Mac([0x68, 0x05, 0xca, 0x93, 0x95, 0xa5]);

    #[test]
    fn prints_every_form() {
        assert_eq!(NODE.to_string(), "68:05:ca:93:95:a5");
        assert_eq!(NODE.bootif(), "01-68-05-ca-93-95-a5");
        assert_eq!(NODE.plain(), "6805ca9395a5");
    }

    #[test]
    fn accepts_both_separators_and_any_case() {
        for text in [
            "68:05:ca:93:95:a5",
            "68-05-CA-93-95-A5",
            "68:05:Ca:93:95:a5",
        ] {
            assert_eq!(text.parse(), Ok(NODE));
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "68",
            "68:05:ca:93:95",
            "68:05:ca:93:95:a5:00",
            "68:05:ca:93:95:+5",
            "6:805:ca:93:95:a5",
            "68:05-ca:93:95:a5",
            "gg:05:ca:93:95:a5",
            " 68:05:ca:93:95:a5",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn unicast_excludes_groups_and_zero() {
        assert!(NODE.is_unicast());
        assert!(!Mac([0; 6]).is_unicast());
        assert!(!Mac([0xff; 6]).is_unicast());
        assert!(!Mac([1, 0, 0x5e, 0, 0, 1]).is_unicast());
    }
}
