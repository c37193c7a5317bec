//! The name of an image version: the fs-verity SHA-256 of its EROFS image, as composefs names it.

use std::fmt;
use std::str::FromStr;

use crate::hex::hexadecimal;

/// A 32-byte digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hexadecimal digits, got {got:?}")]
pub struct ParseDigestError {
    /// The text that was refused, cut to 80 characters.
    pub got: String,
}

impl Digest {
    /// The first half, which names the image in NFS file handles.
    pub fn image_id(self) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        id
    }

    /// The first twelve digits: enough for people.
    pub fn short(self) -> String {
        hexadecimal(&self.0[..6])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hexadecimal(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        parse(text.as_bytes())
            .map(Digest)
            .ok_or_else(|| ParseDigestError {
                got: text.chars().take(80).collect(),
            })
    }
}

fn parse(text: &[u8]) -> Option<[u8; 32]> {
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

/// Asked for with every read of a file: no `char::to_digit`.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let digest = Digest(std::array::from_fn(|index| index as u8 * 7));
        let text = digest.to_string();
        assert_eq!(text.len(), 64);
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(text.to_uppercase().parse(), Ok(digest));
        assert_eq!(digest.short(), text[..12]);
        assert_eq!(digest.image_id(), digest.0[..16]);
    }

    #[test]
    fn refuses_other_lengths_and_letters() {
        for text in [
            String::new(),
            "0".repeat(63),
            "0".repeat(65),
            "g".repeat(64),
            "é".repeat(32),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }
}
