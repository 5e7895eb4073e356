//! What the micro-benchmarks share: requests and batches of the sizes that the cluster benchmark sends.
//!
//! Run all with `make bench`, one with `make bench BENCH=engine`. They are built with the release
//! profile (`cargo bench --profile release`), because cargo's own profile for benchmarks would
//! build RocksDB a second time.

use conclave_consensus::kv::{Operation, Transaction};
use conclave_consensus::message::{Batch, Request, RequestBody, SignedRequest};
use conclave_consensus::types::{RequestNumber, SessionId, Timestamp};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use std::sync::Arc;

/// A signed put of a value of `bytes` bytes, the `number`th of session 1, for the cluster
/// [`Digest::ZERO`].
#[must_use]
pub fn request(key: &SecretKey, number: u64, bytes: usize) -> SignedRequest {
    put(key, SessionId(1), number, bytes, &Digest::ZERO)
}

/// A signed put in a session of a cluster. Keys repeat after 100,000 numbers.
#[must_use]
pub fn put(
    key: &SecretKey,
    session: SessionId,
    number: u64,
    bytes: usize,
    cluster: &Digest,
) -> SignedRequest {
    let name = format!("bench/{:06}", number % 100_000);
    let put = Operation::Put { key: name.into_bytes(), value: vec![b'v'; bytes] };
    let transaction = Transaction { then: vec![put], ..Transaction::default() };
    let body = RequestBody::Submit {
        session,
        number: RequestNumber(number),
        acknowledged: RequestNumber(number.saturating_sub(1024)),
        operations: wire::encode(&transaction),
    };
    SignedRequest::sign(&Request { client: key.public(), body }, key, cluster)
}

/// A batch of `count` signed puts of `bytes` bytes each.
#[must_use]
pub fn batch(key: &SecretKey, count: u64, bytes: usize) -> Batch {
    let requests = (1..=count).map(|n| Arc::new(request(key, n, bytes))).collect();
    Batch::new(Timestamp(1_700_000_000_000), false, None, requests)
}
