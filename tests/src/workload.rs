//! Writers that remember what was acknowledged.

use conclave_client::{Client, ClientError};
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
const WRITES_MAX: u64 = 1_000_000;

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
        self.times.sort();
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
                let tasks: Vec<_> = (0..writers)
                    .map(|writer| {
                        let prefix = format!("{name}/{writer}");
                        let loops = write(
                            client.clone(),
                            prefix,
                            stop.clone(),
                            count.clone(),
                            results.clone(),
                        );
                        tokio::spawn(loops)
                    })
                    .collect();
                for task in tasks {
                    task.await.expect("a writer does not panic");
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

    /// Lets each writer end its last write, and gives what they were told.
    ///
    /// # Panics
    /// If a write was refused, or no writer could write at all.
    #[must_use]
    pub fn finish(mut self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
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

async fn write(
    client: Client,
    prefix: String,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    results: Arc<Mutex<Acknowledged>>,
) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) || count.load(Ordering::Relaxed) >= WRITES_MAX {
            return;
        }
        let key = format!("{prefix}/{number:07}").into_bytes();
        let value = format!("value {number} of {prefix}").into_bytes();
        let outcome = client.put(&key, &value).await;
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok((version, committed)) => {
                if version != 1 {
                    results.failed.insert(key, format!("version {version}: it was applied twice"));
                    return;
                }
                results.times.push(Instant::now());
                results.writes.insert(key, Written { value, height: committed.height.0 });
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_unknown() => _ = results.unknown.insert(key, value),
            // Nothing was sent: nobody was there to send it to.
            Err(ClientError::Unreachable { .. }) => {}
            Err(error) => {
                results.failed.insert(key, error.to_string());
                return;
            }
        }
    }
}
