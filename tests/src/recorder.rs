//! What real clients did and were told: kept for the checker of linearizability, and written as JSON
//! lines for others, in the format of `conclave bench --history`.
//!
//! Beside writes of its own, each client puts, gets, deletes and swaps a few keys that all share. The
//! keys change every few seconds, so that the history of each stays short enough to be decided, and
//! at the end each is read once more.

use crate::history::{self, Operation};
use conclave_client::Client;
use conclave_client::cli::bench::history::{Entry, History};
use rand::RngExt as _;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Keys that are shared at one time.
const KEYS: u64 = 8;
/// They change so often.
const ERA: Duration = Duration::from_secs(5);
/// How long an operation on them waits for its answer: shorter than some outages, so that histories
/// have operations whose outcome nobody knows.
const PATIENCE: Duration = Duration::from_secs(6);

/// Takes in what clients did; clones are the same.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    start: Instant,
    clients: AtomicU32,
    values: AtomicU64,
    read_back: AtomicU64,
    file: Option<Mutex<History>>,
    /// The first failure to write the file.
    failure: Mutex<Option<io::Error>>,
    shared: Mutex<Vec<Operation>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one push or one line.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Records from now on, into this file as well.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn new(file: Option<&Path>) -> io::Result<Self> {
        let start = Instant::now();
        let file = file.map(|path| History::create(path, start)).transpose()?;
        Ok(Self(Arc::new(Inner {
            start,
            clients: AtomicU32::new(0),
            values: AtomicU64::new(0),
            read_back: AtomicU64::new(0),
            file: file.map(Mutex::new),
            failure: Mutex::default(),
            shared: Mutex::default(),
        })))
    }

    /// A number for a closed loop that has none yet.
    #[must_use]
    pub fn next_client(&self) -> u32 {
        self.0.clients.fetch_add(1, Ordering::Relaxed)
    }

    /// Since the start.
    #[must_use]
    pub fn nanoseconds(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Writes an operation into the file, where there is one.
    pub fn write(&self, entry: &Entry) {
        let Some(file) = &self.0.file else { return };
        if let Err(error) = lock(file).write(entry) {
            lock(&self.0.failure).get_or_insert(error);
        }
    }

    /// One closed loop on the shared keys, until it is told to stop; then they are read back.
    pub(crate) async fn share(self, client: Client, stop: Arc<AtomicBool>) {
        let client = client.with_timeout(PATIENCE);
        let number = self.next_client();
        let mut seen = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) {
            let mut entry = self.step(number, &seen);
            // What went wrong stands in the entry.
            match entry.carry_out(&client, || self.nanoseconds()).await.ok().flatten() {
                Some(value) => _ = seen.insert(entry.key.clone(), value),
                None => _ = seen.remove(&entry.key),
            }
            self.keep(&entry);
        }
        let keys = (self.era() + 1) * KEYS;
        loop {
            let index = self.0.read_back.fetch_add(1, Ordering::Relaxed);
            if index >= keys {
                return;
            }
            let key = key(index / KEYS, index % KEYS);
            let mut entry = Entry { client: number, op: "get", key, ..Entry::default() };
            // As above.
            let _ = entry.carry_out(&client, || self.nanoseconds()).await;
            self.keep(&entry);
        }
    }

    fn era(&self) -> u64 {
        self.0.start.elapsed().as_secs() / ERA.as_secs()
    }

    fn step(&self, client: u32, seen: &BTreeMap<String, String>) -> Entry {
        let mut random = rand::rng();
        let key = key(self.era(), random.random_range(0..KEYS));
        let number = self.0.values.fetch_add(1, Ordering::Relaxed);
        let value = || Some(format!("{client}-{number}"));
        let (op, value, expected) = match random.random_range(0..100) {
            0..40 => ("put", value(), None),
            40..80 => ("get", None, None),
            80..95 => ("cas", value(), seen.get(&key).cloned()),
            _ => ("delete", None, None),
        };
        Entry { client, op, key, value, expected, ..Entry::default() }
    }

    fn keep(&self, entry: &Entry) {
        self.write(entry);
        let operation = history::recorded(entry).expect("our own entry");
        lock(&self.0.shared).push(operation);
    }

    /// All operations on shared keys, once everything is written.
    ///
    /// # Errors
    /// When the file could not be written.
    pub fn finish(&self) -> io::Result<Vec<Operation>> {
        if let Some(error) = lock(&self.0.failure).take() {
            return Err(error);
        }
        if let Some(file) = &self.0.file {
            lock(file).flush()?;
        }
        Ok(std::mem::take(&mut *lock(&self.0.shared)))
    }
}

fn key(era: u64, number: u64) -> String {
    format!("shared/{era:05}/{number}")
}
