//! Uploads: what an order sends besides its output, piece by piece, where that is more than an
//! output holds.
//!
//! Each piece is a POST of its own, sealed with ChaCha20-Poly1305 under the boot's [`ControlKey`]. A
//! piece names its place, so a repeated one does no harm, and nothing but an unbroken row of pieces up
//! to the last one is an upload. The answer is an HTTP status and proves nothing: who waits for the
//! upload looks at what came.
//!
//! Magic `SLU1`, boot id (8), order `u64`, nonce (12), ciphertext and tag. Inside, big endian: `offset
//! u64, last u8, bytes`. Nonces are handed in. Decoding never panics.

use crate::identity::BootId;
use crate::order::{ControlKey, NONCE_BYTES, OrderError, TAG_BYTES, check_magic, open, seal};
use crate::reader::Reader;

const MAGIC: [u8; 4] = *b"SLU1";
/// Most bytes of content in one piece.
pub const MAX_PIECE_BYTES: usize = 256 << 10;
/// The longest piece, sealed.
pub const MAX_UPLOAD_BYTES: usize = 4 + 8 + 8 + NONCE_BYTES + 8 + 1 + MAX_PIECE_BYTES + TAG_BYTES;

/// A part of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes that come before these.
    pub offset: u64,
    /// Whether nothing comes after it.
    pub is_last: bool,
    /// At most [`MAX_PIECE_BYTES`].
    pub bytes: Vec<u8>,
}

/// What a sealed piece claims to be: proven by nothing until it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The boot that sends it.
    pub boot: BootId,
    /// The order that it belongs to.
    pub order: u64,
}

impl Claim {
    /// Reads what a sealed piece says it is.
    pub fn peek(bytes: &[u8]) -> Result<Claim, OrderError> {
        let wrong = OrderError::Length {
            expected: "a piece of an upload",
            got: bytes.len(),
        };
        if bytes.len() > MAX_UPLOAD_BYTES {
            return Err(wrong);
        }
        let mut reader = Reader::new(bytes);
        check_magic(&mut reader, MAGIC)?;
        let mut claim = || {
            Some(Claim {
                boot: BootId(reader.array()?),
                order: reader.u64()?,
            })
        };
        claim().ok_or(wrong)
    }

    fn head(self) -> Vec<u8> {
        [&MAGIC[..], &self.boot.0, &self.order.to_be_bytes()].concat()
    }
}

impl Piece {
    /// The piece, sealed. `nonce`: random bytes, never used twice.
    pub fn seal(&self, claim: Claim, key: &ControlKey, nonce: [u8; NONCE_BYTES]) -> Vec<u8> {
        let head = claim.head();
        seal(&head, &head, key, nonce, &self.encode())
    }

    /// Opens a piece.
    pub fn open(bytes: &[u8], key: &ControlKey) -> Result<Piece, OrderError> {
        let head = Claim::peek(bytes)?.head();
        let mut reader = Reader::new(&bytes[head.len()..]);
        let nonce = reader.array().ok_or(OrderError::Malformed)?;
        Piece::decode(&open(&head, key, nonce, reader.rest())?).ok_or(OrderError::Malformed)
    }

    /// The piece before it is sealed.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = &self.bytes[..self.bytes.len().min(MAX_PIECE_BYTES)];
        let head = self.offset.to_be_bytes();
        [&head[..], &[self.is_last.into()], bytes].concat()
    }

    /// Decodes what [`Piece::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<Piece> {
        let mut reader = Reader::new(bytes);
        let (offset, last) = (reader.u64()?, reader.u8()?);
        let bytes = reader.rest().to_vec();
        let fits = last <= 1
            && bytes.len() <= MAX_PIECE_BYTES
            && offset.checked_add(bytes.len() as u64).is_some();
        fits.then_some(Piece {
            offset,
            is_last: last == 1,
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Poll;

    const KEY: ControlKey = ControlKey([7; 32]);
    const CLAIM: Claim = Claim {
        boot: BootId([1; 8]),
        order: 5,
    };

    fn piece(length: usize) -> Piece {
        Piece {
            offset: 1 << 40,
            is_last: true,
            bytes: vec![b'x'; length],
        }
    }

    #[test]
    fn pieces_arrive_as_they_were_and_are_as_long_as_said() {
        for length in [0, 1, MAX_PIECE_BYTES] {
            let bytes = piece(length).seal(CLAIM, &KEY, [2; 12]);
            assert_eq!(bytes.len(), MAX_UPLOAD_BYTES - MAX_PIECE_BYTES + length);
            assert_eq!(Claim::peek(&bytes), Ok(CLAIM));
            assert_eq!(Piece::open(&bytes, &KEY), Ok(piece(length)));
        }
    }

    #[test]
    fn nothing_else_is_accepted() {
        let bytes = piece(9).seal(CLAIM, &KEY, [2; 12]);
        let refused = Err(OrderError::NotSealedForUs);
        assert_eq!(Piece::open(&bytes, &ControlKey([8; 32])), refused);
        // Another boot, another order, another nonce, another content.
        for at in [5, 13, 21, 34, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(Piece::open(&changed, &KEY), refused);
        }
        for length in 0..bytes.len() {
            assert!(Piece::open(&bytes[..length], &KEY).is_err());
        }
        assert!(Claim::peek(&vec![0; MAX_UPLOAD_BYTES + 1]).is_err());
        // A poll is no piece, though the key is the same.
        let poll = Poll::default().seal(CLAIM.boot, &KEY, [2; 12]);
        assert!(Piece::open(&poll, &KEY).is_err());
        // Nor is one that ends beyond all numbers.
        let beyond = Piece {
            offset: u64::MAX,
            ..piece(1)
        };
        assert_eq!(Piece::decode(&beyond.encode()), None);
    }
}
