//! OSDI'99 §4.6 in our own way: STATUS, and what laggards are sent.
//!
//! Every replica says each second how far it is. Who is ahead sends what is missing: the end of an
//! epoch, a stable checkpoint, the NEW-VIEW, its own votes. What is large is asked for, see
//! [`super::fetching`].

use super::certificate::{CommitCertificate, Statement};
use super::fetching::DecidedFetch;
use super::message::{Message, PrePrepare, Report};
use super::{BODIES_AHEAD, Pbft};
use crate::engine::{Committed, Reject, To};
use crate::message::Batch;
use crate::types::{Epoch, ReplicaId, Sequence};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::{mark, mistake};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// STATUS goes out this often, and four times as often while nothing moves. Milliseconds.
const STATUS_MS: u64 = 1_000;
/// Without progress for so long a replica takes itself for stalled. Milliseconds.
pub(super) const STALLED_MS: u64 = 250;
/// Decided batches kept ahead of the last one handed over.
const BACKLOG_MAX: u64 = 128;
/// And their bytes.
const BACKLOG_BYTES_MAX: usize = 16 << 20;
/// Messages of later views kept per peer, and their bytes.
const FUTURE_MAX: usize = 256;
const FUTURE_BYTES_MAX: usize = 8 << 20;
/// What a buffered vote counts for.
const VOTE_BYTES: usize = 128;
/// What one peer is served per second, bytes; bursts hold as much.
const SERVED_PER_SECOND: usize = 32 << 20;

#[derive(Default)]
pub(super) struct Peer {
    pub(super) report: Option<Report>,
    reported_ms: Option<u64>,
    /// A fetch of one body is under way with this peer since then.
    pub(super) busy_since_ms: Option<u64>,
    /// Messages of later views.
    future: VecDeque<Message>,
    future_bytes: usize,
    /// Bytes it was served lately; a second's worth is forgotten each second.
    served: usize,
    /// It asked for decided batches above this.
    pub(super) owed: Option<Sequence>,
    pub(super) supplied_ms: Option<u64>,
    /// Which epoch's end it was sent, when.
    sent_end: Option<(Epoch, u64)>,
    sent_report_ms: Option<u64>,
}

#[derive(Default)]
pub(super) struct Fetching {
    pub(super) peers: BTreeMap<ReplicaId, Peer>,
    /// Slots whose `wanted` batch is missing, with how often it was asked for.
    pub(super) wants: BTreeMap<Sequence, usize>,
    /// Decided batches above the last one handed over that the log does not hold.
    pub(super) backlog: BTreeMap<Sequence, Committed>,
    pub(super) backlog_bytes: usize,
    pub(super) decided: Option<DecidedFetch>,
    pub(super) turn: usize,
    reported_ms: Option<u64>,
}

impl Fetching {
    /// Takes from what a peer may be served.
    pub(super) fn may_serve(&mut self, peer: ReplicaId, bytes: usize) -> bool {
        let served = &mut self.peers.entry(peer).or_default().served;
        if *served + bytes > SERVED_PER_SECOND {
            mark!("a peer is served no faster than it may be");
            return false;
        }
        *served += bytes;
        true
    }

    /// Whether this peer has said how far it is within the last times that it should have.
    pub(super) fn hears(&self, peer: ReplicaId, now_ms: u64) -> bool {
        let reported = self.peers.get(&peer).and_then(|peer| peer.reported_ms);
        reported.is_some_and(|last| now_ms < last + 3 * STATUS_MS)
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
            mark!("what was decided above the end of an epoch is void");
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
            mark!("the buffer of later views is full");
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
                mark!("a message of a later view was kept for it");
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
    pub(super) fn decided_here(&self) -> Sequence {
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
        if lately || mistake!("laggards-not-helped") {
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
        if !behind || mistake!("laggards-get-no-new-view") {
            return;
        }
        if self.active {
            if let Some(new_view) = self.changes.new_view.clone() {
                mark!("a laggard is sent the NEW-VIEW");
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
                messages.push(Message::PrePrepare(PrePrepare::new(proposal, batch)));
            }
            messages.extend(instance.prepares.get(&id).map(vote).map(Message::Prepare));
            messages.extend(instance.commits.get(&id).map(vote).map(Message::Commit));
        }
        if self.fetching.may_serve(to, bytes) {
            mark!("votes are sent again to one who is stuck");
            for message in messages {
                self.send(To::One(to), message);
            }
        }
    }
}
