//! After a test: is every acknowledged write in the ledger of every replica, once?
//!
//! The replicas are stopped and each ledger is read from its own disk, so that a replica which
//! answered from memory, or let others answer for it, is found out.

use crate::cluster::Cluster;
use crate::node::Node;
use crate::workload::Acknowledged;
use serde_json::Value;
use std::collections::BTreeMap;

/// A key as one replica's ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its value.
    pub value: Vec<u8>,
    /// How often it was written.
    pub version: u64,
}

/// Waits until all replicas stand at one height, stops them, and checks each ledger: it verifies, it
/// ends in the same block as the others, its state is the same, and it has every acknowledged write.
///
/// # Panics
/// With what is missing or differs.
#[track_caller]
pub fn every_replica_has(cluster: &mut Cluster, acknowledged: &Acknowledged) {
    cluster.start_all();
    cluster.wait_ready();
    cluster.wait_level(acknowledged.height());
    cluster.stop_all();
    let mut first: Option<BTreeMap<Vec<u8>, Stored>> = None;
    for node in &cluster.nodes {
        verified(node, acknowledged.height());
        no_panic(node);
        let state = exported(node);
        contains(node, &state, acknowledged);
        match &first {
            None => first = Some(state),
            Some(first) => {
                let differing = first.iter().find(|(key, stored)| state.get(*key) != Some(stored));
                assert!(
                    differing.is_none() && first.len() == state.len(),
                    "{} differs from {}: {} keys and {}, first differing {differing:?}",
                    node.home.display(),
                    cluster.nodes[0].home.display(),
                    state.len(),
                    first.len(),
                );
            }
        }
    }
    println!(
        "{} acknowledged writes found in {} ledgers ({} outcomes unknown)",
        acknowledged.writes.len(),
        cluster.nodes.len(),
        acknowledged.unknown.len()
    );
}

/// `ledger verify` accepts this ledger, which reaches `height`.
///
/// # Panics
/// With its complaint.
#[track_caller]
pub fn verified(node: &Node, height: u64) {
    let answer = node.ledger("verify", &["-w", "json"]).succeeds().json();
    assert_eq!(answer["ok"], Value::Bool(true), "{}: {answer}", node.home.display());
    let reached = answer["height"].as_u64().unwrap_or(0);
    assert!(reached >= height, "{} ends at {reached}, below {height}", node.home.display());
}

/// The state of a stopped replica, from its own disk.
///
/// # Panics
/// If the export cannot be read.
#[track_caller]
#[must_use]
pub fn exported(node: &Node) -> BTreeMap<Vec<u8>, Stored> {
    let out = node.ledger("export", &[]).succeeds().stdout;
    let mut state = BTreeMap::new();
    for line in out.lines() {
        let entry: Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("export line {line:?}: {error}"));
        let Some(key) = entry["key"].as_str() else { continue };
        let value = entry["value"].as_str().unwrap_or_default().as_bytes().to_vec();
        let version = entry["version"].as_u64().expect("a version");
        let before = state.insert(key.as_bytes().to_vec(), Stored { value, version });
        assert!(before.is_none(), "{key} is exported twice");
    }
    state
}

#[track_caller]
fn contains(node: &Node, state: &BTreeMap<Vec<u8>, Stored>, acknowledged: &Acknowledged) {
    for (key, written) in &acknowledged.writes {
        let name = String::from_utf8_lossy(key);
        let stored = state.get(key).unwrap_or_else(|| {
            panic!(
                "{} lacks {name}, which was acknowledged at height {}",
                node.home.display(),
                written.height
            )
        });
        assert_eq!(stored.value, written.value, "{name} in {}", node.home.display());
        assert_eq!(stored.version, 1, "{name} in {} was written twice", node.home.display());
    }
    for (key, value) in &acknowledged.unknown {
        if let Some(stored) = state.get(key) {
            let name = String::from_utf8_lossy(key);
            assert_eq!((&stored.value, stored.version), (value, 1), "{name}, of unknown outcome");
        }
    }
}

/// No thread of this replica panicked in any of its lives.
///
/// # Panics
/// With the line that says so.
#[track_caller]
pub fn no_panic(node: &Node) {
    let log = node.log_text();
    let panic = log.lines().find(|line| line.contains("panicked"));
    assert!(panic.is_none(), "{}: {panic:?}", node.log.display());
}
