//! Golden scripts: commands and what replicas answer, in one reviewable text file.
//!
//! A line that starts with `> ` is a command; the lines below it are what happened. Messages wait
//! in order until a command delivers or drops them, so a script is one chosen schedule. STATUS and
//! the questions for own votes are delivered too, but not shown, unless `show` names them.
//!
//! | command                        | what it does                                               |
//! |--------------------------------|------------------------------------------------------------|
//! | `ask R client#number`          | hands a client's request to replica R                      |
//! | `deliver`                      | delivers everything, and what follows from it              |
//! | `deliver NAME..`               | delivers waiting messages of these names only              |
//! | `drop NAME.. [from R] [to R]`  | drops waiting messages; NAME `*` stands for all            |
//! | `tick MS`                      | lets this much time pass, in steps, without deliveries      |
//! | `run MS`                       | lets this much time pass and delivers everything meanwhile  |
//! | `kill R`, `start R`            | stops a replica; starts it from its journal                |
//! | `state`                        | one line per replica                                       |
//! | `show NAME..`                  | shows these messages from now on                           |

use super::Ledger;
use super::network::{EPOCH_MS, genesis, limits, replica_key, request};
use conclave_consensus::engine::{Effect, Engine, Input, Slot, To};
use conclave_consensus::membership::Genesis;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::pbft::{Pbft, PbftConfig};
use conclave_consensus::types::{ReplicaId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

struct Waiting {
    from: u16,
    to: u16,
    name: String,
    message: Message,
}

pub struct Script {
    genesis: Arc<Genesis>,
    n: u16,
    now: u64,
    engines: BTreeMap<u16, Pbft>,
    journals: BTreeMap<u16, BTreeMap<Slot, Vec<u8>>>,
    ledgers: BTreeMap<u16, Ledger>,
    waiting: Vec<Waiting>,
    shown: BTreeSet<String>,
    out: String,
}

const QUIET: [&str; 4] = ["STATUS", "OWN-VOTES?", "OWN-VOTES", "FORWARD"];

/// Runs the script of this name and compares, or rewrites it when `UPDATE_GOLDEN` is set.
pub fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = std::fs::read_to_string(&path).expect("a golden script");
    let mut script = Script::new(4);
    let mut fresh = String::new();
    let mut commented = false;
    for line in text.lines().filter(|line| line.starts_with('#') || line.starts_with("> ")) {
        if !fresh.is_empty() && !commented {
            fresh.push('\n');
        }
        commented = line.starts_with('#');
        writeln!(fresh, "{line}").expect("a string");
        if let Some(command) = line.strip_prefix("> ") {
            fresh.push_str(&script.command(command));
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return std::fs::write(&path, &fresh).expect("the golden script is writable");
    }
    assert!(text == fresh, "{name} differs; UPDATE_GOLDEN=1 rewrites it. It is now:\n{fresh}");
}

impl Script {
    fn new(n: u16) -> Self {
        let genesis = Arc::new(genesis(n, limits()));
        let journal: BTreeMap<Slot, Vec<u8>> =
            Pbft::initial_records().into_iter().map(|record| (record.slot, record.bytes)).collect();
        let mut script = Self {
            n,
            now: 0,
            engines: BTreeMap::new(),
            journals: (0..n).map(|id| (id, journal.clone())).collect(),
            ledgers: (0..n).map(|id| (id, Ledger::new(&genesis))).collect(),
            waiting: Vec::new(),
            shown: BTreeSet::new(),
            out: String::new(),
            genesis,
        };
        for id in 0..n {
            script.start(id);
        }
        script.tick(10);
        script.deliver(&[]);
        script.out.clear();
        script
    }

    fn command(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["ask", replica, what] => {
                let (client, number) = what.split_once('#').expect("client#number");
                let client = client.parse().expect("a client");
                let number = number.parse().expect("a number");
                let request = request(&self.genesis.cluster(), client, number);
                self.input(parse(replica), Input::Requests(vec![request]));
            }
            ["deliver", ..] => self.deliver(&words[1..]),
            ["drop", ..] => self.drop(&words[1..]),
            ["tick", ms] => self.tick(ms.parse().expect("milliseconds")),
            ["run", ms] => {
                for _ in 0..ms.parse::<u64>().expect("milliseconds") / 10 {
                    self.tick(10);
                    self.deliver(&[]);
                }
            }
            ["kill", replica] => {
                let id = parse(replica);
                self.engines.remove(&id);
                self.waiting.retain(|it| it.to != id);
            }
            ["start", replica] => self.start(parse(replica)),
            ["state"] => {
                for engine in self.engines.values() {
                    writeln!(self.out, "  {engine}").expect("a string");
                }
            }
            ["show", ..] => self.shown.extend(words[1..].iter().map(|it| (*it).to_owned())),
            _ => panic!("no such command: {command}"),
        }
        std::mem::take(&mut self.out)
    }

    fn start(&mut self, id: u16) {
        let config = PbftConfig {
            id: ReplicaId(id),
            key: Arc::new(replica_key(id)),
            genesis: Arc::clone(&self.genesis),
            seed: self.now,
        };
        let journal = self.journals[&id].clone().into_iter().collect();
        let tip = self.ledgers[&id].tip();
        let recovered = Pbft::recover(config, journal, tip, Timestamp(EPOCH_MS + self.now));
        let (engine, effects) = recovered.expect("a journal of ours");
        self.engines.insert(id, engine);
        self.effects(id, effects);
    }

    fn input(&mut self, id: u16, input: Input<Message>) {
        let Some(engine) = self.engines.get_mut(&id) else { return };
        let effects = engine.handle(input);
        self.effects(id, effects);
    }

    fn effects(&mut self, id: u16, effects: Vec<Effect<Message>>) {
        let mut later = Vec::new();
        for effect in effects {
            match effect {
                Effect::Persist(record) => {
                    self.journals.get_mut(&id).expect("known").insert(record.slot, record.bytes);
                }
                Effect::Send { to, message, .. } => self.post(id, to, &message),
                Effect::Commit(committed) => {
                    let requests = committed.batch.requests.len();
                    let sequence = committed.sequence;
                    self.say(&format!("r{id} executes n{sequence} requests={requests}"));
                    let ledger = self.ledgers.get_mut(&id).expect("known");
                    later.push(match ledger.execute(&committed) {
                        Some(checkpointed) => Input::Checkpointed(checkpointed),
                        None => Input::Executed(sequence),
                    });
                }
                Effect::Stable(certificate) => {
                    let height = certificate.checkpoint.height;
                    self.say(&format!("r{id} stable n{height}"));
                    self.ledgers.get_mut(&id).expect("known").on_stable(&certificate);
                }
                Effect::Supply { to, after } => {
                    let blocks = self.ledgers[&id].blocks.range(after.next()..).take(64);
                    let run: Vec<_> =
                        blocks.map(|(_, (_, it))| Pbft::decided(it.clone())).collect();
                    for message in run {
                        self.post(id, To::One(to), &message);
                    }
                }
                Effect::Halt { reason } => self.say(&format!("r{id} HALTS: {reason}")),
                Effect::Evidence(it) => self.say(&format!("r{id} accuses r{}", it.culprit)),
                Effect::RolledBack { reason } => self.say(&format!("r{id} rolled back: {reason}")),
                Effect::Check(batch) => {
                    let valid = self.engines[&id].horizon().check(&batch);
                    self.say(&format!("r{id} checks {} requests: {valid}", batch.requests.len()));
                    later.push(Input::Checked { batch: batch.digest(), valid });
                }
                Effect::Install(_)
                | Effect::Diverged(_)
                | Effect::EpochEnded(_)
                | Effect::ReadReady { .. }
                | Effect::Reject { .. } => {}
            }
        }
        for input in later {
            self.input(id, input);
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.out, "  {line}").expect("a string");
    }

    fn post(&mut self, from: u16, to: To, message: &Message) {
        let name = message.to_string();
        let name = name.split_whitespace().next().unwrap_or_default().to_owned();
        let targets: Vec<u16> = match to {
            To::One(id) => vec![id.0],
            To::Others => (0..self.n).filter(|id| *id != from).collect(),
        };
        if self.visible(&name) {
            let to = match to {
                To::One(id) => format!("r{id}"),
                To::Others => "all".to_owned(),
            };
            self.say(&format!("r{from} -> {to}: {message}"));
        }
        for to in targets {
            let message = message.clone();
            self.waiting.push(Waiting { from, to, name: name.clone(), message });
        }
    }

    fn visible(&self, name: &str) -> bool {
        !QUIET.contains(&name) || self.shown.contains(name)
    }

    /// Delivers what waits, in order; by name only what waits now.
    fn deliver(&mut self, names: &[&str]) {
        let mut round = 0;
        loop {
            let (due, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
                .into_iter()
                .partition(|it| names.is_empty() || names.contains(&it.name.as_str()));
            self.waiting = kept;
            if due.is_empty() {
                return;
            }
            round += 1;
            assert!(round < 1_000, "messages without end");
            for Waiting { from, to, message, .. } in due {
                let Some(engine) = self.engines.get(&to) else { continue };
                let bytes = Pbft::encode(&message);
                let from = ReplicaId(from);
                if let Ok(message) = Pbft::decode(&engine.horizon(), from, &bytes) {
                    self.input(to, Input::Message { from, message });
                }
            }
            if !names.is_empty() {
                return;
            }
        }
    }

    fn drop(&mut self, words: &[&str]) {
        let mut names = Vec::new();
        let (mut from, mut to) = (None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "from" => from = words.next().map(|it| parse(it)),
                "to" => to = words.next().map(|it| parse(it)),
                name => names.push(name),
            }
        }
        let before = self.waiting.len();
        self.waiting.retain(|it| {
            let named = names.contains(&"*") || names.contains(&it.name.as_str());
            !(named && from.is_none_or(|id| id == it.from) && to.is_none_or(|id| id == it.to))
        });
        let dropped = before - self.waiting.len();
        self.say(&format!("{dropped} dropped"));
    }

    fn tick(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now += 10;
            for id in self.engines.keys().copied().collect::<Vec<_>>() {
                let wall = Timestamp(EPOCH_MS + self.now);
                self.input(id, Input::Tick { monotonic_ms: self.now, wall });
            }
        }
    }
}

fn parse(replica: &str) -> u16 {
    replica.trim_start_matches('r').parse().expect("a replica")
}
