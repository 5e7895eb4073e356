//! The storage seam: two instances of one trait, a journal that is synced and a ledger that is not.
//!
//! A storage is a set of ordered tables of byte strings. Every error means that the replica stops:
//! after a failed write nobody knows what the disk holds, and a retry could vote twice.

use std::sync::Arc;

/// The tables of both instances. The number is the table's identity on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Facts of the instance itself: format, cluster, applied height, journal number.
    Meta = 0,
    /// Journal: the engine's records, by [`crate::engine::Slot`].
    Journal = 1,
    /// Ledger: height (u64 big endian) → header and results.
    Blocks = 2,
    /// Ledger: height → the batch's encoding.
    Bodies = 3,
    /// Ledger: height → the engine's commit certificate, opaque here.
    Commits = 4,
    /// Ledger: the newest stable checkpoint's certificate, and how each epoch ended.
    Checkpoints = 5,
    /// Replicated state: the key-value store.
    Store = 6,
    /// Replicated state: client and session tables.
    Sessions = 7,
    /// Replicated state: organizations, clients, membership, rejoins.
    Registry = 8,
    /// Nodes of the state trie, by path.
    Trie = 9,
    /// Leaves changed since a checkpoint, not yet in the trie.
    Dirty = 10,
    /// State that is being fetched, until it is swapped in.
    Staging = 11,
    /// Proofs of misbehaviour.
    Evidence = 12,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Table; 13] = [
        Table::Meta,
        Table::Journal,
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
    ];

    /// The tables whose content the state root covers.
    pub const REPLICATED: [Table; 3] = [Table::Store, Table::Sessions, Table::Registry];

    /// The table's name on disk and in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Journal => "journal",
            Table::Blocks => "blocks",
            Table::Bodies => "bodies",
            Table::Commits => "commits",
            Table::Checkpoints => "checkpoints",
            Table::Store => "store",
            Table::Sessions => "sessions",
            Table::Registry => "registry",
            Table::Trie => "trie",
            Table::Dirty => "dirty",
            Table::Staging => "staging",
            Table::Evidence => "evidence",
        }
    }
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// One change of a [`WriteBatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Table, Vec<u8>, Vec<u8>),
    /// Removes a key; no error when it is absent.
    Delete(Table, Vec<u8>),
    /// Removes every key in `from..to`.
    DeleteRange(Table, Vec<u8>, Vec<u8>),
}

impl Write {
    /// Bytes of its keys and its value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put(_, key, value) => key.len() + value.len(),
            Self::Delete(_, key) => key.len(),
            Self::DeleteRange(_, from, to) => from.len() + to.len(),
        }
    }
}

/// Changes that become visible and durable together, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// Applied in this order.
    pub writes: Vec<Write>,
}

impl WriteBatch {
    /// Adds a put.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.writes.push(Write::Put(table, key.into(), value.into()));
    }

    /// Adds a delete.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.writes.push(Write::Delete(table, key.into()));
    }

    /// Adds a range delete of `from..to`.
    pub fn delete_range(&mut self, table: Table, from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) {
        self.writes.push(Write::DeleteRange(table, from.into(), to.into()));
    }
}

/// How durable a write is when the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// May be lost with the machine's power, and with the process, in order: never a later write
    /// without an earlier one.
    Buffered,
    /// On the disk, with every write before it.
    Synced,
}

/// The world's fault; the replica stops.
#[derive(Debug, Clone, thiserror::Error)]
#[error("storage {operation} failed at {location}: {reason}")]
pub struct StorageError {
    /// What was tried.
    pub operation: &'static str,
    /// Where: the directory or table.
    pub location: String,
    /// What the storage said.
    pub reason: String,
}

/// Reads of one consistent state. `from` inclusive, `to` exclusive, `None` unbounded.
pub trait Storage: Send + Sync + 'static {
    /// A consistent, read-only view that later writes do not change.
    ///
    /// # Errors
    /// When the storage fails.
    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, StorageError>;

    /// The value of a key.
    ///
    /// # Errors
    /// When the storage fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Entries in key order; stops after `limit` entries.
    ///
    /// # Errors
    /// When the storage fails.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError>;

    /// The last entry below `below` (or of the table).
    ///
    /// # Errors
    /// When the storage fails.
    fn last(&self, table: Table, below: Option<&[u8]>) -> Result<Option<Entry>, StorageError>;

    /// Applies a batch atomically.
    ///
    /// # Errors
    /// When the storage fails; what the disk then holds is unknown.
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError>;

    /// Makes every earlier write durable.
    ///
    /// # Errors
    /// When the storage fails.
    fn sync(&self) -> Result<(), StorageError>;
}

/// A read-only view of a storage at one moment; the read half of [`Storage`].
pub trait Snapshot: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// When the storage fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Entries in key order; stops after `limit` entries.
    ///
    /// # Errors
    /// When the storage fails.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError>;
}
