//! A whole cluster in one thread: replicas, clients, attackers, and the faults of a plan, in virtual time.
//!
//! A run has two phases. First the faults come, and safety must hold. Then everything heals: links carry, correct
//! replicas run, clocks are nearly right; attackers go on. Every correct client's request must be answered within
//! [`liveness::bound_ms`], and every correct replica must catch up.

use super::adversary::{self, HostileClient, Make, Traitor};
use super::check::{Cast, Checks, Fact, Violation, linearizable, liveness};
use super::client::Client;
use super::fabric::{Conditions, Event, Fabric};
use super::history::History;
use super::keys;
use super::node::{Ended, Loss, Node, Speed};
use super::plan::{Fault, Plan};
use super::random::Random;
use super::story::{Next, Story};
use super::trace::Trace;
use conclave_consensus::storage::{Storage, Table};
use conclave_consensus::types::Sequence;
use conclave_crypto::simulation;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Requests of each client after healing.
const AFTER_HEALING: u64 = 2;

/// Between two looks at whether the run is over, microseconds.
const WATCH: u64 = 20_000;

/// Beside the liveness bound: how long replicas may take to catch up, milliseconds. A transfer asks a silent peer three
/// seconds long, and a Rejoin may have to wait for its interval and for another's.
const CATCH_UP_MS: u64 = 20_000;

/// Where every sync takes as long as a timeout, timeouts have to grow first, now and then more than once.
const PATIENCE: u64 = 8;

/// No run goes on longer, microseconds.
const END: u64 = 120_000_000;

/// A story that has not come to its end goes on for so long beyond the plan's faults, microseconds.
const STORY: u64 = 6_000_000;

/// Between two deeds of traitors, microseconds.
const TRAITOR_TICK: u64 = 10_000;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first property that did not hold.
    pub violation: Option<Violation>,
    /// Of everything that happened.
    pub hash: u128,
    /// Marks that were reached, and how often.
    pub marks: BTreeMap<&'static str, u64>,
    /// Virtual time that passed, microseconds.
    pub time: u64,
    /// Frames sent.
    pub frames: u64,
    /// Boundaries between effects that were passed.
    pub boundaries: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// How it stood at the end, for people.
    pub state: String,
}

/// A running cluster.
pub struct World {
    /// Time, links, and who watches.
    pub fabric: Fabric,
    /// The replicas.
    pub nodes: Vec<Node>,
    clients: Vec<Client>,
    hostile: Vec<HostileClient>,
    /// What clients did and saw.
    pub history: History,
    faults: Vec<Option<Fault>>,
    story: Option<Box<dyn Story>>,
    /// The story's last moment.
    told_by: u64,
    skews: Vec<i64>,
    /// How far a clock was ahead at most, milliseconds: the ledger's time may be, and a Rejoin waits until its clocks are
    /// there.
    ahead_ms: u64,
    f: usize,
    /// The bounds of liveness are this many times as long.
    patience: u64,
    healed_at: Option<u64>,
    content_at: Option<u64>,
    done: bool,
}

impl World {
    /// The cluster of a plan, at its start.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let f = plan.f();
        let Plan { n, limits, tick, speeds, skews, conditions, faults, .. } = plan;
        let connections = plan.clients.len() + plan.hostile.len();
        let genesis = Arc::new(keys::genesis(n, connections as u16, limits));
        let mut random = plan.random;
        let cast = Cast {
            genesis: Arc::clone(&genesis),
            traitors: plan.traitors.iter().map(|(id, _)| *id).collect(),
            clients: (0..plan.clients.len() as u16)
                .map(|c| (keys::client(c).public(), c))
                .collect(),
            forgetful: BTreeSet::new(),
            damaged: BTreeSet::new(),
        };
        let mut fabric = Fabric::new(genesis, connections, random.fork(), Checks::all(cast));
        fabric.links.conditions = conditions;
        let mut nodes: Vec<Node> =
            (0..n).map(|id| Node::new(id, speeds[usize::from(id)], tick)).collect();
        for (node, skew) in nodes.iter_mut().zip(&skews) {
            node.skew_ms = *skew;
        }
        for (id, names) in &plan.traitors {
            let minds = names.iter().filter_map(|name| match adversary::named(name)?.make {
                Make::Replica(make) => Some(make(&mut random)),
                Make::Client(_) => None,
            });
            let minds = minds.collect();
            nodes[usize::from(*id)].traitor = Some(Traitor::new(minds, random.fork()));
            fabric.schedule(TRAITOR_TICK, Event::Traitor { id: *id });
        }
        let clients = (0u16..).zip(&plan.clients);
        let clients: Vec<Client> = clients
            .map(|(index, habit)| Client::new(&mut fabric, index, *habit, random.fork()))
            .collect();
        let guests = (clients.len() as u16..).zip(&plan.hostile);
        let hostile = guests
            .filter_map(|(index, name)| guest(&mut fabric, &mut random, index, name))
            .collect();
        for (index, (at, _)) in faults.iter().enumerate() {
            fabric.schedule(*at, Event::Fault { index });
        }
        fabric.schedule(plan.heal_at, Event::Heal);
        let faults = faults.into_iter().map(|(_, fault)| Some(fault)).collect();
        let told_by = plan.heal_at + STORY;
        let story = plan.story.map(|(tale, random)| (tale.tell)(random));
        let (healed_at, content_at, done) = (None, None, false);
        let history = History::default();
        let mut world = Self {
            fabric,
            nodes,
            clients,
            hostile,
            history,
            faults,
            story,
            told_by,
            skews,
            ahead_ms: 0,
            f,
            patience: 1,
            healed_at,
            content_at,
            done,
        };
        for id in 0..n {
            world.start(id);
        }
        world
    }

    /// Runs to the end, or to the first property that does not hold.
    pub fn run(&mut self) {
        while !self.done && self.fabric.checks.violation().is_none() {
            let Some(event) = self.fabric.next_event() else { break };
            if self.fabric.now > END {
                self.report("liveness", "the run does not end".to_owned());
                break;
            }
            self.dispatch(event);
            self.tell();
            if self.fabric.blackout_at.is_some_and(|at| self.fabric.boundaries > at) {
                self.fabric.blackout_at = None;
                self.fabric.power_went = true;
                self.strike(Fault::Blackout { down: 10_000 });
            }
        }
        if self.fabric.checks.violation().is_none() {
            self.judge();
        }
    }

    /// Lets the story look.
    fn tell(&mut self) {
        let Some(mut story) = self.story.take() else { return };
        let (faults, goes_on) = match story.look(&self.nodes, self.fabric.now) {
            Next::Wait => (Vec::new(), true),
            Next::Strike(faults) => (faults, true),
            Next::Over(faults) => (faults, false),
        };
        self.story = goes_on.then_some(story);
        for fault in faults {
            self.strike(fault);
        }
    }

    fn report(&mut self, property: &'static str, what: String) {
        let now = self.fabric.now;
        self.fabric.checks.report(property, what, now);
    }

    fn dispatch(&mut self, event: Event) {
        if let Some(until) = self.postponed(&event) {
            return self.fabric.schedule(until - self.fabric.now, event);
        }
        match event {
            Event::Peer { from, to, bulk, bytes } => self.peer_frame(from, to, bulk, &bytes),
            Event::Ask { client, to, bytes } => self.ask(client, to, &bytes),
            Event::Answer { from, client, bytes } => self.answer(from, client, &bytes),
            Event::Connected { at, peer, boot } => self.connect(at, peer, boot),
            Event::Attached { client, replica, boot } => self.attach(client, replica, boot),
            Event::Node { id, boot, wake } => {
                if self.nodes[usize::from(id)].boot == boot {
                    self.with(id, |node, fabric| node.wake(fabric, wake));
                }
            }
            Event::Start { id } => self.start(id),
            Event::Client { client } => {
                let client = &mut self.clients[usize::from(client)];
                client.wake(&mut self.fabric, &mut self.history);
            }
            Event::Traitor { id } => {
                self.nodes[usize::from(id)].traitor_tick(&mut self.fabric);
                self.fabric.schedule(TRAITOR_TICK, Event::Traitor { id });
            }
            Event::Hostile { client } => {
                let index = usize::from(client) - self.clients.len();
                let after = self.hostile[index].tick(&mut self.fabric);
                self.fabric.schedule(after, Event::Hostile { client });
            }
            Event::Held { from, to, bulk, bytes } => {
                self.fabric.send_peer(from, to, bulk, &bytes);
            }
            Event::Fault { index } => {
                if let Some(fault) = self.faults[index].take() {
                    self.strike(fault);
                }
            }
            Event::Heal => self.heal(),
            Event::Watch => self.watch(),
        }
    }

    /// Until when this event waits, because its process is paused.
    fn postponed(&self, event: &Event) -> Option<u64> {
        let id = match event {
            Event::Peer { to, .. } | Event::Ask { to, .. } => *to,
            Event::Node { id, .. } => *id,
            Event::Connected { at, .. } => *at,
            Event::Attached { replica, .. } => *replica,
            _ => return None,
        };
        let until = self.nodes[usize::from(id)].paused_until;
        (until > self.fabric.now).then_some(until)
    }

    /// Lets a node do something, and sees what became of its process.
    fn with(&mut self, id: u16, act: impl FnOnce(&mut Node, &mut Fabric)) {
        let node = &mut self.nodes[usize::from(id)];
        if node.traitor.is_some() {
            // What a traitor's honest half makes of its own lies is no correct replica's panic.
            let acted = catch_unwind(AssertUnwindSafe(|| act(node, &mut self.fabric)));
            if acted.is_err() {
                self.nodes[usize::from(id)].crash(&mut self.fabric);
                return;
            }
        } else {
            act(node, &mut self.fabric);
        }
        self.reap(id);
    }

    /// A process that ended by itself is gone, and starts again.
    fn reap(&mut self, id: u16) {
        let node = &mut self.nodes[usize::from(id)];
        let Some(ended) = node.ended() else { return };
        let now = self.fabric.now;
        self.fabric.trace.line(now, format_args!("r{id} ended: {ended:?}"));
        let after = match &ended {
            Ended::RolledBack(_) => 1_000,
            Ended::Power | Ended::Disk(_) => self.fabric.random.between(1, 300) * 1000,
            // A halted replica waits for its operators; a violation for everybody but a traitor.
            Ended::Halted(_) | Ended::Failed(_) => END,
        };
        self.crash(id);
        if let Ended::RolledBack(_) = ended {
            let node = &mut self.nodes[usize::from(id)];
            node.journal.lose();
            if !node.is_faulty() {
                // Already reported; the run ends.
                return;
            }
            node.lost.get_or_insert(Loss::Known);
        }
        self.fabric.schedule(after, Event::Start { id });
    }

    fn crash(&mut self, id: u16) {
        let node = &mut self.nodes[usize::from(id)];
        if !node.is_up() {
            return;
        }
        node.crash(&mut self.fabric);
        let now = self.fabric.now;
        self.fabric.trace.line(now, format_args!("r{id} is down"));
        self.hang_up(id);
    }

    /// Clients learn that a connection ended, or do not.
    fn hang_up(&mut self, id: u16) {
        for client in &mut self.clients {
            if self.fabric.random.chance(500) {
                client.disconnected(&mut self.fabric, &mut self.history, id);
            }
        }
    }

    fn start(&mut self, id: u16) {
        let node = &mut self.nodes[usize::from(id)];
        if node.is_up() {
            return;
        }
        let trusted = node.is_faulty();
        if !node.start(&mut self.fabric) {
            if let Some(Ended::Failed(what)) = &node.last_end
                && node.traitor.is_none()
            {
                let what = format!("r{id} does not start: {what}");
                return self.report("recovery", what);
            }
            return self.fabric.schedule(20_000, Event::Start { id });
        }
        if node.lost.is_some() && !trusted {
            self.report("recovery", format!("r{id} lost its journal without a fault of the disk"));
        }
        let now = self.fabric.now;
        self.fabric.trace.line(now, format_args!("r{id} is up"));
        self.reap(id);
    }

    fn peer_frame(&mut self, from: u16, to: u16, bulk: bool, bytes: &[u8]) {
        self.fabric.trace.fold(u64::from(from) << 16 | u64::from(to));
        let node = &mut self.nodes[usize::from(to)];
        if node.traitor.is_some() && !bulk && !node.traitor_receives(&mut self.fabric, from, bytes)
        {
            return;
        }
        self.with(to, |node, fabric| {
            if bulk {
                node.transfer_frame(fabric, from, bytes);
            } else {
                node.peer_frame(fabric, from, bytes);
            }
        });
    }

    fn ask(&mut self, client: u16, to: u16, bytes: &[u8]) {
        let node = &mut self.nodes[usize::from(to)];
        if node.traitor.is_some() && !node.traitor_is_asked(&mut self.fabric, client, bytes) {
            return;
        }
        self.with(to, |node, fabric| node.client_frame(fabric, client, bytes));
    }

    fn answer(&mut self, from: u16, client: u16, bytes: &[u8]) {
        let index = usize::from(client);
        if index < self.clients.len() {
            self.clients[index].frame(&mut self.fabric, &mut self.history, from, bytes);
        } else {
            self.hostile[index - self.clients.len()].frame(&mut self.fabric, from, bytes);
        }
    }

    fn connect(&mut self, at: u16, peer: u16, boot: u64) {
        let both = [at, peer].map(|id| self.nodes[usize::from(id)].is_up());
        if both != [true, true] || self.nodes[usize::from(at)].boot != boot {
            return;
        }
        let (one, other) = (usize::from(at), usize::from(peer));
        if self.fabric.links.is_cut(one, other) || self.fabric.links.is_cut(other, one) {
            return self.fabric.schedule(100_000, Event::Connected { at, peer, boot });
        }
        self.with(at, |node, fabric| node.connected(fabric, peer));
        self.with(peer, |node, fabric| node.connected(fabric, at));
    }

    fn attach(&mut self, client: u16, replica: u16, boot: u64) {
        let end = self.fabric.client_end(client);
        if self.fabric.links.is_cut(end, replica.into()) {
            return self.fabric.schedule(50_000, Event::Attached { client, replica, boot });
        }
        let id = keys::client(client).public();
        if !self.nodes[usize::from(replica)].client_up(client, id, boot) {
            return;
        }
        if let Some(client) = self.clients.get_mut(usize::from(client)) {
            client.connected(&mut self.fabric, &mut self.history, replica);
        }
    }

    /// Replicas that count as faulty now: liars, and those whose disks lost something.
    fn faulty(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_faulty()).count()
    }

    /// Whether one more may lose what its disks hold; and this one is no liar and not lost already.
    fn may_lose(&self, id: u16) -> bool {
        let node = &self.nodes[usize::from(id)];
        !node.is_faulty() && self.faulty() < self.f
    }

    fn strike(&mut self, fault: Fault) {
        let now = self.fabric.now;
        self.fabric.trace.line(now, format_args!("{fault:?}"));
        match fault {
            Fault::Crash { id, boundary: Some(after), .. } => {
                if self.is_mine(id) {
                    self.nodes[usize::from(id)].power = Some(after);
                }
            }
            Fault::Crash { id, boundary: None, down } => self.strike_down(id, down, false),
            Fault::Stop { id, down } => self.strike_down(id, down, true),
            Fault::Blackout { down } => {
                for id in 0..self.fabric.n {
                    self.strike_down(id, down, false);
                }
            }
            Fault::TornLedger { id, writes } => {
                if self.is_mine(id) {
                    self.nodes[usize::from(id)].ledger.fail_after(writes);
                }
            }
            Fault::Pause { id, length } => {
                self.nodes[usize::from(id)].paused_until = self.fabric.now + length;
            }
            Fault::Clock { id, skew_ms } => {
                self.nodes[usize::from(id)].skew_ms = skew_ms;
                self.ahead_ms = self.ahead_ms.max(u64::try_from(skew_ms).unwrap_or(0));
            }
            Fault::SlowDisk { id, sync } => {
                let speed = &mut self.nodes[usize::from(id)].speed;
                *speed = Speed { sync, ledger: sync, ..*speed };
            }
            Fault::FullDisk { id, length } => {
                let node = &mut self.nodes[usize::from(id)];
                node.set_full(true);
                self.fabric.schedule(length, Event::Start { id });
            }
            Fault::Tear { id, syncs } => {
                let torn = |node: &&mut Node| id.is_none_or(|id| id == node.id);
                for node in self.nodes.iter_mut().filter(torn).filter(|it| it.traitor.is_none()) {
                    node.tear = Some(syncs);
                }
            }
            Fault::SlowForGood { sync } => {
                self.patience = PATIENCE;
                for node in &mut self.nodes {
                    node.rest = sync;
                    node.speed = Speed { sync, ..node.speed };
                }
            }
            Fault::ClientRestart { client } => {
                let client = &mut self.clients[usize::from(client)];
                client.restart(&mut self.fabric, &mut self.history);
            }
            Fault::Ask { more } => self.ask_for(more),
            Fault::Cut { .. }
            | Fault::Muffle { .. }
            | Fault::Partition { .. }
            | Fault::SlowLink { .. }
            | Fault::Weather(_)
            | Fault::Favour { .. }
            | Fault::Mend => self.strike_links(fault),
            Fault::LoseBoth { .. }
            | Fault::GarbleJournal { .. }
            | Fault::LoseLedger { .. }
            | Fault::FlipBit { .. }
            | Fault::Copy { .. }
            | Fault::Restore { .. } => self.strike_disk(fault),
        }
    }

    fn ask_for(&mut self, more: u64) {
        for client in &mut self.clients {
            client.ask_for(&mut self.fabric, more);
        }
    }

    fn strike_links(&mut self, fault: Fault) {
        let links = &mut self.fabric.links;
        match fault {
            Fault::Cut { from, to } => links.set_cut(from, to, true),
            Fault::Partition { side, one_way } => {
                let ends = usize::from(self.fabric.n + self.fabric.clients);
                for from in &side {
                    for to in (0..ends).filter(|to| !side.contains(to)) {
                        links.set_cut(*from, to, true);
                        if !one_way {
                            links.set_cut(to, *from, true);
                        }
                    }
                }
            }
            Fault::SlowLink { from, to, by } => links.slow_down(from, to, by),
            Fault::Muffle { to, but } => links.muffled = Some((to.into(), but.into())),
            Fault::Favour { id, votes } => links.favoured = Some((id.into(), votes)),
            Fault::Weather(conditions) => links.conditions = conditions,
            _ => links.mend(),
        }
    }

    /// Whether the plan may do something to this replica's process: a traitor looks after itself.
    fn is_mine(&self, id: u16) -> bool {
        self.nodes[usize::from(id)].traitor.is_none()
    }

    fn strike_down(&mut self, id: u16, down: u64, clean: bool) {
        let node = &mut self.nodes[usize::from(id)];
        if node.traitor.is_some() || !node.is_up() {
            return;
        }
        if clean && node.paused_until <= self.fabric.now {
            node.stop(&mut self.fabric);
            self.hang_up(id);
        } else {
            self.crash(id);
        }
        self.fabric.schedule(down, Event::Start { id });
    }

    fn strike_disk(&mut self, fault: Fault) {
        match fault {
            Fault::Copy { id } => self.nodes[usize::from(id)].copy_disks(),
            Fault::Restore { id, both }
                if self.may_lose(id) && self.nodes[usize::from(id)].has_copy() =>
            {
                self.crash(id);
                let epoch = self.newest_epoch();
                self.nodes[usize::from(id)].restore(both, epoch);
                let flipped = self.nodes[usize::from(id)].flipped;
                let damaged = &mut self.fabric.checks.cast_mut().damaged;
                if flipped {
                    damaged.insert(id)
                } else {
                    damaged.remove(&id)
                };
                self.forget(id);
            }
            Fault::LoseBoth { id } | Fault::GarbleJournal { id } if self.may_lose(id) => {
                self.crash(id);
                let both = matches!(fault, Fault::LoseBoth { .. });
                self.nodes[usize::from(id)].lose_journal(both);
                self.forget(id);
            }
            Fault::LoseLedger { id } if self.may_lose(id) => {
                self.crash(id);
                self.nodes[usize::from(id)].lose_ledger();
                self.forget(id);
            }
            Fault::FlipBit { id, choice }
                if self.may_lose(id) && self.nodes[usize::from(id)].flip(choice) =>
            {
                self.fabric.checks.cast_mut().damaged.insert(id);
            }
            _ => {}
        }
    }

    /// From now on this replica may be found to have contradicted itself.
    fn forget(&mut self, id: u16) {
        self.fabric.checks.cast_mut().forgetful.insert(id);
        let after = self.fabric.random.between(1, 200) * 1000;
        self.fabric.schedule(after, Event::Start { id });
    }

    fn newest_epoch(&self) -> u64 {
        // Of those that are down as well: an old copy may be put back while all are.
        self.nodes.iter().map(|node| node.epoch).max().unwrap_or(0)
    }

    fn heal(&mut self) {
        let now = self.fabric.now;
        if self.story.is_some() && now < self.told_by {
            return self.fabric.schedule(WATCH, Event::Heal);
        }
        self.story = None;
        self.fabric.trace.line(now, format_args!("everything heals"));
        self.fabric.links.mend();
        self.fabric.links.conditions = Conditions::GOOD;
        let skews = self.skews.clone();
        for (node, skew) in self.nodes.iter_mut().zip(skews) {
            node.heal(now, skew);
        }
        for id in 0..self.fabric.n {
            let after = self.fabric.random.between(0, 20) * 1000;
            self.fabric.schedule(after, Event::Start { id });
        }
        self.healed_at = Some(now);
        self.ask_for(AFTER_HEALING);
        self.fabric.schedule(WATCH, Event::Watch);
    }

    /// Whether everybody has what is due.
    fn watch(&mut self) {
        let Some(healed) = self.healed_at else { return };
        let now = self.fabric.now;
        let timeout_ms = self.fabric.genesis.limits.view_change_timeout_ms;
        let bound_ms = liveness::bound_ms(self.f, timeout_ms) * self.patience;
        for client in &self.clients {
            let since = client.waits_since();
            if since.is_some_and(|since| liveness::overdue(since, healed, now, bound_ms)) {
                let what = format!("c{} waits longer than {bound_ms} ms", client.index);
                return self.report("liveness", what);
            }
        }
        if self.content_at.is_none() && self.clients.iter().all(Client::is_content) {
            self.content_at = Some(now);
        }
        match self.content_at {
            Some(_) if self.all_caught_up() => self.done = true,
            Some(since) if now > since + (bound_ms + CATCH_UP_MS + self.ahead_ms) * 1000 => {
                self.report("catching up", "a correct replica stays behind or silent".to_owned());
            }
            None if now > healed + (bound_ms * 20) * 1000 => {
                self.report("liveness", "clients never get all their answers".to_owned());
            }
            Some(_) | None => {}
        }
        self.fabric.schedule(WATCH, Event::Watch);
    }

    /// Every correct replica votes, at the height of all others, and has nothing to fetch.
    fn all_caught_up(&self) -> bool {
        let mut correct = self.nodes.iter().filter(|node| node.traitor.is_none());
        let voting = correct.clone().filter_map(Node::status).filter(|status| status.normal);
        let view = voting.map(|status| status.view).max().unwrap_or(u64::MAX);
        let settled = correct.clone().all(|node| node.is_settled(view));
        let heights: BTreeSet<Option<Sequence>> = correct.by_ref().map(Node::height).collect();
        settled && heights.len() == 1
    }

    /// The run is over: ledgers, rows and histories are compared.
    fn judge(&mut self) {
        for node in &self.nodes {
            let Some(process) = node.process.as_ref().filter(|_| node.traitor.is_none()) else {
                continue;
            };
            let replica = node.id;
            let height = process.executor.height();
            let header = |height| {
                process.reader.header(height).expect("memory can be read").map(|it| it.hash())
            };
            self.fabric.saw(&Fact::Final { replica, height, header: &header });
            let digest = rows(&*node.ledger);
            self.fabric.saw(&Fact::Rows { replica, height, digest });
        }
        let now = self.fabric.now;
        self.fabric.checks.end(now);
        if let Err(what) = linearizable::check(&self.history.operations) {
            self.report("linearizability", what);
        }
    }

    /// What came of it.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let lines: Vec<String> = self.nodes.iter().map(Node::describe).collect();
        Outcome {
            violation: self.fabric.checks.violation().cloned(),
            hash: self.fabric.trace.hash(),
            marks: simulation::take_marks(),
            time: self.fabric.now,
            frames: self.fabric.frames,
            boundaries: self.fabric.boundaries,
            answered: self.clients.iter().map(|client| client.answered).sum(),
            state: lines.join("\n"),
        }
    }
}

/// A hostile client of this name on this connection, about to act.
fn guest(
    fabric: &mut Fabric,
    random: &mut Random,
    client: u16,
    name: &str,
) -> Option<HostileClient> {
    let Make::Client(make) = adversary::named(name)?.make else { return None };
    fabric.schedule(TRAITOR_TICK, Event::Hostile { client });
    Some(HostileClient::new(client, make(random), random.fork()))
}

/// A digest of all rows of the replicated tables.
fn rows(storage: &impl Storage) -> u128 {
    let mut digest = Trace::default();
    for table in [Table::Store, Table::Sessions, Table::Registry] {
        let rows = storage.scan(table, b"", None, usize::MAX).expect("memory can be read");
        for (key, value) in rows {
            digest.bytes(&key);
            digest.bytes(&value);
        }
    }
    digest.hash()
}
