//! The thread that owns the journal.
//!
//! It takes everything that is queued, merges it into one write, syncs once and reports the highest
//! number. While the disk is busy the next writes queue up, so the next sync carries more: under load
//! the number of syncs falls by itself, and an idle journal answers at once.

use super::Journal;
use conclave_consensus::replica::{JournalWrite, WriteNumber};
use conclave_consensus::storage::StorageError;
use conclave_consensus::types::Sequence;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// Commands that may wait. The engine's window bounds what they hold; past it, [`JournalThread::write`]
/// waits for the disk.
const QUEUE_MAX: usize = 4096;
/// One write merges at most this many, so that a long queue is reported in steps.
const MERGE_MAX: usize = 512;
/// And stops merging at this size. Bytes.
const MERGE_BYTES_MAX: usize = 16 << 20;

/// The exit code of a process whose disk failed.
const EXIT_IO: i32 = 6;

/// What the journal has cost.
#[derive(Clone, Debug)]
pub struct JournalMetrics {
    /// Syncs of the journal.
    pub syncs: Counter,
    /// Records in them.
    pub records: Counter,
    /// Bytes of these records.
    pub bytes: Counter,
    /// Time of one write with its sync. Seconds.
    pub seconds: Histogram,
}

impl Default for JournalMetrics {
    fn default() -> Self {
        Self {
            syncs: Counter::default(),
            records: Counter::default(),
            bytes: Counter::default(),
            // 50 µs to 1.6 s.
            seconds: Histogram::new(exponential_buckets(50e-6, 2.0, 16)),
        }
    }
}

impl JournalMetrics {
    /// Publishes them under `journal_…`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("journal_fsyncs", "Synced journal writes", self.syncs.clone());
        registry.register("journal_records", "Records journaled", self.records.clone());
        registry.register("journal_bytes", "Bytes journaled", self.bytes.clone());
        registry.register_with_unit(
            "journal_write",
            "Time of one synced write",
            Unit::Seconds,
            self.seconds.clone(),
        );
    }
}

enum Command {
    Write(JournalWrite),
    Truncate(Sequence),
}

/// A handle on the thread; dropping it lets the thread finish what is queued.
#[derive(Debug)]
pub struct JournalThread {
    commands: SyncSender<Command>,
    queued: Arc<AtomicUsize>,
    thread: JoinHandle<Journal>,
}

impl JournalThread {
    /// Starts the thread. `completion` hears of each synced write, in order, on that thread;
    /// `abort` is called once if the disk fails, and the thread does no more after it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(
        journal: Journal,
        metrics: JournalMetrics,
        completion: impl Fn(WriteNumber) + Send + 'static,
        abort: impl FnOnce(&StorageError) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (commands, queue) = sync_channel(QUEUE_MAX);
        let queued = Arc::new(AtomicUsize::new(0));
        let taken = queued.clone();
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || run(journal, &(queue, taken), &metrics, &completion, abort))?;
        Ok(Self { commands, queued, thread })
    }

    /// Queues a write; waits only while the queue is full.
    pub fn write(&self, write: JournalWrite) {
        self.command(Command::Write(write));
    }

    /// Queues a truncation, see [`Journal::truncate`].
    pub fn truncate(&self, through: Sequence) {
        self.command(Command::Truncate(through));
    }

    /// Waits for everything queued and gives the journal back.
    ///
    /// # Errors
    /// When the thread panicked.
    pub fn stop(self) -> std::io::Result<Journal> {
        drop(self.commands);
        self.thread.join().map_err(|_| std::io::Error::other("the journal thread panicked"))
    }

    /// Whether so many commands can be queued without waiting, by the only one who queues any.
    #[must_use]
    pub fn has_room_for(&self, commands: usize) -> bool {
        self.queued.load(Ordering::Acquire) + commands <= QUEUE_MAX
    }

    fn command(&self, command: Command) {
        self.queued.fetch_add(1, Ordering::AcqRel);
        if self.commands.send(command).is_err() {
            // The thread ends early only after a failed write, and then nothing is reported any
            // more: no effect leaves, which is all that safety needs until the process is gone.
            tracing::error!("the journal thread has stopped");
        }
    }
}

/// The abort hook of a node: says what happened and ends the process, without any clean-up that
/// could write to the disk.
pub fn abort_process(error: &StorageError) {
    tracing::error!(%error, "the journal failed; this replica stops");
    std::process::exit(EXIT_IO);
}

fn run(
    mut journal: Journal,
    (queue, queued): &(Receiver<Command>, Arc<AtomicUsize>),
    metrics: &JournalMetrics,
    completion: &impl Fn(WriteNumber),
    abort: impl FnOnce(&StorageError),
) -> Journal {
    while let Ok(first) = queue.recv() {
        let mut merged = Merged::default();
        merged.add(first);
        let mut count = 1;
        while !merged.full() {
            let Ok(command) = queue.try_recv() else { break };
            merged.add(command);
            count += 1;
        }
        queued.fetch_sub(count, Ordering::AcqRel);
        if let Err(error) = carry_out(&mut journal, merged, metrics, completion) {
            abort(&error);
            break;
        }
    }
    journal
}

#[derive(Default)]
struct Merged {
    writes: Vec<JournalWrite>,
    truncate: Option<Sequence>,
    bytes: usize,
}

impl Merged {
    fn add(&mut self, command: Command) {
        match command {
            Command::Write(write) => {
                self.bytes += write.records.iter().map(|record| record.bytes.len()).sum::<usize>();
                self.writes.push(write);
            }
            Command::Truncate(through) => self.truncate = self.truncate.max(Some(through)),
        }
    }

    fn full(&self) -> bool {
        self.writes.len() >= MERGE_MAX || self.bytes >= MERGE_BYTES_MAX
    }
}

fn carry_out(
    journal: &mut Journal,
    merged: Merged,
    metrics: &JournalMetrics,
    completion: &impl Fn(WriteNumber),
) -> Result<(), StorageError> {
    let started = Instant::now();
    let records = merged.writes.iter().map(|write| write.records.len() as u64).sum();
    journal.write(merged.writes, |number| {
        // Counted first: whoever hears of the write finds it counted.
        metrics.syncs.inc();
        metrics.records.inc_by(records);
        metrics.bytes.inc_by(merged.bytes as u64);
        metrics.seconds.observe(started.elapsed().as_secs_f64());
        completion(number);
    })?;
    // After the write, which others wait for. Records at or below a stable checkpoint are of no more
    // use, also those that were queued behind the truncation.
    match merged.truncate {
        Some(through) => journal.truncate(through),
        None => Ok(()),
    }
}
