//! A bad network between replicas: UDP proxies that delay, lose, repeat and reorder, and cut whichever
//! way one likes.
//!
//! The genesis names an address for each replica; here a proxy listens there, and the replica itself
//! on another one (`listen_address` in its `node.toml`). A replica dials from the socket that it
//! listens on, so that the proxy knows by a packet's source who sent it, and each pair has a socket
//! of its own behind which the sender is hidden as behind a NAT:
//!
//! ```text
//! replica 0 ──► address of replica 1 in the genesis ═ proxy ═ socket of (0, 1) ──► replica 1
//!           ◄──                                              ◄──
//! ```
//!
//! Each direction of each pair is a [`Link`] that can be changed at any time. Clients are not behind
//! proxies.

use crate::cluster::Cluster;
use rand::RngExt as _;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// The port on which replicas behind proxies listen.
const PORT: u16 = 27100;
/// Replica `i` listens on this host plus `i`.
const FIRST_HOST: usize = 100;
/// The largest UDP payload. Bytes.
const PACKET_MAX: usize = 65_535;
/// Packets under way on one link; more are lost, as on any wire.
const UNDER_WAY_MAX: usize = 8_192;
/// How much later than the others a packet comes that is reordered.
const OVERTAKEN: Duration = Duration::from_millis(15);

/// One direction between two replicas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// False cuts it.
    pub up: bool,
    /// Each packet takes so long.
    pub delay: Duration,
    /// And up to so much longer; a packet overtakes none before it.
    pub jitter: Duration,
    /// Of all packets, how many are lost. 0 to 1.
    pub lost: f64,
    /// How many come so late that others overtake them. 0 to 1.
    pub reordered: f64,
    /// How many come twice. 0 to 1.
    pub repeated: f64,
}

impl Link {
    /// A wire without faults.
    pub const GOOD: Self = Self {
        up: true,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        lost: 0.0,
        reordered: 0.0,
        repeated: 0.0,
    };
    /// A wire on which nothing arrives.
    pub const CUT: Self = Self { up: false, ..Self::GOOD };
}

/// What became of the packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Handed on.
    pub sent: u64,
    /// Lost on purpose, cut links included.
    pub lost: u64,
    /// Handed on late or twice.
    pub disturbed: u64,
    /// From nobody that is known here, or more than a link holds.
    pub refused: u64,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    lost: AtomicU64,
    disturbed: AtomicU64,
    refused: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Proxies in front of all replicas of a cluster, until this is dropped.
pub struct Proxies {
    replicas: usize,
    wires: Arc<Wires>,
    _stop: oneshot::Sender<()>,
}

struct Wires {
    links: Mutex<BTreeMap<(usize, usize), Link>>,
    counters: Counters,
}

impl Proxies {
    /// Puts a proxy in front of each replica of a cluster that does not run yet.
    ///
    /// # Panics
    /// If an address is taken, or the cluster runs.
    #[must_use]
    pub fn before(cluster: &Cluster) -> Self {
        let genesis = conclave_config::genesis::load(cluster.genesis()).expect("testnet wrote it");
        let fronts: Vec<SocketAddr> = (genesis.membership.members.iter())
            .map(|member| member.address.parse().expect("a testnet's addresses are IP addresses"))
            .collect();
        let backs: Vec<SocketAddr> = (0..fronts.len())
            .map(|i| SocketAddr::from((cluster.network().host(FIRST_HOST + i), PORT)))
            .collect();
        for (node, back) in cluster.nodes.iter().zip(&backs) {
            assert!(!node.is_running(), "{} runs already", node.home.display());
            listen_on(&node.home.join("node.toml"), *back);
        }
        Self::start(&fronts, backs)
    }

    /// Proxies on `fronts` for replicas that listen on `backs`.
    fn start(fronts: &[SocketAddr], backs: Vec<SocketAddr>) -> Self {
        let bind = |address: SocketAddr| {
            let socket = std::net::UdpSocket::bind(address);
            let socket =
                socket.unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
            socket.set_nonblocking(true).expect("a socket of our own");
            socket
        };
        let replicas = backs.len();
        let listeners: Vec<_> = fronts.iter().map(|front| bind(*front)).collect();
        let pairs =
            pairs(replicas).map(|(from, to)| ((from, to), bind((backs[from].ip(), 0).into())));
        let pairs: BTreeMap<_, _> = pairs.collect();
        let wires = Arc::new(Wires { links: Mutex::default(), counters: Counters::default() });
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&wires);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                carry(&shared, listeners, pairs, &backs);
                // An error says that the handle was dropped, which is how this ends.
                let _ = stopped.await;
            });
        });
        Self { replicas, wires, _stop: stop }
    }

    /// Makes every link this one.
    pub fn set_all(&self, link: Link) {
        let mut links = self.wires.links();
        for pair in pairs(self.replicas) {
            links.insert(pair, link);
        }
    }

    /// Changes one direction between two replicas.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        self.wires.links().insert((from, to), link);
    }

    /// Cuts every link between these replicas and all others, both ways.
    pub fn split(&self, side: &[usize]) {
        for (from, to) in pairs(self.replicas) {
            if side.contains(&from) != side.contains(&to) {
                self.set(from, to, Link::CUT);
            }
        }
    }

    /// What became of the packets so far.
    #[must_use]
    pub fn passed(&self) -> Passed {
        let Counters { sent, lost, disturbed, refused } = &self.wires.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Passed {
            sent: read(sent),
            lost: read(lost),
            disturbed: read(disturbed),
            refused: read(refused),
        }
    }
}

/// All directions between different replicas.
fn pairs(replicas: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..replicas)
        .flat_map(move |from| (0..replicas).map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
}

/// Sets where a replica listens for its peers.
fn listen_on(file: &std::path::Path, address: SocketAddr) {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let example = "# listen_address = \"0.0.0.0:27100\"";
    assert!(text.contains(example), "{} has no {example}", file.display());
    let text = text.replace(example, &format!("listen_address = \"{address}\""));
    fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

impl Wires {
    fn links(&self) -> MutexGuard<'_, BTreeMap<(usize, usize), Link>> {
        // A panic elsewhere leaves whole links.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, from: usize, to: usize) -> Link {
        self.links().get(&(from, to)).copied().unwrap_or(Link::GOOD)
    }
}

/// A packet and the way that it leaves.
struct Packet {
    due: Instant,
    bytes: Vec<u8>,
    out: Arc<UdpSocket>,
    address: SocketAddr,
}

impl Packet {
    async fn leave(self, counters: &Counters) {
        sleep_until(self.due).await;
        // A full buffer or a replica that is down loses it, as a wire does.
        match self.out.send_to(&self.bytes, self.address).await {
            Ok(_) => count(&counters.sent),
            Err(_) => count(&counters.lost),
        }
    }
}

/// One direction between two replicas, with what is under way on it.
#[derive(Clone)]
struct Way {
    from: usize,
    to: usize,
    wires: Arc<Wires>,
    line: mpsc::Sender<Packet>,
    late: Arc<Semaphore>,
}

impl Way {
    fn new(wires: &Arc<Wires>, from: usize, to: usize) -> Self {
        let (line, mut packets) = mpsc::channel::<Packet>(UNDER_WAY_MAX);
        let shared = Arc::clone(wires);
        tokio::spawn(async move {
            while let Some(packet) = packets.recv().await {
                packet.leave(&shared.counters).await;
            }
        });
        let late = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        Self { from, to, wires: Arc::clone(wires), line, late }
    }

    fn pass(&self, bytes: &[u8], out: &Arc<UdpSocket>, address: SocketAddr) {
        let link = self.wires.link(self.from, self.to);
        let counters = &self.wires.counters;
        let mut random = rand::rng();
        if !link.up || random.random_bool(link.lost) {
            return count(&counters.lost);
        }
        let jitter = link.jitter.mul_f64(random.random_range(0.0..=1.0));
        let due = Instant::now() + link.delay + jitter;
        let packet = |due| Packet { due, bytes: bytes.to_vec(), out: Arc::clone(out), address };
        let (late, again) = (random.random_bool(link.reordered), random.random_bool(link.repeated));
        if late || again {
            count(&counters.disturbed);
            self.beside(packet(due + OVERTAKEN));
        }
        if !late && self.line.try_send(packet(due)).is_err() {
            count(&counters.refused);
        }
    }

    /// Sends a packet without regard to the others.
    fn beside(&self, packet: Packet) {
        let Ok(place) = Arc::clone(&self.late).try_acquire_owned() else {
            return count(&self.wires.counters.refused);
        };
        let wires = Arc::clone(&self.wires);
        tokio::spawn(async move {
            packet.leave(&wires.counters).await;
            drop(place);
        });
    }
}

/// Starts a task for each socket.
fn carry(
    wires: &Arc<Wires>,
    listeners: Vec<std::net::UdpSocket>,
    pairs: BTreeMap<(usize, usize), std::net::UdpSocket>,
    backs: &[SocketAddr],
) {
    let own = |socket| Arc::new(UdpSocket::from_std(socket).expect("a socket of our own"));
    let listeners: Vec<_> = listeners.into_iter().map(own).collect();
    let sockets: BTreeMap<_, _> =
        pairs.into_iter().map(|(pair, socket)| (pair, own(socket))).collect();
    let ways = sockets.keys().map(|(from, to)| ((*from, *to), Way::new(wires, *from, *to)));
    let ways: Arc<BTreeMap<_, _>> = Arc::new(ways.collect());
    for (to, listener) in listeners.iter().enumerate() {
        let (ways, sockets, backs) = (Arc::clone(&ways), sockets.clone(), backs.to_vec());
        let wires = Arc::clone(wires);
        tokio::spawn(receive(Arc::clone(listener), move |bytes, source| {
            let from = backs.iter().position(|back| *back == source);
            match from.and_then(|from| Some((ways.get(&(from, to))?, sockets.get(&(from, to))?))) {
                Some((way, socket)) => way.pass(bytes, socket, backs[to]),
                None => count(&wires.counters.refused),
            }
        }));
    }
    for ((from, to), socket) in &sockets {
        let Some(way) = ways.get(&(*to, *from)).cloned() else { continue };
        let (sender, receiver) = (backs[*to], backs[*from]);
        let (listener, wires) = (Arc::clone(&listeners[*to]), Arc::clone(wires));
        tokio::spawn(receive(Arc::clone(socket), move |bytes, source| {
            if source == sender {
                way.pass(bytes, &listener, receiver);
            } else {
                count(&wires.counters.refused);
            }
        }));
    }
}

async fn receive(socket: Arc<UdpSocket>, mut take: impl FnMut(&[u8], SocketAddr)) {
    let mut buffer = vec![0; PACKET_MAX];
    loop {
        // An error is one packet's, such as the answer of a port that nobody listens on.
        if let Ok((length, source)) = socket.recv_from(&mut buffer).await {
            take(&buffer[..length], source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::Network;

    /// Two replicas that are plain sockets, and the proxies between them.
    fn two() -> (Network, Proxies, [std::net::UdpSocket; 2], [SocketAddr; 2]) {
        let network = Network::take();
        let address = |host| SocketAddr::from((network.host(host), PORT));
        let (fronts, backs) = ([address(0), address(1)], [address(100), address(101)]);
        let sockets =
            backs.map(|back| std::net::UdpSocket::bind(back).expect("an address of ours"));
        let proxies = Proxies::start(&fronts, backs.to_vec());
        (network, proxies, sockets, fronts)
    }

    fn received(socket: &std::net::UdpSocket, within: Duration) -> Option<(u8, SocketAddr)> {
        socket.set_read_timeout(Some(within)).expect("a timeout");
        let mut byte = [0];
        socket.recv_from(&mut byte).ok().map(|(_, source)| (byte[0], source))
    }

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn packets_go_both_ways_and_each_direction_is_cut_apart() {
        let (_network, proxies, [zero, one], fronts) = two();
        zero.send_to(&[1], fronts[1]).expect("sent");
        let (byte, hidden) = received(&one, SOON).expect("a packet");
        assert_eq!(byte, 1);
        one.send_to(&[2], hidden).expect("sent");
        assert_eq!(
            received(&zero, SOON),
            Some((2, fronts[1])),
            "the answer comes from where it went"
        );

        proxies.set(0, 1, Link::CUT);
        let lost = proxies.passed().lost;
        zero.send_to(&[3], fronts[1]).expect("sent");
        crate::wait::until("the packet to be lost", || match proxies.passed().lost {
            now if now > lost => Ok(()),
            now => Err(format!("{now} lost")),
        });
        one.send_to(&[4], hidden).expect("sent");
        assert_eq!(received(&zero, SOON), Some((4, fronts[1])), "the other way is whole");
        proxies.set_all(Link::GOOD);
        zero.send_to(&[5], fronts[1]).expect("sent");
        assert_eq!(received(&one, SOON).map(|(byte, _)| byte), Some(5), "and 3 never came");
    }

    #[test]
    fn a_delayed_packet_takes_its_time_and_keeps_its_place() {
        let (_network, proxies, [zero, one], fronts) = two();
        let delay = Duration::from_millis(50);
        proxies.set_all(Link { delay, ..Link::GOOD });
        let start = std::time::Instant::now();
        for byte in 0..20 {
            zero.send_to(&[byte], fronts[1]).expect("sent");
        }
        for byte in 0..20 {
            assert_eq!(received(&one, SOON).map(|(byte, _)| byte), Some(byte));
        }
        assert!(start.elapsed() >= delay);
    }

    #[test]
    fn packets_are_lost_repeated_and_overtaken_as_often_as_asked_for() {
        let (_network, proxies, [zero, one], fronts) = two();
        proxies.set_all(Link { repeated: 1.0, ..Link::GOOD });
        zero.send_to(&[1], fronts[1]).expect("sent");
        for _ in 0..2 {
            assert_eq!(received(&one, SOON).map(|(byte, _)| byte), Some(1));
        }
        let delay = Duration::from_secs(2);
        proxies.set_all(Link { reordered: 1.0, delay, ..Link::GOOD });
        zero.send_to(&[2], fronts[1]).expect("sent");
        crate::wait::until("the packet to be taken in", || match proxies.passed().disturbed {
            2 => Ok(()),
            now => Err(format!("{now} disturbed")),
        });
        proxies.set_all(Link::GOOD);
        zero.send_to(&[3], fronts[1]).expect("sent");
        let bytes = [received(&one, SOON), received(&one, SOON)];
        assert_eq!(bytes.map(|it| it.map(|(byte, _)| byte)), [Some(3), Some(2)]);
        proxies.set_all(Link { lost: 1.0, ..Link::GOOD });
        let before = proxies.passed();
        zero.send_to(&[4], fronts[1]).expect("sent");
        crate::wait::until("the packet to be lost", || match proxies.passed().lost {
            now if now == before.lost + 1 => Ok(()),
            now => Err(format!("{now} lost")),
        });
    }

    #[test]
    fn strangers_are_not_carried() {
        let (network, proxies, _sockets, fronts) = two();
        let stranger = std::net::UdpSocket::bind((network.host(50), 0)).expect("a socket");
        stranger.send_to(&[1], fronts[0]).expect("sent");
        crate::wait::until("the stranger to be refused", || match proxies.passed() {
            Passed { refused: 1, sent: 0, .. } => Ok(()),
            passed => Err(format!("{passed:?}")),
        });
    }
}
