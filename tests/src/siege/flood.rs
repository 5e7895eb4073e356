//! A registered client that sends as fast as it can.
//!
//! An attacker has a machine of its own. Here it has one processor time with the cluster, so it runs with the
//! lowest priority: what its own work costs is not the cluster's loss, what its requests cost is.

use super::{Order, Report, Siege};
use crate::cluster::Cluster;
use crate::quic::{Stranger, To, frame};
use conclave_client::Client;
use conclave_config::client_config::ClientHome;
use conclave_consensus::client_wire::ClientFrame;
use conclave_consensus::kv::Transaction;
use conclave_consensus::message::{REQUEST_WINDOW, Request, RequestBody, SignedRequest};
use conclave_consensus::types::{ClientId, RequestNumber, SessionId};
use conclave_consensus::wire;
use conclave_crypto::keys::SecretKey;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests made in advance, which are sent round and round.
const REQUESTS: u64 = 8192;
/// Of those that are sent again and again.
const REPEATED: u64 = 32;
/// Frames in one write.
const FRAMES: usize = 32;
/// Bytes of each value.
const VALUE_BYTES: usize = 256;
/// How long a valid request may wait for its answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Puts, as many at a time as a session may have under way, each once it may be sent. They count.
    Valid,
    /// Requests of sessions that never were, signed well, to all replicas.
    Dead,
    /// The same few of these again and again.
    Repeated,
    /// Requests whose signature does not verify, to all replicas.
    Forged,
    /// As dead ones, and says that each was sent before, so that it is looked up first.
    Lookups,
    /// Asks each replica for its status and the ends of epochs.
    Questions,
}

impl Flood {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Valid, Self::Dead, Self::Repeated, Self::Forged, Self::Lookups, Self::Questions];

    /// What it is called on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Dead => "dead",
            Self::Repeated => "repeated",
            Self::Forged => "forged",
            Self::Lookups => "lookups",
            Self::Questions => "questions",
        }
    }

    /// The flood of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flood| flood.name() == name)
    }
}

/// The client that floods, until this is dropped.
struct Flooder {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    /// Its thread, as the system knows it.
    id: Arc<OnceLock<PathBuf>>,
    thread: Option<JoinHandle<()>>,
}

impl Flooder {
    fn start(home: PathBuf, flood: Flood) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let id = Arc::new(OnceLock::new());
        let (stopped, counted, known) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&id));
        let thread = std::thread::spawn(move || {
            step_back();
            let _ = std::fs::read_link("/proc/thread-self")
                .map(|it| known.set(Path::new("/proc").join(it)));
            let home = ClientHome::load(&home).expect("a client's home");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                if flood == Flood::Valid {
                    use_up_the_window(home, &stopped, &counted).await;
                } else {
                    shout(&Arc::new(home), flood, &stopped, &counted).await;
                }
            });
        });
        Self { stop, sent, id, thread: Some(thread) }
    }

    /// Time of the processor that it has used; none where the system does not say.
    fn used(&self) -> Duration {
        let of_thread = || {
            let told = std::fs::read_to_string(self.id.get()?.join("schedstat")).ok()?;
            told.split_whitespace().next()?.parse().ok()
        };
        Duration::from_nanos(of_thread().unwrap_or(0))
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flooder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the flooder panicked");
        }
    }
}

/// Gives this thread the lowest priority. Where that cannot be done the flood is a harder one.
fn step_back() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    if let Some(id) = thread.file_name() {
        let _ = Command::new("renice").args(["-n", "19", "-p"]).arg(id).output();
    }
}

/// Valid puts in as many loops as a session has requests under way.
async fn use_up_the_window(home: ClientHome, stop: &Arc<AtomicBool>, sent: &Arc<AtomicU64>) {
    let client = Client::connect(home).expect("a client").with_timeout(PATIENCE);
    let mut loops = tokio::task::JoinSet::new();
    for number in 0..REQUEST_WINDOW {
        let (client, stop, sent) = (client.clone(), Arc::clone(stop), Arc::clone(sent));
        loops.spawn(async move {
            let key = format!("flood/{number}").into_bytes();
            while !stop.load(Ordering::Relaxed) {
                // Whether it got through is not this client's concern.
                if client.put(&key, &[b'f'; VALUE_BYTES]).await.is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    // Those that still wait for an answer are not waited for.
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    loops.shutdown().await;
    client.close().await;
}

/// Sends the same bytes to all replicas round and round, and connects again where it is thrown out.
async fn shout(
    home: &Arc<ClientHome>,
    flood: Flood,
    stop: &Arc<AtomicBool>,
    sent: &Arc<AtomicU64>,
) {
    let writes: Arc<Vec<Vec<u8>>> =
        Arc::new(frames(home, flood).chunks(FRAMES).map(<[Vec<u8>]>::concat).collect());
    let mut loops = tokio::task::JoinSet::new();
    for member in home.genesis.membership.members.clone() {
        let (writes, home) = (Arc::clone(&writes), Arc::clone(home));
        let (stop, sent) = (Arc::clone(stop), Arc::clone(sent));
        let hello = To::Clients.hello(home.cluster, member.id);
        loops.spawn(async move {
            let address = member.client_address.parse().expect("a testnet's address");
            while !stop.load(Ordering::Relaxed) {
                let connected =
                    Stranger::connect(To::Clients, address, &home.key, member.key).await;
                let Ok(stranger) = connected else { continue };
                let Ok((mut stream, _answers)) = stranger.hello(To::Clients, &hello).await else {
                    continue;
                };
                for write in writes.iter().cycle() {
                    if stop.load(Ordering::Relaxed) || stream.write_all(write).await.is_err() {
                        break;
                    }
                    sent.fetch_add(FRAMES as u64, Ordering::Relaxed);
                }
                stranger.leave().await;
            }
        });
    }
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    loops.shutdown().await;
}

/// What is shouted, frame by frame.
fn frames(home: &ClientHome, flood: Flood) -> Vec<Vec<u8>> {
    let client: ClientId = home.key.public();
    let stranger = SecretKey::from_seed([77; 32]);
    let operations = wire::encode(&Transaction::put(b"flood/dead", [b'd'; VALUE_BYTES]));
    let request = |number| {
        let body = RequestBody::Submit {
            session: SessionId((1 << 40) + number / REQUEST_WINDOW),
            number: RequestNumber(1 + number % REQUEST_WINDOW),
            acknowledged: RequestNumber(0),
            operations: operations.clone(),
        };
        let key = if flood == Flood::Forged { &stranger } else { &home.key };
        SignedRequest::sign(&Request { client, body }, key, &home.cluster)
    };
    let count = if flood == Flood::Repeated { REPEATED } else { REQUESTS };
    let frames = (0..count).map(|number| match flood {
        Flood::Questions if number % 2 == 0 => ClientFrame::EpochEnds { from: 0 },
        Flood::Questions => ClientFrame::Status { token: number },
        Flood::Valid | Flood::Dead | Flood::Repeated | Flood::Forged => {
            ClientFrame::Submit { request: request(number), resent: false }
        }
        Flood::Lookups => ClientFrame::Submit { request: request(number), resent: true },
    });
    frames.map(|it| frame(&wire::encode(&it))).collect()
}

/// Quiet and flooded windows in turn, each as long as the first measurement, until the flooded ones
/// make up the time. What the flooding client itself gets through does not count.
///
/// # Panics
/// With what does not hold.
#[must_use]
pub fn flood(order: &Order, flood: Flood) -> Report {
    let cluster = Cluster::start_with(&order.setup(1));
    let home = cluster.client_home(order.clients);
    let mut siege = Siege::begin("flood", order, cluster);
    let start = Instant::now();
    let (mut sent, mut time, mut used) = (0, Duration::ZERO, Duration::ZERO);
    while time < order.time {
        let flooder = Flooder::start(home.clone(), flood);
        crate::wait::until("the flood to begin", || match flooder.sent() {
            0 => Err(format!("nothing is sent after {:?}", start.elapsed())),
            _ => Ok(()),
        });
        let (before, used_before) = (flooder.sent(), flooder.used());
        siege.disturb(|siege| siege.rest(order.calm));
        sent += flooder.sent() - before;
        used += flooder.used().saturating_sub(used_before);
        time += order.calm;
        siege.all_run();
        drop(flooder);
        siege.wait_for_more(super::WRITES_AFTER);
        siege.stay_calm(order.calm);
    }
    let rate = sent as f64 / time.as_secs_f64();
    let what = if flood == Flood::Valid { "answered" } else { "sent" };
    siege.note(format!("flood         {}, {rate:.0}/s {what}", flood.name()));
    siege.note(own_work(&siege, used, time));
    if flood == Flood::Valid {
        let all = siege.disturbed.per_second() + rate;
        let percent = 100.0 * all / siege.calm.per_second();
        siege.note(format!("all together  {all:.0} writes/s, {percent:.0} % of undisturbed"));
    }
    siege.end()
}

/// What the flooding client's own signing and sending took from the one machine that all share, and
/// what the flood costs a cluster that has its machines to itself.
fn own_work(siege: &Siege, used: Duration, time: Duration) -> String {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let part = used.as_secs_f64() / (time.as_secs_f64() * processors as f64);
    let left = siege.calm.per_second() * (1.0 - part);
    format!(
        "own work      {:.0} % of this machine's processors; disturbed is {:.0} % of what the rest would do undisturbed",
        100.0 * part,
        100.0 * siege.disturbed.per_second() / left.max(1e-9)
    )
}
