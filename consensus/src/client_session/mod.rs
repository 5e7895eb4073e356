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

mod answers;
mod belief;
mod event;
mod listening;
mod sending;
mod tally;
#[cfg(test)]
mod tests;

pub use belief::{COPIES_MS, Destination};
pub use event::{
    ClientConfig, Completion, Event, Misbehaviour, Proof, Reservation, SessionState, SubmitError,
    Ticket,
};
pub use tally::ProvenBlock;

use crate::client_wire::{ClientFrame, NodeFrame, Outcome};
use crate::epoch_chain::{ChainError, EpochChain, EpochLink, MemberKeys};
use crate::message::{REQUEST_WINDOW, ResultEntry, SignedRequest};
use crate::types::{Epoch, ReplicaId, RequestNumber, SessionId};
use belief::Belief;
use conclave_crypto::digest::Digest;
use listening::Listening;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tally::Tally;

/// Bytes of requests that may be outstanding at once.
pub const OUTSTANDING_BYTES_MAX: usize = 64 << 20;

/// A request on its way.
struct Pending {
    request: SignedRequest,
    /// The one replica it was sent to, when it was.
    sent_to: Option<ReplicaId>,
    sent_ms: u64,
    due_ms: u64,
    /// When all replicas are asked, whatever the one that was asked says of being busy.
    all_ms: u64,
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
    listening: Listening,
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
            listening: Listening::default(),
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
        self.listen_to(replica);
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
        self.lost(replica);
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
