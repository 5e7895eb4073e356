//! What encoding and decoding cost: batches as they travel, votes as they are signed.

use conclave_benches::{batch, request};
use conclave_consensus::message::{Attestation, Batch, Checkpoint, CheckpointVote, SignedRequest};
use conclave_consensus::types::{Epoch, ReplicaId, Sequence};
use conclave_consensus::wire::{self, FRAME_BYTES_MAX};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::Signed;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn batches(criterion: &mut Criterion) {
    let key = SecretKey::from_seed([7; 32]);
    let mut group = criterion.benchmark_group("wire/batch of 512-byte puts");
    for count in [1, 32, 1024] {
        let sealed = batch(&key, count, 512);
        let bytes = sealed.bytes().to_vec();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(BenchmarkId::new("seal", count), &sealed, |b, sealed| {
            b.iter_batched(
                || sealed.requests.clone(),
                |requests| Batch::new(sealed.timestamp, false, None, requests),
                BatchSize::SmallInput,
            );
        });
        group.bench_with_input(BenchmarkId::new("decode", count), &bytes, |b, bytes| {
            b.iter(|| Batch::decode(black_box(bytes), FRAME_BYTES_MAX));
        });
    }
    group.finish();
}

fn requests(criterion: &mut Criterion) {
    let key = SecretKey::from_seed([7; 32]);
    let signed = request(&key, 1, 512);
    let bytes = wire::encode(&signed);
    let mut group = criterion.benchmark_group("wire/request of 512 bytes");
    group.bench_function("encode", |b| b.iter(|| wire::encode(black_box(&signed))));
    group.bench_function("decode", |b| {
        b.iter(|| SignedRequest::decode(black_box(&bytes), FRAME_BYTES_MAX));
    });
    group.finish();
}

fn votes(criterion: &mut Criterion) {
    let key = SecretKey::from_seed([7; 32]);
    let checkpoint = Checkpoint {
        epoch: Epoch(0),
        height: Sequence(128),
        header: Digest::ZERO,
        state_root: Digest::ZERO,
    };
    let vote = CheckpointVote { checkpoint, replica: ReplicaId(2) };
    let signed = Signed::sign(vote, &key, &Digest::ZERO);
    let bytes = wire::encode(&signed);
    let attestation = Attestation {
        epoch: Epoch(0),
        height: Sequence(7),
        header: Digest::ZERO,
        replica: ReplicaId(1),
    };
    let mut group = criterion.benchmark_group("wire/vote");
    group.bench_function("encode a signed checkpoint", |b| {
        b.iter(|| wire::encode(black_box(&signed)));
    });
    group.bench_function("decode a signed checkpoint", |b| {
        b.iter(|| wire::decode::<Signed<CheckpointVote>>(black_box(&bytes), 4096));
    });
    group.bench_function("sign an attestation", |b| {
        b.iter(|| Signed::sign(black_box(attestation.clone()), &key, &Digest::ZERO));
    });
    group.finish();
}

criterion_group!(benches, batches, requests, votes);
criterion_main!(benches);
