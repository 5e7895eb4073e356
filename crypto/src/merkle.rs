//! Binary Merkle trees that bind their number of leaves.
//!
//! Leaves are paired from the left, level by level; a node without a partner rises to the next level as it is, as in
//! RFC 6962 §2.1. (Pairing it with itself instead would give two lists of leaves one root: CVE-2012-2459.) Leaf, inner
//! node and root are hashed in three domains, so that none passes for another:
//!
//! - leaf: `digest("merkle-leaf", parts)`
//! - inner node: H("merkle-node" ‖ left ‖ right)
//! - root: H("merkle-root" ‖ number of leaves, 8 bytes, least significant first ‖ top)
//!
//! where the top of no leaves is [`Digest::ZERO`]. Since the root binds the number, the shape of the tree follows from
//! the root alone, and a path has exactly one valid length.

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher, digest};

/// A path that cannot be one, whatever the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MerkleError {
    /// The index lies beyond the leaves.
    #[error("leaf {index} does not exist in a tree of {count} leaves")]
    Index {
        /// The claimed position.
        index: u32,
        /// The claimed number of leaves.
        count: u32,
    },
    /// The number of siblings is not the one that this position has.
    #[error("leaf {index} of {count} has {expected} siblings on its path, not {found}")]
    Siblings {
        /// The claimed position.
        index: u32,
        /// The claimed number of leaves.
        count: u32,
        /// Siblings that a path from there has.
        expected: usize,
        /// Siblings that this path has.
        found: usize,
    },
}

/// The digest of one leaf. Each part is delimited; a use of the tree has a fixed number of them.
pub fn merkle_leaf(parts: &[&[u8]]) -> Digest {
    digest("merkle-leaf", parts)
}

/// A tree with all its nodes, to draw paths from.
///
/// Units: about twice the leaves' bytes. Hashes once per inner node when built, never afterwards.
#[derive(Clone, Debug)]
pub struct MerkleTree {
    /// The leaves first, the top alone last; one empty level when there are no leaves.
    levels: Vec<Vec<Digest>>,
    root: Digest,
}

impl MerkleTree {
    /// Builds the tree over leaves that [`merkle_leaf`] made.
    ///
    /// # Panics
    /// Above 2^32 − 1 leaves, which no frame limit lets anybody send.
    pub fn new(leaves: Vec<Digest>) -> Self {
        let count = u32::try_from(leaves.len()).expect("a tree has fewer than 2^32 leaves");
        let mut levels = vec![leaves];
        // At most 32 rounds: each halves the level.
        while let Some(below) = levels.last()
            && below.len() > 1
        {
            let above = below.chunks(2).map(parent).collect();
            levels.push(above);
        }
        let top = levels.last().and_then(|level| level.first()).copied().unwrap_or(Digest::ZERO);
        Self { levels, root: root(count, &top) }
    }

    /// The digest that stands for all leaves, their order and their number.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// How many leaves there are.
    pub fn count(&self) -> usize {
        self.levels[0].len()
    }

    /// The proof for the leaf at `index`.
    ///
    /// # Panics
    /// If there is no such leaf: positions come from this process, not from a message.
    pub fn path(&self, index: usize) -> MerklePath {
        assert!(index < self.count(), "a path starts at a leaf");
        let siblings = self
            .levels
            .iter()
            .enumerate()
            .filter_map(|(height, level)| level.get((index >> height) ^ 1))
            .copied()
            .collect();
        let narrow = |number| u32::try_from(number).expect("a tree has fewer than 2^32 leaves");
        MerklePath { index: narrow(index), count: narrow(self.count()), siblings }
    }
}

/// The proof that a leaf is at one place in a tree.
///
/// Shape: position, number of leaves, and the siblings from the leaf upwards, at most 32; levels on which the node has
/// no sibling are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MerklePath {
    /// Position of the leaf, from zero.
    pub index: u32,
    /// Number of leaves in the tree.
    pub count: u32,
    /// What the node on the way up is hashed with, the lowest level first.
    pub siblings: Vec<Digest>,
}

impl MerklePath {
    /// The root of the tree in which `leaf` has this path. The caller compares it with a root that it trusts.
    ///
    /// # Errors
    /// When no tree has such a path: the index is not below the count, or there are too few or too many siblings.
    pub fn root_of(&self, leaf: Digest) -> Result<Digest, MerkleError> {
        let Self { index, count, siblings } = self;
        if index >= count {
            return Err(MerkleError::Index { index: *index, count: *count });
        }
        // Counted before anything is hashed, so that a path of any length costs at most 33 hashes.
        let expected = sides(*index, *count).flatten().count();
        if siblings.len() != expected {
            return Err(MerkleError::Siblings {
                index: *index,
                count: *count,
                expected,
                found: siblings.len(),
            });
        }
        let top =
            sides(*index, *count).flatten().zip(siblings).fold(leaf, |below, (side, sibling)| {
                match side {
                    Side::Left => node(sibling, &below),
                    Side::Right => node(&below, sibling),
                }
            });
        Ok(root(*count, &top))
    }
}

/// Where a sibling stands.
enum Side {
    Left,
    Right,
}

/// For each level from the leaves up to below the top: where the sibling of this leaf's ancestor stands, if it has one.
fn sides(index: u32, count: u32) -> impl Iterator<Item = Option<Side>> {
    let last = count.saturating_sub(1);
    // The top is the first level on which the last node has position zero.
    (0..u32::BITS - last.leading_zeros()).map(move |height| {
        let (place, last) = (index >> height, last >> height);
        match place % 2 {
            1 => Some(Side::Left),
            _ if place < last => Some(Side::Right),
            _ => None,
        }
    })
}

fn parent(children: &[Digest]) -> Digest {
    match children {
        [left, right] => node(left, right),
        // A node without a partner rises as it is.
        [alone, ..] => *alone,
        [] => Digest::ZERO,
    }
}

fn node(left: &Digest, right: &Digest) -> Digest {
    let mut hasher = Hasher::new("merkle-node");
    hasher.update(left.as_bytes()).update(right.as_bytes());
    hasher.finish()
}

fn root(count: u32, top: &Digest) -> Digest {
    let mut hasher = Hasher::new("merkle-root");
    hasher.update_u64(u64::from(count)).update(top.as_bytes());
    hasher.finish()
}
