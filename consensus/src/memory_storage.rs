//! The simulated [`Storage`]: tables in memory that lose what was not synced when power fails.
//!
//! Pure tests and the simulator run the real executor on it. It models the promise that the ledger
//! and the journal rely on and nothing stronger: buffered batches are lost from the end, whole, and
//! never a later one without an earlier one. Reads see every write at once, durable or not.
//!
//! The undo log of unsynced batches is as long as what was written since the last sync; whoever
//! never syncs keeps it all.

use crate::storage::{
    Durability, Entry, Snapshot, Storage, StorageError, Table, Write, WriteBatch,
};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

type Rows = BTreeMap<Vec<u8>, Arc<[u8]>>;

/// Tables by number. A clone shares the rows until one side writes to them.
#[derive(Clone, Debug, Default)]
struct Tables([Arc<Rows>; Table::ALL.len()]);

/// What a key held before a batch.
type Before = (Table, Vec<u8>, Option<Arc<[u8]>>);

#[derive(Debug, Default)]
struct State {
    tables: Tables,
    /// For each batch since the last sync, in order: what it overwrote, to be put back in reverse.
    undo: Vec<Vec<Before>>,
    writes: u64,
    syncs: u64,
    fail_at: Option<u64>,
}

/// An in-memory storage with a power switch. Share it in an `Arc`.
#[derive(Debug, Default)]
pub struct MemoryStorage(RwLock<State>);

impl MemoryStorage {
    /// An empty storage.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An independent storage with the same content, all of it durable: an old copy of a disk.
    #[must_use]
    pub fn copy(&self) -> Self {
        let tables = self.read().tables.clone();
        Self(RwLock::new(State { tables, ..State::default() }))
    }

    /// How many batches a power failure could lose now.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.read().undo.len()
    }

    /// How many batches were written since this was made.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.read().writes
    }

    /// How many times everything was made durable since this was made.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.read().syncs
    }

    /// Power fails: of the unsynced batches only the first `keep` survive. Ends [`Self::fail_at`].
    pub fn crash(&self, keep: usize) {
        let mut state = self.write_lock();
        while state.undo.len() > keep {
            let Some(batch) = state.undo.pop() else { break };
            for (table, key, before) in batch.into_iter().rev() {
                let rows = state.tables.rows_mut(table);
                match before {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
        }
        state.undo.clear();
        state.fail_at = None;
    }

    /// Every write and sync fails from the batch on that would be number `write` (the first ever is
    /// 0), and changes nothing: the process dies just before that point.
    pub fn fail_at(&self, write: u64) {
        self.write_lock().fail_at = Some(write);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn alive(&self, operation: &'static str) -> Result<(), StorageError> {
        match self.fail_at {
            Some(write) if self.writes >= write => Err(StorageError {
                operation,
                location: "memory".to_owned(),
                reason: format!("the test ends this process before write {write}"),
            }),
            _ => Ok(()),
        }
    }

    fn apply(&mut self, write: Write, undo: &mut Vec<Before>) {
        match write {
            Write::Put(table, key, value) => {
                let before = self.tables.rows_mut(table).insert(key.clone(), value.into());
                undo.push((table, key, before));
            }
            Write::Delete(table, key) => {
                if let Some(before) = self.tables.rows_mut(table).remove(&key) {
                    undo.push((table, key, Some(before)));
                }
            }
            Write::DeleteRange(table, from, to) => {
                let keys: Vec<Vec<u8>> = self
                    .tables
                    .range(table, &from, Some(&to))
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in keys {
                    self.apply(Write::Delete(table, key), undo);
                }
            }
        }
    }
}

impl Tables {
    fn rows(&self, table: Table) -> &Rows {
        &self.0[table as usize]
    }

    fn rows_mut(&mut self, table: Table) -> &mut Rows {
        Arc::make_mut(&mut self.0[table as usize])
    }

    fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        self.rows(table).get(key).map(|value| value.to_vec())
    }

    fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> impl Iterator<Item = (&Vec<u8>, &Arc<[u8]>)> {
        // BTreeMap refuses a range that ends before it starts; ours is empty then.
        let empty = to.is_some_and(|to| to <= from);
        let end = match to {
            _ if empty => Bound::Included(from),
            Some(to) => Bound::Excluded(to),
            None => Bound::Unbounded,
        };
        let limit = if empty { 0 } else { usize::MAX };
        self.rows(table).range::<[u8], _>((Bound::Included(from), end)).take(limit)
    }

    fn scan(&self, table: Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Vec<Entry> {
        self.range(table, from, to)
            .take(limit)
            .map(|(key, value)| (key.clone(), value.to_vec()))
            .collect()
    }

    fn last(&self, table: Table, below: Option<&[u8]>) -> Option<Entry> {
        let end = below.map_or(Bound::Unbounded, Bound::Excluded);
        let (key, value) =
            self.rows(table).range::<[u8], _>((Bound::Unbounded, end)).next_back()?;
        Some((key.clone(), value.to_vec()))
    }
}

impl Storage for MemoryStorage {
    fn snapshot(&self) -> Result<Arc<dyn Snapshot>, StorageError> {
        Ok(Arc::new(MemorySnapshot(self.read().tables.clone())))
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.read().tables.get(table, key))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.read().tables.scan(table, from, to, limit))
    }

    fn last(&self, table: Table, below: Option<&[u8]>) -> Result<Option<Entry>, StorageError> {
        Ok(self.read().tables.last(table, below))
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        let mut state = self.write_lock();
        state.alive("write")?;
        state.writes += 1;
        let mut undo = Vec::with_capacity(batch.writes.len());
        for write in batch.writes {
            state.apply(write, &mut undo);
        }
        state.undo.push(undo);
        if durability == Durability::Synced {
            state.undo.clear();
            state.syncs += 1;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut state = self.write_lock();
        state.alive("sync")?;
        state.undo.clear();
        state.syncs += 1;
        Ok(())
    }
}

struct MemorySnapshot(Tables);

impl Snapshot for MemorySnapshot {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.0.get(table, key))
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.0.scan(table, from, to, limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> WriteBatch {
        let mut batch = WriteBatch::default();
        batch.put(Table::Store, key, value);
        batch
    }

    #[test]
    fn a_crash_loses_a_suffix_of_the_unsynced_batches() {
        let storage = MemoryStorage::new();
        storage.write(put("a", "1"), Durability::Synced).unwrap();
        storage.write(put("a", "2"), Durability::Buffered).unwrap();
        let mut batch = put("b", "1");
        batch.delete_range(Table::Store, "a", "b");
        storage.write(batch, Durability::Buffered).unwrap();
        assert_eq!(storage.get(Table::Store, b"a").unwrap(), None);
        storage.crash(1);
        assert_eq!(storage.scan(Table::Store, b"", None, 9).unwrap(), [(b"a".into(), b"2".into())]);
        assert_eq!(storage.unsynced(), 0);
        storage.crash(0);
        assert_eq!(storage.get(Table::Store, b"a").unwrap(), Some(b"2".to_vec()));
    }

    #[test]
    fn a_synced_write_makes_all_earlier_ones_durable() {
        let storage = MemoryStorage::new();
        storage.write(put("a", "1"), Durability::Buffered).unwrap();
        storage.write(put("b", "1"), Durability::Synced).unwrap();
        storage.crash(0);
        assert_eq!(storage.scan(Table::Store, b"", None, 9).unwrap().len(), 2);
    }

    #[test]
    fn a_snapshot_does_not_see_later_writes() {
        let storage = MemoryStorage::new();
        storage.write(put("a", "1"), Durability::Buffered).unwrap();
        let snapshot = storage.snapshot().unwrap();
        storage.write(put("a", "2"), Durability::Buffered).unwrap();
        assert_eq!(snapshot.get(Table::Store, b"a").unwrap(), Some(b"1".to_vec()));
        assert_eq!(storage.copy().get(Table::Store, b"a").unwrap(), Some(b"2".to_vec()));
    }

    #[test]
    fn a_range_that_ends_before_it_starts_is_empty() {
        let storage = MemoryStorage::new();
        storage.write(put("b", "1"), Durability::Buffered).unwrap();
        assert!(storage.scan(Table::Store, b"c", Some(b"a"), 9).unwrap().is_empty());
        assert!(storage.scan(Table::Store, b"b", Some(b"b"), 9).unwrap().is_empty());
        assert_eq!(storage.last(Table::Store, Some(b"b")).unwrap(), None);
        assert_eq!(storage.last(Table::Store, None).unwrap().unwrap().0, b"b");
    }

    #[test]
    fn writes_fail_from_the_chosen_one_on_until_the_crash() {
        let storage = MemoryStorage::new();
        storage.fail_at(1);
        storage.write(put("a", "1"), Durability::Buffered).unwrap();
        assert!(storage.write(put("b", "1"), Durability::Buffered).is_err());
        assert!(storage.sync().is_err());
        storage.crash(9);
        assert_eq!(storage.scan(Table::Store, b"", None, 9).unwrap().len(), 1);
        storage.sync().unwrap();
    }
}
