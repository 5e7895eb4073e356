//! OSDI'99 §4.3, checkpoints: CHECKPOINT messages, stable certificates, and the window above them.
//!
//! Execution decides which sequences are checkpoints. A quorum of equal CHECKPOINTs makes one
//! stable, and h moves with that proof alone: voting does not wait for this replica's own state.
//! [`Effect::Stable`], on which the host truncates its journal, is said only of a checkpoint that
//! the own ledger holds too.

use super::certificate::checkpoints_needed;
use super::evidence::two_values;
use super::{Pbft, record};
use crate::engine::{Checkpointed, Effect, Reject, To};
use crate::message::{Checkpoint, CheckpointCertificate, CheckpointVote};
use crate::pbft::message::Message;
use crate::types::{Epoch, ReplicaId, Sequence};
use crate::wire;
use conclave_crypto::signature::Signed;
use conclave_crypto::{mark, mistake};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Certificates that wait for the own ledger to reach their height: the lowest, which it reaches next, and the newest.
const AWAITING_MAX: usize = 8;
/// A block that is no checkpoint is followed by a marked one after so much idleness.
const IDLE_MS: u64 = 1_000;
/// Blocks behind a stable checkpoint from which on its state is fetched and not the blocks.
const INSTALL_BEHIND: u64 = 10_000;
/// A newer target replaces one that could not be installed for so long.
const INSTALL_RETRY_MS: u64 = 60_000;

#[derive(Default)]
pub(super) struct Checkpoints {
    /// CHECKPOINTs of heights in (h, h+L], one per height and sender.
    votes: BTreeMap<Sequence, BTreeMap<ReplicaId, Signed<CheckpointVote>>>,
    /// The newest CHECKPOINT of each member, kept when its height has become stable: a peer whose disk
    /// was rolled back learns from it what its ledger had.
    newest: BTreeMap<ReplicaId, Signed<CheckpointVote>>,
    /// Checkpoints of the own ledger above the last one said to be stable.
    own: BTreeMap<Sequence, Checkpoint>,
    /// The proof of h; none at the epoch's base.
    pub(super) stable: Option<Arc<CheckpointCertificate>>,
    awaiting: BTreeMap<Sequence, Arc<CheckpointCertificate>>,
    /// The newest checkpoint of the own ledger.
    pub(super) last: Sequence,
    /// When the last batch was handed over.
    pub(super) delivered_ms: u64,
    /// When this primary last marked an empty batch.
    pub(super) marked_ms: u64,
    /// The state being fetched, since when.
    installing: Option<(Sequence, u64)>,
    /// The last state that nobody served, since when that is known.
    unserved: Option<(Sequence, u64)>,
    diverged: bool,
}

impl Checkpoints {
    /// A start found this.
    pub(super) fn recovered(own: Option<Checkpoint>) -> Self {
        let last = own.as_ref().map_or(Sequence(0), |own| own.height);
        let own = own.into_iter().map(|own| (own.height, own)).collect();
        Self { own, last, ..Self::default() }
    }

    /// Whether the own ledger differs from a certified state: nothing is handed to it.
    pub(super) fn diverged(&self) -> bool {
        self.diverged
    }

    pub(super) fn installing(&self) -> bool {
        self.installing.is_some()
    }

    /// Whether the ledger executes nothing for now, however much is handed to it.
    pub(super) fn stands_still(&self) -> bool {
        self.diverged || self.installing()
    }

    /// The newest CHECKPOINT of this member.
    pub(super) fn newest_of(&self, member: ReplicaId) -> Option<Signed<CheckpointVote>> {
        self.newest.get(&member).cloned()
    }

    fn keep(&mut self, member: ReplicaId, vote: Signed<CheckpointVote>) {
        let height = vote.value.checkpoint.height;
        let newest = self.newest.get(&member);
        if newest.is_none_or(|known| known.value.checkpoint.height < height) {
            self.newest.insert(member, vote.clone());
        }
        self.votes.entry(height).or_default().insert(member, vote);
    }

    /// Were the lowest dropped, a ledger that stays so many checkpoints behind would never meet one that waits for it,
    /// and the journal would grow for as long.
    fn await_own(&mut self, certificate: Arc<CheckpointCertificate>) {
        self.awaiting.insert(certificate.checkpoint.height, certificate);
        if self.awaiting.len() > AWAITING_MAX
            && let Some(second) = self.awaiting.keys().rev().nth(1).copied()
        {
            self.awaiting.remove(&second);
        }
    }

    pub(super) fn start_epoch(&mut self) {
        self.votes.clear();
        self.newest.clear();
        self.stable = None;
    }
}

impl Pbft {
    /// The ledger executed and synced a checkpoint.
    pub(super) fn on_checkpointed(&mut self, checkpointed: Checkpointed) {
        let Checkpointed { height, header, state_root, next } = checkpointed;
        let epoch = self.epoch_of(height);
        let own = Checkpoint { epoch, height, header, state_root };
        self.checkpoints.last = self.checkpoints.last.max(height);
        if mistake!("log-cut-before-stable") {
            let cut = CheckpointCertificate { checkpoint: own.clone(), signatures: Vec::new() };
            self.out.push(Effect::Stable(cut));
        }
        self.checkpoints.own.insert(height, own);
        if self.gate.is_some_and(|gate| gate <= height) {
            self.gate = None;
        }
        match next {
            Some(next) if epoch == self.epoch() => self.end_epoch(next),
            Some(_) | None => self.change_refused(height),
        }
        self.settle();
        self.vouch();
        self.on_executed(height);
    }

    /// Signs and sends CHECKPOINT for what the own ledger holds above h.
    pub(super) fn vouch(&mut self) {
        if !self.can_sign() || self.checkpoints.diverged {
            return;
        }
        let id = self.id();
        // Each may become stable at once, which moves the window and may end the epoch.
        while let Some(checkpoint) = self.next_to_vouch() {
            let height = checkpoint.height;
            let vote = self.signer.sign(CheckpointVote { checkpoint, replica: id });
            self.send(To::Others, Message::Checkpoint(vote.clone()));
            self.checkpoints.keep(id, vote);
            self.count_checkpoints(height);
        }
    }

    /// The lowest own checkpoint of this window and epoch that is not vouched for.
    fn next_to_vouch(&self) -> Option<Checkpoint> {
        let id = self.id();
        let mut own = self.checkpoints.own.range(self.low.next()..=self.high());
        let fresh = own.find(|(height, own)| {
            let votes = self.checkpoints.votes.get(*height);
            own.epoch == self.epoch() && !votes.is_some_and(|votes| votes.contains_key(&id))
        });
        fresh.map(|(_, own)| own.clone())
    }

    pub(super) fn on_checkpoint(&mut self, from: ReplicaId, vote: Signed<CheckpointVote>) {
        let Checkpoint { epoch, height, .. } = vote.value.checkpoint;
        if epoch != self.epoch() {
            return self.reject(from, Reject::EpochPast(epoch));
        }
        if !super::decode::in_window(height, self.low, self.limits.window) {
            return self.reject(from, Reject::Window);
        }
        if let Some(known) = self.checkpoints.votes.get(&height).and_then(|it| it.get(&from)) {
            if known.value == vote.value {
                return self.reject(from, Reject::Known);
            }
            mark!("two CHECKPOINTs for one height");
            let evidence = two_values(from, known, &vote);
            self.accuse(evidence);
            return self.reject(from, Reject::Protocol("two CHECKPOINTs for one height"));
        }
        self.checkpoints.keep(from, vote);
        self.count_checkpoints(height);
    }

    /// OSDI'99 §4.3: a quorum of equal CHECKPOINTs is the proof of a stable checkpoint.
    fn count_checkpoints(&mut self, height: Sequence) {
        let quorum = checkpoints_needed(&self.membership);
        let Some(votes) = self.checkpoints.votes.get(&height) else { return };
        let agreeing = votes.values().map(|vote| &vote.value.checkpoint).find(|checkpoint| {
            votes.values().filter(|vote| vote.value.checkpoint == **checkpoint).count() >= quorum
        });
        let Some(checkpoint) = agreeing.cloned() else { return };
        let signatures = votes
            .iter()
            .filter(|(_, vote)| vote.value.checkpoint == checkpoint)
            .take(quorum)
            .map(|(id, vote)| (*id, vote.signature))
            .collect();
        mark!("a checkpoint becomes stable by the votes of a quorum");
        self.adopt_stable(Arc::new(CheckpointCertificate { checkpoint, signatures }));
    }

    pub(super) fn on_stable(&mut self, from: ReplicaId, certificate: Arc<CheckpointCertificate>) {
        if certificate.checkpoint.epoch != self.epoch() || certificate.checkpoint.height <= self.low
        {
            return self.reject(from, Reject::Known);
        }
        mark!("a stable checkpoint is taken from a peer");
        self.adopt_stable(certificate);
    }

    /// h moves to a proven stable checkpoint of this epoch; what lies at or below it is dropped.
    pub(super) fn adopt_stable(&mut self, certificate: Arc<CheckpointCertificate>) {
        let height = certificate.checkpoint.height;
        if height <= self.low || certificate.checkpoint.epoch != self.epoch() {
            return;
        }
        if let Some(reason) = self.rollback_in_checkpoint(&certificate) {
            mark!("a stable checkpoint proves a rollback");
            self.rolled_back(reason);
        }
        // Lazy: it goes to the disk no later than the first certificate of the window it opens.
        self.persist_lazily(record::STABLE, wire::encode(certificate.as_ref()));
        self.checkpoints.stable = Some(Arc::clone(&certificate));
        self.raise_low(height);
        self.await_own(certificate);
        // The next epoch's start is journaled before the ledger hears that this one's end is stable.
        self.finish_epoch();
        self.settle();
        self.consider_install();
        self.vouch();
        self.deliver();
        self.propose();
    }

    /// Moves the window; decided bodies that were not handed over yet are kept, a few.
    pub(super) fn raise_low(&mut self, height: Sequence) {
        self.low = height;
        let above = self.log.split_off(&height.next());
        let below = std::mem::replace(&mut self.log, above);
        for (sequence, instance) in below.range(self.delivered.next()..) {
            if let Some(certificate) = &instance.decided
                && let Some(batch) = instance.body(&certificate.statement.digest)
            {
                self.fetching.keep_decided(self.delivered, *sequence, certificate, batch);
            }
        }
        self.checkpoints.votes = self.checkpoints.votes.split_off(&height.next());
        self.signer.forget_through(height);
        self.agreed = self.agreed.max(height);
        self.raise_agreed();
        self.next = self.next.max(height.next());
    }

    pub(super) fn await_own(&mut self, certificate: Arc<CheckpointCertificate>) {
        self.checkpoints.await_own(certificate);
    }

    /// Compares certificates with the own ledger where both exist.
    pub(super) fn settle(&mut self) {
        let heights: Vec<Sequence> = self.checkpoints.awaiting.keys().copied().collect();
        for height in heights {
            let Some(own) = self.checkpoints.own.get(&height) else { continue };
            let Some(certificate) = self.checkpoints.awaiting.get(&height) else { continue };
            let certificate = CheckpointCertificate::clone(certificate);
            if *own == certificate.checkpoint {
                self.checkpoints.awaiting = self.checkpoints.awaiting.split_off(&height.next());
                self.checkpoints.own = self.checkpoints.own.split_off(&height.next());
                self.out.push(Effect::Stable(certificate));
            } else if !self.checkpoints.diverged {
                mark!("the ledger differs from a stable checkpoint");
                self.checkpoints.diverged = true;
                self.out.push(Effect::Diverged(certificate));
            }
        }
    }

    /// Fetches state where the blocks are too many, or where there is none to start from.
    pub(super) fn consider_install(&mut self) {
        let Some(certificate) = self.checkpoints.stable.clone() else { return };
        let height = certificate.checkpoint.height;
        let behind = height.0.saturating_sub(self.delivered.0);
        let empty = self.executed == Sequence(0) && behind > self.limits.checkpoint_interval;
        if behind <= INSTALL_BEHIND && !empty {
            return;
        }
        let fresh = match self.checkpoints.installing {
            // While nobody serves it the blocks are fetched, however many.
            None => !self.checkpoints.unserved.is_some_and(|(target, since)| {
                height <= target && self.now_ms.saturating_sub(since) < INSTALL_RETRY_MS
            }),
            Some((target, since)) => {
                target < height && self.now_ms.saturating_sub(since) >= INSTALL_RETRY_MS
            }
        };
        if fresh {
            self.checkpoints.installing = Some((height, self.now_ms));
            mark!("state transfer is asked for");
            self.out.push(Effect::Install(CheckpointCertificate::clone(&certificate)));
        }
    }

    /// Who served the last stable state forgot it at a restart, and the next one may need this replica's
    /// own vote: it goes by the blocks.
    pub(super) fn on_unserved(&mut self) {
        let Some((target, _)) = self.checkpoints.installing.filter(|_| !self.checkpoints.diverged)
        else {
            return;
        };
        mark!("nobody serves the state, and blocks are fetched in its place");
        self.checkpoints.installing = None;
        self.checkpoints.unserved = Some((target, self.now_ms));
        self.deliver();
    }

    /// State transfer put this certified state in place.
    pub(super) fn on_installed(&mut self, certificate: CheckpointCertificate, next: Epoch) {
        let height = certificate.checkpoint.height;
        mark!("certified state was installed");
        if self.checkpoints.diverged {
            // What a ledger that differed said of its epoch's end is as void as its blocks.
            self.epochs.ending = None;
        }
        self.epochs.installed = Some((height, next));
        if next > self.epoch() {
            mark!("the installed state ends the epoch or is beyond it");
            self.fetching.void_above(height);
        }
        self.checkpoints.installing = None;
        self.checkpoints.diverged = false;
        self.queue.forget_pending();
        // Exactly there: a ledger that had differed is handed the blocks above once more.
        self.executed = height;
        self.delivered = height;
        self.gate = None;
        self.checkpoints.last = height;
        self.checkpoints.own.clear();
        self.checkpoints.own.insert(height, certificate.checkpoint.clone());
        let certificate = Arc::new(certificate);
        self.await_own(Arc::clone(&certificate));
        self.adopt_stable(certificate);
        self.settle();
        self.agreed = self.agreed.max(self.delivered);
        self.raise_agreed();
        self.next = self.next.max(self.agreed.next());
        self.deliver();
    }

    /// Own CHECKPOINTs that a peer at this stable checkpoint can use.
    pub(super) fn own_checkpoints(&self) -> Vec<Message> {
        let id = self.id();
        let newest = self.checkpoints.votes.values().rev();
        newest
            .filter_map(|votes| votes.get(&id))
            .take(4)
            .cloned()
            .map(Message::Checkpoint)
            .collect()
    }

    /// An idle primary marks an empty batch, so that the last blocks become a checkpoint too. One whose
    /// own ledger is behind does not know which blocks are checkpoints, and may wait for the state of one
    /// that nobody serves any more: it asks for them until one is stable.
    pub(super) fn idle_mark_due(&self) -> bool {
        let unmarked = if self.executed == self.agreed {
            self.checkpoints.last < self.executed
        } else {
            self.low < self.agreed
        };
        let since = self.checkpoints.delivered_ms.max(self.checkpoints.marked_ms);
        self.next == self.agreed.next() && unmarked && self.now_ms.saturating_sub(since) >= IDLE_MS
    }

    /// The epoch that decided this height.
    pub(super) fn epoch_of(&self, height: Sequence) -> Epoch {
        self.epoch_ends
            .iter()
            .find(|end| height <= end.header.height)
            .map_or(self.epoch(), |end| end.header.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conclave_crypto::digest::Digest;

    #[test]
    fn a_ledger_far_behind_finds_the_certificates_that_it_reaches_next_and_the_newest() {
        let mut checkpoints = Checkpoints::default();
        for height in (4..=400).step_by(4).map(Sequence) {
            let (header, state_root) = (Digest::ZERO, Digest::ZERO);
            let checkpoint = Checkpoint { epoch: Epoch(0), height, header, state_root };
            let certificate = CheckpointCertificate { checkpoint, signatures: Vec::new() };
            checkpoints.await_own(Arc::new(certificate));
        }
        let kept: Vec<u64> = checkpoints.awaiting.keys().map(|height| height.0).collect();
        assert_eq!(kept, [4, 8, 12, 16, 20, 24, 28, 400]);
    }
}
