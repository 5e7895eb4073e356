//! OSDI'99 §4.4, NEW-VIEW: what the new primary builds, what every backup recomputes.
//!
//! O follows from V alone, by [`proposals_of`]; a backup accepts a NEW-VIEW only when its own
//! computation yields the same. V travels as names: a backup that lacks one of its VIEW-CHANGEs
//! asks whoever sent the NEW-VIEW.

use super::Pbft;
use super::certificate::{PreparedCertificate, Statement};
use super::evidence::{two_values, two_votes, unfounded_new_view};
use super::message::{Message, NewView, Sealed, ViewChange, Vote};
use super::{RESERVE_AHEAD, null_batch, record};
use crate::engine::{Reject, To};
use crate::membership::Membership;
use crate::message::kind;
use crate::types::{ReplicaId, Sequence, View};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::signature::Signature;
use conclave_crypto::{mark, mistake};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A NEW-VIEW whose V is being fetched.
pub(super) struct PendingNewView {
    new_view: Arc<Sealed<NewView>>,
    from: ReplicaId,
    found: BTreeMap<ReplicaId, Arc<Sealed<ViewChange>>>,
    asked_ms: u64,
}

impl PendingNewView {
    pub(super) fn view(&self) -> View {
        self.new_view.value().view
    }

    fn missing(&self) -> Vec<Digest> {
        let changes = self.new_view.value().changes.iter();
        changes.filter(|(id, _)| !self.found.contains_key(id)).map(|(_, name)| *name).collect()
    }
}

/// min-s and, for each sequence up to max-s, the digest that O proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proposals {
    pub(super) start: Sequence,
    pub(super) digests: Vec<(Sequence, Digest)>,
}

/// Two certificates of one view and sequence for different batches: more than f replicas lied.
#[derive(Debug)]
pub(super) struct Conflict(Box<(PreparedCertificate, PreparedCertificate)>);

/// OSDI'99 §4.4: min-s is the latest stable checkpoint in V, max-s the highest sequence in any P;
/// between them the certificate of the highest view wins, and a gap becomes a null batch.
pub(super) fn proposals_of<'a>(
    changes: impl Iterator<Item = &'a ViewChange> + Clone,
) -> Result<Proposals, Conflict> {
    let start = changes.clone().map(|change| change.stable).max().unwrap_or_default();
    let mut best: BTreeMap<Sequence, &PreparedCertificate> = BTreeMap::new();
    let certificates = changes.flat_map(|change| &change.prepared);
    for certificate in certificates.filter(|it| it.statement.sequence > start) {
        let Statement { view, sequence, digest, .. } = certificate.statement;
        let known = best.entry(sequence).or_insert(certificate);
        if known.statement.view == view && known.statement.digest != digest {
            return Err(Conflict(Box::new(((*known).clone(), certificate.clone()))));
        }
        let wins = if mistake!("lower-view-certificate-preferred") {
            view < known.statement.view
        } else {
            known.statement.view < view
        };
        if wins {
            *known = certificate;
        }
    }
    let end = best.last_key_value().map_or(start, |(sequence, _)| *sequence);
    let digest_at = |sequence: Sequence| {
        best.get(&sequence).map_or_else(|| null_batch().digest(), |it| it.statement.digest)
    };
    let all = (start.0..end.0).map(|n| Sequence(n).next());
    let slots = all.filter(|n| best.contains_key(n) || !mistake!("gap-left-open"));
    let digests = slots.map(|n| (n, digest_at(n))).collect();
    Ok(Proposals { start, digests })
}

/// VIEW-CHANGEs in V: a quorum.
pub(super) fn view_changes_needed(membership: &Membership) -> usize {
    membership.quorum().quorum() - usize::from(mistake!("new-view-quorum-too-small"))
}

impl Pbft {
    /// OSDI'99 §4.4: the primary of the view it changes to builds NEW-VIEW, from a V for which it
    /// holds every batch that O names.
    pub(super) fn try_new_view(&mut self) {
        if self.active || !self.leads(self.view) || !self.can_sign() {
            return;
        }
        let Some(own) = self.own_view_change() else { return };
        let quorum = view_changes_needed(&self.membership);
        // The own VIEW-CHANGE first, then the others by sender. Each round drops senders whose
        // certificates name a batch that is missing here, so there are at most n rounds.
        let others = self.changes.newest.values();
        let mut candidates: Vec<Arc<Sealed<ViewChange>>> = others
            .filter(|it| it.value().view == self.view && it.value().replica != self.id())
            .cloned()
            .collect();
        candidates.insert(0, own);
        let mut missing: BTreeSet<(Sequence, Digest)> = BTreeSet::new();
        while candidates.len() >= quorum {
            let chosen = &candidates[..quorum];
            let proposals = match proposals_of(chosen.iter().map(|it| it.value())) {
                Ok(proposals) => proposals,
                Err(conflict) => return self.collusion(conflict),
            };
            let lacks = |(n, digest): &&(Sequence, Digest)| !self.holds(*n, digest);
            let Some((sequence, digest)) = proposals.digests.iter().find(lacks).copied() else {
                let mut chosen = chosen.to_vec();
                chosen.sort_by_key(|it| it.value().replica);
                return self.build_new_view(chosen, &proposals);
            };
            missing.insert((sequence, digest));
            candidates.retain(|it| {
                let names = |certificate: &PreparedCertificate| {
                    certificate.statement.sequence == sequence
                        && certificate.statement.digest == digest
                };
                !it.value().prepared.iter().any(names)
            });
        }
        for (sequence, digest) in missing {
            mark!("NEW-VIEW waits for a batch that O names");
            self.want(sequence, digest);
        }
    }

    /// Whether this replica can propose this batch again: it has it, or has it behind it.
    fn holds(&self, sequence: Sequence, digest: &Digest) -> bool {
        *digest == null_batch().digest()
            || sequence <= self.low
            || sequence <= self.delivered
            || self.log.get(&sequence).is_some_and(|instance| instance.holds(digest))
    }

    fn build_new_view(&mut self, changes: Vec<Arc<Sealed<ViewChange>>>, proposals: &Proposals) {
        mark!("NEW-VIEW built");
        let (epoch, view) = (self.epoch(), self.view);
        let votes: Vec<Vote> = proposals
            .digests
            .iter()
            .map(|(sequence, digest)| {
                let statement = Statement { epoch, view, sequence: *sequence, digest: *digest };
                self.signer.vote(kind::PRE_PREPARE, statement)
            })
            .collect();
        let new_view = NewView {
            epoch,
            view,
            changes: changes.iter().map(|it| (it.value().replica, it.name())).collect(),
            proposals: votes,
        };
        let sealed = Arc::new(Sealed::new(self.signer.sign(new_view)));
        self.enter_view(sealed, changes, proposals);
    }

    pub(super) fn on_new_view(&mut self, from: ReplicaId, message: Arc<Sealed<NewView>>) {
        let value = message.value();
        let view = value.view;
        if value.epoch != self.epoch() {
            return self.reject(from, Reject::EpochPast(value.epoch));
        }
        let leader = super::certificate::primary(&self.membership, view);
        if leader == self.id()
            && let Some(reason) = self.rollback_in_new_view(&message)
        {
            mark!("an own NEW-VIEW proves a rollback");
            return self.rolled_back(reason);
        }
        let pending = self.changes.pending.get(&leader).map(|it| Arc::clone(&it.new_view));
        for known in [pending, self.changes.new_view.clone()].into_iter().flatten() {
            if known.value().view == view && known.name() != message.name() {
                mark!("two NEW-VIEWs for one view");
                self.accuse(two_values(leader, &known.signed, &message.signed));
                return self.reject(from, Reject::Protocol("two NEW-VIEWs for one view"));
            }
        }
        let pending_view = self.changes.pending.get(&leader).map_or(View(0), PendingNewView::view);
        if view < self.view || (view == self.view && self.active) || view < pending_view {
            return self.reject(from, Reject::Known);
        }
        // The same again: whoever sent it last is asked for what is missing.
        let known = |name: &Digest| self.changes.named(name).map(Arc::clone);
        let mut found: BTreeMap<_, _> =
            value.changes.iter().filter_map(|(id, name)| known(name).map(|it| (*id, it))).collect();
        if let Some(before) = self.changes.pending.remove(&leader)
            && before.view() == view
        {
            found.extend(before.found);
        }
        let asked_ms = self.now_ms;
        let pending = PendingNewView { new_view: message, from, found, asked_ms };
        self.changes.pending.insert(leader, pending);
        self.fetch_view_changes(leader);
        self.accept_new_view(leader);
    }

    fn fetch_view_changes(&mut self, leader: ReplicaId) {
        let Some(pending) = self.changes.pending.get(&leader) else { return };
        let (to, missing) = (To::One(pending.from), pending.missing());
        for name in missing {
            mark!("a VIEW-CHANGE that NEW-VIEW names is fetched");
            self.send_after(to, Message::FetchViewChange { name }, 0);
        }
    }

    /// Asks again for what a NEW-VIEW names.
    pub(super) fn tick_new_view(&mut self) {
        let (now, pause) = (self.now_ms, self.base_timeout_ms() / 4);
        let pending = self.changes.pending.iter_mut();
        let due = pending.filter(|(_, pending)| now >= pending.asked_ms + pause);
        let leaders: Vec<ReplicaId> = due
            .map(|(leader, pending)| {
                pending.asked_ms = now;
                *leader
            })
            .collect();
        for leader in leaders {
            self.fetch_view_changes(leader);
        }
    }

    pub(super) fn on_fetch_view_change(&mut self, from: ReplicaId, name: Digest) {
        if let Some(change) = self.changes.named(&name).map(Arc::clone)
            && self.fetching.may_serve(from, VIEW_CHANGE_COST)
        {
            // It may be our own, which waits for its record.
            self.send(To::One(from), Message::ViewChange(change));
        }
    }

    /// Gives a VIEW-CHANGE to the pending NEW-VIEWs that name it.
    pub(super) fn complete_new_view(&mut self, message: &Arc<Sealed<ViewChange>>) {
        let sender = message.value().replica;
        let mut completed = Vec::new();
        for (leader, pending) in &mut self.changes.pending {
            let mut named = pending.new_view.value().changes.iter();
            if named.any(|(id, name)| *id == sender && *name == message.name()) {
                pending.found.insert(sender, Arc::clone(message));
                completed.push(*leader);
            }
        }
        for leader in completed {
            self.accept_new_view(leader);
        }
    }

    /// OSDI'99 §4.4: a backup recomputes O from V and enters the view when it is the same.
    fn accept_new_view(&mut self, leader: ReplicaId) {
        let complete = |pending: &PendingNewView| pending.missing().is_empty();
        if !self.changes.pending.get(&leader).is_some_and(complete) {
            return;
        }
        let Some(pending) = self.changes.pending.remove(&leader) else { return };
        let PendingNewView { new_view, from, found, .. } = pending;
        let value = new_view.value();
        if value.view < self.view || (value.view == self.view && self.active) {
            return;
        }
        let fits =
            found.iter().all(|(id, it)| it.value().replica == *id && it.value().view == value.view);
        if !fits {
            mark!("V of NEW-VIEW is of another view");
            self.accuse(unfounded_new_view(leader, &new_view, found.values()));
            return self.reject(from, Reject::Protocol("V of NEW-VIEW is not of its view"));
        }
        let proposals = match proposals_of(found.values().map(|it| it.value())) {
            Ok(proposals) => proposals,
            Err(conflict) => return self.collusion(conflict),
        };
        let claimed =
            value.proposals.iter().map(|vote| (vote.statement.sequence, vote.statement.digest));
        if !claimed.eq(proposals.digests.iter().copied()) && !mistake!("o-not-recomputed") {
            mark!("O of NEW-VIEW does not follow from V");
            self.accuse(unfounded_new_view(leader, &new_view, found.values()));
            return self.reject(from, Reject::Protocol("O of NEW-VIEW does not follow from V"));
        }
        let changes: Vec<_> = found.into_values().collect();
        for certificate in changes.iter().filter_map(|it| it.value().certificate.clone()) {
            self.adopt_stable(Arc::new(certificate));
        }
        if value.epoch != self.epoch() {
            // One of these checkpoints was the epoch's last.
            return;
        }
        if value.view > self.view {
            self.leave_view(value.view);
            mark!("a view is entered without an own VIEW-CHANGE");
        }
        self.enter_view(new_view, changes, &proposals);
    }

    /// The view starts: NEW-VIEW, V and a reservation are durable before any vote in it.
    fn enter_view(
        &mut self,
        new_view: Arc<Sealed<NewView>>,
        changes: Vec<Arc<Sealed<ViewChange>>>,
        proposals: &Proposals,
    ) {
        let value = new_view.value();
        assert!(value.view == self.view && !self.active, "a view is entered once");
        let last = proposals.digests.last().map_or(proposals.start, |(sequence, _)| *sequence);
        let stored =
            record::StoredNewView { new_view: Arc::clone(&new_view), changes: changes.clone() };
        if mistake!("new-view-not-durable") {
            self.persist_lazily(record::NEW_VIEW, wire::encode(&stored));
        } else {
            self.persist(record::NEW_VIEW, wire::encode(&stored));
        }
        let through = last.max(self.low).plus(RESERVE_AHEAD);
        let reserved = record::Reserved { epoch: self.epoch(), view: self.view, through };
        if mistake!("new-view-not-durable") {
            self.persist_lazily(record::RESERVED, wire::encode(&reserved));
        } else {
            self.persist(record::RESERVED, wire::encode(&reserved));
        }
        self.reserved.push_back((through, self.persists));
        self.active = true;
        self.next = last.max(self.low).max(self.delivered).next();
        self.changes.target = last;
        if self.leads(value.view) {
            self.send(To::Others, Message::NewView(Arc::clone(&new_view)));
        }
        if mistake!("executed-batch-executed-again") {
            self.delivered = self.delivered.min(proposals.start);
        }
        let open = self.adopt_proposals(&value.proposals);
        self.changes.new_view = Some(new_view);
        self.changes.kept = changes;
        let view = self.view;
        self.changes.pending.retain(|_, pending| pending.view() > view);
        if self.agreed >= last {
            self.changes.deadline_ms = None;
        } else if self.changes.deadline_ms.is_none() && !mistake!("view-timer-never-runs") {
            self.changes.deadline_ms = Some(self.now_ms + self.suspicion.timeout_ms);
        }
        self.restart_requests();
        for sequence in open {
            self.advance(sequence);
        }
        self.replay_buffered();
        self.report();
        self.propose();
    }

    /// O becomes the accepted PRE-PREPAREs of this view.
    pub(super) fn adopt_proposals(&mut self, votes: &[Vote]) -> Vec<Sequence> {
        let null = null_batch();
        let mut open = Vec::new();
        for vote in votes {
            let Statement { sequence, digest, .. } = vote.statement;
            if !super::decode::in_window(sequence, self.low, self.limits.window) {
                continue;
            }
            let instance = self.log.entry(sequence).or_default();
            instance.proposal = Some(*vote);
            if digest == null.digest() {
                mark!("a gap is filled with a null batch");
                instance.keep(Arc::clone(&null));
            }
            open.push(sequence);
        }
        open
    }

    /// Nothing but O is proposed in a new view; a backup tells the new primary what it holds.
    pub(super) fn restart_requests(&mut self) {
        mark!("requests are forwarded to a new primary");
        let leads = self.is_primary();
        self.queue.restart(leads);
        let undecided: Vec<_> = self
            .log
            .values()
            .filter(|instance| instance.decided.is_none())
            .filter_map(|it| it.proposed_body().cloned())
            .collect();
        for batch in undecided {
            for request in &batch.requests {
                self.queue.mark_proposed(request);
            }
        }
        if !leads {
            let requests = self.queue.to_forward(self.now_ms);
            self.forward(requests);
        }
    }

    /// Two certificates of one view for one slot: more than f replicas are faulty.
    fn collusion(&mut self, conflict: Conflict) {
        mark!("two certificates of one view for one slot");
        let Conflict(pair) = conflict;
        let (first, second) = *pair;
        let view = first.statement.view;
        let primary = super::certificate::primary(&self.membership, view);
        let mut pairs: Vec<(ReplicaId, u8, Signature, Signature)> =
            vec![(primary, kind::PRE_PREPARE, first.pre_prepare, second.pre_prepare)];
        for (id, signature) in &first.prepares {
            if let Some((_, other)) = second.prepares.iter().find(|(other, _)| other == id) {
                pairs.push((*id, kind::PREPARE, *signature, *other));
            }
        }
        for (culprit, kind, one, other) in pairs {
            let one = Vote { statement: first.statement, signature: one };
            let other = Vote { statement: second.statement, signature: other };
            self.accuse(two_votes(culprit, kind, &one, &other));
        }
        let Statement { sequence, .. } = first.statement;
        self.halt(format!("two batches prepared at sequence {sequence} in view {view}"));
    }
}

/// What serving a VIEW-CHANGE is charged against the byte rate.
const VIEW_CHANGE_COST: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;
    use conclave_crypto::digest::digest;

    fn certificate(sequence: u64, view: u64, batch: u8) -> PreparedCertificate {
        let digest = digest("test", &[&[batch]]);
        let statement =
            Statement { epoch: Epoch(0), view: View(view), sequence: Sequence(sequence), digest };
        let pre_prepare = conclave_crypto::keys::SecretKey::from_seed([1; 32]).sign(&[]);
        PreparedCertificate { statement, pre_prepare, prepares: Vec::new() }
    }

    fn change(stable: u64, prepared: Vec<PreparedCertificate>) -> ViewChange {
        ViewChange {
            epoch: Epoch(0),
            view: View(9),
            replica: ReplicaId(0),
            stable: Sequence(stable),
            certificate: None,
            prepared,
        }
    }

    #[test]
    fn the_highest_view_wins_and_a_gap_is_a_null_batch() {
        let one = change(0, vec![certificate(1, 1, 1), certificate(3, 0, 3)]);
        let two = change(0, vec![certificate(1, 2, 7)]);
        let proposals = proposals_of([&one, &two].into_iter()).unwrap();
        let digests: Vec<Digest> = proposals.digests.iter().map(|(_, digest)| *digest).collect();
        let expected = [
            certificate(1, 2, 7).statement.digest,
            Batch::null().digest(),
            certificate(3, 0, 3).statement.digest,
        ];
        assert_eq!(digests, expected);
    }

    #[test]
    fn nothing_at_or_below_the_latest_stable_checkpoint_is_proposed_again() {
        let one = change(2, vec![certificate(3, 0, 3)]);
        let two = change(0, vec![certificate(1, 0, 1), certificate(2, 0, 2)]);
        let proposals = proposals_of([&one, &two].into_iter()).unwrap();
        assert_eq!(proposals.start, Sequence(2));
        assert_eq!(proposals.digests.len(), 1);
        let empty = proposals_of([&change(5, vec![]), &two].into_iter()).unwrap();
        assert!(empty.digests.is_empty());
    }

    #[test]
    fn two_batches_prepared_in_one_view_are_a_conflict() {
        let one = change(0, vec![certificate(1, 1, 1)]);
        let two = change(0, vec![certificate(1, 1, 2)]);
        assert!(proposals_of([&one, &two].into_iter()).is_err());
    }

    use crate::message::Batch;
}
