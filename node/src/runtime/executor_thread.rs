//! The executor thread owns the ledger: it executes, attests and answers, in order.

use super::background::Job;
use super::door::Hatch;
use super::event::Event;
use super::inbox::{Inbox, Portion, Source};
use super::routes::{ConnectionId, Routes};
use super::{Failure, Shared};
use crate::transfer::{StateAt, TransferHandle};
use crate::transport::{ClientConnectionId, ClientEndpointHandle, Trouble};
use bytes::Bytes;
use conclave_consensus::client_wire::{NodeFrame, Outcome, Refusal};
use conclave_consensus::engine::{Checkpointed, Committed};
use conclave_consensus::executor::{Executed, Executor};
use conclave_consensus::kv::KeyValueStore;
use conclave_consensus::ledger::{FillError, StoredBlock};
use conclave_consensus::message::{BlockReplies, CheckpointCertificate, EpochEnd, SignedRequest};
use conclave_consensus::state_sync::{FetchNumber, TransferTarget};
use conclave_consensus::storage::StorageError;
use conclave_consensus::types::Sequence;
use conclave_consensus::wire;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What the executor thread is asked to do, in this order; but look-ups let everything else pass.
pub(crate) enum Task {
    /// Execute the next block.
    Commit(Box<Committed>),
    /// Answer a request that was sent before, or hand it to ordering.
    Lookup(ConnectionId, Box<SignedRequest>),
    /// Store a stable certificate, synced.
    Stable(Box<CheckpointCertificate>),
    /// A checkpoint job ended; the state at it, to serve to others.
    Checkpointed(Box<Checkpointed>, Option<StateAt>),
    /// Stop executing: this ledger differs from a certified state.
    Diverged(Box<CheckpointCertificate>),
    /// Stop executing and fetch a certified state at least as new as this.
    Fetch(Box<CheckpointCertificate>),
    /// Nobody serves a certified state: go on executing, if this ledger can.
    Unserved(FetchNumber),
    /// The certified state is staged: put it in place.
    Install(Box<TransferTarget>, FetchNumber),
    /// Store blocks behind a transferred state, the highest first.
    Fill(Vec<StoredBlock>),
    /// Keep what proves how earlier epochs ended.
    EpochEnds(Vec<EpochEnd>),
    /// Stop, after what was decided before.
    Stop,
}

pub(crate) struct ExecutorThread<M> {
    pub executor: Executor<crate::storage::RocksStorage, KeyValueStore>,
    pub inbox: Arc<Inbox<Task>>,
    pub replica: Arc<Inbox<Event<M>>>,
    pub background: Arc<Inbox<Job>>,
    pub routes: Arc<Routes>,
    pub clients: ClientEndpointHandle,
    pub requests: Box<dyn Fn(SignedRequest) -> bool + Send>,
    pub shared: Arc<Shared>,
    pub failure: Arc<Failure>,
    pub transfer: TransferHandle,
    /// States at checkpoints that are not stable yet.
    pub states: BTreeMap<Sequence, StateAt>,
    /// A certified state is being fetched: nothing is executed.
    pub fetching: bool,
    /// Of the fetch that began last.
    pub fetch: FetchNumber,
    /// Blocks that were on their way when that began; the engine's window bounds them.
    pub held: Vec<Committed>,
}

/// A checkpoint this far below a newer one is not served any more, stable or not.
const STATES_KEPT_BELOW: u64 = 512;

/// Taken at once. A look-up may read a whole block, so that a commit waits for one at most.
const PORTION: Portion = Portion { internal: 64, others: 1, bytes: usize::MAX };

/// A block of no more requests and bytes may be executed in passing.
const SMALL: (usize, usize) = (8, 16 << 10);

/// Blocks that a thread executes in passing.
const HELP_MAX: usize = 4;

impl Task {
    /// Done in less time than it takes to wake a thread for it.
    fn is_small(&self) -> bool {
        let Self::Commit(committed) = self else { return false };
        committed.batch.requests.len() <= SMALL.0 && committed.batch.bytes().len() <= SMALL.1
    }
}

impl<M: Send + 'static> ExecutorThread<M> {
    pub(crate) fn run(self, hatch: &Hatch<M>) {
        // A replica that starts idle stands where its ledger ends, not at 0.
        self.show();
        if let Err(error) = self.say_what_is_missing(true) {
            self.failure.storage(&error);
            return;
        }
        *hatch.executor() = Some(self);
        let mut taken = Vec::new();
        while hatch.inbox().wait(Duration::from_secs(3600)) {
            let mut place = hatch.executor();
            // Whoever met a failure in passing has told it.
            let Some(this) = place.as_mut() else { return };
            let _ = this.inbox.drain_portion(Duration::ZERO, PORTION, &mut taken);
            match this.carry_out_all(&mut taken) {
                Some(Some(height)) => this.tell(Event::Executed(height)),
                Some(None) => {}
                None => {
                    *place = None;
                    return;
                }
            }
        }
    }

    /// Executes small blocks on a thread that brought them while the executor's own slept. Whether
    /// there were any; nothing after a failure.
    pub(crate) fn help(&mut self) -> Option<bool> {
        let mut taken = Vec::new();
        while taken.len() < HELP_MAX
            && let Some(task) = self.inbox.take_if(Task::is_small)
        {
            taken.push(task);
        }
        let reached = self.carry_out_all(&mut taken)?;
        if let Some(height) = reached {
            // Who helps here takes it to the replica as well.
            let _ = self.replica.push_silently(Source::Internal, 0, Event::Executed(height));
        }
        Some(reached.is_some())
    }

    /// The new height, if there is one; nothing at all when this was the last that was done.
    fn carry_out_all(&mut self, tasks: &mut Vec<Task>) -> Option<Option<Sequence>> {
        let before = self.executor.height();
        for task in tasks.drain(..) {
            match self.carry_out(task) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failure.storage(&error);
                    return None;
                }
            }
        }
        let height = self.executor.height();
        Some((height != before).then_some(height))
    }

    fn carry_out(&mut self, task: Task) -> Result<bool, StorageError> {
        match task {
            Task::Commit(committed) => self.commit(*committed)?,
            Task::Lookup(connection, request) => self.lookup(connection, *request)?,
            Task::Stable(certificate) => self.stable(*certificate)?,
            Task::Checkpointed(done, state) => {
                if let Some(state) = state {
                    self.states.retain(|height, _| height.0 + STATES_KEPT_BELOW > done.height.0);
                    self.states.insert(done.height, state);
                }
                self.tell(Event::Checkpointed(*done));
            }
            Task::Diverged(certificate) => {
                self.executor.set_aside(&certificate)?;
                self.fetch(*certificate)?;
            }
            Task::Fetch(certificate) => self.fetch(*certificate)?,
            Task::Unserved(number) => self.unserved(number)?,
            Task::Install(target, number) => self.install(*target, number)?,
            Task::Fill(blocks) => self.fill(&blocks)?,
            Task::EpochEnds(ends) => self.executor.store_epoch_ends(&ends)?,
            Task::Stop => {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn stable(&mut self, certificate: CheckpointCertificate) -> Result<(), StorageError> {
        self.executor.stable(&certificate)?;
        let height = certificate.checkpoint.height;
        if let Some(state) = self.states.remove(&height)
            && let Some(header) = self.executor.reader().header(height)?
            && header.hash() == certificate.checkpoint.header
        {
            self.transfer.offer(header, certificate, state);
        }
        self.states.retain(|kept, _| *kept > height);
        self.tell(Event::StableStored(height));
        Ok(())
    }

    /// From here until the state is installed nothing is executed. While one is fetched, only what is enough changes.
    fn fetch(&mut self, least: CheckpointCertificate) -> Result<(), StorageError> {
        if !self.fetching {
            self.fetching = true;
            self.fetch.0 += 1;
            self.executor.fold()?;
        }
        self.transfer.begin(least, self.fetch);
        Ok(())
    }

    /// What an earlier fetch came to is void: something was executed since, and it may be missing there.
    fn is_fetching(&self, number: FetchNumber) -> bool {
        self.fetching && self.fetch == number
    }

    /// A ledger that differs from what is certified stands still until it is replaced; any other goes on.
    fn unserved(&mut self, number: FetchNumber) -> Result<(), StorageError> {
        if !self.is_fetching(number) || self.executor.diverged().is_some() {
            return Ok(());
        }
        tracing::info!("nobody serves a certified state; fetching blocks in its place");
        self.fetching = false;
        self.transfer.cancel();
        self.say_what_is_missing(true)?;
        self.tell(Event::Unserved);
        for committed in std::mem::take(&mut self.held) {
            self.commit(committed)?;
        }
        Ok(())
    }

    fn install(&mut self, target: TransferTarget, number: FetchNumber) -> Result<(), StorageError> {
        if !self.is_fetching(number) {
            // It was given up just before it was complete.
            return Ok(());
        }
        self.executor.install_staged(&target)?;
        tracing::info!(height = target.height().0, "the certified state is in place");
        self.fetching = false;
        self.failure.recovered();
        self.show();
        self.say_what_is_missing(true)?;
        self.tell(Event::Installed(target.certificate, target.header.next_epoch));
        for committed in std::mem::take(&mut self.held) {
            self.commit(committed)?;
        }
        Ok(())
    }

    /// Stores blocks behind a transferred state. While another is fetched they are dropped, and
    /// asked for again afterwards if they are still missing.
    fn fill(&mut self, blocks: &[StoredBlock]) -> Result<(), StorageError> {
        if self.fetching {
            return Ok(());
        }
        let reader = self.executor.reader();
        let mut proven = true;
        for block in blocks {
            if reader.missing()? != Some(block.header.height) {
                break;
            }
            match reader.fill(block) {
                Ok(()) => {}
                Err(FillError::Unproven(_)) => {
                    proven = false;
                    break;
                }
                Err(FillError::Storage(error)) => return Err(error),
            }
        }
        self.say_what_is_missing(proven)
    }

    fn say_what_is_missing(&self, proven: bool) -> Result<(), StorageError> {
        let missing = self.executor.reader().missing()?;
        let first = missing.map_or(1, |height| height.0 + 1);
        self.shared.progress.first_block.store(first, Ordering::Relaxed);
        self.transfer.stored(missing, proven);
        Ok(())
    }

    fn commit(&mut self, committed: Committed) -> Result<(), StorageError> {
        if self.fetching {
            // The engine hands over nothing more while a state is fetched; these were on their way.
            self.held.push(committed);
            return Ok(());
        }
        let Some(executed) = self.executor.execute(committed)? else { return Ok(()) };
        self.shared.metrics.blocks.inc();
        self.shared.metrics.requests.inc_by(executed.results.len() as u64);
        self.blame(&executed);
        self.answer(&executed);
        if let Some(job) = executed.checkpoint {
            let _ = self.background.push(Source::Internal, 0, Job::Checkpoint(Box::new(job)));
        }
        self.show();
        Ok(())
    }

    /// Who sends what is refused once it is ordered is put up with for a while. Not for what may be
    /// refused because somebody else ordered it again.
    fn blame(&self, executed: &Executed) {
        for (key, result) in executed.keys.iter().zip(&executed.results) {
            let Ok(outcome) = wire::decode::<Outcome>(&result.outcome, wire::FRAME_BYTES_MAX)
            else {
                continue;
            };
            let Outcome::Refused(refusal) = outcome else { continue };
            let replayed = matches!(refusal, Refusal::Stale(_) | Refusal::Conflict(_));
            if !replayed && self.shared.recent.contains(&result.request) {
                self.shared.patience.spend(&key.client, Trouble::Refused);
            }
        }
    }

    /// One frame to each connection that waits for an answer of this block. A replica that lost its
    /// votes vouches for nothing until it has rejoined.
    fn answer(&self, executed: &Executed) {
        if self.shared.rejoining() {
            return;
        }
        for (connection, positions) in self.routes.wanted(executed.keys.iter()) {
            for replies in self.executor.replies(executed, &positions) {
                self.reply(connection, replies);
            }
        }
    }

    fn reply(&self, connection: ConnectionId, replies: BlockReplies) {
        let frame = NodeFrame::Replies(Box::new(replies));
        self.clients.reply(ClientConnectionId(connection.0), Bytes::from(wire::encode(&frame)));
    }

    fn lookup(
        &mut self,
        connection: ConnectionId,
        request: SignedRequest,
    ) -> Result<(), StorageError> {
        let recorded =
            if self.shared.rejoining() { None } else { self.executor.lookup(&request)? };
        match recorded {
            Some(replies) => self.reply(connection, replies),
            None => {
                // A full queue is the client's to notice: it sends again.
                let _ = (self.requests)(request);
            }
        }
        Ok(())
    }

    fn show(&self) {
        let height = self.executor.height().0;
        self.shared.progress.height.store(height, Ordering::Relaxed);
        self.shared.metrics.height.set(i64::try_from(height).unwrap_or(i64::MAX));
    }

    fn tell(&self, event: Event<M>) {
        // Refused only when the process is stopping.
        let _ = self.replica.push(Source::Internal, 0, event);
    }
}
