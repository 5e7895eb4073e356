use super::*;
use crate::executor::fixture::*;
use crate::kv::Transaction;
use crate::memory_storage::MemoryStorage;
use crate::storage::{Durability, WriteBatch};
use std::sync::Arc;

/// Eight blocks with two stable checkpoints and a few rows dirty.
fn sound(blocks: u64) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::new());
    let mut executor = open(&storage);
    for height in 1..=blocks {
        let requests = match height {
            1 => vec![open_session(ADMIN, 0, None)],
            _ => vec![submit(ADMIN, (1, height, 0), &Transaction::put(format!("k{height}"), "v"))],
        };
        let (_, done) =
            run_with_checkpoint(&mut executor, &storage, block(height, height, requests));
        if let Some(done) = done {
            executor.stable(&certify(&checkpoint(0, &done))).unwrap();
        }
    }
    storage
}

/// The fixture's certificates repeat the block's height.
fn check(_: &Membership, committed: &Committed) -> Result<(), String> {
    let expected = vec![committed.sequence.0 as u8; 3];
    if committed.certificate == expected { Ok(()) } else { Err("forged".to_owned()) }
}

fn found(storage: &MemoryStorage) -> Option<(u64, String)> {
    let verified = verify(storage, &genesis(), &check).unwrap();
    verified.bad.map(|(height, reason)| (height.0, reason))
}

fn rewrite(storage: &MemoryStorage, table: Table, key: &[u8], value: Option<Vec<u8>>) {
    let mut write = WriteBatch::default();
    match value {
        Some(value) => write.put(table, key, value),
        None => write.delete(table, key),
    }
    storage.write(write, Durability::Synced).unwrap();
}

fn flip(storage: &MemoryStorage, table: Table, key: &[u8], at: usize) {
    let mut value = storage.get(table, key).unwrap().unwrap();
    value[at] ^= 1;
    rewrite(storage, table, key, Some(value));
}

#[test]
fn a_sound_ledger_verifies_at_and_between_checkpoints() {
    for blocks in 0..10 {
        let storage = sound(blocks);
        let verified = verify(&*storage, &genesis(), &check).unwrap();
        assert!(verified.ok(), "{verified:?}");
        assert_eq!((verified.height.0, verified.blocks_checked), (blocks, blocks));
        assert_eq!(verified.certified_first, None);
    }
}

#[test]
fn any_flipped_byte_of_a_header_is_found_at_its_block() {
    let sound = sound(7);
    let bytes = sound.get(Table::Blocks, &height_key(Sequence(5))).unwrap().unwrap().len();
    for at in 0..bytes {
        let storage = sound.copy();
        flip(&storage, Table::Blocks, &height_key(Sequence(5)), at);
        let (height, reason) = found(&storage).expect("the change is found");
        // What nothing inside a block contradicts shows in the next one's parent hash.
        assert!(
            height == 5 || (height == 6 && reason.contains("parent")),
            "{at}: {height} {reason}"
        );
    }
}

/// What it is called, the row, its new value, and what the reason says.
type Case<'a> = (&'a str, Table, &'a [u8], Option<Vec<u8>>, &'a str);

#[test]
fn a_changed_block_is_found_and_named() {
    let (key, results) = (height_key(Sequence(3)), super::super::results_key(Sequence(3)));
    let other = sound(7).get(Table::Bodies, &height_key(Sequence(4))).unwrap();
    let cases: [Case<'_>; 8] = [
        ("header gone", Table::Blocks, &key, None, "header is missing"),
        ("results gone", Table::Blocks, &results, None, "results are missing"),
        ("body gone", Table::Bodies, &key, None, "body is missing"),
        ("body of another block", Table::Bodies, &key, other, "not the batch"),
        ("garbled body", Table::Bodies, &key, Some(vec![1; 9]), "no batch"),
        ("certificate gone", Table::Commits, &key, None, "certificate is missing"),
        ("certificate forged", Table::Commits, &key, Some(vec![9; 3]), "forged"),
        ("results garbled", Table::Blocks, &results, Some(vec![255; 30]), "decode"),
    ];
    for (name, table, key, value, expected) in cases {
        let storage = sound(7);
        rewrite(&storage, table, key, value);
        let (height, reason) = found(&storage).expect(name);
        assert_eq!(height, 3, "{name}: {reason}");
        assert!(reason.contains(expected), "{name}: {reason}");
    }
    let storage = sound(7);
    flip(&storage, Table::Blocks, &results, 8 + 32 + 8 + 3);
    assert_eq!(found(&storage).unwrap(), (3, "the results do not match the results root".into()));
}

#[test]
fn changed_state_is_found_at_a_checkpoint_and_between() {
    for blocks in [8, 9] {
        for (table, key) in [(Table::Store, b"k3".as_slice()), (Table::Registry, b"membership")] {
            let storage = sound(blocks);
            let row = storage.get(table, key).unwrap().unwrap();
            flip(&storage, table, key, row.len() - 1);
            let (height, reason) = found(&storage).expect("the change is found");
            assert_eq!(height, blocks, "{reason}");
            if blocks == 8 {
                let key = String::from_utf8_lossy(key);
                assert!(reason.contains(&*key), "names the key: {reason}");
            }
        }
        let storage = sound(blocks);
        rewrite(&storage, Table::Store, b"slipped in", Some(vec![0; 25]));
        assert_eq!(found(&storage).unwrap().0, blocks);
    }
}

#[test]
fn a_state_and_trie_changed_together_differ_from_the_signed_checkpoint() {
    let storage = sound(8);
    let mut leaf = vec![];
    rewrite(&storage, Table::Store, b"k3", Some(vec![0; 25]));
    leaf.push((
        state_trie::path(Table::Store, b"k3"),
        state_trie::DirtyLeaf::new(Table::Store, b"k3", Some(&[0; 25])),
    ));
    let (root, mut batch) = state_trie::update(&*storage.snapshot().unwrap(), leaf).unwrap();
    let mut stood: Checkpoint = read(&*storage, Table::Meta, META_CHECKPOINT).unwrap().unwrap();
    stood.state_root = root;
    batch.put(Table::Meta, META_CHECKPOINT, wire::encode(&stood));
    storage.write(batch, Durability::Synced).unwrap();
    let (height, reason) = found(&storage).unwrap();
    assert_eq!((height, reason.contains("quorum signed")), (8, true), "{reason}");
}

#[test]
fn a_tip_that_is_not_the_last_blocks_is_found() {
    let storage = sound(7);
    let mut tip: TipRecord = read(&*storage, Table::Meta, META_TIP).unwrap().unwrap();
    tip.header = Digest::ZERO;
    rewrite(&storage, Table::Meta, META_TIP, Some(wire::encode(&tip)));
    assert_eq!(found(&storage).unwrap().0, 7);
}
