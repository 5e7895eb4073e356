//! The liar of view changes: VIEW-CHANGEs that leave out, make up, or differ.
//!
//! Tries: omits what it prepared, so that a committed batch might be replaced; forges certificates, so that its own batch
//! might be chosen; claims an old or a future checkpoint; signs two VIEW-CHANGEs for one view, for different replicas.
//! Stopped by: each certificate is checked, and one of the quorum in V that prepared a committed batch is correct
//! (OSDI'99 §4.4); V names VIEW-CHANGEs by digest, so that everybody recomputes O from the same ones; two for one view
//! are evidence.

use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{Checkpoint, CheckpointCertificate, CheckpointVote, kind};
use conclave_consensus::pbft::certificate::PreparedCertificate;
use conclave_consensus::pbft::message::{Message, Sealed, ViewChange};
use conclave_consensus::types::{ReplicaId, Sequence, View};
use conclave_crypto::digest::{Digest, digest};
use std::sync::Arc;

#[derive(Clone, Copy)]
enum Lie {
    Omits,
    Forgets,
    ForgesPrepared,
    ForgesStable,
    FromTheFuture,
    TwoForOneView,
}

pub(super) fn attack() -> Attack {
    Attack {
        name: "view-change-liar",
        tries: "omits or forges certificates in its VIEW-CHANGEs, or signs two",
        make: Make::Replica(|random| {
            let lies = [
                Lie::Omits,
                Lie::Forgets,
                Lie::ForgesPrepared,
                Lie::ForgesStable,
                Lie::FromTheFuture,
                Lie::TwoForOneView,
            ];
            Box::new(ViewChangeLiar { lie: *random.pick(&lies) })
        }),
    }
}

struct ViewChangeLiar {
    lie: Lie,
}

/// A certificate in which every signature is its maker's.
fn forged(
    hands: &Hands<'_>,
    view: View,
    sequence: Sequence,
    digest: Digest,
) -> PreparedCertificate {
    let epoch = hands.knows.epoch;
    let vote = |kind| hands.vote(kind, epoch, view, sequence, digest);
    let primary = conclave_consensus::pbft::certificate::primary(&hands.knows.membership, view);
    let count = hands.knows.membership.quorum().quorum() - 1;
    let prepare = vote(kind::PREPARE).signature;
    let voters = hands.knows.membership.ids().filter(|id| *id != primary).take(count);
    let prepares = voters.map(|id| (id, prepare)).collect();
    let vote = vote(kind::PRE_PREPARE);
    PreparedCertificate { statement: vote.statement, pre_prepare: vote.signature, prepares }
}

fn forged_stable(hands: &Hands<'_>, height: Sequence) -> CheckpointCertificate {
    let other = digest("forged", &[&height.0.to_le_bytes()]);
    let epoch = hands.knows.epoch;
    let checkpoint = Checkpoint { epoch, height, header: other, state_root: other };
    let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: hands.id };
    let signature = hands.sign(vote).signature;
    let count = hands.knows.membership.quorum().quorum();
    let signatures = hands.knows.membership.ids().take(count).map(|id| (id, signature)).collect();
    CheckpointCertificate { checkpoint, signatures }
}

impl ViewChangeLiar {
    fn tell(&self, hands: &Hands<'_>, to: ReplicaId, truth: &ViewChange) -> ViewChange {
        let mut lie = truth.clone();
        let before = View(truth.view.0.saturating_sub(1));
        let next = Sequence(truth.stable.0 + 1);
        match self.lie {
            Lie::Omits => lie.prepared.clear(),
            Lie::Forgets => {
                lie.prepared.clear();
                (lie.certificate, lie.stable) = (None, Sequence(0));
            }
            Lie::ForgesPrepared => {
                let made_up = digest("made up", &[&truth.view.0.to_le_bytes()]);
                lie.prepared.retain(|certificate| certificate.statement.sequence != next);
                lie.prepared.insert(0, forged(hands, before, next, made_up));
            }
            Lie::ForgesStable => {
                let height = truth.stable.plus(hands.genesis.limits.checkpoint_interval);
                lie.prepared.clear();
                lie.certificate = Some(forged_stable(hands, height));
                lie.stable = height;
            }
            Lie::FromTheFuture => {
                let made_up = digest("made up", &[&truth.view.0.to_le_bytes()]);
                lie.prepared = vec![forged(hands, truth.view, next, made_up)];
            }
            Lie::TwoForOneView => {
                if to.0.is_multiple_of(2) {
                    lie.prepared.clear();
                    (lie.certificate, lie.stable) = (None, Sequence(0));
                }
            }
        }
        lie
    }
}

impl Adversary for ViewChangeLiar {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let Message::ViewChange(sealed) = message else { return Verdict::Pass };
        if sealed.value().replica != hands.id {
            return Verdict::Pass;
        }
        let lie = self.tell(hands, to, sealed.value());
        let sealed = Sealed::new(hands.sign(lie));
        Verdict::Instead(vec![Message::ViewChange(Arc::new(sealed))])
    }
}
