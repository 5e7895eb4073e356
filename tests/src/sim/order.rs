//! Whether effects wait for their records: an engine around the engine counts what it emits.
//!
//! A Commit, a Send that waits for all and the like may leave only once every Persist that was emitted before them is on
//! the disk. They leave in the order in which they were emitted, so that a queue of counts is all there is to compare.
//! What is judged is [`Replica`](conclave_consensus::replica::Replica), which the node shares.

use conclave_consensus::engine::{
    After, Committed, Effect, Engine, EngineStatus, Horizon, Input, Record, Reject,
};
use conclave_consensus::membership::Membership;
use conclave_consensus::pbft::Pbft;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::replica::JournalWrite;
use conclave_consensus::types::ReplicaId;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What one engine emitted, and how much of it is durable.
#[derive(Debug, Default)]
pub(super) struct Order {
    emitted: u64,
    durable: u64,
    /// For each effect that has not left: how many Persists were emitted before it.
    waiting: VecDeque<u64>,
}

impl Order {
    /// Takes in what an engine emitted.
    pub(super) fn emitted(&mut self, effects: &[Effect<Message>]) {
        for effect in effects {
            match effect {
                Effect::Persist(record) => self.emitted += u64::from(!record.lazy),
                effect if waits(effect) => self.waiting.push_back(self.emitted),
                _ => {}
            }
        }
    }

    /// A write is on the disk.
    pub(super) fn written(&mut self, write: &JournalWrite) {
        self.durable += write.records.iter().filter(|record| !record.lazy).count() as u64;
    }

    /// An effect leaves; says how many records it should have waited for and did not.
    pub(super) fn leaves(&mut self, effect: &Effect<Message>) -> u64 {
        if !waits(effect) {
            return 0;
        }
        self.waiting.pop_front().unwrap_or(0).saturating_sub(self.durable)
    }
}

/// Whether this effect waits for all that was emitted before it.
fn waits(effect: &Effect<Message>) -> bool {
    let early = matches!(effect, Effect::Send { after: After::Persists(_), .. });
    !early && !matches!(effect, Effect::Persist(_) | Effect::Check(_))
}

/// One count for an engine and for who drives it. No two threads ever hold it: an engine has to be movable, that is all.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(Arc<Mutex<Order>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Order> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine, counted.
pub(super) struct Counted {
    engine: Pbft,
    order: Shared,
}

impl Counted {
    pub(super) fn new(engine: Pbft, order: Shared) -> Self {
        Self { engine, order }
    }
}

impl Engine for Counted {
    type Message = Message;

    fn handle(&mut self, input: Input<Message>) -> Vec<Effect<Message>> {
        let effects = self.engine.handle(input);
        self.order.lock().emitted(&effects);
        effects
    }

    fn decode(horizon: &Horizon, from: ReplicaId, bytes: &[u8]) -> Result<Message, Reject> {
        Pbft::decode(horizon, from, bytes)
    }

    fn encode(message: &Message) -> Vec<u8> {
        Pbft::encode(message)
    }

    fn bulky(message: &Message) -> bool {
        Pbft::bulky(message)
    }

    fn decided(committed: Committed) -> Message {
        Pbft::decided(committed)
    }

    fn membership(&self) -> Arc<Membership> {
        self.engine.membership()
    }

    fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    fn horizon(&self) -> Horizon {
        self.engine.horizon()
    }

    fn shutdown(&mut self) -> Vec<Record> {
        self.engine.shutdown()
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_consensus::engine::{Slot, To};
    use conclave_consensus::replica::WriteNumber;
    use conclave_consensus::types::{Epoch, View};

    fn persist(lazy: bool) -> Record {
        Record { slot: Slot::Named(1), bytes: Vec::new(), lazy }
    }

    fn send(after: After) -> Effect<Message> {
        let message = Message::Suspect { epoch: Epoch(0), view: View(0) };
        Effect::Send { to: To::Others, message, after }
    }

    #[test]
    fn an_effect_that_leaves_before_its_records_is_seen() {
        let all = send(After::All);
        let effects = [
            all.clone(),
            Effect::Persist(persist(false)),
            Effect::Persist(persist(true)),
            send(After::Persists(0)),
            all.clone(),
        ];
        let write = JournalWrite { number: WriteNumber(1), records: vec![persist(false)] };
        for (synced, early) in [(false, 1), (true, 0)] {
            let mut order = Order::default();
            order.emitted(&effects);
            assert_eq!(order.leaves(&all), 0);
            assert_eq!(order.leaves(&send(After::Persists(0))), 0);
            if synced {
                order.written(&write);
            }
            assert_eq!(order.leaves(&all), early);
        }
    }
}
