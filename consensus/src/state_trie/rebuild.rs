//! The root computed from the tables alone, for checks that trust no stored node.

use super::node::{nibble_of, page_summary};
use super::{Child, Inner, PAGE_LEAVES_MAX, leaf_digest, path, root_digest, value_digest};
use super::{DirtyLeaf, Node, Position, load, replicated};
use crate::storage::{Snapshot, StorageError, Table};
use conclave_crypto::digest::Digest;

/// Rows read at a time.
const SCAN_ROWS: usize = 256;

/// The root that these tables should have, by reading every row.
///
/// Memory: 64 bytes per row. Time: a few microseconds per row.
///
/// # Errors
/// When the storage fails.
pub fn root_of_tables(reader: &dyn Snapshot) -> Result<Digest, StorageError> {
    let mut leaves = Vec::new();
    for table in Table::REPLICATED {
        each_row(reader, table, |key, value| {
            let digest = leaf_digest(table as u8, key, &value_digest(value));
            leaves.push((path(table, key), digest));
            Ok(true)
        })?;
    }
    leaves.sort_unstable();
    Ok(root_digest(subtree(&leaves, 0)))
}

/// The first row, in the order of tables and keys, that the stored trie does not have as the table
/// has it. Rows that only the trie has are not found: compare [`root_of_tables`] for those.
///
/// # Errors
/// When the storage fails.
pub fn first_difference(reader: &dyn Snapshot) -> Result<Option<(Table, Vec<u8>)>, StorageError> {
    let mut found = None;
    for table in Table::REPLICATED {
        each_row(reader, table, |key, value| {
            let digest = leaf_digest(table as u8, key, &value_digest(value));
            if stored_digest(reader, &path(table, key))? != Some(digest) {
                found = Some((table, key.to_vec()));
            }
            Ok(found.is_none())
        })?;
        if found.is_some() {
            break;
        }
    }
    Ok(found)
}

/// All rows that the stored trie has otherwise than the tables, as changes that make it equal to
/// them: what is left to believe of a state that was proven wrong. Reads every row and every node.
///
/// Memory: about 150 bytes for each difference.
///
/// # Errors
/// When the storage fails.
pub fn differences(reader: &dyn Snapshot) -> Result<Vec<(Digest, DirtyLeaf)>, StorageError> {
    let mut changes = Vec::new();
    for table in Table::REPLICATED {
        each_row(reader, table, |key, value| {
            let digest = leaf_digest(table as u8, key, &value_digest(value));
            let path = path(table, key);
            if stored_digest(reader, &path)? != Some(digest) {
                changes.push((path, DirtyLeaf::new(table, key, Some(value))));
            }
            Ok(true)
        })?;
    }
    each_row(reader, Table::Trie, |key, bytes| {
        let node = Node::decode(bytes).map_err(|error| StorageError {
            operation: "read of the state trie",
            location: format!("node {key:02x?}"),
            reason: error.to_string(),
        })?;
        let Node::Page(leaves) = node else { return Ok(true) };
        for leaf in leaves {
            if let Some(table) = replicated(leaf.table)
                && reader.get(table, &leaf.key)?.is_none()
            {
                changes.push((leaf.path, DirtyLeaf::new(table, &leaf.key, None)));
            }
        }
        Ok(true)
    })?;
    Ok(changes)
}

/// The leaf digest that the stored trie has at a path.
fn stored_digest(reader: &dyn Snapshot, path: &Digest) -> Result<Option<Digest>, StorageError> {
    let mut position = Position::default();
    let mut node = load(reader, &position)?;
    while let Some(Node::Inner(_)) = node {
        position = position.child(nibble_of(path, position.depth()));
        node = load(reader, &position)?;
    }
    let Some(Node::Page(leaves)) = node else { return Ok(None) };
    Ok(leaves.iter().find(|leaf| leaf.path == *path).map(|leaf| leaf.digest))
}

fn each_row(
    reader: &dyn Snapshot,
    table: Table,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StorageError>,
) -> Result<(), StorageError> {
    let mut from = Vec::new();
    loop {
        let rows = reader.scan(table, &from, None, SCAN_ROWS)?;
        for (key, value) in &rows {
            if !visit(key, value)? {
                return Ok(());
            }
        }
        // The next key after k in byte order is k with a zero byte behind it.
        match rows.last() {
            Some((key, _)) if rows.len() == SCAN_ROWS => from = [key.as_slice(), &[0]].concat(),
            Some(_) | None => return Ok(()),
        }
    }
}

/// The node over these sorted leaves. Recursion: at most 64 deep, for paths are distinct.
fn subtree(leaves: &[(Digest, Digest)], depth: usize) -> Option<Child> {
    if leaves.len() <= PAGE_LEAVES_MAX {
        let lines = leaves.iter().map(|(path, digest)| (path, digest));
        return (!leaves.is_empty()).then(|| page_summary(lines));
    }
    let mut inner = Inner::default();
    for group in leaves.chunk_by(|a, b| nibble_of(&a.0, depth) == nibble_of(&b.0, depth)) {
        inner.children[usize::from(nibble_of(&group[0].0, depth))] = subtree(group, depth + 1);
    }
    Some(Child { count: inner.count(), hash: inner.hash() })
}
