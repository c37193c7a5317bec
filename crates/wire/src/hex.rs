//! Bytes as people and file names have them.

/// Two lower-case hexadecimal digits for each byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|it| char::from(DIGITS[usize::from(it)]));
    bytes.iter().flat_map(digits).collect()
}

pub(crate) const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The bytes that pairs of hexadecimal digits stand for; `None` where anything else is among them.
pub fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let digit = |it: u8| char::from(it).to_digit(16);
        Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)
    };
    rest.is_empty()
        .then(|| pairs.iter().map(byte).collect::<Option<_>>())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_pairs() {
        assert_eq!(from_hexadecimal("0007abFF"), Some(vec![0, 7, 0xab, 0xff]));
        assert_eq!(from_hexadecimal(""), Some(Vec::new()));
        for text in ["0", "0g", "+1", "é"] {
            assert_eq!(from_hexadecimal(text), None);
        }
    }

    #[test]
    fn every_byte_has_two_digits() {
        assert_eq!(hexadecimal(&[0, 7, 0xab, 0xff]), "0007abff");
    }
}
