//! Bringing the state trie to a checkpoint, beside execution.
//!
//! A block that is a checkpoint leaves a pending job behind, in its own write batch. The job applies
//! the rows that changed since the checkpoint before to the trie, and in one synced batch writes the
//! trie, removes what it applied and itself. Cut off at any point, it is found again by
//! [`crate::executor::Executor::pending_checkpoints`] and runs from its start. Execution goes on
//! meanwhile: its rows are dirty under the next interval. Jobs run in order of height, one at a time.

use super::{META_CHECKPOINT, META_FOLDED, dirty_key, parse, pending_key, read};
use crate::engine::{Checkpointed, NextEpoch};
use crate::message::Checkpoint;
use crate::state_trie::{self, DirtyLeaf};
use crate::storage::{Durability, Snapshot, Storage, StorageError, Table};
use crate::types::{Epoch, Sequence};
use crate::view::after;
use conclave_crypto::digest::Digest;
use conclave_crypto::mistake;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Blocks whose changes one read brings.
const BLOCKS_PER_READ: usize = 64;

/// Held by whoever changes the trie: a job, or the executor that replaces the whole state.
pub(crate) type TrieLock = Arc<Mutex<()>>;

/// A checkpoint whose trie is still to be brought up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingCheckpoint {
    pub(crate) epoch: Epoch,
    pub(crate) height: Sequence,
    pub(crate) header: Digest,
    /// The first height after the checkpoint before.
    pub(crate) interval: Sequence,
    pub(crate) next: Option<NextEpoch>,
}

/// The work that a checkpoint leaves to be done off the executor's thread.
#[derive(Clone)]
pub struct CheckpointJob {
    pub(crate) pending: PendingCheckpoint,
    pub(crate) lock: TrieLock,
    pub(crate) state: Option<Arc<dyn Snapshot>>,
}

impl fmt::Debug for CheckpointJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CheckpointJob").field(&self.pending).finish_non_exhaustive()
    }
}

impl CheckpointJob {
    /// The checkpoint's height.
    #[must_use]
    pub fn height(&self) -> Sequence {
        self.pending.height
    }

    /// The replicated tables as they stood right after the checkpoint's block, to serve them to
    /// others; `None` when the job was found at a start, for the state has moved on since.
    #[must_use]
    pub fn state(&self) -> Option<&Arc<dyn Snapshot>> {
        self.state.as_ref()
    }

    /// Brings the trie up and syncs the ledger. `None` when the job has become void, because the
    /// state was set aside or replaced meanwhile. Run again after it is done, it says the same.
    ///
    /// # Errors
    /// When the storage fails.
    ///
    /// # Panics
    /// If an earlier job has not run: whoever runs jobs keeps their order.
    pub fn run<S: Storage>(&self, storage: &S) -> Result<Option<Checkpointed>, StorageError> {
        let _trie = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let PendingCheckpoint { epoch, height, header, interval, next } = &self.pending;
        let done: Option<Checkpoint> = read(storage, Table::Meta, META_CHECKPOINT)?;
        let waiting: Option<PendingCheckpoint> = read(storage, Table::Meta, &pending_key(*height))?;
        let state_root = if waiting.as_ref() == Some(&self.pending) {
            let expected = done.map_or(Sequence(1), |done| done.height.next());
            assert_eq!(*interval, expected, "checkpoint jobs run in order");
            let (state_root, mut batch) =
                state_trie::update(&*storage.snapshot()?, dirty(storage, *interval)?)?;
            let checkpoint =
                Checkpoint { epoch: *epoch, height: *height, header: *header, state_root };
            batch.put(Table::Meta, META_CHECKPOINT, crate::wire::encode(&checkpoint));
            batch.delete(Table::Meta, pending_key(*height));
            batch.delete(Table::Meta, META_FOLDED);
            let (from, to) = dirty_range(*interval);
            batch.delete_range(Table::Dirty, from, to);
            let unsynced = mistake!("checkpoint-before-ledger-durable");
            let durability = if unsynced { Durability::Buffered } else { Durability::Synced };
            storage.write(batch, durability)?;
            state_root
        } else {
            match done {
                Some(done) if done.height == *height && done.header == *header => done.state_root,
                _ => return Ok(None),
            }
        };
        let (height, header, next) = (*height, *header, next.clone());
        Ok(Some(Checkpointed { height, header, state_root, next }))
    }
}

/// All rows that changed in an interval, in the order of its blocks. Memory: about 150 bytes for each, as many as the
/// requests of one checkpoint interval wrote.
pub(crate) fn dirty<S: Storage>(
    storage: &S,
    interval: Sequence,
) -> Result<Vec<(Digest, DirtyLeaf)>, StorageError> {
    let (from, to) = dirty_range(interval);
    dirty_between(storage, from, &to)
}

/// All rows that changed in the intervals from `interval` on, in the order of their blocks.
pub(super) fn dirty_after<S: Storage>(
    storage: &S,
    interval: Sequence,
) -> Result<Vec<(Digest, DirtyLeaf)>, StorageError> {
    let (from, _) = dirty_range(interval);
    dirty_between(storage, from, &[u8::MAX; 17])
}

fn dirty_between<S: Storage>(
    storage: &S,
    mut from: Vec<u8>,
    to: &[u8],
) -> Result<Vec<(Digest, DirtyLeaf)>, StorageError> {
    let mut changes = Vec::new();
    loop {
        let rows = storage.scan(Table::Dirty, &from, Some(to), BLOCKS_PER_READ)?;
        let full = rows.len() == BLOCKS_PER_READ;
        if let Some((last, _)) = rows.last() {
            from = after(last);
        }
        for (key, value) in rows {
            for leaf in parse::<Vec<DirtyLeaf>>(Table::Dirty, &key, &value)? {
                let path = leaf.path();
                let path = path.ok_or_else(|| super::damaged(Table::Dirty, &key, "no table"))?;
                changes.push((path, leaf));
            }
        }
        if !full {
            return Ok(changes);
        }
    }
}

fn dirty_range(interval: Sequence) -> (Vec<u8>, Vec<u8>) {
    let from = dirty_key(interval, Sequence(0));
    let to = dirty_key(interval.next(), Sequence(0));
    (from.to_vec(), to.to_vec())
}
