//! Replacing the ledger's state: setting aside blocks that differ, and installing certified state.

use super::Executor;
use crate::ledger::{
    self, ASIDE, ASIDE_END, FirstBlock, META_CHECKPOINT, META_DIVERGED, META_EPOCH, META_FIRST,
    META_FOLDED, META_PENDING, META_TIP, TipRecord, certificate_key, height_key, read, results_key,
};
use crate::message::{BlockHeader, Checkpoint, CheckpointCertificate};
use crate::registry::Registry;
use crate::sessions::SessionTable;
use crate::state_machine::StateMachine;
use crate::storage::{Durability, Storage, StorageError, Table, WriteBatch};
use crate::types::{Sequence, Timestamp};
use crate::wire;
use conclave_crypto::mark;
use std::sync::PoisonError;

/// The first key above all that the tables hold under heights and below.
const END: [u8; 64] = [u8::MAX; 64];

impl<S: Storage, M: StateMachine> Executor<S, M> {
    /// This ledger differs from a certified state: stops executing, and moves the blocks above the
    /// last one that is certified out of the way, where an operator finds them. Durable when this
    /// returns, and resumed by `open` when it was cut off. Only [`Self::install`] ends it.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn set_aside(&mut self, certificate: &CheckpointCertificate) -> Result<(), StorageError> {
        let lock = self.trie.clone();
        let _trie = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let target = &certificate.checkpoint;
        let same = |header: &BlockHeader| header.hash() == target.header;
        let good = match ledger::header(&*self.storage, target.height)?.filter(same) {
            Some(header) => header.height,
            None => {
                let below = self.tip.height.min(target.height.minus(1));
                self.reader.stable(below)?.map_or(Sequence(0), |known| known.checkpoint.height)
            }
        };
        let mut write = WriteBatch::default();
        if self.diverged.as_ref() != Some(certificate) {
            write.delete_range(Table::Evidence, ASIDE, ASIDE_END);
        }
        write.put(Table::Meta, META_DIVERGED, wire::encode(certificate));
        write.delete_range(Table::Meta, META_PENDING, [META_PENDING, &END].concat());
        let done: Option<Checkpoint> = read(&*self.storage, Table::Meta, META_CHECKPOINT)?;
        if done.is_some_and(|done| done.height > good) {
            write.delete(Table::Meta, META_CHECKPOINT);
        }
        let (hash, timestamp) = match ledger::header(&*self.storage, good)? {
            Some(header) => (header.hash(), header.timestamp),
            None => (self.cluster, Timestamp(0)),
        };
        self.tip = TipRecord { height: good, header: hash, timestamp, ..self.tip.clone() };
        write.put(Table::Meta, META_TIP, wire::encode(&self.tip));
        self.storage.write(write, Durability::Synced)?;
        self.diverged = Some(certificate.clone());
        self.move_above(good)
    }

    /// Moves the blocks above a height into the evidence, from the highest down.
    fn move_above(&self, good: Sequence) -> Result<(), StorageError> {
        // Each round removes a block or ends.
        while let Some((last, _)) = self.storage.last(Table::Blocks, None)? {
            let height = last.get(..8).and_then(|height| height.try_into().ok());
            let height = Sequence(height.map_or(0, u64::from_be_bytes));
            if height <= good {
                break;
            }
            mark!("a block that differs is set aside");
            let (key, results) = (height_key(height), results_key(height));
            let parts: [(Table, &[u8]); 4] = [
                (Table::Blocks, &key),
                (Table::Blocks, &results),
                (Table::Bodies, &key),
                (Table::Commits, &key),
            ];
            let mut write = WriteBatch::default();
            for (part, (table, row)) in (0u8..).zip(parts) {
                if let Some(value) = self.storage.get(table, row)? {
                    write.put(Table::Evidence, [ASIDE, &key, &[part]].concat(), value);
                    write.delete(table, row);
                }
            }
            self.storage.write(write, Durability::Buffered)?;
        }
        self.storage.sync()
    }

    /// Puts a certified state in place: `swap` makes the replicated tables and the trie those of the
    /// certified height, and in the same write the ledger's tip moves there. Durable when this
    /// returns. Says false, and changes nothing, when the ledger has come as far by itself.
    ///
    /// The certificate and the header were verified by whoever fetched the state.
    ///
    /// # Errors
    /// When the storage fails.
    ///
    /// # Panics
    /// If the header is not the certified one.
    pub fn install(
        &mut self,
        header: &BlockHeader,
        certificate: &CheckpointCertificate,
        swap: WriteBatch,
    ) -> Result<bool, StorageError> {
        let checkpoint = &certificate.checkpoint;
        assert_eq!(header.hash(), checkpoint.header, "the certified header is installed");
        if self.diverged.is_none() && self.tip.height >= header.height {
            return Ok(false);
        }
        let lock = self.trie.clone();
        let _trie = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let height = header.height;
        let tip = TipRecord {
            height,
            header: checkpoint.header,
            timestamp: header.timestamp,
            interval: height.next(),
            checkpoint_timestamp: header.timestamp,
        };
        let mut write = swap;
        write.put(Table::Blocks, height_key(height), wire::encode(header));
        write.put(Table::Checkpoints, certificate_key(height), wire::encode(certificate));
        write.delete_range(
            Table::Checkpoints,
            certificate_key(Sequence(0)),
            certificate_key(height),
        );
        write.put(Table::Meta, META_TIP, wire::encode(&tip));
        write.put(Table::Meta, META_CHECKPOINT, wire::encode(checkpoint));
        if height > self.tip.height {
            let first = FirstBlock { certificate: certificate.clone(), lowest: height };
            write.put(Table::Meta, META_FIRST, wire::encode(&first));
        }
        write.delete_range(Table::Meta, META_PENDING, [META_PENDING, &END].concat());
        write.delete_range(Table::Dirty, [], END);
        write.delete(Table::Meta, META_EPOCH);
        write.delete(Table::Meta, META_DIVERGED);
        write.delete(Table::Meta, META_FOLDED);
        self.storage.write(write, Durability::Synced)?;
        self.registry = Registry::load(&*self.storage)?;
        self.sessions = SessionTable::default();
        self.tip = tip;
        self.epoch = None;
        self.diverged = None;
        self.broken = false;
        Ok(true)
    }
}
