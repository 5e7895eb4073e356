//! What execution costs: blocks of 32 signed puts into a ledger on RocksDB, attested and answered.

use conclave_benches::put;
use conclave_consensus::client_wire::Outcome;
use conclave_consensus::engine::Committed;
use conclave_consensus::executor::Executor;
use conclave_consensus::kv::KeyValueStore;
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::message::{Batch, Request, RequestBody, SignedRequest};
use conclave_consensus::types::{Epoch, ReplicaId, SessionId, Timestamp};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_node::storage::{Kind, RocksStorage, SharedResources};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests of a block.
const REQUESTS: u64 = 32;
const NOW: u64 = 1_700_000_000_000;

fn genesis(replicas: &[SecretKey], client: &SecretKey) -> Genesis {
    let member = |(id, key): (u16, &SecretKey)| Member {
        id: ReplicaId(id),
        organization: "one".to_owned(),
        key: key.public(),
        address: format!("127.0.0.1:{}", 7000 + id),
        client_address: format!("127.0.0.1:{}", 8000 + id),
    };
    Genesis {
        name: "bench".to_owned(),
        protocol: "pbft".to_owned(),
        limits: Limits::default(),
        organizations: vec!["one".to_owned()],
        membership: Membership {
            epoch: Epoch(0),
            first: 0,
            members: (0..).zip(replicas).map(member).collect(),
        },
        clients: vec![ClientEntry {
            key: client.public(),
            organization: "one".to_owned(),
            role: Role::Writer,
            prefix: Vec::new(),
        }],
    }
}

struct Ledger {
    executor: Executor<RocksStorage, KeyValueStore>,
    storage: Arc<RocksStorage>,
    client: SecretKey,
    cluster: Digest,
    session: SessionId,
    number: u64,
}

impl Ledger {
    fn new(path: &std::path::Path) -> Self {
        let replicas: Vec<_> = (0..4).map(|id| SecretKey::from_seed([10 + id; 32])).collect();
        let client = SecretKey::from_seed([9; 32]);
        let genesis = genesis(&replicas, &client);
        let cluster = genesis.cluster();
        let resources = SharedResources::default();
        let storage = RocksStorage::create(Kind::Ledger, path, &cluster, &resources);
        let storage = Arc::new(storage.expect("a new ledger"));
        let key = Arc::new(SecretKey::from_seed([10; 32]));
        let executor = Executor::open(storage.clone(), KeyValueStore, &genesis, ReplicaId(0), key)
            .expect("a new ledger");
        let mut ledger =
            Self { executor, storage, client, cluster, session: SessionId(0), number: 0 };
        let open = RequestBody::OpenSession { opened: 0, close: None, nonce: [1; 16] };
        let request = Request { client: ledger.client.public(), body: open };
        let request = SignedRequest::sign(&request, &ledger.client, &cluster);
        let committed = ledger.committed(vec![Arc::new(request)]);
        let executed = ledger.executor.execute(committed).expect("storage").expect("executed");
        let outcome: Outcome =
            wire::decode(&executed.results[0].outcome, wire::FRAME_BYTES_MAX).expect("an outcome");
        let Outcome::Opened { session } = outcome else { panic!("no session: {outcome:?}") };
        ledger.session = session;
        ledger
    }

    fn committed(&self, requests: Vec<Arc<SignedRequest>>) -> Committed {
        let sequence = self.executor.height().next();
        let batch = Batch::new(Timestamp(NOW + sequence.0), false, None, requests);
        Committed { sequence, epoch: Epoch(0), batch: Arc::new(batch), certificate: vec![0; 700] }
    }

    fn block(&mut self) -> Committed {
        let requests = (0..REQUESTS).map(|_| {
            self.number += 1;
            Arc::new(put(&self.client, self.session, self.number, 512, &self.cluster))
        });
        let requests = requests.collect();
        self.committed(requests)
    }
}

/// Checkpoints included, as they fall: one block of 128 brings the trie up and syncs.
fn blocks(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut ledger = Ledger::new(&directory.path().join("ledger"));
    let mut group = criterion.benchmark_group("ledger");
    group.throughput(Throughput::Elements(REQUESTS));
    let positions: Vec<usize> = (0..REQUESTS as usize).collect();
    group.bench_function("blocks of 32 puts of 512 bytes", |bench| {
        bench.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                let committed = ledger.block();
                let start = Instant::now();
                let executed = ledger.executor.execute(committed).expect("storage");
                let executed = executed.expect("executed");
                let replies = ledger.executor.replies(&executed, &positions);
                if let Some(job) = executed.checkpoint {
                    job.run(&*ledger.storage).expect("storage");
                }
                spent += start.elapsed();
                drop(replies);
            }
            spent
        });
    });
    group.finish();
}

criterion_group!(benches, blocks);
criterion_main!(benches);
