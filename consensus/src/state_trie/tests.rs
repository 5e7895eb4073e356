//! The trie against a model: whatever the order and batching of changes, the root is that of a trie
//! built anew from the tables.

use super::*;
use crate::memory_storage::MemoryStorage;
use crate::storage::{Durability, Storage, WriteBatch};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn key(number: u16) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// Writes rows and folds them into the trie; says the root.
fn apply(storage: &MemoryStorage, changes: &[(Table, u16, Option<Vec<u8>>)]) -> Digest {
    let mut rows = WriteBatch::default();
    let mut dirty = Vec::new();
    for (table, number, value) in changes {
        let key = key(*number);
        dirty.push((path(*table, &key), DirtyLeaf::new(*table, &key, value.as_deref())));
        match value {
            Some(value) => rows.put(*table, key, value.clone()),
            None => rows.delete(*table, key),
        }
    }
    let (root, batch) = update(&*storage.snapshot().unwrap(), dirty).unwrap();
    storage.write(rows, Durability::Buffered).unwrap();
    storage.write(batch, Durability::Buffered).unwrap();
    root
}

/// The stored nodes: equal contents must leave equal nodes, and nothing besides.
fn nodes(storage: &MemoryStorage) -> Vec<crate::storage::Entry> {
    storage.scan(Table::Trie, &[], None, usize::MAX).unwrap()
}

fn change() -> impl Strategy<Value = (Table, u16, Option<Vec<u8>>)> {
    let table = prop::sample::select(Table::REPLICATED.to_vec());
    (table, 0u16..60, prop::option::weighted(0.6, prop::collection::vec(any::<u8>(), 0..3)))
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_order_and_batching_yields_the_trie_of_the_content_alone(
        batches in prop::collection::vec(prop::collection::vec(change(), 0..80), 0..8),
    ) {
        let storage = MemoryStorage::new();
        let mut model = BTreeMap::new();
        for batch in &batches {
            let said = apply(&storage, batch);
            for (table, number, value) in batch {
                model.insert((*table, *number), value.clone());
            }
            let snapshot = storage.snapshot().unwrap();
            prop_assert_eq!(said, root(&*snapshot).unwrap());
            prop_assert_eq!(said, root_of_tables(&*snapshot).unwrap());
            prop_assert_eq!(first_difference(&*snapshot).unwrap(), None);
        }
        let anew = MemoryStorage::new();
        let content: Vec<_> = model
            .into_iter()
            .filter(|(_, value)| value.is_some())
            .map(|((table, number), value)| (table, number, value))
            .collect();
        apply(&anew, &content);
        prop_assert_eq!(nodes(&storage), nodes(&anew));
    }

    #[test]
    fn proofs_hold_for_what_is_there_and_what_is_not_and_for_nothing_else(
        batch in prop::collection::vec(change(), 0..120),
        asked in 0u16..80,
        other in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let storage = MemoryStorage::new();
        let root = apply(&storage, &batch);
        let key = key(asked);
        let value = storage.get(Table::Store, &key).unwrap();
        let proof = prove(&*storage.snapshot().unwrap(), Table::Store, &key).unwrap();
        prop_assert_eq!(proof.verify(&root, Table::Store, &key, value.as_deref()), Ok(()));
        prop_assert!(proof.verify(&Digest::ZERO, Table::Store, &key, value.as_deref()).is_err());
        if value.is_some() {
            prop_assert!(proof.verify(&root, Table::Store, &key, None).is_err());
        }
        if value.as_ref() != Some(&other) {
            prop_assert!(proof.verify(&root, Table::Store, &key, Some(&other)).is_err());
        }
        // The proof of one row says nothing of a row elsewhere, in particular not that it is absent.
        for number in 0..60 {
            let elsewhere = storage.get(Table::Store, &super::tests::key(number)).unwrap();
            let said = proof.verify(&root, Table::Store, &super::tests::key(number), None);
            prop_assert!(elsewhere.is_none() || said.is_err());
        }
    }

    #[test]
    fn a_flipped_bit_of_a_proof_is_never_accepted(
        batch in prop::collection::vec(change(), 40..120),
        bit in any::<prop::sample::Index>(),
    ) {
        let storage = MemoryStorage::new();
        let root = apply(&storage, &batch);
        let key = key(3);
        let value = storage.get(Table::Store, &key).unwrap();
        let proof = prove(&*storage.snapshot().unwrap(), Table::Store, &key).unwrap();
        let mut bytes = crate::wire::encode(&proof);
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(forged) = crate::wire::decode::<TrieProof>(&bytes, 1 << 20) {
            prop_assert!(forged.verify(&root, Table::Store, &key, value.as_deref()).is_err());
        }
    }

    #[test]
    fn nodes_encode_to_the_bytes_they_were_decoded_from(
        batch in prop::collection::vec(change(), 0..120),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let storage = MemoryStorage::new();
        apply(&storage, &batch);
        for (_, bytes) in nodes(&storage) {
            prop_assert_eq!(Node::decode(&bytes).unwrap().encode(), bytes);
        }
        if let Ok(node) = Node::decode(&bytes) {
            prop_assert_eq!(node.encode(), bytes);
        }
    }
}

/// Changes at made-up paths, as if somebody had ground keys until they fell there.
fn ground(prefix_nibbles: usize, count: u8) -> Vec<(Digest, DirtyLeaf)> {
    (0..count)
        .map(|i| {
            let mut bytes = [0x77; 32];
            bytes[prefix_nibbles / 2] = i;
            let dirty = DirtyLeaf::new(Table::Store, &[i], Some(&[i]));
            (Digest::from_bytes(bytes), dirty)
        })
        .collect()
}

#[test]
fn paths_that_share_62_nibbles_cost_a_node_per_nibble_and_collapse_again() {
    let storage = MemoryStorage::new();
    let empty = root(&*storage.snapshot().unwrap()).unwrap();
    let (_, batch) = update(&*storage.snapshot().unwrap(), ground(62, 200)).unwrap();
    storage.write(batch, Durability::Buffered).unwrap();
    // 62 inner nodes above, one at the branch of the last byte, its 13 groups of 16 as pages.
    assert_eq!(nodes(&storage).len(), 62 + 1 + 13);
    let gone: Vec<_> = ground(62, 200)
        .into_iter()
        .map(|(path, leaf)| (path, DirtyLeaf { value: None, ..leaf }))
        .collect();
    let (_, batch) = update(&*storage.snapshot().unwrap(), gone[16..].to_vec()).unwrap();
    storage.write(batch, Durability::Buffered).unwrap();
    assert_eq!(nodes(&storage).len(), 1, "16 leaves are one page at the top");
    let (end, batch) = update(&*storage.snapshot().unwrap(), gone).unwrap();
    storage.write(batch, Durability::Buffered).unwrap();
    assert_eq!((nodes(&storage).len(), end), (0, empty));
}

#[test]
fn a_change_that_changes_nothing_writes_nothing() {
    let storage = MemoryStorage::new();
    let rows: Vec<_> = (0..500).map(|i| (Table::Store, i, Some(vec![1]))).collect();
    apply(&storage, &rows);
    let key = key(7);
    let same = DirtyLeaf::new(Table::Store, &key, Some(&[1]));
    let snapshot = storage.snapshot().unwrap();
    let (_, batch) = update(&*snapshot, [(path(Table::Store, &key), same)]).unwrap();
    assert_eq!(batch, WriteBatch::default());
}

#[test]
fn an_update_touches_only_the_changed_path() {
    let storage = MemoryStorage::new();
    let rows: Vec<_> = (0..5000).map(|i| (Table::Store, i, Some(vec![1]))).collect();
    apply(&storage, &rows);
    let key = key(7);
    let dirty = DirtyLeaf::new(Table::Store, &key, Some(&[2]));
    let snapshot = storage.snapshot().unwrap();
    let (_, batch) = update(&*snapshot, [(path(Table::Store, &key), dirty)]).unwrap();
    assert!(batch.writes.len() <= 4, "5,000 rows lie at most 4 deep: {}", batch.writes.len());
}

#[test]
fn rows_of_two_tables_with_one_key_are_two_leaves() {
    let storage = MemoryStorage::new();
    let one = apply(&storage, &[(Table::Store, 1, Some(vec![1]))]);
    let other = apply(&storage, &[(Table::Store, 1, None), (Table::Sessions, 1, Some(vec![1]))]);
    assert_ne!(one, other);
}

#[test]
fn a_row_that_was_altered_behind_the_tries_back_is_named() {
    let storage = MemoryStorage::new();
    let rows: Vec<_> = (0..100).map(|i| (Table::Store, i, Some(vec![1]))).collect();
    let root = apply(&storage, &rows);
    let mut batch = WriteBatch::default();
    batch.put(Table::Store, key(42), vec![9]);
    storage.write(batch, Durability::Buffered).unwrap();
    let snapshot = storage.snapshot().unwrap();
    assert_ne!(root_of_tables(&*snapshot).unwrap(), root);
    assert_eq!(first_difference(&*snapshot).unwrap(), Some((Table::Store, key(42))));
}

#[test]
fn a_missing_or_garbled_node_is_a_storage_error() {
    let storage = MemoryStorage::new();
    let rows: Vec<_> = (0..100).map(|i| (Table::Store, i, Some(vec![1]))).collect();
    apply(&storage, &rows);
    let victim = nodes(&storage)[1].0.clone();
    let touch_all = || {
        rows.iter().map(|(table, number, _)| {
            let key = key(*number);
            (path(*table, &key), DirtyLeaf::new(*table, &key, Some(&[5])))
        })
    };
    let mut batch = WriteBatch::default();
    batch.put(Table::Trie, victim.clone(), vec![9]);
    storage.write(batch, Durability::Buffered).unwrap();
    assert!(update(&*storage.snapshot().unwrap(), touch_all()).is_err());
    let mut batch = WriteBatch::default();
    batch.delete(Table::Trie, victim);
    storage.write(batch, Durability::Buffered).unwrap();
    assert!(update(&*storage.snapshot().unwrap(), touch_all()).is_err());
}
