//! The liar of checkpoints: another state, another height, a proof of nothing.
//!
//! Tries: votes for a false state root or header, for heights that nobody reached, differently at each replica, and sends
//! STABLE certificates in which every signature is its own.
//! Stopped by: a checkpoint is stable by a quorum of equal votes (OSDI'99 §4.3), which holds f+1 correct ones; each
//! signature of a certificate is checked; two votes for one height are evidence.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{Checkpoint, CheckpointCertificate, CheckpointVote};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::ReplicaId;
use conclave_crypto::digest::{Digest, digest};
use std::sync::Arc;

#[derive(Clone, Copy)]
enum Lie {
    Root,
    Header,
    Differs,
    Height,
}

pub(super) fn attack() -> Attack {
    Attack {
        name: "checkpoint-liar",
        tries: "votes for false checkpoints and sends proofs of none",
        make: Make::Replica(|random| {
            let lies = [Lie::Root, Lie::Header, Lie::Differs, Lie::Height];
            Box::new(CheckpointLiar { lie: *random.pick(&lies) })
        }),
    }
}

struct CheckpointLiar {
    lie: Lie,
}

impl CheckpointLiar {
    fn tell(&self, to: ReplicaId, truth: &Checkpoint) -> Checkpoint {
        let mut lie = truth.clone();
        let other: Digest = digest("another state", &[truth.state_root.as_bytes()]);
        match self.lie {
            Lie::Root => lie.state_root = other,
            Lie::Header => lie.header = other,
            Lie::Differs => lie.state_root = digest("of each", &[&to.0.to_le_bytes()]),
            Lie::Height => lie.height = lie.height.plus(u64::from(to.0) + 1),
        }
        lie
    }
}

impl Adversary for CheckpointLiar {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let Message::Checkpoint(vote) = message else { return Verdict::Pass };
        if vote.value.replica != hands.id {
            return Verdict::Pass;
        }
        let checkpoint = self.tell(to, &vote.value.checkpoint);
        let vote = CheckpointVote { checkpoint, replica: hands.id };
        Verdict::Instead(vec![Message::Checkpoint(hands.sign(vote))])
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if !hands.random.chance(50) {
            return;
        }
        let interval = hands.genesis.limits.checkpoint_interval;
        let height = hands.knows.low.plus(interval * hands.random.between(1, 4));
        let header = Digest::from_bytes(hands.random.bytes());
        let epoch = hands.knows.epoch;
        let checkpoint = Checkpoint { epoch, height, header, state_root: header };
        let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: hands.id };
        let signature = hands.sign(vote).signature;
        let count = hands.knows.membership.quorum().quorum();
        let signatures = hands.knows.membership.ids().take(count).map(|id| (id, signature));
        let certificate = CheckpointCertificate { checkpoint, signatures: signatures.collect() };
        hands.send_all(&Message::Stable(Arc::new(certificate)));
    }
}
