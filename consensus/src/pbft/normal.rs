//! OSDI'99 §4.2, the normal case: batches, PRE-PREPARE, PREPARE, COMMIT, delivery in order.
//!
//! There is no batch timer: a batch leaves when one of the few slots in flight is free, so that
//! batches grow with the load. A vote at n needs a durable reservation that reaches n; COMMIT also
//! needs the batch and its prepared certificate durable, which is the one sync of a request.

use super::certificate::{CommitCertificate, PreparedCertificate, Statement, prepares_needed};
use super::evidence::two_votes;
use super::message::{Message, PrePrepare, Vote};
use super::vouching::Check;
use super::{
    BODIES_AHEAD, BODIES_BEHIND, Pbft, RESERVE_AHEAD, UNEXECUTED_MAX, log, null_batch, record,
};
use crate::engine::{Committed, Effect, Reject, To};
use crate::message::{Batch, SignedRequest, kind};
use crate::requests::{Offered, Origin};
use crate::types::{ReplicaId, Sequence};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::{mark, mistake};
use std::sync::Arc;

/// Bytes of requests in one FORWARD.
const FORWARD_BYTES_MAX: usize = 4 << 20;

impl Pbft {
    /// Clients of this replica ask. A backup forwards at once, so that the primary's word is not
    /// needed to know that it was told.
    pub(super) fn on_requests(&mut self, requests: Vec<Arc<SignedRequest>>) {
        let clock = self.request_clock();
        let now = self.now_ms;
        let forwards = self.active && !self.is_primary();
        let mut forwarded = Vec::new();
        for request in requests {
            match self.queue.offer(Arc::clone(&request), Origin::Direct, clock) {
                Offered::New if forwards => {
                    self.queue.forwarded(&request.key(), now);
                    forwarded.push(request);
                }
                Offered::Known if forwards && self.queue.forward_again(&request.key(), now) => {
                    forwarded.push(request);
                }
                Offered::New | Offered::Known | Offered::Full => {}
            }
        }
        self.forward(forwarded);
        self.propose();
    }

    /// Sends requests to the primary in frames of bounded size.
    pub(super) fn forward(&mut self, requests: Vec<Arc<SignedRequest>>) {
        let to = To::One(self.primary());
        let mut frame = Vec::new();
        let mut bytes = 0;
        for request in requests {
            let size = request.wire_bytes();
            let full =
                frame.len() >= super::decode::FORWARD_ITEMS_MAX || bytes + size > FORWARD_BYTES_MAX;
            if full && !frame.is_empty() {
                self.send_after(to, Message::Forward(std::mem::take(&mut frame)), 0);
                bytes = 0;
            }
            bytes += size;
            frame.push(request);
        }
        if !frame.is_empty() {
            self.send_after(to, Message::Forward(frame), 0);
        }
    }

    pub(super) fn on_forward(&mut self, from: ReplicaId, requests: Vec<Arc<SignedRequest>>) {
        if !self.is_primary() {
            return self.reject(from, Reject::View);
        }
        let clock = self.request_clock();
        let mut full = false;
        for request in requests {
            full |= self.queue.offer(request, Origin::Forwarded(from), clock) == Offered::Full;
        }
        if full {
            self.reject(from, Reject::Cap("forwarded requests"));
        }
        self.propose();
    }

    /// The primary fills the free slots (OSDI'99 §4.2, with batching as in the thesis).
    pub(super) fn propose(&mut self) {
        while self.may_propose() {
            let Some(batch) = self.next_batch() else { break };
            let sequence = self.next;
            self.next = self.next.next();
            let reserved = self.reserve(sequence);
            let statement = self.statement(sequence, batch.digest());
            let vote = self.signer.vote(kind::PRE_PREPARE, statement);
            let message = PrePrepare::new(vote, Arc::clone(&batch));
            self.send_after(To::Others, Message::PrePrepare(message), reserved);
            let instance = self.log.entry(sequence).or_default();
            instance.proposal = Some(vote);
            instance.keep(batch);
            self.advance(sequence);
        }
    }

    fn may_propose(&self) -> bool {
        let last = self.next.minus(1);
        let abstains =
            self.signer.found_through(self.view).is_some_and(|through| self.next <= through);
        self.is_primary()
            && self.active
            && self.can_vote_at(self.next)
            && !abstains
            && self.gate.is_none()
            && !self.change_in_flight()
            && self.next <= self.high()
            && last.0.saturating_sub(self.agreed.0) < self.limits.in_flight_max
            && self.agreed.0.saturating_sub(self.executed.max(self.low).0) < UNEXECUTED_MAX
    }

    /// A change ends the epoch or does not; until that is known nothing is proposed above it.
    fn change_in_flight(&self) -> bool {
        self.log
            .range(self.delivered.next()..)
            .any(|(_, it)| it.proposed_body().is_some_and(|batch| batch.change.is_some()))
    }

    fn next_batch(&mut self) -> Option<Arc<Batch>> {
        if let Some(change) = self.pending_change() {
            return Some(Arc::new(Batch::new(self.wall, true, Some(change), Vec::new())));
        }
        let items = self.limits.batch_requests_max as usize;
        let bytes = self.limits.batch_bytes_max as usize;
        self.queue.lift_shares(self.checkpoints.stands_still() || self.delivered < self.agreed);
        if self.queue.proposable() > 0 && self.worth_a_slot() {
            let requests = self.queue.take(items, bytes);
            if !requests.is_empty() {
                return Some(Arc::new(Batch::new(self.wall, false, None, requests)));
            }
        }
        if !self.idle_mark_due() {
            return None;
        }
        self.checkpoints.marked_ms = self.now_ms;
        Some(Arc::new(Batch::new(self.wall, true, None, Vec::new())))
    }

    /// Beside others on their way a batch leaves when it is full or holds as many requests as they
    /// do together; else it waits and grows. A batch costs some twenty signatures and a checkpoint's
    /// share whatever its size, and under load many small ones crowd out the requests. What is
    /// decided and not yet executed is on its way too: a ledger that falls behind is given fewer and
    /// larger blocks. With nothing on its way all leave, so that a request waits at most for what
    /// was proposed before it.
    fn worth_a_slot(&self) -> bool {
        let settled = if self.checkpoints.stands_still() { self.agreed } else { self.executed };
        let on_their_way = self.log.range(settled.min(self.agreed).next()..self.next);
        let requests: usize = on_their_way
            .filter_map(|(_, instance)| instance.proposed_body())
            .map(|batch| batch.requests.len())
            .sum();
        self.queue.proposable() >= requests.min(self.limits.batch_requests_max as usize)
    }

    fn statement(&self, sequence: Sequence, digest: Digest) -> Statement {
        Statement { epoch: self.epoch(), view: self.view, sequence, digest }
    }

    /// After which Persist a vote at this sequence is covered; reserves it if it is not.
    pub(super) fn reserve(&mut self, sequence: Sequence) -> u64 {
        let covering = self.reserved.iter().find(|(through, _)| *through >= sequence);
        if let Some((_, persists)) = covering {
            return *persists;
        }
        self.renew_reservation(sequence);
        if mistake!("vote-before-reservation") { 0 } else { self.persists }
    }

    /// Reserves up to 16 above this sequence; a reservation never shrinks within a view.
    fn renew_reservation(&mut self, sequence: Sequence) {
        let through = sequence.plus(RESERVE_AHEAD);
        if self.reserved.back().is_some_and(|(reserved, _)| *reserved >= through) {
            return;
        }
        mark!("a reservation is renewed");
        let reserved = record::Reserved { epoch: self.epoch(), view: self.view, through };
        self.persist(record::RESERVED, wire::encode(&reserved));
        self.reserved.push_back((through, self.persists));
        // Shorter reservations serve only votes that may still be cast.
        while self.reserved.len() > 1
            && self.reserved.front().is_some_and(|(reserved, _)| *reserved <= self.agreed)
        {
            self.reserved.pop_front();
        }
    }

    /// Whether this replica votes at this sequence at all: inside the window and the epoch.
    pub(super) fn can_vote_at(&self, sequence: Sequence) -> bool {
        self.can_sign()
            && super::decode::in_window(sequence, self.low, self.limits.window)
            && self.vote_bound().is_none_or(|last| sequence <= last)
    }

    /// The last sequence at which votes of this epoch count.
    fn vote_bound(&self) -> Option<Sequence> {
        if mistake!("epoch-end-ignored") { None } else { self.epoch_last() }
    }

    /// What a message of this view and slot may do now; `None` when it was refused or buffered.
    fn admit(&mut self, from: ReplicaId, statement: &Statement) -> bool {
        let refused = if statement.epoch != self.epoch() {
            Some(if statement.epoch < self.epoch() {
                Reject::EpochPast(statement.epoch)
            } else {
                Reject::EpochFuture(statement.epoch)
            })
        } else if statement.view != self.view && !mistake!("votes-of-other-views-counted")
            || !self.active
        {
            Some(Reject::View)
        } else if !super::decode::in_window(statement.sequence, self.low, self.limits.window)
            || self.vote_bound().is_some_and(|last| statement.sequence > last)
        {
            Some(Reject::Window)
        } else {
            None
        };
        match refused {
            Some(reason) => {
                mark!("a vote outside of epoch, view or window is refused");
                self.reject(from, reason);
                false
            }
            None => true,
        }
    }

    /// OSDI'99 §4.2: a backup accepts one PRE-PREPARE per view and sequence, in the window.
    pub(super) fn on_pre_prepare(&mut self, from: ReplicaId, message: PrePrepare) {
        let statement = message.vote.statement;
        if self.later_view(&statement) {
            return self.buffer(from, Message::PrePrepare(message));
        }
        let PrePrepare { vote, batch, unchecked } = message;
        if !self.admit(from, &statement) {
            return;
        }
        if from != self.primary() {
            return self.reject(from, Reject::Sender);
        }
        let sequence = statement.sequence;
        if sequence > self.agreed.plus(BODIES_AHEAD) {
            return self.reject(from, Reject::Cap("bodies"));
        }
        let known = self.log.get(&sequence).and_then(|instance| instance.proposal);
        match known {
            Some(known) if known.statement.digest != statement.digest => {
                self.suspicion.faulty = true;
                return self.equivocated(from, kind::PRE_PREPARE, &known, &vote);
            }
            // A body that was missing; its time was judged when the statement was accepted.
            Some(_) => {}
            None => {
                // Safety never depends on clocks; this keeps a primary from running time ahead.
                let apart = self.wall.0.abs_diff(batch.timestamp.0);
                if apart > self.limits.clock_window_ms {
                    return self.reject(from, Reject::Protocol("a timestamp far from our clock"));
                }
                let check = self.check_of(unchecked);
                let instance = self.log.entry(sequence).or_default();
                instance.proposal = Some(vote);
                instance.check = check;
                self.sample_delays(&batch);
                self.show_proposal_to_all(sequence);
            }
        }
        self.log.entry(sequence).or_default().keep(batch);
        self.advance(sequence);
    }

    pub(super) fn on_prepare(&mut self, from: ReplicaId, vote: Vote) {
        if self.later_view(&vote.statement) {
            return self.buffer(from, Message::Prepare(vote));
        }
        if !self.admit(from, &vote.statement) {
            return;
        }
        if from == self.primary() {
            return self.reject(from, Reject::Sender);
        }
        let Statement { sequence, digest, .. } = vote.statement;
        let votes = &mut self.log.entry(sequence).or_default().prepares;
        if let Some((known, signature)) = votes.get(&from).copied() {
            return self.voted_again(from, kind::PREPARE, known, signature, &vote);
        }
        votes.insert(from, (digest, vote.signature));
        self.show_proposal(sequence, from);
        self.advance(sequence);
    }

    pub(super) fn on_commit(&mut self, from: ReplicaId, vote: Vote) {
        if self.later_view(&vote.statement) {
            return self.buffer(from, Message::Commit(vote));
        }
        if !self.admit(from, &vote.statement) {
            return;
        }
        let Statement { sequence, digest, .. } = vote.statement;
        let votes = &mut self.log.entry(sequence).or_default().commits;
        if let Some((known, signature)) = votes.get(&from).copied() {
            return self.voted_again(from, kind::COMMIT, known, signature, &vote);
        }
        votes.insert(from, (digest, vote.signature));
        self.advance(sequence);
    }

    fn voted_again(
        &mut self,
        from: ReplicaId,
        kind: u8,
        known: Digest,
        signature: conclave_crypto::signature::Signature,
        vote: &Vote,
    ) {
        if known == vote.statement.digest {
            return self.reject(from, Reject::Known);
        }
        let statement = Statement { digest: known, ..vote.statement };
        self.equivocated(from, kind, &Vote { statement, signature }, vote);
    }

    /// Two digests for one (epoch, view, sequence, type): no correct replica signs such a pair.
    pub(super) fn equivocated(
        &mut self,
        culprit: ReplicaId,
        kind: u8,
        first: &Vote,
        second: &Vote,
    ) {
        mark!("two votes for one slot");
        if kind == kind::PRE_PREPARE {
            self.accuse_leader(culprit, first, second);
        } else {
            self.accuse(two_votes(culprit, kind, first, second));
        }
        self.reject(culprit, Reject::Protocol("two votes for one slot"));
    }

    /// Takes a slot as far as what is known of it allows.
    pub(super) fn advance(&mut self, sequence: Sequence) {
        self.send_prepare(sequence);
        self.make_prepared(sequence);
        self.decide(sequence);
        self.want_body(sequence);
    }

    /// OSDI'99 §4.2: a backup that accepted the PRE-PREPARE multicasts PREPARE.
    fn send_prepare(&mut self, sequence: Sequence) {
        let id = self.id();
        if self.is_primary() || !self.active || !self.can_vote_at(sequence) {
            return;
        }
        let Some(instance) = self.log.get(&sequence) else { return };
        let Some(digest) = instance.proposed() else { return };
        if instance.prepares.contains_key(&id)
            || !instance.holds(&digest)
            || !self.vouched(instance, &digest)
            || !self.signer.unreserved(self.view, sequence, &digest)
        {
            return;
        }
        let reserved = self.reserve(sequence);
        let statement = self.statement(sequence, digest);
        let vote = self.signer.vote(kind::PREPARE, statement);
        self.send_after(To::Others, Message::Prepare(vote), reserved);
        if let Some(instance) = self.log.get_mut(&sequence) {
            instance.prepares.insert(id, (digest, vote.signature));
        }
    }

    /// OSDI'99 §4.2, "prepared": the PRE-PREPARE and 2f PREPAREs of others. The certificate and its
    /// batch are durable before COMMIT, and the reservation is renewed in the same write.
    fn make_prepared(&mut self, sequence: Sequence) {
        let view = self.view;
        if !self.active || !self.can_vote_at(sequence) {
            return;
        }
        let needed = prepares_needed(&self.membership);
        let Some(instance) = self.log.get(&sequence) else { return };
        let Some(proposal) = instance.proposal else { return };
        let digest = proposal.statement.digest;
        let stored = instance.body(&digest).is_some() || instance.journaled == Some(digest);
        if instance.check == Check::Failed
            || instance.prepared_in(view)
            || log::count(&instance.prepares, &digest) < needed
            || !stored
        {
            return;
        }
        let certificate = PreparedCertificate {
            statement: proposal.statement,
            pre_prepare: proposal.signature,
            prepares: log::signatures(&instance.prepares, &digest, needed),
        };
        let body = (instance.journaled != Some(digest))
            .then(|| instance.body(&digest).map(Arc::clone))
            .flatten();
        self.renew_reservation(sequence);
        if let Some(body) = body {
            self.persist(record::body(sequence), body.bytes().to_vec());
        }
        if !mistake!("certificate-not-journaled") {
            self.persist(record::prepared(sequence), wire::encode(&certificate));
        }
        if let Some(instance) = self.log.get_mut(&sequence) {
            instance.journaled = Some(digest);
            instance.prepared = Some(certificate);
        }
        self.send_commit(sequence);
    }

    /// COMMIT on the current view's certificate, which is durable or ahead of it in the order.
    pub(super) fn send_commit(&mut self, sequence: Sequence) {
        if !self.active || !self.can_vote_at(sequence) {
            return;
        }
        let view = self.view;
        let Some(instance) = self.log.get(&sequence) else { return };
        let certificate = instance.prepared.as_ref();
        let Some(certificate) = certificate.filter(|it| it.statement.view == view) else { return };
        let vote = self.signer.vote(kind::COMMIT, certificate.statement);
        if mistake!("commit-before-certificate-durable") {
            self.send_after(To::Others, Message::Commit(vote), 0);
        } else {
            self.send(To::Others, Message::Commit(vote));
        }
        let id = self.id();
        if let Some(instance) = self.log.get_mut(&sequence) {
            // It may be counted at once: what follows cannot overtake the certificate's write.
            instance.commits.insert(id, (vote.statement.digest, vote.signature));
        }
    }

    /// OSDI'99 §4.2, "committed-local": a quorum of COMMITs of one view.
    fn decide(&mut self, sequence: Sequence) {
        let quorum = self.quorum().quorum() - usize::from(mistake!("commit-quorum-too-small"));
        let Some(instance) = self.log.get(&sequence) else { return };
        if instance.decided.is_some() || instance.commits.len() < quorum {
            return;
        }
        let Some(digest) = log::named_by(&instance.commits, quorum) else { return };
        let certificate = CommitCertificate {
            statement: self.statement(sequence, digest),
            commits: log::signatures(&instance.commits, &digest, quorum),
        };
        self.on_certified(sequence, certificate);
    }

    /// A slot of the window is decided, by our own counting or by a certificate.
    pub(super) fn on_certified(&mut self, sequence: Sequence, certificate: CommitCertificate) {
        let digest = certificate.statement.digest;
        let instance = self.log.entry(sequence).or_default();
        instance.decided = Some(Arc::new(certificate));
        if instance.body(&digest).is_none() && digest == null_batch().digest() {
            instance.keep(null_batch());
        }
        self.raise_agreed();
        self.deliver();
        self.propose();
    }

    /// Moves the end of what is decided without gaps.
    pub(super) fn raise_agreed(&mut self) {
        self.agreed = self.agreed.max(self.delivered);
        while self.log.get(&self.agreed.next()).is_some_and(|next| next.decided.is_some()) {
            self.agreed = self.agreed.next();
        }
        self.next = self.next.max(self.agreed.next());
    }

    /// Hands decided batches over, in order, each once, as far as the ledger keeps up. What
    /// was decided above the epoch's last block is void: its primary did not wait for execution.
    pub(super) fn deliver(&mut self) {
        while self.gate.is_none()
            && self.vote_bound().is_none_or(|last| self.delivered < last)
            && !self.checkpoints.diverged()
            && self.delivered.0.saturating_sub(self.executed.0) < UNEXECUTED_MAX
        {
            let sequence = self.delivered.next();
            let Some(committed) = self.decided_with_body(sequence) else { break };
            self.delivered = sequence;
            let clock = self.request_clock();
            for request in &committed.batch.requests {
                if let Some(waited) = self.queue.decided(request, clock) {
                    self.on_request_decided(waited);
                }
            }
            self.queue.look();
            self.checkpoints.delivered_ms = self.now_ms;
            self.change_delivered(&committed);
            let mark = committed.certificate.clone();
            let journaled = self
                .log
                .get(&sequence)
                .is_some_and(|it| it.journaled == Some(committed.batch.digest()));
            self.out.push(Effect::Commit(committed));
            if journaled {
                self.persist_lazily(record::mark(sequence), mark);
            }
            if let Some(behind) = self.log.get_mut(&sequence.minus(BODIES_BEHIND)) {
                behind.drop_bodies();
            }
        }
        self.raise_agreed();
    }

    fn decided_with_body(&mut self, sequence: Sequence) -> Option<Committed> {
        if let Some(instance) = self.log.get(&sequence)
            && let Some(certificate) = &instance.decided
            && let Some(batch) = instance.body(&certificate.statement.digest)
        {
            return Some(Committed {
                sequence,
                epoch: certificate.statement.epoch,
                batch: Arc::clone(batch),
                certificate: wire::encode(certificate.as_ref()),
            });
        }
        self.take_backlog(sequence)
    }

    pub(super) fn on_executed(&mut self, sequence: Sequence) {
        self.executed = self.executed.max(sequence);
        self.deliver();
        self.propose();
    }
}
