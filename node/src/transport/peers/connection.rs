//! A connection that has got through the hello, until it ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use conclave_crypto::framing::CloseCode;
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::inbound::{End, FrameReader};
use super::super::lane::{Lane, write_lane};
use super::{Class, Live, Member, Mesh, PeerEvent};

/// What a task of a connection comes back with.
enum Outcome {
    /// The connection is over.
    Ended(End),
    /// The peer's stream for this class has begun.
    Begun(Class, RecvStream),
}

/// Serves the connection as the one that counts, until it is closed, lost or replaced.
pub(super) async fn run(
    mesh: &Arc<Mesh>,
    member: &Arc<Member>,
    connection: Connection,
    votes_out: SendStream,
    votes_in: RecvStream,
) {
    let Ok(Ok(mut streams)) = timeout(mesh.limits.hello_time, open_others(&connection)).await
    else {
        return;
    };
    streams.insert(0, votes_out);
    let Some(up) = Up::new(mesh, member, &connection) else {
        connection.close(CloseCode::NotAllowed.code(), b"no longer a member");
        return;
    };
    let mut tasks = JoinSet::new();
    for (lane, stream) in up.lanes.clone().into_iter().zip(streams) {
        tasks.spawn(async move { Outcome::Ended(write_lane(lane, stream).await.into()) });
    }
    tasks.spawn(read(up.inbound(), Class::Vote, votes_in));
    let end = supervise(&up, &mut tasks).await;
    if let Some((code, reason)) = fault(end) {
        connection.close(code.code(), reason.as_bytes());
        member.traffic.misbehaved.add(1);
        tracing::warn!(peer = %member.id, ?code, reason, "a peer broke the rules of its connection");
    }
    // Readers go before the peer is said to be down: nothing may be delivered afterwards.
    drop(tasks);
    drop(up);
}

/// Takes the peer's other streams as they come, until something ends the connection.
async fn supervise(up: &Up<'_>, tasks: &mut JoinSet<Outcome>) -> End {
    let mut missing = vec![Class::Body, Class::Bulk];
    let mut accepted = 0;
    loop {
        tokio::select! {
            _ = up.connection.closed() => return End::Closed,
            outcome = tasks.join_next() => match outcome {
                Some(Ok(Outcome::Begun(class, stream))) => {
                    let Some(at) = missing.iter().position(|other| *other == class) else {
                        return malformed(format!("a second stream for {class:?}"));
                    };
                    missing.swap_remove(at);
                    tasks.spawn(read(up.inbound(), class, stream));
                }
                Some(Ok(Outcome::Ended(end))) => return end,
                // A writer or reader that panicked takes its connection with it, and nothing else.
                Some(Err(_)) | None => return End::Closed,
            },
            stream = up.connection.accept_uni() => {
                let Ok(stream) = stream else { return End::Closed };
                accepted += 1;
                if accepted > 2 {
                    return malformed("more streams than there are classes".to_owned());
                }
                tasks.spawn(identify(Arc::clone(up.mesh), stream));
            }
        }
    }
}

fn malformed(reason: String) -> End {
    End::Fault(CloseCode::Malformed, reason)
}

/// What the peer did wrong, if it was its doing.
fn fault(end: End) -> Option<(CloseCode, String)> {
    match end {
        End::Closed => None,
        End::Finished => Some((CloseCode::Malformed, "a stream ended".to_owned())),
        End::Fault(code, reason) => Some((code, reason)),
    }
}

/// Opens this side's streams for bodies and bulk, in this order.
async fn open_others(connection: &Connection) -> Result<Vec<SendStream>, End> {
    let mut streams = Vec::with_capacity(3);
    for class in [Class::Body, Class::Bulk] {
        let mut stream = connection.open_uni().await.map_err(|_| End::Closed)?;
        let _ = stream.set_priority(class.priority());
        stream.write_all(&[class.tag()]).await?;
        streams.push(stream);
    }
    Ok(streams)
}

/// Reads the first byte of a stream.
async fn identify(mesh: Arc<Mesh>, mut stream: RecvStream) -> Outcome {
    let mut tag = [0];
    match timeout(mesh.limits.hello_time, stream.read_exact(&mut tag)).await {
        Ok(Ok(())) => match Class::from_tag(tag[0]) {
            Some(class) => Outcome::Begun(class, stream),
            None => Outcome::Ended(malformed(format!("a stream of unknown class {}", tag[0]))),
        },
        Ok(Err(error)) => Outcome::Ended(error.into()),
        Err(_) => {
            let reason = "a stream did not name its class in time".to_owned();
            Outcome::Ended(End::Fault(CloseCode::TooSlow, reason))
        }
    }
}

/// What the readers of a connection share.
struct Inbound {
    mesh: Arc<Mesh>,
    member: Arc<Member>,
    current: Arc<AtomicBool>,
}

/// Delivers the frames of one stream to the sink.
async fn read(inbound: Inbound, class: Class, stream: RecvStream) -> Outcome {
    let Inbound { mesh, member, current } = inbound;
    let mut reader = FrameReader::new(
        stream,
        mesh.limits.class(class).frame_max,
        mesh.limits.frame_time,
        member.pools[class.index()].clone(),
        &member.traffic,
    );
    loop {
        mesh.patience.regained(&member.peer.key).await;
        match reader.next().await {
            Ok(delivery) if current.load(Ordering::Acquire) => {
                (mesh.sink)(PeerEvent::Frames { from: member.id, class, delivery });
            }
            Ok(_) => return Outcome::Ended(End::Closed),
            Err(end) => return Outcome::Ended(end),
        }
    }
}

/// The connection while it is the one that counts. The peer is up as long as this lives, unless a newer connection
/// takes its place.
struct Up<'a> {
    mesh: &'a Arc<Mesh>,
    member: &'a Arc<Member>,
    connection: Connection,
    generation: u64,
    lanes: [Arc<Lane>; 3],
    current: Arc<AtomicBool>,
}

impl<'a> Up<'a> {
    /// Puts the connection in the place of an older one. `None` when the peer is no member any more.
    fn new(mesh: &'a Arc<Mesh>, member: &'a Arc<Member>, connection: &Connection) -> Option<Self> {
        let up = Self {
            mesh,
            member,
            connection: connection.clone(),
            generation: mesh.generations.fetch_add(1, Ordering::Relaxed),
            lanes: member.lanes(mesh),
            current: Arc::new(AtomicBool::new(true)),
        };
        let live = Live {
            generation: up.generation,
            connection: up.connection.clone(),
            lanes: up.lanes.clone(),
            current: Arc::clone(&up.current),
        };
        let older = member.live.lock().unwrap_or_else(PoisonError::into_inner).replace(live);
        if let Some(older) = older {
            older.current.store(false, Ordering::Release);
            older.connection.close(CloseCode::Superseded.code(), b"a newer connection took over");
            tracing::info!(peer = %member.id, "a newer connection took over");
            (mesh.sink)(PeerEvent::Down(member.id));
        }
        member.traffic.connections.add(1);
        tracing::info!(peer = %member.id, address = %connection.remote_address(), "a peer is up");
        (mesh.sink)(PeerEvent::Up(member.id));
        // Asked only now: who removes the member closes the connection that it finds, or is seen here.
        mesh.is_member(member).then_some(up)
    }

    fn inbound(&self) -> Inbound {
        Inbound {
            mesh: Arc::clone(self.mesh),
            member: Arc::clone(self.member),
            current: Arc::clone(&self.current),
        }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.current.store(false, Ordering::Release);
        let mut live = self.member.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.take_if(|live| live.generation == self.generation).is_none() {
            return;
        }
        drop(live);
        let reason = self.connection.close_reason().map(|error| error.to_string());
        tracing::info!(peer = %self.member.id, reason, "a peer is down");
        (self.mesh.sink)(PeerEvent::Down(self.member.id));
    }
}
