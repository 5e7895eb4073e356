//! Connections that take places and do nothing with them (slowloris), at both endpoints of every replica:
//!
//! - handshakes that begin and never end, from several addresses;
//! - clients with a good key that send a frame byte by byte, or open every stream and stay silent;
//! - the same among replicas, by the one of four that is faulty.

use super::{Order, Report, Siege};
use crate::cluster::Cluster;
use crate::quic::{BODY_STREAM, Stranger, To};
use conclave_consensus::membership::Member;
use conclave_crypto::framing::{Hello, PROTOCOL_VERSION, Role};
use conclave_crypto::keys::SecretKey;
use conclave_crypto::{Digest, PublicKey};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Whose place among the replicas is misused. It dials all others, as the one with the lowest id.
const FAULTY: usize = 0;
/// Slow connections to each endpoint for clients: almost as many as one key may have.
const SLOW_CLIENTS: usize = 60;
/// And to each one for replicas.
const SLOW_PEERS: usize = 12;
/// Addresses from which handshakes begin.
const SOURCES: usize = 4;
/// The first of their hosts.
const FIRST_HOST: usize = 200;
/// Between two handshakes that never end, at each endpoint.
const HANDSHAKE_EVERY: Duration = Duration::from_millis(20);
/// Between two bytes of a slow frame.
const BYTE_EVERY: Duration = Duration::from_secs(1);
/// A frame that claims so many bytes, as many as any stream takes, and takes a week and a half.
const FRAME_BYTES: u32 = 1_000_000;
/// Between two attempts to connect after being thrown out.
const AGAIN: Duration = Duration::from_millis(200);
/// Writes that a client which connects during the attack makes.
const NEWCOMERS: usize = 3;

/// What was done so far.
#[derive(Default)]
struct Done {
    /// Handshakes begun.
    begun: AtomicU64,
    /// Connections that were made.
    made: AtomicU64,
    /// And closed by the other side.
    thrown_out: AtomicU64,
}

/// One endpoint and what to say there.
#[derive(Clone)]
struct Target {
    to: To,
    address: SocketAddr,
    expected: PublicKey,
    key: Arc<SecretKey>,
    hello: Hello,
    done: Arc<Done>,
}

/// The attack, until this is dropped.
struct Slow {
    done: Arc<Done>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Slow {
    fn start(cluster: &Cluster, client: usize) -> Self {
        let genesis = conclave_config::genesis::load(cluster.genesis()).expect("testnet wrote it");
        let done = Arc::new(Done::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let key = |home: &std::path::Path| {
            Arc::new(SecretKey::read_pem(home.join("key")).expect("testnet wrote it"))
        };
        let (client, peer) = (key(&cluster.client_home(client)), key(&cluster.nodes[FAULTY].home));
        let cluster_id = genesis.cluster();
        let _entered = runtime.enter();
        for member in genesis.membership.members.iter().skip(1) {
            for (to, key) in [(To::Clients, &client), (To::Peers, &peer)] {
                let target = Target::new(to, member, key, cluster_id, &done);
                let slow = match to {
                    To::Clients => SLOW_CLIENTS,
                    To::Peers => SLOW_PEERS,
                };
                for number in 0..slow {
                    tokio::spawn(target.clone().linger(number));
                }
                for source in 0..SOURCES {
                    let host = cluster.network().host(FIRST_HOST + source);
                    tokio::spawn(target.clone().begin_and_never_end(host));
                }
            }
        }
        drop(_entered);
        Self { done, runtime: Some(runtime) }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Target {
    fn new(
        to: To,
        member: &Member,
        key: &Arc<SecretKey>,
        cluster: Digest,
        done: &Arc<Done>,
    ) -> Self {
        let (address, role, from) = match to {
            To::Clients => (&member.client_address, Role::Client, Hello::NO_REPLICA),
            To::Peers => (&member.address, Role::Peer, FAULTY as u16),
        };
        let hello = Hello { version: PROTOCOL_VERSION, role, cluster, from, to: member.id.0 };
        Self {
            to,
            address: address.parse().expect("a testnet's address"),
            expected: member.key,
            key: Arc::clone(key),
            hello,
            done: Arc::clone(done),
        }
    }

    /// Connects again and again, and each time does as little as it can for as long as it may.
    async fn linger(self, number: usize) {
        loop {
            if let Ok(stranger) =
                Stranger::connect(self.to, self.address, &self.key, self.expected).await
            {
                self.done.made.fetch_add(1, Ordering::Relaxed);
                match number % 6 {
                    // Says nothing at all.
                    0 => _ = stranger.connection.closed().await,
                    1 => self.hold_streams(&stranger).await,
                    _ => self.byte_by_byte(&stranger).await,
                }
                self.done.thrown_out.fetch_add(1, Ordering::Relaxed);
                stranger.leave().await;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// A good hello, then a frame that takes for ever.
    async fn byte_by_byte(&self, stranger: &Stranger) {
        let Ok((mut stream, _answers)) = stranger.hello(self.to, &self.hello).await else { return };
        if stream.write_all(&FRAME_BYTES.to_le_bytes()).await.is_err() {
            return;
        }
        while stream.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(BYTE_EVERY).await;
        }
    }

    /// A good hello, then every stream that is granted, each with its first byte.
    async fn hold_streams(&self, stranger: &Stranger) {
        let Ok(_first) = stranger.hello(self.to, &self.hello).await else { return };
        let mut held = Vec::new();
        let open = async {
            while let Ok(mut stream) = stranger.connection.open_uni().await {
                let _ = stream.write_all(&[BODY_STREAM]).await;
                held.push(stream);
            }
        };
        tokio::select! {
            () = open => {}
            _ = stranger.connection.closed() => {}
        }
    }

    /// Begins handshakes through a wire that carries nothing back, so that each stays half open.
    async fn begin_and_never_end(self, host: Ipv4Addr) {
        let stop = Arc::new(AtomicBool::new(false));
        let _guard = StopWhenDropped(Arc::clone(&stop));
        let relay = one_way(host, self.address, stop);
        loop {
            let (to, key, done) = (self.to, Arc::clone(&self.key), Arc::clone(&self.done));
            let expected = self.expected;
            tokio::spawn(async move {
                done.begun.fetch_add(1, Ordering::Relaxed);
                // It never succeeds: it is given up when the attempt has gone out a few times.
                let attempt = Stranger::connect(to, relay, &key, expected);
                let _ = tokio::time::timeout(Duration::from_secs(2), attempt).await;
            });
            tokio::time::sleep(HANDSHAKE_EVERY * SOURCES as u32).await;
        }
    }
}

struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Hands everything that comes to the address given back on to `target`, and nothing back.
fn one_way(host: Ipv4Addr, target: SocketAddr, stop: Arc<AtomicBool>) -> SocketAddr {
    let inner = UdpSocket::bind((host, 0)).expect("an address of ours");
    let outer = UdpSocket::bind((host, 0)).expect("an address of ours");
    let address = inner.local_addr().expect("a bound socket");
    inner.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    std::thread::spawn(move || {
        let mut buffer = [0; 65_535];
        while !stop.load(Ordering::Relaxed) {
            if let Ok(length) = inner.recv(&mut buffer) {
                // What the target's socket does not take is lost.
                let _ = outer.send_to(&buffer[..length], target);
            }
        }
    });
    address
}

/// Measures four replicas, then takes the faulty one's place and begins the attack on the others. Its
/// own replica does not run meanwhile and comes back at the end.
///
/// # Panics
/// With what does not hold.
#[must_use]
pub fn slowloris(order: &Order) -> Report {
    let cluster = Cluster::start_with(&order.setup(1));
    let mut siege = Siege::begin("slowloris", order, cluster);
    siege.cluster.nodes[FAULTY].kill();
    siege.wait_for_more(super::WRITES_AFTER);
    let three = siege.measure(order.calm).per_second();
    siege.note(format!("one down      {three:.0} writes/s without the attack"));
    let slow = Slow::start(&siege.cluster, order.clients);
    let done = Arc::clone(&slow.done);
    crate::wait::until("connections to be made", || match done.made.load(Ordering::Relaxed) {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    });
    siege.disturb(|siege| {
        for number in 0..NEWCOMERS {
            let key = format!("newcomer/{number}");
            siege.cluster.conclave(0, &["--timeout", "30s", "put", &key, "1"]).succeeds();
        }
        siege.rest(order.time);
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    siege.note(format!(
        "attack        {} handshakes begun and left, {} connections made, {} of them over",
        count(&done.begun),
        count(&done.made),
        count(&done.thrown_out)
    ));
    siege.note(format!("newcomers     {NEWCOMERS} clients connected and wrote meanwhile"));
    drop(slow);
    siege.cluster.start_all();
    siege.end()
}
