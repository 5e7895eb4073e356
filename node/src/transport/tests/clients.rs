//! The endpoint for clients: replies, quotas, slow and silent clients.

use conclave_consensus::types::ReplicaId;
use conclave_crypto::framing::{ALPN_CLIENT, Role};

use super::*;

struct Node {
    thread: TransportThread,
    endpoint: ClientEndpointHandle,
    events: Receiver<ClientEvent>,
    patience: Arc<Patience>,
}

impl Node {
    /// Replica 3, which admits the keys of all seeds but 99.
    fn start(adjust: impl FnOnce(&mut ClientLimits)) -> Self {
        let thread = TransportThread::start("transport").unwrap();
        let (sink, events) = collector();
        let stranger = key(99).public();
        let patience = Arc::new(Patience::default());
        let mut config = ClientEndpointConfig {
            id: ReplicaId(3),
            key: key(50),
            port: Port::bind(LOOPBACK).unwrap(),
            cluster: cluster(),
            version: 1,
            allowed: Arc::new(move |key| *key != stranger),
            patience: Arc::clone(&patience),
            limits: ClientLimits::default(),
        };
        adjust(&mut config.limits);
        let endpoint = ClientEndpoint::start(&thread, config, sink).unwrap();
        Self { thread, endpoint, events, patience }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    fn connected(&self) -> (ClientConnectionId, PublicKey) {
        next(&self.events, |event| match event {
            ClientEvent::Connected { connection, client } => Some((connection, client)),
            ClientEvent::Frames { .. } | ClientEvent::Disconnected { .. } => None,
        })
    }

    fn disconnected(&self) -> ClientConnectionId {
        next(&self.events, |event| match event {
            ClientEvent::Disconnected { connection } => Some(connection),
            ClientEvent::Frames { .. } | ClientEvent::Connected { .. } => None,
        })
    }

    fn frames(&self) -> (ClientConnectionId, PublicKey, Delivery) {
        next(&self.events, |event| match event {
            ClientEvent::Frames { connection, client, delivery } => {
                Some((connection, client, delivery))
            }
            ClientEvent::Connected { .. } | ClientEvent::Disconnected { .. } => None,
        })
    }
}

fn client(seed: u8) -> Rogue {
    Rogue::new(key(seed), ALPN_CLIENT)
}

fn hello() -> Hello {
    Hello { version: 1, role: Role::Client, cluster: cluster(), from: Hello::NO_REPLICA, to: 3 }
}

/// A connected client with its stream after both hellos.
struct Session {
    connection: Connection,
    requests: SendStream,
    replies: RecvStream,
}

fn open(client: &Rogue, node: &Node, hello: &Hello) -> Session {
    let connection = client.connect(node.address(), key(50).public()).unwrap();
    let (mut requests, replies) = client.wait(connection.open_bi()).unwrap();
    client.write(&mut requests, &framed(&hello.encode()));
    Session { connection, requests, replies }
}

fn session(client: &Rogue, node: &Node) -> Session {
    let mut session = open(client, node, &hello());
    let answer = client.read_frame(&mut session.replies);
    let expected = Hello { role: Role::Node, from: 3, to: Hello::NO_REPLICA, ..hello() };
    assert_eq!(Hello::decode(&answer), Some(expected));
    session
}

#[test]
fn requests_come_with_their_key_and_replies_go_back_on_their_connection() {
    let node = Node::start(|_| {});
    let clients = [client(1), client(2)];
    let mut sessions = [session(&clients[0], &node), session(&clients[1], &node)];
    for (index, client) in clients.iter().enumerate() {
        let requests = [framed(b"first"), framed(&[index as u8; 100_000])].concat();
        client.write(&mut sessions[index].requests, &requests);
        let mut frames = Vec::new();
        while frames.len() < 2 {
            let (connection, from, delivery) = node.frames();
            assert_eq!(from, client.key.public());
            assert_eq!(node.endpoint.client(connection), Some(from));
            frames.extend(delivery.frames);
            assert!(node.endpoint.reply(connection, Bytes::copy_from_slice(&[index as u8])));
        }
        assert_eq!(frames[0][..], b"first"[..]);
        assert_eq!(frames[1][..], [index as u8; 100_000]);
        let reply = client.read_frame(&mut sessions[index].replies);
        assert_eq!(reply[..], [index as u8]);
    }
    assert_eq!(node.endpoint.counters().open, 2);
    node.thread.stop();
}

#[test]
fn a_client_that_leaves_is_forgotten_and_replies_to_it_are_counted() {
    let node = Node::start(|_| {});
    let client = client(1);
    let session = session(&client, &node);
    let (id, public) = node.connected();
    assert_eq!(public, client.key.public());
    session.connection.close(CloseCode::Shutdown.code(), b"done");
    assert_eq!(node.disconnected(), id);
    assert!(!node.endpoint.reply(id, Bytes::from_static(b"too late")));
    let counters = node.endpoint.counters();
    assert_eq!((counters.open, counters.dropped_gone, counters.misbehaved), (0, 1, 0));
    node.thread.stop();
}

#[test]
fn an_unregistered_key_is_refused_in_the_handshake() {
    let node = Node::start(|_| {});
    let stranger = client(99);
    if let Ok(connection) = stranger.connect(node.address(), key(50).public()) {
        let error = stranger.wait(connection.closed());
        assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error}");
    }
    eventually("the refusal is counted", || node.endpoint.counters().unknown_keys == 1);
    assert!(node.events.try_recv().is_err());
    node.thread.stop();
}

#[test]
fn a_client_of_another_cluster_version_or_replica_is_told_so() {
    let node = Node::start(|_| {});
    let client = client(1);
    let cases = [
        (Hello { version: 2, ..hello() }, CloseCode::Version),
        (Hello { cluster: Digest::ZERO, ..hello() }, CloseCode::Cluster),
        (Hello { to: 2, ..hello() }, CloseCode::Identity),
        (Hello { role: Role::Peer, ..hello() }, CloseCode::Malformed),
    ];
    for (hello, code) in cases {
        let session = open(&client, &node, &hello);
        assert_eq!(client.closed(&session.connection).0, code);
    }
    assert_eq!(node.endpoint.counters().hellos_refused, 4);
    assert!(node.events.try_recv().is_err());
    node.thread.stop();
}

#[test]
fn one_key_gets_so_many_connections_and_no_more() {
    let node = Node::start(|limits| limits.connections_per_key_max = 2);
    let (greedy, other) = (client(1), client(2));
    let mut sessions = vec![session(&greedy, &node), session(&greedy, &node)];
    let refused = greedy.connect(node.address(), key(50).public()).unwrap();
    let (code, reason) = greedy.closed(&refused);
    assert_eq!(code, CloseCode::Quota);
    assert!(reason.contains("2 connections"), "{reason}");
    let _other = session(&other, &node);
    sessions.pop().unwrap().connection.close(CloseCode::Shutdown.code(), b"done");
    node.disconnected();
    eventually("the place is free again", || {
        let connection = greedy.connect(node.address(), key(50).public()).unwrap();
        greedy.wait(async {
            let Ok((mut requests, mut replies)) = connection.open_bi().await else { return false };
            let sent = requests.write_all(&framed(&hello().encode())).await;
            sent.is_ok() && replies.read_exact(&mut [0]).await.is_ok()
        })
    });
    node.thread.stop();
}

#[test]
fn connections_in_all_are_capped() {
    let node = Node::start(|limits| limits.connections_max = 2);
    let clients = [client(1), client(2), client(3)];
    let _first = session(&clients[0], &node);
    let _second = session(&clients[1], &node);
    assert!(clients[2].connect(node.address(), key(50).public()).is_err());
    assert_eq!(node.endpoint.counters().quota_refused, 1);
    node.thread.stop();
}

#[test]
fn handshakes_that_come_too_fast_wait_and_those_of_other_addresses_do_not() {
    let node = Node::start(|limits| {
        limits.handshakes.per_source = Rate { per_second: 1, burst: 3 };
    });
    let crowd: Vec<_> = (1..=4).map(client).collect();
    let since = Instant::now();
    // The sockets listen on any address of the loopback network.
    let _first: Vec<_> = crowd[..3].iter().map(|client| session(client, &node)).collect();
    let other = Rogue::on(SocketAddr::from(([127, 0, 0, 2], 0)), key(5), ALPN_CLIENT);
    let _other = session(&other, &node);
    assert_eq!(node.endpoint.counters().rate_limited, 0);
    let _last = session(&crowd[3], &node);
    assert!(since.elapsed() >= Duration::from_millis(900), "three at once, then one a second");
    let counters = node.endpoint.counters();
    assert!(counters.rate_limited > 0 && counters.quota_refused == 0, "{counters:?}");
    node.thread.stop();
}

#[test]
fn a_client_that_causes_trouble_is_not_read_for_a_while_and_others_are_served() {
    let node = Node::start(|_| {});
    let (noisy, other) = (client(1), client(2));
    let (mut held, mut served) = (session(&noisy, &node), session(&other, &node));
    let since = Instant::now();
    // Two seconds are in reserve.
    for _ in 0..10 {
        node.patience.spend(&key(1).public(), Trouble::Forged);
    }
    // The reader waits for this one already.
    noisy.write(&mut held.requests, &framed(b"first"));
    assert_eq!(node.frames().2.frames, [&b"first"[..]]);
    noisy.write(&mut held.requests, &framed(b"second"));
    other.write(&mut served.requests, &framed(b"other"));
    assert_eq!(node.frames().2.frames, [&b"other"[..]]);
    assert_eq!(node.frames().2.frames, [&b"second"[..]]);
    assert!(since.elapsed() >= Duration::from_millis(500), "{:?}", since.elapsed());
    assert!(node.endpoint.counters().held_back > 0);
    node.thread.stop();
}

#[test]
fn a_client_that_dribbles_a_frame_is_cut_and_others_are_served() {
    let node = Node::start(|limits| limits.frame_time = Duration::from_millis(200));
    let (slow, other) = (client(1), client(2));
    let mut dribbling = session(&slow, &node);
    let mut served = session(&other, &node);
    let frame = framed(&[7; 5000]);
    let cut = frame.iter().any(|byte| {
        slow.write(&mut dribbling.requests, &[*byte]);
        let closed = dribbling.connection.close_reason().is_some();
        if !closed {
            std::thread::sleep(Duration::from_millis(1));
        }
        closed
    });
    assert!(cut, "5000 bytes at this pace take five seconds");
    assert_eq!(slow.closed(&dribbling.connection).0, CloseCode::TooSlow);
    other.write(&mut served.requests, &framed(b"request"));
    assert_eq!(node.frames().2.frames, [&b"request"[..]]);
    assert_eq!(node.endpoint.counters().misbehaved, 1);
    node.thread.stop();
}

#[test]
fn a_client_without_hello_is_cut() {
    let node = Node::start(|limits| limits.hello_time = Duration::from_millis(200));
    let silent = client(1);
    let connection = silent.connect(node.address(), key(50).public()).unwrap();
    silent.wait(connection.closed());
    eventually("it is counted", || node.endpoint.counters().handshakes_failed == 1);
    assert!(node.events.try_recv().is_err());
    node.thread.stop();
}

#[test]
fn a_request_over_the_cap_closes_that_connection_only() {
    let node = Node::start(|limits| limits.frame_max = 1000);
    let (bad, good) = (client(1), client(2));
    let mut breaking = session(&bad, &node);
    let mut served = session(&good, &node);
    bad.write(&mut breaking.requests, &frame_header(1001));
    assert_eq!(bad.closed(&breaking.connection).0, CloseCode::TooLong);
    good.write(&mut served.requests, &framed(&[1; 1000]));
    assert_eq!(node.frames().2.frames, [vec![1; 1000]]);
    node.thread.stop();
}

#[test]
fn a_client_that_does_not_read_loses_replies_and_the_node_keeps_no_more_than_its_cap() {
    let node = Node::start(|limits| limits.queue_bytes_max = 1 << 20);
    let (deaf, good) = (client(1), client(2));
    let _unread = session(&deaf, &node);
    let (deaf_id, _) = node.connected();
    let mut served = session(&good, &node);
    let (good_id, _) = node.connected();
    let reply = Bytes::from(vec![1; 64 << 10]);
    let mut queued = 0;
    let since = Instant::now();
    while node.endpoint.counters().dropped_full < 1000 {
        assert!(since.elapsed() < DEADLINE);
        queued += usize::from(node.endpoint.reply(deaf_id, reply.clone()));
        std::thread::yield_now();
    }
    // The queue, one write under way, and what the client's window lets through.
    let most = (1 << 20) + (256 << 10) + TransportLimits::peer().stream_window as usize * 2;
    assert!(queued * reply.len() <= most, "{queued} replies were taken");
    assert!(node.endpoint.reply(good_id, Bytes::from_static(b"yours")));
    assert_eq!(good.read_frame(&mut served.replies)[..], b"yours"[..]);
    node.thread.stop();
}

#[test]
fn requests_that_nobody_takes_are_left_unread_of_each_key_and_of_all() {
    let node = Node::start(|limits| {
        limits.frame_max = 64 << 10;
        limits.inbound_bytes_max = 128 << 10;
        limits.inbound_bytes_total_max = 192 << 10;
    });
    let frame = framed(&[1; 10_000]);
    let clients = [client(1), client(2)];
    let mut sessions = clients.each_ref().map(|client| session(client, &node));
    for (client, session) in clients.iter().zip(&mut sessions) {
        // Until flow control stops it: 4 MiB fit nowhere.
        let sent = client.wait(async {
            let mut sent = 0;
            while let Ok(written) =
                tokio::time::timeout(Duration::from_millis(300), session.requests.write_all(&frame))
                    .await
            {
                written.unwrap();
                sent += 1;
                assert!(sent * frame.len() < 4 << 20, "nothing stops the client");
            }
            sent
        });
        assert!(sent > 0);
    }
    let mut held = Vec::new();
    let mut bytes = 0;
    while let Ok(event) = node.events.try_recv() {
        if let ClientEvent::Frames { delivery, .. } = event {
            bytes += delivery.frames.iter().map(Bytes::len).sum::<usize>();
            held.push(delivery);
        }
    }
    assert!(bytes <= 192 << 10, "{bytes} bytes were delivered on credit");
    drop(held);
    let (_, _, delivery) = node.frames();
    assert!(!delivery.frames.is_empty(), "reading goes on once there is credit");
    node.thread.stop();
}

#[test]
fn who_only_announces_long_frames_holds_up_nobody_else() {
    const LONG: usize = 512 << 10;
    let node = Node::start(|limits| {
        limits.frame_max = LONG;
        limits.inbound_bytes_max = LONG;
        limits.inbound_bytes_total_max = 4 * LONG;
        limits.frame_time = DEADLINE * 10;
    });
    let (idler, other) = (client(1), client(2));
    let _announced: Vec<_> = (0..16)
        .map(|_| {
            let mut session = session(&idler, &node);
            idler.write(&mut session.requests, &(LONG as u32).to_le_bytes());
            session
        })
        .collect();
    let mut session = session(&other, &node);
    for length in [100, LONG] {
        other.write(&mut session.requests, &framed(&vec![1; length]));
        assert_eq!(node.frames().1, other.key.public());
    }
    node.thread.stop();
}

#[test]
fn a_key_that_loses_its_registration_loses_its_connections() {
    let node = Node::start(|_| {});
    let (out, stays) = (client(1), client(2));
    let removed = session(&out, &node);
    let mut kept = session(&stays, &node);
    let gone = out.key.public();
    node.endpoint.retain(|key| *key != gone);
    assert_eq!(out.closed(&removed.connection).0, CloseCode::NotAllowed);
    stays.write(&mut kept.requests, &framed(b"request"));
    assert_eq!(node.frames().2.frames, [&b"request"[..]]);
    node.thread.stop();
}
