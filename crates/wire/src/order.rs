//! Orders: what the daemon has a running node do, and what came of it.
//!
//! The node's agent polls: it sends a [`Poll`] over HTTP, which names the orders that it has and may
//! carry a part of what one has printed. The daemon answers with [`Orders`] when there is one that
//! the node does not have yet, when a part came, or after a while. Both are sealed with
//! ChaCha20-Poly1305 under the boot's [`ControlKey`], which the node was given with its identity.
//!
//! A repeated poll does no harm: orders are known by their ids, and a part by its place. An answer
//! belongs to one poll, by whose random nonce it is bound.
//!
//! Poll: magic `SLC1`, boot id (8), nonce (12), ciphertext and tag. Answer: magic `SLD1`, nonce (12),
//! ciphertext and tag. Inside, big endian: `count u8, order ids u64`, and if there is a part `order
//! u64, offset u64, total u64, ended u8, status i32, bytes`; `count u8`, then for each order `id u64, seconds
//! u32, length u16, command`. Nonces are handed in. Decoding never panics.

use chacha20poly1305::aead::{Aead, KeyInit as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use thiserror::Error;

use crate::identity::BootId;
use crate::reader::Reader;

const POLL_MAGIC: [u8; 4] = *b"SLC1";
const ORDERS_MAGIC: [u8; 4] = *b"SLD1";
/// Length of a nonce in bytes.
pub const NONCE_BYTES: usize = 12;
pub(crate) const TAG_BYTES: usize = 16;
/// Most orders that a node has at once.
pub const MAX_ORDERS: usize = 16;
/// Longest command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 8 << 10;
/// Most bytes of one part of an output.
pub const MAX_PART_BYTES: usize = 8 << 10;
/// The longest poll.
pub const MAX_POLL_BYTES: usize =
    4 + 8 + NONCE_BYTES + 1 + MAX_ORDERS * 8 + 8 + 8 + 8 + 1 + 4 + MAX_PART_BYTES + TAG_BYTES;
/// The longest answer.
pub const MAX_ANSWER_BYTES: usize =
    4 + NONCE_BYTES + 1 + MAX_ORDERS * (8 + 4 + 2 + MAX_COMMAND_BYTES) + TAG_BYTES;

/// The secret of a boot's orders.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ControlKey(pub [u8; 32]);

impl std::fmt::Debug for ControlKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ControlKey(secret)")
    }
}

/// What a node asks with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Poll {
    /// The orders that it has and that have not ended; at most [`MAX_ORDERS`].
    pub known: Vec<u64>,
    /// What one of them has printed since its last part.
    pub part: Option<Part>,
}

/// A part of what an order has printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The order.
    pub order: u64,
    /// Bytes that came before these.
    pub offset: u64,
    /// Bytes that it has printed so far, those among them that will not be sent.
    pub total: u64,
    /// At most [`MAX_PART_BYTES`].
    pub bytes: Vec<u8>,
    /// How it ended, if this is the last part: an exit code, 128 and a signal's number, or -1 where
    /// it could not be started.
    pub end: Option<i32>,
}

/// What a node is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Names it; never given twice.
    pub id: u64,
    /// After so many seconds it is ended.
    pub seconds: u32,
    /// A command line for `sh -c`; at most [`MAX_COMMAND_BYTES`].
    pub command: String,
}

/// The answer to a poll: all orders of the node that have not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders(pub Vec<Order>);

/// Why a poll or an answer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OrderError {
    /// Too short or too long.
    #[error("expected {expected}, got {got} bytes")]
    Length {
        /// What it should be.
        expected: &'static str,
        /// Its length.
        got: usize,
    },
    /// Not of this version.
    #[error("expected the magic {expected:02x?}")]
    BadMagic {
        /// The magic of this version.
        expected: [u8; 4],
    },
    /// Sealed with another key, or for another poll.
    #[error("it was not sealed with this boot's key for this exchange")]
    NotSealedForUs,
    /// The fields do not add up.
    #[error("its fields do not add up")]
    Malformed,
}

impl Poll {
    /// The poll of a boot, sealed. `nonce`: random bytes, never used twice.
    pub fn seal(&self, boot: BootId, key: &ControlKey, nonce: [u8; NONCE_BYTES]) -> Vec<u8> {
        let head = [&POLL_MAGIC[..], &boot.0].concat();
        seal(&head, &head, key, nonce, &self.encode())
    }

    /// The boot that a poll claims to be of, and its nonce: proven by nothing yet.
    pub fn peek(bytes: &[u8]) -> Result<(BootId, [u8; NONCE_BYTES]), OrderError> {
        let expected = "a poll";
        let wrong = OrderError::Length {
            expected,
            got: bytes.len(),
        };
        if bytes.len() > MAX_POLL_BYTES {
            return Err(wrong);
        }
        let mut reader = Reader::new(bytes);
        check_magic(&mut reader, POLL_MAGIC)?;
        let mut head = || Some((BootId(reader.array()?), reader.array()?));
        head().ok_or(wrong)
    }

    /// Opens a poll.
    pub fn open(bytes: &[u8], key: &ControlKey) -> Result<Poll, OrderError> {
        let (boot, nonce) = Poll::peek(bytes)?;
        let head = [&POLL_MAGIC[..], &boot.0].concat();
        let sealed = &bytes[head.len() + NONCE_BYTES..];
        Poll::decode(&open(&head, key, nonce, sealed)?).ok_or(OrderError::Malformed)
    }

    /// The poll before it is sealed.
    pub fn encode(&self) -> Vec<u8> {
        let known = &self.known[..self.known.len().min(MAX_ORDERS)];
        let mut out = vec![known.len() as u8];
        known
            .iter()
            .for_each(|id| out.extend_from_slice(&id.to_be_bytes()));
        if let Some(part) = &self.part {
            out.extend_from_slice(&part.order.to_be_bytes());
            out.extend_from_slice(&part.offset.to_be_bytes());
            out.extend_from_slice(&part.total.to_be_bytes());
            out.push(part.end.is_some().into());
            out.extend_from_slice(&part.end.unwrap_or(0).to_be_bytes());
            out.extend_from_slice(&part.bytes[..part.bytes.len().min(MAX_PART_BYTES)]);
        }
        out
    }

    /// Decodes what [`Poll::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<Poll> {
        let mut reader = Reader::new(bytes);
        let count = usize::from(reader.u8()?);
        if count > MAX_ORDERS {
            return None;
        }
        let known = (0..count).map(|_| reader.u64()).collect::<Option<_>>()?;
        let part = match reader.is_empty() {
            true => None,
            false => Some(Part::decode(&mut reader)?),
        };
        Some(Poll { known, part })
    }
}

impl Part {
    fn decode(reader: &mut Reader<'_>) -> Option<Part> {
        let (order, offset, total) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let ended = reader.u8()?;
        let status = i32::from_be_bytes(reader.array()?);
        let bytes = reader.rest().to_vec();
        let end = (ended != 0).then_some(status);
        (bytes.len() <= MAX_PART_BYTES).then_some(Part {
            order,
            offset,
            total,
            bytes,
            end,
        })
    }
}

impl Orders {
    /// The answer to the poll with the nonce `poll`, sealed. `nonce`: random bytes, never used twice.
    pub fn seal(
        &self,
        key: &ControlKey,
        poll: [u8; NONCE_BYTES],
        nonce: [u8; NONCE_BYTES],
    ) -> Vec<u8> {
        let aad = [&ORDERS_MAGIC[..], &poll].concat();
        seal(&ORDERS_MAGIC, &aad, key, nonce, &self.encode())
    }

    /// Opens the answer to the poll with the nonce `poll`.
    pub fn open(
        bytes: &[u8],
        key: &ControlKey,
        poll: [u8; NONCE_BYTES],
    ) -> Result<Orders, OrderError> {
        let wrong = OrderError::Length {
            expected: "an answer to a poll",
            got: bytes.len(),
        };
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(wrong);
        }
        let mut reader = Reader::new(bytes);
        check_magic(&mut reader, ORDERS_MAGIC)?;
        let nonce = reader.array().ok_or(wrong)?;
        let aad = [&ORDERS_MAGIC[..], &poll].concat();
        let plain = open(&aad, key, nonce, reader.rest())?;
        Orders::decode(&plain).ok_or(OrderError::Malformed)
    }

    /// The answer before it is sealed. Orders with a command that is too long are left out.
    pub fn encode(&self) -> Vec<u8> {
        let fits = |order: &&Order| order.command.len() <= MAX_COMMAND_BYTES;
        let orders: Vec<&Order> = self.0.iter().filter(fits).take(MAX_ORDERS).collect();
        let mut out = vec![orders.len() as u8];
        for order in orders {
            out.extend_from_slice(&order.id.to_be_bytes());
            out.extend_from_slice(&order.seconds.to_be_bytes());
            out.extend_from_slice(&(order.command.len() as u16).to_be_bytes());
            out.extend_from_slice(order.command.as_bytes());
        }
        out
    }

    /// Decodes what [`Orders::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<Orders> {
        let mut reader = Reader::new(bytes);
        let count = usize::from(reader.u8()?);
        if count > MAX_ORDERS {
            return None;
        }
        let mut order = || {
            let (id, seconds, length) = (reader.u64()?, reader.u32()?, reader.u16()?);
            let command = reader.take(length.into())?;
            let command = str::from_utf8(command).ok()?.to_owned();
            (command.len() <= MAX_COMMAND_BYTES).then_some(Order {
                id,
                seconds,
                command,
            })
        };
        let orders = (0..count).map(|_| order()).collect::<Option<_>>()?;
        Some(Orders(orders))
    }
}

pub(crate) fn check_magic(reader: &mut Reader<'_>, expected: [u8; 4]) -> Result<(), OrderError> {
    match reader.array() == Some(expected) {
        true => Ok(()),
        false => Err(OrderError::BadMagic { expected }),
    }
}

pub(crate) fn seal(
    head: &[u8],
    aad: &[u8],
    key: &ControlKey,
    nonce: [u8; NONCE_BYTES],
    plain: &[u8],
) -> Vec<u8> {
    let payload = Payload { msg: plain, aad };
    let sealed = ChaCha20Poly1305::new(&key.0.into())
        .encrypt(&Nonce::from(nonce), payload)
        .expect("messages are far shorter than the cipher's limit");
    [head, &nonce, &sealed].concat()
}

pub(crate) fn open(
    aad: &[u8],
    key: &ControlKey,
    nonce: [u8; NONCE_BYTES],
    sealed: &[u8],
) -> Result<Vec<u8>, OrderError> {
    let payload = Payload { msg: sealed, aad };
    ChaCha20Poly1305::new(&key.0.into())
        .decrypt(&Nonce::from(nonce), payload)
        .map_err(|_| OrderError::NotSealedForUs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: ControlKey = ControlKey([7; 32]);
    const BOOT: BootId = BootId([1; 8]);

    fn poll() -> Poll {
        Poll {
            known: vec![5, 6],
            part: Some(Part {
                order: 5,
                offset: 70_000,
                total: 70_011,
                bytes: b"some output".to_vec(),
                end: Some(-1),
            }),
        }
    }

    fn orders() -> Orders {
        let order = |id| Order {
            id,
            seconds: 60,
            command: format!("echo {id}"),
        };
        Orders(vec![order(6), order(7)])
    }

    #[test]
    fn polls_and_answers_arrive_as_they_were() {
        for poll in [poll(), Poll::default()] {
            let bytes = poll.seal(BOOT, &KEY, [2; 12]);
            assert_eq!(Poll::peek(&bytes), Ok((BOOT, [2; 12])));
            assert_eq!(Poll::open(&bytes, &KEY), Ok(poll));
        }
        let answer = orders().seal(&KEY, [2; 12], [3; 12]);
        assert_eq!(Orders::open(&answer, &KEY, [2; 12]), Ok(orders()));
    }

    #[test]
    fn nothing_else_is_accepted() {
        let bytes = poll().seal(BOOT, &KEY, [2; 12]);
        let refused = Err(OrderError::NotSealedForUs);
        assert_eq!(Poll::open(&bytes, &ControlKey([8; 32])), refused);
        // Another boot's id, another nonce, another content, a part only.
        for at in [5, 13, 30, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(Poll::open(&changed, &KEY), refused);
        }
        for length in 0..bytes.len() {
            assert!(Poll::open(&bytes[..length], &KEY).is_err());
        }
        let answer = orders().seal(&KEY, [2; 12], [3; 12]);
        let other = Orders::open(&answer, &KEY, [4; 12]);
        assert_eq!(other, Err(OrderError::NotSealedForUs));
        // A poll is no answer, though the key is the same.
        assert!(Orders::open(&bytes, &KEY, [2; 12]).is_err());
        assert!(Poll::open(&vec![0; MAX_POLL_BYTES + 1], &KEY).is_err());
        assert!(Orders::open(&vec![0; MAX_ANSWER_BYTES + 1], &KEY, [2; 12]).is_err());
    }

    #[test]
    fn the_longest_are_as_long_as_said() {
        let poll = Poll {
            known: vec![1; MAX_ORDERS],
            part: Some(Part {
                order: 1,
                offset: 0,
                total: 0,
                bytes: vec![b'x'; MAX_PART_BYTES],
                end: None,
            }),
        };
        let bytes = poll.seal(BOOT, &KEY, [2; 12]);
        assert_eq!(bytes.len(), MAX_POLL_BYTES);
        assert_eq!(Poll::open(&bytes, &KEY), Ok(poll));
        let order = Order {
            id: 1,
            seconds: 1,
            command: "x".repeat(MAX_COMMAND_BYTES),
        };
        let orders = Orders(vec![order; MAX_ORDERS]);
        let bytes = orders.seal(&KEY, [2; 12], [3; 12]);
        assert_eq!(bytes.len(), MAX_ANSWER_BYTES);
        assert_eq!(Orders::open(&bytes, &KEY, [2; 12]), Ok(orders));
    }
}
