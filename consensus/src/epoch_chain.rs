//! From the members of genesis to the members of any later epoch, by proof alone.
//!
//! An epoch ends with a block whose header names the members that follow, and with a quorum of the
//! old members' CHECKPOINTs at that block. Whoever knows the members of genesis walks from end to
//! end and knows the members of the newest. Only ends that change the members are links: where they
//! stay the same, the same quorum proves any later epoch too.
//!
//! An end counts only if it follows from what is known: a header of an epoch at or above the newest
//! known change, certified by exactly a quorum of the members known for it. A correct replica signs
//! no CHECKPOINT of an epoch that it is no member of, so that a quorum of past members cannot certify
//! an end behind a change that was left out, as long as at most f of them lie.

use crate::membership::{Genesis, Member, Membership};
use crate::message::{BlockHeader, CheckpointCertificate, CheckpointVote, EpochEnd};
use crate::quorum::Byzantine;
use crate::types::{Epoch, ReplicaId};
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::keys::VerifyingKey;
use conclave_crypto::signature::Signed;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why an epoch's end or a certificate proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A member's key cannot verify anything.
    #[error("the key of replica {0} is not a usable ed25519 key")]
    Key(ReplicaId),
    /// The members are not sorted by id, or none.
    #[error("the members are not a list of distinct replicas in id order")]
    Members,
    /// Another cluster's.
    #[error("the header belongs to another cluster")]
    Cluster,
    /// The certificate names another block than the header.
    #[error("the certificate of height {0} does not certify this header")]
    Header(crate::types::Sequence),
    /// Too few or too many signers.
    #[error("the certificate has {found} signatures where exactly {expected} are asked")]
    Signers {
        /// A quorum of the members.
        expected: usize,
        /// What it carries.
        found: usize,
    },
    /// Signers not in id order, or twice the same.
    #[error("the certificate's signers are not distinct and in id order")]
    Order,
    /// A signer that is no member.
    #[error("replica {0} signed the certificate but was no member of its epoch")]
    Stranger(ReplicaId),
    /// A signature that does not verify.
    #[error("the signature of replica {0} on the certificate does not verify")]
    Signature(ReplicaId),
    /// Epochs that do not follow each other.
    #[error("the end of epoch {found} does not follow on epoch {known}")]
    Epoch {
        /// The newest known epoch.
        known: Epoch,
        /// What the header says.
        found: Epoch,
    },
    /// The header ends no epoch.
    #[error("the header of epoch {0} does not end it")]
    NoEnd(Epoch),
    /// The next members are not those that the header names.
    #[error("the next members are not those that the last header of epoch {0} names")]
    Next(Epoch),
}

/// The members of an epoch with their keys decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberKeys {
    members: Vec<Member>,
    digest: Digest,
    keys: BTreeMap<ReplicaId, VerifyingKey>,
}

impl MemberKeys {
    /// Checks and decompresses the keys of these members.
    ///
    /// # Errors
    /// When a key is unusable, or the members are none or not in id order.
    pub fn new(members: Vec<Member>) -> Result<Self, ChainError> {
        if members.is_empty() || members.windows(2).any(|pair| pair[0].id >= pair[1].id) {
            return Err(ChainError::Members);
        }
        let mut keys = BTreeMap::new();
        for member in &members {
            let key =
                VerifyingKey::try_from(&member.key).map_err(|_| ChainError::Key(member.id))?;
            keys.insert(member.id, key);
        }
        let digest = members_digest(&members);
        Ok(Self { members, digest, keys })
    }

    /// The members in id order.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// What block headers call them: [`Membership::digest`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The key of a member.
    #[must_use]
    pub fn key(&self, id: ReplicaId) -> Option<&VerifyingKey> {
        self.keys.get(&id)
    }

    /// Sizes of their quorums.
    #[must_use]
    pub fn quorum(&self) -> Byzantine {
        Byzantine::of(self.members.len())
    }

    /// Whether exactly a quorum of these members signed this certificate, in id order.
    ///
    /// # Errors
    /// [`ChainError`] that names what fails first. Costs at most a quorum of signature checks, and
    /// none before the list's shape was found right.
    pub fn verify_certificate(
        &self,
        certificate: &CheckpointCertificate,
        cluster: &Digest,
    ) -> Result<(), ChainError> {
        let (expected, found) = (self.quorum().quorum(), certificate.signatures.len());
        if expected != found {
            return Err(ChainError::Signers { expected, found });
        }
        if certificate.signatures.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(ChainError::Order);
        }
        for (replica, _) in &certificate.signatures {
            if !self.keys.contains_key(replica) {
                return Err(ChainError::Stranger(*replica));
            }
        }
        for (replica, signature) in &certificate.signatures {
            let key = self.keys.get(replica).ok_or(ChainError::Stranger(*replica))?;
            let value =
                CheckpointVote { checkpoint: certificate.checkpoint.clone(), replica: *replica };
            Signed { value, signature: *signature }
                .verify(key, cluster)
                .map_err(|_| ChainError::Signature(*replica))?;
        }
        Ok(())
    }
}

/// As [`Membership::digest`], without an epoch around the members.
fn members_digest(members: &[Member]) -> Digest {
    digest("membership", &[&crate::wire::encode(members)])
}

/// One change of members, with nothing in it that its certificate does not bind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochLink {
    /// The last block of the epoch.
    pub header: BlockHeader,
    /// A quorum of the epoch's CHECKPOINTs at that block.
    pub certificate: CheckpointCertificate,
    /// The members that start after it.
    pub members: Vec<Member>,
}

impl From<&EpochEnd> for EpochLink {
    fn from(end: &EpochEnd) -> Self {
        Self {
            header: end.header.clone(),
            certificate: end.certificate.clone(),
            members: end.next.members.clone(),
        }
    }
}

/// What is proven of the members so far.
///
/// Memory: one entry per change of members, which only a quorum can add.
#[derive(Clone, Debug)]
pub struct EpochChain {
    cluster: Digest,
    /// From which epoch on which members; the first is epoch 0 of genesis.
    spans: Vec<(Epoch, Arc<MemberKeys>)>,
    links: Vec<EpochLink>,
    newest: Epoch,
}

impl EpochChain {
    /// Starts at genesis.
    ///
    /// # Errors
    /// When a key of genesis is unusable.
    pub fn new(genesis: &Genesis) -> Result<Self, ChainError> {
        Self::of_members(genesis.cluster(), &genesis.membership)
    }

    /// Starts at the members of epoch 0 of this cluster.
    ///
    /// # Errors
    /// When a key is unusable.
    pub fn of_members(cluster: Digest, membership: &Membership) -> Result<Self, ChainError> {
        let keys = Arc::new(MemberKeys::new(membership.members.clone())?);
        Ok(Self { cluster, spans: vec![(Epoch(0), keys)], links: Vec::new(), newest: Epoch(0) })
    }

    /// The cluster id.
    #[must_use]
    pub fn cluster(&self) -> Digest {
        self.cluster
    }

    /// The newest proven epoch.
    #[must_use]
    pub fn newest(&self) -> Epoch {
        self.newest
    }

    /// The members of the newest proven epoch.
    #[must_use]
    pub fn members(&self) -> &Arc<MemberKeys> {
        &self.spans.last().expect("the span of genesis is never removed").1
    }

    /// The members of this epoch as far as is known: those of the last proven change before it.
    #[must_use]
    pub fn members_of(&self, epoch: Epoch) -> &Arc<MemberKeys> {
        let after = self.spans.partition_point(|(from, _)| *from <= epoch);
        &self.spans[after.saturating_sub(1)].1
    }

    /// The links that a receipt of this epoch needs.
    #[must_use]
    pub fn links_before(&self, epoch: Epoch) -> &[EpochLink] {
        let after = self.links.partition_point(|link| link.header.epoch < epoch);
        &self.links[..after]
    }

    /// Takes the end of an epoch; says whether the members changed. Ends that are known already are
    /// passed over.
    ///
    /// # Errors
    /// [`ChainError`] when the end does not follow from what is known; nothing is taken then.
    pub fn extend(&mut self, link: EpochLink) -> Result<bool, ChainError> {
        let EpochLink { header, certificate, members } = &link;
        if header.epoch < self.newest {
            return Ok(false);
        }
        if header.cluster != self.cluster {
            return Err(ChainError::Cluster);
        }
        if header.next_epoch != header.epoch.next() || header.next_epoch == header.epoch {
            return Err(ChainError::NoEnd(header.epoch));
        }
        let checkpoint = &certificate.checkpoint;
        if checkpoint.header != header.hash()
            || checkpoint.height != header.height
            || checkpoint.epoch != header.epoch
        {
            return Err(ChainError::Header(checkpoint.height));
        }
        if members_digest(members) != header.membership {
            return Err(ChainError::Next(header.epoch));
        }
        self.members().verify_certificate(certificate, &self.cluster)?;
        if header.membership == self.members().digest() {
            self.newest = header.next_epoch;
            return Ok(false);
        }
        let next = Arc::new(MemberKeys::new(members.clone())?);
        self.newest = header.next_epoch;
        self.spans.push((header.next_epoch, next));
        self.links.push(link);
        Ok(true)
    }
}
