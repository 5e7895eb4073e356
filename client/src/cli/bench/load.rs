//! Runs a load: closed loops, or an open one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::history::History;
use super::recorder::{Ended, Recorder, Window};
use super::schedule::{Schedule, pace};
use super::workload::Workload;
use crate::cli::output::Failure;
use crate::client::Client;
use crate::error::ClientError;
use conclave_config::ExitCode;

/// Scheduled starts that the pacer may be ahead of the workers.
const DUE_MAX: usize = 1024;

/// A scheduled transaction may still start so long after the measurement's end.
const GRACE: Duration = Duration::from_secs(1);

/// Keys whose last value a client remembers; a history has fewer.
const SEEN_MAX: usize = 4096;

/// A load and what it found.
#[derive(Clone)]
pub(super) struct Load(Arc<Shared>);

struct Shared {
    client: Client,
    workload: Workload,
    window: Window,
    keys: u32,
    recorder: Mutex<Recorder>,
    history: Option<Mutex<History>>,
    failures: Mutex<Failures>,
    /// Set when going on makes no sense: every transaction would be refused.
    stop: AtomicBool,
}

#[derive(Default)]
struct Failures {
    first: Option<String>,
    refused: Option<Failure>,
    history: Option<std::io::Error>,
}

/// What a load found.
pub(super) struct Measured {
    pub(super) recorder: Recorder,
    /// The first transaction's failure.
    pub(super) first_failure: Option<String>,
}

impl Load {
    pub(super) fn new(
        client: Client,
        workload: Workload,
        window: Window,
        history: Option<History>,
        keys: u32,
    ) -> Self {
        Self(Arc::new(Shared {
            client,
            workload,
            window,
            keys,
            recorder: Mutex::new(Recorder::new(window)),
            history: history.map(Mutex::new),
            failures: Mutex::default(),
            stop: AtomicBool::new(false),
        }))
    }

    /// Each of `clients` loops sends when the last answer was there.
    pub(super) async fn closed(&self, clients: u32) {
        let mut loops = JoinSet::new();
        for client in 0..clients {
            let shared = Arc::clone(&self.0);
            loops.spawn(async move {
                let mut seen = HashMap::new();
                while Instant::now() < shared.window.end && !shared.stopped() {
                    shared.one(client, &mut seen, Instant::now()).await;
                }
            });
        }
        loops.join_all().await;
    }

    /// Transactions start by a schedule; at most `clients` are on their way.
    pub(super) async fn open(&self, clients: u32, rate: f64) {
        let (due, starts) = mpsc::channel(DUE_MAX);
        let schedule = Schedule::new(Instant::now(), rate);
        let shared = Arc::clone(&self.0);
        let pacer = tokio::task::spawn_blocking(move || {
            pace(schedule, shared.window.end, &due, |start| shared.unsent(start));
        });
        let starts = Arc::new(tokio::sync::Mutex::new(starts));
        let mut workers = JoinSet::new();
        for client in 0..clients {
            let shared = Arc::clone(&self.0);
            let starts = Arc::clone(&starts);
            workers.spawn(async move {
                let mut seen = HashMap::new();
                loop {
                    let next = starts.lock().await.recv().await;
                    let Some(start) = next else { return };
                    if Instant::now() > shared.window.end + GRACE || shared.stopped() {
                        shared.unsent(start);
                    } else {
                        shared.one(client, &mut seen, start).await;
                    }
                }
            });
        }
        workers.join_all().await;
        // It ended, since its channel did; a panic there was reported already.
        let _ = pacer.await;
    }

    /// What was found, or why the load made no sense.
    pub(super) fn finish(&self) -> Result<Measured, Failure> {
        if let Some(history) = &self.0.history
            && let Err(error) = lock(history).flush()
        {
            lock(&self.0.failures).history = Some(error);
        }
        let mut failures = lock(&self.0.failures);
        if let Some(error) = failures.history.take() {
            return Err(Failure::new(ExitCode::Io, format!("cannot write the history: {error}")));
        }
        if let Some(refused) = failures.refused.take() {
            return Err(refused);
        }
        let recorder = lock(&self.0.recorder).clone();
        Ok(Measured { recorder, first_failure: failures.first.take() })
    }
}

/// The keys' values as one client last saw them.
type Seen = HashMap<String, String>;

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn unsent(&self, start: Instant) {
        lock(&self.recorder).unsent(start, Instant::now());
    }

    /// One transaction, meant to start at `intended`.
    async fn one(&self, client: u32, seen: &mut Seen, intended: Instant) {
        let outcome = match &self.history {
            None => {
                let transaction = self.workload.puts();
                self.client.transact(&transaction).await.map(drop)
            }
            Some(history) => self.step(client, seen, history).await,
        };
        let ended = if outcome.is_ok() { Ended::Committed } else { Ended::Failed };
        let operations = self.workload.operations();
        lock(&self.recorder).record(intended, Instant::now(), operations, ended);
        if let Err(error) = outcome {
            let mut failures = lock(&self.failures);
            failures.first.get_or_insert_with(|| error.to_string());
            if matches!(
                error,
                ClientError::Refused(_)
                    | ClientError::Rejected { .. }
                    | ClientError::Invalid(_)
                    | ClientError::Stopped
                    | ClientError::SessionClosed
            ) {
                self.stop.store(true, Ordering::Relaxed);
                failures.refused.get_or_insert_with(|| error.into());
            }
        }
    }

    /// One step of a history, recorded with its outcome.
    async fn step(
        &self,
        client: u32,
        seen: &mut Seen,
        history: &Mutex<History>,
    ) -> Result<(), ClientError> {
        let mut entry = self.workload.step(client, self.keys, |key| seen.get(key).cloned());
        let clock = || lock(history).nanoseconds(Instant::now());
        let error = match entry.carry_out(&self.client, clock).await {
            Ok(known) => {
                match known {
                    Some(value) if seen.len() < SEEN_MAX => seen.insert(entry.key.clone(), value),
                    _ => seen.remove(&entry.key),
                };
                None
            }
            Err(error) => Some(error),
        };
        if let Err(error) = lock(history).write(&entry) {
            self.stop.store(true, Ordering::Relaxed);
            lock(&self.failures).history = Some(error);
        }
        error.map_or(Ok(()), Err)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic of one loop leaves counts that are whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
