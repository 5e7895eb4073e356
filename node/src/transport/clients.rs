//! The endpoint for clients: a UDP port and quotas of its own, so that no crowd of clients takes a place that a replica
//! needs.
//!
//! A client is an Ed25519 key that the registry admits. It opens one bidirectional stream, requests up and replies
//! down, and starts it with a hello that names the replica it means to speak to; the replica answers with its own hello
//! or closes the connection with a code and a reason.
//!
//! A client that causes trouble is not read for a while ([`Patience`]).
//!
//! Replies go through a bounded lane of the connection: a client that does not read loses replies, which are counted,
//! and asks again. Requests are delivered on credit: of the key, so that one client cannot fill the node, and of all
//! clients together.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use conclave_consensus::types::ReplicaId;
use conclave_crypto::framing::{ALPN_CLIENT, CloseCode, Hello, Role};
use conclave_crypto::{Digest, PublicKey, SecretKey, tls};

use super::admission::Gate;
use super::counters::{Refusals, Traffic};
use super::inbound::{Pool, Pools};
use super::lane::{Lane, LaneCaps, Pushed};
use super::limits::{Throttle, endpoint_config, harden};
use super::thread::{EndpointSlot, ThreadCore};
use super::{
    ClientCounters, ClientLimits, Delivery, Patience, Port, TransportError, TransportThread,
};

mod connection;

/// One connection of a client. Never used twice by a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientConnectionId(pub u64);

impl fmt::Display for ClientConnectionId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "c{}", self.0)
    }
}

/// Decides whether a client's key may connect. Asked on the transport's thread: it must not block.
pub type ClientRegistry = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// What the endpoint is started with.
pub struct ClientEndpointConfig {
    /// This replica.
    pub id: ReplicaId,
    /// This replica's key.
    pub key: Arc<SecretKey>,
    /// Where to listen.
    pub port: Port,
    /// Digest of the genesis.
    pub cluster: Digest,
    /// Protocol version, normally [`PROTOCOL_VERSION`](conclave_crypto::framing::PROTOCOL_VERSION).
    pub version: u16,
    /// Which keys may connect.
    pub allowed: ClientRegistry,
    /// Which clients are listened to.
    pub patience: Arc<Patience>,
    /// All caps.
    pub limits: ClientLimits,
}

/// What the endpoint tells its sink. All events come from the transport's thread, in order.
#[derive(Debug)]
pub enum ClientEvent {
    /// A client has got through both hellos.
    Connected {
        /// Its connection.
        connection: ClientConnectionId,
        /// The key that it proved.
        client: PublicKey,
    },
    /// Frames of a connected client.
    Frames {
        /// The connection to reply to.
        connection: ClientConnectionId,
        /// The key that it proved.
        client: PublicKey,
        /// The frames.
        delivery: Delivery,
    },
    /// The connection is gone.
    Disconnected {
        /// Which one.
        connection: ClientConnectionId,
    },
}

/// Receives the endpoint's events on the transport's thread: it must hand on and return, never wait.
pub type ClientSink = Arc<dyn Fn(ClientEvent) + Send + Sync>;

/// Starts endpoints for clients.
#[derive(Debug)]
pub struct ClientEndpoint;

/// A running endpoint. Clones are the same endpoint; all methods may be called from any thread and never wait.
#[derive(Clone)]
pub struct ClientEndpointHandle(Arc<Shared>);

/// The endpoint's state, shared by its handle and its tasks.
struct Shared {
    id: ReplicaId,
    cluster: Digest,
    version: u16,
    limits: ClientLimits,
    sink: ClientSink,
    thread: Arc<ThreadCore>,
    endpoint: EndpointSlot,
    connections: RwLock<BTreeMap<ClientConnectionId, Arc<Connected>>>,
    /// Who is connected, those between TLS and hello included.
    per_key: Mutex<BTreeMap<PublicKey, Key>>,
    gate: Arc<Gate>,
    patience: Arc<Patience>,
    /// Credit of all clients together: for long frames under way, and for what was delivered.
    partial: Pool,
    delivered: Pool,
    traffic: Arc<Traffic>,
    refusals: Arc<Refusals>,
    warnings: Throttle,
    next_id: AtomicU64,
}

/// A connection that has got through the hello.
struct Connected {
    client: PublicKey,
    connection: quinn::Connection,
    lane: Arc<Lane>,
}

impl ClientEndpoint {
    /// Starts to accept on `thread`.
    ///
    /// # Errors
    /// [`TransportError::Bind`] when the socket is refused, [`TransportError::Tls`] for the key.
    pub fn start(
        thread: &TransportThread,
        config: ClientEndpointConfig,
        sink: ClientSink,
    ) -> Result<ClientEndpointHandle, TransportError> {
        let limits = config.limits;
        let refusals = Arc::new(Refusals::default());
        let allowed = count_unknown(config.allowed, &refusals);
        let mut server = tls::server_config(&config.key, allowed, ALPN_CLIENT)?;
        harden(&mut server, &limits.transport, limits.handshakes.half_open_max);
        let (address, socket) = config.port.into_parts();
        let endpoint = thread
            .core()
            .endpoint(endpoint_config(&config.key, &limits.transport), server, socket)
            .map_err(|source| TransportError::Bind { address, source })?;
        let shared = Arc::new(Shared {
            id: config.id,
            cluster: config.cluster,
            version: config.version,
            limits,
            sink,
            thread: Arc::clone(thread.core()),
            endpoint,
            connections: RwLock::default(),
            per_key: Mutex::default(),
            gate: Gate::new(limits.handshakes),
            patience: config.patience,
            partial: Pool::new(limits.inbound_bytes_total_max, limits.frame_max),
            delivered: Pool::new(limits.inbound_bytes_total_max, limits.frame_max),
            traffic: Arc::default(),
            refusals,
            warnings: Throttle::default(),
            next_id: AtomicU64::new(1),
        });
        shared.thread.runtime.spawn(connection::accept(Arc::clone(&shared)));
        Ok(ClientEndpointHandle(shared))
    }
}

fn count_unknown(registry: ClientRegistry, refusals: &Arc<Refusals>) -> ClientRegistry {
    let refusals = Arc::clone(refusals);
    let warnings = Throttle::default();
    Arc::new(move |key| {
        let known = registry(key);
        if !known {
            refusals.unknown_keys.add(1);
            if let Some(others) = warnings.pass() {
                tracing::warn!(%key, others, "refused a client: its key is not registered");
            }
        }
        known
    })
}

impl ClientEndpointHandle {
    /// The address that the endpoint listens on.
    pub fn local_address(&self) -> SocketAddr {
        self.0.endpoint.address
    }

    /// Queues a frame for one connection. False when it was dropped, which is also counted: the connection is gone,
    /// its queue is full, the frame is empty or over the cap.
    pub fn reply(&self, to: ClientConnectionId, frame: Bytes) -> bool {
        self.reply_many([(to, frame)]) == 1
    }

    /// Queues several frames and wakes the transport once. Returns how many were not dropped.
    pub fn reply_many(
        &self,
        replies: impl IntoIterator<Item = (ClientConnectionId, Bytes)>,
    ) -> usize {
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        let mut queued = 0;
        let mut ring = false;
        for (to, frame) in replies {
            match connections.get(&to).map(|connected| connected.lane.push(frame)) {
                Some(Pushed::Queued) => queued += 1,
                Some(Pushed::Listed) => {
                    queued += 1;
                    ring = true;
                }
                Some(Pushed::Full | Pushed::TooLong) => {}
                None => self.0.traffic.absent.add(1),
            }
        }
        drop(connections);
        if ring {
            self.0.thread.doorbell.ring();
        }
        queued
    }

    /// The key behind a connection, while it lasts.
    pub fn client(&self, connection: ClientConnectionId) -> Option<PublicKey> {
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        connections.get(&connection).map(|connected| connected.client)
    }

    /// Closes the connections whose key `keep` refuses, after the registry has changed.
    pub fn retain(&self, keep: impl Fn(&PublicKey) -> bool) {
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        for connected in connections.values().filter(|connected| !keep(&connected.client)) {
            connected.connection.close(CloseCode::NotAllowed.code(), b"no longer registered");
        }
    }

    /// Closes one connection, with a reason that the client shows to its user.
    pub fn close(&self, connection: ClientConnectionId, code: CloseCode, reason: &str) {
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(connected) = connections.get(&connection) {
            connected.connection.close(code.code(), reason.as_bytes());
        }
    }

    /// What was counted since the start.
    pub fn counters(&self) -> ClientCounters {
        let Shared { traffic, refusals, patience, .. } = &*self.0;
        let connections = self.0.connections.read().unwrap_or_else(PoisonError::into_inner);
        ClientCounters {
            open: connections.len() as u64,
            connections: traffic.connections.get(),
            bytes_sent: traffic.bytes_sent.get(),
            bytes_received: traffic.bytes_received.get(),
            frames_sent: traffic.frames_sent.get(),
            frames_received: traffic.frames_received.get(),
            dropped_full: traffic.full.get(),
            dropped_gone: traffic.absent.get(),
            dropped_too_long: traffic.too_long.get(),
            misbehaved: traffic.misbehaved.get(),
            held_back: patience.held_back(),
            unknown_keys: refusals.unknown_keys.get(),
            handshakes_failed: refusals.handshakes_failed.get(),
            hellos_refused: refusals.hellos_refused.get(),
            quota_refused: refusals.quota_refused.get(),
            rate_limited: refusals.rate_limited.get(),
        }
    }

    /// Closes all connections in order and the endpoint.
    pub fn shutdown(&self) {
        self.0.endpoint.close();
    }
}

impl Shared {
    /// The hello that a client must send here.
    fn expected(&self) -> Hello {
        Hello {
            version: self.version,
            role: Role::Client,
            cluster: self.cluster,
            from: Hello::NO_REPLICA,
            to: self.id.0,
        }
    }

    /// The answer to it.
    fn answer(&self) -> Hello {
        Hello { role: Role::Node, from: self.id.0, to: Hello::NO_REPLICA, ..self.expected() }
    }

    fn lane(&self) -> Arc<Lane> {
        let caps = LaneCaps {
            frame_max: self.limits.reply_max,
            frames_max: self.limits.queue_frames_max,
            bytes_max: self.limits.queue_bytes_max,
        };
        Lane::new(caps, &self.thread.doorbell, &self.traffic)
    }

    fn keys(&self) -> MutexGuard<'_, BTreeMap<PublicKey, Key>> {
        self.per_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one of the key's places, unless all are taken.
    fn admit_key(self: &Arc<Self>, client: PublicKey) -> Option<KeyPlace> {
        let mut keys = self.keys();
        let key = keys.entry(client).or_insert_with(|| Key {
            connections: 0,
            pool: Pool::new(self.limits.inbound_bytes_max, self.limits.frame_max),
        });
        if key.connections >= self.limits.connections_per_key_max {
            return None;
        }
        key.connections += 1;
        let pool = key.pool.clone();
        Some(KeyPlace { shared: Arc::clone(self), client, pool })
    }

    fn next_id(&self) -> ClientConnectionId {
        ClientConnectionId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }
}

/// A key with connections.
struct Key {
    connections: usize,
    /// Credit of all of them.
    pool: Pool,
}

/// One of a key's places, taken until this is dropped.
struct KeyPlace {
    shared: Arc<Shared>,
    client: PublicKey,
    pool: Pool,
}

impl KeyPlace {
    fn pools(&self) -> Pools {
        let (partial, shared) = (self.shared.partial.clone(), self.shared.delivered.clone());
        Pools { own: self.pool.clone(), partial: Some(partial), shared: Some(shared) }
    }
}

impl Drop for KeyPlace {
    fn drop(&mut self) {
        let mut keys = self.shared.keys();
        if let Some(key) = keys.get_mut(&self.client) {
            key.connections -= 1;
            if key.connections == 0 {
                keys.remove(&self.client);
            }
        }
    }
}
