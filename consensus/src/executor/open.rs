//! Opening a ledger: its own facts first, then what a kill or a power loss left undone.

use super::{Executor, write_state};
use crate::ledger::{
    self, LedgerReader, META_CLUSTER, META_DIVERGED, META_EPOCH, META_FORMAT, META_TIP, TipRecord,
    TrieLock, dirty_key, read,
};
use crate::membership::Genesis;
use crate::registry::Registry;
use crate::sessions::SessionTable;
use crate::state_machine::StateMachine;
use crate::state_sync::Swap;
use crate::storage::{Durability, Storage, StorageError, Table, WriteBatch};
use crate::types::{ReplicaId, Sequence, Timestamp};
use crate::view::Overlay;
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::mark;
use std::sync::Arc;

/// Why a ledger cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It belongs to another cluster.
    #[error(
        "this ledger belongs to cluster {found}, not to {expected}; check the genesis file and the data directory"
    )]
    OtherCluster {
        /// Whose it is.
        found: Digest,
        /// Whose it should be.
        expected: Digest,
    },
    /// A newer version wrote it.
    #[error(
        "this ledger has format {found}, and this version reads formats up to {supported}; install a newer version"
    )]
    NewerFormat {
        /// What it has.
        found: u32,
        /// What this version reads.
        supported: u32,
    },
    /// The disk failed or holds something else than was written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl<S: Storage, M: StateMachine> Executor<S, M> {
    /// Opens the ledger of this cluster, and begins it at height 0 when the storage is empty.
    ///
    /// Everything found is made durable first: a process that was killed may have left rows that
    /// are visible and not yet on the disk, and what the tip says must hold after a power loss.
    ///
    /// # Errors
    /// [`OpenError`] when the ledger is another cluster's, too new, or unreadable.
    pub fn open(
        storage: Arc<S>,
        machine: M,
        genesis: &Genesis,
        replica: ReplicaId,
        key: Arc<SecretKey>,
    ) -> Result<Self, OpenError> {
        let cluster = genesis.cluster();
        if begun(&*storage, &cluster)? {
            storage.sync()?;
        } else {
            begin(&*storage, genesis, &cluster)?;
        }
        let tip = read(&*storage, Table::Meta, META_TIP)?
            .ok_or_else(|| ledger::damaged(Table::Meta, META_TIP, "the tip is missing"))?;
        let diverged = read(&*storage, Table::Meta, META_DIVERGED)?;
        let epoch = read(&*storage, Table::Meta, META_EPOCH)?;
        let interrupted = Swap::interrupted(storage.snapshot()?)?;
        // In the middle of a swap the tables are no state: the registry comes with its end.
        let registry = match &interrupted {
            Some(_) => Registry::of_genesis(genesis)?,
            None => Registry::load(&*storage)?,
        };
        let mut executor = Self {
            machine,
            limits: genesis.limits.clone(),
            cluster,
            reader: LedgerReader::new(storage.clone(), cluster, replica, key),
            tip,
            epoch,
            registry,
            sessions: SessionTable::default(),
            trie: TrieLock::default(),
            diverged,
            broken: false,
            storage,
        };
        if let Some(swap) = interrupted {
            mark!("a swap of state that was cut off goes on");
            executor.swap(swap)?;
        }
        if let Some(certificate) = executor.diverged.clone() {
            mark!("blocks that differ were being set aside at the start");
            // The power may have failed while blocks were set aside.
            executor.set_aside(&certificate)?;
        }
        Ok(executor)
    }
}

/// Whether the storage holds a ledger, and this cluster's.
fn begun<S: Storage>(storage: &S, cluster: &Digest) -> Result<bool, OpenError> {
    let Some(found) = read::<u32, S>(storage, Table::Meta, META_FORMAT)? else {
        return Ok(false);
    };
    if found > ledger::FORMAT {
        return Err(OpenError::NewerFormat { found, supported: ledger::FORMAT });
    }
    match read::<Digest, S>(storage, Table::Meta, META_CLUSTER)? {
        Some(found) if found == *cluster => Ok(true),
        Some(found) => Err(OpenError::OtherCluster { found, expected: *cluster }),
        None => Err(ledger::damaged(Table::Meta, META_CLUSTER, "the cluster is missing").into()),
    }
}

/// Writes the state that a cluster starts with.
fn begin<S: Storage>(storage: &S, genesis: &Genesis, cluster: &Digest) -> Result<(), StorageError> {
    let tip = TipRecord {
        height: Sequence(0),
        header: *cluster,
        timestamp: Timestamp(0),
        interval: Sequence(1),
        checkpoint_timestamp: Timestamp(0),
    };
    let mut write = WriteBatch::default();
    write.put(Table::Meta, META_FORMAT, wire::encode(&ledger::FORMAT));
    write.put(Table::Meta, META_CLUSTER, wire::encode(cluster));
    write.put(Table::Meta, META_TIP, wire::encode(&tip));
    let mut overlay = Overlay::default();
    for (key, value) in Registry::genesis_rows(genesis) {
        overlay.set(Table::Registry, key, Some(value));
    }
    write_state(&mut write, dirty_key(tip.interval, tip.height), overlay);
    storage.write(write, Durability::Synced)
}
