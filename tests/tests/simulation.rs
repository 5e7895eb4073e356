//! The simulator's suite: many seeds, every property, and a sample of them twice.
#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use conclave_tests::sim::crash_points::{Scene, Victim, every};
use conclave_tests::sim::hunt::{Hunt, Until, hunt};
use conclave_tests::sim::plan::{Asked, Attackers, Options};
use conclave_tests::sim::run;

/// Seeds of the suite.
const SEEDS: u64 = 2_000;

#[test]
fn every_property_holds_in_every_seed_of_the_suite() {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options::default();
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
    let missing = found.coverage.required_missing();
    assert!(missing.is_empty(), "no seed reaches {missing:?}");
}

/// Seeds of each hunt for what only one attack or story reaches.
const AIMED: u64 = 200;

#[test]
fn what_few_seeds_reach_is_reached_where_it_is_looked_for() {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let lied_to = Asked::Story("claimed-state");
    let lost = [
        "a peer is blamed for a chunk",
        "no peer serves the target any more",
        "a target that nobody serves is held against who named it",
    ];
    let aims: [(&str, Option<u16>, Asked, &[&str]); 4] = [
        ("transfer-poisoner", Some(7), lied_to, &lost),
        ("new-view-liar", None, Asked::Nothing, &["O of NEW-VIEW does not follow from V"]),
        (
            "forged-batch",
            None,
            Asked::Nothing,
            &["a request that nobody signed proves who proposed it"],
        ),
        (
            "fetch-spammer",
            None,
            Asked::Nothing,
            &["the installed state ends the epoch or is beyond it"],
        ),
    ];
    for (attack, replicas, story, marks) in aims {
        let attackers = Attackers::Named(attack.to_owned());
        let options = Options { replicas, attackers, story, ..Options::default() };
        let until = Until::Seeds(AIMED);
        let found = hunt(&Hunt { from: 0, until, jobs, options, stop_at_first: false }, &|_| ());
        assert!(found.findings.is_empty(), "{attack}: {:?}", found.findings);
        for mark in marks {
            assert!(found.coverage.reached().contains_key(mark), "{attack} never reaches: {mark}");
        }
    }
}

/// Seeds that once broke a property: a transfer that waited for one silent liar, and ledgers lost or changed by a disk
/// whose replicas then met their own CHECKPOINTs or put a copy of them back; an end of an epoch that only the journal
/// still knew; and an empty ledger that waited for a state which all who had it had forgotten at a restart, while the
/// next one needed its own vote, or its mark as the primary; an answer that came to the next life of who had asked;
/// a liar busy for ever; a primary whose proposal was of a time that nobody accepted.
#[test]
fn what_hunts_found_is_not_found_again() {
    for seed in [6_443, 9_051, 1_008_399, 1_015_613, 7_033_343, 30_022_819] {
        let outcome = run::seed(seed, &Options::default());
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
    let four = Options { replicas: Some(4), ..Options::default() };
    for seed in [
        60_009_736, 61_239_839, 61_371_483, 60_761_237, 62_233_198, 61_561_494, 60_533_503,
        60_560_390, 80_116_039,
    ] {
        assert_eq!(run::seed(seed, &four).violation, None, "seed {seed} of four replicas");
    }
}

/// Seeds whose stories broke a property: a Rejoin that a liar's own, one in each epoch, was ordered before for ever.
#[test]
fn what_stories_found_is_not_found_again() {
    for (seed, replicas, story) in [
        (907, Some(7), "claimed-state"),
        (970, None, "forgets-twice"),
        (208, Some(7), "claimed-state"),
    ] {
        let options = Options { replicas, story: Asked::Story(story), ..Options::default() };
        let outcome = run::seed(seed, &options);
        assert_eq!(outcome.violation, None, "seed {seed}, {story}");
    }
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

/// Runs a scene at every boundary and sees to it that there were some.
fn every_boundary(scene: Scene, victim: Victim, stride: u64) {
    let runs = every(scene, victim, stride).unwrap();
    assert!(runs > 60, "only {runs} runs: the scene did not play");
}

#[test]
fn the_power_of_one_replica_goes_at_every_boundary_of_the_normal_case() {
    every_boundary(Scene::Normal, Victim::One(0), 1);
    every_boundary(Scene::Normal, Victim::One(2), 2);
}

#[test]
fn the_power_of_all_goes_at_every_boundary_of_the_normal_case() {
    every_boundary(Scene::Normal, Victim::All, 3);
}

#[test]
fn the_power_goes_at_every_boundary_of_a_view_change() {
    every_boundary(Scene::ViewChange, Victim::One(1), 2);
    every_boundary(Scene::ViewChange, Victim::All, 7);
}

#[test]
fn the_power_goes_at_every_boundary_of_a_checkpoint() {
    every_boundary(Scene::Checkpoint, Victim::One(1), 2);
    every_boundary(Scene::Checkpoint, Victim::All, 7);
}

#[test]
fn the_power_goes_at_every_boundary_of_a_state_transfer() {
    every_boundary(Scene::StateTransfer, Victim::One(3), 1);
}
