//! What reaches the replica thread.

use conclave_consensus::engine::{Checkpointed, Evidence, Input};
use conclave_consensus::message::{CheckpointCertificate, SignedRequest};
use conclave_consensus::replica::WriteNumber;
use conclave_consensus::types::{Epoch, Sequence};
use std::sync::Arc;

/// One event of the replica thread.
#[derive(Debug)]
pub(crate) enum Event<M> {
    /// A decoded message of a peer.
    Input(Input<M>),
    /// A verified request of a client.
    Request(Arc<SignedRequest>),
    /// The journal holds every write up to this one.
    Written(WriteNumber),
    /// The ledger executed up to this height.
    Executed(Sequence),
    /// The ledger's disk holds a checkpoint.
    Checkpointed(Checkpointed),
    /// State transfer put a certified state in place, above which this epoch decides.
    Installed(CheckpointCertificate, Epoch),
    /// Nobody serves such a state; the ledger goes on where it stood.
    Unserved,
    /// A certificate of a stable checkpoint is durable: the journal may be cut.
    StableStored(Sequence),
    /// Decoding a peer's message proved its signer faulty.
    Evidence(Box<Evidence>),
    /// Stop.
    Stop {
        /// Journal the engine's last word; not after a failure, when it may not be true.
        clean: bool,
    },
}
