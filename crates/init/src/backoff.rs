//! Waiting times between attempts: doubling, bounded, with jitter so that a rack of nodes does not
//! ask in step.

use std::time::Duration;

/// The next waiting times of something that is tried for ever.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    max: Duration,
    noise: u64,
}

impl Backoff {
    /// Starts at `first`, doubles up to `max`; `seed` is random per node.
    pub fn new(first: Duration, max: Duration, seed: u64) -> Backoff {
        Backoff {
            next: first,
            max,
            noise: seed | 1,
        }
    }

    /// How long to wait now: between 3/4 and 5/4 of the nominal time.
    pub fn wait(&mut self) -> Duration {
        let nominal = self.next;
        self.next = (nominal * 2).min(self.max);
        // xorshift64: jitter needs no better randomness.
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        let thousandths = 750 + u32::try_from(self.noise % 501).unwrap_or(250);
        nominal * thousandths / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_within_bounds() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8), 42);
        for nominal in [1u64, 2, 4, 8, 8, 8] {
            let wait = backoff.wait();
            assert!(wait >= Duration::from_millis(nominal * 750));
            assert!(wait <= Duration::from_millis(nominal * 1250));
        }
    }

    #[test]
    fn nodes_differ() {
        let first =
            |seed| Backoff::new(Duration::from_secs(4), Duration::from_secs(64), seed).wait();
        assert_ne!(first(1), first(2));
    }
}
