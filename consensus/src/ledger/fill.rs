//! Filling in older blocks behind a transferred state.
//!
//! A block below the lowest one known is proven by the hash that its child's header carries, so
//! whoever supplies it need not be trusted. Blocks are filled from the certified one downwards,
//! which itself came without body, results and commit certificate.

use super::{
    BlockResult, FirstBlock, LedgerReader, META_FIRST, epoch_end_key, header, height_key, read,
    results, results_key, results_tree,
};
use crate::engine::Committed;
use crate::executor::BLOCK_ANSWER_BYTES_MAX;
use crate::kv::ANSWER_BYTES_MAX;
use crate::membership::Membership;
use crate::message::{Batch, BlockHeader, EpochEnd};
use crate::storage::{Durability, Storage, StorageError, Table, WriteBatch};
use crate::types::{Epoch, Sequence};
use crate::wire::{self, FRAME_BYTES_MAX, WireError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// All of a block, as one ledger supplies it to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBlock {
    /// Its header.
    pub header: BlockHeader,
    /// Its answers, in block order.
    pub results: Vec<BlockResult>,
    /// What was decided.
    pub batch: Arc<Batch>,
    /// The engine's proof that it was.
    #[serde(with = "serde_bytes")]
    pub certificate: Vec<u8>,
}

/// The longest encoding of a block, bytes: its answers, the last of which may overrun their cap, its
/// batch, and as much again for digests and lengths as a batch of the smallest requests needs.
pub const BLOCK_BYTES_MAX: usize = BLOCK_ANSWER_BYTES_MAX + ANSWER_BYTES_MAX + 2 * FRAME_BYTES_MAX;

const _: () = assert!(BLOCK_BYTES_MAX <= wire::STORED_BYTES_MAX);

impl StoredBlock {
    /// The canonical encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Decodes at most [`BLOCK_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`WireError`] when they are more, or no block.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > BLOCK_BYTES_MAX {
            return Err(WireError::TooLong { length: bytes.len(), limit: BLOCK_BYTES_MAX });
        }
        wire::decode_stored(bytes)
    }

    /// As an engine checks it.
    #[must_use]
    pub fn committed(&self) -> Committed {
        Committed {
            sequence: self.header.height,
            epoch: self.header.epoch,
            batch: self.batch.clone(),
            certificate: self.certificate.clone(),
        }
    }
}

/// Why a block is not filled in.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// It is not the one that is missing, or not what its child's header proves.
    #[error("the block is not the one below height {0}")]
    Unproven(Sequence),
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl<S: Storage> LedgerReader<S> {
    /// The members of an epoch, by the proven end of the one before; `genesis` are those of the
    /// first. `None` while that end is not stored here.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn members_of(
        &self,
        epoch: Epoch,
        genesis: &Membership,
    ) -> Result<Option<Membership>, StorageError> {
        let Some(before) = epoch.0.checked_sub(1).filter(|_| epoch != genesis.epoch) else {
            return Ok(Some(genesis.clone()));
        };
        let key = epoch_end_key(Epoch(before));
        let end: Option<EpochEnd> = read(self.storage(), Table::Checkpoints, &key)?;
        Ok(end.map(|end| end.next))
    }

    /// All of a block, where the ledger has all of it.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn block(&self, height: Sequence) -> Result<Option<StoredBlock>, StorageError> {
        let Some(results) = results(self.storage(), height)? else { return Ok(None) };
        let Some(committed) = self.decided(height.minus(1), 1, usize::MAX)?.pop() else {
            return Ok(None);
        };
        let Some(header) = self.header(height)?.filter(|_| committed.sequence == height) else {
            return Ok(None);
        };
        let (batch, certificate) = (committed.batch, committed.certificate);
        Ok(Some(StoredBlock { header, results, batch, certificate }))
    }

    /// The height of the block that [`Self::fill`] takes next; `None` when none is missing.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn missing(&self) -> Result<Option<Sequence>, StorageError> {
        let first: Option<FirstBlock> = read(self.storage(), Table::Meta, META_FIRST)?;
        let Some(first) = first else { return Ok(None) };
        let has_body = self.storage().get(Table::Bodies, &height_key(first.lowest))?.is_some();
        Ok(Some(if has_body { first.lowest.minus(1) } else { first.lowest }))
    }

    /// Fills in the block that is missing next. One caller at a time. Its commit certificate is for
    /// the caller to check: the hash chain does not cover it.
    ///
    /// # Errors
    /// [`FillError::Unproven`] when the block is another; nothing is written then.
    pub fn fill(&self, block: &StoredBlock) -> Result<(), FillError> {
        let first: Option<FirstBlock> = read(self.storage(), Table::Meta, META_FIRST)?;
        let (Some(mut first), Some(height)) = (first, self.missing()?) else {
            return Err(FillError::Unproven(Sequence(1)));
        };
        let Some(lowest) = self.header(first.lowest)? else {
            return Err(FillError::Unproven(first.lowest));
        };
        let expected = if height == first.lowest { lowest.hash() } else { lowest.parent };
        let StoredBlock { header: filled, results, batch, certificate } = block;
        let requests = batch.requests.iter().map(|request| request.digest());
        let proven = filled.height == height
            && filled.hash() == expected
            && filled.batch == batch.digest()
            && results.iter().map(|result| result.request).eq(requests)
            && results_tree(results).root() == filled.results_root;
        if !proven {
            return Err(FillError::Unproven(height.next()));
        }
        let mut write = WriteBatch::default();
        write.put(Table::Blocks, height_key(height), wire::encode(filled));
        write.put(Table::Blocks, results_key(height), wire::encode(results));
        write.put(Table::Bodies, height_key(height), batch.bytes());
        write.put(Table::Commits, height_key(height), certificate.clone());
        first.lowest = self.reached_below(filled)?;
        if first.lowest == Sequence(1) {
            write.delete(Table::Meta, META_FIRST);
        } else {
            write.put(Table::Meta, META_FIRST, wire::encode(&first));
        }
        self.storage().write(write, Durability::Buffered)?;
        Ok(())
    }

    /// The lowest block that hangs together with this one: blocks from before the transfer may.
    fn reached_below(&self, filled: &BlockHeader) -> Result<Sequence, StorageError> {
        let mut lowest = filled.clone();
        // Ends at height 1 or at the first gap.
        while let Some(below) = header(self.storage(), lowest.height.minus(1))?
            && below.hash() == lowest.parent
            && self.storage().get(Table::Bodies, &height_key(below.height))?.is_some()
        {
            lowest = below;
        }
        Ok(lowest.height)
    }
}
