//! From a peer's bytes to a verified [`Message`]: the only way in.
//!
//! Checks run from cheap to dear: size, sender and epoch, window and what is known already, and
//! signatures last, so that a hostile byte buys little work. What only the engine knows (clocks,
//! the log, what was asked for) it checks again. A batch that somebody asked for or that a commit
//! certificate proves is checked by its digest alone: a correct replica verified its requests
//! before it voted.

use super::certificate::{CertificateError, Keys, PreparedCertificate, Statement, primary};
use super::evidence::forged_request;
use super::message::{Decided, Message, NewView, OwnVotes, PrePrepare, Sealed, ViewChange, Vote};
use super::new_view::view_changes_needed;
use super::vouching;
use crate::engine::{Horizon, Phase, Reject};
use crate::membership::{Limits, Membership};
use crate::message::{
    Attestation, Batch, Change, Checkpoint, CheckpointCertificate, CheckpointVote, EpochEnd,
    Rejoin, SignedRequest, kind,
};
use crate::quorum::Byzantine;
use crate::types::{Epoch, ReplicaId, Sequence, View};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::VerifyingKey;
use conclave_crypto::mistake;
use conclave_crypto::signature::{Signature, Signed};
use std::sync::Arc;

/// Variants whose frames may carry bodies, by the number that starts the frame.
const BULKY: [u32; 5] = [0, 8, 10, 13, 18];

/// What a frame of PRE-PREPARE or of a vote holds before anything else: variant and vote.
const VOTE_BYTES: usize = 4 + 8 + 8 + 8 + 32 + 64;

/// The number that starts a FORWARD.
const FORWARD: u32 = 8;

/// Requests in one FORWARD.
pub(super) const FORWARD_ITEMS_MAX: usize = 1024;

/// Members of any epoch.
const MEMBERS_MAX: usize = 1_000;

/// Bytes of the largest VIEW-CHANGE of `n` members over a window of `window`.
pub(super) const fn view_change_bytes_max(n: usize, window: usize) -> usize {
    let quorum = Byzantine::of(n).quorum();
    let prepared = 56 + 64 + 8 + (quorum - 1) * 66;
    let certificate = 1 + 8 + 8 + 32 + 32 + 8 + quorum * 66;
    4 + 8 + 8 + 2 + 8 + certificate + 8 + window * prepared + 64
}

/// Bytes of the largest NEW-VIEW.
pub(super) const fn new_view_bytes_max(n: usize, window: usize) -> usize {
    4 + 8 + 8 + 8 + Byzantine::of(n).quorum() * 34 + 8 + window * 120 + 64
}

/// Bytes of the largest OWN-VOTES: two votes for each slot, VIEW-CHANGE, NEW-VIEW and CHECKPOINT.
pub(super) const fn own_votes_bytes_max(n: usize, window: usize) -> usize {
    let votes = 4 + 8 + 8 + window * 2 * (1 + 56 + 64);
    votes + view_change_bytes_max(n, window) + new_view_bytes_max(n, window) + 256
}

// The largest legal control frame of 31 members with the default window fits its cap.
const _: () = assert!(view_change_bytes_max(31, 256) <= wire::CONTROL_BYTES_MAX);
const _: () = assert!(new_view_bytes_max(31, 256) <= wire::CONTROL_BYTES_MAX);
// And whatever window lets a VIEW-CHANGE fit, OWN-VOTES fits a frame that may carry bodies.
const _: () = assert!(own_votes_bytes_max(4, 3_190) <= wire::FRAME_BYTES_MAX);
const _: () = assert!(own_votes_bytes_max(31, 256) <= wire::FRAME_BYTES_MAX);
const _: () = assert!(VOTE_BYTES + 8 + (4 << 20) + (1 << 20) <= wire::FRAME_BYTES_MAX);

pub(super) fn decode(horizon: &Horizon, from: ReplicaId, bytes: &[u8]) -> Result<Message, Reject> {
    let (message, rest) = bytes.split_at_checked(4).ok_or(Reject::Malformed("frame"))?;
    let variant = u32::from_le_bytes(message.try_into().expect("split at four bytes"));
    let limit =
        if BULKY.contains(&variant) { wire::FRAME_BYTES_MAX } else { wire::CONTROL_BYTES_MAX };
    if bytes.len() > limit {
        return Err(Reject::Malformed("larger than its kind allows"));
    }
    let key = horizon.keys.get(&from).ok_or(Reject::Sender)?;
    let decoder = Decoder { horizon, from, key };
    // PRE-PREPARE and DECIDED are judged by what stands before their batch.
    if variant == 0 {
        let head = rest.get(..VOTE_BYTES - 4).ok_or(Reject::Malformed("PRE-PREPARE"))?;
        decoder.pre_prepare_head(&parse(head)?)?;
    }
    if variant == 13 {
        let head = rest.get(..56).ok_or(Reject::Malformed("DECIDED"))?;
        decoder.decided_head(&parse(head)?)?;
    }
    // The sender may be a step ahead or behind: no fault, and not worth reading.
    if variant == FORWARD && decoder.primary(View(horizon.view)) != horizon.me {
        return Err(Reject::View);
    }
    let mut message: Message = parse(bytes)?;
    decoder.check(&message)?;
    if let Message::PrePrepare(message) = &mut message {
        message.unchecked = vouching::left_to_others(horizon, message);
    }
    Ok(message)
}

fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Reject> {
    wire::decode(bytes, wire::FRAME_BYTES_MAX).map_err(|_| Reject::Malformed("encoding"))
}

struct Decoder<'a> {
    horizon: &'a Horizon,
    from: ReplicaId,
    key: &'a VerifyingKey,
}

impl Decoder<'_> {
    fn check(&self, message: &Message) -> Result<(), Reject> {
        match message {
            Message::PrePrepare(message) => self.pre_prepare(message),
            Message::Prepare(vote) => self.vote(vote, kind::PREPARE, Phase::Prepared, "PREPARE"),
            Message::Commit(vote) => self.vote(vote, kind::COMMIT, Phase::Decided, "COMMIT"),
            Message::Checkpoint(vote) => self.checkpoint(vote),
            Message::ViewChange(message) => self.view_change(message),
            Message::NewView(message) => self.new_view(message),
            Message::Suspect { epoch, view } => {
                self.epoch(*epoch)?;
                if view.0 < self.horizon.view { Err(Reject::View) } else { Ok(()) }
            }
            Message::Forward(requests) => self.forward(requests),
            Message::Body { batch, .. } => {
                check_batch_size(batch, &self.horizon.limits)?;
                Ok(())
            }
            Message::Decided(message) => self.decided(message),
            Message::Stable(certificate) => self.stable(certificate),
            Message::EpochEnd(end) => self.epoch_end(end),
            Message::Rejoin(rejoin) => self.rejoin(rejoin, Some(self.from)),
            Message::OwnVotes(own) => self.own_votes(own),
            Message::Proposed(vote) => self.proposed(vote),
            Message::Status(report) => {
                if report.changes.len() > MEMBERS_MAX {
                    return Err(Reject::Cap("senders of VIEW-CHANGEs"));
                }
                Ok(())
            }
            Message::FetchBatch { .. }
            | Message::FetchViewChange { .. }
            | Message::FetchDecided { .. }
            | Message::OwnVotesQuery { .. } => Ok(()),
        }
    }

    fn epoch(&self, epoch: Epoch) -> Result<(), Reject> {
        match epoch.cmp(&self.horizon.epoch) {
            std::cmp::Ordering::Less => Err(Reject::EpochPast(epoch)),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(Reject::EpochFuture(epoch)),
        }
    }

    fn window(&self, sequence: Sequence) -> Result<(), Reject> {
        if sequence > self.horizon.low && sequence <= self.horizon.high {
            Ok(())
        } else {
            Err(Reject::Window)
        }
    }

    /// Epoch, view, window and phase of a vote. Votes of later views pass: the engine buffers few.
    fn relevant(&self, statement: &Statement, over: Phase) -> Result<(), Reject> {
        self.epoch(statement.epoch)?;
        if statement.view.0 < self.horizon.view && !mistake!("votes-of-other-views-counted") {
            return Err(Reject::View);
        }
        self.window(statement.sequence)?;
        if statement.view.0 == self.horizon.view && self.phase(statement.sequence) >= over {
            return Err(Reject::Known);
        }
        Ok(())
    }

    fn phase(&self, sequence: Sequence) -> Phase {
        let index = sequence.0.saturating_sub(self.horizon.low.0.saturating_add(1));
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.horizon.phases.get(index).copied().unwrap_or(Phase::Open)
    }

    fn primary(&self, view: View) -> ReplicaId {
        primary(&self.horizon.membership, view)
    }

    fn signature(
        &self,
        statement: &Statement,
        kind: u8,
        signature: &Signature,
        name: &'static str,
    ) -> Result<(), Reject> {
        if mistake!("vote-signature-unchecked") {
            return Ok(());
        }
        self.key
            .verify(&statement.covered(&self.horizon.cluster, kind), signature)
            .map_err(|_| Reject::Signature(name))
    }

    fn vote(&self, vote: &Vote, kind: u8, over: Phase, name: &'static str) -> Result<(), Reject> {
        self.relevant(&vote.statement, over)?;
        if kind == kind::PREPARE && self.primary(vote.statement.view) == self.from {
            return Err(Reject::Sender);
        }
        self.signature(&vote.statement, kind, &vote.signature, name)
    }

    fn pre_prepare_head(&self, vote: &Vote) -> Result<(), Reject> {
        self.relevant(&vote.statement, Phase::Prepared)?;
        if self.primary(vote.statement.view) != self.from {
            return Err(Reject::Sender);
        }
        self.signature(&vote.statement, kind::PRE_PREPARE, &vote.signature, "PRE-PREPARE")
    }

    fn pre_prepare(&self, message: &PrePrepare) -> Result<(), Reject> {
        let batch = &message.batch;
        check_batch_size(batch, &self.horizon.limits)?;
        if batch.digest() != message.vote.statement.digest {
            return Err(Reject::Protocol("PRE-PREPARE names another batch"));
        }
        if let Some(Change::Rejoin(rejoin)) = &batch.change {
            if !batch.requests.is_empty() || !batch.checkpoint {
                return Err(Reject::Protocol("a change stands alone in a marked batch"));
            }
            self.rejoin(rejoin, None)?;
        }
        if vouching::left_to_others(self.horizon, message) {
            return self.request_sizes(&batch.requests);
        }
        self.requests(&batch.requests).map_err(|reason| {
            let forged = matches!(reason, Reject::Signature(_));
            if forged { forged_request(self.from, message) } else { reason }
        })
    }

    /// What a peer says the primary of this view proposed to it.
    fn proposed(&self, vote: &Vote) -> Result<(), Reject> {
        let Statement { epoch, view, sequence, .. } = vote.statement;
        self.epoch(epoch)?;
        if view.0 != self.horizon.view {
            return Err(Reject::View);
        }
        self.window(sequence)?;
        let key = self.horizon.keys.get(&self.primary(view)).ok_or(Reject::Sender)?;
        if mistake!("shown-proposal-unchecked") {
            return Ok(());
        }
        key.verify(
            &vote.statement.covered(&self.horizon.cluster, kind::PRE_PREPARE),
            &vote.signature,
        )
        .map_err(|_| Reject::Signature("PRE-PREPARE"))
    }

    fn request_sizes(&self, requests: &[Arc<SignedRequest>]) -> Result<(), Reject> {
        let largest = self.horizon.limits.request_bytes_max as usize;
        if requests.iter().any(|request| request.bytes().len() > largest) {
            return Err(Reject::Protocol("a request larger than the genesis allows"));
        }
        Ok(())
    }

    fn requests(&self, requests: &[Arc<SignedRequest>]) -> Result<(), Reject> {
        self.request_sizes(requests)?;
        let Horizon { verifier, cluster, .. } = self.horizon;
        if verifier.verify_all(requests, cluster) {
            Ok(())
        } else {
            Err(Reject::Signature("request"))
        }
    }

    fn forward(&self, requests: &[Arc<SignedRequest>]) -> Result<(), Reject> {
        if requests.len() > FORWARD_ITEMS_MAX {
            return Err(Reject::Cap("forwarded requests"));
        }
        // A correct replica has no connection to anybody else; each would be a client with turns.
        if requests.iter().any(|request| !self.horizon.clients.contains(&request.key().client)) {
            return Err(Reject::Protocol("forwards a request of nobody that the genesis names"));
        }
        self.requests(requests)
    }

    fn checkpoint(&self, vote: &Signed<CheckpointVote>) -> Result<(), Reject> {
        self.epoch(vote.value.checkpoint.epoch)?;
        if vote.value.replica != self.from {
            return Err(Reject::Sender);
        }
        self.window(vote.value.checkpoint.height)?;
        if mistake!("attestation-taken-for-checkpoint") && self.attests(vote) {
            return Ok(());
        }
        vote.verify(self.key, &self.horizon.cluster).map_err(|_| Reject::Signature("CHECKPOINT"))
    }

    /// Whether this carries the signature that stands under a reply of that block.
    fn attests(&self, vote: &Signed<CheckpointVote>) -> bool {
        let CheckpointVote { checkpoint, replica } = &vote.value;
        let Checkpoint { epoch, height, header, .. } = *checkpoint;
        let value = Attestation { epoch, height, header, replica: *replica };
        let attestation = Signed { value, signature: vote.signature };
        attestation.verify(self.key, &self.horizon.cluster).is_ok()
    }

    /// The signer may be another than the sender: a NEW-VIEW's V is fetched from its primary.
    fn view_change(&self, message: &Sealed<ViewChange>) -> Result<(), Reject> {
        let change = message.value();
        self.epoch(change.epoch)?;
        if change.view.0 < self.horizon.view || change.view.0 == 0 {
            return Err(Reject::View);
        }
        self.view_change_shape(change)?;
        let key = self.horizon.keys.get(&change.replica).ok_or(Reject::Sender)?;
        message
            .signed
            .verify(key, &self.horizon.cluster)
            .map_err(|_| Reject::Signature("VIEW-CHANGE"))?;
        if let Some(certificate) = &change.certificate {
            self.checkpoint_certificate(certificate)?;
        }
        change.prepared.iter().try_for_each(|certificate| self.prepared(certificate))
    }

    /// OSDI'99 §4.4: what makes a VIEW-CHANGE correct, but for its signatures.
    fn view_change_shape(&self, change: &ViewChange) -> Result<(), Reject> {
        let proven = match &change.certificate {
            Some(certificate) => certificate.checkpoint.height == change.stable,
            // The base of the epoch is proven by the epoch's start; the engine knows it.
            None => true,
        };
        let high = change.stable.plus(self.horizon.limits.window);
        let inside = change.prepared.iter().all(|certificate| {
            let Statement { view, sequence, .. } = certificate.statement;
            view < change.view && sequence > change.stable && sequence <= high
        });
        let ordered = change
            .prepared
            .windows(2)
            .all(|pair| pair[0].statement.sequence < pair[1].statement.sequence);
        if proven && inside && ordered {
            Ok(())
        } else {
            Err(Reject::Protocol("VIEW-CHANGE is not correct"))
        }
    }

    fn prepared(&self, certificate: &PreparedCertificate) -> Result<(), Reject> {
        if mistake!("prepared-certificate-unchecked") {
            return Ok(());
        }
        certificate
            .verify(&self.horizon.cluster, &self.horizon.membership, &self.horizon.keys)
            .map_err(|error| rejected(error, "prepared certificate"))
    }

    fn checkpoint_certificate(&self, certificate: &CheckpointCertificate) -> Result<(), Reject> {
        if mistake!("stable-checkpoint-unchecked") {
            return Ok(());
        }
        certificate
            .verify_with(&self.horizon.cluster, &self.horizon.membership, &self.horizon.keys)
            .map_err(|error| rejected(error, "checkpoint certificate"))
    }

    fn new_view(&self, message: &Sealed<NewView>) -> Result<(), Reject> {
        let value = message.value();
        self.epoch(value.epoch)?;
        if value.view.0 < self.horizon.view || value.view.0 == 0 {
            return Err(Reject::View);
        }
        let membership = &self.horizon.membership;
        let ordered = value.changes.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let members = value.changes.iter().all(|(id, _)| membership.contains(*id));
        if value.changes.len() != view_changes_needed(membership) || !ordered || !members {
            return Err(Reject::Protocol("V of NEW-VIEW is no quorum in id order"));
        }
        if value.proposals.len() as u64 > self.horizon.limits.window {
            return Err(Reject::Protocol("O of NEW-VIEW exceeds the window"));
        }
        let fits =
            |vote: &Vote| vote.statement.epoch == value.epoch && vote.statement.view == value.view;
        let gapless = value
            .proposals
            .windows(2)
            .all(|pair| pair[1].statement.sequence == pair[0].statement.sequence.next());
        if !value.proposals.iter().all(fits) || !gapless {
            return Err(Reject::Protocol("O of NEW-VIEW is not of its view, in order"));
        }
        let primary = self.primary(value.view);
        let key = self.horizon.keys.get(&primary).ok_or(Reject::Sender)?;
        let cluster = &self.horizon.cluster;
        message.signed.verify(key, cluster).map_err(|_| Reject::Signature("NEW-VIEW"))?;
        for vote in &value.proposals {
            key.verify(&vote.statement.covered(cluster, kind::PRE_PREPARE), &vote.signature)
                .map_err(|_| Reject::Signature("PRE-PREPARE of a NEW-VIEW"))?;
        }
        Ok(())
    }

    /// The members that decided this slot of this epoch, if a decided batch there is of use.
    fn era(&self, statement: &Statement) -> Result<(&Membership, &Keys), Reject> {
        if statement.sequence <= self.horizon.delivered {
            return Err(Reject::Known);
        }
        if statement.epoch == self.horizon.epoch {
            return Ok((&self.horizon.membership, &self.horizon.keys));
        }
        let era = self.horizon.earlier.iter().find(|era| era.membership.epoch == statement.epoch);
        match era {
            Some(era) if statement.sequence <= era.end => Ok((&era.membership, &era.keys)),
            // What an epoch decided above its end is void.
            Some(_) => Err(Reject::Protocol("decided above its epoch's end")),
            None if statement.epoch > self.horizon.epoch => {
                Err(Reject::EpochFuture(statement.epoch))
            }
            None => Err(Reject::EpochPast(statement.epoch)),
        }
    }

    fn decided_head(&self, statement: &Statement) -> Result<(), Reject> {
        self.era(statement).map(|_| ())
    }

    fn decided(&self, message: &Decided) -> Result<(), Reject> {
        let statement = &message.certificate.statement;
        if message.batch.digest() != statement.digest {
            return Err(Reject::Protocol("the certificate decides another batch"));
        }
        let (membership, keys) = self.era(statement)?;
        message
            .certificate
            .verify(&self.horizon.cluster, membership, keys)
            .map_err(|error| rejected(error, "commit certificate"))
    }

    fn stable(&self, certificate: &CheckpointCertificate) -> Result<(), Reject> {
        self.epoch(certificate.checkpoint.epoch)?;
        if certificate.checkpoint.height <= self.horizon.low {
            return Err(Reject::Known);
        }
        self.checkpoint_certificate(certificate)
    }

    fn epoch_end(&self, end: &EpochEnd) -> Result<(), Reject> {
        self.epoch(end.header.epoch)?;
        check_epoch_end(end, &self.horizon.cluster, &self.horizon.membership, &self.horizon.keys)
    }

    /// A Rejoin of the member that signed it; `sender` when it came by itself.
    fn rejoin(&self, rejoin: &Signed<Rejoin>, sender: Option<ReplicaId>) -> Result<(), Reject> {
        if !mistake!("rejoin-of-another-epoch-accepted") {
            self.epoch(rejoin.value.epoch)?;
        }
        if sender.is_some_and(|sender| sender != rejoin.value.replica) {
            return Err(Reject::Sender);
        }
        let key = self.horizon.keys.get(&rejoin.value.replica).ok_or(Reject::Sender)?;
        rejoin.verify(key, &self.horizon.cluster).map_err(|_| Reject::Signature("REJOIN"))
    }

    /// The votes inside are the receiver's own; the engine, which was waiting, verifies them.
    fn own_votes(&self, own: &OwnVotes) -> Result<(), Reject> {
        if own.votes.len() as u64 > self.horizon.limits.window.saturating_mul(3) {
            return Err(Reject::Cap("own votes"));
        }
        Ok(())
    }
}

fn rejected(error: CertificateError, name: &'static str) -> Reject {
    match error {
        CertificateError::Signature(_) => Reject::Signature(name),
        CertificateError::Malformed
        | CertificateError::Subject
        | CertificateError::Signers
        | CertificateError::Key(_) => Reject::Protocol("a certificate of the wrong shape"),
    }
}

fn check_batch_size(batch: &Batch, limits: &Limits) -> Result<(), Reject> {
    if batch.requests.len() > limits.batch_requests_max as usize
        || batch.bytes().len() > limits.batch_bytes_max as usize + BATCH_OVERHEAD
    {
        return Err(Reject::Protocol("a batch larger than the genesis allows"));
    }
    Ok(())
}

/// What a batch may hold beside its requests: timestamp, mark, a change, the count. Bytes.
const BATCH_OVERHEAD: usize = 256;

/// Whether this proves how `membership`'s epoch ended: a quorum of its CHECKPOINTs at a block whose
/// batch carries a change, and the members that follow from it.
pub(super) fn check_epoch_end(
    end: &EpochEnd,
    cluster: &Digest,
    membership: &Membership,
    keys: &Keys,
) -> Result<(), Reject> {
    let EpochEnd { header, certificate, next, batch } = end;
    let checkpoint = &certificate.checkpoint;
    let follows = batch.change.as_ref().and_then(|change| change.next(membership));
    let fits = header.epoch == membership.epoch
        && header.next_epoch == membership.epoch.next()
        && header.height == checkpoint.height
        && header.hash() == checkpoint.header
        && header.batch == batch.digest()
        && header.membership == next.digest()
        && follows.as_ref() == Some(next);
    if !fits {
        return Err(Reject::Protocol("not the end of its epoch"));
    }
    if mistake!("epoch-end-unchecked") {
        return Ok(());
    }
    certificate
        .verify_with(cluster, membership, keys)
        .map_err(|error| rejected(error, "checkpoint certificate"))
}

/// Whether a sequence lies in (low, low + window].
pub(super) fn in_window(sequence: Sequence, low: Sequence, window: u64) -> bool {
    sequence > low && sequence <= low.plus(window)
}
