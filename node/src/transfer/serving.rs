//! Answering peers that lack state or blocks.

use super::StateAt;
use bytes::Bytes;
use conclave_consensus::ledger::LedgerReader;
use conclave_consensus::message::{BlockHeader, CheckpointCertificate};
use conclave_consensus::state_sync::{Pins, TransferMessage, TransferTarget, serve, serve_blocks};
use conclave_consensus::storage::{Storage, StorageError};

/// Bytes of state and blocks served to all peers together in a second: catching up must not starve
/// agreement.
const SERVED_PER_SECOND_MAX: usize = 64 << 20;

/// What is served, and how much of it in this second.
pub(super) struct Serving<S> {
    pins: Pins<StateAt>,
    ledger: LedgerReader<S>,
    /// The second of the clock, and the bytes read for others in it.
    served: (u64, usize),
}

impl<S: Storage> Serving<S> {
    pub(super) fn new(ledger: LedgerReader<S>) -> Self {
        Self { pins: Pins::default(), ledger, served: (0, 0) }
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
            TransferMessage::Request(request) if self.may_serve(now_ms) => {
                let answer = match self.pins.get(request.height, now_ms) {
                    Some(state) => serve(&*state.trie, &*state.tables, request)?,
                    None => TransferMessage::Unavailable { id: request.id },
                };
                (answer, 0)
            }
            TransferMessage::AskBlocks { id, at, offset } if self.may_serve(now_ms) => {
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
        self.served.1 += frame.len().max(read);
        Ok(Some(frame))
    }

    fn may_serve(&mut self, now_ms: u64) -> bool {
        let second = now_ms / 1000;
        if self.served.0 != second {
            self.served = (second, 0);
        }
        self.served.1 < SERVED_PER_SECOND_MAX
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
