//! Writers that remember what was acknowledged.

use crate::recorder::Recorder;
use conclave_client::cli::bench::history::Entry;
use conclave_client::{Client, ClientError, Committed};
use conclave_config::client_config::ClientHome;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::wait;

/// How long a writer waits for one answer: longer than any outage in these tests.
const PATIENCE: Duration = Duration::from_secs(80);
/// Writes of one workload, so that a test that never stops it does not fill the memory.
const WRITES_MAX: u64 = 4_000_000;

/// One acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What the key was set to.
    pub value: Vec<u8>,
    /// The block that f+1 replicas proved it to be in.
    pub height: u64,
}

/// What writers were told. Every key is written once, so that it has version 1 for ever.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// By key.
    pub writes: BTreeMap<Vec<u8>, Written>,
    /// Writes whose outcome nobody could tell, by key.
    pub unknown: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Writes that failed, with the reason.
    pub failed: BTreeMap<Vec<u8>, String>,
    /// When each acknowledgement came, in order.
    pub times: Vec<Instant>,
}

impl Acknowledged {
    /// The longest time without an acknowledgement that begins at or ends after `from`.
    #[must_use]
    pub fn longest_pause_from(&self, from: Instant) -> Duration {
        let pairs = self.times.windows(2).filter(|pair| pair[1] >= from);
        pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// The highest block of an acknowledged write.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.writes.values().map(|written| written.height).max().unwrap_or(0)
    }

    /// Takes in what another workload was told.
    pub fn merge(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.unknown.extend(other.unknown);
        self.failed.extend(other.failed);
        self.times.extend(other.times);
        self.times.sort_unstable();
    }
}

/// Writers that run until [`Workload::finish`].
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    results: Arc<Mutex<Acknowledged>>,
    thread: Option<JoinHandle<()>>,
}

impl Workload {
    /// Starts `writers` closed loops over one client, each writing keys of its own below `name`.
    ///
    /// # Panics
    /// If the home cannot be used.
    #[must_use]
    pub fn start(home: PathBuf, name: &str, writers: usize) -> Self {
        Self::start_recorded(home, name, writers, 0, None)
    }

    /// As [`Self::start`], with so many more loops that put, get, delete and swap what they share with
    /// all that have this recorder; and everything is recorded.
    ///
    /// # Panics
    /// If the home cannot be used.
    #[must_use]
    pub fn start_recorded(
        home: PathBuf,
        name: &str,
        writers: usize,
        sharers: usize,
        recorder: Option<Recorder>,
    ) -> Self {
        let mut workload = Self {
            stop: Arc::default(),
            count: Arc::default(),
            results: Arc::default(),
            thread: None,
        };
        let home = ClientHome::load(&home).expect("a client's home");
        let (stop, count, results) =
            (workload.stop.clone(), workload.count.clone(), workload.results.clone());
        let name = name.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let client = Client::connect(home).expect("a client").with_timeout(PATIENCE);
                let mut tasks = tokio::task::JoinSet::new();
                for writer in 0..writers {
                    let writer = Writer {
                        client: client.clone(),
                        prefix: format!("{name}/{writer}"),
                        stop: stop.clone(),
                        count: count.clone(),
                        results: results.clone(),
                        recorder: recorder.as_ref().map(|all| (all.clone(), all.next_client())),
                    };
                    tasks.spawn(writer.run());
                }
                if let Some(recorder) = recorder {
                    for _ in 0..sharers {
                        tasks.spawn(recorder.clone().share(client.clone(), stop.clone()));
                    }
                }
                while let Some(ended) = tasks.join_next().await {
                    ended.expect("a writer does not panic");
                }
                client.close().await;
            });
        });
        workload.thread = Some(thread);
        workload
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes are acknowledged than now.
    pub fn wait_for_more(&self, more: u64) {
        let target = self.acknowledged() + more;
        wait::until(&format!("{more} more writes to be acknowledged"), || {
            match self.acknowledged() {
                count if count >= target => Ok(()),
                count => Err(format!("{count} of {target}; {}", self.trouble())),
            }
        });
    }

    /// Lets each writer end its last write, and waits for nothing.
    pub fn ask_to_finish(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Lets each writer end its last write, and gives what they were told.
    ///
    /// # Panics
    /// If a write was refused, or no writer could write at all.
    #[must_use]
    pub fn finish(mut self) -> Acknowledged {
        self.ask_to_finish();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("writers do not panic");
        }
        let results =
            std::mem::take(&mut *self.results.lock().unwrap_or_else(PoisonError::into_inner));
        assert!(results.failed.is_empty(), "writes failed: {:?}", results.failed.iter().next());
        assert!(!results.writes.is_empty(), "no write was acknowledged at all");
        results
    }

    fn trouble(&self) -> String {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = results.failed.values().next();
        format!("{} unknown, {} failed {failed:?}", results.unknown.len(), results.failed.len())
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // A test that failed does not wait for its writers, which end with the process.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One closed loop of writes.
struct Writer {
    client: Client,
    prefix: String,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    results: Arc<Mutex<Acknowledged>>,
    recorder: Option<(Recorder, u32)>,
}

impl Writer {
    async fn run(self) {
        for number in 0.. {
            if self.stop.load(Ordering::Relaxed)
                || self.count.load(Ordering::Relaxed) >= WRITES_MAX
                || !self.write(number).await
            {
                return;
            }
        }
    }

    /// One write; whether to go on.
    async fn write(&self, number: u64) -> bool {
        let key = format!("{}/{number:07}", self.prefix);
        let value = format!("value {number} of {}", self.prefix);
        let called = self.recorder.as_ref().map(|(recorder, _)| recorder.nanoseconds());
        let outcome = self.client.put(key.as_bytes(), value.as_bytes()).await;
        if let (Some((recorder, client)), Some(call_ns)) = (&self.recorder, called) {
            let (op, key, value) = ("put", key.clone(), Some(value.clone()));
            let entry = Entry { client: *client, op, key, value, call_ns, ..Entry::default() };
            recorder.write(&ended(entry, &outcome, recorder.nanoseconds()));
        }
        let (key, value) = (key.into_bytes(), value.into_bytes());
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok((version, committed)) => {
                if version != 1 {
                    results.failed.insert(key, format!("version {version}: it was applied twice"));
                    return false;
                }
                results.times.push(Instant::now());
                results.writes.insert(key, Written { value, height: committed.height.0 });
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_unknown() => _ = results.unknown.insert(key, value),
            // Nothing was sent: nobody was there to send it to.
            Err(ClientError::Unreachable { .. }) => {}
            Err(error) => {
                results.failed.insert(key, error.to_string());
                return false;
            }
        }
        true
    }
}

/// A put with its outcome.
fn ended(entry: Entry, outcome: &Result<(u64, Committed), ClientError>, now: u64) -> Entry {
    match outcome {
        Ok((_, committed)) => {
            Entry { return_ns: Some(now), result: "ok", height: Some(committed.height.0), ..entry }
        }
        Err(error) if error.is_unknown() => Entry { result: "unknown", ..entry },
        Err(_) => Entry { return_ns: Some(now), result: "error", ..entry },
    }
}
