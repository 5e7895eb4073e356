//! The executor owns the ledger: it executes decided batches in order, attests and answers.
//!
//! A block is one atomic write batch: header, results, body, certificate, state, sessions and tip
//! together, buffered. Executing needs no sync, because whatever is lost is decided still and comes
//! again from the journal or from peers, and executing it again yields the same bytes; a checkpoint
//! syncs. Everything here is a function of the ledger and the batch: two replicas with one ledger
//! and one batch write the same rows and the same header.
//!
//! A sequence number n is a checkpoint when n is a multiple of K (OSDI'99 §4.3), when its batch
//! carries a change, or when it is marked and its header's time lies a second or more after the last
//! checkpoint's. A mark that comes earlier is ignored, so that a primary cannot buy a sync per batch.

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod epoch_tests;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod install_tests;
mod open;
mod replace;
mod stable;
mod staged;
#[cfg(test)]
mod tests;

use crate::client_wire::{Outcome, Refusal};
use crate::engine::{Committed, NextEpoch};
use crate::ledger::{
    self, BlockResult, META_CHECKPOINT, META_EPOCH, META_PENDING, META_TIP, PendingCheckpoint,
    TipRecord, TrieLock, dirty_key, height_key, pending_key, read, results_key,
};
use crate::membership::{Limits, Membership};
use crate::message::{
    BlockHeader, BlockReplies, CheckpointCertificate, EpochEnd, LedgerTip, RequestBody, RequestKey,
    SignedRequest,
};
use crate::registry::Registry;
use crate::sessions::{Admission, Place, SessionTable};
use crate::state_machine::{Context, StateMachine};
use crate::state_trie::DirtyLeaf;
use crate::storage::{Durability, Snapshot, Storage, StorageError, Table, WriteBatch};
use crate::types::{ReplicaId, Sequence, Timestamp};
use crate::view::{BlockView, Overlay};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::merkle::MerkleTree;
use conclave_crypto::signature::Signature;
use conclave_crypto::{mark, mistake};
use std::cell::OnceCell;
use std::sync::Arc;

pub use crate::ledger::{CheckpointJob, LedgerReader};
pub use open::OpenError;

/// What the reads of one block may answer in all, bytes: results are held in memory and stored.
pub const BLOCK_ANSWER_BYTES_MAX: usize = 64 << 20;

/// A marked batch is a checkpoint when the last one is this much older, milliseconds.
pub const MARKED_CHECKPOINT_INTERVAL_MS: u64 = 1000;

/// Ends of epochs that one read brings.
const EPOCH_ENDS_PER_READ: usize = 1024;

/// Jobs that a crash can leave behind: the window holds fewer checkpoints than this.
const PENDING_MAX: usize = 4096;

/// An executed block: its answers, and what it leaves to be done.
#[derive(Debug)]
pub struct Executed {
    /// The block.
    pub header: BlockHeader,
    /// Its header's hash.
    pub hash: Digest,
    /// What names each request, in block order; `results` has their answers at the same positions.
    pub keys: Vec<RequestKey>,
    /// The answers, in block order.
    pub results: Vec<BlockResult>,
    /// The tree over the answers.
    pub tree: MerkleTree,
    /// To be run off this thread, in order, when the block is a checkpoint.
    pub checkpoint: Option<CheckpointJob>,
    /// This replica's word for it, once somebody was answered.
    pub attestation: OnceCell<(ReplicaId, Signature)>,
}

/// The owner of a ledger. One per storage.
pub struct Executor<S, M> {
    storage: Arc<S>,
    machine: M,
    limits: Limits,
    cluster: Digest,
    reader: LedgerReader<S>,
    tip: TipRecord,
    /// The epoch that the tip's block or an earlier one began and that is not yet stable.
    epoch: Option<NextEpoch>,
    registry: Registry,
    sessions: SessionTable,
    trie: TrieLock,
    /// Differs from this certified state: executes nothing until the state is installed.
    diverged: Option<CheckpointCertificate>,
    /// Set while a block executes, and for ever when it failed: memory and disk may differ.
    broken: bool,
}

impl<S: Storage, M: StateMachine> Executor<S, M> {
    /// The last executed height.
    #[must_use]
    pub fn height(&self) -> Sequence {
        self.tip.height
    }

    /// A handle for other threads.
    #[must_use]
    pub fn reader(&self) -> LedgerReader<S> {
        self.reader.clone()
    }

    /// The organizations, clients and members as of the tip.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The certified state that this ledger was found to differ from, until one is installed.
    #[must_use]
    pub fn diverged(&self) -> Option<&CheckpointCertificate> {
        self.diverged.as_ref()
    }

    /// What an engine starts from.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn tip(&self) -> Result<LedgerTip, StorageError> {
        let mut epoch_ends: Vec<EpochEnd> = Vec::new();
        loop {
            let from = epoch_ends.last().map_or(0, |end| end.header.epoch.0.saturating_add(1));
            let mut more = self.reader.epoch_ends(from, EPOCH_ENDS_PER_READ)?;
            let full = more.len() == EPOCH_ENDS_PER_READ;
            epoch_ends.append(&mut more);
            if !full {
                break;
            }
        }
        Ok(LedgerTip {
            height: self.tip.height,
            header: self.tip.header,
            membership: Membership::clone(self.registry.membership()),
            base: self.registry.base(),
            stable: self.reader.stable(self.tip.height)?,
            checkpoint: read(&*self.storage, Table::Meta, META_CHECKPOINT)?,
            pending_epoch: self.epoch.clone(),
            epoch_ends,
        })
    }

    /// The checkpoint jobs that have not ended, in the order in which they must run.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn pending_checkpoints(&self) -> Result<Vec<CheckpointJob>, StorageError> {
        let to = [META_PENDING, &[u8::MAX; 9]].concat();
        let rows = self.storage.scan(Table::Meta, META_PENDING, Some(&to), PENDING_MAX)?;
        rows.iter()
            .map(|(key, value)| Ok(self.job(ledger::parse(Table::Meta, key, value)?, None)))
            .collect()
    }

    fn job(&self, pending: PendingCheckpoint, state: Option<Arc<dyn Snapshot>>) -> CheckpointJob {
        CheckpointJob { pending, lock: self.trie.clone(), state }
    }

    /// The answer to a request that was executed before; see [`LedgerReader::lookup`]. A ledger that
    /// has diverged vouches for nothing.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn lookup(&self, request: &SignedRequest) -> Result<Option<BlockReplies>, StorageError> {
        if self.diverged.is_some() {
            return Ok(None);
        }
        self.reader.lookup(request)
    }

    /// Executes the next block. `None` when it was executed before, or the ledger has diverged.
    ///
    /// # Errors
    /// When the storage fails; from then on every call does, for memory may be ahead of the disk.
    ///
    /// # Panics
    /// If the block does not follow on the tip in its epoch: the engine decides in order.
    pub fn execute(&mut self, committed: Committed) -> Result<Option<Executed>, StorageError> {
        self.intact()?;
        let before = committed.sequence <= self.tip.height;
        if before && !mistake!("executed-batch-executed-again") || self.diverged.is_some() {
            return Ok(None);
        }
        assert_eq!(committed.sequence, self.tip.height.next(), "blocks are executed in order");
        assert_eq!(
            committed.epoch,
            self.registry.membership().epoch,
            "a block is decided in the epoch in force"
        );
        self.broken = true;
        let executed = self.execute_block(committed)?;
        self.broken = false;
        Ok(Some(executed))
    }

    fn intact(&self) -> Result<(), StorageError> {
        if self.broken {
            return Err(StorageError {
                operation: "execute",
                location: "the executor".to_owned(),
                reason: "an earlier block failed; restart this replica".to_owned(),
            });
        }
        Ok(())
    }

    fn execute_block(&mut self, committed: Committed) -> Result<Executed, StorageError> {
        let Committed { sequence: height, epoch, batch, certificate } = committed;
        let storage = self.storage.clone();
        let mut view = BlockView::new(&*storage);
        let timestamp = if mistake!("time-goes-back") {
            batch.timestamp
        } else {
            self.tip.timestamp.max(batch.timestamp)
        };
        let mut budget = BLOCK_ANSWER_BYTES_MAX;
        let mut keys = Vec::with_capacity(batch.requests.len());
        let mut results = Vec::with_capacity(batch.requests.len());
        for (index, request) in (0u32..).zip(&batch.requests) {
            let place = Place { height, index };
            let outcome = self.request(&mut view, request, place, timestamp, budget)?;
            let outcome = wire::encode(&outcome);
            budget = budget.saturating_sub(outcome.len());
            keys.push(request.key());
            results.push(BlockResult { request: request.digest(), outcome });
        }
        self.sessions.flush(&mut view);
        let changed = self.change(&mut view, &batch, height, timestamp);
        let tree = ledger::results_tree(&results);
        let header = BlockHeader {
            cluster: self.cluster,
            epoch,
            height,
            parent: self.tip.header,
            timestamp,
            batch: batch.digest(),
            results_root: tree.root(),
            membership: self.registry.membership_digest(),
            next_epoch: self.registry.membership().epoch,
        };
        let hash = header.hash();
        let next = changed.then(|| NextEpoch {
            header: header.clone(),
            membership: Membership::clone(self.registry.membership()),
            batch: batch.clone(),
        });
        let mut write = WriteBatch::default();
        write.put(Table::Blocks, height_key(height), wire::encode(&header));
        write.put(Table::Blocks, results_key(height), wire::encode(&results));
        write.put(Table::Bodies, height_key(height), batch.bytes());
        write.put(Table::Commits, height_key(height), certificate);
        write_state(&mut write, dirty_key(self.tip.interval, height), view.into_overlay());
        let checkpoint =
            self.advance(&mut write, &header, hash, batch.checkpoint, &next, &batch)?;
        storage.write(write, Durability::Buffered)?;
        let checkpoint = match checkpoint {
            Some(pending) => Some(self.job(pending, Some(storage.snapshot()?))),
            None => None,
        };
        let attestation = OnceCell::new();
        Ok(Executed { header, hash, keys, results, tree, checkpoint, attestation })
    }

    /// The answers of a block at these positions, attested, in as many frames as their size asks for. A block that nobody
    /// asks about, as while this replica catches up, costs no signature.
    ///
    /// # Panics
    /// If there is no such position.
    #[must_use]
    pub fn replies(&self, executed: &Executed, positions: &[usize]) -> Vec<BlockReplies> {
        if positions.is_empty() {
            return Vec::new();
        }
        let Executed { header, hash, results, tree, attestation, .. } = executed;
        let attestation = attestation.get_or_init(|| self.reader.attest(header, *hash));
        ledger::replies(header, *attestation, results, tree, positions)
    }

    fn request(
        &mut self,
        view: &mut BlockView<'_, S>,
        request: &SignedRequest,
        place: Place,
        timestamp: Timestamp,
        answer_bytes_max: usize,
    ) -> Result<Outcome, StorageError> {
        let Some(client) = self.registry.client(&request.key().client).cloned() else {
            return Ok(Outcome::Refused(Refusal::NotRegistered));
        };
        let Some(operations) = request.operations() else {
            let close = match request.request().body {
                RequestBody::OpenSession { close, .. } => close,
                RequestBody::Submit { .. } => None,
            };
            let opened = self.sessions.open(view, request, close, place)?;
            return Ok(match opened {
                Ok(session) => Outcome::Opened { session },
                Err(refusal) => Outcome::Refused(refusal),
            });
        };
        match self.sessions.admit(view, request, place)? {
            Admission::Duplicate(Place { height, index }) => {
                mark!("a request is executed a second time and answered as a duplicate");
                return Ok(Outcome::Duplicate { height, index });
            }
            Admission::Refused(refusal) => return Ok(Outcome::Refused(refusal)),
            Admission::Fresh => self.sessions.record(request, place),
        }
        let (bytes, limit) =
            (request.wire_bytes() as u64, u64::from(self.limits.request_bytes_max));
        if bytes > limit {
            let what = "request".to_owned();
            return Ok(Outcome::Refused(Refusal::TooLarge { what, bytes, limit }));
        }
        let context = Context {
            height: place.height,
            timestamp,
            client: &client,
            limits: &self.limits,
            answer_bytes_max,
        };
        self.machine.execute(view, &context, operations).map(Outcome::Executed)
    }

    /// Lets the batch's change take effect if it may; says whether it did. A batch that carries
    /// requests beside a change breaks the protocol, and its change has no effect.
    fn change(
        &mut self,
        view: &mut BlockView<'_, S>,
        batch: &crate::message::Batch,
        height: Sequence,
        timestamp: Timestamp,
    ) -> bool {
        let Some(change) = batch.change.as_ref().filter(|_| batch.requests.is_empty()) else {
            return false;
        };
        let interval = self.limits.rejoin_interval_ms;
        let Some(next) = self.registry.decide(change, timestamp, interval, &self.cluster) else {
            return false;
        };
        self.registry.apply(view, change, next, height, timestamp);
        true
    }

    /// Moves the tip over this block, in memory and in the batch; says what checkpoint it leaves.
    fn advance(
        &mut self,
        write: &mut WriteBatch,
        header: &BlockHeader,
        hash: Digest,
        marked: bool,
        next: &Option<NextEpoch>,
        batch: &crate::message::Batch,
    ) -> Result<Option<PendingCheckpoint>, StorageError> {
        let BlockHeader { height, timestamp, epoch, .. } = *header;
        let due = self.tip.checkpoint_timestamp.plus(MARKED_CHECKPOINT_INTERVAL_MS);
        let checkpoint = height.0.is_multiple_of(self.limits.checkpoint_interval.max(1))
            || batch.change.is_some()
            || (marked && timestamp >= due);
        let pending = checkpoint.then(|| PendingCheckpoint {
            epoch,
            height,
            header: hash,
            interval: self.tip.interval,
            next: next.clone(),
        });
        (self.tip.height, self.tip.header, self.tip.timestamp) = (height, hash, timestamp);
        if let Some(pending) = &pending {
            self.tip.interval = height.next();
            self.tip.checkpoint_timestamp = timestamp;
            write.put(Table::Meta, pending_key(height), wire::encode(pending));
        }
        write.put(Table::Meta, META_TIP, wire::encode(&self.tip));
        if let Some(next) = next {
            write.put(Table::Meta, META_EPOCH, wire::encode(next));
            self.epoch = Some(next.clone());
            // Others may have proven this end before we executed it.
            if let Some(certificate) = self.reader.stable(height)? {
                self.end_epoch(write, &certificate);
            }
        }
        Ok(pending)
    }
}

/// Adds a block's writes of replicated rows, and under this key what the next checkpoint has to know of them.
fn write_state(write: &mut WriteBatch, at: [u8; 16], overlay: Overlay) {
    let mut dirty = Vec::new();
    for (table, key, value) in overlay.into_writes() {
        if table != Table::Sessions || !mistake!("sessions-left-out-of-state-root") {
            dirty.push(DirtyLeaf::new(table, &key, value.as_deref()));
        }
        match value {
            Some(value) => write.put(table, key, value),
            None => write.delete(table, key),
        }
    }
    if !dirty.is_empty() {
        write.put(Table::Dirty, at, wire::encode(&dirty));
    }
}
