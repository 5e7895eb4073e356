//! What a traitor can sign: anything, but with its own key only.

use super::network::replica_key;
use conclave_consensus::message::{Batch, Checkpoint, CheckpointCertificate, CheckpointVote, kind};
use conclave_consensus::pbft::certificate::{CommitCertificate, PreparedCertificate, Statement};
use conclave_consensus::pbft::message::{
    Decided, Message, NewView, PrePrepare, Sealed, ViewChange, Vote,
};
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signed;
use std::sync::Arc;

/// Signs for one cluster, in epoch 0.
pub struct Forge {
    pub cluster: Digest,
}

impl Forge {
    pub fn vote(&self, by: u16, kind: u8, view: u64, sequence: u64, digest: Digest) -> Vote {
        let (view, sequence) = (View(view), Sequence(sequence));
        let statement = Statement { epoch: Epoch(0), view, sequence, digest };
        let signature = replica_key(by).sign(&statement.covered(&self.cluster, kind));
        Vote { statement, signature }
    }

    pub fn pre_prepare(&self, by: u16, view: u64, sequence: u64, batch: &Arc<Batch>) -> Message {
        let vote = self.vote(by, kind::PRE_PREPARE, view, sequence, batch.digest());
        Message::PrePrepare(PrePrepare::new(vote, Arc::clone(batch)))
    }

    pub fn prepare(&self, by: u16, view: u64, sequence: u64, digest: Digest) -> Message {
        Message::Prepare(self.vote(by, kind::PREPARE, view, sequence, digest))
    }

    pub fn commit(&self, by: u16, view: u64, sequence: u64, digest: Digest) -> Message {
        Message::Commit(self.vote(by, kind::COMMIT, view, sequence, digest))
    }

    /// A batch that these replicas committed, as a laggard is sent it.
    pub fn decided(
        &self,
        signers: &[u16],
        view: u64,
        sequence: u64,
        batch: &Arc<Batch>,
    ) -> Message {
        let vote = |by| self.vote(by, kind::COMMIT, view, sequence, batch.digest());
        let commits = signers.iter().map(|by| (ReplicaId(*by), vote(*by).signature)).collect();
        let certificate = CommitCertificate { statement: vote(0).statement, commits };
        Message::Decided(Arc::new(Decided { certificate, batch: Arc::clone(batch) }))
    }

    /// A stable checkpoint of these replicas, as a peer shows it; no ledger is like it.
    pub fn stable(&self, signers: &[u16], height: u64) -> Message {
        let (header, state_root) = (self.cluster, self.cluster);
        let checkpoint =
            Checkpoint { epoch: Epoch(0), height: Sequence(height), header, state_root };
        let sign = |id: &u16| {
            let vote = CheckpointVote { checkpoint: checkpoint.clone(), replica: ReplicaId(*id) };
            (ReplicaId(*id), Signed::sign(vote, &replica_key(*id), &self.cluster).signature)
        };
        let signatures = signers.iter().map(sign).collect();
        Message::Stable(Arc::new(CheckpointCertificate { checkpoint, signatures }))
    }

    /// The first of `signers` is the view's primary.
    pub fn certificate(
        &self,
        signers: &[u16],
        view: u64,
        sequence: u64,
        digest: Digest,
    ) -> PreparedCertificate {
        let vote = |by, kind| self.vote(by, kind, view, sequence, digest);
        let mut prepares: Vec<_> = signers[1..]
            .iter()
            .map(|by| (ReplicaId(*by), vote(*by, kind::PREPARE).signature))
            .collect();
        prepares.sort_by_key(|(id, _)| *id);
        let pre_prepare = vote(signers[0], kind::PRE_PREPARE);
        PreparedCertificate {
            statement: pre_prepare.statement,
            pre_prepare: pre_prepare.signature,
            prepares,
        }
    }

    pub fn view_change(
        &self,
        by: u16,
        view: u64,
        proof: Option<CheckpointCertificate>,
        prepared: Vec<PreparedCertificate>,
    ) -> Arc<Sealed<ViewChange>> {
        let stable = proof.as_ref().map_or(Sequence(0), |proof| proof.checkpoint.height);
        let change = ViewChange {
            epoch: Epoch(0),
            view: View(view),
            replica: ReplicaId(by),
            stable,
            certificate: proof,
            prepared,
        };
        Arc::new(Sealed::new(Signed::sign(change, &replica_key(by), &self.cluster)))
    }

    pub fn new_view(
        &self,
        by: u16,
        view: u64,
        changes: &[Arc<Sealed<ViewChange>>],
        proposals: &[(u64, Digest)],
    ) -> Message {
        let mut named: Vec<_> = changes.iter().map(|it| (it.value().replica, it.name())).collect();
        named.sort_by_key(|(id, _)| *id);
        let vote = |(sequence, digest): &(u64, Digest)| {
            self.vote(by, kind::PRE_PREPARE, view, *sequence, *digest)
        };
        let new_view = NewView {
            epoch: Epoch(0),
            view: View(view),
            changes: named,
            proposals: proposals.iter().map(vote).collect(),
        };
        let signed = Signed::sign(new_view, &replica_key(by), &self.cluster);
        Message::NewView(Arc::new(Sealed::new(signed)))
    }
}
