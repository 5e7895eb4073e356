//! Twins: short rounds exhausted, larger clusters sampled, and the control that has to diverge.
#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use conclave_tests::sim::twins::choice::{Scenario, Space};
use conclave_tests::sim::twins::hunt::{FINDINGS_MAX, Found, Which, hunt};
use conclave_tests::sim::twins::play;

fn run(replicas: u16, twins: u16, rounds: usize, which: Which) -> Found {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let space = Space::new(replicas, twins, rounds).unwrap();
    hunt(&space, which, jobs, &|_, _| ())
}

fn hold(found: &Found) {
    let lines: Vec<String> = found
        .findings
        .iter()
        .map(|(scenario, violation)| {
            format!("conclave-sim twins --scenario {scenario}: {violation}")
        })
        .collect();
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

#[test]
fn one_pair_of_twins_among_four_breaks_nothing_in_any_two_rounds() {
    let found = run(4, 1, 2, Which::All);
    hold(&found);
    let space = Space::new(4, 1, 2).unwrap();
    assert_eq!(found.run + found.renamed, space.listed());
    // Most scenarios decide something, and some change the view.
    assert!(found.blocks > found.run && found.view > 0, "{found:?}");
}

#[test]
fn samples_of_more_rounds_and_of_two_pairs_among_seven_break_nothing() {
    let four = run(4, 1, 6, Which::Sample { count: 1_000, seed: 1 });
    hold(&four);
    assert!(four.repeated > 0 && four.view > 2);
    let seven = run(7, 2, 5, Which::Sample { count: 300, seed: 1 });
    hold(&seven);
    assert!(seven.blocks > 300);
}

#[test]
fn two_pairs_of_twins_among_four_diverge_and_the_checkers_say_so() {
    let found = run(4, 2, 2, Which::All);
    assert!(found.findings.len() >= FINDINGS_MAX, "{found:?}");
    // r0 and r1 and one correct replica on each side: each decides a batch of its own.
    let outcome = play(&"4+2:0:56,56".parse::<Scenario>().unwrap(), None);
    let property = outcome.violation.unwrap().property;
    assert_eq!(property, "agreement");
}
