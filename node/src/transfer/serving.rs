//! Answering peers that lack state or blocks.

use super::StateAt;
use bytes::Bytes;
use conclave_consensus::byte_rate::ByteRate;
use conclave_consensus::ledger::LedgerReader;
use conclave_consensus::message::{BlockHeader, CheckpointCertificate};
use conclave_consensus::state_sync::{Pins, TransferMessage, TransferTarget, serve, serve_blocks};
use conclave_consensus::storage::{Storage, StorageError};
use conclave_consensus::types::ReplicaId;
use std::collections::BTreeMap;

/// Bytes of state and blocks served to all peers together in a second, each its part: catching up must
/// not starve agreement, nor one that asks on and on the others.
const SERVED_PER_SECOND_MAX: usize = 64 << 20;

/// What is served, and how fast.
pub(super) struct Serving<S> {
    pins: Pins<StateAt>,
    ledger: LedgerReader<S>,
    /// Of each peer so much a second.
    part: usize,
    rates: BTreeMap<ReplicaId, ByteRate>,
}

impl<S: Storage> Serving<S> {
    /// For so many peers.
    pub(super) fn new(ledger: LedgerReader<S>, peers: usize) -> Self {
        let part = SERVED_PER_SECOND_MAX / peers.max(1);
        Self { pins: Pins::default(), ledger, part, rates: BTreeMap::new() }
    }

    /// A checkpoint became stable, and this is the state at it.
    pub(super) fn offer(
        &mut self,
        header: BlockHeader,
        certificate: CheckpointCertificate,
        state: StateAt,
    ) {
        self.pins.offer(TransferTarget { header, certificate }, state);
    }

    /// Lets go of what is kept for too long.
    pub(super) fn expire(&mut self, now_ms: u64) {
        self.pins.expire(now_ms);
    }

    /// The frame that answers a question; `None` where it was none. Over the rate the answer is
    /// [`TransferMessage::Busy`], so that the asker turns to another at once and does not wait.
    pub(super) fn answer(
        &mut self,
        from: ReplicaId,
        question: &TransferMessage,
        now_ms: u64,
    ) -> Result<Option<Bytes>, StorageError> {
        let rate = self.rates.entry(from).or_insert_with(|| ByteRate::new(self.part));
        let (answer, read) = match question {
            TransferMessage::AskTarget => {
                (TransferMessage::Target(self.pins.ask(now_ms).map(Box::new)), 0)
            }
            TransferMessage::Request(request) if rate.is_open(now_ms) => {
                let answer = match self.pins.get(request.height, now_ms) {
                    Some(state) => serve(&*state.trie, &*state.tables, request)?,
                    None => TransferMessage::Unavailable { id: request.id },
                };
                (answer, 0)
            }
            TransferMessage::AskBlocks { id, at, offset } if rate.is_open(now_ms) => {
                serve_blocks(&self.ledger, *id, *at, *offset)?
            }
            TransferMessage::Request(request) => (TransferMessage::Busy { id: request.id }, 0),
            TransferMessage::AskBlocks { id, .. } => (TransferMessage::Busy { id: *id }, 0),
            TransferMessage::Target(_)
            | TransferMessage::Chunk { .. }
            | TransferMessage::Unavailable { .. }
            | TransferMessage::Busy { .. }
            | TransferMessage::Blocks { .. }
            | TransferMessage::Part { .. } => return Ok(None),
        };
        let frame = Bytes::from(answer.encode());
        rate.spend(frame.len().max(read));
        Ok(Some(frame))
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
