//! State transfer: certified state from peers that nobody has to trust.
//!
//! Reading order: [`TransferMessage`] (what is said), [`serve`] and [`Pins`] (the peer's side),
//! [`StateSync`] (fetching and staging), [`TargetSearch`] and [`StateFetch`] (which state, and what if nobody
//! serves it any more), [`Swap`] (putting the staged state in place), [`OlderBlocks`] (the blocks behind a
//! transferred state).
//!
//! The target is a block whose state root a quorum of CHECKPOINTs certifies (OSDI'99 §4.3, §5.3.2 of
//! the journal version for fetching by a tree of digests). From the root down, each node of the
//! target's trie fixes the hash of the next, and each page the digest of its rows: whatever a peer
//! sends is checked against what is already proven before it is staged. So a bad chunk names its
//! sender, a transfer ends after exactly as many rows as were certified, and equal subtrees are never
//! sent: those of the own state, and those that an earlier attempt staged, even for an older target.
//!
//! | key in [`Table::Staging`] | value                                              |
//! |---------------------------|----------------------------------------------------|
//! | `n` ‖ nibbles             | a node of the target's trie, checked               |
//! | `v` ‖ path (32 bytes)     | the value of a row of the target, checked          |
//! | `s`                       | a swap has begun: the [`TransferTarget`], encoded  |
//!
//! The caller folds changes that the trie has not seen into it before it begins, executes nothing
//! while a transfer runs, and carries out [`Swap`]'s batches in order.

mod asking;
mod check;
mod fetch;
mod message;
mod older;
mod own;
mod search;
mod serve;
mod state_fetch;
mod swap;
#[cfg(test)]
mod tests;

pub use check::Blame;
pub use fetch::{Progress, StateSync, SyncAction};
pub use message::{
    BLOCKS_MAX, Item, PART_BYTES_MAX, TRANSFER_BYTES_MAX, TransferMessage, TransferRequest,
    TransferTarget, WANTS_MAX, Want,
};
pub use older::{OlderAnswer, OlderBlocks};
pub use search::TargetSearch;
pub use serve::{PIN_MS_MAX, PINS_MAX, Pins, serve, serve_blocks};
pub use state_fetch::{FetchAction, FetchNumber, Fetched, StateFetch};
pub use swap::{Swap, SwapError, SwapStep};

use crate::state_trie::{Child, Node, Position, root_digest};
use crate::storage::{Snapshot, StorageError, Table};
use conclave_crypto::digest::Digest;
use conclave_crypto::mistake;

/// What is proven of a node before it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It is the top of a trie with this root.
    Root(Digest),
    /// Its parent says this.
    Child(Child),
}

impl Expected {
    fn holds(&self, node: Child) -> bool {
        match self {
            Self::Root(root) => root_digest(Some(node)) == *root,
            Self::Child(child) => *child == node,
        }
    }
}

fn staged_value_key(path: &Digest) -> Vec<u8> {
    [b"v", path.as_bytes().as_slice()].concat()
}

/// The staged node at a position, if it is the expected one. Anything else that lies there is left
/// over from an older target.
fn staged_node(
    reader: &dyn Snapshot,
    position: &Position,
    expected: &Expected,
) -> Result<Option<Node>, StorageError> {
    let Some(bytes) = reader.get(Table::Staging, &position.key())? else { return Ok(None) };
    let node = Node::decode(&bytes).ok();
    Ok(node.filter(|node| expected.holds(node.summary()) || mistake!("chunk-unchecked")))
}
