//! Merkle paths prove exactly the leaf, the place and the number of leaves that they were drawn for.
#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test that fails")]

use conclave_crypto::{Digest, MerkleError, MerklePath, MerkleTree, merkle_leaf};
use proptest::prelude::*;

fn leaves(count: u32) -> Vec<Digest> {
    (0..count).map(|leaf| merkle_leaf(&[&leaf.to_le_bytes()])).collect()
}

#[test]
fn every_leaf_of_every_small_tree_has_a_path_to_its_root() {
    for count in 1..=130 {
        let leaves = leaves(count);
        let tree = MerkleTree::new(leaves.clone());
        for (index, leaf) in leaves.iter().enumerate() {
            let path = tree.path(index);
            assert_eq!(path.root_of(*leaf), Ok(tree.root()), "leaf {index} of {count}");
        }
    }
}

#[test]
fn no_two_numbers_of_equal_leaves_share_a_root() {
    let mut roots: Vec<Digest> = (0..200)
        .map(|count| MerkleTree::new(vec![merkle_leaf(&[b"same"]); count]).root())
        .collect();
    roots.sort_unstable();
    roots.dedup();
    assert_eq!(roots.len(), 200);
}

#[test]
fn a_tree_of_one_leaf_has_an_empty_path_and_another_root_than_its_leaf() {
    let leaf = merkle_leaf(&[b"alone"]);
    let tree = MerkleTree::new(vec![leaf]);
    assert!(tree.path(0).siblings.is_empty());
    assert_ne!(tree.root(), leaf);
    assert_eq!(tree.path(0).root_of(leaf), Ok(tree.root()));
}

#[test]
fn a_path_in_an_empty_tree_is_refused() {
    let path = MerklePath { index: 0, count: 0, siblings: Vec::new() };
    assert_eq!(path.root_of(Digest::ZERO), Err(MerkleError::Index { index: 0, count: 0 }));
}

#[test]
fn an_index_beyond_the_leaves_is_refused_before_anything_is_hashed() {
    for (index, count) in [(1, 1), (5, 5), (u32::MAX, 5), (u32::MAX, u32::MAX)] {
        let path = MerklePath { index, count, siblings: vec![Digest::ZERO; 3] };
        assert_eq!(path.root_of(Digest::ZERO), Err(MerkleError::Index { index, count }));
    }
}

#[test]
fn a_path_needs_exactly_as_many_siblings_as_its_place_has() {
    // The last leaf of five rises twice without a partner and has one sibling, at the top.
    let mut path = MerkleTree::new(leaves(5)).path(4);
    assert_eq!(path.siblings.len(), 1);
    path.siblings.clear();
    let wrong = |found| Err(MerkleError::Siblings { index: 4, count: 5, expected: 1, found });
    assert_eq!(path.root_of(leaves(5)[4]), wrong(0));
    path.siblings = vec![Digest::ZERO; 2];
    assert_eq!(path.root_of(leaves(5)[4]), wrong(2));
}

#[test]
fn the_largest_claimed_tree_costs_no_more_than_its_depth() {
    let (index, count) = (u32::MAX - 1, u32::MAX);
    let mut path = MerklePath { index, count, siblings: vec![Digest::ZERO; 31] };
    assert!(path.root_of(Digest::ZERO).is_ok());
    path.siblings = vec![Digest::ZERO; 1_000];
    assert_eq!(
        path.root_of(Digest::ZERO),
        Err(MerkleError::Siblings { index, count, expected: 31, found: 1_000 })
    );
}

#[test]
fn an_inner_node_does_not_pass_for_a_leaf() {
    // The classic forgery: show the node above two leaves as a leaf of a tree of half the size.
    let leaves = leaves(4);
    let tree = MerkleTree::new(leaves.clone());
    let above = MerkleTree::new(leaves[2..].to_vec());
    let MerklePath { siblings, .. } = tree.path(0);
    let forged = MerklePath { index: 0, count: 2, siblings: siblings[1..].to_vec() };
    assert_ne!(forged.root_of(above.root()), Ok(tree.root()));
    assert_ne!(forged.root_of(leaves[0]), Ok(tree.root()));
}

#[test]
#[should_panic(expected = "a path starts at a leaf")]
fn asking_for_a_path_of_a_leaf_that_is_not_there_is_a_bug_of_the_caller() {
    let _ = MerkleTree::new(leaves(3)).path(3);
}

fn settings() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn a_path_proves_its_own_leaf_in_its_own_place_only(
        count in 1_u32..700, at: prop::sample::Index, other: prop::sample::Index,
    ) {
        let leaves = leaves(count);
        let tree = MerkleTree::new(leaves.clone());
        let (index, other) = (at.index(leaves.len()), other.index(leaves.len()));
        let path = tree.path(index);
        prop_assert!(path.siblings.len() <= 10);
        prop_assert_eq!(path.root_of(leaves[index]), Ok(tree.root()));
        if other != index {
            prop_assert_ne!(path.root_of(leaves[other]), Ok(tree.root()));
            let moved = MerklePath { index: u32::try_from(other).unwrap(), ..path };
            prop_assert_ne!(moved.root_of(leaves[index]), Ok(tree.root()));
        }
    }

    #[test]
    fn a_path_with_another_count_proves_nothing(
        count in 1_u32..300, claimed in 0_u32..300, at: prop::sample::Index,
    ) {
        prop_assume!(count != claimed);
        let leaves = leaves(count);
        let tree = MerkleTree::new(leaves.clone());
        let index = at.index(leaves.len());
        let path = MerklePath { count: claimed, ..tree.path(index) };
        prop_assert_ne!(path.root_of(leaves[index]), Ok(tree.root()));
    }

    #[test]
    fn a_changed_sibling_changes_the_root(
        count in 2_u32..300, at: prop::sample::Index, which: prop::sample::Index, bit in 0_usize..256,
    ) {
        let leaves = leaves(count);
        let tree = MerkleTree::new(leaves.clone());
        let index = at.index(leaves.len());
        let mut path = tree.path(index);
        let which = which.index(path.siblings.len());
        let mut bytes = *path.siblings[which].as_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        path.siblings[which] = Digest::from_bytes(bytes);
        prop_assert_ne!(path.root_of(leaves[index]), Ok(tree.root()));
    }

    #[test]
    fn an_arbitrary_path_is_never_a_panic(index: u32, count: u32, siblings in 0_usize..40) {
        let path = MerklePath { index, count, siblings: vec![Digest::ZERO; siblings] };
        let _ = path.root_of(Digest::ZERO);
    }

    #[test]
    fn paths_survive_their_encoding(count in 1_u32..100, at: prop::sample::Index) {
        let path = MerkleTree::new(leaves(count)).path(at.index(count as usize));
        let config = bincode::config::legacy();
        let bytes = bincode::serde::encode_to_vec(&path, config).unwrap();
        prop_assert_eq!(bytes.len(), 4 + 4 + 8 + 32 * path.siblings.len());
        let (back, used): (MerklePath, usize) =
            bincode::serde::decode_from_slice(&bytes, config).unwrap();
        prop_assert_eq!((&back, used), (&path, bytes.len()));
        let json = serde_json::to_string(&path).unwrap();
        prop_assert_eq!(serde_json::from_str::<MerklePath>(&json).unwrap(), path);
    }
}
