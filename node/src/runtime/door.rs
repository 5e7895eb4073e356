//! The ways to the replica and to the executor: their queues, and themselves for who finds them free.
//!
//! A thread that wakes another and waits for it costs two switches of context, which is more than
//! most steps of the replica. So who brings an event while the replica's thread sleeps may do the
//! step itself ([`Door::step_in`]); under load that thread is awake and takes many events at once.
//! The order of effects does not depend on who carries them out: one lock covers a step with them.
//! A small block that the step decided is executed by the same thread while the executor's sleeps.
//! What the step wants durable waits until that thread has sent all it has to send: then it writes the
//! journal itself, if that thread sleeps too ([`Door::rest`]).

use super::event::Event;
use super::executor_thread::{ExecutorThread, Task};
use super::inbox::{Inbox, Source};
use super::replica_thread::ReplicaThread;
use crate::journal::JournalHelp;
use conclave_consensus::engine::Engine;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

thread_local! {
    /// This thread calls [`Door::rest`] before it sleeps.
    static RESTS: Cell<bool> = const { Cell::new(false) };
}

/// What leads to the replica.
pub(crate) struct Door<E: Engine> {
    inbox: Arc<Inbox<Event<E::Message>>>,
    /// There while its thread runs.
    replica: Mutex<Option<ReplicaThread<E>>>,
    executor: Arc<Hatch<E::Message>>,
    /// There once its thread runs.
    journal: OnceLock<JournalHelp>,
    /// Events that came while a write waited for a thread to come to rest.
    since_rest: AtomicUsize,
}

/// Steps that one event may lead to before the rest is left to the threads.
const STEPS_MAX: usize = 2;

/// Events that may come while a write waits for a thread to come to rest: each takes some 50 µs, and
/// what they want durable goes into the same write.
const EVENTS_BEFORE_REST_MAX: usize = 16;

impl<E: Engine + 'static> Door<E> {
    /// A door behind which nobody is yet; events wait in the queue.
    pub(crate) fn new(
        inbox: Arc<Inbox<Event<E::Message>>>,
        executor: Arc<Hatch<E::Message>>,
    ) -> Self {
        let (journal, since_rest) = (OnceLock::new(), AtomicUsize::new(0));
        Self { inbox, replica: Mutex::new(None), executor, journal, since_rest }
    }

    /// The journal's thread runs; this is how to help it.
    pub(crate) fn set_journal(&self, journal: JournalHelp) {
        let _ = self.journal.set(journal);
    }

    /// The queue.
    pub(crate) fn inbox(&self) -> &Inbox<Event<E::Message>> {
        &self.inbox
    }

    /// The replica.
    ///
    /// # Panics
    /// If a thread panicked within a step: the state may be half changed, and nobody goes on with it.
    pub(crate) fn replica(&self) -> MutexGuard<'_, Option<ReplicaThread<E>>> {
        self.replica.lock().expect("no step panics")
    }

    /// Brings an event, and does the step if the replica's thread sleeps. False when the source's
    /// share of the queue is full or the queue is closed.
    #[must_use]
    pub(crate) fn step_in(&self, source: Source, bytes: usize, event: Event<E::Message>) -> bool {
        self.mind_the_journal();
        match self.inbox.push_silently(source, bytes, event) {
            Err(_) => return false,
            Ok(false) => return true,
            Ok(true) => {}
        }
        self.steps();
        if !RESTS.get() {
            self.wake_journal();
        }
        true
    }

    /// What a thread does before it sleeps, when it has sent all it has to send: the small write
    /// that a step left to it, and the step that this write makes possible.
    pub(crate) fn rest(&self) {
        RESTS.set(true);
        self.since_rest.store(0, Ordering::Relaxed);
        let Some(journal) = self.journal.get() else { return };
        let mut sleeps = false;
        let written = journal.write(|number| {
            let written = Event::Written(number);
            sleeps = self.inbox.push_silently(Source::Internal, 0, written).unwrap_or(false);
        });
        if written && sleeps {
            self.steps();
        }
        self.wake_journal();
    }

    /// Who was left a write may not come to rest for long: others than the first few events do not
    /// wait for it.
    fn mind_the_journal(&self) {
        let waits = self.journal.get().is_some_and(JournalHelp::is_wanted);
        if waits && self.since_rest.fetch_add(1, Ordering::Relaxed) >= EVENTS_BEFORE_REST_MAX {
            self.since_rest.store(0, Ordering::Relaxed);
            self.wake_journal();
        }
    }

    /// Wakes the journal's thread for what was left to a thread that comes to rest.
    pub(crate) fn wake_journal(&self) {
        if let Some(journal) = self.journal.get() {
            journal.wake_for_more();
        }
    }

    /// Steps while the replica's thread sleeps. What comes meanwhile, or more than one step takes, is
    /// for that thread.
    fn steps(&self) {
        for _ in 0..STEPS_MAX {
            if let Ok(mut replica) = self.replica.try_lock()
                && let Some(replica) = replica.as_mut()
            {
                replica.help();
            }
            // What is executed here is news to the replica.
            if !self.executor.help() {
                break;
            }
        }
        self.inbox.wake_for_more();
    }
}

/// What leads to the executor.
pub(crate) struct Hatch<M> {
    inbox: Arc<Inbox<Task>>,
    /// There while its thread runs.
    executor: Mutex<Option<ExecutorThread<M>>>,
}

impl<M: Send + 'static> Hatch<M> {
    /// A hatch behind which nobody is yet; tasks wait in the queue.
    pub(crate) fn new(inbox: Arc<Inbox<Task>>) -> Self {
        Self { inbox, executor: Mutex::new(None) }
    }

    /// The queue.
    pub(crate) fn inbox(&self) -> &Inbox<Task> {
        &self.inbox
    }

    /// The executor.
    ///
    /// # Panics
    /// If a thread panicked within a task: the ledger may be half written, and nobody goes on with it.
    pub(crate) fn executor(&self) -> MutexGuard<'_, Option<ExecutorThread<M>>> {
        self.executor.lock().expect("no task panics")
    }

    /// Executes what is small, if the executor's thread sleeps; the rest is for that thread. Whether
    /// anything was executed.
    fn help(&self) -> bool {
        let mut executed = false;
        if self.inbox.sleeps_on_something()
            && let Ok(mut place) = self.executor.try_lock()
            && let Some(executor) = place.as_mut()
        {
            match executor.help() {
                Some(some) => executed = some,
                // The failure is told; its thread finds nobody here and ends.
                None => *place = None,
            }
        }
        self.inbox.wake_for_more();
        executed
    }
}
