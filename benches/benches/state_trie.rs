//! What a checkpoint's root costs: folding changed rows into a trie of many.

use conclave_consensus::memory_storage::MemoryStorage;
use conclave_consensus::state_trie::{self, DirtyLeaf};
use conclave_consensus::storage::{Durability, Storage, Table};
use conclave_crypto::digest::Digest;
use conclave_node::storage::{Kind, RocksStorage, SharedResources};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::{RngExt as _, SeedableRng as _};

/// Rows in the trie.
const ROWS: u32 = 100_000;
/// Rows that changed since the last checkpoint.
const CHANGES: usize = 1_000;

fn row(number: u32, version: u32) -> (Digest, DirtyLeaf) {
    let key = format!("bench/{number:06}").into_bytes();
    let value = [number.to_le_bytes(), version.to_le_bytes()].concat();
    (state_trie::path(Table::Store, &key), DirtyLeaf::new(Table::Store, &key, Some(&value)))
}

/// A thousand rows somewhere among all, each with a new value.
fn changes(random: &mut rand::rngs::StdRng) -> Vec<(Digest, DirtyLeaf)> {
    (0..CHANGES).map(|_| row(random.random_range(0..ROWS), random.random())).collect()
}

fn fill(storage: &dyn Storage) {
    let snapshot = storage.snapshot().expect("a snapshot");
    let rows = (0..ROWS).map(|number| row(number, 0));
    let (_, batch) = state_trie::update(&*snapshot, rows).expect("an update");
    storage.write(batch, Durability::Buffered).expect("a write");
}

fn update_of(criterion: &mut Criterion, name: &str, storage: &dyn Storage) {
    fill(storage);
    let mut group = criterion.benchmark_group("state trie");
    group.throughput(Throughput::Elements(CHANGES as u64));
    group.sample_size(20);
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let id = BenchmarkId::new("1,000 of 100,000 rows", name);
    group.bench_function(id, |bench| {
        bench.iter_batched(
            || changes(&mut random),
            |changes| {
                let snapshot = storage.snapshot().expect("a snapshot");
                let (root, batch) = state_trie::update(&*snapshot, changes).expect("an update");
                storage.write(batch, Durability::Buffered).expect("a write");
                root
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn update(criterion: &mut Criterion) {
    update_of(criterion, "memory", &MemoryStorage::new());
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ledger");
    let resources = SharedResources::default();
    let storage =
        RocksStorage::create(Kind::Ledger, &path, &Digest::ZERO, &resources).expect("a new ledger");
    update_of(criterion, "RocksDB", &storage);
}

criterion_group!(benches, update);
criterion_main!(benches);
