//! What an auditor does with a stopped replica's disk.

use conclave_node::storage::Kind;
use conclave_tests::{Cluster, Workload, audit};
use std::fs;
use std::path::{Path, PathBuf};

/// A cluster that wrote something and is stopped.
fn stopped() -> Cluster {
    let mut cluster = Cluster::start();
    let load = Workload::start(cluster.client_home(0), "load", 4);
    load.wait_for_more(150);
    let acknowledged = load.finish();
    audit::every_replica_has(&mut cluster, &acknowledged);
    cluster
}

#[test]
fn the_ledgers_of_all_replicas_verify_and_do_not_differ() {
    let cluster = stopped();
    let home = cluster.nodes[1].home.to_string_lossy().into_owned();
    let first = &cluster.nodes[0];
    first.ledger("diff", &["--other", &home]).succeeds();
    let exported = first.ledger("export", &[]).succeeds();
    assert!(exported.stdout.contains("load/0/0000000"), "the first write is not exported");
    let height = audit::verified(first, 1);
    assert_eq!(exported.stdout.lines().count() as u64, height, "a line for each block");
    let hash = |node: &conclave_tests::node::Node| {
        let shown = node.ledger("show", &["1", "-w", "json"]).succeeds().json();
        shown["hash"].as_str().expect("a hash").to_owned()
    };
    assert_eq!(hash(first), hash(&cluster.nodes[3]));
    let none = (height + 1).to_string();
    assert_ne!(first.ledger("show", &[&none]).code, 0, "a block above the tip is shown");
}

#[test]
fn what_a_ledger_leads_to_can_be_imported_by_another_cluster() {
    let old = stopped();
    let state = old.nodes[0].ledger("export", &["--state"]).succeeds().stdout;
    let file = old.scratch("state.jsonl");
    fs::write(&file, &state).expect("a scratch directory");
    let new = Cluster::start();
    new.conclave(0, &["import", &file.to_string_lossy()]).succeeds();
    let keys = new.conclave(0, &["get", "load/", "--prefix", "-w", "json"]).succeeds().json();
    let keys = keys["entries"].as_array().expect("entries");
    let exported = state.lines().filter(|line| line.contains("load/")).count();
    assert_eq!(keys.len(), exported);
    let line = |entry: &serde_json::Value| {
        let (key, value) = (&entry["key"], &entry["value"]);
        serde_json::json!({ "key": key, "value": value }).to_string()
    };
    assert!(keys.iter().all(|entry| state.contains(&line(entry))), "another value");
}

#[test]
fn a_replica_that_runs_keeps_its_ledger_to_itself() {
    let cluster = Cluster::start();
    let home = cluster.nodes[0].home.to_string_lossy().into_owned();
    let node = conclave_tests::binaries::conclave_node();
    let outcome = conclave_tests::command::run(&node, ["ledger", "verify", "--home", &home]);
    assert_ne!(outcome.code, 0, "{}", outcome.stdout);
    let outcome = conclave_tests::command::run(&node, ["start", "--home", &home]);
    assert_eq!(outcome.code, 6, "{}", outcome.stderr);
}

/// Every file that holds blocks: tables and blobs.
fn data_files(ledger: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(ledger)
        .expect("a ledger")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|e| e == "sst" || e == "blob"))
        .collect();
    files.sort();
    files
}

#[test]
fn a_flipped_byte_anywhere_in_a_ledger_is_found() {
    let cluster = stopped();
    let node = &cluster.nodes[2];
    let files = data_files(&Kind::Ledger.directory(&node.data()));
    assert!(!files.is_empty(), "a graceful stop flushes the ledger");
    for file in files {
        let good = fs::read(&file).expect("our own file");
        let mut bad = good.clone();
        // In the middle of the data: the ends of a file hold its own bookkeeping.
        let at = good.len() / 3;
        bad[at] ^= 0x40;
        fs::write(&file, &bad).expect("our own file");
        let outcome = node.ledger("verify", &["-w", "json"]);
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        assert_ne!(outcome.code, 0, "byte {at} of {name} was flipped: {}", outcome.stdout);
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        fs::write(&file, &good).expect("our own file");
    }
    audit::verified(node, 1);
}

/// Changes one row of a table of the ledger the way RocksDB itself would, checksums and all.
fn rewrite(ledger: &Path, table: &str, height: u64, change: impl FnOnce(&mut Vec<u8>)) {
    let options = rocksdb::Options::default();
    let families = rocksdb::DB::list_cf(&options, ledger).expect("an instance");
    let db = rocksdb::DB::open_cf(&options, ledger, families).expect("nobody else has it open");
    let family = db.cf_handle(table).expect("a table");
    let key = height.to_be_bytes();
    let mut row = db.get_cf(family, key).expect("a read").expect("a block at that height");
    change(&mut row);
    db.put_cf(family, key, row).expect("a write");
    db.flush_cf(family).expect("a write");
}

#[test]
fn a_block_rewritten_with_a_right_checksum_is_named() {
    let cluster = stopped();
    for (node, table) in cluster.nodes.iter().zip(["blocks", "bodies", "commits"]) {
        let ledger = Kind::Ledger.directory(&node.data());
        let height = 7;
        rewrite(&ledger, table, height, |row| {
            let at = row.len() / 2;
            row[at] ^= 1;
        });
        let outcome = node.ledger("verify", &["-w", "json"]).exits(1);
        let found = outcome.json();
        assert_eq!(found["ok"], false, "{table}: {found}");
        // A header's hash is in its successor: that is where the chain breaks at the latest.
        let bad = found["first_bad_height"].as_u64().expect("a height");
        assert!([height, height + 1].contains(&bad), "{table}: {found}");
        assert!(found["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{found}");
    }
}

#[test]
fn a_value_changed_in_the_state_alone_is_found() {
    let cluster = stopped();
    let node = &cluster.nodes[3];
    let ledger = Kind::Ledger.directory(&node.data());
    {
        let options = rocksdb::Options::default();
        let families = rocksdb::DB::list_cf(&options, &ledger).expect("an instance");
        let db = rocksdb::DB::open_cf(&options, &ledger, families).expect("ours alone");
        let family = db.cf_handle("store").expect("a table");
        let key = b"load/0/0000000";
        let mut row = db.get_cf(family, key).expect("a read").expect("it was written");
        let last = row.len() - 1;
        row[last] ^= 1;
        db.put_cf(family, key, row).expect("a write");
        db.flush_cf(family).expect("a write");
    }
    let found = node.ledger("verify", &["-w", "json"]).exits(1).json();
    assert_eq!(found["ok"], false, "{found}");
    let home = cluster.nodes[0].home.to_string_lossy().into_owned();
    let found = node.ledger("diff", &["--other", &home, "-w", "json"]).exits(1).json();
    assert_eq!(found["key"], "load/0/0000000", "{found}");
}
