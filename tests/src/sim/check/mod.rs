//! The properties that must hold in every run, one file each, fed with facts.
//!
//! A [`Check`] sees [`Fact`]s in the order in which they happen and refuses the first that breaks its property. The
//! checks know who is a traitor and whose disks were lost; everybody else has to keep to the protocol. They believe
//! nobody's status: what they judge was signed, executed, or answered.

mod accountability;
mod acknowledged;
mod agreement;
mod caps;
mod certificates;
mod checkpoints;
mod durability;
mod exactly_once;
mod leaving;
pub mod liveness;
mod monotonic;
mod receipts;
mod rejoins;
mod signatures;
mod state;
#[cfg(test)]
pub(crate) mod testing;
mod validity;

pub use crate::linearizable;

use super::signatures::SignedSlot;
use conclave_consensus::client_session::{Completion, Misbehaviour};
use conclave_consensus::engine::{Checkpointed, Committed, EngineStatus, Evidence, Reject};
use conclave_consensus::executor::Executed;
use conclave_consensus::membership::Genesis;
use conclave_consensus::message::{Batch, BlockHeader, CheckpointCertificate, SignedRequest};
use conclave_consensus::pbft::message::Message;
use conclave_consensus::state_sync::TransferTarget;
use conclave_consensus::types::{ClientId, Sequence};
use conclave_crypto::digest::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Something that happened and that a property may speak about.
#[derive(Clone, Copy)]
pub enum Fact<'a> {
    /// A process started.
    Started { replica: u16, boot: u64 },
    /// A process took a step.
    Stepped {
        replica: u16,
        boot: u64,
        status: &'a EngineStatus,
        height: Sequence,
        /// Effects that wait for the journal.
        waiting: usize,
        /// Records in the journal.
        journal: usize,
    },
    /// A replica with its journal whole put its signature to something and sent it.
    Signed { replica: u16, signed: SignedSlot },
    /// A replica that is no traitor sends this.
    Sent { replica: u16, message: &'a Message },
    /// An effect left while so many records that it has to wait for were not on the disk.
    Overtook { replica: u16, records: u64 },
    /// A replica's engine hands a decided batch over.
    Decided { replica: u16, committed: &'a Committed },
    /// A replica may drop what its journal holds at or below this checkpoint.
    Stable { replica: u16, certificate: &'a CheckpointCertificate },
    /// A replica executed a block.
    Executed { replica: u16, executed: &'a Executed, batch: &'a Batch },
    /// A replica's disk holds a checkpoint.
    Checkpointed { replica: u16, flipped: bool, done: &'a Checkpointed },
    /// A replica put a transferred state in place.
    Installed { replica: u16, target: &'a TransferTarget },
    /// A replica vouched for this block to a client.
    Attested { replica: u16, header: &'a BlockHeader },
    /// A replica decoded a peer's frame.
    Decoded { replica: u16, from: u16, bytes: usize, verifications: u64, accepted: bool },
    /// A replica's engine refused a peer's message.
    Rejected { replica: u16, from: u16, reason: &'a Reject },
    /// A replica holds proof of misbehaviour.
    Evidence { replica: u16, evidence: &'a Evidence },
    /// A replica blames a peer for state that is not certified.
    Blamed { replica: u16, peer: u16 },
    /// A replica finds that its ledger differs from a certified state.
    Diverged { replica: u16, flipped: bool },
    /// A replica finds that its journal was rolled back.
    RolledBack { replica: u16, lost: bool, reason: &'a str },
    /// A replica stops because more than f faults are proven.
    Halted { replica: u16, reason: &'a str },
    /// A correct client sent a request.
    Asked { client: u16, request: &'a SignedRequest },
    /// A correct client believes an answer.
    Answered { client: u16, completion: &'a Completion, called: u64 },
    /// A correct client found a replica lying.
    Caught { client: u16, replica: u16, what: &'a Misbehaviour },
    /// A traitor signed two contradicting statements and showed both to this correct replica.
    Contradicted { traitor: u16, replica: u16, kind: u8 },
    /// The run is over, and this replica's ledger ends here. Blocks below a transferred state are missing.
    Final { replica: u16, height: Sequence, header: &'a dyn Fn(Sequence) -> Option<Digest> },
    /// The rows of all replicated tables at the end.
    Rows { replica: u16, height: Sequence, digest: u128 },
}

/// Who is who in a run.
#[derive(Clone, Debug)]
pub struct Cast {
    /// What the cluster agreed on.
    pub genesis: Arc<Genesis>,
    /// Replicas with another mind.
    pub traitors: BTreeSet<u16>,
    /// Correct clients, by key.
    pub clients: BTreeMap<ClientId, u16>,
    /// Replicas whose disks were ever lost or replaced by an old copy.
    pub forgetful: BTreeSet<u16>,
    /// Replicas whose ledger was changed unseen, until certified state is in place again.
    pub damaged: BTreeSet<u16>,
}

impl Cast {
    /// Whether this replica keeps to the protocol.
    #[must_use]
    pub fn is_correct(&self, replica: u16) -> bool {
        !self.traitors.contains(&replica)
    }

    /// How many replicas may be faulty, computed anew: ⌊(n−1)/3⌋.
    #[must_use]
    pub fn f(&self) -> usize {
        (self.genesis.membership.members.len() - 1) / 3
    }

    /// The smallest set of which any two share a correct replica, computed anew: ⌈(n+f+1)/2⌉.
    #[must_use]
    pub fn quorum(&self) -> usize {
        (self.genesis.membership.members.len() + self.f() + 1).div_ceil(2)
    }

    /// Replicas that lie, and those whose disks were ever lost.
    pub fn unreliable(&self) -> impl Iterator<Item = u16> + '_ {
        self.traitors.union(&self.forgetful).copied()
    }

    /// Whether it also stands on the state that was agreed on.
    #[must_use]
    pub fn is_sound(&self, replica: u16) -> bool {
        self.is_correct(replica) && !self.damaged.contains(&replica)
    }
}

/// One property.
pub trait Check {
    /// Its name, as a violation shows it.
    fn name(&self) -> &'static str;

    /// Takes a fact in.
    ///
    /// # Errors
    /// What breaks the property.
    fn see(&mut self, fact: &Fact<'_>, cast: &Cast) -> Result<(), String>;

    /// The run is over, and everybody correct has caught up.
    ///
    /// # Errors
    /// What breaks the property.
    fn end(&mut self, cast: &Cast) -> Result<(), String> {
        let _ = cast;
        Ok(())
    }
}

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which property.
    pub property: &'static str,
    /// What broke it.
    pub what: String,
    /// When, microseconds.
    pub at: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at {} ms: {}", self.property, self.at / 1000, self.what)
    }
}

/// All properties of a run, and the first that did not hold.
pub struct Checks {
    cast: Cast,
    checks: Vec<Box<dyn Check>>,
    violation: Option<Violation>,
}

impl Checks {
    /// Every property.
    #[must_use]
    pub fn all(cast: Cast) -> Self {
        let checks: Vec<Box<dyn Check>> = vec![
            Box::new(agreement::Agreement::default()),
            Box::new(validity::Validity::default()),
            Box::new(exactly_once::ExactlyOnce::default()),
            Box::new(durability::Durability::default()),
            Box::new(checkpoints::CheckpointAgreement::default()),
            Box::new(certificates::Certificates::default()),
            Box::new(monotonic::Monotonic::default()),
            Box::new(state::StateRoots::default()),
            Box::new(leaving::Leaving::default()),
            Box::new(rejoins::Rejoins::default()),
            Box::new(durability::Order),
            Box::new(signatures::OneSignature::default()),
            Box::new(acknowledged::Acknowledged),
            Box::new(receipts::Receipts::default()),
            Box::new(accountability::Accountability::default()),
            Box::new(caps::Caps::default()),
        ];
        Self { cast, checks, violation: None }
    }

    /// No property.
    #[must_use]
    pub fn none(cast: Cast) -> Self {
        Self { cast, checks: Vec::new(), violation: None }
    }

    /// Who is who.
    pub fn cast_mut(&mut self) -> &mut Cast {
        &mut self.cast
    }

    /// Tells every property.
    pub fn see(&mut self, fact: &Fact<'_>, now: u64) {
        for check in &mut self.checks {
            if let Err(what) = check.see(fact, &self.cast) {
                let violation = Violation { property: check.name(), what, at: now };
                return self.violated(violation);
            }
        }
    }

    /// The run is over.
    pub fn end(&mut self, now: u64) {
        for check in &mut self.checks {
            if let Err(what) = check.end(&self.cast) {
                let violation = Violation { property: check.name(), what, at: now };
                return self.violated(violation);
            }
        }
    }

    fn violated(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// A property that is judged elsewhere did not hold.
    pub fn report(&mut self, property: &'static str, what: String, now: u64) {
        self.violated(Violation { property, what, at: now });
    }

    /// The first property that did not hold.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }
}
