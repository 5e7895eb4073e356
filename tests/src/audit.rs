//! After a test: is every acknowledged write in the ledger of every replica, once?
//!
//! The replicas are stopped and each ledger is read from its own disk, so that a replica which
//! answered from memory, or let others answer for it, is found out.

use crate::cluster::Cluster;
use crate::node::Node;
use crate::wait;
use crate::workload::Acknowledged;
use conclave_consensus::kv;
use conclave_consensus::storage::{Storage as _, Table};
use conclave_node::storage::{Kind, RocksStorage, SharedResources};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Far above what it takes to verify one block.
const PER_BLOCK: Duration = Duration::from_millis(2);

/// A key as one replica's ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its value.
    pub value: Vec<u8>,
    /// How often it was written.
    pub version: u64,
}

/// What one replica's disk holds.
#[derive(Debug)]
pub struct Ledger {
    /// Header and results of each block, by height.
    pub blocks: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The key-value store.
    pub state: BTreeMap<Vec<u8>, Stored>,
}

/// Waits until all is quiet, stops the replicas, and checks each ledger: it verifies, its
/// blocks are those of the others, its state is the same, and it has every acknowledged write.
///
/// # Panics
/// With what is missing or differs.
#[track_caller]
pub fn every_replica_has(cluster: &mut Cluster, acknowledged: &Acknowledged) {
    cluster.start_all();
    every_running_replica_has(cluster, acknowledged);
}

/// As [`every_replica_has`], of those that run: a traitor that was killed is not asked.
///
/// # Panics
/// With what is missing or differs.
#[track_caller]
pub fn every_running_replica_has(cluster: &mut Cluster, acknowledged: &Acknowledged) {
    let asked: Vec<usize> =
        (0..cluster.nodes.len()).filter(|id| cluster.nodes[*id].is_running()).collect();
    cluster.wait_ready();
    cluster.wait_settled(acknowledged.height());
    cluster.stop_all();
    let asked = || asked.iter().map(|id| &cluster.nodes[*id]);
    let mut first: Option<(&Node, Ledger)> = None;
    for node in asked() {
        no_panic(node);
        let ledger = read(node);
        contains(node, &ledger.state, acknowledged);
        match &first {
            None => first = Some((node, ledger)),
            Some((known, first)) => same(known, first, node, &ledger),
        }
    }
    for node in asked() {
        verified(node, acknowledged.height());
    }
    println!(
        "{} acknowledged writes found in {} ledgers ({} outcomes unknown)",
        acknowledged.writes.len(),
        asked().count(),
        acknowledged.unknown.len()
    );
}

/// Two ledgers have the same blocks, where both have one, and the same state.
#[track_caller]
fn same(node: &Node, ledger: &Ledger, other_node: &Node, other: &Ledger) {
    let (home, other_home) = (node.home.display(), other_node.home.display());
    let common = ledger.blocks.iter().filter(|(height, _)| other.blocks.contains_key(*height));
    let mut count = 0;
    for (height, block) in common {
        assert_eq!(Some(block), other.blocks.get(height), "{home} and {other_home}: {height:?}");
        count += 1;
    }
    assert!(count > 0, "{home} and {other_home} have no block in common");
    let differing = ledger.state.iter().find(|(key, value)| other.state.get(*key) != Some(value));
    assert!(differing.is_none(), "{home} and {other_home} differ: {differing:?}");
    assert_eq!(ledger.state.len(), other.state.len(), "keys of {home} and {other_home}");
}

/// `ledger verify` accepts this ledger, which reaches `height` at least. Says how far.
///
/// # Panics
/// With its complaint.
#[track_caller]
pub fn verified(node: &Node, height: u64) -> u64 {
    // A block holds one write at least.
    let limit = wait::DEADLINE + PER_BLOCK * u32::try_from(height).unwrap_or(u32::MAX);
    let answer = node.ledger_within(limit, "verify", &["-w", "json"]).succeeds().json();
    assert_eq!(answer["ok"], Value::Bool(true), "{}: {answer}", node.home.display());
    let reached = answer["height"].as_u64().unwrap_or(0);
    assert!(reached >= height, "{} ends at {reached}, below {height}", node.home.display());
    reached
}

/// Reads a stopped replica's disk.
///
/// # Panics
/// If it cannot be read.
#[track_caller]
#[must_use]
pub fn read(node: &Node) -> Ledger {
    let path = Kind::Ledger.directory(&node.data());
    let (storage, _) =
        RocksStorage::open_read_only(Kind::Ledger, &path, &SharedResources::default())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let rows = |table| {
        storage
            .scan(table, &[], None, usize::MAX)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let state = rows(Table::Store).into_iter().map(|(key, row)| {
        let stored = kv::Stored::parse(&row).unwrap_or_else(|error| panic!("{error}"));
        (key, Stored { value: stored.value.to_vec(), version: stored.version })
    });
    Ledger { blocks: rows(Table::Blocks).into_iter().collect(), state: state.collect() }
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
