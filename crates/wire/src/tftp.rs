//! TFTP packets (RFC 1350) with options (RFC 2347: negotiation, 2348: blksize, 2349: timeout and
//! tsize, 7440: windowsize).
//!
//! Panic contract: decoding never panics, whatever the bytes.

use crate::reader::Reader;

/// Transfer mode of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// Text with CR LF: refused by the server.
    Netascii,
    /// Anything else.
    Other,
}

/// A request's options, as far as they are known and well-formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Bytes per block asked for (RFC 2348).
    pub blksize: Option<u16>,
    /// Retransmission time-out in seconds (RFC 2349).
    pub timeout: Option<u8>,
    /// The size of the file; zero in a read request (RFC 2349).
    pub tsize: Option<u64>,
    /// Blocks per acknowledgement (RFC 7440).
    pub windowsize: Option<u16>,
}

/// A read or write request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The file asked for, any bytes but NUL.
    pub filename: Vec<u8>,
    /// The mode.
    pub mode: Mode,
    /// The options.
    pub options: Options,
}

/// A TFTP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// RRQ, opcode 1.
    Read(Request),
    /// WRQ, opcode 2.
    Write(Request),
    /// DATA, opcode 3.
    Data {
        /// Block number, modulo 65536.
        block: u16,
        /// The block.
        data: Vec<u8>,
    },
    /// ACK, opcode 4.
    Ack {
        /// Block number, modulo 65536.
        block: u16,
    },
    /// ERROR, opcode 5.
    Error {
        /// The error's code.
        code: u16,
        /// The error's text.
        message: Vec<u8>,
    },
    /// OACK, opcode 6 (RFC 2347).
    OptionAck(Options),
}

/// Why bytes are no TFTP packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends within a field.
    #[error("TFTP packet of {0} bytes ends within a field")]
    Truncated(usize),
    /// No such opcode.
    #[error("expected a TFTP opcode of 1 to 6, got {0}")]
    Opcode(u16),
    /// A file name that is too long to be one of ours.
    #[error("expected a file name of at most {MAX_FILENAME_BYTES} bytes, got {0}")]
    LongName(usize),
}

/// The longest file name accepted.
pub const MAX_FILENAME_BYTES: usize = 255;
/// Most options read from one request.
const MAX_OPTIONS: usize = 16;

/// Error codes (RFC 1350, 5; RFC 2347).
pub mod error {
    #![allow(missing_docs)]
    pub const UNDEFINED: u16 = 0;
    pub const NOT_FOUND: u16 = 1;
    pub const ACCESS: u16 = 2;
    pub const ILLEGAL: u16 = 4;
    pub const UNKNOWN_ID: u16 = 5;
    pub const OPTIONS: u16 = 8;
}

impl Packet {
    /// Decodes one datagram. Options that are unknown or malformed are passed over (RFC 2347).
    pub fn decode(bytes: &[u8]) -> Result<Packet, DecodeError> {
        let short = DecodeError::Truncated(bytes.len());
        let mut reader = Reader::new(bytes);
        let opcode = reader.u16().ok_or_else(|| short.clone())?;
        let packet = match opcode {
            1 => Request::read(&mut reader, bytes.len()).map(Packet::Read)?,
            2 => Request::read(&mut reader, bytes.len()).map(Packet::Write)?,
            3 => Packet::Data {
                block: reader.u16().ok_or(short)?,
                data: reader.rest().to_vec(),
            },
            4 => Packet::Ack {
                block: reader.u16().ok_or(short)?,
            },
            5 => Packet::Error {
                code: reader.u16().ok_or(short)?,
                // Some clients forget the NUL.
                message: match reader.clone().until_nul() {
                    Some(message) => message.to_vec(),
                    None => reader.rest().to_vec(),
                },
            },
            6 => Packet::OptionAck(Options::read(&mut reader)),
            other => return Err(DecodeError::Opcode(other)),
        };
        Ok(packet)
    }

    /// The datagram.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut head = |opcode: u16, field: Option<u16>| {
            out.extend_from_slice(&opcode.to_be_bytes());
            out.extend(field.into_iter().flat_map(u16::to_be_bytes));
        };
        match self {
            Packet::Read(request) => {
                head(1, None);
                request.write(&mut out);
            }
            Packet::Write(request) => {
                head(2, None);
                request.write(&mut out);
            }
            Packet::Data { block, data } => {
                head(3, Some(*block));
                out.extend_from_slice(data);
            }
            Packet::Ack { block } => head(4, Some(*block)),
            Packet::Error { code, message } => {
                head(5, Some(*code));
                write_text(message, &mut out);
            }
            Packet::OptionAck(options) => {
                head(6, None);
                options.write(&mut out);
            }
        }
        out
    }

    /// The datagram of an error.
    pub fn error(code: u16, message: &str) -> Vec<u8> {
        let message = message.as_bytes().to_vec();
        Packet::Error { code, message }.encode()
    }
}

impl Request {
    fn read(reader: &mut Reader<'_>, total: usize) -> Result<Request, DecodeError> {
        let short = || DecodeError::Truncated(total);
        let filename = reader.until_nul().ok_or_else(short)?;
        if filename.len() > MAX_FILENAME_BYTES {
            return Err(DecodeError::LongName(filename.len()));
        }
        let mode = reader.until_nul().ok_or_else(short)?;
        Ok(Request {
            filename: filename.to_vec(),
            mode: Mode::from_text(mode),
            options: Options::read(reader),
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_text(&self.filename, out);
        let mode: &[u8] = match self.mode {
            Mode::Octet => b"octet",
            Mode::Netascii => b"netascii",
            Mode::Other => b"mail",
        };
        write_text(mode, out);
        self.options.write(out);
    }
}

impl Mode {
    fn from_text(text: &[u8]) -> Mode {
        if text.eq_ignore_ascii_case(b"octet") {
            Mode::Octet
        } else if text.eq_ignore_ascii_case(b"netascii") {
            Mode::Netascii
        } else {
            Mode::Other
        }
    }
}

impl Options {
    /// Whether no option is set.
    pub fn is_empty(&self) -> bool {
        *self == Options::default()
    }

    fn read(reader: &mut Reader<'_>) -> Options {
        let mut options = Options::default();
        for _ in 0..MAX_OPTIONS {
            let Some((name, value)) = reader.until_nul().zip(reader.until_nul()) else {
                break;
            };
            options.set(&name.to_ascii_lowercase(), value);
        }
        options
    }

    fn set(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"blksize" => self.blksize = number(value),
            b"timeout" => self.timeout = number(value),
            b"tsize" => self.tsize = number(value),
            b"windowsize" => self.windowsize = number(value),
            _ => {}
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let fields = [
            ("blksize", self.blksize.map(u64::from)),
            ("timeout", self.timeout.map(u64::from)),
            ("tsize", self.tsize),
            ("windowsize", self.windowsize.map(u64::from)),
        ];
        for (name, value) in fields {
            let Some(value) = value else { continue };
            write_text(name.as_bytes(), out);
            write_text(value.to_string().as_bytes(), out);
        }
    }
}

/// A decimal number that fits.
fn number<T: TryFrom<u64>>(value: &[u8]) -> Option<T> {
    let text = str::from_utf8(value).ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = text.parse().ok().filter(|_| digits)?;
    T::try_from(number).ok()
}

fn write_text(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(text);
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What EDK2 sends: the size probe of its boot file.
    const EDK2: &[u8] = b"\0\x01shimx64.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";

    #[test]
    fn a_request_of_real_firmware() {
        let Ok(Packet::Read(request)) = Packet::decode(EDK2) else {
            panic!("not a read request")
        };
        assert_eq!(request.filename, b"shimx64.efi");
        assert_eq!(request.mode, Mode::Octet);
        let options = request.options;
        assert_eq!(
            (options.tsize, options.blksize, options.windowsize),
            (Some(0), Some(1468), Some(4))
        );
        assert_eq!(options.timeout, None);
    }

    #[test]
    fn packets_survive_a_round_trip() {
        let options = Options {
            blksize: Some(1024),
            tsize: Some(8_000_000_000),
            ..Options::default()
        };
        let request = Request {
            filename: b"grub/grub.cfg".into(),
            mode: Mode::Octet,
            options,
        };
        let packets = [
            Packet::Read(request.clone()),
            Packet::Write(request),
            Packet::Data {
                block: 65535,
                data: vec![1, 2, 3],
            },
            Packet::Data {
                block: 0,
                data: Vec::new(),
            },
            Packet::Ack { block: 7 },
            Packet::Error {
                code: 8,
                message: b"no".into(),
            },
            Packet::OptionAck(options),
        ];
        for packet in packets {
            assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }
    }

    #[test]
    fn every_truncation_is_an_error_or_loses_options_only() {
        let name_and_mode = b"\0\x01shimx64.efi\0octet\0".len();
        for length in 0..EDK2.len() {
            let result = Packet::decode(&EDK2[..length]);
            assert_eq!(result.is_ok(), length >= name_and_mode, "{length}");
        }
    }

    #[test]
    fn odd_values_are_passed_over() {
        let ask = |tail: &str| {
            let bytes = [b"\0\x01f\0OCTET\0", tail.as_bytes()].concat();
            match Packet::decode(&bytes) {
                Ok(Packet::Read(request)) => request.options,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ask("BlkSize\x001428\0").blksize, Some(1428));
        for wrong in [
            "blksize\x0070000\0",
            "blksize\0-1\0",
            "blksize\0+5\0",
            "blksize\0\0",
            "x\0y\0",
        ] {
            assert!(ask(wrong).is_empty(), "{wrong:?}");
        }
        let many = "a\0b\0".repeat(100) + "blksize\x00512\0";
        assert!(ask(&many).is_empty());
    }

    #[test]
    fn names_and_opcodes_are_bounded() {
        let long = [b"\0\x01".as_slice(), &[b'a'; 300], b"\0octet\0"].concat();
        assert_eq!(Packet::decode(&long), Err(DecodeError::LongName(300)));
        assert_eq!(Packet::decode(&[0, 9]), Err(DecodeError::Opcode(9)));
        assert_eq!(Packet::decode(&[0]), Err(DecodeError::Truncated(1)));
    }
}
