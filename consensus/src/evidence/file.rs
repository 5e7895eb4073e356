//! Evidence as a file, for whoever has the genesis.
//!
//! | bytes | content                                                                    |
//! |-------|----------------------------------------------------------------------------|
//! | 20    | `conclave evidence 1\n`: the format and its version                        |
//! | 32    | the cluster                                                                |
//! | 2     | the culprit                                                                |
//! | 8     | the epoch                                                                  |
//! | 1     | the kind of the statements                                                 |
//! | 4     | 0: two statements; 1: one statement and what it rests on                   |
//! | rest  | the statements, each a body with its length (8) before it and a signature (64), or one of them and the list of what it rests on; then the changes of members before the epoch |
//!
//! All in the canonical encoding of [`crate::wire`]; no byte of it is without meaning.

use super::{Accusation, Evidence, EvidenceError};
use crate::epoch_chain::{EpochChain, EpochLink};
use crate::membership::{Genesis, Member};
use crate::types::Sequence;
use crate::wire;
use conclave_crypto::digest::Digest;
use serde::{Deserialize, Serialize};

/// Names the format and its version.
const MAGIC: &[u8; 20] = b"conclave evidence 1\n";

/// The longest evidence file, bytes.
pub const EVIDENCE_BYTES_MAX: usize = wire::FRAME_BYTES_MAX;

/// Evidence with what is needed to check it from genesis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceFile {
    /// The cluster whose replica is accused.
    pub cluster: Digest,
    /// The proof.
    pub evidence: Evidence,
    /// The changes of members before its epoch.
    pub epochs: Vec<EpochLink>,
}

/// What an evidence file proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Who is faulty: the replica, and the organization that answers for it.
    pub culprit: Member,
    /// What it signed.
    pub accusation: Accusation,
}

impl EvidenceFile {
    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&wire::encode(self));
        bytes
    }

    /// Reads a file. Proves nothing yet, but that no byte of it is without meaning.
    ///
    /// # Errors
    /// [`EvidenceError::Format`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let format = |message: &str| EvidenceError::Format(message.to_owned());
        let rest = bytes.strip_prefix(MAGIC);
        let rest = rest.ok_or_else(|| format("it does not begin as one of version 1 does"))?;
        let file: Self = wire::decode(rest, EVIDENCE_BYTES_MAX - MAGIC.len())
            .map_err(|error| EvidenceError::Format(error.to_string()))?;
        if file.to_bytes() != bytes {
            return Err(format("it is not as it was written"));
        }
        Ok(file)
    }

    /// Checks everything, from genesis on, and names who is faulty.
    ///
    /// # Errors
    /// [`EvidenceError`] that names what fails first. Nobody is accused then.
    pub fn verify(&self, genesis: &Genesis) -> Result<Proven, EvidenceError> {
        let (expected, found) = (genesis.cluster(), self.cluster);
        if expected != found {
            return Err(EvidenceError::Cluster { expected, found });
        }
        let Evidence { culprit, epoch, .. } = self.evidence;
        let mut chain = EpochChain::new(genesis).map_err(EvidenceError::Genesis)?;
        let mut before = Sequence(0);
        for link in &self.epochs {
            let (ended, height) = (link.header.epoch, link.header.height);
            if ended >= epoch || height <= before {
                return Err(EvidenceError::SpareEpoch(ended));
            }
            let changed = chain
                .extend(link.clone())
                .map_err(|error| EvidenceError::Epoch { epoch: ended, error })?;
            if !changed {
                return Err(EvidenceError::SpareEpoch(ended));
            }
            before = height;
        }
        let members = chain.members();
        let stranger = || EvidenceError::Stranger(culprit);
        let key = members.key(culprit).ok_or_else(stranger)?;
        let subject = self.evidence.verify(&self.cluster, key)?;
        let member = members.members().iter().find(|member| member.id == culprit);
        Ok(Proven {
            culprit: member.ok_or_else(stranger)?.clone(),
            accusation: Accusation::of(&self.evidence, subject),
        })
    }
}
