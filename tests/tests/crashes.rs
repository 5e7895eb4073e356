//! Processes that die, all kinds of them, while clients write.

use conclave_tests::cluster::VIEW_CHANGE_TIMEOUT;
use conclave_tests::{Cluster, Workload, audit, wait};
use std::time::{Duration, Instant};

/// Two cores carry four replicas, writers and another test, so a pause is measured against a bound
/// that only a cluster which needs several view changes reaches.
const PAUSE_MAX: Duration = Duration::from_secs(10);

#[test]
fn writes_go_on_after_the_primary_is_killed_under_load() {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(1), "load", 16);
    load.wait_for_more(300);
    let primary = cluster.primary();
    let killed = Instant::now();
    cluster.nodes[primary].kill();
    load.wait_for_more(300);
    let deposed = cluster.primary();
    assert_ne!(deposed, primary, "a dead replica leads");
    cluster.nodes[primary].start();
    cluster.wait_ready();
    load.wait_for_more(100);
    let acknowledged = load.finish();
    let pause = acknowledged.longest_pause_from(killed);
    println!(
        "writes paused {:.0} ms with a view-change timeout of {:.0} ms",
        pause.as_secs_f64() * 1e3,
        VIEW_CHANGE_TIMEOUT.as_secs_f64() * 1e3
    );
    assert!(pause < PAUSE_MAX, "writes paused {pause:?}");
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn nothing_acknowledged_is_lost_when_all_four_are_killed_at_once() {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "load", 16);
    for round in 0..3 {
        load.wait_for_more(200);
        for node in &mut cluster.nodes {
            node.kill();
        }
        cluster.start_all();
        cluster.wait_ready();
        println!("round {round}: {} acknowledged", load.acknowledged());
    }
    load.wait_for_more(200);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn a_replica_that_was_down_catches_up_to_the_same_tip() {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "load", 16);
    load.wait_for_more(100);
    let primary = cluster.primary();
    let down = (primary + 2) % 4;
    cluster.nodes[down].kill();
    load.wait_for_more(1000);
    cluster.nodes[down].start();
    wait::until("the replica to be ready again", || cluster.nodes[down].ready());
    load.wait_for_more(100);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
    let tips: Vec<_> = cluster.nodes.iter().map(tip).collect();
    assert!(tips.iter().all(|tip| *tip == tips[0]), "tips differ: {tips:?}");
}

/// What a ledger's last block is, as JSON.
fn tip(node: &conclave_tests::node::Node) -> serde_json::Value {
    let height = node.ledger("verify", &["-w", "json"]).succeeds().json()["height"].clone();
    let height = height.as_u64().expect("a height").to_string();
    let block = node.ledger("show", &[&height, "-w", "json"]).succeeds().json();
    block["hash"].clone()
}

#[test]
fn a_primary_that_stands_still_is_replaced_and_follows_when_it_goes_on() {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(1), "load", 8);
    load.wait_for_more(100);
    let primary = cluster.primary();
    cluster.nodes[primary].pause();
    load.wait_for_more(200);
    cluster.nodes[primary].resume();
    wait::until("the paused replica to be ready again", || cluster.nodes[primary].ready());
    assert_ne!(cluster.primary(), primary, "it stood still and leads");
    load.wait_for_more(100);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn a_rolling_restart_costs_at_most_one_view_change_per_replica() {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "load", 8);
    load.wait_for_more(100);
    let view = |cluster: &Cluster| {
        let views = cluster.nodes.iter().filter_map(|node| node.status_number("view").ok());
        views.max().expect("a view")
    };
    for index in 0..cluster.nodes.len() {
        let before = view(&cluster);
        // Alternately in order and by force.
        if index % 2 == 0 {
            cluster.nodes[index].stop();
        } else {
            cluster.nodes[index].kill();
        }
        load.wait_for_more(50);
        cluster.nodes[index].start();
        cluster.wait_ready();
        load.wait_for_more(50);
        let after = view(&cluster);
        println!("restart of {index}: view {before} to {after}");
        assert!(after <= before + 1, "the restart of {index} took views {before} to {after}");
    }
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn nothing_is_answered_without_a_quorum_and_everything_after_it_is_back() {
    let mut cluster = Cluster::start();
    cluster.conclave(0, &["put", "before", "1"]).succeeds();
    cluster.nodes[2].kill();
    cluster.nodes[3].kill();
    // Two of four cannot decide; the client says that it does not know.
    cluster.conclave(0, &["--timeout", "2s", "put", "during", "1"]).exits(2).says(&["replicas"]);
    cluster.start_all();
    cluster.wait_ready();
    cluster.conclave(0, &["put", "after", "1"]).succeeds();
    let before = cluster.conclave(1, &["get", "before"]).succeeds();
    assert!(before.stdout.contains('1'), "{}", before.stdout);
}
