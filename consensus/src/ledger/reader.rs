//! Reading a ledger from any thread, beside the executor.
//!
//! Each block was written at once, so whatever a reader finds of it is whole.

use super::{
    ASIDE, ASIDE_END, META_TIP, TipRecord, damaged, header, height_key, read, replies, results,
    results_tree,
};
use crate::engine::Committed;
use crate::evidence::{Accusation, EvidenceFile};
use crate::message::{
    Attestation, Batch, BlockHeader, BlockReplies, CheckpointCertificate, EpochEnd, SignedRequest,
};
use crate::sessions::{self, Place};
use crate::storage::{Storage, StorageError, Table};
use crate::types::{Epoch, ReplicaId, Sequence};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::{Signature, Signed};
use std::sync::Arc;

/// A handle to read a ledger and to vouch for what it holds. Cheap to clone.
pub struct LedgerReader<S> {
    storage: Arc<S>,
    cluster: Digest,
    replica: ReplicaId,
    key: Arc<SecretKey>,
}

impl<S> Clone for LedgerReader<S> {
    fn clone(&self) -> Self {
        Self {
            storage: self.storage.clone(),
            cluster: self.cluster,
            replica: self.replica,
            key: self.key.clone(),
        }
    }
}

impl<S: Storage> LedgerReader<S> {
    /// Reads this storage, and attests as this replica.
    pub(crate) fn new(
        storage: Arc<S>,
        cluster: Digest,
        replica: ReplicaId,
        key: Arc<SecretKey>,
    ) -> Self {
        Self { storage, cluster, replica, key }
    }

    pub(super) fn storage(&self) -> &S {
        &self.storage
    }

    /// The last executed height.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn height(&self) -> Result<Sequence, StorageError> {
        let tip: Option<TipRecord> = read(&*self.storage, Table::Meta, META_TIP)?;
        Ok(tip.map_or(Sequence(0), |tip| tip.height))
    }

    /// A block's header, where the ledger has it.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn header(&self, height: Sequence) -> Result<Option<BlockHeader>, StorageError> {
        header(&*self.storage, height)
    }

    /// The newest stable checkpoint's certificate at or below a height.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn stable(&self, at_most: Sequence) -> Result<Option<CheckpointCertificate>, StorageError> {
        super::stable_certificate(&*self.storage, at_most)
    }

    /// How the epochs from `from` on ended, in order, at most `limit`.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn epoch_ends(&self, from: u64, limit: usize) -> Result<Vec<EpochEnd>, StorageError> {
        super::epoch_ends(&*self.storage, Epoch(from), limit)
    }

    /// This replica's word that it executed the block of this header, which has this hash. Deterministic, so that two
    /// words about one block are one.
    #[must_use]
    pub(crate) fn attest(&self, header: &BlockHeader, hash: Digest) -> (ReplicaId, Signature) {
        let BlockHeader { epoch, height, .. } = *header;
        let value = Attestation { epoch, height, header: hash, replica: self.replica };
        (self.replica, Signed::sign(value, &self.key, &self.cluster).signature)
    }

    /// Decided batches above `after` for a replica that is behind: in order, without gaps, at most
    /// `blocks_max` and about `bytes_max` bytes, and one at least where there is one. Ends early
    /// where a body is missing, as below a transferred state.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn decided(
        &self,
        after: Sequence,
        blocks_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Committed>, StorageError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut sequence = after.next();
        while found.len() < blocks_max {
            let key = height_key(sequence);
            let Some(header) = header(&*self.storage, sequence)? else { break };
            let Some(body) = self.storage.get(Table::Bodies, &key)? else { break };
            let Some(certificate) = self.storage.get(Table::Commits, &key)? else { break };
            bytes += body.len() + certificate.len();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            let batch = Batch::decode(&body, wire::FRAME_BYTES_MAX)
                .map_err(|error| damaged(Table::Bodies, &key, &error.to_string()))?;
            let (epoch, batch) = (header.epoch, Arc::new(batch));
            found.push(Committed { sequence, epoch, batch, certificate });
            sequence = sequence.next();
        }
        Ok(found)
    }

    /// The answer to a request that was executed before, from the block that executed it, with a
    /// fresh attestation. `None` when the session table does not remember the request: then only
    /// ordering it can tell.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn lookup(&self, request: &SignedRequest) -> Result<Option<BlockReplies>, StorageError> {
        let Some(Place { height, index }) = sessions::recorded(&*self.storage, request)? else {
            return Ok(None);
        };
        let Some(header) = self.header(height)? else { return Ok(None) };
        let Some(results) = results(&*self.storage, height)? else { return Ok(None) };
        let position = index as usize;
        if results.get(position).is_none_or(|result| result.request != request.digest()) {
            return Ok(None);
        }
        let tree = results_tree(&results);
        let attestation = self.attest(&header, header.hash());
        Ok(replies(&header, attestation, &results, &tree, &[position]).pop())
    }

    /// What the proofs of misbehaviour that the ledger keeps accuse of. Rows that are none, such as
    /// blocks that were set aside, are passed over.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn accusations(&self) -> Result<Vec<Accusation>, StorageError> {
        let below = self.storage.scan(Table::Evidence, b"", Some(ASIDE), usize::MAX)?;
        let above = self.storage.scan(Table::Evidence, ASIDE_END, None, usize::MAX)?;
        let files = below.into_iter().chain(above);
        let evidence = files.filter_map(|(_, bytes)| EvidenceFile::from_bytes(&bytes).ok());
        let accused = evidence.filter_map(|file| {
            let subject = file.evidence.fault(&self.cluster).ok()?;
            Some(Accusation::of(&file.evidence, subject))
        });
        Ok(accused.collect())
    }
}
