//! What clients and replicas say to each other, and the outer shape of every result.
//!
//! A client sends [`ClientFrame`]s to each replica and receives [`NodeFrame`]s. Only
//! [`NodeFrame::Replies`] carries proof; everything else is one replica's unproven word.

use crate::engine::EngineStatus;
use crate::evidence::Accusation;
use crate::message::{BlockReplies, EpochEnd, SignedRequest};
use crate::types::{ReplicaId, RequestNumber, Sequence, SessionId};
use conclave_crypto::digest::Digest;
use serde::{Deserialize, Serialize};

/// From a client to a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientFrame {
    /// Order this request. Once it is sent again, the answers of its session come to this connection too.
    Submit {
        /// What to order.
        request: SignedRequest,
        /// Set when it was sent before: the replica first looks whether it is in the ledger.
        resent: bool,
    },
    /// Answers of this session (and of OpenSession) of the connection's client come here.
    Attach {
        /// Which session.
        session: SessionId,
    },
    /// Asks for this replica's status.
    Status {
        /// Comes back in the answer.
        token: u64,
    },
    /// Asks how the epochs from `from` on ended, for receipts across changes of members.
    EpochEnds {
        /// First epoch asked for.
        from: u64,
    },
    /// Answers of this session do not come here any more, until the next Attach or resent request.
    Detach {
        /// Which session.
        session: SessionId,
    },
}

/// From a replica to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeFrame {
    /// Answers of one block, attested by this replica.
    Replies(Box<BlockReplies>),
    /// Not accepted for ordering here, unproven; another replica may accept it.
    Busy {
        /// The request's digest.
        request: Digest,
        /// What to tell the user.
        reason: String,
    },
    /// This replica's word about itself.
    Status {
        /// From the question.
        token: u64,
        /// The answer.
        status: Box<NodeStatus>,
    },
    /// Ends of epochs in order, at most 64 at a time; each proves the next.
    EpochEnds(Vec<EpochEnd>),
}

/// One replica's word about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who answers.
    pub replica: ReplicaId,
    /// Its organization.
    pub organization: String,
    /// The engine's view of things.
    pub engine: EngineStatus,
    /// Executed height.
    pub height: Sequence,
    /// Peers with a live connection.
    pub peers_up: u32,
    /// The software's version.
    pub version: String,
    /// CPU time of the process, microseconds.
    pub cpu_us: u64,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Journal syncs since start.
    pub fsyncs: u64,
    /// Bytes sent to peers and clients since start.
    pub bytes_sent: u64,
    /// Pieces of evidence held.
    pub evidence: u64,
    /// What they accuse of; the first [`ACCUSATIONS_MAX`] of them.
    pub accusations: Vec<Accusation>,
}

/// Accusations in one answer.
pub const ACCUSATIONS_MAX: usize = 64;

/// The answer to a request: what the results leaf binds, in canonical encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Executed now; the state machine's answer.
    Executed(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The session is open (also the answer to the same bytes again while it is).
    Opened {
        /// Its id.
        session: SessionId,
    },
    /// The same request was executed before; its original answer is in that block.
    Duplicate {
        /// Which block.
        height: Sequence,
        /// Which request of it.
        index: u32,
    },
    /// Not executed, and recorded as answered.
    Refused(Refusal),
}

/// Why execution refuses; every replica refuses alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The key is not registered with this cluster.
    #[error("this client's key is not registered in the cluster's genesis")]
    NotRegistered,
    /// The role does not allow it.
    #[error("the role {role} does not allow it")]
    Role {
        /// The client's role.
        role: String,
    },
    /// A key outside the client's prefix.
    #[error("the key lies outside this client's prefix")]
    Prefix,
    /// The session never was or is closed.
    #[error("session {0} is not open")]
    NotOpen(SessionId),
    /// The OpenSession names another count than the true one.
    #[error("this client has opened {opened} sessions so far, not what the request says")]
    OpenCount {
        /// The true count.
        opened: u64,
    },
    /// At or below the fence of acknowledged numbers.
    #[error("request {0} was acknowledged before")]
    Stale(RequestNumber),
    /// Another body with the same number was executed.
    #[error("another request with number {0} was executed before")]
    Conflict(RequestNumber),
    /// Larger than the genesis allows.
    #[error("the {what} has {bytes} bytes, more than the {limit} the genesis allows")]
    TooLarge {
        /// `key`, `value`, `request`, `range`.
        what: String,
        /// Found.
        bytes: u64,
        /// Allowed.
        limit: u64,
    },
    /// Not an encoding of the state machine's operations.
    #[error("the operations are malformed: {0}")]
    Malformed(String),
}
