//! What a traitor can sign: anything, but with its own key only.

use super::Hands;
use crate::sim::random::Random;
use conclave_consensus::kv::Transaction;
use conclave_consensus::message::{CheckpointCertificate, Request, RequestBody, SignedRequest};
use conclave_consensus::pbft::certificate::{PreparedCertificate, Statement};
use conclave_consensus::pbft::message::{Message, NewView, Sealed, ViewChange, Vote};
use conclave_consensus::types::{Epoch, ReplicaId, RequestNumber, Sequence, SessionId, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::signature::{Signature, Signed};
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

/// 64 bytes that are nobody's signature.
#[must_use]
pub fn garbage(random: &mut Random) -> Signature {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&random.bytes());
    // The upper bits of S are zero, so that the signature is refused by the equation and not by its form.
    bytes[32..56].copy_from_slice(&random.bytes()[..24]);
    Signature::from_bytes(bytes)
}

/// A request in the name of some client of the genesis, which never signed it.
#[must_use]
pub fn request_of(hands: &mut Hands<'_>, number: u64) -> SignedRequest {
    let victim = hands.random.index(hands.genesis.clients.len());
    let client = hands.genesis.clients[victim].key;
    let body = RequestBody::Submit {
        session: SessionId(1),
        number: RequestNumber(number),
        acknowledged: RequestNumber(number.saturating_sub(1)),
        operations: Transaction::put("k0", b"forged").encode(),
    };
    SignedRequest::sign(&Request { client, body }, hands.key(), &hands.cluster)
}

/// Something close to this statement, and wrong.
#[must_use]
pub fn beside(random: &mut Random, statement: Statement) -> Statement {
    let mut close = statement;
    match random.below(8) {
        0 => close.view = View(close.view.0.saturating_add(1)),
        1 => close.view = View(close.view.0.saturating_sub(1)),
        2 => close.sequence = close.sequence.plus(1),
        3 => close.sequence = close.sequence.minus(1),
        4 => close.epoch = Epoch(close.epoch.0.saturating_add(1)),
        5 => close.epoch = Epoch(close.epoch.0.saturating_sub(1)),
        6 => close.digest = Digest::ZERO,
        _ => close.digest = Digest::from_bytes(random.bytes()),
    }
    close
}
