//! The equivocating primary: two valid batches for one slot.
//!
//! Tries: as primary it shows half of the others one batch and the rest another, both with a good signature, so that
//! two correct replicas might execute different blocks at one height.
//! Stopped by: quorums intersect in a correct replica, which signs one PREPARE for a slot (OSDI'99 §4.2); no batch
//! prepares, the request timers run out, and the next view's primary is another.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{Batch, kind};
use conclave_consensus::pbft::message::{Message, PrePrepare};
use conclave_consensus::types::ReplicaId;
use std::sync::Arc;

pub(super) fn attack() -> Attack {
    Attack {
        name: "equivocating-primary",
        tries: "proposes two valid batches for one slot, each to a part of the others",
        make: Make::Replica(|random| Box::new(EquivocatingPrimary { whole: random.chance(300) })),
    }
}

struct EquivocatingPrimary {
    /// Leaves the requests out of the second batch instead of changing its time.
    whole: bool,
}

impl Adversary for EquivocatingPrimary {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let Message::PrePrepare(PrePrepare { vote, batch, .. }) = message else {
            return Verdict::Pass;
        };
        let second = hands.others().iter().position(|other| *other == to).unwrap_or(0) % 2 == 1;
        if !second || batch.change.is_some() || (batch.requests.is_empty() && !batch.checkpoint) {
            return Verdict::Pass;
        }
        let requests = if self.whole { Vec::new() } else { batch.requests.clone() };
        let other = Batch::new(batch.timestamp.plus(1), batch.checkpoint, None, requests);
        let statement = vote.statement;
        let vote = hands.vote(
            kind::PRE_PREPARE,
            statement.epoch,
            statement.view,
            statement.sequence,
            other.digest(),
        );
        let batch = Arc::new(other);
        Verdict::Instead(vec![Message::PrePrepare(PrePrepare::new(vote, batch))])
    }
}
