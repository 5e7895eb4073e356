//! Seeded mistakes: each is caught, in few seeds.
#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use conclave_tests::sim::mistakes::{ALL, Mistake};
use conclave_tests::sim::mutants::{median, search_all};

/// Seeds for each mistake at most.
const SEEDS_MAX: u64 = 2_000;

/// The median of what catches take.
const MEDIAN_MAX: u64 = 500;

#[test]
fn every_seeded_mistake_is_caught() {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let all: Vec<&'static Mistake> = ALL.iter().collect();
    let found = search_all(&all, SEEDS_MAX, jobs, &|_| ());
    assert_eq!(found.len(), all.len());
    let survivors: Vec<&str> =
        found.iter().filter(|it| it.caught.is_none()).map(|it| it.mistake.name).collect();
    assert!(survivors.is_empty(), "`conclave-sim mutants --only NAME` for {survivors:?}");
    assert!(median(&found).unwrap() < MEDIAN_MAX);
}
