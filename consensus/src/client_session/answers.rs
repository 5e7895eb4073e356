//! What replicas answer: which of it is proven, and what follows from it.

use super::belief::OWN_TOKEN;
use super::tally::ProvenBlock;
use super::{
    ClientSession, Completion, Destination, Event, Misbehaviour, OPENING, Phase, Proof,
    SessionState, Slot, Ticket,
};
use crate::client_wire::{ClientFrame, NodeStatus, Outcome, Refusal};
use crate::epoch_chain::{EpochLink, MemberKeys};
use crate::message::{BlockHeader, BlockReplies, EpochEnd, RequestBody, ResultEntry, result_leaf};
use crate::types::ReplicaId;
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::mistake;
use std::sync::Arc;

/// Times an OpenSession is made anew because another process of this client opened one meanwhile.
const OPEN_ATTEMPTS_MAX: u32 = 16;

/// First wait after a Busy, milliseconds; doubles each time.
const BUSY_BACKOFF_MS: u64 = 20;

impl ClientSession {
    pub(super) fn on_replies(&mut self, from: ReplicaId, replies: BlockReplies, now_ms: u64) {
        let BlockReplies { header, replica, attestation, results } = replies;
        // Late answers are the common case: f of n replicas always come after the proof.
        if !results.iter().any(|entry| self.by_digest.contains_key(&entry.request)) {
            return;
        }
        if replica != from || header.cluster != self.config.cluster {
            return self.misbehaved(from, Misbehaviour::Name);
        }
        let members = self.chain.members_of(header.epoch).clone();
        if self.unknown_members(&header, &members, from) {
            self.ends_wanted = true;
            return;
        }
        let hash = header.hash();
        let block = match self.tally.vouch(hash, &header, from, attestation, &members) {
            Ok(Some(block)) => block,
            Ok(None) => return self.listening.helped(from),
            Err(_) if header.epoch > self.chain.newest() => {
                self.ends_wanted = true;
                return;
            }
            Err(_) => return self.misbehaved(from, Misbehaviour::Attestation),
        };
        self.listening.helped(from);
        for entry in results {
            if let Some(number) = self.by_digest.get(&entry.request).copied()
                && let Err(what) = self.on_result(number, entry, &block, now_ms)
            {
                return self.misbehaved(from, what);
            }
        }
    }

    /// Whether the header speaks of members that are not proven here yet.
    fn unknown_members(&self, header: &BlockHeader, members: &MemberKeys, from: ReplicaId) -> bool {
        let within = header.next_epoch == header.epoch;
        (within && header.membership != members.digest())
            || (members.key(from).is_none() && header.epoch >= self.chain.newest())
    }

    /// A result of a proven block.
    fn on_result(
        &mut self,
        number: u64,
        entry: ResultEntry,
        block: &Arc<ProvenBlock>,
        now_ms: u64,
    ) -> Result<(), Misbehaviour> {
        let leaf = result_leaf(&entry.request, &entry.result);
        let root = entry.path.root_of(leaf).map_err(|_| Misbehaviour::Path)?;
        if root != block.header.results_root && !mistake!("client-ignores-path") {
            return Err(Misbehaviour::Path);
        }
        let outcome: Outcome = wire::decode(&entry.result, wire::FRAME_BYTES_MAX)
            .map_err(|_| Misbehaviour::Outcome)?;
        if let Outcome::Duplicate { .. } = outcome {
            // The original reply travels beside it, as a frame of its own block.
            if let Some(pending) = self.pending_mut(number)
                && pending.duplicate.is_none()
            {
                pending.duplicate = Some((outcome, entry, block.clone(), 0));
            }
            return Ok(());
        }
        self.complete(number, outcome, entry, block.clone(), now_ms);
        Ok(())
    }

    pub(super) fn complete(
        &mut self,
        number: u64,
        outcome: Outcome,
        entry: ResultEntry,
        block: Arc<ProvenBlock>,
        now_ms: u64,
    ) {
        self.by_digest.remove(&entry.request);
        self.belief.progressed(now_ms);
        if number == OPENING {
            self.on_open_outcome(outcome, now_ms);
        } else if let Some(slot) = self.slot_mut(number)
            && let Slot::Waiting(pending) = std::mem::replace(slot, Slot::Answered)
        {
            self.timers.remove(&(pending.due_ms, number));
            self.measured(now_ms.saturating_sub(pending.sent_ms));
            self.outstanding -= 1;
            self.outstanding_bytes -= pending.request.wire_bytes();
            self.advance();
            self.listen_to_fewer(now_ms);
            if let (Outcome::Refused(Refusal::NotOpen(id)), Phase::Open(open)) =
                (&outcome, &self.phase)
                && id == open
            {
                self.phase = Phase::Closed(*id);
            }
            let ResultEntry { result, path, .. } = entry;
            let proof = Proof { request: pending.request, result, path, block };
            let completion = Completion { ticket: Ticket(number), outcome, proof };
            self.out.push(Event::Completed(Box::new(completion)));
        }
        self.ask_status(now_ms);
    }

    fn on_open_outcome(&mut self, outcome: Outcome, now_ms: u64) {
        let Phase::Opening { pending, attempts } =
            std::mem::replace(&mut self.phase, Phase::Failed)
        else {
            return;
        };
        self.timers.remove(&(pending.due_ms, OPENING));
        let closing = match pending.request.request().body {
            RequestBody::OpenSession { close, .. } => close,
            RequestBody::Submit { .. } => None,
        };
        match outcome {
            Outcome::Opened { session } => {
                self.state = SessionState { opened: session.0, session: Some(session) };
                self.phase = Phase::Open(session);
                self.send(Destination::All, ClientFrame::Attach { session });
                self.out.push(Event::Opened { session, state: self.state });
            }
            Outcome::Refused(Refusal::OpenCount { opened }) if attempts < OPEN_ATTEMPTS_MAX => {
                self.state.opened = opened;
                self.open(closing, attempts + 1, now_ms);
            }
            // The session to close is closed already: idle for long, or by a process that then died.
            Outcome::Refused(Refusal::NotOpen(_)) if closing.is_some() => {
                self.open(None, attempts + 1, now_ms);
            }
            Outcome::Refused(refusal) => self.out.push(Event::OpenRefused(refusal)),
            Outcome::Executed(_) | Outcome::Duplicate { .. } => {
                let refusal = Refusal::OpenCount { opened: self.state.opened };
                self.out.push(Event::OpenRefused(refusal));
            }
        }
    }

    pub(super) fn on_busy(
        &mut self,
        from: ReplicaId,
        request: &Digest,
        reason: String,
        now_ms: u64,
    ) {
        let Some(number) = self.by_digest.get(request).copied() else { return };
        let half_ms = self.interval_ms(0);
        let Some(pending) = self.pending_mut(number) else { return };
        // Where all were asked, one that is busy changes nothing; nor does one that says so for ever put off that all
        // are asked.
        let backoff = BUSY_BACKOFF_MS.saturating_mul(1 << pending.busy.min(10)).min(half_ms);
        let again_ms = now_ms.saturating_add(backoff);
        if pending.sent_to == Some(from) && !pending.retry && again_ms < pending.all_ms {
            pending.busy = pending.busy.saturating_add(1);
            pending.retry = true;
            self.set_timer(number, again_ms);
        }
        let ticket = (number != OPENING).then_some(Ticket(number));
        self.out.push(Event::Busy { ticket, replica: from, reason });
    }

    pub(super) fn on_status(&mut self, from: ReplicaId, token: u64, status: Box<NodeStatus>) {
        let members = self.chain.members();
        if members.key(from).is_some() {
            self.belief.claimed(from, token, &status, members.quorum().weak());
        }
        if token & OWN_TOKEN == 0 {
            self.out.push(Event::Status { token, replica: from, status });
        }
    }

    pub(super) fn on_epoch_ends(&mut self, from: ReplicaId, ends: &[EpochEnd]) {
        for end in ends {
            match self.chain.extend(EpochLink::from(end)) {
                Ok(true) => {
                    self.listen_to_all();
                    let members = self.chain.members().clone();
                    self.out.push(Event::Members { epoch: self.chain.newest(), members });
                }
                Ok(false) => {}
                Err(error) => return self.misbehaved(from, Misbehaviour::EpochEnd(error)),
            }
        }
    }
}
