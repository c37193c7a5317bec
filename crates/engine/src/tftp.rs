//! One TFTP transfer as a pure state machine: the daemon's TFTP threads move its datagrams.
//!
//! [`Transfer::start`] once; then [`Transfer::poll_transmit`] until it says there is nothing to
//! send, wait for a datagram from the receiver's address and port or for
//! [`Transfer::deadline`], tell the transfer by [`Transfer::handle`] or
//! [`Transfer::handle_timeout`], and again, until [`Transfer::outcome`] is there.

use wire::tftp::Options;

use crate::io::TransferOutcome;
use crate::time::Timestamp;

/// What a transfer sends. Implemented for byte slices.
pub trait Source {
    /// Appends `length` bytes from `offset` to `out`. False: they cannot be read.
    fn read_at(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> bool;
}

impl Source for [u8] {
    fn read_at(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> bool {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        match range.and_then(|range| self.get(range)) {
            Some(bytes) => out.extend_from_slice(bytes),
            None => return false,
        }
        true
    }
}

/// A transfer from the server to one receiver.
#[derive(Clone, Debug)]
pub struct Transfer {
    asked: Options,
    outcome: Option<TransferOutcome>,
}

impl Transfer {
    /// A transfer for a read request with these options.
    pub fn new(asked: Options) -> Transfer {
        Transfer {
            asked,
            outcome: None,
        }
    }

    /// Begins to send `size` bytes.
    pub fn start(&mut self, now: Timestamp, size: u64) {
        let _ = (now, size, self.asked);
    }

    /// A datagram from the receiver came in.
    pub fn handle(&mut self, now: Timestamp, datagram: &[u8]) {
        let _ = (now, datagram);
    }

    /// The deadline has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let _ = now;
    }

    /// Writes the next datagram to send into `out`, replacing its content. False: nothing to send
    /// now.
    pub fn poll_transmit(
        &mut self,
        now: Timestamp,
        source: &(impl Source + ?Sized),
        out: &mut Vec<u8>,
    ) -> bool {
        let _ = (now, source, out);
        false
    }

    /// When to call [`Transfer::handle_timeout`]; `None` once it has ended.
    pub fn deadline(&self) -> Option<Timestamp> {
        None
    }

    /// How it ended, once it has. A last datagram may still have to be sent.
    pub fn outcome(&self) -> Option<&TransferOutcome> {
        self.outcome.as_ref()
    }

    /// Bytes that the receiver has acknowledged.
    pub fn bytes_acknowledged(&self) -> u64 {
        0
    }
}
