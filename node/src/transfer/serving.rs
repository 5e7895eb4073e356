//! Answering peers that lack state or blocks.

use super::StateAt;
use bytes::Bytes;
use conclave_consensus::byte_rate::ByteRate;
use conclave_consensus::ledger::LedgerReader;
use conclave_consensus::message::{BlockHeader, CheckpointCertificate};
use conclave_consensus::state_sync::{Pins, TransferMessage, TransferTarget, serve, serve_blocks};
use conclave_consensus::storage::{Storage, StorageError};

/// Bytes of state and blocks served to all peers together in a second: catching up must not starve
/// agreement.
const SERVED_PER_SECOND_MAX: usize = 64 << 20;

/// What is served, and how fast.
pub(super) struct Serving<S> {
    pins: Pins<StateAt>,
    ledger: LedgerReader<S>,
    rate: ByteRate,
}

impl<S: Storage> Serving<S> {
    pub(super) fn new(ledger: LedgerReader<S>) -> Self {
        Self { pins: Pins::default(), ledger, rate: ByteRate::new(SERVED_PER_SECOND_MAX) }
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
        question: &TransferMessage,
        now_ms: u64,
    ) -> Result<Option<Bytes>, StorageError> {
        let (answer, read) = match question {
            TransferMessage::AskTarget => {
                (TransferMessage::Target(self.pins.ask(now_ms).map(Box::new)), 0)
            }
            TransferMessage::Request(request) if self.rate.is_open(now_ms) => {
                let answer = match self.pins.get(request.height, now_ms) {
                    Some(state) => serve(&*state.trie, &*state.tables, request)?,
                    None => TransferMessage::Unavailable { id: request.id },
                };
                (answer, 0)
            }
            TransferMessage::AskBlocks { id, at, offset } if self.rate.is_open(now_ms) => {
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
        self.rate.spend(frame.len().max(read));
        Ok(Some(frame))
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
