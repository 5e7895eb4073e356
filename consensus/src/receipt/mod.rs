//! A receipt: one file that proves to anybody, offline and from genesis alone, what the cluster
//! answered to a request.
//!
//! The chain of proof, each step of which [`Receipt::verify`] checks:
//! 1. the client's signature is over the request;
//! 2. one Merkle path leads from the request's digest and the result to the block's results root;
//! 3. exactly f+1 members attest the block's header, so that one correct replica executed it;
//! 4. the members follow from genesis by the ends of the epochs that changed them.
//!
//! Nothing in a receipt is unbound: every field is covered by a signature or by a hash that is, lists
//! have one length and one order, and the text form is refused unless writing it again gives the same
//! bytes. A receipt is as good as the keys of its epoch: replicas that left long ago could sign a
//! second history. Whoever knows a later header can pin it; receipts that contradict it are refused.

mod json;
mod reading;
#[cfg(test)]
mod tests;

use crate::client_session::Proof;
use crate::client_wire::Outcome;
use crate::epoch_chain::{ChainError, EpochChain, EpochLink, MemberKeys};
use crate::membership::{Genesis, Member};
use crate::message::{
    Attestation, BlockHeader, Request, RequestError, SignedRequest, kind, result_leaf,
};
use crate::types::{Epoch, ReplicaId, Sequence, Timestamp};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::VerifyingKey;
use conclave_crypto::merkle::MerklePath;
use conclave_crypto::mistake;
use conclave_crypto::signature::{Signature, Signed, signing_bytes};

/// A receipt's text is no longer than this. Bytes.
pub const RECEIPT_BYTES_MAX: usize = 64 << 20;

/// A request, its answer, and what proves both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// What was asked, as it was signed.
    pub request: SignedRequest,
    /// What execution answered: an [`Outcome`] in canonical encoding.
    pub result: Vec<u8>,
    /// From both to the block's results root.
    pub path: MerklePath,
    /// The block.
    pub header: BlockHeader,
    /// Exactly f+1 attestations, in id order.
    pub attestations: Vec<(ReplicaId, Signature)>,
    /// Every change of members before the block's epoch, in order.
    pub epochs: Vec<EpochLink>,
}

/// What a receipt proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedReceipt {
    /// What was asked, by whom.
    pub request: Request,
    /// What was answered.
    pub outcome: Outcome,
    /// In which block.
    pub height: Sequence,
    /// That block's hash.
    pub block: Digest,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its time, as agreed by the ledger.
    pub timestamp: Timestamp,
    /// Who attests it, with the organizations that genesis or the proven changes name.
    pub attested_by: Vec<Member>,
}

/// What about a receipt fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// Not a receipt's text.
    #[error("this is no receipt: {0}")]
    Text(String),
    /// A text of which not every byte is accounted for.
    #[error(
        "the text was altered or reformatted at line {line}: a receipt is valid only as written"
    )]
    NotCanonical {
        /// The first line that differs, from 1.
        line: usize,
    },
    /// The request's fields.
    #[error("the receipt's request: {0}")]
    Request(#[from] RequestError),
    /// Another cluster's.
    #[error("the receipt is of cluster {found}, but this genesis is of cluster {expected}")]
    Cluster {
        /// The genesis'.
        expected: Digest,
        /// The receipt's.
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
    /// A link that does not belong into this receipt.
    #[error("the end of epoch {0} changes no members, or does not lie before the block")]
    SpareEpoch(Epoch),
    /// The header names other members than those proven.
    #[error("the block's header names other members than genesis and the receipt's changes prove")]
    Membership,
    /// Not f+1.
    #[error("the receipt has {found} attestations where exactly {expected} are asked")]
    Attestations {
        /// f+1 of the members.
        expected: usize,
        /// What it has.
        found: usize,
    },
    /// Twice the same, or out of order.
    #[error("the attestations are not of distinct replicas in id order")]
    Order,
    /// Not a member.
    #[error("replica {0} attests the block but is no member of its epoch")]
    Stranger(ReplicaId),
    /// A signature that does not verify.
    #[error("the attestation of replica {0} does not verify")]
    Attestation(ReplicaId),
    /// The result or the request is not what the block holds.
    #[error("the result is not what the block holds for this request")]
    Path,
    /// Not an outcome.
    #[error("the result is not in the expected encoding")]
    Outcome,
    /// The block contradicts a pinned one.
    #[error(
        "the block of height {height} and epoch {epoch} contradicts the pinned one of height {pinned}"
    )]
    Pin {
        /// The receipt's.
        height: Sequence,
        /// The receipt's.
        epoch: Epoch,
        /// The pinned header's height.
        pinned: Sequence,
    },
}

impl Receipt {
    /// The receipt of a completed request; `links` are the changes of members before its epoch, as
    /// [`crate::client_session::ClientSession::links_before`] has them.
    #[must_use]
    pub fn new(proof: &Proof, links: &[EpochLink]) -> Self {
        Self {
            request: proof.request.clone(),
            result: proof.result.clone(),
            path: proof.path.clone(),
            header: proof.block.header.clone(),
            attestations: proof.block.attestations.clone(),
            epochs: links.to_vec(),
        }
    }

    /// Checks everything, from genesis on. `pins` are headers that the caller trusts otherwise: an
    /// epoch's last header pins where that epoch ended, and so refuses what its former members might
    /// sign later.
    ///
    /// # Errors
    /// [`ReceiptError`] that names what fails first.
    pub fn verify(
        &self,
        genesis: &Genesis,
        pins: &[BlockHeader],
    ) -> Result<VerifiedReceipt, ReceiptError> {
        let header = &self.header;
        let (expected, found) = (genesis.cluster(), header.cluster);
        if expected != found {
            return Err(ReceiptError::Cluster { expected, found });
        }
        let members = self.members(genesis)?;
        let within = header.next_epoch == header.epoch;
        let ends = header.epoch < header.next_epoch && header.next_epoch == header.epoch.next();
        if !(ends || within && header.membership == members.digest()) {
            return Err(ReceiptError::Membership);
        }
        let attested_by = self.attested_by(&members)?;
        self.verify_request()?;
        let leaf = result_leaf(&self.request.digest(), &self.result);
        if self.path.root_of(leaf) != Ok(header.results_root) {
            return Err(ReceiptError::Path);
        }
        let outcome =
            wire::decode(&self.result, wire::FRAME_BYTES_MAX).map_err(|_| ReceiptError::Outcome)?;
        pins.iter().try_for_each(|pin| self.verify_pin(pin))?;
        Ok(VerifiedReceipt {
            request: self.request.request(),
            outcome,
            height: header.height,
            block: header.hash(),
            epoch: header.epoch,
            timestamp: header.timestamp,
            attested_by,
        })
    }

    /// The members of the block's epoch, by the receipt's own links.
    fn members(&self, genesis: &Genesis) -> Result<std::sync::Arc<MemberKeys>, ReceiptError> {
        let mut chain = EpochChain::new(genesis).map_err(ReceiptError::Genesis)?;
        let mut before = Sequence(0);
        for link in &self.epochs {
            let (epoch, height) = (link.header.epoch, link.header.height);
            let ordered = before < height && height < self.header.height;
            if !ordered || epoch >= self.header.epoch {
                return Err(ReceiptError::SpareEpoch(epoch));
            }
            let changed =
                chain.extend(link.clone()).map_err(|error| ReceiptError::Epoch { epoch, error })?;
            if !changed {
                return Err(ReceiptError::SpareEpoch(epoch));
            }
            before = height;
        }
        Ok(chain.members().clone())
    }

    fn attested_by(&self, members: &MemberKeys) -> Result<Vec<Member>, ReceiptError> {
        let (expected, found) = (members.quorum().weak(), self.attestations.len());
        let enough = found + usize::from(mistake!("receipt-with-f-attestations"));
        if expected != found && expected != enough {
            return Err(ReceiptError::Attestations { expected, found });
        }
        if self.attestations.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(ReceiptError::Order);
        }
        let hash = self.header.hash();
        let mut attested_by = Vec::with_capacity(found);
        for (replica, signature) in &self.attestations {
            let stranger = || ReceiptError::Stranger(*replica);
            let key = members.key(*replica).ok_or_else(stranger)?;
            let value = Attestation {
                epoch: self.header.epoch,
                height: self.header.height,
                header: hash,
                replica: *replica,
            };
            Signed { value, signature: *signature }
                .verify(key, &self.header.cluster)
                .map_err(|_| ReceiptError::Attestation(*replica))?;
            let member = members.members().iter().find(|member| member.id == *replica);
            attested_by.push(member.ok_or_else(stranger)?.clone());
        }
        Ok(attested_by)
    }

    fn verify_request(&self) -> Result<(), ReceiptError> {
        let covered = signing_bytes(&self.header.cluster, 0, kind::REQUEST, self.request.bytes());
        let key = VerifyingKey::try_from(&self.request.key().client);
        let key = key.map_err(|_| RequestError::Signature)?;
        key.verify(&covered, &self.request.signature()).map_err(|_| RequestError::Signature)?;
        Ok(())
    }

    /// Up to the pinned block no epoch is later than its own; above it none is earlier than the next.
    fn verify_pin(&self, pin: &BlockHeader) -> Result<(), ReceiptError> {
        let (height, epoch) = (self.header.height, self.header.epoch);
        let agrees = self.header.cluster == pin.cluster
            && match height.cmp(&pin.height) {
                std::cmp::Ordering::Less => epoch <= pin.epoch,
                std::cmp::Ordering::Equal => self.header == *pin,
                std::cmp::Ordering::Greater => epoch >= pin.next_epoch,
            };
        if agrees { Ok(()) } else { Err(ReceiptError::Pin { height, epoch, pinned: pin.height }) }
    }
}
