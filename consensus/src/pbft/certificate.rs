//! What quorums sign: prepared, commit and checkpoint certificates, checked without an engine.
//!
//! A certificate keeps the individual signatures, so that whoever holds the members' keys can
//! check it years later. Certificates list their signers in id order, each once, and hold exactly
//! as many as are needed: two certificates about one fact differ in their signers only.
//!
//! The signed body of PRE-PREPARE, PREPARE and COMMIT is a [`Statement`] without its epoch, which
//! stands before it in the signed bytes:
//!
//! | bytes | content                         |
//! |-------|---------------------------------|
//! | 8     | view, least significant first   |
//! | 8     | sequence, least significant first |
//! | 32    | the batch's digest              |

use crate::membership::Membership;
use crate::message::{CheckpointCertificate, CheckpointVote, kind};
use crate::types::{Epoch, ReplicaId, Sequence, View};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::VerifyingKey;
use conclave_crypto::mistake;
use conclave_crypto::signature::{Signable, Signature, signing_bytes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a vote says: this batch, in this slot, in this view of this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Statement {
    /// The epoch whose members vote.
    pub epoch: Epoch,
    /// The view; votes never cross views.
    pub view: View,
    /// The slot.
    pub sequence: Sequence,
    /// The batch's digest.
    pub digest: Digest,
}

impl Statement {
    /// The signed body.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(48);
        body.extend_from_slice(&self.view.0.to_le_bytes());
        body.extend_from_slice(&self.sequence.0.to_le_bytes());
        body.extend_from_slice(self.digest.as_bytes());
        body
    }

    /// The bytes that a signature of this kind covers.
    #[must_use]
    pub fn covered(&self, cluster: &Digest, kind: u8) -> Vec<u8> {
        signing_bytes(cluster, self.epoch.0, kind, &self.body())
    }
}

/// Why a certificate proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not an encoding.
    #[error("the certificate is malformed")]
    Malformed,
    /// It speaks of another slot, batch or epoch.
    #[error("the certificate is about something else")]
    Subject,
    /// Not exactly a quorum of distinct members in id order.
    #[error("the certificate's signers are no quorum of members in id order")]
    Signers,
    /// A member's key is unusable.
    #[error("the key of member {0} is unusable")]
    Key(ReplicaId),
    /// A signature does not verify.
    #[error("the signature of member {0} does not verify")]
    Signature(ReplicaId),
}

/// The members' keys, decompressed.
pub type Keys = BTreeMap<ReplicaId, VerifyingKey>;

/// Decompresses the members' keys.
///
/// # Errors
/// [`CertificateError::Key`] names the first member whose key is unusable.
pub fn keys_of(membership: &Membership) -> Result<Keys, CertificateError> {
    membership
        .members
        .iter()
        .map(|member| match VerifyingKey::try_from(&member.key) {
            Ok(key) => Ok((member.id, key)),
            Err(_) => Err(CertificateError::Key(member.id)),
        })
        .collect()
}

fn check_signature(
    keys: &Keys,
    id: ReplicaId,
    covered: &[u8],
    signature: &Signature,
) -> Result<(), CertificateError> {
    let key = keys.get(&id).ok_or(CertificateError::Signers)?;
    key.verify(covered, signature).map_err(|_| CertificateError::Signature(id))
}

fn check_signers(
    signatures: &[(ReplicaId, Signature)],
    count: usize,
    keys: &Keys,
) -> Result<(), CertificateError> {
    let ordered = signatures.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let members = signatures.iter().all(|(id, _)| keys.contains_key(id));
    if signatures.len() == count && ordered && members {
        Ok(())
    } else {
        Err(CertificateError::Signers)
    }
}

/// PREPAREs of others that, with the PRE-PREPARE, make a batch prepared: a quorum less one.
pub(super) fn prepares_needed(membership: &Membership) -> usize {
    membership.quorum().quorum() - 1 - usize::from(mistake!("prepare-quorum-too-small"))
}

/// CHECKPOINTs that make a checkpoint stable: a quorum.
pub(super) fn checkpoints_needed(membership: &Membership) -> usize {
    if mistake!("checkpoint-quorum-too-small") {
        membership.quorum().weak()
    } else {
        membership.quorum().quorum()
    }
}

/// A batch prepared (OSDI'99 §4.2): the PRE-PREPARE and quorum−1 PREPAREs of others.
///
/// Shape: statement 56 bytes, the primary's signature 64, then 66 for each PREPARE behind a u64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedCertificate {
    /// What prepared.
    pub statement: Statement,
    /// The primary's signature of the PRE-PREPARE.
    pub pre_prepare: Signature,
    /// The PREPAREs in id order; the primary's is not among them.
    pub prepares: Vec<(ReplicaId, Signature)>,
}

impl PreparedCertificate {
    /// Checks the signers against the members, then every signature.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(
        &self,
        cluster: &Digest,
        membership: &Membership,
        keys: &Keys,
    ) -> Result<(), CertificateError> {
        if self.statement.epoch != membership.epoch {
            return Err(CertificateError::Subject);
        }
        let primary = primary(membership, self.statement.view);
        check_signers(&self.prepares, prepares_needed(membership), keys)?;
        if self.prepares.iter().any(|(id, _)| *id == primary) {
            return Err(CertificateError::Signers);
        }
        let covered = self.statement.covered(cluster, kind::PRE_PREPARE);
        check_signature(keys, primary, &covered, &self.pre_prepare)?;
        let covered = self.statement.covered(cluster, kind::PREPARE);
        self.prepares
            .iter()
            .try_for_each(|(id, signature)| check_signature(keys, *id, &covered, signature))
    }
}

/// A batch committed (OSDI'99 §4.2): a quorum of COMMITs of one view.
///
/// Shape: statement 56 bytes, then 66 for each COMMIT behind a u64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitCertificate {
    /// What committed.
    pub statement: Statement,
    /// Exactly a quorum of COMMITs in id order.
    pub commits: Vec<(ReplicaId, Signature)>,
}

impl CommitCertificate {
    /// Checks the signers against the members, then every signature.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(
        &self,
        cluster: &Digest,
        membership: &Membership,
        keys: &Keys,
    ) -> Result<(), CertificateError> {
        if self.statement.epoch != membership.epoch {
            return Err(CertificateError::Subject);
        }
        check_signers(&self.commits, membership.quorum().quorum(), keys)?;
        let covered = self.statement.covered(cluster, kind::COMMIT);
        self.commits
            .iter()
            .try_for_each(|(id, signature)| check_signature(keys, *id, &covered, signature))
    }
}

/// Checks a commit certificate as the ledger keeps it, without an engine.
///
/// # Errors
/// [`CertificateError`] when it does not prove that `membership` decided this batch there.
pub fn verify_commit_certificate(
    cluster: &Digest,
    membership: &Membership,
    bytes: &[u8],
    sequence: Sequence,
    batch: &Digest,
) -> Result<(), CertificateError> {
    let certificate: CommitCertificate =
        wire::decode(bytes, wire::CONTROL_BYTES_MAX).map_err(|_| CertificateError::Malformed)?;
    if certificate.statement.sequence != sequence || certificate.statement.digest != *batch {
        return Err(CertificateError::Subject);
    }
    certificate.verify(cluster, membership, &keys_of(membership)?)
}

impl CheckpointCertificate {
    /// Checks that a quorum of this membership vouches for the checkpoint (OSDI'99 §4.3).
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify(
        &self,
        cluster: &Digest,
        membership: &Membership,
    ) -> Result<(), CertificateError> {
        self.verify_with(cluster, membership, &keys_of(membership)?)
    }

    /// As [`Self::verify`], with keys that are decompressed already.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn verify_with(
        &self,
        cluster: &Digest,
        membership: &Membership,
        keys: &Keys,
    ) -> Result<(), CertificateError> {
        if self.checkpoint.epoch != membership.epoch {
            return Err(CertificateError::Subject);
        }
        check_signers(&self.signatures, checkpoints_needed(membership), keys)?;
        self.signatures.iter().try_for_each(|(id, signature)| {
            let vote = CheckpointVote { checkpoint: self.checkpoint.clone(), replica: *id };
            let covered = signing_bytes(cluster, vote.epoch(), CheckpointVote::KIND, &vote.body());
            check_signature(keys, *id, &covered, signature)
        })
    }
}

/// The primary of a view: `(first + view) mod n` (OSDI'99 §4.1).
#[must_use]
pub fn primary(membership: &Membership, view: View) -> ReplicaId {
    let n = membership.members.len() as u64;
    let turns = if mistake!("primary-never-changes") { 0 } else { view.0 % n };
    let index = (membership.first % n + turns) % n;
    membership.members[usize::try_from(index).expect("below the number of members")].id
}
