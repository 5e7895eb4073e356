//! The scenarios against their transcripts, and the controls that the checkers must not let pass.
//!
//! `CONCLAVE_REWRITE=1` writes the transcripts anew; whoever does it reads what changed.
#![allow(clippy::unwrap_used, reason = "a test stops at surprises")]

use conclave_tests::sim::plan::{Attackers, Options};
use conclave_tests::sim::run;
use conclave_tests::sim::scenario::{self, ALL};
use std::path::PathBuf;

fn transcript(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.txt"))
}

#[test]
fn every_scenario_plays_as_its_transcript_says() {
    let mut changed = Vec::new();
    for it in ALL {
        let played = scenario::play(it).diagram;
        let path = transcript(it.name);
        if std::env::var_os("CONCLAVE_REWRITE").is_some() {
            std::fs::write(&path, &played).unwrap();
        }
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        if known != played {
            changed.push(format!("{}\n{played}", path.display()));
        }
    }
    assert!(changed.is_empty(), "differ from their transcripts:\n{}", changed.join("\n"));
}

#[test]
fn four_replicas_agree_in_every_scenario_with_at_most_one_liar() {
    for it in ALL.iter().filter(|it| !["three-with-a-liar", "two-liars-of-four"].contains(&it.name))
    {
        let played = scenario::play(it);
        assert_eq!(played.violation, None, "{}", played.diagram);
    }
}

#[test]
fn one_liar_of_three_forks_and_the_checkers_say_so() {
    let played = scenario::play(scenario::named("three-with-a-liar").unwrap());
    assert_eq!(played.violation, Some("agreement"), "{}", played.diagram);
}

#[test]
fn two_liars_of_four_fork_and_the_evidence_names_both() {
    let played = scenario::play(scenario::named("two-liars-of-four").unwrap());
    assert_eq!(played.violation, Some("agreement"), "{}", played.diagram);
    for liar in ["r0", "r1"] {
        let named = ["r2", "r3"].iter().any(|correct| {
            played.diagram.contains(&format!("{correct} holds evidence against {liar}:"))
        });
        assert!(named, "no correct replica names {liar}\n{}", played.diagram);
    }
    for correct in ["r2", "r3"] {
        let named = format!("holds evidence against {correct}:");
        assert!(!played.diagram.contains(&named), "{correct} is framed\n{}", played.diagram);
    }
}

/// A primary whose ledger lagged proposed above a Rejoin that it had not executed; the replicas decided it, and handed it
/// over when the Rejoin had ended the epoch.
#[test]
fn what_was_decided_above_the_end_of_an_epoch_is_not_executed() {
    let attackers = Attackers::Named("serial-rejoiner".to_owned());
    let outcome = run::seed(199, &Options { attackers, ..Options::default() });
    assert_eq!(outcome.violation, None);
}
