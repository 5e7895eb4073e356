//! What the cluster agrees on and what it hands out: requests, batches, blocks, attestations.
//!
//! Nothing here knows an engine. A [`SignedRequest`] keeps the bytes it arrived as, because those
//! are what was signed and hashed; a [`Batch`] is what one slot of the log decides; a
//! [`BlockHeader`] is what executing a batch yields; an [`Attestation`] is one replica's word that
//! it executed that block, and f+1 of them are a proof.

use crate::membership::Membership;
use crate::types::{ClientId, Epoch, ReplicaId, RequestNumber, Sequence, SessionId, Timestamp};
use crate::wire::{self, WireError};
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::merkle::MerklePath;
use conclave_crypto::signature::{Signable, Signature, Signed, signing_bytes, signing_prefix};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The message types a signature can cover; each value is used once, for ever.
pub mod kind {
    /// A client's request; signed in epoch 0 whatever the epoch, for it outlives epochs.
    pub const REQUEST: u8 = 1;
    /// OSDI'99 §4.2 PRE-PREPARE.
    pub const PRE_PREPARE: u8 = 2;
    /// OSDI'99 §4.2 PREPARE.
    pub const PREPARE: u8 = 3;
    /// OSDI'99 §4.2 COMMIT.
    pub const COMMIT: u8 = 4;
    /// OSDI'99 §4.3 CHECKPOINT.
    pub const CHECKPOINT: u8 = 5;
    /// OSDI'99 §4.4 VIEW-CHANGE.
    pub const VIEW_CHANGE: u8 = 6;
    /// OSDI'99 §4.4 NEW-VIEW.
    pub const NEW_VIEW: u8 = 7;
    /// A replica's request to vote again after it lost its journal.
    pub const REJOIN: u8 = 8;
    /// "Executed after committed-local", one per block and replica.
    pub const ATTESTATION: u8 = 9;
}

/// What a client asks for. Signed once, over its own encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks; the key that verifies the signature.
    pub client: ClientId,
    /// What is asked.
    pub body: RequestBody,
}

/// The two things a client can ask to have ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Opens a session and may close one.
    OpenSession {
        /// How many sessions this client has opened so far; a replay names too few and fails.
        opened: u64,
        /// A session of this client to close in the same step.
        close: Option<SessionId>,
        /// Makes two processes' requests differ.
        nonce: [u8; 16],
    },
    /// One atomic transaction of the state machine.
    Submit {
        /// An open session of this client.
        session: SessionId,
        /// This request's number in it.
        number: RequestNumber,
        /// All answers up to here have arrived: the ledger may forget them.
        acknowledged: RequestNumber,
        /// Opaque to all but the state machine.
        #[serde(with = "serde_bytes")]
        operations: Vec<u8>,
    },
}

/// A request's numbers may run ahead of what it acknowledges by this many.
pub const REQUEST_WINDOW: u64 = 1024;

/// What names a request: at most one body with this key ever executes.
///
/// An OpenSession has session 0 and the number of the session it would open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestKey {
    /// Who asks.
    pub client: ClientId,
    /// In which session; 0 for OpenSession.
    pub session: SessionId,
    /// With which number.
    pub number: RequestNumber,
}

/// Why a request is refused before it is ordered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not the encoding of a request.
    #[error("malformed request: {0}")]
    Wire(#[from] WireError),
    /// `acknowledged < number ≤ acknowledged + 1024` does not hold.
    #[error("request number {number} is outside the window of 1024 above {acknowledged}")]
    Window {
        /// The number it carries.
        number: RequestNumber,
        /// What it acknowledges.
        acknowledged: RequestNumber,
    },
    /// A Submit of session 0, which no client ever has.
    #[error("session 0 is nobody's: open a session first")]
    Session,
    /// The client's key or signature does not verify.
    #[error("the request's signature does not verify")]
    Signature,
}

/// A request as it was signed, with what ordering needs parsed out of it.
///
/// Shape on the wire: the request's encoding as bytes, then the signature (64 bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRequest {
    bytes: Vec<u8>,
    signature: Signature,
    key: RequestKey,
    acknowledged: RequestNumber,
    digest: Digest,
}

/// Offset of the operations in the encoding of a Submit: key 32, variant 4, three numbers, length.
const OPERATIONS_OFFSET: usize = 32 + 4 + 8 * 3 + 8;

impl SignedRequest {
    /// Signs a request of ours.
    #[must_use]
    pub fn sign(
        request: &Request,
        key: &conclave_crypto::keys::SecretKey,
        cluster: &Digest,
    ) -> Self {
        let bytes = wire::encode(request);
        let signature = key.sign(&signing_bytes(cluster, 0, kind::REQUEST, &bytes));
        Self::from_parts(bytes, signature).expect("our own request is well formed")
    }

    /// Parses the signed bytes; checks shape and window, not the signature.
    ///
    /// # Errors
    /// [`RequestError`] when the bytes are no request or its numbers break the window.
    pub fn from_parts(bytes: Vec<u8>, signature: Signature) -> Result<Self, RequestError> {
        let request: Request = wire::decode(&bytes, wire::FRAME_BYTES_MAX)?;
        let (key, acknowledged) = match &request.body {
            RequestBody::OpenSession { opened, .. } => (
                RequestKey {
                    client: request.client,
                    session: SessionId(0),
                    number: RequestNumber(opened.saturating_add(1)),
                },
                RequestNumber(*opened),
            ),
            RequestBody::Submit { session, number, acknowledged, .. } => {
                if *session == SessionId(0) {
                    return Err(RequestError::Session);
                }
                if number <= acknowledged || *number > acknowledged.plus(REQUEST_WINDOW) {
                    return Err(RequestError::Window {
                        number: *number,
                        acknowledged: *acknowledged,
                    });
                }
                (
                    RequestKey { client: request.client, session: *session, number: *number },
                    *acknowledged,
                )
            }
        };
        let digest = digest("request", &[&bytes]);
        Ok(Self { bytes, signature, key, acknowledged, digest })
    }

    /// Decodes a whole signed request.
    ///
    /// # Errors
    /// As [`Self::from_parts`].
    pub fn decode(bytes: &[u8], limit: usize) -> Result<Self, RequestError> {
        Ok(wire::decode::<Self>(bytes, limit)?)
    }

    /// Whether the signature is the client's over these bytes.
    ///
    /// # Errors
    /// [`RequestError::Signature`] when the key is unusable or the signature is not its.
    pub fn verify(
        &self,
        keys: &conclave_crypto::keys::KeyCache,
        cluster: &Digest,
    ) -> Result<(), RequestError> {
        let key = keys.get(&self.key.client).map_err(|_| RequestError::Signature)?;
        key.verify_parts(&[&Self::prefix(cluster), &self.bytes], &self.signature)
            .map_err(|_| RequestError::Signature)
    }

    /// What the signature of any request covers in front of its bytes.
    #[must_use]
    pub fn prefix(cluster: &Digest) -> Vec<u8> {
        signing_prefix(cluster, 0, kind::REQUEST, 0)
    }

    /// What names this request.
    #[must_use]
    pub fn key(&self) -> RequestKey {
        self.key
    }

    /// Its client has the answers of its session up to here.
    #[must_use]
    pub fn acknowledged(&self) -> RequestNumber {
        self.acknowledged
    }

    /// The digest of the signed bytes (without the signature): what results are bound to.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The signed bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The client's signature over them.
    #[must_use]
    pub fn signature(&self) -> Signature {
        self.signature
    }

    /// Size on the wire, bytes.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        8 + self.bytes.len() + 64
    }

    /// The request, parsed again.
    ///
    /// # Panics
    /// Never: the bytes were parsed when this was made.
    #[must_use]
    pub fn request(&self) -> Request {
        wire::decode(&self.bytes, wire::FRAME_BYTES_MAX).expect("parsed when it was made")
    }

    /// The operations of a Submit, for the state machine; `None` for an OpenSession.
    #[must_use]
    pub fn operations(&self) -> Option<&[u8]> {
        (self.key.session != SessionId(0)).then(|| &self.bytes[OPERATIONS_OFFSET..])
    }
}

#[derive(Serialize)]
struct SignedRequestRef<'a>(#[serde(with = "serde_bytes")] &'a [u8], Signature);

#[derive(Deserialize)]
struct SignedRequestOwned(#[serde(with = "serde_bytes")] Vec<u8>, Signature);

impl Serialize for SignedRequest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        SignedRequestRef(&self.bytes, self.signature).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SignedRequest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let SignedRequestOwned(bytes, signature) = SignedRequestOwned::deserialize(deserializer)?;
        Self::from_parts(bytes, signature).map_err(serde::de::Error::custom)
    }
}

/// A replica's request to vote again: same members, next epoch, fresh reservations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejoin {
    /// The epoch it is signed for; void in any other.
    pub epoch: Epoch,
    /// Who lost its journal.
    pub replica: ReplicaId,
    /// Drawn anew for each lost journal.
    pub nonce: Digest,
}

impl Signable for Rejoin {
    const KIND: u8 = kind::REJOIN;
    fn epoch(&self) -> u64 {
        self.epoch.0
    }
    fn body(&self) -> Vec<u8> {
        wire::encode(self)
    }
}

/// What a batch may carry that can end the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A replica that lost its journal comes back.
    Rejoin(Signed<Rejoin>),
}

impl Change {
    /// The members that start after this change, when it takes effect under `current`.
    ///
    /// A Rejoin keeps the members; the replica after the one that rejoins leads first.
    #[must_use]
    pub fn next(&self, current: &Membership) -> Option<Membership> {
        match self {
            Change::Rejoin(rejoin) => {
                let index = current.ids().position(|id| id == rejoin.value.replica)?;
                let first = (index as u64 + 1) % current.members.len() as u64;
                let epoch = current.epoch.next();
                Some(Membership { epoch, first, members: current.members.clone() })
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
struct BatchBody {
    timestamp: Timestamp,
    checkpoint: bool,
    change: Option<Change>,
    requests: Vec<Arc<SignedRequest>>,
}

/// What one slot of the log decides.
///
/// Shape on the wire: timestamp u64, checkpoint bool, change option, requests as a list.
/// Its digest covers all of it, each request's signature included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The primary's clock when it proposed; 0 in a null batch, which takes its parent's time.
    pub timestamp: Timestamp,
    /// Asks for a checkpoint after this batch.
    pub checkpoint: bool,
    /// May end the epoch; execution decides.
    pub change: Option<Change>,
    /// In the order they execute.
    pub requests: Vec<Arc<SignedRequest>>,
    bytes: Vec<u8>,
    digest: Digest,
}

impl Batch {
    /// Seals a batch: encodes and hashes it.
    #[must_use]
    pub fn new(
        timestamp: Timestamp,
        checkpoint: bool,
        change: Option<Change>,
        requests: Vec<Arc<SignedRequest>>,
    ) -> Self {
        let body = BatchBody { timestamp, checkpoint, change, requests };
        let bytes = wire::encode(&body);
        Self::seal(body, bytes)
    }

    /// What a new primary puts into a gap (OSDI'99 §4.4).
    #[must_use]
    pub fn null() -> Self {
        Self::new(Timestamp(0), false, None, Vec::new())
    }

    fn seal(body: BatchBody, bytes: Vec<u8>) -> Self {
        let digest = digest("batch", &[&bytes]);
        let BatchBody { timestamp, checkpoint, change, requests } = body;
        Self { timestamp, checkpoint, change, requests, bytes, digest }
    }

    /// Parses a batch; checks shape, not signatures.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are no batch.
    pub fn decode(bytes: &[u8], limit: usize) -> Result<Self, WireError> {
        let body: BatchBody = wire::decode(bytes, limit)?;
        Ok(Self::seal(body, bytes.to_vec()))
    }

    /// The canonical encoding.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest that votes name.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl Serialize for Batch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(&self.bytes, serializer)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(deserializer)?;
        Self::decode(&bytes, wire::FRAME_BYTES_MAX).map_err(serde::de::Error::custom)
    }
}

/// What executing a batch yields; its hash chains to its parent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockHeader {
    /// The cluster id.
    pub cluster: Digest,
    /// The epoch that decided it.
    pub epoch: Epoch,
    /// Its sequence number.
    pub height: Sequence,
    /// The hash of the header before it; the cluster id for height 1.
    pub parent: Digest,
    /// max(parent's, batch's).
    pub timestamp: Timestamp,
    /// The digest that was agreed on.
    pub batch: Digest,
    /// The Merkle root over [`result_leaf`] of each request, in order.
    pub results_root: Digest,
    /// The digest of the members in force after this block.
    pub membership: Digest,
    /// The epoch in force after this block; `epoch` unless this block ends it.
    pub next_epoch: Epoch,
}

impl BlockHeader {
    /// The block's identity.
    #[must_use]
    pub fn hash(&self) -> Digest {
        digest("header", &[&wire::encode(self)])
    }
}

/// The leaf that binds a result to the request that asked for it.
#[must_use]
pub fn result_leaf(request: &Digest, result: &[u8]) -> Digest {
    conclave_crypto::merkle::merkle_leaf(&[request.as_bytes(), result])
}

/// One replica's word: "I executed this block after it committed here". Never "durable".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attestation {
    /// The epoch of the block.
    pub epoch: Epoch,
    /// Its height.
    pub height: Sequence,
    /// Its header's hash.
    pub header: Digest,
    /// Whose word this is.
    pub replica: ReplicaId,
}

impl Signable for Attestation {
    const KIND: u8 = kind::ATTESTATION;
    fn epoch(&self) -> u64 {
        self.epoch.0
    }
    fn body(&self) -> Vec<u8> {
        wire::encode(self)
    }
}

/// A replica's signed word that its disk holds the state of this height.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The epoch of the block.
    pub epoch: Epoch,
    /// The height of the checkpoint.
    pub height: Sequence,
    /// The header's hash there.
    pub header: Digest,
    /// The root of the state trie after it.
    pub state_root: Digest,
}

/// A CHECKPOINT with who says so, as it is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointVote {
    /// What is vouched for.
    pub checkpoint: Checkpoint,
    /// By whom.
    pub replica: ReplicaId,
}

impl Signable for CheckpointVote {
    const KIND: u8 = kind::CHECKPOINT;
    fn epoch(&self) -> u64 {
        self.checkpoint.epoch.0
    }
    fn body(&self) -> Vec<u8> {
        wire::encode(self)
    }
}

/// A quorum of CHECKPOINTs: the certificate of a stable checkpoint.
///
/// Invariant when checked: distinct signers in id order, exactly a quorum of the epoch's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointCertificate {
    /// What is certified.
    pub checkpoint: Checkpoint,
    /// Who signed it, in id order.
    pub signatures: Vec<(ReplicaId, Signature)>,
}

/// How an epoch ended: proves the next epoch to whoever knows this one's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// The last block of the epoch.
    pub header: BlockHeader,
    /// A quorum of the epoch's CHECKPOINTs at that block.
    pub certificate: CheckpointCertificate,
    /// The members that start after it; their digest stands in the header.
    pub next: Membership,
    /// The last block's batch, whose digest stands in the header. It carries the change that took
    /// effect (a rejoined replica votes only in an epoch its nonce began) and no requests.
    pub batch: Arc<Batch>,
}

/// What the ledger knows when an engine starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerTip {
    /// The last executed height.
    pub height: Sequence,
    /// Its header's hash; the cluster id at height 0.
    pub header: Digest,
    /// Members, epoch and first primary in force after it.
    pub membership: Membership,
    /// The epoch's base: 0, or the last block of the epoch before.
    pub base: Sequence,
    /// The newest stable checkpoint at or below the tip.
    pub stable: Option<CheckpointCertificate>,
    /// The newest checkpoint this ledger executed and synced, for which our own CHECKPOINT stands.
    pub checkpoint: Option<Checkpoint>,
    /// The change that took effect at the tip, when the tip ends an epoch whose end is not yet stable.
    pub pending_epoch: Option<crate::engine::NextEpoch>,
    /// How every earlier epoch ended, in order.
    pub epoch_ends: Vec<EpochEnd>,
}

/// One answered request of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultEntry {
    /// The request's digest.
    pub request: Digest,
    /// What execution answered.
    #[serde(with = "serde_bytes")]
    pub result: Vec<u8>,
    /// From [`result_leaf`] to the header's results root.
    pub path: MerklePath,
}

/// All of one block's answers to one connection: one header, one attestation, many results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockReplies {
    /// The block that answered.
    pub header: BlockHeader,
    /// Who says so.
    pub replica: ReplicaId,
    /// Over the [`Attestation`] that the header and replica determine.
    pub attestation: Signature,
    /// The answers, in block order.
    pub results: Vec<ResultEntry>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_crypto::keys::SecretKey;

    #[test]
    fn a_request_is_refused_by_its_own_numbers() {
        let key = SecretKey::from_seed([1; 32]);
        let parsed = |session, number, acknowledged| {
            let body = RequestBody::Submit {
                session: SessionId(session),
                number: RequestNumber(number),
                acknowledged: RequestNumber(acknowledged),
                operations: Vec::new(),
            };
            let bytes = wire::encode(&Request { client: key.public(), body });
            SignedRequest::from_parts(bytes, Signature::from([0; 64])).map(|request| request.key())
        };
        assert!(parsed(1, 1, 0).is_ok());
        assert!(parsed(1, 1_030, 6).is_ok());
        for (number, acknowledged) in [(0, 0), (6, 6), (5, 6), (1_031, 6)] {
            let (number, acknowledged) = (RequestNumber(number), RequestNumber(acknowledged));
            assert_eq!(
                parsed(1, number.0, acknowledged.0),
                Err(RequestError::Window { number, acknowledged })
            );
        }
        assert_eq!(parsed(0, 1, 0), Err(RequestError::Session), "as an OpenSession's key would be");
    }
}
