//! The exhauster of sequence numbers.
//!
//! Tries: as primary it proposes at the end of the window, with gaps that never fill, or leaves some numbers out; and
//! votes at numbers above the window and at the last one there is (OSDI'99 §4.2: "to prevent a faulty primary from
//! exhausting the space of sequence numbers").
//! Stopped by: only sequences between h and H are accepted; execution waits for the gap, requests wait with it, and their
//! timers change the view, whose NEW-VIEW fills gaps with null batches.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::kind;
use conclave_consensus::pbft::message::{Message, PrePrepare};
use conclave_consensus::types::{ReplicaId, Sequence};
use conclave_crypto::digest::Digest;

#[derive(Clone, Copy)]
enum Way {
    Highest,
    Gaps,
    Holes,
}

pub(super) fn attack() -> Attack {
    Attack {
        name: "sequence-exhauster",
        tries: "proposes at the end of the window and leaves gaps",
        make: Make::Replica(|random| {
            let way = *random.pick(&[Way::Highest, Way::Gaps, Way::Holes]);
            Box::new(SequenceExhauster { way })
        }),
    }
}

struct SequenceExhauster {
    way: Way,
}

impl Adversary for SequenceExhauster {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let Message::PrePrepare(proposal) = message else { return Verdict::Pass };
        let statement = proposal.vote.statement;
        let sequence = match self.way {
            Way::Highest => hands.knows.high,
            Way::Gaps => statement.sequence.plus(statement.sequence.0 % 3),
            Way::Holes if statement.sequence.0.is_multiple_of(3) => return Verdict::Drop,
            Way::Holes => return Verdict::Pass,
        };
        let (epoch, view, digest) = (statement.epoch, statement.view, statement.digest);
        let vote = hands.vote(kind::PRE_PREPARE, epoch, view, sequence, digest);
        let batch = proposal.batch.clone();
        Verdict::Instead(vec![Message::PrePrepare(PrePrepare::new(vote, batch))])
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if !hands.random.chance(200) {
            return;
        }
        let (epoch, view, high) = (hands.knows.epoch, hands.knows.view, hands.knows.high);
        let ends = [Sequence(0), hands.knows.low, high, high.plus(1), Sequence(u64::MAX)];
        let sequence = *hands.random.pick(&ends);
        let digest = Digest::from_bytes(hands.random.bytes());
        let prepare = hands.vote(kind::PREPARE, epoch, view, sequence, digest);
        let commit = hands.vote(kind::COMMIT, epoch, view, sequence, digest);
        hands.send_all(&Message::Prepare(prepare));
        hands.send_all(&Message::Commit(commit));
    }
}
