//! The trace of a boot: which pieces of which files of its image a node read until it was up, in
//! that order. The server learns it from a version's first boot and lays it into the initramfs;
//! later boots fetch these pieces ahead of time, many at once.
//!
//! A line for each piece: offset, length, path, separated by one space each. A path is relative to
//! the root of the image and may hold anything but a newline.

/// Where a trace lies in an initramfs.
pub const TRACE_PATH: &str = "/trace";
/// More pieces than any boot reads; what follows is left out.
pub const PIECES_MAX: usize = 8192;

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// The file.
    pub path: Vec<u8>,
}

/// Writes a trace. Pieces whose paths hold a newline are left out.
pub fn encode(pieces: &[Piece]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in pieces.iter().take(PIECES_MAX) {
        if is_plain(&piece.path) {
            out.extend_from_slice(format!("{} {} ", piece.offset, piece.len).as_bytes());
            out.extend_from_slice(&piece.path);
            out.push(b'\n');
        }
    }
    out
}

/// Reads a trace, line by line; what is no piece is left out.
pub fn decode(bytes: &[u8]) -> Vec<Piece> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter_map(piece).take(PIECES_MAX).collect()
}

fn piece(line: &[u8]) -> Option<Piece> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let mut number = || str::from_utf8(words.next()?).ok()?.parse::<u64>().ok();
    let (offset, len) = (number()?, number()?);
    offset.checked_add(len)?;
    let path = words.next().filter(|path| is_plain(path))?.to_vec();
    Some(Piece { offset, len, path })
}

fn is_plain(path: &[u8]) -> bool {
    !path.is_empty() && !path.starts_with(b"/") && !path.contains(&b'\n') && !path.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(path: &[u8]) -> Piece {
        Piece {
            offset: 131_072,
            len: 4096,
            path: path.to_vec(),
        }
    }

    #[test]
    fn pieces_survive() {
        let pieces = [named(b"usr/lib/a b"), named(b"etc/\xff")];
        assert_eq!(decode(&encode(&pieces)), pieces);
        assert_eq!(encode(&pieces[..1]), b"131072 4096 usr/lib/a b\n");
    }

    #[test]
    fn what_is_no_piece_is_left_out() {
        let text = b"\n1 2\n1 2 \n1 2 /etc/passwd\nx 2 y\n-1 2 y\n18446744073709551615 1 y\n1 2 ok";
        let found = decode(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, b"ok");
        assert!(encode(&[named(b"a\nb"), named(b"/a"), named(b"")]).is_empty());
    }
}
