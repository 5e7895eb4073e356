//! Whether an answer is what was asked for and what is proven.

use super::fetch::Task;
use super::message::Item;
use crate::state_trie::{Leaf, Node, NodeError, PAGE_LEAVES_MAX, leaf_digest, value_digest};
use conclave_crypto::mistake;

/// What a peer sent that no correct one sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Blame {
    /// A node that is not what its parent says.
    #[error("a node whose hash is not the certified one")]
    Hash,
    /// A value that is not what its page says.
    #[error("a value whose digest is not the certified one")]
    Value,
    /// Bytes that are no node, or a node that cannot stand there.
    #[error("{0}")]
    Node(#[from] NodeError),
    /// More, less or other than was asked for.
    #[error("an answer that does not fit the question")]
    Answer,
}

/// Checks an answer against what is proven: the node's hash against its parent's word, each value
/// against its page. Answers the node if one was asked for.
pub(super) fn check(task: &Task, item: &Item) -> Result<Option<Node>, Blame> {
    let node = match (&task.page, &item.node) {
        (None, Some(bytes)) => {
            let node = Node::decode(bytes)?;
            if !task.expected.holds(node.summary()) && !mistake!("chunk-unchecked") {
                return Err(Blame::Hash);
            }
            node.belongs_at(&task.position)?;
            Some(node)
        }
        (Some(_), None) if !item.values.is_empty() => None,
        (None, None) | (Some(_), _) => return Err(Blame::Answer),
    };
    let ascending = item.values.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if !ascending || item.values.len() > PAGE_LEAVES_MAX {
        return Err(Blame::Answer);
    }
    let leaves = match (&node, &task.page) {
        (Some(Node::Page(leaves)), _) | (None, Some((leaves, _))) => leaves.as_slice(),
        (Some(Node::Inner(_)), _) | (None, None) => &[],
    };
    let wanted = task.want().values;
    for (index, value) in &item.values {
        let leaf = leaves.get(usize::from(*index)).ok_or(Blame::Answer)?;
        if wanted & 1 << index == 0 {
            return Err(Blame::Answer);
        }
        if !is_value_of(leaf, value) {
            return Err(Blame::Value);
        }
    }
    Ok(node)
}

pub(super) fn is_value_of(leaf: &Leaf, value: &[u8]) -> bool {
    leaf_digest(leaf.table, &leaf.key, &value_digest(value)) == leaf.digest
        || mistake!("chunk-unchecked")
}
