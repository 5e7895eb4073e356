//! Who dials, who accepts, and what is said before a connection counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use conclave_crypto::framing::{ALPN_PEER, CloseCode};
use conclave_crypto::tls;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rand::RngExt as _;
use tokio::time::timeout;

use super::super::admission::Place;
use super::super::inbound::{End, read_hello, write_hello};
use super::connection;
use super::{Class, Member, Mesh};

/// A connection that lasted this long was a good one: the next dial starts from the shortest pause.
const GOOD: Duration = Duration::from_secs(2);

/// Accepts connections until the endpoint is closed. Tasks are bounded by the half-open places and one live connection
/// per member.
pub(super) async fn accept(mesh: Arc<Mesh>) {
    let Some(endpoint) = mesh.endpoint.endpoint() else { return };
    while let Some(incoming) = endpoint.accept().await {
        if let Some((incoming, place)) = mesh.gate.admit(incoming, &mesh.refusals) {
            tokio::spawn(serve(Arc::clone(&mesh), incoming, place));
        }
    }
}

/// One accepted connection, from its first packet to its end.
async fn serve(mesh: Arc<Mesh>, incoming: quinn::Incoming, place: Place) {
    let address = incoming.remote_address();
    let greeted = timeout(mesh.limits.hello_time, async {
        let connection = incoming.await.map_err(|error| error.to_string())?;
        let welcomed = welcome(&mesh, &connection).await;
        Ok::<_, String>((connection, welcomed))
    });
    match greeted.await {
        Ok(Ok((connection, Ok((member, send, receive))))) => {
            drop(place);
            connection::run(&mesh, &member, connection, send, receive).await;
        }
        Ok(Ok((connection, Err(end)))) => refuse(&mesh, &connection, end),
        Ok(Err(reason)) => unmade(&mesh, address, &reason),
        // The connection is dropped with its future, which closes it.
        Err(_) => unmade(&mesh, address, "no hello in time"),
    }
}

/// The accepting side of the hello.
async fn welcome(
    mesh: &Mesh,
    connection: &Connection,
) -> Result<(Arc<Member>, SendStream, RecvStream), End> {
    let key = tls::peer_key(connection);
    let member = key.and_then(|key| mesh.member_with(&key)).ok_or_else(|| {
        // The membership has changed since TLS asked for it.
        End::Fault(CloseCode::NotAllowed, "the key is no member's".to_owned())
    })?;
    if member.id >= mesh.id {
        let reason = format!("replica {} waits to be dialled by {}", member.id, mesh.id);
        return Err(End::Fault(CloseCode::Identity, reason));
    }
    let receive = greeting(mesh, &member, connection).await?;
    let send = greet(mesh, &member, connection).await?;
    Ok((member, send, receive))
}

/// Opens the stream for votes with this side's hello.
async fn greet(mesh: &Mesh, member: &Member, connection: &Connection) -> Result<SendStream, End> {
    let mut stream = connection.open_uni().await.map_err(|_| End::Closed)?;
    let _ = stream.set_priority(Class::Vote.priority());
    let hello = mesh.hello(mesh.id, member.id);
    write_hello(&mut stream, &[Class::Vote.tag()], &hello).await?;
    Ok(stream)
}

/// Takes the other side's stream for votes and checks its hello.
async fn greeting(
    mesh: &Mesh,
    member: &Member,
    connection: &Connection,
) -> Result<RecvStream, End> {
    let mut stream = connection.accept_uni().await.map_err(|_| End::Closed)?;
    let mut tag = [0];
    stream.read_exact(&mut tag).await?;
    if Class::from_tag(tag[0]) != Some(Class::Vote) {
        let reason = "the first stream is not the one for votes".to_owned();
        return Err(End::Fault(CloseCode::Malformed, reason));
    }
    read_hello(&mut stream, &mesh.hello(member.id, mesh.id)).await?;
    Ok(stream)
}

/// Closes a connection whose hello did not do, and says why on both sides.
fn refuse(mesh: &Mesh, connection: &Connection, end: End) {
    let address = connection.remote_address();
    match end {
        End::Fault(code, reason) => {
            connection.close(code.code(), reason.as_bytes());
            mesh.refusals.hellos_refused.add(1);
            if let Some(others) = mesh.warnings.pass() {
                tracing::warn!(%address, ?code, reason, others, "refused a peer's hello");
            }
        }
        End::Closed | End::Finished => {
            connection.close(CloseCode::Malformed.code(), b"no hello");
            unmade(mesh, address, &closed_because(connection));
        }
    }
}

fn unmade(mesh: &Mesh, address: SocketAddr, reason: &str) {
    mesh.refusals.handshakes_failed.add(1);
    if let Some(others) = mesh.warnings.pass() {
        tracing::warn!(%address, reason, others, "a peer's connection was not made");
    }
}

fn closed_because(connection: &Connection) -> String {
    connection.close_reason().map_or_else(String::new, |error| error.to_string())
}

/// Dials one peer for as long as both are members and the mesh runs.
pub(super) async fn dial(mesh: Arc<Mesh>, member: Arc<Member>) {
    let mut stopping = mesh.stop.subscribe();
    let mut pause = mesh.limits.backoff_min;
    let mut reported = None;
    while mesh.is_member(&member) {
        let dialled = tokio::select! {
            dialled = timeout(mesh.limits.hello_time, call(&mesh, &member)) => dialled,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        let reason = match dialled {
            Ok(Ok((connection, send, receive))) => {
                reported = None;
                let since = Instant::now();
                // It ends with the endpoint, so there is no need to watch for the stop.
                connection::run(&mesh, &member, connection, send, receive).await;
                if since.elapsed() >= GOOD {
                    pause = mesh.limits.backoff_min;
                }
                None
            }
            Ok(Err(reason)) => Some(reason),
            Err(_) => Some("no answer".to_owned()),
        };
        if let Some(reason) = reason
            && reported.as_ref() != Some(&reason)
        {
            // A peer that is down stays silent in the log until something about it changes.
            tracing::warn!(peer = %member.id, address = %member.peer.address, reason, "cannot reach a peer");
            reported = Some(reason);
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        pause = (pause * 2).min(mesh.limits.backoff_max);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
    }
}

/// One attempt: resolve, connect, hello and answer.
async fn call(
    mesh: &Arc<Mesh>,
    member: &Arc<Member>,
) -> Result<(Connection, SendStream, RecvStream), String> {
    let address = resolve(&member.peer.address).await?;
    let mut config = tls::client_config(&mesh.key, member.peer.key, ALPN_PEER)
        .map_err(|error| error.to_string())?;
    config.transport_config(mesh.limits.transport.config());
    let endpoint = mesh.endpoint.endpoint().ok_or("the node stops")?;
    let connecting = endpoint
        .connect_with(config, address, tls::SERVER_NAME)
        .map_err(|error| error.to_string())?;
    let connection = connecting.await.map_err(|error| error.to_string())?;
    let greeted = async {
        let send = greet(mesh, member, &connection).await?;
        let receive = greeting(mesh, member, &connection).await?;
        Ok((send, receive))
    };
    match greeted.await {
        Ok((send, receive)) => Ok((connection, send, receive)),
        Err(End::Fault(code, reason)) => {
            connection.close(code.code(), reason.as_bytes());
            mesh.refusals.hellos_refused.add(1);
            Err(reason)
        }
        Err(End::Closed | End::Finished) => {
            let reason = closed_because(&connection);
            connection.close(VarInt::from_u32(0), b"");
            Err(reason)
        }
    }
}

async fn resolve(address: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    let mut found = tokio::net::lookup_host(address).await.map_err(|error| error.to_string())?;
    found.next().ok_or_else(|| format!("{address} has no address"))
}
