//! One TFTP transfer as a pure state machine: the daemon's TFTP threads move its datagrams.
//!
//! [`Transfer::start`] once; then [`Transfer::poll_transmit`] until it says there is nothing to
//! send, wait for a datagram from the receiver's address and port or for
//! [`Transfer::deadline`], tell the transfer by [`Transfer::handle`] or
//! [`Transfer::handle_timeout`], and again, until [`Transfer::outcome`] is there.

use std::time::Duration;

use wire::tftp::{Options, Packet, error};

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

/// Before a block: the kind of datagram and the block's number.
const HEADER_BYTES: usize = 4;
/// RFC 1350's block.
const DEFAULT_BLOCK_BYTES: u16 = 512;
/// RFC 2348's least.
const MIN_BLOCK_BYTES: u16 = 8;
/// What fits an Ethernet frame (1500 less IP, UDP and TFTP headers): larger ones would travel in
/// fragments, which firmware does not put together.
const MAX_BLOCK_BYTES: u16 = 1468;
/// Blocks under way at once, at most.
const MAX_WINDOW: u16 = 64;
/// How long to wait for an answer where the receiver asked for nothing else.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// Most times that the same datagrams are sent again to a receiver that was never heard of: the request may
/// bear another's address.
const MAX_RETRIES: u32 = 5;
/// How long one that has acknowledged something may be silent. GRUB 2.12 asks for the initramfs, has the
/// firmware check the kernel, and reads on after that.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// A transfer from the server to one receiver.
#[derive(Clone, Debug)]
pub struct Transfer {
    asked: Options,
    block_bytes: u64,
    window: u64,
    timeout: Duration,
    size: u64,
    /// Blocks acknowledged, from the first.
    acknowledged: u64,
    /// When something was last acknowledged, the options too.
    heard: Option<Timestamp>,
    /// The next block to send, counted from 0.
    next: u64,
    /// Whether the option acknowledgement is still to be answered.
    negotiating: bool,
    /// Whether the option acknowledgement is still to be sent.
    must_offer: bool,
    retries: u32,
    deadline: Timestamp,
    /// A last datagram.
    parting: Option<Vec<u8>>,
    outcome: Option<TransferOutcome>,
}

impl Transfer {
    /// A transfer for a read request with these options.
    pub fn new(asked: Options) -> Transfer {
        let asked = Options {
            blksize: asked
                .blksize
                .filter(|bytes| *bytes >= MIN_BLOCK_BYTES)
                .map(|bytes| bytes.min(MAX_BLOCK_BYTES)),
            windowsize: asked
                .windowsize
                .filter(|blocks| *blocks > 0)
                .map(|blocks| blocks.min(MAX_WINDOW)),
            timeout: asked.timeout.filter(|seconds| *seconds > 0),
            tsize: asked.tsize,
        };
        Transfer {
            asked,
            block_bytes: asked.blksize.unwrap_or(DEFAULT_BLOCK_BYTES).into(),
            window: asked.windowsize.unwrap_or(1).into(),
            timeout: match asked.timeout {
                Some(seconds) => Duration::from_secs(seconds.into()),
                None => DEFAULT_TIMEOUT,
            },
            size: 0,
            acknowledged: 0,
            heard: None,
            next: 0,
            negotiating: !asked.is_empty(),
            must_offer: !asked.is_empty(),
            retries: 0,
            deadline: Timestamp(0),
            parting: None,
            outcome: None,
        }
    }

    /// Begins to send `size` bytes.
    pub fn start(&mut self, now: Timestamp, size: u64) {
        self.size = size;
        self.deadline = now + self.timeout;
    }

    /// The length of a datagram with a whole block.
    pub fn datagram_bytes(&self) -> usize {
        HEADER_BYTES + self.block_bytes as usize
    }

    /// How many datagrams are sent at once, at most.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// A datagram from the receiver came in.
    pub fn handle(&mut self, now: Timestamp, datagram: &[u8]) {
        if self.outcome.is_some() {
            return;
        }
        match Packet::decode(datagram) {
            Ok(Packet::Ack { block }) => self.acknowledge(now, block),
            Ok(Packet::Error { code, message }) => self.refused(code, &message),
            // A repeated request: the first answer was lost and is sent again in time.
            Ok(Packet::Read(_)) => {}
            _ => {
                self.parting = Some(Packet::error(error::ILLEGAL, "expected an ACK"));
                self.fail("the receiver sent neither an ACK nor an ERROR");
            }
        }
    }

    fn acknowledge(&mut self, now: Timestamp, block: u16) {
        if self.negotiating {
            if block == 0 {
                self.negotiating = false;
                self.progress(now);
            }
            return;
        }
        // ACK n says that the blocks up to n (from 1, modulo 65536) have arrived. One that lies
        // before the window is a duplicate: answering it would double every datagram from here
        // on (RFC 1123, 4.2.3.1).
        let ahead = u64::from(block.wrapping_sub(self.acknowledged as u16));
        if ahead == 0 || ahead > self.next - self.acknowledged {
            return;
        }
        self.acknowledged += ahead;
        // Within a window, an ACK asks for what follows it (RFC 7440, 4).
        self.next = self.acknowledged;
        self.progress(now);
        if self.acknowledged == self.blocks() {
            self.outcome = Some(TransferOutcome::Done);
        }
    }

    fn progress(&mut self, now: Timestamp) {
        self.retries = 0;
        self.heard = Some(now);
        self.deadline = now + self.timeout;
    }

    /// A receiver that asks only for the size says so by refusing the options.
    fn refused(&mut self, code: u16, message: &[u8]) {
        if self.negotiating && self.asked.tsize.is_some() {
            self.outcome = Some(TransferOutcome::Probe);
            return;
        }
        let text = String::from_utf8_lossy(message);
        let text: String = text
            .chars()
            .filter(|it| !it.is_control())
            .take(80)
            .collect();
        self.fail(&format!("the receiver ended it with error {code} {text:?}"));
    }

    /// The deadline has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        if self.outcome.is_some() || now < self.deadline {
            return;
        }
        let may_be_busy = self.heard.is_some_and(|heard| now < heard + MAX_SILENCE);
        if self.retries >= MAX_RETRIES && !may_be_busy {
            self.fail("the receiver no longer answers");
            return;
        }
        self.retries += 1;
        self.deadline = now + self.timeout;
        self.must_offer = self.negotiating;
        self.next = self.acknowledged;
    }

    /// Writes the next datagram to send into `out`, replacing its content. False: nothing to send
    /// now.
    pub fn poll_transmit(
        &mut self,
        _now: Timestamp,
        source: &(impl Source + ?Sized),
        out: &mut Vec<u8>,
    ) -> bool {
        if let Some(parting) = self.parting.take() {
            *out = parting;
            return true;
        }
        if self.outcome.is_some() || (self.negotiating && !self.must_offer) {
            return false;
        }
        if self.must_offer {
            self.must_offer = false;
            *out = Packet::OptionAck(self.granted()).encode();
            return true;
        }
        let limit = self.blocks().min(self.acknowledged + self.window);
        self.next < limit && self.write_block(source, out)
    }

    fn write_block(&mut self, source: &(impl Source + ?Sized), out: &mut Vec<u8>) -> bool {
        let offset = self.next * self.block_bytes;
        let length = self.block_bytes.min(self.size - offset);
        let number = (self.next + 1) as u16;
        out.clear();
        out.extend_from_slice(&[0, 3]);
        out.extend_from_slice(&number.to_be_bytes());
        if !source.read_at(offset, length as usize, out) {
            self.fail("the file could not be read");
            *out = Packet::error(error::UNDEFINED, "the server could not read the file");
            return true;
        }
        self.next += 1;
        true
    }

    /// What is promised of what was asked.
    fn granted(&self) -> Options {
        Options {
            tsize: self.asked.tsize.map(|_| self.size),
            ..self.asked
        }
    }

    /// Blocks of the file: the last one is short, and empty where the size is a multiple.
    fn blocks(&self) -> u64 {
        self.size / self.block_bytes + 1
    }

    fn fail(&mut self, cause: &str) {
        let cause = cause.to_owned();
        self.outcome = Some(TransferOutcome::Failed { cause });
    }

    /// When to call [`Transfer::handle_timeout`]; `None` once it has ended.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.outcome.is_none().then_some(self.deadline)
    }

    /// How it ended, once it has. A last datagram may still have to be sent.
    pub fn outcome(&self) -> Option<&TransferOutcome> {
        self.outcome.as_ref()
    }

    /// Bytes that the receiver has acknowledged.
    pub fn bytes_acknowledged(&self) -> u64 {
        self.size.min(self.acknowledged * self.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A receiver that acknowledges as RFC 7440 says, behind a network that loses and repeats.
    struct Receiver {
        block_bytes: usize,
        window: u16,
        got: Vec<u8>,
        expected: u64,
        in_window: u16,
        done: bool,
    }

    impl Receiver {
        fn take(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
            match Packet::decode(datagram).expect("a packet") {
                Packet::OptionAck(_) => Some(Packet::Ack { block: 0 }.encode()),
                Packet::Data { block, data } => self.take_block(block, &data),
                other => panic!("{other:?}"),
            }
        }

        fn take_block(&mut self, block: u16, data: &[u8]) -> Option<Vec<u8>> {
            let in_order = block == self.expected as u16 && !self.done;
            if in_order {
                self.got.extend_from_slice(data);
                self.expected += 1;
                self.in_window += 1;
                self.done = data.len() < self.block_bytes;
            }
            if in_order && !self.done && self.in_window < self.window {
                return None;
            }
            self.in_window = 0;
            let block = (self.expected - 1) as u16;
            Some(Packet::Ack { block }.encode())
        }
    }

    /// Runs a transfer to its end; `drop` decides by a counter what the network loses.
    fn run(content: &[u8], options: Options, drop: impl Fn(u64) -> bool) -> Vec<u8> {
        let mut transfer = Transfer::new(options);
        let mut receiver = Receiver {
            block_bytes: transfer.block_bytes as usize,
            window: transfer.window as u16,
            got: Vec::new(),
            expected: 1,
            in_window: 0,
            done: false,
        };
        let mut now = Timestamp(1);
        let mut sent = 0;
        transfer.start(now, content.len() as u64);
        let mut out = Vec::new();
        while transfer.outcome().is_none() {
            let mut answers = Vec::new();
            while transfer.poll_transmit(now, content, &mut out) {
                sent += 1;
                assert!(sent < 3_000_000, "no end");
                if !drop(sent) {
                    answers.extend(receiver.take(&out));
                }
            }
            if answers.is_empty() {
                now = transfer.deadline().expect("not ended");
                transfer.handle_timeout(now);
            }
            for answer in answers {
                transfer.handle(now, &answer);
            }
        }
        let lost_last_ack = receiver.done;
        assert!(lost_last_ack, "{:?}", transfer.outcome());
        receiver.got
    }

    fn options(blksize: u16, windowsize: u16) -> Options {
        Options {
            blksize: Some(blksize),
            windowsize: Some(windowsize),
            tsize: Some(0),
            timeout: None,
        }
    }

    #[test]
    fn exact_bytes_at_every_size_window_and_loss() {
        let content: Vec<u8> = (0..40_000_u32)
            .map(|it| (it * 7 + it / 251) as u8)
            .collect();
        for length in [0, 1, 511, 512, 513, 1024, 39_999] {
            let content = &content[..length];
            assert_eq!(run(content, Options::default(), |_| false), content);
            for window in [1, 2, 4, 16, 64] {
                assert_eq!(run(content, options(512, window), |_| false), content);
                assert_eq!(run(content, options(512, window), |n| n % 5 == 3), content);
                assert_eq!(run(content, options(1428, window), |n| n % 3 == 0), content);
            }
        }
    }

    #[test]
    fn block_numbers_roll_over() {
        let content: Vec<u8> = (0..70_000 * 8 + 3).map(|it: u32| it as u8).collect();
        assert_eq!(run(&content, options(8, 64), |n| n % 1000 == 7), content);
    }

    #[test]
    fn the_size_probe_of_firmware_is_no_failure() {
        let mut transfer = Transfer::new(options(1468, 4));
        transfer.start(Timestamp(0), 9);
        let mut out = Vec::new();
        assert!(transfer.poll_transmit(Timestamp(0), &[0; 9][..], &mut out));
        let granted = Options {
            tsize: Some(9),
            ..options(1468, 4)
        };
        assert_eq!(Packet::decode(&out), Ok(Packet::OptionAck(granted)));
        transfer.handle(Timestamp(1), &Packet::error(8, "User aborted"));
        assert_eq!(transfer.outcome(), Some(&TransferOutcome::Probe));
    }

    #[test]
    fn duplicate_acknowledgements_send_nothing() {
        let mut transfer = Transfer::new(Options::default());
        let content = [1; 2000];
        transfer.start(Timestamp(0), 2000);
        let mut out = Vec::new();
        let ack = Packet::Ack { block: 1 }.encode();
        assert!(transfer.poll_transmit(Timestamp(0), &content[..], &mut out));
        transfer.handle(Timestamp(0), &ack);
        assert!(transfer.poll_transmit(Timestamp(0), &content[..], &mut out));
        transfer.handle(Timestamp(0), &ack);
        assert!(!transfer.poll_transmit(Timestamp(0), &content[..], &mut out));
        // Nor does one for a block that was never sent.
        transfer.handle(Timestamp(0), &Packet::Ack { block: 9 }.encode());
        assert!(!transfer.poll_transmit(Timestamp(0), &content[..], &mut out));
        assert_eq!(transfer.bytes_acknowledged(), 512);
    }

    #[test]
    fn a_receiver_that_has_answered_may_be_busy_for_a_while() {
        let content = [7; 600];
        let (mut now, mut out) = (Timestamp(0), Vec::new());
        let mut transfer = Transfer::new(Options::default());
        transfer.start(now, content.len() as u64);
        let mut pass_to = |transfer: &mut Transfer, end: u64| {
            while let Some(deadline) = transfer.deadline().filter(|it| *it <= Timestamp(end)) {
                now = deadline;
                transfer.handle_timeout(now);
                while transfer.poll_transmit(now, &content[..], &mut out) {}
            }
        };
        pass_to(&mut transfer, 3_000);
        transfer.handle(Timestamp(3_000), &Packet::Ack { block: 1 }.encode());
        // Ten times as long as one that was never heard of.
        pass_to(&mut transfer, 60_000);
        assert_eq!(transfer.outcome(), None);
        transfer.handle(Timestamp(60_500), &Packet::Ack { block: 2 }.encode());
        assert!(matches!(transfer.outcome(), Some(TransferOutcome::Done)));

        let mut gone = Transfer::new(Options::default());
        gone.start(Timestamp(0), content.len() as u64);
        while gone.poll_transmit(Timestamp(0), &content[..], &mut Vec::new()) {}
        gone.handle(Timestamp(0), &Packet::Ack { block: 1 }.encode());
        pass_to(&mut gone, 120_000);
        assert!(matches!(
            gone.outcome(),
            Some(TransferOutcome::Failed { .. })
        ));
    }

    #[test]
    fn a_silent_receiver_is_given_up() {
        let mut transfer = Transfer::new(Options::default());
        transfer.start(Timestamp(0), 9);
        let mut out = Vec::new();
        let mut sent = 0;
        while let Some(deadline) = transfer.deadline() {
            while transfer.poll_transmit(deadline, &[0; 9][..], &mut out) {
                sent += 1;
            }
            transfer.handle_timeout(deadline);
        }
        assert_eq!(sent, 1 + MAX_RETRIES);
        assert!(matches!(
            transfer.outcome(),
            Some(TransferOutcome::Failed { .. })
        ));
    }

    #[test]
    fn hostile_options_are_bounded() {
        let transfer = Transfer::new(options(0, 0));
        assert_eq!((transfer.block_bytes, transfer.window), (512, 1));
        let transfer = Transfer::new(options(65464, 65535));
        assert_eq!((transfer.block_bytes, transfer.window), (1468, 64));
        let zero = Options {
            timeout: Some(0),
            ..Options::default()
        };
        assert_eq!(Transfer::new(zero).timeout, DEFAULT_TIMEOUT);
    }
}
