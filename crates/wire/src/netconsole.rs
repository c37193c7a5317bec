//! Kernel messages as Linux's netconsole sends them, one to a datagram, in its extended format
//! (Documentation/networking/netconsole.rst):
//! `LEVEL,SEQUENCE,MICROSECONDS,FLAG[,WORD…];TEXT\n`, perhaps followed by lines that begin with a
//! space. A message of more than 1000 bytes comes in parts, each with the word `ncfrag=OFFSET/BYTES`.
//!
//! Nothing says who sent it, so nothing of it is to be believed; what is kept is short and printable.

/// The longest text that is kept of one message, in bytes.
pub const MAX_TEXT_BYTES: usize = 200;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How bad it is: 0 is an emergency, 7 for debugging (syslog(2)).
    pub level: u8,
    /// Counts the kernel's messages since its start.
    pub sequence: u64,
    /// Microseconds since the kernel started.
    pub monotonic_us: u64,
    /// The first line of it, printable ASCII of at most [`MAX_TEXT_BYTES`].
    pub text: String,
}

impl Line {
    /// Reads a datagram. `None` where it is no message, or a part of one that is not its first: what
    /// is that long was cut before.
    pub fn decode(datagram: &[u8]) -> Option<Line> {
        let head = datagram.iter().take(128).position(|byte| *byte == b';')?;
        let (head, text) = (
            str::from_utf8(&datagram[..head]).ok()?,
            &datagram[head + 1..],
        );
        let mut words = head.split(',');
        let priority: u32 = number(words.next()?)?;
        let sequence = number(words.next()?)?;
        let monotonic_us = number(words.next()?)?;
        // `-`, or how a message goes on that was begun without a line's end.
        if !matches!(words.next()?, "-" | "c" | "+") {
            return None;
        }
        let is_first = |word: &str| {
            let place = word.strip_prefix("ncfrag=");
            place.is_none_or(|place| place.starts_with("0/"))
        };
        if !words.all(is_first) {
            return None;
        }
        let text = text.iter().take_while(|byte| **byte != b'\n');
        let printable = |byte: &u8| match byte {
            b' '..=b'~' => char::from(*byte),
            b'\t' => ' ',
            _ => '?',
        };
        Some(Line {
            level: (priority & 7) as u8,
            sequence,
            monotonic_us,
            text: text.take(MAX_TEXT_BYTES).map(printable).collect(),
        })
    }
}

/// Digits alone: the standard library takes a sign as well.
fn number<T: std::str::FromStr>(word: &str) -> Option<T> {
    let digits = word.bytes().all(|it| it.is_ascii_digit());
    digits.then(|| word.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(datagram: &[u8]) -> Option<String> {
        Line::decode(datagram).map(|line| line.text)
    }

    #[test]
    fn a_message_is_read() {
        // The kernel's documentation has this one.
        let datagram = b"6,444,501151268,-;netconsole: network logging started\n";
        let line = Line {
            level: 6,
            sequence: 444,
            monotonic_us: 501_151_268,
            text: "netconsole: network logging started".into(),
        };
        assert_eq!(Line::decode(datagram), Some(line));
        // Facility 3 (LOG_DAEMON), a caller, a dictionary.
        let datagram = b"30,1,2,-,caller=T1;systemd[1]: Hello\n SUBSYSTEM=net\n DEVICE=n2\n";
        assert_eq!(Line::decode(datagram).map(|it| it.level), Some(6));
        assert_eq!(text(datagram).as_deref(), Some("systemd[1]: Hello"));
    }

    #[test]
    fn of_a_long_message_the_first_part_is_read() {
        // As in the kernel's documentation too.
        let first = b"6,416,1758426,-,ncfrag=0/33;the first chunk, ";
        assert_eq!(text(first).as_deref(), Some("the first chunk, "));
        assert_eq!(text(b"6,416,1758426,-,ncfrag=16/33;the 2nd chunk."), None);
        let long = [&b"6,1,2,-;"[..], &[b'x'; 1000]].concat();
        assert_eq!(text(&long).map(|it| it.len()), Some(MAX_TEXT_BYTES));
    }

    #[test]
    fn nothing_unprintable_gets_through() {
        let datagram = b"0,1,2,-;a\x1b[31mb\xff\tc\rd";
        assert_eq!(text(datagram).as_deref(), Some("a?[31mb? c?d"));
    }

    #[test]
    fn what_is_no_message_is_none() {
        for datagram in [
            &b""[..],
            b";",
            b"6,444,501151268;no flag",
            b"6,444,501151268,x;a flag that there is not",
            b"-6,444,1,-;a sign",
            b"+6,444,1,-;a sign",
            b"6,99999999999999999999,1,-;too many",
            b"SLB1",
            b"[    0.1] the plain format",
        ] {
            assert_eq!(Line::decode(datagram), None, "{datagram:?}");
        }
    }
}
