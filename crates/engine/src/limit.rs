//! A token bucket: so many things a second, with a burst of one second's worth.

use crate::time::Timestamp;

/// Limits how often something happens. Counts in thousandths, so that slow rates work.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    per_second: u64,
    thousandths: u64,
    filled: Timestamp,
    dropped: u64,
}

impl TokenBucket {
    pub(crate) fn new(per_second: u32) -> TokenBucket {
        let per_second = u64::from(per_second.max(1));
        TokenBucket {
            per_second,
            thousandths: per_second * 1000,
            filled: Timestamp(0),
            dropped: 0,
        }
    }

    /// Whether one more may pass now.
    pub(crate) fn take(&mut self, now: Timestamp) -> bool {
        let gained = now
            .millis_since(self.filled)
            .saturating_mul(self.per_second);
        self.thousandths = self
            .thousandths
            .saturating_add(gained)
            .min(self.per_second * 1000);
        self.filled = self.filled.max(now);
        match self.thousandths.checked_sub(1000) {
            Some(left) => self.thousandths = left,
            None => {
                self.dropped += 1;
                return false;
            }
        }
        true
    }

    /// How many were refused since the last call, once something passes again.
    pub(crate) fn take_dropped(&mut self) -> Option<u64> {
        match std::mem::take(&mut self.dropped) {
            0 => None,
            dropped => Some(dropped),
        }
    }
}
