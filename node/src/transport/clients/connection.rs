//! A client's connection, from its first packet to its end.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use conclave_crypto::framing::CloseCode;
use conclave_crypto::{PublicKey, tls};
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::timeout;

use super::super::admission::Place;
use super::super::inbound::{End, FrameReader, Pools, read_hello, write_hello};
use super::super::lane::write_lane;
use super::{ClientConnectionId, ClientEvent, Connected, KeyPlace, Shared};

/// Accepts connections until the endpoint is closed. Tasks are bounded by the quotas.
pub(super) async fn accept(shared: Arc<Shared>) {
    let Some(endpoint) = shared.endpoint.endpoint() else { return };
    while let Some(incoming) = endpoint.accept().await {
        if endpoint.open_connections() >= shared.limits.connections_max {
            shared.refusals.quota_refused.add(1);
            incoming.refuse();
            continue;
        }
        if let Some((incoming, place)) = shared.gate.admit(incoming, &shared.refusals) {
            tokio::spawn(serve(Arc::clone(&shared), incoming, place));
        }
    }
}

async fn serve(shared: Arc<Shared>, incoming: quinn::Incoming, place: Place) {
    let address = incoming.remote_address();
    let greeted = timeout(shared.limits.hello_time, async {
        let connection = incoming.await.map_err(|error| error.to_string())?;
        let welcomed = welcome(&shared, &connection).await;
        Ok::<_, String>((connection, welcomed))
    });
    match greeted.await {
        Ok(Ok((connection, Ok(welcomed)))) => {
            drop(place);
            run(&shared, connection, welcomed).await;
        }
        Ok(Ok((connection, Err(end)))) => refuse(&shared, &connection, end),
        Ok(Err(reason)) => unmade(&shared, address, &reason),
        // The connection is dropped with its future, which closes it.
        Err(_) => unmade(&shared, address, "no hello in time"),
    }
}

/// A client that has said the right hello.
struct Welcomed {
    client: PublicKey,
    place: KeyPlace,
    replies: SendStream,
    requests: RecvStream,
}

async fn welcome(shared: &Arc<Shared>, connection: &Connection) -> Result<Welcomed, End> {
    let client = tls::peer_key(connection).ok_or_else(|| {
        End::Fault(CloseCode::NotAllowed, "the handshake showed no key".to_owned())
    })?;
    let place = shared.admit_key(client).ok_or_else(|| {
        shared.refusals.quota_refused.add(1);
        let most = shared.limits.connections_per_key_max;
        End::Fault(CloseCode::Quota, format!("this key has {most} connections already"))
    })?;
    let (mut replies, mut requests) = connection.accept_bi().await.map_err(|_| End::Closed)?;
    read_hello(&mut requests, &shared.expected()).await?;
    write_hello(&mut replies, &[], &shared.answer()).await?;
    Ok(Welcomed { client, place, replies, requests })
}

fn refuse(shared: &Shared, connection: &Connection, end: End) {
    let address = connection.remote_address();
    if let End::Fault(code, reason) = end {
        connection.close(code.code(), reason.as_bytes());
        shared.refusals.hellos_refused.add(1);
        if let Some(others) = shared.warnings.pass() {
            tracing::warn!(%address, ?code, reason, others, "refused a client");
        }
    } else {
        connection.close(CloseCode::Malformed.code(), b"no hello");
        unmade(shared, address, "closed before the hello");
    }
}

fn unmade(shared: &Shared, address: SocketAddr, reason: &str) {
    shared.refusals.handshakes_failed.add(1);
    if let Some(others) = shared.warnings.pass() {
        tracing::warn!(%address, reason, others, "a client's connection was not made");
    }
}

/// Serves a client until its connection ends.
async fn run(shared: &Arc<Shared>, connection: Connection, welcomed: Welcomed) {
    let Welcomed { client, place, replies, requests } = welcomed;
    let id = shared.next_id();
    let registered = Registered::new(shared, id, client, &connection);
    let lane = Arc::clone(&registered.connected.lane);
    let end = tokio::select! {
        _ = connection.closed() => End::Closed,
        end = write_lane(lane, replies) => end.into(),
        end = read(shared, id, client, place.pools(), requests) => end,
    };
    match end {
        End::Closed => {}
        End::Finished => connection.close(CloseCode::Shutdown.code(), b"the client has finished"),
        End::Fault(code, reason) => {
            connection.close(code.code(), reason.as_bytes());
            shared.traffic.misbehaved.add(1);
            if let Some(others) = shared.warnings.pass() {
                tracing::warn!(%id, %client, ?code, reason, others, "a client broke the rules");
            }
        }
    }
    drop(registered);
    drop(place);
}

/// Delivers the client's frames to the sink.
async fn read(
    shared: &Arc<Shared>,
    connection: ClientConnectionId,
    client: PublicKey,
    pools: Pools,
    requests: RecvStream,
) -> End {
    let mut reader = FrameReader::new(
        requests,
        shared.limits.frame_max,
        shared.limits.frame_time,
        pools,
        &shared.traffic,
    );
    loop {
        shared.patience.regained(&client).await;
        match reader.next().await {
            Ok(delivery) => {
                (shared.sink)(ClientEvent::Frames { connection, client, delivery });
            }
            Err(end) => return end,
        }
    }
}

/// The entry of a connection among those that can be replied to.
struct Registered<'a> {
    shared: &'a Arc<Shared>,
    id: ClientConnectionId,
    connected: Arc<Connected>,
}

impl<'a> Registered<'a> {
    fn new(
        shared: &'a Arc<Shared>,
        id: ClientConnectionId,
        client: PublicKey,
        connection: &Connection,
    ) -> Self {
        let address = connection.remote_address();
        let connected =
            Arc::new(Connected { client, connection: connection.clone(), lane: shared.lane() });
        let mut connections = shared.connections.write().unwrap_or_else(PoisonError::into_inner);
        connections.insert(id, Arc::clone(&connected));
        drop(connections);
        shared.traffic.connections.add(1);
        tracing::debug!(%id, %client, %address, "a client connected");
        (shared.sink)(ClientEvent::Connected { connection: id, client });
        Self { shared, id, connected }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut connections =
            self.shared.connections.write().unwrap_or_else(PoisonError::into_inner);
        connections.remove(&self.id);
        drop(connections);
        tracing::debug!(id = %self.id, "a client is gone");
        (self.shared.sink)(ClientEvent::Disconnected { connection: self.id });
    }
}
