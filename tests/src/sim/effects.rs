//! The replica thread of a simulated process: what it takes, steps and carries out.
//!
//! The one match on [`Effect`] of the simulator is here, and says the same as the node's. Each effect is a boundary at
//! which the power may go.

use super::check::Fact;
use super::fabric::{Event, Fabric, Wake};
use super::node::{DRAIN_MAX, Ended, Job, Loss, Node, PEER_ITEMS_MAX, Task, ToReplica};
use super::observed;
use super::signatures;
use conclave_consensus::engine::{Effect, Engine, Input, Reject, To};
use conclave_consensus::message::EpochEnd;
use conclave_consensus::pbft::Pbft;
use conclave_consensus::pbft::message::Message;
use conclave_consensus::replica::Step;
use conclave_consensus::types::{ReplicaId, Sequence};
use conclave_crypto::simulation;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Node {
    /// Whether the process still has power; each call is a boundary at which it may go.
    pub(super) fn powered(&mut self, fabric: &mut Fabric) -> bool {
        let Some(process) = &mut self.process else { return false };
        if process.ended.is_some() {
            return false;
        }
        fabric.boundaries += 1;
        if fabric.blackout_at.is_some_and(|at| fabric.boundaries > at) {
            process.ended = Some(Ended::Power);
            return false;
        }
        match &mut self.power {
            Some(0) => {
                fabric.power_went = true;
                process.ended = Some(Ended::Power);
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    /// The process cannot go on.
    pub(super) fn end(&mut self, ended: Ended) {
        if let Some(process) = &mut self.process
            && process.ended.is_none()
        {
            process.ended = Some(ended);
        }
    }

    /// A frame of an authenticated peer: decoded against the horizon of the last step, then queued.
    pub fn peer_frame(&mut self, fabric: &mut Fabric, from: u16, bytes: &[u8]) {
        let Some(process) = &mut self.process else { return };
        let _ = simulation::take_verifications();
        let decoded = Pbft::decode(&process.horizon, ReplicaId(from), bytes);
        let verifications = simulation::take_verifications();
        let (replica, accepted) = (self.id, decoded.is_ok());
        fabric.saw(&Fact::Decoded { replica, from, bytes: bytes.len(), verifications, accepted });
        let message = match decoded {
            Ok(message) => message,
            Err(reason) => {
                observed::refused(&reason);
                if let Reject::Proven(_, evidence) = &reason {
                    fabric.saw(&Fact::Evidence { replica, evidence });
                }
                return;
            }
        };
        let waiting = &mut process.waiting[usize::from(from)];
        if *waiting >= PEER_ITEMS_MAX {
            return;
        }
        *waiting += 1;
        let input = Input::Message { from: ReplicaId(from), message };
        self.queue(fabric, ToReplica::Input(input));
    }

    /// Takes what has arrived, steps the engine, carries out the effects.
    pub(super) fn step(&mut self, fabric: &mut Fabric, all: bool) {
        let Some(process) = &mut self.process else { return };
        if process.ended.is_some() {
            return;
        }
        process.stepping = false;
        let take = if all { process.inbox.len() } else { process.inbox.len().min(DRAIN_MAX) };
        let taken: Vec<ToReplica> = process.inbox.drain(..take).collect();
        let mut inputs = Vec::with_capacity(taken.len() + 2);
        let mut requests = Vec::new();
        for event in taken {
            let Some(process) = &mut self.process else { return };
            match event {
                ToReplica::Input(input) => {
                    if let Input::Message { from, .. } = &input {
                        let waiting = &mut process.waiting[usize::from(from.0)];
                        *waiting = waiting.saturating_sub(1);
                    }
                    inputs.push(input);
                }
                ToReplica::Request(request) => requests.push(request),
                ToReplica::Written(number) => {
                    for effect in process.replica.written(number) {
                        self.effect(fabric, effect);
                    }
                }
                ToReplica::StableStored(height) => {
                    // Truncation is not synced: a crash may take it back, and now and then it never happens.
                    if !fabric.random.chance(200) {
                        self.journal.truncate(height);
                    }
                }
            }
        }
        if !requests.is_empty() {
            inputs.push(Input::Requests(requests));
        }
        let wall = fabric.wall(self.skew_ms);
        let Some(process) = &mut self.process else { return };
        if process.tick_due {
            process.tick_due = false;
            let monotonic_ms = fabric.now_ms() - process.started_ms;
            inputs.push(Input::Tick { monotonic_ms, wall });
        }
        let step = process.replica.step(inputs);
        process.horizon = process.replica.engine().horizon();
        self.show(fabric);
        self.carry_out(fabric, step);
        let Some(process) = &mut self.process else { return };
        if !process.inbox.is_empty() && !process.stepping {
            process.stepping = true;
            let (id, boot) = (self.id, process.boot);
            fabric.schedule(0, Event::Node { id, boot, wake: Wake::Step });
        }
    }

    /// Publishes what others see of it.
    fn show(&mut self, fabric: &mut Fabric) {
        let Some(process) = &mut self.process else { return };
        let status = process.replica.engine().status();
        if status.view != process.status.view || status.epoch != process.status.epoch {
            let now = fabric.now;
            fabric.trace.line(now, format_args!("{}", process.replica.engine()));
        }
        let good = status.normal && status.role != "rejoining";
        self.lost = self.lost.filter(|lost| match lost {
            Loss::Known => !good,
            Loss::Unseen(epoch) => !good || status.epoch.0 <= *epoch,
        });
        let restored = |height: Sequence| {
            let tip = process.executor.tip().expect("memory can be read");
            tip.height >= height && tip.checkpoint.is_some_and(|it| it.height >= self.vouched)
        };
        self.owed = self.owed.filter(|height| !good || !restored(*height));
        self.epoch = self.epoch.max(status.epoch.0);
        process.status = status;
        let (replica, boot) = (self.id, process.boot);
        let waiting = process.replica.waiting();
        let height = process.executor.height();
        fabric.saw(&Fact::Stepped {
            replica,
            boot,
            status: &process.status,
            height,
            waiting,
            journal: self.journal.len(),
        });
    }

    /// The write goes first: nothing in `ready` depends on it.
    pub(super) fn carry_out(&mut self, fabric: &mut Fabric, step: Step<Message>) {
        if let Some(write) = step.write {
            if !self.powered(fabric) {
                return;
            }
            let Some(process) = &mut self.process else { return };
            process.writes.push_back(write);
            if process.syncing.is_empty() {
                self.sync(fabric);
            }
        }
        for effect in step.ready {
            self.effect(fabric, effect);
        }
    }

    /// The disk takes every write that waits, with one sync.
    fn sync(&mut self, fabric: &mut Fabric) {
        if self.full {
            return self.end(Ended::Disk("no space left for the journal".to_owned()));
        }
        let Some(process) = &mut self.process else { return };
        process.syncing = process.writes.drain(..).collect();
        let (low, high) = self.speed.sync;
        let after = fabric.random.between(low, high);
        let (id, boot) = (self.id, process.boot);
        fabric.schedule(after, Event::Node { id, boot, wake: Wake::Synced });
    }

    /// The sync under way is done. Before it, in it and after it the power may go.
    pub(super) fn synced(&mut self, fabric: &mut Fabric) {
        if !self.powered(fabric) {
            return;
        }
        if self.tear == Some(0) {
            return self.end(Ended::Power);
        }
        self.tear = self.tear.map(|left| left - 1);
        let Some(process) = &mut self.process else { return };
        let Some(last) = process.syncing.last().map(|write| write.number) else { return };
        for write in std::mem::take(&mut process.syncing) {
            process.order.lock().written(&write);
            self.journal.write(write);
        }
        self.durable.store(self.journal.number(), Ordering::Relaxed);
        if !self.powered(fabric) {
            return;
        }
        self.queue(fabric, ToReplica::Written(last));
        if self.process.as_ref().is_some_and(|process| !process.writes.is_empty()) {
            self.sync(fabric);
        }
    }

    fn effect(&mut self, fabric: &mut Fabric, effect: Effect<Message>) {
        if !self.powered(fabric) {
            return;
        }
        let Some(process) = &self.process else { return };
        let records = process.order.lock().leaves(&effect);
        if records > 0 {
            fabric.saw(&Fact::Overtook { replica: self.id, records });
        }
        match effect {
            Effect::Persist(_) => unreachable!("the replica keeps records to itself"),
            Effect::Send { to, message, .. } => self.send(fabric, to, &message),
            Effect::Commit(committed) => self.task(fabric, Task::Commit(Box::new(committed))),
            Effect::ReadReady { .. } => {}
            Effect::Stable(certificate) => self.task(fabric, Task::Stable(Box::new(certificate))),
            Effect::Install(target) => self.task(fabric, Task::Fetch(Box::new(target))),
            Effect::EpochEnded(end) => {
                self.task(fabric, Task::EpochEnds(vec![EpochEnd::clone(&end)]));
            }
            Effect::Supply { to, after } => self.supply_later(fabric, to, after),
            Effect::Diverged(certificate) => {
                let (replica, flipped) = (self.id, self.flipped);
                fabric.saw(&Fact::Diverged { replica, flipped });
                self.task(fabric, Task::Diverged(Box::new(certificate)));
            }
            Effect::RolledBack { reason } => {
                let replica = self.id;
                fabric.saw(&Fact::RolledBack { replica, lost: self.is_faulty(), reason: &reason });
                self.end(Ended::RolledBack(reason));
            }
            Effect::Halt { reason } => {
                fabric.saw(&Fact::Halted { replica: self.id, reason: &reason });
                self.end(Ended::Halted(reason));
            }
            Effect::Reject { from, reason } => {
                fabric.saw(&Fact::Rejected { replica: self.id, from: from.0, reason: &reason });
            }
            Effect::Check(batch) => {
                observed::late_check();
                let Some(process) = &self.process else { return };
                let valid = process.replica.engine().horizon().check(&batch);
                let checked = Input::Checked { batch: batch.digest(), valid };
                self.queue(fabric, ToReplica::Input(checked));
            }
            Effect::Evidence(evidence) => {
                let (now, id, culprit) = (fabric.now, self.id, evidence.culprit.0);
                let name = conclave_consensus::evidence::kind_name(evidence.kind);
                fabric
                    .trace
                    .line(now, format_args!("r{id} holds evidence against r{culprit}: {name}"));
                fabric.saw(&Fact::Evidence { replica: self.id, evidence: &evidence });
            }
        }
    }

    /// A full queue only means that the peer asks again.
    fn supply_later(&mut self, fabric: &mut Fabric, to: ReplicaId, after: Sequence) {
        let Some(process) = &self.process else { return };
        let of_peer = |job: &&Job| matches!(job, Job::Supply { to: peer, .. } if *peer == to);
        if process.jobs.iter().filter(of_peer).count() < 2 {
            self.job(fabric, Job::Supply { to, after });
        }
    }

    /// Puts a message on the wires. What a traitor's honest half sends passes through the traitor.
    pub(super) fn send(&mut self, fabric: &mut Fabric, to: To, message: &Message) {
        let replica = self.id;
        let targets = match to {
            To::One(target) => target.0..target.0 + 1,
            To::Others => 0..fabric.n,
        };
        let now = fabric.now;
        fabric.trace.line(now, format_args!("r{replica} -> {to:?} {message}"));
        if self.traitor.is_some() {
            for target in targets.filter(|target| *target != replica) {
                self.send_as_traitor(fabric, target, message);
            }
            return;
        }
        fabric.saw(&Fact::Sent { replica, message });
        let members = self.process.as_ref().map(|process| &process.horizon.membership);
        if !matches!(self.lost, Some(Loss::Known | Loss::Unseen(_)))
            && let Some(members) = members
            && let Some(signed) = signatures::of(message, ReplicaId(replica), members)
        {
            fabric.saw(&Fact::Signed { replica, signed });
        }
        match message {
            Message::Checkpoint(vote) => {
                self.vouched = self.vouched.max(vote.value.checkpoint.height);
            }
            Message::Commit(vote) => {
                self.committed = self.committed.max(vote.statement.sequence);
            }
            Message::ViewChange(change) if change.value().replica.0 == replica => {
                let change = change.value();
                self.left = self.left.max((change.epoch.0, change.view.0));
            }
            _ => {}
        }
        let bytes = Arc::new(Pbft::encode(message));
        for target in targets.filter(|target| *target != replica) {
            fabric.send_peer(replica, target, false, &bytes);
        }
    }
}
