//! What a traitor can sign: anything, but with its own key only.

use conclave_consensus::message::CheckpointCertificate;
use conclave_consensus::pbft::certificate::{PreparedCertificate, Statement};
use conclave_consensus::pbft::message::{Message, NewView, Sealed, ViewChange, Vote};
use conclave_consensus::types::{Epoch, ReplicaId, Sequence, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::Signed;
use std::sync::Arc;

/// A PRE-PREPARE, PREPARE or COMMIT.
#[must_use]
pub fn vote(
    key: &SecretKey,
    cluster: &Digest,
    kind: u8,
    epoch: Epoch,
    view: View,
    sequence: Sequence,
    digest: Digest,
) -> Vote {
    let statement = Statement { epoch, view, sequence, digest };
    Vote { statement, signature: key.sign(&statement.covered(cluster, kind)) }
}

/// A VIEW-CHANGE with whatever proofs its sender likes.
#[must_use]
pub fn view_change(
    key: &SecretKey,
    cluster: &Digest,
    (epoch, view, replica): (Epoch, View, ReplicaId),
    certificate: Option<CheckpointCertificate>,
    prepared: Vec<PreparedCertificate>,
) -> Arc<Sealed<ViewChange>> {
    let stable = certificate.as_ref().map_or(Sequence(0), |proof| proof.checkpoint.height);
    let change = ViewChange { epoch, view, replica, stable, certificate, prepared };
    Arc::new(Sealed::new(Signed::sign(change, key, cluster)))
}

/// A NEW-VIEW that names whatever its sender likes.
#[must_use]
pub fn new_view(
    key: &SecretKey,
    cluster: &Digest,
    epoch: Epoch,
    view: View,
    changes: Vec<(ReplicaId, Digest)>,
    proposals: Vec<Vote>,
) -> Message {
    let new_view = NewView { epoch, view, changes, proposals };
    Message::NewView(Arc::new(Sealed::new(Signed::sign(new_view, key, cluster))))
}
