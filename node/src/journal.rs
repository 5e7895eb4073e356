//! The journal: an engine's records, numbered writes, one sync each.
//!
//! | key                            | value                                                    |
//! |--------------------------------|----------------------------------------------------------|
//! | `00`                           | number of the last write, u64 big endian                 |
//! | `01`, name (1)                 | the record in [`Slot::Named`]                            |
//! | `02`, sequence (8 BE), part (1)| the record in [`Slot::Sequenced`]                        |
//!
//! The number lies in the records' own table and changes with each write, in the same batch. It
//! counts for the journal's whole life, unlike the [`WriteNumber`]s, which name the writes of one
//! process. The ledger records the last durable one, so that a journal that lost writes shows.
//!
//! The journal speaks to a [`Storage`], so that a simulated one serves as well.

mod thread;

pub use thread::{JournalMetrics, JournalThread, abort_process};

use crate::storage::{Kind, OpenError, RocksStorage, SharedResources};
use conclave_consensus::engine::{Record, Slot};
use conclave_consensus::replica::{JournalWrite, WriteNumber};
use conclave_consensus::storage::{Durability, Storage, StorageError, Table, WriteBatch};
use conclave_consensus::types::Sequence;
use conclave_crypto::digest::Digest;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const KEY_NUMBER: &[u8] = &[0];
const KEY_NAMED: u8 = 1;
const KEY_SEQUENCED: u8 = 2;
/// Above every key.
const KEY_END: &[u8] = &[3];

/// Records read at once while loading.
const LOAD_STEP: usize = 256;

/// Why a journal cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// It cannot be opened; [`JournalError::lost`] tells whether a Rejoin is due.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It holds fewer writes than the ledger has seen durable: it was cut or rolled back.
    #[error("the journal ends at write {found}, and the ledger has seen write {recorded}")]
    Cut {
        /// The number it ends at.
        found: u64,
        /// The number the ledger recorded.
        recorded: u64,
    },
    /// A key or number in it is not of this format.
    #[error("the journal holds what this build never wrote: {0}")]
    Malformed(String),
    /// It was opened, and then the storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl JournalError {
    /// Whether the journal cannot be trusted any more: the replica may vote again only after its
    /// ordered Rejoin. The other errors are the operator's to mend.
    #[must_use]
    pub fn lost(&self) -> bool {
        match self {
            JournalError::Cut { .. } | JournalError::Malformed(_) => true,
            JournalError::Open(error) => {
                matches!(error, OpenError::Missing { .. } | OpenError::Corrupt { .. })
            }
            JournalError::Storage(_) => false,
        }
    }
}

/// A replica's journal.
///
/// Invariant: every record that a [`Journal::write`] reported is on the disk.
pub struct Journal {
    storage: Arc<dyn Storage>,
    durable: Arc<AtomicU64>,
    number: u64,
    truncated: Sequence,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("number", &self.number)
            .field("truncated", &self.truncated)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Creates a journal that starts with these records; atomic, and durable on return.
    ///
    /// `number` is the number it starts from: 0 for a new replica, and above the ledger's
    /// [`RocksStorage::recorded_journal_number`] for one that lost its journal, or the new journal
    /// would count as cut itself.
    ///
    /// # Errors
    /// [`OpenError::Exists`] where there is one, [`OpenError::Io`] where the disk refuses.
    pub fn create(
        path: &Path,
        cluster: &Digest,
        resources: &SharedResources,
        number: u64,
        records: &[Record],
    ) -> Result<Self, JournalError> {
        let storage =
            RocksStorage::create_with(Kind::Journal, path, cluster, resources, |storage| {
                let mut batch = encode(records);
                batch.put(Table::Journal, KEY_NUMBER, number.to_be_bytes());
                storage.write(batch, Durability::Synced)
            })?;
        Self::over(Arc::new(storage), number)
    }

    /// Opens the journal of a replica; never creates one.
    ///
    /// `recorded` is the ledger's [`RocksStorage::recorded_journal_number`].
    ///
    /// # Errors
    /// A [`JournalError`]; where it is [`JournalError::lost`] the replica has to rejoin.
    pub fn open(
        path: &Path,
        cluster: &Digest,
        resources: &SharedResources,
        recorded: u64,
    ) -> Result<Self, JournalError> {
        let storage = RocksStorage::open(Kind::Journal, path, cluster, resources)?;
        Self::over(Arc::new(storage), recorded)
    }

    /// The journal that lies in any storage, a simulated one included.
    ///
    /// # Errors
    /// [`JournalError::Cut`] when it ends before the write `recorded`.
    pub fn over(storage: Arc<dyn Storage>, recorded: u64) -> Result<Self, JournalError> {
        let number = match storage.get(Table::Journal, KEY_NUMBER)? {
            None => 0,
            Some(bytes) => <[u8; 8]>::try_from(bytes.as_slice())
                .map(u64::from_be_bytes)
                .map_err(|_| JournalError::Malformed("a number that is not 8 bytes".to_owned()))?,
        };
        if number < recorded {
            return Err(JournalError::Cut { found: number, recorded });
        }
        let mut first = storage.scan(Table::Journal, &[KEY_SEQUENCED], Some(KEY_END), 1)?;
        let truncated = match first.pop() {
            None => Sequence(0),
            Some((key, _)) => match decode_key(&key)? {
                Slot::Sequenced(sequence, _) => sequence.minus(1),
                Slot::Named(_) => Sequence(0),
            },
        };
        Ok(Self { storage, durable: Arc::new(AtomicU64::new(number)), number, truncated })
    }

    /// Every record, in the order of slots: the named ones, then by sequence and part.
    ///
    /// # Errors
    /// When the storage fails or holds a key that is none of ours.
    pub fn load(&self) -> Result<Vec<(Slot, Vec<u8>)>, JournalError> {
        let mut records = Vec::new();
        let mut from = vec![KEY_NAMED];
        loop {
            let entries = self.storage.scan(Table::Journal, &from, Some(KEY_END), LOAD_STEP)?;
            let full = entries.len() == LOAD_STEP;
            for (key, bytes) in entries {
                records.push((decode_key(&key)?, bytes));
                from = key;
            }
            if !full {
                return Ok(records);
            }
            // The least key above the last one read.
            from.push(0);
        }
    }

    /// Makes these writes durable together, with one sync, and answers the last one's number.
    ///
    /// # Errors
    /// When the storage fails. The process has to stop then: what the disk holds is unknown, and
    /// writing again could vote twice.
    pub fn write(&mut self, writes: &[JournalWrite]) -> Result<Option<WriteNumber>, StorageError> {
        let Some(last) = writes.last() else { return Ok(None) };
        let mut batch = WriteBatch::default();
        for write in writes {
            append(&mut batch, &write.records);
        }
        self.number += 1;
        batch.put(Table::Journal, KEY_NUMBER, self.number.to_be_bytes());
        self.storage.write(batch, Durability::Synced)?;
        self.durable.store(self.number, Ordering::Release);
        Ok(Some(last.number))
    }

    /// Drops the records of every sequence up to and including `through`.
    ///
    /// Not synced by itself: losing it costs the next start some reading and nothing else.
    ///
    /// # Errors
    /// When the storage fails; the process has to stop then.
    pub fn truncate(&mut self, through: Sequence) -> Result<(), StorageError> {
        if through <= self.truncated {
            return Ok(());
        }
        // From the last truncation on: ranges that do not overlap stay cheap to merge.
        let from = key(Slot::Sequenced(self.truncated, 0));
        let to = key(Slot::Sequenced(through.next(), 0));
        let mut batch = WriteBatch::default();
        batch.delete_range(Table::Journal, from, to);
        self.storage.write(batch, Durability::Buffered)?;
        self.truncated = through;
        Ok(())
    }

    /// The number of the last write that is on the disk, kept current: what the ledger records.
    #[must_use]
    pub fn durable_number(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.durable)
    }
}

fn encode(records: &[Record]) -> WriteBatch {
    let mut batch = WriteBatch::default();
    append(&mut batch, records);
    batch
}

fn append(batch: &mut WriteBatch, records: &[Record]) {
    for record in records {
        batch.put(Table::Journal, key(record.slot), record.bytes.as_slice());
    }
}

fn key(slot: Slot) -> Vec<u8> {
    match slot {
        Slot::Named(name) => vec![KEY_NAMED, name],
        Slot::Sequenced(sequence, part) => {
            let mut key = Vec::with_capacity(10);
            key.push(KEY_SEQUENCED);
            key.extend_from_slice(&sequence.0.to_be_bytes());
            key.push(part);
            key
        }
    }
}

fn decode_key(key: &[u8]) -> Result<Slot, JournalError> {
    match key {
        [KEY_NAMED, name] => Ok(Slot::Named(*name)),
        [KEY_SEQUENCED, sequence @ .., part] => match <[u8; 8]>::try_from(sequence) {
            Ok(sequence) => Ok(Slot::Sequenced(Sequence(u64::from_be_bytes(sequence)), *part)),
            Err(_) => Err(malformed(key)),
        },
        _ => Err(malformed(key)),
    }
}

fn malformed(key: &[u8]) -> JournalError {
    JournalError::Malformed(format!("the key {key:02x?}"))
}
