//! The threads of one run: how they are tied together, started and stopped.

use super::endpoints::{Late, start_clients, start_mesh};
use super::opening::Ports;
use super::parts::{
    background, clerk, executor_thread, gateway, replica_thread, resume, share, start_journal,
    start_transfer,
};
use super::thread::{Thread, panicked};
use super::{Node, NodeError};
use crate::journal::{Journal, JournalThread};
use crate::runtime::Failure;
use crate::runtime::background::Job;
use crate::runtime::desk::Desk;
use crate::runtime::door::{Door, Hatch};
use crate::runtime::event::Event;
use crate::runtime::executor_thread::Task;
use crate::runtime::inbox::{Inbox, Quota, Source};
use crate::runtime::routes::Routes;
use crate::runtime::verify::Verify;
use crate::storage::RocksStorage;
use crate::transfer::Transfer;
use crate::transport::{
    ClientEndpointHandle, Patience, PeerMeshHandle, TransportError, TransportThread,
};
use conclave_consensus::engine::{Effect, Engine};
use conclave_consensus::executor::Executor;
use conclave_consensus::kv::KeyValueStore;
use conclave_consensus::message::REQUEST_WINDOW;
use std::sync::{Arc, Mutex};

/// Verifying threads; the transport's thread verifies small votes itself while they are idle.
const VERIFY_THREADS: usize = 1;

/// Of each peer, and of all clients together, in front of the verify pool.
const VERIFY_QUOTA: Quota = Quota { items: 8192, bytes: 32 << 20, total: usize::MAX };

/// Of each peer, and of all clients together, in front of the replica thread.
const REPLICA_QUOTA: Quota = Quota { items: 8192, bytes: 32 << 20, total: usize::MAX };

/// Of each client, in front of the executor: a window of requests sent again at once, as after a
/// change of views, and the bytes of all look-ups.
const LOOKUP_QUOTA: Quota =
    Quota { items: REQUEST_WINDOW as usize, bytes: 32 << 20, total: 64 << 20 };

/// Of each peer, in front of the background thread.
const BACKGROUND_QUOTA: Quota = Quota { items: 2, bytes: 2, total: usize::MAX };

/// The threads of one run, in the order in which they are stopped.
pub(super) struct Threads<M> {
    transport: TransportThread,
    mesh: PeerMeshHandle,
    clients: ClientEndpointHandle,
    late: Box<dyn Fn()>,
    transfer: Transfer,
    verify: Vec<Thread<()>>,
    queues: Queues<M>,
    replica: Thread<JournalThread>,
    executor: Thread<()>,
    background: Thread<()>,
    desk: Thread<()>,
}

/// The queues between the threads of one run.
pub(super) struct Queues<M> {
    pub(super) replica: Arc<Inbox<Event<M>>>,
    pub(super) executor: Arc<Inbox<Task>>,
    pub(super) background: Arc<Inbox<Job>>,
}

impl<M> Queues<M> {
    fn new() -> Self {
        Self {
            replica: Arc::new(Inbox::new(REPLICA_QUOTA)),
            executor: Arc::new(Inbox::new(LOOKUP_QUOTA)),
            background: Arc::new(Inbox::new(BACKGROUND_QUOTA)),
        }
    }
}

/// What one run is started with.
pub(super) struct Start<E: Engine> {
    pub(super) ports: Ports,
    pub(super) engine: E,
    pub(super) recovered: Vec<Effect<E::Message>>,
    pub(super) executor: Executor<RocksStorage, KeyValueStore>,
    pub(super) ledger: Arc<RocksStorage>,
    pub(super) journal: Journal,
}

impl<M: Clone + Send + Sync + std::fmt::Debug + 'static> Threads<M> {
    pub(super) fn start<E: Engine<Message = M> + 'static>(
        node: &Node,
        start: Start<E>,
        failure: &Arc<Failure>,
    ) -> Result<Self, NodeError> {
        let Start { ports, engine, recovered, executor, ledger, journal } = start;
        let queues: Queues<M> = Queues::new();
        let status = Arc::new(Mutex::new(engine.status()));
        let hatch = Arc::new(Hatch::new(queues.executor.clone()));
        let door: Arc<Door<E>> = Arc::new(Door::new(queues.replica.clone(), hatch.clone()));
        let metrics = node.metrics.clone();
        let patience = Arc::new(Patience::default());
        let verify =
            Verify::new(engine.horizon(), door.clone(), VERIFY_QUOTA, metrics, patience.clone());
        let accusations = executor.reader().accusations()?;
        let transport = start_transport(&door, failure)?;
        let transfer =
            start_transfer(node, &ledger, &executor, &queues, (failure, &verify.peer_patience()))?;
        let mesh = start_mesh(node, &transport, ports.peers, &verify, &queues.replica, &transfer)?;
        transfer.attach(mesh.clone());
        let (endpoint, traffic) = (Late::new(), Late::new());
        let shared = share(node, accusations, &status, &traffic, failure, patience);
        let routes = Arc::new(Routes::default());
        let desk = Arc::new(Desk::default());
        let gateway = gateway(node, &verify, &queues, &desk, &shared, &routes);
        let clients = start_clients(node, &transport, ports.clients, gateway, &endpoint)?;
        traffic.set(Some((mesh.clone(), clients.clone())));
        let journal = start_journal(node, journal, &door, failure)?;
        let background = background::<E>(node, &queues, ledger, &executor, &mesh, &shared)?;
        resume(&executor, &queues, failure)?;
        let clerk = clerk(&desk, &executor, &clients, &shared);
        let executor =
            executor_thread(executor, &verify, &queues, routes, &clients, &shared, &transfer);
        let replica = replica_thread(engine, &verify, &mesh, journal, &queues, &shared);
        node.shown.show(Some(&shared));
        // Where one of these fails, those before it end with their handles, the transport last.
        let verify = verifiers(&verify, failure)?;
        let replica = {
            let inbox = queues.replica.clone();
            let ask = move || drop(inbox.push(Source::Internal, 0, Event::Stop { clean: false }));
            Thread::spawn("replica", failure, ask, move || replica.run(&door, recovered))?
        };
        let executor = {
            let inbox = queues.executor.clone();
            let ask = move || drop(inbox.push(Source::Internal, 0, Task::Stop));
            Thread::spawn("executor", failure, ask, move || executor.run(&hatch))?
        };
        let background = {
            let inbox = queues.background.clone();
            Thread::spawn("background", failure, move || inbox.close(), move || background.run())?
        };
        let desk = Thread::spawn("desk", failure, move || desk.close(), move || clerk.run())?;
        let late = Box::new(move || {
            endpoint.set(None);
            traffic.set(None);
        });
        Ok(Self {
            transport,
            mesh,
            clients,
            late,
            transfer,
            verify,
            queues,
            replica,
            executor,
            background,
            desk,
        })
    }

    /// Stops in the order of the flow: nothing new comes in, what was decided is executed.
    pub(super) fn stop(self, clean: bool) -> Result<(), NodeError> {
        self.mesh.shutdown();
        self.clients.shutdown();
        self.transfer.stop().map_err(|_| panicked())?;
        for thread in self.verify {
            thread.end()?;
        }
        let _ = self.queues.replica.push(Source::Internal, 0, Event::Stop { clean });
        let journal = self.replica.end()?;
        drop(journal.stop()?);
        self.executor.end()?;
        self.background.end()?;
        self.desk.end()?;
        self.transport.stop();
        (self.late)();
        Ok(())
    }
}

/// The thread that writes the journal before it sleeps, if the journal's own does.
fn start_transport<E: Engine + 'static>(
    door: &Arc<Door<E>>,
    failure: &Arc<Failure>,
) -> Result<TransportThread, TransportError> {
    let door = door.clone();
    TransportThread::start_with("transport", failure.watch("transport"), move || door.rest())
}

fn verifiers<E: Engine + 'static>(
    verify: &Verify<E>,
    failure: &Arc<Failure>,
) -> Result<Vec<Thread<()>>, NodeError> {
    let threads = verify.spawn(VERIFY_THREADS, failure)?.into_iter();
    let ask = || {
        let verify = verify.clone();
        move || verify.close()
    };
    Ok(threads.map(|handle| Thread::adopt(handle, ask())).collect())
}
