//! The key-value store: what the ledger computes for its users.
//!
//! One request is one atomic [`Transaction`]: all compares hold and `then` runs, or `otherwise`
//! runs. A key has the height that created it, the height that last modified it, and a version
//! that counts modifications since creation, as etcd's keys do.

mod build;
mod store;
#[cfg(test)]
mod tests;

pub use build::prefix_end;
pub use store::{ANSWER_BYTES_MAX, KeyValueStore, OPERATIONS_MAX, RANGE_BYTES_MAX, Stored};

use crate::types::Sequence;
use serde::{Deserialize, Serialize};

/// One atomic transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// All must hold for `then`.
    pub compares: Vec<Compare>,
    /// Runs when all compares hold.
    pub then: Vec<Operation>,
    /// Runs otherwise.
    pub otherwise: Vec<Operation>,
}

/// One condition on one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Which key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// How the key's property (left) relates to the target's (right).
    pub relation: Relation,
    /// Which property, and what it is compared with.
    pub target: Target,
}

/// The relations of a [`Compare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// =
    Equal,
    /// !=
    NotEqual,
    /// <
    Less,
    /// >
    Greater,
}

/// The properties a [`Compare`] can look at. An absent key has revisions and version 0 and no value;
/// a value compare on an absent key holds only for NotEqual.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The value.
    Value(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The height that created the key.
    CreateRevision(u64),
    /// The height that last modified it.
    ModRevision(u64),
    /// Modifications since creation, 1 for a new key.
    Version(u64),
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Sets a key.
    Put {
        /// Which key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
        /// To what.
        #[serde(with = "serde_bytes")]
        value: Vec<u8>,
    },
    /// Reads a key.
    Get {
        /// Which key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
    /// Removes a key.
    Delete {
        /// Which key.
        #[serde(with = "serde_bytes")]
        key: Vec<u8>,
    },
    /// Reads keys in `from..to` in order; results are capped at 1 MiB and `limit`.
    Range {
        /// First key.
        #[serde(with = "serde_bytes")]
        from: Vec<u8>,
        /// End, exclusive; `None` reads to the end.
        to: Option<serde_bytes::ByteBuf>,
        /// Entries at most; 0 means the cap alone.
        limit: u32,
    },
}

/// A key as a read finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Which key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// Its value.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// The height that created it.
    pub create_revision: Sequence,
    /// The height that last modified it.
    pub mod_revision: Sequence,
    /// Modifications since creation, from 1.
    pub version: u64,
}

/// The state machine's answer to a [`Transaction`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It ran.
    Done {
        /// Whether all compares held.
        succeeded: bool,
        /// One per operation that ran, in order.
        results: Vec<OperationResult>,
    },
    /// It changed nothing.
    Refused(crate::client_wire::Refusal),
}

/// What one [`Operation`] found or did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationResult {
    /// Of a Put: the key's new version.
    Put {
        /// Modifications since creation, from 1.
        version: u64,
    },
    /// Of a Get.
    Get(Option<KeyValue>),
    /// Of a Delete: whether the key was there.
    Delete {
        /// Whether the key was there.
        deleted: bool,
    },
    /// Of a Range.
    Range {
        /// What lies in the range, in key order.
        entries: Vec<KeyValue>,
        /// Whether the cap or the limit left entries out.
        more: bool,
    },
}
