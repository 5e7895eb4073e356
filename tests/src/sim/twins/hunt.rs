//! All scenarios of a size, or a sample of them, on several threads.

use super::choice::{Scenario, Space};
use super::play;
use crate::sim::check::Violation;
use crate::sim::random::Random;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// One in so many scenarios is run twice.
pub const SAMPLED: u64 = 100;

/// Failing scenarios that are kept; the hunt ends when there are so many.
pub const FINDINGS_MAX: usize = 20;

/// Which scenarios of a space are run.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// All.
    All,
    /// So many, drawn from this seed.
    Sample { count: u64, seed: u64 },
}

/// What came of a hunt.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Scenarios run.
    pub run: u64,
    /// Of those, run a second time for their hash.
    pub repeated: u64,
    /// Listed and not run, because another is the same with twins renamed.
    pub renamed: u64,
    /// Blocks that the correct replicas furthest ahead executed, over all scenarios.
    pub blocks: u64,
    /// The latest view that a correct replica came to.
    pub view: u64,
    /// The scenarios in which a property did not hold, in the order of their numbers.
    pub findings: Vec<(Scenario, Violation)>,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.run += other.run;
        self.repeated += other.repeated;
        self.renamed += other.renamed;
        self.blocks += other.blocks;
        self.view = self.view.max(other.view);
        self.findings.extend(other.findings);
    }

    fn play(&mut self, scenario: Scenario) {
        let outcome = play(&scenario, None);
        self.blocks += outcome.height;
        self.view = self.view.max(outcome.view);
        let mut violation = outcome.violation;
        if self.run.is_multiple_of(SAMPLED) {
            self.repeated += 1;
            if play(&scenario, None).hash != outcome.hash {
                let what = "the same scenario did something else".to_owned();
                violation.get_or_insert(Violation { property: "determinism", what, at: 0 });
            }
        }
        self.run += 1;
        if let Some(violation) = violation {
            self.findings.push((scenario, violation));
        }
    }
}

/// Runs scenarios until none is left or enough have failed; `progress` hears of each hundred, and how many there are.
pub fn hunt(
    space: &Space,
    which: Which,
    jobs: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Found {
    let count = match which {
        Which::All => space.listed(),
        Which::Sample { count, .. } => count,
    };
    let next = AtomicU64::new(0);
    let found = Mutex::new(Found::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let mine = next.fetch_add(100, Ordering::Relaxed);
                    if mine >= count {
                        return;
                    }
                    let mut part = Found::default();
                    for number in mine..count.min(mine + 100) {
                        match scenario(space, which, number) {
                            Some(scenario) => part.play(scenario),
                            None => part.renamed += 1,
                        }
                    }
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.add(part);
                    if found.findings.len() >= FINDINGS_MAX {
                        return next.store(count, Ordering::Relaxed);
                    }
                    progress(mine, count);
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn scenario(space: &Space, which: Which, number: u64) -> Option<Scenario> {
    match which {
        Which::All => space.listed_at(number),
        Which::Sample { seed, .. } => {
            // A generator of its own for each, so that threads do not matter.
            let mut random = Random::new(seed).fork();
            Some(space.drawn(&mut Random::new(random.draw() ^ number.wrapping_mul(0x9e37_79b9))))
        }
    }
}
