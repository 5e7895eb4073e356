//! Slow work, off the replica and executor threads: checkpoints, supplies, evidence.

use super::Failure;
use super::evidence::EvidenceKeeper;
use super::executor_thread::Task;
use super::inbox::{Inbox, Source};
use super::supplies::Supplies;
use crate::storage::RocksStorage;
use crate::transfer::StateAt;
use crate::transport::{Class, PeerMeshHandle};
use bytes::Bytes;
use conclave_consensus::engine::{Engine, Evidence};
use conclave_consensus::executor::CheckpointJob;
use conclave_consensus::storage::{Storage, StorageError};
use conclave_consensus::types::{ReplicaId, Sequence};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One piece of slow work.
pub(crate) enum Job {
    /// Bring the state trie to a checkpoint and sync the ledger.
    Checkpoint(Box<CheckpointJob>),
    /// Send decided batches to a replica that is behind.
    Supply { to: ReplicaId, after: Sequence },
    /// Keep a proof of misbehaviour.
    Evidence(Box<Evidence>),
}

pub(crate) struct Background<E: Engine> {
    pub inbox: Arc<Inbox<Job>>,
    pub executor: Arc<Inbox<Task>>,
    pub ledger: Arc<RocksStorage>,
    pub supplies: Supplies<RocksStorage>,
    /// Since when the rates of supplies count.
    pub started: Instant,
    pub mesh: PeerMeshHandle,
    pub evidence: EvidenceKeeper,
    pub failure: Arc<Failure>,
    pub engine: PhantomData<fn() -> E>,
}

impl<E: Engine> Background<E> {
    pub(crate) fn run(mut self) {
        let mut taken = Vec::new();
        while self.inbox.drain(Duration::from_secs(3600), 1, &mut taken) {
            for job in taken.drain(..) {
                if let Err(error) = self.carry_out(job) {
                    self.failure.storage(&error);
                    return;
                }
            }
        }
    }

    fn carry_out(&mut self, job: Job) -> Result<(), StorageError> {
        match job {
            Job::Checkpoint(job) => self.checkpoint(&job)?,
            Job::Supply { to, after } => self.supply(to, after)?,
            Job::Evidence(evidence) => self.evidence.keep(*evidence)?,
        }
        Ok(())
    }

    fn checkpoint(&self, job: &CheckpointJob) -> Result<(), StorageError> {
        let Some(done) = job.run(&*self.ledger)? else { return Ok(()) };
        tracing::debug!(height = done.height.0, root = %done.state_root, "made a checkpoint");
        // The trie stands at this checkpoint until the next job runs, on this thread.
        let state = match job.state() {
            Some(tables) => Some(StateAt { trie: self.ledger.snapshot()?, tables: tables.clone() }),
            None => None,
        };
        let task = Task::Checkpointed(Box::new(done), state);
        let _ = self.executor.push(Source::Internal, 0, task);
        Ok(())
    }

    fn supply(&mut self, to: ReplicaId, after: Sequence) -> Result<(), StorageError> {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        for committed in self.supplies.supply(to, after, now_ms)? {
            let message = E::decided(committed);
            self.mesh.send(to, Class::Body, Bytes::from(E::encode(&message)));
        }
        Ok(())
    }
}
