//! Bytes that no correct peer or client sends, from one that got through the handshake.

use conclave_crypto::framing::{CloseCode, Hello, Role};
use conclave_crypto::keys::SecretKey;
use conclave_tests::quic::{BODY_STREAM, Stranger, To, block_on, frame};
use conclave_tests::{Cluster, audit, wait};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use std::net::SocketAddr;

/// Whom the attacks go to: replica 1, at one of its endpoints, by somebody whose key it knows.
struct Target {
    to: To,
    address: SocketAddr,
    key: SecretKey,
    hello: Hello,
    expected: conclave_crypto::keys::PublicKey,
}

impl Target {
    /// Replica 0's key among replicas, client 0's among clients.
    fn new(cluster: &Cluster, to: To) -> Self {
        let genesis = conclave_config::genesis::load(cluster.genesis()).expect("a genesis");
        let member = &genesis.membership.members[1];
        let (address, home) = match to {
            To::Peers => (&member.address, cluster.nodes[0].home.clone()),
            To::Clients => (&member.client_address, cluster.client_home(0)),
        };
        Self {
            to,
            address: address.parse().expect("an address"),
            key: SecretKey::read_pem(home.join("key")).expect("a key"),
            hello: to.hello(genesis.cluster(), member.id),
            expected: member.key,
        }
    }

    async fn connect(&self) -> Stranger {
        Stranger::connect(self.to, self.address, &self.key, self.expected)
            .await
            .expect("a known key is admitted")
    }

    /// Says hello, then these bytes on the same stream, and waits to be thrown out.
    async fn thrown_out_for(&self, hello: &Hello, bytes: &[u8]) -> Option<CloseCode> {
        let stranger = self.connect().await;
        // The other side may close before all is written, which is what is asked for.
        if let Ok((mut send, _receive)) = stranger.hello(self.to, hello).await {
            let _ = send.write_all(bytes).await;
            return stranger.closed().await.0;
        }
        stranger.closed().await.0
    }
}

/// A header that claims this many bytes.
fn claim(length: u32) -> Vec<u8> {
    length.to_le_bytes().to_vec()
}

#[test]
fn bad_first_frames_and_lengths_end_the_connection_with_their_code() {
    let mut cluster = Cluster::start();
    // Its place among the peers is free for us.
    cluster.nodes[0].kill();
    for to in [To::Peers, To::Clients] {
        let target = Target::new(&cluster, to);
        let hello = target.hello;
        let other_cluster =
            Hello { cluster: conclave_crypto::Digest::from_bytes([9; 32]), ..hello };
        let other_role =
            Hello { role: if to == To::Peers { Role::Client } else { Role::Peer }, ..hello };
        for (what, hello, bytes, code) in [
            ("another cluster", other_cluster, vec![], CloseCode::Cluster),
            ("a newer version", Hello { version: 999, ..hello }, vec![], CloseCode::Version),
            ("another replica's id", Hello { from: 2, ..hello }, vec![], CloseCode::Identity),
            ("for another replica", Hello { to: 3, ..hello }, vec![], CloseCode::Identity),
            ("the wrong role", other_role, vec![], CloseCode::Malformed),
            ("a frame of 4 GiB", hello, claim(u32::MAX), CloseCode::TooLong),
            ("a frame of 64 MiB", hello, claim(64 << 20), CloseCode::TooLong),
            ("an empty frame", hello, claim(0), CloseCode::Malformed),
        ] {
            let found = block_on(target.thrown_out_for(&hello, &bytes));
            assert_eq!(found, Some(code), "{what} at the endpoint for {to:?}");
        }
    }
    still_works(&mut cluster);
}

#[test]
fn well_framed_noise_is_refused_and_counted_and_nothing_else_happens() {
    let mut cluster = Cluster::start();
    cluster.nodes[0].kill();
    cluster.conclave(1, &["put", "before", "1"]).succeeds();
    let mut noise = rand::rngs::StdRng::seed_from_u64(20_260_722);
    for to in [To::Peers, To::Clients] {
        let target = Target::new(&cluster, to);
        block_on(async {
            for round in 0..8 {
                let stranger = target.connect().await;
                let Ok((mut send, _receive)) = stranger.hello(to, &target.hello).await else {
                    continue;
                };
                for _ in 0..64 {
                    // Small ones mostly, and sometimes as large as a batch.
                    let length = match noise.random_range(0..16) {
                        0 => noise.random_range(1..200_000),
                        _ => noise.random_range(1..400),
                    };
                    let mut payload = vec![0; length];
                    noise.fill_bytes(&mut payload);
                    // A right discriminant leads deeper into the decoder.
                    let variant = noise.random_range(0..16_u32).to_le_bytes();
                    let count = payload.len().min(4);
                    payload[..count].copy_from_slice(&variant[..count]);
                    if send.write_all(&frame(&payload)).await.is_err() {
                        break;
                    }
                }
                if to == To::Peers
                    && round % 2 == 0
                    && let Ok(mut body) = stranger.connection.open_uni().await
                {
                    // As above: it may be closed already.
                    let _ = body.write_all(&[BODY_STREAM]).await;
                    let _ = body.write_all(&frame(&[0xff; 70_000])).await;
                }
                stranger.leave().await;
            }
        });
    }
    wait::until("the noise to be counted against the peer that sent it", || {
        let refused = cluster.nodes[1].metric("conclave_peer_messages_refused_total")?;
        if refused > 0.0 { Ok(()) } else { Err(format!("{refused} refused")) }
    });
    still_works(&mut cluster);
}

#[test]
fn a_frame_that_never_ends_does_not_hold_its_connection_for_ever() {
    let mut cluster = Cluster::start();
    cluster.nodes[0].kill();
    for to in [To::Peers, To::Clients] {
        let target = Target::new(&cluster, to);
        let begun = [claim(1000), vec![7; 10]].concat();
        let code = block_on(target.thrown_out_for(&target.hello, &begun));
        assert_eq!(code, Some(CloseCode::TooSlow), "half a frame at the endpoint for {to:?}");
    }
    still_works(&mut cluster);
}

#[test]
fn more_streams_than_agreed_are_not_given() {
    let mut cluster = Cluster::start();
    cluster.nodes[0].kill();
    for to in [To::Peers, To::Clients] {
        let target = Target::new(&cluster, to);
        block_on(async {
            let stranger = target.connect().await;
            let _streams = stranger.hello(to, &target.hello).await.expect("a good hello");
            let mut opened = Vec::new();
            let opening = async {
                loop {
                    let Ok(mut stream) = stranger.connection.open_uni().await else { break };
                    let _ = stream.write_all(&[BODY_STREAM]).await;
                    opened.push(stream);
                }
            };
            // Either no further stream is granted, or the connection is closed.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(3), opening).await;
            assert!(opened.len() <= 3, "{} streams at the endpoint for {to:?}", opened.len());
            stranger.leave().await;
        });
    }
    still_works(&mut cluster);
}

/// The three others answer, and after its return replica 0 as well.
fn still_works(cluster: &mut Cluster) {
    cluster.conclave(1, &["put", "after", "1"]).succeeds();
    cluster.start_all();
    cluster.wait_ready();
    cluster.conclave(1, &["put", "after all", "1"]).succeeds();
    for node in &cluster.nodes {
        audit::no_panic(node);
    }
}
