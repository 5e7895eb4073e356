//! State transfer: the thread that serves certified state to others and fetches it for this replica,
//! and afterwards the blocks below it.
//!
//! What is said and checked is [`conclave_consensus::state_sync`]; here are the queue, the clock and
//! the disk. A transfer begins when the executor has stopped executing and ends by handing it the
//! staged, verified target. The blocks below follow in the background, from the certified one down to
//! the first.

mod fetching;
mod filling;
#[cfg(test)]
pub(crate) mod fixture;
mod serving;

pub(crate) use filling::CertificateCheck;

use crate::metrics::Metrics;
use crate::runtime::Failure;
use crate::runtime::executor_thread::Task;
use crate::runtime::inbox::{Inbox, Quota, Source};
use crate::storage::RocksStorage;
use crate::transport::{Class, Delivery, Patience, PeerMeshHandle, Trouble};
use bytes::Bytes;
use conclave_consensus::engine::Reject;
use conclave_consensus::epoch_chain::MemberKeys;
use conclave_consensus::ledger::LedgerReader;
use conclave_consensus::membership::Membership;
use conclave_consensus::message::{BlockHeader, CheckpointCertificate};
use conclave_consensus::state_sync::{FetchNumber, StateFetch, TransferMessage};
use conclave_consensus::storage::{Snapshot, Storage, StorageError};
use conclave_consensus::types::{ReplicaId, Sequence};
use conclave_consensus::wire::WireError;
use conclave_crypto::PublicKey;
use conclave_crypto::digest::Digest;
use filling::Filling;
use serving::Serving;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How often a transfer looks at its clock.
const TICK: Duration = Duration::from_millis(100);

/// How often while blocks are filled in.
const FILLING_TICK: Duration = Duration::from_millis(25);

/// Requests of each peer that wait here.
const QUOTA: Quota = Quota { items: 64, bytes: 16 << 20, total: usize::MAX };

/// The trie and the tables at one checkpoint.
#[derive(Clone)]
pub(crate) struct StateAt {
    pub trie: Arc<dyn Snapshot>,
    pub tables: Arc<dyn Snapshot>,
}

enum Event {
    Frames(ReplicaId, Delivery),
    Up(ReplicaId),
    Down(ReplicaId),
    /// The executor stands still: fetch a state at least as new as this one.
    Begin(Box<CheckpointCertificate>, FetchNumber),
    /// The executor goes on without.
    Cancel,
    /// A checkpoint became stable, and this is the state at it.
    Offer(Box<(BlockHeader, CheckpointCertificate, StateAt)>),
    /// Which block is missing, and whether the last ones given to the executor were proven.
    Stored {
        missing: Option<Sequence>,
        proven: bool,
    },
}

/// Puts events into the thread's queue; cheap to clone, never waits.
#[derive(Clone)]
pub(crate) struct TransferHandle {
    inbox: Arc<Inbox<Event>>,
}

impl TransferHandle {
    /// Frames of a peer; dropped when its share is full, for it asks again.
    pub(crate) fn frames(&self, from: ReplicaId, delivery: Delivery) {
        let bytes = delivery.frames.iter().map(Bytes::len).sum();
        let _ = self.inbox.push(Source::Peer(from.0), bytes, Event::Frames(from, delivery));
    }

    pub(crate) fn up(&self, peer: ReplicaId) {
        let _ = self.inbox.push(Source::Internal, 0, Event::Up(peer));
    }

    pub(crate) fn down(&self, peer: ReplicaId) {
        let _ = self.inbox.push(Source::Internal, 0, Event::Down(peer));
    }

    /// Fetch a certified state at least as new as this; the executor stands still until it is there.
    pub(crate) fn begin(&self, least: CheckpointCertificate, number: FetchNumber) {
        let _ = self.inbox.push(Source::Internal, 0, Event::Begin(Box::new(least), number));
    }

    /// The executor does not wait any longer. What is staged stays for the next time.
    pub(crate) fn cancel(&self) {
        let _ = self.inbox.push(Source::Internal, 0, Event::Cancel);
    }

    /// This block is missing below all that the ledger has; `proven` says whether the blocks that the
    /// executor was given last hang together with those above.
    pub(crate) fn stored(&self, missing: Option<Sequence>, proven: bool) {
        let _ = self.inbox.push(Source::Internal, 0, Event::Stored { missing, proven });
    }

    /// Serve this state to others from now on.
    pub(crate) fn offer(
        &self,
        header: BlockHeader,
        certificate: CheckpointCertificate,
        state: StateAt,
    ) {
        let offer = Box::new((header, certificate, state));
        let _ = self.inbox.push(Source::Internal, 0, Event::Offer(offer));
    }
}

/// What a transfer is started with.
pub(crate) struct TransferConfig {
    pub ledger: Arc<RocksStorage>,
    pub reader: LedgerReader<RocksStorage>,
    pub executor: Arc<Inbox<Task>>,
    pub failure: Arc<Failure>,
    /// Which peers are listened to.
    pub patience: Arc<Patience>,
    pub metrics: Arc<Metrics>,
    /// The members of the first epoch.
    pub genesis: Membership,
    /// And their keys.
    pub keys: MemberKeys,
    pub cluster: Digest,
    pub check: CertificateCheck,
}

/// The thread, until it is stopped.
pub(crate) struct Transfer {
    handle: TransferHandle,
    mesh: Arc<OnceLock<PeerMeshHandle>>,
    thread: std::thread::JoinHandle<()>,
}

impl Transfer {
    /// Starts the thread; it sends nothing before [`Self::attach`].
    pub(crate) fn start(config: TransferConfig) -> Result<Self, std::io::Error> {
        let TransferConfig { ledger, reader, executor, failure, patience, metrics, .. } = config;
        let TransferConfig { genesis, keys, cluster, check, .. } = config;
        let inbox = Arc::new(Inbox::new(QUOTA));
        let mesh: Arc<OnceLock<PeerMeshHandle>> = Arc::default();
        let fetch = StateFetch::new(Arc::new(keys), genesis.quorum(), cluster);
        let worker = Worker {
            inbox: inbox.clone(),
            mesh: mesh.clone(),
            ledger,
            executor,
            peer_keys: genesis.members.iter().map(|member| (member.id, member.key)).collect(),
            patience,
            metrics,
            serving: Serving::new(reader.clone(), genesis.members.len().saturating_sub(1)),
            filling: Filling::new(reader, genesis, check),
            fetch,
            started: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("transfer".into()).spawn(move || {
            let _watch = failure.watch("transfer");
            if let Err(error) = worker.run() {
                failure.storage(&error);
            }
        })?;
        Ok(Self { handle: TransferHandle { inbox }, mesh, thread })
    }

    /// What sends for it.
    pub(crate) fn attach(&self, mesh: PeerMeshHandle) {
        let _ = self.mesh.set(mesh);
    }

    pub(crate) fn handle(&self) -> TransferHandle {
        self.handle.clone()
    }

    /// Ends the thread. A transfer under way goes on at the next start from what is staged.
    pub(crate) fn stop(self) -> std::thread::Result<()> {
        self.handle.inbox.close();
        self.thread.join()
    }
}

struct Worker {
    inbox: Arc<Inbox<Event>>,
    mesh: Arc<OnceLock<PeerMeshHandle>>,
    ledger: Arc<RocksStorage>,
    executor: Arc<Inbox<Task>>,
    peer_keys: BTreeMap<ReplicaId, PublicKey>,
    patience: Arc<Patience>,
    metrics: Arc<Metrics>,
    serving: Serving<RocksStorage>,
    filling: Filling<RocksStorage>,
    fetch: StateFetch,
    started: Instant,
}

impl Worker {
    fn run(mut self) -> Result<(), StorageError> {
        let mut taken = Vec::new();
        loop {
            let patience = match (self.fetch.is_busy(), self.filling.is_wanted()) {
                (true, _) => Duration::ZERO,
                (false, true) => FILLING_TICK,
                (false, false) => TICK,
            };
            if !self.inbox.drain(patience, 16, &mut taken) {
                return Ok(());
            }
            for event in taken.drain(..) {
                self.take(event)?;
            }
            self.go_on()?;
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, event: Event) -> Result<(), StorageError> {
        match event {
            Event::Up(peer) => {
                self.filling.add_peer(peer);
                self.fetch.add_peer(peer);
            }
            Event::Down(peer) => {
                self.filling.remove_peer(peer);
                self.fetch.remove_peer(peer);
            }
            Event::Begin(least, number) => self.begin(least.checkpoint.height, number)?,
            Event::Cancel => self.fetch.cancel(),
            Event::Offer(offer) => {
                let (header, certificate, state) = *offer;
                self.serving.offer(header, certificate, state);
            }
            Event::Stored { missing, proven } => {
                if self.fetch.is_idle() {
                    self.filling.stored(missing, proven, self.now_ms());
                }
            }
            Event::Frames(from, delivery) => {
                for frame in &delivery.frames {
                    match TransferMessage::decode(frame) {
                        Ok(message) => self.message(from, message)?,
                        Err(error) => self.refuse(from, &error),
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, least: Sequence, number: FetchNumber) -> Result<(), StorageError> {
        let Some(actions) = self.fetch.begin(least, number, self.now_ms()) else { return Ok(()) };
        tracing::info!(height = least.0, "fetching certified state");
        self.filling.suspend();
        self.carry_out(actions)
    }

    /// A peer sent what is no message. It is not read for a while if it goes on.
    fn refuse(&self, from: ReplicaId, error: &WireError) {
        tracing::debug!(%from, %error, "refused a frame of state transfer");
        self.metrics.peer_rejected(from, &Reject::Malformed("a frame of state transfer"));
        if let Some(key) = self.peer_keys.get(&from) {
            self.patience.spend(key, Trouble::Broken);
        }
    }

    fn go_on(&mut self) -> Result<(), StorageError> {
        let now = self.now_ms();
        self.serving.expire(now);
        if self.fetch.is_idle() {
            if let Some((to, question)) = self.filling.poll(now) {
                self.send(to, &question);
            }
            return Ok(());
        }
        let actions = self.fetch.poll(now)?;
        self.carry_out(actions)
    }

    fn message(&mut self, from: ReplicaId, message: TransferMessage) -> Result<(), StorageError> {
        let now = self.now_ms();
        if let Some(frame) = self.serving.answer(from, &message, now)? {
            self.send_frame(from, frame);
            return Ok(());
        }
        if self.fetch.is_idle() {
            let blocks = self.filling.on_message(from, message, now)?;
            if !blocks.is_empty() {
                let _ = self.executor.push(Source::Internal, 0, Task::Fill(blocks));
            }
            return Ok(());
        }
        let reader = || self.ledger.snapshot();
        let actions = self.fetch.on_message(from, message, now, reader)?;
        self.carry_out(actions)
    }

    fn send(&self, to: ReplicaId, message: &TransferMessage) {
        self.send_frame(to, Bytes::from(message.encode()));
    }

    fn send_frame(&self, to: ReplicaId, frame: Bytes) {
        if let Some(mesh) = self.mesh.get() {
            // What is dropped is asked for again.
            mesh.send(to, Class::Bulk, frame);
        }
    }
}
