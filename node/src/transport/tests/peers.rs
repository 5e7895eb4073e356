//! The mesh: delivery, hello, misbehaviour, reconnection, bounded memory.

use std::collections::{BTreeMap, BTreeSet};

use conclave_consensus::types::ReplicaId;
use conclave_crypto::framing::{ALPN_PEER, Role};

use super::*;

pub(super) fn config(id: u16) -> PeerMeshConfig {
    PeerMeshConfig {
        id: ReplicaId(id),
        key: key(id as u8 + 1),
        port: Port::bind(LOOPBACK).unwrap(),
        peers: BTreeMap::new(),
        cluster: cluster(),
        version: 1,
        patience: Arc::default(),
        limits: PeerLimits::default(),
    }
}

pub(super) fn start(
    thread: &TransportThread,
    id: u16,
    adjust: impl FnOnce(&mut PeerMeshConfig),
) -> (PeerMeshHandle, Receiver<PeerEvent>) {
    let (sink, events) = collector();
    let mut config = config(id);
    adjust(&mut config);
    (PeerMesh::start(thread, config, sink).unwrap(), events)
}

/// A mesh on a thread of its own.
struct Node {
    id: u16,
    thread: TransportThread,
    mesh: PeerMeshHandle,
    events: Receiver<PeerEvent>,
}

impl Node {
    fn start(id: u16) -> Self {
        Self::with(id, |_| {})
    }

    fn with(id: u16, adjust: impl FnOnce(&mut PeerMeshConfig)) -> Self {
        let thread = TransportThread::start("transport").unwrap();
        let (mesh, events) = start(&thread, id, adjust);
        Self { id, thread, mesh, events }
    }

    fn address(&self) -> SocketAddr {
        self.mesh.local_address()
    }

    fn peer(&self) -> (ReplicaId, Peer) {
        peer(self.id, self.address())
    }

    fn public(&self) -> PublicKey {
        key(self.id as u8 + 1).public()
    }

    fn up(&self, from: u16) {
        next(&self.events, |event| {
            matches!(event, PeerEvent::Up(id) if id.0 == from).then_some(())
        });
    }

    fn down(&self, from: u16) {
        next(&self.events, |event| {
            matches!(event, PeerEvent::Down(id) if id.0 == from).then_some(())
        });
    }

    /// The next delivery of a peer and class.
    fn frames(&self, peer: u16, wanted: Class) -> Vec<Bytes> {
        next(&self.events, |event| match event {
            PeerEvent::Frames { from, class, delivery } if from.0 == peer && class == wanted => {
                Some(delivery.frames)
            }
            PeerEvent::Frames { .. } | PeerEvent::Up(_) | PeerEvent::Down(_) => None,
        })
    }
}

fn peer(id: u16, address: SocketAddr) -> (ReplicaId, Peer) {
    (ReplicaId(id), Peer { key: key(id as u8 + 1).public(), address: address.to_string() })
}

/// Makes the nodes members of one cluster and waits until they are connected.
fn connect(nodes: &[Node]) {
    let peers: BTreeMap<_, _> = nodes.iter().map(Node::peer).collect();
    for node in nodes {
        node.mesh.update_peers(peers.clone());
    }
    for node in nodes {
        eventually("all peers up", || node.mesh.peers_up().len() == nodes.len() - 1);
    }
}

fn stop(nodes: impl IntoIterator<Item = Node>) {
    for node in nodes {
        node.thread.stop();
    }
}

/// A node 1 that knows a replica 0, played by a rogue that dials it as the lower id does.
fn victim(adjust: impl FnOnce(&mut PeerMeshConfig)) -> (Node, Rogue) {
    let node = Node::with(1, |config| {
        config.peers.extend([peer(0, SocketAddr::from(([127, 0, 0, 1], 9)))]);
        adjust(config);
    });
    (node, Rogue::new(key(1), ALPN_PEER))
}

fn hello() -> Hello {
    Hello { version: 1, role: Role::Peer, cluster: cluster(), from: 0, to: 1 }
}

fn opening(hello: &Hello) -> Vec<u8> {
    [&[1], &framed(&hello.encode())[..]].concat()
}

/// Connects as replica 0 by the rules, until the node takes it for up. Returns the stream for votes.
fn greet(rogue: &Rogue, node: &Node) -> (Connection, SendStream) {
    let connection = rogue.connect(node.address(), node.public()).unwrap();
    let votes = rogue.open_uni(&connection, &opening(&hello()));
    node.up(0);
    (connection, votes)
}

#[test]
fn four_replicas_deliver_every_class_to_each_other_in_order() {
    let nodes: Vec<_> = (0..4).map(Node::start).collect();
    connect(&nodes);
    let long = Bytes::from(vec![9; 1 << 20]);
    for node in &nodes {
        for number in 0..1000_u32 {
            let frame = Bytes::copy_from_slice(&number.to_le_bytes());
            assert_eq!(node.mesh.broadcast(Class::Vote, &frame), 3);
        }
        assert_eq!(node.mesh.broadcast(Class::Body, &long), 3);
        let bulk = nodes.iter().filter(|other| other.id != node.id).map(|other| {
            (ReplicaId(other.id), Class::Bulk, Bytes::copy_from_slice(&[node.id as u8]))
        });
        assert_eq!(node.mesh.send_many(bulk), 3);
    }
    for node in &nodes {
        let mut votes = BTreeMap::<ReplicaId, u32>::new();
        let (mut bodies, mut bulks) = (BTreeSet::new(), BTreeSet::new());
        while votes.values().sum::<u32>() < 3000 || bodies.len() < 3 || bulks.len() < 3 {
            let (from, class, delivery) = next(&node.events, |event| match event {
                PeerEvent::Frames { from, class, delivery } => Some((from, class, delivery)),
                PeerEvent::Up(_) | PeerEvent::Down(_) => None,
            });
            for frame in delivery.frames {
                match class {
                    Class::Vote => {
                        let count = votes.entry(from).or_default();
                        assert_eq!(frame[..], count.to_le_bytes());
                        *count += 1;
                    }
                    Class::Body => assert!(frame == long && bodies.insert(from)),
                    Class::Bulk => assert!(frame[..] == [from.0 as u8] && bulks.insert(from)),
                }
            }
        }
        let counters = node.mesh.peer_counters();
        assert_eq!(counters.len(), 3);
        for counters in counters.values() {
            assert!(counters.up && counters.frames_received == 1002);
            assert_eq!((counters.dropped_full, counters.misbehaved), (0, 0));
        }
    }
    stop(nodes);
}

#[test]
fn a_peer_that_sends_what_does_not_verify_is_not_read_for_a_while_and_others_are() {
    let patience = Arc::new(Patience::default());
    let held = Arc::clone(&patience);
    let node = |id| Node::with(id, |config| config.patience = Arc::clone(&held));
    let nodes = [Node::start(0), Node::start(1), node(2)];
    connect(&nodes);
    let vote = |from: usize, frame: &'static [u8]| {
        assert!(nodes[from].mesh.send(ReplicaId(2), Class::Vote, Bytes::from_static(frame)));
    };
    let since = Instant::now();
    // Two seconds are in reserve.
    for _ in 0..125 {
        patience.spend(&nodes[0].public(), Trouble::Broken);
    }
    // The reader waits for this one already.
    vote(0, b"first");
    assert_eq!(nodes[2].frames(0, Class::Vote), [&b"first"[..]]);
    vote(0, b"second");
    vote(1, b"other");
    assert_eq!(nodes[2].frames(1, Class::Vote), [&b"other"[..]]);
    assert!(nodes[2].mesh.counters().held_back > 0);
    assert_eq!(nodes[2].frames(0, Class::Vote), [&b"second"[..]]);
    assert!(since.elapsed() >= Duration::from_millis(500), "{:?}", since.elapsed());
    stop(nodes);
}

#[test]
fn a_frame_to_an_absent_peer_or_over_the_cap_is_dropped_and_counted() {
    let nodes = [Node::start(0), Node::start(1)];
    let absent = peer(7, SocketAddr::from(([127, 0, 0, 1], 9)));
    connect(&nodes);
    nodes[0].mesh.update_peers(BTreeMap::from([nodes[1].peer(), absent]));
    let mesh = &nodes[0].mesh;
    assert!(!mesh.send(ReplicaId(7), Class::Vote, Bytes::from_static(b"vote")));
    assert!(!mesh.send(ReplicaId(9), Class::Vote, Bytes::from_static(b"vote")));
    let over = PeerLimits::default().vote.frame_max + 1;
    assert!(!mesh.send(ReplicaId(1), Class::Vote, Bytes::from(vec![0; over])));
    assert_eq!(mesh.broadcast(Class::Vote, &Bytes::from_static(b"vote")), 1);
    let counters = mesh.peer_counters();
    assert_eq!(counters[&ReplicaId(7)].dropped_down, 2);
    assert_eq!(counters[&ReplicaId(1)].dropped_too_long, 1);
    stop(nodes);
}

#[test]
fn a_key_that_is_no_members_is_refused_in_the_handshake() {
    let (node, _) = victim(|_| {});
    let stranger = Rogue::new(key(99), ALPN_PEER);
    if let Ok(connection) = stranger.connect(node.address(), node.public()) {
        // TLS 1.3: the client is done before it is refused.
        let error = stranger.wait(connection.closed());
        assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error}");
    }
    eventually("the refusal is counted", || node.mesh.counters().unknown_keys == 1);
    assert!(node.mesh.peers_up().is_empty());
    stop([node]);
}

#[test]
fn a_hello_that_differs_is_refused_with_what_differs() {
    let (node, rogue) = victim(|_| {});
    let cases = [
        (Hello { version: 9, ..hello() }, CloseCode::Version, "version 1, the other 9"),
        (Hello { cluster: Digest::ZERO, ..hello() }, CloseCode::Cluster, "the other's 00000000"),
        (Hello { from: 2, ..hello() }, CloseCode::Identity, "from 2 to 1"),
        (Hello { role: Role::Client, ..hello() }, CloseCode::Malformed, "check the port"),
    ];
    for (hello, code, text) in &cases {
        let connection = rogue.connect(node.address(), node.public()).unwrap();
        let _votes = rogue.open_uni(&connection, &opening(hello));
        let (closed, reason) = rogue.closed(&connection);
        assert_eq!(closed, *code);
        assert!(reason.contains(text), "{reason}");
    }
    let connection = rogue.connect(node.address(), node.public()).unwrap();
    let _garbage = rogue.open_uni(&connection, b"\x01GET / HTTP/1.1\r\n\r\n");
    assert_eq!(rogue.closed(&connection).0, CloseCode::Malformed);
    assert_eq!(node.mesh.counters().hellos_refused, cases.len() as u64 + 1);
    assert!(node.events.try_recv().is_err(), "nothing of this reached the sink");
    stop([node]);
}

#[test]
fn replicas_of_different_clusters_never_get_up() {
    let nodes =
        [Node::start(0), Node::with(1, |config| config.cluster = Digest::from_bytes([6; 32]))];
    let peers: BTreeMap<_, _> = nodes.iter().map(Node::peer).collect();
    for node in &nodes {
        node.mesh.update_peers(peers.clone());
    }
    eventually("refused twice", || nodes[1].mesh.counters().hellos_refused >= 2);
    assert!(nodes.iter().all(|node| node.events.try_recv().is_err()));
    stop(nodes);
}

#[test]
fn a_member_that_dials_out_of_turn_is_refused() {
    let node = Node::with(1, |config| {
        config.peers.extend([peer(2, SocketAddr::from(([127, 0, 0, 1], 9)))]);
    });
    let rogue = Rogue::new(key(3), ALPN_PEER);
    let connection = rogue.connect(node.address(), node.public()).unwrap();
    assert_eq!(rogue.closed(&connection).0, CloseCode::Identity);
    stop([node]);
}

#[test]
fn a_frame_over_the_cap_closes_its_connection_and_nothing_else() {
    let (node, rogue) = victim(|_| {});
    let other = Node::start(2);
    let absent = peer(0, SocketAddr::from(([127, 0, 0, 1], 9)));
    node.mesh.update_peers(BTreeMap::from([absent, other.peer()]));
    other.mesh.update_peers(BTreeMap::from([node.peer()]));
    node.up(2);
    let (connection, mut votes) = greet(&rogue, &node);
    rogue.write(&mut votes, &framed(b"a vote"));
    assert_eq!(node.frames(0, Class::Vote), [&b"a vote"[..]]);
    rogue.write(&mut votes, &frame_header(PeerLimits::default().vote.frame_max + 1));
    let (code, reason) = rogue.closed(&connection);
    assert_eq!(code, CloseCode::TooLong);
    assert!(reason.contains("1048577"), "{reason}");
    node.down(0);
    assert_eq!(node.mesh.peer_counters()[&ReplicaId(0)].misbehaved, 1);
    assert!(other.mesh.send(ReplicaId(1), Class::Vote, Bytes::from_static(b"still here")));
    assert_eq!(node.frames(2, Class::Vote), [&b"still here"[..]]);
    stop([node, other]);
}

#[test]
fn streams_that_break_the_rules_close_the_connection() {
    let (node, rogue) = victim(|_| {});
    let (connection, mut votes) = greet(&rogue, &node);
    rogue.write(&mut votes, &frame_header(0));
    assert_eq!(rogue.closed(&connection), (CloseCode::Malformed, "an empty frame".to_owned()));
    let (connection, _votes) = greet(&rogue, &node);
    let _again = rogue.open_uni(&connection, &[1]);
    let (code, reason) = rogue.closed(&connection);
    assert_eq!((code, reason.as_str()), (CloseCode::Malformed, "a second stream for Vote"));
    let (connection, _votes) = greet(&rogue, &node);
    let _unknown = rogue.open_uni(&connection, &[77]);
    assert_eq!(rogue.closed(&connection).0, CloseCode::Malformed);
    let (connection, mut votes) = greet(&rogue, &node);
    votes.finish().unwrap();
    let (code, reason) = rogue.closed(&connection);
    assert_eq!((code, reason.as_str()), (CloseCode::Malformed, "a stream ended"));
    let (connection, mut votes) = greet(&rogue, &node);
    votes.reset(quinn::VarInt::from_u32(3)).unwrap();
    assert_eq!(rogue.closed(&connection).0, CloseCode::Malformed);
    eventually("all are counted", || node.mesh.peer_counters()[&ReplicaId(0)].misbehaved == 5);
    stop([node]);
}

#[test]
fn a_frame_that_never_ends_is_cut() {
    let (node, rogue) = victim(|config| config.limits.frame_time = Duration::from_millis(200));
    let (connection, mut votes) = greet(&rogue, &node);
    rogue.write(&mut votes, &[200, 0, 0, 0, 1]);
    assert_eq!(rogue.closed(&connection).0, CloseCode::TooSlow);
    stop([node]);
}

#[test]
fn a_connection_without_hello_is_closed_and_its_place_comes_back() {
    let (node, rogue) = victim(|config| {
        config.limits.hello_time = Duration::from_millis(200);
        config.limits.handshakes.half_open_max = 2;
    });
    let silent: Vec<_> =
        (0..2).map(|_| rogue.connect(node.address(), node.public()).unwrap()).collect();
    for connection in &silent {
        rogue.wait(connection.closed());
    }
    eventually("both are counted", || node.mesh.counters().handshakes_failed == 2);
    let _honest = greet(&rogue, &node);
    stop([node]);
}

#[test]
fn half_open_connections_of_one_address_leave_room_for_others() {
    let (node, honest) = victim(|config| {
        config.limits.hello_time = DEADLINE;
        config.limits.handshakes.half_open_per_source_max = 4;
    });
    let crowd = Rogue::on(SocketAddr::from(([127, 0, 0, 3], 0)), key(1), ALPN_PEER);
    let places: Vec<_> =
        (0..4).map(|_| crowd.connect(node.address(), node.public()).unwrap()).collect();
    assert!(crowd.connect(node.address(), node.public()).is_err());
    assert_eq!(node.mesh.counters().quota_refused, 1);
    let _honest = greet(&honest, &node);
    drop(places);
    stop([node]);
}

#[test]
fn the_newest_connection_of_a_pair_counts() {
    let (node, rogue) = victim(|_| {});
    let (first, mut first_votes) = greet(&rogue, &node);
    let (second, mut second_votes) = greet(&rogue, &node);
    assert_eq!(rogue.closed(&first).0, CloseCode::Superseded);
    rogue.write(&mut first_votes, &framed(b"old"));
    rogue.write(&mut second_votes, &framed(b"new"));
    assert_eq!(node.frames(0, Class::Vote), [&b"new"[..]]);
    assert!(node.mesh.send(ReplicaId(0), Class::Vote, Bytes::from_static(b"answer")));
    let mut votes = rogue.wait(second.accept_uni()).unwrap();
    rogue.wait(votes.read_exact(&mut [0])).unwrap();
    assert_eq!(Hello::decode(&rogue.read_frame(&mut votes)).map(|hello| hello.from), Some(1));
    assert_eq!(rogue.read_frame(&mut votes)[..], b"answer"[..]);
    assert_eq!(node.mesh.peers_up(), [ReplicaId(0)]);
    stop([node]);
}

#[test]
fn replicas_find_each_other_again_after_a_restart_of_either() {
    let mut nodes = [Node::start(0), Node::start(1)];
    connect(&nodes);
    let peers: BTreeMap<_, _> = nodes.iter().map(Node::peer).collect();
    for restarted in [1, 0] {
        let other = 1 - restarted;
        let listen = nodes[restarted].address();
        nodes[other].up(restarted as u16);
        let fresh = TransportThread::start("transport").unwrap();
        std::mem::replace(&mut nodes[restarted].thread, fresh).stop();
        nodes[other].down(restarted as u16);
        let (mesh, events) = start(&nodes[restarted].thread, restarted as u16, |config| {
            config.port = Port::bind(listen).unwrap();
            config.peers = peers.clone();
        });
        nodes[restarted].mesh = mesh;
        nodes[restarted].events = events;
        nodes[other].up(restarted as u16);
        nodes[restarted].up(other as u16);
        assert!(nodes[other].mesh.send(
            ReplicaId(restarted as u16),
            Class::Vote,
            Bytes::from_static(b"welcome back")
        ));
        assert_eq!(nodes[restarted].frames(other as u16, Class::Vote), [&b"welcome back"[..]]);
        connect(&nodes);
        // The next round waits for an Up of its own.
        nodes[restarted].mesh.update_peers(BTreeMap::new());
        nodes[other].down(restarted as u16);
        nodes[restarted].mesh.update_peers(peers.clone());
    }
    stop(nodes);
}

#[test]
fn a_crash_and_restart_of_a_peer_is_noticed_long_before_the_idle_timeout() {
    let (node, rogue) = victim(|config| {
        config.limits.transport.idle = DEADLINE;
        config.limits.transport.keep_alive = Duration::from_millis(100);
    });
    let _connection = greet(&rogue, &node);
    let address = rogue.endpoint.local_addr().unwrap();
    let Rogue { runtime, endpoint, key, alpn } = rogue;
    // Nothing says goodbye: the tasks are gone before they can.
    runtime.shutdown_timeout(DEADLINE);
    drop((endpoint, _connection));
    let since = Instant::now();
    eventually("the port is free", || Port::bind(address).is_ok());
    let _restarted = Rogue::on(address, key, alpn);
    node.down(0);
    assert!(since.elapsed() < DEADLINE / 2, "noticed after {:?}", since.elapsed());
    stop([node]);
}

#[test]
fn a_consumer_that_keeps_its_credit_stops_the_sender_and_memory_stays_capped() {
    let cap = 1 << 20;
    let nodes = [0, 1].map(|id| {
        Node::with(id, |config| {
            config.limits.body.frame_max = 256 << 10;
            config.limits.body.inbound_bytes_max = cap;
            config.limits.body.queue_bytes_max = cap;
        })
    });
    connect(&nodes);
    let frame = Bytes::from(vec![3; 64 << 10]);
    let mut sent = 0;
    let since = Instant::now();
    // The lane is full and stays full once the receiver has stopped reading.
    while nodes[0].mesh.peer_counters()[&ReplicaId(1)].dropped_full < 1000 {
        assert!(since.elapsed() < DEADLINE);
        sent += usize::from(nodes[0].mesh.send(ReplicaId(1), Class::Body, frame.clone()));
        std::thread::yield_now();
    }
    let windows = 2 * TransportLimits::peer().stream_window as usize;
    assert!(sent * frame.len() <= 2 * cap + (256 << 10) + windows, "{sent} frames went in");
    // Votes of the same peer go on meanwhile.
    assert!(nodes[0].mesh.send(ReplicaId(1), Class::Vote, Bytes::from_static(b"vote")));
    let mut held = Vec::new();
    let mut received = 0;
    let mut vote = false;
    while !vote {
        let (class, delivery) = next(&nodes[1].events, |event| match event {
            PeerEvent::Frames { class, delivery, .. } => Some((class, delivery)),
            PeerEvent::Up(_) | PeerEvent::Down(_) => None,
        });
        vote = class == Class::Vote;
        received += delivery.frames.len() * usize::from(class == Class::Body);
        held.push(delivery);
    }
    assert!(received * frame.len() <= cap, "{received} frames are held");
    drop(held);
    while received < sent {
        received += nodes[1].frames(0, Class::Body).len();
    }
    assert_eq!(received, sent, "what was queued arrives once there is credit");
    stop(nodes);
}

#[test]
fn a_removed_member_is_disconnected_and_a_new_one_connected() {
    let nodes = [Node::start(0), Node::start(1), Node::start(2)];
    connect(&nodes);
    nodes[1].mesh.update_peers(BTreeMap::from([nodes[0].peer()]));
    nodes[1].down(2);
    nodes[2].down(1);
    assert_eq!(nodes[1].mesh.peers_up(), [ReplicaId(0)]);
    assert!(!nodes[1].mesh.peer_counters().contains_key(&ReplicaId(2)));
    nodes[1].mesh.update_peers(BTreeMap::from([nodes[0].peer(), nodes[2].peer()]));
    nodes[1].up(2);
    nodes[2].up(1);
    assert!(nodes[1].mesh.send(ReplicaId(2), Class::Vote, Bytes::from_static(b"hello again")));
    assert_eq!(nodes[2].frames(1, Class::Vote), [&b"hello again"[..]]);
    stop(nodes);
}

#[test]
fn a_stop_is_told_to_the_peers_at_once() {
    let [leaving, staying] =
        [0, 1].map(|id| Node::with(id, |config| config.limits.transport.idle = 10 * DEADLINE));
    let peers = BTreeMap::from([leaving.peer(), staying.peer()]);
    leaving.mesh.update_peers(peers.clone());
    staying.mesh.update_peers(peers);
    staying.up(0);
    leaving.mesh.shutdown();
    staying.down(0);
    stop([leaving, staying]);
}
