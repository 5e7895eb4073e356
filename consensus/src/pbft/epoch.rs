//! How an epoch ends and the next begins, and Rejoin, the first change that uses it.
//!
//! A block whose change took effect ends its epoch. From there on nothing is proposed or voted
//! above it until a quorum of that epoch's CHECKPOINTs makes it stable; then the next epoch starts
//! at the following sequence, in view 0, with an empty log. What the old epoch voted or certified
//! above its end is void.
//!
//! A replica that lost its journal does not know what it signed. It holds a nonce, signs nothing
//! but Rejoin, and votes again in the epoch that its nonce began: in that epoch it signed nothing.

use super::message::Message;
use super::record::{self, Marker};
use super::{Pbft, RESERVE_AHEAD, certificate};
use crate::engine::{Committed, Effect, Era, NextEpoch, Reject, To};
use crate::message::{Change, EpochEnd, Rejoin};
use crate::types::{Epoch, ReplicaId, Sequence, View};
use crate::wire;
use conclave_crypto::signature::Signed;
use conclave_crypto::{mark, mistake};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A Rejoin is sent this often until its epoch begins, milliseconds.
const REJOIN_MS: u64 = 500;
/// A Rejoin that execution refused is not proposed again for so long, milliseconds.
const REFUSED_MS: u64 = 10_000;

struct PendingRejoin {
    rejoin: Signed<Rejoin>,
    /// On the request clock.
    since_ms: u64,
}

#[derive(Default)]
pub(super) struct Epochs {
    /// The block that ends the epoch is executed, and waits for a quorum.
    pub(super) ending: Option<NextEpoch>,
    /// Where the ledger's state was put in place, and the epoch that decides the block above it.
    pub(super) installed: Option<(Sequence, Epoch)>,
    /// Earlier epochs, one per accepted Rejoin: their batches may be missing here.
    pub(super) eras: Arc<Vec<Era>>,
    /// What peers ask for, one each, void when the epoch ends.
    rejoins: BTreeMap<ReplicaId, PendingRejoin>,
    refused: BTreeMap<ReplicaId, u64>,
    /// The change that was handed over and is not executed.
    delivered: Option<(Sequence, ReplicaId)>,
    /// Set when this replica lost its journal.
    pub(super) marker: Option<Marker>,
    asked_ms: Option<u64>,
}

impl Pbft {
    /// The last sequence of this epoch, once it is known; or where the state stands that is of a
    /// later epoch already: nothing that this epoch decided is handed over above it.
    pub(super) fn epoch_last(&self) -> Option<Sequence> {
        let executed = self.epochs.ending.as_ref().map(|next| next.header.height);
        let installed = self.epochs.installed.filter(|(_, next)| *next > self.epoch());
        executed.or(installed.map(|(height, _)| height))
    }

    /// Whether this replica waits for an epoch that its nonce begins.
    pub(super) fn rejoining(&self) -> bool {
        match self.epochs.marker {
            Some(Marker { since, .. }) => since.is_none_or(|since| since > self.epoch()),
            None => false,
        }
    }

    /// Execution says that the change at this block took effect.
    pub(super) fn end_epoch(&mut self, next: NextEpoch) {
        let end = next.header.height;
        self.epochs.delivered = None;
        mark!("a change ends the epoch");
        self.epochs.ending = Some(next);
        self.fetching.void_above(end);
        self.finish_epoch();
    }

    /// A quorum of CHECKPOINTs at the last block, and the own header there: the next epoch starts.
    pub(super) fn finish_epoch(&mut self) {
        let Some(next) = &self.epochs.ending else { return };
        let Some(stable) = &self.checkpoints.stable else { return };
        let matches = stable.checkpoint.height == next.header.height
            && stable.checkpoint.header == next.header.hash();
        if matches {
            let NextEpoch { header, membership, batch } = next.clone();
            let certificate = stable.as_ref().clone();
            let end = EpochEnd { header, certificate, next: membership, batch };
            self.start_epoch(Arc::new(end));
        }
    }

    pub(super) fn on_epoch_end(&mut self, from: ReplicaId, end: Arc<EpochEnd>) {
        if end.header.epoch == self.epoch() {
            self.start_epoch(end);
            mark!("the end of an epoch is taken from a peer");
        } else {
            self.reject(from, Reject::Known);
        }
    }

    fn start_epoch(&mut self, end: Arc<EpochEnd>) {
        let last = end.header.height;
        let keys = match certificate::keys_of(&end.next) {
            Ok(keys) => Arc::new(keys),
            // Execution refuses weak keys, and a quorum executed this.
            Err(error) => return self.halt(format!("the next epoch cannot start: {error}")),
        };
        if !mistake!("epoch-start-not-durable") {
            let bytes = wire::encode(end.as_ref());
            self.persist(record::epoch_end(last), bytes.clone());
            self.persist(record::EPOCH, bytes);
        }
        self.claim_nonce(&end);
        self.out.push(Effect::EpochEnded(Arc::clone(&end)));
        let old = Era {
            membership: Arc::clone(&self.membership),
            keys: Arc::clone(&self.keys),
            end: last,
        };
        Arc::make_mut(&mut self.epochs.eras).push(old);
        self.raise_low(last.max(self.low));
        self.await_own(Arc::new(end.certificate.clone()));
        self.membership = Arc::new(end.next.clone());
        self.keys = keys;
        self.epoch_ends.push(end);
        mark!("an epoch begins with a reservation of its own");
        self.reset_epoch(last);
        let through = last.plus(RESERVE_AHEAD);
        let reserved = record::Reserved { epoch: self.epoch(), view: View(0), through };
        if !mistake!("epoch-start-not-durable") {
            self.persist(record::RESERVED, wire::encode(&reserved));
        }
        self.reserved.push_back((through, self.persists));
        self.settle();
        self.consider_install();
        self.restart_requests();
        self.deliver();
        self.report();
        self.replay_buffered();
        self.propose();
    }

    /// An empty log in view 0; nothing of the old epoch counts.
    fn reset_epoch(&mut self, last: Sequence) {
        self.base = last;
        self.low = last;
        self.view = View(0);
        self.active = true;
        self.log.clear();
        self.reserved.clear();
        self.agreed = last;
        self.next = last.next();
        self.signer.start_epoch();
        self.checkpoints.start_epoch();
        let count = self.changes.count;
        self.changes = super::view_change::ViewChanges { count, ..Default::default() };
        self.changes.target = last;
        self.suspicion.start_epoch(self.membership.members.len());
        self.fetching.start_epoch(last);
        self.epochs.ending = None;
        self.epochs.rejoins.clear();
        self.epochs.delivered = None;
        self.accused.clear();
    }

    /// This replica votes from here on if the epoch's change is its own Rejoin, by its nonce.
    fn claim_nonce(&mut self, end: &EpochEnd) {
        let Some(marker) = &mut self.epochs.marker else { return };
        let Some(Change::Rejoin(rejoin)) = &end.batch.change else { return };
        if marker.since.is_none()
            && rejoin.value.replica == self.signer.id
            && (rejoin.value.nonce == marker.nonce || mistake!("rejoin-nonce-ignored"))
        {
            mark!("an epoch begins by the own nonce");
            marker.since = Some(end.next.epoch);
            let bytes = wire::encode(marker);
            self.persist(record::REJOIN, bytes);
        }
    }

    pub(super) fn on_rejoin(&mut self, from: ReplicaId, rejoin: Signed<Rejoin>) {
        let Rejoin { epoch, replica, .. } = rejoin.value;
        if epoch != self.epoch() && !mistake!("rejoin-of-another-epoch-accepted") {
            return self.reject(from, Reject::EpochPast(epoch));
        }
        let refused = self.epochs.refused.get(&replica);
        if refused.is_some_and(|until| self.now_ms < *until) {
            return self.reject(from, Reject::Known);
        }
        let clock = self.request_clock();
        let known = self.epochs.rejoins.get(&replica);
        let since_ms = known.map_or(clock, |pending| pending.since_ms);
        self.epochs.rejoins.insert(replica, PendingRejoin { rejoin, since_ms });
        self.propose();
    }

    /// When the ledger accepts a Rejoin of this replica again, milliseconds of ledger time.
    fn accepts_rejoin_from(&self, replica: ReplicaId) -> u64 {
        if mistake!("rejoin-interval-ignored") {
            return 0;
        }
        self.epoch_ends
            .iter()
            .rev()
            .find(|end| {
                let Some(Change::Rejoin(rejoin)) = &end.batch.change else { return false };
                rejoin.value.replica == replica
            })
            .map_or(0, |end| end.header.timestamp.0.saturating_add(self.limits.rejoin_interval_ms))
    }

    /// The change that the primary proposes next: of whoever rejoined longest ago, so that one who
    /// asks in every epoch is in nobody's way.
    pub(super) fn pending_change(&self) -> Option<Change> {
        let asking = self.epochs.rejoins.keys().map(|it| (self.accepts_rejoin_from(*it), it));
        let (_, replica) = asking.min().filter(|(from, _)| self.wall.0 >= *from)?;
        let pending = self.epochs.rejoins.get(replica)?;
        Some(Change::Rejoin(pending.rejoin.clone()))
    }

    /// A pending Rejoin has a request timer like any request.
    pub(super) fn rejoin_overdue(&self, clock_ms: u64, from_ms: u64, timeout_ms: u64) -> bool {
        let latest = self.wall.0.saturating_sub(self.limits.clock_window_ms);
        let overdue = self.epochs.rejoins.iter().any(|(replica, pending)| {
            latest >= self.accepts_rejoin_from(*replica)
                && clock_ms.saturating_sub(pending.since_ms.max(from_ms)) >= timeout_ms
        });
        if overdue {
            mark!("a Rejoin is overdue");
        }
        overdue
    }

    /// A batch is handed over; its change waits for execution's word.
    pub(super) fn change_delivered(&mut self, committed: &Committed) {
        if committed.sequence <= self.checkpoints.last {
            // Handed over once more, after a transfer: execution has said what it did, and says it once.
            mark!("a change that was executed is handed over again");
            return;
        }
        if let Some(Change::Rejoin(rejoin)) = &committed.batch.change {
            if !mistake!("commits-pass-a-change") {
                mark!("execution's word on a change is waited for");
                self.gate = Some(committed.sequence);
            }
            self.epochs.delivered = Some((committed.sequence, rejoin.value.replica));
        }
    }

    /// Execution refused the change at or below this block, or none was there.
    pub(super) fn change_refused(&mut self, height: Sequence) {
        if let Some((sequence, replica)) = self.epochs.delivered
            && sequence <= height
        {
            self.epochs.delivered = None;
            self.epochs.rejoins.remove(&replica);
            mark!("execution refuses a Rejoin");
            self.epochs.refused.insert(replica, self.now_ms + REFUSED_MS);
        }
    }

    /// A replica that lost its journal asks until an epoch begins by its nonce.
    pub(super) fn tick_rejoin(&mut self) {
        if !self.rejoining() || !self.membership.contains(self.id()) {
            return;
        }
        let Some(Marker { nonce, .. }) = self.epochs.marker else { return };
        let due = self.epochs.asked_ms.is_none_or(|last| self.now_ms >= last + REJOIN_MS);
        if due {
            self.epochs.asked_ms = Some(self.now_ms);
            let rejoin = Rejoin { epoch: self.epoch(), replica: self.id(), nonce };
            let message = Message::Rejoin(self.signer.sign(rejoin));
            self.send_after(To::Others, message, 0);
        }
    }

    /// The end of an epoch that a peer is still in.
    pub(super) fn epoch_end_of(&self, epoch: Epoch) -> Option<Arc<EpochEnd>> {
        self.epoch_ends.iter().find(|end| end.header.epoch == epoch).map(Arc::clone)
    }
}
