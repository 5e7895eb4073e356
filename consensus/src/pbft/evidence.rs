//! Which signed statements no correct replica makes: the one judge of [`crate::evidence`].
//!
//! What is judged comes from anywhere, a file included: every body must be the encoding of its kind,
//! whole, and say of itself what the evidence says of it.

use super::Pbft;
use super::certificate::{Statement, primary};
use super::message::{Message, NewView, PrePrepare, Sealed, ViewChange, Vote};
use super::new_view::proposals_of;
use crate::engine::{Effect, Reject, To};
use crate::evidence::{Evidence, EvidenceError, Proof, Subject};
use crate::message::{Attestation, Batch, CheckpointVote, kind};
use crate::types::{Epoch, ReplicaId, Sequence, View};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::KeyCache;
use conclave_crypto::mistake;
use conclave_crypto::signature::Signed;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Proofs that one engine hands out against one replica for one type, in one epoch.
const ACCUSATIONS_MAX: usize = 16;

fn innocent<T>(reason: &'static str) -> Result<T, EvidenceError> {
    Err(EvidenceError::Innocent(reason))
}

/// Whether no correct replica signs this, and what it is about. Signatures are the caller's matter.
pub(crate) fn fault(evidence: &Evidence, cluster: &Digest) -> Result<Subject, EvidenceError> {
    match &evidence.proof {
        Proof::Contradiction { first, second } => {
            let one = subject(evidence, &first.body)?;
            let other = subject(evidence, &second.body)?;
            if one != other {
                return innocent("the statements are about different things");
            }
            match first.body.cmp(&second.body) {
                std::cmp::Ordering::Less => Ok(one),
                std::cmp::Ordering::Equal => innocent("the statements are the same"),
                std::cmp::Ordering::Greater => innocent("the statements are in the wrong order"),
            }
        }
        Proof::Unfounded { statement, basis } => {
            let subject = subject(evidence, &statement.body)?;
            match evidence.kind {
                kind::PRE_PREPARE => holds_forged_request(&statement.body, basis, cluster)?,
                kind::NEW_VIEW => wrong_new_view(&statement.body, basis)?,
                _ => return innocent("this type rests on nothing"),
            }
            Ok(subject)
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, EvidenceError> {
    let parsed = wire::decode(body, wire::FRAME_BYTES_MAX);
    parsed.or_else(|_| innocent("a statement is not in the encoding of its type"))
}

/// What a statement is about: two that agree in this and differ in anything are a contradiction.
fn subject(evidence: &Evidence, body: &[u8]) -> Result<Subject, EvidenceError> {
    let Evidence { culprit, epoch, kind, .. } = *evidence;
    let (signed_in, signed_by, subject) = match kind {
        kind::PRE_PREPARE | kind::PREPARE | kind::COMMIT => {
            let (view, sequence, _digest): (View, Sequence, Digest) = parse(body)?;
            (epoch, culprit, Subject { view, sequence })
        }
        kind::VIEW_CHANGE => {
            let change: ViewChange = parse(body)?;
            let subject = Subject { view: change.view, sequence: Sequence(0) };
            (change.epoch, change.replica, subject)
        }
        kind::NEW_VIEW => {
            let new_view: NewView = parse(body)?;
            let subject = Subject { view: new_view.view, sequence: Sequence(0) };
            (new_view.epoch, culprit, subject)
        }
        kind::CHECKPOINT => {
            let vote: CheckpointVote = parse(body)?;
            let subject = Subject { view: View(0), sequence: vote.checkpoint.height };
            (vote.checkpoint.epoch, vote.replica, subject)
        }
        kind::ATTESTATION => {
            let attestation: Attestation = parse(body)?;
            let subject = Subject { view: View(0), sequence: attestation.height };
            (attestation.epoch, attestation.replica, subject)
        }
        // A replica signs a Rejoin for each journal it loses.
        _ => return innocent("a correct replica may sign several of this type"),
    };
    if signed_in != epoch || signed_by != culprit {
        return innocent("a statement names another epoch or replica");
    }
    Ok(subject)
}

/// A correct primary verifies a request before it proposes it. A proposal that a NEW-VIEW repeats
/// was verified by those who prepared it.
fn holds_forged_request(
    body: &[u8],
    basis: &[serde_bytes::ByteBuf],
    cluster: &Digest,
) -> Result<(), EvidenceError> {
    let (_, _, digest): (View, Sequence, Digest) = parse(body)?;
    let [batch] = basis else { return innocent("a proposal names one batch") };
    let Ok(batch) = Batch::decode(batch, wire::FRAME_BYTES_MAX) else {
        return innocent("what it rests on is no batch");
    };
    if batch.digest() != digest {
        return innocent("the proposal names another batch");
    }
    let keys = KeyCache::new(64);
    if batch.requests.iter().all(|request| request.verify(&keys, cluster).is_ok()) {
        return innocent("all requests of the batch are signed by their clients");
    }
    Ok(())
}

/// OSDI'99 §4.4: O follows from V alone.
fn wrong_new_view(body: &[u8], basis: &[serde_bytes::ByteBuf]) -> Result<(), EvidenceError> {
    let new_view: NewView = parse(body)?;
    if basis.len() != new_view.changes.len() {
        return innocent("V is not complete");
    }
    let mut changes = Vec::with_capacity(basis.len());
    for ((_, name), body) in new_view.changes.iter().zip(basis) {
        let change: ViewChange = parse(body)?;
        if Sealed::<ViewChange>::name_of(body) != *name {
            return innocent("V is not what the NEW-VIEW names");
        }
        changes.push(change);
    }
    let named = new_view.changes.iter().map(|(id, _)| *id);
    let of_the_view = named.eq(changes.iter().map(|change| change.replica))
        && changes.iter().all(|it| it.view == new_view.view && it.epoch == new_view.epoch);
    let claimed = new_view.proposals.iter().map(|it| (it.statement.sequence, it.statement.digest));
    // Nothing bounds the bodies of a file: O is computed only where it is as long as the one claimed.
    let start = changes.iter().map(|it| it.stable).max().unwrap_or_default();
    let certified = changes.iter().flat_map(|it| &it.prepared).map(|it| it.statement.sequence);
    let length = certified.max().map_or(0, |end| end.0.saturating_sub(start.0));
    let follows = length == new_view.proposals.len() as u64
        && proposals_of(changes.iter())
            .is_ok_and(|proposals| claimed.eq(proposals.digests.iter().copied()));
    if of_the_view && follows {
        return innocent("O follows from V");
    }
    Ok(())
}

/// Two votes of one replica for one slot.
pub(super) fn two_votes(culprit: ReplicaId, kind: u8, one: &Vote, other: &Vote) -> Evidence {
    let signed = |vote: &Vote| (vote.statement.body(), vote.signature);
    Evidence::contradiction(culprit, one.statement.epoch, kind, signed(one), signed(other))
}

/// Two values of one replica for one thing.
pub(super) fn two_values<T: conclave_crypto::signature::Signable>(
    culprit: ReplicaId,
    one: &Signed<T>,
    other: &Signed<T>,
) -> Evidence {
    let signed = |it: &Signed<T>| (it.value.body(), it.signature);
    let epoch = Epoch(one.value.epoch());
    Evidence::contradiction(culprit, epoch, T::KIND, signed(one), signed(other))
}

/// A proposal of a request that its client did not sign: refused, with the proof.
pub(super) fn forged_request(leader: ReplicaId, message: &PrePrepare) -> Reject {
    let evidence = forged_proposal(leader, &message.vote, &message.batch);
    Reject::Proven("a request that its client did not sign", Box::new(evidence))
}

/// A proposal with a batch in which a client's signature is not valid.
pub(super) fn forged_proposal(leader: ReplicaId, vote: &Vote, batch: &Batch) -> Evidence {
    let (epoch, signed) = (vote.statement.epoch, (vote.statement.body(), vote.signature));
    let basis = vec![batch.bytes().to_vec()];
    Evidence::unfounded(leader, epoch, kind::PRE_PREPARE, signed, basis)
}

/// A NEW-VIEW with its V, in the order in which it names it.
pub(super) fn unfounded_new_view<'a>(
    leader: ReplicaId,
    new_view: &Sealed<NewView>,
    changes: impl Iterator<Item = &'a Arc<Sealed<ViewChange>>>,
) -> Evidence {
    use conclave_crypto::signature::Signable;
    let value = new_view.value();
    let statement = (value.body(), new_view.signed.signature);
    let basis = changes.map(|change| change.value().body()).collect();
    Evidence::unfounded(leader, value.epoch, kind::NEW_VIEW, statement, basis)
}

impl Pbft {
    /// Hands out proof against a replica, once for each thing it is about; says whether it did.
    pub(super) fn accuse(&mut self, evidence: Evidence) -> bool {
        let Ok(subject) = evidence.fault(&self.cluster) else { return false };
        let Evidence { culprit, kind, .. } = evidence;
        let known = self.accused.iter().filter(|it| (it.0, it.1) == (culprit, kind)).count();
        let new = known < ACCUSATIONS_MAX && self.accused.insert((culprit, kind, subject));
        if new && !mistake!("contradiction-unreported") {
            self.out.push(Effect::Evidence(evidence));
        }
        new
    }

    /// Proves that a primary proposed two batches for one slot, and shows both to all. Some have not
    /// voted, and so were shown nothing; they will leave this view as soon as the others do.
    pub(super) fn accuse_leader(&mut self, leader: ReplicaId, known: &Vote, vote: &Vote) {
        if self.accuse(two_votes(leader, kind::PRE_PREPARE, known, vote)) {
            for shown in [known, vote] {
                self.send_after(To::Others, Message::Proposed(*shown), 0);
            }
        }
    }

    /// A traitor that leads proposes different batches to different replicas, so that no one of them
    /// sees two. Whoever votes for another batch than the one proposed here is shown this proposal,
    /// once for its one vote in the slot.
    pub(super) fn show_proposal(&mut self, sequence: Sequence, to: ReplicaId) {
        let Some(instance) = self.log.get(&sequence) else { return };
        let (Some(proposal), Some((voted, _))) = (instance.proposal, instance.prepares.get(&to))
        else {
            return;
        };
        if *voted != proposal.statement.digest {
            // The primary's own proposal waits for its reservation like the PRE-PREPARE itself.
            self.send(To::One(to), Message::Proposed(proposal));
        }
    }

    /// The proposal came after votes for another.
    pub(super) fn show_proposal_to_all(&mut self, sequence: Sequence) {
        let voters = self.log.get(&sequence).map(|instance| instance.prepares.keys().copied());
        let voters: Vec<ReplicaId> = voters.into_iter().flatten().collect();
        for voter in voters {
            self.show_proposal(sequence, voter);
        }
    }

    /// A peer shows what the primary proposed to it.
    pub(super) fn on_proposed(&mut self, from: ReplicaId, vote: Vote) {
        let Statement { epoch, view, sequence, digest } = vote.statement;
        if epoch != self.epoch() || view != self.view {
            return self.reject(from, Reject::View);
        }
        let known = self.log.get(&sequence).and_then(|instance| instance.proposal);
        match known {
            Some(known) if known.statement.digest != digest => {
                self.suspicion.faulty = true;
                let leader = primary(&self.membership, view);
                self.accuse_leader(leader, &known, &vote);
            }
            Some(_) | None => self.reject(from, Reject::Known),
        }
    }
}
