//! Who checks the clients' signatures in a batch. Ours; OSDI'99 authenticates requests by MACs and
//! so has no such choice.
//!
//! A correct primary proposes only requests that it verified. Were every backup to verify them as
//! well, n checks of one signature would be the largest cost of a cluster; f+1 suffice. So the f
//! backups whose turn it is (it goes round with the sequence) check a large batch on arrival, and
//! the others may leave it to them: they accept the PRE-PREPARE, and PREPARE once f others have.
//!
//! Validity holds as before: *if a correct replica votes for a batch, every request in it is
//! signed by its client.* Take the first correct replica that voted for it, in the order of cause
//! and effect. If it is the primary or checked the batch, it saw the signatures. Otherwise it held
//! a PRE-PREPARE and f PREPAREs of others, f+1 signers in all, one of them correct, and that one
//! voted earlier: a contradiction. What a NEW-VIEW re-proposes has a prepared certificate, in
//! which a correct replica voted too.
//!
//! Liveness does not rest on those whose turn it is: who waits in vain for a tenth of the timeout
//! checks the batch itself, and leaves nothing more to the silent one for a while, nor as long as
//! nothing is heard of how far it is. So a network slower than that costs the waiting once in
//! [`ABSENCE`] batches, and a replica that is down costs it once.

use super::Pbft;
use super::certificate::Statement;
use super::evidence::forged_proposal;
use super::log;
use super::message::PrePrepare;
use crate::engine::{Effect, Horizon};
use crate::membership::Membership;
use crate::types::{ReplicaId, Sequence, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::{mark, mistake};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Batches below this many requests are checked on arrival: that takes less than a vote's journey.
const REQUESTS_MIN: usize = 8;
/// A replica waits this part of the base timeout for others to vouch for a batch.
const PATIENCE_PART: u64 = 10;
/// For how many sequences nothing is left to who did not vouch in time, at the least.
const ABSENCE: u64 = 256;

/// Those to whom nothing is left for now, until the sequence that each stands with.
pub(super) type Absent = BTreeMap<ReplicaId, Sequence>;

/// What a replica knows of the client signatures in its view's proposal for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Check {
    /// They are valid, or the proposal came otherwise than by a PRE-PREPARE of this view.
    #[default]
    Done,
    /// Left to others until then.
    Left { until_ms: u64 },
    /// Being checked here.
    Asked,
    /// One of them is not valid: the primary is faulty, and this replica never votes for it.
    Failed,
}

/// Whether the receiver of this PRE-PREPARE may leave its requests' signatures to others.
pub(super) fn left_to_others(horizon: &Horizon, message: &PrePrepare) -> bool {
    let Statement { view, sequence, .. } = message.vote.statement;
    message.batch.requests.len() >= REQUESTS_MIN
        && checkers(&horizon.membership, view, sequence)
            .all(|id| id != horizon.me && !horizon.absent.contains_key(&id))
}

/// The f backups that check this sequence's batch on arrival.
fn checkers(
    membership: &Membership,
    view: View,
    sequence: Sequence,
) -> impl Iterator<Item = ReplicaId> {
    let primary = super::certificate::primary(membership, view);
    let count = membership.members.len().saturating_sub(1).max(1);
    let turn = usize::try_from(sequence.0 % count as u64).unwrap_or(0);
    let backups = membership.members.iter().map(|it| it.id).filter(move |it| *it != primary);
    let backups: Vec<_> = backups.collect();
    backups.into_iter().cycle().skip(turn).take(membership.quorum().f())
}

impl Pbft {
    /// What is known of the signatures of a PRE-PREPARE that arrives.
    pub(super) fn check_of(&self, unchecked: bool) -> Check {
        let until_ms = self.now_ms + self.base_timeout_ms() / PATIENCE_PART;
        if unchecked { Check::Left { until_ms } } else { Check::Done }
    }

    /// Whether the proposal's requests are known to be their clients': from this replica's own
    /// check, or because f+1 others voted for it, the primary among them.
    pub(super) fn vouched(&self, instance: &log::Instance, digest: &Digest) -> bool {
        match instance.check {
            Check::Done => true,
            Check::Left { .. } | Check::Asked => {
                log::count(&instance.prepares, digest) >= self.quorum().f()
                    || mistake!("batch-vouched-for-unseen")
            }
            Check::Failed => false,
        }
    }

    /// Checks here what nobody vouched for in time, and remembers whose turn it was.
    pub(super) fn tick_vouching(&mut self) {
        let (now, id, agreed) = (self.now_ms, self.id(), self.agreed);
        let mut late = Vec::new();
        for (sequence, instance) in &mut self.log {
            let Check::Left { until_ms } = instance.check else { continue };
            mark!("a batch is left to others to check");
            if instance.decided.is_some() || instance.prepares.contains_key(&id) {
                instance.check = Check::Done;
            } else if now >= until_ms
                && let Some(batch) = instance.proposed_body().map(Arc::clone)
            {
                instance.check = Check::Asked;
                self.out.push(Effect::Check(batch));
                let silent = |checker: &ReplicaId| !instance.prepares.contains_key(checker);
                late.extend(checkers(&self.membership, self.view, *sequence).filter(silent));
            }
        }
        if late.is_empty() && self.absent.values().all(|until| *until > agreed) {
            return;
        }
        let fetching = &self.fetching;
        let absent = Arc::make_mut(&mut self.absent);
        absent.retain(|id, until| {
            if *until <= agreed && !fetching.hears(*id, now) {
                *until = agreed.plus(ABSENCE);
            }
            *until > agreed
        });
        absent.extend(late.into_iter().map(|checker| (checker, agreed.plus(ABSENCE))));
    }

    /// The answer to [`Effect::Check`]; that of a view that was left finds nothing to settle.
    pub(super) fn on_checked(&mut self, batch: &Digest, valid: bool) {
        let asked = |it: &log::Instance| it.check == Check::Asked && it.proposed() == Some(*batch);
        let slots: Vec<_> =
            self.log.iter().filter(|(_, it)| asked(it)).map(|(sequence, _)| *sequence).collect();
        let leader = self.primary();
        for sequence in slots {
            let Some(instance) = self.log.get_mut(&sequence) else { continue };
            if valid {
                instance.check = Check::Done;
                self.advance(sequence);
                continue;
            }
            instance.check = Check::Failed;
            if let (Some(proposal), Some(body)) = (instance.proposal, instance.proposed_body()) {
                let evidence = forged_proposal(leader, &proposal, body);
                self.accuse(evidence);
            }
            self.suspicion.faulty = true;
            self.suspect();
        }
    }
}
