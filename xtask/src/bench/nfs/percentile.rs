//! Latencies of many calls.

/// Latencies in nanoseconds.
#[derive(Default)]
pub struct Latencies(pub Vec<u64>);

impl Latencies {
    /// The smallest latency that at least `share` (0 to 1) of all calls do not exceed; 0 without calls.
    pub fn percentile(&mut self, share: f64) -> u64 {
        let values = &mut self.0;
        let rank = (share * values.len() as f64).ceil() as usize;
        let Some(last) = values.len().checked_sub(1) else {
            return 0;
        };
        let at = rank.saturating_sub(1).min(last);
        *values.select_nth_unstable(at).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let mut latencies = Latencies((1..=200).rev().collect());
        assert_eq!(latencies.percentile(0.5), 100);
        assert_eq!(latencies.percentile(0.99), 198);
        assert_eq!(latencies.percentile(1.0), 200);
        assert_eq!(latencies.percentile(0.0), 1);
        assert_eq!(Latencies(vec![7]).percentile(0.99), 7);
        assert_eq!(Latencies::default().percentile(0.99), 0);
    }
}
