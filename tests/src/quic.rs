//! A connection of our own to a replica, to say what no correct peer or client would.

use conclave_consensus::types::ReplicaId;
use conclave_crypto::Digest;
use conclave_crypto::framing::{
    ALPN_CLIENT, ALPN_PEER, CloseCode, Hello, PROTOCOL_VERSION, Role, frame_header,
};
use conclave_crypto::keys::{PublicKey, SecretKey};
use conclave_crypto::tls;
use conclave_crypto::transport_limits::TransportLimits;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Far above a round trip on this machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Which of a replica's two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// That for replicas.
    Peers,
    /// That for clients.
    Clients,
}

impl To {
    /// What opens a stream there to this replica: of replica 0 among replicas, of a client among clients.
    #[must_use]
    pub fn hello(self, cluster: Digest, to: ReplicaId) -> Hello {
        let (role, from) = match self {
            Self::Peers => (Role::Peer, 0),
            Self::Clients => (Role::Client, Hello::NO_REPLICA),
        };
        Hello { version: PROTOCOL_VERSION, role, cluster, from, to: to.0 }
    }
}

/// Runs this on the calling thread, which must not wait for what it does by other means.
///
/// # Panics
/// If there can be no runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// The first byte of the stream between replicas on which votes go.
pub const VOTE_STREAM: u8 = 1;
/// The first byte of the stream for batches.
pub const BODY_STREAM: u8 = 2;

/// A payload behind its length.
#[must_use]
pub fn frame(payload: &[u8]) -> Vec<u8> {
    [&frame_header(payload.len())[..], payload].concat()
}

/// A connection that says whatever it is told to.
pub struct Stranger {
    /// The connection.
    pub connection: Connection,
    endpoint: Endpoint,
}

impl Stranger {
    /// Connects with this key to the replica that has `expected`.
    ///
    /// # Errors
    /// When the handshake fails on this side; a refusal by the other side comes later.
    pub async fn connect(
        to: To,
        address: SocketAddr,
        key: &SecretKey,
        expected: PublicKey,
    ) -> Result<Self, ConnectionError> {
        let alpn = match to {
            To::Peers => ALPN_PEER,
            To::Clients => ALPN_CLIENT,
        };
        let mut config = tls::client_config(key, expected, alpn).expect("our own key");
        let limits = match to {
            To::Peers => TransportLimits::peer(),
            To::Clients => TransportLimits::client(),
        };
        config.transport_config(limits.config());
        let local = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let endpoint = Endpoint::client(local).expect("a free port");
        let connecting = endpoint
            .connect_with(config, address, tls::SERVER_NAME)
            .expect("an address and settings of our own");
        let connection = match tokio::time::timeout(DEADLINE, connecting).await {
            Ok(connection) => connection?,
            Err(_) => return Err(ConnectionError::TimedOut),
        };
        Ok(Self { connection, endpoint })
    }

    /// Opens a stream and says hello on it; what comes back is not looked at.
    ///
    /// # Errors
    /// When the other side has closed the connection.
    pub async fn hello(
        &self,
        to: To,
        hello: &Hello,
    ) -> Result<(SendStream, Option<RecvStream>), String> {
        let (mut send, receive) = match to {
            To::Peers => (self.connection.open_uni().await.map_err(|e| e.to_string())?, None),
            To::Clients => {
                let (send, receive) = self.connection.open_bi().await.map_err(|e| e.to_string())?;
                (send, Some(receive))
            }
        };
        let tag: &[u8] = match to {
            To::Peers => &[VOTE_STREAM],
            To::Clients => &[],
        };
        let opening = [tag, &frame(&hello.encode())].concat();
        send.write_all(&opening).await.map_err(|e| e.to_string())?;
        Ok((send, receive))
    }

    /// Whether the other side answers the hello.
    pub async fn answers(self, receive: Option<RecvStream>) -> bool {
        let answer = async {
            let mut stream = match receive {
                Some(stream) => stream,
                None => self.connection.accept_uni().await.ok()?,
            };
            let mut byte = [0];
            stream.read_exact(&mut byte).await.ok()
        };
        let answered = tokio::time::timeout(DEADLINE, answer).await.ok().flatten().is_some();
        self.leave().await;
        answered
    }

    /// Closes the connection and lets the other side know.
    pub async fn leave(self) {
        self.connection.close(0_u32.into(), b"");
        // Who does not acknowledge the close finds out by itself.
        let _ = tokio::time::timeout(DEADLINE, self.endpoint.wait_idle()).await;
    }

    /// Waits until the other side closes the connection, and says with which code.
    ///
    /// # Panics
    /// If it does not within a generous deadline.
    pub async fn closed(self) -> (Option<CloseCode>, ConnectionError) {
        let error = tokio::time::timeout(DEADLINE, self.connection.closed())
            .await
            .expect("the replica closes the connection");
        self.endpoint.close(0_u32.into(), b"");
        (CloseCode::of(&error), error)
    }
}
