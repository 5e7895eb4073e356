//! Twins: a liar made of nothing but correct replicas (Bano et al., "Twins: BFT Systems Made Robust", OPODIS 2021).
//!
//! Two correct processes share one key and one identity. Neither knows of the other, so that together they equivocate,
//! forget and vote twice, and all of it is what the product's own code does. What the paper enumerates is enumerated here:
//! who is cut off from whom in each round, and who leads.
//!
//! - **Processes.** Replicas 0 to n − 1, and behind them the second processes of the identities 0 to K − 1. Each is a whole
//!   [`Node`] with disks of its own. A frame to an identity reaches both of its processes, where they are not cut off.
//!   Twins have no link to each other, as no replica has one to itself.
//! - **Rounds.** Each round divides all processes into two sides. Each side has a client of its own, so that twins who
//!   lead on both sides propose different batches for one slot.
//! - **A round ends between PREPARE and COMMIT.** PRE-PREPAREs and PREPAREs pass within the sides of their round. COMMITs are
//!   in flight when the sides change and reach whoever is on their sender's side in the next round; so batches prepare
//!   on one side and commit on another, at some and not at others, which is where view changes can go wrong.
//! - **Leaders.** PBFT's leader follows from the view, so views are steered. A scenario names who leads view 0
//!   (`first` of genesis), and each later round whether it begins with a view change: then everybody hears a SUSPECT of its
//!   own view from all on its side, as if all their timers had expired. A side without a quorum stays where it is, so that
//!   sides come to be in different views. Timers play no part: the timeout is longer than a run.
//! - **The end.** After the last round everything is connected, and the COMMITs under way and what replicas ask of each
//!   other arrive.
//! - **Judgement.** The checkers of [`super::check`] watch the correct replicas. A pair of twins counts as one faulty
//!   identity, and evidence may name it. A twin that finds its journal older than its votes stops as it must, and
//!   the next round starts it again on the same disk.
//!
//! [`choice`] enumerates and prunes, and [`hunt`] runs all of them or a sample on several threads.

pub mod choice;
pub mod hunt;

use super::check::{Cast, Checks, Fact, Violation};
use super::fabric::{Conditions, Event, Fabric, Frame};
use super::keys;
use super::node::{Node, Speed};
use super::random::Random;
use super::run;
use choice::{Round, Scenario};
use conclave_consensus::client_wire::ClientFrame;
use conclave_consensus::engine::Engine;
use conclave_consensus::membership::{Genesis, Limits};
use conclave_consensus::message::{Request, RequestBody, SignedRequest};
use conclave_consensus::pbft::Pbft;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::types::View;
use conclave_consensus::wire;
use conclave_crypto::simulation;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

/// Where the lines of all processes go.
type Shared = Rc<RefCell<Box<dyn Write>>>;

/// Until every process has asked for its own votes and every client is connected, microseconds.
const START: u64 = 10_000;
/// From the COMMITs of the last round to the view change.
const SUSPECTED_AFTER: u64 = 2_000;
/// From the beginning of a round to its requests: a process that was started anew has its clients by then.
const ASKED_AFTER: u64 = 9_000;
/// How long a round takes.
const ROUND: u64 = 13_000;
/// How long the end takes.
const CLOSING: u64 = 15_000;

/// What came of a scenario.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first property that did not hold.
    pub violation: Option<Violation>,
    /// Of everything that happened.
    pub hash: u128,
    /// Blocks that the correct replica furthest ahead executed.
    pub height: u64,
    /// The latest view of a correct replica.
    pub view: u64,
}

/// Runs a scenario and writes what happens, a line each.
#[must_use]
pub fn play(scenario: &Scenario, trace: Option<Box<dyn Write>>) -> Outcome {
    simulation::use_keyed_hashes(true);
    let _ = simulation::take_marks();
    let played = run::quietly(|| {
        let mut stage = Stage::new(scenario);
        if let Some(trace) = trace {
            stage.trace_to(trace);
        }
        stage.run(scenario);
        stage.outcome()
    });
    simulation::use_keyed_hashes(false);
    played.unwrap_or_else(|violation| Outcome {
        violation: Some(violation),
        hash: 0,
        height: 0,
        view: 0,
    })
}

/// A process, with the queue of what happens to it. Its own fabric numbers replicas by identity.
struct Process {
    node: Node,
    fabric: Fabric,
    side: bool,
}

/// A COMMIT under way between two rounds.
struct Held {
    from: usize,
    to: u16,
    bytes: Frame,
}

struct Stage {
    twins: u16,
    processes: Vec<Process>,
    /// Shared: whoever acts has them.
    checks: Checks,
    held: Vec<Held>,
    genesis: Arc<Genesis>,
    trace: Option<Shared>,
}

fn genesis(scenario: &Scenario) -> Genesis {
    let limits = Limits {
        checkpoint_interval: 16,
        window: 32,
        in_flight_max: 2,
        batch_requests_max: 4,
        view_change_timeout_ms: 400,
        ..Limits::default()
    };
    let mut genesis = keys::genesis(scenario.n, 2 * scenario.rounds.len() as u16, limits);
    genesis.membership.first = scenario.first.into();
    genesis
}

impl Stage {
    fn new(scenario: &Scenario) -> Self {
        let Scenario { n, twins, .. } = *scenario;
        let genesis = Arc::new(genesis(scenario));
        let clients = 2 * scenario.rounds.len() as u16;
        let cast = Cast {
            genesis: Arc::clone(&genesis),
            traitors: (0..twins).collect(),
            clients: (0..clients).map(|c| (keys::client(c).public(), c)).collect(),
            forgetful: BTreeSet::new(),
            damaged: BTreeSet::new(),
        };
        let process = |index: u16| {
            let id = index % n;
            let checks = Checks::none(cast.clone());
            // Twins begin alike: they part by what they hear only.
            let random = Random::new(u64::from(id));
            let mut fabric =
                Fabric::new(Arc::clone(&genesis), usize::from(clients), random, checks);
            fabric.links.conditions = Conditions { delay: (300, 300), ..Conditions::GOOD };
            let speed = Speed { sync: (100, 100), wake: 0, ledger: (100, 100) };
            Process { node: Node::new(id, speed, 5_000), fabric, side: false }
        };
        let processes = (0..n + twins).map(process).collect();
        let checks = Checks::all(cast.clone());
        Self { twins, processes, checks, held: Vec::new(), genesis, trace: None }
    }

    fn is_twin(&self, process: usize) -> bool {
        self.processes[process].node.id < self.twins
    }

    fn run(&mut self, scenario: &Scenario) {
        for process in 0..self.processes.len() {
            self.act(process, 0, |node, fabric| {
                node.start(fabric);
            });
        }
        self.until(START);
        let mut begins = START;
        for (index, round) in (0u16..).zip(&scenario.rounds) {
            if self.checks.violation().is_some() {
                return;
            }
            self.round(index, *round, begins);
            begins += ROUND;
        }
        self.divide(Round { sides: 0, suspected: false }, begins);
        self.until(begins + CLOSING);
    }

    fn round(&mut self, index: u16, round: Round, begins: u64) {
        self.divide(round, begins);
        self.until(begins + SUSPECTED_AFTER);
        if round.suspected {
            self.suspect(begins + SUSPECTED_AFTER);
        }
        self.until(begins + ASKED_AFTER);
        for side in [false, true] {
            self.ask(2 * index + u16::from(side), side, begins + ASKED_AFTER);
        }
        self.until(begins + ROUND);
    }

    /// The sides change, twins that stopped start again, and the COMMITs under way arrive.
    fn divide(&mut self, round: Round, now: u64) {
        self.line(now, &format!("sides {round}"));
        let before: Vec<bool> = self.processes.iter().map(|process| process.side).collect();
        for (index, process) in self.processes.iter_mut().enumerate() {
            process.side = round.side(index);
        }
        for process in 0..self.processes.len() {
            if !self.processes[process].node.is_up() {
                self.act(process, now, |node, fabric| {
                    node.start(fabric);
                });
            }
        }
        for Held { from, to, bytes } in std::mem::take(&mut self.held) {
            self.pass(from, to, false, &bytes, now);
        }
        for (one, other) in self.pairs() {
            if before[one] != before[other] {
                self.connect(one, other, now);
            }
        }
    }

    /// Pairs of processes that have a link now.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let all = 0..self.processes.len();
        let pairs = all.clone().flat_map(|one| all.clone().map(move |other| (one, other)));
        pairs.filter(|(one, other)| one < other && self.linked(*one, *other)).collect()
    }

    fn linked(&self, one: usize, other: usize) -> bool {
        let (one, other) = (&self.processes[one], &self.processes[other]);
        one.side == other.side && one.node.id != other.node.id
    }

    fn connect(&mut self, one: usize, other: usize, now: u64) {
        if !(self.processes[one].node.is_up() && self.processes[other].node.is_up()) {
            return;
        }
        for (at, peer) in [(one, other), (other, one)] {
            let peer = self.processes[peer].node.id;
            self.act(at, now, |node, fabric| node.connected(fabric, peer));
        }
    }

    /// Everybody hears from all on its side that its view is suspected.
    fn suspect(&mut self, now: u64) {
        for at in 0..self.processes.len() {
            let Some(status) = self.processes[at].node.status() else { continue };
            let message = Message::Suspect { epoch: status.epoch, view: View(status.view) };
            let bytes = Pbft::encode(&message);
            for from in 0..self.processes.len() {
                if self.linked(at, from) {
                    let from = self.processes[from].node.id;
                    self.act(at, now, |node, fabric| node.peer_frame(fabric, from, &bytes));
                }
            }
        }
    }

    /// A client asks everybody on its side.
    fn ask(&mut self, client: u16, side: bool, now: u64) {
        let key = keys::client(client);
        let body = RequestBody::OpenSession { opened: 0, close: None, nonce: [1; 16] };
        let request = Request { client: key.public(), body };
        let request = SignedRequest::sign(&request, &key, &self.genesis.cluster());
        self.checks.see(&Fact::Asked { client, request: &request }, now);
        let frame = wire::encode(&ClientFrame::Submit { request, resent: false });
        for at in 0..self.processes.len() {
            if self.processes[at].side == side {
                self.act(at, now, |node, fabric| node.client_frame(fabric, client, &frame));
            }
        }
    }

    /// Lets happen what happens before this time.
    fn until(&mut self, end: u64) {
        while self.checks.violation().is_none() {
            let next = self.processes.iter().enumerate();
            let next = next.filter_map(|(index, it)| Some((it.fabric.next_at()?, index))).min();
            let Some((now, at)) = next.filter(|(now, _)| *now < end) else { return };
            if let Some(event) = self.processes[at].fabric.next_event() {
                self.dispatch(at, now, event);
            }
        }
    }

    fn dispatch(&mut self, at: usize, now: u64, event: Event) {
        match event {
            Event::Peer { to, bulk, bytes, .. } => {
                let message = wire::decode::<Message>(&bytes, wire::FRAME_BYTES_MAX);
                if !bulk && matches!(message, Ok(Message::Commit(_))) {
                    return self.held.push(Held { from: at, to, bytes });
                }
                self.pass(at, to, bulk, &bytes, now);
            }
            Event::Connected { peer, boot, .. } if self.processes[at].node.boot == boot => {
                for other in 0..self.processes.len() {
                    if self.processes[other].node.id == peer && self.linked(at, other) {
                        self.connect(at, other, now);
                    }
                }
            }
            Event::Attached { client, boot, .. } => {
                let key = keys::client(client).public();
                self.processes[at].node.client_up(client, key, boot);
            }
            Event::Node { boot, wake, .. } if self.processes[at].node.boot == boot => {
                self.act(at, now, |node, fabric| node.wake(fabric, wake));
            }
            _ => {}
        }
    }

    /// A frame reaches every process of an identity that is on its sender's side.
    fn pass(&mut self, from: usize, to: u16, bulk: bool, bytes: &Frame, now: u64) {
        let id = self.processes[from].node.id;
        for at in 0..self.processes.len() {
            if self.processes[at].node.id != to || !self.linked(from, at) {
                continue;
            }
            self.act(at, now, |node, fabric| {
                fabric.trace.bytes(bytes);
                if bulk {
                    node.transfer_frame(fabric, id, bytes);
                } else {
                    node.peer_frame(fabric, id, bytes);
                }
            });
        }
    }

    /// Lets a process do something while the checkers watch, and sees what became of it.
    fn act(&mut self, at: usize, now: u64, act: impl FnOnce(&mut Node, &mut Fabric)) {
        let twin = self.is_twin(at);
        let Process { node, fabric, .. } = &mut self.processes[at];
        fabric.now = now;
        std::mem::swap(&mut self.checks, &mut fabric.checks);
        if twin {
            // What a twin makes of the other's votes in its own name is no correct replica's panic.
            let acted = catch_unwind(AssertUnwindSafe(|| act(node, fabric)));
            if acted.is_err() || node.ended().is_some() {
                node.crash(fabric);
            }
        } else {
            act(node, fabric);
        }
        std::mem::swap(&mut self.checks, &mut fabric.checks);
        fabric.trace.flush();
    }

    fn trace_to(&mut self, trace: Box<dyn Write>) {
        let shared = Rc::new(RefCell::new(trace));
        for (index, process) in self.processes.iter_mut().enumerate() {
            let to = Rc::clone(&shared);
            process.fabric.trace.write_to(Box::new(Lines { process: index, to }));
        }
        self.trace = Some(shared);
    }

    /// A line of the trace that is no process's.
    fn line(&self, now: u64, text: &str) {
        if let Some(trace) = &self.trace {
            // A trace that cannot be written shows in what is missing from it.
            let _ = writeln!(trace.borrow_mut(), "{now:>10} -- {text}");
        }
    }

    fn outcome(&self) -> Outcome {
        let mut hash = 0u128;
        let correct = || self.processes.iter().filter(|it| it.node.id >= self.twins);
        for process in &self.processes {
            hash = hash.rotate_left(7) ^ process.fabric.trace.hash();
        }
        Outcome {
            violation: self.checks.violation().cloned(),
            hash,
            height: correct().filter_map(|it| it.node.height()).map(|it| it.0).max().unwrap_or(0),
            view: correct().filter_map(|it| it.node.status()).map(|it| it.view).max().unwrap_or(0),
        }
    }
}

/// Puts the process in front of its lines.
struct Lines {
    process: usize,
    to: Shared,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut to = self.to.borrow_mut();
        for line in String::from_utf8_lossy(bytes).lines() {
            writeln!(to, "p{} {line}", self.process)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.borrow_mut().flush()
    }
}
