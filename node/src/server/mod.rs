//! One node, from its home directory to a running replica and back to a clean stop.
//!
//! [`run`] takes the ports, opens ledger and journal, recovers the engine, starts the threads, and
//! waits for the end. A replica whose journal is lost or proven rolled back starts again at once with
//! a new journal that holds nothing but its wish to rejoin.
//!
//! Reading order: `opening` (ports, ledger, journal), `threads` (their start and their end),
//! `endpoints` (what the transport is told and where its events go), `parts` (each thread's share).

mod endpoints;
mod error;
mod opening;
mod parts;
mod thread;
mod threads;

pub use error::NodeError;

use crate::http;
use crate::metrics::Metrics;
use crate::runtime::replica_thread::wall;
use crate::runtime::{Ended, Failure};
use crate::storage::SharedResources;
use conclave_config::Protocol;
use conclave_config::node_config::NodeHome;
use conclave_consensus::engine::{Effect, Engine, Record, Slot};
use conclave_consensus::executor::Executor;
use conclave_consensus::kv::KeyValueStore;
use conclave_consensus::membership::Genesis;
use conclave_consensus::message::LedgerTip;
use conclave_consensus::types::{ReplicaId, Timestamp};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use opening::Ports;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use threads::{Start, Threads};

/// Asks a running node to stop, from any thread.
#[derive(Clone, Default)]
pub struct Shutdown(Arc<Mutex<(bool, Option<Arc<Failure>>)>>);

impl Shutdown {
    /// Asks for a clean stop; asking again changes nothing.
    pub fn request(&self) {
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        slot.0 = true;
        if let Some(failure) = &slot.1 {
            failure.end(Ended::Stopped);
        }
    }

    fn watch(&self, failure: &Arc<Failure>) {
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if slot.0 {
            failure.end(Ended::Stopped);
        }
        slot.1 = Some(failure.clone());
    }
}

/// What an engine starts from.
pub struct Recovery {
    /// Which replica it is.
    pub id: ReplicaId,
    /// Its private key.
    pub key: Arc<SecretKey>,
    /// What all agreed on.
    pub genesis: Arc<Genesis>,
    /// For the engine's own randomness.
    pub seed: u64,
    /// The journal.
    pub records: Vec<(Slot, Vec<u8>)>,
    /// Where the ledger ends.
    pub tip: LedgerTip,
    /// Wall time.
    pub now: Timestamp,
}

/// An engine and what must be done first, or why it cannot start.
pub type Recovered<E> = Result<(E, Vec<Effect<<E as Engine>::Message>>), Unrecoverable>;

/// Why an engine cannot start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unrecoverable {
    /// The journal is not one that this ledger can go on with; the replica can ask to rejoin.
    Journal(String),
    /// Not even with a new journal.
    Ledger(String),
}

/// Where nobody says that a new journal would help, the old one is kept.
impl From<String> for Unrecoverable {
    fn from(reason: String) -> Self {
        Self::Ledger(reason)
    }
}

impl From<&str> for Unrecoverable {
    fn from(reason: &str) -> Self {
        Self::Ledger(reason.to_owned())
    }
}

/// How an engine comes into being. Whoever chooses the engine gives these, so that only the choice
/// names it.
#[derive(Clone, Copy)]
pub struct EngineStart<E: Engine> {
    /// What is written into the journal that replaces a lost one; the nonce is drawn anew each time.
    pub rejoin_marker: fn(Digest) -> Record,
    /// The engine after a start.
    pub recover: fn(Recovery) -> Recovered<E>,
}

/// Runs the node of this home until it is asked to stop or cannot go on.
///
/// # Errors
/// [`NodeError`].
pub fn run<E: Engine + 'static>(
    home: NodeHome,
    shutdown: &Shutdown,
    start: EngineStart<E>,
) -> Result<(), NodeError> {
    let node = Node::new(home);
    let mut rolled_back = None;
    let mut ports = node.bind()?;
    node.serve_http()?;
    loop {
        match node.run_once(ports, shutdown, rolled_back.take(), &start)? {
            Ended::Stopped => return Ok(()),
            Ended::RolledBack(reason) => rolled_back = Some(reason),
            Ended::Storage(reason) => return Err(NodeError::DiskFailed(reason)),
            Ended::Halted(reason) => return Err(NodeError::Halted(reason)),
        }
        ports = node.bind()?;
    }
}

/// What stays the same when a rolled-back replica starts again.
struct Node {
    id: ReplicaId,
    organization: String,
    genesis: Arc<Genesis>,
    cluster: Digest,
    protocol: Protocol,
    key: Arc<SecretKey>,
    data: PathBuf,
    resources: SharedResources,
    listen: std::net::SocketAddr,
    client_listen: std::net::SocketAddr,
    metrics: Arc<Metrics>,
    http: Option<std::net::SocketAddr>,
    /// The present run, for HTTP, which outlives a run.
    shown: http::Shown,
}

impl Node {
    fn new(home: NodeHome) -> Self {
        Self {
            id: home.member.id,
            organization: home.member.organization.clone(),
            genesis: Arc::new(home.genesis),
            cluster: home.cluster,
            protocol: home.protocol,
            key: Arc::new(home.key),
            data: home.config.data.clone(),
            resources: SharedResources::new(
                home.config.block_cache_mb,
                home.config.write_buffer_mb,
            ),
            listen: home.listen_address,
            client_listen: home.client_listen_address,
            metrics: Arc::new(Metrics::default()),
            http: home.config.http_address,
            shown: http::Shown::default(),
        }
    }

    fn run_once<E: Engine + 'static>(
        &self,
        ports: Ports,
        shutdown: &Shutdown,
        rolled_back: Option<String>,
        start: &EngineStart<E>,
    ) -> Result<Ended, NodeError> {
        let failure = Arc::new(Failure::default());
        shutdown.watch(&failure);
        let distrusted = rolled_back.is_some();
        let mut ledger = self.open_ledger()?;
        let recorded = ledger.recorded_journal_number()?;
        let (journal, records) = self.open_journal(recorded, rolled_back, start.rejoin_marker)?;
        ledger.record_journal_number(journal.durable_number());
        let ledger = Arc::new(ledger);
        let executor = Executor::open(
            ledger.clone(),
            KeyValueStore,
            &self.genesis,
            self.id,
            self.key.clone(),
        )?;
        let recovery = Recovery {
            id: self.id,
            key: self.key.clone(),
            genesis: self.genesis.clone(),
            seed: rand::random(),
            records,
            tip: executor.tip()?,
            now: wall(),
        };
        let (engine, recovered) = match (start.recover)(recovery) {
            Ok(recovered) => recovered,
            // As when it lies in a directory that was lost: once, for a new journal can be recovered from.
            Err(Unrecoverable::Journal(reason)) if !distrusted => {
                return Ok(Ended::RolledBack(reason));
            }
            Err(Unrecoverable::Journal(reason) | Unrecoverable::Ledger(reason)) => {
                return Err(NodeError::Recover(reason));
            }
        };
        tracing::info!(height = executor.height().0, engine = %engine, "recovered");
        let start = Start { ports, engine, recovered, executor, ledger: ledger.clone(), journal };
        let threads = Threads::start(self, start, &failure)?;
        let ended = failure.wait();
        tracing::info!(?ended, "stopping");
        let stopped = threads.stop(matches!(ended, Ended::Stopped));
        self.shown.show(None);
        // What ended the run says more than which thread did not survive it.
        if !matches!(ended, Ended::Storage(_)) {
            stopped?;
            ledger.flush()?;
        }
        Ok(ended)
    }
}
