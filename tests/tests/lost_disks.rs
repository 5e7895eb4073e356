//! Replicas that come back without their past, or with an older one.

use conclave_tests::{Cluster, Setup, Workload, audit, wait};

/// The replica is in a later epoch than the first, which only its Rejoin begins, and it votes.
fn rejoined(cluster: &Cluster, index: usize) {
    wait::until("the replica to rejoin in a new epoch", || {
        let status = cluster.nodes[index].status()?;
        match (status["epoch"].as_u64(), status["role"].as_str()) {
            (Some(epoch), Some("backup" | "primary")) if epoch > 0 => Ok(()),
            _ => Err(status.to_string()),
        }
    });
    wait::until("the replica to be ready", || cluster.nodes[index].ready());
}

/// With another one down a quorum needs this replica's votes.
fn votes_are_needed_and_come(cluster: &mut Cluster, index: usize, load: &Workload) {
    let other = (index + 1) % cluster.nodes.len();
    cluster.nodes[other].kill();
    load.wait_for_more(100);
    cluster.nodes[other].start();
    cluster.wait_ready();
}

#[test]
fn a_wiped_replica_fetches_the_state_rejoins_and_votes_again() {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "load", 16);
    load.wait_for_more(1000);
    let index = (cluster.primary() + 1) % 4;
    cluster.nodes[index].kill();
    load.wait_for_more(100);
    cluster.nodes[index].wipe();
    cluster.nodes[index].start();
    rejoined(&cluster, index);
    votes_are_needed_and_come(&mut cluster, index, &load);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn a_wiped_primary_comes_back_as_well() {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(1), "load", 16);
    load.wait_for_more(200);
    let index = cluster.primary();
    cluster.nodes[index].kill();
    cluster.nodes[index].wipe();
    load.wait_for_more(100);
    cluster.nodes[index].start();
    rejoined(&cluster, index);
    votes_are_needed_and_come(&mut cluster, index, &load);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn a_disk_rolled_back_to_an_old_copy_is_found_out_and_rejoins() {
    // Checkpoints come often, so that soon all it voted for since the copy is stable.
    let setup = Setup::default().limit("checkpoint_interval", 16).limit("window", 32);
    let mut cluster = Cluster::start_with(&setup);
    let load = Workload::start(cluster.client_home(0), "load", 16);
    load.wait_for_more(300);
    let index = (cluster.primary() + 2) % 4;
    let copy = cluster.scratch("copy");
    cluster.nodes[index].stop();
    cluster.nodes[index].save(&copy);
    cluster.nodes[index].start();
    cluster.wait_ready();
    let stable = cluster.nodes[index].status_number("checkpoint").expect("a status");
    // With another one down each checkpoint needs its word. Without that it may be a little slower
    // than the others every time; then nobody holds its word, and nothing is left to prove.
    let other = (index + 1) % 4;
    cluster.nodes[other].kill();
    wait::until("some more checkpoints that it signed", || {
        match cluster.nodes[index].status_number("checkpoint")? {
            now if now >= stable + 5 * 16 => Ok(()),
            now => Err(format!("{now} after {stable}")),
        }
    });
    cluster.nodes[other].start();
    cluster.wait_ready();
    cluster.nodes[index].kill();
    load.wait_for_more(100);
    cluster.nodes[index].restore(&copy);
    cluster.nodes[index].start();
    rejoined(&cluster, index);
    let log = cluster.nodes[index].log_text();
    assert!(log.contains("rolled back"), "the log does not say what happened");
    votes_are_needed_and_come(&mut cluster, index, &load);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}

/// One replica loses a part of its data directory, by power and by mistake.
fn loses(part: &str) -> (Cluster, Workload, usize) {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "load", 8);
    load.wait_for_more(300);
    let index = (cluster.primary() + 3) % 4;
    cluster.nodes[index].kill();
    std::fs::remove_dir_all(cluster.nodes[index].data().join(part)).expect("it was there");
    cluster.nodes[index].start();
    (cluster, load, index)
}

#[test]
fn a_lost_journal_beside_a_good_ledger_leads_through_a_rejoin() {
    let (mut cluster, load, index) = loses("journal");
    rejoined(&cluster, index);
    votes_are_needed_and_come(&mut cluster, index, &load);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn a_lost_ledger_beside_a_good_journal_is_fetched_again() {
    let (mut cluster, load, index) = loses("ledger");
    wait::until("the replica to be ready", || cluster.nodes[index].ready());
    votes_are_needed_and_come(&mut cluster, index, &load);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}

/// The replica has all of every block from the first on.
fn whole(cluster: &Cluster, index: usize) {
    wait::until("the ledger to be whole from the first block on", || {
        match cluster.nodes[index].status_number("first_block")? {
            1 => Ok(()),
            first => Err(format!("it begins at {first}")),
        }
    });
}

/// `ledger verify` has nothing to say of a transferred state any more.
fn verified_from_the_first_block(cluster: &Cluster, index: usize) {
    let found = cluster.nodes[index].ledger("verify", &["-w", "json"]).succeeds().json();
    assert_eq!(found["blocks_checked"], found["height"], "{found}");
    assert_eq!(found["certified_first_block"], serde_json::Value::Null, "{found}");
}

#[test]
fn the_blocks_below_a_fetched_state_are_filled_in_and_verify_from_the_first_on() {
    // Two checkpoints are enough to be sent a state, and not one block of it.
    let setup = Setup::default().limit("checkpoint_interval", 16).limit("window", 32);
    let mut cluster = Cluster::start_with(&setup);
    let load = Workload::start(cluster.client_home(0), "load", 16);
    load.wait_for_more(1500);
    let first = (cluster.primary() + 1) % 4;
    cluster.nodes[first].kill();
    cluster.nodes[first].wipe();
    cluster.nodes[first].start();
    rejoined(&cluster, first);
    let log = cluster.nodes[first].log_text();
    assert!(log.contains("the certified state is in place"), "it was sent blocks, and no state");
    // Another one right behind it: the first may still lack blocks that this one asks it for.
    let second = (first + 1) % 4;
    cluster.nodes[second].kill();
    cluster.nodes[second].wipe();
    cluster.nodes[second].start();
    rejoined(&cluster, second);
    let acknowledged = load.finish();
    whole(&cluster, first);
    whole(&cluster, second);
    audit::every_replica_has(&mut cluster, &acknowledged);
    for index in 0..4 {
        verified_from_the_first_block(&cluster, index);
    }
}
