//! The way to the replica: its queue, and the replica itself for who finds it free.
//!
//! A thread that wakes another and waits for it costs two switches of context, which is more than
//! most steps of the replica. So who brings an event while the replica's thread sleeps may do the
//! step itself ([`Door::step_in`]); under load that thread is awake and takes many events at once.
//! The order of effects does not depend on who carries them out: one lock covers a step with them.

use super::event::Event;
use super::inbox::{Inbox, Source};
use super::replica_thread::ReplicaThread;
use conclave_consensus::engine::Engine;
use std::sync::{Arc, Mutex, MutexGuard};

/// What leads to the replica.
pub(crate) struct Door<E: Engine> {
    inbox: Arc<Inbox<Event<E::Message>>>,
    /// There while its thread runs.
    replica: Mutex<Option<ReplicaThread<E>>>,
}

impl<E: Engine + 'static> Door<E> {
    /// A door behind which nobody is yet; events wait in the queue.
    pub(crate) fn new(inbox: Arc<Inbox<Event<E::Message>>>) -> Self {
        Self { inbox, replica: Mutex::new(None) }
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
        match self.inbox.push_silently(source, bytes, event) {
            Err(_) => return false,
            Ok(false) => return true,
            Ok(true) => {}
        }
        if let Ok(mut replica) = self.replica.try_lock()
            && let Some(replica) = replica.as_mut()
        {
            replica.help();
        }
        // What came meanwhile, or more than one step takes, is for the replica's thread.
        self.inbox.wake_for_more();
        true
    }
}
