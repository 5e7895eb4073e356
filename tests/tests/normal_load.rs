//! The main job: four organizations agree, and each has all of it.

use conclave_tests::{Cluster, Workload, audit, wait};

#[test]
fn every_write_under_load_is_in_the_ledger_of_every_replica() {
    let mut cluster = Cluster::start();
    let one = Workload::start(cluster.client_home(0), "one", 24);
    let two = Workload::start(cluster.client_home(1), "two", 24);
    one.wait_for_more(1500);
    two.wait_for_more(100);
    let mut acknowledged = one.finish();
    acknowledged.merge(two.finish());
    for node in &cluster.nodes {
        let changes = node.status_number("view_changes").expect("a status");
        assert_eq!(changes, 0, "{} changed views without a fault", node.home.display());
    }
    assert!(acknowledged.unknown.is_empty(), "without a fault every outcome is known");
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn the_command_line_writes_reads_and_proves() {
    let cluster = Cluster::start();
    cluster.conclave(0, &["put", "ship/42", "at sea"]).succeeds();
    let found = cluster.conclave(1, &["get", "ship/42", "-w", "json"]).succeeds().json();
    assert_eq!(found["value"], "at sea");
    assert_eq!(found["version"], 1);
    let absent = cluster.conclave(1, &["get", "ship/43"]).succeeds();
    assert_eq!(absent.stdout, "");
    cluster.conclave(0, &["cas", "ship/42", "at sea", "in port"]).succeeds();
    cluster.conclave(1, &["cas", "ship/42", "at sea", "lost"]).exits(1);
    let txn = "value(\"ship/42\") = \"in port\"\n\nput ship/42 docked\nput berth/7 taken\n\nget ship/42\n";
    cluster.conclave_with_input(1, &["txn"], txn).succeeds();
    let found = cluster.conclave(0, &["get", "berth/", "--prefix"]).succeeds();
    assert!(found.stdout.contains("taken"), "{}", found.stdout);
    cluster.conclave(0, &["delete", "berth/7"]).succeeds();
    let gone = cluster.conclave(1, &["get", "berth/7"]).succeeds();
    assert_eq!(gone.stdout, "");

    let members = cluster.conclave(0, &["members", "-w", "json"]).succeeds().json();
    assert_eq!(members.as_array().map(Vec::len), Some(4), "{members}");
    let rows = wait::until("a status with one primary and three backups", || {
        let rows = cluster.conclave(0, &["status", "-w", "json"]).succeeds().json();
        let roles: Vec<_> =
            rows.as_array().into_iter().flatten().filter_map(|row| row["role"].as_str()).collect();
        let count = |role| roles.iter().filter(|r| **r == role).count();
        match (count("primary"), count("backup")) {
            (1, 3) => Ok(rows),
            _ => Err(format!("{rows}")),
        }
    });
    for row in rows.as_array().into_iter().flatten() {
        for field in ["replica", "view", "height", "checkpoint", "lag", "peers_up"] {
            assert!(row[field].is_number(), "{field} of {row}");
        }
    }
}

#[test]
fn a_receipt_is_proven_offline_and_a_changed_one_is_not() {
    let mut cluster = Cluster::start();
    let receipt = cluster.scratch("receipt.json");
    let path = receipt.to_string_lossy().into_owned();
    cluster.conclave(0, &["put", "deed/1", "acme owns it", "--receipt", &path]).succeeds();
    cluster.stop_all();
    let genesis = cluster.genesis();
    let genesis = genesis.to_string_lossy();
    let verify =
        |file: &str| cluster.conclave(0, &["receipt", "verify", file, "--genesis", &genesis]);
    verify(&path).succeeds();

    // Whatever single character changes, nothing is proven any more.
    let text = std::fs::read_to_string(&receipt).expect("put wrote it");
    let changed = cluster.scratch("changed.json");
    let positions: Vec<_> =
        text.char_indices().filter(|(_, c)| c.is_ascii_alphanumeric()).map(|(i, _)| i).collect();
    for at in positions.iter().step_by(positions.len().div_ceil(12)) {
        let mut bytes = text.clone().into_bytes();
        bytes[*at] = if bytes[*at] == b'1' { b'2' } else { b'1' };
        std::fs::write(&changed, &bytes).expect("our own directory");
        let outcome = verify(&changed.to_string_lossy());
        assert_ne!(outcome.code, 0, "character {at} was changed: {}", outcome.stdout);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    }
}

#[test]
fn a_stopped_cluster_comes_back_with_what_it_had() {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "before", 8);
    load.wait_for_more(200);
    let mut acknowledged = load.finish();
    cluster.stop_all();
    cluster.start_all();
    cluster.wait_ready();
    let load = Workload::start(cluster.client_home(0), "after", 8);
    load.wait_for_more(200);
    acknowledged.merge(load.finish());
    audit::every_replica_has(&mut cluster, &acknowledged);
}

#[test]
fn a_cluster_of_seven_works_with_two_down() {
    let mut cluster =
        Cluster::start_with(&conclave_tests::Setup { replicas: 7, ..Default::default() });
    let load = Workload::start(cluster.client_home(0), "seven", 8);
    load.wait_for_more(100);
    cluster.nodes[5].kill();
    cluster.nodes[6].kill();
    load.wait_for_more(100);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
}
