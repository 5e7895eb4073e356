//! The two disks of a simulated replica: a journal that is synced write by write, and a ledger that is not.
//!
//! A power loss takes what was not synced: of the journal's writes under way a prefix survives, and the one behind it
//! is torn, which a checksum shows, so that it is as if it never was; of the ledger's batches a prefix survives
//! ([`MemoryStorage::crash`]). A garbled or missing journal, and one that ends before the number that the ledger
//! recorded, is a lost one, as it is for the real node.

use conclave_consensus::engine::Slot;
use conclave_consensus::memory_storage::MemoryStorage;
use conclave_consensus::pbft::Pbft;
use conclave_consensus::replica::JournalWrite;
use conclave_consensus::storage::{
    Durability, Entry, Snapshot, Storage, StorageError, Table, WriteBatch,
};
use conclave_consensus::types::Sequence;
use conclave_crypto::digest::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bits by which a journal that replaces a lost one starts above all numbers that the lost one could reach.
const LIFE_BITS: u32 = 40;

/// Where the ledger keeps the journal's number; outside of everything replicated.
const RECORDED: &[u8] = b"simulated journal number";

/// What lies on the journal's disk.
#[derive(Clone, Debug)]
pub struct JournalDisk {
    records: BTreeMap<Slot, Vec<u8>>,
    /// Writes so far.
    number: u64,
    /// Missing or garbled: nothing in it counts.
    lost: bool,
}

impl JournalDisk {
    /// What `init` makes.
    #[must_use]
    pub fn initial() -> Self {
        let records = Pbft::initial_records().into_iter();
        let records = records.map(|record| (record.slot, record.bytes)).collect();
        Self { records, number: 0, lost: false }
    }

    /// Makes a write durable.
    pub fn write(&mut self, write: JournalWrite) {
        self.number += 1;
        for record in write.records {
            self.records.insert(record.slot, record.bytes);
        }
    }

    /// Drops what lies at or below this height.
    pub fn truncate(&mut self, through: Sequence) {
        let above = self.records.split_off(&Slot::Sequenced(through.next(), 0));
        self.records.retain(|slot, _| matches!(slot, Slot::Named(_)));
        self.records.extend(above);
    }

    /// The disk is garbled or gone.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    /// Records on the disk.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The number of the last write.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What the process reads at its start, or why it may not be trusted.
    ///
    /// # Errors
    /// When the journal is lost or ends before the write that the ledger recorded.
    pub fn read(&self, recorded: u64) -> Result<Vec<(Slot, Vec<u8>)>, &'static str> {
        if self.lost {
            return Err("the journal is lost");
        }
        if self.number < recorded {
            return Err("the journal ends before what the ledger recorded");
        }
        Ok(self.records.clone().into_iter().collect())
    }

    /// Replaces a lost journal by one that holds nothing but the wish to rejoin.
    pub fn begin_again(&mut self, recorded: u64, nonce: Digest) {
        let marker = Pbft::rejoin_marker(nonce);
        let number = ((recorded.max(self.number) >> LIFE_BITS) + 1) << LIFE_BITS;
        let records = BTreeMap::from([(marker.slot, marker.bytes)]);
        *self = Self { records, number, lost: false };
    }
}

/// The ledger's disk: a [`MemoryStorage`] that can be full and that records the journal's number with each batch.
#[derive(Debug)]
pub struct LedgerDisk {
    memory: MemoryStorage,
    journal: Arc<AtomicU64>,
    recorded: AtomicU64,
    full: AtomicBool,
}

impl LedgerDisk {
    /// An empty disk beside a journal whose durable number this is.
    #[must_use]
    pub fn new(journal: Arc<AtomicU64>) -> Self {
        Self::over(MemoryStorage::new(), journal)
    }

    fn over(memory: MemoryStorage, journal: Arc<AtomicU64>) -> Self {
        let recorded = memory.get(Table::Meta, RECORDED).ok().flatten();
        let recorded =
            recorded.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        Self { memory, journal, recorded: AtomicU64::new(recorded), full: AtomicBool::new(false) }
    }

    /// An old copy of this disk.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self::over(self.memory.copy(), Arc::clone(&self.journal))
    }

    /// The journal's number in the last batch.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.recorded.load(Ordering::Relaxed)
    }

    /// Batches that a power loss may take.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.memory.unsynced()
    }

    /// The power fails: of the batches not synced the first `keep` survive.
    pub fn crash(&self, keep: usize) {
        self.memory.crash(keep);
        let recorded = self.memory.get(Table::Meta, RECORDED).ok().flatten();
        let recorded =
            recorded.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        self.recorded.store(recorded, Ordering::Relaxed);
    }

    /// The process dies at the write that comes after this many more.
    pub fn fail_after(&self, writes: u64) {
        self.memory.fail_at(self.memory.writes() + writes);
    }

    /// It does not die any more.
    pub fn fail_never(&self) {
        self.memory.fail_at(u64::MAX);
    }

    /// The height of the highest block.
    #[must_use]
    pub fn height(&self) -> Sequence {
        let last = self.memory.last(Table::Blocks, None).ok().flatten();
        let height = last.and_then(|(key, _)| key.get(..8)?.try_into().ok());
        Sequence(height.map_or(0, u64::from_be_bytes))
    }

    /// Whether there is room.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// Changes one bit of a value in the store, unseen by any checksum; says whether there was one.
    pub fn flip_a_bit(&self, choice: u64) -> bool {
        let Ok(rows) = self.memory.scan(Table::Store, b"", None, 64) else { return false };
        if rows.is_empty() {
            return false;
        }
        let (key, mut value) = rows[choice as usize % rows.len()].clone();
        let Some(last) = value.last_mut() else { return false };
        *last ^= 1;
        let mut batch = WriteBatch::default();
        batch.put(Table::Store, key, value);
        self.memory.write(batch, Durability::Synced).is_ok()
    }

    fn room(&self, operation: &'static str) -> Result<(), StorageError> {
        if self.full.load(Ordering::Relaxed) {
            let (location, reason) = ("the ledger".to_owned(), "no space left".to_owned());
            return Err(StorageError { operation, location, reason });
        }
        Ok(())
    }
}

impl Storage for LedgerDisk {
    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, StorageError> {
        self.memory.snapshot()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.memory.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.memory.scan(table, from, to, limit)
    }

    fn last(&self, table: Table, below: Option<&[u8]>) -> Result<Option<Entry>, StorageError> {
        self.memory.last(table, below)
    }

    fn write(&self, mut batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        self.room("write")?;
        let number = self.journal.load(Ordering::Relaxed);
        if number != self.recorded() {
            batch.put(Table::Meta, RECORDED, number.to_be_bytes());
        }
        self.memory.write(batch, durability)?;
        self.recorded.store(number, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.room("sync")?;
        self.memory.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_consensus::engine::Record;
    use conclave_consensus::replica::WriteNumber;

    fn write(slot: Slot) -> JournalWrite {
        let record = Record { slot, bytes: vec![1], lazy: false };
        JournalWrite { number: WriteNumber(1), records: vec![record] }
    }

    #[test]
    fn a_journal_that_ends_before_what_the_ledger_recorded_is_lost() {
        let mut journal = JournalDisk::initial();
        journal.write(write(Slot::Named(1)));
        assert!(journal.read(1).is_ok());
        assert!(journal.read(2).is_err());
        journal.begin_again(2, Digest::ZERO);
        assert!(journal.read(2).is_ok() && journal.number() > 2);
        journal.lose();
        assert!(journal.read(0).is_err());
    }

    #[test]
    fn truncation_keeps_what_is_named_and_what_lies_above() {
        let mut journal = JournalDisk::initial();
        let before = journal.len();
        for n in 1..=5 {
            journal.write(write(Slot::Sequenced(Sequence(n), 0)));
        }
        journal.truncate(Sequence(3));
        assert_eq!(journal.len(), before + 2);
    }

    #[test]
    fn the_ledger_records_the_journals_number_and_forgets_it_with_the_batch() {
        let number = Arc::new(AtomicU64::new(7));
        let disk = LedgerDisk::new(Arc::clone(&number));
        let batch = |key: &str| {
            let mut batch = WriteBatch::default();
            batch.put(Table::Store, key, "value");
            batch
        };
        disk.write(batch("a"), Durability::Synced).unwrap();
        number.store(8, Ordering::Relaxed);
        disk.write(batch("b"), Durability::Buffered).unwrap();
        assert_eq!(disk.recorded(), 8);
        disk.crash(0);
        assert_eq!(disk.recorded(), 7);
        disk.set_full(true);
        assert!(disk.write(batch("c"), Durability::Buffered).is_err());
        disk.set_full(false);
        assert!(disk.flip_a_bit(3));
    }
}
