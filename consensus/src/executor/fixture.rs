//! A small cluster's genesis and blocks for it, for the tests of this crate.

use super::{Executed, Executor};
use crate::client_wire::Outcome;
use crate::engine::{Checkpointed, Committed};
use crate::kv::{Answer, KeyValueStore, Transaction};
use crate::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use crate::memory_storage::MemoryStorage;
use crate::message::{
    Batch, Change, Checkpoint, CheckpointCertificate, CheckpointVote, Rejoin, Request, RequestBody,
    SignedRequest,
};
use crate::storage::{Storage, Table, WriteBatch};
use crate::types::{Epoch, ReplicaId, RequestNumber, Sequence, SessionId, Timestamp};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::Signed;
use std::sync::Arc;

pub(crate) type Ledger = Executor<MemoryStorage, KeyValueStore>;

/// The clients of the fixture's genesis.
pub(crate) const ADMIN: u8 = 100;
pub(crate) const WRITER: u8 = 101;
pub(crate) const READER: u8 = 102;
pub(crate) const STRANGER: u8 = 103;

pub(crate) fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

/// Four replicas with K = 4, an admin, a writer under `w/`, and a reader.
pub(crate) fn genesis() -> Genesis {
    let member = |id: u8| Member {
        id: ReplicaId(id.into()),
        organization: format!("organization-{id}"),
        key: key(id).public(),
        address: format!("127.0.0.1:{}", 1000 + u16::from(id)),
        client_address: format!("127.0.0.1:{}", 2000 + u16::from(id)),
    };
    let client = |seed: u8, role: Role, prefix: &str| ClientEntry {
        key: key(seed).public(),
        organization: "organization-0".to_owned(),
        role,
        prefix: prefix.into(),
    };
    let mut clients = vec![
        client(ADMIN, Role::Admin, ""),
        client(WRITER, Role::Writer, "w/"),
        client(READER, Role::Reader, ""),
    ];
    clients.sort_by_key(|client| client.key);
    Genesis {
        name: "fixture".to_owned(),
        protocol: "pbft".to_owned(),
        limits: Limits { checkpoint_interval: 4, window: 8, ..Limits::default() },
        organizations: (0..4).map(|id| format!("organization-{id}")).collect(),
        membership: Membership { epoch: Epoch(0), first: 0, members: (0..4).map(member).collect() },
        clients,
    }
}

pub(crate) fn open(storage: &Arc<MemoryStorage>) -> Ledger {
    let executor =
        Executor::open(storage.clone(), KeyValueStore, &genesis(), ReplicaId(0), Arc::new(key(0)));
    executor.expect("the fixture's ledger opens")
}

pub(crate) fn sign(seed: u8, body: RequestBody) -> Arc<SignedRequest> {
    let key = key(seed);
    let request = Request { client: key.public(), body };
    Arc::new(SignedRequest::sign(&request, &key, &genesis().cluster()))
}

pub(crate) fn open_session(seed: u8, opened: u64, close: Option<u64>) -> Arc<SignedRequest> {
    let close = close.map(SessionId);
    sign(seed, RequestBody::OpenSession { opened, close, nonce: [7; 16] })
}

pub(crate) fn submit(
    seed: u8,
    (session, number, acknowledged): (u64, u64, u64),
    transaction: &Transaction,
) -> Arc<SignedRequest> {
    sign(
        seed,
        RequestBody::Submit {
            session: SessionId(session),
            number: RequestNumber(number),
            acknowledged: RequestNumber(acknowledged),
            operations: transaction.encode(),
        },
    )
}

/// Block `height` of epoch 0 at this time.
pub(crate) fn block(height: u64, time: u64, requests: Vec<Arc<SignedRequest>>) -> Committed {
    committed(height, Batch::new(Timestamp(time), false, None, requests))
}

pub(crate) fn committed(height: u64, batch: Batch) -> Committed {
    Committed {
        sequence: Sequence(height),
        epoch: Epoch(0),
        batch: Arc::new(batch),
        certificate: vec![height as u8; 3],
    }
}

pub(crate) fn rejoin(replica: u8, epoch: u64, nonce: u8) -> Change {
    let value = Rejoin {
        epoch: Epoch(epoch),
        replica: ReplicaId(replica.into()),
        nonce: Digest::from_bytes([nonce; 32]),
    };
    Change::Rejoin(Signed::sign(value, &key(replica), &genesis().cluster()))
}

/// Executes a block that must be new.
pub(crate) fn run(executor: &mut Ledger, block: Committed) -> Executed {
    executor.execute(block).unwrap().expect("the block is new")
}

/// Executes a block and its checkpoint job, if it has one.
pub(crate) fn run_with_checkpoint(
    executor: &mut Ledger,
    storage: &MemoryStorage,
    block: Committed,
) -> (Executed, Option<Checkpointed>) {
    let executed = run(executor, block);
    let done = executed.checkpoint.as_ref().map(|job| job.run(storage).unwrap().unwrap());
    (executed, done)
}

/// What a replica vouches for after this job.
pub(crate) fn checkpoint(epoch: u64, done: &Checkpointed) -> Checkpoint {
    let Checkpointed { height, header, state_root, .. } = *done;
    Checkpoint { epoch: Epoch(epoch), height, header, state_root }
}

/// A quorum's certificate of this checkpoint.
pub(crate) fn certify(checkpoint: &Checkpoint) -> CheckpointCertificate {
    let vote = |id: u8| {
        let replica = ReplicaId(id.into());
        let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica };
        (replica, Signed::sign(vote, &key(id), &genesis().cluster()).signature)
    };
    let signatures = (0..3).map(vote).collect();
    CheckpointCertificate { signatures, checkpoint: checkpoint.clone() }
}

pub(crate) fn outcomes(executed: &Executed) -> Vec<Outcome> {
    let decode = |bytes: &[u8]| wire::decode(bytes, wire::FRAME_BYTES_MAX).unwrap();
    executed.results.iter().map(|result| decode(&result.outcome)).collect()
}

pub(crate) fn answer(outcome: &Outcome) -> Answer {
    match outcome {
        Outcome::Executed(bytes) => Answer::decode(bytes).unwrap(),
        Outcome::Opened { .. } | Outcome::Duplicate { .. } | Outcome::Refused(_) => {
            panic!("not executed: {outcome:?}")
        }
    }
}

/// Everything in the replicated tables and the trie.
pub(crate) fn state(storage: &MemoryStorage) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
    let tables = Table::REPLICATED.into_iter().chain([Table::Trie]);
    tables
        .flat_map(|table| {
            let rows = storage.scan(table, b"", None, usize::MAX).unwrap();
            rows.into_iter().map(move |(key, value)| (table, key, value))
        })
        .collect()
}

/// A ledger of some blocks with all checkpoints stable: what others serve.
pub(crate) fn served(blocks: u64) -> (Arc<MemoryStorage>, Ledger) {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    for height in 1..=blocks {
        let requests = match height {
            1 => vec![open_session(ADMIN, 0, None)],
            _ => vec![submit(ADMIN, (1, height, 0), &Transaction::put(format!("k{height}"), "v"))],
        };
        let (_, done) =
            run_with_checkpoint(&mut executor, &storage, block(height, height, requests));
        if let Some(done) = done {
            executor.stable(&certify(&checkpoint(0, &done))).unwrap();
        }
    }
    (storage, executor)
}

/// What a transfer of this storage's state writes.
fn swap(from: &MemoryStorage) -> WriteBatch {
    let mut swap = WriteBatch::default();
    for table in Table::REPLICATED.into_iter().chain([Table::Trie]) {
        swap.delete_range(table, [], [u8::MAX; 65]);
    }
    for (table, key, value) in state(from) {
        swap.put(table, key, value);
    }
    swap
}

pub(crate) fn install(
    executor: &mut Ledger,
    from: &MemoryStorage,
    certificate: &CheckpointCertificate,
) -> bool {
    let header = crate::ledger::header(from, certificate.checkpoint.height).unwrap().unwrap();
    executor.install(&header, certificate, swap(from)).unwrap()
}
