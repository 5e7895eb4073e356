//! The messages between PBFT replicas, as OSDI'99 §4 names them, and a few of our own.
//!
//! A frame is the canonical encoding of [`Message`]: a u32 that names the variant, then its
//! fields. Votes are 124 bytes. Only `decode` makes messages out of a peer's bytes.

use super::certificate::{CommitCertificate, PreparedCertificate, Statement};
use crate::message::{
    Batch, CheckpointCertificate, CheckpointVote, EpochEnd, Rejoin, SignedRequest, kind,
};
use crate::types::{Epoch, ReplicaId, Sequence, View};
use crate::wire;
use conclave_crypto::digest::{Digest, digest};
use conclave_crypto::signature::{Signable, Signature, Signed};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// A signed statement; who signed it is the context's matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// What it says.
    pub statement: Statement,
    /// Over the statement, as PRE-PREPARE, PREPARE or COMMIT.
    pub signature: Signature,
}

/// OSDI'99 §4.2 PRE-PREPARE with its batch. The signature covers the batch by its digest only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrePrepare {
    /// The primary's statement.
    pub vote: Vote,
    /// The batch it names.
    pub batch: Arc<Batch>,
    /// The signatures of its requests are left to others for now, see the module `vouching`. Said by
    /// `decode` to the engine, never on the wire.
    #[serde(skip)]
    pub unchecked: bool,
}

impl PrePrepare {
    /// A proposal as it is sent.
    #[must_use]
    pub fn new(vote: Vote, batch: Arc<Batch>) -> Self {
        Self { vote, batch, unchecked: false }
    }
}

/// OSDI'99 §4.4 VIEW-CHANGE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewChange {
    /// The epoch.
    pub epoch: Epoch,
    /// The view its sender wants to enter.
    pub view: View,
    /// Its sender.
    pub replica: ReplicaId,
    /// h: the last stable checkpoint its sender has proof of, or the epoch's base.
    pub stable: Sequence,
    /// C: the proof; none for the epoch's base.
    pub certificate: Option<CheckpointCertificate>,
    /// P: per prepared sequence in (h, h+L] its highest-view certificate, by sequence.
    pub prepared: Vec<PreparedCertificate>,
}

impl Signable for ViewChange {
    const KIND: u8 = kind::VIEW_CHANGE;
    fn epoch(&self) -> u64 {
        self.epoch.0
    }
    fn body(&self) -> Vec<u8> {
        wire::encode(self)
    }
}

/// OSDI'99 §4.4 NEW-VIEW. V is named by digests; O comes without bodies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewView {
    /// The epoch.
    pub epoch: Epoch,
    /// The view that starts.
    pub view: View,
    /// V: exactly a quorum of VIEW-CHANGEs, by sender, each with its name.
    pub changes: Vec<(ReplicaId, Digest)>,
    /// O: the new primary's PRE-PREPAREs, sequence by sequence without gaps.
    pub proposals: Vec<Vote>,
}

impl Signable for NewView {
    const KIND: u8 = kind::NEW_VIEW;
    fn epoch(&self) -> u64 {
        self.epoch.0
    }
    fn body(&self) -> Vec<u8> {
        wire::encode(self)
    }
}

/// A signed value with the digest of what was signed, which names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<T> {
    /// The value and its signature.
    pub signed: Signed<T>,
    name: Digest,
}

impl<T: Signable> Sealed<T> {
    /// Names a signed value.
    #[must_use]
    pub fn new(signed: Signed<T>) -> Self {
        let name = Self::name_of(&signed.value.body());
        Self { signed, name }
    }

    /// What names the value of this encoding.
    #[must_use]
    pub fn name_of(body: &[u8]) -> Digest {
        digest("sealed", &[&[T::KIND], body])
    }

    /// The digest that names it.
    #[must_use]
    pub fn name(&self) -> Digest {
        self.name
    }

    /// What was signed.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.signed.value
    }
}

impl<T: Serialize> Serialize for Sealed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.signed.serialize(serializer)
    }
}

impl<'de, T: Signable + Deserialize<'de>> Deserialize<'de> for Sealed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::new(Signed::deserialize(deserializer)?))
    }
}

/// How far a replica is; unsigned, its sender's word only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its epoch.
    pub epoch: Epoch,
    /// The view it is in or changes to.
    pub view: View,
    /// Whether it votes in that view: false while it changes to it.
    pub active: bool,
    /// h: its stable checkpoint.
    pub stable: Sequence,
    /// The last sequence up to which it knows all decided batches.
    pub decided: Sequence,
    /// The last sequence it executed.
    pub executed: Sequence,
    /// While it changes views: of whom it has a VIEW-CHANGE for `view` or a higher one.
    pub changes: Vec<ReplicaId>,
}

/// A decided batch of the ledger with its proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The proof: which epoch, view and slot decided which digest.
    pub certificate: CommitCertificate,
    /// The batch.
    pub batch: Arc<Batch>,
}

/// The newest votes of the asker that the answering replica knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnVotes {
    /// From the question.
    pub token: u64,
    /// PRE-PREPAREs, PREPAREs and COMMITs, each with its kind; at most three per sequence.
    pub votes: Vec<(u8, Vote)>,
    /// The highest VIEW-CHANGE.
    pub view_change: Option<Arc<Sealed<ViewChange>>>,
    /// The highest NEW-VIEW.
    pub new_view: Option<Arc<Sealed<NewView>>>,
    /// The highest CHECKPOINT.
    pub checkpoint: Option<Signed<CheckpointVote>>,
}

/// What PBFT replicas say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// OSDI'99 §4.2.
    PrePrepare(PrePrepare),
    /// OSDI'99 §4.2.
    Prepare(Vote),
    /// OSDI'99 §4.2.
    Commit(Vote),
    /// OSDI'99 §4.3.
    Checkpoint(Signed<CheckpointVote>),
    /// OSDI'99 §4.4.
    ViewChange(Arc<Sealed<ViewChange>>),
    /// OSDI'99 §4.4.
    NewView(Arc<Sealed<NewView>>),
    /// The sender wants to leave this view, and keeps voting in it until a quorum does.
    Suspect {
        /// The epoch.
        epoch: Epoch,
        /// The view to leave.
        view: View,
    },
    /// How far the sender is.
    Status(Report),
    /// Requests of the sender's clients, for the primary.
    Forward(Vec<Arc<SignedRequest>>),
    /// Asks for a batch that votes name.
    FetchBatch {
        /// Its slot.
        sequence: Sequence,
        /// Its digest.
        digest: Digest,
    },
    /// Answers [`Message::FetchBatch`].
    Body {
        /// Its slot.
        sequence: Sequence,
        /// The batch.
        batch: Arc<Batch>,
    },
    /// Asks for a VIEW-CHANGE that a NEW-VIEW names.
    FetchViewChange {
        /// Its name.
        name: Digest,
    },
    /// Asks for decided batches above this sequence.
    FetchDecided {
        /// The last decided sequence known.
        after: Sequence,
    },
    /// A decided batch.
    Decided(Arc<Decided>),
    /// A stable checkpoint.
    Stable(Arc<CheckpointCertificate>),
    /// How an epoch ended.
    EpochEnd(Arc<EpochEnd>),
    /// The sender asks to vote again.
    Rejoin(Signed<Rejoin>),
    /// Asks for the newest votes of the sender.
    OwnVotesQuery {
        /// Comes back in the answer.
        token: u64,
    },
    /// Answers [`Message::OwnVotesQuery`].
    OwnVotes(Arc<OwnVotes>),
    /// The PRE-PREPARE that the sender accepted, for a replica that voted for another batch.
    Proposed(Vote),
}

/// Batches above this go on the stream of lower priority, bytes.
const INLINE_BYTES_MAX: usize = 256 << 10;

impl Message {
    /// Bytes of the batch in a PRE-PREPARE, the only body that is buffered.
    pub(super) fn body_bytes(&self) -> usize {
        if let Message::PrePrepare(message) = self { message.batch.bytes().len() } else { 0 }
    }

    /// Whether it carries bodies that would hold up votes.
    #[must_use]
    pub(super) fn bulky(&self) -> bool {
        match self {
            Message::PrePrepare(message) => message.batch.bytes().len() > INLINE_BYTES_MAX,
            Message::Forward(requests) => {
                requests.iter().map(|request| request.wire_bytes()).sum::<usize>()
                    > INLINE_BYTES_MAX
            }
            // The answers of a start hold two votes for each slot of the window, and a view's change.
            Message::Body { .. } | Message::Decided(_) | Message::OwnVotes(_) => true,
            Message::Prepare(_)
            | Message::Commit(_)
            | Message::Checkpoint(_)
            | Message::ViewChange(_)
            | Message::NewView(_)
            | Message::Suspect { .. }
            | Message::Status(_)
            | Message::FetchBatch { .. }
            | Message::FetchViewChange { .. }
            | Message::FetchDecided { .. }
            | Message::Stable(_)
            | Message::EpochEnd(_)
            | Message::Rejoin(_)
            | Message::OwnVotesQuery { .. }
            | Message::Proposed(_) => false,
        }
    }
}

/// The first bytes of a digest, for people.
struct Short(Digest);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0.as_bytes()[..4] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Statement { epoch, view, sequence, digest } = self;
        write!(f, "e{epoch} v{view} n{sequence} {}", Short(*digest))
    }
}

impl fmt::Display for ViewChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VIEW-CHANGE e{} v{} h={} P=[", self.epoch, self.view, self.stable)?;
        for (i, certificate) in self.prepared.iter().enumerate() {
            let Statement { view, sequence, digest, .. } = certificate.statement;
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}n{sequence}@v{view}:{}", Short(digest))?;
        }
        write!(f, "]")
    }
}

impl fmt::Display for NewView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NEW-VIEW e{} v{} V=[", self.epoch, self.view)?;
        for (i, (replica, _)) in self.changes.iter().enumerate() {
            write!(f, "{}r{replica}", if i == 0 { "" } else { " " })?;
        }
        write!(f, "] O=[")?;
        for (i, vote) in self.proposals.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}n{}:{}", vote.statement.sequence, Short(vote.statement.digest))?;
        }
        write!(f, "]")
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::PrePrepare(PrePrepare { vote, batch, .. }) => {
                write!(f, "PRE-PREPARE {} requests={}", vote.statement, batch.requests.len())?;
                if batch.checkpoint {
                    write!(f, " marked")?;
                }
                if batch.change.is_some() {
                    write!(f, " change")?;
                }
                Ok(())
            }
            Message::Prepare(vote) => write!(f, "PREPARE {}", vote.statement),
            Message::Commit(vote) => write!(f, "COMMIT {}", vote.statement),
            Message::Checkpoint(vote) => {
                let checkpoint = &vote.value.checkpoint;
                let root = Short(checkpoint.state_root);
                write!(f, "CHECKPOINT e{} n{} {root}", checkpoint.epoch, checkpoint.height)
            }
            Message::ViewChange(message) => write!(f, "{}", message.value()),
            Message::NewView(message) => write!(f, "{}", message.value()),
            Message::Suspect { epoch, view } => write!(f, "SUSPECT e{epoch} v{view}"),
            Message::Status(report) => {
                let Report { epoch, view, active, stable, decided, executed, .. } = report;
                let mode = if *active { "" } else { " changing" };
                write!(f, "STATUS e{epoch} v{view}{mode} h={stable} decided={decided}")?;
                write!(f, " executed={executed}")
            }
            Message::Forward(requests) => write!(f, "FORWARD requests={}", requests.len()),
            Message::FetchBatch { sequence, digest } => {
                write!(f, "FETCH-BATCH n{sequence} {}", Short(*digest))
            }
            Message::Body { sequence, batch } => {
                write!(f, "BODY n{sequence} {}", Short(batch.digest()))
            }
            Message::FetchViewChange { name } => write!(f, "FETCH-VIEW-CHANGE {}", Short(*name)),
            Message::FetchDecided { after } => write!(f, "FETCH-DECIDED after n{after}"),
            Message::Decided(message) => write!(f, "DECIDED {}", message.certificate.statement),
            Message::Stable(certificate) => write!(f, "STABLE n{}", certificate.checkpoint.height),
            Message::EpochEnd(end) => {
                write!(f, "EPOCH-END e{} n{}", end.header.epoch, end.header.height)
            }
            Message::Rejoin(rejoin) => {
                write!(f, "REJOIN e{} r{}", rejoin.value.epoch, rejoin.value.replica)
            }
            Message::OwnVotesQuery { .. } => write!(f, "OWN-VOTES?"),
            Message::OwnVotes(own) => write!(f, "OWN-VOTES votes={}", own.votes.len()),
            Message::Proposed(vote) => write!(f, "PROPOSED {}", vote.statement),
        }
    }
}
