//! OSDI'99 §4.6 in our own way: STATUS, what laggards are sent, and fetching.
//!
//! Every replica says each second how far it is. Who is ahead sends what is missing: the end of an
//! epoch, a stable checkpoint, the NEW-VIEW, its own votes. What is large is asked for: a batch
//! that votes name, by its digest; decided batches from the ledger of one peer at a time, each with
//! its commit certificate, usable in any view and at any height.

use super::certificate::{CommitCertificate, Statement};
use super::message::{Decided, Message, PrePrepare, Report};
use super::{BODIES_AHEAD, Pbft, log};
use crate::engine::{Committed, Effect, Reject, To};
use crate::message::Batch;
use crate::types::{Epoch, ReplicaId, Sequence};
use crate::wire;
use conclave_crypto::digest::Digest;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// STATUS goes out this often, and four times as often while nothing moves. Milliseconds.
const STATUS_MS: u64 = 1_000;
/// Without progress for so long a replica takes itself for stalled. Milliseconds.
const STALLED_MS: u64 = 250;
/// An unanswered fetch is tried with the next peer after this. Milliseconds.
const FETCH_MS: u64 = 400;
/// Decided batches kept ahead of the last one handed over.
const BACKLOG_MAX: u64 = 128;
/// And their bytes.
const BACKLOG_BYTES_MAX: usize = 16 << 20;
/// A supplied run holds at most so many batches, after which the next is asked for at once.
const RUN_MAX: u64 = 64;
/// Messages of later views kept per peer, and their bytes.
const FUTURE_MAX: usize = 256;
const FUTURE_BYTES_MAX: usize = 8 << 20;
/// What a buffered vote counts for.
const VOTE_BYTES: usize = 128;
/// What one peer is served per second, bytes; bursts hold as much.
const SERVED_PER_SECOND: usize = 32 << 20;
/// A peer's asking for decided batches is answered at most this often. Milliseconds.
const SUPPLY_MS: u64 = 20;

#[derive(Default)]
struct Peer {
    report: Option<Report>,
    reported_ms: Option<u64>,
    /// A fetch of one body is under way with this peer since then.
    busy_since_ms: Option<u64>,
    /// Messages of later views.
    future: VecDeque<Message>,
    future_bytes: usize,
    /// Bytes it was served lately; a second's worth is forgotten each second.
    served: usize,
    /// It asked for decided batches above this.
    owed: Option<Sequence>,
    supplied_ms: Option<u64>,
    /// Which epoch's end it was sent, when.
    sent_end: Option<(Epoch, u64)>,
    sent_report_ms: Option<u64>,
}

struct DecidedFetch {
    from: ReplicaId,
    after: Sequence,
    /// When the last part of the answer came.
    heard_ms: u64,
}

#[derive(Default)]
pub(super) struct Fetching {
    peers: BTreeMap<ReplicaId, Peer>,
    /// Slots whose `wanted` batch is missing, with how often it was asked for.
    wants: BTreeMap<Sequence, usize>,
    /// Decided batches above the last one handed over that the log does not hold.
    backlog: BTreeMap<Sequence, Committed>,
    backlog_bytes: usize,
    decided: Option<DecidedFetch>,
    turn: usize,
    reported_ms: Option<u64>,
}

impl Fetching {
    /// Takes from what a peer may be served.
    pub(super) fn may_serve(&mut self, peer: ReplicaId, bytes: usize) -> bool {
        let served = &mut self.peers.entry(peer).or_default().served;
        if *served + bytes > SERVED_PER_SECOND {
            return false;
        }
        *served += bytes;
        true
    }

    /// Keeps a decided batch for its turn, if it is near enough.
    pub(super) fn keep_decided(
        &mut self,
        delivered: Sequence,
        sequence: Sequence,
        certificate: &CommitCertificate,
        batch: &Arc<Batch>,
    ) -> bool {
        let size = batch.bytes().len();
        let next = sequence == delivered.next();
        if sequence > delivered.plus(BACKLOG_MAX)
            || (self.backlog_bytes + size > BACKLOG_BYTES_MAX && !next)
            || self.backlog.contains_key(&sequence)
        {
            return false;
        }
        self.backlog_bytes += size;
        let committed = Committed {
            sequence,
            epoch: certificate.statement.epoch,
            batch: Arc::clone(batch),
            certificate: wire::encode(certificate),
        };
        self.backlog.insert(sequence, committed);
        true
    }

    /// What an epoch decided above its end is void.
    pub(super) fn void_above(&mut self, end: Sequence) {
        for (_, committed) in self.backlog.split_off(&end.next()) {
            self.backlog_bytes -= committed.batch.bytes().len();
        }
    }

    pub(super) fn start_epoch(&mut self, base: Sequence) {
        self.void_above(base);
        self.wants.clear();
        for peer in self.peers.values_mut() {
            peer.future.clear();
            peer.future_bytes = 0;
            peer.busy_since_ms = None;
        }
    }
}

impl Pbft {
    // ---- messages of later views -----------------------------------------------------------

    /// Whether this vote belongs to a view that this replica has not entered.
    pub(super) fn later_view(&self, statement: &Statement) -> bool {
        statement.epoch == self.epoch()
            && (statement.view > self.view || (statement.view == self.view && !self.active))
    }

    /// Keeps a message of a later view; one bounded buffer per peer, and no peer fills another's.
    pub(super) fn buffer(&mut self, from: ReplicaId, message: Message) {
        let bytes = message.body_bytes() + VOTE_BYTES;
        let peer = self.fetching.peers.entry(from).or_default();
        if peer.future.len() >= FUTURE_MAX || peer.future_bytes + bytes > FUTURE_BYTES_MAX {
            return self.reject(from, Reject::Cap("messages of later views"));
        }
        peer.future_bytes += bytes;
        peer.future.push_back(message);
    }

    /// A view was entered: what was kept for it is handled, what is later is kept again.
    pub(super) fn replay_buffered(&mut self) {
        let senders: Vec<ReplicaId> = self.fetching.peers.keys().copied().collect();
        for from in senders {
            let Some(peer) = self.fetching.peers.get_mut(&from) else { continue };
            peer.future_bytes = 0;
            for message in std::mem::take(&mut peer.future) {
                self.on_message(from, message);
            }
        }
    }

    // ---- STATUS ----------------------------------------------------------------------------

    pub(super) fn own_report(&self) -> Report {
        let changes =
            if self.active { Vec::new() } else { self.changes.senders_from(self.view).collect() };
        Report {
            epoch: self.epoch(),
            view: self.view,
            active: self.active,
            stable: self.low,
            decided: self.decided_here(),
            executed: self.executed,
            changes,
        }
    }

    /// The last sequence up to which this replica can hand over everything.
    fn decided_here(&self) -> Sequence {
        let mut last = self.delivered;
        while self.has_decided(last.next()) {
            last = last.next();
        }
        last
    }

    fn has_decided(&self, sequence: Sequence) -> bool {
        self.fetching.backlog.contains_key(&sequence)
            || self.log.get(&sequence).is_some_and(|instance| {
                instance.decision().is_some_and(|digest| instance.body(&digest).is_some())
            })
    }

    /// Tells all peers at once.
    pub(super) fn report(&mut self) {
        self.fetching.reported_ms = Some(self.now_ms);
        let report = self.own_report();
        self.send_after(To::Others, Message::Status(report), 0);
    }

    pub(super) fn on_connected(&mut self, peer: ReplicaId) {
        if let Some(peer) = self.fetching.peers.get_mut(&peer) {
            peer.busy_since_ms = None;
            peer.report = None;
            peer.reported_ms = None;
        }
        let report = self.own_report();
        self.send_after(To::One(peer), Message::Status(report), 0);
        self.ask_own_votes(peer);
        if !self.is_primary() && self.active && self.primary() == peer {
            let requests = self.queue.to_forward(self.now_ms);
            self.forward(requests);
        }
    }

    fn stalled(&self) -> bool {
        let waits = !self.active
            || self.probing()
            || self.agreed != self.delivered
            || self.log.range(self.agreed.next()..).any(|(_, it)| it.proposal.is_some());
        waits && self.now_ms.saturating_sub(self.checkpoints.delivered_ms) >= STALLED_MS
    }

    pub(super) fn tick_catch_up(&mut self, step_ms: u64) {
        let pause = if self.stalled() { STATUS_MS / 4 } else { STATUS_MS };
        if self.fetching.reported_ms.is_none_or(|last| self.now_ms >= last + pause) {
            self.report();
        }
        let forgotten = SERVED_PER_SECOND / 1_000 * usize::try_from(step_ms).unwrap_or(1_000);
        for peer in self.fetching.peers.values_mut() {
            peer.served = peer.served.saturating_sub(forgotten);
        }
        self.supply();
        self.fetch_bodies();
        self.fetch_decided();
    }

    pub(super) fn on_status(&mut self, from: ReplicaId, report: Report) {
        let (epoch, now) = (self.epoch(), self.now_ms);
        let peer = self.fetching.peers.entry(from).or_default();
        let before = peer.report.replace(report.clone());
        // A peer that repeats itself gets no more for it.
        let lately = peer.reported_ms.is_some_and(|last| now < last + STATUS_MS / 5);
        if !lately {
            peer.reported_ms = Some(now);
        }
        if report.epoch < epoch {
            return self.send_epoch_end(from, report.epoch);
        }
        if report.epoch > epoch {
            let due = peer.sent_report_ms.is_none_or(|last| self.now_ms >= last + STATUS_MS / 4);
            if due {
                peer.sent_report_ms = Some(self.now_ms);
                let report = self.own_report();
                self.send_after(To::One(from), Message::Status(report), 0);
            }
            return;
        }
        if lately {
            return self.fetch_decided();
        }
        let to = To::One(from);
        if report.stable < self.low
            && let Some(stable) = self.checkpoints.stable.clone()
        {
            self.send(to, Message::Stable(stable));
        }
        let stuck = before.is_none_or(|before| {
            before.decided == report.decided && before.stable == report.stable
        });
        if stuck && self.can_sign() {
            for message in self.own_checkpoints() {
                self.send(to, message);
            }
        }
        self.help_with_view(from, &report);
        if stuck && self.active && report.active && report.view == self.view {
            self.resend_votes(from, &report);
        }
        self.fetch_decided();
    }

    /// At most once a second for one epoch, a peer learns how its epoch ended.
    fn send_epoch_end(&mut self, to: ReplicaId, epoch: Epoch) {
        let now = self.now_ms;
        let peer = self.fetching.peers.entry(to).or_default();
        if peer.sent_end.is_some_and(|(sent, at)| sent == epoch && now < at + 1_000) {
            return;
        }
        peer.sent_end = Some((epoch, now));
        if let Some(end) = self.epoch_end_of(epoch) {
            self.send(To::One(to), Message::EpochEnd(end));
        }
    }

    /// Laggards are sent the latest NEW-VIEW, or what leads to the next one.
    fn help_with_view(&mut self, from: ReplicaId, report: &Report) {
        let behind = report.view < self.view || (report.view == self.view && !report.active);
        if !behind {
            return;
        }
        if self.active {
            if let Some(new_view) = self.changes.new_view.clone() {
                self.send(To::One(from), Message::NewView(new_view));
            }
        } else if self.can_sign()
            && !(report.view == self.view && report.changes.contains(&self.id()))
            && let Some(own) = self.own_view_change()
        {
            self.send(To::One(from), Message::ViewChange(own));
        }
    }

    /// Own votes of this view at the sequences that a stuck peer lacks.
    fn resend_votes(&mut self, to: ReplicaId, report: &Report) {
        if !self.can_sign() {
            return;
        }
        let (id, primary) = (self.id(), self.is_primary());
        let first = report.decided.max(report.stable).next();
        let last = first.plus(BODIES_AHEAD);
        let mut messages = Vec::new();
        let mut bytes = 0;
        for (sequence, instance) in self.log.range(first..last) {
            let statement = |digest| Statement {
                epoch: self.epoch(),
                view: self.view,
                sequence: *sequence,
                digest,
            };
            let vote = |(digest, signature): &(Digest, _)| super::message::Vote {
                statement: statement(*digest),
                signature: *signature,
            };
            if primary
                && let Some(proposal) = instance.proposal
                && let Some(batch) = instance.body(&proposal.statement.digest)
            {
                bytes += batch.bytes().len();
                let batch = Arc::clone(batch);
                messages.push(Message::PrePrepare(PrePrepare { vote: proposal, batch }));
            }
            messages.extend(instance.prepares.get(&id).map(vote).map(Message::Prepare));
            messages.extend(instance.commits.get(&id).map(vote).map(Message::Commit));
        }
        if self.fetching.may_serve(to, bytes) {
            for message in messages {
                self.send(To::One(to), message);
            }
        }
    }

    // ---- one missing batch -----------------------------------------------------------------

    /// Wants the batch of a slot once f+1 PREPAREs, a certificate or a NEW-VIEW name it.
    pub(super) fn want_body(&mut self, sequence: Sequence) {
        let weak = self.quorum().weak();
        let Some(instance) = self.log.get(&sequence) else { return };
        let named = if let Some(decision) = instance.decision() {
            (sequence > self.delivered && instance.body(&decision).is_none()).then_some(decision)
        } else if let Some(digest) = instance.proposed() {
            (!instance.holds(&digest)).then_some(digest)
        } else {
            log::named_by(&instance.prepares, weak).filter(|digest| !instance.holds(digest))
        };
        if let Some(digest) = named
            && sequence <= self.agreed.plus(self.limits.window)
        {
            self.want(sequence, digest);
        }
    }

    pub(super) fn want(&mut self, sequence: Sequence, digest: Digest) {
        let instance = self.log.entry(sequence).or_default();
        if instance.wanted != Some(digest) {
            instance.wanted = Some(digest);
            self.fetching.wants.insert(sequence, 0);
            self.fetch_bodies();
        }
    }

    /// One fetch per peer at a time, the lowest sequences first, those who voted for it first.
    fn fetch_bodies(&mut self) {
        let wants: Vec<(Sequence, usize)> =
            self.fetching.wants.iter().map(|(sequence, asked)| (*sequence, *asked)).collect();
        for (sequence, asked) in wants {
            let wanted = self.log.get(&sequence).and_then(|instance| instance.wanted);
            let Some(digest) = wanted else {
                self.fetching.wants.remove(&sequence);
                continue;
            };
            let Some(peer) = self.free_peer(sequence, &digest, asked) else { continue };
            self.fetching.wants.insert(sequence, asked + 1);
            self.fetching.peers.entry(peer).or_default().busy_since_ms = Some(self.now_ms);
            self.send_after(To::One(peer), Message::FetchBatch { sequence, digest }, 0);
        }
    }

    fn free_peer(&self, sequence: Sequence, digest: &Digest, asked: usize) -> Option<ReplicaId> {
        let instance = self.log.get(&sequence)?;
        let id = self.id();
        let votes = instance.prepares.iter().chain(&instance.commits);
        let voters: BTreeSet<ReplicaId> =
            votes.filter(|(_, (voted, _))| voted == digest).map(|(voter, _)| *voter).collect();
        let others = self.membership.ids().filter(|peer| !voters.contains(peer));
        let order: Vec<ReplicaId> =
            voters.iter().copied().chain(others).filter(|peer| *peer != id).collect();
        let start = asked % order.len().max(1);
        let mut turns = order[start..].iter().chain(&order[..start]);
        turns
            .find(|peer| {
                let busy = self.fetching.peers.get(*peer).and_then(|peer| peer.busy_since_ms);
                busy.is_none_or(|since| self.now_ms >= since + FETCH_MS)
            })
            .copied()
    }

    pub(super) fn on_fetch_batch(&mut self, from: ReplicaId, sequence: Sequence, digest: Digest) {
        let body = self.log.get(&sequence).and_then(|it| it.body(&digest)).map(Arc::clone);
        if let Some(batch) = body {
            if self.fetching.may_serve(from, batch.bytes().len()) {
                self.send_after(To::One(from), Message::Body { sequence, batch }, 0);
            }
        } else if sequence <= self.executed && sequence.0 > 0 {
            self.fetching.peers.entry(from).or_default().owed = Some(sequence.minus(1));
        }
    }

    pub(super) fn on_body(&mut self, from: ReplicaId, sequence: Sequence, batch: Arc<Batch>) {
        self.fetching.peers.entry(from).or_default().busy_since_ms = None;
        let wanted = self.log.get_mut(&sequence).filter(|it| it.wanted == Some(batch.digest()));
        let Some(instance) = wanted else { return self.reject(from, Reject::Known) };
        instance.kept = instance.wanted.take();
        instance.keep(batch);
        self.fetching.wants.remove(&sequence);
        self.advance(sequence);
        self.deliver();
        self.try_new_view();
        self.fetch_bodies();
    }

    // ---- decided batches -------------------------------------------------------------------

    pub(super) fn on_fetch_decided(&mut self, from: ReplicaId, after: Sequence) {
        if after < self.executed {
            self.fetching.peers.entry(from).or_default().owed = Some(after);
        }
    }

    fn supply(&mut self) {
        let now = self.now_ms;
        for (id, peer) in &mut self.fetching.peers {
            let due = peer.supplied_ms.is_none_or(|last| now >= last + SUPPLY_MS);
            if due && let Some(after) = peer.owed.take() {
                peer.supplied_ms = Some(now);
                self.out.push(Effect::Supply { to: *id, after });
            }
        }
    }

    /// Asks one peer for decided batches while a peer says that it has more.
    fn fetch_decided(&mut self) {
        if self.checkpoints.installing() || self.rolled_back_already() {
            return;
        }
        if let Some(fetch) = &self.fetching.decided {
            if self.now_ms < fetch.heard_ms + FETCH_MS {
                return;
            }
            // Nothing, or no more: its promise counts again when it repeats it.
            let from = fetch.from;
            self.fetching.decided = None;
            if let Some(peer) = self.fetching.peers.get_mut(&from) {
                peer.report = None;
            }
        }
        let here = self.decided_here();
        let idle = self.now_ms.saturating_sub(self.checkpoints.delivered_ms) >= STALLED_MS;
        let promises = |report: &Report| {
            report.epoch >= self.epoch()
                && report.executed > here
                && (idle || report.executed > here.plus(BODIES_AHEAD))
        };
        let peers: Vec<ReplicaId> = self
            .fetching
            .peers
            .iter()
            .filter(|(_, peer)| peer.report.as_ref().is_some_and(promises))
            .map(|(id, _)| *id)
            .collect();
        if peers.is_empty() {
            return;
        }
        self.fetching.turn = self.fetching.turn.wrapping_add(1);
        let from = peers[self.fetching.turn % peers.len()];
        self.ask_decided(from, here);
    }

    fn ask_decided(&mut self, from: ReplicaId, after: Sequence) {
        self.fetching.decided = Some(DecidedFetch { from, after, heard_ms: self.now_ms });
        self.send_after(To::One(from), Message::FetchDecided { after }, 0);
    }

    pub(super) fn on_decided(&mut self, from: ReplicaId, message: &Decided) {
        let Decided { certificate, batch } = message;
        let Statement { epoch, sequence, digest, .. } = certificate.statement;
        if sequence <= self.delivered {
            return self.reject(from, Reject::Known);
        }
        if epoch == self.epoch() && self.epoch_last().is_some_and(|last| sequence > last) {
            return self.reject(from, Reject::Window);
        }
        if let Some(reason) = self.rollback_in_commits(certificate) {
            return self.rolled_back(reason);
        }
        let in_window = epoch == self.epoch()
            && super::decode::in_window(sequence, self.low, self.limits.window);
        if in_window && sequence <= self.agreed.plus(BODIES_AHEAD) {
            let instance = self.log.entry(sequence).or_default();
            match instance.decision() {
                Some(known) if known != digest => {
                    return self.halt(format!("two batches decided at sequence {sequence}"));
                }
                Some(_) => instance.keep(Arc::clone(batch)),
                None => {
                    instance.decided = Some(Arc::new(certificate.clone()));
                    instance.keep(Arc::clone(batch));
                }
            }
            instance.wanted = None;
            self.raise_agreed();
        } else if !self.fetching.keep_decided(self.delivered, sequence, certificate, batch) {
            return self.reject(from, Reject::Known);
        }
        self.heard_decided(from, sequence);
        self.deliver();
        self.propose();
    }

    /// The run goes on; after its last batch the next run is asked for at once.
    fn heard_decided(&mut self, from: ReplicaId, sequence: Sequence) {
        let now = self.now_ms;
        let Some(fetch) = self.fetching.decided.as_mut().filter(|it| it.from == from) else {
            return;
        };
        fetch.heard_ms = now;
        let promised = self.fetching.peers.get(&from).and_then(|peer| peer.report.as_ref());
        let promised = promised.map_or(Sequence(0), |report| report.executed);
        if sequence >= promised {
            self.fetching.decided = None;
        } else if sequence >= fetch.after.plus(RUN_MAX) {
            let here = self.decided_here();
            self.ask_decided(from, here);
        }
    }

    pub(super) fn take_backlog(&mut self, sequence: Sequence) -> Option<Committed> {
        let committed = self.fetching.backlog.remove(&sequence)?;
        self.fetching.backlog_bytes -= committed.batch.bytes().len();
        Some(committed)
    }

    /// A COMMIT of this replica in a certificate, which its journal does not account for.
    fn rollback_in_commits(&self, certificate: &CommitCertificate) -> Option<String> {
        let id = self.id();
        let own = certificate.commits.iter().any(|(signer, _)| *signer == id);
        (own && self.lacks_commit(&certificate.statement)).then(|| {
            format!("a certificate holds our COMMIT of {}, our journal not", certificate.statement)
        })
    }
}
