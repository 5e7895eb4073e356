//! The replica thread: takes what has arrived, steps the engine, carries out the effects.
//!
//! It never waits for the disk or a socket. Effects leave it only when [`Replica`] says so.

use super::Failure;
use super::door::Door;
use super::event::Event;
use super::executor_thread::Task;
use super::inbox::{Inbox, Source};
use super::verify::Verify;
use crate::journal::JournalThread;
use crate::metrics::Metrics;
use crate::runtime::background::Job;
use crate::transport::{Class, PeerMeshHandle};
use bytes::Bytes;
use conclave_consensus::engine::{Effect, Engine, EngineStatus, Evidence, Input, To};
use conclave_consensus::message::{EpochEnd, SignedRequest};
use conclave_consensus::replica::{Replica, Step};
use conclave_consensus::types::Timestamp;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One step of time, and the longest the thread sleeps.
const TICK: Duration = Duration::from_millis(10);

/// Events taken in one step at most, so that one write does not grow without bound.
const DRAIN_MAX: usize = 512;

/// Events that a thread takes in passing.
const HELP_MAX: usize = 64;

/// Everything the effects need.
pub(crate) struct ReplicaThread<E: Engine> {
    pub replica: Replica<E>,
    pub inbox: Arc<Inbox<Event<E::Message>>>,
    pub verify: Verify<E>,
    pub mesh: PeerMeshHandle,
    pub journal: JournalThread,
    pub executor: Arc<Inbox<Task>>,
    pub background: Arc<Inbox<Job>>,
    pub metrics: Arc<Metrics>,
    pub status: Arc<Mutex<EngineStatus>>,
    pub failure: Arc<Failure>,
    pub started: Instant,
    /// A stop was asked for, clean or not.
    pub stop: Option<bool>,
    /// A thread that brought an event does this step, and wakes the executor's and the journal's
    /// afterwards.
    pub helped: bool,
    /// Empty between turns; kept for its memory.
    pub taken: Vec<Event<E::Message>>,
}

impl<E: Engine + 'static> ReplicaThread<E> {
    /// Runs until it is told to stop; `recovered` are the engine's effects from before.
    pub(crate) fn run(
        mut self,
        door: &Door<E>,
        recovered: Vec<Effect<E::Message>>,
    ) -> JournalThread {
        let step = self.replica.order(recovered);
        self.carry_out(step);
        *door.replica() = Some(self);
        let mut next_tick = Instant::now();
        loop {
            let open = door.inbox().wait(next_tick.saturating_duration_since(Instant::now()));
            let mut replica = door.replica();
            let Some(this) = replica.as_mut() else { unreachable!("only its thread takes it") };
            let now = Instant::now();
            let tick = now >= next_tick;
            if tick {
                // One tick after a pause, never a burst.
                next_tick = now + TICK;
            }
            this.turn(DRAIN_MAX, tick.then_some(now));
            // Should who was to write it not have come to rest since.
            door.wake_journal();
            if (this.stop.is_some() || !open)
                && let Some(mut this) = replica.take()
            {
                if let Some(clean) = this.stop {
                    this.end(clean);
                }
                return this.journal;
            }
        }
    }

    /// One step on a thread that brought an event while the replica's own slept.
    pub(crate) fn help(&mut self) {
        // The journal's thread may be the one that helps: it must not wait for itself.
        if self.stop.is_none() && self.journal.has_room_for(HELP_MAX + 2) {
            self.helped = true;
            self.turn(HELP_MAX, None);
            self.helped = false;
        }
    }

    /// Takes what waits, steps the engine, carries out the effects.
    fn turn(&mut self, most: usize, tick: Option<Instant>) {
        let mut taken = std::mem::take(&mut self.taken);
        let _ = self.inbox.drain(Duration::ZERO, most, &mut taken);
        let mut inputs = Vec::with_capacity(taken.len() + 2);
        let mut requests = Vec::new();
        for event in taken.drain(..) {
            self.take(event, &mut inputs, &mut requests);
        }
        self.taken = taken;
        if !requests.is_empty() {
            inputs.push(Input::Requests(requests));
        }
        if let Some(now) = tick {
            inputs.push(self.tick(now));
            self.show();
        }
        let step = self.replica.step(inputs);
        self.verify.publish(self.replica.engine().horizon());
        self.carry_out(step);
    }

    /// Sorts one event.
    fn take(
        &mut self,
        event: Event<E::Message>,
        inputs: &mut Vec<Input<E::Message>>,
        requests: &mut Vec<Arc<SignedRequest>>,
    ) {
        match event {
            Event::Input(input) => inputs.push(input),
            Event::Request(request) => requests.push(request),
            Event::Written(number) => {
                let ready = self.replica.written(number);
                self.effects(ready);
            }
            Event::Executed(height) => inputs.push(Input::Executed(height)),
            Event::Checkpointed(checkpointed) => inputs.push(Input::Checkpointed(checkpointed)),
            Event::Installed(certificate, next) => {
                inputs.push(Input::Installed { certificate, next });
            }
            Event::Unserved => inputs.push(Input::Unserved),
            Event::StableStored(height) => self.journal.truncate(height),
            Event::Evidence(evidence) => self.evidence(Source::Clients, evidence),
            Event::Stop { clean } => self.stop = self.stop.or(Some(clean)),
        }
    }

    fn tick(&self, now: Instant) -> Input<E::Message> {
        Input::Tick { monotonic_ms: millis(now.duration_since(self.started)), wall: wall() }
    }

    /// Publishes what people see.
    fn show(&self) {
        let status = self.replica.engine().status();
        let gauge = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
        self.metrics.view.set(gauge(status.view));
        self.metrics.stable.set(gauge(status.stable.0));
        self.metrics.pending.set(gauge(status.pending as u64));
        self.metrics.view_changes.set(gauge(status.view_changes));
        self.metrics.peers_up.set(gauge(self.mesh.peers_up().len() as u64));
        let mut shown = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.view != status.view || shown.epoch != status.epoch {
            tracing::info!(view = status.view, epoch = status.epoch.0, primary = ?status.primary, "entered a view");
        }
        *shown = status;
    }

    fn carry_out(&mut self, step: Step<E::Message>) {
        // The write goes first: nothing in `ready` depends on it, and the disk is the slower one.
        match step.write {
            Some(write) if self.helped => self.journal.write_silently(write),
            Some(write) => self.journal.write(write),
            None => {}
        }
        self.effects(step.ready);
    }

    fn effects(&mut self, effects: Vec<Effect<E::Message>>) {
        for effect in effects {
            self.effect(effect);
        }
    }

    fn effect(&mut self, effect: Effect<E::Message>) {
        match effect {
            Effect::Persist(_) => unreachable!("the replica keeps records to itself"),
            Effect::Send { to, message, .. } => self.send(to, &message),
            Effect::Commit(committed) => self.execute(Task::Commit(Box::new(committed))),
            Effect::ReadReady { .. } => {}
            Effect::Stable(certificate) => self.execute(Task::Stable(Box::new(certificate))),
            Effect::Install(target) => self.execute(Task::Fetch(Box::new(target))),
            Effect::EpochEnded(end) => self.execute(Task::EpochEnds(vec![EpochEnd::clone(&end)])),
            Effect::Supply { to, after } => {
                // One peer asks for one run at a time; a full queue only means it asks again.
                let _ = self.background.push(Source::Peer(to.0), 1, Job::Supply { to, after });
            }
            Effect::Diverged(certificate) => {
                tracing::error!(
                    height = certificate.checkpoint.height.0,
                    "this ledger differs from the certified state; it is set aside and replaced"
                );
                self.failure.diverged(certificate.checkpoint.height);
                self.execute(Task::Diverged(Box::new(certificate)));
            }
            Effect::RolledBack { reason } => self.failure.rolled_back(reason),
            Effect::Halt { reason } => self.failure.halt(reason),
            Effect::Reject { from, reason } => {
                self.metrics.peer_rejected(from, &reason);
                tracing::debug!(%from, %reason, "refused a peer's message");
            }
            Effect::Evidence(evidence) => self.evidence(Source::Internal, Box::new(evidence)),
            Effect::Check(batch) => self.verify.batch(batch),
        }
    }

    fn send(&self, to: To, message: &E::Message) {
        let class = if E::bulky(message) { Class::Body } else { Class::Vote };
        let frame = Bytes::from(E::encode(message));
        self.metrics.messages_sent.inc();
        match to {
            // A frame that is dropped is counted by the mesh; the engine sends again what matters.
            To::One(replica) => {
                self.mesh.send(replica, class, frame);
            }
            To::Others => {
                self.mesh.broadcast(class, &frame);
            }
        }
    }

    fn execute(&self, task: Task) {
        // Refused only when the process is stopping.
        if self.helped {
            let _ = self.executor.push_silently(Source::Internal, 0, task);
        } else {
            let _ = self.executor.push(Source::Internal, 0, task);
        }
    }

    /// The engine hands out few; of those that decoding finds, as many as a traitor likes, a few
    /// wait at a time, for who does it again is met again.
    fn evidence(&self, source: Source, evidence: Box<Evidence>) {
        let _ = self.background.push(source, 0, Job::Evidence(evidence));
    }

    fn end(&mut self, clean: bool) {
        if clean && let Some(write) = self.replica.shutdown() {
            self.journal.write(write);
        }
        self.show();
    }
}

/// The wall clock as the ledger counts it.
pub(crate) fn wall() -> Timestamp {
    Timestamp(millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
