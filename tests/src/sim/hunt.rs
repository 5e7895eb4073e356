//! Many seeds, on every core: what fails, what is reached, and whether a seed does the same twice.

use super::check::Violation;
use super::coverage::Coverage;
use super::plan::Options;
use super::run;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One in so many seeds is run twice.
pub const SAMPLED: u64 = 50;

/// Failing seeds that are kept; the hunt ends when there are so many.
pub const FINDINGS_MAX: usize = 50;

/// When a hunt ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many seeds.
    Seeds(u64),
    /// After so long.
    Elapsed(Duration),
}

/// What to hunt.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// The first seed.
    pub from: u64,
    /// The end.
    pub until: Until,
    /// Threads.
    pub jobs: usize,
    /// For every seed.
    pub options: Options,
    /// Ends at the first violation.
    pub stop_at_first: bool,
}

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which.
    pub seed: u64,
    /// What did not hold.
    pub violation: Violation,
}

/// What came of a hunt.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Seeds that were run.
    pub seeds: u64,
    /// Seeds that were run twice.
    pub repeated: u64,
    /// Those that failed, in the order of seeds.
    pub findings: Vec<Finding>,
    /// Marks.
    pub coverage: Coverage,
    /// Virtual seconds.
    pub virtual_seconds: f64,
    /// Requests answered.
    pub answered: u64,
    /// Real time.
    pub elapsed: Duration,
}

impl Found {
    /// Seeds in a second of real time.
    #[must_use]
    pub fn seeds_per_second(&self) -> f64 {
        self.seeds as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Hunts; `progress` hears of every seed that is done.
pub fn hunt(hunt: &Hunt, progress: &(dyn Fn(&Found) + Sync)) -> Found {
    let next = AtomicU64::new(hunt.from);
    let found = Mutex::new(Found::default());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..hunt.jobs.max(1) {
            scope.spawn(|| work(hunt, &next, &found, began, progress));
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.findings.sort_by_key(|finding| finding.seed);
    found.elapsed = began.elapsed();
    found
}

fn work(
    hunt: &Hunt,
    next: &AtomicU64,
    found: &Mutex<Found>,
    began: Instant,
    progress: &(dyn Fn(&Found) + Sync),
) {
    loop {
        let over = |seed: u64| match hunt.until {
            Until::Seeds(count) => seed >= hunt.from.saturating_add(count),
            Until::Elapsed(limit) => began.elapsed() >= limit,
        };
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if over(seed) {
            return;
        }
        let outcome = run::seed(seed, &hunt.options);
        let mut violation = outcome.violation.clone();
        let repeated = seed.is_multiple_of(SAMPLED);
        if repeated && violation.is_none() {
            let again = run::seed(seed, &hunt.options);
            if again.hash != outcome.hash {
                let what = format!("{:032x} and {:032x}", outcome.hash, again.hash);
                violation = Some(Violation { property: "one seed, one trace", what, at: 0 });
            }
        }
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.seeds += 1;
        found.repeated += u64::from(repeated);
        found.virtual_seconds += outcome.time as f64 / 1e6;
        found.answered += outcome.answered;
        found.coverage.add(&outcome.marks);
        found.elapsed = began.elapsed();
        if let Some(violation) = violation {
            found.findings.push(Finding { seed, violation });
        }
        progress(&found);
        let enough = found.findings.len() >= FINDINGS_MAX;
        if enough || hunt.stop_at_first && !found.findings.is_empty() {
            next.store(u64::MAX / 2, Ordering::Relaxed);
            return;
        }
    }
}
