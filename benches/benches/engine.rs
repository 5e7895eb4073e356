//! Instances per second of the protocol alone: n engines, no disk, no sockets, one core for all.
//!
//! Every frame is encoded and decoded with all its signatures, as between processes; a journal write
//! is done at once. One instance orders one request of 512 bytes, eight are in flight, and the work
//! of all n replicas counts.

use conclave_benches::put;
use conclave_consensus::engine::{Checkpointed, Committed, Effect, Engine, Input, To};
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::message::{LedgerTip, SignedRequest};
use conclave_consensus::pbft::{Pbft, PbftConfig};
use conclave_consensus::replica::{Replica, Step};
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, SessionId, Timestamp};
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::keys::SecretKey;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Message = <Pbft as Engine>::Message;

/// Instances under way at once: the genesis' default.
const IN_FLIGHT: u64 = 8;
const NOW: Timestamp = Timestamp(1_700_000_000_000);
const TICK_MS: u64 = 10;

fn replica_key(id: u16) -> SecretKey {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&id.to_le_bytes());
    SecretKey::from_seed(seed)
}

fn genesis(n: u16, client: &SecretKey) -> Genesis {
    let member = |id: u16| Member {
        id: ReplicaId(id),
        organization: "one".to_owned(),
        key: replica_key(id).public(),
        address: format!("127.0.0.1:{}", 7000 + id),
        client_address: format!("127.0.0.1:{}", 8000 + id),
    };
    Genesis {
        name: "bench".to_owned(),
        protocol: "pbft".to_owned(),
        // One request in a batch: beside others on their way batches would grow, and instances are what is counted.
        limits: Limits { batch_requests_max: 1, ..Limits::default() },
        organizations: vec!["one".to_owned()],
        membership: Membership { epoch: Epoch(0), first: 0, members: (0..n).map(member).collect() },
        clients: vec![ClientEntry {
            key: client.public(),
            organization: "one".to_owned(),
            role: Role::Writer,
            prefix: Vec::new(),
        }],
    }
}

/// One replica and a ledger that only hashes.
struct Node {
    replica: Replica<Pbft>,
    height: Sequence,
    header: Digest,
    marked: Timestamp,
}

/// All replicas and the frames between them, in order.
struct Network {
    interval: u64,
    nodes: Vec<Node>,
    frames: VecDeque<(u16, u16, Arc<Vec<u8>>)>,
    now_ms: u64,
}

impl Network {
    fn new(genesis: &Arc<Genesis>) -> Self {
        let cluster = genesis.cluster();
        let tip = || LedgerTip {
            height: Sequence(0),
            header: cluster,
            membership: genesis.membership.clone(),
            base: Sequence(0),
            stable: None,
            checkpoint: None,
            pending_epoch: None,
            epoch_ends: Vec::new(),
        };
        let mut network = Self {
            interval: genesis.limits.checkpoint_interval,
            nodes: Vec::new(),
            frames: VecDeque::new(),
            now_ms: 0,
        };
        let mut first_effects = Vec::new();
        for member in &genesis.membership.members {
            let config = PbftConfig {
                id: member.id,
                key: std::sync::Arc::new(replica_key(member.id.0)),
                genesis: genesis.clone(),
                seed: 1,
            };
            let journal =
                Pbft::initial_records().into_iter().map(|record| (record.slot, record.bytes));
            let (engine, effects) =
                Pbft::recover(config, journal.collect(), tip(), NOW).expect("a new journal");
            let replica = Replica::new(engine);
            first_effects.push(effects);
            let (height, header) = (Sequence(0), cluster);
            network.nodes.push(Node { replica, height, header, marked: NOW });
        }
        for (id, effects) in (0..).zip(first_effects) {
            let step = network.nodes[usize::from(id)].replica.order(effects);
            network.carry_out(id, step);
        }
        for id in 0..network.count() {
            for peer in (0..network.count()).filter(|peer| *peer != id) {
                network.input(id, Input::Connected(ReplicaId(peer)));
            }
        }
        // A replica asks its peers for its own votes before it casts the first.
        for _ in 0..300 {
            network.tick();
        }
        network
    }

    fn count(&self) -> u16 {
        u16::try_from(self.nodes.len()).expect("few")
    }

    fn tick(&mut self) {
        self.now_ms += TICK_MS;
        for id in 0..self.count() {
            let wall = Timestamp(NOW.0 + self.now_ms);
            self.input(id, Input::Tick { monotonic_ms: self.now_ms, wall });
        }
        self.deliver();
    }

    fn input(&mut self, id: u16, input: Input<Message>) {
        let step = self.nodes[usize::from(id)].replica.step([input]);
        self.carry_out(id, step);
    }

    fn carry_out(&mut self, id: u16, step: Step<Message>) {
        let mut ready = step.ready;
        if let Some(write) = step.write {
            ready.extend(self.nodes[usize::from(id)].replica.written(write.number));
        }
        for effect in ready {
            match effect {
                Effect::Send { to, message, .. } => self.send(id, to, &message),
                Effect::Commit(committed) => self.execute(id, &committed),
                Effect::Halt { reason } => panic!("replica {id} halted: {reason}"),
                Effect::Check(batch) => {
                    let valid =
                        self.nodes[usize::from(id)].replica.engine().horizon().check(&batch);
                    self.input(id, Input::Checked { batch: batch.digest(), valid });
                }
                Effect::Persist(_)
                | Effect::ReadReady { .. }
                | Effect::Stable(_)
                | Effect::EpochEnded(_)
                | Effect::Install(_)
                | Effect::Supply { .. }
                | Effect::Diverged(_)
                | Effect::RolledBack { .. }
                | Effect::Reject { .. }
                | Effect::Evidence(_) => {}
            }
        }
    }

    fn send(&mut self, from: u16, to: To, message: &Message) {
        let bytes = Arc::new(Pbft::encode(message));
        match to {
            To::One(id) => self.frames.push_back((from, id.0, bytes)),
            To::Others => {
                for id in (0..self.count()).filter(|id| *id != from) {
                    self.frames.push_back((from, id, bytes.clone()));
                }
            }
        }
    }

    fn execute(&mut self, id: u16, committed: &Committed) {
        let node = &mut self.nodes[usize::from(id)];
        assert_eq!(committed.sequence, node.height.next(), "in order");
        node.height = committed.sequence;
        node.header =
            digest("bench-header", &[node.header.as_bytes(), committed.batch.digest().as_bytes()]);
        let marked =
            committed.batch.checkpoint && committed.batch.timestamp.0 >= node.marked.0 + 1000;
        let input = if marked || node.height.0.is_multiple_of(self.interval) {
            node.marked = committed.batch.timestamp;
            Input::Checkpointed(Checkpointed {
                height: node.height,
                header: node.header,
                state_root: node.header,
                next: None,
            })
        } else {
            Input::Executed(node.height)
        };
        self.input(id, input);
    }

    /// Delivers frames until none is left.
    fn deliver(&mut self) {
        while let Some((from, to, bytes)) = self.frames.pop_front() {
            let from = ReplicaId(from);
            let horizon = self.nodes[usize::from(to)].replica.engine().horizon();
            // What is refused is a vote that came too late to count.
            if let Ok(message) = Pbft::decode(&horizon, from, &bytes) {
                self.input(to, Input::Message { from, message });
            }
        }
    }

    /// Orders each request in an instance of its own.
    fn order(&mut self, requests: Vec<SignedRequest>) {
        let target = Sequence(self.nodes[0].height.0 + requests.len() as u64);
        for request in requests {
            self.input(0, Input::Requests(vec![Arc::new(request)]));
        }
        self.deliver();
        for _ in 0..100 {
            if self.nodes.iter().all(|node| node.height >= target) {
                return;
            }
            // A full pipeline goes on with the next tick.
            self.tick();
        }
        let heights: Vec<_> = self.nodes.iter().map(|node| node.height.0).collect();
        panic!("{target} was not decided: {heights:?} {}", self.nodes[0].replica.engine());
    }
}

fn instances(criterion: &mut Criterion) {
    let client = SecretKey::from_seed([9; 32]);
    let mut group = criterion.benchmark_group("engine/instances");
    group.throughput(Throughput::Elements(IN_FLIGHT));
    group.sample_size(10);
    group.warm_up_time(Duration::from_secs(1));
    for n in [4, 7, 16, 31] {
        let genesis = Arc::new(genesis(n, &client));
        let cluster = genesis.cluster();
        let mut network = Network::new(&genesis);
        let mut number = 0;
        group.bench_function(BenchmarkId::new("n", n), |bench| {
            bench.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    let requests = (0..IN_FLIGHT).map(|_| {
                        number += 1;
                        put(&client, SessionId(1), number, 512, &cluster)
                    });
                    let requests = requests.collect();
                    let start = Instant::now();
                    network.order(requests);
                    spent += start.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, instances);
criterion_main!(benches);
