//! Small writes that RocksDB gets later, many at once.
//!
//! One write of RocksDB costs some 15 µs before its first key, and a block of one request changes a
//! dozen keys. So what may be lost with the machine's power may wait here, and what is written again
//! meanwhile, such as the height, is written once. It is lost with the process as well; the journal
//! holds every batch that the ledger has not synced, whichever way it was lost.

use conclave_consensus::storage::{Durability, Table, Write, WriteBatch};
use std::collections::BTreeMap;

/// A batch of more bytes goes to RocksDB at once.
const SMALL_BYTES: usize = 16 << 10;
/// So does all that waits, once it is more. Bytes and keys.
const WAITING_MAX: (usize, usize) = (512 << 10, 4096);

/// What a key is to be, none where it is to be removed, by table.
type Values = [BTreeMap<Vec<u8>, Option<Vec<u8>>>; Table::ALL.len()];

/// Writes that wait, as readers must see them.
#[derive(Default)]
pub(super) struct Behind {
    values: Values,
    /// Of keys and values, those included that were written again since.
    bytes: usize,
    keys: usize,
}

impl Behind {
    /// Whether such a batch may wait.
    pub(super) fn takes(batch: &WriteBatch, durability: Durability) -> bool {
        let mut bytes = 0;
        durability == Durability::Buffered
            && batch.writes.iter().all(|write| {
                bytes += write.bytes();
                bytes <= SMALL_BYTES && !matches!(write, Write::DeleteRange(..))
            })
    }

    /// Adds a batch that it [`Self::takes`]. Whether all that waits should go to RocksDB now.
    pub(super) fn add(&mut self, batch: WriteBatch) -> bool {
        for write in batch.writes {
            self.bytes += write.bytes();
            let (table, key, value) = match write {
                Write::Put(table, key, value) => (table, key, Some(value)),
                Write::Delete(table, key) => (table, key, None),
                Write::DeleteRange(..) => unreachable!("no such batch is taken"),
            };
            self.keys += 1;
            self.values[table as usize].insert(key, value);
        }
        self.bytes > WAITING_MAX.0 || self.keys > WAITING_MAX.1
    }

    /// What is to become of a key, if it waits here.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.values[table as usize].get(key)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// All that waits: what each key is to be, none where it is to be removed.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Table, &[u8], Option<&[u8]>)> {
        Table::ALL.into_iter().zip(&self.values).flat_map(|(table, values)| {
            values.iter().map(move |(key, value)| (table, key.as_slice(), value.as_deref()))
        })
    }

    /// Nothing waits any more.
    pub(super) fn clear(&mut self) {
        self.values.iter_mut().for_each(BTreeMap::clear);
        (self.bytes, self.keys) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(fill: impl FnOnce(&mut WriteBatch)) -> WriteBatch {
        let mut batch = WriteBatch::default();
        fill(&mut batch);
        batch
    }

    #[test]
    fn only_small_batches_that_nobody_wants_synced_may_wait() {
        let small = batch(|b| b.put(Table::Store, b"k", vec![1; SMALL_BYTES - 1]));
        assert!(Behind::takes(&small, Durability::Buffered));
        assert!(!Behind::takes(&small, Durability::Synced));
        let large = batch(|b| b.put(Table::Store, b"k", vec![1; SMALL_BYTES]));
        assert!(!Behind::takes(&large, Durability::Buffered));
        let range = batch(|b| b.delete_range(Table::Store, b"a", b"b"));
        assert!(!Behind::takes(&range, Durability::Buffered));
    }

    #[test]
    fn the_last_write_of_a_key_counts_and_goes_out_once() {
        let mut behind = Behind::default();
        assert!(!behind.add(batch(|b| {
            b.put(Table::Store, b"a", b"1");
            b.put(Table::Meta, b"a", b"other");
            b.delete(Table::Store, b"b");
        })));
        assert!(!behind.add(batch(|b| b.put(Table::Store, b"a", b"2"))));
        assert_eq!(behind.get(Table::Store, b"a"), Some(&Some(b"2".to_vec())));
        assert_eq!(behind.get(Table::Store, b"b"), Some(&None));
        assert_eq!(behind.get(Table::Store, b"c"), None);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let taken: Vec<_> =
            behind.iter().map(|(table, key, value)| (table, text(key), value.map(text))).collect();
        let expected = |table, key: &str, value: Option<&str>| {
            (table, key.to_owned(), value.map(str::to_owned))
        };
        assert_eq!(
            taken,
            [
                expected(Table::Meta, "a", Some("other")),
                expected(Table::Store, "a", Some("2")),
                expected(Table::Store, "b", None),
            ]
        );
        behind.clear();
        assert!(behind.is_empty());
        assert_eq!(behind.get(Table::Store, b"a"), None);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_keys_even_where_one_key_is_written_again() {
        let mut behind = Behind::default();
        let value = vec![0; 8 << 10];
        let many = (0..1000).position(|_| behind.add(batch(|b| b.put(Table::Meta, b"k", &*value))));
        assert_eq!(many, Some(WAITING_MAX.0 / (value.len() + 1)));
        behind.clear();
        let mut keys = 0..10_000_u64;
        let many =
            keys.position(|k| behind.add(batch(|b| b.put(Table::Meta, k.to_be_bytes(), b""))));
        assert_eq!(many, Some(WAITING_MAX.1));
    }
}
