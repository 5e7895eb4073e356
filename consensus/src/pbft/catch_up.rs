//! OSDI'99 §4.6.
use super::Pbft;
use super::certificate::Statement;
use super::message::Message;
use crate::engine::{Committed, Reject};
use crate::message::Batch;
use crate::types::{ReplicaId, Sequence};

#[derive(Default)]
pub(super) struct Fetching {}

impl Pbft {
    pub(super) fn request_clock(&self) -> u64 {
        self.now_ms
    }
    pub(super) fn later_view(&self, _from: ReplicaId, statement: &Statement) -> bool {
        statement.epoch == self.epoch() && statement.view > self.view
    }
    pub(super) fn buffer(&mut self, from: ReplicaId, _message: Message) {
        self.reject(from, Reject::View);
    }
    pub(super) fn sample_delays(&mut self, _batch: &Batch) {}
    pub(super) fn on_request_decided(&mut self, _waited: u64) {}
    pub(super) fn on_delivered(&mut self, _committed: &Committed) {}
    pub(super) fn take_backlog(&mut self, _sequence: Sequence) -> Option<Committed> {
        None
    }
    pub(super) fn want_body(&mut self, _sequence: Sequence) {}
}
