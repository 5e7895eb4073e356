//! The RocksDB storage keeps the promises of the storage trait and says why it refuses.

#![allow(clippy::unwrap_used)]

use crate::support;

use conclave_consensus::memory_storage::MemoryStorage;
use conclave_consensus::storage::{Durability, Storage, Table, WriteBatch};
use conclave_crypto::digest::digest;
use conclave_node::storage::{FORMAT, Kind, OpenError, RocksStorage, SharedResources, holder};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{cluster, copy_directory, files, flip, live_log};

fn create(path: &Path) -> RocksStorage {
    RocksStorage::create(Kind::Ledger, path, &cluster(), &SharedResources::default()).unwrap()
}

fn open(path: &Path) -> Result<RocksStorage, OpenError> {
    RocksStorage::open(Kind::Ledger, path, &cluster(), &SharedResources::default())
}

fn put(storage: &RocksStorage, table: Table, key: &[u8], value: &[u8]) {
    let mut batch = WriteBatch::default();
    batch.put(table, key, value);
    storage.write(batch, Durability::Buffered).unwrap();
}

const TABLES: [Table; 4] = [Table::Store, Table::Bodies, Table::Dirty, Table::Meta];

fn random_key(random: &mut StdRng) -> Vec<u8> {
    let length = random.random_range(1..4);
    (0..length).map(|_| random.random_range(0..6)).collect()
}

fn random_batch(random: &mut StdRng) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for _ in 0..random.random_range(1..8) {
        let table = TABLES[random.random_range(0..TABLES.len())];
        let key = random_key(random);
        match random.random_range(0..10) {
            0 => batch.delete_range(table, key, random_key(random)),
            1..3 => batch.delete(table, key),
            _ => {
                let length = [3, 300, 3000][random.random_range(0..3)];
                batch.put(table, key, vec![random.random(); length]);
            }
        }
    }
    batch
}

fn assert_same_reads(random: &mut StdRng, rocks: &RocksStorage, model: &MemoryStorage) {
    // Before anything that brings to RocksDB what waits in front of it.
    for table in TABLES {
        let key = random_key(random);
        assert_eq!(rocks.get(table, &key).unwrap(), model.get(table, &key).unwrap());
    }
    if random.random_bool(0.7) {
        return;
    }
    let views = (rocks.snapshot().unwrap(), model.snapshot().unwrap());
    for table in TABLES {
        let (from, to) = (random_key(random), random_key(random));
        let to = random.random_bool(0.7).then_some(to.as_slice());
        let limit = random.random_range(0..40);
        assert_eq!(rocks.get(table, &from).unwrap(), model.get(table, &from).unwrap());
        assert_eq!(rocks.last(table, to).unwrap(), model.last(table, to).unwrap());
        let scan = model.scan(table, &from, to, limit).unwrap();
        assert_eq!(rocks.scan(table, &from, to, limit).unwrap(), scan);
        assert_eq!(views.0.scan(table, &from, to, limit).unwrap(), scan);
        assert_eq!(views.1.get(table, &from).unwrap(), views.0.get(table, &from).unwrap());
    }
}

#[test]
fn random_operations_read_the_same_as_in_memory_across_flushes_and_restarts() {
    for seed in 0..4 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger");
        let mut random = StdRng::seed_from_u64(seed);
        let model = MemoryStorage::new();
        let mut rocks = create(&path);
        for step in 0..400 {
            let batch = random_batch(&mut random);
            model.write(batch.clone(), Durability::Buffered).unwrap();
            rocks.write(batch, Durability::Buffered).unwrap();
            assert_same_reads(&mut random, &rocks, &model);
            if step % 97 == 96 {
                rocks.flush().unwrap();
            }
            if step % 131 == 130 {
                drop(rocks);
                rocks = open(&path).unwrap();
            }
        }
    }
}

#[test]
fn a_snapshot_shows_its_moment_and_outlives_the_storage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    let storage = create(&path);
    put(&storage, Table::Store, b"k", b"old");
    let snapshot = storage.snapshot().unwrap();
    put(&storage, Table::Store, b"k", b"new");
    put(&storage, Table::Store, b"l", b"new");
    storage.flush().unwrap();
    drop(storage);
    assert_eq!(snapshot.get(Table::Store, b"k").unwrap(), Some(b"old".to_vec()));
    let all = snapshot.scan(Table::Store, b"", None, 10).unwrap();
    assert_eq!(all, vec![(b"k".to_vec(), b"old".to_vec())]);
    // While it lives the instance is open; with it goes the lock.
    assert!(matches!(open(&path), Err(OpenError::Locked { .. })));
    drop(snapshot);
    assert_eq!(open(&path).unwrap().get(Table::Store, b"l").unwrap(), Some(b"new".to_vec()));
}

#[test]
fn a_kill_loses_at_most_the_last_writes_that_were_not_synced() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("ledger"), directory.path().join("killed"));
    let storage = create(&path);
    for n in 0u64..1000 {
        put(&storage, Table::Bodies, &n.to_be_bytes(), &[n as u8; 2000]);
        if n == 99 {
            storage.sync().unwrap();
            copy_directory(&path, &directory.path().join("synced"));
        }
    }
    copy_directory(&path, &copy);
    let left = |path: &Path| open(path).unwrap().scan(Table::Bodies, b"", None, 2000).unwrap();
    assert_eq!(left(&directory.path().join("synced")).len(), 100);
    let left = left(&copy);
    let in_order = (0u64..).zip(&left).all(|(n, (key, _))| *key == n.to_be_bytes());
    assert!(in_order, "a later write is there without an earlier one");
    assert!(left.len() >= 700, "{} are left: too much waits in memory", left.len());
    drop(storage);
    assert_eq!(open(&path).unwrap().scan(Table::Bodies, b"", None, 2000).unwrap().len(), 1000);
}

#[test]
fn an_instance_is_created_once_and_never_by_opening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    assert!(matches!(open(&path), Err(OpenError::Missing { .. })));
    assert!(!path.exists(), "opening must not create anything");
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(open(&path), Err(OpenError::Missing { .. })));
    drop(create(&path));
    let again = RocksStorage::create(Kind::Ledger, &path, &cluster(), &SharedResources::default());
    assert!(matches!(again, Err(OpenError::Exists { .. })));
    drop(open(&path).unwrap());
}

#[test]
fn a_creation_that_was_interrupted_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    let draft = directory.path().join("ledger.creating");
    std::fs::create_dir(&draft).unwrap();
    std::fs::write(draft.join("CURRENT"), "half").unwrap();
    drop(create(&path));
    assert!(!draft.exists());
    drop(open(&path).unwrap());
}

#[test]
fn another_clusters_instance_is_refused_and_both_clusters_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    drop(create(&path));
    let other = digest("cluster", &[b"another"]);
    let refused = RocksStorage::open(Kind::Ledger, &path, &other, &SharedResources::default());
    let Err(OpenError::OtherCluster { found, expected, .. }) = refused else {
        panic!("opened, or refused otherwise: {refused:?}")
    };
    assert_eq!((found, expected), (cluster(), other));
}

#[test]
fn a_ledger_is_not_taken_for_a_journal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    drop(create(&path));
    let as_journal =
        RocksStorage::open(Kind::Journal, &path, &cluster(), &SharedResources::default());
    assert!(as_journal.is_err());
}

#[test]
fn a_newer_format_is_refused_as_newer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    drop(create(&path));
    let families = rocksdb::DB::list_cf(&rocksdb::Options::default(), &path).unwrap();
    {
        let options = rocksdb::Options::default();
        let db = rocksdb::DB::open_cf(&options, &path, &families).unwrap();
        db.put(b"format", (FORMAT + 1).to_be_bytes()).unwrap();
    }
    assert!(matches!(open(&path), Err(OpenError::NewerFormat { .. })));
    {
        let options = rocksdb::Options::default();
        let mut db = rocksdb::DB::open_cf(&options, &path, &families).unwrap();
        db.put(b"format", FORMAT.to_be_bytes()).unwrap();
        db.create_cf("holograms", &options).unwrap();
    }
    assert!(matches!(open(&path), Err(OpenError::NewerFormat { .. })));
}

#[test]
fn an_instance_in_use_is_refused_with_its_holder() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    let storage = create(&path);
    assert!(matches!(open(&path), Err(OpenError::Locked { .. })));
    let read_only = RocksStorage::open_read_only(Kind::Ledger, &path, &SharedResources::default());
    assert!(matches!(read_only, Err(OpenError::Locked { .. })));
    assert_eq!(holder(&path), Some(format!("process {}", std::process::id())));
    drop(storage);
    assert_eq!(holder(&path), None);
    drop(open(&path).unwrap());
}

#[test]
fn a_read_only_instance_finds_values_in_blob_files_after_a_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    let storage = create(&path);
    for n in 0u64..50 {
        put(&storage, Table::Bodies, &n.to_be_bytes(), &[n as u8; 5000]);
        put(&storage, Table::Store, &n.to_be_bytes(), &[n as u8; 50]);
    }
    storage.flush().unwrap();
    put(&storage, Table::Bodies, &50u64.to_be_bytes(), &[50; 5000]);
    drop(storage);
    assert!(!files(&path, &[".blob"]).is_empty(), "bodies lie in blob files");
    let before = files(&path, &["."]);
    let (storage, found) =
        RocksStorage::open_read_only(Kind::Ledger, &path, &SharedResources::default()).unwrap();
    assert_eq!(found, cluster());
    for n in 0u64..51 {
        let body = storage.get(Table::Bodies, &n.to_be_bytes()).unwrap();
        assert_eq!(body, Some(vec![n as u8; 5000]), "body {n}");
    }
    let mut batch = WriteBatch::default();
    batch.put(Table::Store, b"k".as_slice(), b"v".as_slice());
    assert!(storage.write(batch, Durability::Buffered).is_err(), "read-only");
    drop(storage);
    assert_eq!(files(&path, &["."]), before, "no file came or went");
}

#[test]
fn a_flipped_byte_is_an_error_and_never_another_value() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    let storage = create(&path);
    for n in 0u64..200 {
        put(&storage, Table::Bodies, &n.to_be_bytes(), &[n as u8; 1500]);
        put(&storage, Table::Store, &n.to_be_bytes(), &n.to_le_bytes().repeat(40));
    }
    storage.flush().unwrap();
    drop(storage);
    for file in files(&path, &[".sst", ".blob"]) {
        let length = std::fs::metadata(&file).unwrap().len() as usize;
        for part in 1..8 {
            let copy = directory.path().join("flipped");
            copy_directory(&path, &copy);
            flip(&copy.join(file.file_name().unwrap()), length * part / 8);
            assert_reads_right_or_refuses(&copy);
            std::fs::remove_dir_all(&copy).unwrap();
        }
    }
}

fn assert_reads_right_or_refuses(path: &Path) {
    let Ok(storage) = open(path) else { return };
    for n in 0u64..200 {
        if let Ok(body) = storage.get(Table::Bodies, &n.to_be_bytes()) {
            assert_eq!(body, Some(vec![n as u8; 1500]));
        }
        if let Ok(value) = storage.get(Table::Store, &n.to_be_bytes()) {
            assert_eq!(value, Some(n.to_le_bytes().repeat(40)));
        }
    }
}

#[test]
fn a_garbled_ledger_log_is_cut_for_a_node_and_reported_to_an_inspection() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("ledger"), directory.path().join("killed"));
    let storage = create(&path);
    for n in 0u64..100 {
        put(&storage, Table::Bodies, &n.to_be_bytes(), &[n as u8; 2000]);
        storage.sync().unwrap();
    }
    copy_directory(&path, &copy);
    let log = live_log(&copy);
    flip(&log, std::fs::metadata(&log).unwrap().len() as usize / 2);
    let inspected = RocksStorage::open_read_only(Kind::Ledger, &copy, &SharedResources::default());
    assert!(matches!(inspected, Err(OpenError::Corrupt { .. })), "{inspected:?}");
    let cut = open(&copy).unwrap().scan(Table::Bodies, b"", None, 1000).unwrap();
    assert!((1..100).contains(&cut.len()), "a prefix is left: {}", cut.len());
}

#[test]
fn a_missing_file_is_damage_and_not_a_fresh_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    let storage = create(&path);
    put(&storage, Table::Store, b"k", b"v");
    storage.flush().unwrap();
    drop(storage);
    for ending in ["CURRENT", "MANIFEST", ".sst"] {
        let copy = directory.path().join("damaged");
        copy_directory(&path, &copy);
        std::fs::remove_file(files(&copy, &[ending]).pop().unwrap()).unwrap();
        let opened = open(&copy);
        assert!(matches!(opened, Err(OpenError::Corrupt { .. })), "{ending}: {opened:?}");
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn each_ledger_batch_records_the_journals_number() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger");
    let mut storage = create(&path);
    assert_eq!(storage.recorded_journal_number().unwrap(), 0);
    let number = Arc::new(AtomicU64::new(7));
    storage.record_journal_number(Arc::clone(&number));
    put(&storage, Table::Store, b"k", b"v");
    storage.sync().unwrap();
    number.store(9, Ordering::Release);
    assert_eq!(storage.recorded_journal_number().unwrap(), 7);
    put(&storage, Table::Store, b"k", b"w");
    drop(storage);
    assert_eq!(open(&path).unwrap().recorded_journal_number().unwrap(), 9);
}

#[test]
fn both_instances_share_one_budget_of_memory() {
    let directory = tempfile::tempdir().unwrap();
    let resources = SharedResources::default();
    let open = |kind: Kind| {
        let path = kind.directory(directory.path());
        RocksStorage::create(kind, &path, &cluster(), &resources).unwrap()
    };
    let (journal, ledger) = (open(Kind::Journal), open(Kind::Ledger));
    let value = vec![7u8; 256 << 10];
    for n in 0u64..1200 {
        let mut batch = WriteBatch::default();
        batch.put(Table::Journal, (n % 300).to_be_bytes(), value.as_slice());
        journal.write(batch, Durability::Buffered).unwrap();
        put(&ledger, Table::Bodies, &n.to_be_bytes(), &value);
        let used = journal.usage().unwrap().memtable_bytes + ledger.usage().unwrap().memtable_bytes;
        assert!(used < 200 << 20, "{used} bytes of unflushed writes");
    }
}
