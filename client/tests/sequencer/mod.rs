//! Four replicas that agree because one lock orders everything: real connections, executors and
//! attestations, and no protocol between them. What a client meets, without what a cluster costs.

#![allow(clippy::unwrap_used, reason = "a test's fixture fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use conclave_config::ConfigError;
use conclave_config::client_config::ClientHome;
use conclave_config::testnet::{Testnet, TestnetOptions, testnet};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame, NodeStatus};
use conclave_consensus::engine::{Committed, EngineStatus};
use conclave_consensus::executor::Executor;
use conclave_consensus::kv::KeyValueStore;
use conclave_consensus::memory_storage::MemoryStorage;
use conclave_consensus::message::{Batch, SignedRequest};
use conclave_consensus::types::{ClientId, Epoch, ReplicaId, Sequence, Timestamp};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::framing::{
    ALPN_CLIENT, CloseCode, FrameAssembler, Hello, PROTOCOL_VERSION, Role, frame_header,
};
use conclave_crypto::keys::SecretKey;
use conclave_crypto::tls::{peer_key, server_config};
use conclave_crypto::transport_limits::TransportLimits;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// How a replica behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it should.
    Correct,
    /// As it should, and says that it is changing its view.
    Changing,
    /// Connected, and never says anything more.
    Silent,
    /// Not there at all.
    Absent,
}

impl Mode {
    fn answers(self) -> bool {
        matches!(self, Self::Correct | Self::Changing)
    }
}

struct Replica {
    mode: Mode,
    executor: Executor<MemoryStorage, KeyValueStore>,
    connections: Vec<(ClientId, mpsc::UnboundedSender<Vec<u8>>)>,
    /// What came as sent for the first time.
    received: BTreeSet<Digest>,
}

struct Shared {
    replicas: Vec<Replica>,
    height: u64,
    /// Every request that was ordered, in order.
    ordered: Vec<Arc<SignedRequest>>,
}

/// The replicas on a thread of their own; dropping it ends them.
pub(crate) struct Sequencer {
    pub(crate) testnet: Testnet,
    shared: Arc<Mutex<Shared>>,
    _directory: tempfile::TempDir,
    _network: TcpListener,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Sequencer {
    pub(crate) fn start(modes: [Mode; 4]) -> Self {
        let (network, host) = free_host();
        let directory = tempfile::tempdir().unwrap();
        let options = TestnetOptions {
            hosts: vec![host.into()],
            ..TestnetOptions::new(directory.path().join("testnet"))
        };
        let testnet = testnet::<ConfigError>(&options, |_| Ok(())).unwrap();
        let mut replicas = Vec::new();
        let mut endpoints = Vec::new();
        for (index, mode) in modes.into_iter().enumerate() {
            let key = SecretKey::read_pem(testnet.nodes[index].join("key")).unwrap();
            let id = ReplicaId(u16::try_from(index).unwrap());
            let storage = Arc::new(MemoryStorage::new());
            let key = Arc::new(key);
            let executor =
                Executor::open(storage, KeyValueStore, &testnet.genesis, id, key.clone()).unwrap();
            replicas.push(Replica {
                mode,
                executor,
                connections: Vec::new(),
                received: BTreeSet::new(),
            });
            endpoints.push((id, key, mode));
        }
        let shared = Arc::new(Mutex::new(Shared { replicas, height: 0, ordered: Vec::new() }));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (genesis, state) = (testnet.genesis.clone(), Arc::clone(&shared));
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for (id, key, mode) in endpoints {
                    if mode == Mode::Absent {
                        continue;
                    }
                    let clients: BTreeSet<ClientId> =
                        genesis.clients.iter().map(|client| client.key).collect();
                    let allowed = Arc::new(move |key: &ClientId| clients.contains(key));
                    let mut config = server_config(&key, allowed, ALPN_CLIENT).unwrap();
                    config.transport_config(TransportLimits::node().config());
                    let member = genesis.membership.member(id).unwrap();
                    let address = member.client_address.parse().unwrap();
                    let endpoint = quinn::Endpoint::server(config, address).unwrap();
                    let (state, cluster) = (Arc::clone(&state), genesis.cluster());
                    tokio::spawn(async move {
                        while let Some(incoming) = endpoint.accept().await {
                            let state = Arc::clone(&state);
                            tokio::spawn(async move {
                                let Ok(connection) = incoming.await else { return };
                                serve(connection, state, id, cluster).await;
                            });
                        }
                    });
                }
                ready.send(()).unwrap();
                let _ = stopped.await;
            });
        });
        is_ready.recv().unwrap();
        Self { testnet, shared, _directory: directory, _network: network, _stop: stop }
    }

    pub(crate) fn home(&self, client: usize) -> ClientHome {
        ClientHome::load(&self.testnet.clients[client]).unwrap()
    }

    pub(crate) fn set_mode(&self, replica: usize, mode: Mode) {
        self.shared.lock().unwrap().replicas[replica].mode = mode;
    }

    /// Whether every replica was sent this request, and not because an answer did not come.
    pub(crate) fn received_by_all(&self, request: &Digest) -> bool {
        let shared = self.shared.lock().unwrap();
        shared.replicas.iter().all(|replica| replica.received.contains(request))
    }

    /// Every request that was ordered, in order.
    pub(crate) fn ordered(&self) -> Vec<Arc<SignedRequest>> {
        self.shared.lock().unwrap().ordered.clone()
    }
}

/// A loopback address that is nobody else's as long as the listener lives.
fn free_host() -> (TcpListener, Ipv4Addr) {
    let seed = std::process::id();
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    for _ in 0..1000 {
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let [_, x, y, z] = seed.wrapping_mul(2_654_435_761).wrapping_add(number).to_be_bytes();
        let host = Ipv4Addr::new(127, x.max(1), y, z.clamp(1, 250));
        if let Ok(listener) = TcpListener::bind((host, 27098)) {
            return (listener, host);
        }
    }
    panic!("no loopback address is free");
}

async fn serve(
    connection: quinn::Connection,
    shared: Arc<Mutex<Shared>>,
    id: ReplicaId,
    cluster: Digest,
) {
    let client = peer_key(&connection).unwrap();
    let Ok((mut send, mut receive)) = connection.accept_bi().await else { return };
    let mut hello = [0; 4 + Hello::SIZE];
    receive.read_exact(&mut hello).await.unwrap();
    let ours = Hello {
        version: PROTOCOL_VERSION,
        role: Role::Node,
        cluster,
        from: id.0,
        to: Hello::NO_REPLICA,
    };
    let theirs = Hello { role: Role::Client, from: Hello::NO_REPLICA, to: id.0, ..ours };
    if let Err(fault) = theirs.require(&hello[4..]) {
        connection.close(fault.close_code().code(), fault.to_string().as_bytes());
        return;
    }
    let (out, mut outgoing) = mpsc::unbounded_channel::<Vec<u8>>();
    let _ = out.send(ours.encode().to_vec());
    shared.lock().unwrap().replicas[usize::from(id.0)].connections.push((client, out.clone()));
    tokio::spawn(async move {
        let mut frames = Vec::new();
        while outgoing.recv_many(&mut frames, 1024).await > 0 {
            let mut bytes = Vec::new();
            for frame in frames.drain(..) {
                bytes.extend_from_slice(&frame_header(frame.len()));
                bytes.extend_from_slice(&frame);
            }
            if send.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut assembler = FrameAssembler::new(4 << 20);
    let mut pieces = vec![bytes::Bytes::new(); 64];
    while let Ok(Some(count)) = receive.read_chunks(&mut pieces).await {
        let mut frames = Vec::new();
        if assembler.push(&pieces[..count], &mut frames).is_err() {
            connection.close(CloseCode::Malformed.code(), b"");
            return;
        }
        let frames = frames.iter().map(|frame| wire::decode(frame, 4 << 20).unwrap()).collect();
        shared.lock().unwrap().on_frames(id, &out, frames);
    }
}

impl Shared {
    fn on_frames(
        &mut self,
        id: ReplicaId,
        out: &mpsc::UnboundedSender<Vec<u8>>,
        frames: Vec<ClientFrame>,
    ) {
        if !self.replicas[usize::from(id.0)].mode.answers() {
            return;
        }
        let mut batch: Vec<Arc<SignedRequest>> = Vec::new();
        for frame in frames {
            match frame {
                ClientFrame::Submit { request, resent } => {
                    if !resent {
                        self.replicas[usize::from(id.0)].received.insert(request.digest());
                    }
                    let executor = &self.replicas[usize::from(id.0)].executor;
                    if let Some(replies) = executor.lookup(&request).unwrap() {
                        let _ = out.send(wire::encode(&NodeFrame::Replies(Box::new(replies))));
                    } else if batch.iter().all(|other| other.digest() != request.digest()) {
                        batch.push(Arc::new(request));
                    }
                }
                ClientFrame::Status { token } => {
                    let status = Box::new(self.status(id));
                    let _ = out.send(wire::encode(&NodeFrame::Status { token, status }));
                }
                // It answers on every connection.
                ClientFrame::Attach { .. }
                | ClientFrame::Detach { .. }
                | ClientFrame::EpochEnds { .. } => {}
            }
        }
        if !batch.is_empty() {
            self.order(batch);
        }
    }

    fn order(&mut self, requests: Vec<Arc<SignedRequest>>) {
        self.height += 1;
        self.ordered.extend(requests.iter().cloned());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let timestamp = Timestamp(u64::try_from(now).unwrap());
        let batch = Arc::new(Batch::new(timestamp, false, None, requests));
        for replica in &mut self.replicas {
            let committed = Committed {
                sequence: Sequence(self.height),
                epoch: Epoch(0),
                batch: Arc::clone(&batch),
                certificate: Vec::new(),
            };
            let executed = replica.executor.execute(committed).unwrap().unwrap();
            if !replica.mode.answers() {
                continue;
            }
            for (client, out) in &replica.connections {
                let positions: Vec<usize> = (0..executed.keys.len())
                    .filter(|position| executed.keys[*position].client == *client)
                    .collect();
                for replies in replica.executor.replies(&executed, &positions) {
                    let _ = out.send(wire::encode(&NodeFrame::Replies(Box::new(replies))));
                }
            }
        }
    }

    fn status(&self, id: ReplicaId) -> NodeStatus {
        let height = Sequence(self.height);
        NodeStatus {
            replica: id,
            organization: String::new(),
            engine: EngineStatus {
                epoch: Epoch(0),
                view: 0,
                role: if id.0 == 0 { "primary" } else { "backup" }.into(),
                primary: Some(ReplicaId(0)),
                normal: self.replicas[usize::from(id.0)].mode == Mode::Correct,
                decided: height,
                stable: Sequence(0),
                proven: height,
                pending: 0,
                view_changes: 0,
            },
            height,
            peers_up: 3,
            version: "test".into(),
            cpu_us: 0,
            rss_bytes: 0,
            fsyncs: 0,
            bytes_sent: 0,
            evidence: 0,
            accusations: Vec::new(),
        }
    }
}
