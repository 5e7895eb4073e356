//! What the transport is told when it starts, and where its events go.

use super::{Node, NodeError};
use crate::runtime::event::Event;
use crate::runtime::gateway::Gateway;
use crate::runtime::inbox::{Inbox, Source};
use crate::runtime::routes::ConnectionId;
use crate::runtime::verify::Verify;
use crate::transfer::Transfer;
use crate::transport::{
    Class, ClientEndpoint, ClientEndpointConfig, ClientEndpointHandle, ClientEvent, ClientLimits,
    Peer, PeerEvent, PeerLimits, PeerMesh, PeerMeshConfig, PeerMeshHandle, Port, TransportThread,
};
use conclave_consensus::engine::{Engine, Input};
use conclave_consensus::types::ReplicaId;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// A handle that is known only after what uses it was made. Emptied at the stop: the handle and its
/// user hold each other, and a ledger that is held cannot be opened again.
pub(super) struct Late<T>(Arc<RwLock<Option<T>>>);

impl<T> Clone for Late<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Late<T> {
    pub(super) fn new() -> Self {
        Self(Arc::new(RwLock::new(None)))
    }

    pub(super) fn set(&self, value: Option<T>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    pub(super) fn get(&self) -> Option<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(super) fn start_mesh<E: Engine + 'static>(
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
        patience: verify.peer_patience(),
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
            for (place, frame) in delivery.frames.into_iter().enumerate() {
                verify.peer(from, place, frame, &credit);
            }
        }
    };
    Ok(PeerMesh::start(transport, config, Arc::new(sink))?)
}

pub(super) fn start_clients(
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
        patience: gateway.shared.patience.clone(),
        limits: node.client_limits(),
    };
    // The sink needs the handle that starting returns; frames come only after a handshake.
    let endpoint = late.clone();
    let sink = move |event: ClientEvent| match event {
        ClientEvent::Connected { connection, client } => {
            gateway.routes.up(ConnectionId(connection.0), client);
        }
        ClientEvent::Disconnected { connection } => {
            gateway.down(ConnectionId(connection.0));
        }
        ClientEvent::Frames { connection, client, delivery } => {
            let Some(endpoint) = endpoint.get() else { return };
            let connection = ConnectionId(connection.0);
            for (place, frame) in delivery.frames.iter().enumerate() {
                gateway.frame(&endpoint, connection, client, place, frame);
            }
        }
    };
    let handle = ClientEndpoint::start(transport, config, Arc::new(sink))?;
    late.set(Some(handle.clone()));
    Ok(handle)
}

pub(super) fn bytes_sent(mesh: &PeerMeshHandle, clients: &ClientEndpointHandle) -> u64 {
    let peers: u64 = mesh.peer_counters().values().map(|c| c.bytes_sent).sum();
    peers + clients.counters().bytes_sent
}

impl Node {
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
