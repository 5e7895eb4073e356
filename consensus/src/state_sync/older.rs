//! The blocks behind a transferred state: whom to ask for them, and what an answer is worth.
//!
//! They are asked for one answer at a time, from the certified block downwards, of whoever was asked
//! longest ago. Nothing hurries: who asks next waits until the last answer is on the disk, and a
//! little longer. A peer that began with a transferred state itself may lack them; it is left alone
//! for a while and others are asked. Whether blocks are the right ones is not decided here: the
//! ledger checks the chain of hashes ([`crate::ledger::LedgerReader::fill`]), the caller the
//! certificates, and both answer by [`OlderBlocks::faulty`].

use super::message::{PART_BYTES_MAX, TransferMessage};
use crate::ledger::{BLOCK_BYTES_MAX, StoredBlock};
use crate::types::{ReplicaId, Sequence};
use std::collections::BTreeMap;

/// A peer has this long to answer.
const ANSWER_MS: u64 = 5_000;

/// Between an answer that was stored and the next question.
const PAUSE_MS: u64 = 50;

/// A peer that is busy is asked again after this.
const BUSY_MS: u64 = 250;

/// A peer that lacks the blocks, or did not answer, is asked again after this.
const LACKING_MS: u64 = 10_000;

#[derive(Default)]
struct Peer {
    rest_until_ms: u64,
    last_asked: u64,
    faulty: bool,
}

struct Asked {
    id: u64,
    peer: ReplicaId,
    at: Sequence,
    due_ms: u64,
}

/// A block that comes in parts, which only one peer can complete: certificates differ.
struct Parts {
    peer: ReplicaId,
    at: Sequence,
    bytes: Vec<u8>,
}

/// What an answer brought.
#[derive(Debug, PartialEq, Eq)]
pub enum OlderAnswer {
    /// Nothing to be done.
    Nothing,
    /// Blocks of the heights that were asked for, the highest first; not proven yet.
    Blocks(Vec<StoredBlock>),
    /// Something that no correct peer sends. It is not asked again.
    Blame,
}

/// Asks for older blocks.
///
/// Memory: one answer, or one block in parts of at most [`BLOCK_BYTES_MAX`].
#[derive(Default)]
pub struct OlderBlocks {
    peers: BTreeMap<ReplicaId, Peer>,
    asked: Option<Asked>,
    parts: Option<Parts>,
    next_id: u64,
    not_before_ms: u64,
}

impl OlderBlocks {
    /// A peer came up.
    pub fn add_peer(&mut self, peer: ReplicaId) {
        self.peers.entry(peer).or_default().rest_until_ms = 0;
    }

    /// A peer went away: others are asked for what it was asked for.
    pub fn remove_peer(&mut self, peer: ReplicaId) {
        self.asked.take_if(|asked| asked.peer == peer);
        self.parts.take_if(|parts| parts.peer == peer);
        // A faulty peer stays known, or it could come back as a new one.
        self.peers.retain(|id, known| *id != peer || known.faulty);
    }

    /// A peer sent a block that is not proven: it is not asked again.
    pub fn faulty(&mut self, peer: ReplicaId) {
        self.peers.entry(peer).or_default().faulty = true;
    }

    /// What was answered is on the disk.
    pub fn stored(&mut self, now_ms: u64) {
        self.not_before_ms = now_ms.saturating_add(PAUSE_MS);
    }

    /// Forgets what is under way: another state is being fetched.
    pub fn abandon(&mut self) {
        (self.asked, self.parts) = (None, None);
    }

    /// The next question, if it is time for one; `missing` is the highest block that is missing.
    pub fn poll(&mut self, missing: Sequence, now_ms: u64) -> Option<(ReplicaId, TransferMessage)> {
        if let Some(asked) = &self.asked {
            if now_ms < asked.due_ms {
                return None;
            }
            self.rest(LACKING_MS, now_ms);
        }
        self.parts.take_if(|parts| parts.at != missing);
        let peer = match &self.parts {
            Some(parts) => parts.peer,
            None if now_ms < self.not_before_ms => return None,
            None => self.next_peer(now_ms)?,
        };
        self.next_id += 1;
        let id = self.next_id;
        self.peers.entry(peer).or_default().last_asked = id;
        let due_ms = now_ms.saturating_add(ANSWER_MS);
        self.asked = Some(Asked { id, peer, at: missing, due_ms });
        let offset = self.parts.as_ref().map_or(0, |parts| parts.bytes.len() as u64);
        Some((peer, TransferMessage::AskBlocks { id, at: missing, offset }))
    }

    fn next_peer(&self, now_ms: u64) -> Option<ReplicaId> {
        let ready = |peer: &Peer| !peer.faulty && peer.rest_until_ms <= now_ms;
        let ready = self.peers.iter().filter(|(_, peer)| ready(peer));
        ready.min_by_key(|(_, peer)| peer.last_asked).map(|(id, _)| *id)
    }

    /// The peer that was asked is left alone for so long, and what it began is forgotten.
    fn rest(&mut self, pause_ms: u64, now_ms: u64) {
        if let Some(asked) = self.asked.take() {
            self.parts = None;
            let peer = self.peers.entry(asked.peer).or_default();
            peer.rest_until_ms = now_ms.saturating_add(pause_ms);
        }
    }

    /// A peer's answer. What answers no open question of that peer is ignored.
    pub fn on_message(
        &mut self,
        from: ReplicaId,
        message: TransferMessage,
        now_ms: u64,
    ) -> OlderAnswer {
        let (id, found) = match message {
            TransferMessage::Blocks { id, blocks } => (id, Found::Blocks(blocks)),
            TransferMessage::Part { id, total, bytes } => (id, Found::Part(total, bytes)),
            TransferMessage::Unavailable { id } => (id, Found::None(LACKING_MS)),
            TransferMessage::Busy { id } => (id, Found::None(BUSY_MS)),
            TransferMessage::AskTarget
            | TransferMessage::Target(_)
            | TransferMessage::Request(_)
            | TransferMessage::Chunk { .. }
            | TransferMessage::AskBlocks { .. } => return OlderAnswer::Nothing,
        };
        let open = self.asked.as_ref().filter(|asked| asked.id == id && asked.peer == from);
        let Some(at) = open.map(|asked| asked.at) else { return OlderAnswer::Nothing };
        let blocks = match found {
            Found::None(pause_ms) => {
                self.rest(pause_ms, now_ms);
                return OlderAnswer::Nothing;
            }
            Found::Blocks(blocks) => {
                blocks.iter().map(|bytes| StoredBlock::decode(bytes)).collect::<Result<_, _>>()
            }
            Found::Part(total, bytes) => match self.part(from, at, total, &bytes) {
                Some(whole) if whole.len() as u64 == total => {
                    StoredBlock::decode(&whole).map(|block| vec![block])
                }
                Some(whole) => {
                    self.parts = Some(Parts { peer: from, at, bytes: whole });
                    self.asked = None;
                    return OlderAnswer::Nothing;
                }
                None => return self.blame(from),
            },
        };
        self.abandon();
        let heights = (0..).map_while(|depth| at.0.checked_sub(depth)).map(Sequence);
        match blocks {
            Ok(blocks) if blocks_are_at(&blocks, heights) => OlderAnswer::Blocks(blocks),
            Ok(_) | Err(_) => self.blame(from),
        }
    }

    /// The bytes of a block so far with these behind them; `None` when they do not fit.
    fn part(&mut self, from: ReplicaId, at: Sequence, total: u64, more: &[u8]) -> Option<Vec<u8>> {
        let before = self.parts.take().filter(|parts| parts.peer == from && parts.at == at);
        let mut bytes = before.map_or_else(Vec::new, |parts| parts.bytes);
        // A part is as long as it can be, so that a block takes few of them.
        let rest = total.checked_sub(bytes.len() as u64).filter(|rest| *rest > 0)?;
        if total > BLOCK_BYTES_MAX as u64 || more.len() as u64 != rest.min(PART_BYTES_MAX as u64) {
            return None;
        }
        bytes.extend_from_slice(more);
        Some(bytes)
    }

    fn blame(&mut self, peer: ReplicaId) -> OlderAnswer {
        self.abandon();
        self.faulty(peer);
        OlderAnswer::Blame
    }
}

enum Found {
    Blocks(Vec<serde_bytes::ByteBuf>),
    Part(u64, serde_bytes::ByteBuf),
    /// Not from this peer, for so many milliseconds.
    None(u64),
}

fn blocks_are_at(blocks: &[StoredBlock], mut heights: impl Iterator<Item = Sequence>) -> bool {
    !blocks.is_empty() && blocks.iter().all(|block| heights.next() == Some(block.header.height))
}

#[cfg(test)]
#[path = "older_tests.rs"]
mod tests;
