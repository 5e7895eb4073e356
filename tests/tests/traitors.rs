//! One traitor of four, as a process of its own, against three released replicas under load.
//!
//! Each attack begins with the traitor as primary of view 0 and goes on to the end. What has to hold
//! every time: clients go on, no acknowledged write is lost, the ledgers of the others are one, and
//! nobody but the traitor is accused; where it signed proof against itself, it stands named.

use conclave_tests::traitor::Attack;
use conclave_tests::workload::Acknowledged;
use conclave_tests::{Cluster, Setup, Workload, audit, wait};
use serde_json::Value;
use std::path::PathBuf;

const TRAITOR: usize = 0;

/// Three correct replicas that vote, and the traitor.
fn with_traitor(attack: Attack, setup: &Setup) -> Cluster {
    let mut cluster = Cluster::generate(setup);
    for (id, node) in cluster.nodes.iter_mut().enumerate() {
        if id == TRAITOR {
            node.start_as_traitor(attack);
        } else {
            node.start();
        }
    }
    for node in &cluster.nodes[1..] {
        wait::until("a correct replica to be ready", || node.ready());
    }
    cluster
}

/// Who is accused by the correct replicas, by their own word.
fn accused(cluster: &Cluster) -> Vec<Vec<u64>> {
    let of = |status: &Value| -> Vec<u64> {
        let rows = status["accused"].as_array().into_iter().flatten();
        rows.filter_map(|row| row["replica"].as_u64()).collect()
    };
    let nodes = cluster.nodes[1..].iter();
    nodes.map(|node| node.status().map(|status| of(&status)).unwrap_or_default()).collect()
}

/// The load runs through the attack; then the correct replicas have every acknowledged write.
fn survives(attack: Attack, writes: u64) -> Cluster {
    let mut cluster = with_traitor(attack, &Setup::default());
    let load = Workload::start(cluster.client_home(0), attack.name(), 16);
    load.wait_for_more(writes);
    let acknowledged = load.finish();
    for (id, culprits) in accused(&cluster).into_iter().enumerate() {
        assert!(culprits.iter().all(|it| *it == TRAITOR as u64), "{} accuses {culprits:?}", id + 1);
    }
    ends(&mut cluster, &acknowledged);
    cluster
}

/// The traitor goes, and a correct primary has to be there before all is quiet.
fn ends(cluster: &mut Cluster, acknowledged: &Acknowledged) {
    cluster.nodes[TRAITOR].kill();
    cluster.conclave(0, &["--timeout", "60s", "put", "the-traitor", "is gone"]).succeeds();
    audit::every_running_replica_has(cluster, acknowledged);
}

/// As [`survives`], and every correct replica can prove to anybody who lied.
fn is_proven(attack: Attack, words: &str) {
    let mut cluster = with_traitor(attack, &Setup::default());
    let load = Workload::start(cluster.client_home(0), attack.name(), 16);
    wait::until("every correct replica to hold proof", || {
        let accused = accused(&cluster);
        if accused.iter().all(|culprits| !culprits.is_empty()) {
            return Ok(());
        }
        Err(format!("{accused:?}, {} acknowledged", load.acknowledged()))
    });
    load.wait_for_more(100);
    let acknowledged = load.finish();
    let listed = cluster.conclave(0, &["evidence", "list", "-w", "json"]).succeeds().json();
    let rows = listed.as_array().expect("a list");
    assert!(!rows.is_empty() && rows.iter().all(|row| row["replica"] == 0), "{listed}");
    let shown = cluster.conclave(0, &["status"]).succeeds().stdout;
    assert!(shown.contains("against"), "{shown}");

    ends(&mut cluster, &acknowledged);
    let genesis = cluster.genesis();
    let organization = conclave_config::genesis::load(&genesis).expect("testnet wrote it");
    let organization = organization.membership.members[TRAITOR].organization.clone();
    for node in &cluster.nodes[1..] {
        let files = evidence_files(&node.data());
        assert!(!files.is_empty(), "no file in {}", node.home.display());
        for file in &files {
            let proven = verify(&cluster, file).succeeds().json();
            assert_eq!(proven["organization"], Value::from(organization.clone()));
            let statement = proven["statement"].as_str().unwrap_or_default();
            assert!(statement.contains(words), "{statement}");
        }
        // One changed byte, wherever it is, and it proves nothing.
        let bytes = std::fs::read(&files[0]).expect("a file");
        for at in (0..bytes.len()).step_by(bytes.len().div_ceil(5)) {
            let mut changed = bytes.clone();
            changed[at] ^= 4;
            let path = cluster.scratch("changed.evidence");
            std::fs::write(&path, changed).expect("our own directory");
            verify(&cluster, &path).exits(1).says(&["proves nothing"]);
        }
        let home = node.home.to_string_lossy();
        let listed = cluster.conclave(0, &["evidence", "list", &home, "-w", "json"]);
        let listed = listed.succeeds().json();
        assert_eq!(listed.as_array().map(Vec::len), Some(files.len()), "{listed}");
        assert_eq!(node.log_text().matches("no correct replica signs").count(), files.len());
    }
    // What was proven stays known.
    cluster.nodes[1].start();
    wait::until("the metric", || match cluster.nodes[1].metric("conclave_evidence")? {
        held if held >= 1.0 => Ok(()),
        held => Err(format!("{held}")),
    });
}

fn verify(cluster: &Cluster, file: &std::path::Path) -> conclave_tests::Outcome {
    let (file, genesis) = (file.to_string_lossy(), cluster.genesis());
    let genesis = genesis.to_string_lossy();
    cluster.conclave(0, &["evidence", "verify", &file, "--genesis", &genesis, "-w", "json"])
}

fn evidence_files(data: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(data.join("evidence")) else { return Vec::new() };
    entries.map(|entry| entry.expect("a readable directory").path()).collect()
}

#[test]
fn an_equivocating_primary_is_proven_and_replaced() {
    is_proven(Attack::Equivocate, "two PRE-PREPAREs");
}

#[test]
fn a_primary_that_proposes_what_no_client_signed_is_proven_and_replaced() {
    is_proven(Attack::ForgedRequests, "did not sign");
}

#[test]
fn a_replica_that_sends_two_view_changes_is_proven() {
    is_proven(Attack::ViewChanges, "two different VIEW-CHANGEs");
}

#[test]
fn a_replica_that_vouches_for_two_states_is_proven() {
    is_proven(Attack::Checkpoints, "two different CHECKPOINTs");
}

#[test]
fn a_silent_primary_is_replaced() {
    let cluster = survives(Attack::Silent, 300);
    assert!(evidence_files(&cluster.nodes[1].data()).is_empty(), "silence signs nothing");
}

#[test]
fn votes_for_another_batch_with_every_replica_change_nothing() {
    drop(survives(Attack::VoteEquivocator, 500));
}

#[test]
fn floods_of_bad_signatures_bad_frames_and_questions_stop_nobody() {
    for attack in [Attack::CorruptSignatures, Attack::Malformed, Attack::Spam] {
        drop(survives(attack, 400));
    }
}

#[test]
fn a_slow_primary_is_replaced_though_it_stays_below_the_timeout() {
    // Delays are compared over 64 requests, at most 8 of one client.
    let setup = Setup { clients: 10, ..Setup::default() };
    let mut cluster = with_traitor(Attack::Slow, &setup);
    let loads: Vec<Workload> = (0..setup.clients)
        .map(|client| Workload::start(cluster.client_home(client), &format!("slow{client}"), 16))
        .collect();
    wait::until("another primary", || match cluster.nodes[1].status_number("view")? {
        0 => Err("the slow one leads".to_owned()),
        _ => Ok(()),
    });
    loads[0].wait_for_more(100);
    let mut acknowledged = Acknowledged::default();
    for load in loads {
        acknowledged.merge(load.finish());
    }
    ends(&mut cluster, &acknowledged);
}
