//! From a fetched state to the ledger's own: comparing before, and swapping in after.

use super::Executor;
use crate::ledger::{self, META_FOLDED};
use crate::state_machine::StateMachine;
use crate::state_sync::{Swap, SwapError, SwapStep, TransferTarget};
use crate::state_trie;
use crate::storage::{Durability, Storage, StorageError, Table};
use std::sync::PoisonError;

/// One batch of a swap, bytes. Tests want many.
const SWAP_BYTES: usize = if cfg!(test) { 2000 } else { 4 << 20 };

impl<S: Storage, M: StateMachine> Executor<S, M> {
    /// Brings the trie up to the tip, beyond the last checkpoint, so that a transfer can compare the
    /// own state with the certified one. Changes nothing that a later checkpoint depends on: the rows
    /// stay dirty, and applying them again yields the same trie.
    ///
    /// Where the ledger has diverged, every row is compared with the trie: what made it differ may be
    /// a row that nobody knows to have changed, and the transfer would take it for equal.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn fold(&mut self) -> Result<(), StorageError> {
        for job in self.pending_checkpoints()? {
            job.run(&*self.storage)?;
        }
        let _trie = self.trie.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.storage.snapshot()?;
        let rows = match self.diverged {
            Some(_) => state_trie::differences(&*snapshot)?,
            None => ledger::dirty(&*self.storage, self.tip.interval)?,
        };
        let (_, mut batch) = state_trie::update(&*snapshot, rows)?;
        batch.put(Table::Meta, META_FOLDED, ledger::height_key(self.tip.height));
        self.storage.write(batch, Durability::Synced)
    }

    /// Puts a completely staged target in place; see [`Self::install`]. A kill at any step is made
    /// good by the next [`Self::open`].
    ///
    /// # Errors
    /// When the storage fails or the target is not completely staged.
    pub fn install_staged(&mut self, target: &TransferTarget) -> Result<bool, StorageError> {
        if self.diverged.is_none() && self.tip.height >= target.height() {
            return Ok(false);
        }
        let swap = Swap::begin(target.clone(), self.storage.snapshot()?);
        self.swap(swap)
    }

    /// Carries a swap to its end. One that a kill cut off is found by [`Self::open`]: until it ends
    /// the tables are no state at all.
    pub(super) fn swap(&mut self, mut swap: Swap) -> Result<bool, StorageError> {
        let target = swap.target().clone();
        // Ends: each step consumes part of the staged state.
        loop {
            let step = swap.next_step(SWAP_BYTES).map_err(|error| match error {
                SwapError::Storage(error) => error,
                SwapError::Incomplete { .. } => StorageError {
                    operation: "swap",
                    location: "the staged state".to_owned(),
                    reason: error.to_string(),
                },
            })?;
            match step {
                SwapStep::More(batch) => self.storage.write(batch, Durability::Buffered)?,
                SwapStep::Last(batch) => {
                    return self.install(&target.header, &target.certificate, batch);
                }
            }
        }
    }
}
