//! State transfer: the thread that serves certified state to others and fetches it for this replica.
//!
//! What is said and checked is [`conclave_consensus::state_sync`]; here are the queue, the clock and
//! the disk. A transfer begins when the executor has stopped executing and ends by handing it the
//! staged, verified target.

use crate::runtime::Failure;
use crate::runtime::executor_thread::Task;
use crate::runtime::inbox::{Inbox, Quota, Source};
use crate::storage::RocksStorage;
use crate::transport::{Class, Delivery, PeerMeshHandle};
use bytes::Bytes;
use conclave_consensus::epoch_chain::MemberKeys;
use conclave_consensus::message::{BlockHeader, CheckpointCertificate};
use conclave_consensus::state_sync::{
    Pins, StateSync, SyncAction, TransferMessage, TransferTarget, serve,
};
use conclave_consensus::storage::{Durability, Snapshot, Storage, StorageError};
use conclave_consensus::types::{ReplicaId, Sequence};
use conclave_crypto::digest::Digest;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How often a transfer looks at its clock.
const TICK: Duration = Duration::from_millis(100);

/// A peer that did not name a target is asked again after this. Milliseconds.
const ASK_MS: u64 = 1_000;

/// Requests of each peer that wait here.
const QUOTA: Quota = Quota { items: 64, bytes: 16 << 20 };

/// Bytes of state served to all peers together in a second: catching up must not starve agreement.
const SERVED_PER_SECOND_MAX: usize = 64 << 20;

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
    Begin(Box<CheckpointCertificate>),
    /// A checkpoint became stable, and this is the state at it.
    Offer(Box<TransferTarget>, StateAt),
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
    pub(crate) fn begin(&self, least: CheckpointCertificate) {
        let _ = self.inbox.push(Source::Internal, 0, Event::Begin(Box::new(least)));
    }

    /// Serve this state to others from now on.
    pub(crate) fn offer(
        &self,
        header: BlockHeader,
        certificate: CheckpointCertificate,
        state: StateAt,
    ) {
        let target = Box::new(TransferTarget { header, certificate });
        let _ = self.inbox.push(Source::Internal, 0, Event::Offer(target, state));
    }
}

/// The thread, until it is stopped.
pub(crate) struct Transfer {
    handle: TransferHandle,
    mesh: Arc<OnceLock<PeerMeshHandle>>,
    thread: std::thread::JoinHandle<()>,
}

impl Transfer {
    /// Starts the thread; it sends nothing before [`Self::attach`].
    pub(crate) fn start(
        ledger: Arc<RocksStorage>,
        executor: Arc<Inbox<Task>>,
        failure: Arc<Failure>,
        members: MemberKeys,
        cluster: Digest,
    ) -> Result<Self, std::io::Error> {
        let inbox = Arc::new(Inbox::new(QUOTA));
        let mesh: Arc<OnceLock<PeerMeshHandle>> = Arc::default();
        let worker = Worker {
            inbox: inbox.clone(),
            mesh: mesh.clone(),
            ledger,
            executor,
            members,
            cluster,
            pins: Pins::default(),
            peers: Vec::new(),
            fetch: Fetch::Idle,
            started: Instant::now(),
            served: (0, 0),
        };
        let thread = std::thread::Builder::new().name("transfer".into()).spawn(move || {
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

enum Fetch {
    Idle,
    /// Asking peers which certified state they serve.
    Asking {
        least: Sequence,
        asked_ms: u64,
    },
    Running(Box<StateSync>),
}

struct Worker {
    inbox: Arc<Inbox<Event>>,
    mesh: Arc<OnceLock<PeerMeshHandle>>,
    ledger: Arc<RocksStorage>,
    executor: Arc<Inbox<Task>>,
    members: MemberKeys,
    cluster: Digest,
    pins: Pins<StateAt>,
    peers: Vec<ReplicaId>,
    fetch: Fetch,
    started: Instant,
    /// The second of the clock, and the bytes served in it.
    served: (u64, usize),
}

impl Worker {
    fn run(mut self) -> Result<(), StorageError> {
        let mut taken = Vec::new();
        loop {
            let busy = matches!(&self.fetch, Fetch::Running(sync) if sync.is_busy());
            let patience = if busy { Duration::ZERO } else { TICK };
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
                if !self.peers.contains(&peer) {
                    self.peers.push(peer);
                }
                if let Fetch::Running(sync) = &mut self.fetch {
                    sync.add_peer(peer);
                }
            }
            Event::Down(peer) => {
                self.peers.retain(|p| *p != peer);
                if let Fetch::Running(sync) = &mut self.fetch {
                    sync.remove_peer(peer);
                }
            }
            Event::Begin(least) => {
                tracing::info!(height = least.checkpoint.height.0, "fetching certified state");
                let least = least.checkpoint.height;
                self.fetch = Fetch::Asking { least, asked_ms: 0 };
                self.ask();
            }
            Event::Offer(target, state) => self.pins.offer(*target, state),
            Event::Frames(from, delivery) => {
                for frame in &delivery.frames {
                    match TransferMessage::decode(frame) {
                        Ok(message) => self.message(from, message)?,
                        Err(error) => {
                            tracing::warn!(%from, %error, "refused a frame of state transfer");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn go_on(&mut self) -> Result<(), StorageError> {
        let now = self.now_ms();
        self.pins.expire(now);
        match &mut self.fetch {
            Fetch::Idle => Ok(()),
            Fetch::Asking { asked_ms, .. } => {
                if now.saturating_sub(*asked_ms) >= ASK_MS {
                    self.ask();
                }
                Ok(())
            }
            Fetch::Running(sync) => {
                let actions = sync.poll(now)?;
                self.carry_out(actions)
            }
        }
    }

    fn ask(&mut self) {
        let now = self.now_ms();
        if let Fetch::Asking { asked_ms, .. } = &mut self.fetch {
            *asked_ms = now;
        }
        for peer in self.peers.clone() {
            self.send(peer, &TransferMessage::AskTarget);
        }
    }

    fn message(&mut self, from: ReplicaId, message: TransferMessage) -> Result<(), StorageError> {
        let now = self.now_ms();
        match message {
            TransferMessage::AskTarget => {
                let target = self.pins.ask(now).map(Box::new);
                self.send(from, &TransferMessage::Target(target));
            }
            TransferMessage::Request(request) => {
                if !self.may_serve(now) {
                    // The asker waits a little and asks again, this one or another.
                    return Ok(());
                }
                let answer = match self.pins.get(request.height, now) {
                    Some(state) => serve(&*state.trie, &*state.tables, &request)?,
                    None => TransferMessage::Unavailable { id: request.id },
                };
                self.send(from, &answer);
            }
            TransferMessage::Target(Some(target)) => self.target(from, *target)?,
            TransferMessage::Target(None) => {}
            TransferMessage::Chunk { .. } | TransferMessage::Unavailable { .. } => {
                if let Fetch::Running(sync) = &mut self.fetch {
                    let actions = sync.on_message(from, message, now)?;
                    self.carry_out(actions)?;
                }
            }
        }
        Ok(())
    }

    fn may_serve(&mut self, now_ms: u64) -> bool {
        let second = now_ms / 1000;
        if self.served.0 != second {
            self.served = (second, 0);
        }
        self.served.1 < SERVED_PER_SECOND_MAX
    }

    /// A peer names its newest certified state; the certificate is believed, never the peer.
    fn target(&mut self, from: ReplicaId, target: TransferTarget) -> Result<(), StorageError> {
        let Fetch::Asking { least, .. } = &self.fetch else { return Ok(()) };
        if target.height() < *least {
            return Ok(());
        }
        if let Err(error) = target.verify(&self.members, &self.cluster) {
            tracing::warn!(%from, %error, "refused the target of a state transfer");
            return Ok(());
        }
        tracing::info!(%from, height = target.height().0, "fetching this certified state");
        let reader = self.ledger.snapshot()?;
        self.fetch = Fetch::Running(Box::new(StateSync::begin(target, reader, self.peers.clone())));
        Ok(())
    }

    fn carry_out(&mut self, actions: Vec<SyncAction>) -> Result<(), StorageError> {
        for action in actions {
            match action {
                SyncAction::Send { to, message } => self.send(to, &message),
                SyncAction::Stage(batch) => self.ledger.write(batch, Durability::Buffered)?,
                SyncAction::Blame { peer, what } => {
                    tracing::warn!(%peer, reason = %what, "a peer sent state that is not certified");
                }
                SyncAction::NeedTarget => {
                    if let Fetch::Running(sync) = &self.fetch {
                        let least = sync.target().height();
                        self.fetch = Fetch::Asking { least, asked_ms: 0 };
                        self.ask();
                    }
                }
                SyncAction::Complete => self.complete()?,
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), StorageError> {
        if let Fetch::Running(sync) = std::mem::replace(&mut self.fetch, Fetch::Idle) {
            self.ledger.sync()?;
            let progress = sync.progress();
            tracing::info!(
                height = sync.target().height().0,
                rows = progress.rows,
                fetched = progress.fetched,
                bytes = progress.bytes,
                "fetched certified state"
            );
            if let Some((table, key)) = sync.first_difference() {
                tracing::info!(table = table.name(), key = %String::from_utf8_lossy(key), "the first row that differed");
            }
            let target = Box::new(sync.target().clone());
            let _ = self.executor.push(Source::Internal, 0, Task::Install(target));
        }
        Ok(())
    }

    fn send(&mut self, to: ReplicaId, message: &TransferMessage) {
        let frame = Bytes::from(message.encode());
        self.served.1 += frame.len();
        if let Some(mesh) = self.mesh.get() {
            // What is dropped is asked for again.
            mesh.send(to, Class::Bulk, frame);
        }
    }
}
