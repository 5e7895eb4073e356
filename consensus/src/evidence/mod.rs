//! Proof of misbehaviour: what a replica signed that no correct replica signs, checkable by anybody.
//!
//! A proof is either two statements of one replica that contradict each other, or one statement and
//! what it rests on, from which it does not follow. No correct replica makes either, across restarts
//! too: what it signs once per slot is journaled or reserved before it leaves. Everybody decides by
//! [`Evidence::verify`]: the replica that met the statements, the node that keeps them, and whoever
//! reads the file years later with nothing but the genesis.
//!
//! | kind                      | contradiction: same epoch and …    | unfounded: it rests on          |
//! |---------------------------|------------------------------------|---------------------------------|
//! | PRE-PREPARE               | view, sequence; another digest     | its batch, with a request that its client did not sign |
//! | PREPARE, COMMIT           | view, sequence; another digest     |                                 |
//! | VIEW-CHANGE               | view; another body                 |                                 |
//! | NEW-VIEW                  | view; another body                 | its V, from which another O follows |
//! | CHECKPOINT, attestation   | height; another header or root     |                                 |
//!
//! Of a pair the smaller body stands first, so that one pair has one encoding.

mod file;
#[cfg(test)]
mod tests;

pub use self::file::{EVIDENCE_BYTES_MAX, EvidenceFile, Proven};

use crate::epoch_chain::ChainError;
use crate::message::kind;
use crate::types::{Epoch, ReplicaId, Sequence, View};
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::keys::VerifyingKey;
use conclave_crypto::signature::{Signature, signing_bytes};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The body of a statement as it was signed, and the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBody {
    /// The canonical encoding of what was said.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
    /// Over it, as the evidence's kind, in its epoch.
    pub signature: Signature,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// Two statements that no correct replica makes both.
    Contradiction {
        /// The one with the smaller body.
        first: SignedBody,
        /// The other.
        second: SignedBody,
    },
    /// A statement that does not follow from what it names.
    Unfounded {
        /// What was said.
        statement: SignedBody,
        /// What it names by digest: the batch of a PRE-PREPARE; the VIEW-CHANGEs of a NEW-VIEW.
        basis: Vec<serde_bytes::ByteBuf>,
    },
}

/// Proof that one replica is faulty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Who signed.
    pub culprit: ReplicaId,
    /// The epoch whose keys verify the signatures.
    pub epoch: Epoch,
    /// The signed type, see [`crate::message::kind`].
    pub kind: u8,
    /// What was signed.
    pub proof: Proof,
}

/// What the statements speak of. A view or a sequence is 0 where the kind has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    /// The view of a vote, a VIEW-CHANGE or a NEW-VIEW.
    pub view: View,
    /// The slot of a vote, the height of a CHECKPOINT or an attestation.
    pub sequence: Sequence,
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Not the encoding of evidence, or longer than any can be.
    #[error("this is no evidence file: {0}")]
    Format(String),
    /// Another cluster's.
    #[error("the evidence is of cluster {found}, but this genesis is of cluster {expected}")]
    Cluster {
        /// The genesis'.
        expected: Digest,
        /// The evidence's.
        found: Digest,
    },
    /// A genesis whose keys are unusable.
    #[error("the genesis cannot verify anything: {0}")]
    Genesis(ChainError),
    /// A change of members that proves nothing.
    #[error("the change of members at the end of epoch {epoch}: {error}")]
    Epoch {
        /// Which.
        epoch: Epoch,
        /// What fails.
        error: ChainError,
    },
    /// A change of members that does not belong into this file.
    #[error("the end of epoch {0} changes no members, or does not lie before the evidence")]
    SpareEpoch(Epoch),
    /// Not a member.
    #[error("replica {0} is no member of the epoch")]
    Stranger(ReplicaId),
    /// A correct replica may have signed this.
    #[error("a correct replica may have signed this: {0}")]
    Innocent(&'static str),
    /// Somebody else's words.
    #[error("replica {0} did not sign this")]
    Signature(ReplicaId),
}

impl Evidence {
    /// Two statements of one replica, in the one order that is valid.
    #[must_use]
    pub fn contradiction(
        culprit: ReplicaId,
        epoch: Epoch,
        kind: u8,
        one: (Vec<u8>, Signature),
        other: (Vec<u8>, Signature),
    ) -> Self {
        let signed = |(body, signature)| SignedBody { body, signature };
        let (first, second) = if one.0 <= other.0 { (one, other) } else { (other, one) };
        let proof = Proof::Contradiction { first: signed(first), second: signed(second) };
        Self { culprit, epoch, kind, proof }
    }

    /// One statement of a replica and what it names.
    #[must_use]
    pub fn unfounded(
        culprit: ReplicaId,
        epoch: Epoch,
        kind: u8,
        statement: (Vec<u8>, Signature),
        basis: Vec<Vec<u8>>,
    ) -> Self {
        let (body, signature) = statement;
        let statement = SignedBody { body, signature };
        let basis = basis.into_iter().map(serde_bytes::ByteBuf::from).collect();
        Self { culprit, epoch, kind, proof: Proof::Unfounded { statement, basis } }
    }

    /// The signed statements.
    #[must_use]
    pub fn statements(&self) -> Vec<&SignedBody> {
        match &self.proof {
            Proof::Contradiction { first, second } => vec![first, second],
            Proof::Unfounded { statement, .. } => vec![statement],
        }
    }

    /// Whether no correct replica signs this, and what it is about; says nothing of who signed.
    ///
    /// # Errors
    /// [`EvidenceError::Innocent`].
    pub fn fault(&self, cluster: &Digest) -> Result<Subject, EvidenceError> {
        crate::statements::fault(self, cluster)
    }

    /// Whether this proves that the holder of `key` is faulty; nothing else decides that anywhere.
    ///
    /// # Errors
    /// [`EvidenceError::Innocent`] before any signature is checked, then
    /// [`EvidenceError::Signature`].
    pub fn verify(&self, cluster: &Digest, key: &VerifyingKey) -> Result<Subject, EvidenceError> {
        let subject = self.fault(cluster)?;
        for SignedBody { body, signature } in self.statements() {
            let covered = signing_bytes(cluster, self.epoch.0, self.kind, body);
            key.verify(&covered, signature).map_err(|_| EvidenceError::Signature(self.culprit))?;
        }
        Ok(subject)
    }

    /// One name for all proofs of one fault: culprit, epoch, type, and what it is about.
    #[must_use]
    pub fn name(&self, subject: &Subject) -> Digest {
        let fault = (self.culprit, self.epoch, self.kind, subject);
        digest("evidence", &[&crate::wire::encode(&fault)])
    }
}

/// What the papers call a kind of message.
#[must_use]
pub fn kind_name(kind: u8) -> &'static str {
    match kind {
        kind::REQUEST => "REQUEST",
        kind::PRE_PREPARE => "PRE-PREPARE",
        kind::PREPARE => "PREPARE",
        kind::COMMIT => "COMMIT",
        kind::CHECKPOINT => "CHECKPOINT",
        kind::VIEW_CHANGE => "VIEW-CHANGE",
        kind::NEW_VIEW => "NEW-VIEW",
        kind::REJOIN => "REJOIN",
        kind::ATTESTATION => "attestation",
        _ => "unknown type",
    }
}

/// One proof in a few words, as nodes report what they hold. One replica's word only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Accusation {
    /// Who signed.
    pub culprit: ReplicaId,
    /// In which epoch.
    pub epoch: Epoch,
    /// The signed type.
    pub kind: u8,
    /// Whether one statement is the proof, and not two.
    pub unfounded: bool,
    /// What it is about.
    pub subject: Subject,
}

impl Accusation {
    /// What this evidence accuses of.
    #[must_use]
    pub fn of(evidence: &Evidence, subject: Subject) -> Self {
        let Evidence { culprit, epoch, kind, proof } = evidence;
        let unfounded = matches!(proof, Proof::Unfounded { .. });
        Self { culprit: *culprit, epoch: *epoch, kind: *kind, unfounded, subject }
    }

    /// The name of its file: letters, digits and dashes before the extension.
    #[must_use]
    pub fn file_name(&self) -> String {
        let Self { culprit, epoch, kind, subject: Subject { view, sequence }, .. } = self;
        let kind = kind_name(*kind).to_lowercase().replace(' ', "-");
        format!("replica{culprit}-{kind}-e{epoch}-v{view}-n{sequence}.evidence")
    }
}

impl fmt::Display for Accusation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, kind, unfounded, subject: Subject { view, sequence }, .. } = self;
        let name = kind_name(*kind);
        match (*kind, *unfounded) {
            (kind::CHECKPOINT | kind::ATTESTATION, _) => {
                write!(f, "two different {name}s of height {sequence}, epoch {epoch}")
            }
            (kind::VIEW_CHANGE, _) | (kind::NEW_VIEW, false) => {
                write!(f, "two different {name}s of view {view}, epoch {epoch}")
            }
            (kind::NEW_VIEW, true) => {
                write!(
                    f,
                    "a {name} of view {view} that does not follow from its VIEW-CHANGEs, epoch {epoch}"
                )
            }
            (_, true) => write!(
                f,
                "a {name} at sequence {sequence} of a request that its client did not sign, view {view}, epoch {epoch}"
            ),
            (_, false) => write!(
                f,
                "two {name}s for different batches at sequence {sequence} in view {view}, epoch {epoch}"
            ),
        }
    }
}
