//! The mesh of replicas: one QUIC endpoint, one connection per pair.
//!
//! Of each pair the replica with the lower id dials, again and again with a growing, jittered pause, and the other
//! accepts, so that two dials never cross. Both know each other's key from the membership. After TLS each side sends a
//! hello on the stream for votes; the accepting side only answers one that it agrees with, and nothing else is read
//! before.
//!
//! The newest connection of a pair that has got through the hello is the one that counts. A replica that was restarted
//! dials while its peer still holds the old connection, and only the new one can be alive.
//!
//! Streams are unidirectional, one per class and direction, for the life of the connection. Each starts with one byte:
//!
//! | byte | stream                                |
//! |------|---------------------------------------|
//! | 1    | [`Class::Vote`]; its first frame is the hello |
//! | 2    | [`Class::Body`]                       |
//! | 3    | [`Class::Bulk`]                       |
//!
//! A second stream of a class, a stream that ends, a frame over the cap: each closes the connection with a code and a
//! reason, and harms nobody else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use conclave_consensus::types::ReplicaId;
use conclave_crypto::framing::{ALPN_PEER, CloseCode, Hello, Role};
use conclave_crypto::{Digest, PublicKey, SecretKey, tls};
use tokio::sync::watch;

use super::admission::Gate;
use super::counters::{Refusals, Traffic};
use super::inbound::{Pool, Pools};
use super::lane::{Lane, LaneCaps, Pushed};
use super::limits::{Throttle, endpoint_config, harden};
use super::thread::{EndpointSlot, ThreadCore};
use super::{
    Class, Delivery, MeshCounters, Patience, PeerCounters, PeerLimits, Port, TransportError,
    TransportThread,
};

mod connect;
mod connection;

/// A member of the cluster, as the mesh needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The key that it proves in TLS.
    pub key: PublicKey,
    /// `host:port` or `address:port`; names are resolved anew for each dial.
    pub address: String,
}

/// What a mesh is started with.
pub struct PeerMeshConfig {
    /// This replica.
    pub id: ReplicaId,
    /// This replica's key.
    pub key: Arc<SecretKey>,
    /// Where to listen.
    pub port: Port,
    /// All other members; an entry for this replica is ignored.
    pub peers: BTreeMap<ReplicaId, Peer>,
    /// Digest of the genesis.
    pub cluster: Digest,
    /// Protocol version, normally [`PROTOCOL_VERSION`](conclave_crypto::framing::PROTOCOL_VERSION).
    pub version: u16,
    /// Which peers are listened to.
    pub patience: Arc<Patience>,
    /// All caps.
    pub limits: PeerLimits,
}

/// What the mesh tells its sink. All events come from the transport's thread, in order.
#[derive(Debug)]
pub enum PeerEvent {
    /// A connection has got through both hellos: frames can be sent.
    Up(ReplicaId),
    /// It is gone; what was queued is lost. A connection that is replaced by a newer one ends with this, too.
    Down(ReplicaId),
    /// Frames of one class, between the peer's [`Up`](Self::Up) and [`Down`](Self::Down).
    Frames {
        /// The peer that the connection authenticates.
        from: ReplicaId,
        /// Which stream they came on.
        class: Class,
        /// The frames.
        delivery: Delivery,
    },
}

/// Receives the mesh's events on the transport's thread: it must hand on and return, never wait.
pub type PeerSink = Arc<dyn Fn(PeerEvent) + Send + Sync>;

/// Starts meshes.
#[derive(Debug)]
pub struct PeerMesh;

/// A running mesh. Clones are the same mesh; all methods may be called from any thread and never wait.
#[derive(Clone)]
pub struct PeerMeshHandle(Arc<Mesh>);

/// The mesh's state, shared by its handle and its tasks.
struct Mesh {
    id: ReplicaId,
    key: Arc<SecretKey>,
    cluster: Digest,
    version: u16,
    limits: PeerLimits,
    sink: PeerSink,
    thread: Arc<ThreadCore>,
    endpoint: EndpointSlot,
    members: Members,
    gate: Arc<Gate>,
    patience: Arc<Patience>,
    refusals: Arc<Refusals>,
    warnings: Throttle,
    generations: AtomicU64,
    stop: watch::Sender<bool>,
}

/// The present members but this replica, shared with the TLS settings.
type Members = Arc<RwLock<BTreeMap<ReplicaId, Arc<Member>>>>;

/// One peer and what is kept of it across connections.
struct Member {
    id: ReplicaId,
    peer: Peer,
    traffic: Arc<Traffic>,
    /// Credit for received frames, by class.
    pools: [Pools; 3],
    live: Mutex<Option<Live>>,
}

/// The connection of a pair that counts.
struct Live {
    generation: u64,
    connection: quinn::Connection,
    lanes: [Arc<Lane>; 3],
    /// False once another connection, or none, counts: its readers deliver nothing more.
    current: Arc<AtomicBool>,
}

impl PeerMesh {
    /// Starts to dial and accept on `thread`.
    ///
    /// # Errors
    /// [`TransportError::Bind`] when the socket is refused, [`TransportError::Tls`] for the key.
    pub fn start(
        thread: &TransportThread,
        config: PeerMeshConfig,
        sink: PeerSink,
    ) -> Result<PeerMeshHandle, TransportError> {
        let limits = config.limits;
        let members = Members::default();
        let refusals = Arc::new(Refusals::default());
        let allowed = allow_members(&members, &refusals);
        let mut server = tls::server_config(&config.key, allowed, ALPN_PEER)?;
        harden(&mut server, &limits.transport, limits.handshakes.half_open_max);
        let (address, socket) = config.port.into_parts();
        let endpoint = thread
            .core()
            .endpoint(endpoint_config(&config.key, &limits.transport), server, socket)
            .map_err(|source| TransportError::Bind { address, source })?;
        let mesh = Arc::new(Mesh {
            id: config.id,
            key: config.key,
            cluster: config.cluster,
            version: config.version,
            limits,
            sink,
            thread: Arc::clone(thread.core()),
            endpoint,
            members,
            gate: Gate::new(limits.handshakes),
            patience: config.patience,
            refusals,
            warnings: Throttle::default(),
            generations: AtomicU64::new(0),
            stop: watch::Sender::new(false),
        });
        let handle = PeerMeshHandle(mesh);
        handle.update_peers(config.peers);
        handle.0.thread.runtime.spawn(connect::accept(Arc::clone(&handle.0)));
        Ok(handle)
    }
}

/// The TLS settings ask this for each handshake. It knows the members, not the mesh: the endpoint keeps it for ever.
fn allow_members(
    members: &Members,
    refusals: &Arc<Refusals>,
) -> Arc<dyn Fn(&PublicKey) -> bool + Send + Sync> {
    let members = Arc::clone(members);
    let refusals = Arc::clone(refusals);
    let warnings = Throttle::default();
    Arc::new(move |key| {
        let members = members.read().unwrap_or_else(PoisonError::into_inner);
        let known = members.values().any(|member| member.peer.key == *key);
        if !known {
            refusals.unknown_keys.add(1);
            if let Some(others) = warnings.pass() {
                tracing::warn!(%key, others, "refused a connection: the key is no member's");
            }
        }
        known
    })
}

impl PeerMeshHandle {
    /// The address that the mesh listens on.
    pub fn local_address(&self) -> SocketAddr {
        self.0.endpoint.address
    }

    /// Queues a frame for one peer. False when it was dropped, which is also counted: no connection, a full queue, a
    /// frame that is empty or over the cap.
    pub fn send(&self, to: ReplicaId, class: Class, frame: Bytes) -> bool {
        let pushed = self.0.push(to, class, frame);
        if pushed == Some(Pushed::Listed) {
            self.0.thread.doorbell.ring();
        }
        matches!(pushed, Some(Pushed::Listed | Pushed::Queued))
    }

    /// Queues several frames and wakes the transport once. Returns how many were not dropped.
    pub fn send_many(&self, frames: impl IntoIterator<Item = (ReplicaId, Class, Bytes)>) -> usize {
        let mut queued = 0;
        let mut ring = false;
        for (to, class, frame) in frames {
            let pushed = self.0.push(to, class, frame);
            ring |= pushed == Some(Pushed::Listed);
            queued += usize::from(matches!(pushed, Some(Pushed::Listed | Pushed::Queued)));
        }
        if ring {
            self.0.thread.doorbell.ring();
        }
        queued
    }

    /// Queues one frame for all peers; they share its memory. Returns how many of them it was queued for.
    pub fn broadcast(&self, class: Class, frame: &Bytes) -> usize {
        let members = self.0.members.read().unwrap_or_else(PoisonError::into_inner);
        let mut queued = 0;
        let mut ring = false;
        for member in members.values() {
            let pushed = member.push(class, frame.clone());
            ring |= pushed == Some(Pushed::Listed);
            queued += usize::from(matches!(pushed, Some(Pushed::Listed | Pushed::Queued)));
        }
        drop(members);
        if ring {
            self.0.thread.doorbell.ring();
        }
        queued
    }

    /// The peers with a connection now, in the order of their ids.
    pub fn peers_up(&self) -> Vec<ReplicaId> {
        let members = self.0.members.read().unwrap_or_else(PoisonError::into_inner);
        members.values().filter(|member| member.is_up()).map(|member| member.id).collect()
    }

    /// Traffic by peer.
    pub fn peer_counters(&self) -> BTreeMap<ReplicaId, PeerCounters> {
        let members = self.0.members.read().unwrap_or_else(PoisonError::into_inner);
        members.values().map(|member| (member.id, member.counters())).collect()
    }

    /// Attempts that came to nothing.
    pub fn counters(&self) -> MeshCounters {
        let refusals = &self.0.refusals;
        MeshCounters {
            unknown_keys: refusals.unknown_keys.get(),
            handshakes_failed: refusals.handshakes_failed.get(),
            hellos_refused: refusals.hellos_refused.get(),
            quota_refused: refusals.quota_refused.get(),
            rate_limited: refusals.rate_limited.get(),
            held_back: self.0.patience.held_back(),
        }
    }

    /// Replaces the membership. Connections of members that are gone, or have another key or address, are closed;
    /// those of all others go on.
    pub fn update_peers(&self, peers: BTreeMap<ReplicaId, Peer>) {
        let mut members = self.0.members.write().unwrap_or_else(PoisonError::into_inner);
        let stays = |member: &Member| peers.get(&member.id) == Some(&member.peer);
        let gone: Vec<_> = members.values().filter(|member| !stays(member)).cloned().collect();
        members.retain(|_, member| stays(member));
        let mut dialed = Vec::new();
        for (id, peer) in peers {
            if id != self.0.id && !members.contains_key(&id) {
                let member = Arc::new(Member::new(id, peer, &self.0.limits));
                dialed.extend((self.0.id < id).then(|| Arc::clone(&member)));
                members.insert(id, member);
            }
        }
        drop(members);
        for member in gone {
            member.dismiss();
        }
        for member in dialed {
            self.0.thread.runtime.spawn(connect::dial(Arc::clone(&self.0), member));
        }
    }

    /// Closes all connections in order and the endpoint. [`PeerEvent::Down`] follows for each peer that was up.
    pub fn shutdown(&self) {
        self.0.stop.send_replace(true);
        self.0.endpoint.close();
    }
}

impl Mesh {
    fn push(&self, to: ReplicaId, class: Class, frame: Bytes) -> Option<Pushed> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.get(&to)?.push(class, frame)
    }

    fn hello(&self, from: ReplicaId, to: ReplicaId) -> Hello {
        Hello {
            version: self.version,
            role: Role::Peer,
            cluster: self.cluster,
            from: from.0,
            to: to.0,
        }
    }

    fn member_with(&self, key: &PublicKey) -> Option<Arc<Member>> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.values().find(|member| member.peer.key == *key).cloned()
    }

    fn is_member(&self, member: &Arc<Member>) -> bool {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.get(&member.id).is_some_and(|present| Arc::ptr_eq(present, member))
    }
}

impl Member {
    fn new(id: ReplicaId, peer: Peer, limits: &PeerLimits) -> Self {
        let pools = Class::ALL.map(|class| {
            let caps = limits.class(class);
            let own = Pool::new(caps.inbound_bytes_max, caps.frame_max);
            Pools { own, partial: None, shared: None }
        });
        Self { id, peer, traffic: Arc::default(), pools, live: Mutex::default() }
    }

    /// `None` when there is no connection, which counts as a drop.
    fn push(&self, class: Class, frame: Bytes) -> Option<Pushed> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(live) = live.as_ref() else {
            self.traffic.absent.add(1);
            return None;
        };
        Some(live.lanes[class.index()].push(frame))
    }

    fn is_up(&self) -> bool {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn counters(&self) -> PeerCounters {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = self.traffic.peer(live.is_some());
        let Some(live) = live.as_ref() else {
            return counters;
        };
        let stats = live.connection.stats();
        PeerCounters {
            packets_sent: stats.udp_tx.datagrams,
            packets_received: stats.udp_rx.datagrams,
            packets_lost: stats.path.lost_packets,
            round_trip_us: u64::try_from(stats.path.rtt.as_micros()).unwrap_or(u64::MAX),
            ..counters
        }
    }

    /// Lanes for a new connection.
    fn lanes(&self, mesh: &Mesh) -> [Arc<Lane>; 3] {
        Class::ALL.map(|class| {
            let limits = mesh.limits.class(class);
            let caps = LaneCaps {
                frame_max: limits.frame_max,
                frames_max: limits.queue_frames_max,
                bytes_max: limits.queue_bytes_max,
            };
            Lane::new(caps, &mesh.thread.doorbell, &self.traffic)
        })
    }

    /// Ends the connection of one that is no member any more. Its `Down` comes from the connection's own task, and its
    /// dialer notices by itself.
    fn dismiss(&self) {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = live.as_ref() {
            live.current.store(false, Ordering::Release);
            live.connection.close(CloseCode::NotAllowed.code(), b"no longer a member");
        }
    }
}
