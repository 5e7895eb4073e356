//! One node, from its home directory to a running replica and back to a clean stop.
//!
//! [`run`] takes the ports, opens ledger and journal, recovers the engine, starts the threads, and waits for the end.
//! A replica whose journal is lost or proven rolled back starts again at once with a new journal
//! that holds nothing but its wish to rejoin.

use crate::http;
use crate::journal::{
    Journal, JournalError, JournalMetrics, JournalThread, Records, abort_process,
};
use crate::metrics::{Metrics, Progress};
use crate::runtime::background::{Background, Job};
use crate::runtime::event::Event;
use crate::runtime::executor_thread::{ExecutorThread, Task};
use crate::runtime::gateway::Gateway;
use crate::runtime::inbox::{Inbox, Quota, Source};
use crate::runtime::replica_thread::{ReplicaThread, wall};
use crate::runtime::routes::{ConnectionId, Routes};
use crate::runtime::verify::Verify;
use crate::runtime::{Ended, Failure, Shared};
use crate::storage::{Kind, OpenError, RocksStorage, SharedResources};
use crate::transfer::Transfer;
use crate::transport::{
    Class, ClientEndpoint, ClientEndpointConfig, ClientEndpointHandle, ClientEvent, ClientLimits,
    Peer, PeerEvent, PeerLimits, PeerMesh, PeerMeshConfig, PeerMeshHandle, Port, TransportError,
    TransportThread,
};
use conclave_config::ExitCode;
use conclave_config::node_config::NodeHome;
use conclave_consensus::engine::{Effect, Engine, EngineStatus, Input, Record, Slot};
use conclave_consensus::epoch_chain::MemberKeys;
use conclave_consensus::executor::{Executor, OpenError as LedgerError};
use conclave_consensus::kv::KeyValueStore;
use conclave_consensus::membership::Genesis;
use conclave_consensus::message::LedgerTip;
use conclave_consensus::replica::Replica;
use conclave_consensus::storage::StorageError;
use conclave_consensus::types::{ReplicaId, Timestamp};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

/// Verifying threads; the transport's thread verifies small votes itself while they are idle.
const VERIFY_THREADS: usize = 1;

/// Of each peer, and of all clients together, in front of the verify pool.
const VERIFY_QUOTA: Quota = Quota { items: 8192, bytes: 32 << 20 };

/// Of each peer, and of all clients together, in front of the replica thread.
const REPLICA_QUOTA: Quota = Quota { items: 8192, bytes: 32 << 20 };

/// Of each peer, in front of the background thread.
const BACKGROUND_QUOTA: Quota = Quota { items: 2, bytes: 2 };

/// Why a node did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The journal cannot be used, and not because it is lost.
    #[error(transparent)]
    Journal(JournalError),
    /// The ledger is not this cluster's, or of a newer format.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The journal's records cannot be understood.
    #[error("{0}")]
    Recover(String),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The sockets cannot be bound.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// HTTP cannot be served.
    #[error("cannot serve HTTP on {address}: {source}; choose another http_address in node.toml")]
    Http {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The system gives no thread, file or randomness.
    #[error("the system refuses: {0}")]
    System(#[from] std::io::Error),
    /// The disk failed while the node ran.
    #[error("the storage failed while running: {0}; check the disk, then start again")]
    DiskFailed(String),
    /// More than f faults are proven.
    #[error("more than f replicas are proven faulty: {0}; the operators have to decide together")]
    Halted(String),
}

impl NodeError {
    /// What the shell sees.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            NodeError::Open(error) => open_code(error),
            NodeError::Journal(JournalError::Open(error)) => open_code(error),
            NodeError::Ledger(LedgerError::Storage(_)) => ExitCode::Io,
            NodeError::Ledger(_) | NodeError::Recover(_) => ExitCode::InvalidInput,
            NodeError::Halted(_) => ExitCode::Interrupted,
            NodeError::Journal(_)
            | NodeError::Storage(_)
            | NodeError::Transport(_)
            | NodeError::Http { .. }
            | NodeError::System(_)
            | NodeError::DiskFailed(_) => ExitCode::Io,
        }
    }
}

fn open_code(error: &OpenError) -> ExitCode {
    match error {
        OpenError::OtherCluster { .. } | OpenError::NewerFormat { .. } => ExitCode::InvalidInput,
        OpenError::Missing { .. }
        | OpenError::Exists { .. }
        | OpenError::Corrupt { .. }
        | OpenError::Locked { .. }
        | OpenError::Io { .. } => ExitCode::Io,
    }
}

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
pub type Recovered<E> = Result<(E, Vec<Effect<<E as Engine>::Message>>), String>;

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

/// The UDP ports of one run, taken before anything else happens in it: a port in use then leaves
/// nothing behind and nothing running.
struct Ports {
    peers: Port,
    clients: Port,
}

/// What stays the same when a rolled-back replica starts again.
struct Node {
    id: ReplicaId,
    organization: String,
    genesis: Arc<Genesis>,
    cluster: Digest,
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

    /// Takes the ports of one run.
    fn bind(&self) -> Result<Ports, NodeError> {
        Ok(Ports { peers: Port::bind(self.listen)?, clients: Port::bind(self.client_listen)? })
    }

    /// Serves HTTP until the process ends, which may be many runs.
    fn serve_http(&self) -> Result<(), NodeError> {
        let Some(address) = self.http else { return Ok(()) };
        TcpListener::bind(address)
            .and_then(|listener| http::serve(listener, self.shown.clone()))
            .map_err(|source| NodeError::Http { address, source })
    }

    fn open_ledger(&self) -> Result<RocksStorage, NodeError> {
        let path = Kind::Ledger.directory(&self.data);
        match RocksStorage::open(Kind::Ledger, &path, &self.cluster, &self.resources) {
            Err(OpenError::Missing { .. }) => {
                self.refuse_foreign_journal()?;
                tracing::info!(path = %path.display(), "there is no ledger here yet; it begins at genesis");
                Ok(RocksStorage::create(Kind::Ledger, &path, &self.cluster, &self.resources)?)
            }
            other => Ok(other?),
        }
    }

    /// Nothing is begun for a cluster that the journal does not belong to.
    fn refuse_foreign_journal(&self) -> Result<(), NodeError> {
        let path = Kind::Journal.directory(&self.data);
        match Journal::open(&path, &self.cluster, &self.resources, 0) {
            Err(error) if !error.lost() => Err(NodeError::Journal(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The journal, or a new one that asks to rejoin when it is lost or was rolled back.
    fn open_journal(
        &self,
        recorded: u64,
        rolled_back: Option<String>,
        rejoin_marker: fn(Digest) -> Record,
    ) -> Result<(Journal, Records), NodeError> {
        let path = Kind::Journal.directory(&self.data);
        let loaded = |journal: Journal| journal.load().map(|records| (journal, records));
        let reason = match rolled_back {
            Some(reason) => reason,
            None => match Journal::open(&path, &self.cluster, &self.resources, recorded)
                .and_then(loaded)
            {
                Ok(loaded) => return Ok(loaded),
                Err(error) if error.lost() => error.to_string(),
                Err(error) => return Err(NodeError::Journal(error)),
            },
        };
        tracing::warn!(%reason, "the journal cannot be trusted; this replica asks to rejoin and casts no votes until then");
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        let nonce = Digest::from_bytes(rand::random());
        let marker = rejoin_marker(nonce);
        let number = Journal::next_life(recorded);
        Journal::create(&path, &self.cluster, &self.resources, number, &[marker])
            .and_then(loaded)
            .map_err(NodeError::Journal)
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
        let (engine, recovered) = (start.recover)(recovery).map_err(NodeError::Recover)?;
        tracing::info!(height = executor.height().0, engine = %engine, "recovered");
        let parts = Parts { ports, engine, recovered, executor, ledger: ledger.clone(), journal };
        let threads = Threads::start(self, parts, &failure)?;
        let ended = failure.wait();
        tracing::info!(?ended, "stopping");
        threads.stop(matches!(ended, Ended::Stopped))?;
        self.shown.show(None);
        if !matches!(ended, Ended::Storage(_)) {
            ledger.flush()?;
        }
        Ok(ended)
    }

    fn client_limits(&self) -> ClientLimits {
        let mut limits = ClientLimits::default();
        limits.frame_max = self.genesis.limits.request_bytes_max as usize + 1024;
        limits
    }

    fn peers(&self) -> BTreeMap<ReplicaId, Peer> {
        self.genesis
            .membership
            .members
            .iter()
            .filter(|m| m.id != self.id)
            .map(|m| (m.id, Peer { key: m.key, address: m.address.clone() }))
            .collect()
    }
}

/// The threads of one run, in the order in which they are stopped.
struct Threads<M> {
    transport: TransportThread,
    mesh: PeerMeshHandle,
    clients: ClientEndpointHandle,
    late: Box<dyn Fn()>,
    stop_verify: Box<dyn Fn()>,
    verify: Vec<std::thread::JoinHandle<()>>,
    queues: Queues<M>,
    replica: std::thread::JoinHandle<JournalThread>,
    executor: std::thread::JoinHandle<()>,
    background: std::thread::JoinHandle<()>,
    transfer: Transfer,
}

/// A handle that is known only after what uses it was made. Emptied at the stop: the handle and its
/// user hold each other, and a ledger that is held cannot be opened again.
struct Late<T>(Arc<RwLock<Option<T>>>);

impl<T> Clone for Late<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Late<T> {
    fn new() -> Self {
        Self(Arc::new(RwLock::new(None)))
    }

    fn set(&self, value: Option<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    fn get(&self) -> Option<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The queues between the threads of one run.
struct Queues<M> {
    replica: Arc<Inbox<Event<M>>>,
    executor: Arc<Inbox<Task>>,
    background: Arc<Inbox<Job>>,
}

/// What one run is started with.
struct Parts<E: Engine> {
    ports: Ports,
    engine: E,
    recovered: Vec<Effect<E::Message>>,
    executor: Executor<RocksStorage, KeyValueStore>,
    ledger: Arc<RocksStorage>,
    journal: Journal,
}

impl<M: Clone + Send + Sync + std::fmt::Debug + 'static> Threads<M> {
    fn start<E: Engine<Message = M> + 'static>(
        node: &Node,
        parts: Parts<E>,
        failure: &Arc<Failure>,
    ) -> Result<Self, NodeError> {
        let Parts { ports, engine, recovered, executor, ledger, journal } = parts;
        let queues: Queues<M> = Queues {
            replica: Arc::new(Inbox::new(REPLICA_QUOTA)),
            executor: Arc::new(Inbox::new(REPLICA_QUOTA)),
            background: Arc::new(Inbox::new(BACKGROUND_QUOTA)),
        };
        let status = Arc::new(Mutex::new(engine.status()));
        let (inbox, metrics) = (queues.replica.clone(), node.metrics.clone());
        let verify: Verify<E> = Verify::new(engine.horizon(), inbox, VERIFY_QUOTA, metrics);
        let transport = TransportThread::start("transport")?;
        let transfer = start_transfer(node, &ledger, &queues.executor, failure)?;
        let mesh = start_mesh(node, &transport, ports.peers, &verify, &queues.replica, &transfer)?;
        transfer.attach(mesh.clone());
        let (endpoint, traffic) = (Late::new(), Late::new());
        let evidence = executor.reader().evidence_count()?;
        let shared = share(node, evidence, &status, &traffic, failure);
        let routes = Arc::new(Routes::default());
        let gateway = gateway(node, &verify, &queues, &executor, &shared, &routes);
        let clients = start_clients(node, &transport, ports.clients, gateway, &endpoint)?;
        traffic.set(Some((mesh.clone(), clients.clone())));
        let journal = start_journal(node, journal, &queues.replica)?;
        let background = background::<E>(node, &queues, ledger, &executor, &mesh, &shared);
        resume(&executor, &queues, failure)?;
        let resubmit = verify.clone();
        let executor_thread = ExecutorThread {
            executor,
            inbox: queues.executor.clone(),
            replica: queues.replica.clone(),
            background: queues.background.clone(),
            routes,
            clients: clients.clone(),
            requests: Box::new(move |request| resubmit.request(request)),
            shared: shared.clone(),
            failure: failure.clone(),
            transfer: transfer.handle(),
            states: BTreeMap::new(),
            fetching: false,
            held: Vec::new(),
        };
        let replica = replica_thread(engine, &verify, &mesh, journal, &queues, &shared);
        node.shown.show(Some(&shared));
        let stop_verify = verify.clone();
        Ok(Self {
            transport,
            mesh,
            clients,
            late: Box::new(move || {
                endpoint.set(None);
                traffic.set(None);
            }),
            stop_verify: Box::new(move || stop_verify.close()),
            verify: verify.spawn(VERIFY_THREADS)?,
            replica: spawn("replica", failure, move || replica.run(recovered))?,
            executor: spawn("executor", failure, move || executor_thread.run())?,
            background: spawn("background", failure, move || background.run())?,
            queues,
            transfer,
        })
    }

    /// Stops in the order of the flow: nothing new comes in, what was decided is executed.
    fn stop(self, clean: bool) -> Result<(), NodeError> {
        self.mesh.shutdown();
        self.clients.shutdown();
        self.transfer.stop().map_err(|_| panicked())?;
        (self.stop_verify)();
        for thread in self.verify {
            join(thread)?;
        }
        let _ = self.queues.replica.push(Source::Internal, 0, Event::Stop { clean });
        let journal = join(self.replica)?;
        drop(journal.stop()?);
        let _ = self.queues.executor.push(Source::Internal, 0, Task::Stop);
        join(self.executor)?;
        self.queues.background.close();
        join(self.background)?;
        self.transport.stop();
        (self.late)();
        Ok(())
    }
}

fn gateway<E: Engine + 'static>(
    node: &Node,
    verify: &Verify<E>,
    queues: &Queues<E::Message>,
    executor: &Executor<RocksStorage, KeyValueStore>,
    shared: &Arc<Shared>,
    routes: &Arc<Routes>,
) -> Gateway {
    let submit = verify.clone();
    Gateway {
        routes: routes.clone(),
        executor: queues.executor.clone(),
        verify: Box::new(move |request| submit.request(request)),
        reader: executor.reader(),
        shared: shared.clone(),
        request_bytes_max: node.genesis.limits.request_bytes_max as usize,
    }
}

fn background<E: Engine>(
    node: &Node,
    queues: &Queues<E::Message>,
    ledger: Arc<RocksStorage>,
    executor: &Executor<RocksStorage, KeyValueStore>,
    mesh: &PeerMeshHandle,
    shared: &Arc<Shared>,
) -> Background<E> {
    Background {
        inbox: queues.background.clone(),
        executor: queues.executor.clone(),
        ledger,
        reader: executor.reader(),
        mesh: mesh.clone(),
        evidence: node.data.join("evidence"),
        shared: shared.clone(),
        failure: shared.failure.clone(),
        engine: PhantomData,
    }
}

fn replica_thread<E: Engine + 'static>(
    engine: E,
    verify: &Verify<E>,
    mesh: &PeerMeshHandle,
    journal: JournalThread,
    queues: &Queues<E::Message>,
    shared: &Arc<Shared>,
) -> ReplicaThread<E> {
    ReplicaThread {
        replica: Replica::new(engine),
        inbox: queues.replica.clone(),
        verify: verify.clone(),
        mesh: mesh.clone(),
        journal,
        executor: queues.executor.clone(),
        background: queues.background.clone(),
        metrics: shared.metrics.clone(),
        status: shared.status.clone(),
        failure: shared.failure.clone(),
        started: Instant::now(),
    }
}

fn start_transfer(
    node: &Node,
    ledger: &Arc<RocksStorage>,
    executor: &Arc<Inbox<Task>>,
    failure: &Arc<Failure>,
) -> Result<Transfer, NodeError> {
    let members = MemberKeys::new(node.genesis.membership.members.clone())
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let (ledger, executor) = (ledger.clone(), executor.clone());
    Ok(Transfer::start(ledger, executor, failure.clone(), members, node.cluster)?)
}

fn start_journal<M: Send + 'static>(
    node: &Node,
    journal: Journal,
    replica: &Arc<Inbox<Event<M>>>,
) -> Result<JournalThread, NodeError> {
    let metrics = JournalMetrics {
        syncs: node.metrics.fsyncs.clone(),
        bytes: node.metrics.journal_bytes.clone(),
        ..JournalMetrics::default()
    };
    let written = replica.clone();
    let completion = move |number| {
        let _ = written.push(Source::Internal, 0, Event::Written(number));
    };
    Ok(JournalThread::spawn(journal, metrics, completion, abort_process)?)
}

fn share(
    node: &Node,
    evidence: u64,
    status: &Arc<Mutex<EngineStatus>>,
    traffic: &Late<(PeerMeshHandle, ClientEndpointHandle)>,
    failure: &Arc<Failure>,
) -> Arc<Shared> {
    let traffic = traffic.clone();
    Arc::new(Shared {
        replica: node.id,
        organization: node.organization.clone(),
        metrics: node.metrics.clone(),
        progress: Progress::default(),
        status: status.clone(),
        evidence: AtomicU64::new(evidence),
        bytes_sent: Box::new(move || traffic.get().map_or(0, |(m, c)| bytes_sent(&m, &c))),
        failure: failure.clone(),
    })
}

/// What the last run left undone: checkpoints, and the fetching of a state this ledger differs from.
fn resume<M>(
    executor: &Executor<RocksStorage, KeyValueStore>,
    queues: &Queues<M>,
    failure: &Arc<Failure>,
) -> Result<(), NodeError> {
    for job in executor.pending_checkpoints()? {
        let _ = queues.background.push(Source::Internal, 0, Job::Checkpoint(Box::new(job)));
    }
    if let Some(certificate) = executor.diverged().cloned() {
        failure.diverged(certificate.checkpoint.height);
        let task = Task::Fetch(Box::new(certificate));
        let _ = queues.executor.push(Source::Internal, 0, task);
    }
    Ok(())
}

fn start_mesh<E: Engine + 'static>(
    node: &Node,
    transport: &TransportThread,
    port: Port,
    verify: &Verify<E>,
    replica: &Arc<Inbox<Event<E::Message>>>,
    transfer: &Transfer,
) -> Result<PeerMeshHandle, NodeError> {
    let config = PeerMeshConfig {
        id: node.id,
        key: node.key.clone(),
        port,
        peers: node.peers(),
        cluster: node.cluster,
        version: conclave_crypto::framing::PROTOCOL_VERSION,
        limits: PeerLimits::default(),
    };
    let (verify, replica, transfer) = (verify.clone(), replica.clone(), transfer.handle());
    let sink = move |event: PeerEvent| match event {
        PeerEvent::Up(peer) => {
            tracing::info!(%peer, "connected");
            transfer.up(peer);
            let _ = replica.push(Source::Internal, 0, Event::Input(Input::Connected(peer)));
        }
        PeerEvent::Down(peer) => {
            tracing::info!(%peer, "disconnected");
            transfer.down(peer);
        }
        PeerEvent::Frames { from, class: Class::Bulk, delivery } => transfer.frames(from, delivery),
        PeerEvent::Frames { from, class: Class::Vote | Class::Body, delivery } => {
            let credit = Arc::new(delivery.credit);
            for frame in delivery.frames {
                verify.peer(from, frame, &credit);
            }
        }
    };
    Ok(PeerMesh::start(transport, config, Arc::new(sink))?)
}

fn start_clients(
    node: &Node,
    transport: &TransportThread,
    port: Port,
    gateway: Gateway,
    late: &Late<ClientEndpointHandle>,
) -> Result<ClientEndpointHandle, NodeError> {
    let known: std::collections::BTreeSet<_> = node.genesis.clients.iter().map(|c| c.key).collect();
    let config = ClientEndpointConfig {
        id: node.id,
        key: node.key.clone(),
        port,
        cluster: node.cluster,
        version: conclave_crypto::framing::PROTOCOL_VERSION,
        allowed: Arc::new(move |key| known.contains(key)),
        limits: node.client_limits(),
    };
    // The sink needs the handle that starting returns; frames come only after a handshake.
    let endpoint = late.clone();
    let sink = move |event: ClientEvent| match event {
        ClientEvent::Connected { connection, client } => {
            gateway.routes.up(ConnectionId(connection.0), client);
        }
        ClientEvent::Disconnected { connection } => {
            gateway.routes.down(ConnectionId(connection.0));
        }
        ClientEvent::Frames { connection, client, delivery } => {
            let Some(endpoint) = endpoint.get() else { return };
            for frame in &delivery.frames {
                gateway.frame(&endpoint, ConnectionId(connection.0), client, frame);
            }
        }
    };
    let handle = ClientEndpoint::start(transport, config, Arc::new(sink))?;
    late.set(Some(handle.clone()));
    Ok(handle)
}

fn bytes_sent(mesh: &PeerMeshHandle, clients: &ClientEndpointHandle) -> u64 {
    let peers: u64 = mesh.peer_counters().values().map(|c| c.bytes_sent).sum();
    peers + clients.counters().bytes_sent
}

/// A thread whose panic ends the run instead of leaving it half alive.
fn spawn<T: Send + 'static>(
    name: &str,
    failure: &Arc<Failure>,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>, std::io::Error> {
    struct Watch(Arc<Failure>, String);
    impl Drop for Watch {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.end(Ended::Storage(format!("the {} thread panicked", self.1)));
            }
        }
    }
    let watch = Watch(failure.clone(), name.to_owned());
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _watch = watch;
        body()
    })
}

fn join<T>(thread: std::thread::JoinHandle<T>) -> Result<T, NodeError> {
    thread.join().map_err(|_| panicked())
}

fn panicked() -> NodeError {
    NodeError::System(std::io::Error::other("a thread panicked"))
}
