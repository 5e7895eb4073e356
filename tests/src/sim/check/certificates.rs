//! Certificates: what a replica executes is proven by a quorum's COMMITs of one view, what it cuts its journal on by a
//! quorum's CHECKPOINTs, and a NEW-VIEW names a quorum's VIEW-CHANGEs (OSDI'99 §4.2 to §4.4).
//!
//! The size of a quorum is computed here anew, as ⌈(n+f+1)/2⌉ with f = ⌊(n−1)/3⌋, and so is who signed: the product's own
//! counting is what is judged.

use super::{Cast, Check, Fact};
use crate::sim::keys;
use conclave_consensus::engine::Committed;
use conclave_consensus::message::{CheckpointCertificate, CheckpointVote, kind};
use conclave_consensus::pbft::certificate::CommitCertificate;
use conclave_consensus::pbft::message::{Message, NewView};
use conclave_consensus::types::ReplicaId;
use conclave_consensus::wire;
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::signature::{Signature, Signed};
use std::collections::BTreeSet;

/// Judges each certificate once, whoever holds it.
#[derive(Default)]
pub(super) struct Certificates {
    judged: BTreeSet<Digest>,
}

fn commits(committed: &Committed, cast: &Cast) -> Result<(), String> {
    let Committed { sequence, epoch, batch, certificate } = committed;
    let certificate = wire::decode::<CommitCertificate>(certificate, wire::FRAME_BYTES_MAX)
        .map_err(|_| format!("block {sequence} has no commit certificate"))?;
    let statement = certificate.statement;
    if (statement.sequence, statement.epoch, statement.digest)
        != (*sequence, *epoch, batch.digest())
    {
        return Err(format!("the certificate of block {sequence} is about another one"));
    }
    let covered = statement.covered(&cast.genesis.cluster(), kind::COMMIT);
    let members = keys::members(cast.genesis.membership.members.clone());
    let signed = |(id, signature): &&(ReplicaId, Signature)| {
        members.key(*id).is_some_and(|key| key.verify(&covered, signature).is_ok())
    };
    let signers: BTreeSet<ReplicaId> =
        certificate.commits.iter().filter(signed).map(|(id, _)| *id).collect();
    if signers.len() < cast.quorum() {
        return Err(format!("block {sequence} is executed on {} COMMITs", signers.len()));
    }
    Ok(())
}

fn checkpoints(certificate: &CheckpointCertificate, cast: &Cast) -> Result<(), String> {
    let checkpoint = &certificate.checkpoint;
    let members = keys::members(cast.genesis.membership.members.clone());
    let cluster = cast.genesis.cluster();
    let signed = |(id, signature): &&(ReplicaId, Signature)| {
        let value = CheckpointVote { checkpoint: checkpoint.clone(), replica: *id };
        let vote = Signed { value, signature: *signature };
        members.key(*id).is_some_and(|key| vote.verify(key, &cluster).is_ok())
    };
    let signers: BTreeSet<ReplicaId> =
        certificate.signatures.iter().filter(signed).map(|(id, _)| *id).collect();
    if signers.len() < cast.quorum() {
        let (height, found) = (checkpoint.height, signers.len());
        return Err(format!("the journal is cut at {height} on {found} CHECKPOINTs"));
    }
    Ok(())
}

impl Check for Certificates {
    fn name(&self) -> &'static str {
        "certificates are a quorum's"
    }

    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String> {
        match fact {
            Fact::Decided { replica, committed } if cast.is_correct(*replica) => {
                let name = digest("simulated commits", &[&committed.certificate]);
                if self.judged.insert(name) { commits(committed, cast) } else { Ok(()) }
            }
            Fact::Stable { replica, certificate } if cast.is_correct(*replica) => {
                let name = digest("simulated checkpoints", &[&wire::encode(*certificate)]);
                if self.judged.insert(name) { checkpoints(certificate, cast) } else { Ok(()) }
            }
            Fact::Sent { replica, message: Message::NewView(sealed) } => {
                let NewView { view, changes, .. } = sealed.value();
                let senders: BTreeSet<ReplicaId> = changes.iter().map(|(id, _)| *id).collect();
                let found = senders.len();
                if found < cast.quorum() {
                    return Err(format!("r{replica} is in view {view} on {found} VIEW-CHANGEs"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::cast;
    use super::*;
    use conclave_consensus::message::{Batch, Checkpoint};
    use conclave_consensus::pbft::certificate::Statement;
    use conclave_consensus::pbft::message::Sealed;
    use conclave_consensus::types::{Epoch, Sequence, View};
    use std::sync::Arc;

    /// A null block that these decided.
    fn decided(signers: &[u16]) -> Committed {
        let batch = Arc::new(Batch::null());
        let (epoch, sequence) = (Epoch(0), Sequence(1));
        let statement = Statement { epoch, view: View(0), sequence, digest: batch.digest() };
        let covered = statement.covered(&cast(4, &[]).genesis.cluster(), kind::COMMIT);
        let sign = |id: &u16| (ReplicaId(*id), keys::replica(*id).sign(&covered));
        let commits = signers.iter().map(sign).collect();
        let certificate = wire::encode(&CommitCertificate { statement, commits });
        Committed { sequence, epoch, batch, certificate }
    }

    fn see(fact: &Fact<'_>) -> Result<(), String> {
        Certificates::default().see(fact, &cast(4, &[]))
    }

    #[test]
    fn a_block_without_a_quorum_of_commits_is_refused() {
        assert!(see(&Fact::Decided { replica: 0, committed: &decided(&[0, 1, 2]) }).is_ok());
        for few in [&[0, 1][..], &[0, 1, 1], &[]] {
            assert!(see(&Fact::Decided { replica: 0, committed: &decided(few) }).is_err());
        }
        let mut other = decided(&[0, 1, 2]);
        other.sequence = Sequence(2);
        assert!(see(&Fact::Decided { replica: 0, committed: &other }).is_err());
    }

    #[test]
    fn a_view_without_a_quorum_of_view_changes_is_refused() {
        let new_view = |senders: &[u16]| {
            let changes = senders.iter().map(|id| (ReplicaId(*id), Digest::ZERO)).collect();
            let (key, cluster) = (keys::replica(1), cast(4, &[]).genesis.cluster());
            let value = NewView { epoch: Epoch(0), view: View(1), changes, proposals: Vec::new() };
            let message =
                Message::NewView(Arc::new(Sealed::new(Signed::sign(value, &key, &cluster))));
            see(&Fact::Sent { replica: 1, message: &message })
        };
        assert!(new_view(&[0, 1, 2]).is_ok());
        assert!(new_view(&[0, 1]).is_err() && new_view(&[0, 1, 1]).is_err());
    }

    #[test]
    fn a_journal_cut_without_a_quorum_of_checkpoints_is_refused() {
        let certificate = |signers: &[u16]| {
            let (epoch, height) = (Epoch(0), Sequence(8));
            let (header, state_root) = (Digest::ZERO, Digest::ZERO);
            let checkpoint = Checkpoint { epoch, height, header, state_root };
            let cluster = cast(4, &[]).genesis.cluster();
            let sign = |id: &u16| {
                let replica = ReplicaId(*id);
                let value = CheckpointVote { checkpoint: checkpoint.clone(), replica };
                (replica, Signed::sign(value, &keys::replica(*id), &cluster).signature)
            };
            let signatures = signers.iter().map(sign).collect();
            CheckpointCertificate { checkpoint, signatures }
        };
        let stable =
            |certificate: &CheckpointCertificate| see(&Fact::Stable { replica: 0, certificate });
        assert!(stable(&certificate(&[1, 2, 3])).is_ok());
        assert!(stable(&certificate(&[1, 2])).is_err());
        assert!(stable(&certificate(&[2, 2, 2])).is_err());
    }
}
