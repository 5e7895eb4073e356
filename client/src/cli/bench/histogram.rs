//! Latencies of one measurement.
//!
//! An HDR histogram from 1 µs to 10 minutes at three significant digits: about 200 KiB, whatever
//! the number of operations.

use hdrhistogram::Histogram;
use std::time::Duration;

/// The longest latency told apart; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(600);

/// Latencies, in microseconds.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let longest = u64::try_from(LONGEST.as_micros()).expect("ten minutes fit");
        Self(Histogram::new_with_bounds(1, longest, 3).expect("the bounds are constants"))
    }
}

impl Latencies {
    /// Adds one operation's latency.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros.max(1));
    }

    /// Operations recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `percent` of the operations did not exceed; milliseconds, 0 when empty.
    #[must_use]
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        milliseconds(self.0.value_at_percentile(percent))
    }

    /// The longest latency; milliseconds, 0 when empty.
    #[must_use]
    pub fn max_ms(&self) -> f64 {
        milliseconds(self.0.max())
    }
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_three_digits_of_the_truth() {
        let mut latencies = Latencies::default();
        for micros in 1..=10_000u64 {
            latencies.record(Duration::from_micros(micros));
        }
        assert_eq!(latencies.count(), 10_000);
        for (percent, expected) in [(50.0, 5.0), (95.0, 9.5), (99.0, 9.9)] {
            let found = latencies.percentile_ms(percent);
            assert!((found - expected).abs() <= expected * 0.002, "p{percent}: {found}");
        }
        assert!((latencies.max_ms() - 10.0).abs() < 0.02);
    }

    #[test]
    fn an_empty_histogram_answers_zero_and_a_huge_latency_is_kept_as_the_longest() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.percentile_ms(99.0), latencies.max_ms()), (0.0, 0.0));
        latencies.record(Duration::from_secs(86_400));
        assert_eq!(latencies.count(), 1);
        assert!(latencies.max_ms() >= 600_000.0);
    }
}
