//! A large batch with a forged request, and accomplices who vote for it unseen.
//!
//! Tries: f+1 replicas check the signatures in a large batch and the others leave it to them. So as primary it puts a
//! request that no client signed among eight and more, proposes, and votes at once with all its accomplices, before
//! anybody checked; in some runs those whose turn it is to check never see the batch.
//! Stopped by: whoever leaves the check to others waits for f votes of others beside the primary's, and with at most f
//! liars one of these f+1 is correct; who waits in vain checks the batch itself. The proposal is evidence.

use super::forge::request_of;
use super::{Adversary, Attack, Hands, Make, Verdict};
use conclave_consensus::message::{Batch, kind};
use conclave_consensus::pbft::certificate::Statement;
use conclave_consensus::pbft::message::{Message, PrePrepare};
use conclave_consensus::types::{ReplicaId, Sequence, View};
use std::collections::BTreeMap;
use std::sync::Arc;

/// From this size on a batch is left to others.
const LARGE: usize = 8;

/// Batches whose false double is remembered: more than are in flight.
const DOUBLES_MAX: usize = 64;

pub(super) fn attack() -> Attack {
    Attack {
        name: "forged-batch",
        tries: "proposes large batches with a forged request, and votes for them unseen",
        make: Make::Replica(|random| {
            let (hides, permille) = (random.chance(400), *random.pick(&[200, 600, 1000]));
            Box::new(ForgedBatch { hides, permille, doubles: BTreeMap::new() })
        }),
    }
}

struct ForgedBatch {
    /// Those whose turn it is to check do not get the batch.
    hides: bool,
    /// So many of a thousand batches are forged.
    permille: u64,
    doubles: BTreeMap<(View, Sequence), Option<Arc<Batch>>>,
}

/// Whose turn it is to check: as everybody computes it.
fn checks(hands: &Hands<'_>, statement: Statement, replica: ReplicaId) -> bool {
    let members = &hands.knows.membership;
    let backups: Vec<ReplicaId> = members.ids().filter(|id| *id != hands.id).collect();
    let turn = statement.sequence.0 as usize % backups.len();
    backups.iter().cycle().skip(turn).take(members.quorum().f()).any(|id| *id == replica)
}

impl ForgedBatch {
    /// The same batch, large, and with requests that nobody signed at random places.
    fn double(&self, hands: &mut Hands<'_>, batch: &Batch) -> Option<Arc<Batch>> {
        let room = hands.genesis.limits.batch_requests_max as usize;
        let fits = room > LARGE.max(batch.requests.len());
        if !fits || batch.change.is_some() || !hands.random.chance(self.permille) {
            return None;
        }
        let mut requests = batch.requests.clone();
        while requests.len() < LARGE || requests.len() == batch.requests.len() {
            let place = hands.random.index(requests.len() + 1);
            let number = 1_000 + requests.len() as u64;
            requests.insert(place, Arc::new(request_of(hands, number)));
        }
        Some(Arc::new(Batch::new(batch.timestamp, batch.checkpoint, None, requests)))
    }

    /// PREPARE and COMMIT, at once and unseen.
    fn vouch(hands: &mut Hands<'_>, statement: Statement) {
        let Statement { epoch, view, sequence, digest } = statement;
        let prepare = hands.vote(kind::PREPARE, epoch, view, sequence, digest);
        let commit = hands.vote(kind::COMMIT, epoch, view, sequence, digest);
        hands.send_all(&Message::Prepare(prepare));
        hands.send_all(&Message::Commit(commit));
    }
}

impl Adversary for ForgedBatch {
    fn sending(
        &mut self,
        hands: &mut Hands<'_>,
        to: ReplicaId,
        message: &Message,
    ) -> Verdict<Message> {
        let Message::PrePrepare(proposal) = message else { return Verdict::Pass };
        let statement = proposal.vote.statement;
        let slot = (statement.view, statement.sequence);
        let first = !self.doubles.contains_key(&slot);
        if first {
            let double = self.double(hands, &proposal.batch);
            if self.doubles.len() >= DOUBLES_MAX {
                self.doubles.pop_first();
            }
            self.doubles.insert(slot, double);
        }
        let Some(Some(batch)) = self.doubles.get(&slot).cloned() else { return Verdict::Pass };
        let Statement { epoch, view, sequence, .. } = statement;
        let vote = hands.vote(kind::PRE_PREPARE, epoch, view, sequence, batch.digest());
        if first {
            Self::vouch(hands, vote.statement);
        }
        if self.hides && checks(hands, statement, to) {
            return Verdict::Drop;
        }
        Verdict::Instead(vec![Message::PrePrepare(PrePrepare::new(vote, batch))])
    }

    fn receiving(
        &mut self,
        hands: &mut Hands<'_>,
        from: ReplicaId,
        _: &[u8],
        message: Option<&Message>,
    ) -> bool {
        if let Some(Message::PrePrepare(proposal)) = message
            && from == hands.knows.primary
            && proposal.batch.requests.len() >= LARGE
        {
            Self::vouch(hands, proposal.vote.statement);
        }
        true
    }
}
