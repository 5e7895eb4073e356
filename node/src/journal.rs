//! The journal: an engine's records, numbered writes, one sync each.
//!
//! | table     | key                            | value                                        |
//! |-----------|--------------------------------|----------------------------------------------|
//! | `journal` | `00`                           | number of the last write, u64 big endian     |
//! | `journal` | `00 01`                        | highest truncated sequence, u64 big endian   |
//! | `journal` | `01`, name (1)                 | the record in [`Slot::Named`]                |
//! | `journal` | `02`, sequence (8 BE), part (1)| the record in [`Slot::Sequenced`]            |
//! | `meta`    | `log`                          | the random id of its write-ahead log, 8 bytes|
//!
//! The number lies in the records' own table and changes with each write, in the same batch. It
//! counts for the journal's whole life, unlike the [`WriteNumber`]s, which name the writes of one
//! process. The ledger records the last durable one, so that a journal that lost writes shows.
//!
//! What makes a write durable is the file [`LOG_FILE`] beside RocksDB's own (see the `log` module for why);
//! one record of it is one write: for each journal record the key's length (1), the key, the
//! value's length (4, LE) and the value. RocksDB gets the same records later, many at once and
//! unsynced, and flushes them whenever half of the file is full.
//!
//! The journal also speaks to any [`Storage`] without a log of its own, so that a simulated disk
//! serves as well; then each write is one synced batch.

mod log;
mod thread;

pub(crate) use thread::JournalHelp;
pub use thread::{JournalMetrics, JournalThread, abort_process};

use crate::storage::{Kind, OpenError, RocksStorage, SharedResources};
use conclave_consensus::engine::{Record, Slot};
use conclave_consensus::replica::{JournalWrite, WriteNumber};
use conclave_consensus::storage::{Durability, Storage, StorageError, Table, WriteBatch};
use conclave_consensus::types::Sequence;
use conclave_crypto::digest::Digest;
use log::{Log, Replay};
use rand::RngExt as _;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// The write-ahead log's name in the journal's directory.
pub const LOG_FILE: &str = "write-ahead";

const KEY_LOG: &[u8] = b"log";
const KEY_NUMBER: &[u8] = &[0];
const KEY_TRUNCATED: &[u8] = &[0, 1];
const KEY_NAMED: u8 = 1;
const KEY_SEQUENCED: u8 = 2;
/// Above every key.
const KEY_END: &[u8] = &[3];

/// A journal makes fewer writes than 2 to this power: at 10,000 a second that takes 13 years.
const LIFE_BITS: u32 = 42;

/// Records read at once while loading.
const LOAD_STEP: usize = 256;

/// What the log made durable goes to RocksDB once there is so much of it. Changes and bytes.
const BEHIND_MAX: (usize, usize) = (1024, 256 << 10);

/// What a journal holds, in the order of slots.
pub type Records = Vec<(Slot, Vec<u8>)>;

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
            // RocksDB's name for a checksum that does not hold.
            JournalError::Storage(error) => error.reason.starts_with("Corruption"),
        }
    }
}

/// A replica's journal.
///
/// Invariant: every record that a [`Journal::write`] reported is on the disk.
pub struct Journal {
    storage: Arc<dyn Storage>,
    ahead: Option<WriteAhead>,
    /// In the log, and not yet in the storage.
    behind: WriteBatch,
    /// Of the values in it.
    behind_bytes: usize,
    durable: Arc<AtomicU64>,
    number: u64,
    truncated: Sequence,
    /// Truncated by this process, so that the next range starts here.
    swept: Sequence,
    /// A write failed: nothing is written any more.
    failed: bool,
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
    /// `number` is the number it starts from: 0 for a new replica, and [`Self::next_life`] of the
    /// ledger's [`RocksStorage::recorded_journal_number`] for one that lost its journal.
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
        let id: [u8; 8] = rand::rng().random();
        let storage =
            RocksStorage::create_with(Kind::Journal, path, cluster, resources, |storage| {
                let file = storage.path().join(LOG_FILE);
                Log::create(&file, id).map_err(|error| log_failed(&file, &error))?;
                let mut batch = batch(number, records.iter().cloned());
                batch.put(Table::Meta, KEY_LOG, id);
                storage.write(batch, Durability::Synced)
            })?;
        Self::with_log(storage, path, number)
    }

    /// Where a new journal starts after one that a ledger saw reach `recorded`: so far above that
    /// any copy of the lost one counts as cut, should it come back, once the ledger has recorded a
    /// number of the new one.
    #[must_use]
    pub fn next_life(recorded: u64) -> u64 {
        ((recorded >> LIFE_BITS) + 1) << LIFE_BITS
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
        Self::with_log(storage, path, recorded)
    }

    /// The journal that lies in any storage, a simulated one included.
    ///
    /// # Errors
    /// [`JournalError::Cut`] when it ends before the write `recorded`.
    pub fn over(storage: Arc<dyn Storage>, recorded: u64) -> Result<Self, JournalError> {
        let number = number_of(&*storage)?;
        if number < recorded {
            return Err(JournalError::Cut { found: number, recorded });
        }
        let truncated = truncated_of(&*storage)?;
        let durable = Arc::new(AtomicU64::new(number));
        let (behind, behind_bytes) = (WriteBatch::default(), 0);
        let (ahead, swept, failed) = (None, Sequence(0), false);
        Ok(Self { storage, ahead, behind, behind_bytes, durable, number, truncated, swept, failed })
    }

    fn with_log(storage: RocksStorage, path: &Path, recorded: u64) -> Result<Self, JournalError> {
        let storage = Arc::new(storage);
        let (log, replay) = read_log(&storage, path)?;
        if !replay.is_empty() {
            for (number, payload) in replay {
                storage.write(decode_payload(number, &payload)?, Durability::Buffered)?;
            }
            // The log starts over, so what it held has to be durable without it.
            storage.flush()?;
        }
        let mut journal = Self::over(Arc::<RocksStorage>::clone(&storage), recorded)?;
        journal.ahead = Some(WriteAhead { log, storage, flushing: None });
        Ok(journal)
    }

    /// Every record, in the order of slots: the named ones, then by sequence and part.
    ///
    /// # Errors
    /// When the storage fails or holds a key that is none of ours.
    pub fn load(&mut self) -> Result<Records, JournalError> {
        self.settle()?;
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

    /// Makes these writes durable together, with one sync, and reports the last one's number at the
    /// moment it is safe to act on it. Nothing is reported of no writes.
    ///
    /// # Errors
    /// When the storage fails. The process has to stop then: what the disk holds is unknown, and
    /// writing again could vote twice.
    pub fn write(
        &mut self,
        writes: Vec<JournalWrite>,
        report: impl FnOnce(WriteNumber),
    ) -> Result<(), StorageError> {
        let Some(last) = writes.last().map(|write| write.number) else { return Ok(()) };
        // Until this one has succeeded.
        self.failed = true;
        self.number += 1;
        let bytes = payload_bytes(&writes);
        if self.ahead.as_ref().is_some_and(|ahead| !ahead.log.has_room(bytes)) {
            // What the half holds has to be in RocksDB when it is flushed; so has what comes before
            // a write that the log cannot take.
            self.settle()?;
        }
        let logged = match &mut self.ahead {
            Some(ahead) => ahead.append(self.number, bytes, &writes)?,
            None => false,
        };
        let batch = batch(self.number, writes.into_iter().flat_map(|write| write.records));
        if logged {
            // Already durable: whoever waits need not wait for RocksDB's memory.
            self.durable.store(self.number, Ordering::Release);
            report(last);
            self.behind.writes.extend(batch.writes);
            self.behind_bytes += bytes;
            if self.behind.writes.len() >= BEHIND_MAX.0 || self.behind_bytes >= BEHIND_MAX.1 {
                self.settle()?;
            }
        } else {
            self.storage.write(batch, Durability::Synced)?;
            self.durable.store(self.number, Ordering::Release);
            report(last);
        }
        self.failed = false;
        Ok(())
    }

    /// Whether these writes are one sync and no more.
    fn takes_at_once(&self, writes: &[JournalWrite]) -> bool {
        self.ahead.as_ref().is_some_and(|ahead| ahead.log.has_room(payload_bytes(writes)))
    }

    /// Gives the storage what only the log holds. One write of many costs little more than one of one.
    fn settle(&mut self) -> Result<(), StorageError> {
        if self.behind.writes.is_empty() {
            return Ok(());
        }
        self.behind_bytes = 0;
        self.storage.write(std::mem::take(&mut self.behind), Durability::Buffered)
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
        // From the last truncation on: ranges that do not overlap stay cheap to merge. The first one
        // of a process starts at zero and takes what came late to the process before.
        let from = key(Slot::Sequenced(self.swept, 0));
        let to = key(Slot::Sequenced(through.next(), 0));
        self.behind.delete_range(Table::Journal, from, to);
        self.behind.put(Table::Journal, KEY_TRUNCATED, through.0.to_be_bytes());
        if self.ahead.is_none() {
            self.settle()?;
        }
        self.truncated = through;
        self.swept = through;
        Ok(())
    }

    /// The number of the last write that is on the disk, kept current: what the ledger records.
    #[must_use]
    pub fn durable_number(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.durable)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if self.failed {
            return;
        }
        // A failure loses nothing: the log holds it.
        if let Err(error) = self.settle() {
            tracing::warn!(%error, "the journal's last records did not reach its storage");
        }
    }
}

/// The log, and the flush that frees the half of it that is not being filled.
struct WriteAhead {
    log: Log,
    storage: Arc<RocksStorage>,
    flushing: Option<JoinHandle<Result<(), StorageError>>>,
}

impl WriteAhead {
    /// Makes one write durable; false where it is larger than the log takes.
    fn append(
        &mut self,
        number: u64,
        payload_bytes: usize,
        writes: &[JournalWrite],
    ) -> Result<bool, StorageError> {
        if !self.log.can_hold(payload_bytes) {
            return Ok(false);
        }
        if !self.log.has_room(payload_bytes) {
            self.turn()?;
        }
        let appended = self.log.append(number, |buffer| encode_payload(buffer, writes));
        appended.map_err(|error| log_failed(self.storage.path(), &error))?;
        Ok(true)
    }

    /// Waits until the other half is flushed, and has this one flushed while the other fills.
    fn turn(&mut self) -> Result<(), StorageError> {
        self.flushed()?;
        self.log.turn();
        let storage = Arc::clone(&self.storage);
        let flush = std::thread::Builder::new()
            .name("journal-flush".to_owned())
            .spawn(move || storage.flush())
            .map_err(|error| log_failed(self.storage.path(), &error))?;
        self.flushing = Some(flush);
        Ok(())
    }

    fn flushed(&mut self) -> Result<(), StorageError> {
        match self.flushing.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(StorageError {
                operation: "flush of the journal",
                location: self.storage.path().display().to_string(),
                reason: "its thread panicked".to_owned(),
            }),
        }
    }
}

impl Drop for WriteAhead {
    fn drop(&mut self) {
        // Else the directory would stay locked for a moment after the journal is gone. A failure
        // loses nothing: the log still holds what was not flushed.
        if let Err(error) = self.flushed() {
            tracing::warn!(%error, "the journal's last flush failed");
        }
    }
}

/// The height that a journal says its ledger holds durably: it dropped what lies at or below it.
///
/// For inspection, without a node; 0 where nothing was dropped. A journal may be killed before it
/// says so, and never says so before it is true.
///
/// # Errors
/// A [`JournalError`], when there is none or it is in use.
pub fn truncated(path: &Path, resources: &SharedResources) -> Result<Sequence, JournalError> {
    let (storage, _) = RocksStorage::open_read_only(Kind::Journal, path, resources)?;
    truncated_of(&storage)
}

fn number_of(storage: &dyn Storage) -> Result<u64, JournalError> {
    stored_u64(storage, KEY_NUMBER)
}

fn truncated_of(storage: &dyn Storage) -> Result<Sequence, JournalError> {
    stored_u64(storage, KEY_TRUNCATED).map(Sequence)
}

fn stored_u64(storage: &dyn Storage, key: &[u8]) -> Result<u64, JournalError> {
    match storage.get(Table::Journal, key)? {
        None => Ok(0),
        Some(bytes) => <[u8; 8]>::try_from(bytes.as_slice())
            .map(u64::from_be_bytes)
            .map_err(|_| JournalError::Malformed("a number that is not 8 bytes".to_owned())),
    }
}

/// Opens the log and sorts what can be wrong with it.
fn read_log(storage: &RocksStorage, path: &Path) -> Result<(Log, Replay), JournalError> {
    let kind = Kind::Journal.name();
    let file = path.join(LOG_FILE);
    let id = storage.get(Table::Meta, KEY_LOG)?;
    let id = id.and_then(|id| <[u8; 8]>::try_from(id.as_slice()).ok());
    let id = id.ok_or_else(|| JournalError::Malformed("no id of its log".to_owned()))?;
    let opened = Log::open(&file, id, number_of(storage)?);
    opened.map_err(|error| {
        let (path, reason) = (path.to_owned(), error.to_string());
        let what = error.kind();
        JournalError::Open(if what == ErrorKind::NotFound || what == ErrorKind::InvalidData {
            OpenError::Corrupt { kind, path, reason: format!("{LOG_FILE}: {reason}") }
        } else if what == ErrorKind::Unsupported {
            OpenError::NewerFormat { kind, path, found: reason }
        } else {
            OpenError::Io { kind, path, reason }
        })
    })
}

fn log_failed(path: &Path, error: &std::io::Error) -> StorageError {
    StorageError {
        operation: "write of the journal's log",
        location: path.display().to_string(),
        reason: error.to_string(),
    }
}

fn batch(number: u64, records: impl Iterator<Item = Record>) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for record in records {
        batch.put(Table::Journal, key(record.slot), record.bytes);
    }
    batch.put(Table::Journal, KEY_NUMBER, number.to_be_bytes());
    batch
}

fn payload_bytes(writes: &[JournalWrite]) -> usize {
    let records = writes.iter().flat_map(|write| &write.records);
    records.map(|record| 1 + key(record.slot).len() + 4 + record.bytes.len()).sum()
}

fn encode_payload(buffer: &mut Vec<u8>, writes: &[JournalWrite]) {
    for record in writes.iter().flat_map(|write| &write.records) {
        let key = key(record.slot);
        let length = u32::try_from(record.bytes.len()).expect("the log took its size");
        buffer.push(u8::try_from(key.len()).expect("a key is at most 10 bytes"));
        buffer.extend_from_slice(&key);
        buffer.extend_from_slice(&length.to_le_bytes());
        buffer.extend_from_slice(&record.bytes);
    }
}

fn decode_payload(number: u64, mut payload: &[u8]) -> Result<WriteBatch, JournalError> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        let record = take_record(&mut payload);
        records.push(record.ok_or_else(|| JournalError::Malformed(format!("write {number}")))??);
    }
    Ok(batch(number, records.into_iter()))
}

fn take_record(payload: &mut &[u8]) -> Option<Result<Record, JournalError>> {
    let (length, rest) = payload.split_first()?;
    let (key, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *payload = rest;
    Some(decode_key(key).map(|slot| Record { slot, bytes: bytes.to_vec(), lazy: false }))
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
