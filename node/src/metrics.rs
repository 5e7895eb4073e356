//! The numbers that `/metrics` shows, in Prometheus' text format.

use crate::journal::JournalMetrics;
use conclave_consensus::engine::Reject;
use conclave_consensus::types::ReplicaId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::{AtomicU64, Ordering};

/// Labels of the counters of refused messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerReason {
    peer: u32,
    reason: &'static str,
}

/// Every number of this process.
pub struct Metrics {
    registry: Registry,
    rejected: Family<PeerReason, Counter>,
    /// Requests whose signature failed or that found a full queue.
    pub requests_refused: Counter,
    /// Batches whose signatures were left to others, who did not vouch for them in time.
    pub checked_late: Counter,
    /// Batches executed.
    pub blocks: Counter,
    /// Requests executed, refusals included.
    pub requests: Counter,
    /// What the journal costs.
    pub journal: JournalMetrics,
    /// Protocol messages handed to the transport, a broadcast counting once.
    pub messages_sent: Counter,
    /// Pieces of evidence held.
    pub evidence: Gauge,
    /// Executed height.
    pub height: Gauge,
    /// View in force.
    pub view: Gauge,
    /// Stable checkpoint.
    pub stable: Gauge,
    /// Requests waiting to be ordered.
    pub pending: Gauge,
    /// Peers with a live connection.
    pub peers_up: Gauge,
    /// View changes since start.
    pub view_changes: Gauge,
    cpu_seconds: Counter<f64, AtomicU64>,
    resident: Gauge,
    bytes_sent: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            rejected: Family::default(),
            requests_refused: Counter::default(),
            checked_late: Counter::default(),
            blocks: Counter::default(),
            requests: Counter::default(),
            journal: JournalMetrics::default(),
            messages_sent: Counter::default(),
            evidence: Gauge::default(),
            height: Gauge::default(),
            view: Gauge::default(),
            stable: Gauge::default(),
            pending: Gauge::default(),
            peers_up: Gauge::default(),
            view_changes: Gauge::default(),
            cpu_seconds: Counter::default(),
            resident: Gauge::default(),
            bytes_sent: Gauge::default(),
            registry: Registry::default(),
        };
        metrics.register(registry.sub_registry_with_prefix("conclave"));
        metrics.register_process(&mut registry);
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// What this replica counts.
    fn register(&self, conclave: &mut Registry) {
        let m = self;
        conclave.register(
            "peer_messages_refused",
            "Messages refused, by peer and reason",
            m.rejected.clone(),
        );
        conclave.register(
            "requests_refused",
            "Requests refused before ordering",
            m.requests_refused.clone(),
        );
        conclave.register(
            "batches_checked_late",
            "Batches left to others and then checked here",
            m.checked_late.clone(),
        );
        conclave.register("blocks", "Blocks executed", m.blocks.clone());
        conclave.register("requests", "Requests executed, refusals included", m.requests.clone());
        m.journal.register(conclave);
        conclave.register(
            "messages_sent",
            "Messages sent to peers, a broadcast counting once",
            m.messages_sent.clone(),
        );
        conclave.register("evidence", "Proofs of misbehaviour held", m.evidence.clone());
        conclave.register("height", "Executed height", m.height.clone());
        conclave.register("view", "View in force", m.view.clone());
        conclave.register("stable_checkpoint", "Height of the stable checkpoint", m.stable.clone());
        conclave.register("pending_requests", "Requests waiting to be ordered", m.pending.clone());
        conclave.register("peers_up", "Peers with a live connection", m.peers_up.clone());
        conclave.register("view_changes", "View changes since start", m.view_changes.clone());
        conclave.register("bytes_sent", "Bytes sent to peers and clients", m.bytes_sent.clone());
    }

    /// What every process has, under the names that monitoring expects.
    fn register_process(&self, registry: &mut Registry) {
        let m = self;
        registry.register_with_unit(
            "process_cpu",
            "CPU time of the process, all threads",
            Unit::Seconds,
            m.cpu_seconds.clone(),
        );
        registry.register_with_unit(
            "process_resident_memory",
            "Resident memory",
            Unit::Bytes,
            m.resident.clone(),
        );
    }

    /// A message of this peer was refused.
    pub fn peer_rejected(&self, from: ReplicaId, reason: &Reject) {
        let reason = match reason {
            Reject::Malformed(_) => "malformed",
            Reject::Signature(_) => "signature",
            Reject::Sender => "sender",
            Reject::EpochPast(_) => "epoch_past",
            Reject::EpochFuture(_) => "epoch_future",
            Reject::View => "view",
            Reject::Window => "window",
            Reject::Known => "known",
            Reject::Protocol(_) | Reject::Proven(..) => "protocol",
            Reject::Cap(_) => "cap",
        };
        self.rejected.get_or_create(&PeerReason { peer: u32::from(from.0), reason }).inc();
    }

    /// A message of this peer found its share of a queue full.
    pub fn peer_dropped(&self, from: ReplicaId) {
        self.rejected.get_or_create(&PeerReason { peer: u32::from(from.0), reason: "queue" }).inc();
    }

    /// All metrics as text.
    #[must_use]
    pub fn text(&self, bytes_sent: u64) -> String {
        let process = ProcessUse::now();
        #[expect(clippy::cast_precision_loss, reason = "a metric; 2^53 µs are 285 years")]
        self.cpu_seconds.inc_by((process.cpu_us as f64 / 1e6 - self.cpu_seconds.get()).max(0.0));
        self.resident.set(i64::try_from(process.rss_bytes).unwrap_or(i64::MAX));
        self.bytes_sent.set(i64::try_from(bytes_sent).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// What the process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessUse {
    /// CPU time of all threads, microseconds.
    pub cpu_us: u64,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
}

impl ProcessUse {
    /// Reads /proc; zeros where there is none.
    #[must_use]
    pub fn now() -> Self {
        // /proc's clock ticks are 1/100 s on every Linux that Rust's std supports; sched gives ns.
        let cpu_us = std::fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|stat| {
                let after = stat.rsplit_once(") ")?.1;
                let mut fields = after.split(' ').skip(11);
                let user: u64 = fields.next()?.parse().ok()?;
                let system: u64 = fields.next()?.parse().ok()?;
                Some((user + system) * 10_000)
            })
            .unwrap_or(0);
        let rss_bytes = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| {
                let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
                let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
                Some(kib * 1024)
            })
            .unwrap_or(0);
        Self { cpu_us, rss_bytes }
    }
}

/// Numbers that other threads read without a lock.
#[derive(Debug, Default)]
pub struct Progress {
    /// Executed height.
    pub height: AtomicU64,
    /// The lowest block that the ledger has all of: 1 but for a while after a state transfer.
    pub first_block: AtomicU64,
    /// Time of the last executed block, as agreed.
    pub timestamp: AtomicU64,
}

impl Progress {
    /// Executed height.
    pub fn height(&self) -> u64 {
        self.height.load(Ordering::Relaxed)
    }
}
