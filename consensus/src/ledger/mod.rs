//! What a replica's ledger holds and where: blocks, certificates, and the facts of the instance.
//!
//! The executor alone writes blocks ([`crate::executor`]); checkpoint jobs write the state trie
//! ([`CheckpointJob`]); everybody may read ([`LedgerReader`]). Heights and epochs in keys are big
//! endian, so that keys sort as numbers do. "wire" is the encoding of [`crate::wire`].
//!
//! | table                  | key                       | value                                       |
//! |------------------------|---------------------------|---------------------------------------------|
//! | [`Table::Blocks`]      | height (8)                | [`BlockHeader`], wire                       |
//! | [`Table::Blocks`]      | height (8), 1             | the results in order, wire: request's digest, outcome |
//! | [`Table::Bodies`]      | height (8)                | the batch's encoding                        |
//! | [`Table::Commits`]     | height (8)                | the engine's commit certificate             |
//! | [`Table::Checkpoints`] | `c`, height (8)           | [`CheckpointCertificate`], wire; the newest |
//! | [`Table::Checkpoints`] | `e`, epoch (8)            | [`EpochEnd`] of that epoch, wire; all       |
//! | [`Table::Dirty`]       | first height of the interval (8), height (8) | the block's [`crate::state_trie::DirtyLeaf`]s, wire |
//! | [`Table::Evidence`]    | `aside/`, height (8), part| what [`Table::Blocks`] (0, 1), Bodies (2) and Commits (3) held of a block set aside |
//! | [`Table::Meta`]        | `format`                  | [`FORMAT`] (4, little endian)               |
//! | [`Table::Meta`]        | `cluster`                 | cluster id (32)                             |
//! | [`Table::Meta`]        | `tip`                     | [`TipRecord`], wire                         |
//! | [`Table::Meta`]        | `first`                   | [`FirstBlock`], wire; absent when the chain begins at 1 |
//! | [`Table::Meta`]        | `checkpoint`              | [`crate::message::Checkpoint`] that the state trie stands at, wire |
//! | [`Table::Meta`]        | `epoch`                   | [`crate::engine::NextEpoch`] that the tip began and that is not yet stable, wire |
//! | [`Table::Meta`]        | `pending/`, height (8)    | a checkpoint job that has not ended, wire   |
//! | [`Table::Meta`]        | `folded`                  | height (8) that the trie was brought to beyond the checkpoint |
//! | [`Table::Meta`]        | `diverged`                | [`CheckpointCertificate`] that this ledger differs from, wire |
//!
//! The replicated tables are described where they are written: [`crate::kv`], [`crate::sessions`],
//! [`crate::registry`].

mod checkpoint;
mod fill;
mod reader;
mod verify;

pub use checkpoint::CheckpointJob;
pub(crate) use checkpoint::{PendingCheckpoint, TrieLock, dirty};
pub use fill::{BLOCK_BYTES_MAX, FillError, StoredBlock};
pub use reader::LedgerReader;
pub use verify::{CertificateCheck, Verified, verify};

use crate::message::{
    BlockHeader, BlockReplies, CheckpointCertificate, EpochEnd, ResultEntry, result_leaf,
};
use crate::storage::{Storage, StorageError, Table};
use crate::types::{Epoch, ReplicaId, Sequence, Timestamp};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::merkle::MerkleTree;
use conclave_crypto::signature::Signature;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The format of a ledger that this build writes and reads.
pub const FORMAT: u32 = 1;

/// What one frame of replies holds at most, bytes, unless one answer alone is larger.
const REPLY_BYTES_MAX: usize = 4 << 20;

pub(crate) const META_FORMAT: &[u8] = b"format";
pub(crate) const META_CLUSTER: &[u8] = b"cluster";
pub(crate) const META_TIP: &[u8] = b"tip";
pub(crate) const META_FIRST: &[u8] = b"first";
pub(crate) const META_CHECKPOINT: &[u8] = b"checkpoint";
pub(crate) const META_EPOCH: &[u8] = b"epoch";
pub(crate) const META_PENDING: &[u8] = b"pending/";
pub(crate) const META_FOLDED: &[u8] = b"folded";
pub(crate) const META_DIVERGED: &[u8] = b"diverged";
pub(crate) const ASIDE: &[u8] = b"aside/";
/// The first key above all that start with [`ASIDE`].
pub(crate) const ASIDE_END: &[u8] = b"aside0";

/// Where the ledger stands; written with every block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TipRecord {
    /// The last executed height.
    pub height: Sequence,
    /// Its header's hash; the cluster id at height 0.
    pub header: Digest,
    /// Its time.
    pub timestamp: Timestamp,
    /// The first height after the last checkpoint: what changed since is dirty under this number.
    pub interval: Sequence,
    /// The time of the last checkpoint; 0 before the first.
    pub checkpoint_timestamp: Timestamp,
}

/// Where a chain begins that does not begin at 1: a state was transferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstBlock {
    /// The certificate of the transferred state; the header of its block came with it.
    pub certificate: CheckpointCertificate,
    /// The lowest block from which the chain has no gap up to the tip: the certified one, until
    /// older ones are filled in.
    pub lowest: Sequence,
}

impl FirstBlock {
    /// The height of the transferred state.
    #[must_use]
    pub fn height(&self) -> Sequence {
        self.certificate.checkpoint.height
    }
}

/// The answer to one request of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockResult {
    /// The request's digest.
    pub request: Digest,
    /// The encoding of its [`crate::client_wire::Outcome`].
    #[serde(with = "serde_bytes")]
    pub outcome: Vec<u8>,
}

/// The tree over a block's results.
#[must_use]
pub fn results_tree(results: &[BlockResult]) -> MerkleTree {
    let leaf = |result: &BlockResult| result_leaf(&result.request, &result.outcome);
    MerkleTree::new(results.iter().map(leaf).collect())
}

/// The answers at these positions of a block as frames: all with the same header and attestation,
/// and each of about 4 MiB at most, or of one answer.
///
/// # Panics
/// If there is no such position.
pub(crate) fn replies(
    header: &BlockHeader,
    (replica, attestation): (ReplicaId, Signature),
    results: &[BlockResult],
    tree: &MerkleTree,
    positions: &[usize],
) -> Vec<BlockReplies> {
    let mut frames: Vec<BlockReplies> = Vec::new();
    let mut bytes = usize::MAX;
    for position in positions {
        let BlockResult { request, outcome } = &results[*position];
        let path = tree.path(*position);
        let entry_bytes = 64 + outcome.len() + 32 * path.siblings.len();
        if bytes.saturating_add(entry_bytes) > REPLY_BYTES_MAX {
            let results = Vec::new();
            frames.push(BlockReplies { header: header.clone(), replica, attestation, results });
            bytes = 0;
        }
        bytes += entry_bytes;
        if let Some(frame) = frames.last_mut() {
            frame.results.push(ResultEntry { request: *request, result: outcome.clone(), path });
        }
    }
    frames
}

pub(crate) fn height_key(height: Sequence) -> [u8; 8] {
    height.0.to_be_bytes()
}

pub(crate) fn results_key(height: Sequence) -> [u8; 9] {
    let mut key = [1; 9];
    key[..8].copy_from_slice(&height.0.to_be_bytes());
    key
}

pub(crate) fn certificate_key(height: Sequence) -> [u8; 9] {
    prefixed(b'c', height.0)
}

pub(crate) fn epoch_end_key(epoch: Epoch) -> [u8; 9] {
    prefixed(b'e', epoch.0)
}

fn prefixed(prefix: u8, number: u64) -> [u8; 9] {
    let mut key = [prefix; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

pub(crate) fn pending_key(height: Sequence) -> Vec<u8> {
    [META_PENDING, &height.0.to_be_bytes()].concat()
}

/// One row for each block: rows by path would be an insertion at random for each changed row of the state.
pub(crate) fn dirty_key(interval: Sequence, height: Sequence) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&interval.0.to_be_bytes());
    key[8..].copy_from_slice(&height.0.to_be_bytes());
    key
}

/// Reads and decodes one row.
pub(crate) fn read<T: DeserializeOwned, S: Storage>(
    storage: &S,
    table: Table,
    key: &[u8],
) -> Result<Option<T>, StorageError> {
    storage.get(table, key)?.map(|bytes| parse(table, key, &bytes)).transpose()
}

/// Decodes a row that we wrote. Rows may be larger than a frame, for a block has many results.
pub(crate) fn parse<T: DeserializeOwned>(
    table: Table,
    key: &[u8],
    bytes: &[u8],
) -> Result<T, StorageError> {
    wire::decode_stored(bytes).map_err(|error| damaged(table, key, &error.to_string()))
}

pub(crate) fn damaged(table: Table, key: &[u8], reason: &str) -> StorageError {
    use std::fmt::Write as _;
    let mut location = format!("{}/", table.name());
    for byte in key {
        // Writing to a string cannot fail.
        let _ = write!(location, "{byte:02x}");
    }
    StorageError { operation: "decode", location, reason: reason.to_owned() }
}

/// A block's header, where the ledger has it.
///
/// # Errors
/// When the storage fails.
pub fn header<S: Storage>(
    storage: &S,
    height: Sequence,
) -> Result<Option<BlockHeader>, StorageError> {
    read(storage, Table::Blocks, &height_key(height))
}

/// A block's results, where the ledger has them.
///
/// # Errors
/// When the storage fails.
pub fn results<S: Storage>(
    storage: &S,
    height: Sequence,
) -> Result<Option<Vec<BlockResult>>, StorageError> {
    read(storage, Table::Blocks, &results_key(height))
}

/// The newest stable checkpoint's certificate at or below a height.
///
/// # Errors
/// When the storage fails.
pub fn stable_certificate<S: Storage>(
    storage: &S,
    at_most: Sequence,
) -> Result<Option<CheckpointCertificate>, StorageError> {
    match storage.last(Table::Checkpoints, Some(&certificate_key(at_most.next())))? {
        Some((key, value)) if key.first() == Some(&b'c') => {
            parse(Table::Checkpoints, &key, &value).map(Some)
        }
        _ => Ok(None),
    }
}

/// How the epochs from `from` on ended, in order, at most `limit`.
///
/// # Errors
/// When the storage fails.
pub fn epoch_ends<S: Storage>(
    storage: &S,
    from: Epoch,
    limit: usize,
) -> Result<Vec<EpochEnd>, StorageError> {
    let rows = storage.scan(Table::Checkpoints, &epoch_end_key(from), Some(b"f"), limit)?;
    rows.iter().map(|(key, value)| parse(Table::Checkpoints, key, value)).collect()
}
