//! Replicas, their journals, and the wires between them.

use super::Ledger;
use conclave_consensus::engine::{Committed, Effect, Engine, Evidence, Input, Reject, Slot, To};
use conclave_consensus::membership::{ClientEntry, Genesis, Limits, Member, Membership, Role};
use conclave_consensus::message::{Batch, Change, Rejoin, Request, RequestBody, SignedRequest};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::pbft::{Pbft, PbftConfig};
use conclave_consensus::replica::{JournalWrite, Replica, Step, WriteNumber};
use conclave_consensus::types::{Epoch, ReplicaId, RequestNumber, Sequence, SessionId, Timestamp};
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::keys::SecretKey;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub const TICK_MS: u64 = 10;
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// How messages travel.
#[derive(Clone, Debug)]
pub struct Wires {
    pub delay_ms: (u64, u64),
    /// In thousands.
    pub loss: u32,
    pub duplicate: u32,
    /// How long a sync takes.
    pub sync_ms: (u64, u64),
    /// Pairs (from, to) that do not hear each other.
    pub cut: BTreeSet<(u16, u16)>,
}

impl Default for Wires {
    fn default() -> Self {
        Self { delay_ms: (1, 3), loss: 0, duplicate: 0, sync_ms: (1, 2), cut: BTreeSet::new() }
    }
}

#[derive(Clone, Default)]
pub struct Disk {
    pub journal: BTreeMap<Slot, Vec<u8>>,
}

impl Disk {
    fn apply(&mut self, write: &JournalWrite) {
        for record in &write.records {
            self.journal.insert(record.slot, record.bytes.clone());
        }
    }
}

pub struct Node {
    pub id: u16,
    pub replica: Replica<Pbft>,
    pub disk: Disk,
    /// Writes under way, with the time they are done.
    writes: VecDeque<(u64, JournalWrite)>,
    /// What the process has executed, and what of it the disk holds.
    pub ledger: Ledger,
    pub ledger_disk: Ledger,
    pub evidence: Vec<Evidence>,
    /// How often it had to check a batch that it had left to others.
    pub checks: u64,
    pub halted: Option<String>,
    pub rolled_back: Option<String>,
    pub diverged: bool,
    /// How often it asked for a state.
    pub installs: u64,
    pub rejects: BTreeMap<String, u64>,
    pub signed: BTreeMap<(u64, u64, u64, u8), Digest>,
}

impl Node {
    pub fn requests_executed(&self) -> usize {
        self.ledger.executed.len()
    }
}

enum Event {
    Frame { from: u16, to: u16, bytes: Arc<Vec<u8>> },
    Connected { at: u16, peer: u16 },
    Checked { at: u16, batch: Digest, valid: bool },
}

type Watcher = Box<dyn FnMut(u64, u16, &To, &Message)>;
type Intruder = Box<dyn FnMut(u64, u16, u16, &Message) -> bool>;

pub struct Network {
    pub genesis: Arc<Genesis>,
    pub now: u64,
    pub wires: Wires,
    nodes: BTreeMap<u16, Node>,
    pub down: BTreeMap<u16, (Disk, Ledger)>,
    events: BTreeMap<(u64, u64), Event>,
    order: u64,
    pub rng: StdRng,
    pub watcher: Option<Watcher>,
    /// Says of each frame whether it is delivered.
    pub filter: Option<Intruder>,
    /// Everything ever signed by each replica, across its restarts.
    pub signed: BTreeMap<(u16, u64, u64, u64, u8), Digest>,
    /// What some correct replica executed at each height.
    pub history: BTreeMap<Sequence, (Digest, u16)>,
    /// Whether somebody serves the state of a checkpoint.
    pub serves_states: bool,
    /// Clocks of nodes differ by this.
    pub skew_ms: BTreeMap<u16, i64>,
    pub sent: u64,
    /// Boundaries between effects so far, and the one at which the power goes.
    pub boundaries: u64,
    pub power_goes_at: Option<u64>,
    /// Who loses its power there: one replica by its effect, or all.
    pub all_lose_power: bool,
    powerless: BTreeSet<u16>,
}

pub fn replica_key(id: u16) -> SecretKey {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&id.to_le_bytes());
    SecretKey::from_seed(seed)
}

pub fn client_key(id: u64) -> SecretKey {
    let mut seed = [9; 32];
    seed[..8].copy_from_slice(&id.to_le_bytes());
    SecretKey::from_seed(seed)
}

pub fn limits() -> Limits {
    Limits { checkpoint_interval: 16, window: 32, ..Limits::default() }
}

pub fn genesis(n: u16, limits: Limits) -> Genesis {
    let members = (0..n).map(member).collect();
    Genesis {
        name: "test".to_owned(),
        protocol: "pbft".to_owned(),
        limits,
        organizations: vec!["one".to_owned()],
        membership: Membership { epoch: Epoch(0), first: 0, members },
        clients: (0..4)
            .map(|id| ClientEntry {
                key: client_key(id).public(),
                organization: "one".to_owned(),
                role: Role::Admin,
                prefix: Vec::new(),
            })
            .collect(),
    }
}

fn member(id: u16) -> Member {
    Member {
        id: ReplicaId(id),
        organization: "one".to_owned(),
        key: replica_key(id).public(),
        address: format!("127.0.0.1:{}", 7000 + id),
        client_address: format!("127.0.0.1:{}", 8000 + id),
    }
}

pub fn request(cluster: &Digest, client: u64, number: u64) -> Arc<SignedRequest> {
    let key = client_key(client);
    let body = RequestBody::Submit {
        session: SessionId(1),
        number: RequestNumber(number),
        acknowledged: RequestNumber(number.saturating_sub(200)),
        operations: number.to_le_bytes().to_vec(),
    };
    Arc::new(SignedRequest::sign(&Request { client: key.public(), body }, &key, cluster))
}

impl Network {
    pub fn new(n: u16, seed: u64) -> Self {
        Self::with_limits(n, seed, limits())
    }

    pub fn with_limits(n: u16, seed: u64, limits: Limits) -> Self {
        let genesis = Arc::new(genesis(n, limits));
        let mut network = Self {
            genesis: Arc::clone(&genesis),
            now: 0,
            wires: Wires::default(),
            nodes: BTreeMap::new(),
            down: BTreeMap::new(),
            events: BTreeMap::new(),
            order: 0,
            rng: StdRng::seed_from_u64(seed),
            watcher: None,
            filter: None,
            signed: BTreeMap::new(),
            history: BTreeMap::new(),
            serves_states: true,
            skew_ms: BTreeMap::new(),
            sent: 0,
            boundaries: 0,
            power_goes_at: None,
            all_lose_power: false,
            powerless: BTreeSet::new(),
        };
        for id in 0..n {
            let mut disk = Disk::default();
            for record in Pbft::initial_records() {
                disk.journal.insert(record.slot, record.bytes);
            }
            network.down.insert(id, (disk, Ledger::new(&genesis)));
        }
        for id in 0..n {
            network.start(id);
        }
        network
    }

    pub fn cluster(&self) -> Digest {
        self.genesis.cluster()
    }

    pub fn node(&self, id: u16) -> &Node {
        &self.nodes[&id]
    }

    pub fn up(&self) -> Vec<u16> {
        self.nodes.keys().copied().collect()
    }

    pub fn engine(&self, id: u16) -> &Pbft {
        self.nodes[&id].replica.engine()
    }

    /// Starts a replica from what its disk holds.
    pub fn start(&mut self, id: u16) {
        let (disk, ledger) = self.down.remove(&id).expect("it is down");
        let config = PbftConfig {
            id: ReplicaId(id),
            key: std::sync::Arc::new(replica_key(id)),
            genesis: Arc::clone(&self.genesis),
            seed: self.now ^ u64::from(id),
        };
        let journal = disk.journal.clone().into_iter().collect();
        let wall = self.wall(id);
        let (engine, effects) =
            Pbft::recover(config, journal, ledger.tip(), wall).expect("a journal of ours");
        let mut node = Node {
            id,
            replica: Replica::new(engine),
            disk,
            writes: VecDeque::new(),
            ledger_disk: ledger.clone(),
            ledger,
            evidence: Vec::new(),
            checks: 0,
            halted: None,
            rolled_back: None,
            diverged: false,
            installs: 0,
            rejects: BTreeMap::new(),
            signed: BTreeMap::new(),
        };
        let step = node.replica.order(effects);
        self.nodes.insert(id, node);
        self.carry_out(id, step);
        let peers: Vec<u16> = self.nodes.keys().copied().filter(|peer| *peer != id).collect();
        for peer in peers {
            self.schedule(1, Event::Connected { at: id, peer });
            self.schedule(1, Event::Connected { at: peer, peer: id });
        }
    }

    /// Kills a replica: of the writes under way the disk holds a prefix, and the ledger what it
    /// held at its last sync, or more, as the seed says.
    pub fn kill(&mut self, id: u16) {
        let mut node = self.nodes.remove(&id).expect("it is up");
        let kept = self.rng.random_range(0..=node.writes.len());
        for (_, write) in node.writes.iter().take(kept) {
            node.disk.apply(write);
        }
        let keeps_buffered = self.rng.random_bool(0.5);
        let ledger = if keeps_buffered { node.ledger } else { node.ledger_disk };
        self.down.insert(id, (node.disk, ledger));
    }

    /// Stops a replica cleanly.
    pub fn stop(&mut self, id: u16) {
        let mut node = self.nodes.remove(&id).expect("it is up");
        while let Some((_, write)) = node.writes.pop_front() {
            node.disk.apply(&write);
            let _ = node.replica.written(write.number);
        }
        if let Some(write) = node.replica.shutdown() {
            node.disk.apply(&write);
        }
        self.down.insert(id, (node.disk, node.ledger));
    }

    /// Flips something in this replica's ledger: from here on its headers differ.
    pub fn corrupt(&mut self, id: u16) {
        let node = self.nodes.get_mut(&id).expect("it is up");
        node.ledger.header = digest("corrupt", &[node.ledger.header.as_bytes()]);
    }

    /// The replica's disk is lost; the operator lets it rejoin.
    pub fn wipe(&mut self, id: u16, nonce: u64) {
        let marker = Pbft::rejoin_marker(digest("test-nonce", &[&nonce.to_le_bytes()]));
        let mut disk = Disk::default();
        disk.journal.insert(marker.slot, marker.bytes);
        self.down.insert(id, (disk, Ledger::new(&self.genesis)));
    }

    pub fn wall(&self, id: u16) -> Timestamp {
        let skew = self.skew_ms.get(&id).copied().unwrap_or(0);
        Timestamp((EPOCH_MS + self.now).saturating_add_signed(skew))
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.events.insert((self.now + after, self.order), event);
    }

    /// A client hands a request to this replica.
    pub fn ask(&mut self, id: u16, client: u64, number: u64) {
        let request = request(&self.cluster(), client, number);
        self.ask_with(id, request);
    }

    pub fn ask_with(&mut self, id: u16, request: Arc<SignedRequest>) {
        self.input(id, Input::Requests(vec![request]));
    }

    pub fn ask_all(&mut self, client: u64, number: u64) {
        for id in self.up() {
            self.ask(id, client, number);
        }
    }

    pub fn input(&mut self, id: u16, input: Input<Message>) {
        if self.powerless.contains(&id) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.halted.is_some() {
            return;
        }
        let step = node.replica.step([input]);
        self.carry_out(id, step);
    }

    fn carry_out(&mut self, id: u16, step: Step<Message>) {
        let (low, high) = self.wires.sync_ms;
        let took = self.rng.random_range(low..=high);
        if let Some(node) = self.nodes.get_mut(&id)
            && let Some(write) = step.write
        {
            let earliest = node.writes.back().map_or(0, |(done, _)| *done);
            node.writes.push_back(((self.now + took).max(earliest), write));
        }
        for effect in step.ready {
            self.effect(id, effect);
        }
    }

    /// Counts one boundary; says whether this replica still has power.
    fn powered(&mut self, id: u16) -> bool {
        self.boundaries += 1;
        if self.power_goes_at == Some(self.boundaries) {
            let up = self.up();
            self.powerless.extend(if self.all_lose_power { up } else { vec![id] });
        }
        !self.powerless.contains(&id)
    }

    fn effect(&mut self, id: u16, effect: Effect<Message>) {
        if !self.powered(id) {
            return;
        }
        match effect {
            Effect::Persist(_) => panic!("a Persist is part of a write"),
            Effect::Send { to, message, .. } => self.transmit(id, to, &message),
            Effect::Commit(committed) => self.execute(id, &committed),
            Effect::Supply { to, after } => self.supply(id, to, after),
            Effect::Stable(certificate) => {
                let node = self.nodes.get_mut(&id).expect("it acts");
                assert!(node.ledger.height >= certificate.checkpoint.height);
                node.ledger.on_stable(&certificate);
                node.ledger_disk = node.ledger.clone();
                let height = certificate.checkpoint.height;
                node.disk.journal.retain(|slot, _| match slot {
                    Slot::Named(_) => true,
                    Slot::Sequenced(sequence, _) => *sequence > height,
                });
            }
            Effect::EpochEnded(end) => {
                let node = self.nodes.get_mut(&id).expect("it acts");
                node.ledger.keep_end(&end);
                node.ledger_disk.keep_end(&end);
            }
            Effect::Install(certificate) => self.install(id, certificate),
            Effect::Diverged(certificate) => {
                self.nodes.get_mut(&id).expect("it acts").diverged = true;
                self.install(id, certificate);
            }
            Effect::RolledBack { reason } => {
                self.nodes.get_mut(&id).expect("it acts").rolled_back = Some(reason);
            }
            Effect::Halt { reason } => {
                self.nodes.get_mut(&id).expect("it acts").halted = Some(reason);
            }
            Effect::Reject { reason, .. } => {
                let node = self.nodes.get_mut(&id).expect("it acts");
                *node.rejects.entry(reason.to_string()).or_default() += 1;
            }
            Effect::Evidence(evidence) => {
                self.nodes.get_mut(&id).expect("it acts").evidence.push(evidence);
            }
            Effect::ReadReady { .. } => panic!("PBFT orders reads"),
            Effect::Check(batch) => {
                let node = self.nodes.get_mut(&id).expect("it acts");
                node.checks += 1;
                let valid = node.replica.engine().horizon().check(&batch);
                self.schedule(1, Event::Checked { at: id, batch: batch.digest(), valid });
            }
        }
    }

    fn transmit(&mut self, from: u16, to: To, message: &Message) {
        self.note_signature(from, message);
        if let Some(watcher) = &mut self.watcher {
            watcher(self.now, from, &to, message);
        }
        let targets: Vec<u16> = match to {
            To::One(id) => vec![id.0],
            To::Others => {
                (0..self.genesis.membership.members.len() as u16).filter(|id| *id != from).collect()
            }
        };
        let bytes = Arc::new(Pbft::encode(message));
        for target in targets {
            if let Some(filter) = &mut self.filter
                && !filter(self.now, from, target, message)
            {
                continue;
            }
            self.frame(from, target, Arc::clone(&bytes));
        }
    }

    /// A traitor that holds this replica's key sends something. Kill the replica first.
    pub fn send(&mut self, from: u16, to: u16, message: &Message) {
        self.frame(from, to, Arc::new(Pbft::encode(message)));
    }

    pub fn send_all(&mut self, from: u16, message: &Message) {
        for to in self.up() {
            self.send(from, to, message);
        }
    }

    pub fn forge(&self) -> super::forge::Forge {
        super::forge::Forge { cluster: self.cluster() }
    }

    /// A batch of one request.
    pub fn batch(&self, client: u64, number: u64) -> Arc<Batch> {
        let request = request(&self.cluster(), client, number);
        let wall = self.wall(0);
        Arc::new(Batch::new(wall, false, None, vec![request]))
    }

    /// Whoever holds replica 0's key proposes this request of each of these clients, in the slot of its number.
    pub fn propose(&mut self, clients: &[u64], number: u64) {
        let cluster = self.cluster();
        let requests = clients.iter().map(|client| request(&cluster, *client, number)).collect();
        let batch = Arc::new(Batch::new(self.wall(1), false, None, requests));
        let message = self.forge().pre_prepare(0, 0, number, &batch);
        self.send_all(0, &message);
    }

    /// Puts a frame on a wire, as an attacker may too.
    pub fn frame(&mut self, from: u16, to: u16, bytes: Arc<Vec<u8>>) {
        self.sent += 1;
        let copies = 1 + usize::from(self.rng.random_range(0..1000) < self.wires.duplicate);
        for _ in 0..copies {
            if self.rng.random_range(0..1000) < self.wires.loss {
                continue;
            }
            let (low, high) = self.wires.delay_ms;
            let delay = self.rng.random_range(low..=high);
            self.schedule(delay, Event::Frame { from, to, bytes: Arc::clone(&bytes) });
        }
    }

    /// No replica ever signs two digests for one slot, across its restarts.
    fn note_signature(&mut self, from: u16, message: &Message) {
        let (kind, vote) = if let Message::PrePrepare(message) = message {
            (2, message.vote)
        } else if let Message::Prepare(vote) = message {
            (3, *vote)
        } else if let Message::Commit(vote) = message {
            (4, *vote)
        } else {
            return;
        };
        let statement = vote.statement;
        let slot = (from, statement.epoch.0, statement.view.0, statement.sequence.0, kind);
        let known = self.signed.entry(slot).or_insert(statement.digest);
        assert_eq!(*known, statement.digest, "replica {from} signed twice for {statement}");
    }

    fn execute(&mut self, id: u16, committed: &Committed) {
        let batch = committed.batch.digest();
        let known = self.history.entry(committed.sequence).or_insert((batch, id));
        assert_eq!(known.0, batch, "r{id} and r{} differ at {}", known.1, committed.sequence);
        let node = self.nodes.get_mut(&id).expect("it acts");
        let checkpointed = node.ledger.execute(committed);
        let input = match checkpointed {
            Some(checkpointed) => {
                node.ledger_disk = node.ledger.clone();
                Input::Checkpointed(checkpointed)
            }
            None => Input::Executed(committed.sequence),
        };
        self.input(id, input);
    }

    fn supply(&mut self, id: u16, to: ReplicaId, after: Sequence) {
        let node = &self.nodes[&id];
        let run: Vec<Committed> = node
            .ledger
            .blocks
            .range(after.next()..)
            .take(64)
            .map(|(_, (_, committed))| committed.clone())
            .collect();
        for committed in run {
            let message = Pbft::decided(committed);
            self.transmit(id, To::One(to), &message);
        }
    }

    /// State transfer: takes the state of a replica that holds it, at once.
    pub fn install(
        &mut self,
        id: u16,
        certificate: conclave_consensus::message::CheckpointCertificate,
    ) {
        let height = certificate.checkpoint.height;
        self.nodes.get_mut(&id).expect("it acts").installs += 1;
        let source = self
            .nodes
            .values()
            .filter(|_| self.serves_states)
            .find(|node| node.id != id && node.ledger.blocks.contains_key(&height))
            .map(|node| node.ledger.clone());
        let Some(source) = source else { return };
        let mut ledger = Ledger::new(&self.genesis);
        for (sequence, (_, committed)) in &source.blocks {
            if *sequence > height {
                break;
            }
            ledger.execute(committed);
            let end = source.epoch_ends.iter().find(|end| end.header.height == *sequence);
            if let Some(end) = end.filter(|_| *sequence < height) {
                ledger.on_stable(&end.certificate);
            }
        }
        assert_eq!(ledger.header, certificate.checkpoint.header);
        // The state knows the members that it leads to, and no proof of how their epoch began.
        if let Some(next) = ledger.pending_epoch.take() {
            (ledger.membership, ledger.base) = (next.membership, height);
        }
        ledger.on_stable(&certificate);
        let node = self.nodes.get_mut(&id).expect("it acts");
        node.ledger = ledger.clone();
        node.ledger_disk = ledger;
        let next = node.ledger.blocks[&height].0.next_epoch;
        self.input(id, Input::Installed { certificate, next });
    }

    /// Runs for this long.
    pub fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += 1;
            self.deliver_due();
            self.finish_writes();
            for id in std::mem::take(&mut self.powerless) {
                if self.nodes.contains_key(&id) {
                    self.kill(id);
                }
            }
            if self.now.is_multiple_of(TICK_MS) {
                for id in self.up() {
                    let wall = self.wall(id);
                    self.input(id, Input::Tick { monotonic_ms: self.now, wall });
                }
            }
        }
    }

    fn deliver_due(&mut self) {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            match entry.remove() {
                Event::Connected { at, peer } => self.input(at, Input::Connected(ReplicaId(peer))),
                Event::Checked { at, batch, valid } => {
                    self.input(at, Input::Checked { batch, valid });
                }
                Event::Frame { from, to, bytes } => {
                    if self.wires.cut.contains(&(from, to)) {
                        continue;
                    }
                    let Some(node) = self.nodes.get_mut(&to) else { continue };
                    let horizon = node.replica.engine().horizon();
                    match Pbft::decode(&horizon, ReplicaId(from), &bytes) {
                        Ok(message) => {
                            let from = ReplicaId(from);
                            self.input(to, Input::Message { from, message });
                        }
                        Err(reason) => {
                            *node.rejects.entry(format!("decode: {reason}")).or_default() += 1;
                            if let Reject::Proven(_, evidence) = reason {
                                node.evidence.push(*evidence);
                            }
                        }
                    }
                }
            }
        }
    }

    fn finish_writes(&mut self) {
        for id in self.up() {
            while let Some(node) = self.nodes.get_mut(&id) {
                if node.writes.front().is_none_or(|(done, _)| *done > self.now) {
                    break;
                }
                if self.powerless.contains(&id) {
                    break;
                }
                let (_, write) = node.writes.pop_front().expect("one is due");
                node.disk.apply(&write);
                let WriteNumber(_) = write.number;
                for effect in node.replica.written(write.number) {
                    self.effect(id, effect);
                }
            }
        }
    }

    /// Runs until this holds, for at most two simulated minutes.
    pub fn run_until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = self.now + 120_000;
        while !holds(self) {
            assert!(self.now < deadline, "never: {what}\n{}", self.describe());
            self.run_ms(1);
        }
    }

    pub fn describe(&self) -> String {
        self.nodes
            .values()
            .map(|node| {
                let status = node.replica.engine().status();
                let role = if status.normal { "votes" } else { "silent" };
                format!(
                    "{} {} {role} pending={} rejects {:?} halted {:?} rolled back {:?}\n",
                    node.replica.engine(),
                    status.role,
                    status.pending,
                    node.rejects,
                    node.halted,
                    node.rolled_back,
                )
            })
            .collect()
    }

    /// All ledgers are prefixes of one another, and nobody correct was accused.
    pub fn check_agreement(&self) {
        for node in self.nodes.values() {
            for (sequence, (header, committed)) in &node.ledger.blocks {
                let (batch, other) = self.history[sequence];
                assert_eq!(committed.batch.digest(), batch, "r{} r{other} {sequence}", node.id);
                assert_eq!(header.batch, batch);
            }
        }
    }

    /// Whatever any replica executed is executed by all that are up.
    pub fn check_nothing_is_lost(&self) {
        let last = *self.history.keys().next_back().expect("something was executed");
        for node in self.nodes.values() {
            assert!(node.ledger.height >= last, "r{} lacks executed blocks", node.id);
        }
        self.check_agreement();
    }

    /// Signs a Rejoin as this replica, as an attacker might replay it.
    pub fn rejoin(&self, id: u16, epoch: u64, nonce: u64) -> Change {
        let value = Rejoin {
            epoch: Epoch(epoch),
            replica: ReplicaId(id),
            nonce: digest("test-nonce", &[&nonce.to_le_bytes()]),
        };
        let key = replica_key(id);
        Change::Rejoin(conclave_crypto::signature::Signed::sign(value, &key, &self.cluster()))
    }
}
