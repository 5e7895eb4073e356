//! The side that has the state: answering, and which snapshots to keep for it.

use super::message::{
    BLOCKS_MAX, Item, PART_BYTES_MAX, TRANSFER_BYTES_MAX, TransferMessage, TransferRequest,
    TransferTarget, Want,
};
use crate::ledger::LedgerReader;
use crate::state_trie::{Leaf, Node, leaf_digest, load, replicated, value_digest};
use crate::storage::{Snapshot, Storage, StorageError};
use crate::types::Sequence;
use conclave_crypto::mark;
use serde_bytes::ByteBuf;

/// Answers a request from a state: `trie` is a snapshot in which the trie stands at the requested
/// checkpoint, `state` one in which the tables do. Both may be the same.
///
/// Work: at most 64 nodes, and values up to [`TRANSFER_BYTES_MAX`] and one more.
///
/// # Errors
/// When the storage fails.
pub fn serve(
    trie: &dyn Snapshot,
    state: &dyn Snapshot,
    request: &TransferRequest,
) -> Result<TransferMessage, StorageError> {
    let mut items = Vec::new();
    let mut room = TRANSFER_BYTES_MAX;
    for want in request.wants.iter().take(super::WANTS_MAX) {
        match answer(trie, state, want, &mut room)? {
            Some(item) => items.push(item),
            // The asker has another trie in mind: it finds what it needs elsewhere.
            None => return Ok(TransferMessage::Unavailable { id: request.id }),
        }
        if room == 0 {
            break;
        }
    }
    Ok(TransferMessage::Chunk { id: request.id, items })
}

fn answer(
    trie: &dyn Snapshot,
    state: &dyn Snapshot,
    want: &Want,
    room: &mut usize,
) -> Result<Option<Item>, StorageError> {
    let Some(node) = load(trie, &want.position)? else { return Ok(None) };
    let mut item = Item { node: None, values: Vec::new() };
    if want.node {
        let bytes = node.encode();
        *room = room.saturating_sub(bytes.len());
        item.node = Some(ByteBuf::from(bytes));
    }
    let Node::Page(leaves) = node else { return Ok(Some(item)) };
    for (index, leaf) in (0u8..).zip(&leaves) {
        if want.values & 1 << index == 0 {
            continue;
        }
        // The node of a fresh item is progress enough; rows alone must bring one at least.
        if *room == 0 && (item.node.is_some() || !item.values.is_empty()) {
            break;
        }
        let Some(value) = value_of(state, leaf)? else { return Ok(None) };
        *room = room.saturating_sub(value.len());
        item.values.push((index, ByteBuf::from(value)));
    }
    Ok(Some(item))
}

/// The row of a leaf, if it is the one the leaf stands for: a correct server never sends another.
fn value_of(state: &dyn Snapshot, leaf: &Leaf) -> Result<Option<Vec<u8>>, StorageError> {
    let Some(table) = replicated(leaf.table) else { return Ok(None) };
    let value = state.get(table, &leaf.key)?;
    Ok(value
        .filter(|value| leaf_digest(leaf.table, &leaf.key, &value_digest(value)) == leaf.digest))
}

/// Answers a request for the blocks from `at` downwards, of which the asker has `offset` bytes. Says
/// beside it how many bytes were read for it, which a part of a large block does not show.
///
/// Work: at most [`BLOCKS_MAX`] blocks, and [`TRANSFER_BYTES_MAX`] and one block more.
///
/// # Errors
/// When the storage fails.
pub fn serve_blocks<S: Storage>(
    ledger: &LedgerReader<S>,
    id: u64,
    at: Sequence,
    offset: u64,
) -> Result<(TransferMessage, usize), StorageError> {
    let mut blocks = Vec::new();
    let (mut height, mut bytes) = (at, 0);
    while blocks.len() < BLOCKS_MAX && bytes < TRANSFER_BYTES_MAX && height.0 > 0 {
        let Some(block) = ledger.block(height)? else { break };
        let block = block.encode();
        if blocks.is_empty() && (offset > 0 || block.len() > PART_BYTES_MAX) {
            return Ok((part(id, &block, offset), block.len()));
        }
        if bytes + block.len() > PART_BYTES_MAX {
            break;
        }
        bytes += block.len();
        blocks.push(ByteBuf::from(block));
        height = height.minus(1);
    }
    let answer = match blocks.is_empty() {
        true => TransferMessage::Unavailable { id },
        false => TransferMessage::Blocks { id, blocks },
    };
    Ok((answer, bytes))
}

fn part(id: u64, block: &[u8], offset: u64) -> TransferMessage {
    let rest = usize::try_from(offset).ok().and_then(|offset| block.get(offset..));
    match rest.filter(|rest| !rest.is_empty()) {
        Some(rest) => {
            let bytes = ByteBuf::from(&rest[..rest.len().min(PART_BYTES_MAX)]);
            TransferMessage::Part { id, total: block.len() as u64, bytes }
        }
        // The asker has another encoding in mind, with another certificate: it begins anew.
        None => TransferMessage::Unavailable { id },
    }
}

/// Snapshots kept for others at once.
pub const PINS_MAX: usize = 2;

/// A snapshot is kept for others no longer than this. Milliseconds.
pub const PIN_MS_MAX: u64 = 600_000;

/// A pin that nobody read for so long makes room for a newer one. Milliseconds.
const PIN_IDLE_MS: u64 = 10_000;

struct Pin<S> {
    target: TransferTarget,
    snapshot: S,
    since_ms: u64,
    used_ms: u64,
}

/// Which certified states a replica keeps for others. `S` is what the caller calls a snapshot.
///
/// The newest stable checkpoint is at hand always and replaced by the next. Asking for a target pins
/// it: at most [`PINS_MAX`], for at most [`PIN_MS_MAX`], so that no asker makes the storage keep more
/// garbage than that. While all places are taken, askers are told of the newest state all the same:
/// only it is surely as new as what they need, and where it is replaced before it is read, what was
/// staged of it counts for the next. Asking is no use of a pin: else whoever asks in vain would keep
/// alive what is of no use to him.
pub struct Pins<S> {
    newest: Option<(TransferTarget, S)>,
    pins: Vec<Pin<S>>,
}

impl<S> Default for Pins<S> {
    fn default() -> Self {
        Self { newest: None, pins: Vec::new() }
    }
}

impl<S: Clone> Pins<S> {
    /// A checkpoint became stable; `snapshot` shows the state and the trie at it.
    pub fn offer(&mut self, target: TransferTarget, snapshot: S) {
        if self.newest.as_ref().is_none_or(|(newest, _)| newest.height() < target.height()) {
            self.newest = Some((target, snapshot));
        }
    }

    /// Lets go of what is kept for too long, or for nobody.
    pub fn expire(&mut self, now_ms: u64) {
        self.pins.retain(|pin| {
            let kept = now_ms.saturating_sub(pin.since_ms) < PIN_MS_MAX;
            if !kept {
                mark!("a state was kept for as long as it may be");
            }
            kept
        });
    }

    /// Which state to name to an asker; it is pinned from now on.
    pub fn ask(&mut self, now_ms: u64) -> Option<TransferTarget> {
        self.expire(now_ms);
        let (target, snapshot) = self.newest.as_ref()?;
        let pinned = self.pins.iter().any(|pin| pin.target.height() == target.height());
        if !pinned {
            if self.pins.len() >= PINS_MAX {
                self.pins.retain(|pin| now_ms.saturating_sub(pin.used_ms) < PIN_IDLE_MS);
                mark!("states that others asked for take all places");
            }
            if self.pins.len() < PINS_MAX {
                mark!("a state is kept for who asked for it");
                self.pins.push(Pin {
                    target: target.clone(),
                    snapshot: snapshot.clone(),
                    since_ms: now_ms,
                    used_ms: now_ms,
                });
            }
        }
        Some(target.clone())
    }

    /// The snapshot of the state at this height, if it is at hand.
    pub fn get(&mut self, height: Sequence, now_ms: u64) -> Option<S> {
        self.expire(now_ms);
        if let Some(pin) = self.pins.iter_mut().find(|pin| pin.target.height() == height) {
            pin.used_ms = now_ms;
            return Some(pin.snapshot.clone());
        }
        let (target, snapshot) = self.newest.as_ref()?;
        if target.height() != height {
            return None;
        }
        let snapshot = snapshot.clone();
        // Somebody reads it: keep it past the next checkpoint where there is room.
        if self.pins.len() < PINS_MAX {
            let target = target.clone();
            let pin = Pin { target, snapshot: snapshot.clone(), since_ms: now_ms, used_ms: now_ms };
            self.pins.push(pin);
        }
        Some(snapshot)
    }

    /// How many are pinned.
    #[must_use]
    pub fn pinned(&self) -> usize {
        self.pins.len()
    }
}
