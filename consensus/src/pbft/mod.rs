//! PBFT after Castro and Liskov, "Practical Byzantine Fault Tolerance" (OSDI'99), with reservations.
//!
//! [`Pbft`] is one replica's protocol state: no clock, no socket, no disk. [`Engine::handle`] is one
//! `match`; the handlers live in files named after the paper's sections:
//!
//! | file          | what                                                                    |
//! |---------------|-------------------------------------------------------------------------|
//! | `normal`      | §4.2 batching, PRE-PREPARE, PREPARE, COMMIT, in-order delivery           |
//! | `checkpoint`  | §4.3 CHECKPOINT, stable certificates, the window                         |
//! | `view_change` | §4.4 VIEW-CHANGE, when to join one, its timer                            |
//! | `new_view`    | §4.4 NEW-VIEW: building, checking and entering                           |
//! | `suspect`     | §4.5.2 request timers, SUSPECT, slow primaries                           |
//! | `vouching`    | who checks the signatures of clients in a batch                          |
//! | `catch_up`    | §4.6 STATUS, what laggards are sent, fetching                            |
//! | `epoch`       | how an epoch ends and the next begins; Rejoin                            |
//! | `own_votes`   | what peers know of this replica's votes before a start                   |
//! | `recovery`    | from journal and ledger back to this state                               |
//!
//! # Durability
//! A replica journals reservations, not votes: a record says "in this view I may have voted up to
//! here", and is renewed together with each prepared certificate. So one sync lies on a request's
//! path, the one before COMMIT. After a start the replica abstains where it may have voted.
//!
//! # Reads
//! A linearizable read is ordered like any request, so [`Input::Read`] has no answer here: one
//! replica's word on where a read may run is worth nothing to a client that trusts none alone.

mod catch_up;
pub mod certificate;
mod checkpoint;
mod decode;
mod epoch;
pub(crate) mod evidence;
mod fetching;
mod log;
pub mod message;
mod new_view;
mod normal;
mod own_votes;
mod record;
mod recovery;
mod signer;
mod suspect;
mod view_change;
mod vouching;

use self::catch_up::Fetching;
use self::certificate::{CommitCertificate, Keys, Statement};
use self::checkpoint::Checkpoints;
use self::epoch::Epochs;
use self::log::Instance;
use self::message::Message;
use self::own_votes::Probe;
use self::signer::Signer;
use self::suspect::Suspicion;
use self::view_change::ViewChanges;
use crate::engine::{
    After, Committed, Effect, Engine, EngineStatus, Horizon, Input, Phase, Record, Reject, Slot,
    To, Verifier,
};
use crate::evidence::Subject;
use crate::membership::{Genesis, Limits, Membership};
use crate::message::{Batch, EpochEnd};
use crate::quorum::Byzantine;
use crate::requests::RequestQueue;
use crate::types::{ClientId, Epoch, ReplicaId, Sequence, Timestamp, View};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::SecretKey;
use conclave_crypto::{mark, mistake};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

pub use self::certificate::verify_commit_certificate;
pub use self::recovery::RecoverError;

/// What a replica must be told before it can recover.
pub struct PbftConfig {
    /// Which member this replica is.
    pub id: ReplicaId,
    /// Its key.
    pub key: Arc<SecretKey>,
    /// What the cluster agreed on.
    pub genesis: Arc<Genesis>,
    /// Seeds tokens, which need to differ from start to start and nothing more.
    pub seed: u64,
}

/// A vote reserves this many sequences beyond its own.
const RESERVE_AHEAD: u64 = 16;
/// Bodies are kept in memory for this many sequences above the last decided one.
const BODIES_AHEAD: u64 = 16;
/// Bodies are kept for this many delivered sequences, for peers a little behind.
const BODIES_BEHIND: u64 = 8;
/// Batches handed over and not yet executed.
const UNEXECUTED_MAX: u64 = 64;
/// A batch's body that nothing proposed yet: the null batch of OSDI'99 §4.4.
fn null_batch() -> Arc<Batch> {
    Arc::new(Batch::null())
}

/// One replica's PBFT.
pub struct Pbft {
    cluster: Digest,
    limits: Arc<Limits>,
    verifier: Arc<Verifier>,
    /// Those the genesis names; clients do not change.
    clients: Arc<BTreeSet<ClientId>>,
    signer: Signer,

    // The epoch.
    membership: Arc<Membership>,
    keys: Arc<Keys>,
    /// The epoch's base: 0, or the last block of the epoch before.
    base: Sequence,
    /// How earlier epochs ended, in order; one per accepted Rejoin, kept for ever.
    epoch_ends: Vec<Arc<EpochEnd>>,

    // The view.
    view: View,
    /// Whether this replica votes in `view`; false while it changes to it.
    active: bool,

    // The log.
    /// h of OSDI'99 §4.2: the last stable checkpoint this replica has proof of.
    low: Sequence,
    log: BTreeMap<Sequence, Instance>,
    /// The primary's next proposal.
    next: Sequence,
    /// Everything up to here is decided or below h.
    agreed: Sequence,
    /// The last batch handed over.
    delivered: Sequence,
    executed: Sequence,
    /// No batch is handed over until the ledger says what this one's change did.
    gate: Option<Sequence>,

    reserved: VecDeque<(Sequence, u64)>,
    queue: RequestQueue,
    checkpoints: Checkpoints,
    fetching: Fetching,
    suspicion: Suspicion,
    changes: ViewChanges,
    epochs: Epochs,
    /// Asks peers for own votes until a quorum answered; nothing is signed meanwhile.
    probe: Option<Probe>,
    rolled_back: bool,

    // Time: monotonic, without the length of pauses.
    now_ms: u64,
    tick_ms: Option<u64>,
    wall: Timestamp,

    persists: u64,
    out: Vec<Effect<Message>>,
    accused: BTreeSet<(ReplicaId, u8, Subject)>,
    halted: bool,
    /// Who did not vouch in time lately.
    absent: Arc<vouching::Absent>,
}

impl Pbft {
    fn id(&self) -> ReplicaId {
        self.signer.id
    }

    fn epoch(&self) -> Epoch {
        self.membership.epoch
    }

    fn quorum(&self) -> Byzantine {
        self.membership.quorum()
    }

    fn primary(&self) -> ReplicaId {
        certificate::primary(&self.membership, self.view)
    }

    fn is_primary(&self) -> bool {
        self.primary() == self.id()
    }

    /// Whether this replica may sign anything but a Rejoin.
    fn can_sign(&self) -> bool {
        self.probe.is_none()
            && !self.rolled_back
            && !self.rejoining()
            && self.membership.contains(self.id())
    }

    fn high(&self) -> Sequence {
        self.low.plus(self.limits.window)
    }

    fn send(&mut self, to: To, message: Message) {
        self.out.push(Effect::Send { to, message, after: After::All });
    }

    /// Sends what rests on no record, or on the first so many only.
    fn send_after(&mut self, to: To, message: Message, persists: u64) {
        self.out.push(Effect::Send { to, message, after: After::Persists(persists) });
    }

    fn persist(&mut self, slot: Slot, bytes: Vec<u8>) {
        self.persists += 1;
        self.out.push(Effect::Persist(Record { slot, bytes, lazy: false }));
    }

    fn persist_lazily(&mut self, slot: Slot, bytes: Vec<u8>) {
        self.out.push(Effect::Persist(Record { slot, bytes, lazy: true }));
    }

    fn reject(&mut self, from: ReplicaId, reason: Reject) {
        self.out.push(Effect::Reject { from, reason });
    }

    fn halt(&mut self, reason: String) {
        self.halted = true;
        self.out.push(Effect::Halt { reason });
    }

    fn on_message(&mut self, from: ReplicaId, message: Message) {
        match message {
            Message::PrePrepare(message) => self.on_pre_prepare(from, message),
            Message::Prepare(vote) => self.on_prepare(from, vote),
            Message::Commit(vote) => self.on_commit(from, vote),
            Message::Checkpoint(vote) => self.on_checkpoint(from, vote),
            Message::ViewChange(message) => self.on_view_change(from, message),
            Message::NewView(message) => self.on_new_view(from, message),
            Message::Suspect { epoch, view } => self.on_suspect(from, epoch, view),
            Message::Status(report) => self.on_status(from, report),
            Message::Forward(requests) => self.on_forward(from, requests),
            Message::FetchBatch { sequence, digest } => self.on_fetch_batch(from, sequence, digest),
            Message::Body { sequence, batch } => self.on_body(from, sequence, batch),
            Message::FetchViewChange { name } => self.on_fetch_view_change(from, name),
            Message::FetchDecided { after } => self.on_fetch_decided(from, after),
            Message::Decided(message) => self.on_decided(from, &message),
            Message::Stable(certificate) => self.on_stable(from, certificate),
            Message::EpochEnd(end) => self.on_epoch_end(from, end),
            Message::Rejoin(rejoin) => self.on_rejoin(from, rejoin),
            Message::OwnVotesQuery { token } => self.on_own_votes_query(from, token),
            Message::Proposed(vote) => self.on_proposed(from, vote),
            Message::OwnVotes(own) => self.on_own_votes(from, &own),
        }
    }

    fn on_tick(&mut self, monotonic_ms: u64, wall: Timestamp) {
        let step = self.tick_ms.map_or(0, |last| monotonic_ms.saturating_sub(last));
        self.tick_ms = Some(monotonic_ms);
        // After a pause nothing is late yet: what was missed is waiting in the queues.
        let step = step.min(self.base_timeout_ms() / 4);
        self.now_ms += step;
        self.wall = wall;
        self.tick_probe();
        self.tick_rejoin();
        self.tick_view_change();
        self.tick_new_view();
        self.tick_suspicion(step);
        self.tick_catch_up(step);
        self.consider_install();
        self.tick_vouching();
        self.propose();
    }

    /// Phases of h+1, h+2, … in the current view.
    fn phases(&self) -> Vec<Phase> {
        let last = self.log.last_key_value().map_or(self.low, |(sequence, _)| *sequence);
        let length = usize::try_from(last.0.saturating_sub(self.low.0)).unwrap_or(0);
        let mut phases = vec![Phase::Open; length];
        for (sequence, instance) in &self.log {
            let index = sequence.0.saturating_sub(self.low.0.saturating_add(1));
            if let Some(phase) = usize::try_from(index).ok().and_then(|i| phases.get_mut(i)) {
                *phase = instance.phase(self.view);
            }
        }
        phases
    }
}

impl Engine for Pbft {
    type Message = Message;

    fn handle(&mut self, input: Input<Message>) -> Vec<Effect<Message>> {
        if self.halted {
            return Vec::new();
        }
        match input {
            Input::Requests(requests) => self.on_requests(requests),
            Input::Message { from, message } => self.on_message(from, message),
            Input::Tick { monotonic_ms, wall } => self.on_tick(monotonic_ms, wall),
            // Reads are ordered, see the module's essay.
            Input::Read(_) => {}
            Input::Executed(sequence) => self.on_executed(sequence),
            Input::Checkpointed(checkpointed) => self.on_checkpointed(checkpointed),
            Input::Installed { certificate, next } => self.on_installed(certificate, next),
            Input::Unserved => self.on_unserved(),
            Input::Connected(peer) => self.on_connected(peer),
            Input::Checked { batch, valid } => self.on_checked(&batch, valid),
        }
        std::mem::take(&mut self.out)
    }

    fn decode(horizon: &Horizon, from: ReplicaId, bytes: &[u8]) -> Result<Message, Reject> {
        decode::decode(horizon, from, bytes)
    }

    fn encode(message: &Message) -> Vec<u8> {
        crate::wire::encode(message)
    }

    fn bulky(message: &Message) -> bool {
        message.bulky()
    }

    fn decided(committed: Committed) -> Message {
        let Committed { sequence, epoch, batch, certificate } = committed;
        // A ledger that lost the proof still names the batch; the receiver then refuses it.
        let certificate = crate::wire::decode(&certificate, crate::wire::CONTROL_BYTES_MAX)
            .unwrap_or_else(|_| CommitCertificate {
                statement: Statement { epoch, view: View(0), sequence, digest: batch.digest() },
                commits: Vec::new(),
            });
        Message::Decided(Arc::new(message::Decided { certificate, batch }))
    }

    fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.membership)
    }

    fn status(&self) -> EngineStatus {
        let role = if !self.membership.contains(self.id()) {
            "removed"
        } else if self.rolled_back {
            "rolled back"
        } else if self.rejoining() {
            "rejoining"
        } else if self.is_primary() {
            "primary"
        } else {
            "backup"
        };
        EngineStatus {
            epoch: self.epoch(),
            view: self.view.0,
            role: role.to_owned(),
            primary: Some(self.primary()),
            normal: self.active && self.can_sign() && !self.halted,
            decided: self.agreed.min(self.delivered.max(self.low)),
            stable: self.low,
            proven: self.agreed,
            pending: self.queue.len(),
            view_changes: self.changes.count,
        }
    }

    fn horizon(&self) -> Horizon {
        Horizon {
            cluster: self.cluster,
            membership: Arc::clone(&self.membership),
            keys: Arc::clone(&self.keys),
            verifier: Arc::clone(&self.verifier),
            epoch: self.epoch(),
            view: self.view.0,
            low: self.low,
            high: self.high(),
            phases: Arc::new(self.phases()),
            delivered: self.delivered,
            earlier: Arc::clone(&self.epochs.eras),
            limits: Arc::clone(&self.limits),
            me: self.id(),
            absent: Arc::clone(&self.absent),
            clients: Arc::clone(&self.clients),
            full: Arc::clone(self.queue.full()),
        }
    }

    /// A clean stop knows what it voted for: the reservation shrinks to that, but never below one
    /// found at the start, which may cover votes that this process does not know.
    fn shutdown(&mut self) -> Vec<Record> {
        if !self.active {
            return Vec::new();
        }
        let mut voted = self.signer.highest(self.view);
        if !mistake!("clean-stop-lowers-reservation") {
            voted = voted.max(self.signer.found_through(self.view));
        }
        mark!("a clean stop narrows the reservation");
        let through = voted.unwrap_or(self.base).max(self.low);
        let reserved = record::Reserved { epoch: self.epoch(), view: self.view, through };
        let bytes = crate::wire::encode(&reserved);
        vec![Record { slot: record::RESERVED, bytes, lazy: false }]
    }
}

impl fmt::Display for Pbft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "r{} e{} v{}{} h={} decided={} executed={}",
            self.id(),
            self.epoch(),
            self.view,
            if self.active { "" } else { " changing" },
            self.low,
            self.agreed,
            self.executed
        )
    }
}
