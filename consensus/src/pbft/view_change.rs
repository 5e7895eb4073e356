//! OSDI'99 §4.4 and §4.5.2: VIEW-CHANGE messages, when to join a view change, and its timer.
//!
//! A VIEW-CHANGE is journaled before it is sent and sent again unchanged: a rebuilt one would be a
//! second signed statement for one view. Of each sender the one for the highest view is kept.

use super::Pbft;
use super::certificate::{PreparedCertificate, primary};
use super::evidence::two_values;
use super::message::{Message, NewView, Sealed, ViewChange};
use super::new_view::PendingNewView;
use super::record;
use crate::engine::{Reject, To};
use crate::types::{ReplicaId, Sequence, View};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::{mark, mistake};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct ViewChanges {
    /// Of each sender, this replica included, the VIEW-CHANGE for the highest view.
    pub(super) newest: BTreeMap<ReplicaId, Arc<Sealed<ViewChange>>>,
    /// When the change to the current view, or the deciding of its O, takes too long.
    pub(super) deadline_ms: Option<u64>,
    /// The last sequence of O.
    pub(super) target: Sequence,
    /// The newest NEW-VIEW built or accepted, for laggards, and its V.
    pub(super) new_view: Option<Arc<Sealed<NewView>>>,
    pub(super) kept: Vec<Arc<Sealed<ViewChange>>>,
    /// Of each primary, the highest NEW-VIEW whose V is not complete here: one that names what
    /// nobody has holds up its own sender's only.
    pub(super) pending: BTreeMap<ReplicaId, PendingNewView>,
    /// View changes since the start.
    pub(super) count: u64,
}

impl ViewChanges {
    /// Whether the current view's O is decided.
    pub(super) fn settled(&self) -> bool {
        self.deadline_ms.is_none()
    }

    /// Who sent a VIEW-CHANGE for a view above this one.
    pub(super) fn senders_above(&self, view: View) -> impl Iterator<Item = ReplicaId> + '_ {
        self.newest.iter().filter(move |(_, it)| it.value().view > view).map(|(id, _)| *id)
    }

    /// Who sent a VIEW-CHANGE for this view or a higher one.
    pub(super) fn senders_from(&self, view: View) -> impl Iterator<Item = ReplicaId> + '_ {
        self.newest.iter().filter(move |(_, it)| it.value().view >= view).map(|(id, _)| *id)
    }

    /// A VIEW-CHANGE by its name, for whoever was sent the NEW-VIEW that names it.
    pub(super) fn named(&self, name: &Digest) -> Option<&Arc<Sealed<ViewChange>>> {
        let mut known = self.kept.iter().chain(self.newest.values());
        known.find(|change| change.name() == *name)
    }
}

impl Pbft {
    pub(super) fn on_view_change(&mut self, from: ReplicaId, message: Arc<Sealed<ViewChange>>) {
        let change = message.value();
        if change.epoch != self.epoch() {
            return self.reject(from, Reject::EpochPast(change.epoch));
        }
        let at_base = change.stable == self.base;
        if change.stable < self.base || at_base != change.certificate.is_none() {
            return self.reject(from, Reject::Protocol("VIEW-CHANGE without proof of h"));
        }
        if let Some(reason) = self.rollback_in_certificates(&change.prepared) {
            mark!("a certificate proves a rollback");
            return self.rolled_back(reason);
        }
        if let Some(reason) = self.rollback_in_change(&message) {
            mark!("an own VIEW-CHANGE proves a rollback");
            return self.rolled_back(reason);
        }
        if let Some(certificate) = &change.certificate {
            self.adopt_stable(Arc::new(certificate.clone()));
        }
        if change.epoch != self.epoch() {
            // That checkpoint was the epoch's last.
            return;
        }
        self.complete_new_view(&message);
        let sender = change.replica;
        if let Some(known) = self.changes.newest.get(&sender).cloned() {
            if known.value().view == change.view && known.name() != message.name() {
                mark!("two VIEW-CHANGEs for one view");
                self.changed_twice(sender, &known, &message);
                return self.reject(from, Reject::Protocol("two VIEW-CHANGEs for one view"));
            }
            if known.value().view >= change.view {
                return self.reject(from, Reject::Known);
            }
        }
        self.changes.newest.insert(sender, message);
        self.join_view_change();
        self.start_timer();
        self.suspect();
        self.try_new_view();
    }

    fn changed_twice(
        &mut self,
        culprit: ReplicaId,
        first: &Sealed<ViewChange>,
        second: &Sealed<ViewChange>,
    ) {
        self.accuse(two_values(culprit, &first.signed, &second.signed));
    }

    /// OSDI'99 §4.5.2: f+1 VIEW-CHANGEs above the own view; the smallest such view is joined. f
    /// replicas alone move nobody.
    pub(super) fn join_view_change(&mut self) {
        let id = self.id();
        let above: Vec<View> = self
            .changes
            .newest
            .iter()
            .filter(|(sender, change)| **sender != id && change.value().view > self.view)
            .map(|(_, change)| change.value().view)
            .collect();
        let needed = self.quorum().weak() - usize::from(mistake!("f-view-changes-joined"));
        if above.len() >= needed
            && let Some(smallest) = above.into_iter().min()
        {
            mark!("f+1 VIEW-CHANGEs above the own view are joined");
            self.start_view_change(smallest);
        }
    }

    /// OSDI'99 §4.4: leaves the view and says what prepared so far.
    pub(super) fn start_view_change(&mut self, view: View) {
        if !self.can_sign() || view <= self.view {
            return;
        }
        if !self.active {
            mark!("a view change during a view change");
        }
        self.leave_view(view);
        let change = ViewChange {
            epoch: self.epoch(),
            view,
            replica: self.id(),
            stable: self.low,
            certificate: self.checkpoints.stable.as_deref().cloned(),
            prepared: self.prepared_certificates(),
        };
        let sealed = Arc::new(Sealed::new(self.signer.sign(change)));
        if mistake!("view-change-not-durable") {
            self.persist_lazily(record::VIEW_CHANGE, wire::encode(sealed.as_ref()));
        } else {
            self.persist(record::VIEW_CHANGE, wire::encode(sealed.as_ref()));
        }
        self.send(To::Others, Message::ViewChange(Arc::clone(&sealed)));
        self.changes.newest.insert(self.id(), sealed);
        self.changes.count += 1;
        self.start_timer();
        self.try_new_view();
    }

    /// P of OSDI'99 §4.4. Every certificate here is journaled with its batch before what follows.
    fn prepared_certificates(&self) -> Vec<PreparedCertificate> {
        self.log
            .range(self.low.next()..=self.high())
            .filter_map(|(_, instance)| instance.prepared.clone())
            .filter(|_| !mistake!("prepared-left-out-of-view-change"))
            .collect()
    }

    /// Nothing of the old view is sent or counted from here on; certificates stay.
    pub(super) fn leave_view(&mut self, view: View) {
        let n = self.membership.members.len();
        self.view = view;
        self.active = false;
        self.reserved.clear();
        for instance in self.log.values_mut() {
            instance.enter_view();
        }
        self.suspicion.enter_view(view, n);
        self.changes.deadline_ms = None;
        self.changes.pending.retain(|_, pending| pending.view() >= view);
    }

    /// The timer of view w runs once a quorum has sent VIEW-CHANGEs for w or higher.
    pub(super) fn start_timer(&mut self) {
        if !self.active
            && !mistake!("view-timer-never-runs")
            && self.changes.deadline_ms.is_none()
            && self.changes.senders_from(self.view).count() >= self.quorum().quorum()
        {
            self.changes.deadline_ms = Some(self.now_ms + self.suspicion.timeout_ms);
        }
    }

    /// It stops when all of O is decided, and its expiry asks for the next view at once.
    pub(super) fn tick_view_change(&mut self) {
        if self.active && self.agreed >= self.changes.target {
            if self.changes.deadline_ms.take().is_some() {
                // What was proven against this primary meanwhile stays proven.
                let faulty = self.suspicion.faulty;
                self.suspicion.enter_view(self.view, self.membership.members.len());
                self.suspicion.faulty = faulty;
            }
            return;
        }
        if self.changes.deadline_ms.is_some_and(|deadline| self.now_ms >= deadline)
            && self.can_sign()
        {
            mark!("the timer of a view change expires");
            self.double_timeout();
            self.start_view_change(self.view.next());
        }
    }

    /// The VIEW-CHANGE of this replica for the view it changes to.
    pub(super) fn own_view_change(&self) -> Option<Arc<Sealed<ViewChange>>> {
        let own = self.changes.newest.get(&self.id())?;
        (own.value().view == self.view).then(|| Arc::clone(own))
    }

    /// Whether this replica leads the view it changes to.
    pub(super) fn leads(&self, view: View) -> bool {
        primary(&self.membership, view) == self.id()
    }
}
