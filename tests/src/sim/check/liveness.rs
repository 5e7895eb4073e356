//! Liveness after healing: once messages arrive again and correct replicas run, every request of a correct client is
//! answered, though traitors go on (OSDI'99 §3 and §4.5: liveness under weak synchrony).
//!
//! The bound is f primaries in a row that have to be replaced, each after the largest timeout, and two seconds.

/// What is granted beside the timeouts, milliseconds.
pub const GRACE_MS: u64 = 2_000;

/// Timeouts grow to so many times their base.
pub const TIMEOUT_GROWTH_MAX: u64 = 8;

/// How long an answer may take, milliseconds.
#[must_use]
pub fn bound_ms(f: usize, timeout_ms: u64) -> u64 {
    f as u64 * TIMEOUT_GROWTH_MAX * timeout_ms + GRACE_MS
}

/// Whether a request that waits since `since` is overdue. Microseconds; `healed` is when the faults ended.
#[must_use]
pub fn overdue(since: u64, healed: u64, now: u64, bound_ms: u64) -> bool {
    now > since.max(healed) + bound_ms * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_overdue_a_bound_after_it_was_made_or_after_the_faults_ended() {
        let bound = bound_ms(1, 1_000);
        assert_eq!(bound, 10_000);
        assert!(!overdue(0, 5_000_000, 15_000_000, bound));
        assert!(overdue(0, 5_000_000, 15_000_001, bound));
        assert!(!overdue(6_000_000, 5_000_000, 15_000_001, bound));
    }
}
