//! The withholder of checkpoints.
//!
//! Tries: takes part in everything but never says that it has a checkpoint, or says so to one replica only, so that the
//! window fills and the others cannot truncate their logs.
//! Stopped by: a checkpoint is stable by any quorum (OSDI'99 §4.3), and the correct replicas are one.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::ReplicaId;

pub(super) fn attack() -> Attack {
    Attack {
        name: "checkpoint-withholder",
        tries: "never sends a CHECKPOINT, or to one replica only",
        make: Make::Replica(|random| {
            Box::new(CheckpointWithholder { one: random.chance(500), stable: random.chance(500) })
        }),
    }
}

struct CheckpointWithholder {
    /// One replica gets them.
    one: bool,
    /// Certificates are withheld too.
    stable: bool,
}

impl Adversary for CheckpointWithholder {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let spared = self.one && hands.others().first() == Some(&to);
        match message {
            Message::Checkpoint(_) if !spared => Verdict::Drop,
            Message::Stable(_) if self.stable => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }
}
