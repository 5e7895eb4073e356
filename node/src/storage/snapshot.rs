//! A view of one moment that keeps its database open for as long as it lives.

use super::{read_scan, table_handle};
use conclave_consensus::storage::{Entry, Snapshot, StorageError, Table};
use rocksdb::DB;
use std::sync::Arc;

type View<'a> = rocksdb::Snapshot<'a>;

// RocksDB's snapshot borrows its database. This cell owns both, and drops the snapshot first.
self_cell::self_cell!(
    struct Pinned {
        owner: Arc<DB>,
        #[covariant]
        dependent: View,
    }
);

/// A snapshot of a [`super::RocksStorage`].
pub(super) struct RocksSnapshot {
    pinned: Pinned,
}

impl RocksSnapshot {
    pub(super) fn new(db: Arc<DB>) -> Self {
        Self { pinned: Pinned::new(db, |db| db.snapshot()) }
    }
}

impl Snapshot for RocksSnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let handle = table_handle(self.pinned.borrow_owner(), table)?;
        self.pinned.borrow_dependent().get_cf(handle, key).map_err(|error| StorageError {
            operation: "read of a snapshot",
            location: table.name().to_owned(),
            reason: error.to_string(),
        })
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        let handle = table_handle(self.pinned.borrow_owner(), table)?;
        let options = super::options::range(to);
        let iterator = self.pinned.borrow_dependent().raw_iterator_cf_opt(handle, options);
        read_scan(iterator, table, from, to, limit)
    }
}
