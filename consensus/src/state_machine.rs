//! The seam to what the ledger computes.
//!
//! A state machine is deterministic: the same state, context and operations yield the same writes
//! and the same bytes on every replica, refusals included. It reads and writes through a
//! [`StateView`], so that a block becomes visible as a whole.

use crate::membership::{ClientEntry, Limits};
use crate::storage::{Entry, StorageError, Table};
use crate::types::{Sequence, Timestamp};

/// What a transaction may know of its surroundings.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The block's height; the revision of what the transaction writes.
    pub height: Sequence,
    /// The block's time.
    pub timestamp: Timestamp,
    /// Who asks, with role and prefix.
    pub client: &'a ClientEntry,
    /// The cluster's limits.
    pub limits: &'a Limits,
    /// What the block's answers may still hold, bytes: an answer with more reads is refused.
    pub answer_bytes_max: usize,
}

/// Reads and writes of one transaction over the block's own writes over the storage.
pub trait StateView {
    /// The value of a key.
    ///
    /// # Errors
    /// When the storage fails; the replica then stops.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Entries in key order, at most `limit`.
    ///
    /// # Errors
    /// When the storage fails; the replica then stops.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError>;

    /// Sets (`Some`) or removes (`None`) a key.
    fn set(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>);
}

/// What the ledger computes.
pub trait StateMachine: Send + Sync + 'static {
    /// Executes one transaction; an answer is bytes of the machine's own encoding. A refusal is an
    /// answer too and must leave the view as it was.
    ///
    /// # Errors
    /// Only when the storage fails.
    fn execute(
        &self,
        view: &mut dyn StateView,
        context: &Context<'_>,
        operations: &[u8],
    ) -> Result<Vec<u8>, StorageError>;
}
