//! The thread that owns the journal.
//!
//! It takes everything that is queued, merges it into one write, syncs once and reports the highest
//! number. While the disk is busy the next writes queue up, so the next sync carries more: under load
//! the number of syncs falls by itself, and an idle journal answers at once. While it sleeps, a thread
//! that comes to rest may make a small write itself ([`JournalHelp`]).

use super::Journal;
use conclave_consensus::replica::{JournalWrite, WriteNumber};
use conclave_consensus::storage::StorageError;
use conclave_consensus::types::Sequence;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Commands that may wait. The engine's window bounds what they hold; past it, [`JournalThread::write`]
/// waits for the disk.
const QUEUE_MAX: usize = 4096;
/// One write merges at most this many, so that a long queue is reported in steps.
const MERGE_MAX: usize = 512;
/// And stops merging at this size. Bytes.
const MERGE_BYTES_MAX: usize = 16 << 20;

/// A thread that helps writes no more than this at once. Commands and bytes.
const LITTLE: (usize, usize) = (8, 64 << 10);
/// Above this time of the last write no thread but the journal's own waits for the disk.
const QUICK: Duration = Duration::from_millis(1);

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
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
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
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            ready: Condvar::new(),
            room: Condvar::new(),
            journal: Mutex::new(Some(journal)),
            slow: AtomicBool::new(false),
            metrics,
        });
        let on_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || on_thread.run(&completion, abort))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues a write; waits only while the queue is full.
    pub fn write(&self, write: JournalWrite) {
        self.shared.push(Command::Write(write), true);
    }

    /// As [`Self::write`], and wakes nobody: the caller sees to it that somebody looks.
    pub(crate) fn write_silently(&self, write: JournalWrite) {
        self.shared.push(Command::Write(write), false);
    }

    /// Queues a truncation, see [`Journal::truncate`].
    pub fn truncate(&self, through: Sequence) {
        self.shared.push(Command::Truncate(through), true);
    }

    /// Waits for everything queued and gives the journal back.
    ///
    /// # Errors
    /// When the thread panicked, or a write failed on a thread that helped.
    pub fn stop(mut self) -> std::io::Result<Journal> {
        self.shared.close();
        let panicked = || std::io::Error::other("the journal thread panicked");
        let thread = self.thread.take().ok_or_else(panicked)?;
        thread.join().map_err(|_| panicked())?;
        // Locked before the failure is looked for: who helps may be at it still.
        let journal = self.shared.journal().take();
        match &self.shared.queue().failed {
            Some(error) => Err(std::io::Error::other(error.to_string())),
            None => journal.ok_or_else(panicked),
        }
    }

    /// Whether so many commands can be queued without waiting, by the only one who queues any.
    #[must_use]
    pub fn has_room_for(&self, commands: usize) -> bool {
        self.shared.queue().commands.len() + commands <= QUEUE_MAX
    }

    /// For threads that come to rest while this one sleeps.
    pub(crate) fn help(&self) -> JournalHelp {
        JournalHelp(Arc::clone(&self.shared))
    }
}

impl Drop for JournalThread {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Writes on a thread that comes to rest, while the journal's own sleeps: that saves the waking of
/// the one for the write and of the other for what it makes possible.
pub(crate) struct JournalHelp(Arc<Shared>);

impl JournalHelp {
    /// Writes what was queued silently, if the disk is quick and it is little. Whether it did; then
    /// `report` has heard of it.
    pub(crate) fn write(&self, report: impl FnOnce(WriteNumber)) -> bool {
        let shared = &self.0;
        if shared.slow.load(Ordering::Relaxed) || !shared.sleeps_on_something() {
            return false;
        }
        let Ok(mut place) = shared.journal.try_lock() else { return false };
        let Some(journal) = place.as_mut() else { return false };
        let Some(merged) = shared.take_little(journal) else { return false };
        let written = carry_out(journal, merged, shared, report).is_ok();
        if !written {
            // The journal's thread tells why.
            shared.ready.notify_one();
        }
        written
    }

    /// Whether its thread sleeps although something waits.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.sleeps_on_something()
    }

    /// Wakes the journal's thread if it sleeps although something waits.
    pub(crate) fn wake_for_more(&self) {
        let mut queue = self.0.queue();
        let wake = !queue.commands.is_empty() && std::mem::take(&mut queue.sleeping);
        drop(queue);
        if wake {
            self.0.ready.notify_one();
        }
    }
}

/// What the handle, the thread and helpers share.
struct Shared {
    queue: Mutex<Queue>,
    /// The thread waits here for something to do,
    ready: Condvar,
    /// and who queues for room.
    room: Condvar,
    /// Whoever takes commands holds it, so that they are carried out in order.
    journal: Mutex<Option<Journal>>,
    /// The last write took long: none is made in passing.
    slow: AtomicBool,
    metrics: JournalMetrics,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// The thread does; who takes this takes on to wake it.
    sleeping: bool,
    closed: bool,
    failed: Option<StorageError>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("queued", &self.queue().commands.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // It stays whole under a panic of another thread: every change is one push or pop.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Panics
    /// If a thread panicked within a write: what the disk holds is unknown, and nobody goes on.
    fn journal(&self) -> MutexGuard<'_, Option<Journal>> {
        self.journal.lock().expect("no write panics")
    }

    fn push(&self, command: Command, wake: bool) {
        let mut queue = self.queue();
        while queue.commands.len() >= QUEUE_MAX && !queue.closed {
            // Whoever was to be woken silently is not waited for.
            self.ready.notify_one();
            queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.closed {
            // The thread ends early only after a failed write, and then nothing is reported any
            // more: no effect leaves, which is all that safety needs until the process is gone.
            tracing::error!("the journal thread has stopped");
            return;
        }
        queue.commands.push_back(command);
        let wake = wake && std::mem::take(&mut queue.sleeping);
        drop(queue);
        if wake {
            self.ready.notify_one();
        }
    }

    fn close(&self) {
        self.queue().closed = true;
        self.ready.notify_one();
        self.room.notify_all();
    }

    fn sleeps_on_something(&self) -> bool {
        let queue = self.queue();
        queue.sleeping && !queue.commands.is_empty()
    }

    /// Waits for a command, a failure or the end; whether there is a command.
    fn wait(&self) -> Result<bool, StorageError> {
        let mut queue = self.queue();
        loop {
            if let Some(error) = &queue.failed {
                return Err(error.clone());
            }
            if !queue.commands.is_empty() {
                return Ok(true);
            }
            if queue.closed {
                return Ok(false);
            }
            queue.sleeping = true;
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.sleeping = false;
        }
    }

    /// What waits, up to what one write merges. Called with the journal locked: nothing is taken after a
    /// failure, whoever met it.
    fn take(&self) -> Result<Merged, StorageError> {
        let mut merged = Merged::default();
        let mut queue = self.queue();
        if let Some(error) = &queue.failed {
            return Err(error.clone());
        }
        while !merged.full()
            && let Some(command) = queue.commands.pop_front()
        {
            merged.add(command);
        }
        drop(queue);
        self.room.notify_all();
        Ok(merged)
    }

    /// What waits, if it is little and one sync makes it durable. Called with the journal locked.
    fn take_little(&self, journal: &Journal) -> Option<Merged> {
        let mut queue = self.queue();
        let writes = |command: &Command| matches!(command, Command::Write(_));
        if queue.failed.is_some()
            || queue.commands.len() > LITTLE.0
            || !queue.commands.iter().all(writes)
        {
            return None;
        }
        let mut merged = Merged::default();
        for command in queue.commands.drain(..) {
            merged.add(command);
        }
        if merged.bytes <= LITTLE.1 && journal.takes_at_once(&merged.writes) {
            return Some(merged);
        }
        queue.commands.extend(merged.writes.into_iter().map(Command::Write));
        None
    }

    fn run(&self, completion: &impl Fn(WriteNumber), abort: impl FnOnce(&StorageError)) {
        // Whoever waits for room is not left waiting, whatever ends this thread.
        let _closing = Closing(self);
        if let Err(error) = self.serve(completion) {
            self.close();
            abort(&error);
        }
    }

    /// Carries out what comes until the queue is closed and empty.
    fn serve(&self, completion: &impl Fn(WriteNumber)) -> Result<(), StorageError> {
        while self.wait()? {
            let mut place = self.journal();
            let Some(journal) = place.as_mut() else { return Ok(()) };
            // Somebody who helped may have taken it all.
            carry_out(journal, self.take()?, self, completion)?;
        }
        Ok(())
    }
}

/// The abort hook of a node: says what happened and ends the process, without any clean-up that
/// could write to the disk.
pub fn abort_process(error: &StorageError) {
    tracing::error!(%error, "the journal failed; this replica stops");
    std::process::exit(EXIT_IO);
}

/// Closes the queue when its thread ends, in a panic too.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
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

/// Writes and truncates. A failure is seen by whoever locks the journal next, and nobody writes any more.
fn carry_out(
    journal: &mut Journal,
    merged: Merged,
    shared: &Shared,
    completion: impl FnOnce(WriteNumber),
) -> Result<(), StorageError> {
    let metrics = &shared.metrics;
    let started = Instant::now();
    let records = merged.writes.iter().map(|write| write.records.len() as u64).sum();
    let written = journal.write(merged.writes, |number| {
        // Counted first: whoever hears of the write finds it counted.
        metrics.syncs.inc();
        metrics.records.inc_by(records);
        metrics.bytes.inc_by(merged.bytes as u64);
        let took = started.elapsed();
        metrics.seconds.observe(took.as_secs_f64());
        shared.slow.store(took > QUICK, Ordering::Relaxed);
        completion(number);
    });
    // After the write, which others wait for. Records at or below a stable checkpoint are of no more
    // use, also those that were queued behind the truncation.
    let done = written.and_then(|()| merged.truncate.map_or(Ok(()), |at| journal.truncate(at)));
    if let Err(error) = &done {
        shared.queue().failed = Some(error.clone());
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::SharedResources;
    use conclave_consensus::engine::{Record, Slot};
    use conclave_consensus::memory_storage::MemoryStorage;
    use conclave_crypto::digest::Digest;
    use std::path::Path;
    use std::sync::mpsc;

    /// Nothing here takes so long unless it hangs.
    const LONG: Duration = Duration::from_secs(60);

    fn write(number: u64, bytes: usize) -> JournalWrite {
        let slot = Slot::Sequenced(Sequence(number), 0);
        let record = Record { slot, bytes: vec![7; bytes], lazy: false };
        JournalWrite { number: WriteNumber(number), records: vec![record] }
    }

    fn create(path: &Path) -> Journal {
        Journal::create(path, &Digest::ZERO, &SharedResources::default(), 0, &[])
            .expect("a new directory")
    }

    /// A journal whose thread sleeps, what it reports, and what it aborts for.
    fn sleeping(
        journal: Journal,
    ) -> (JournalThread, mpsc::Receiver<WriteNumber>, mpsc::Receiver<String>) {
        let (reports, reported) = mpsc::channel();
        let (aborts, aborted) = mpsc::channel();
        let thread = JournalThread::spawn(
            journal,
            JournalMetrics::default(),
            move |number| reports.send(number).expect("the test hears"),
            move |error| aborts.send(error.reason.clone()).expect("the test hears"),
        )
        .expect("a thread");
        until_asleep(&thread);
        (thread, reported, aborted)
    }

    fn until_asleep(thread: &JournalThread) {
        while !thread.shared.queue().sleeping {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_small_write_is_made_by_who_comes_to_rest_and_is_as_durable() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("journal");
        let (thread, reported, _) = sleeping(create(&path));
        let help = thread.help();
        let mut heard = None;
        assert!(!help.write(|number| heard = Some(number)), "nothing waits");
        thread.write_silently(write(1, 100));
        thread.write_silently(write(2, 100));
        // However slow this disk is.
        thread.shared.slow.store(false, Ordering::Relaxed);
        assert!(help.write(|number| heard = Some(number)));
        assert_eq!(heard, Some(WriteNumber(2)), "one sync for both");
        assert_eq!(thread.shared.metrics.syncs.get(), 1);
        assert!(reported.try_recv().is_err(), "who wrote has heard of it, and nobody else");
        // A kill: nothing but the files is left.
        let copy = directory.path().join("killed");
        std::fs::create_dir(&copy).expect("a directory");
        for file in std::fs::read_dir(&path).expect("it is there") {
            let file = file.expect("an entry");
            std::fs::copy(file.path(), copy.join(file.file_name())).expect("a copy");
        }
        let killed = Journal::open(&copy, &Digest::ZERO, &SharedResources::default(), 1);
        assert_eq!(killed.and_then(|mut journal| journal.load()).expect("it is whole").len(), 2);
    }

    #[test]
    fn what_is_large_or_a_truncation_or_on_a_slow_disk_is_left_to_the_thread() {
        let directory = tempfile::tempdir().expect("a directory");
        let (thread, reported, _) = sleeping(create(&directory.path().join("journal")));
        let help = thread.help();
        let left = |what: &str| {
            let never = |_| panic!("{what} is the thread's");
            assert!(!help.write(never), "{what}");
            help.wake_for_more();
        };
        thread.write_silently(write(1, LITTLE.1 + 1));
        thread.shared.slow.store(false, Ordering::Relaxed);
        left("a large write");
        assert_eq!(reported.recv_timeout(LONG), Ok(WriteNumber(1)));
        until_asleep(&thread);
        thread.write_silently(write(2, 100));
        thread.shared.slow.store(true, Ordering::Relaxed);
        left("a write on a slow disk");
        assert_eq!(reported.recv_timeout(LONG), Ok(WriteNumber(2)));
        until_asleep(&thread);
        thread.shared.slow.store(false, Ordering::Relaxed);
        thread.shared.push(Command::Truncate(Sequence(1)), false);
        thread.write_silently(write(3, 100));
        left("a truncation");
        assert_eq!(reported.recv_timeout(LONG), Ok(WriteNumber(3)));
        let mut journal = thread.stop().expect("no panic");
        assert_eq!(journal.load().expect("it is whole").len(), 2);
    }

    #[test]
    fn a_failure_of_who_helps_reaches_the_abort_hook_and_nobody_writes_after_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut journal = create(&directory.path().join("journal"));
        let storage = MemoryStorage::new();
        storage.fail_at(0);
        journal.storage = Arc::new(storage);
        let (thread, _reported, aborted) = sleeping(journal);
        let help = thread.help();
        // So many records that they go on from the log to the storage, which fails.
        for number in 1..=8 {
            let mut write = write(number, 1);
            write.records = vec![write.records[0].clone(); 200];
            thread.write_silently(write);
        }
        thread.shared.slow.store(false, Ordering::Relaxed);
        assert!(!help.write(|_| {}), "it failed");
        assert_eq!(
            aborted.recv_timeout(LONG),
            Ok("the test ends this process before write 0".to_owned())
        );
        thread.write_silently(write(9, 1));
        assert!(!help.write(|number| panic!("{number:?} was written after a failure")));
        assert!(thread.stop().is_err(), "a stop does not pass over it");
    }

    #[test]
    fn who_waited_for_a_write_that_failed_does_not_write_after_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (thread, reported, aborted) = sleeping(create(&directory.path().join("journal")));
        // Who helps is at its write, and another comes.
        let writing = thread.shared.journal();
        thread.write_silently(write(1, 100));
        thread.shared.ready.notify_one();
        while thread.shared.queue().sleeping {
            std::thread::yield_now();
        }
        let full =
            StorageError { operation: "write", location: "a disk".into(), reason: "full".into() };
        thread.shared.queue().failed = Some(full);
        drop(writing);
        assert_eq!(aborted.recv_timeout(LONG), Ok("full".to_owned()));
        assert!(thread.stop().is_err());
        assert!(reported.recv().is_err(), "nothing is reported after a failure");
    }
}
