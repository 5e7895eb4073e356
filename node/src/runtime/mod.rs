//! The threads of a node and what they share.
//!
//! | thread      | owns                                   | waits for          |
//! |-------------|----------------------------------------|--------------------|
//! | transport   | the QUIC endpoints                     | sockets            |
//! | verify-N    | nothing; decodes and verifies          | its queue          |
//! | replica     | the engine                             | its queue, ticks   |
//! | journal     | the journal                            | the disk           |
//! | executor    | the ledger                             | its queue          |
//! | background  | checkpoints, supplies, evidence        | its queue, the disk|
//! | desk        | answers to clients' questions          | questions, its pace|
//! | http        | its listener                           | sockets            |
//!
//! All queues are bounded: peers' and clients' shares by `inbox::Quota`, internal ones by the
//! window of the protocol.

pub(crate) mod background;
pub(crate) mod desk;
pub(crate) mod door;
pub(crate) mod event;
pub(crate) mod evidence;
pub(crate) mod executor_thread;
pub(crate) mod gateway;
pub(crate) mod inbox;
pub(crate) mod recent;
pub(crate) mod replica_thread;
pub(crate) mod routes;
pub(crate) mod supplies;
pub(crate) mod verify;

use crate::metrics::{Metrics, ProcessUse, Progress};
use crate::transport::Patience;
use conclave_consensus::client_wire::{ACCUSATIONS_MAX, NodeStatus};
use conclave_consensus::engine::EngineStatus;
use conclave_consensus::evidence::Accusation;
use conclave_consensus::storage::StorageError;
use conclave_consensus::types::{ReplicaId, Sequence};
use recent::Recent;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Why a run of the node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// The journal is proven rolled back; the next start asks to rejoin.
    RolledBack(String),
    /// The storage failed; what the disk holds is unknown.
    Storage(String),
    /// More than f faults are proven.
    Halted(String),
}

/// Where any thread reports what ends the run, and where the run waits for it.
#[derive(Default)]
pub struct Failure {
    ended: Mutex<Option<Ended>>,
    changed: Condvar,
    diverged: AtomicU64,
}

impl Failure {
    /// Ends the run; the first report counts.
    pub fn end(&self, ended: Ended) {
        let mut slot = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(ended);
        }
        drop(slot);
        self.changed.notify_all();
    }

    /// The storage failed.
    pub fn storage(&self, error: &StorageError) {
        tracing::error!(%error, "the storage failed; this replica stops");
        self.end(Ended::Storage(error.to_string()));
    }

    /// The journal is proven rolled back.
    pub fn rolled_back(&self, reason: String) {
        tracing::error!(%reason, "the journal was rolled back; this replica asks to rejoin");
        self.end(Ended::RolledBack(reason));
    }

    /// More than f faults are proven.
    pub fn halt(&self, reason: String) {
        tracing::error!(%reason, "more than f replicas are proven faulty; this replica halts");
        self.end(Ended::Halted(reason));
    }

    /// The ledger differs from the certified state at this height.
    pub fn diverged(&self, height: Sequence) {
        self.diverged.store(height.0.max(1), Ordering::Relaxed);
    }

    /// The certified state is in place.
    pub fn recovered(&self) {
        self.diverged.store(0, Ordering::Relaxed);
    }

    /// To be kept by a thread of this name: its panic ends the run instead of leaving it half alive.
    pub(crate) fn watch(self: &Arc<Self>, thread: &str) -> Watch {
        Watch { failure: self.clone(), thread: thread.to_owned() }
    }

    /// Waits for the end of the run.
    #[must_use]
    pub fn wait(&self) -> Ended {
        let mut slot: MutexGuard<'_, Option<Ended>> =
            self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(ended) = &*slot {
                return ended.clone();
            }
            slot = self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Reports the panic of the thread that drops it.
pub(crate) struct Watch {
    failure: Arc<Failure>,
    thread: String,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.failure.end(Ended::Storage(format!("the {} thread panicked", self.thread)));
        }
    }
}

/// What people, metrics and clients may see of a running node.
pub struct Shared {
    /// This replica.
    pub replica: ReplicaId,
    /// Who runs it.
    pub organization: String,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Executed height, without a lock.
    pub progress: Progress,
    /// The engine's status as of the last tick.
    pub status: Arc<Mutex<EngineStatus>>,
    /// What the evidence held here accuses of, in order.
    pub accusations: Mutex<Vec<Accusation>>,
    /// Organizations by replica, to name the accused.
    pub organizations: BTreeMap<ReplicaId, String>,
    /// Bytes sent, asked of the transport.
    pub bytes_sent: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Which clients are listened to.
    pub patience: Arc<Patience>,
    /// What clients sent lately.
    pub(crate) recent: Recent,
    /// What the process used, and when that was asked.
    pub(crate) used: Mutex<Option<(Instant, ProcessUse)>>,
    /// What ended or hampers the run.
    pub failure: Arc<Failure>,
}

/// Blocks that a replica may be behind and still call itself ready.
const READY_LAG_MAX: u64 = 64;

/// What the process used is asked of the system no more often.
const USE_AGE_MAX: Duration = Duration::from_millis(100);

impl Shared {
    fn engine(&self) -> EngineStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this replica lost its votes and may sign nothing but its Rejoin.
    #[must_use]
    pub fn rejoining(&self) -> bool {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).role == "rejoining"
    }

    /// Why this node is not ready, in words; `None` when it is.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let engine = self.engine();
        let diverged = self.failure.diverged.load(Ordering::Relaxed);
        if diverged > 0 {
            return Some(format!(
                "this ledger differs from the certified state at height {diverged}; fetching the certified state"
            ));
        }
        if !engine.normal {
            return Some(format!("the replica is {} and casts no votes yet", engine.role));
        }
        let height = self.progress.height();
        if engine.proven.0 > height + READY_LAG_MAX {
            return Some(format!("catching up: at height {height} of {}", engine.proven));
        }
        None
    }

    /// What the evidence held here accuses of.
    #[must_use]
    pub fn accusations(&self) -> Vec<Accusation> {
        self.accusations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One more proof is held.
    pub fn accuse(&self, accusation: Accusation) {
        let mut held = self.accusations.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(accusation);
        self.metrics.evidence.set(i64::try_from(held.len()).unwrap_or(i64::MAX));
    }

    /// `/metrics`.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        self.metrics.text((self.bytes_sent)())
    }

    /// What the process used a moment ago: to ask costs more than all else that people are shown.
    fn process_use(&self) -> ProcessUse {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        match &*used {
            Some((at, process)) if at.elapsed() < USE_AGE_MAX => *process,
            _ => used.insert((Instant::now(), ProcessUse::now())).1,
        }
    }

    /// What the client endpoint answers.
    #[must_use]
    pub fn node_status(&self) -> NodeStatus {
        let process = self.process_use();
        let accusations = self.accusations();
        NodeStatus {
            replica: self.replica,
            organization: self.organization.clone(),
            engine: self.engine(),
            height: Sequence(self.progress.height()),
            peers_up: u32::try_from(self.metrics.peers_up.get()).unwrap_or(0),
            version: env!("CARGO_PKG_VERSION").into(),
            cpu_us: process.cpu_us,
            rss_bytes: process.rss_bytes,
            fsyncs: self.metrics.journal.syncs.get(),
            bytes_sent: (self.bytes_sent)(),
            evidence: accusations.len() as u64,
            accusations: accusations.into_iter().take(ACCUSATIONS_MAX).collect(),
        }
    }

    /// `/status`.
    #[must_use]
    pub fn status_json(&self) -> serde_json::Value {
        let status = self.node_status();
        let lag = status.engine.proven.0.saturating_sub(status.height.0);
        let accused: Vec<_> = status
            .accusations
            .iter()
            .map(|accusation| {
                serde_json::json!({
                    "replica": accusation.culprit.0,
                    "organization": self.organizations.get(&accusation.culprit),
                    "statement": accusation.to_string(),
                    "file": accusation.file_name(),
                })
            })
            .collect();
        serde_json::json!({
            "replica": status.replica.0,
            "organization": status.organization,
            "role": status.engine.role,
            "epoch": status.engine.epoch.0,
            "view": status.engine.view,
            "primary": status.engine.primary.map(|p| p.0),
            "height": status.height.0,
            "first_block": self.progress.first_block.load(Ordering::Relaxed),
            "decided": status.engine.decided.0,
            "checkpoint": status.engine.stable.0,
            "lag": lag,
            "pending": status.engine.pending,
            "peers_up": status.peers_up,
            "view_changes": status.engine.view_changes,
            "evidence": status.evidence,
            "accused": accused,
            "fsyncs": status.fsyncs,
            "cpu_us": status.cpu_us,
            "rss_bytes": status.rss_bytes,
            "bytes_sent": status.bytes_sent,
            "version": status.version,
            "ready": self.not_ready().is_none(),
            "not_ready": self.not_ready(),
        })
    }
}
