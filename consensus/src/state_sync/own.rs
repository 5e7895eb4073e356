//! What the own state has under a position of the target's trie.
//!
//! Two tries of different content have different shapes: where one has a page, the other may have a
//! subtree. [`Own`] hides that: under every position the own state is nothing, a stored node, or the
//! part of a page above that leads through here.

use crate::state_trie::{Child, Inner, Leaf, Node, Position, load};
use crate::storage::{Snapshot, StorageError};
use conclave_crypto::digest::Digest;

/// The own state under one position, before it is looked at.
#[derive(Clone, Debug)]
pub(super) enum Own {
    Nothing,
    /// There may be a node at this very position.
    Stored,
    /// These leaves of an own page above lie under here; at least one.
    Leaves(Vec<Leaf>),
}

/// The same, looked at.
pub(super) enum OwnNode {
    Nothing,
    Inner(Box<Inner>),
    /// An own page, or part of one that lies above.
    Leaves {
        leaves: Vec<Leaf>,
        stored: bool,
    },
}

impl Own {
    pub(super) fn look(
        self,
        reader: &dyn Snapshot,
        position: &Position,
    ) -> Result<OwnNode, StorageError> {
        Ok(match self {
            Self::Nothing => OwnNode::Nothing,
            Self::Leaves(leaves) => OwnNode::Leaves { leaves, stored: false },
            Self::Stored => match load(reader, position)? {
                Some(Node::Inner(inner)) => OwnNode::Inner(inner),
                Some(Node::Page(leaves)) => OwnNode::Leaves { leaves, stored: true },
                None => OwnNode::Nothing,
            },
        })
    }
}

impl OwnNode {
    /// Count and hash of the node that stands, or would stand, here.
    pub(super) fn summary(&self) -> Option<Child> {
        match self {
            Self::Nothing => None,
            Self::Inner(inner) => Some(Child { count: inner.count(), hash: inner.hash() }),
            Self::Leaves { leaves, .. } => Some(Node::page_summary_of(leaves)),
        }
    }

    /// The own state under the child at `nibble`, and its summary where it is known unread.
    pub(super) fn child(&self, position: &Position, nibble: u8) -> (Own, Option<Child>) {
        match self {
            Self::Nothing => (Own::Nothing, None),
            Self::Inner(inner) => match inner.children[usize::from(nibble)] {
                Some(child) => (Own::Stored, Some(child)),
                None => (Own::Nothing, None),
            },
            Self::Leaves { leaves, .. } => {
                let place = position.child(nibble);
                let under: Vec<_> =
                    leaves.iter().filter(|leaf| place.covers(&leaf.path)).cloned().collect();
                if under.is_empty() { (Own::Nothing, None) } else { (Own::Leaves(under), None) }
            }
        }
    }

    /// The own leaf at a path under `position`.
    pub(super) fn leaf(
        &self,
        reader: &dyn Snapshot,
        position: &Position,
        path: &Digest,
    ) -> Result<Option<Leaf>, StorageError> {
        let find = |leaves: &[Leaf]| leaves.iter().find(|leaf| leaf.path == *path).cloned();
        let mut inner = match self {
            Self::Nothing => return Ok(None),
            Self::Leaves { leaves, .. } => return Ok(find(leaves)),
            Self::Inner(inner) => inner.clone(),
        };
        let mut position = position.clone();
        loop {
            let nibble = position.next_nibble(path);
            if inner.children[usize::from(nibble)].is_none() {
                return Ok(None);
            }
            position = position.child(nibble);
            match load(reader, &position)? {
                Some(Node::Inner(below)) => inner = below,
                Some(Node::Page(leaves)) => return Ok(find(&leaves)),
                None => return Ok(None),
            }
        }
    }
}
