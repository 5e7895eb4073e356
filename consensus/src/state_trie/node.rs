//! Nodes of the trie: their hashes and their bytes.
//!
//! | byte | inner node                                 | page                                        |
//! |------|--------------------------------------------|---------------------------------------------|
//! | 0    | 1                                          | 2                                           |
//! | 1..  | u16: bit i is set where child i is         | u8: number of leaves, 1–16                  |
//! | then | per child: count u64, hash 32              | per leaf: path 32, leaf digest 32, table u8, key length u32, key |
//!
//! Numbers are little endian. Bytes that decode encode again to themselves.

use super::{DEPTH_MAX, replicated};
use conclave_crypto::digest::{Digest, Hasher};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Leaves of a page.
pub const PAGE_LEAVES_MAX: usize = 16;

const INNER: u8 = 1;
const PAGE: u8 = 2;

/// Bytes that are no node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a node of the state trie: {0}")]
pub struct NodeError(pub &'static str);

/// A prefix of a path: where a node lies. At most 64 nibbles, one per byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct Position(Vec<u8>);

impl Position {
    /// How many nibbles it has.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// One nibble further.
    #[must_use]
    pub fn child(&self, nibble: u8) -> Self {
        let mut nibbles = Vec::with_capacity(self.0.len() + 1);
        nibbles.extend_from_slice(&self.0);
        nibbles.push(nibble);
        Self(nibbles)
    }

    /// Whether this path leads through here.
    #[must_use]
    pub fn covers(&self, path: &Digest) -> bool {
        self.0.iter().enumerate().all(|(depth, nibble)| nibble_of(path, depth) == *nibble)
    }

    /// The nibble of a path that follows after this prefix.
    ///
    /// # Panics
    /// At depth 64, where no node has children.
    #[must_use]
    pub(crate) fn next_nibble(&self, path: &Digest) -> u8 {
        nibble_of(path, self.depth())
    }

    /// The key under which the node is stored.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + self.0.len());
        key.push(b'n');
        key.extend_from_slice(&self.0);
        key
    }
}

impl TryFrom<serde_bytes::ByteBuf> for Position {
    type Error = NodeError;

    fn try_from(nibbles: serde_bytes::ByteBuf) -> Result<Self, NodeError> {
        if nibbles.len() > DEPTH_MAX || nibbles.iter().any(|nibble| *nibble > 15) {
            return Err(NodeError("a position has at most 64 nibbles"));
        }
        Ok(Self(nibbles.into_vec()))
    }
}

impl From<Position> for serde_bytes::ByteBuf {
    fn from(position: Position) -> Self {
        Self::from(position.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/")?;
        self.0.iter().try_for_each(|nibble| write!(f, "{nibble:x}"))
    }
}

/// The nibble of a path at this depth.
#[must_use]
pub(crate) fn nibble_of(path: &Digest, depth: usize) -> u8 {
    let byte = path.as_bytes()[depth / 2];
    if depth.is_multiple_of(2) { byte >> 4 } else { byte & 15 }
}

/// What a parent knows of a subtree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Leaves in it; at least 1.
    pub count: u64,
    /// The hash of its top node.
    pub hash: Digest,
}

/// A node with more than 16 leaves below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inner {
    /// By next nibble.
    pub children: [Option<Child>; 16],
}

impl Inner {
    /// Leaves below.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.children.iter().flatten().fold(0, |sum, child| child.count.saturating_add(sum))
    }

    /// The node's hash.
    #[must_use]
    pub fn hash(&self) -> Digest {
        let mut bytes = [0; 16 * 40];
        for (child, slot) in self.children.iter().zip(bytes.chunks_exact_mut(40)) {
            if let Some(child) = child {
                slot[..8].copy_from_slice(&child.count.to_le_bytes());
                slot[8..].copy_from_slice(child.hash.as_bytes());
            }
        }
        let mut hasher = Hasher::new("state-inner");
        hasher.update(&bytes);
        hasher.finish()
    }
}

/// A row of a replicated table, as a page lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its path.
    pub path: Digest,
    /// Its digest.
    pub digest: Digest,
    /// Its table's number.
    pub table: u8,
    /// Its key.
    pub key: Vec<u8>,
}

/// A node of the trie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// More than 16 leaves.
    Inner(Box<Inner>),
    /// 1 to 16 leaves in the order of their paths.
    Page(Vec<Leaf>),
}

impl Node {
    /// Its count and hash.
    #[must_use]
    pub fn summary(&self) -> Child {
        match self {
            Self::Inner(inner) => Child { count: inner.count(), hash: inner.hash() },
            Self::Page(leaves) => Self::page_summary_of(leaves),
        }
    }

    /// Count and hash of a page of these leaves.
    pub(crate) fn page_summary_of(leaves: &[Leaf]) -> Child {
        page_summary(leaves.iter().map(|leaf| (&leaf.path, &leaf.digest)))
    }

    /// Its stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Inner(inner) => encode_inner(inner),
            Self::Page(leaves) => encode_page(leaves),
        }
    }

    /// Reads a stored form. Says nothing about hashes, nor whether it belongs where it was found.
    ///
    /// # Errors
    /// [`NodeError`] when the bytes are no node, or not the only encoding of one.
    pub fn decode(bytes: &[u8]) -> Result<Self, NodeError> {
        let mut input = Input(bytes);
        let node = match input.take(1)?[0] {
            INNER => Self::Inner(Box::new(decode_inner(&mut input)?)),
            PAGE => Self::Page(decode_page(&mut input)?),
            _ => return Err(NodeError("unknown kind")),
        };
        if input.0.is_empty() { Ok(node) } else { Err(NodeError("bytes follow it")) }
    }

    /// Whether it may stand at this position: every leaf's path is its own and leads through here,
    /// and every table is a replicated one. Costs a hash per leaf.
    ///
    /// # Errors
    /// [`NodeError`] that names what is wrong.
    pub fn belongs_at(&self, position: &Position) -> Result<(), NodeError> {
        let Self::Page(leaves) = self else {
            return if position.depth() < DEPTH_MAX {
                Ok(())
            } else {
                Err(NodeError("an inner node below the last nibble"))
            };
        };
        for leaf in leaves {
            let table = replicated(leaf.table).ok_or(NodeError("a table that is no state"))?;
            if leaf.path != super::path(table, &leaf.key) {
                return Err(NodeError("a leaf that is not at its path"));
            }
            if !position.covers(&leaf.path) {
                return Err(NodeError("a leaf outside its page"));
            }
        }
        Ok(())
    }
}

/// Count and hash of a page of these (path, digest) pairs.
pub(super) fn page_summary<'a>(
    leaves: impl ExactSizeIterator<Item = (&'a Digest, &'a Digest)>,
) -> Child {
    let count = leaves.len() as u64;
    let mut hasher = Hasher::new("state-page");
    hasher.update_u64(count);
    for (path, digest) in leaves {
        hasher.update(path.as_bytes()).update(digest.as_bytes());
    }
    Child { count, hash: hasher.finish() }
}

fn encode_inner(inner: &Inner) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(3 + 16 * 40);
    let present = (0..16).filter(|i| inner.children[*i].is_some()).fold(0u16, |m, i| m | 1 << i);
    bytes.push(INNER);
    bytes.extend_from_slice(&present.to_le_bytes());
    for child in inner.children.iter().flatten() {
        bytes.extend_from_slice(&child.count.to_le_bytes());
        bytes.extend_from_slice(child.hash.as_bytes());
    }
    bytes
}

fn encode_page(leaves: &[Leaf]) -> Vec<u8> {
    assert!(!leaves.is_empty() && leaves.len() <= PAGE_LEAVES_MAX, "a page has 1 to 16 leaves");
    let keys: usize = leaves.iter().map(|leaf| leaf.key.len()).sum();
    let mut bytes = Vec::with_capacity(2 + leaves.len() * 69 + keys);
    bytes.extend_from_slice(&[PAGE, leaves.len() as u8]);
    for leaf in leaves {
        let length = u32::try_from(leaf.key.len()).expect("a key is far below 4 GiB");
        bytes.extend_from_slice(leaf.path.as_bytes());
        bytes.extend_from_slice(leaf.digest.as_bytes());
        bytes.push(leaf.table);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&leaf.key);
    }
    bytes
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], NodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(NodeError("cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], NodeError> {
        self.take(N)?.try_into().map_err(|_| NodeError("cut short"))
    }
}

fn decode_inner(input: &mut Input<'_>) -> Result<Inner, NodeError> {
    let present = u16::from_le_bytes(input.array()?);
    let mut inner = Inner::default();
    let mut count = 0u64;
    for (i, slot) in inner.children.iter_mut().enumerate() {
        if present & 1 << i == 0 {
            continue;
        }
        let child = Child {
            count: u64::from_le_bytes(input.array()?),
            hash: Digest::from_bytes(input.array()?),
        };
        count = count.checked_add(child.count).ok_or(NodeError("too many leaves"))?;
        if child.count == 0 {
            return Err(NodeError("an empty child"));
        }
        *slot = Some(child);
    }
    if count <= PAGE_LEAVES_MAX as u64 {
        return Err(NodeError("an inner node that should be a page"));
    }
    Ok(inner)
}

fn decode_page(input: &mut Input<'_>) -> Result<Vec<Leaf>, NodeError> {
    let count = usize::from(input.take(1)?[0]);
    if count == 0 || count > PAGE_LEAVES_MAX {
        return Err(NodeError("a page has 1 to 16 leaves"));
    }
    let mut leaves: Vec<Leaf> = Vec::with_capacity(count);
    for _ in 0..count {
        let path = Digest::from_bytes(input.array()?);
        let digest = Digest::from_bytes(input.array()?);
        let table = input.take(1)?[0];
        let length = u32::from_le_bytes(input.array()?);
        let length = usize::try_from(length).map_err(|_| NodeError("cut short"))?;
        let key = input.take(length)?.to_vec();
        if leaves.last().is_some_and(|before| before.path >= path) {
            return Err(NodeError("leaves out of order"));
        }
        leaves.push(Leaf { path, digest, table, key });
    }
    Ok(leaves)
}
