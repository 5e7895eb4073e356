//! OSDI'99 §4.3.
use super::Pbft;
use crate::engine::Checkpointed;
use crate::message::{Change, CheckpointCertificate};
use crate::types::Sequence;

#[derive(Default)]
pub(super) struct Checkpoints {
    pub(super) last: Sequence,
}

impl Pbft {
    pub(super) fn on_checkpointed(&mut self, checkpointed: Checkpointed) {
        self.checkpoints.last = self.checkpoints.last.max(checkpointed.height);
        if self.gate.is_some_and(|gate| gate <= checkpointed.height) {
            self.gate = None;
        }
        self.on_executed(checkpointed.height);
    }

    pub(super) fn on_installed(&mut self, _certificate: CheckpointCertificate) {}

    pub(super) fn idle_mark_due(&self) -> bool {
        false
    }

    pub(super) fn pending_change(&self) -> Option<Change> {
        None
    }

    pub(super) fn epoch_last(&self) -> Option<Sequence> {
        None
    }
}
