//! What one signature, one digest and one Merkle path cost.

use conclave_benches::request;
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::keys::SecretKey;
use conclave_crypto::merkle::{MerkleTree, merkle_leaf};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn signatures(criterion: &mut Criterion) {
    let key = SecretKey::from_seed([7; 32]);
    let verifying = key.verifying();
    let mut group = criterion.benchmark_group("crypto/ed25519");
    // A vote, and a request with a value of 512 bytes.
    for bytes in [128, 640] {
        let message = vec![3; bytes];
        let signature = key.sign(&message);
        group.bench_with_input(BenchmarkId::new("sign", bytes), &message, |b, message| {
            b.iter(|| key.sign(black_box(message)));
        });
        group.bench_with_input(BenchmarkId::new("verify", bytes), &message, |b, message| {
            b.iter(|| verifying.verify(black_box(message), &signature));
        });
    }
    group.bench_function("decompress a key", |b| {
        let public = key.public();
        b.iter(|| conclave_crypto::keys::VerifyingKey::try_from(black_box(&public)));
    });
    let cluster = Digest::ZERO;
    let keys = conclave_crypto::keys::KeyCache::default();
    let request = request(&key, 1, 512);
    group.bench_function("verify a request of 512 bytes", |b| {
        b.iter(|| black_box(&request).verify(&keys, &cluster));
    });
    group.finish();
}

fn digests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crypto/digest");
    for bytes in [64, 1 << 10, 1 << 20] {
        let input = vec![5; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::from_parameter(bytes), &input, |b, input| {
            b.iter(|| digest("bench", &[black_box(input)]));
        });
    }
    group.finish();
}

fn merkle(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crypto/merkle");
    for leaves in [32_u64, 1024] {
        let hashes: Vec<_> = (0..leaves).map(|n| merkle_leaf(&[&n.to_le_bytes()])).collect();
        group.throughput(Throughput::Elements(leaves));
        group.bench_with_input(BenchmarkId::new("tree", leaves), &hashes, |b, hashes| {
            b.iter(|| MerkleTree::new(black_box(hashes.clone())).root());
        });
        let tree = MerkleTree::new(hashes.clone());
        group.bench_with_input(BenchmarkId::new("all paths", leaves), &tree, |b, tree| {
            b.iter(|| (0..tree.count()).map(|i| tree.path(i)).collect::<Vec<_>>());
        });
        group.throughput(Throughput::Elements(1));
        let path = tree.path(tree.count() / 3);
        let leaf = hashes[tree.count() / 3];
        group.bench_function(BenchmarkId::new("check one path", leaves), |b| {
            b.iter(|| black_box(&path).root_of(leaf));
        });
    }
    group.finish();
}

criterion_group!(benches, signatures, digests, merkle);
criterion_main!(benches);
