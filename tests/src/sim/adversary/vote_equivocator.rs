//! The vote equivocator: a different PREPARE or COMMIT for each destination.
//!
//! Tries: tells some replicas that it prepared or committed what was proposed, and others that it was something else, so
//! that certificates form on one side and are missing on the other.
//! Stopped by: certificates count votes for one digest only (OSDI'99 §4.2), and 2f+1 of them hold a quorum without it;
//! whoever sees both votes keeps them as evidence.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::kind;
use conclave_consensus::pbft::message::{Message, Vote};
use conclave_consensus::types::ReplicaId;
use conclave_crypto::digest::{Digest, digest};

pub(super) fn attack() -> Attack {
    Attack {
        name: "vote-equivocator",
        tries: "votes for different digests at different replicas",
        make: Make::Replica(|random| Box::new(VoteEquivocator { both: random.chance(500) })),
    }
}

struct VoteEquivocator {
    /// Some replicas get both votes.
    both: bool,
}

impl VoteEquivocator {
    fn other(hands: &Hands<'_>, kind: u8, vote: &Vote) -> Vote {
        let statement = vote.statement;
        let other: Digest = digest("another digest", &[statement.digest.as_bytes()]);
        hands.vote(kind, statement.epoch, statement.view, statement.sequence, other)
    }
}

impl Adversary for VoteEquivocator {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let other = match message {
            Message::Prepare(vote) => Message::Prepare(Self::other(hands, kind::PREPARE, vote)),
            Message::Commit(vote) => Message::Commit(Self::other(hands, kind::COMMIT, vote)),
            _ => return Verdict::Pass,
        };
        match to.0 % 3 {
            0 => Verdict::Pass,
            1 => Verdict::Instead(vec![other]),
            _ if self.both => Verdict::Instead(vec![other, message.clone()]),
            _ => Verdict::Instead(vec![message.clone(), other]),
        }
    }
}
