//! Overlays: what a block has written so far, over the storage, and what one transaction has
//! written so far, over the block.
//!
//! A block becomes visible as a whole, so its writes gather in a [`BlockView`] until they go into
//! the block's one write batch. A transaction that may still be refused writes into a
//! [`TransactionView`] and either commits into the view below or is dropped without a trace.
//! Both hold the writes of at most one block, whose size the batch limits bound.

use crate::state_machine::StateView;
use crate::storage::{Entry, Storage, StorageError, Table};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Writes to the replicated tables: `None` removes the key.
#[derive(Debug, Default)]
pub struct Overlay([BTreeMap<Vec<u8>, Option<Vec<u8>>>; Table::REPLICATED.len()]);

fn slot(table: Table) -> usize {
    Table::REPLICATED
        .iter()
        .position(|replicated| *replicated == table)
        .expect("execution writes replicated tables only")
}

impl Overlay {
    /// What was written to a key: `None` when nothing was, `Some(None)` when it was removed.
    #[must_use]
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        self.0[slot(table)].get(key).map(Option::as_deref)
    }

    /// Sets or removes a key.
    ///
    /// # Panics
    /// If the table is not replicated.
    pub fn set(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.0[slot(table)].insert(key, value);
    }

    /// All writes in the order of table and key.
    pub fn into_writes(self) -> impl Iterator<Item = (Table, Vec<u8>, Option<Vec<u8>>)> {
        Table::REPLICATED.into_iter().zip(self.0).flat_map(|(table, writes)| {
            writes.into_iter().map(move |(key, value)| (table, key, value))
        })
    }

    /// Entries in key order, at most `limit`, of these writes over what `below` holds.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
        below: impl Fn(&[u8], usize) -> Result<Vec<Entry>, StorageError>,
    ) -> Result<Vec<Entry>, StorageError> {
        if limit == 0 || to.is_some_and(|to| to <= from) {
            return Ok(Vec::new());
        }
        let end = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut above =
            self.0[slot(table)].range::<[u8], _>((Bound::Included(from), end)).peekable();
        if above.peek().is_none() {
            return below(from, limit);
        }
        let mut found = Vec::new();
        let mut start = from.to_vec();
        // Each round reads at least one entry more from below, or ends.
        loop {
            let entries = below(&start, limit)?;
            let exhausted = entries.len() < limit;
            if let Some((last, _)) = entries.last() {
                start = after(last);
            }
            for (key, value) in entries {
                while let Some((written, change)) = above.next_if(|(written, _)| **written < key) {
                    found.extend(change.as_ref().map(|value| (written.clone(), value.clone())));
                }
                match above.next_if(|(written, _)| **written == key) {
                    Some((_, change)) => found.extend(change.clone().map(|value| (key, value))),
                    None => found.push((key, value)),
                }
                if found.len() >= limit {
                    found.truncate(limit);
                    return Ok(found);
                }
            }
            if exhausted {
                let rest = above
                    .filter_map(|(key, change)| Some((key.clone(), change.clone()?)))
                    .take(limit - found.len());
                found.extend(rest);
                return Ok(found);
            }
        }
    }
}

/// The smallest key above this one.
#[must_use]
pub fn after(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// One block's writes over the storage.
#[derive(Debug)]
pub struct BlockView<'a, S> {
    storage: &'a S,
    overlay: Overlay,
}

impl<'a, S: Storage> BlockView<'a, S> {
    /// Nothing written yet.
    #[must_use]
    pub fn new(storage: &'a S) -> Self {
        Self { storage, overlay: Overlay::default() }
    }

    /// What the block wrote.
    #[must_use]
    pub fn into_overlay(self) -> Overlay {
        self.overlay
    }
}

impl<S: Storage> StateView for BlockView<'_, S> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        match self.overlay.get(table, key) {
            Some(written) => Ok(written.map(<[u8]>::to_vec)),
            None => self.storage.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.overlay
            .scan(table, from, to, limit, |start, limit| self.storage.scan(table, start, to, limit))
    }

    fn set(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.overlay.set(table, key, value);
    }
}

/// One transaction's writes over a view; dropped unless committed.
pub struct TransactionView<'a> {
    below: &'a mut dyn StateView,
    overlay: Overlay,
}

impl<'a> TransactionView<'a> {
    /// Nothing written yet.
    #[must_use]
    pub fn new(below: &'a mut dyn StateView) -> Self {
        Self { below, overlay: Overlay::default() }
    }

    /// Makes the writes part of the view below.
    pub fn commit(self) {
        for (table, key, value) in self.overlay.into_writes() {
            self.below.set(table, key, value);
        }
    }
}

impl StateView for TransactionView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        match self.overlay.get(table, key) {
            Some(written) => Ok(written.map(<[u8]>::to_vec)),
            None => self.below.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.overlay
            .scan(table, from, to, limit, |start, limit| self.below.scan(table, start, to, limit))
    }

    fn set(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.overlay.set(table, key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_storage::MemoryStorage;
    use crate::storage::{Durability, WriteBatch};
    use proptest::prelude::*;

    /// A write of one of few keys, so that layers overlap.
    fn writes() -> impl Strategy<Value = Vec<(u8, Option<u8>)>> {
        proptest::collection::vec((0u8..12, proptest::option::of(0u8..9)), 0..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_scan_over_layers_equals_a_scan_of_what_they_amount_to(
            stored in writes(), block in writes(), inner in writes(),
            from in 0u8..13, to in proptest::option::of(0u8..13), limit in 0usize..14,
        ) {
            let storage = MemoryStorage::new();
            let mut model = BTreeMap::new();
            let mut batch = WriteBatch::default();
            let mut apply = |key: u8, value: Option<u8>| match value {
                Some(value) => { model.insert(vec![key], vec![value]); }
                None => { model.remove(&vec![key]); }
            };
            for (key, value) in stored {
                match value {
                    Some(value) => batch.put(Table::Store, [key], [value]),
                    None => batch.delete(Table::Store, [key]),
                }
                apply(key, value);
            }
            storage.write(batch, Durability::Buffered).unwrap();
            let mut view = BlockView::new(&storage);
            for (key, value) in block {
                view.set(Table::Store, vec![key], value.map(|v| vec![v]));
                apply(key, value);
            }
            let mut nested = TransactionView::new(&mut view);
            for (key, value) in inner {
                nested.set(Table::Store, vec![key], value.map(|v| vec![v]));
                apply(key, value);
            }
            let to = to.map(|to| vec![to]);
            let expected: Vec<Entry> = model
                .iter()
                .filter(|(key, _)| key[0] >= from && to.as_ref().is_none_or(|to| *key < to))
                .take(limit)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            let found = nested.scan(Table::Store, &[from], to.as_deref(), limit).unwrap();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(
                nested.get(Table::Store, &[from]).unwrap(), model.get(&vec![from]).cloned());
            nested.commit();
            let committed = view.scan(Table::Store, &[from], to.as_deref(), limit).unwrap();
            prop_assert_eq!(committed, expected);
        }
    }
}
