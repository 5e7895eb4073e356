//! The mutator: what an honest replica would say, a little wrong and well signed.
//!
//! Tries: changes a view, a sequence or an epoch by one, swaps a digest, and signs the result with its own key, in any
//! message at any time (the small-scope hypothesis, Jackson, "Software Abstractions", 2006: most mistakes show in small
//! counterexamples).
//! Stopped by: whichever rule the changed field belongs to; this attack looks for the one that is missing.

use super::forge::beside;
use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::kind;
use conclave_consensus::pbft::message::{Message, PrePrepare, Sealed, Vote};
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, View};
use conclave_crypto::digest::Digest;
use std::sync::Arc;

pub(super) fn attack() -> Attack {
    Attack {
        name: "mutator",
        tries: "changes a view, sequence, epoch or digest a little and signs it again",
        make: Make::Replica(|random| Box::new(Mutator { permille: random.between(50, 600) })),
    }
}

struct Mutator {
    permille: u64,
}

fn mutated(hands: &mut Hands<'_>, kind: u8, vote: &Vote) -> Vote {
    let other = beside(hands.random, vote.statement);
    hands.vote(kind, other.epoch, other.view, other.sequence, other.digest)
}

/// One less, the same, or one more.
fn near(hands: &mut Hands<'_>, number: u64) -> u64 {
    (number + hands.random.below(3)).saturating_sub(1)
}

/// What is said without a signature.
fn mutated_word(hands: &mut Hands<'_>, message: &Message) -> Option<Message> {
    Some(match message {
        Message::Suspect { epoch, view } => {
            Message::Suspect { epoch: *epoch, view: View(near(hands, view.0)) }
        }
        Message::Status(report) => {
            let mut report = report.clone();
            report.decided = Sequence(near(hands, report.decided.0));
            report.view = View(near(hands, report.view.0));
            report.stable = Sequence(near(hands, report.stable.0));
            Message::Status(report)
        }
        Message::FetchBatch { sequence, digest } => {
            Message::FetchBatch { sequence: Sequence(near(hands, sequence.0)), digest: *digest }
        }
        Message::Body { sequence, batch } => {
            Message::Body { sequence: Sequence(near(hands, sequence.0)), batch: Arc::clone(batch) }
        }
        _ => return None,
    })
}

impl Adversary for Mutator {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        if !hands.random.chance(self.permille) {
            return Verdict::Pass;
        }
        let changed = match message {
            Message::PrePrepare(proposal) => {
                let vote = mutated(hands, kind::PRE_PREPARE, &proposal.vote);
                Message::PrePrepare(PrePrepare::new(vote, Arc::clone(&proposal.batch)))
            }
            Message::Prepare(vote) => Message::Prepare(mutated(hands, kind::PREPARE, vote)),
            Message::Commit(vote) => Message::Commit(mutated(hands, kind::COMMIT, vote)),
            Message::Checkpoint(signed) if signed.value.replica == hands.id => {
                let mut vote = signed.value.clone();
                match hands.random.below(3) {
                    0 => vote.checkpoint.height = Sequence(near(hands, vote.checkpoint.height.0)),
                    1 => vote.checkpoint.epoch = Epoch(near(hands, vote.checkpoint.epoch.0)),
                    _ => vote.checkpoint.state_root = Digest::ZERO,
                }
                Message::Checkpoint(hands.sign(vote))
            }
            Message::ViewChange(sealed) if sealed.value().replica == hands.id => {
                let mut value = sealed.value().clone();
                match hands.random.below(4) {
                    0 => value.view = View(near(hands, value.view.0)),
                    1 => value.stable = Sequence(near(hands, value.stable.0)),
                    2 => value.epoch = Epoch(near(hands, value.epoch.0)),
                    _ => {
                        value.prepared.pop();
                    }
                }
                Message::ViewChange(Arc::new(Sealed::new(hands.sign(value))))
            }
            Message::NewView(sealed) => {
                let mut value = sealed.value().clone();
                match hands.random.below(3) {
                    0 => value.view = View(near(hands, value.view.0)),
                    1 => value.epoch = Epoch(near(hands, value.epoch.0)),
                    _ => value.changes.reverse(),
                }
                Message::NewView(Arc::new(Sealed::new(hands.sign(value))))
            }
            Message::Rejoin(signed) => {
                let mut value = signed.value.clone();
                value.epoch = Epoch(near(hands, value.epoch.0));
                Message::Rejoin(hands.sign(value))
            }
            _ => match mutated_word(hands, message) {
                Some(changed) => changed,
                None => return Verdict::Pass,
            },
        };
        if hands.random.chance(300) {
            return Verdict::Instead(vec![changed, message.clone()]);
        }
        Verdict::Instead(vec![changed])
    }
}
