//! What a message's sender signed in it, in one shape for all kinds.

use conclave_consensus::membership::Membership;
use conclave_consensus::message::kind;
use conclave_consensus::pbft::certificate::primary;
use conclave_consensus::pbft::message::{Message, Vote};
use conclave_consensus::types::ReplicaId;
use conclave_crypto::digest::Digest;

/// One signed statement of a message's sender: at most one digest may ever be signed for what comes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SignedSlot {
    /// The epoch.
    pub epoch: u64,
    /// The view; 0 for a CHECKPOINT, which belongs to none.
    pub view: u64,
    /// The sequence or height; 0 for VIEW-CHANGE and NEW-VIEW.
    pub sequence: u64,
    /// The signed type, see [`kind`].
    pub kind: u8,
    /// What was signed.
    pub digest: Digest,
}

fn vote(kind: u8, vote: &Vote) -> SignedSlot {
    let statement = vote.statement;
    SignedSlot {
        epoch: statement.epoch.0,
        view: statement.view.0,
        sequence: statement.sequence.0,
        kind,
        digest: statement.digest,
    }
}

/// What the sender of this message signed in it. Messages that pass on what others signed hold nothing of their sender.
#[must_use]
pub fn of(message: &Message, sender: ReplicaId, members: &Membership) -> Option<SignedSlot> {
    match message {
        Message::PrePrepare(message) => Some(vote(kind::PRE_PREPARE, &message.vote)),
        Message::Prepare(signed) => Some(vote(kind::PREPARE, signed)),
        Message::Commit(signed) => Some(vote(kind::COMMIT, signed)),
        Message::Checkpoint(signed) => {
            let checkpoint = &signed.value.checkpoint;
            let digest = conclave_crypto::digest::digest(
                "simulated checkpoint",
                &[checkpoint.header.as_bytes(), checkpoint.state_root.as_bytes()],
            );
            let (epoch, sequence) = (checkpoint.epoch.0, checkpoint.height.0);
            let own = signed.value.replica == sender;
            own.then_some(SignedSlot { epoch, view: 0, sequence, kind: kind::CHECKPOINT, digest })
        }
        Message::ViewChange(sealed) => {
            let (value, digest) = (sealed.value(), sealed.name());
            let (epoch, view) = (value.epoch.0, value.view.0);
            let slot = SignedSlot { epoch, view, sequence: 0, kind: kind::VIEW_CHANGE, digest };
            (value.replica == sender).then_some(slot)
        }
        Message::NewView(sealed) => {
            let (value, digest) = (sealed.value(), sealed.name());
            let (epoch, view) = (value.epoch.0, value.view.0);
            let slot = SignedSlot { epoch, view, sequence: 0, kind: kind::NEW_VIEW, digest };
            let own = value.epoch == members.epoch && primary(members, value.view) == sender;
            own.then_some(slot)
        }
        Message::Proposed(signed) => {
            let statement = signed.statement;
            let own =
                statement.epoch == members.epoch && primary(members, statement.view) == sender;
            own.then(|| vote(kind::PRE_PREPARE, signed))
        }
        Message::Suspect { .. }
        | Message::Status(_)
        | Message::Forward(_)
        | Message::FetchBatch { .. }
        | Message::Body { .. }
        | Message::FetchViewChange { .. }
        | Message::FetchDecided { .. }
        | Message::Decided(_)
        | Message::Stable(_)
        | Message::EpochEnd(_)
        | Message::Rejoin(_)
        | Message::OwnVotesQuery { .. }
        | Message::OwnVotes(_) => None,
    }
}
