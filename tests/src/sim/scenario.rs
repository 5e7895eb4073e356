//! The worked problems of the field, played by the real replicas and drawn as diagrams.
//!
//! A scenario is a run without chance: every message takes a millisecond, every disk a tenth of one. What is drawn is
//! what went over the wires, traitors' messages included; a message that its sender repeats is drawn once.

use super::client::Habit;
use super::fabric::{Conditions, End, Passing};
use super::node::Speed;
use super::plan::{Attackers, Fault, Options, Plan};
use super::world::World;
use conclave_consensus::client_wire::{ClientFrame, NodeFrame};
use conclave_consensus::message::{Batch, RequestBody};
use conclave_consensus::pbft::message::{Message, Vote};
use conclave_consensus::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::simulation;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows of a diagram at most.
const ROWS_MAX: usize = 400;

/// One problem.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    replicas: u16,
    /// Replicas with other minds.
    minds: &'static [(u16, &'static str)],
    faults: fn() -> Vec<(u64, Fault)>,
}

/// Every scenario.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "three-with-a-liar",
        about: "Three replicas, one of them a liar, cannot agree: r1 and r2 execute different blocks \
                (Lamport, Shostak, Pease, TOPLAS 1982: no solution with fewer than 3f+1).",
        replicas: 3,
        minds: &[(0, "fork")],
        faults: Vec::new,
    },
    Scenario {
        name: "four-with-a-liar",
        about: "Four replicas and the same liar: no batch of its prepares twice, the view changes, and all agree.",
        replicas: 4,
        minds: &[(0, "fork")],
        faults: Vec::new,
    },
    Scenario {
        name: "two-liars-of-four",
        about: "Negative control: f+1 = 2 liars fork four replicas. The evidence names both.",
        replicas: 4,
        minds: &[(0, "fork"), (1, "fork-accomplice")],
        faults: Vec::new,
    },
    Scenario {
        name: "equivocating-primary",
        about: "The primary proposes two valid batches for one slot; it is found out and replaced.",
        replicas: 4,
        minds: &[(0, "equivocating-primary")],
        faults: Vec::new,
    },
    Scenario {
        name: "dies-after-pre-prepare",
        about: "The primary dies when it has proposed to one replica: the request is proposed again.",
        replicas: 4,
        minds: &[(0, "dies-after-pre-prepare")],
        faults: Vec::new,
    },
    Scenario {
        name: "dies-after-prepare",
        about: "The primary dies when its proposal has prepared: the others commit it without it.",
        replicas: 4,
        minds: &[(0, "dies-after-prepare")],
        faults: Vec::new,
    },
    Scenario {
        name: "dies-after-commit",
        about: "The primary dies when it has committed: nothing is lost, the next request changes the view.",
        replicas: 4,
        minds: &[(0, "dies-after-commit")],
        faults: Vec::new,
    },
    Scenario {
        name: "partition-two-two",
        about: "Two and two: neither side is a quorum, nothing is decided until the network heals.",
        replicas: 4,
        minds: &[],
        faults: || vec![(30_000, cut(&[0, 1])), (700_000, Fault::Mend)],
    },
    Scenario {
        name: "partition-three-one",
        about: "Three and one: the three go on, the one catches up when the network heals.",
        replicas: 4,
        minds: &[],
        faults: || vec![(30_000, cut(&[3])), (700_000, Fault::Mend)],
    },
    Scenario {
        name: "slow-primary",
        about: "The primary sends each proposal just before its time is up.",
        replicas: 4,
        minds: &[(0, "slow-primary")],
        faults: Vec::new,
    },
    Scenario {
        name: "forgetful-replica",
        about: "A replica loses both disks: it asks to vote again, and a new epoch begins.",
        replicas: 4,
        minds: &[],
        faults: || vec![(30_000, Fault::LoseBoth { id: 2 })],
    },
];

fn cut(side: &[End]) -> Fault {
    Fault::Partition { side: side.to_vec(), one_way: false }
}

/// The scenario of this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// What came of a scenario.
pub struct Played {
    /// The diagram.
    pub diagram: String,
    /// The first property that did not hold.
    pub violation: Option<&'static str>,
}

fn plan(scenario: &Scenario) -> Plan {
    let options =
        Options { replicas: Some(4), attackers: Attackers::None, calm: true, ..Options::default() };
    let mut plan = Plan::new(1, &options);
    let n = usize::from(scenario.replicas);
    plan.n = scenario.replicas;
    plan.clients = vec![Habit { requests: 2, outstanding: 1, pause: (60_000, 60_000), keys: 1 }];
    plan.limits.checkpoint_interval = 8;
    plan.limits.window = 16;
    plan.limits.in_flight_max = 1;
    plan.limits.batch_requests_max = 8;
    plan.limits.view_change_timeout_ms = 150;
    plan.tick = 10_000;
    plan.speeds = vec![Speed { sync: (100, 100), wake: 0, ledger: (100, 100) }; n];
    plan.skews = vec![0; n];
    plan.conditions = Conditions { delay: (1_000, 1_000), ..Conditions::GOOD };
    plan.heal_at = 800_000;
    plan.traitors = scenario.minds.iter().map(|(id, mind)| (*id, vec![*mind])).collect();
    plan.faults = (scenario.faults)();
    plan
}

/// Plays a scenario.
#[must_use]
pub fn play(scenario: &Scenario) -> Played {
    simulation::use_keyed_hashes(true);
    let _ = simulation::take_marks();
    let story = Arc::new(Mutex::new(Story::new(usize::from(scenario.replicas))));
    let mut world = World::new(plan(scenario));
    let heard = Arc::clone(&story);
    world.fabric.listener = Some(Box::new(move |passing| lock(&heard).pass(passing)));
    world.fabric.trace.write_to(Box::new(Lines { story: Arc::clone(&story), rest: Vec::new() }));
    world.run();
    let outcome = world.outcome();
    // The trace's last lines are written when it ends.
    drop(world);
    simulation::use_keyed_hashes(false);
    let mut diagram = format!("{}\n{}\n\n", scenario.name, scenario.about);
    let liars: Vec<String> = scenario
        .minds
        .iter()
        .map(|(id, mind)| format!("r{id} is no correct replica: {mind}"))
        .collect();
    for liar in liars {
        let _ = writeln!(diagram, "{liar}");
    }
    diagram.push_str("● sends, ▸ is sent to, ✗ is cut off\n\n");
    diagram.push_str(&lock(&story).draw());
    let violation = outcome.violation.map(|it| it.property);
    let _ = match violation {
        Some(property) => writeln!(diagram, "\nbroken: {property}"),
        None => writeln!(diagram, "\nevery property held"),
    };
    Played { diagram, violation }
}

fn lock(story: &Mutex<Story>) -> std::sync::MutexGuard<'_, Story> {
    story.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A row of the diagram: a message and who gets it, or an event.
#[derive(Clone, Debug)]
enum Row {
    Sent { from: End, to: BTreeSet<End>, cut: BTreeSet<End>, text: String },
    Event(String),
}

/// What happened, row by row.
struct Story {
    replicas: usize,
    rows: Vec<(u64, Row)>,
    /// What was drawn of each link.
    seen: BTreeSet<(End, End, String)>,
    batches: Vec<Digest>,
}

impl Story {
    fn new(replicas: usize) -> Self {
        Self { replicas, rows: Vec::new(), seen: BTreeSet::new(), batches: Vec::new() }
    }

    fn pass(&mut self, passing: Passing<'_>) {
        let Passing { now, from, to, bytes, cut } = passing;
        let Some(text) = self.describe(from, to, bytes) else { return };
        if !self.seen.insert((from, to, text.clone())) {
            return;
        }
        if let Some((at, Row::Sent { from: last, to: all, cut: lost, text: same })) =
            self.rows.last_mut()
            && (*at, *last, &*same) == (now, from, &text)
        {
            all.insert(to);
            if cut {
                lost.insert(to);
            }
            return;
        }
        let all = BTreeSet::from([to]);
        let lost = if cut { all.clone() } else { BTreeSet::new() };
        self.push(now, Row::Sent { from, to: all, cut: lost, text });
    }

    fn push(&mut self, now: u64, row: Row) {
        if self.rows.len() < ROWS_MAX {
            self.rows.push((now, row));
        }
    }

    fn describe(&mut self, from: End, to: End, bytes: &[u8]) -> Option<String> {
        if from >= self.replicas {
            let frame = wire::decode::<ClientFrame>(bytes, wire::FRAME_BYTES_MAX).ok()?;
            let ClientFrame::Submit { request, .. } = frame else { return None };
            return Some(match request.request().body {
                RequestBody::OpenSession { .. } => "OPEN-SESSION".to_owned(),
                RequestBody::Submit { number, .. } => format!("REQUEST {}", number.0),
            });
        }
        if to >= self.replicas {
            let frame = wire::decode::<NodeFrame>(bytes, wire::FRAME_BYTES_MAX).ok()?;
            let NodeFrame::Replies(replies) = frame else { return None };
            return Some(format!("REPLY of block {}", replies.header.height.0));
        }
        let message = wire::decode::<Message>(bytes, wire::FRAME_BYTES_MAX).ok()?;
        self.describe_message(&message)
    }

    fn describe_message(&mut self, message: &Message) -> Option<String> {
        Some(match message {
            Message::PrePrepare(it) => self.vote("PRE-PREPARE", &it.vote),
            Message::Prepare(vote) => self.vote("PREPARE", vote),
            Message::Commit(vote) => self.vote("COMMIT", vote),
            Message::Proposed(vote) => self.vote("PROPOSED", vote),
            Message::Checkpoint(vote) => {
                let checkpoint = &vote.value.checkpoint;
                format!("CHECKPOINT e{} n{}", checkpoint.epoch.0, checkpoint.height.0)
            }
            Message::ViewChange(sealed) => {
                let change = sealed.value();
                let prepared: Vec<String> = change
                    .prepared
                    .iter()
                    .map(|it| self.slot(it.statement.sequence.0, it.statement.digest))
                    .collect();
                format!("VIEW-CHANGE v{} P=[{}]", change.view.0, prepared.join(" "))
            }
            Message::NewView(sealed) => {
                let new_view = sealed.value();
                let proposals: Vec<String> = new_view
                    .proposals
                    .iter()
                    .map(|it| self.slot(it.statement.sequence.0, it.statement.digest))
                    .collect();
                let senders: Vec<String> =
                    new_view.changes.iter().map(|(id, _)| format!("r{}", id.0)).collect();
                let (senders, proposals) = (senders.join(" "), proposals.join(" "));
                format!("NEW-VIEW v{} V=[{senders}] O=[{proposals}]", new_view.view.0)
            }
            Message::Suspect { view, .. } => format!("SUSPECT v{}", view.0),
            Message::FetchBatch { sequence, digest } => {
                format!("FETCH-BATCH {}", self.slot(sequence.0, *digest))
            }
            Message::Body { sequence, batch } => {
                format!("BODY {}", self.slot(sequence.0, batch.digest()))
            }
            Message::Decided(it) => {
                let statement = it.certificate.statement;
                format!("DECIDED {}", self.slot(statement.sequence.0, statement.digest))
            }
            Message::EpochEnd(end) => {
                format!("EPOCH-END e{} n{}", end.header.epoch.0, end.header.height.0)
            }
            Message::Rejoin(rejoin) => {
                format!("REJOIN e{} r{}", rejoin.value.epoch.0, rejoin.value.replica.0)
            }
            Message::Stable(certificate) => {
                format!("STABLE n{}", certificate.checkpoint.height.0)
            }
            Message::Status(_)
            | Message::Forward(_)
            | Message::FetchViewChange { .. }
            | Message::FetchDecided { .. }
            | Message::OwnVotesQuery { .. }
            | Message::OwnVotes(_) => return None,
        })
    }

    fn vote(&mut self, name: &str, vote: &Vote) -> String {
        let statement = vote.statement;
        let slot = self.slot(statement.sequence.0, statement.digest);
        format!("{name} v{} {slot}", statement.view.0)
    }

    /// A batch has a letter, in the order in which batches are first named.
    fn slot(&mut self, sequence: u64, digest: Digest) -> String {
        if digest == Batch::null().digest() {
            return format!("n{sequence} null");
        }
        let known = self.batches.iter().position(|it| *it == digest);
        let place = known.unwrap_or_else(|| {
            self.batches.push(digest);
            self.batches.len() - 1
        });
        let letter = char::from(b'A' + (place % 26) as u8);
        let round = if place < 26 { String::new() } else { (place / 26).to_string() };
        format!("n{sequence} {letter}{round}")
    }

    fn draw(&self) -> String {
        let columns = self.replicas + 1;
        let mut drawn = String::from("    ms ");
        for column in 0..columns {
            let client = column == self.replicas;
            let _ = if client { write!(drawn, " c0") } else { write!(drawn, " r{column}") };
        }
        drawn.push('\n');
        let mut rows = self.rows.clone();
        rows.sort_by_key(|(at, _)| *at);
        for (at, row) in rows {
            let _ = write!(drawn, "{:>6} ", at / 1000);
            match row {
                Row::Event(text) => {
                    let _ = writeln!(drawn, " {} {text}", "--".repeat(columns));
                }
                Row::Sent { from, to, cut, text } => {
                    for column in 0..columns {
                        let mark = match column {
                            _ if column == from => '●',
                            _ if cut.contains(&column) => '✗',
                            _ if to.contains(&column) => '▸',
                            _ => '·',
                        };
                        let _ = write!(drawn, "  {mark}");
                    }
                    let _ = writeln!(drawn, "  {text}");
                }
            }
        }
        drawn
    }
}

/// Takes the trace's lines and keeps those that say what happened to somebody.
struct Lines {
    story: Arc<Mutex<Story>>,
    rest: Vec<u8>,
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            let Some((time, text)) = line.split_once(' ') else { continue };
            if text.contains(" -> ") {
                continue;
            }
            let digits: String = time.chars().filter(char::is_ascii_digit).collect();
            let now = digits.parse().unwrap_or(0);
            lock(&self.story).push(now, Row::Event(text.to_owned()));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
