//! Proofs that a row has a value, or is not there, under a state root.

use super::node::{nibble_of, page_summary};
use super::{Child, DEPTH_MAX, Inner, Node, PAGE_LEAVES_MAX, Position};
use super::{leaf_digest, load, load_child, path, root_digest, value_digest};
use crate::storage::{Snapshot, StorageError, Table};
use conclave_crypto::digest::Digest;
use serde::{Deserialize, Serialize};

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not the shape of a path through the trie.
    #[error("the proof has not the shape of a path through the state trie")]
    Shape,
    /// The nodes do not lead to the root.
    #[error("the proof does not lead to this state root")]
    Root,
    /// The row is there with another value.
    #[error("the row has another value under this state root")]
    Value,
    /// The row is not there.
    #[error("the row does not exist under this state root")]
    Absent,
    /// The row is there.
    #[error("the row exists under this state root")]
    Present,
}

/// The nodes from the top to where a row is, or would be.
///
/// Shape: at most 64 inner nodes of up to 16 children, then the (path, leaf digest) pairs of the page
/// where they lead, if there is one: about 3 KiB in a state of a million rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrieProof {
    inner: Vec<Vec<(u8, Child)>>,
    page: Option<Vec<(Digest, Digest)>>,
}

/// Draws the proof for a row of a replicated table from the stored trie.
///
/// # Errors
/// When the storage fails or holds something that is no trie.
pub fn prove(reader: &dyn Snapshot, table: Table, key: &[u8]) -> Result<TrieProof, StorageError> {
    let path = path(table, key);
    let mut proof = TrieProof { inner: Vec::new(), page: None };
    let mut position = Position::default();
    let Some(mut node) = load(reader, &position)? else { return Ok(proof) };
    while let Node::Inner(inner) = node {
        let children = (0..16).zip(&inner.children);
        proof.inner.push(children.filter_map(|(i, child)| child.map(|child| (i, child))).collect());
        let nibble = nibble_of(&path, position.depth());
        if inner.children[usize::from(nibble)].is_none() {
            return Ok(proof);
        }
        position = position.child(nibble);
        node = load_child(reader, &position)?;
    }
    if let Node::Page(leaves) = node {
        proof.page = Some(leaves.into_iter().map(|leaf| (leaf.path, leaf.digest)).collect());
    }
    Ok(proof)
}

impl TrieProof {
    /// Whether the row has this value (`None`: does not exist) under this root.
    ///
    /// # Errors
    /// [`ProofError`] that says what does not hold.
    pub fn verify(
        &self,
        root: &Digest,
        table: Table,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), ProofError> {
        let path = path(table, key);
        let top = self.top(&path)?;
        if root_digest(top) != *root {
            return Err(ProofError::Root);
        }
        let found = self.page.iter().flatten().find(|(other, _)| *other == path);
        match (found, value) {
            (Some((_, digest)), Some(value)) => {
                let expected = leaf_digest(table as u8, key, &value_digest(value));
                if *digest == expected { Ok(()) } else { Err(ProofError::Value) }
            }
            (None, None) => Ok(()),
            (Some(_), None) => Err(ProofError::Present),
            (None, Some(_)) => Err(ProofError::Absent),
        }
    }

    /// What the nodes say of the top node.
    fn top(&self, path: &Digest) -> Result<Option<Child>, ProofError> {
        if self.inner.len() > DEPTH_MAX {
            return Err(ProofError::Shape);
        }
        let mut below = match &self.page {
            Some(lines) => {
                let sorted = lines.windows(2).all(|pair| pair[0].0 < pair[1].0);
                if !sorted || lines.is_empty() || lines.len() > PAGE_LEAVES_MAX {
                    return Err(ProofError::Shape);
                }
                Some(page_summary(lines.iter().map(|(path, digest)| (path, digest))))
            }
            None => None,
        };
        for (depth, children) in self.inner.iter().enumerate().rev() {
            let sorted = children.windows(2).all(|pair| pair[0].0 < pair[1].0);
            let mut inner = Inner::default();
            for (nibble, child) in children {
                let slot = inner.children.get_mut(usize::from(*nibble)).ok_or(ProofError::Shape)?;
                *slot = Some(*child);
            }
            // The child on the path is what was just computed, or its absence is what is shown.
            if !sorted || inner.children[usize::from(nibble_of(path, depth))] != below {
                return Err(ProofError::Shape);
            }
            below = Some(Child { count: inner.count(), hash: inner.hash() });
        }
        Ok(below)
    }
}
