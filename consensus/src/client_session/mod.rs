//! The client's side of agreement: numbering, resending, and counting f+1 equal attested results.
//!
//! A [`ClientSession`] does no IO and has no clock. The caller connects to every replica, hands in
//! the frames it receives and the time, and carries out the [`Event`]s it gets back. One process
//! has one session, however many requests are outstanding in it.
//!
//! A result is believed when f+1 members attest one block's header and a Merkle path leads from the
//! request's digest and the result to that header's results root. Signatures are checked once per
//! block and replica, only until f+1 are found, and only for frames that answer an outstanding
//! request; results themselves are never stored before they are proven: the frame that completes the
//! proof carries them, and so does each later one. A frame costs a look-up per result, and each
//! completed request one Merkle path.
//!
//! Exactly once: requests are numbered from 1 in a session, and `acknowledged` is the end of the run
//! of answered ones. A request is resent with the same bytes until it is answered, for ever: as long
//! as its session is open nobody can know that it will not execute. How long a user waits is the
//! caller's affair.

mod belief;
mod event;
mod tally;
#[cfg(test)]
mod tests;

pub use belief::Destination;
pub use event::{
    ClientConfig, Completion, Event, Misbehaviour, Proof, Reservation, SessionState, SubmitError,
    Ticket,
};
pub use tally::ProvenBlock;

use crate::client_wire::{ClientFrame, NodeFrame, NodeStatus, Outcome, Refusal};
use crate::epoch_chain::{ChainError, EpochChain, EpochLink, MemberKeys};
use crate::message::{
    BlockHeader, BlockReplies, EpochEnd, REQUEST_WINDOW, Request, RequestBody, ResultEntry,
    SignedRequest, result_leaf,
};
use crate::types::{Epoch, ReplicaId, RequestNumber, SessionId};
use crate::wire;
use belief::{Belief, OWN_TOKEN};
use conclave_crypto::digest::Digest;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tally::Tally;

/// Bytes of requests that may be outstanding at once.
pub const OUTSTANDING_BYTES_MAX: usize = 64 << 20;

/// Times an OpenSession is made anew because another process of this client opened one meanwhile.
const OPEN_ATTEMPTS_MAX: u32 = 16;

/// Resends after a proven Duplicate before it is taken for the answer, the original being lost.
const DUPLICATE_RESENDS_MAX: u32 = 3;

/// First wait after a Busy, milliseconds; doubles each time.
const BUSY_BACKOFF_MS: u64 = 20;

/// A request on its way.
struct Pending {
    request: SignedRequest,
    /// The one replica it was sent to, when it was.
    sent_to: Option<ReplicaId>,
    sent_ms: u64,
    due_ms: u64,
    resends: u32,
    busy: u32,
    /// The next send is for a Busy, not for silence.
    retry: bool,
    /// Proof that it was executed in another block, and the resends since.
    duplicate: Option<(Outcome, ResultEntry, Arc<ProvenBlock>, u32)>,
}

enum Slot {
    Reserved,
    Waiting(Box<Pending>),
    Answered,
}

enum Phase {
    Opening { pending: Box<Pending>, attempts: u32 },
    Open(SessionId),
    Closed(SessionId),
    Failed,
}

/// The number under which timers and digests know the OpenSession.
const OPENING: u64 = 0;

/// One client process's session with the cluster.
///
/// Memory: at most [`REQUEST_WINDOW`] requests of together [`OUTSTANDING_BYTES_MAX`], and a bounded
/// number of headers and signatures per replica.
pub struct ClientSession {
    config: ClientConfig,
    chain: EpochChain,
    belief: Belief,
    tally: Tally,
    state: SessionState,
    nonce: [u8; 16],
    phase: Phase,
    /// The end of the run of answered requests.
    acknowledged: u64,
    /// Those above it, in order.
    slots: VecDeque<Slot>,
    outstanding: usize,
    outstanding_bytes: usize,
    by_digest: BTreeMap<Digest, u64>,
    timers: BTreeSet<(u64, u64)>,
    /// What answers take, smoothed.
    latency_ms: u64,
    ends_at_ms: u64,
    ends_wanted: bool,
    out: Vec<Event>,
}

impl ClientSession {
    /// Begins to open a session; `state` is what the last process kept, `nonce` is random.
    ///
    /// # Errors
    /// When a member's key is unusable.
    pub fn new(
        config: ClientConfig,
        state: SessionState,
        nonce: [u8; 16],
        now_ms: u64,
    ) -> Result<(Self, Vec<Event>), ChainError> {
        let chain = EpochChain::of_members(config.cluster, &config.membership)?;
        let mut session = Self {
            belief: Belief::new(config.view_change_timeout_ms.max(2)),
            config,
            chain,
            tally: Tally::default(),
            state,
            nonce,
            phase: Phase::Failed,
            acknowledged: 0,
            slots: VecDeque::new(),
            outstanding: 0,
            outstanding_bytes: 0,
            by_digest: BTreeMap::new(),
            timers: BTreeSet::new(),
            latency_ms: 0,
            ends_at_ms: 0,
            ends_wanted: false,
            out: Vec::new(),
        };
        session.open(state.session, 0, now_ms);
        let events = session.drain();
        Ok((session, events))
    }

    /// The session's id, once it is open.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        match self.phase {
            Phase::Open(session) => Some(session),
            Phase::Opening { .. } | Phase::Closed(_) | Phase::Failed => None,
        }
    }

    /// Requests without an answer.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// The newest proven members.
    #[must_use]
    pub fn members(&self) -> &Arc<MemberKeys> {
        self.chain.members()
    }

    /// Who is believed to be primary; a guess that costs time when wrong.
    #[must_use]
    pub fn primary(&self) -> Option<ReplicaId> {
        self.belief.primary()
    }

    /// The changes of members before this epoch, as a receipt needs them.
    #[must_use]
    pub fn links_before(&self, epoch: Epoch) -> &[EpochLink] {
        self.chain.links_before(epoch)
    }

    /// When [`Self::on_tick`] next has something to do, if nothing else happens. Milliseconds.
    #[must_use]
    pub fn next_tick_ms(&self) -> Option<u64> {
        let ends = self.ends_wanted.then_some(self.ends_at_ms);
        self.timers.first().map(|(due, _)| *due).into_iter().chain(ends).min()
    }

    /// Takes the next number. The caller signs [`Reservation::request`] and hands it to
    /// [`Self::submit_signed`], or gives the number back by [`Self::release`]; until then the number
    /// holds a place of the window.
    ///
    /// # Errors
    /// [`SubmitError`] when there is no open session or no place in the window.
    pub fn reserve(&mut self) -> Result<Reservation, SubmitError> {
        let session = match self.phase {
            Phase::Open(session) => session,
            Phase::Closed(session) => return Err(SubmitError::Closed(session)),
            Phase::Opening { .. } | Phase::Failed => return Err(SubmitError::NotOpen),
        };
        if self.slots.len() as u64 >= REQUEST_WINDOW
            || self.outstanding_bytes >= OUTSTANDING_BYTES_MAX
        {
            return Err(SubmitError::WindowFull);
        }
        self.slots.push_back(Slot::Reserved);
        Ok(Reservation {
            ticket: Ticket(self.acknowledged + self.slots.len() as u64),
            client: self.config.key.public(),
            session,
            acknowledged: RequestNumber(self.acknowledged),
        })
    }

    /// Gives a reserved number back: it is never used.
    pub fn release(&mut self, ticket: Ticket) {
        if let Some(slot) = self.slot_mut(ticket.0)
            && matches!(slot, Slot::Reserved)
        {
            *slot = Slot::Answered;
            self.advance();
        }
    }

    /// Sends a request under the number that was reserved for it.
    ///
    /// # Errors
    /// [`SubmitError::Ticket`] when the request carries another session or number, or the number is
    /// not reserved.
    pub fn submit_signed(
        &mut self,
        ticket: Ticket,
        request: SignedRequest,
        now_ms: u64,
    ) -> Result<Vec<Event>, SubmitError> {
        let key = request.key();
        let ours = Some(key.session) == self.session()
            && key.client == self.config.key.public()
            && key.number.0 == ticket.0;
        let reserved = matches!(self.slot_mut(ticket.0), Some(Slot::Reserved));
        if !ours || !reserved {
            return Err(SubmitError::Ticket);
        }
        let to = self.belief.next_destination(now_ms);
        self.outstanding += 1;
        self.outstanding_bytes += request.wire_bytes();
        let pending = self.launch(ticket.0, request, to, now_ms);
        if let Some(slot) = self.slot_mut(ticket.0) {
            *slot = Slot::Waiting(Box::new(pending));
        }
        self.ask_status(now_ms);
        Ok(self.drain())
    }

    /// Numbers, signs and sends one transaction.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn submit(
        &mut self,
        operations: Vec<u8>,
        now_ms: u64,
    ) -> Result<(Ticket, Vec<Event>), SubmitError> {
        let reservation = self.reserve()?;
        let request = SignedRequest::sign(
            &reservation.request(operations),
            &self.config.key,
            &self.config.cluster,
        );
        let events = self.submit_signed(reservation.ticket, request, now_ms)?;
        Ok((reservation.ticket, events))
    }

    /// A connection to this replica is up: attach to it, and repeat what it may have missed.
    #[must_use]
    pub fn on_connected(&mut self, replica: ReplicaId) -> Vec<Event> {
        let to = Destination::One(replica);
        let session = self.session().unwrap_or(SessionId(0));
        self.send(to, ClientFrame::Attach { session });
        self.send(to, ClientFrame::Status { token: self.belief.token() });
        if let Phase::Opening { pending, .. } = &self.phase {
            let request = pending.request.clone();
            self.send(to, ClientFrame::Submit { request, resent: true });
        }
        let missed: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Waiting(pending) => Some(pending),
                Slot::Reserved | Slot::Answered => None,
            })
            .filter(|pending| pending.sent_to.is_none_or(|to| to == replica))
            .map(|pending| pending.request.clone())
            .collect();
        for request in missed {
            self.send(to, ClientFrame::Submit { request, resent: true });
        }
        self.drain()
    }

    /// A connection ended: do not rely on this replica for a while.
    #[must_use]
    pub fn on_disconnected(&mut self, replica: ReplicaId, now_ms: u64) -> Vec<Event> {
        self.belief.disappointed(replica, now_ms);
        self.drain()
    }

    /// A frame from this authenticated replica.
    #[must_use]
    pub fn on_frame(&mut self, replica: ReplicaId, frame: NodeFrame, now_ms: u64) -> Vec<Event> {
        match frame {
            NodeFrame::Replies(replies) => self.on_replies(replica, *replies, now_ms),
            NodeFrame::Busy { request, reason } => self.on_busy(replica, &request, reason, now_ms),
            NodeFrame::Status { token, status } => self.on_status(replica, token, status),
            NodeFrame::EpochEnds(ends) => self.on_epoch_ends(replica, &ends),
        }
        self.drain()
    }

    /// Time passed: resends what is due.
    #[must_use]
    pub fn on_tick(&mut self, now_ms: u64) -> Vec<Event> {
        // At most one timer per outstanding request, and each is set into the future again.
        while let Some((due, number)) = self.timers.first().copied() {
            if due > now_ms {
                break;
            }
            self.timers.pop_first();
            self.resend(number, now_ms);
        }
        if self.outstanding > 0 || matches!(self.phase, Phase::Opening { .. }) {
            self.ask_status(now_ms);
        }
        if self.ends_wanted && now_ms >= self.ends_at_ms {
            self.ends_wanted = false;
            self.ends_at_ms = now_ms.saturating_add(self.config.view_change_timeout_ms / 2);
            let from = self.chain.newest().0;
            self.send(Destination::All, ClientFrame::EpochEnds { from });
        }
        self.drain()
    }

    fn open(&mut self, close: Option<SessionId>, attempts: u32, now_ms: u64) {
        let body = RequestBody::OpenSession { opened: self.state.opened, close, nonce: self.nonce };
        let request = Request { client: self.config.key.public(), body };
        let request = SignedRequest::sign(&request, &self.config.key, &self.config.cluster);
        let pending = self.launch(OPENING, request, Destination::All, now_ms);
        self.phase = Phase::Opening { pending: Box::new(pending), attempts };
        self.ask_status(now_ms);
    }

    /// Sends a new request and starts its timer.
    fn launch(
        &mut self,
        number: u64,
        request: SignedRequest,
        to: Destination,
        now_ms: u64,
    ) -> Pending {
        self.by_digest.insert(request.digest(), number);
        self.send(to, ClientFrame::Submit { request: request.clone(), resent: false });
        let due_ms = now_ms.saturating_add(self.interval_ms(0));
        self.timers.insert((due_ms, number));
        Pending {
            request,
            sent_to: alone(to),
            sent_ms: now_ms,
            due_ms,
            resends: 0,
            busy: 0,
            retry: false,
            duplicate: None,
        }
    }

    /// Half the view-change timeout, or twice what answers take while the cluster is loaded, doubled
    /// with each resend; four times the timeout at most. Without the second term a slow answer would
    /// multiply the load that made it slow.
    fn interval_ms(&self, resends: u32) -> u64 {
        let most = self.config.view_change_timeout_ms.saturating_mul(4).max(1);
        let base = (self.config.view_change_timeout_ms / 2).max(self.latency_ms * 2).max(1);
        base.saturating_mul(1 << resends.min(3)).min(most)
    }

    /// Smooths what answers take, as TCP does its round trips (RFC 6298 §2), weights 7/8 and 1/8.
    fn measured(&mut self, took_ms: u64) {
        let took_ms = took_ms.min(self.config.view_change_timeout_ms.saturating_mul(8));
        self.latency_ms = (self.latency_ms * 7 + took_ms) / 8;
    }

    fn resend(&mut self, number: u64, now_ms: u64) {
        let retry_to = self.belief.destination(now_ms);
        let Some(pending) = self.pending_mut(number) else { return };
        let to = if std::mem::take(&mut pending.retry) { retry_to } else { Destination::All };
        let disappointed = pending.sent_to.filter(|_| to == Destination::All);
        pending.sent_to = alone(to);
        if let Some((.., resends)) = &mut pending.duplicate {
            *resends += 1;
            if *resends >= DUPLICATE_RESENDS_MAX {
                return self.give_up_on_the_original(number, now_ms);
            }
        }
        if to == Destination::All {
            pending.resends = pending.resends.saturating_add(1);
        }
        let (request, resends) = (pending.request.clone(), pending.resends);
        self.set_timer(number, now_ms.saturating_add(self.interval_ms(resends)));
        self.send(to, ClientFrame::Submit { request, resent: true });
        if let Some(replica) = disappointed {
            self.belief.disappointed(replica, now_ms);
        }
    }

    /// The request is proven to have been executed, and nobody has its answer any more.
    fn give_up_on_the_original(&mut self, number: u64, now_ms: u64) {
        let Some(pending) = self.pending_mut(number) else { return };
        if let Some((outcome, entry, block, _)) = pending.duplicate.take() {
            self.complete(number, outcome, entry, block, now_ms);
        }
    }

    fn set_timer(&mut self, number: u64, due_ms: u64) {
        let Some(pending) = self.pending_mut(number) else { return };
        let before = std::mem::replace(&mut pending.due_ms, due_ms);
        self.timers.remove(&(before, number));
        self.timers.insert((due_ms, number));
    }

    fn on_replies(&mut self, from: ReplicaId, replies: BlockReplies, now_ms: u64) {
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
            Ok(None) => return,
            Err(_) if header.epoch > self.chain.newest() => {
                self.ends_wanted = true;
                return;
            }
            Err(_) => return self.misbehaved(from, Misbehaviour::Attestation),
        };
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
        if root != block.header.results_root {
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

    fn complete(
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

    fn on_busy(&mut self, from: ReplicaId, request: &Digest, reason: String, now_ms: u64) {
        let Some(number) = self.by_digest.get(request).copied() else { return };
        let half_ms = self.interval_ms(0);
        let Some(pending) = self.pending_mut(number) else { return };
        // Where all were asked, one that is busy changes nothing.
        if pending.sent_to == Some(from) && !pending.retry {
            let backoff = BUSY_BACKOFF_MS.saturating_mul(1 << pending.busy.min(10)).min(half_ms);
            let due_ms = pending.due_ms.min(now_ms.saturating_add(backoff));
            pending.busy = pending.busy.saturating_add(1);
            pending.retry = true;
            self.set_timer(number, due_ms);
        }
        let ticket = (number != OPENING).then_some(Ticket(number));
        self.out.push(Event::Busy { ticket, replica: from, reason });
    }

    fn on_status(&mut self, from: ReplicaId, token: u64, status: Box<NodeStatus>) {
        let members = self.chain.members();
        if members.key(from).is_some() {
            self.belief.claimed(from, token, &status, members.quorum().weak());
        }
        if token & OWN_TOKEN == 0 {
            self.out.push(Event::Status { token, replica: from, status });
        }
    }

    fn on_epoch_ends(&mut self, from: ReplicaId, ends: &[EpochEnd]) {
        for end in ends {
            match self.chain.extend(EpochLink::from(end)) {
                Ok(true) => {
                    let members = self.chain.members().clone();
                    self.out.push(Event::Members { epoch: self.chain.newest(), members });
                }
                Ok(false) => {}
                Err(error) => return self.misbehaved(from, Misbehaviour::EpochEnd(error)),
            }
        }
    }

    fn ask_status(&mut self, now_ms: u64) {
        if let Some(token) = self.belief.ask(now_ms) {
            self.send(Destination::All, ClientFrame::Status { token });
        }
    }

    fn misbehaved(&mut self, replica: ReplicaId, what: Misbehaviour) {
        self.out.push(Event::Misbehaved { replica, what });
    }

    fn send(&mut self, to: Destination, frame: ClientFrame) {
        self.out.push(Event::Send { to, frame });
    }

    fn drain(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.out)
    }

    fn slot_mut(&mut self, number: u64) -> Option<&mut Slot> {
        let place = number.checked_sub(self.acknowledged + 1)?;
        self.slots.get_mut(usize::try_from(place).ok()?)
    }

    fn pending_mut(&mut self, number: u64) -> Option<&mut Pending> {
        if number == OPENING {
            return match &mut self.phase {
                Phase::Opening { pending, .. } => Some(pending),
                Phase::Open(_) | Phase::Closed(_) | Phase::Failed => None,
            };
        }
        match self.slot_mut(number)? {
            Slot::Waiting(pending) => Some(pending),
            Slot::Reserved | Slot::Answered => None,
        }
    }

    /// Moves the fence over what is answered.
    fn advance(&mut self) {
        while let Some(Slot::Answered) = self.slots.front() {
            self.slots.pop_front();
            self.acknowledged += 1;
        }
    }
}

fn alone(to: Destination) -> Option<ReplicaId> {
    match to {
        Destination::One(replica) => Some(replica),
        Destination::All => None,
    }
}
