//! XDR (RFC 4506): a bounded reader over a received record and a writer for the reply.
//!
//! Nothing here panics, whatever the input; lengths from the wire are compared with what is there
//! before they are used, and allocate nothing.

use bytes::Bytes;

/// Input that ends early or holds a length above its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads XDR from a record.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Bytes that are left.
    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    /// `N` bytes; XDR's fixed-length opaque for an `N` that is a multiple of 4.
    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// A variable-length opaque or string of at most `max` bytes.
    #[inline]
    pub(crate) fn opaque(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let len = self.u32()? as usize;
        if len > max || len > self.rest.len() {
            return Err(Malformed);
        }
        let (value, rest) = self.rest.split_at(len);
        self.rest = rest.get(padding(len)..).ok_or(Malformed)?;
        Ok(value)
    }

    /// The count of an array of at most `max` elements, each of at least 4 bytes.
    pub(crate) fn count(&mut self, max: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        if count > max || count > self.rest.len() / 4 {
            return Err(Malformed);
        }
        Ok(count)
    }

    /// A bitmap; words after the third are read and forgotten.
    #[inline]
    pub(crate) fn bitmap(&mut self) -> Result<Bitmap, Malformed> {
        let count = self.count(64)?;
        let mut bitmap = Bitmap::default();
        for index in 0..count {
            let word = self.u32()?;
            match bitmap.0.get_mut(index) {
                Some(slot) => *slot = word,
                None => bitmap.1 |= word != 0,
            }
        }
        Ok(bitmap)
    }
}

/// A set of attribute numbers below 96; the flag says that the wire had higher ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bitmap(pub(crate) [u32; 3], pub(crate) bool);

impl Bitmap {
    pub(crate) const fn of(bits: &[u32]) -> Bitmap {
        let mut words = [0; 3];
        let mut index = 0;
        while index < bits.len() {
            words[(bits[index] / 32) as usize] |= 1 << (bits[index] % 32);
            index += 1;
        }
        Bitmap(words, false)
    }

    pub(crate) const fn and(self, other: Bitmap) -> Bitmap {
        let (a, b) = (self.0, other.0);
        Bitmap([a[0] & b[0], a[1] & b[1], a[2] & b[2]], false)
    }

    pub(crate) const fn or(self, other: Bitmap) -> Bitmap {
        let (a, b) = (self.0, other.0);
        Bitmap([a[0] | b[0], a[1] | b[1], a[2] | b[2]], false)
    }

    pub(crate) fn has(self, bit: u32) -> bool {
        self.0
            .get((bit / 32) as usize)
            .is_some_and(|word| word & (1 << (bit % 32)) != 0)
    }

    /// The members, ascending.
    pub(crate) fn bits(self) -> impl Iterator<Item = u32> {
        self.0
            .into_iter()
            .zip([0, 32, 64])
            .flat_map(|(word, base)| {
                let mut left = word;
                std::iter::from_fn(move || {
                    if left == 0 {
                        return None;
                    }
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    Some(base + bit)
                })
            })
    }
}

/// Bytes that pad `len` bytes to a multiple of 4.
pub(crate) const fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// Collects replies. The storage stays when the content is cleared, and is zeroed only once. Content
/// of files is not copied: it is attached, and counts as if it were there.
#[derive(Default)]
pub(crate) struct Writer {
    storage: Vec<u8>,
    /// Bytes in the storage that are used.
    used: usize,
    /// In order of their places.
    attached: Vec<Attached>,
    attached_len: usize,
}

/// Bytes that are not in the storage.
struct Attached {
    /// Where in the storage they would be.
    at: usize,
    bytes: Bytes,
}

impl Writer {
    pub(crate) fn len(&self) -> usize {
        self.used + self.attached_len
    }

    /// The content from `at` on, if nothing of it is attached.
    pub(crate) fn bytes_from(&self, at: usize) -> Option<&[u8]> {
        let last = self.attached.last();
        if last.is_some_and(|last| last.at + self.attached_len > at) {
            return None;
        }
        self.storage[..self.used].get(at - self.attached_len..)
    }

    /// All content, in pieces: what is in the storage, and what is attached after it.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        let mut from = 0;
        let ends = self.attached.iter().map(|it| (it.at, Some(&it.bytes)));
        ends.chain([(self.used, None)]).map(move |(end, attached)| {
            let stored = &self.storage[from..end];
            from = end;
            (stored, attached)
        })
    }

    /// Forgets everything after the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        while let Some(last) = self.attached.last() {
            let before = self.attached_len - last.bytes.len();
            if last.at + before < len {
                break;
            }
            self.attached_len = before;
            self.attached.pop();
        }
        self.used = self.used.min(len - self.attached_len);
    }

    /// Gives storage back that a rare large reply left.
    pub(crate) fn shrink(&mut self, max: usize) {
        if self.storage.len() > max {
            self.truncate(0);
            self.storage = vec![0; max];
        }
    }

    /// Where in the storage the byte `at` of the content is, or would be. It is never within what is
    /// attached, and seldom before that.
    #[inline]
    fn place(&self, at: usize) -> usize {
        let mut before = self.attached_len;
        for attached in self.attached.iter().rev() {
            if attached.at + before <= at {
                break;
            }
            before -= attached.bytes.len();
        }
        at - before
    }

    /// Appends bytes that stay where they are.
    pub(crate) fn attach(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.attached_len += bytes.len();
        self.attached.push(Attached {
            at: self.used,
            bytes,
        });
    }

    /// Appends `len` bytes of unspecified content, for the caller to fill.
    #[inline]
    pub(crate) fn space(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if end > self.storage.len() {
            self.storage.resize(end.next_power_of_two().max(4096), 0);
        }
        let start = std::mem::replace(&mut self.used, end);
        &mut self.storage[start..end]
    }

    #[inline]
    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    #[inline]
    pub(crate) fn u32(&mut self, value: u32) {
        self.fixed(&value.to_be_bytes());
    }

    #[inline]
    pub(crate) fn u64(&mut self, value: u64) {
        self.fixed(&value.to_be_bytes());
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    pub(crate) fn opaque(&mut self, bytes: &[u8]) {
        self.u32(length(bytes.len()));
        self.fixed(bytes);
        self.pad(bytes.len());
    }

    /// Zero bytes that pad `len` bytes to a multiple of 4.
    #[inline]
    pub(crate) fn pad(&mut self, len: usize) {
        self.space(padding(len)).fill(0);
    }

    pub(crate) fn bitmap(&mut self, bitmap: Bitmap) {
        let words = match bitmap.0 {
            [0, 0, 0] => 0,
            [_, 0, 0] => 1,
            [_, _, 0] => 2,
            _ => 3,
        };
        self.u32(words);
        for word in bitmap.0.into_iter().take(words as usize) {
            self.u32(word);
        }
    }

    /// Overwrites the word at `at`, which was written before.
    #[inline]
    pub(crate) fn set_u32(&mut self, at: usize, value: u32) {
        let place = self.place(at);
        if let Some(slot) = self.storage.get_mut(place..place + 4) {
            slot.copy_from_slice(&value.to_be_bytes());
        }
    }
}

/// A length as XDR writes it. Everything here is far below 4 GiB.
pub(crate) fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_wrote() {
        let mut writer = Writer::default();
        writer.u32(7);
        writer.u64(1 << 40);
        writer.bool(true);
        writer.opaque(b"hello");
        writer.bitmap(Bitmap::of(&[0, 33, 95]));
        let mut reader = Reader::new(writer.bytes_from(0).unwrap());
        assert_eq!(reader.u32(), Ok(7));
        assert_eq!(reader.u64(), Ok(1 << 40));
        assert_eq!(reader.bool(), Ok(true));
        assert_eq!(reader.opaque(5), Ok(&b"hello"[..]));
        let bitmap = reader.bitmap().unwrap();
        assert_eq!(bitmap.bits().collect::<Vec<_>>(), [0, 33, 95]);
        assert!(reader.rest.is_empty());
        assert_eq!(reader.u32(), Err(Malformed));
    }

    #[test]
    fn lengths_beyond_the_input_or_the_limit_are_malformed() {
        for bytes in [
            &[0, 0, 0, 5, 1, 2, 3, 4][..],
            &[255, 255, 255, 255],
            &[0, 0, 0, 1, 9],
            &[0],
        ] {
            assert_eq!(Reader::new(bytes).opaque(100), Err(Malformed), "{bytes:?}");
        }
        assert_eq!(
            Reader::new(&[0, 0, 0, 4, 1, 2, 3, 4]).opaque(3),
            Err(Malformed)
        );
        assert_eq!(
            Reader::new(&[0, 0, 0, 9, 0, 0, 0, 0]).bitmap(),
            Err(Malformed)
        );
        assert_eq!(Reader::new(&[0, 0, 0, 2]).bool(), Err(Malformed));
    }

    #[test]
    fn attached_bytes_count_where_they_are() {
        let whole = |writer: &Writer| {
            let pieces = writer.pieces();
            pieces
                .flat_map(|(stored, attached)| [stored, attached.map_or(&[], |it| &it[..])])
                .collect::<Vec<_>>()
                .concat()
        };
        let mut writer = Writer::default();
        writer.u32(1);
        writer.attach(Bytes::from_static(b"abcd"));
        let second = writer.len();
        assert_eq!(second, 8);
        writer.u32(2);
        writer.attach(Bytes::from_static(b"efghijkl"));
        writer.u32(3);
        writer.set_u32(0, 7);
        writer.set_u32(second, 8);
        writer.set_u32(20, 9);
        assert_eq!(
            whole(&writer),
            b"\0\0\0\x07abcd\0\0\0\x08efghijkl\0\0\0\x09"
        );
        assert_eq!(writer.bytes_from(second), None);
        assert_eq!(writer.bytes_from(12), None);
        assert_eq!(writer.bytes_from(20), Some(&[0, 0, 0, 9][..]));
        writer.truncate(20);
        assert_eq!(writer.len(), 20);
        writer.truncate(12);
        assert_eq!(whole(&writer), b"\0\0\0\x07abcd\0\0\0\x08");
        writer.truncate(second);
        writer.u32(4);
        assert_eq!(whole(&writer), b"\0\0\0\x07abcd\0\0\0\x04");
        writer.truncate(4);
        assert_eq!(writer.bytes_from(0), Some(&[0, 0, 0, 7][..]));
    }

    #[test]
    fn a_bitmap_says_that_it_had_more_words() {
        let bytes = [0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(Reader::new(&bytes).bitmap(), Ok(Bitmap([1, 0, 0], true)));
    }
}
