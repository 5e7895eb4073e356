//! What a session takes from its caller and hands to it.

use super::belief::Destination;
use super::tally::ProvenBlock;
use crate::client_wire::{ClientFrame, NodeStatus, Outcome, Refusal};
use crate::epoch_chain::{ChainError, MemberKeys};
use crate::membership::Membership;
use crate::message::{Request, RequestBody, SignedRequest};
use crate::types::{ClientId, Epoch, ReplicaId, RequestNumber, SessionId};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::merkle::MerklePath;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a session needs to know.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The cluster id.
    pub cluster: Digest,
    /// The members of epoch 0, from genesis.
    pub membership: Membership,
    /// The client's key.
    pub key: Arc<SecretKey>,
    /// The view-change timeout, from genesis. Milliseconds.
    pub view_change_timeout_ms: u64,
}

/// What the caller keeps between processes, so that the next one closes the session of this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// How many sessions this client has opened, as far as is known; a wrong number costs a round.
    pub opened: u64,
    /// The last session, to be closed by the next process once this one is gone.
    pub session: Option<SessionId>,
}

/// Names a request of this session until it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A number taken for a request that is still to be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Names it from now on.
    pub ticket: Ticket,
    pub(super) client: ClientId,
    pub(super) session: SessionId,
    pub(super) acknowledged: RequestNumber,
}

impl Reservation {
    /// The request to sign, which may happen on any thread.
    #[must_use]
    pub fn request(&self, operations: Vec<u8>) -> Request {
        let body = RequestBody::Submit {
            session: self.session,
            number: RequestNumber(self.ticket.0),
            acknowledged: self.acknowledged,
            operations,
        };
        Request { client: self.client, body }
    }
}

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// No session yet.
    #[error("the session is not open yet")]
    NotOpen,
    /// The cluster refuses this session for ever.
    #[error("session {0} was closed by the cluster; open another one")]
    Closed(SessionId),
    /// 1,024 numbers, or [`OUTSTANDING_BYTES_MAX`](super::OUTSTANDING_BYTES_MAX), are waiting for the oldest answer.
    #[error("too many requests are outstanding; wait for an answer")]
    WindowFull,
    /// The signed request is not the one that the ticket was reserved for.
    #[error("the request does not carry the number that was reserved for it")]
    Ticket,
}

/// What proves an outcome: all of a receipt but the epochs before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What was asked.
    pub request: SignedRequest,
    /// What execution answered, in canonical encoding.
    pub result: Vec<u8>,
    /// From both to the block's results root.
    pub path: MerklePath,
    /// The block, with f+1 attestations.
    pub block: Arc<ProvenBlock>,
}

/// An answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which one.
    pub ticket: Ticket,
    /// The answer. A Duplicate means: executed at that height, and no replica has the answer any more.
    pub outcome: Outcome,
    /// What proves it.
    pub proof: Proof,
}

/// What a replica did that no correct one does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaviour {
    /// Replies in another replica's name or of another cluster.
    #[error("replies in another's name")]
    Name,
    /// An attestation that does not verify.
    #[error("an attestation that does not verify")]
    Attestation,
    /// A result that is not in the block.
    #[error("a result without a Merkle path to its block")]
    Path,
    /// A result that is not an outcome.
    #[error("a result that is no outcome")]
    Outcome,
    /// The end of an epoch that proves nothing.
    #[error("a false end of an epoch: {0}")]
    EpochEnd(ChainError),
}

/// What the caller must do or may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Send this frame; best effort, a lost one is sent again in time.
    Send {
        /// Where to.
        to: Destination,
        /// What.
        frame: ClientFrame,
    },
    /// The session is open; keep the state before using it.
    Opened {
        /// Its id.
        session: SessionId,
        /// What the next process needs.
        state: SessionState,
    },
    /// The cluster refuses to open a session, with proof.
    OpenRefused(Refusal),
    /// A request is answered, with proof.
    Completed(Box<Completion>),
    /// A replica does not take a request now; it is tried again, unasked.
    Busy {
        /// Which request; `None` for the opening of the session.
        ticket: Option<Ticket>,
        /// Who says so.
        replica: ReplicaId,
        /// Its words, unproven.
        reason: String,
    },
    /// The answer to the caller's own status question.
    Status {
        /// From the question.
        token: u64,
        /// The authenticated sender.
        replica: ReplicaId,
        /// Its words, unproven.
        status: Box<NodeStatus>,
    },
    /// The members changed, with proof: connect to these.
    Members {
        /// From this epoch on.
        epoch: Epoch,
        /// Who they are.
        members: Arc<MemberKeys>,
    },
    /// A replica is faulty; the caller should close its connection.
    Misbehaved {
        /// Which one.
        replica: ReplicaId,
        /// What it did.
        what: Misbehaviour,
    },
}
