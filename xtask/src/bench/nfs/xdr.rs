//! XDR (RFC 4506), as much of it as the load generator needs.
//!
//! Reading never panics: what ends early or is longer than what is there is an error.

use anyhow::{Context, ensure};

/// Collects what is sent.
#[derive(Clone, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// An unsigned integer.
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// An unsigned hyper.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// Opaque data of a length that both sides know, a multiple of 4.
    pub fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Opaque data or a string, with its length.
    pub fn opaque(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// A bitmap4.
    pub fn bitmap(&mut self, words: &[u32]) {
        self.u32(words.len() as u32);
        words.iter().for_each(|word| self.u32(*word));
    }
}

/// Reads what was received.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> anyhow::Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).with_context(|| {
            let left = self.rest.len();
            format!("expected {len} more bytes, got {left}")
        })?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    /// An unsigned integer.
    pub fn u32(&mut self) -> anyhow::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// An unsigned hyper.
    pub fn u64(&mut self) -> anyhow::Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Opaque data or a string.
    pub fn opaque(&mut self) -> anyhow::Result<&'a [u8]> {
        let len = self.u32()? as usize;
        let value = self.take(len)?;
        self.take(len.next_multiple_of(4) - len)?;
        Ok(value)
    }

    /// A bitmap4 of at most three words.
    pub fn bitmap(&mut self) -> anyhow::Result<[u32; 3]> {
        let count = self.u32()? as usize;
        ensure!(
            count <= 3,
            "expected a bitmap of at most 3 words, got {count}"
        );
        let mut words = [0; 3];
        for word in words.iter_mut().take(count) {
            *word = self.u32()?;
        }
        Ok(words)
    }
}

/// The first record (RFC 5531, section 11) at the start of received bytes: its body, and the length
/// with its mark. `None` while it is not whole. Both servers send records in one fragment.
pub fn split_record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = 4 + record_len(bytes)?;
    Some((bytes.get(4..end)?, end))
}

/// The length of the record at the start of received bytes, once its mark is there.
pub fn record_len(bytes: &[u8]) -> Option<usize> {
    let mark = u32::from_be_bytes(*bytes.first_chunk()?);
    Some((mark & 0x7fff_ffff) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_wrote() {
        let mut writer = Writer::default();
        writer.u32(7);
        writer.u64(1 << 40);
        writer.opaque(b"hello");
        writer.bitmap(&[1, 2]);
        writer.fixed(&[9; 4]);
        let mut reader = Reader::new(&writer.0);
        assert_eq!(reader.u32().unwrap(), 7);
        assert_eq!(reader.u64().unwrap(), 1 << 40);
        assert_eq!(reader.opaque().unwrap(), b"hello");
        assert_eq!(reader.bitmap().unwrap(), [1, 2, 0]);
        assert_eq!(reader.rest(), [9; 4]);
    }

    #[test]
    fn short_input_is_an_error() {
        assert!(Reader::new(&[0; 3]).u32().is_err());
        assert!(Reader::new(&[0, 0, 0, 5, 1, 2, 3, 4]).opaque().is_err());
        assert!(Reader::new(&[255; 4]).opaque().is_err());
        assert!(Reader::new(&[0, 0, 0, 4, 0, 0, 0, 0]).bitmap().is_err());
    }

    #[test]
    fn splits_records() {
        let bytes = [0x80, 0, 0, 2, 7, 8, 9];
        assert_eq!(split_record(&bytes), Some((&[7, 8][..], 6)));
        assert_eq!(split_record(&bytes[..5]), None);
        assert_eq!(record_len(&bytes[..5]), Some(2));
        assert_eq!(split_record(&bytes[..3]), None);
    }
}
