//! A ledger in memory, for tests.

use conclave_consensus::engine::Committed;
use conclave_consensus::executor::Executor;
use conclave_consensus::kv::{KeyValueStore, Transaction};
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::memory_storage::MemoryStorage;
use conclave_consensus::message::{Batch, Request, RequestBody, SignedRequest};
use conclave_consensus::types::{Epoch, ReplicaId, RequestNumber, Sequence, SessionId, Timestamp};
use conclave_crypto::keys::SecretKey;
use std::sync::Arc;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

/// Four replicas and a client.
pub(crate) fn genesis() -> Genesis {
    let member = |id: u8| Member {
        id: ReplicaId(id.into()),
        organization: "acme".to_owned(),
        key: key(id).public(),
        address: format!("127.0.0.1:{}", 1000 + u16::from(id)),
        client_address: format!("127.0.0.1:{}", 2000 + u16::from(id)),
    };
    let client = ClientEntry {
        key: key(100).public(),
        organization: "acme".to_owned(),
        role: Role::Admin,
        prefix: Vec::new(),
    };
    Genesis {
        name: "fixture".to_owned(),
        protocol: "pbft".to_owned(),
        limits: Limits::default(),
        organizations: vec!["acme".to_owned()],
        membership: Membership { epoch: Epoch(0), first: 0, members: (0..4).map(member).collect() },
        clients: vec![client],
    }
}

/// A ledger of so many blocks, each of which puts a value of this length.
pub(crate) fn ledger(blocks: u64, length: usize) -> Executor<MemoryStorage, KeyValueStore> {
    let genesis = genesis();
    let storage = Arc::new(MemoryStorage::new());
    let own = Arc::new(key(0));
    let mut executor = Executor::open(storage, KeyValueStore, &genesis, ReplicaId(0), own).unwrap();
    for height in 1..=blocks {
        let body = RequestBody::Submit {
            session: SessionId(1),
            number: RequestNumber(height),
            acknowledged: RequestNumber(0),
            operations: Transaction::put("k", vec![7; length]).encode(),
        };
        let request = Request { client: key(100).public(), body };
        let request = Arc::new(SignedRequest::sign(&request, &key(100), &genesis.cluster()));
        let batch = Arc::new(Batch::new(Timestamp(height), false, None, vec![request]));
        let certificate = vec![1; 3];
        let (sequence, epoch) = (Sequence(height), Epoch(0));
        executor.execute(Committed { sequence, epoch, batch, certificate }).unwrap();
    }
    executor
}
