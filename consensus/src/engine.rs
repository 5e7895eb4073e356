//! The seam between agreement and everything else: [`Engine`], its inputs and its effects.
//!
//! An engine is a deterministic state machine. It is told what happened ([`Input`]) and answers
//! with what must be done ([`Effect`]), in order. The order of effects is the order of durability:
//! a Send, Commit or Stable waits for every Persist before it and for none after it
//! ([`crate::replica`] alone enforces that). No effect has an answer that the engine waits for;
//! slow work comes back as a later input. Time comes in Ticks.

pub use crate::evidence::Evidence;

use crate::membership::Membership;
use crate::message::{Batch, BlockHeader, CheckpointCertificate, EpochEnd, SignedRequest};
use crate::types::{ClientId, Epoch, ReadToken, ReplicaId, Sequence, Timestamp};
use conclave_crypto::digest::Digest;
use conclave_crypto::keys::{KeyCache, VerifyingKey};
use conclave_crypto::strict::{Claim, verify_each};
use conclave_crypto::{mark, mistake};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// What happened.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "checkpoints are rare, and votes are most of the rest"
)]
pub enum Input<M> {
    /// Authenticated requests that clients sent to this replica, all that one step drained.
    Requests(Vec<Arc<SignedRequest>>),
    /// A peer's message that `decode` accepted.
    Message {
        /// The authenticated connection it came on.
        from: ReplicaId,
        /// What it says.
        message: M,
    },
    /// One step of time; one after a pause, never a burst.
    Tick {
        /// Milliseconds on a clock that never goes back.
        monotonic_ms: u64,
        /// The wall clock.
        wall: Timestamp,
    },
    /// A linearizable read asks from which height on it may run.
    Read(ReadToken),
    /// The ledger executed up to this height; progress, without durability.
    Executed(Sequence),
    /// The ledger executed a checkpoint, and its disk holds it.
    Checkpointed(Checkpointed),
    /// State transfer put a certified state in place; the ledger stands at its height.
    Installed {
        /// What certifies it.
        certificate: CheckpointCertificate,
        /// The epoch that decides the block above it; this engine may be in an earlier one.
        next: Epoch,
    },
    /// Nobody serves the state that [`Effect::Install`] asked for: the ledger goes on where it stood.
    Unserved,
    /// A connection to this peer came up: what was sent to it before may be lost.
    Connected(ReplicaId),
    /// The answer to [`Effect::Check`].
    Checked {
        /// The batch's digest.
        batch: Digest,
        /// Whether every request in it carries its client's signature.
        valid: bool,
    },
}

/// What execution says of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpointed {
    /// The height.
    pub height: Sequence,
    /// The header's hash.
    pub header: Digest,
    /// The root of the state trie.
    pub state_root: Digest,
    /// The membership that starts after it, when a change took effect.
    pub next: Option<NextEpoch>,
}

/// The epoch that a block's change begins.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NextEpoch {
    /// The header of the block that ends the epoch before.
    pub header: BlockHeader,
    /// Members and first primary of the new epoch.
    pub membership: Membership,
    /// That block's batch; its change took effect, and it holds no requests.
    pub batch: Arc<Batch>,
}

/// What must be done.
#[derive(Debug, Clone)]
pub enum Effect<M> {
    /// Journal this record; what follows waits until it is on the disk, unless it is lazy.
    Persist(Record),
    /// Best effort; a lost message is normal.
    Send {
        /// To whom.
        to: To,
        /// What.
        message: M,
        /// Which Persists it waits for.
        after: After,
    },
    /// Decided: in order, without gaps, each once.
    Commit(Committed),
    /// A read may run once this height is executed.
    ReadReady {
        /// Which read.
        token: ReadToken,
        /// From which height on.
        sequence: Sequence,
    },
    /// Store this certificate; the journal may drop what lies at or below it once it is durable.
    Stable(CheckpointCertificate),
    /// Keep for ever how this epoch ended; it was proven, and the ledger may be far from there.
    EpochEnded(Arc<EpochEnd>),
    /// Fetch this certified state.
    Install(CheckpointCertificate),
    /// A peer asks for the decided batches above `after`: send it a bounded run from the ledger,
    /// each by [`Engine::decided`].
    Supply {
        /// Who asks.
        to: ReplicaId,
        /// What it has.
        after: Sequence,
    },
    /// The ledger differs from a certified state: stop executing, set the blocks aside, install.
    Diverged(CheckpointCertificate),
    /// The journal is proven rolled back: this replica may not vote until its Rejoin is ordered.
    RolledBack {
        /// What proves it, for the operator.
        reason: String,
    },
    /// More than f faults are proven: stop.
    Halt {
        /// What proves it.
        reason: String,
    },
    /// A message was refused.
    Reject {
        /// The authenticated connection it came on.
        from: ReplicaId,
        /// Why.
        reason: Reject,
    },
    /// What a replica signed and no correct replica signs.
    Evidence(Evidence),
    /// Verify the signatures of this batch's requests, which `decode` left to others; the answer
    /// is [`Input::Checked`]. It waits for no Persist.
    Check(Arc<Batch>),
}

/// Which Persists a Send waits for. Only [`crate::replica`] acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Every Persist that was emitted before it.
    All,
    /// The first so many Persists that the engine emitted since it was made, lazy ones not
    /// counted; it may overtake what waits for later ones. 0 waits for nothing.
    Persists(u64),
}

/// A decided batch.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its slot.
    pub sequence: Sequence,
    /// The epoch that decided it.
    pub epoch: Epoch,
    /// What was decided.
    pub batch: Arc<Batch>,
    /// The engine's proof, opaque outside it.
    pub certificate: Vec<u8>,
}

/// A destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// One replica.
    One(ReplicaId),
    /// Every other member and learner.
    Others,
}

/// Where a record lies in the journal; a later record in the same slot replaces the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// One of the engine's few facts, by a number of the engine's.
    Named(u8),
    /// Part of a sequence's state; dropped when the journal is truncated at or above it.
    Sequenced(Sequence, u8),
}

/// What an engine journals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it lies.
    pub slot: Slot,
    /// The engine's own encoding.
    pub bytes: Vec<u8>,
    /// A lazy record rides on the next write and holds nothing back.
    pub lazy: bool,
}

/// Why a peer's message was refused. Counted per peer and reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// Not an encoding.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A signature that does not verify.
    #[error("bad signature of {0}")]
    Signature(&'static str),
    /// Sender is no member or not allowed to say this.
    #[error("not from its sender")]
    Sender,
    /// Of an earlier epoch.
    #[error("of the past epoch {0}")]
    EpochPast(Epoch),
    /// Of an epoch not begun here.
    #[error("of the future epoch {0}")]
    EpochFuture(Epoch),
    /// Of another view than the one in force.
    #[error("of another view")]
    View,
    /// Outside (h, h+L].
    #[error("outside the window")]
    Window,
    /// Already known or its phase is over; not a fault.
    #[error("already known")]
    Known,
    /// Breaks a rule of the protocol.
    #[error("against the protocol: {0}")]
    Protocol(&'static str),
    /// Breaks a rule of the protocol, and its signature proves who broke it.
    #[error("against the protocol, provably: {0}")]
    Proven(&'static str, Box<Evidence>),
    /// A buffer's cap is reached.
    #[error("over the cap of {0}")]
    Cap(&'static str),
}

/// How far a sequence has come here; lets decode drop votes that can change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No certificate yet.
    Open,
    /// Prepared: further PREPAREs change nothing.
    Prepared,
    /// Decided: further COMMITs change nothing.
    Decided,
}

/// What decode may assume; published by the engine's owner after each step.
#[derive(Clone)]
pub struct Horizon {
    /// The cluster id, part of every signature.
    pub cluster: Digest,
    /// Members of the epoch.
    pub membership: Arc<Membership>,
    /// Their keys, decompressed, by id.
    pub keys: Arc<BTreeMap<ReplicaId, VerifyingKey>>,
    /// Decompressed keys and remembered verified signatures, shared by all decoders.
    pub verifier: Arc<Verifier>,
    /// The epoch in force.
    pub epoch: Epoch,
    /// The view or term in force.
    pub view: u64,
    /// Exclusive lower end of the window.
    pub low: Sequence,
    /// Inclusive upper end of the window.
    pub high: Sequence,
    /// Phases of low+1, low+2, …; sequences beyond are open.
    pub phases: Arc<Vec<Phase>>,
    /// The last decided batch that was handed over; decided batches at or below it are known.
    pub delivered: Sequence,
    /// Earlier epochs, in order: their decided batches may still be missing here.
    pub earlier: Arc<Vec<Era>>,
    /// Largest batch and request, bytes and count.
    pub limits: Arc<crate::membership::Limits>,
    /// Whose horizon this is.
    pub me: ReplicaId,
    /// To whom the checking of clients' signatures is not left for now, and until which sequence.
    pub absent: Arc<BTreeMap<ReplicaId, Sequence>>,
    /// The registered clients; nobody else's requests are forwarded.
    pub clients: Arc<BTreeSet<ClientId>>,
    /// Those of whose own requests this replica takes no more for now.
    pub full: Arc<BTreeSet<ClientId>>,
}

impl Horizon {
    /// Does what [`Effect::Check`] asks for; costs a signature for each request not seen before.
    #[must_use]
    pub fn check(&self, batch: &Batch) -> bool {
        self.verifier.verify_all(&batch.requests, &self.cluster)
    }
}

/// An epoch that ended.
#[derive(Debug, Clone)]
pub struct Era {
    /// Its members.
    pub membership: Arc<Membership>,
    /// Their keys, decompressed, by id.
    pub keys: Arc<BTreeMap<ReplicaId, VerifyingKey>>,
    /// Its last block; what this epoch decided above it is void.
    pub end: Sequence,
}

/// Shared by all decoders: client keys, and the requests whose signature was already checked.
pub struct Verifier {
    /// Decompressed client keys.
    pub clients: KeyCache,
    verified: std::sync::Mutex<Recent>,
}

struct Recent {
    current: std::collections::BTreeSet<Digest>,
    previous: std::collections::BTreeSet<Digest>,
}

/// Remembered requests per generation; two generations are kept (≤ 4 MiB in all).
const VERIFIED_MAX: usize = 32_768;

impl Default for Verifier {
    fn default() -> Self {
        Self {
            clients: KeyCache::new(4096),
            verified: std::sync::Mutex::new(Recent {
                current: std::collections::BTreeSet::new(),
                previous: std::collections::BTreeSet::new(),
            }),
        }
    }
}

/// Requests whose signatures are checked together.
const TOGETHER_MAX: usize = 64;

impl Verifier {
    /// Verifies a request once; the same bytes with the same signature are not verified again.
    ///
    /// # Errors
    /// [`crate::message::RequestError::Signature`] when it does not verify.
    pub fn verify(
        &self,
        request: &SignedRequest,
        cluster: &Digest,
    ) -> Result<(), crate::message::RequestError> {
        let name = verified_name(request);
        if self.seen().contains(&name) {
            return Ok(());
        }
        if !mistake!("request-signature-unchecked") {
            request.verify(&self.clients, cluster)?;
        }
        self.seen().insert(name);
        Ok(())
    }

    /// As [`Self::verify`], for many at once, which costs a sixth less. An answer for each.
    #[must_use]
    pub fn verify_each(&self, requests: &[&SignedRequest], cluster: &Digest) -> Vec<bool> {
        if requests.len() == 1 || mistake!("request-signature-unchecked") {
            return requests.iter().map(|it| self.verify(it, cluster).is_ok()).collect();
        }
        let names: Vec<Digest> = requests.iter().map(|request| verified_name(request)).collect();
        let mut valid: Vec<bool> = {
            let seen = self.seen();
            names.iter().map(|name| seen.contains(name)).collect()
        };
        let prefix = SignedRequest::prefix(cluster);
        let mut places = Vec::new();
        let mut claims = Vec::new();
        for (place, request) in requests.iter().enumerate() {
            if !valid[place]
                && let Ok(key) = self.clients.get(&request.key().client)
            {
                places.push(place);
                let message = [prefix.as_slice(), request.bytes()];
                claims.push(Claim { key, message, signature: request.signature() });
            }
        }
        let answers = verify_each(&claims);
        let mut seen = self.seen();
        for (place, _) in places.into_iter().zip(answers).filter(|(_, answer)| *answer) {
            valid[place] = true;
            seen.insert(names[place]);
        }
        valid
    }

    /// Whether all are signed; stops soon after the first that is not.
    #[must_use]
    pub fn verify_all(&self, requests: &[Arc<SignedRequest>], cluster: &Digest) -> bool {
        requests.chunks(TOGETHER_MAX).all(|some| {
            let some: Vec<&SignedRequest> = some.iter().map(|request| &**request).collect();
            self.verify_each(&some, cluster).into_iter().all(|valid| valid)
        })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.verified.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Recent {
    fn contains(&self, name: &Digest) -> bool {
        let known = self.current.contains(name) || self.previous.contains(name);
        if known {
            mark!("a signature that was checked is not checked again");
        }
        known
    }

    fn insert(&mut self, name: Digest) {
        if self.current.len() >= VERIFIED_MAX {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(name);
    }
}

/// By the bytes and the signature over them: another signature is another question.
fn verified_name(request: &SignedRequest) -> Digest {
    conclave_crypto::digest::digest(
        "verified",
        &[request.digest().as_bytes(), request.signature().as_bytes()],
    )
}

/// What a replica is doing, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EngineStatus {
    /// The epoch in force.
    pub epoch: Epoch,
    /// View or term.
    pub view: u64,
    /// `primary`, `backup`, `leader`, `follower`, `candidate`, `learner`, `rejoining`, …
    pub role: String,
    /// Who leads, when known.
    pub primary: Option<ReplicaId>,
    /// Whether votes are possible: false while changing views, probing own votes, or rejoining.
    pub normal: bool,
    /// Highest decided sequence without gaps.
    pub decided: Sequence,
    /// Stable checkpoint.
    pub stable: Sequence,
    /// Highest height that others have proven.
    pub proven: Sequence,
    /// Requests waiting to be ordered.
    pub pending: usize,
    /// View changes since the start of the process.
    pub view_changes: u64,
}

/// A protocol of agreement.
pub trait Engine: Send + fmt::Display {
    /// A peer's message, verified.
    type Message: Clone + Send + Sync + fmt::Debug + 'static;

    /// One step. Every effect must be carried out, in order.
    #[must_use]
    fn handle(&mut self, input: Input<Self::Message>) -> Vec<Effect<Self::Message>>;

    /// The only constructor of a peer message. Verifies all signatures; runs on a pool.
    ///
    /// # Errors
    /// A [`Reject`] to be charged to `from`.
    fn decode(horizon: &Horizon, from: ReplicaId, bytes: &[u8]) -> Result<Self::Message, Reject>;

    /// The frame of a message.
    fn encode(message: &Self::Message) -> Vec<u8>;

    /// Whether a message carries bodies and goes on the lower-priority stream.
    fn bulky(message: &Self::Message) -> bool;

    /// A decided batch of the ledger as a message, for a replica that is behind.
    fn decided(committed: Committed) -> Self::Message;

    /// Members in force.
    fn membership(&self) -> Arc<Membership>;

    /// For people and metrics.
    fn status(&self) -> EngineStatus;

    /// What decoders may assume from now on.
    fn horizon(&self) -> Horizon;

    /// The last write of a clean stop: what narrows the reservations found at the next start.
    #[must_use]
    fn shutdown(&mut self) -> Vec<Record>;
}
