//! One connection to one replica, for as long as the client lives.
//!
//! A [`Link`] connects, says hello, hands on what comes in, sends what is queued, and connects again
//! after a jittered wait whenever the connection ends. Frames are coalesced both ways: everything
//! queued when the writer runs leaves in one write, and everything received in one poll arrives in
//! one [`Inbound::Frames`].
//!
//! Frames may be lost whenever a connection ends; the session above sends again what still matters.

use bytes::Bytes;
use conclave_consensus::types::ReplicaId;
use conclave_consensus::wire::FRAME_BYTES_MAX;
use conclave_crypto::digest::Digest;
use conclave_crypto::framing::{
    CloseCode, FRAME_HEADER, FrameAssembler, Hello, PROTOCOL_VERSION, Role, frame_header,
};
use conclave_crypto::tls::SERVER_NAME;
use quinn::{ConnectionError, RecvStream, SendStream};
use rand::RngExt as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// Bytes queued for one replica; what does not fit is dropped, and sent again by the session.
const QUEUE_BYTES_MAX: usize = 32 << 20;

/// Pieces of the stream taken in one poll; a piece is what one packet carried.
const PIECES: usize = 64;

/// From the first packet to the replica's hello. A dead replica's host says nothing at all.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// The first wait before connecting again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The wait after a replica said why it does not want this client.
const BACKOFF_REJECTED: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Down {
    /// It may come back at any time.
    Lost(String),
    /// The replica does not accept this client; trying again is unlikely to help.
    Rejected {
        reason: String,
        /// Another cluster or version rather than a missing permission.
        foreign: bool,
    },
}

impl Down {
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Lost(reason) | Self::Rejected { reason, .. } => reason,
        }
    }
}

/// What a link reports.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// The replica answered the hello.
    Connected(ReplicaId),
    /// The connection ended, or could not be made.
    Disconnected(ReplicaId, Down),
    /// Whole frames, in order.
    Frames(ReplicaId, Vec<Bytes>),
}

/// Whom to connect to, and how.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) replica: ReplicaId,
    /// `host:port`.
    pub(crate) address: String,
    pub(crate) cluster: Digest,
    pub(crate) config: quinn::ClientConfig,
}

/// A replica's connection and its queue of outgoing frames. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Link {
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl Link {
    /// Starts to connect. Must be called within a tokio runtime.
    pub(crate) fn start(
        target: Target,
        sockets: Arc<crate::socket::Sockets>,
        inbound: mpsc::Sender<Inbound>,
    ) -> Self {
        let queue = Arc::new(Queue::default());
        let task = tokio::spawn(run(target, sockets, Arc::clone(&queue), inbound));
        Self { queue, task }
    }

    /// Queues one frame; nothing leaves before [`Self::flush`].
    pub(crate) fn queue(&self, payload: &[u8]) {
        let mut waiting = self.queue.lock();
        if waiting.open && waiting.bytes.len() + FRAME_HEADER + payload.len() <= QUEUE_BYTES_MAX {
            waiting.bytes.extend_from_slice(&frame_header(payload.len()));
            waiting.bytes.extend_from_slice(payload);
        }
    }

    /// Lets everything queued leave.
    pub(crate) fn flush(&self) {
        if !self.queue.lock().bytes.is_empty() {
            self.queue.wake.notify_one();
        }
    }

    /// Ends the present connection, which broke the protocol; another one is made after a wait.
    pub(crate) fn reset(&self) {
        self.queue.lock().broken = true;
        self.queue.wake.notify_one();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Frames with their headers.
    bytes: Vec<u8>,
    /// Whether there is a connection to write to.
    open: bool,
    broken: bool,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        // Nothing in the critical sections can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(
    target: Target,
    sockets: Arc<crate::socket::Sockets>,
    queue: Arc<Queue>,
    inbound: mpsc::Sender<Inbound>,
) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let opened = tokio::time::timeout(CONNECT_TIME, open(&target, &sockets)).await;
        let down = match opened {
            Err(_) => Down::Lost(format!("no answer from {}", target.address)),
            Ok(Err(down)) => down,
            Ok(Ok(streams)) => {
                backoff = BACKOFF_MIN;
                *queue.lock() = Waiting { open: true, ..Waiting::default() };
                if inbound.send(Inbound::Connected(target.replica)).await.is_err() {
                    return;
                }
                let down = serve(target.replica, streams, &queue, &inbound).await;
                *queue.lock() = Waiting::default();
                down
            }
        };
        let wait = match &down {
            Down::Rejected { .. } => BACKOFF_REJECTED,
            Down::Lost(_) => backoff,
        };
        if inbound.send(Inbound::Disconnected(target.replica, down)).await.is_err() {
            return;
        }
        // Between half and all of it, so that clients do not come back in step.
        let part = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(wait.mul_f64(part)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

struct Streams {
    connection: quinn::Connection,
    send: SendStream,
    receive: RecvStream,
}

async fn open(target: &Target, sockets: &crate::socket::Sockets) -> Result<Streams, Down> {
    let lost = |error: String| Down::Lost(error);
    let address: SocketAddr = tokio::net::lookup_host(&target.address)
        .await
        .map_err(|error| lost(format!("{} is not found: {error}", target.address)))?
        .next()
        .ok_or_else(|| lost(format!("{} has no address", target.address)))?;
    let endpoint = sockets.endpoint(address).map_err(|error| lost(error.to_string()))?;
    let connection = endpoint
        .connect_with(target.config.clone(), address, SERVER_NAME)
        .map_err(|error| lost(format!("cannot connect to {address}: {error}")))?
        .await
        .map_err(|error| down(&target.address, &error))?;
    hello(target, &connection).await.map_err(|fault| match fault {
        // The reason of a close explains more than the stream that it ended.
        Some(down) => down,
        None => match connection.close_reason() {
            Some(error) => down(&target.address, &error),
            None => lost(format!("{} ended the stream", target.address)),
        },
    })
}

/// Says hello and requires the replica's. `None` stands for a stream that ended.
async fn hello(target: &Target, connection: &quinn::Connection) -> Result<Streams, Option<Down>> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|_| None)?;
    let ours = Hello {
        version: PROTOCOL_VERSION,
        role: Role::Client,
        cluster: target.cluster,
        from: Hello::NO_REPLICA,
        to: target.replica.0,
    };
    let mut frame = frame_header(Hello::SIZE).to_vec();
    frame.extend_from_slice(&ours.encode());
    send.write_all(&frame).await.map_err(|_| None)?;
    let expected =
        Hello { role: Role::Node, from: target.replica.0, to: Hello::NO_REPLICA, ..ours };
    let mut header = [0; FRAME_HEADER];
    receive.read_exact(&mut header).await.map_err(|_| None)?;
    let mut payload = [0; Hello::SIZE];
    let length = (u32::from_le_bytes(header) as usize).min(Hello::SIZE);
    receive.read_exact(&mut payload[..length]).await.map_err(|_| None)?;
    expected.require(&payload[..length]).map_err(|fault| {
        let code = fault.close_code();
        connection.close(code.code(), fault.to_string().as_bytes());
        Some(Down::Rejected { reason: format!("{}: {fault}", target.address), foreign: true })
    })?;
    Ok(Streams { connection: connection.clone(), send, receive })
}

/// Moves frames until the connection ends.
async fn serve(
    replica: ReplicaId,
    streams: Streams,
    queue: &Queue,
    inbound: &mpsc::Sender<Inbound>,
) -> Down {
    let Streams { connection, mut send, mut receive } = streams;
    let fault = tokio::select! {
        fault = read(replica, &mut receive, inbound) => fault,
        fault = write(&mut send, queue) => fault,
    };
    if let Some(code) = fault {
        connection.close(code.code(), b"");
    }
    match connection.close_reason() {
        Some(error) if fault.is_none() => down(&format!("replica {replica}"), &error),
        _ => Down::Lost(format!("replica {replica} broke the protocol")),
    }
}

/// Ends with the code to close the connection with, if the replica broke the protocol.
async fn read(
    replica: ReplicaId,
    receive: &mut RecvStream,
    inbound: &mpsc::Sender<Inbound>,
) -> Option<CloseCode> {
    let mut assembler = FrameAssembler::new(FRAME_BYTES_MAX);
    let mut pieces: Vec<Bytes> = vec![Bytes::new(); PIECES];
    loop {
        let count = receive.read_chunks(&mut pieces).await.ok()??;
        let mut frames = Vec::new();
        let pushed = assembler.push(&pieces[..count], &mut frames);
        for piece in &mut pieces[..count] {
            *piece = Bytes::new();
        }
        if !frames.is_empty() {
            inbound.send(Inbound::Frames(replica, frames)).await.ok()?;
        }
        if let Err(fault) = pushed {
            return Some(fault.into());
        }
    }
}

async fn write(send: &mut SendStream, queue: &Queue) -> Option<CloseCode> {
    loop {
        let bytes = {
            let mut waiting = queue.lock();
            if waiting.broken {
                return Some(CloseCode::Malformed);
            }
            std::mem::take(&mut waiting.bytes)
        };
        if bytes.is_empty() {
            queue.wake.notified().await;
        } else {
            send.write_chunk(Bytes::from(bytes)).await.ok()?;
        }
    }
}

/// What the end of a connection means to a client.
fn down(who: &str, error: &ConnectionError) -> Down {
    let rejected = |reason: String, foreign| Down::Rejected { reason, foreign };
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let said = String::from_utf8_lossy(&close.reason);
            let reason = format!("{who}: {}", if said.is_empty() { "closed" } else { &said });
            match CloseCode::of(error) {
                Some(CloseCode::NotAllowed) => rejected(reason, false),
                Some(CloseCode::Version | CloseCode::Cluster | CloseCode::Identity) => {
                    rejected(reason, true)
                }
                _ => Down::Lost(reason),
            }
        }
        // In TLS 1.3 a server that does not know the client's key says so by an alert of its own.
        ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => rejected(
            format!("{who} does not know this client's key; it must be in the cluster's genesis"),
            false,
        ),
        ConnectionError::TransportError(error) if is_tls(error.code) => {
            rejected(format!("{who} has not the key that the genesis names for it"), true)
        }
        other @ (ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted) => Down::Lost(format!("{who}: {other}")),
    }
}

/// Codes 0x100 to 0x1ff carry a TLS alert (RFC 9001 §4.8).
fn is_tls(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn::ApplicationClose;

    fn closed(code: CloseCode, reason: &'static str) -> Down {
        let close = ApplicationClose {
            error_code: code.code(),
            reason: Bytes::from_static(reason.as_bytes()),
        };
        down("host:1", &ConnectionError::ApplicationClosed(close))
    }

    #[test]
    fn a_close_code_tells_a_passing_fault_from_a_standing_refusal() {
        let rejected = |reason: &str, foreign| Down::Rejected { reason: reason.into(), foreign };
        assert_eq!(closed(CloseCode::Shutdown, ""), Down::Lost("host:1: closed".into()));
        assert_eq!(closed(CloseCode::Quota, "many"), Down::Lost("host:1: many".into()));
        assert_eq!(closed(CloseCode::NotAllowed, "no"), rejected("host:1: no", false));
        assert_eq!(closed(CloseCode::Cluster, "other"), rejected("host:1: other", true));
        assert_eq!(closed(CloseCode::Version, "old"), rejected("host:1: old", true));
    }

    #[test]
    fn an_idle_timeout_is_a_passing_fault() {
        assert!(matches!(down("host:1", &ConnectionError::TimedOut), Down::Lost(_)));
    }
}
