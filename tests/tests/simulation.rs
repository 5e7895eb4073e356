//! The simulator's suite: many seeds, every property, and a sample of them twice.
#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use conclave_tests::sim::hunt::{Hunt, Until, hunt};
use conclave_tests::sim::plan::{Attackers, Options};
use conclave_tests::sim::run;

/// Seeds of the suite.
const SEEDS: u64 = 400;

#[test]
fn every_property_holds_in_every_seed_of_the_suite() {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options { attackers: Attackers::None, calm: true, ..Options::default() };
    let order = Hunt { from: 0, until: Until::Seeds(SEEDS), jobs, options, stop_at_first: false };
    let found = hunt(&order, &|_| ());
    let lines: Vec<String> = found
        .findings
        .iter()
        .map(|it| format!("conclave-sim run --seed {}: {}", it.seed, it.violation))
        .collect();
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    assert_eq!(found.seeds, SEEDS);
    assert!(found.repeated >= SEEDS / 50);
}

#[test]
fn one_seed_has_one_trace() {
    for seed in [1, 2, 3] {
        let (one, two) =
            (run::seed(seed, &Options::default()), run::seed(seed, &Options::default()));
        assert_eq!(one.hash, two.hash);
        assert_eq!(one.frames, two.frames);
    }
}
