//! Effects in order behind their Persists: the one place that decides what waits for the disk.
//!
//! [`Replica`] drives one engine. A step takes every input that is at hand, and returns at most
//! one journal write and the effects that may be carried out at once. All other effects wait until
//! [`Replica::written`] says that the writes before them are durable. The replica thread never
//! waits for the disk itself: it goes on stepping, and while one fsync runs the next steps' writes
//! gather into a larger one.
//!
//! Invariant: an effect leaves this module only after every non-lazy [`Record`] that the engine
//! emitted before it is durable, save a Send that names how many of them it waits for
//! ([`After::Persists`]). Records that are lazy ride on the next write that is not.

use crate::engine::{After, Effect, Engine, Input, Record};
use conclave_crypto::{mark, mistake};
use std::collections::VecDeque;

/// Names a journal write. Writes are numbered from 1 without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct WriteNumber(pub u64);

/// Records that become durable together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalWrite {
    /// This write's number; the journal's owner reports it by [`Replica::written`].
    pub number: WriteNumber,
    /// In the order the engine emitted them: for one slot the last one counts.
    pub records: Vec<Record>,
}

/// What one step asks for.
#[derive(Debug)]
pub struct Step<M> {
    /// To be written with one sync, after all earlier writes.
    pub write: Option<JournalWrite>,
    /// To be carried out now, in order.
    pub ready: Vec<Effect<M>>,
}

/// Lazy records are forced out once this many wait, so that the list is bounded.
const LAZY_MAX: usize = 1024;

/// One engine and the effects that wait for its journal.
pub struct Replica<E: Engine> {
    engine: E,
    issued: WriteNumber,
    durable: WriteNumber,
    lazy: Vec<Record>,
    waiting: VecDeque<(WriteNumber, Effect<E::Message>)>,
    /// Sends that wait for so many Persists, in the order they were emitted.
    early: VecDeque<(u64, Effect<E::Message>)>,
    /// Persists emitted, and how many of them are durable.
    persists: u64,
    persists_durable: u64,
    /// Writes under way, with the count of Persists that each completes.
    writes: VecDeque<(WriteNumber, u64)>,
}

impl<E: Engine> Replica<E> {
    /// Drives this engine; nothing waits yet.
    #[must_use]
    pub fn new(engine: E) -> Self {
        Self {
            engine,
            issued: WriteNumber(0),
            durable: WriteNumber(0),
            lazy: Vec::new(),
            waiting: VecDeque::new(),
            early: VecDeque::new(),
            persists: 0,
            persists_durable: 0,
            writes: VecDeque::new(),
        }
    }

    /// The engine, to look at.
    #[must_use]
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// How many effects wait for the journal.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.early.len()
    }

    /// Runs the engine on these inputs, in order.
    #[must_use]
    pub fn step(
        &mut self,
        inputs: impl IntoIterator<Item = Input<E::Message>>,
    ) -> Step<E::Message> {
        let mut effects = Vec::new();
        for input in inputs {
            effects.append(&mut self.engine.handle(input));
        }
        self.order(effects)
    }

    /// Takes effects that the engine emitted while it recovered.
    #[must_use]
    pub fn order(&mut self, effects: Vec<Effect<E::Message>>) -> Step<E::Message> {
        let mut records = Vec::new();
        let next = WriteNumber(self.issued.0 + 1);
        let mut ready = Vec::new();
        let mut barrier = self.issued;
        for effect in effects {
            if let Effect::Persist(record) = effect {
                if record.lazy {
                    self.lazy.push(record);
                } else {
                    // Lazy records come first: they were emitted earlier.
                    records.append(&mut self.lazy);
                    records.push(record);
                    barrier = next;
                    self.persists += 1;
                }
            } else if matches!(effect, Effect::Send { .. }) && mistake!("send-overtakes-sync") {
                ready.push(effect);
            } else if let Effect::Send { after: After::Persists(count), .. } = effect {
                if count <= self.persists_durable {
                    if !self.waiting.is_empty() {
                        mark!("a vote overtakes what waits for another record");
                    }
                    ready.push(effect);
                } else {
                    mark!("a vote waits for its reservation");
                    self.early.push_back((count, effect));
                }
            } else if matches!(effect, Effect::Check(_))
                || (matches!(effect, Effect::Commit(_)) && mistake!("commit-overtakes-own-sync"))
                || (self.waiting.is_empty() && barrier <= self.durable)
            {
                ready.push(effect);
            } else {
                self.waiting.push_back((barrier, effect));
            }
        }
        if self.lazy.len() >= LAZY_MAX {
            records.append(&mut self.lazy);
        }
        let write = (!records.is_empty()).then(|| {
            self.issued = next;
            self.writes.push_back((next, self.persists));
            JournalWrite { number: next, records }
        });
        Step { write, ready }
    }

    /// The journal holds every write up to `number`: what waited for them may be carried out.
    ///
    /// # Panics
    /// If `number` was never issued: then the journal's owner is broken.
    #[must_use]
    pub fn written(&mut self, number: WriteNumber) -> Vec<Effect<E::Message>> {
        assert!(number <= self.issued, "write {number:?} was never issued");
        self.durable = self.durable.max(number);
        while let Some((write, count)) = self.writes.front() {
            if *write > self.durable {
                break;
            }
            self.persists_durable = *count;
            self.writes.pop_front();
        }
        let mut ready = Vec::new();
        for (count, effect) in std::mem::take(&mut self.early) {
            if count <= self.persists_durable {
                ready.push(effect);
            } else {
                self.early.push_back((count, effect));
            }
        }
        while let Some((barrier, _)) = self.waiting.front() {
            if *barrier > self.durable {
                break;
            }
            ready.extend(self.waiting.pop_front().map(|(_, effect)| effect));
        }
        ready
    }

    /// The last write of a clean stop.
    #[must_use]
    pub fn shutdown(&mut self) -> Option<JournalWrite> {
        let mut records = std::mem::take(&mut self.lazy);
        records.append(&mut self.engine.shutdown());
        (!records.is_empty()).then(|| {
            self.issued = WriteNumber(self.issued.0 + 1);
            JournalWrite { number: self.issued, records }
        })
    }
}
