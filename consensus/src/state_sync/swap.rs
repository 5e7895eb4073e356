//! Putting a staged state in place.
//!
//! A small difference is one batch, and atomic by that. A large one is many: the first writes a mark,
//! the last removes it together with all that was staged, and between them the tables are neither the
//! old state nor the new one. A replica that finds the mark at its start goes on with the swap before
//! anything else.
//!
//! What makes that safe at any step: below each position rows and children are written before the
//! node itself, and children are deleted before it, so that a stored node of the expected hash proves
//! everything below it to be in place, and a node of another hash is simply done again. Batches are
//! never applied out of order, and nothing is read of the staged state that is not checked again.

use super::check::is_value_of;
use super::message::TransferTarget;
use super::own::{Own, OwnNode};
use super::{Expected, staged_node, staged_value_key};
use crate::state_trie::{Leaf, Node, PAGE_LEAVES_MAX, Position, replicated, root_digest};
use crate::storage::{Snapshot, StorageError, Table, Write, WriteBatch};
use crate::wire;
use conclave_crypto::digest::Digest;
use std::sync::Arc;

const MARK: &[u8] = b"s";

/// Above every key of a table whose keys begin with a letter.
const KEYS_END: &[u8] = &[0xff];

/// Why a swap cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SwapError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Something of the target is neither here nor staged: the transfer is not complete.
    #[error("the staged state lacks {what} at {position}; fetch it first")]
    Incomplete {
        /// A node, or a row.
        what: &'static str,
        /// Where.
        position: String,
    },
}

/// One batch of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwapStep {
    /// Write this, buffered, and go on. The first one sets the mark.
    More(WriteBatch),
    /// Write this together with the ledger's new tip, synced: the state is in place.
    Last(WriteBatch),
}

enum Task {
    /// Make what lies under a position what the target has there.
    Visit { position: Position, expected: Option<Expected>, own: Own, keep: Arc<Vec<Digest>> },
    /// All below is in place.
    Put { position: Position, node: Node, rows: bool },
    /// All below is gone.
    Delete { position: Position },
}

/// A swap under way.
///
/// Memory: one batch, and the siblings along one path of the trie.
pub struct Swap {
    target: TransferTarget,
    reader: Arc<dyn Snapshot>,
    tasks: Vec<Task>,
    batch: WriteBatch,
    bytes: usize,
    marked: bool,
}

impl Swap {
    /// Begins to put a completely staged target in place. `reader` shows all that was staged, which
    /// must be synced before the first batch is written.
    #[must_use]
    pub fn begin(target: TransferTarget, reader: Arc<dyn Snapshot>) -> Self {
        Self::over(target, reader, false)
    }

    /// Goes on with a swap that was interrupted, if there is one. Until its last batch is written the
    /// replicated tables are no state at all.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn interrupted(reader: Arc<dyn Snapshot>) -> Result<Option<Self>, StorageError> {
        let Some(mark) = reader.get(Table::Staging, MARK)? else { return Ok(None) };
        let target = wire::decode(&mark, wire::FRAME_BYTES_MAX).map_err(|error| StorageError {
            operation: "read of the mark of a swap",
            location: Table::Staging.name().to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Some(Self::over(target, reader, true)))
    }

    fn over(target: TransferTarget, reader: Arc<dyn Snapshot>, marked: bool) -> Self {
        let root = target.state_root();
        let top = Task::Visit {
            position: Position::default(),
            expected: (root != root_digest(None)).then_some(Expected::Root(root)),
            own: Own::Stored,
            keep: Arc::default(),
        };
        let batch = WriteBatch::default();
        Self { target, reader, tasks: vec![top], batch, bytes: 0, marked }
    }

    /// What is put in place.
    #[must_use]
    pub fn target(&self) -> &TransferTarget {
        &self.target
    }

    /// The next batch, of about `bytes_max` bytes.
    ///
    /// # Errors
    /// [`SwapError::Incomplete`] when the staged state is not complete, and when the storage fails.
    pub fn next_step(&mut self, bytes_max: usize) -> Result<SwapStep, SwapError> {
        while let Some(task) = self.tasks.pop() {
            match task {
                Task::Visit { position, expected: Some(expected), own, keep: _ } => {
                    self.place(position, expected, own)?;
                }
                Task::Visit { position, expected: None, own, keep } => {
                    self.clear(position, own, &keep)?;
                }
                Task::Put { position, node, rows } => self.put(&position, &node, rows)?,
                Task::Delete { position } => self.batch.delete(Table::Trie, position.key()),
            }
            if self.bytes + self.batch.writes.len() * 64 >= bytes_max && !self.tasks.is_empty() {
                let mut batch = std::mem::take(&mut self.batch);
                self.bytes = 0;
                if !std::mem::replace(&mut self.marked, true) {
                    let mark =
                        Write::Put(Table::Staging, MARK.to_vec(), wire::encode(&self.target));
                    batch.writes.insert(0, mark);
                }
                return Ok(SwapStep::More(batch));
            }
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.delete_range(Table::Staging, Vec::new(), KEYS_END);
        Ok(SwapStep::Last(batch))
    }

    /// Makes the subtree at a position the expected one.
    fn place(&mut self, position: Position, expected: Expected, own: Own) -> Result<(), SwapError> {
        let own = own.look(&*self.reader, &position)?;
        if own.summary().is_some_and(|summary| expected.holds(summary)) {
            // Equal rows, but of a page that lies above: the page of the target is here.
            if let OwnNode::Leaves { leaves, stored: false } = own {
                self.tasks.push(Task::Put { position, node: Node::Page(leaves), rows: false });
            }
            return Ok(());
        }
        let node = staged_node(&*self.reader, &position, &expected)?.ok_or_else(|| {
            SwapError::Incomplete { what: "a node", position: position.to_string() }
        })?;
        match &node {
            Node::Page(leaves) => {
                let keep = Arc::new(leaves.iter().map(|leaf| leaf.path).collect::<Vec<_>>());
                self.tasks.push(Task::Put { position: position.clone(), node, rows: true });
                match own {
                    OwnNode::Nothing => {}
                    OwnNode::Leaves { leaves, .. } => self.delete_rows(&leaves, &keep),
                    OwnNode::Inner(inner) => {
                        for (nibble, _) in present(&inner.children) {
                            self.tasks.push(Task::Visit {
                                position: position.child(nibble),
                                expected: None,
                                own: Own::Stored,
                                keep: keep.clone(),
                            });
                        }
                    }
                }
            }
            Node::Inner(inner) => {
                let children = inner.children;
                self.tasks.push(Task::Put { position: position.clone(), node, rows: false });
                for (nibble, child) in (0u8..).zip(children) {
                    let (below, summary) = own.child(&position, nibble);
                    let nothing = matches!(below, Own::Nothing) && child.is_none();
                    // What an old parent names and the target has too was never touched.
                    if nothing || (summary.is_some() && summary == child) {
                        continue;
                    }
                    self.tasks.push(Task::Visit {
                        position: position.child(nibble),
                        expected: child.map(Expected::Child),
                        own: below,
                        keep: Arc::default(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Removes what lies under a position, but not the rows in `keep`: those are of the target.
    fn clear(
        &mut self,
        position: Position,
        own: Own,
        keep: &Arc<Vec<Digest>>,
    ) -> Result<(), StorageError> {
        match own.look(&*self.reader, &position)? {
            OwnNode::Nothing => {}
            OwnNode::Leaves { leaves, stored } => {
                self.delete_rows(&leaves, keep);
                if stored {
                    self.batch.delete(Table::Trie, position.key());
                }
            }
            OwnNode::Inner(inner) => {
                for (nibble, _) in present(&inner.children) {
                    self.tasks.push(Task::Visit {
                        position: position.child(nibble),
                        expected: None,
                        own: Own::Stored,
                        keep: keep.clone(),
                    });
                }
                let after = self.tasks.len() - inner.children.iter().flatten().count();
                self.tasks.insert(after, Task::Delete { position });
            }
        }
        Ok(())
    }

    fn delete_rows(&mut self, leaves: &[Leaf], keep: &[Digest]) {
        for leaf in leaves.iter().filter(|leaf| !keep.contains(&leaf.path)) {
            if let Some(table) = replicated(leaf.table) {
                self.batch.delete(table, leaf.key.clone());
            }
        }
    }

    fn put(&mut self, position: &Position, node: &Node, rows: bool) -> Result<(), SwapError> {
        if let (Node::Page(leaves), true) = (node, rows) {
            assert!(leaves.len() <= PAGE_LEAVES_MAX, "a page was decoded with at most 16 leaves");
            for leaf in leaves {
                self.put_row(position, leaf)?;
            }
        }
        let bytes = node.encode();
        self.bytes += bytes.len();
        self.batch.put(Table::Trie, position.key(), bytes);
        Ok(())
    }

    fn put_row(&mut self, position: &Position, leaf: &Leaf) -> Result<(), SwapError> {
        let incomplete = || SwapError::Incomplete { what: "a row", position: position.to_string() };
        let table = replicated(leaf.table).ok_or_else(incomplete)?;
        let staged = self.reader.get(Table::Staging, &staged_value_key(&leaf.path))?;
        if let Some(value) = staged.filter(|value| is_value_of(leaf, value)) {
            self.bytes += value.len();
            self.batch.put(table, leaf.key.clone(), value);
            return Ok(());
        }
        // Then it must have been here all along.
        let mine = self.reader.get(table, &leaf.key)?;
        if mine.is_some_and(|value| is_value_of(leaf, &value)) { Ok(()) } else { Err(incomplete()) }
    }
}

fn present(
    children: &[Option<crate::state_trie::Child>; 16],
) -> impl Iterator<Item = (u8, crate::state_trie::Child)> + '_ {
    (0u8..).zip(children).filter_map(|(nibble, child)| child.map(|child| (nibble, child)))
}
