//! What waits for the disk, and what does not: [`Replica`] with an engine that says what it is told.

use conclave_consensus::engine::{
    After, Committed, Effect, Engine, EngineStatus, Horizon, Input, Record, Reject, Slot, To,
};
use conclave_consensus::membership::Membership;
use conclave_consensus::message::Batch;
use conclave_consensus::replica::{Replica, WriteNumber};
use conclave_consensus::types::{Epoch, ReplicaId, Sequence};
use std::fmt;
use std::sync::Arc;

/// A message is the list of effects that handling it yields.
#[derive(Clone, Debug)]
enum Said {
    Persist(u8),
    Lazy(u8),
    Send(u8),
    /// Waits for the first so many Persists only.
    Early(u8, u64),
    Commit(u64),
}

#[derive(Clone, Debug)]
struct Script(Vec<Said>);

struct Puppet;

impl fmt::Display for Puppet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "puppet")
    }
}

fn send(name: u8, after: After) -> Effect<Script> {
    Effect::Send { to: To::Others, message: Script(vec![Said::Send(name)]), after }
}

fn record(name: u8, lazy: bool) -> Record {
    Record { slot: Slot::Named(name), bytes: vec![name], lazy }
}

impl Engine for Puppet {
    type Message = Script;

    fn handle(&mut self, input: Input<Script>) -> Vec<Effect<Script>> {
        let Input::Message { message: Script(said), .. } = input else { return Vec::new() };
        said.into_iter()
            .map(|s| match s {
                Said::Persist(name) => Effect::Persist(record(name, false)),
                Said::Lazy(name) => Effect::Persist(record(name, true)),
                Said::Send(name) => send(name, After::All),
                Said::Early(name, count) => send(name, After::Persists(count)),
                Said::Commit(n) => Effect::Commit(Committed {
                    sequence: Sequence(n),
                    epoch: Epoch(0),
                    batch: Arc::new(Batch::null()),
                    certificate: Vec::new(),
                }),
            })
            .collect()
    }

    fn decode(_: &Horizon, _: ReplicaId, _: &[u8]) -> Result<Script, Reject> {
        Err(Reject::Malformed("a puppet hears nothing"))
    }

    fn encode(_: &Script) -> Vec<u8> {
        Vec::new()
    }

    fn bulky(_: &Script) -> bool {
        false
    }

    fn decided(_: Committed) -> Script {
        Script(Vec::new())
    }

    fn membership(&self) -> Arc<Membership> {
        Arc::new(Membership { epoch: Epoch(0), first: 0, members: Vec::new() })
    }

    fn status(&self) -> EngineStatus {
        EngineStatus {
            epoch: Epoch(0),
            view: 0,
            role: "puppet".into(),
            primary: None,
            normal: true,
            decided: Sequence(0),
            stable: Sequence(0),
            proven: Sequence(0),
            pending: 0,
            view_changes: 0,
        }
    }

    fn horizon(&self) -> Horizon {
        Horizon {
            cluster: conclave_crypto::digest::Digest::ZERO,
            membership: self.membership(),
            keys: Arc::default(),
            verifier: Arc::default(),
            epoch: Epoch(0),
            view: 0,
            low: Sequence(0),
            high: Sequence(0),
            phases: Arc::default(),
            delivered: Sequence(0),
            earlier: Arc::default(),
            limits: Arc::default(),
            me: ReplicaId(0),
            absent: Arc::default(),
            clients: Arc::default(),
            full: Arc::default(),
        }
    }

    fn shutdown(&mut self) -> Vec<Record> {
        vec![record(99, false)]
    }
}

fn say(said: Vec<Said>) -> Input<Script> {
    Input::Message { from: ReplicaId(1), message: Script(said) }
}

fn names(effects: &[Effect<Script>]) -> Vec<String> {
    let name = |effect: &Effect<Script>| {
        if let Effect::Send { message: Script(said), .. } = effect
            && let Some(Said::Send(name) | Said::Early(name, _)) = said.first()
        {
            format!("send {name}")
        } else if let Effect::Commit(committed) = effect {
            format!("commit {}", committed.sequence)
        } else {
            format!("{effect:?}")
        }
    };
    effects.iter().map(name).collect()
}

fn slots(records: &[Record]) -> Vec<u8> {
    records.iter().map(|r| r.bytes[0]).collect()
}

#[test]
fn a_send_waits_for_the_persists_before_it_and_for_none_after_it() {
    let mut replica = Replica::new(Puppet);
    let step = replica.step([say(vec![Said::Send(1), Said::Persist(1), Said::Send(2)])]);
    assert_eq!(names(&step.ready), ["send 1"]);
    let write = step.write.expect("a record asks for a write");
    assert_eq!(write.number, WriteNumber(1));
    assert_eq!(names(&replica.written(WriteNumber(1))), ["send 2"]);
}

#[test]
fn an_early_send_waits_for_the_persists_it_names_and_overtakes_what_waits_for_more() {
    let mut replica = Replica::new(Puppet);
    let _ = replica.step([say(vec![Said::Persist(1), Said::Send(1), Said::Early(2, 1)])]);
    let step = replica.step([say(vec![Said::Early(3, 0), Said::Persist(2), Said::Early(4, 2)])]);
    assert_eq!(names(&step.ready), ["send 3"], "it waits for nothing");
    assert_eq!(replica.waiting(), 3);
    assert_eq!(names(&replica.written(WriteNumber(1))), ["send 2", "send 1"]);
    let step = replica.step([say(vec![Said::Early(5, 1), Said::Send(6)])]);
    assert_eq!(names(&step.ready), ["send 5"], "the first write is durable");
    assert_eq!(names(&replica.written(WriteNumber(2))), ["send 4", "send 6"]);
}

#[test]
fn effects_keep_their_order_across_steps_and_writes() {
    let mut replica = Replica::new(Puppet);
    let first = replica.step([say(vec![Said::Persist(1), Said::Send(1)])]);
    let second =
        replica.step([say(vec![Said::Send(2)]), say(vec![Said::Persist(2), Said::Commit(3)])]);
    assert!(first.ready.is_empty() && second.ready.is_empty());
    assert_eq!(names(&replica.written(WriteNumber(1))), ["send 1", "send 2"]);
    assert_eq!(replica.waiting(), 1);
    assert_eq!(names(&replica.written(WriteNumber(2))), ["commit 3"]);
}

#[test]
fn a_report_of_a_later_write_covers_the_earlier_ones() {
    let mut replica = Replica::new(Puppet);
    for name in 1..=3 {
        let _ = replica.step([say(vec![Said::Persist(name), Said::Send(name)])]);
    }
    assert_eq!(names(&replica.written(WriteNumber(3))), ["send 1", "send 2", "send 3"]);
    assert!(replica.written(WriteNumber(2)).is_empty());
}

#[test]
fn a_lazy_record_holds_nothing_back_and_rides_on_the_next_write() {
    let mut replica = Replica::new(Puppet);
    let step = replica.step([say(vec![Said::Commit(1), Said::Lazy(7), Said::Send(1)])]);
    assert_eq!(names(&step.ready), ["commit 1", "send 1"]);
    assert!(step.write.is_none());
    let step = replica.step([say(vec![Said::Persist(8)])]);
    assert_eq!(slots(&step.write.expect("now there is one").records), [7, 8]);
}

#[test]
fn lazy_records_cannot_gather_without_bound() {
    let mut replica = Replica::new(Puppet);
    let mut written = 0;
    for _ in 0..5000 {
        if let Some(write) = replica.step([say(vec![Said::Lazy(1)])]).write {
            written += write.records.len();
        }
    }
    assert!(written >= 4000, "only {written} of 5000 lazy records left");
}

#[test]
fn the_last_write_of_a_clean_stop_holds_what_is_lazy_and_the_engines_last_word() {
    let mut replica = Replica::new(Puppet);
    let _ = replica.step([say(vec![Said::Lazy(7)])]);
    assert_eq!(slots(&replica.shutdown().expect("there is a last word").records), [7, 99]);
}

#[test]
#[should_panic(expected = "never issued")]
fn a_report_of_a_write_that_was_never_issued_is_our_fault() {
    let mut replica = Replica::new(Puppet);
    let _ = replica.written(WriteNumber(1));
}
