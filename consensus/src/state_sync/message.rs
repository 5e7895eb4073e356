//! What replicas say to each other about certified state, and about the blocks below it.

use crate::epoch_chain::{ChainError, MemberKeys};
use crate::message::{BlockHeader, CheckpointCertificate};
use crate::state_trie::Position;
use crate::types::Sequence;
use crate::wire::{self, WireError};
use conclave_crypto::digest::Digest;
use conclave_crypto::mistake;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Nodes or pages in one request.
pub const WANTS_MAX: usize = 64;

/// A reply stops growing once it holds this many bytes; one row may follow.
pub const TRANSFER_BYTES_MAX: usize = 1 << 20;

/// Blocks in one answer: what the asker writes at once.
pub const BLOCKS_MAX: usize = 32;

/// Bytes of one [`TransferMessage::Part`].
pub const PART_BYTES_MAX: usize = 4 << 20;

/// A certified state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferTarget {
    /// The block after which the state is meant.
    pub header: BlockHeader,
    /// A quorum's CHECKPOINTs at it.
    pub certificate: CheckpointCertificate,
}

impl TransferTarget {
    /// The height of the state.
    #[must_use]
    pub fn height(&self) -> Sequence {
        self.header.height
    }

    /// The certified root.
    #[must_use]
    pub fn state_root(&self) -> Digest {
        self.certificate.checkpoint.state_root
    }

    /// Whether these members certify it; `members` are those of the header's epoch.
    ///
    /// # Errors
    /// [`ChainError`] that says what fails.
    pub fn verify(&self, members: &MemberKeys, cluster: &Digest) -> Result<(), ChainError> {
        let checkpoint = &self.certificate.checkpoint;
        if self.header.cluster != *cluster {
            return Err(ChainError::Cluster);
        }
        if checkpoint.header != self.header.hash()
            || checkpoint.height != self.header.height
            || checkpoint.epoch != self.header.epoch
        {
            return Err(ChainError::Header(checkpoint.height));
        }
        if mistake!("target-from-a-claim") {
            return Ok(());
        }
        members.verify_certificate(&self.certificate, cluster)
    }
}

/// One node of the trie that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Where it lies.
    pub position: Position,
    /// Whether the node itself is wanted, or only rows of it.
    pub node: bool,
    /// If it is a page: the leaves whose values are wanted, bit i for the i-th.
    pub values: u16,
}

/// Asks for parts of a certified state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRequest {
    /// Comes back in the answer.
    pub id: u64,
    /// The height of the state.
    pub height: Sequence,
    /// 1 to [`WANTS_MAX`] parts.
    pub wants: Vec<Want>,
}

/// The answer to one [`Want`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The node's encoding, when it was asked for.
    pub node: Option<ByteBuf>,
    /// Values by index of the leaf, ascending; fewer than asked where the reply is full.
    pub values: Vec<(u8, ByteBuf)>,
}

/// State transfer on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferMessage {
    /// Which certified state do you serve?
    AskTarget,
    /// The newest certified state of the sender; none when it has none yet.
    Target(Option<Box<TransferTarget>>),
    /// Parts, please.
    Request(TransferRequest),
    /// Answers to the first wants of a request, in their order.
    Chunk {
        /// Of the request.
        id: u64,
        /// At least one, at most as many as there were wants.
        items: Vec<Item>,
    },
    /// The sender does not serve that state, or has not those blocks, or not any more.
    Unavailable {
        /// Of the request.
        id: u64,
    },
    /// The sender has served as much as it may for now: ask another, or again in a moment.
    Busy {
        /// Of the request.
        id: u64,
    },
    /// The blocks from this one downwards, please.
    AskBlocks {
        /// Comes back in the answer.
        id: u64,
        /// The highest that is wanted.
        at: Sequence,
        /// Bytes of that block's encoding which the asker has already.
        offset: u64,
    },
    /// Whole blocks, the highest first, each the child of the next.
    Blocks {
        /// Of the request.
        id: u64,
        /// 1 to [`BLOCKS_MAX`] encodings of [`StoredBlock`](crate::ledger::StoredBlock).
        blocks: Vec<ByteBuf>,
    },
    /// The next bytes of a block that is too large for one answer.
    Part {
        /// Of the request.
        id: u64,
        /// Bytes of its whole encoding.
        total: u64,
        /// Those from the asked offset on; at least one.
        bytes: ByteBuf,
    },
}

impl TransferMessage {
    /// The canonical encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Decodes and checks the caps.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are no message or a list is longer than allowed.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let message: Self = wire::decode(bytes, wire::FRAME_BYTES_MAX)?;
        let length = match &message {
            Self::Request(request) => request.wants.len(),
            Self::Chunk { items, .. } => items.len(),
            Self::Blocks { blocks, .. } => blocks.len(),
            Self::Part { bytes, .. } => bytes.len().min(1),
            Self::AskTarget
            | Self::Target(_)
            | Self::Unavailable { .. }
            | Self::Busy { .. }
            | Self::AskBlocks { .. } => 1,
        };
        let most = if matches!(message, Self::Blocks { .. }) { BLOCKS_MAX } else { WANTS_MAX };
        if length == 0 || length > most {
            return Err(WireError::Malformed(format!("the list has 1 to {most} entries")));
        }
        Ok(message)
    }

    /// Whether it carries state, and belongs on the lower-priority stream.
    #[must_use]
    pub fn bulky(&self) -> bool {
        matches!(self, Self::Chunk { .. } | Self::Blocks { .. } | Self::Part { .. })
    }
}
