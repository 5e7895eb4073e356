//! Applying changes: one pass down the changed paths and up again.

use super::node::nibble_of;
use super::{Child, DirtyLeaf, Inner, Leaf, Node, PAGE_LEAVES_MAX, Position};
use super::{leaf_digest, load, load_child, root_digest};
use crate::storage::{Snapshot, StorageError, Table, WriteBatch};
use conclave_crypto::digest::Digest;

/// Applies changes to the stored trie: the new root, and what to write to make it so.
///
/// Each node on a changed path is read once and written once; nothing else is touched. Of several
/// changes of one path the last counts. A change that changes nothing writes nothing.
///
/// # Errors
/// When the storage fails or holds something that is no trie.
pub fn update(
    reader: &dyn Snapshot,
    changes: impl IntoIterator<Item = (Digest, DirtyLeaf)>,
) -> Result<(Digest, WriteBatch), StorageError> {
    let mut changes: Vec<Change> = changes.into_iter().map(Change::from).collect();
    changes.sort_by_key(|change| change.path);
    // Sorted stably, the last of equal paths is the newest: it takes the place of the one before.
    changes.dedup_by(|later, kept| {
        let equal = later.path == kept.path;
        if equal {
            std::mem::swap(later, kept);
        }
        equal
    });
    let mut update = Update { reader, batch: WriteBatch::default() };
    let top = Position::default();
    let old = load(reader, &top)?;
    let before = old.as_ref().map(Node::summary);
    let new = update.apply(&top, old, &mut changes)?;
    let after = update.write(&top, before, new.as_ref());
    Ok((root_digest(after), update.batch))
}

struct Change {
    path: Digest,
    leaf: Option<Leaf>,
}

impl From<(Digest, DirtyLeaf)> for Change {
    fn from((path, dirty): (Digest, DirtyLeaf)) -> Self {
        let DirtyLeaf { table, key, value } = dirty;
        let leaf = value.map(|value| {
            let digest = leaf_digest(table, &key, &value);
            Leaf { path, digest, table, key }
        });
        Self { path, leaf }
    }
}

struct Update<'a> {
    reader: &'a dyn Snapshot,
    batch: WriteBatch,
}

impl Update<'_> {
    /// The node that stands at `position` after these changes. All below it is written; it itself is
    /// not, because its parent may take its leaves into a page. Recursion: at most 64 deep.
    fn apply(
        &mut self,
        position: &Position,
        old: Option<Node>,
        changes: &mut [Change],
    ) -> Result<Option<Node>, StorageError> {
        match old {
            Some(Node::Inner(inner)) => self.apply_inner(position, inner, changes),
            Some(Node::Page(leaves)) => Ok(self.build(position, merge(leaves, changes))),
            None => Ok(self.build(position, merge(Vec::new(), changes))),
        }
    }

    fn apply_inner(
        &mut self,
        position: &Position,
        mut inner: Box<Inner>,
        changes: &mut [Change],
    ) -> Result<Option<Node>, StorageError> {
        let depth = position.depth();
        let mut touched: Vec<(u8, Option<Child>, Option<Node>)> = Vec::with_capacity(16);
        let groups =
            changes.chunk_by_mut(|a, b| nibble_of(&a.path, depth) == nibble_of(&b.path, depth));
        for group in groups {
            let nibble = nibble_of(&group[0].path, depth);
            let place = position.child(nibble);
            let before = inner.children[usize::from(nibble)];
            let old = match before {
                Some(_) => Some(load_child(self.reader, &place)?),
                None => None,
            };
            let new = self.apply(&place, old, group)?;
            inner.children[usize::from(nibble)] = new.as_ref().map(Node::summary);
            touched.push((nibble, before, new));
        }
        if inner.count() <= PAGE_LEAVES_MAX as u64 {
            return self.collapse(position, &inner, touched);
        }
        for (nibble, before, new) in touched {
            self.write(&position.child(nibble), before, new.as_ref());
        }
        Ok(Some(Node::Inner(inner)))
    }

    /// Takes all leaves below an inner node into one page. All its children are pages or gone.
    fn collapse(
        &mut self,
        position: &Position,
        inner: &Inner,
        touched: Vec<(u8, Option<Child>, Option<Node>)>,
    ) -> Result<Option<Node>, StorageError> {
        let mut touched = touched.into_iter().peekable();
        let mut page = Vec::with_capacity(PAGE_LEAVES_MAX);
        for nibble in 0..16 {
            let place = position.child(nibble);
            let node = match touched.next_if(|(other, ..)| *other == nibble) {
                Some((_, before, new)) => {
                    if before.is_some() {
                        self.batch.delete(Table::Trie, place.key());
                    }
                    new
                }
                None if inner.children[usize::from(nibble)].is_some() => {
                    self.batch.delete(Table::Trie, place.key());
                    Some(load_child(self.reader, &place)?)
                }
                None => None,
            };
            match node {
                Some(Node::Page(leaves)) => page.extend(leaves),
                Some(Node::Inner(_)) => {
                    return Err(super::damaged(&place, "more leaves than its parent counts"));
                }
                None => {}
            }
        }
        Ok((!page.is_empty()).then_some(Node::Page(page)))
    }

    /// The node over these leaves at a place where nothing is stored below.
    fn build(&mut self, position: &Position, leaves: Vec<Leaf>) -> Option<Node> {
        if leaves.len() <= PAGE_LEAVES_MAX {
            return (!leaves.is_empty()).then_some(Node::Page(leaves));
        }
        let depth = position.depth();
        let mut inner = Inner::default();
        let mut leaves = leaves.into_iter().peekable();
        while let Some(first) = leaves.next() {
            let nibble = nibble_of(&first.path, depth);
            let mut group = vec![first];
            while let Some(leaf) = leaves.next_if(|leaf| nibble_of(&leaf.path, depth) == nibble) {
                group.push(leaf);
            }
            let place = position.child(nibble);
            let node = self.build(&place, group);
            inner.children[usize::from(nibble)] = self.write(&place, None, node.as_ref());
        }
        Some(Node::Inner(Box::new(inner)))
    }

    /// Writes what changed at a position and says what its parent is to know.
    fn write(
        &mut self,
        position: &Position,
        before: Option<Child>,
        node: Option<&Node>,
    ) -> Option<Child> {
        let after = node.map(Node::summary);
        match node {
            Some(node) if before != after => {
                self.batch.put(Table::Trie, position.key(), node.encode());
            }
            None if before.is_some() => self.batch.delete(Table::Trie, position.key()),
            Some(_) | None => {}
        }
        after
    }
}

/// The leaves of a page after these changes, both in the order of paths.
fn merge(leaves: Vec<Leaf>, changes: &mut [Change]) -> Vec<Leaf> {
    let mut merged = Vec::with_capacity(leaves.len() + changes.len());
    let mut leaves = leaves.into_iter().peekable();
    for change in changes {
        while let Some(leaf) = leaves.next_if(|leaf| leaf.path < change.path) {
            merged.push(leaf);
        }
        // What stood at this path is replaced or removed.
        leaves.next_if(|leaf| leaf.path == change.path);
        merged.extend(change.leaf.take());
    }
    merged.extend(leaves);
    merged
}
