//! A scripted fork, for controls and for scenes: what liars can do as soon as there are too many of them.
//!
//! Tries: the primary shows replicas of even and of odd number different batches for one slot and commits to each side what
//! it showed it; an accomplice, if there is one, is shown both and votes for both.
//! Stopped by: with at most f liars, quorums intersect in a correct replica, which votes once. With f+1 nothing stops it,
//! and a checker that stays silent then is worth nothing; so this is no attack of [`super::all`].

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{Batch, kind};
use conclave_consensus::pbft::certificate::Statement;
use conclave_consensus::pbft::message::{Message, PrePrepare};
use conclave_consensus::types::{ReplicaId, Timestamp};
use std::sync::Arc;

/// Who leads the fork.
const LEADER: ReplicaId = ReplicaId(0);
/// Who votes for both sides; in a cluster of four the other two are one side each.
const ACCOMPLICE: ReplicaId = ReplicaId(1);

/// The COMMITs come so much later, milliseconds: evidence is on its way before the fork.
const COMMIT_AFTER_MS: u64 = 60;
/// Then the accomplice's COMMIT for the other side comes, and at last the leader's, which decides. Milliseconds.
const BETWEEN_MS: u64 = 10;

pub(super) fn controls() -> Vec<Attack> {
    vec![
        Attack {
            name: "fork",
            tries: "shows even and odd replicas different batches and commits to both",
            make: Make::Replica(|_| Box::new(Fork { told: Vec::new() })),
        },
        Attack {
            name: "fork-accomplice",
            tries: "votes for whatever the leader of the fork shows",
            make: Make::Replica(|_| Box::new(Accomplice)),
        },
    ]
}

/// Commits told and still remembered.
const TOLD_MAX: usize = 256;

struct Fork {
    told: Vec<(ReplicaId, Statement)>,
}

impl Fork {
    fn show(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        of: &PrePrepare,
        odd: bool,
    ) -> Message {
        let time = (of.batch.timestamp.0 | 1) - u64::from(!odd);
        let requests = of.batch.requests.clone();
        let batch = Arc::new(Batch::new(Timestamp(time), of.batch.checkpoint, None, requests));
        let Statement { epoch, view, sequence, .. } = of.vote.statement;
        let digest = batch.digest();
        let vote = hands.vote(kind::PRE_PREPARE, epoch, view, sequence, digest);
        if !self.told.contains(&(to, vote.statement)) && self.told.len() < TOLD_MAX {
            self.told.push((to, vote.statement));
            let commit = hands.vote(kind::COMMIT, epoch, view, sequence, digest);
            // Of three replicas any two are a quorum, and nobody else is waited for.
            let alone = hands.others().len() == 2;
            let after = if alone { 0 } else { COMMIT_AFTER_MS + 2 * BETWEEN_MS };
            hands.send_later(to, &Message::Commit(commit), after);
        }
        Message::PrePrepare(PrePrepare::new(vote, batch))
    }
}

impl Adversary for Fork {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        match message {
            Message::PrePrepare(proposal) if to == ACCOMPLICE && hands.others().len() > 2 => {
                let both = [false, true].map(|odd| self.show(hands, to, proposal, odd));
                Verdict::Instead(both.to_vec())
            }
            Message::PrePrepare(proposal) => {
                let odd = !to.0.is_multiple_of(2);
                Verdict::Instead(vec![self.show(hands, to, proposal, odd)])
            }
            Message::Prepare(_) | Message::Commit(_) => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }

    fn receiving(
        &mut self,
        _: &mut Hands<'_>,
        _: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        !warns(message)
    }
}

/// What would make the liars' honest halves leave the view: correct replicas say that they were lied to.
fn warns(message: Option<&Message>) -> bool {
    matches!(message, Some(Message::Suspect { .. } | Message::Proposed(_)))
}

struct Accomplice;

impl Adversary for Accomplice {
    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        from: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        let Some(Message::PrePrepare(proposal)) = message else { return !warns(message) };
        if from != LEADER {
            return true;
        }
        let Statement { epoch, view, sequence, digest } = proposal.vote.statement;
        let odd = !proposal.batch.timestamp.0.is_multiple_of(2);
        let prepare = Message::Prepare(hands.vote(kind::PREPARE, epoch, view, sequence, digest));
        let commit = Message::Commit(hands.vote(kind::COMMIT, epoch, view, sequence, digest));
        for to in hands.others() {
            let side = to.0.is_multiple_of(2) != odd;
            if to == LEADER {
                continue;
            }
            if side {
                hands.send(to, &prepare);
            }
            let after = COMMIT_AFTER_MS + if side { 0 } else { BETWEEN_MS };
            hands.send_later(to, &commit, after);
        }
        false
    }

    fn sending(&mut self, _: &mut Hands<'_>, _: ReplicaId, message: &Message) -> Verdict<Message> {
        match message {
            Message::Prepare(_) | Message::Commit(_) => Verdict::Drop,
            _ => Verdict::Pass,
        }
    }
}
