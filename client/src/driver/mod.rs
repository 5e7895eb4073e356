//! The one task that owns a client's session and serves all its callers.
//!
//! Callers, connections and the clock reach it through channels. It drains everything that has come
//! before it lets anything leave, so that the requests of many callers share packets, and one wake-up
//! of a connection's writer serves them all. It signs; a signature is most of what an operation costs
//! here, and so it lets the writers run between runs of signatures.

mod replicas;

use conclave_config::client_config::ClientHome;
use conclave_consensus::client_session::{
    ClientConfig, ClientSession, Completion, Destination, Event, SessionState, SubmitError, Ticket,
};
use conclave_consensus::client_wire::{ClientFrame, NodeFrame, Outcome, Refusal};
use conclave_consensus::epoch_chain::EpochLink;
use conclave_consensus::membership::Membership;
use conclave_consensus::message::SignedRequest;
use conclave_consensus::types::ReplicaId;
use conclave_consensus::wire::{self, FRAME_BYTES_MAX};
use conclave_crypto::digest::Digest;
use conclave_crypto::framing::CloseCode;
use conclave_crypto::keys::SecretKey;
use rand::Rng as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::client::ReplicaStatus;
use crate::connection::Inbound;
use crate::error::ClientError;
use crate::home::Slot;
use crate::socket::Sockets;
use replicas::{Question, Replica};

/// Deliveries queued between connections and driver; a full queue lets QUIC's flow control act.
const INBOUND_MAX: usize = 256;

/// Requests signed before what is ready may leave: about a third of a millisecond.
const SIGN_RUN: usize = 16;

/// Callers that wait for a place in the window; more wait in the channel of commands.
const WAITING_MAX: usize = 1024;

/// Bytes of the requests of those callers.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// For the close frames to leave; a replica that misses one notices after its idle timeout.
const CLOSE_TIME: Duration = Duration::from_millis(20);

/// Longest sleep: what has no timer of its own is looked at this often.
const NAP: Duration = Duration::from_millis(500);

/// From a caller to the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Transact(Transact),
    Status { deadline: Instant, reply: oneshot::Sender<Vec<ReplicaStatus>> },
    Close { done: oneshot::Sender<()> },
}

/// One transaction and who waits for it.
#[derive(Debug)]
pub(crate) struct Transact {
    pub(crate) operations: Vec<u8>,
    /// Whether it can change anything: only then is a missing answer an unknown outcome.
    pub(crate) writes: bool,
    pub(crate) called: Instant,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Proven, ClientError>>,
}

/// A completed request, and the changes of members before its epoch.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) completion: Completion,
    pub(crate) links: Vec<EpochLink>,
}

/// Whose answer is awaited.
struct Caller {
    writes: bool,
    called: Instant,
    deadline: Instant,
    reply: oneshot::Sender<Result<Proven, ClientError>>,
}

pub(crate) struct Driver {
    start: Instant,
    cluster: Digest,
    key: Arc<SecretKey>,
    genesis_members: Membership,
    view_change_timeout_ms: u64,
    session_file: PathBuf,
    /// Held as long as the process lives, once there was a first transaction.
    slot: Option<Slot>,
    session: Option<ClientSession>,
    /// f+1 of the newest members.
    needed: usize,
    replicas: BTreeMap<ReplicaId, Replica>,
    sockets: Arc<Sockets>,
    inbound_sender: mpsc::Sender<Inbound>,
    inbound: mpsc::Receiver<Inbound>,
    waiting: VecDeque<Transact>,
    waiting_bytes: usize,
    callers: BTreeMap<Ticket, Caller>,
    deadlines: BTreeSet<(Instant, Ticket)>,
    questions: BTreeMap<u64, Question>,
    next_token: u64,
    /// Whether something was queued since the last flush.
    dirty: bool,
    /// When copies of requests leave at the latest.
    copies_due: Option<Instant>,
}

impl Driver {
    /// Starts to connect. Must be called within a tokio runtime.
    pub(crate) fn new(home: ClientHome) -> Result<Self, ClientError> {
        let (inbound_sender, inbound) = mpsc::channel(INBOUND_MAX);
        let membership = home.genesis.membership;
        let mut driver = Self {
            start: Instant::now(),
            cluster: home.cluster,
            key: Arc::new(home.key),
            view_change_timeout_ms: home.genesis.limits.view_change_timeout_ms,
            session_file: home.config.session,
            slot: None,
            session: None,
            needed: membership.quorum().weak(),
            replicas: BTreeMap::new(),
            sockets: Arc::default(),
            inbound_sender,
            inbound,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            callers: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            questions: BTreeMap::new(),
            next_token: 0,
            dirty: false,
            copies_due: None,
            genesis_members: membership,
        };
        driver.connect_to(&driver.genesis_members.members.clone())?;
        Ok(driver)
    }

    /// Serves until told to close, or until nobody can send commands any more.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut inbound = Vec::with_capacity(64);
        let mut asked = Vec::with_capacity(SIGN_RUN);
        let sleep = tokio::time::sleep(NAP);
        tokio::pin!(sleep);
        loop {
            let wake = self.next_wake();
            if sleep.is_elapsed() || sleep.deadline().into_std() > wake {
                sleep.as_mut().reset(wake.into());
            }
            let room = self.waiting.len() < WAITING_MAX && self.waiting_bytes < WAITING_BYTES_MAX;
            tokio::select! {
                _ = self.inbound.recv_many(&mut inbound, 64) => {
                    for event in inbound.drain(..) {
                        self.on_inbound(event);
                    }
                }
                count = commands.recv_many(&mut asked, SIGN_RUN), if room => {
                    if count == 0 {
                        return self.shut_down().await;
                    }
                    for command in asked.drain(..) {
                        if let Some(done) = self.on_command(command) {
                            self.shut_down().await;
                            // Whoever asked may be gone.
                            let _ = done.send(());
                            return;
                        }
                    }
                }
                () = &mut sleep => self.on_time(),
            }
            self.submit_waiting();
            if std::mem::take(&mut self.dirty) {
                self.flush();
                // The writers run before the next signatures.
                tokio::task::yield_now().await;
            }
        }
    }

    async fn shut_down(self) {
        drop(self.replicas);
        for endpoint in self.sockets.opened() {
            endpoint.close(CloseCode::Shutdown.code(), b"the client is done");
            // Only so long that the close frames leave; their acknowledgement changes nothing.
            let _ = tokio::time::timeout(CLOSE_TIME, endpoint.wait_idle()).await;
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next_wake(&self) -> Instant {
        let session = self.session.as_ref().and_then(ClientSession::next_tick_ms);
        let session = session.map(|ms| self.start + Duration::from_millis(ms));
        let caller = self.deadlines.first().map(|(deadline, _)| *deadline);
        let waiting = self.waiting.iter().map(|transact| transact.deadline).min();
        let question = self.questions.values().map(|question| question.deadline).min();
        let nap = Instant::now() + NAP;
        [session, caller, waiting, question, self.copies_due]
            .into_iter()
            .flatten()
            .fold(nap, Instant::min)
    }

    fn on_command(&mut self, command: Command) -> Option<oneshot::Sender<()>> {
        match command {
            Command::Transact(transact) => {
                self.waiting_bytes += transact.operations.len();
                self.waiting.push_back(transact);
            }
            Command::Status { deadline, reply } => {
                let token = self.next_token;
                self.next_token += 1;
                self.send(Destination::All, &ClientFrame::Status { token });
                let question = Question { deadline, answers: BTreeMap::new(), reply };
                self.questions.insert(token, question);
            }
            Command::Close { done } => return Some(done),
        }
        None
    }

    /// Moves waiting requests into the session as far as it has room.
    fn submit_waiting(&mut self) {
        // Each turn opens one, or answers a caller.
        while !self.waiting.is_empty() && self.session.is_none() {
            self.open_session();
        }
        for _ in 0..WAITING_MAX {
            let now_ms = self.now_ms();
            let Some(session) = &mut self.session else { return };
            let Some(transact) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= transact.operations.len();
            let Transact { operations, writes, called, deadline, reply } = transact;
            match session.reserve() {
                Ok(reservation) => {
                    let request = reservation.request(operations);
                    let request = SignedRequest::sign(&request, &self.key, &self.cluster);
                    let ticket = reservation.ticket;
                    let submitted = session.submit_signed(ticket, request, now_ms);
                    let events = submitted.expect("the number was reserved a line ago");
                    self.callers.insert(ticket, Caller { writes, called, deadline, reply });
                    self.deadlines.insert((deadline, ticket));
                    self.on_events(events);
                }
                Err(error) => {
                    self.waiting_bytes += operations.len();
                    let transact = Transact { operations, writes, called, deadline, reply };
                    self.waiting.push_front(transact);
                    // The cluster closed the session; those under way in it must be answered first.
                    if matches!(error, SubmitError::Closed(_)) && self.callers.is_empty() {
                        self.session = None;
                        self.open_session();
                    }
                    return;
                }
            }
        }
    }

    fn open_session(&mut self) {
        match self.try_open_session() {
            Ok(events) => self.on_events(events),
            // One caller learns the exact reason; the others find the slot gone and ask again.
            Err(error) => {
                if let Some(transact) = self.waiting.pop_front() {
                    self.waiting_bytes -= transact.operations.len();
                    let _ = transact.reply.send(Err(error));
                }
            }
        }
    }

    fn try_open_session(&mut self) -> Result<Vec<Event>, ClientError> {
        let (slot, earlier) = match self.slot.take() {
            Some(slot) => (slot, crate::home::Earlier::default()),
            None => Slot::take(&self.session_file, self.cluster, self.key.public())?,
        };
        self.slot = Some(slot);
        let config = ClientConfig {
            cluster: self.cluster,
            membership: self.genesis_members.clone(),
            key: Arc::clone(&self.key),
            view_change_timeout_ms: self.view_change_timeout_ms,
        };
        let state = SessionState { opened: earlier.opened, session: earlier.close };
        let mut nonce = [0; 16];
        rand::rng().fill_bytes(&mut nonce);
        let now_ms = self.now_ms();
        let (mut session, mut events) =
            ClientSession::new(config, state, nonce, now_ms).map_err(|error| {
                ClientError::Invalid(format!("the genesis cannot be used: {error}"))
            })?;
        let connected = self.replicas.iter().filter(|(_, replica)| replica.connected);
        for id in connected.map(|(id, _)| *id).collect::<Vec<_>>() {
            events.extend(session.on_connected(id));
        }
        self.session = Some(session);
        Ok(events)
    }

    fn on_inbound(&mut self, event: Inbound) {
        let now_ms = self.now_ms();
        match event {
            Inbound::Connected(id) => {
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                replica.connected = true;
                replica.down = None;
                replica.heard = Some(Instant::now());
                debug!(replica = id.0, "connected");
                let events = self.session.as_mut().map(|session| session.on_connected(id));
                self.on_events(events.unwrap_or_default());
                for token in self.questions.keys().copied().collect::<Vec<_>>() {
                    self.send(Destination::One(id), &ClientFrame::Status { token });
                }
            }
            Inbound::Disconnected(id, down) => {
                let Some(replica) = self.replicas.get_mut(&id) else { return };
                debug!(replica = id.0, reason = down.reason(), "disconnected");
                replica.down = Some(down);
                if std::mem::take(&mut replica.connected)
                    && let Some(session) = &mut self.session
                {
                    let events = session.on_disconnected(id, now_ms);
                    self.on_events(events);
                }
                self.fail_if_rejected();
            }
            Inbound::Frames(id, frames) => {
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.heard = Some(Instant::now());
                }
                for frame in frames {
                    self.on_frame(id, &frame, now_ms);
                }
            }
        }
    }

    fn on_frame(&mut self, id: ReplicaId, bytes: &[u8], now_ms: u64) {
        let frame = match wire::decode::<NodeFrame>(bytes, FRAME_BYTES_MAX) {
            Ok(frame) => frame,
            Err(error) => {
                warn!(replica = id.0, %error, "sent a frame that is none");
                return self.reset(id);
            }
        };
        match (&mut self.session, frame) {
            (Some(session), frame) => {
                let events = session.on_frame(id, frame, now_ms);
                self.on_events(events);
            }
            (None, NodeFrame::Status { token, status }) => self.on_status(token, id, status),
            (None, _) => {}
        }
    }

    fn on_events(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Send { to, frame } => self.send(to, &frame),
                Event::Opened { session, .. } => {
                    if let Some(slot) = &mut self.slot
                        && let Err(error) = slot.record(session)
                    {
                        // A session that nobody remembers ends as the one idle longest.
                        warn!(%error, "the session is not recorded");
                    }
                }
                Event::OpenRefused(refusal) => self.on_open_refused(&refusal),
                Event::Completed(completion) => self.on_completed(*completion),
                Event::Busy { replica, reason, .. } => {
                    debug!(replica = replica.0, reason, "did not take a request");
                }
                Event::Status { token, replica, status } => {
                    self.on_status(token, replica, status);
                }
                Event::Members { members, .. } => {
                    self.needed = members.quorum().weak();
                    let members = members.members().to_vec();
                    if let Err(error) = self.connect_to(&members) {
                        warn!(%error, "cannot connect to the new members");
                    }
                }
                Event::Misbehaved { replica, what } => {
                    warn!(replica = replica.0, %what, "a replica misbehaves");
                    self.reset(replica);
                }
            }
        }
    }

    fn on_completed(&mut self, completion: Completion) {
        let Some(caller) = self.callers.remove(&completion.ticket) else { return };
        self.deadlines.remove(&(caller.deadline, completion.ticket));
        let epoch = completion.proof.block.header.epoch;
        let links = self.session.as_ref().map(|session| session.links_before(epoch).to_vec());
        let closed = matches!(&completion.outcome, Outcome::Refused(Refusal::NotOpen(_)));
        let answer = if closed {
            Err(ClientError::SessionClosed)
        } else {
            Ok(Proven { completion, links: links.unwrap_or_default() })
        };
        // A caller that gave up has dropped its end.
        let _ = caller.reply.send(answer);
    }

    fn on_open_refused(&mut self, refusal: &Refusal) {
        self.session = None;
        self.waiting_bytes = 0;
        for transact in self.waiting.drain(..) {
            let _ = transact.reply.send(Err(ClientError::Refused(refusal.clone())));
        }
    }

    fn on_time(&mut self) {
        self.dirty |= self.copies_due.is_some();
        let now_ms = self.now_ms();
        if let Some(session) = &mut self.session {
            let events = session.on_tick(now_ms);
            self.on_events(events);
        }
        let now = Instant::now();
        while let Some((deadline, ticket)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            // The session sends it again for ever; only the caller stops waiting.
            if let Some(caller) = self.callers.remove(&ticket) {
                let error = self.unreachable(caller.called, caller.writes);
                let _ = caller.reply.send(Err(error));
            }
        }
        for transact in std::mem::take(&mut self.waiting) {
            if transact.deadline > now {
                self.waiting.push_back(transact);
            } else {
                self.waiting_bytes -= transact.operations.len();
                let error = self.unreachable(transact.called, false);
                let _ = transact.reply.send(Err(error));
            }
        }
        let late = self.questions.iter().filter(|(_, question)| question.deadline <= now);
        for token in late.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.answer_question(token);
        }
    }
}
