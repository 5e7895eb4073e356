//! One replica: its disks, which outlive it, and its process, driven as the node's threads drive it.
//!
//! The parts are the real ones: [`Replica`] over the real engine, the real [`Executor`], [`super::transfer`] with the
//! real state transfer. What the node has threads and queues for, a process has inboxes and wake-ups for, so that the
//! orders in which threads may run are drawn from the seed. The match on effects, in [`super::effects`], says the same
//! as the one of the node's replica thread.

use super::adversary::Traitor;
use super::check::Fact;
use super::disk::{JournalDisk, LedgerDisk};
use super::fabric::{Event, Fabric, Wake};
use super::gateway::Routes;
use super::keys;
use super::order::{Counted, Shared};
use super::transfer::{StateAt, Transfer};
use conclave_consensus::engine::Committed;
use conclave_consensus::engine::{
    Checkpointed, Effect, Engine, EngineStatus, Horizon, Input, Slot,
};
use conclave_consensus::executor::{CheckpointJob, Executor, LedgerReader};
use conclave_consensus::kv::KeyValueStore;
use conclave_consensus::message::{CheckpointCertificate, EpochEnd, SignedRequest};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::pbft::{Pbft, PbftConfig};
use conclave_consensus::replica::{JournalWrite, Replica, WriteNumber};
use conclave_consensus::state_sync::{FetchNumber, TransferTarget};
use conclave_consensus::types::{ReplicaId, Sequence};
use conclave_crypto::digest::Digest;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Events taken in one step at most, as in the node.
pub(super) const DRAIN_MAX: usize = 512;

/// Frames of one peer that wait in front of the replica thread at most, as in the node.
pub(super) const PEER_ITEMS_MAX: usize = 8192;

/// A journal as it is read.
type Records = Vec<(Slot, Vec<u8>)>;

/// What a process begins with.
type Recovered = (Executor<LedgerDisk, KeyValueStore>, Pbft, Vec<Effect<Message>>);

/// What reaches the replica thread.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most are inputs, and they move once")]
pub(super) enum ToReplica {
    Input(Input<Message>),
    Request(Arc<SignedRequest>),
    Written(WriteNumber),
    StableStored(Sequence),
}

/// What the executor thread is asked to do.
pub(super) enum Task {
    Commit(Box<Committed>),
    Lookup(u16, Box<SignedRequest>),
    Stable(Box<CheckpointCertificate>),
    Checkpointed(Box<Checkpointed>, Option<StateAt>),
    Diverged(Box<CheckpointCertificate>),
    Fetch(Box<CheckpointCertificate>),
    Unserved(FetchNumber),
    Install(Box<TransferTarget>, FetchNumber),
    EpochEnds(Vec<EpochEnd>),
}

/// What the background thread is asked to do.
pub(super) enum Job {
    Checkpoint(Box<CheckpointJob>),
    Supply { to: ReplicaId, after: Sequence },
}

/// Why a process ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The power went, at the boundary that the plan named.
    Power,
    /// A disk refused.
    Disk(String),
    /// The journal is proven rolled back: a new one, at once.
    RolledBack(String),
    /// More than f faults are proven.
    Halted(String),
    /// It cannot start from what its disks hold.
    Failed(String),
}

/// What becomes of what is on its way to the disks when the power goes; by chance where nobody says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of it is there.
    Before,
    /// The first half is there, and what stood in the middle is torn: a checksum shows it.
    Torn,
    /// All of it is there.
    After,
}

impl Fate {
    /// How many of so many survive.
    fn kept(self, of: usize) -> usize {
        match self {
            Self::Before => 0,
            Self::Torn => of / 2,
            Self::After => of,
        }
    }
}

/// What a replica's disks lost: until it is made good the replica is one of the f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The journal is known to be lost: the replica votes again once its Rejoin was ordered.
    Known,
    /// Old copies were put back unseen, in this epoch: whatever it signs in a later one is good again.
    Unseen(u64),
}

/// How fast a replica's disks and threads are, microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// One sync of the journal.
    pub sync: (u64, u64),
    /// Until a thread runs that has something to do.
    pub wake: u64,
    /// A sync of the ledger.
    pub ledger: (u64, u64),
}

/// A running replica.
pub(super) struct Process {
    pub boot: u64,
    pub started_ms: u64,
    pub replica: Replica<Counted>,
    /// What left in which order.
    pub order: Shared,
    pub horizon: Horizon,
    pub status: EngineStatus,
    pub inbox: VecDeque<ToReplica>,
    /// Items in the inbox by peer.
    pub waiting: Vec<usize>,
    pub stepping: bool,
    pub tick_due: bool,
    /// The write that the disk is at, and those behind it.
    pub syncing: Vec<JournalWrite>,
    pub writes: VecDeque<JournalWrite>,
    pub executor: Executor<LedgerDisk, KeyValueStore>,
    pub reader: LedgerReader<LedgerDisk>,
    pub tasks: VecDeque<Task>,
    pub executing: bool,
    pub jobs: VecDeque<Job>,
    pub working: bool,
    pub states: BTreeMap<Sequence, StateAt>,
    pub fetching: bool,
    /// Which fetch began last.
    pub fetch: FetchNumber,
    pub held: Vec<Committed>,
    pub transfer: Transfer,
    pub routes: Routes,
    pub ended: Option<Ended>,
}

impl Process {
    /// What an earlier fetch came to is void: something was executed since.
    pub(super) fn is_fetching(&self, number: FetchNumber) -> bool {
        self.fetching && self.fetch == number
    }
}

/// A replica's place: what survives its process.
pub struct Node {
    /// Which one.
    pub id: u16,
    pub(super) process: Option<Process>,
    /// Counts the starts.
    pub boot: u64,
    /// The journal's disk.
    pub journal: JournalDisk,
    pub(super) ledger: Arc<LedgerDisk>,
    pub(super) durable: Arc<AtomicU64>,
    /// Old copies of both disks, for a rollback.
    pub(super) copy: Option<(JournalDisk, LedgerDisk, bool)>,
    /// How far its wall clock is off, milliseconds.
    pub skew_ms: i64,
    /// Nothing runs before this, microseconds.
    pub paused_until: u64,
    /// How fast it is.
    pub speed: Speed,
    /// Between two ticks, microseconds.
    pub tick: u64,
    /// What becomes of unsynced writes when the power goes.
    pub fate: Option<Fate>,
    /// The power goes after so many more boundaries.
    pub power: Option<u64>,
    /// The power goes in the sync of the journal that comes after so many more.
    pub tear: Option<u64>,
    /// How fast its disks are once the faults are over, microseconds.
    pub rest: (u64, u64),
    /// Its disks are full.
    pub full: bool,
    /// What its disks lost and what is not made good yet.
    pub lost: Option<Loss>,
    /// Its ledger held this height, or a CHECKPOINT said so, when it was lost, and has not come there again: until
    /// it has, a peer may show it that CHECKPOINT.
    pub owed: Option<Sequence>,
    /// The highest CHECKPOINT it sent.
    pub vouched: Sequence,
    /// The last epoch that it was seen in.
    pub epoch: u64,
    /// The highest sequence at which it sent COMMIT.
    pub committed: Sequence,
    /// The newest epoch and view for which it sent VIEW-CHANGE.
    pub left: (u64, u64),
    /// Something in its ledger was changed unseen; it may find that it differs.
    pub flipped: bool,
    /// Another mind behind the same key.
    pub traitor: Option<Traitor>,
    /// What happened in the process when it ended by itself.
    pub last_end: Option<Ended>,
}

impl Node {
    /// A replica that never ran.
    #[must_use]
    pub fn new(id: u16, speed: Speed, tick: u64) -> Self {
        let durable = Arc::new(AtomicU64::new(0));
        Self {
            id,
            process: None,
            boot: 0,
            journal: JournalDisk::initial(),
            ledger: Arc::new(LedgerDisk::new(Arc::clone(&durable))),
            durable,
            copy: None,
            skew_ms: 0,
            paused_until: 0,
            speed,
            tick,
            fate: None,
            power: None,
            tear: None,
            rest: (100, 2_000),
            full: false,
            lost: None,
            owed: None,
            vouched: Sequence(0),
            epoch: 0,
            committed: Sequence(0),
            left: (0, 0),
            flipped: false,
            traitor: None,
            last_end: None,
        }
    }

    /// Whether its process runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Whether it counts as one of the f: it lies, or its disks do not hold what they should.
    #[must_use]
    pub fn is_faulty(&self) -> bool {
        self.traitor.is_some() || self.lost.is_some() || self.owed.is_some() || self.flipped
    }

    /// Why its process ended by itself, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<Ended> {
        self.process.as_ref().and_then(|process| process.ended.clone())
    }

    /// Whether it runs, has nothing to fetch, and votes or waits in a view that the others have not come to: it asked
    /// for that one with others who forgot it, and its VIEW-CHANGE stands for the next time that somebody asks.
    #[must_use]
    pub fn is_settled(&self, view: u64) -> bool {
        self.process.as_ref().is_some_and(|process| {
            let waits = process.status.view > view && process.status.role != "rejoining";
            let stands = process.status.normal || waits;
            stands && !process.fetching && process.executor.diverged().is_none()
        })
    }

    /// A connection to this peer came up.
    pub fn connected(&mut self, fabric: &mut Fabric, peer: u16) {
        self.queue(fabric, ToReplica::Input(Input::Connected(ReplicaId(peer))));
    }

    /// Its disks are full, or have room again.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
        self.ledger.set_full(full);
    }

    /// Its faults are over.
    pub fn heal(&mut self, now: u64, skew_ms: i64) {
        self.set_full(false);
        self.ledger.fail_never();
        self.power = None;
        self.tear = None;
        self.paused_until = now;
        self.skew_ms = skew_ms;
        let (least, most) = self.rest;
        self.speed = Speed { sync: self.rest, ledger: (least, most + 1_000), ..self.speed };
    }

    /// Copies both disks, as a backup would, with whatever was changed unseen.
    pub fn copy_disks(&mut self) {
        self.copy = Some((self.journal.clone(), self.ledger.copy(), self.flipped));
    }

    /// Whether somebody has a copy of its disks.
    #[must_use]
    pub fn has_copy(&self) -> bool {
        self.copy.is_some()
    }

    /// Puts the copy back; of the journal alone, or of both. The process is down.
    pub fn restore(&mut self, both: bool, epoch: u64) {
        let Some((journal, ledger, flipped)) = self.copy.take() else { return };
        self.journal = journal;
        if both {
            self.owe();
            self.flipped = flipped;
            self.ledger = Arc::new(ledger);
        }
        self.lost = Some(Loss::Unseen(epoch));
    }

    /// The journal is garbled; with it the ledger may be gone. The process is down.
    pub fn lose_journal(&mut self, ledger: bool) {
        self.journal.lose();
        if ledger {
            self.owe();
            self.ledger = Arc::new(LedgerDisk::new(Arc::clone(&self.durable)));
        }
        self.lost = Some(Loss::Known);
    }

    /// The ledger is gone. The process is down.
    pub fn lose_ledger(&mut self) {
        self.owe();
        self.ledger = Arc::new(LedgerDisk::new(Arc::clone(&self.durable)));
    }

    /// What its ledger held counts as lost until it is there again.
    pub(super) fn owe(&mut self) {
        self.owed = self.owed.max(Some(self.ledger.height().max(self.vouched)));
    }

    /// Changes a bit of the ledger, unseen; says whether there was one to change.
    pub fn flip(&mut self, choice: u64) -> bool {
        let flipped = self.ledger.flip_a_bit(choice);
        self.flipped |= flipped;
        flipped
    }

    /// The engine's words about itself, while it runs.
    #[must_use]
    pub fn status(&self) -> Option<&EngineStatus> {
        self.process.as_ref().map(|process| &process.status)
    }

    /// Whether it took somebody's word for which state it fetches.
    #[must_use]
    pub fn has_target(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.transfer.has_target())
    }

    /// Executed height, while it runs.
    #[must_use]
    pub fn height(&self) -> Option<Sequence> {
        self.process.as_ref().map(|process| process.executor.height())
    }

    /// One line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let mind = if self.traitor.is_some() { " traitor" } else { "" };
        let lost = self.lost.map_or(String::new(), |lost| format!(" lost {lost:?}"));
        match &self.process {
            None => format!("r{}{mind}{lost} down (ended: {:?})", self.id, self.last_end),
            Some(process) => format!(
                "{}{mind}{lost} {} {} pending={} fetching={} height={}",
                process.replica.engine(),
                process.status.role,
                if process.status.normal { "votes" } else { "silent" },
                process.status.pending,
                process.fetching,
                process.executor.height(),
            ),
        }
    }

    /// Starts its process from what the disks hold; false when the disks refuse.
    pub fn start(&mut self, fabric: &mut Fabric) -> bool {
        if self.process.is_some() {
            return true;
        }
        if self.full {
            return false;
        }
        let (records, lost) = self.read_journal(fabric);
        self.boot += 1;
        let recovered = match self.recover(fabric, records) {
            // As in the node: what cannot be understood is as good as lost, once.
            Err(Ended::Failed(_)) if !lost && self.is_faulty() => {
                self.journal.lose();
                let records = self.read_journal(fabric).0;
                self.recover(fabric, records)
            }
            other => other,
        };
        let (executor, engine, effects) = match recovered {
            Ok(recovered) => recovered,
            Err(ended) => {
                self.last_end = Some(ended);
                return false;
            }
        };
        self.begin(fabric, engine, executor);
        let process = self.process.as_mut().expect("it begins");
        process.order.lock().emitted(&effects);
        let step = process.replica.order(effects);
        fabric.saw(&Fact::Started { replica: self.id, boot: self.boot });
        self.carry_out(fabric, step);
        true
    }

    /// The journal's records, or those of a new one where it cannot be trusted.
    fn read_journal(&mut self, fabric: &mut Fabric) -> (Records, bool) {
        let recorded = self.ledger.recorded();
        let (records, lost) = match self.journal.read(recorded) {
            Ok(records) => (records, false),
            Err(_) => {
                let nonce = Digest::from_bytes(fabric.random.bytes());
                self.journal.begin_again(recorded, nonce);
                self.lost = Some(Loss::Known);
                let read = self.journal.read(recorded);
                (read.expect("a new journal can be read"), true)
            }
        };
        self.durable.store(self.journal.number(), Ordering::Relaxed);
        (records, lost)
    }

    fn recover(&self, fabric: &mut Fabric, records: Records) -> Result<Recovered, Ended> {
        let key = keys::replica(self.id);
        let id = ReplicaId(self.id);
        let ledger = Arc::clone(&self.ledger);
        let genesis = &fabric.genesis;
        let executor = Executor::open(ledger, KeyValueStore, genesis, id, Arc::clone(&key))
            .map_err(|_| Ended::Disk("the ledger does not open".to_owned()))?;
        let seed = fabric.random.draw();
        let config = PbftConfig { id, key, genesis: Arc::clone(genesis), seed };
        let tip = executor.tip().expect("memory can be read");
        let wall = fabric.wall(self.skew_ms);
        let (engine, effects) = Pbft::recover(config, records, tip, wall)
            .map_err(|error| Ended::Failed(format!("it cannot recover: {error}")))?;
        Ok((executor, engine, effects))
    }

    fn begin(
        &mut self,
        fabric: &mut Fabric,
        engine: Pbft,
        executor: Executor<LedgerDisk, KeyValueStore>,
    ) {
        let (id, boot) = (self.id, self.boot);
        let jobs = executor.pending_checkpoints().expect("memory can be read");
        let diverged = executor.diverged().cloned();
        let peers = (0..fabric.n).filter(|peer| *peer != id).map(ReplicaId).collect();
        let order = Shared::default();
        self.process = Some(Process {
            boot,
            started_ms: fabric.now_ms(),
            horizon: engine.horizon(),
            status: engine.status(),
            replica: Replica::new(Counted::new(engine, order.clone())),
            order,
            inbox: VecDeque::new(),
            waiting: vec![0; usize::from(fabric.n)],
            stepping: false,
            tick_due: false,
            syncing: Vec::new(),
            writes: VecDeque::new(),
            reader: executor.reader(),
            executor,
            tasks: VecDeque::new(),
            executing: false,
            jobs: VecDeque::new(),
            working: false,
            states: BTreeMap::new(),
            fetching: false,
            fetch: FetchNumber::default(),
            held: Vec::new(),
            transfer: Transfer::new(fabric, peers),
            routes: Routes::default(),
            ended: None,
        });
        for job in jobs {
            self.job(fabric, Job::Checkpoint(Box::new(job)));
        }
        if let Some(certificate) = diverged {
            self.task(fabric, Task::Fetch(Box::new(certificate)));
        }
        let first = fabric.random.below(self.tick);
        fabric.schedule(first, Event::Node { id, boot, wake: Wake::Tick });
        for peer in (0..fabric.n).filter(|peer| *peer != id) {
            let after = fabric.random.between(500, 5_000);
            fabric.schedule(after, Event::Connected { at: id, peer, boot });
        }
        for client in 0..fabric.clients {
            let after = fabric.random.between(500, 8_000);
            fabric.schedule(after, Event::Attached { client, replica: id, boot });
        }
    }

    /// The power goes or the process is killed: of what was not synced a part survives.
    pub fn crash(&mut self, fabric: &mut Fabric) {
        let Some(process) = self.process.take() else { return };
        self.power = None;
        self.tear = None;
        self.last_end = process.ended.clone();
        // The writes under way are one sync: a prefix of their records may be on the disk, and the next is torn.
        let under_way = process.syncing.len();
        let kept = match self.fate {
            Some(fate) => fate.kept(under_way),
            None => fabric.random.index(under_way + 1),
        };
        for write in process.syncing.into_iter().take(kept) {
            self.journal.write(write);
        }
        drop((process.executor, process.reader, process.tasks, process.states));
        let unsynced = self.ledger.unsynced();
        let keep = match self.fate {
            Some(fate) => fate.kept(unsynced),
            None if fabric.random.chance(400) => unsynced,
            None => fabric.random.index(unsynced + 1),
        };
        self.ledger.crash(keep);
    }

    /// A clean stop: what was decided is executed, and the last write narrows the reservation.
    pub fn stop(&mut self, fabric: &mut Fabric) {
        if self.process.is_none() {
            return;
        }
        while let Some(process) = &mut self.process {
            if process.ended.is_some() {
                return self.crash(fabric);
            }
            if process.syncing.is_empty() && process.writes.is_empty() {
                break;
            }
            self.synced(fabric);
        }
        self.step(fabric, true);
        let Some(process) = &mut self.process else { return };
        if process.ended.is_some() {
            return self.crash(fabric);
        }
        let mut last: Vec<JournalWrite> = process.writes.drain(..).collect();
        last.extend(process.replica.shutdown());
        let syncing = std::mem::take(&mut process.syncing);
        for write in syncing.into_iter().chain(last) {
            self.journal.write(write);
        }
        self.durable.store(self.journal.number(), Ordering::Relaxed);
        self.execute_tasks(fabric);
        let ended = self.process.take().and_then(|process| process.ended);
        let unsynced = self.ledger.unsynced();
        self.ledger.crash(if ended.is_some() { 0 } else { unsynced });
    }

    /// Puts something into the replica thread's inbox.
    pub(super) fn queue(&mut self, fabric: &mut Fabric, event: ToReplica) {
        let Some(process) = &mut self.process else { return };
        process.inbox.push_back(event);
        if !process.stepping {
            process.stepping = true;
            let (id, boot) = (self.id, process.boot);
            let after = fabric.random.below(self.speed.wake + 1);
            fabric.schedule(after, Event::Node { id, boot, wake: Wake::Step });
        }
    }

    /// Puts something into the executor's queue.
    pub(super) fn task(&mut self, fabric: &mut Fabric, task: Task) {
        let Some(process) = &mut self.process else { return };
        process.tasks.push_back(task);
        if !process.executing {
            process.executing = true;
            let (id, boot) = (self.id, process.boot);
            let after = fabric.random.below(self.speed.wake + 1);
            fabric.schedule(after, Event::Node { id, boot, wake: Wake::Execute });
        }
    }

    /// Puts something into the background thread's queue.
    pub(super) fn job(&mut self, fabric: &mut Fabric, job: Job) {
        let Some(process) = &mut self.process else { return };
        process.jobs.push_back(job);
        if !process.working {
            process.working = true;
            self.wake_background(fabric);
        }
    }

    pub(super) fn wake_background(&mut self, fabric: &mut Fabric) {
        let (low, high) = self.speed.ledger;
        let after = fabric.random.between(low, high);
        let (id, boot) = (self.id, self.boot);
        fabric.schedule(after, Event::Node { id, boot, wake: Wake::Background });
    }

    /// A thread of the process runs.
    pub fn wake(&mut self, fabric: &mut Fabric, wake: Wake) {
        match wake {
            Wake::Step => self.step(fabric, false),
            Wake::Tick => {
                if let Some(process) = &mut self.process {
                    process.tick_due = true;
                    let (id, boot) = (self.id, process.boot);
                    fabric.schedule(self.tick, Event::Node { id, boot, wake: Wake::Tick });
                }
                self.step(fabric, false);
                self.poll_transfer(fabric);
            }
            Wake::Synced => self.synced(fabric),
            Wake::Execute => self.execute_tasks(fabric),
            Wake::Background => self.work(fabric),
        }
    }
}
