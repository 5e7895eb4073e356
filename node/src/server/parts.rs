//! Each thread's share of what a run is made of.

use super::endpoints::{Late, bytes_sent};
use super::threads::Queues;
use super::{Node, NodeError};
use crate::journal::{Journal, JournalThread, abort_process};
use crate::metrics::Progress;
use crate::runtime::background::{Background, Job};
use crate::runtime::desk::{Clerk, Desk};
use crate::runtime::door::Door;
use crate::runtime::event::Event;
use crate::runtime::evidence::EvidenceKeeper;
use crate::runtime::executor_thread::{ExecutorThread, Task};
use crate::runtime::gateway::Gateway;
use crate::runtime::inbox::Source;
use crate::runtime::recent::Recent;
use crate::runtime::replica_thread::ReplicaThread;
use crate::runtime::routes::Routes;
use crate::runtime::supplies::Supplies;
use crate::runtime::verify::{INLINE_MAX, Verify};
use crate::runtime::{Failure, Shared};
use crate::storage::RocksStorage;
use crate::transfer::{Transfer, TransferConfig};
use crate::transport::{ClientEndpointHandle, Patience, PeerMeshHandle};
use conclave_consensus::engine::{Engine, EngineStatus};
use conclave_consensus::epoch_chain::{EpochChain, MemberKeys};
use conclave_consensus::evidence::Accusation;
use conclave_consensus::executor::Executor;
use conclave_consensus::kv::KeyValueStore;
use conclave_consensus::replica::Replica;
use conclave_consensus::state_sync::FetchNumber;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub(super) fn gateway<E: Engine + 'static>(
    node: &Node,
    verify: &Verify<E>,
    queues: &Queues<E::Message>,
    desk: &Arc<Desk>,
    shared: &Arc<Shared>,
    routes: &Arc<Routes>,
) -> Gateway {
    let submit = verify.clone();
    let places = (0..).zip(&node.genesis.clients);
    Gateway {
        routes: routes.clone(),
        executor: queues.executor.clone(),
        verify: Box::new(move |place, request| submit.request(place, request)),
        desk: desk.clone(),
        clients: places.map(|(place, client)| (client.key, place)).collect(),
        shared: shared.clone(),
        request_bytes_max: node.genesis.limits.request_bytes_max as usize,
    }
}

pub(super) fn clerk(
    desk: &Arc<Desk>,
    executor: &Executor<RocksStorage, KeyValueStore>,
    clients: &ClientEndpointHandle,
    shared: &Arc<Shared>,
) -> Clerk {
    Clerk {
        desk: desk.clone(),
        reader: executor.reader(),
        shared: shared.clone(),
        clients: clients.clone(),
    }
}

pub(super) fn background<E: Engine>(
    node: &Node,
    queues: &Queues<E::Message>,
    ledger: Arc<RocksStorage>,
    executor: &Executor<RocksStorage, KeyValueStore>,
    mesh: &PeerMeshHandle,
    shared: &Arc<Shared>,
) -> Result<Background<E>, NodeError> {
    let chain =
        EpochChain::new(&node.genesis).map_err(|error| std::io::Error::other(error.to_string()))?;
    let evidence = EvidenceKeeper {
        directory: node.data.join("evidence"),
        ledger: ledger.clone(),
        reader: executor.reader(),
        chain,
        shared: shared.clone(),
    };
    Ok(Background {
        inbox: queues.background.clone(),
        executor: queues.executor.clone(),
        ledger,
        supplies: Supplies::new(executor.reader()),
        started: Instant::now(),
        mesh: mesh.clone(),
        evidence,
        failure: shared.failure.clone(),
        engine: PhantomData,
    })
}

pub(super) fn executor_thread<E: Engine + 'static>(
    executor: Executor<RocksStorage, KeyValueStore>,
    verify: &Verify<E>,
    queues: &Queues<E::Message>,
    routes: Arc<Routes>,
    clients: &ClientEndpointHandle,
    shared: &Arc<Shared>,
    transfer: &Transfer,
) -> ExecutorThread<E::Message> {
    let resubmit = verify.clone();
    ExecutorThread {
        executor,
        inbox: queues.executor.clone(),
        replica: queues.replica.clone(),
        background: queues.background.clone(),
        routes,
        clients: clients.clone(),
        // Its signature is checked elsewhere: the executor has blocks to execute.
        requests: Box::new(move |request| resubmit.request(INLINE_MAX, request)),
        shared: shared.clone(),
        failure: shared.failure.clone(),
        transfer: transfer.handle(),
        states: BTreeMap::new(),
        fetching: false,
        fetch: FetchNumber::default(),
        held: Vec::new(),
    }
}

pub(super) fn replica_thread<E: Engine + 'static>(
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
        stop: None,
        helped: false,
        taken: Vec::new(),
    }
}

pub(super) fn start_transfer<M>(
    node: &Node,
    ledger: &Arc<RocksStorage>,
    executor: &Executor<RocksStorage, KeyValueStore>,
    queues: &Queues<M>,
    (failure, patience): (&Arc<Failure>, &Arc<Patience>),
) -> Result<Transfer, NodeError> {
    let genesis = node.genesis.membership.clone();
    let keys = MemberKeys::new(genesis.members.clone())
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let (protocol, cluster) = (node.protocol, node.cluster);
    Ok(Transfer::start(TransferConfig {
        ledger: ledger.clone(),
        reader: executor.reader(),
        executor: queues.executor.clone(),
        failure: failure.clone(),
        patience: patience.clone(),
        metrics: node.metrics.clone(),
        genesis,
        keys,
        cluster,
        check: Box::new(move |members, committed| {
            protocol.verify_certificate(&cluster, members, committed)
        }),
    })?)
}

pub(super) fn start_journal<E: Engine + 'static>(
    node: &Node,
    journal: Journal,
    replica: &Arc<Door<E>>,
    failure: &Arc<Failure>,
) -> Result<JournalThread, NodeError> {
    let metrics = node.metrics.journal.clone();
    let (written, watch) = (replica.clone(), failure.watch("journal"));
    let completion = move |number| {
        // The thread's own, and dropped with it.
        let _ = &watch;
        let _ = written.step_in(Source::Internal, 0, Event::Written(number));
    };
    let journal = JournalThread::spawn(journal, metrics, completion, abort_process)?;
    replica.set_journal(journal.help());
    Ok(journal)
}

pub(super) fn share(
    node: &Node,
    accusations: Vec<Accusation>,
    status: &Arc<Mutex<EngineStatus>>,
    traffic: &Late<(PeerMeshHandle, ClientEndpointHandle)>,
    failure: &Arc<Failure>,
    patience: Arc<Patience>,
) -> Arc<Shared> {
    let traffic = traffic.clone();
    node.metrics.evidence.set(i64::try_from(accusations.len()).unwrap_or(i64::MAX));
    let members = node.genesis.membership.members.iter();
    Arc::new(Shared {
        replica: node.id,
        organization: node.organization.clone(),
        metrics: node.metrics.clone(),
        progress: Progress::default(),
        status: status.clone(),
        accusations: Mutex::new(accusations),
        organizations: members.map(|member| (member.id, member.organization.clone())).collect(),
        bytes_sent: Box::new(move || traffic.get().map_or(0, |(m, c)| bytes_sent(&m, &c))),
        patience,
        recent: Recent::default(),
        used: Mutex::default(),
        failure: failure.clone(),
    })
}

/// What the last run left undone: checkpoints, and the fetching of a state this ledger differs from.
pub(super) fn resume<M>(
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
