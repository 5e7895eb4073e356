//! Certificates that others and this replica made together: stable checkpoints and ends of epochs.

use super::Executor;
use crate::engine::NextEpoch;
use crate::ledger::{META_EPOCH, certificate_key, epoch_end_key};
use crate::message::{CheckpointCertificate, EpochEnd};
use crate::state_machine::StateMachine;
use crate::storage::{Durability, Storage, StorageError, Table, WriteBatch};
use crate::types::Sequence;
use crate::wire;

/// Certificates of stable checkpoints that are kept: one reached, and one above the tip.
const CERTIFICATES_MAX: usize = 16;

impl<S: Storage, M: StateMachine> Executor<S, M> {
    /// Stores the certificate of a stable checkpoint, and the end of the epoch that it proves;
    /// durable when this returns. Only the newest is kept, beside the ends of epochs.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn stable(&mut self, certificate: &CheckpointCertificate) -> Result<(), StorageError> {
        let height = certificate.checkpoint.height;
        let mut write = WriteBatch::default();
        let (first, end) = (certificate_key(Sequence(0)), certificate_key(Sequence(u64::MAX)));
        let known = self.storage.scan(Table::Checkpoints, &first, Some(&end), CERTIFICATES_MAX)?;
        if known.iter().any(|(key, _)| key.as_slice() > &certificate_key(height)[..]) {
            // A newer one is known. This one may still prove how an epoch ended.
            self.end_epoch(&mut write, certificate);
            return self.storage.write(write, Durability::Synced);
        }
        // The newest that the ledger has reached stays until the ledger reaches this one.
        let reached = self.reader.stable(self.tip.height)?.map(|known| known.checkpoint.height);
        let kept = reached.filter(|_| height > self.tip.height).map(certificate_key);
        for (key, _) in known {
            if kept.is_none_or(|kept| kept[..] != key) {
                write.delete(Table::Checkpoints, key);
            }
        }
        write.put(Table::Checkpoints, certificate_key(height), wire::encode(certificate));
        self.end_epoch(&mut write, certificate);
        self.storage.write(write, Durability::Synced)
    }

    /// Writes how the pending epoch's predecessor ended, if this certificate proves it.
    pub(super) fn end_epoch(
        &mut self,
        write: &mut WriteBatch,
        certificate: &CheckpointCertificate,
    ) {
        let proven = |next: &mut NextEpoch| next.header.hash() == certificate.checkpoint.header;
        let Some(NextEpoch { header, membership, batch }) = self.epoch.take_if(proven) else {
            return;
        };
        let epoch = header.epoch;
        let end = EpochEnd { header, certificate: certificate.clone(), next: membership, batch };
        write.put(Table::Checkpoints, epoch_end_key(epoch), wire::encode(&end));
        write.delete(Table::Meta, META_EPOCH);
    }

    /// Stores ends of epochs that others have proven to this replica, durably.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn store_epoch_ends(&mut self, ends: &[EpochEnd]) -> Result<(), StorageError> {
        let mut write = WriteBatch::default();
        for end in ends {
            write.put(Table::Checkpoints, epoch_end_key(end.header.epoch), wire::encode(end));
        }
        self.storage.write(write, Durability::Synced)
    }
}
