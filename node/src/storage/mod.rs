//! The storage on RocksDB: the journal, whose writes are durable one by one, and the ledger.
//!
//! Both are directories of one RocksDB instance each and share a block cache and the memory of
//! unflushed writes ([`SharedResources`]). They are two instances because a sync of one must not
//! carry the other's bytes to the disk: a vote waits for the journal alone. The ledger's batches,
//! the small ones many at once (`behind`), lie in RocksDB's own log and reach the disk at its syncs.
//! The journal's do not: it has a log of its own ([`crate::journal`]), and at this seam a durable
//! write of it is a flush.
//!
//! | column family     | journal             | ledger                                      |
//! |-------------------|---------------------|---------------------------------------------|
//! | `default`         | facts (below)       | facts, `journal_number` (u64 big endian)    |
//! | [`Table::name`]   | `meta`, `journal`   | all other tables, and a `meta` of its own   |
//!
//! | fact      | bytes                                               |
//! |-----------|-----------------------------------------------------|
//! | `kind`    | `journal` or `ledger`                               |
//! | `format`  | u32 big endian, [`FORMAT`]                          |
//! | `cluster` | 32, the cluster id                                  |
//!
//! An instance comes into being by [`RocksStorage::create`] and by nothing else: it is filled under
//! another name and renamed, so that a directory either is whole or is not there. Opening never
//! creates: a journal that is missing means a disk that was lost, and a replica that made itself a
//! fresh one could vote twice.
//!
//! `journal_number` is the number of the last journal write that was durable when a ledger batch was
//! written. A journal that later knows fewer writes than its ledger has been cut or rolled back.

mod behind;
mod open;
mod options;
mod snapshot;

pub use open::{OpenError, holder};
pub use options::SharedResources;

use behind::Behind;
use conclave_consensus::storage::{
    Durability, Entry, Snapshot, Storage, StorageError, Table, Write, WriteBatch,
};
use rocksdb::{ColumnFamily, DB, DBRawIteratorWithThreadMode};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// The format of both instances that this build writes and reads.
pub const FORMAT: u32 = 1;

/// The column family of an instance's own facts.
const FACTS: &str = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
const FACT_KIND: &[u8] = b"kind";
/// What RocksDB adds to a record of a batch at most: its kind, its table and two lengths. Bytes.
const RECORD_BYTES: usize = 16;
const FACT_FORMAT: &[u8] = b"format";
const FACT_CLUSTER: &[u8] = b"cluster";
const FACT_JOURNAL_NUMBER: &[u8] = b"journal_number";

/// Which of a replica's two instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Votes and certificates; synced.
    Journal,
    /// Blocks and state; brought forward from the journal.
    Ledger,
}

impl Kind {
    /// The instance's name in its facts and in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Journal => "journal",
            Kind::Ledger => "ledger",
        }
    }

    /// The tables it holds.
    #[must_use]
    pub const fn tables(self) -> &'static [Table] {
        match self {
            Kind::Journal => &[Table::Meta, Table::Journal],
            Kind::Ledger => &[
                Table::Meta,
                Table::Blocks,
                Table::Bodies,
                Table::Commits,
                Table::Checkpoints,
                Table::Store,
                Table::Sessions,
                Table::Registry,
                Table::Trie,
                Table::Dirty,
                Table::Staging,
                Table::Evidence,
            ],
        }
    }

    /// Where it lies below a node's data directory.
    #[must_use]
    pub fn directory(self, data: &Path) -> PathBuf {
        data.join(self.name())
    }
}

/// One RocksDB instance.
///
/// Invariant: at most one process has it open for writing.
pub struct RocksStorage {
    db: Arc<DB>,
    kind: Kind,
    path: PathBuf,
    journal_number: Option<Arc<AtomicU64>>,
    /// None in the journal, which has a log of its own and keeps them itself, and where nothing is written.
    behind: Option<RwLock<Behind>>,
    /// The first write that failed: none is tried after it.
    broken: OnceLock<StorageError>,
}

impl std::fmt::Debug for RocksStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStorage")
            .field("kind", &self.kind)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl RocksStorage {
    fn over(db: DB, kind: Kind, path: PathBuf, writable: bool) -> Self {
        let behind = (writable && kind == Kind::Ledger).then(RwLock::default);
        let (db, broken) = (Arc::new(db), OnceLock::new());
        Self { db, kind, path, journal_number: None, behind, broken }
    }

    /// Which instance this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on each batch also records this number: of the last journal write that is durable.
    ///
    /// For a ledger, before it is shared.
    pub fn record_journal_number(&mut self, number: Arc<AtomicU64>) {
        self.journal_number = Some(number);
    }

    /// The journal number that the last batch recorded; 0 where none did.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn recorded_journal_number(&self) -> Result<u64, StorageError> {
        self.settle()?;
        let value = self.db.get(FACT_JOURNAL_NUMBER).map_err(|e| self.failed("read", &e))?;
        let Some(value) = value else { return Ok(0) };
        let bytes = <[u8; 8]>::try_from(value.as_slice()).map_err(|_| StorageError {
            operation: "read",
            location: self.path.display().to_string(),
            reason: "the recorded journal number is not 8 bytes".to_owned(),
        })?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Moves everything into table files and syncs them: the last act of a graceful stop, after
    /// which opening replays no log.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.settle()?;
        let mut handles = vec![facts_handle(&self.db)?];
        for table in self.kind.tables() {
            handles.push(table_handle(&self.db, *table)?);
        }
        let options = rocksdb::FlushOptions::default();
        self.db.flush_cfs_opt(&handles, &options).map_err(|e| self.failed("flush", &e))
    }

    /// Memory and disk in use, for metrics.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn usage(&self) -> Result<Usage, StorageError> {
        let mut usage = Usage::default();
        let mut handles = vec![facts_handle(&self.db)?];
        for table in self.kind.tables() {
            handles.push(table_handle(&self.db, *table)?);
        }
        for handle in handles {
            for (property, total) in [
                ("rocksdb.cur-size-all-mem-tables", &mut usage.memtable_bytes),
                ("rocksdb.live-sst-files-size", &mut usage.table_file_bytes),
                ("rocksdb.live-blob-file-size", &mut usage.blob_file_bytes),
            ] {
                let value = self.db.property_int_value_cf(handle, property);
                *total += value.map_err(|e| self.failed("inspection", &e))?.unwrap_or(0);
            }
        }
        Ok(usage)
    }

    /// Gives RocksDB what waits. Readers wait meanwhile: no key is ever in neither place.
    fn settle(&self) -> Result<(), StorageError> {
        let Some(behind) = &self.behind else { return Ok(()) };
        if behind.read().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Ok(());
        }
        self.settle_locked(&mut behind.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn settle_locked(&self, behind: &mut Behind) -> Result<(), StorageError> {
        if behind.is_empty() {
            return Ok(());
        }
        let mut native = rocksdb::WriteBatch::default();
        for (table, key, value) in behind.iter() {
            change(&self.db, &mut native, table, key, value)?;
        }
        self.put(native, Durability::Buffered)?;
        behind.clear();
        Ok(())
    }

    fn put_batch(&self, batch: &WriteBatch, durability: Durability) -> Result<(), StorageError> {
        // Room for all of it: growing would copy what large blocks write once more.
        let bytes: usize = batch.writes.iter().map(|write| write.bytes() + RECORD_BYTES).sum();
        let mut native = rocksdb::WriteBatch::with_capacity_bytes(bytes + 4 * RECORD_BYTES);
        for write in &batch.writes {
            match write {
                Write::Put(table, key, value) => {
                    change(&self.db, &mut native, *table, key, Some(value))?;
                }
                Write::Delete(table, key) => change(&self.db, &mut native, *table, key, None)?,
                // RocksDB refuses a range that ends before it starts; it holds no key.
                Write::DeleteRange(_, from, to) if from >= to => {}
                Write::DeleteRange(table, from, to) => {
                    native.delete_range_cf(table_handle(&self.db, *table)?, from, to);
                }
            }
        }
        self.put(native, durability)
    }

    fn put(
        &self,
        mut native: rocksdb::WriteBatch,
        durability: Durability,
    ) -> Result<(), StorageError> {
        if let Some(error) = self.broken.get() {
            return Err(error.clone());
        }
        if let Some(number) = &self.journal_number {
            native.put(FACT_JOURNAL_NUMBER, number.load(Ordering::Acquire).to_be_bytes());
        }
        let synced = durability == Durability::Synced;
        let options = options::write(self.kind, synced);
        self.db.write_opt(native, &options).map_err(|error| {
            let error = self.failed("write", &error);
            self.broken.get_or_init(|| error).clone()
        })
    }

    fn failed(&self, operation: &'static str, error: &rocksdb::Error) -> StorageError {
        StorageError {
            operation,
            location: self.path.display().to_string(),
            reason: error.to_string(),
        }
    }
}

/// What an instance takes. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Unflushed writes, in memory.
    pub memtable_bytes: u64,
    /// Table files.
    pub table_file_bytes: u64,
    /// Blob files, which hold batch bodies.
    pub blob_file_bytes: u64,
}

impl Storage for RocksStorage {
    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, StorageError> {
        self.settle()?;
        Ok(Arc::new(snapshot::RocksSnapshot::new(Arc::clone(&self.db))))
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        if let Some(behind) = &self.behind
            && let Some(value) =
                behind.read().unwrap_or_else(PoisonError::into_inner).get(table, key)
        {
            return Ok(value.clone());
        }
        let handle = table_handle(&self.db, table)?;
        self.db.get_cf(handle, key).map_err(|e| self.failed("read", &e))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.settle()?;
        let handle = table_handle(&self.db, table)?;
        let iterator = self.db.raw_iterator_cf_opt(handle, options::range(to));
        read_scan(iterator, table, from, to, limit)
    }

    fn last(&self, table: Table, below: Option<&[u8]>) -> Result<Option<Entry>, StorageError> {
        self.settle()?;
        let handle = table_handle(&self.db, table)?;
        let mut iterator = self.db.raw_iterator_cf_opt(handle, options::range(None));
        match below {
            None => iterator.seek_to_last(),
            Some(below) => {
                iterator.seek_for_prev(below);
                // RocksDB looks at or below the key; this trait's end is exclusive.
                if iterator.key() == Some(below) {
                    iterator.prev();
                }
            }
        }
        iterator.status().map_err(|e| self.failed("read", &e))?;
        Ok(iterator.item().map(|(key, value)| (key.to_vec(), value.to_vec())))
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        if let Some(behind) = &self.behind
            && Behind::takes(&batch, durability)
        {
            let mut behind = behind.write().unwrap_or_else(PoisonError::into_inner);
            return if behind.add(batch) { self.settle_locked(&mut behind) } else { Ok(()) };
        }
        // In order: never a later write without an earlier one.
        self.settle()?;
        self.put_batch(&batch, durability)?;
        // Without a log of RocksDB's, a flush is what makes a write durable.
        let flush = durability == Durability::Synced && self.kind == Kind::Journal;
        if flush { self.flush() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.settle()?;
        match self.kind {
            Kind::Journal => self.flush(),
            Kind::Ledger => self.db.flush_wal(true).map_err(|e| self.failed("sync", &e)),
        }
    }
}

impl Drop for RocksStorage {
    fn drop(&mut self) {
        // A failure loses nothing: the journal holds it. One that was told before is not told again.
        if self.broken.get().is_none()
            && let Err(error) = self.settle()
        {
            tracing::warn!(%error, "the last blocks did not reach the ledger; the next start brings them");
        }
    }
}

/// Adds to a batch what a key is to be; none removes it.
fn change(
    db: &DB,
    batch: &mut rocksdb::WriteBatch,
    table: Table,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<(), StorageError> {
    let handle = table_handle(db, table)?;
    match value {
        Some(value) => batch.put_cf(handle, key, value),
        None => batch.delete_cf(handle, key),
    }
    Ok(())
}

fn facts_handle(db: &DB) -> Result<&ColumnFamily, StorageError> {
    named_handle(db, FACTS)
}

fn table_handle(db: &DB, table: Table) -> Result<&ColumnFamily, StorageError> {
    named_handle(db, table.name())
}

fn named_handle<'a>(db: &'a DB, name: &str) -> Result<&'a ColumnFamily, StorageError> {
    db.cf_handle(name).ok_or_else(|| StorageError {
        operation: "look-up of a table",
        location: db.path().display().to_string(),
        reason: format!("this instance has no table {name}"),
    })
}

fn read_scan(
    mut iterator: DBRawIteratorWithThreadMode<'_, DB>,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<Entry>, StorageError> {
    let mut entries = Vec::new();
    if to.is_some_and(|to| from >= to) {
        return Ok(entries);
    }
    iterator.seek(from);
    while entries.len() < limit {
        let Some((key, value)) = iterator.item() else { break };
        entries.push((key.to_vec(), value.to_vec()));
        iterator.next();
    }
    iterator.status().map_err(|error| StorageError {
        operation: "scan",
        location: table.name().to_owned(),
        reason: error.to_string(),
    })?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_tried_after_a_write_that_failed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger");
        let (cluster, resources) = (conclave_crypto::Digest::ZERO, SharedResources::default());
        let storage = RocksStorage::create(Kind::Ledger, &path, &cluster, &resources)
            .expect("a new directory");
        let put = |value: &[u8]| {
            let mut batch = WriteBatch::default();
            batch.put(Table::Store, b"k", value);
            batch
        };
        storage.write(put(b"waits"), Durability::Buffered).expect("it only waits");
        let full =
            StorageError { operation: "write", location: "a disk".into(), reason: "full".into() };
        storage.broken.set(full).expect("it was whole");
        let reason = |result: Result<(), StorageError>| result.map_err(|error| error.reason);
        assert_eq!(reason(storage.sync()), Err("full".to_owned()));
        assert_eq!(reason(storage.write(put(b"s"), Durability::Synced)), Err("full".to_owned()));
        assert_eq!(reason(storage.snapshot().map(drop)), Err("full".to_owned()));
        drop(storage);
        let again =
            RocksStorage::open(Kind::Ledger, &path, &cluster, &resources).expect("it is there");
        assert_eq!(again.get(Table::Store, b"k").expect("it reads"), None);
    }
}
