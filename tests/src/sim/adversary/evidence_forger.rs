//! The forger of evidence.
//!
//! Tries: makes others believe that a correct replica contradicted itself: puts that replica's true signatures under other
//! statements, into certificates, answers about own votes, proposals, VIEW-CHANGEs in its name and decided batches that
//! were not.
//! Stopped by: whatever counts as evidence is verified by everybody in the same way, each statement against its signer's
//! key; an engine accuses nobody because of what a third replica says unless the signatures say so.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{Batch, kind};
use conclave_consensus::pbft::certificate::{CommitCertificate, PreparedCertificate, Statement};
use conclave_consensus::pbft::message::{
    Decided, Message, OwnVotes, PrePrepare, Sealed, ViewChange, Vote,
};
use conclave_consensus::types::ReplicaId;
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signed;
use std::sync::Arc;

/// True votes kept.
const VOTES_MAX: usize = 128;

pub(super) fn attack() -> Attack {
    Attack {
        name: "evidence-forger",
        tries: "puts the signatures of correct replicas under what they did not say",
        make: Make::Replica(|_| Box::new(EvidenceForger { votes: Vec::new(), change: None })),
    }
}

struct EvidenceForger {
    /// Who signed what, of which kind.
    votes: Vec<(ReplicaId, u8, Vote)>,
    /// Somebody's VIEW-CHANGE.
    change: Option<Arc<Sealed<ViewChange>>>,
}

impl EvidenceForger {
    fn keep(&mut self, hands: &mut Hands<'_>, from: ReplicaId, kind: u8, vote: Vote) {
        if self.votes.len() < VOTES_MAX {
            self.votes.push((from, kind, vote));
        } else {
            let place = hands.random.index(VOTES_MAX);
            self.votes[place] = (from, kind, vote);
        }
    }

    fn forged(&self, hands: &mut Hands<'_>) -> Option<(ReplicaId, Message)> {
        if self.votes.is_empty() {
            return None;
        }
        let (victim, kind, vote) = *hands.random.pick(&self.votes);
        let digest = Digest::from_bytes(hands.random.bytes());
        let statement = Statement { digest, ..vote.statement };
        let other = Vote { statement, signature: vote.signature };
        let members = Arc::clone(&hands.knows.membership);
        let quorum = members.quorum().quorum();
        let message = match hands.random.below(7) {
            0 => Message::OwnVotes(Arc::new(OwnVotes {
                token: hands.random.draw(),
                votes: vec![(kind, other), (kind, vote)],
                view_change: self.change.clone(),
                new_view: None,
                checkpoint: None,
            })),
            1 => Message::Proposed(other),
            2 => {
                let signatures = members.ids().take(quorum).map(|id| (id, vote.signature));
                let commits = signatures.collect();
                let certificate = CommitCertificate { statement: vote.statement, commits };
                let batch = Arc::new(Batch::null());
                Message::Decided(Arc::new(Decided { certificate, batch }))
            }
            3 => {
                let prepares =
                    members.ids().take(quorum - 1).map(|id| (id, vote.signature)).collect();
                let pre_prepare = vote.signature;
                let prepared = vec![PreparedCertificate { statement, pre_prepare, prepares }];
                let (epoch, view) = (hands.knows.epoch, hands.knows.view.next());
                let (replica, stable) = (hands.id, hands.knows.low);
                let certificate = None;
                let value = ViewChange { epoch, view, replica, stable, certificate, prepared };
                Message::ViewChange(Arc::new(Sealed::new(hands.sign(value))))
            }
            4 => {
                let change = self.change.as_ref()?;
                let mut value = change.value().clone();
                value.view = value.view.next();
                value.prepared.clear();
                let signature = change.signed.signature;
                Message::ViewChange(Arc::new(Sealed::new(Signed { value, signature })))
            }
            5 => {
                // A true signature, as if it were its own or of another kind.
                let swapped = [Message::Prepare(vote), Message::Commit(vote)];
                hands.random.pick(&swapped).clone()
            }
            _ => {
                let batch = Arc::new(Batch::new(hands.wall, true, None, Vec::new()));
                Message::PrePrepare(PrePrepare::new(vote, batch))
            }
        };
        Some((victim, message))
    }
}

impl Adversary for EvidenceForger {
    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        from: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        match message {
            Some(Message::PrePrepare(it)) => self.keep(hands, from, kind::PRE_PREPARE, it.vote),
            Some(Message::Prepare(vote)) => self.keep(hands, from, kind::PREPARE, *vote),
            Some(Message::Commit(vote)) => self.keep(hands, from, kind::COMMIT, *vote),
            Some(Message::ViewChange(sealed)) => self.change = Some(Arc::clone(sealed)),
            _ => {}
        }
        true
    }

    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        // What it really knows of another's votes is told with one of them changed.
        let Message::OwnVotes(own) = message else { return Verdict::Pass };
        let mut own = OwnVotes::clone(own);
        if let Some((_, vote)) = own.votes.first_mut() {
            vote.statement.digest = Digest::from_bytes(hands.random.bytes());
        }
        Verdict::Instead(vec![Message::OwnVotes(Arc::new(own))])
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        if let Some((victim, message)) = self.forged(hands) {
            if hands.random.chance(300) && victim != hands.id {
                hands.send(victim, &message);
            } else {
                hands.send_all(&message);
            }
        }
    }
}
