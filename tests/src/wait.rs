//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Far above what anything here takes on a busy machine of two cores, so that only a hang reaches it.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Polls until `look` gives a value, or panics with what it said last.
///
/// # Panics
/// When [`DEADLINE`] passes.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    until_within(DEADLINE, what, look)
}

/// As [`until`], with a deadline of its own.
///
/// # Panics
/// When `limit` passes.
pub fn until_within<T>(limit: Duration, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    within(limit, look)
        .unwrap_or_else(|seen| panic!("waited {limit:?} for: {what}; last seen: {seen}"))
}

/// Polls until `look` gives a value, or gives up.
///
/// # Errors
/// What it said last, once `limit` has passed.
pub fn within<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let start = Instant::now();
    loop {
        match look() {
            Err(_) if start.elapsed() < limit => std::thread::sleep(POLL),
            ended => return ended,
        }
    }
}
