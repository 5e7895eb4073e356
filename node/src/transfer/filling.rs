//! Filling in the blocks behind a transferred state, slowly, beside everything else.
//!
//! The executor alone writes blocks, and says after each write which one is missing next: only then
//! is the next asked for, so that a busy executor slows the filling and never the other way round.
//! While a state is fetched or installed nothing is asked for, since that changes what is missing.

use conclave_consensus::engine::Committed;
use conclave_consensus::ledger::{LedgerReader, StoredBlock};
use conclave_consensus::membership::Membership;
use conclave_consensus::state_sync::{OlderAnswer, OlderBlocks, TransferMessage};
use conclave_consensus::storage::{Storage, StorageError};
use conclave_consensus::types::{ReplicaId, Sequence};

/// The engine's check of the proof that these members decided a batch.
pub(crate) type CertificateCheck =
    Box<dyn Fn(&Membership, &Committed) -> Result<(), String> + Send>;

/// What is missing, and who is asked for it.
pub(super) struct Filling<S> {
    ledger: LedgerReader<S>,
    /// The members of the first epoch.
    genesis: Membership,
    check: CertificateCheck,
    older: OlderBlocks,
    /// The highest block that is missing, as the executor said last.
    missing: Option<Sequence>,
    /// Whose blocks the executor has not stored yet.
    storing: Option<ReplicaId>,
}

impl<S: Storage> Filling<S> {
    pub(super) fn new(
        ledger: LedgerReader<S>,
        genesis: Membership,
        check: CertificateCheck,
    ) -> Self {
        let older = OlderBlocks::default();
        Self { ledger, genesis, check, older, missing: None, storing: None }
    }

    pub(super) fn add_peer(&mut self, peer: ReplicaId) {
        self.older.add_peer(peer);
    }

    pub(super) fn remove_peer(&mut self, peer: ReplicaId) {
        self.older.remove_peer(peer);
    }

    /// Whether anything is to be asked for sooner or later.
    pub(super) fn is_wanted(&self) -> bool {
        self.missing.is_some()
    }

    /// Another state is being fetched: what is missing is unknown until the executor says it again.
    pub(super) fn suspend(&mut self) {
        self.older.abandon();
        (self.missing, self.storing) = (None, None);
    }

    /// The executor stored what it was given, or began with another state. `proven` is false where
    /// the blocks did not hang together with those above.
    pub(super) fn stored(&mut self, missing: Option<Sequence>, proven: bool, now_ms: u64) {
        match (self.missing, missing) {
            (None, Some(height)) => {
                tracing::info!(height = height.0, "filling in the blocks from here down");
            }
            (Some(_), None) => tracing::info!("the ledger is whole from the first block on"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if let Some(peer) = self.storing.take()
            && !proven
        {
            self.refuse(peer, "the hashes do not lead to it");
        }
        self.missing = missing;
        self.older.stored(now_ms);
    }

    /// The next question, if it is time for one.
    pub(super) fn poll(&mut self, now_ms: u64) -> Option<(ReplicaId, TransferMessage)> {
        let missing = self.missing.filter(|_| self.storing.is_none())?;
        self.older.poll(missing, now_ms)
    }

    /// A peer's answer: blocks for the executor, whose certificates prove them.
    pub(super) fn on_message(
        &mut self,
        from: ReplicaId,
        message: TransferMessage,
        now_ms: u64,
    ) -> Result<Vec<StoredBlock>, StorageError> {
        let blocks = match self.older.on_message(from, message, now_ms) {
            OlderAnswer::Nothing => return Ok(Vec::new()),
            OlderAnswer::Blocks(blocks) => blocks,
            OlderAnswer::Blame => {
                self.refuse(from, "they are not those that were asked for");
                return Ok(Vec::new());
            }
        };
        for block in &blocks {
            if let Err(reason) = self.certified(block)? {
                self.refuse(from, &reason);
                return Ok(Vec::new());
            }
        }
        self.storing = Some(from);
        Ok(blocks)
    }

    /// Whether the members of its epoch decided the block.
    fn certified(&self, block: &StoredBlock) -> Result<Result<(), String>, StorageError> {
        let epoch = block.header.epoch;
        let Some(members) = self.ledger.members_of(epoch, &self.genesis)? else {
            return Ok(Err(format!("nothing proves the members of epoch {epoch}")));
        };
        Ok((self.check)(&members, &block.committed()))
    }

    fn refuse(&mut self, peer: ReplicaId, reason: &str) {
        tracing::warn!(%peer, reason, "a peer sent older blocks that are not proven");
        self.older.faulty(peer);
    }
}

#[cfg(test)]
#[path = "filling_tests.rs"]
mod tests;
