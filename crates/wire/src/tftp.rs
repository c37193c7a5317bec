//! TFTP packets (RFC 1350) with options (RFC 2347: negotiation, 2348: blksize, 2349: timeout and
//! tsize, 7440: windowsize).
//!
//! Panic contract: decoding never panics, whatever the bytes.

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
