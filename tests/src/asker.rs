//! A registered client that asks one replica frame by frame, where the client's library would ask all as it sees fit.

use crate::Cluster;
use crate::quic::{Stranger, To, frame};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::message::{Request, RequestBody, SignedRequest};
use conclave_consensus::wire;
use conclave_crypto::Digest;
use conclave_crypto::framing::FRAME_HEADER;
use conclave_crypto::keys::SecretKey;
use quinn::{RecvStream, SendStream};
use std::time::Duration;

/// Far above what anything waits, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection of one client to one replica.
pub struct Asker {
    stranger: Stranger,
    send: SendStream,
    receive: RecvStream,
    key: SecretKey,
    cluster: Digest,
}

impl Asker {
    /// Connects client number `client` of the testnet to replica number `replica`.
    ///
    /// # Panics
    /// If the replica does not admit it.
    pub async fn connect(cluster: &Cluster, client: usize, replica: usize) -> Self {
        let genesis = conclave_config::genesis::load(cluster.genesis()).expect("a genesis");
        let member = &genesis.membership.members[replica];
        let key = SecretKey::read_pem(cluster.client_home(client).join("key")).expect("a key");
        let hello = To::Clients.hello(genesis.cluster(), member.id);
        let address = member.client_address.parse().expect("an address");
        let stranger = Stranger::connect(To::Clients, address, &key, member.key)
            .await
            .expect("a known key is admitted");
        let (send, receive) = stranger.hello(To::Clients, &hello).await.expect("a good hello");
        let mut receive = receive.expect("clients have one stream for both directions");
        // The replica's own hello comes first.
        let _ = next(&mut receive).await;
        Self { stranger, send, receive, key, cluster: genesis.cluster() }
    }

    /// A request of this client.
    #[must_use]
    pub fn sign(&self, body: RequestBody) -> SignedRequest {
        let request = Request { client: self.key.public(), body };
        SignedRequest::sign(&request, &self.key, &self.cluster)
    }

    /// Sends these frames in one write.
    ///
    /// # Panics
    /// If the replica has closed the connection.
    pub async fn ask(&mut self, frames: impl IntoIterator<Item = ClientFrame>) {
        let bytes: Vec<u8> = frames.into_iter().flat_map(|it| frame(&wire::encode(&it))).collect();
        self.send.write_all(&bytes).await.expect("the replica reads");
    }

    /// The next frame of the replica.
    ///
    /// # Panics
    /// If none comes in time, or what comes is no frame.
    pub async fn answer(&mut self) -> NodeFrame {
        let payload = next(&mut self.receive).await;
        wire::decode(&payload, wire::FRAME_BYTES_MAX).expect("a frame of a replica")
    }

    /// Closes the connection.
    pub async fn leave(self) {
        self.stranger.leave().await;
    }
}

async fn next(receive: &mut RecvStream) -> Vec<u8> {
    let read = async {
        let mut header = [0; FRAME_HEADER];
        receive.read_exact(&mut header).await.expect("a frame");
        let mut payload = vec![0; u32::from_le_bytes(header) as usize];
        receive.read_exact(&mut payload).await.expect("a payload");
        payload
    };
    tokio::time::timeout(PATIENCE, read).await.expect("an answer in time")
}
