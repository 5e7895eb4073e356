//! The supplier of void batches: certificates that an ended epoch decided above its end.
//!
//! Tries: as primary it proposes its own Rejoin and one batch right behind it, which the others vote for before they know
//! that the Rejoin ends the epoch. With their COMMITs it holds a true certificate for a void batch, and sends it as
//! decided to everybody, for ever, in every epoch to come.
//! Stopped by: what an epoch decided above its end is void, whoever holds a certificate of it and whenever it arrives:
//! while the end is not yet executed here, in the step that begins the next epoch, and after it.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{Batch, Change, Rejoin, kind};
use conclave_consensus::pbft::certificate::{CommitCertificate, Statement};
use conclave_consensus::pbft::message::{Decided, Message, PrePrepare, Vote};
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signature;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Void certificates kept.
const KEPT_MAX: usize = 8;

pub(super) fn attack() -> Attack {
    Attack {
        name: "void-supplier",
        tries: "has batches decided above the end of an epoch and offers them in the next",
        make: Make::Replica(|_| {
            Box::new(VoidSupplier { proposed: None, commits: BTreeMap::new(), void: Vec::new() })
        }),
    }
}

/// A Rejoin and what it proposed behind it.
struct Proposed {
    epoch: Epoch,
    view: View,
    sequence: Sequence,
    both: [(Vote, Arc<Batch>); 2],
}

struct VoidSupplier {
    proposed: Option<Proposed>,
    /// Who committed the second of them.
    commits: BTreeMap<ReplicaId, Signature>,
    void: Vec<Arc<Decided>>,
}

impl VoidSupplier {
    fn propose(&mut self, hands: &mut Hands<'_>, statement: &Statement) {
        let Statement { epoch, view, sequence, .. } = *statement;
        let nonce = Digest::from_bytes(hands.random.bytes());
        let rejoin = hands.sign(Rejoin { epoch, replica: hands.id, nonce });
        let batches = [
            Batch::new(hands.wall, true, Some(Change::Rejoin(rejoin)), Vec::new()),
            Batch::new(hands.wall, true, None, Vec::new()),
        ];
        let mut place = sequence;
        let both = batches.map(|batch| {
            let vote = hands.vote(kind::PRE_PREPARE, epoch, view, place, batch.digest());
            place = place.next();
            (vote, Arc::new(batch))
        });
        self.commits.clear();
        for (vote, _) in &both {
            let it = vote.statement;
            let commit = hands.vote(kind::COMMIT, epoch, view, it.sequence, it.digest);
            hands.send_all(&Message::Commit(commit));
            if it.sequence != sequence {
                self.commits.insert(hands.id, commit.signature);
            }
        }
        self.proposed = Some(Proposed { epoch, view, sequence, both });
    }

    fn committed(&mut self, hands: &Hands<'_>, from: ReplicaId, vote: &Vote) {
        let Some(proposed) = &self.proposed else { return };
        let (second, batch) = &proposed.both[1];
        if vote.statement != second.statement {
            return;
        }
        self.commits.insert(from, vote.signature);
        let quorum = hands.knows.membership.quorum().quorum();
        if self.commits.len() == quorum && self.void.len() < KEPT_MAX {
            let commits = self.commits.iter().map(|(id, signature)| (*id, *signature)).collect();
            let certificate = CommitCertificate { statement: second.statement, commits };
            self.void.push(Arc::new(Decided { certificate, batch: Arc::clone(batch) }));
        }
    }
}

impl Adversary for VoidSupplier {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        _: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        match message {
            Message::PrePrepare(honest) => {
                let statement = honest.vote.statement;
                let here = |it: &Proposed| (it.epoch, it.view) == (statement.epoch, statement.view);
                if !self.proposed.as_ref().is_some_and(here) {
                    self.propose(hands, &statement);
                }
                let Some(proposed) = &self.proposed else { return Verdict::Pass };
                if statement.sequence != proposed.sequence {
                    return Verdict::Drop;
                }
                let both = proposed.both.iter();
                let both = both.map(|(vote, batch)| PrePrepare::new(*vote, Arc::clone(batch)));
                Verdict::Instead(both.map(Message::PrePrepare).collect())
            }
            // Its honest half knows of another proposal.
            Message::Commit(vote) => {
                let it = vote.statement;
                let taken = self.proposed.as_ref().is_some_and(|proposed| {
                    (it.epoch, it.view) == (proposed.epoch, proposed.view)
                        && it.sequence >= proposed.sequence
                });
                if taken { Verdict::Drop } else { Verdict::Pass }
            }
            _ => Verdict::Pass,
        }
    }

    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        from: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        if let Some(Message::Commit(vote)) = message {
            self.committed(hands, from, vote);
        }
        true
    }

    fn tick(&mut self, hands: &mut Hands<'_>) {
        for decided in self.void.clone() {
            hands.send_all(&Message::Decided(decided));
        }
    }
}
